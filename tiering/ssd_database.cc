#include "tiering/ssd_database.h"

#include <fmt/format.h>
#include <rocksdb/flush_block_policy.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/table_properties.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "tiering/ssd_manifest.h"

namespace tiercel {

Error FromRocks(const rocksdb::Status& status, std::string_view what) {
  Code code = Code::kUnavailable;
  if (status.IsNotFound() || status.IsPathNotFound()) code = Code::kNotFound;
  if (status.IsCorruption()) code = Code::kDataLoss;
  if (status.IsNoSpace()) code = Code::kResourceExhausted;
  return {code, fmt::format("{}: {}", what, status.ToString())};
}

namespace {

std::string BigEndian(uint32_t value) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8)
    out.push_back(static_cast<char>(value >> shift & 255));
  return out;
}

// Each key in a block of its own, so that where a record lies follows from the sizes before it.
class EachKey final : public rocksdb::FlushBlockPolicy {
 public:
  bool Update(const rocksdb::Slice&, const rocksdb::Slice&) override {
    return std::exchange(begun_, true);
  }

 private:
  bool begun_ = false;
};
class EachKeyFactory final : public rocksdb::FlushBlockPolicyFactory {
 public:
  const char* Name() const override { return "tiercel.EachKey"; }
  rocksdb::FlushBlockPolicy* NewFlushBlockPolicy(const rocksdb::BlockBasedTableOptions&,
                                                 const rocksdb::BlockBuilder&) const override {
    return new EachKey();
  }
};

rocksdb::BlockBasedTableOptions TableOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.flush_block_policy_factory = std::make_shared<EachKeyFactory>();
  // The distribution's RocksDB has CRC-32C in software only; XXH3 costs a quarter of it.
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  table.no_block_cache = true;  // A record is read once into the host tier, which is the cache.
  return table;
}

}  // namespace

rocksdb::Options DataOptions(bool direct_io) {
  rocksdb::Options data;
  data.create_if_missing = true;
  data.create_missing_column_families = true;
  data.compression = rocksdb::kNoCompression;
  data.use_direct_reads = direct_io;
  data.use_direct_io_for_flush_and_compaction = direct_io;
  data.level_compaction_dynamic_level_bytes = true;
  data.disable_auto_compactions = true;  // Segments are disjoint: there is nothing to compact.
  data.ttl = 0;
  data.periodic_compaction_seconds = 0;
  data.max_open_files = -1;
  data.max_background_jobs = 4;
  data.allow_fallocate = false;  // Of its log, which holds a few clear marks and would take 70 MiB.
  data.keep_log_file_num = 2;
  data.max_log_file_size = 4 << 20;
  data.table_factory.reset(rocksdb::NewBlockBasedTableFactory(TableOptions()));
  return data;
}

rocksdb::Options SegmentOptions(bool direct_io, uint64_t largest_row) {
  rocksdb::Options segment = DataOptions(direct_io);
  rocksdb::BlockBasedTableOptions table = TableOptions();
  // A block is built in a string that has this much taken ahead. One that is too short is copied to
  // one of twice its length, for the four bytes that follow the record.
  table.block_size = std::min<uint64_t>(largest_row, UINT32_MAX);
  segment.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return segment;
}

rocksdb::IngestExternalFileOptions IngestOptions() {
  rocksdb::IngestExternalFileOptions ingest;
  ingest.move_files = true;
  ingest.snapshot_consistency = false;
  ingest.allow_global_seqno = true;
  ingest.write_global_seqno = false;
  ingest.allow_blocking_flush = false;
  ingest.verify_checksums_before_ingest = false;
  return ingest;
}

Status CheckIngestible(const std::string& path, const rocksdb::Options& options, uint32_t* segment,
                       std::string* family) {
  rocksdb::SstFileReader reader(options);
  const rocksdb::Status opened = reader.Open(path);
  if (!opened.ok()) return tl::unexpected<Error>(FromRocks(opened, "opening a segment's file"));
  const auto properties = reader.GetTableProperties();
  if (properties != nullptr) *family = properties->column_family_name;
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
  it->SeekToFirst();
  uint32_t slot = 0;
  if (it->Valid() && ParseSegment(it->key().ToString(), segment, &slot))
    it->Seek(DataKey(*segment, kManifestSlot, nullptr));
  if (!it->status().ok())
    return tl::unexpected<Error>(FromRocks(it->status(), "reading a segment's file"));
  if (!it->Valid()) return Fail(Code::kDataLoss, path + " is no segment");
  return OkStatus();
}

rocksdb::Options IndexOptions() {
  rocksdb::Options index;
  index.create_if_missing = true;
  index.create_missing_column_families = true;
  index.write_buffer_size = 8 << 20;
  index.max_total_wal_size = 16 << 20;
  index.allow_fallocate = false;
  index.keep_log_file_num = 2;
  index.max_log_file_size = 4 << 20;
  return index;
}

std::string FamilyName(uint32_t shard) { return fmt::format("shard-{}", shard); }

std::string ClearPrefix(uint32_t shard) { return "c" + BigEndian(shard); }
std::string AllClearsKey(uint32_t shard) { return "m" + BigEndian(shard); }

bool HasAllClears(const Database& data, uint32_t shard) {
  std::string ignored;
  return data.db->Get(rocksdb::ReadOptions(), data.common, AllClearsKey(shard), &ignored).ok();
}

void Database::Close() {
  if (db == nullptr) return;
  for (auto* family : families) db->DestroyColumnFamilyHandle(family);
  if (common != nullptr) db->DestroyColumnFamilyHandle(common);
  const rocksdb::Status closed = db->Close();
  if (!closed.ok()) LogWarn("ssd.close", {{"error", closed.ToString()}});
  db.reset();
}

Status OpenDatabase(const std::string& path, const rocksdb::Options& options, uint32_t shards,
                    Database* out) {
  std::vector<std::string> present;
  (void)rocksdb::DB::ListColumnFamilies(options, path, &present);
  std::vector<std::string> names = {rocksdb::kDefaultColumnFamilyName};
  for (uint32_t i = 0; i < shards; ++i) names.push_back(FamilyName(i));
  for (const std::string& name : present) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return Fail(
          Code::kFailedPrecondition,
          fmt::format(
              "{} was written with more shards ({} is not among {}); keep the number of shards",
              path, name, shards));
    }
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const std::string& name : names)
    families.emplace_back(name, rocksdb::ColumnFamilyOptions(options));
  families.front().options.disable_auto_compactions =
      false;  // Small rows, that may overwrite each other.
  rocksdb::DB* db = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  const rocksdb::Status status =
      rocksdb::DB::Open(rocksdb::DBOptions(options), path, families, &handles, &db);
  if (!status.ok()) return tl::unexpected<Error>(FromRocks(status, "opening " + path));
  out->db.reset(db);
  out->common = handles.front();
  out->families.assign(handles.begin() + 1, handles.end());
  return OkStatus();
}

}  // namespace tiercel
