#include "tiering/ssd_rocksdb.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <rocksdb/convenience.h>
#include <rocksdb/sst_file_writer.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/inbox.h"
#include "base/log.h"
#include "tiering/open_segment.h"
#include "tiering/ssd_database.h"
#include "tiering/ssd_manifest.h"
#include "tiering/ssd_movers.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormatLine = "tiercel-ssd 1";
constexpr Nanos kRetryAfter = 5 * kSecond;      // How long a failing disk is left alone.
constexpr uint32_t kReadErrorsToSwitchOff = 8;  // In a row.

class Disk final : public SsdDisk {
 public:
  Disk(const Options& options, int lock_fd) : options_(options), lock_fd_(lock_fd) {}
  ~Disk() override {
    data_.Close();
    index_.Close();
    close(lock_fd_);  // Unlocks the folder, last.
  }

  Result<std::unique_ptr<SsdStore>> OpenShard(uint32_t shard, const SsdStore::Options& options,
                                              const Clock& clock) override;
  bool direct_io() const override { return direct_io_; }

  Options options_;
  const int lock_fd_;
  bool direct_io_ = true;
  Database data_;
  Database index_;
};

// ---- one shard ---------------------------------------------------------------------------------

class RocksStore final : public SsdStore {
 public:
  RocksStore(Disk& disk, uint32_t shard, const Options& options, const Clock& clock)
      : disk_(disk),
        shard_(shard),
        options_(options),
        clock_(clock),
        writers_(std::make_unique<Movers>(disk.options_.writers_per_shard)),
        readers_(std::make_unique<Movers>(disk.options_.readers_per_shard)) {}
  ~RocksStore() override { Shutdown(0); }

  Result<std::vector<SsdEntry>> Recover() override;
  uint64_t last_generation() const override { return last_generation_; }
  void SetDropListener(std::function<void(const std::vector<SsdEntry>&)> on_dropped) override {
    on_dropped_ = std::move(on_dropped);
  }
  Status Append(const SsdEntry& entry, ByteSpan record,
                UniqueFunction<void(Result<SsdEntry>)> done) override;
  Status Read(const SsdEntry& entry, MutableByteSpan dst,
              UniqueFunction<void(Status)> done) override;
  void Flush(UniqueFunction<void(Status)> done) override;
  Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) override;
  void Verify(UniqueFunction<void(Result<VerifyReport>)> done) override;
  size_t Poll() override;
  int event_fd() const override { return inbox_.event_fd(); }
  bool Arm() override { return inbox_.Arm(); }
  Nanos next_wakeup() const override {
    return open_.Due(options_.seal_after);
  }
  bool available() const override { return clock_.Now() >= off_until_; }
  std::string why() const override { return available() ? "" : why_; }
  Stats stats() const override;
  Status CorruptForTest(const SsdEntry& entry, uint64_t bit) override;
  void Shutdown(Nanos timeout) override;

 private:
  struct Segment {
    uint64_t bytes = 0;
    uint64_t last_read = 0;  // In reads of this store, not in time.
    uint32_t readers = 0;
    bool dropping = false;
    std::vector<SsdEntry> entries;
  };
  struct ReadDone {
    uint32_t segment;
    uint64_t bytes;
    UniqueFunction<void(Status)> done;
    Status status;
    bool io_error = false;
  };
  using Event = UniqueFunction<void()>;  // Made on a mover, run on the owner.

  rocksdb::ColumnFamilyHandle* data_family() const { return disk_.data_.families[shard_]; }
  rocksdb::ColumnFamilyHandle* index_family() const { return disk_.index_.families[shard_]; }
  void Tell(Event event) {
    // The inbox holds an event for every task that may be under way, so it cannot be full.
    TIERCEL_CHECK(inbox_.Push(std::move(event)));
  }
  void Seal();
  Status WriteSegment(OpenSegment& segment, bool recode);
  rocksdb::Status DeleteSegmentData(uint32_t number);
  void SegmentWritten(const std::shared_ptr<OpenSegment>& segment, const Status& status);
  void MakeRoom();
  void DropIfIdle(uint32_t number);
  void SwitchOff(const Error& why);
  void FinishFlushes();

  Disk& disk_;
  const uint32_t shard_;
  const Options options_;
  const Clock& clock_;
  std::function<void(const std::vector<SsdEntry>&)> on_dropped_;
  Inbox<Event> inbox_{size_t{1} << 16};
  OpenSegment open_;
  uint32_t next_segment_ = 1;
  uint64_t reads_ = 0;
  uint32_t writing_ = 0;
  uint32_t tasks_ = 0;  // Verifies and drops under way.
  std::map<uint32_t, Segment> segments_;
  std::vector<UniqueFunction<void(Status)>> flushes_;
  bool flush_asked_ = false;  // FinishFlushes is in the inbox.
  bool verifying_ = false;
  uint32_t read_errors_ = 0;  // In a row.
  Status last_write_;
  uint64_t last_generation_ = 0;
  std::atomic<bool> abandon_{false};  // Shutting down: writes that have not begun are given up.
  std::atomic<bool> resume_{false};   // The databases saw an error; ask them to go on.
  Nanos off_until_ = 0;
  std::string why_;
  Stats stats_;
  bool shut_down_ = false;
  std::unique_ptr<Movers> writers_;  // Last, so that they end first.
  std::unique_ptr<Movers> readers_;
};

