#include "tiering/ssd_rocks_engine.h"

#include <fmt/format.h>
#include <rocksdb/convenience.h>
#include <rocksdb/sst_file_writer.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>

#include "base/log.h"
#include "tiering/ssd_kill_point.h"
#include "tiering/ssd_manifest.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

// Of a segment's file beside its records: keys, checksums and two rows in lists of each, and the
// end.
constexpr uint64_t kRowBytes = 256;
constexpr uint64_t kEndBytes = 16 * kKiB;

// RocksDB has each file open, too, and clients need descriptors as well.
size_t MostFiles() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? std::min<size_t>(limit.rlim_cur, 1 << 20) / 4
                                               : 256;
}

}  // namespace

// ---- opening -----------------------------------------------------------------------------------

// Marks stand in both databases, so that one that is damaged does not bring back what was cleared.
Status RocksEngine::ReadClears(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family,
                               std::string_view prefix, ClearMarks* out) const {
  std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(rocksdb::ReadOptions(), family));
  for (it->Seek({prefix.data(), prefix.size()}); it->Valid(); it->Next()) {
    const std::string_view key = ToView(it->key());
    if (!key.starts_with(prefix)) break;
    const ByteSpan rest = AsBytes(key.substr(prefix.size()));
    if (rest.size() != 20 || it->value().size() != 8) continue;
    Scope scope;
    std::copy_n(rest.data() + 4, 16, scope.bytes.data());
    uint64_t& mark = (*out)[{LoadLe<uint32_t>(rest.data()), scope}];
    mark = std::max(mark, LoadLe<uint64_t>(AsBytes(ToView(it->value())).data()));
  }
  if (!it->status().ok())
    return tl::unexpected<Error>(FromRocks(it->status(), "reading clear marks"));
  return OkStatus();
}

// All marks that are known stand in both databases from here on.
Status RocksEngine::KeepClears(const ClearMarks& clears, bool in_both) {
  if (!in_both) {
    for (const auto& [mark, generation] : clears)
      TIERCEL_TRY(Clear(mark.first, mark.second, generation));
  }
  if (HasAllClears(*at_.data, shard_)) return OkStatus();
  rocksdb::WriteOptions options;
  options.sync = true;
  const rocksdb::Status put = data().Put(options, at_.data->common, AllClearsKey(shard_), "");
  if (!put.ok()) return tl::unexpected<Error>(FromRocks(put, "keeping clear marks"));
  return OkStatus();
}

Status RocksEngine::ReadIndex(Recovered* out) {
  std::unique_ptr<rocksdb::Iterator> it(
      index().NewIterator(rocksdb::ReadOptions(), index_family()));
  for (it->Seek("s"); it->Valid(); it->Next()) {
    const std::string_view key = ToView(it->key());
    uint32_t segment = 0;
    uint32_t slot = 0;
    if (key.size() != 5 || key.front() != 's' ||
        !ParseSegment(std::string(key.substr(1)) + "\xff\xff\xff\xff", &segment, &slot)) {
      continue;
    }
    Result<std::vector<SsdEntry>> entries = DecodeManifest(ToView(it->value()), segment);
    if (entries) out->segments[segment] = std::move(*entries);  // Else by its own copy, below.
  }
  if (!it->status().ok())
    return tl::unexpected<Error>(FromRocks(it->status(), "reading the index"));
  return OkStatus();
}

