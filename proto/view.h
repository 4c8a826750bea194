// View is the table of nodes and shards that clients place blocks by, with an epoch that only grows.
// Two holders of the same view agree on every owner, because placement is a pure integer function:
// weighted rendezvous hashing of the run anchor over all shards (Thaler and Ravishankar, "Using
// name-based mappings to increase hit rates", 1998; weights by -weight/ln(u) as in Schindelhauer and
// Schomaker, "Weighted distributed hash tables", 2005, with the logarithm in fixed point so that
// C++ and Python agree to the bit). Golden vectors: docs/wire.md, "Placement".
//
// A view is a value: never changed, only replaced. Threads: any.
#ifndef TIERCEL_PROTO_VIEW_H_
#define TIERCEL_PROTO_VIEW_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "proto/block_key.h"

namespace tiercel {

struct ShardInfo {
  std::string node_id;
  uint32_t shard = 0;     // Number within its node.
  uint32_t weight = 100;  // Relative capacity, 1..1'000'000; 0: takes no new blocks.
};

struct NodeInfo {
  std::string id;
  std::string endpoint;  // gRPC: "host:port" or "unix:/path".
  std::string zone;
  std::vector<uint32_t> shard_weights;  // One a shard.
};

struct View {
  uint64_t epoch = 0;
  std::vector<NodeInfo> nodes;  // Ordered by id, ids distinct.
};

// Reads {"epoch":1,"nodes":[{"id","endpoint","zone"?,"shards":[weight...]}]}.
// Errors: kInvalidArgument names the field and node; unknown keys are errors.
Result<View> ParseView(std::string_view json);
std::string FormatView(const View& view);
Status Validate(const View& view);

// One shard's claim to a key: the highest score owns it. ID is "node_id/shard".
uint64_t PlacementHash(const PlacementKey& anchor, uint64_t shard_seed);
uint64_t ShardSeed(std::string_view node_id, uint32_t shard);
// -log2((hash + 1) / 2^64) in units of 2^-32; integer arithmetic only.
uint64_t NegLog2Fixed(uint64_t hash);

// Precomputed for a view: who owns an anchor.
class Placement {
 public:
  explicit Placement(const View& view);

  struct Slot {
    uint32_t node = 0;  // Index into view.nodes.
    uint32_t shard = 0;
    bool operator==(const Slot&) const = default;
  };
  // The owner; requires at least one shard of positive weight (empty(): none).
  Slot Owner(const PlacementKey& anchor) const;
  // The best slot on another node than the owner's, in another zone where there is one: where
  // replicas and fail-over go. Equals Owner when there is just one node.
  Slot Second(const PlacementKey& anchor) const;
  bool empty() const { return slots_.empty(); }
  size_t size() const { return slots_.size(); }

 private:
  struct Entry {
    Slot slot;
    uint64_t seed;
    uint32_t weight;
    uint32_t zone;
  };
  std::vector<Entry> slots_;
};

}  // namespace tiercel

#endif  // TIERCEL_PROTO_VIEW_H_
