// SegmentEngine is how whole segments come to and from one disk: the part of an SsdStore that
// waits. ssd_segment_store.h decides what is written, read and dropped; an engine does it.
//
//   Write --> durable: Recover will give it back      Drop: it will not, or once more after a crash
//
// Invariants
//   After a crash Recover gives every segment whose Write returned OK and whose Drop was not asked
//   for, whole; and of others all or nothing. Read gives the bytes that stand in that segment and
//   slot under that key, or an error; whether they are the right ones is for the caller to verify.
//
// Ownership: borrows all it is given for the call. Threads: Recover first, alone; Write, Read, Drop
// and Present from any; Clear, Corrupt, Pace and disk_bytes too. They block as long as the disk
// does.
//
// Errors: kNotFound: no such segment or record; kDataLoss: what is there does not verify;
// kResourceExhausted: no space is left on the disk; kUnavailable: it refuses.
#ifndef TIERCEL_TIERING_SSD_ENGINE_H_
#define TIERCEL_TIERING_SSD_ENGINE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "tiering/open_segment.h"
#include "tiering/ssd_store.h"

namespace tiercel {

// (name space, scope) -> the generation up to which nothing of it exists; a zero scope is every
// scope.
using ClearMarks = std::map<std::pair<uint32_t, Scope>, uint64_t>;

class SegmentEngine {
 public:
  struct Recovered {
    std::map<uint32_t, std::vector<SsdEntry>> segments;
    std::vector<uint32_t> unreadable;  // On disk, and to be dropped: what they hold is not known.
    ClearMarks clears;
    uint64_t reindexed = 0;  // Segments known from their own manifest only.
  };
  using Recode = std::function<ByteSpan(SsdEntry* entry, ByteSpan record)>;

  virtual ~SegmentEngine() = default;

  virtual Result<Recovered> Recover() = 0;
  // Changes the entries to what was written. recode may be empty.
  virtual Status Write(OpenSegment& segment, const Recode& recode) = 0;
  // dst holds entry.record_bytes.
  virtual Status Read(const SsdEntry& entry, MutableByteSpan dst) = 0;
  // a_write_follows: on this thread, which can use what is freed.
  virtual Status Drop(uint32_t segment, bool a_write_follows) = 0;
  // The segments whose bytes are on disk.
  virtual std::vector<uint32_t> Present() const = 0;
  // Durable when it returns.
  virtual Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) = 0;
  virtual Status Corrupt(const SsdEntry& entry, uint64_t bit) = 0;
  // Writes take at least the time that this rate gives them; 0: as fast as the disk.
  virtual void Pace(uint64_t bytes_per_second) = 0;
  // Something failed before: make the disk usable again if that can be done.
  virtual void Resume() = 0;
  virtual uint64_t disk_bytes() const = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_ENGINE_H_