Result<SegmentEngine::Recovered> RocksEngine::Recover() {
  Recovered out;
  ClearMarks in_data;
  ClearMarks in_index;
  TIERCEL_TRY(ReadClears(data(), at_.data->common, ClearPrefix(shard_), &in_data));
  // An index that cannot be read to its end is made again, row by row, from the segments
  // themselves; but only where no clear mark is lost with it.
  for (const Status& read :
       {ReadClears(index(), index_family(), "c", &in_index), ReadIndex(&out)}) {
    if (read) continue;
    if (!HasAllClears(*at_.data, shard_)) return tl::unexpected<Error>(read.error());
    LogWarn("ssd.index", {{"shard", shard_}, {"why", read.error().message}});
  }
  out.clears = in_data;
  for (const auto& [mark, generation] : in_index) {
    uint64_t& known = out.clears[mark];
    known = std::max(known, generation);
  }
  TIERCEL_TRY(KeepClears(out.clears, in_data == out.clears && in_index == out.clears));
  // What lies in the data without being indexed was ingested just before a crash; what is indexed
  // without lying there was being dropped.
  const std::vector<uint32_t> present = Present();
  const std::set<uint32_t> on_disk(present.begin(), present.end());
  for (auto segment = out.segments.begin(); segment != out.segments.end();) {
    if (on_disk.contains(segment->first)) {
      ++segment;
    } else {
      (void)index().Delete(rocksdb::WriteOptions(), index_family(), IndexKey(segment->first));
      segment = out.segments.erase(segment);
    }
  }
  for (const uint32_t segment : on_disk) {
    if (out.segments.contains(segment)) continue;
    rocksdb::PinnableSlice manifest;
    const rocksdb::Status got = data().Get(rocksdb::ReadOptions(), data_family(),
                                           DataKey(segment, kManifestSlot, nullptr), &manifest);
    Result<std::vector<SsdEntry>> entries =
        got.ok() ? DecodeManifest(ToView(manifest), segment)
                 : Result<std::vector<SsdEntry>>(tl::unexpected<Error>(FromRocks(got, "manifest")));
    if (!entries) {
      out.unreadable.push_back(segment);
      continue;
    }
    const rocksdb::Status put =
        index().Put(rocksdb::WriteOptions(), index_family(), IndexKey(segment), ToView(manifest));
    if (!put.ok()) return tl::unexpected<Error>(FromRocks(put, "indexing a segment again"));
    out.segments[segment] = std::move(*entries);
    ++out.reindexed;
    KillPoint("recover.reindexed");
  }
  std::vector<rocksdb::LiveFileMetaData> files;
  data().GetLiveFilesMetaData(&files);
  for (const auto& file : files) {
    uint32_t segment = 0;
    uint32_t slot = 0;
    if (file.column_family_name != FamilyName(shard_) ||
        !ParseSegment(file.smallestkey, &segment, &slot))
      continue;
    const auto known = out.segments.find(segment);
    if (known == out.segments.end()) continue;
    Keep(segment, SegmentFile::Open(file.db_path + file.name, at_.direct_io, known->second,
                                    IsFirstKey(file.smallestkey)));
  }
  return out;
}

void RocksEngine::Keep(uint32_t segment, std::shared_ptr<const SegmentFile> file) {
  if (file == nullptr) return;
  MutexLock lock(mutex_);
  if (files_.size() < MostFiles()) files_[segment] = std::move(file);
}

std::vector<uint32_t> RocksEngine::Present() const {
  std::vector<rocksdb::LiveFileMetaData> files;
  data().GetLiveFilesMetaData(&files);
  std::vector<uint32_t> segments;
  for (const auto& file : files) {
    uint32_t segment = 0;
    uint32_t slot = 0;
    if (file.column_family_name != FamilyName(shard_)) continue;
    if (ParseSegment(file.smallestkey, &segment, &slot)) segments.push_back(segment);
  }
  return segments;
}

// ---- segments ----------------------------------------------------------------------------------

