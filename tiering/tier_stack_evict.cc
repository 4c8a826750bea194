// Room in RAM: a victim, a hole of neighbours, or a slab of another name space, within the quotas of both.
#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

// Neighbours that the choice of a hole looks at before it takes the best so far: where that would
// evict a block that was used recently, and where it would not.
constexpr uint32_t kMaxLooks = 1024;
constexpr uint32_t kMaxLooksWhenCold = 64;

}  // namespace

Result<Extent> TierStack::AllocateEvicting(uint64_t bytes, uint32_t name_space) {
  Result<Extent> extent = arena_->Allocate(bytes, name_space, MayGrow(name_space));
  if (extent || extent.error().code != Code::kResourceExhausted) return extent;
  const uint64_t unusable = arena_->free_bytes(name_space);
  stats_.evicted_for_hole_bytes += unusable;
  ++stats_.evicting_allocations;
  while (EvictFor(bytes, name_space)) {
    extent = arena_->Allocate(bytes, name_space, MayGrow(name_space));
    if (extent || extent.error().code != Code::kResourceExhausted) return extent;
  }
  return Fail(Code::kResourceExhausted, "everything in host memory is in use");
}

// Makes some room; false: there is none to be made.
bool TierStack::EvictFor(uint64_t bytes, uint32_t name_space) {
  const auto fits = [this, bytes](const Block& block) {
    if (arena_->adopted(block.host.slab)) return false;
    uint64_t hole = block.host.bytes;
    const auto before = arena_->Before(block.host.slab, block.host.offset);
    const auto after = arena_->After(block.host.slab, block.host.offset + block.host.bytes);
    if (before.free) hole += before.bytes;
    if (after.free) hole += after.bytes;
    return hole >= bytes;
  };
  if (options_.host_quota && arena_->slab_bytes_of(name_space) < QuotaOf(name_space).reserve &&
      (TakeSlab(name_space, UINT64_MAX, /*own_adopted=*/false) ||
       (LetGoForReserve(name_space) && TakeSlab(name_space, UINT64_MAX, /*own_adopted=*/false)))) {
    return true;
  }
  Block* victim = policy_->Victim(name_space, fits);
  if (victim == nullptr) return TakeSlab(name_space, UINT64_MAX, /*own_adopted=*/true);
  // In an adopted slab there is no room before all of it is empty.
  if (arena_->adopted(victim->host.slab) && TakeSlab(name_space, UINT64_MAX, /*own_adopted=*/true)) return true;
  if (evicted_since_look_ >= arena_->options().slab_bytes) {
    evicted_since_look_ = 0;
    if (TakeSlab(name_space, victim->stamp, /*own_adopted=*/false)) return true;
  }
  if (fits(*victim) || !MakeHole(name_space, bytes)) DropHostCopy(victim);
  return true;
}

// Evicts blocks that lie together, `bytes` or more of them with the free runs between: of such
// holes the one whose most recently used block was used longest ago. Seeds are tried coldest first,
// until the next is no colder than the best hole's hottest block: a hole without a hotter block has
// a colder seed in it, so none that is better is left. False, and nothing is done, when no seed
// grows to a hole.
//
// The best so far is taken after kMaxLooksWhenCold once it has no recently used block in it
// (EvictionPolicy::RecentFrom), and in any case after kMaxLooks. A seed looks at one neighbour a
// block and free run of its hole and at two more, and gives up at one hotter than the best's.
bool TierStack::MakeHole(uint32_t name_space, uint64_t bytes) {
  std::vector<Block*> best;
  std::vector<Block*> hole;
  uint64_t hottest = UINT64_MAX;
  const uint64_t recent = policy_->RecentFrom(name_space);
  uint32_t looks = 0;
  policy_->VisitColdest(name_space, [&](Block& seed) {
    if (policy_->Rank(seed) >= hottest) return false;
    if (arena_->adopted(seed.host.slab)) return true;
    const uint64_t its_hottest = GrowHole(&seed, bytes, hottest, &hole, &looks);
    if (its_hottest < hottest) {
      hottest = its_hottest;
      best.swap(hole);
    }
    return looks < (hottest < recent ? kMaxLooksWhenCold : kMaxLooks);
  });
  for (Block* block : best) DropHostCopy(block);
  return !best.empty();
}