Result<std::vector<SsdEntry>> RocksStore::Recover() {
  rocksdb::DB& data = *disk_.data_.db;
  rocksdb::DB& index = *disk_.index_.db;
  std::map<std::string, uint64_t> clears;  // "c" + name space + scope -> generation.
  std::unique_ptr<rocksdb::Iterator> it(index.NewIterator(rocksdb::ReadOptions(), index_family()));
  uint64_t bad_manifests = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const std::string_view key = ToView(it->key());
    if (key.size() == 21 && key.front() == 'c' && it->value().size() == 8) {
      clears[std::string(key)] = LoadLe<uint64_t>(AsBytes(ToView(it->value())).data());
      continue;
    }
    uint32_t segment = 0;
    uint32_t slot = 0;
    if (key.size() != 5 || key.front() != 's' ||
        !ParseSegment(std::string(key.substr(1)) + "\xff\xff\xff\xff", &segment, &slot)) {
      ++bad_manifests;
      continue;
    }
    Result<std::vector<SsdEntry>> entries = DecodeManifest(ToView(it->value()), segment);
    if (!entries) {
      ++bad_manifests;  // The segment is re-indexed below, from its own copy.
      continue;
    }
    segments_[segment].entries = std::move(*entries);
  }
  if (!it->status().ok())
    return tl::unexpected<Error>(FromRocks(it->status(), "reading the index"));
  for (const auto& [mark, generation] : clears)
    last_generation_ = std::max(last_generation_, generation);

  // What lies in the data without being indexed was ingested just before a crash; what is indexed
  // without lying there was being dropped.
  std::vector<rocksdb::LiveFileMetaData> files;
  data.GetLiveFilesMetaData(&files);
  std::map<uint32_t, uint64_t> on_disk;
  for (const auto& file : files) {
    uint32_t segment = 0;
    uint32_t slot = 0;
    if (file.column_family_name != FamilyName(shard_)) continue;
    if (ParseSegment(file.smallestkey, &segment, &slot)) on_disk[segment] += file.size;
  }
  for (auto seg = segments_.begin(); seg != segments_.end();) {
    if (on_disk.contains(seg->first)) {
      ++seg;
    } else {
      (void)index.Delete(rocksdb::WriteOptions(), index_family(), IndexKey(seg->first));
      seg = segments_.erase(seg);
    }
  }
  uint64_t reindexed = 0;
  for (const auto& [segment, bytes] : on_disk) {
    next_segment_ = std::max(next_segment_, segment + 1);
    if (segments_.contains(segment)) continue;
    rocksdb::PinnableSlice manifest;
    const rocksdb::Status got = data.Get(rocksdb::ReadOptions(), data_family(),
                                         DataKey(segment, kManifestSlot, nullptr), &manifest);
    Result<std::vector<SsdEntry>> entries =
        got.ok() ? DecodeManifest(ToView(manifest), segment)
                 : Result<std::vector<SsdEntry>>(tl::unexpected<Error>(FromRocks(got, "manifest")));
    if (!entries) {
      ++bad_manifests;
      segments_[segment].dropping = true;  // Unreadable: given up below.
      continue;
    }
    const rocksdb::Status put =
        index.Put(rocksdb::WriteOptions(), index_family(), IndexKey(segment), ToView(manifest));
    if (!put.ok()) return tl::unexpected<Error>(FromRocks(put, "indexing a segment again"));
    segments_[segment].entries = std::move(*entries);
    ++reindexed;
  }
  std::vector<SsdEntry> all;
  std::vector<uint32_t> hopeless;
  for (auto& [number, segment] : segments_) {
    for (const SsdEntry& entry : segment.entries) {
      segment.bytes += entry.record_bytes;
      last_generation_ = std::max(last_generation_, entry.generation);
      const auto cleared = [&](const Scope& scope) {
        std::string mark = "c";
        mark.append(reinterpret_cast<const char*>(&entry.name_space), 4)
            .append(AsText(scope.bytes));
        const auto found = clears.find(mark);
        return found != clears.end() && entry.generation <= found->second;
      };
      if (!cleared(entry.scope) && !cleared(Scope{})) all.push_back(entry);
    }
    stats_.used_bytes += segment.bytes;
    if (segment.dropping) hopeless.push_back(number);
  }
  for (const uint32_t number : hopeless) DropIfIdle(number);
  LogInfo("ssd.recovered", {{"shard", shard_},
                            {"segments", segments_.size()},
                            {"blocks", all.size()},
                            {"reindexed", reindexed},
                            {"bad_manifests", bad_manifests}});
  return all;
}

