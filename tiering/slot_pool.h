// SlotPool and HandleTable: many small things of one kind, named by 32-bit handles, found by hash.
//
//   Take() --> handle --> pool[handle] ... Give(handle)        table.Insert(handle), Find(hash,
//   equal)
//
// A pool grows by a chunk at a time and a table by a bucket at a time (linear hashing), so that no
// insertion pays for the millions before it. A slot never moves. Memory given back is used again
// and never returned to the system.
//
// Invariants
//   Handle 0 names nothing. A handle is good from Take until Give.
//   A table has at least as many buckets as slots in it, so that a chain has one and a half on
//   average.
//
// Ownership: the pool owns its slots; a table borrows the pool and writes `next` of what is in it.
// Threads: one owner. Errors: none; no memory ends the process, as for new.
#ifndef TIERCEL_TIERING_SLOT_POOL_H_
#define TIERCEL_TIERING_SLOT_POOL_H_

#include <sys/mman.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <vector>

#include "base/bytes.h"
#include "base/prefetch.h"
#include "base/units.h"

namespace tiercel {

// Zeroed memory in chunks that stay where they are.
template <class T, uint32_t kLogChunk>
class Chunks {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr uint32_t kChunk = 1u << kLogChunk;

  Chunks() = default;
  ~Chunks() {
    for (T* chunk : chunks_) munmap(chunk, kBytes);
  }
  Chunks(const Chunks&) = delete;
  Chunks& operator=(const Chunks&) = delete;

  T& operator[](uint32_t i) { return chunks_[i >> kLogChunk][i & (kChunk - 1)]; }
  const T& operator[](uint32_t i) const { return chunks_[i >> kLogChunk][i & (kChunk - 1)]; }

  // From now on there is room for this many.
  void Reach(uint64_t n) {
    while (chunks_.size() * uint64_t{kChunk} < n) {
      void* chunk =
          mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (chunk == MAP_FAILED) throw std::bad_alloc();
      // Huge pages where a table is large: half of a lookup's time is spent finding pages.
      if (!chunks_.empty()) madvise(chunk, kBytes, MADV_HUGEPAGE);
      chunks_.push_back(static_cast<T*>(chunk));
    }
  }

 private:
  static constexpr size_t kBytes =
      (sizeof(T) * size_t{kChunk} + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
  std::vector<T*> chunks_;
};

// T is trivially copyable and has `uint32_t next`.
template <class T>
class SlotPool {
 public:
  // A zeroed slot.
  uint32_t Take() {
    if (free_ != 0) {
      const uint32_t handle = free_;
      free_ = slots_[handle].next;
      slots_[handle] = T{};
      ++used_;
      return handle;
    }
    slots_.Reach(uint64_t{end_} + 1);
    ++used_;
    return end_++;
  }
  void Give(uint32_t handle) {
    slots_[handle] = T{};
    slots_[handle].next = free_;
    free_ = handle;
    --used_;
  }
  T& operator[](uint32_t handle) { return slots_[handle]; }
  const T& operator[](uint32_t handle) const { return slots_[handle]; }

  uint32_t end() const { return end_; }  // All handles so far are below it.
  uint64_t used() const { return used_; }
  uint64_t memory_bytes() const { return uint64_t{end_} * sizeof(T); }

 private:
  Chunks<T, 17> slots_;  // Of whole huge pages, where T has a multiple of 16 bytes.
  uint32_t free_ = 0;
  uint32_t end_ = 1;
  uint64_t used_ = 0;
};

// T also has `uint64_t hash() const`, uniformly distributed.
template <class T>
class HandleTable {
 public:
  explicit HandleTable(SlotPool<T>& pool) : pool_(pool) { buckets_.Reach(1); }

  template <class Equal>
  uint32_t Find(uint64_t hash, Equal&& equal) const {
    for (uint32_t at = buckets_[BucketOf(hash)]; at != 0; at = pool_[at].next) {
      if (equal(pool_[at])) return at;
    }
    return 0;
  }
  void Insert(uint32_t handle) {
    if (size_ == n_buckets_) Grow();
    uint32_t& head = buckets_[BucketOf(pool_[handle].hash())];
    pool_[handle].next = head;
    head = handle;
    ++size_;
  }
  void Erase(uint32_t handle) {
    uint32_t* link = &buckets_[BucketOf(pool_[handle].hash())];
    while (*link != handle) link = &pool_[*link].next;
    *link = pool_[handle].next;
    --size_;
  }
  // Ask for what a Find of this hash will read: each for all of a batch, in this order, so that the
  // waits for memory overlap.
  void PrefetchBucket(uint64_t hash) const { Prefetch(&buckets_[BucketOf(hash)]); }
  void PrefetchHead(uint64_t hash) const { PrefetchSlot(buckets_[BucketOf(hash)]); }
  void PrefetchNext(uint64_t hash) const {
    const uint32_t head = buckets_[BucketOf(hash)];
    if (head != 0) PrefetchSlot(pool_[head].next);
  }

  uint64_t memory_bytes() const { return uint64_t{n_buckets_} * sizeof(uint32_t); }

 private:
  // Buckets past the last power of two are split from those that lack that bit.
  uint32_t BucketOf(uint64_t hash) const {
    const uint32_t mask = std::bit_ceil(n_buckets_) - 1;
    const auto bucket = static_cast<uint32_t>(hash) & mask;
    return bucket < n_buckets_ ? bucket : bucket & (mask >> 1);
  }
  void PrefetchSlot(uint32_t handle) const {
    if (handle == 0) return;
    const auto* slot = reinterpret_cast<const std::byte*>(&pool_[handle]);
    Prefetch(slot);
    Prefetch(slot + sizeof(T) - 1);
  }
  void Grow() {
    const uint32_t fresh = n_buckets_++;
    buckets_.Reach(n_buckets_);
    uint32_t* link = &buckets_[fresh & ~std::bit_floor(fresh)];
    uint32_t* moved = &buckets_[fresh];
    while (*link != 0) {
      T& slot = pool_[*link];
      if (BucketOf(slot.hash()) == fresh) {
        *moved = *link;
        *link = slot.next;
        slot.next = 0;
        moved = &slot.next;
      } else {
        link = &slot.next;
      }
    }
  }

  SlotPool<T>& pool_;
  Chunks<uint32_t, 19> buckets_;
  uint32_t n_buckets_ = 1;
  uint64_t size_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SLOT_POOL_H_
