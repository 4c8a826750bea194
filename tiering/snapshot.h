// A snapshot is what a shard knows about its records, as bytes: written by a process that ends,
// read by the one that follows it. docs/restart.md has the table; a golden vector freezes it.
//
//   SnapshotWriter(room, header, slabs) --> Add ... --> Finish      SnapshotReader::Open --> Next
//   ...
//
// Invariants
//   The mark that says "whole" is written last, and a checksum covers header, slabs and records:
//   what a killed writer left, a damaged byte, another version, another size is refused.
//   Records come in the order of their last use, oldest first.
//
// Ownership: both borrow their bytes. Threads: one. Errors: kFailedPrecondition: another version,
// or never finished; kDataLoss: damaged, or says what cannot be. The message says which.
#ifndef TIERCEL_TIERING_SNAPSHOT_H_
#define TIERCEL_TIERING_SNAPSHOT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "tiering/host_arena.h"
#include "tiering/ssd_store.h"

namespace tiercel {

inline constexpr uint32_t kSnapshotVersion = 1;

struct SnapshotHeader {
  uint32_t shard = 0;
  uint32_t shards = 1;
  uint64_t slab_bytes = 0;
  uint64_t records = 0;
  uint64_t next_generation = 1;
  bool operator==(const SnapshotHeader&) const = default;
};

struct SnapshotRecord {
  SsdEntry entry;  // record_bytes: of the copy in RAM where there is one.
  Extent host;     // slab: place among the snapshot's slabs. Empty: not in RAM.
  uint32_t hits = 0;
};

uint64_t SnapshotBytes(uint64_t slabs, uint64_t records);

class SnapshotWriter {
 public:
  // room has SnapshotBytes; slabs are their name spaces.
  SnapshotWriter(MutableByteSpan room, const SnapshotHeader& header,
                 std::span<const uint32_t> slabs);
  void Add(const SnapshotRecord& record);  // header.records of them.
  void Finish();

 private:
  MutableByteSpan room_;
  uint64_t at_;
  uint64_t left_;
};

class SnapshotReader {
 public:
  static Result<SnapshotReader> Open(ByteSpan bytes);
  const SnapshotHeader& header() const { return header_; }
  const std::vector<uint32_t>& slabs() const { return slabs_; }  // Name spaces.
  bool done() const { return left_ == 0; }
  Result<SnapshotRecord> Next();

 private:
  ByteSpan bytes_;
  SnapshotHeader header_;
  std::vector<uint32_t> slabs_;
  uint64_t at_ = 0;
  uint64_t left_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SNAPSHOT_H_