Status RocksStore::Append(const SsdEntry& entry, ByteSpan record,
                          UniqueFunction<void(Result<SsdEntry>)> done) {
  if (shut_down_ || !available())
    return Fail(Code::kUnavailable, why_.empty() ? "the SSD tier is closed" : why_);
  if (stats_.queued_bytes + record.size() > options_.max_queued_bytes) {
    return Fail(Code::kResourceExhausted, "too much waits to be written to SSD");
  }
  last_generation_ = std::max(last_generation_, entry.generation);
  open_.Add(entry, record, std::move(done), clock_.Now(), &next_segment_);
  stats_.queued_bytes += record.size();
  if (open_.bytes() >= options_.segment_bytes) Seal();
  return OkStatus();
}

void RocksStore::Seal() {
  if (open_.empty()) return;
  MakeRoom();
  auto sealed = std::make_shared<OpenSegment>(open_.Take());
  ++writing_;
  // Smaller bytes are worth their time only while the disk is not waited for.
  const bool recode = options_.recode && stats_.queued_bytes <= options_.max_queued_bytes / 2;
  writers_->Push([this, sealed, recode] {
    Status status = abandon_.load(std::memory_order_relaxed)
                        ? Fail(Code::kUnavailable, "shut down before it was written")
                        : WriteSegment(*sealed, recode);
    Tell([this, sealed, status] { SegmentWritten(sealed, status); });
  });
}

