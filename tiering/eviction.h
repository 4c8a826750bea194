// EvictionPolicy decides which block leaves RAM next. It sees what enters, leaves and is used, and
// keeps any order it likes; whether a block may go at all is decided here once, for every policy.
//
//   Add --> Touch ... --> Victim(name space) --> Remove
//
// Policies are made by name (MakePolicy): "hazard", the default, learns from the traffic which
// blocks come back and when (policy_hazard.h); "lru", the base, takes the tail of the chain that
// was used longest ago; "haz1", "lfu" and "s3fifo" are there to compare with. docs/policy.md has
// the figures.
//
// Invariants
//   A victim is never pinned and never being read. It has no child of its own run in RAM, unless
//   nothing else can go (its children are all pinned). Victim finds one whenever a block of the
//   name space in RAM is neither pinned nor being read.
//   Ranks order the blocks of one name space as the policy would have them go, lowest first; they
//   change only as blocks are used and as time passes.
//   A policy is a function of its seed and of what it was told: it reads no clock of its own.
//
// Ownership: borrows the blocks between Add and Remove; parents named in a BlockUse during the
// call. Threads: the shard's owner alone. Errors: none, but for MakePolicy.
#ifndef TIERCEL_TIERING_EVICTION_H_
#define TIERCEL_TIERING_EVICTION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "proto/types.h"
#include "tiering/block_index.h"

namespace tiercel {

// What is known of the use that a request makes of a block.
struct BlockUse {
  Nanos now = 0;
  ReuseHint hint = ReuseHint::kUnknown;
  // The block before it in its chain, and the one before that, where they are in RAM.
  Block* parent = nullptr;
  Block* grandparent = nullptr;
  // Add: it was here before, and went to make room.
  bool came_back = false;
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  static bool CanGo(const Block& block) { return block.pins == 0 && !block.reading; }

  // The blocks of a chain are added and touched in the chain's order, each with its parent; a
  // policy lets the deeper one go first all the same.
  virtual void Add(Block& block, const BlockUse& use) = 0;  // Its record came into RAM just now.
  virtual void Touch(Block& block, const BlockUse& use) = 0;
  virtual void Remove(Block& block) = 0;  // It leaves RAM.
  virtual bool Holds(const Block& block) const = 0;
  // Its last pin went.
  virtual void Unpinned(Block& block) = 0;

  // Which block of this name space should go. Of the next few, one that `fits` and ranks below
  // RecentFrom is taken before a colder one that does not (empty: no wish). Null: none can go.
  using Fits = std::function<bool(const Block&)>;
  virtual Block* Victim(uint32_t name_space, const Fits& fits) = 0;
  // Visits blocks of this name space that may go and have no child of their run in RAM, coldest
  // first, until a visit returns false; as close to the order of their ranks as the policy's lists
  // are. May leave out the hotter ones of many.
  using Visit = std::function<bool(Block&)>;
  virtual void VisitColdest(uint32_t name_space, const Visit& visit) = 0;
  virtual uint64_t Rank(const Block& block) const = 0;
  // Blocks with this rank or a higher one are the hottest: about an eighth of the name space's
  // bytes in RAM, at least one block.
  virtual uint64_t RecentFrom(uint32_t name_space) const = 0;

  virtual uint64_t size() const = 0;
};

// The names that MakePolicy knows; the first is the default.
const std::vector<std::string>& PolicyNames();
// Errors: kInvalidArgument: no such policy.
Result<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name, uint64_t seed);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_EVICTION_H_
