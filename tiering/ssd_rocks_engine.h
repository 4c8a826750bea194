// RocksEngine is the SegmentEngine of one shard in the two databases of a disk: a segment is an SST
// that is written in staging/ and ingested, and a row of the index. Byte tables:
// docs/ssd-format.md; why so, with measurements: docs/adr/0008-ssd-segments.md. Records are read
// straight from the file (ssd_segment_file.h), and through RocksDB where that finds something else
// than it expects.
//
// Ownership: borrows the databases, which outlive it. Threads and errors: as ssd_engine.h says.
#ifndef TIERCEL_TIERING_SSD_ROCKS_ENGINE_H_
#define TIERCEL_TIERING_SSD_ROCKS_ENGINE_H_

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "tiering/ssd_database.h"
#include "tiering/ssd_engine.h"
#include "tiering/ssd_pacer.h"
#include "tiering/ssd_segment_file.h"
#include "tiering/ssd_staged_file.h"

namespace tiercel {

class RocksEngine final : public SegmentEngine {
 public:
  struct Databases {
    Database* data;
    Database* index;
    Pacer* disk_pacer;   // The limit that all shards of the disk share.
    SpareFiles* spares;  // In staging, as they do.
    std::string staging;
    bool direct_io;
  };
  RocksEngine(const Databases& databases, uint32_t shard)
      : at_(databases), shard_(shard), file_options_(DataOptions(databases.direct_io)) {}

  Result<Recovered> Recover() override;
  Status Write(OpenSegment& segment, const Recode& recode) override;
  Status Read(const SsdEntry& entry, MutableByteSpan dst) override;
  Status Drop(uint32_t segment, bool a_write_follows) override;
  std::vector<uint32_t> Present() const override;
  Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) override;
  Status Corrupt(const SsdEntry& entry, uint64_t bit) override;
  void Pace(uint64_t bytes_per_second) override { pacer_.SetRate(bytes_per_second); }
  void Resume() override;
  uint64_t disk_bytes() const override;

 private:
  rocksdb::DB& data() const { return *at_.data->db; }
  rocksdb::DB& index() const { return *at_.index->db; }
  rocksdb::ColumnFamilyHandle* data_family() const { return at_.data->families[shard_]; }
  rocksdb::ColumnFamilyHandle* index_family() const { return at_.index->families[shard_]; }
  Status ReadIndex(Recovered* out);
  Status ReadClears(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, std::string_view prefix,
                    ClearMarks* out) const;
  Status KeepClears(const ClearMarks& clears, bool in_both);
  rocksdb::Status DeleteData(uint32_t segment);
  Status ReadThroughRocks(const SsdEntry& entry, MutableByteSpan dst) const;
  void Keep(uint32_t segment, std::shared_ptr<const SegmentFile> file);

  const Databases at_;
  const uint32_t shard_;
  // One for all files: from what it opened before, RocksDB knows how little of a file's end to
  // read.
  const rocksdb::Options file_options_;
  Pacer pacer_;
  // One change of the database at a time: a file that is dropped while another is ingested would be
  // deleted later than it could be written over. Taken before mutex_.
  Mutex commit_mutex_;
  Mutex mutex_;
  std::map<uint32_t, std::shared_ptr<const SegmentFile>> files_ TIERCEL_GUARDED_BY(mutex_);
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_ROCKS_ENGINE_H_
