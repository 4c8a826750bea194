// One disk of the SSD tier, on RocksDB: one SST a segment, made by SstFileWriter and ingested, keys in
// sequence order, whole segments dropped. Why so, with measurements: docs/adr/0008-ssd-segments.md; byte
// tables: docs/ssd-format.md.
//
//   <path>/FORMAT        "tiercel-ssd 1"
//   <path>/LOCK          held while open
//   <path>/data/         RocksDB, a column family a shard: segment | slot | key -> record,
//                        segment | 0xffffffff -> the segment's manifest; the default one: clear marks
//   <path>/index/        RocksDB, a column family a shard: segment -> manifest; "clear" marks
//   <path>/staging/      segments being written; emptied at open
//
// A segment is durable when its manifest is in the index, which is written after the ingest. A
// segment ingested without that is indexed again at open, from the manifest that it carries itself. A
// damaged index is put aside (index.damaged) and made again in the same way; damaged data is made again from
// the segments' files that are whole.
//
// SsdDisk is opened once a process and folder; its stores share both databases and the limit on writes. It
// must outlive its stores.
//
// Errors of Open: kFailedPrecondition: another process has it, or another format wrote it (both
// named); kInvalidArgument: options; kUnavailable: the file system refuses.
#ifndef TIERCEL_TIERING_SSD_ROCKSDB_H_
#define TIERCEL_TIERING_SSD_ROCKSDB_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "base/units.h"
#include "tiering/ssd_store.h"

namespace tiercel {

class SsdDisk {
 public:
  struct Options {
    std::string path;
    uint32_t shards = 1;
    uint64_t write_bytes_per_second = 0;  // 0: unlimited.
    bool direct_io = true;                // Off only where the file system has none (tmpfs).
    uint32_t writers_per_shard = 2;
    uint32_t readers_per_shard = 4;
  };

  static Result<std::unique_ptr<SsdDisk>> Open(const Options& options);
  virtual ~SsdDisk() = default;

  // Each shard once.
  virtual Result<std::unique_ptr<SsdStore>> OpenShard(uint32_t shard,
                                                      const SsdStore::Options& options,
                                                      const Clock& clock) = 0;
  // False where the file system refused O_DIRECT and buffered I/O is used.
  virtual bool direct_io() const = 0;
  // What segments may fill as things are: what is free on the file system, and what they have.
  virtual uint64_t room_bytes() const = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_ROCKSDB_H_
