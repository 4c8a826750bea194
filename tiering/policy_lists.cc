#include "tiering/policy_lists.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/check.h"

namespace tiercel {
namespace {

// How far beyond the coldest a victim that makes a large enough hole is looked for.
constexpr int kWindow = 32;
// How many that cannot go are passed over in a walk, since the first that can.
constexpr int kMaxPassed = 1024;
// Uses this far apart, at most, are one request's: the time to compute what the cache did not have.
constexpr uint32_t kTogether = 150;  // Ticks: 10 s.
// Stamps of neighbours differ by this, which leaves room for what is placed behind a parent.
constexpr uint64_t kStampStep = 1024;

}  // namespace

void ListPolicy::Insert(Space& space, Block& block, size_t number, Block* behind) {
  List& list = space.lists[number];
  const Block* coldest = list.coldest;
  block.list = static_cast<uint8_t>(number);
  const bool fits = behind != nullptr && behind->list == number && Holds(*behind) &&
                    behind->stamp % kStampStep != 1 &&
                    (behind->colder == nullptr || behind->colder->stamp < behind->stamp - 1);
  if (fits) {
    block.stamp = behind->stamp - 1;
    block.hotter = behind;
    block.colder = behind->colder;
    (behind->colder != nullptr ? behind->colder->hotter : list.coldest) = &block;
    behind->colder = &block;
    if (list.oldest_recent != nullptr && behind->stamp >= list.oldest_recent->stamp) {
      list.recent_bytes += block.host.bytes;
      if (list.oldest_recent == behind) list.oldest_recent = &block;
    }
  } else {
    block.stamp = stamp_ += kStampStep;
    block.colder = list.hottest;
    block.hotter = nullptr;
    (list.hottest != nullptr ? list.hottest->hotter : list.coldest) = &block;
    list.hottest = &block;
    list.recent_bytes += block.host.bytes;
    if (list.oldest_recent == nullptr) list.oldest_recent = &block;
  }
  list.bytes += block.host.bytes;
  space.bytes += block.host.bytes;
  ++space.blocks;
  space.used |= uint64_t{1} << number;
  if (list.coldest != coldest) space.stale |= uint64_t{1} << number;
  while (list.recent_bytes >= list.bytes / 8 && list.oldest_recent != list.hottest) {
    list.recent_bytes -= list.oldest_recent->host.bytes;
    list.oldest_recent = list.oldest_recent->hotter;
  }
}

void ListPolicy::Unlink(Space& space, Block& block) {
  List& list = space.lists[block.list];
  if (list.coldest == &block) space.stale |= uint64_t{1} << block.list;
  list.bytes -= block.host.bytes;
  space.bytes -= block.host.bytes;
  --space.blocks;
  if (list.oldest_recent != nullptr && block.stamp >= list.oldest_recent->stamp) {
    list.recent_bytes -= block.host.bytes;
    if (list.oldest_recent == &block) list.oldest_recent = block.hotter;
  }
  (block.colder != nullptr ? block.colder->hotter : list.coldest) = block.hotter;
  (block.hotter != nullptr ? block.hotter->colder : list.hottest) = block.colder;
  block.colder = nullptr;
  block.hotter = nullptr;
  if (list.coldest == nullptr) space.used &= ~(uint64_t{1} << block.list);
}

const ListPolicy::Space* ListPolicy::Find(uint32_t name_space) const {
  const auto space = spaces_.find(name_space);
  return space == spaces_.end() ? nullptr : &space->second;
}

void ListPolicy::Move(Space& space, Block& block, size_t list, Block* behind) {
  Unlink(space, block);
  Insert(space, block, list, behind);
}

void ListPolicy::Add(Block& block, const BlockUse& use) {
  Space& space = spaces_[block.name_space];
  if (space.lists.empty()) {
    space.lists.resize(n_lists_);
    space.ranks.resize(n_lists_, UINT64_MAX);
    space.until.resize(n_lists_, UINT32_MAX);
  }
  now_ = std::max(now_, Tick(use.now));
  const bool together = use.parent != nullptr && now_ - use.parent->used <= kTogether;
  const size_t list = Place(block, use, /*added=*/true);
  block.used = together ? use.parent->used : now_;  // A chain's is one.
  block.order = together ? use.parent->order : ++order_;
  Insert(space, block, list, together ? use.parent : nullptr);
  space.stuck = false;
  ++size_;
}

void ListPolicy::Touch(Block& block, const BlockUse& use) {
  Space& space = spaces_[block.name_space];
  now_ = std::max(now_, Tick(use.now));
  const bool together = use.parent != nullptr && now_ - use.parent->used <= kTogether;
  const size_t list = Place(block, use, /*added=*/false);
  block.used = together ? use.parent->used : now_;  // A chain's is one.
  block.order = together ? use.parent->order : ++order_;
  if (list >= n_lists_) {  // It stays where it is.
    space.stale |= uint64_t{1} << block.list;
    return;
  }
  Unlink(space, block);
  Insert(space, block, list, together ? use.parent : nullptr);
}

void ListPolicy::Remove(Block& block) {
  const auto space = spaces_.find(block.name_space);
  TIERCEL_CHECK(space != spaces_.end());
  Unlink(space->second, block);
  space->second.stuck = false;  // It may have been the child that kept its parent.
  if (space->second.blocks == 0) spaces_.erase(space);
  --size_;
}

bool ListPolicy::Holds(const Block& block) const {
  if (block.hotter != nullptr) return true;
  const auto space = spaces_.find(block.name_space);
  return space != spaces_.end() && space->second.lists[block.list].hottest == &block;
}

void ListPolicy::Unpinned(Block& block) {
  const auto space = spaces_.find(block.name_space);
  if (space != spaces_.end()) space->second.stuck = false;
}

void ListPolicy::RankColdest(Space& space) const {
  const bool all = space.epoch != epoch_;
  if (!all && space.stale == 0 && now_ < space.soonest) return;
  space.soonest = UINT32_MAX;
  for (size_t number = 0; number < n_lists_; ++number) {
    const Block* block = space.lists[number].coldest;
    if (block == nullptr) {
      space.ranks[number] = UINT64_MAX;
      space.until[number] = UINT32_MAX;
    } else if (all || (space.stale >> number & 1) != 0 || now_ >= space.until[number]) {
      space.ranks[number] = RankUntil(*block, &space.until[number]);
    }
    space.soonest = std::min(space.soonest, space.until[number]);
  }
  space.stale = 0;
  space.epoch = epoch_;
}

template <class Fn>
void ListPolicy::Walk(Space& space, Fn&& visit) const {
  RankColdest(space);
  std::array<Block*, kMaxLists> at;  // Null: where the list begins.
  std::array<uint64_t, kMaxLists> ranks;
  std::copy(space.ranks.begin(), space.ranks.end(), ranks.begin());
  std::fill_n(at.begin(), n_lists_, nullptr);
  uint64_t left = space.used;
  int passed = 0;  // That cannot go, since the first that can.
  bool any = false;
  while (left != 0) {
    auto best = static_cast<size_t>(std::countr_zero(left));
    for (size_t number = best + 1; number < n_lists_; ++number) {
      if (ranks[number] < ranks[best]) best = number;
    }
    Block* block = at[best] != nullptr ? at[best] : space.lists[best].coldest;
    at[best] = block->hotter;  // A visit may take the block out.
    if (CanGo(*block) && block->resident_children == 0) {
      any = true;
      if (!visit(*block)) return;
    } else if (any && ++passed > kMaxPassed) {
      return;
    }
    if (at[best] == nullptr) {
      left &= ~(uint64_t{1} << best);
      ranks[best] = UINT64_MAX;
    } else {
      ranks[best] = Rank(*at[best]);
    }
  }
}

Block* ListPolicy::Search(Space& space, uint64_t recent, const Fits& fits) const {
  Block* victim = nullptr;
  int seen = 0;
  Walk(space, [&](Block& block) {
    if (victim == nullptr) victim = &block;
    if (fits && !(fits(block) && Rank(block) < recent)) return ++seen < kWindow;
    victim = &block;
    return false;
  });
  if (victim != nullptr) return victim;
  for (uint64_t left = space.used; left != 0; left &= left - 1) {  // A parent rather than none.
    const List& list = space.lists[static_cast<size_t>(std::countr_zero(left))];
    for (Block* block = list.coldest; block != nullptr; block = block->hotter) {
      if (CanGo(*block)) return block;
    }
  }
  return nullptr;
}

Block* ListPolicy::Victim(uint32_t name_space, const Fits& fits) {
  const auto found = spaces_.find(name_space);
  if (found == spaces_.end() || found->second.stuck) return nullptr;
  Tidy(found->second);
  Block* victim = Search(found->second, fits ? RecentFrom(name_space) : 0, fits);
  found->second.stuck = victim == nullptr;
  if (victim != nullptr) Chosen(*victim);
  return victim;
}

uint64_t ListPolicy::RecentFrom(uint32_t name_space) const {
  const auto found = spaces_.find(name_space);
  if (found == spaces_.end()) return UINT64_MAX;
  uint64_t from = 0;
  for (uint64_t left = found->second.used; left != 0; left &= left - 1) {
    const List& list = found->second.lists[static_cast<size_t>(std::countr_zero(left))];
    if (list.oldest_recent != nullptr) from = std::max(from, Rank(*list.oldest_recent));
  }
  return from == 0 ? UINT64_MAX : from;
}

void ListPolicy::VisitColdest(uint32_t name_space, const Visit& visit) {
  const auto found = spaces_.find(name_space);
  if (found != spaces_.end()) Walk(found->second, visit);
}

// ---- the policies that learn nothing -----------------------------------------------------------

size_t TailFirstLru::Place(Block& /*block*/, const BlockUse& /*use*/, bool /*added*/) { return 0; }

uint64_t Lfu::Rank(const Block& block) const { return uint64_t{block.list} << 56 | block.stamp; }

size_t Lfu::Place(Block& block, const BlockUse& /*use*/, bool added) {
  block.uses = added ? 0 : static_cast<uint8_t>(std::min<size_t>(block.uses + 1u, kMaxLists - 1));
  return block.uses;
}

namespace {
constexpr size_t kSmall = 0;
constexpr size_t kMain = 1;
constexpr size_t kMostMoves = 64;  // Before a victim is taken as it comes.
constexpr uint8_t kMostUses = 3;
}  // namespace

uint64_t S3Fifo::Rank(const Block& block) const {
  const Space* space = Find(block.name_space);
  const bool first =
      space != nullptr && space->second_first ? block.list == kMain : block.list == kSmall;
  return (first ? 0 : uint64_t{1} << 62) + block.stamp;
}

size_t S3Fifo::Place(Block& block, const BlockUse& use, bool added) {
  if (!added) {
    block.uses = std::min<uint8_t>(static_cast<uint8_t>(block.uses + 1), kMostUses);
    return kMaxLists;
  }
  block.uses = 0;
  return use.came_back ? kMain : kSmall;
}

void S3Fifo::Tidy(Space& space) {
  List& small = space.lists[kSmall];
  List& main = space.lists[kMain];
  for (size_t moves = 0; moves < kMostMoves; ++moves) {
    const bool second_first =
        small.coldest == nullptr || (small.bytes <= space.bytes / 10 && main.coldest != nullptr);
    if (space.second_first != second_first) space.stale = space.used;
    space.second_first = second_first;
    List& queue = space.second_first ? main : small;
    if (queue.coldest == nullptr || queue.coldest->uses == 0) return;
    queue.coldest->uses =
        space.second_first ? static_cast<uint8_t>(queue.coldest->uses - 1) : uint8_t{0};
    Move(space, *queue.coldest, kMain);
  }
}

}  // namespace tiercel