// On a writer's thread.
Status RocksStore::WriteSegment(OpenSegment& segment, bool recode) {
  if (resume_.exchange(false)) {
    (void)disk_.data_.db->Resume();  // Whether it helped, the write will tell.
    (void)disk_.index_.db->Resume();
  }
  const std::string path =
      fmt::format("{}/staging/{}-{}.sst", disk_.options_.path, shard_, segment.number());
  rocksdb::Options sst = DataOptions(disk_.options_, disk_.direct_io_);
  sst.rate_limiter = disk_.data_.db->GetDBOptions().rate_limiter;
  rocksdb::EnvOptions env;
  env.use_direct_writes = disk_.direct_io_;
  // Large writes are quick; paced ones are small, so that reads get between them.
  env.writable_file_max_buffer_size =
      disk_.options_.write_bytes_per_second > 0 ? 256 << 10 : 4 << 20;
  env.rate_limiter = sst.rate_limiter.get();
  rocksdb::SstFileWriter writer(env, sst, data_family(), /*invalidate_page_cache=*/true,
                                rocksdb::Env::IO_LOW);
  const auto fail = [&path](const rocksdb::Status& status, std::string_view what) -> Status {
    std::error_code ignored;
    fs::remove(path, ignored);
    return tl::unexpected<Error>(FromRocks(status, what));
  };
  rocksdb::Status status = writer.Open(path);
  if (!status.ok()) return fail(status, "opening a segment");
  std::vector<SsdEntry> entries;
  entries.reserve(segment.appends().size());
  for (OpenSegment::Append& append : segment.appends()) {
    ByteSpan bytes;
    if (recode) bytes = options_.recode(&append.entry, append.record);
    if (bytes.empty()) bytes = append.record;
    status = writer.Put(DataKey(segment.number(), append.entry.where.slot, &append.entry.key), ToSlice(bytes));
    if (!status.ok()) return fail(status, "writing a segment");
    entries.push_back(append.entry);
  }
  const std::string manifest = EncodeManifest(segment.number(), entries);
  status = writer.Put(DataKey(segment.number(), kManifestSlot, nullptr), manifest);
  if (status.ok()) status = writer.Finish();
  if (!status.ok()) return fail(status, "finishing a segment");
  rocksdb::IngestExternalFileOptions ingest;
  ingest.move_files = true;
  ingest.snapshot_consistency = false;
  ingest.allow_global_seqno = true;
  ingest.write_global_seqno = false;
  ingest.allow_blocking_flush = false;
  ingest.verify_checksums_before_ingest = false;
  status = disk_.data_.db->IngestExternalFile(data_family(), {path}, ingest);
  if (!status.ok()) return fail(status, "ingesting a segment");
  status = disk_.index_.db->Put(rocksdb::WriteOptions(), index_family(), IndexKey(segment.number()),
                                manifest);
  if (!status.ok()) {
    // It is told as failed, so it must not fill the disk unaccounted.
    (void)DeleteSegmentData(segment.number());
    return fail(status, "indexing a segment");
  }
  return OkStatus();
}

rocksdb::Status RocksStore::DeleteSegmentData(uint32_t number) {
  const std::string begin = DataKey(number, 0, nullptr);
  const std::string end = DataKey(number + 1, 0, nullptr);
  const rocksdb::Slice begin_slice(begin);
  const rocksdb::Slice end_slice(end);
  const rocksdb::RangePtr range(&begin_slice, &end_slice);
  return rocksdb::DeleteFilesInRanges(disk_.data_.db.get(), data_family(), &range, 1,
                                      /*include_end=*/false);
}

void RocksStore::SegmentWritten(const std::shared_ptr<OpenSegment>& written, const Status& status) {
  --writing_;
  stats_.queued_bytes -= written->bytes();
  if (!status) last_write_ = status;
  if (status) {
    Segment& segment = segments_[written->number()];
    segment.bytes = written->stored_bytes();
    segment.last_read = reads_;
    for (const auto& append : written->appends()) {
      segment.entries.push_back(append.entry);
      if (append.entry.record_bytes == append.record.size()) continue;
      ++stats_.recoded;
      stats_.recoded_bytes += append.entry.record_bytes;
      stats_.recoded_from_bytes += append.record.size();
    }
    stats_.used_bytes += segment.bytes;
    stats_.written_bytes += segment.bytes;
  } else {
    ++stats_.failed_writes;
    if (!abandon_) SwitchOff(status.error());
  }
  written->Answer(status);
  FinishFlushes();
}

void RocksStore::FinishFlushes() {
  if (writing_ > 0 || !open_.empty()) return;
  auto flushes = std::exchange(flushes_, {});
  for (auto& done : flushes) done(last_write_);
  last_write_ = OkStatus();
}

void RocksStore::SwitchOff(const Error& why) {
  why_ = why.message;
  off_until_ = clock_.Now() + kRetryAfter;
  resume_ = true;
  LogWarn("ssd.off", {{"shard", shard_}, {"why", why.message}});
}