// Which neighbours of a block leave, the colder side first, so that `bytes` lie free together. That
// order keeps the hottest of them as cold as it can be. Returns its rank, or UINT64_MAX: something
// in the way cannot go, or ranks no lower than ranked_before.
uint64_t TierStack::GrowHole(Block* seed, uint64_t bytes, uint64_t ranked_before,
                             std::vector<Block*>* hole, uint32_t* looks) const {
  const uint32_t slab = seed->host.slab;
  uint64_t begin = seed->host.offset;
  uint64_t end = begin + seed->host.bytes;
  uint64_t hottest = policy_->Rank(*seed);
  const auto rank = [this](const HostArena::Neighbour& side) -> uint64_t {
    if (side.bytes == 0) return UINT64_MAX;
    if (side.free) return 0;
    if (side.owner == nullptr || !EvictionPolicy::CanGo(*side.owner)) return UINT64_MAX;
    return policy_->Rank(*side.owner);
  };
  hole->assign(1, seed);
  auto before = arena_->Before(slab, begin);
  auto after = arena_->After(slab, end);
  *looks += 2;
  while (end - begin < bytes) {
    const uint64_t rank_before = rank(before);
    const uint64_t rank_after = rank(after);
    if (std::min(rank_before, rank_after) >= ranked_before) return UINT64_MAX;
    HostArena::Neighbour& side = rank_before < rank_after ? before : after;
    hottest = std::max(hottest, rank(side));
    if (side.owner != nullptr) hole->push_back(side.owner);
    if (rank_before < rank_after) {
      begin = side.offset;
      side = arena_->Before(slab, begin);
    } else {
      end = side.offset + side.bytes;
      side = arena_->After(slab, end);
    }
    ++*looks;
  }
  // A parent goes only with all of its children.
  std::unordered_map<BlockKey, uint32_t, BlockKeyHash> children;
  for (const Block* block : *hole) {
    if (block->counted) ++children[block->parent];
  }
  for (const Block* block : *hole) {
    if (block->resident_children == 0) continue;
    const auto going = children.find(block->key);
    if (going == children.end() || block->resident_children > going->second) return UINT64_MAX;
  }
  return hottest;
}

TierStack::HostQuota TierStack::QuotaOf(uint32_t name_space) const {
  return options_.host_quota ? options_.host_quota(name_space) : HostQuota{};
}

bool TierStack::MayGrow(uint32_t name_space) const {
  if (!options_.host_quota) return true;
  return arena_->slab_bytes_of(name_space) + arena_->options().slab_bytes <=
         QuotaOf(name_space).limit;
}

// Empties the slab of another name space, or with own_adopted an adopted one of its own, whose blocks
// were used longest ago, on average, if that was before used_before. The arena then gives its memory
// to who asks.
bool TierStack::TakeSlab(uint32_t name_space, uint64_t used_before, bool own_adopted) {
  const bool may_grow = MayGrow(name_space);
  std::optional<uint32_t> oldest;
  for (uint32_t slab = 0; slab < arena_->slabs(); ++slab) {
    const uint32_t other = arena_->slab_owner(slab);
    if (other == name_space) {
      if (!own_adopted || !arena_->adopted(slab)) continue;
    } else if (!may_grow || (options_.host_quota && arena_->slab_bytes_of(other) <
                                                        QuotaOf(other).reserve + arena_->options().slab_bytes)) {
      continue;
    }
    uint64_t blocks = 0;
    double stamps = 0;
    bool can_go = true;
    arena_->ForEachExtent(slab, [&](const Block* owner) {
      can_go = can_go && owner != nullptr && EvictionPolicy::CanGo(*owner);
      ++blocks;
      if (owner != nullptr) stamps += static_cast<double>(owner->stamp);
    });
    if (!can_go || blocks == 0) continue;
    const auto mean = static_cast<uint64_t>(stamps / static_cast<double>(blocks));
    if (mean >= used_before) continue;
    used_before = mean;
    oldest = slab;
  }
  if (!oldest) return false;
  std::vector<Block*> out;
  arena_->ForEachExtent(*oldest, [&](Block* owner) { out.push_back(owner); });
  for (Block* block : out) DropHostCopy(block);
  ++stats_.slabs_taken;
  return true;
}

}  // namespace tiercel
