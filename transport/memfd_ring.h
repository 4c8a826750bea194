// One direction of the shared-memory transport: a byte ring of whole records with one producer and one
// consumer in different processes that do not trust each other. Internal to transport/.
//
//   control: head (producer) | tail (consumer) | asleep (consumer)      data: record, record, ...
//   record:  RecordHead (64) | frame header (64) | meta | payload if it is in line
//
// Invariants
//   Every record is contiguous and a multiple of 64 bytes; a skip record fills the end of the ring.
//   Positions are private copies: the shared ones are only ever published or read, and a value of the
//   peer's that cannot be is an error of that peer (Bad), never an access out of bounds.
//   What is read is copied before it is looked at, so the peer cannot change it in between.
//
// Threads: each side its own one.
#ifndef TIERCEL_TRANSPORT_MEMFD_RING_H_
#define TIERCEL_TRANSPORT_MEMFD_RING_H_

#include <atomic>
#include <cstdint>

#include "base/bytes.h"

namespace tiercel {

struct RingControl {
  alignas(64) std::atomic<uint64_t> head;
  alignas(64) std::atomic<uint64_t> tail;
  alignas(64) std::atomic<uint32_t> asleep;
};
static_assert(sizeof(RingControl) == 192 && std::atomic<uint64_t>::is_always_lock_free);

enum class RecordKind : uint32_t { kFrame = 1, kRelease = 2, kSkip = 3 };
enum class PayloadAt : uint32_t { kNone = 0, kInLine = 1, kRegion = 2, kStaging = 3, kBounce = 4 };

struct RecordHead {
  uint32_t record_bytes = 0;
  RecordKind kind = RecordKind::kFrame;
  uint32_t meta_bytes = 0;
  PayloadAt at = PayloadAt::kNone;
  uint64_t frame = 0;   // The sender's number of this frame; in a release, of the frame released.
  uint64_t offset = 0;  // Into the region, staging or bounce area.
  uint64_t payload_bytes = 0;
  uint32_t region = 0;
  uint32_t region_generation = 0;
  uint64_t zero[2] = {0, 0};
};
static_assert(sizeof(RecordHead) == 64);

class RingProducer {
 public:
  RingProducer() = default;
  RingProducer(RingControl* control, std::byte* data, uint64_t bytes)
      : control_(control), data_(data), bytes_(bytes) {}

  // Room for a record of this many bytes (a multiple of 64), or null: full, or bad().
  std::byte* Reserve(uint64_t need) {
    const uint64_t at = head_ % bytes_;
    const uint64_t skip = at + need > bytes_ ? bytes_ - at : 0;
    if (head_ + skip + need - tail_ > bytes_) {
      if (!ReadTail() || head_ + skip + need - tail_ > bytes_) return nullptr;
    }
    if (skip > 0) {
      RecordHead filler;
      filler.record_bytes = static_cast<uint32_t>(skip);
      filler.kind = RecordKind::kSkip;
      std::memcpy(data_ + at, &filler, sizeof(filler));
      head_ += skip;
    }
    return data_ + head_ % bytes_;
  }
  // Shows the record to the peer; true: the peer sleeps and must be woken.
  bool Publish(uint64_t need) {
    head_ += need;
    control_->head.store(head_, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return control_->asleep.load(std::memory_order_relaxed) != 0;
  }

  // How far the peer has read; head() when it has read all.
  uint64_t Consumed() {
    ReadTail();
    return tail_;
  }
  uint64_t head() const { return head_; }
  bool bad() const { return bad_; }

 private:
  bool ReadTail() {
    const uint64_t tail = control_->tail.load(std::memory_order_acquire);
    if (tail < tail_ || tail > head_) {
      bad_ = true;
      return false;
    }
    tail_ = tail;
    return true;
  }

  RingControl* control_ = nullptr;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t head_ = 0;
  uint64_t tail_ = 0;
  bool bad_ = false;
};

class RingConsumer {
 public:
  enum class Peeked : uint8_t { kEmpty, kRecord, kBad };

  RingConsumer() = default;
  RingConsumer(RingControl* control, const std::byte* data, uint64_t bytes)
      : control_(control), data_(data), bytes_(bytes) {}

  bool Empty() const { return control_->head.load(std::memory_order_acquire) == tail_; }

  // Copies the next record's head; *body is what follows it, record_bytes - 64 long, still shared.
  Peeked Peek(RecordHead* head, const std::byte** body) {
    for (;;) {
      const uint64_t end = control_->head.load(std::memory_order_acquire);
      if (end == tail_) return Peeked::kEmpty;
      const uint64_t waiting = end - tail_;
      if (end < tail_ || waiting > bytes_ || waiting % 64 != 0) return Peeked::kBad;
      const uint64_t at = tail_ % bytes_;
      std::memcpy(head, data_ + at, sizeof(*head));
      const uint64_t size = head->record_bytes;
      if (size < sizeof(*head) || size % 64 != 0 || size > waiting || size > bytes_ - at) {
        return Peeked::kBad;
      }
      if (head->kind == RecordKind::kSkip) {
        Pop(size);
        continue;
      }
      *body = data_ + at + sizeof(*head);
      return Peeked::kRecord;
    }
  }
  void Pop(uint64_t record_bytes) {
    tail_ += record_bytes;
    control_->tail.store(tail_, std::memory_order_release);
  }

  void SetAsleep(bool asleep) {
    control_->asleep.store(asleep ? 1 : 0, std::memory_order_relaxed);
    if (asleep) std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  RingControl* control_ = nullptr;
  const std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t tail_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_MEMFD_RING_H_
