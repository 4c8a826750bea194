// A planned restart: the process that runs hands its RAM to the one that follows, over a Unix socket.
//
//   old: HandoverServer::Listen ... (asked) on_asked --> Node drains and stops --> Send(shards)
//   new: Handover::Ask --> what each shard had: a snapshot and slabs, all as descriptors --> Confirm
//
// The new process asks before it opens anything of its own. The old one answers with a refusal, which
// changes nothing, or stops serving, closes its ports and its SSD folder, and only then sends: so the
// two never serve or write at the same time. What a peer that dies leaves is no snapshot: the other
// side says so, and the new process starts cold.
//
// Who may take part: processes of the same user as this one, or root, told by the kernel (SO_PEERCRED).
//
// Ownership: descriptors belong to who received them. Threads: HandoverServer has one of its own;
// Send and Ask from the caller's. Errors: kNotFound: nobody listens; kPermissionDenied: another
// user's; kFailedPrecondition: refused, with the reason; kUnavailable: the peer went, or took too long;
// kDataLoss: what it says makes no sense.
#ifndef TIERCEL_CACHESERVER_HANDOVER_H_
#define TIERCEL_CACHESERVER_HANDOVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file_descriptor.h"
#include "base/mutex.h"
#include "base/result.h"
#include "cacheserver/config.h"
#include "tiering/tier_stack.h"

namespace tiercel {

// What must be equal on both sides for RAM to be of use.
struct HandoverTerms {
  uint32_t shards = 0;
  uint64_t slab_bytes = 0;
  std::string version;  // Of the build; may differ, and is told.
};

struct ShardLeft {
  FileDescriptor snapshot;  // A memfd, sealed.
  uint64_t snapshot_bytes = 0;
  std::vector<FileDescriptor> slabs;
};

// What a shard of this process has in RAM. Nothing may change in it any more, and the process ends soon.
Result<ShardLeft> LeaveShard(TierStack& stack, uint32_t shard, uint32_t shards);
// Into a stack that has just been made.
Result<TierStack::Adopted> AdoptShard(TierStack& stack, uint32_t shard, uint32_t shards, ShardLeft left);

// Where this node listens for its successor; empty: nowhere.
std::string RestartSocket(const Config& config);

class HandoverServer {
 public:
  // on_asked runs once, on the server's thread, when a successor is accepted.
  // Errors: kInvalidArgument: a path that is too long or something else's; kUnavailable.
  static Result<std::unique_ptr<HandoverServer>> Listen(const std::string& path, const HandoverTerms& terms,
                                                        std::function<void()> on_asked);
  ~HandoverServer();
  HandoverServer(const HandoverServer&) = delete;
  HandoverServer& operator=(const HandoverServer&) = delete;

  // A successor waits for what this process has.
  bool asked() const;
  // Everything, then waits until the successor serves, at most this long.
  Status Send(std::vector<ShardLeft> shards, Nanos timeout);

 private:
  HandoverServer(std::string path, HandoverTerms terms, std::function<void()> on_asked, FileDescriptor listener);
  void Run();
  void Answer(FileDescriptor peer);

  const std::string path_;
  const HandoverTerms terms_;
  const std::function<void()> on_asked_;
  FileDescriptor listener_;
  FileDescriptor wake_;  // An eventfd that ends Run.
  mutable Mutex mutex_;
  FileDescriptor successor_ TIERCEL_GUARDED_BY(mutex_);
  std::thread thread_;
};

class Handover {
 public:
  // Asks who listens there and waits until all of it is here.
  static Result<Handover> Ask(const std::string& path, const HandoverTerms& terms, Nanos timeout);

  const std::string& version() const { return version_; }  // Of the build that ran.
  std::vector<ShardLeft>& shards() { return shards_; }
  // This process serves: the old one may end.
  void Confirm();

 private:
  Status Receive(uint32_t shards, Nanos timeout);
  FileDescriptor socket_;
  std::string version_;
  std::vector<ShardLeft> shards_;
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_HANDOVER_H_