Status RocksEngine::Write(OpenSegment& segment, const Recode& recode) {
  const std::string path = fmt::format("{}/{}-{}.sst", at_.staging, shard_, segment.number());
  const std::unique_ptr<rocksdb::Env> files = StagedFiles(
      {at_.direct_io, segment.bytes() + segment.appends().size() * kRowBytes + kEndBytes, &pacer_,
       at_.disk_pacer, at_.spares});
  uint64_t largest = 0;
  for (const OpenSegment::Append& append : segment.appends())
    largest = std::max<uint64_t>(largest, append.record.size());
  rocksdb::Options sst = SegmentOptions(at_.direct_io, largest + kRowBytes);
  sst.env = files.get();
  rocksdb::EnvOptions env;
  env.writable_file_max_buffer_size = 64 * kKiB;  // The staged file gathers for itself.
  rocksdb::SstFileWriter writer(env, sst, data_family(), /*invalidate_page_cache=*/!at_.direct_io);
  const auto given_up = [&path](Error error) -> Status {
    std::error_code ignored;
    fs::remove(path, ignored);
    return tl::unexpected<Error>(std::move(error));
  };
  const auto fail = [&given_up](const rocksdb::Status& status, std::string_view what) -> Status {
    return given_up(FromRocks(status, what));
  };
  rocksdb::Status status = writer.Open(path);
  // A client may say what it likes, that key as well.
  const bool first_row = segment.appends().front().entry.key != BlockKey{};
  if (status.ok() && first_row) status = writer.Put(FirstKey(segment.number()), "");
  if (!status.ok()) return fail(status, "opening a segment");
  KillPoint("segment.opened");
  std::vector<SsdEntry> entries;
  entries.reserve(segment.appends().size());
  for (OpenSegment::Append& append : segment.appends()) {
    ByteSpan bytes;
    if (recode) bytes = recode(&append.entry, append.record);
    if (bytes.empty()) bytes = append.record;
    status = writer.Put(DataKey(segment.number(), append.entry.where.slot, &append.entry.key),
                        ToSlice(bytes));
    if (!status.ok()) return fail(status, "writing a segment");
    entries.push_back(append.entry);
    if (entries.size() * 2 > segment.appends().size()) KillPoint("segment.half");
  }
  const std::string manifest = EncodeManifest(segment.number(), entries);
  status = writer.Put(DataKey(segment.number(), kManifestSlot, nullptr), manifest);
  if (status.ok()) status = writer.Finish();
  if (!status.ok()) return fail(status, "finishing a segment");
  KillPoint("segment.finished");
  // Opened by the name that it has now; it stays open whatever name RocksDB gives it.
  auto file = SegmentFile::Open(path, at_.direct_io, entries, first_row);
  uint32_t written = 0;
  std::string family;
  const Status whole = CheckIngestible(path, file_options_, &written, &family);
  if (!whole) return given_up(whole.error());
  if (written != segment.number())
    return given_up({Code::kDataLoss, "the disk has not what was written to it: " + path});
  MutexLock commit(commit_mutex_);
  status = data().IngestExternalFile(data_family(), {path}, IngestOptions());
  if (!status.ok()) return fail(status, "ingesting a segment");
  KillPoint("segment.ingested");
  status =
      index().Put(rocksdb::WriteOptions(), index_family(), IndexKey(segment.number()), manifest);
  if (!status.ok()) {
    // It is told as failed, so it must not fill the disk unaccounted.
    (void)DeleteData(segment.number());
    return fail(status, "indexing a segment");
  }
  KillPoint("segment.indexed");
  Keep(segment.number(), std::move(file));
  return OkStatus();
}

Status RocksEngine::Read(const SsdEntry& entry, MutableByteSpan dst) {
  std::shared_ptr<const SegmentFile> file;
  {
    MutexLock lock(mutex_);
    const auto found = files_.find(entry.where.segment);
    if (found != files_.end()) file = found->second;
  }
  if (file != nullptr) {
    Status read = file->Read(entry, dst);
    if (read || read.error().code != Code::kNotFound) return read;
  }
  return ReadThroughRocks(entry, dst);
}

Status RocksEngine::ReadThroughRocks(const SsdEntry& entry, MutableByteSpan dst) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  rocksdb::PinnableSlice value;
  const rocksdb::Status got = data().Get(
      options, data_family(), DataKey(entry.where.segment, entry.where.slot, &entry.key), &value);
  if (!got.ok()) return tl::unexpected<Error>(FromRocks(got, "reading a block"));
  if (value.size() != entry.record_bytes) {
    return Fail(Code::kDataLoss,
                fmt::format("a block of {} bytes reads as {}", entry.record_bytes, value.size()));
  }
  std::memcpy(dst.data(), value.data(), value.size());
  return OkStatus();
}

