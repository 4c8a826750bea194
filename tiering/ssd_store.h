// SsdStore is one shard's part of a disk: records appended to segments, segments dropped whole.
//
//   Append --> open segment --(full, or 5 s old, or Flush)--> sealed --> written --> durable
//   Read   --> verified bytes in the caller's buffer
//   (no room) --> the least recently read segment is dropped: on_dropped names what it held
//
// Invariants
//   An Append's done gives the entry as stored, and only when it and the record survive kill -9.
//   A Read gives the bytes of exactly the key that was appended there, verified, or an error.
//   Bytes on disk stay within the capacity plus one segment. A disk that is full before has for a
//   while the capacity that was found.
//   A segment is written for one name space. No write for another drops a segment without which a
//   name space would have less than its reserve; none of one over its limit is kept.
//
// Ownership: the record given to Append, and the buffer given to Read, stay until done has run.
// Threads: the shard's owner calls everything, and every done runs inside Poll or Shutdown. Movers
// (writers, readers) own bytes in flight and decide nothing. event_fd() is readable when Poll has
// work after an Arm() that said true.
//
// Errors, to done or at once
//   kResourceExhausted  too much waits to be written or read: an answer, not a failure.
//   kNotFound           the segment is gone: a miss.
//   kDataLoss           the bytes do not verify.
//   kUnavailable        the disk is off (full, failing, or never given); why() says so, and the
//   store
//                       tries again by itself.
//
// Implementations: ssd_segment_store.h (RocksDB's is opened by ssd_rocksdb.h), ssd_disks.h over
// several disks, and tests/fakes/memory_ssd_store.h for the simulator.
#ifndef TIERCEL_TIERING_SSD_STORE_H_
#define TIERCEL_TIERING_SSD_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "base/units.h"
#include "proto/block_key.h"
#include "proto/kv_layout.h"
#include "proto/types.h"

namespace tiercel {

struct SsdLocation {
  uint32_t segment = 0;  // 0: not on SSD. Numbers grow and are never reused.
  uint32_t slot = 0;
  explicit operator bool() const { return segment != 0; }
  bool operator==(const SsdLocation&) const = default;
};

// What is kept about a record beside its bytes: all that the index needs after a restart.
struct SsdEntry {
  BlockKey key;
  BlockKey parent;
  PlacementKey anchor;
  Scope scope;
  uint32_t name_space = 0;  // Stable across restarts.
  uint32_t chain_index = 0;
  uint32_t record_bytes = 0;
  uint64_t raw_bytes = 0;
  uint64_t generation = 0;
  uint32_t stored = 0;  // When it was put, in Unix seconds; 0: not known.
  QualityClass quality = QualityClass::kExact;
  // Not kept: what the store may write instead of the record, at worst (Options::recode).
  QualityClass demote_to = QualityClass::kExact;
  SsdLocation where;  // Filled in by the store.
};

class SsdStore {
 public:
  // Bytes of live segments. Others borrow what a name space leaves unused of its reserve; the
  // capacity stands above reserves that are more than it together.
  struct Quota {
    uint64_t reserve = 0;
    uint64_t limit = UINT64_MAX;
  };
  struct Options {
    uint64_t capacity_bytes = 20 * kGiB;
    uint64_t segment_bytes = 64 * kMiB;
    Nanos seal_after = 5 * kSecond;
    uint64_t max_queued_bytes = 512 * kMiB;  // Appended and not yet durable; more is refused.
    uint32_t max_queued_reads = 256;
    // What may be written in a day; a record beyond it is told kResourceExhausted. The budget comes
    // in evenly, and an hour of it may be spent at once. 0: no budget.
    uint64_t write_bytes_per_day = 0;
    // What a name space may have here; empty: no quotas.
    std::function<Quota(uint32_t name_space)> quota;
    uint64_t scrub_bytes_per_second = 0;  // Records read and verified in the background; 0: none.
    // A disk from which nothing comes back for so long, though it was asked, is off. Writes are
    // given the time that their pace asks for, too.
    Nanos stall_after = 5 * kSecond;
    uint64_t write_bytes_per_second = 0;  // The disk's limit, to know what a stall is; 0: none.
    // Checks a record as read, on a mover's thread, and is what finds a flipped bit; empty: nothing
    // does.
    std::function<Status(ByteSpan record)> verify_record;
    // Gives smaller bytes to write instead, of the same content or as much worse as
    // entry->demote_to allows, and changes record_bytes and quality to theirs; empty: the record as
    // it is. Runs on a mover's thread; its bytes are good until the next call on that thread. Left
    // out while much waits to be written.
    std::function<ByteSpan(SsdEntry* entry, ByteSpan record)> recode;
  };

