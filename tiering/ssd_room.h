// SsdRoom is how much a store may hold, and have waiting to be written: its capacity, or for ten
// minutes after the disk was full before that, what it held then. After them more is tried.
//
// Ownership: borrows the clock. Threads: the store's owner. Errors: none.
#ifndef TIERCEL_TIERING_SSD_ROOM_H_
#define TIERCEL_TIERING_SSD_ROOM_H_

#include <algorithm>
#include <cstdint>

#include "base/clock.h"
#include "tiering/ssd_store.h"

namespace tiercel {

class SsdRoom {
 public:
  SsdRoom(const SsdStore::Options& options, const Clock& clock)
      : most_(options.capacity_bytes),
        least_(2 * options.segment_bytes),
        most_queued_(options.max_queued_bytes),
        clock_(clock) {}

  // The disk is full, and holds that much of the store.
  void Full(uint64_t used_bytes) {
    full_at_ = std::max(used_bytes, least_);
    full_until_ = clock_.Now() + kFullFor;
  }
  uint64_t capacity() const {
    return clock_.Now() < full_until_ ? std::min(full_at_, most_) : most_;
  }
  // Room is made for what waits: so much that all that is there would have to go is too much.
  uint64_t most_queued() const { return std::min(most_queued_, capacity() / 4); }

 private:
  static constexpr Nanos kFullFor = 600 * kSecond;

  const uint64_t most_;
  const uint64_t least_;
  const uint64_t most_queued_;
  const Clock& clock_;
  uint64_t full_at_ = 0;
  Nanos full_until_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_ROOM_H_
