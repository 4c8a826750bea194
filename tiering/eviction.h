// EvictionPolicy decides which block leaves RAM next. It sees what enters, leaves and is used, and
// keeps any order it likes; whether a block may go at all is decided here once, for every policy.
//
//   Add --> Touch ... --> Victim(name space) --> Remove
//
// TailFirstLru is the base: least recently used first, a chain touched deepest first, so that the
// tail of a prefix goes before its head and what is left of a chain is a prefix of it.
//
// Invariants
//   A victim is never pinned and never being read. It has no child of its own run in RAM, unless
//   nothing else can go (its children are all pinned). Victim finds one whenever a block of the
//   name space in RAM is neither pinned nor being read.
//
// Ownership: borrows the blocks between Add and Remove.
// Threads: the shard's owner alone. Errors: none.
#ifndef TIERCEL_TIERING_EVICTION_H_
#define TIERCEL_TIERING_EVICTION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "tiering/block_index.h"

namespace tiercel {

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  static bool CanGo(const Block& block) { return block.pins == 0 && !block.reading; }

  virtual void Add(Block& block) = 0;     // Its record came into RAM just now.
  virtual void Remove(Block& block) = 0;  // It leaves RAM.
  virtual bool Holds(const Block& block) const = 0;
  // It was used. Callers touch the blocks of a chain deepest first.
  virtual void Touch(Block& block) = 0;
  // Its last pin went.
  virtual void Unpinned(Block& block) = 0;

  // Which block of this name space should go. Of the next few, one that `fits` and was used
  // before RecentFrom is taken before an older one that does not (empty: no wish). Null: none can
  // go.
  using Fits = std::function<bool(const Block&)>;
  virtual Block* Victim(uint32_t name_space, const Fits& fits) = 0;
  // Visits blocks of this name space that may go and have no child of their run in RAM, in the order
  // of their stamps, until a visit returns false. May leave out the hotter ones of many.
  using Visit = std::function<bool(Block&)>;
  virtual void VisitColdest(uint32_t name_space, const Visit& visit) = 0;
  // Blocks with this stamp or a later one are the most recently used ones: under an eighth of the
  // name space's bytes in RAM, at least one block.
  virtual uint64_t RecentFrom(uint32_t name_space) const = 0;

  virtual uint64_t size() const = 0;
};

class TailFirstLru final : public EvictionPolicy {
 public:
  void Add(Block& block) override;
  void Remove(Block& block) override;
  bool Holds(const Block& block) const override;
  void Touch(Block& block) override;
  void Unpinned(Block& block) override;
  Block* Victim(uint32_t name_space, const Fits& fits) override;
  void VisitColdest(uint32_t name_space, const Visit& visit) override;
  uint64_t RecentFrom(uint32_t name_space) const override;
  uint64_t size() const override { return size_; }

 private:
  struct List {
    Block* coldest = nullptr;
    Block* hottest = nullptr;
    Block* oldest_recent = nullptr;  // Null: no recent block.
    uint64_t bytes = 0;
    uint64_t recent_bytes = 0;       // From oldest_recent on.
    bool stuck = false;  // Nothing in it can go until something is unpinned or added.
  };
  void PushHottest(List& list, Block& block);
  static void Unlink(List& list, Block& block);

  std::unordered_map<uint32_t, List> lists_;  // By name space; none is empty.
  uint64_t tick_ = 0;
  uint64_t size_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_EVICTION_H_