Status RocksStore::Read(const SsdEntry& entry, MutableByteSpan dst,
                        UniqueFunction<void(Status)> done) {
  const auto found = segments_.find(entry.where.segment);
  if (shut_down_ || found == segments_.end() || found->second.dropping) {
    return Fail(Code::kNotFound, "the segment is gone");
  }
  if (!available()) return Fail(Code::kUnavailable, why_);
  if (stats_.queued_reads >= options_.max_queued_reads) {
    return Fail(Code::kResourceExhausted, "too many SSD reads are waiting");
  }
  if (dst.size() < entry.record_bytes)
    return Fail(Code::kInvalidArgument, "the buffer is too small");
  ++stats_.queued_reads;
  ++found->second.readers;
  found->second.last_read = ++reads_;
  auto read = std::make_shared<ReadDone>();
  read->segment = entry.where.segment;
  read->bytes = entry.record_bytes;
  read->done = std::move(done);
  readers_->Push([this, entry, dst, read] {
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    rocksdb::PinnableSlice value;
    const rocksdb::Status got = disk_.data_.db->Get(
        options, data_family(), DataKey(entry.where.segment, entry.where.slot, &entry.key), &value);
    if (!got.ok()) {
      Error error = FromRocks(got, "reading a block");
      // One sector that cannot be read costs one block, not the tier.
      read->io_error = error.code == Code::kUnavailable;
      if (read->io_error) error.code = Code::kDataLoss;
      read->status = tl::unexpected<Error>(std::move(error));
    } else if (value.size() != entry.record_bytes) {
      read->status = Fail(Code::kDataLoss, fmt::format("a block of {} bytes reads as {}",
                                                       entry.record_bytes, value.size()));
    } else {
      std::memcpy(dst.data(), value.data(), value.size());
      if (options_.verify_record) read->status = options_.verify_record(dst.first(value.size()));
    }
    Tell([this, read] {
      --stats_.queued_reads;
      stats_.read_bytes += read->bytes;
      if (!read->status && read->status.error().code == Code::kDataLoss) ++stats_.corrupt_reads;
      read_errors_ = read->io_error ? read_errors_ + 1 : 0;
      if (read_errors_ >= kReadErrorsToSwitchOff) SwitchOff(read->status.error());
      if (const auto segment = segments_.find(read->segment); segment != segments_.end()) {
        --segment->second.readers;
        if (segment->second.dropping) DropIfIdle(read->segment);
      }
      read->done(std::move(read->status));
    });
  });
  return OkStatus();
}

void RocksStore::MakeRoom() {
  while (stats_.used_bytes + stats_.queued_bytes > options_.capacity_bytes && !segments_.empty()) {
    auto victim = segments_.end();
    for (auto it = segments_.begin(); it != segments_.end(); ++it) {
      if (it->second.dropping) continue;
      if (victim == segments_.end() || it->second.last_read < victim->second.last_read) victim = it;
    }
    if (victim == segments_.end()) return;
    victim->second.dropping = true;
    stats_.used_bytes -= victim->second.bytes;
    ++stats_.dropped_segments;
    const std::vector<SsdEntry> entries = std::move(victim->second.entries);
    victim->second.entries.clear();
    const uint32_t number = victim->first;
    if (on_dropped_) on_dropped_(entries);
    DropIfIdle(number);
  }
}

void RocksStore::DropIfIdle(uint32_t number) {
  const auto found = segments_.find(number);
  if (found == segments_.end() || found->second.readers > 0) return;
  if (shut_down_) return;  // It stays on disk, and is there again at the next start.
  segments_.erase(found);
  ++tasks_;
  writers_->Push([this, number] {
    // Index first: an entry without data is a miss, data without an entry would come back.
    rocksdb::Status status =
        disk_.index_.db->Delete(rocksdb::WriteOptions(), index_family(), IndexKey(number));
    if (status.ok()) status = DeleteSegmentData(number);
    if (!status.ok()) LogWarn("ssd.drop", {{"segment", number}, {"error", status.ToString()}});
    Tell([this] { --tasks_; });
  });
}

void RocksStore::Flush(UniqueFunction<void(Status)> done) {
  if (flushes_.empty()) last_write_ = OkStatus();
  flushes_.push_back(std::move(done));
  Seal();
  // Through the inbox, so that done never runs inside Flush.
  if (std::exchange(flush_asked_, true)) return;
  Tell([this] {
    flush_asked_ = false;
    FinishFlushes();
  });
}

