// NodeControl is a node's control plane as a client sees it: sessions, keep-alive, the view. gRPC
// is behind it (grpc_control.h); tests put a scripted node there.
//
//   Open --> SessionOffer (a token and an address a shard) --> KeepAlive ... --> Close
//
// Threads: every method from any thread, none blocks save Shutdown; callbacks come on threads of
// the implementation and must be short. After Shutdown returned no callback runs.
#ifndef TIERCEL_CLIENT_CPP_CONTROL_H_
#define TIERCEL_CLIENT_CPP_CONTROL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "transport/transport.h"

namespace tiercel {

struct SessionAsk {
  std::string client_name;
  std::string name_space;
  std::string host_id;
  std::vector<TransportKind> transports;  // In order of preference.
  std::string ucx_address;
};

struct ShardOffer {
  uint32_t shard = 0;
  std::string token;  // 16 bytes.
  TransportKind transport = TransportKind::kGrpc;
  std::string reason;
  std::string address;
};

struct SessionOffer {
  uint64_t session_id = 0;
  std::string node_id;
  std::string server_version;
  std::vector<ShardOffer> shards;
  uint32_t max_keys = kMaxKeys;
  uint64_t max_bytes_in_flight = 256u << 20;
  uint32_t max_requests_in_flight = 1024;
};

class NodeControl {
 public:
  virtual ~NodeControl() = default;

  // done runs exactly once, unless Shutdown comes first.
  virtual void Open(const SessionAsk& ask, Nanos timeout,
                    UniqueFunction<void(Result<SessionOffer>)> done) = 0;
  // Keeps the session alive until Close. lost runs at most once, when the node no longer answers.
  virtual void KeepAlive(uint64_t session_id, UniqueFunction<void(Error)> lost) = 0;
  virtual void Close(uint64_t session_id) = 0;

  // The node's view as it is, then each new one; a stream that breaks is taken up again.
  virtual void WatchView(std::function<void(std::string json)> on_view) = 0;

  // An endpoint of a stream transport (MakeStreamTransport's) on this node's own connection.
  virtual Result<std::unique_ptr<Endpoint>> ConnectStream(Transport& stream, uint64_t session_id,
                                                          uint32_t shard) = 0;

  // About ten times a second: keep-alive messages and streams to take up again.
  virtual void Tick() = 0;
  virtual void Shutdown() = 0;
};

// What a client is made of: gRPC and the machine's transports, or what a test puts there.
struct ClientParts {
  struct Way {
    TransportKind kind = TransportKind::kLoopback;
    std::function<Result<std::unique_ptr<Transport>>(FrameSink& sink, const Clock& clock)> make;
  };
  std::function<std::shared_ptr<NodeControl>(const std::string& endpoint)> control;
  std::vector<Way> ways;  // In order of preference.
  std::string host_id;    // By which a node knows a client of its own host.
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CONTROL_H_
