// OpenSegment gathers the records that will be written to SSD as one segment, and who waits for
// each.
//
//   Add ... Add --> full, or due --> moved to a writer --> Answer
//
// Invariants: records lie in the segment in the order of Add, and each entry says where; bytes() is
// their sum. A segment has a number from its first record on. What is written of a record may be less
// than the record: a writer says so in its entry.
//
// Ownership: borrows the records until Answer; holds the callbacks.
// Threads: the store's owner; between Take and Answer its writer. Errors: none.
#ifndef TIERCEL_TIERING_OPEN_SEGMENT_H_
#define TIERCEL_TIERING_OPEN_SEGMENT_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "tiering/ssd_store.h"

namespace tiercel {

class OpenSegment {
 public:
  using Done = UniqueFunction<void(Result<SsdEntry>)>;
  struct Append {
    SsdEntry entry;
    ByteSpan record;
    Done done;
  };

  bool empty() const { return appends_.empty(); }
  uint32_t number() const { return number_; }
  uint64_t bytes() const { return bytes_; }
  const std::vector<Append>& appends() const { return appends_; }
  std::vector<Append>& appends() { return appends_; }
  uint64_t stored_bytes() const {
    uint64_t sum = 0;
    for (const Append& append : appends_) sum += append.entry.record_bytes;
    return sum;
  }
  // When it has been open for so long; never while it is empty.
  Nanos Due(Nanos after) const { return empty() ? INT64_MAX : began_ + after; }

  // The first record takes the next number, and begins the segment now.
  void Add(const SsdEntry& entry, ByteSpan record, Done done, Nanos now, uint32_t* next_number) {
    if (empty()) {
      began_ = now;
      number_ = (*next_number)++;
    }
    appends_.push_back({entry, record, std::move(done)});
    appends_.back().entry.where = {number_, static_cast<uint32_t>(appends_.size() - 1)};
    bytes_ += record.size();
  }
  // All that was added, and empty from then on.
  OpenSegment Take() { return std::exchange(*this, OpenSegment()); }
  // Tells each who waits what was stored of its record, and where, or why not. Once.
  void Answer(const Status& status) {
    for (Append& append : appends_) {
      append.done(status ? Result<SsdEntry>(append.entry)
                         : Result<SsdEntry>(tl::unexpected<Error>(status.error())));
    }
  }

 private:
  uint32_t number_ = 0;
  uint64_t bytes_ = 0;
  Nanos began_ = 0;
  std::vector<Append> appends_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_OPEN_SEGMENT_H_
