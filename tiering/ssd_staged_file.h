// A segment's file before RocksDB takes it in, and what is kept for the next one.
//
//   file of a dropped segment, or a new one with its space taken --> written over in large direct
//   writes, at the pace asked for, one under way while the next is gathered --> cut to its length
//   --> ingested
//
// Writing over a file that has its space changes nothing but data: no journal of the file system
// that reads would wait for, no blocks that are freed, discarded and taken again.
//
// Invariants
//   A spare file has no name but its own in the staging folder: nothing that is still part of the
//   data is ever written over.
//   A staged file is not synced when it is closed: ingestion syncs it under its new name
//   (IngestOptions' move_files) before the database speaks of it.
//
// Threads: SpareFiles any; a StagedFiles and what it opens, one, and one such file at a time.
// Errors: a spare that cannot be had is no error; what cannot be written is RocksDB's IOError or
// NoSpace.
#ifndef TIERCEL_TIERING_SSD_STAGED_FILE_H_
#define TIERCEL_TIERING_SSD_STAGED_FILE_H_

#include <rocksdb/env.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "tiering/ssd_pacer.h"

namespace tiercel {

// The files of dropped segments that wait to be written over: one at most for each write that is
// about to begin, for each takes a segment's space.
class SpareFiles {
 public:
  // folder: on the file system of the segments; emptied by whoever opens the disk.
  explicit SpareFiles(std::string folder) : folder_(std::move(folder)) {}
  ~SpareFiles() { Clear(); }

  // For a write that is about to begin, and will Take: a second name for an open file that is about
  // to be deleted. Empty where another file is left for that write, or there can be none.
  std::string Hold(int fd);
  // The file is deleted elsewhere by now, and may be taken. Empty: nothing happens.
  void Keep(const std::string& held);
  // A write begins: a kept file gets that name. False: there is none.
  bool Take(const std::string& path);
  // Deletes what is kept.
  void Clear();

 private:
  const std::string folder_;
  Mutex mutex_;
  size_t awaited_ TIERCEL_GUARDED_BY(mutex_) = 0;  // Writes with a Hold and no Take.
  uint64_t number_ TIERCEL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> kept_ TIERCEL_GUARDED_BY(mutex_);
};

struct Staging {
  bool direct_io;
  uint64_t expected_bytes;  // About how long the file will be.
  Pacer* shard;             // Both are asked before a write.
  Pacer* disk;
  SpareFiles* spares;
};

// What an SstFileWriter writes one file through. Borrows what is in `how`.
std::unique_ptr<rocksdb::Env> StagedFiles(const Staging& how);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_STAGED_FILE_H_