rocksdb::Status RocksEngine::DeleteData(uint32_t segment) {
  const std::string begin = DataKey(segment, 0, nullptr);
  const std::string end = DataKey(segment + 1, 0, nullptr);
  const rocksdb::Slice begin_slice(begin);
  const rocksdb::Slice end_slice(end);
  const rocksdb::RangePtr range(&begin_slice, &end_slice);
  return rocksdb::DeleteFilesInRanges(&data(), data_family(), &range, 1, /*include_end=*/false);
}

Status RocksEngine::Drop(uint32_t segment, bool a_write_follows) {
  MutexLock commit(commit_mutex_);
  // Index first: an entry without data is a miss, data without an entry would come back.
  KillPoint("drop.begun");
  rocksdb::Status status =
      index().Delete(rocksdb::WriteOptions(), index_family(), IndexKey(segment));
  KillPoint("drop.unindexed");
  std::string spare;
  {
    MutexLock lock(mutex_);
    const auto file = files_.find(segment);
    if (file != files_.end()) {
      if (a_write_follows) spare = at_.spares->Hold(file->second->fd());
      files_.erase(file);
    }
  }
  if (status.ok()) status = DeleteData(segment);
  if (status.ok()) {
    at_.spares->Keep(spare);
  } else {
    std::error_code ignored;
    fs::remove(spare, ignored);
  }
  KillPoint("drop.done");
  if (!status.ok()) return tl::unexpected<Error>(FromRocks(status, "dropping a segment"));
  return OkStatus();
}

Status RocksEngine::Clear(uint32_t name_space, const Scope& scope, uint64_t generation) {
  std::string mark(4, '\0');
  StoreLe<uint32_t>(reinterpret_cast<std::byte*>(mark.data()), name_space);
  mark.append(AsText(scope.bytes));
  std::string value(8, '\0');
  StoreLe<uint64_t>(reinterpret_cast<std::byte*>(value.data()), generation);
  rocksdb::WriteOptions options;
  options.sync = true;
  rocksdb::Status put = data().Put(options, at_.data->common, ClearPrefix(shard_) + mark, value);
  KillPoint("clear.half");
  if (put.ok()) put = index().Put(options, index_family(), "c" + mark, value);
  KillPoint("clear.done");
  if (!put.ok()) return tl::unexpected<Error>(FromRocks(put, "marking what is cleared"));
  return OkStatus();
}

// The record lies in its segment's file right behind its key and RocksDB's eight bytes of sequence.
Status RocksEngine::Corrupt(const SsdEntry& entry, uint64_t bit) {
  std::vector<rocksdb::LiveFileMetaData> files;
  data().GetLiveFilesMetaData(&files);
  const std::string key = DataKey(entry.where.segment, entry.where.slot, &entry.key);
  for (const auto& file : files) {
    if (file.column_family_name != FamilyName(shard_) || key < file.smallestkey ||
        key > file.largestkey)
      continue;
    const std::string path = file.db_path + file.name;
    std::fstream io(path, std::ios::in | std::ios::out | std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(io), std::istreambuf_iterator<char>()};
    const size_t at = bytes.find(key);
    if (at == std::string::npos) break;
    const size_t byte = at + key.size() + 8 + bit / 8 % entry.record_bytes;
    if (byte >= bytes.size()) break;
    io.clear();
    io.seekp(static_cast<std::streamoff>(byte));
    io.put(static_cast<char>(bytes[byte] ^ (1 << bit % 8)));
    io.flush();
    return io ? OkStatus() : Fail(Code::kUnavailable, "cannot write " + path);
  }
  return Fail(Code::kNotFound, "the record is in no file of this store");
}

void RocksEngine::Resume() {
  (void)data().Resume();  // Whether it helped, the next write will tell.
  (void)index().Resume();
}

// Of all files that are there, also of those that go with their last reader. Unlike the metadata of
// a family, this holds none of them: a file that is held while it is dropped is deleted with the
// next one only, and may not be written over before.
uint64_t RocksEngine::disk_bytes() const {
  uint64_t bytes = 0;
  (void)data().GetIntProperty(data_family(), rocksdb::DB::Properties::kTotalSstFilesSize, &bytes);
  return bytes;
}

}  // namespace tiercel
