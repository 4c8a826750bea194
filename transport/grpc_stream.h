// The gRPC stream transport: frames as messages of two bidirectional streams a session and shard, over
// TLS or plain as the channel is. It is the data path for peers outside the trusted fabric, and the
// default in Kubernetes. Puts ride PutBlocks, everything else GetBlocks, so that a bulk put does not
// stand before a get.
//
//   client: Connect ----- GetBlocks, PutBlocks with metadata tiercel-session, tiercel-shard -----+
//   server: service method --> GrpcStreamHub::Accept --> inbox of the shard's transport <--------+
//
// A stream's reads pause when its owner has kReadWindowBytes not yet taken, so a slow shard slows its
// peer through HTTP/2 and never fills memory. Payloads are copied once into a message at Send.
//
// Threads: as transport.h; Accept from gRPC's own threads. No gRPC thread takes a decision.
// Errors: as transport.h. A stream without valid metadata, or for a shard that is not here, is refused
// with kInvalidArgument or kNotFound; one of a session never admitted with kUnauthenticated.
#ifndef TIERCEL_TRANSPORT_GRPC_STREAM_H_
#define TIERCEL_TRANSPORT_GRPC_STREAM_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "proto/tiercel.pb.h"
#include "transport/transport.h"

namespace tiercel {

inline constexpr char kGrpcSessionKey[] = "tiercel-session";  // Decimal session id.
inline constexpr char kGrpcShardKey[] = "tiercel-shard";      // Decimal shard number.
// gRPC's message limits, to be set on servers and channels alike: the largest frame and its framing.
inline constexpr int kGrpcMaxMessageBytes = 20 << 20;
// Windows and frames large enough for a block at a time: gRPC's defaults (64 KiB, 16 KiB) cost a stop
// and a wake-up every few kilobytes.
inline constexpr int kGrpcStreamWindowBytes = 32 << 20;
inline constexpr int kGrpcHttp2FrameBytes = 1 << 20;

// gRPC 1.51 ends its callback threads with the last channel that used them. Where a call's context is
// that channel's last owner, the end comes on one of those threads, which then frees what it still reads
// (grpc_cq_internal_unref). One channel that never ends keeps them for good; whoever makes channels for
// calls with callbacks calls this first. Any thread, any number of times.
void KeepGrpcCallbackThreads();

// Client side. Connect's address is "host:port/shard" and makes a plain channel of its own; a session
// that has a channel already (and its credentials) uses ConnectOn.
class GrpcClientTransport : public Transport {
 public:
  virtual Result<std::unique_ptr<Endpoint>> ConnectOn(std::shared_ptr<grpc::Channel> channel,
                                                      uint64_t session_id, uint32_t shard) = 0;
};
std::unique_ptr<GrpcClientTransport> MakeGrpcClientTransport(FrameSink& sink, const Clock& clock,
                                                             const Transport::Limits& limits = {});

// Server side: the two streaming methods of the service hand their calls to the hub, the hub to the
// shard's transport. The hub may outlive transports and they it.
class GrpcStreamHub {
 public:
  using Reactor = grpc::ServerBidiReactor<v1::Frame, v1::Frame>;
  enum class Half : uint8_t { kGets, kPuts };

  GrpcStreamHub();
  ~GrpcStreamHub();
  GrpcStreamHub(const GrpcStreamHub&) = delete;
  GrpcStreamHub& operator=(const GrpcStreamHub&) = delete;

  // The reactor to return from the service method; never null. It deletes itself.
  Reactor* Accept(grpc::CallbackServerContext* context, Half half);

  // A transport for one shard's thread. Its LocalAddress is "<address>/<shard>", with address as the
  // node is reached ("host:port").
  std::unique_ptr<Transport> MakeTransport(uint32_t shard, std::string address, FrameSink& sink,
                                           const Clock& clock, const Transport::Limits& limits = {});

  struct Shards;

 private:
  std::shared_ptr<Shards> shards_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_GRPC_STREAM_H_
