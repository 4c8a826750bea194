// Node is one server process: shards and their threads, the edges that talk to them, the table of
// sessions and the view. It wires and counts; it decides nothing about blocks.
//
//   Start(config) --> ready --> RequestStop (SIGTERM) --> Drain --> Stop
//   Start(config, take over) --> what the process before had in RAM is here (cacheserver/handover.h)
//
// Ownership: owns everything of the process. Threads: every method from any thread, Stop once.
// Errors of Start: as the part that failed said it: an address in use, a data folder in use or of
// another format, a device that is not there. Taking over: kFailedPrecondition: the running server
// refuses; where none runs, or what it leaves is no good, the node starts cold and the log says why.
#ifndef TIERCEL_CACHESERVER_NODE_H_
#define TIERCEL_CACHESERVER_NODE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "cacheserver/config.h"
#include "cacheserver/demotion.h"
#include "cacheserver/handover.h"
#include "cacheserver/metrics.h"
#include "cacheserver/shard.h"
#include "cacheserver/version.h"
#include "proto/types.h"
#include "proto/view.h"
#include "tiering/numa.h"
#include "tiering/ssd_rocksdb.h"
#include "transport/choose.h"

namespace tiercel {

// Identifies a name space across restarts: the first four bytes of SHA-256 of its name.
uint32_t NameSpaceId(std::string_view name);

class GrpcEdge;
class HttpEdge;

class Node {
 public:
  static Result<std::unique_ptr<Node>> Start(const Config& config, bool take_over = false);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const Config& config() const { return config_; }
  const std::string& grpc_address() const { return grpc_address_; }  // As bound: port 0 resolved.
  const std::string& http_address() const { return http_address_; }

  // What a client asks for when it opens a session, and what it gets.
  struct SessionAsk {
    std::string client_name;
    std::string name_space;
    ClientOffer offer;
    std::string ucx_address;
  };
  struct ShardOffer {
    Shard::Token token{};
    TransportKind kind = TransportKind::kGrpc;
    std::string reason;
    std::string address;
  };
  struct SessionGrant {
    uint64_t session_id = 0;
    std::string name_space;
    std::vector<ShardOffer> shards;
  };
  // done runs on some thread, once every shard has answered.
  // Errors: kPermissionDenied: no such name space; kResourceExhausted; kUnavailable: draining.
  void OpenSession(const SessionAsk& ask, std::function<void(Result<SessionGrant>)> done);
  // False: no such session.
  bool KeepAlive(uint64_t session_id);
  void CloseSession(uint64_t session_id);
  // 0 where the session does not exist.
  uint32_t NameSpaceOf(uint64_t session_id) const;

  size_t shards() const { return shards_.size(); }
  // Runs fn on the shard's own thread and waits, at most this long. Errors: kDeadlineExceeded, kResourceExhausted.
  Status OnShard(size_t shard, Nanos timeout, std::function<void(Shard&)> fn) const;
  // The same where fn answers later, by calling the function it is given once.
  Status OnShardAsync(size_t shard, Nanos timeout, std::function<void(Shard&, std::function<void()>)> fn) const;

  NodeSnapshot Snapshot() const;
  bool ready(std::string* why) const;

  View view() const;
  std::string view_json() const;
  void SetViewListener(std::function<void(const std::string& json)> listener);

  void RequestStop() { stop_requested_.store(true); }  // Async-signal-safe.
  bool stop_requested() const { return stop_requested_.load(); }
  // No more sessions or puts; waits until what is acknowledged is on SSD, bounded by limits.drain.
  void Drain();
  bool draining() const { return draining_.load(); }
  void Stop();

 private:
  explicit Node(const Config& config);
  Status StartAll();
  Status StartShard(uint32_t number);
  std::unique_ptr<DeviceTier> OpenDevice();
  Status TakeOver();
  void ListenForSuccessor();
  std::vector<ShardLeft> LeaveShards();
  void Housekeeping();
  Status ReadView();

  struct SessionInfo {
    std::string client_name;
    uint32_t name_space = 0;
    Nanos last_seen = 0;
  };

  Config config_;
  std::string grpc_address_;
  std::string http_address_;
  std::string host_id_;
  std::string runtime_dir_;  // Ours to delete.
  ServerOffer offer_;
  Nanos started_ = 0;
  std::map<uint32_t, QualityClass> demote_to_;           // By name space.
  std::map<uint32_t, TierStack::HostQuota> host_quota_;  // By name space, of one shard; those without are absent.
  std::map<uint32_t, SsdStore::Quota> ssd_quota_;      // Of a shard's part of a disk.
  std::map<uint32_t, uint64_t> pin_limit_;             // Of one shard.
  std::map<uint32_t, uint32_t> ttl_;                   // In seconds.
  std::unique_ptr<Demotion> demotion_;          // Used by the disk's movers.
  std::vector<NumaNode> numa_;      // Empty: shards go anywhere.
  std::string device_why_ = "device.memory is 0";  // Why there is no device tier; empty: there is.
  std::optional<Handover> taken_over_;  // While starting.
  std::unique_ptr<HandoverServer> handover_;
  std::vector<std::unique_ptr<SsdDisk>> disks_;
  std::unique_ptr<GrpcEdge> grpc_;
  std::unique_ptr<HttpEdge> http_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::thread> threads_;
  std::thread housekeeper_;
  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> draining_{false};
  bool stopped_ = false;

  mutable Mutex mutex_;
  std::map<uint64_t, SessionInfo> sessions_ TIERCEL_GUARDED_BY(mutex_);
  View view_ TIERCEL_GUARDED_BY(mutex_);
  std::function<void(const std::string&)> view_listener_ TIERCEL_GUARDED_BY(mutex_);
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_NODE_H_
