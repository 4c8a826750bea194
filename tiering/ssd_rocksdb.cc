#include "tiering/ssd_rocksdb.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/log.h"
#include "tiering/ssd_database.h"
#include "tiering/ssd_pacer.h"
#include "tiering/ssd_rocks_engine.h"
#include "tiering/ssd_segment_store.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormatLine = "tiercel-ssd 1";

class Disk final : public SsdDisk {
 public:
  Disk(const Options& options, int lock_fd)
      : options_(options),
        lock_fd_(lock_fd),
        pacer_(options.write_bytes_per_second),
        spares_(options.path + "/staging") {}
  ~Disk() override {
    data_.Close();
    index_.Close();
    spares_.Clear();
    close(lock_fd_);  // Unlocks the folder, last.
  }

  Result<std::unique_ptr<SsdStore>> OpenShard(uint32_t shard, const SsdStore::Options& options,
                                              const Clock& clock) override;
  bool direct_io() const override { return direct_io_; }
  uint64_t room_bytes() const override;
  Status OpenData();
  Status OpenIndex();
  Status IngestAgain(const std::string& from);

  const Options options_;
  const int lock_fd_;
  bool direct_io_ = true;
  Pacer pacer_;
  SpareFiles spares_;
  Database data_;
  Database index_;
};

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
  SsdStore::Options mine = options;
  mine.write_bytes_per_second = options_.write_bytes_per_second;
  const RocksEngine::Databases databases = {
      &data_, &index_, &pacer_, &spares_, options_.path + "/staging", direct_io_};
  return MakeSegmentStore(
      std::make_unique<RocksEngine>(databases, shard), mine,
      {options_.writers_per_shard, options_.readers_per_shard}, clock,
      options_.shards == 1 ? options_.path : fmt::format("{} shard {}", options_.path, shard));
}

uint64_t Disk::room_bytes() const {
  uint64_t segments = 0;
  (void)data_.db->GetAggregatedIntProperty(rocksdb::DB::Properties::kTotalSstFilesSize, &segments);
  std::error_code ec;
  const fs::space_info space = fs::space(options_.path, ec);
  return ec ? UINT64_MAX : space.available + segments;
}

// What RocksDB keeps beside the segments, or one of them, is damaged: the database is put aside and
// made again from the files that are whole. Clear marks come from the index, so that must be whole,
// too.
Status Disk::OpenData() {
  const std::string path = options_.path + "/data";
  Status opened = OpenDatabase(path, DataOptions(direct_io_), options_.shards, &data_);
  if (opened || opened.error().code == Code::kFailedPrecondition) return opened;
  if (!OpenDatabase(options_.path + "/index", IndexOptions(), options_.shards, &index_))
    return opened;
  for (rocksdb::ColumnFamilyHandle* family : index_.families) {
    const std::unique_ptr<rocksdb::Iterator> it(
        index_.db->NewIterator(rocksdb::ReadOptions(), family));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
    }
    if (!it->status().ok()) return opened;
  }
  const std::string aside = path + ".damaged";
  std::error_code ec;
  fs::remove_all(aside, ec);
  fs::rename(path, aside, ec);
  if (ec) return opened;
  LogWarn("ssd.data", {{"disk", options_.path},
                       {"why", opened.error().message},
                       {"then", "made again from the segments"}});
  TIERCEL_TRY(OpenDatabase(path, DataOptions(direct_io_), options_.shards, &data_));
  TIERCEL_TRY(IngestAgain(aside));
  fs::remove_all(aside, ec);
  return OkStatus();
}

// A segment whose file does not open is lost, and its row in the index goes when the shard is
// opened.
Status Disk::IngestAgain(const std::string& from) {
  const rocksdb::Options file_options = DataOptions(direct_io_);
  uint64_t lost = 0;
  uint64_t number = 0;
  for (const auto& item : fs::directory_iterator(from)) {
    if (item.path().extension() != ".sst") continue;
    std::string family;
    uint32_t segment = 0;
    const Status whole = CheckIngestible(item.path().string(), file_options, &segment, &family);
    bool good = false;
    for (uint32_t shard = 0; whole && shard < options_.shards; ++shard) {
      if (family != FamilyName(shard)) continue;
      const std::string staged = fmt::format("{}/staging/again-{}.sst", options_.path, number++);
      std::error_code ec;
      fs::rename(item.path(), staged, ec);
      if (ec)
        return Fail(Code::kUnavailable,
                    fmt::format("cannot move {}: {}", item.path().string(), ec.message()));
      good = data_.db->IngestExternalFile(data_.families[shard], {staged}, IngestOptions()).ok();
    }
    lost += good || family == rocksdb::kDefaultColumnFamilyName ? 0 : 1;
  }
  LogWarn("ssd.data", {{"disk", options_.path}, {"segments", number}, {"lost", lost}});
  return OkStatus();
}

// A damaged index is put aside and made again: every row of it stands in the data, too.
Status Disk::OpenIndex() {
  const std::string path = options_.path + "/index";
  if (index_.db != nullptr) return OkStatus();  // The data needed it.
  Status opened = OpenDatabase(path, IndexOptions(), options_.shards, &index_);
  if (opened || opened.error().code == Code::kFailedPrecondition) return opened;
  for (uint32_t shard = 0; shard < options_.shards; ++shard) {
    if (!HasAllClears(data_, shard))
      return opened;  // Then what was cleared is known to this index alone.
  }
  std::error_code ec;
  fs::remove_all(path + ".damaged", ec);
  fs::rename(path, path + ".damaged", ec);
  if (ec) return opened;
  LogWarn("ssd.index", {{"disk", options_.path},
                        {"why", opened.error().message},
                        {"then", "made again from the segments"}});
  return OpenDatabase(path, IndexOptions(), options_.shards, &index_);
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
    // A disk's own root has the latter from the day it was made.
    if (item.path().filename() == "LOCK" || item.path().filename() == "lost+found") continue;
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
  TIERCEL_TRY(disk->OpenData());
  TIERCEL_TRY(disk->OpenIndex());
  return std::unique_ptr<SsdDisk>(std::move(disk));
}

}  // namespace tiercel