Status RocksStore::Clear(uint32_t name_space, const Scope& scope, uint64_t generation) {
  std::string mark = "c";
  mark.append(reinterpret_cast<const char*>(&name_space), 4).append(AsText(scope.bytes));
  std::string value(8, '\0');
  std::memcpy(value.data(), &generation, 8);
  rocksdb::WriteOptions options;
  options.sync = true;
  const rocksdb::Status put = disk_.index_.db->Put(options, index_family(), mark, value);
  if (!put.ok()) return tl::unexpected<Error>(FromRocks(put, "marking what is cleared"));
  last_generation_ = std::max(last_generation_, generation);
  return OkStatus();
}

void RocksStore::Verify(UniqueFunction<void(Result<VerifyReport>)> done) {
  ++tasks_;
  auto told = std::make_shared<UniqueFunction<void(Result<VerifyReport>)>>(std::move(done));
  if (std::exchange(verifying_, true) || shut_down_) {
    Tell([this, told] {
      --tasks_;
      (*told)(Fail(Code::kResourceExhausted, "a verification is under way"));
    });
    return;
  }
  std::vector<SsdEntry> entries;
  for (const auto& [number, segment] : segments_) {
    entries.insert(entries.end(), segment.entries.begin(), segment.entries.end());
  }
  struct Bad {
    uint32_t segment;
    std::string what;
  };
  readers_->Push([this, told, entries = std::move(entries)] {
    VerifyReport report;
    std::vector<Bad> bad;
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    for (const SsdEntry& entry : entries) {
      if (abandon_.load(std::memory_order_relaxed)) break;
      rocksdb::PinnableSlice value;
      const rocksdb::Status got =
          disk_.data_.db->Get(options, data_family(),
                              DataKey(entry.where.segment, entry.where.slot, &entry.key), &value);
      Status status = OkStatus();
      if (!got.ok()) {
        status = tl::unexpected<Error>(FromRocks(got, "reading a block"));
      } else if (value.size() != entry.record_bytes) {
        status = Fail(Code::kDataLoss,
                      fmt::format("{} bytes, not {}", value.size(), entry.record_bytes));
      } else if (options_.verify_record) {
        status = options_.verify_record(AsBytes(ToView(value)));
      }
      ++report.records;
      report.bytes += value.size();
      if (status) continue;
      bad.push_back(
          {entry.where.segment,
           fmt::format("segment {} slot {} key {}: {}", entry.where.segment, entry.where.slot,
                       ToHex(entry.key.bytes), status.error().message)});
    }
    Tell([this, told, report = std::move(report), bad = std::move(bad)]() mutable {
      --tasks_;
      verifying_ = false;
      for (Bad& one : bad) {
        // What was dropped while we read is not missing.
        const auto segment = segments_.find(one.segment);
        if (segment == segments_.end() || segment->second.dropping) continue;
        ++report.bad;
        if (report.findings.size() < 100) report.findings.push_back(std::move(one.what));
      }
      (*told)(std::move(report));
    });
  });
}

