#include "tiering/eviction.h"

#include "base/check.h"

namespace tiercel {
namespace {

// How far beyond the coldest a victim that makes a large enough hole is looked for.
constexpr int kWindow = 32;
// How many that cannot go are passed over in a visit.
constexpr int kMaxPassed = 1024;

}  // namespace

void TailFirstLru::PushHottest(List& list, Block& block) {
  block.colder = list.hottest;
  block.hotter = nullptr;
  (list.hottest != nullptr ? list.hottest->hotter : list.coldest) = &block;
  list.hottest = &block;
  block.stamp = ++tick_;
  list.bytes += block.host.bytes;
  list.recent_bytes += block.host.bytes;
  if (list.oldest_recent == nullptr) list.oldest_recent = &block;
  while (list.recent_bytes >= list.bytes / 8 && list.oldest_recent != list.hottest) {
    list.recent_bytes -= list.oldest_recent->host.bytes;
    list.oldest_recent = list.oldest_recent->hotter;
  }
}

void TailFirstLru::Unlink(List& list, Block& block) {
  list.bytes -= block.host.bytes;
  if (list.oldest_recent != nullptr && block.stamp >= list.oldest_recent->stamp) {
    list.recent_bytes -= block.host.bytes;
    if (list.oldest_recent == &block) list.oldest_recent = block.hotter;
  }
  (block.colder != nullptr ? block.colder->hotter : list.coldest) = block.hotter;
  (block.hotter != nullptr ? block.hotter->colder : list.hottest) = block.colder;
  block.colder = nullptr;
  block.hotter = nullptr;
}

void TailFirstLru::Add(Block& block) {
  List& list = lists_[block.name_space];
  PushHottest(list, block);
  list.stuck = false;
  ++size_;
}

void TailFirstLru::Remove(Block& block) {
  const auto list = lists_.find(block.name_space);
  TIERCEL_CHECK(list != lists_.end());
  Unlink(list->second, block);
  list->second.stuck = false;  // It may have been the child that kept its parent.
  if (list->second.coldest == nullptr) lists_.erase(list);
  --size_;
}

bool TailFirstLru::Holds(const Block& block) const {
  if (block.hotter != nullptr) return true;
  const auto list = lists_.find(block.name_space);
  return list != lists_.end() && list->second.hottest == &block;
}

void TailFirstLru::Touch(Block& block) {
  List& list = lists_[block.name_space];
  Unlink(list, block);
  PushHottest(list, block);
}

void TailFirstLru::Unpinned(Block& block) {
  const auto list = lists_.find(block.name_space);
  if (list != lists_.end()) list->second.stuck = false;
}

Block* TailFirstLru::Victim(uint32_t name_space, const Fits& fits) {
  const auto found = lists_.find(name_space);
  if (found == lists_.end() || found->second.stuck) return nullptr;
  Block* first = nullptr;
  Block* parent = nullptr;
  const uint64_t recent = RecentFrom(name_space);
  int seen = 0;
  int steps = 0;
  for (Block* block = found->second.coldest; block != nullptr; block = block->hotter) {
    if (first != nullptr && ++steps > 8 * kWindow) break;
    if (!CanGo(*block)) continue;
    if (block->resident_children > 0) {
      if (parent == nullptr) parent = block;
      continue;
    }
    if (!fits || (block->stamp < recent && fits(*block))) return block;
    if (first == nullptr) first = block;
    if (++seen == kWindow) break;
  }
  Block* victim = first != nullptr ? first : parent;
  found->second.stuck = victim == nullptr;
  return victim;
}

uint64_t TailFirstLru::RecentFrom(uint32_t name_space) const {
  const auto found = lists_.find(name_space);
  const bool none = found == lists_.end() || found->second.oldest_recent == nullptr;
  return none ? UINT64_MAX : found->second.oldest_recent->stamp;
}

void TailFirstLru::VisitColdest(uint32_t name_space, const Visit& visit) {
  const auto found = lists_.find(name_space);
  if (found == lists_.end()) return;
  int passed = 0;  // That cannot go, since the first that can.
  bool any = false;
  for (Block* block = found->second.coldest; block != nullptr; block = block->hotter) {
    if (!CanGo(*block) || block->resident_children > 0) {
      if (any && ++passed > kMaxPassed) return;
      continue;
    }
    any = true;
    if (!visit(*block)) return;
  }
}

}  // namespace tiercel
