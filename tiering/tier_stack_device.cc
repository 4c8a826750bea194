// The device tier of a stack: blocks that are next to leave RAM are copied to the device ahead of
// that, so that leaving costs nothing, and come back from there as others come from SSD.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

// How far ahead of eviction blocks are copied: bytes of RAM, at most so many blocks looked at.
constexpr uint64_t kAheadBytes = 64 * kMiB;
constexpr int kAheadBlocks = 32;
// Blocks on the device that are passed over because they are being read.
constexpr int kMaxPassed = 64;

}  // namespace

void TierStack::DemoteAhead(uint32_t name_space) {
  if (device_ == nullptr || !device_->available()) return;
  const uint64_t capacity = arena_->capacity_bytes();
  if (arena_->used_bytes() < capacity - capacity / 8) return;
  std::vector<Block*> coldest;
  uint64_t bytes = 0;
  int looks = 0;
  policy_->VisitColdest(name_space, [&](Block& block) {
    bytes += block.host.bytes;
    if (!block.device && block.record_bytes <= device_->largest()) coldest.push_back(&block);
    return bytes < std::min(kAheadBytes, capacity / 16) && ++looks < kAheadBlocks;
  });
  for (Block* block : coldest) {
    if (!StoreOnDevice(block)) return;
  }
}

bool TierStack::StoreOnDevice(Block* block) {
  std::optional<DeviceExtent> room = device_->Allocate(block->record_bytes);
  while (!room && DropOldestOnDevice()) room = device_->Allocate(block->record_bytes);
  if (!room) return false;
  ++block->pins;
  ++pins_;
  const Status queued = device_->Store({arena_->data(block->host), block->record_bytes}, *room,
                                       [this, block, room = *room](const Status& stored) {
                                         if (stored && !block->doomed && !block->device) {
                                           block->device = room;
                                           block->device_turn = ++device_turns_;
                                           on_device_.emplace(block->device_turn, block);
                                         } else {
                                           device_->Free(room);
                                         }
                                         Unpin(block);
                                       });
  if (queued) return true;
  device_->Free(*room);
  Unpin(block);
  return false;
}

void TierStack::LeaveDevice(Block* block) {
  on_device_.erase(block->device_turn);
  device_->Free(std::exchange(block->device, {}));
}

// Of those on the device, what was copied there longest ago; false: none can go.
bool TierStack::DropOldestOnDevice() {
  int passed = 0;
  for (const auto& [turn, block] : on_device_) {
    if (block->reading) {
      if (++passed > kMaxPassed) return false;
      continue;
    }
    Block* gone = block;
    LeaveDevice(gone);
    if (gone->host) return true;
    ++stats_.evicted_device;
    if (gone->ssd) {
      index_.Cool(gone);
    } else {
      ++stats_.evicted;
      Forget(gone, MissReason::kEvicted);
    }
    return true;
  }
  return false;
}

}  // namespace tiercel