// The record lies in its segment's file right behind its key and RocksDB's eight bytes of sequence.
Status RocksStore::CorruptForTest(const SsdEntry& entry, uint64_t bit) {
  std::vector<rocksdb::LiveFileMetaData> files;
  disk_.data_.db->GetLiveFilesMetaData(&files);
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

size_t RocksStore::Poll() {
  if (!shut_down_ && clock_.Now() >= open_.Due(options_.seal_after)) Seal();
  return inbox_.Drain([](Event&& event) { event(); });
}

SsdStore::Stats RocksStore::stats() const {
  Stats stats = stats_;
  stats.segments = segments_.size();
  rocksdb::ColumnFamilyMetaData meta;
  disk_.data_.db->GetColumnFamilyMetaData(data_family(), &meta);
  stats.disk_bytes = meta.size;
  return stats;
}

void RocksStore::Shutdown(Nanos timeout) {
  if (shut_down_) return;
  if (timeout > 0) Seal();
  const Nanos end = clock_.Now() + timeout;
  while (timeout > 0 && (writing_ > 0 || tasks_ > 0) && clock_.Now() < end) {
    Poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  shut_down_ = true;
  abandon_ = true;
  writers_.reset();
  readers_.reset();
  while (Poll() > 0) {
  }
  OpenSegment unwritten = open_.Take();
  stats_.queued_bytes -= unwritten.bytes();
  unwritten.Answer(Fail(Code::kUnavailable, "shut down before it was written"));
  for (auto& done : std::exchange(flushes_, {})) done(Fail(Code::kUnavailable, "shutting down"));
}

// ---- the disk ----------------------------------------------------------------------------------

Result<std::unique_ptr<SsdStore>> Disk::OpenShard(uint32_t shard, const SsdStore::Options& options,
                                                  const Clock& clock) {
  if (shard >= options_.shards) {
    return Fail(Code::kInvalidArgument, fmt::format("shard {} of {}", shard, options_.shards));
  }
  if (options.segment_bytes == 0 || options.capacity_bytes < 2 * options.segment_bytes) {
    return Fail(
        Code::kInvalidArgument,
        fmt::format("an SSD capacity of {} holds no two segments of {}",
                    FormatBytes(options.capacity_bytes), FormatBytes(options.segment_bytes)));
  }
  return std::make_unique<RocksStore>(*this, shard, options, clock);
}

Status CheckFormat(const std::string& path) {
  const std::string file = path + "/FORMAT";
  std::ifstream in(file);
  if (in) {
    std::string line;
    std::getline(in, line);
    if (line == kFormatLine) return OkStatus();
    line.resize(std::min<size_t>(line.size(), 64));  // Whatever is there, it is told in one line.
    for (char& c : line) {
      if (c < ' ' || c > '~') c = '?';
    }
    return Fail(
        Code::kFailedPrecondition,
        fmt::format(
            "{} says '{}', this build reads '{}': use another folder, or the build that wrote it",
            file, line.substr(0, 64), kFormatLine));
  }
  for (const auto& item : fs::directory_iterator(path)) {
    if (item.path().filename() == "LOCK") continue;
    return Fail(Code::kFailedPrecondition,
                fmt::format("{} is neither empty nor a Tiercel data folder (it holds {})", path,
                            item.path().filename().string()));
  }
  std::ofstream out(file);
  out << kFormatLine << "\n";
  out.flush();
  if (!out)
    return Fail(Code::kUnavailable, fmt::format("cannot write {}: {}", file, std::strerror(errno)));
  return OkStatus();
}

}  // namespace

Result<std::unique_ptr<SsdDisk>> SsdDisk::Open(const Options& options) {
  if (options.path.empty()) return Fail(Code::kInvalidArgument, "ssd path is empty");
  if (options.shards == 0 || options.shards > 256) {
    return Fail(Code::kInvalidArgument, fmt::format("{} shards, not 1..256", options.shards));
  }
  std::error_code ec;
  fs::create_directories(options.path, ec);
  if (ec)
    return Fail(Code::kUnavailable, fmt::format("cannot make {}: {}", options.path, ec.message()));
  const int lock_fd = open((options.path + "/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd < 0) {
    return Fail(Code::kUnavailable,
                fmt::format("cannot open {}/LOCK: {}", options.path, std::strerror(errno)));
  }
  auto disk = std::make_unique<Disk>(options, lock_fd);
  if (flock(lock_fd, LOCK_EX | LOCK_NB) != 0) {
    return Fail(Code::kFailedPrecondition,
                fmt::format("{} is in use by another process", options.path));
  }
  TIERCEL_TRY(CheckFormat(options.path));
  fs::remove_all(options.path + "/staging", ec);
  fs::create_directories(options.path + "/staging", ec);
  if (ec)
    return Fail(Code::kUnavailable,
                fmt::format("cannot make {}/staging: {}", options.path, ec.message()));
  // Some file systems have no O_DIRECT: better buffered than not at all, and said.
  const std::string probe = options.path + "/staging/probe";
  const int probe_fd = open(probe.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  disk->direct_io_ = options.direct_io && probe_fd >= 0;
  if (probe_fd >= 0) close(probe_fd);
  unlink(probe.c_str());
  if (options.direct_io && !disk->direct_io_) LogWarn("ssd.buffered", {{"path", options.path}});
  TIERCEL_TRY(OpenDatabase(options.path + "/data", DataOptions(options, disk->direct_io_),
                           options.shards, &disk->data_));
  TIERCEL_TRY(OpenDatabase(options.path + "/index", IndexOptions(), options.shards, &disk->index_));
  return std::unique_ptr<SsdDisk>(std::move(disk));
}

}  // namespace tiercel
