// SegmentFile reads records straight from a segment's SST, without RocksDB's table reader and its
// copies and checksum: a record is the only entry of its block, so where it lies follows from the
// sizes before it.
//
//   SST:  block of the first row, 64 | block of slot 0 | block of slot 1 | ... | block of the
//   manifest | index, footer
//   block:  00 | 30 (48) | varint of the record's bytes | key, 40 | sequence and type, 8 | record |
//   8 | 5
//
// What stands before a record is compared with what should; where it differs, as in files that
// another build wrote, the answer is kNotFound, and RocksDB is to be asked. Large records are read
// in pieces, and one is copied while the next are on their way.
//
// Invariants: the bytes before the record were those of its key. Nothing here verifies the record.
// Ownership: its descriptor; each thread that reads keeps room for the largest record it has read.
// Threads: any. Errors: kNotFound as above; kUnavailable: the disk refuses; kDataLoss: the file
// ends early.
#ifndef TIERCEL_TIERING_SSD_SEGMENT_FILE_H_
#define TIERCEL_TIERING_SSD_SEGMENT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "tiering/ssd_store.h"

namespace tiercel {

class SegmentFile {
 public:
  // Null where the file cannot be read in this way; then RocksDB serves it alone.
  // has_first_row: not so in files that were written before 30 November 2026.
  static std::shared_ptr<const SegmentFile> Open(const std::string& path, bool direct_io,
                                                 const std::vector<SsdEntry>& entries,
                                                 bool has_first_row);
  ~SegmentFile();
  SegmentFile(const SegmentFile&) = delete;
  SegmentFile& operator=(const SegmentFile&) = delete;

  // dst holds entry.record_bytes.
  Status Read(const SsdEntry& entry, MutableByteSpan dst) const;
  int fd() const { return fd_; }

 private:
  explicit SegmentFile(int fd) : fd_(fd) {}
  const int fd_;
  std::vector<uint32_t> blocks_;  // Where the block of each slot begins.
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_SEGMENT_FILE_H_
