// ListPolicy is what the policies have in common: the blocks of a name space lie in a few lists,
// each from coldest to hottest, and the victim is the block that ranks lowest where the lists are
// merged, each from its cold end. A policy says which list a used block goes to, and how its blocks
// rank.
//
//   class Mine : ListPolicy { Place(block, use) -> list number; Rank(block) }
//
// A block is placed at the hot end of its list; or, where its parent is in that list and was used
// with it, right behind its parent: so that of a chain in one list the tail is coldest, whether it
// was used in one request of many keys or in many of one.
//
// Invariants: within a list stamps rise from coldest to hottest, and uses grow no older.
//
// Ownership, threads, errors: as EvictionPolicy.
#ifndef TIERCEL_TIERING_POLICY_LISTS_H_
#define TIERCEL_TIERING_POLICY_LISTS_H_

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "tiering/eviction.h"

namespace tiercel {

class ListPolicy : public EvictionPolicy {
 public:
  void Add(Block& block, const BlockUse& use) override;
  void Touch(Block& block, const BlockUse& use) override;
  void Remove(Block& block) override;
  bool Holds(const Block& block) const override;
  void Unpinned(Block& block) override;
  Block* Victim(uint32_t name_space, const Fits& fits) override;
  void VisitColdest(uint32_t name_space, const Visit& visit) override;
  uint64_t Rank(const Block& block) const override { return block.stamp; }
  uint64_t RecentFrom(uint32_t name_space) const override;
  uint64_t size() const override { return size_; }

  // Block::used counts these.
  static constexpr int kTickShift = 26;  // 67 ms.
  static uint32_t Tick(Nanos now) {
    return static_cast<uint32_t>(static_cast<uint64_t>(now) >> kTickShift);
  }

 protected:
  static constexpr size_t kMaxLists = 64;
  explicit ListPolicy(size_t lists) : n_lists_(lists) {}

  struct List {
    Block* coldest = nullptr;
    Block* hottest = nullptr;
    Block* oldest_recent = nullptr;  // Null: no recent block.
    uint64_t bytes = 0;
    uint64_t recent_bytes = 0;  // From oldest_recent on.
  };
  struct Space {
    std::vector<List> lists;
    uint64_t bytes = 0;
    uint64_t blocks = 0;
    uint64_t used = 0;   // A bit a list: it is not empty.
    bool stuck = false;  // Nothing can go until something is unpinned or added.
    // What each list's coldest block ranks, while that is known: ranks hold until `soonest`, where
    // they were found in this epoch and the list's bit is not in `stale`.
    std::vector<uint64_t> ranks;  // UINT64_MAX: the list is empty.
    uint64_t stale = 0;
    uint64_t epoch = 0;
    uint32_t soonest = 0;
    std::vector<uint32_t> until;
    bool second_first = false;  // S3Fifo: it is the main queue's turn.
  };

  // Which list a block that is used goes to. Its uses, used and turn are those before the use, and
  // are the policy's to change.
  virtual size_t Place(Block& block, const BlockUse& use, bool added) = 0;
  // A victim is about to be looked for: time to move blocks from list to list.
  virtual void Tidy(Space& /*space*/) {}
  // Its rank, and the tick from which on it may be another though nothing is told of the block.
  // A change that has another cause is told by RanksChanged.
  virtual uint64_t RankUntil(const Block& block, uint32_t* until) const {
    *until = UINT32_MAX;
    return Rank(block);
  }
  void RanksChanged() { ++epoch_; }
  // This block is to go.
  virtual void Chosen(const Block& /*block*/) {}

  // To that list: behind this block where that is there, else to its hot end.
  void Move(Space& space, Block& block, size_t list, Block* behind = nullptr);
  Space& SpaceOf(const Block& block) { return spaces_[block.name_space]; }
  const Space* Find(uint32_t name_space) const;
  uint32_t tick_now() const { return now_; }

 private:
  void Insert(Space& space, Block& block, size_t list, Block* behind);
  void Unlink(Space& space, Block& block);
  // Visits what may go, by rank, until a visit returns false.
  template <class Fn>
  void Walk(Space& space, Fn&& visit) const;
  void RankColdest(Space& space) const;
  Block* Search(Space& space, uint64_t recent, const Fits& fits) const;

  const size_t n_lists_;
  std::unordered_map<uint32_t, Space> spaces_;  // By name space; none is empty.
  uint64_t stamp_ = 0;
  uint32_t now_ = 0;    // Tick of the last use.
  uint32_t order_ = 0;  // Of chains, as they were used.
  uint64_t size_ = 0;
  uint64_t epoch_ = 1;
};

// The base: one list.
class TailFirstLru final : public ListPolicy {
 public:
  TailFirstLru() : ListPolicy(1) {}

 private:
  size_t Place(Block& block, const BlockUse& use, bool added) override;
};

// Least frequently used while in RAM, the oldest of those first.
class Lfu final : public ListPolicy {
 public:
  Lfu() : ListPolicy(kMaxLists) {}
  uint64_t Rank(const Block& block) const override;

 private:
  size_t Place(Block& block, const BlockUse& use, bool added) override;
};

// S3-FIFO: a small queue for what is new, of a tenth of the bytes, and a main one for what was used
// again there or came back; both look at a block's uses when its turn comes.
class S3Fifo final : public ListPolicy {
 public:
  S3Fifo() : ListPolicy(2) {}
  uint64_t Rank(const Block& block) const override;

 private:
  size_t Place(Block& block, const BlockUse& use, bool added) override;
  void Tidy(Space& space) override;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_POLICY_LISTS_H_