  struct Stats {
    uint64_t used_bytes = 0;  // Of live segments.
    uint64_t segments = 0;
    uint64_t queued_bytes = 0;
    uint64_t queued_reads = 0;
    uint64_t written_bytes = 0;
    uint64_t read_bytes = 0;
    uint64_t dropped_segments = 0;
    uint64_t corrupt_reads = 0;
    uint64_t failed_writes = 0;
    uint64_t recoded = 0;  // Records written as fewer bytes; those, and the bytes they came as:
    uint64_t recoded_bytes = 0;
    uint64_t recoded_from_bytes = 0;
    uint64_t disk_bytes = 0;  // As the disk counts them: used_bytes' alarm.
    uint64_t leaked_segments =
        0;                     // Found on disk though nobody accounts for them, and dropped again.
    uint64_t over_budget = 0;  // Records refused because the day's budget was spent.
    uint64_t budget_left_bytes = 0;  // To be spent at once; 0 too where there is no budget.
    uint64_t scrubbed_records = 0;
    uint64_t scrubbed_bytes = 0;
    uint64_t scrub_bad = 0;     // Of those, the ones that did not verify.
    uint64_t scrub_rounds = 0;  // Times that everything was read.
    uint64_t switched_off = 0;  // Times that the disk was given up for a while.
    uint64_t stalls = 0;        // Of those, because nothing came back.
    uint64_t over_limit = 0;    // Records refused because their name space is at its limit.
    std::map<uint32_t, uint64_t> bytes_of;  // Of live segments, by name space.
  };
  // What may be written now of the day's budget, and the most that may ever be at once; both
  // UINT64_MAX: there is no budget.
  struct Budget {
    uint64_t left = UINT64_MAX;
    uint64_t most = UINT64_MAX;
  };
  struct VerifyReport {
    uint64_t records = 0;
    uint64_t bytes = 0;
    uint64_t bad = 0;
    std::vector<std::string> findings;  // At most 100.
  };

  virtual ~SsdStore() = default;

  // Everything that survived, oldest first. Once, before anything else.
  virtual Result<std::vector<SsdEntry>> Recover() = 0;

  // The largest generation that this store was ever given, by Append or Clear, as far as it
  // survived. New records must have larger ones: what was cleared must not take them with it.
  virtual uint64_t last_generation() const = 0;

  // Called from Append, Flush or Poll with the entries of a segment that was given up; their
  // locations are dead.
  virtual void SetDropListener(std::function<void(const std::vector<SsdEntry>&)> on_dropped) = 0;

  virtual Status Append(const SsdEntry& entry, ByteSpan record,
                        UniqueFunction<void(Result<SsdEntry>)> done) = 0;
  virtual Status Read(const SsdEntry& entry, MutableByteSpan dst,
                      UniqueFunction<void(Status)> done) = 0;

  // Seals the open segment; done once all that was appended before is durable or has failed.
  virtual void Flush(UniqueFunction<void(Status)> done) = 0;

  // From now on, and after any crash, entries of this name space (and scope, unless all zero) with
  // a generation up to this one do not exist. Returns once that is on disk: an operator's call, not
  // a hot one.
  virtual Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) = 0;

  // Reads and checks every record, on a mover. One at a time: a second is told kResourceExhausted.
  virtual void Verify(UniqueFunction<void(Result<VerifyReport>)> done) = 0;

  virtual size_t Poll() = 0;
  virtual int event_fd() const = 0;
  virtual bool Arm() = 0;
  // When Poll wants to be called next even without an event; INT64_MAX: never.
  virtual Nanos next_wakeup() const = 0;

  // Takes writes and reads. After a write that failed reads alone are taken: readable.
  virtual bool available() const = 0;
  virtual bool readable() const = 0;
  virtual std::string why() const = 0;  // Why it is not available; empty when it is.
  virtual Stats stats() const = 0;
  virtual Budget budget() const = 0;

  // Fault injection: flips one bit of a stored record, where it rests.
  virtual Status CorruptForTest(const SsdEntry& entry, uint64_t bit) = 0;

  // Writes what can be written within the time, then stops the movers; all callbacks have run when
  // it returns. A write that has begun is finished: at most one segment a writer.
  virtual void Shutdown(Nanos timeout) = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_STORE_H_
