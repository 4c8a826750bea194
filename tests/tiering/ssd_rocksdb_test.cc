#include "tiering/ssd_rocksdb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/sst_file_writer.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "base/random.h"
#include "tests/conformance/ssd_store_conformance.h"
#include "tests/fakes/memory_ssd_store.h"
#include "tests/fakes/sim_clock.h"
#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/ssd_database.h"
#include "tiering/ssd_kill_point.h"
#include "tiering/ssd_manifest.h"
#include "tiering/ssd_segment_file.h"

namespace tiercel {
namespace {

using ::testing::HasSubstr;

SsdStore::Options SmallSegments() {
  SsdStore::Options options;
  options.segment_bytes = 256 * kKiB;
  options.capacity_bytes = 64 * kMiB;
  options.seal_after = 20 * kMillisecond;
  options.verify_record = VerifyTestRecord;
  return options;
}

struct Shard {
  std::unique_ptr<SsdDisk> disk;
  std::unique_ptr<SsdStore> store;
  std::vector<SsdEntry> recovered;

  explicit Shard(const std::string& path, const SsdStore::Options& options = SmallSegments()) {
    SsdDisk::Options disk_options;
    disk_options.path = path;
    auto opened = SsdDisk::Open(disk_options);
    EXPECT_TRUE(opened) << opened.error().message;
    if (!opened) return;
    disk = std::move(*opened);
    store = std::move(*disk->OpenShard(0, options, Clock::Monotonic()));
    auto entries = store->Recover();
    EXPECT_TRUE(entries) << entries.error().message;
    recovered = std::move(*entries);
  }
  ~Shard() {
    if (store != nullptr) store->Shutdown(5 * kSecond);
    store.reset();
  }

  template <class Condition>
  bool PollUntil(Condition&& condition) {
    const Nanos end = Clock::Monotonic().Now() + 20 * kSecond;
    while (!condition()) {
      if (Clock::Monotonic().Now() > end) return false;
      if (store->Poll() == 0) usleep(200);
    }
    return true;
  }
  Status Read(const SsdEntry& entry, std::vector<std::byte>& out) {
    out.assign(entry.record_bytes, std::byte{0});
    std::optional<Status> result;
    const Status started =
        store->Read(entry, out, [&](Status status) { result = std::move(status); });
    if (!started) return started;
    if (!PollUntil([&] { return result.has_value(); }))
      return Fail(Code::kDeadlineExceeded, "no answer");
    return *result;
  }
};

SsdEntry EntryOf(uint64_t n, size_t bytes) {
  SsdEntry entry;
  entry.key = KeyOf(n);
  entry.name_space = 3;
  entry.generation = n + 1;
  entry.record_bytes = static_cast<uint32_t>(bytes);
  entry.raw_bytes = bytes * 2;
  return entry;
}

// Appends n records of about this size and waits until all are durable.
std::map<uint64_t, SsdEntry> Fill(Shard& shard, uint64_t first, uint64_t n, size_t bytes = 20'000) {
  std::map<uint64_t, SsdEntry> durable;
  std::vector<std::vector<std::byte>> records;
  records.reserve(n);
  uint64_t answered = 0;
  for (uint64_t i = first; i < first + n; ++i) {
    records.push_back(RecordOf(i, bytes + i % 7 * 8));
    const SsdEntry entry = EntryOf(i, records.back().size());
    EXPECT_TRUE(shard.store->Append(entry, records.back(), [&, i, entry](Result<SsdEntry> where) {
      ++answered;
      ASSERT_TRUE(where) << where.error().message;
      durable[i] = entry;
      durable[i] = *where;
    }));
  }
  EXPECT_TRUE(shard.PollUntil([&] { return answered == n; }));
  return durable;
}

// All that was recovered reads as Fill made it.
void ExpectFilledBytes(Shard& shard) {
  for (const SsdEntry& entry : shard.recovered) {
    std::vector<std::byte> bytes;
    ASSERT_TRUE(shard.Read(entry, bytes));
    EXPECT_EQ(bytes, RecordOf(entry.generation - 1, bytes.size()));
  }
}

class RocksRig final : public SsdStoreRig {
 public:
  std::unique_ptr<SsdStore> Open(const SsdStore::Options& options) override {
    disk_.reset();
    SsdDisk::Options disk;
    disk.path = folder_.path();
    auto opened = SsdDisk::Open(disk);
    EXPECT_TRUE(opened) << opened.error().message;
    if (!opened) return nullptr;
    disk_ = std::move(*opened);
    return std::move(*disk_->OpenShard(0, options, Clock::Monotonic()));
  }
  const Clock& clock() const override { return Clock::Monotonic(); }
  void Pass(Nanos time) override { usleep(static_cast<useconds_t>(time / kMicrosecond)); }

 private:
  TempFolder folder_;
  std::unique_ptr<SsdDisk> disk_;
};

class MemoryRig final : public SsdStoreRig {
 public:
  std::unique_ptr<SsdStore> Open(const SsdStore::Options& options) override {
    return std::make_unique<MemorySsdStore>(disk_, options, MemorySsdStore::Latency(), clock_,
                                            ++seed_);
  }
  const Clock& clock() const override { return clock_; }
  void Pass(Nanos time) override { clock_.Advance(time); }

 private:
  SimClock clock_;
  MemoryDisk disk_;
  uint64_t seed_ = 0;
};

INSTANTIATE_TEST_SUITE_P(
    Stores, SsdStoreConformance,
    ::testing::Values(SsdStoreCase{"Rocksdb", [] { return std::make_unique<RocksRig>(); }},
                      SsdStoreCase{"Memory", [] { return std::make_unique<MemoryRig>(); }}),
    [](const auto& param) { return param.param.name; });

TEST(SsdRocksdbTest, SurvivesKillMinusNineWithEverythingItAcknowledged) {
  for (int cycle = 0; cycle < 5; ++cycle) {
    TempFolder folder;
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    if (child == 0) {
      auto options = SmallSegments();
      options.capacity_bytes = 8 * kGiB;  // However long it lives, nothing is dropped.
      Shard shard(folder.path(), options);
      std::deque<std::vector<std::byte>> records;
      for (uint64_t i = 0;; ++i) {
        records.push_back(RecordOf(i, 20'000));
        const SsdEntry entry = EntryOf(i, records.back().size());
        while (!shard.store->Append(entry, records.back(), [&, i](Result<SsdEntry> where) {
          if (where) (void)!write(pipe_fds[1], &i, sizeof(i));
        })) {
          shard.store->Poll();
        }
        shard.store->Poll();
      }
    }
    close(pipe_fds[1]);
    std::vector<uint64_t> acknowledged;
    uint64_t n = 0;
    while (acknowledged.size() < 200u + static_cast<size_t>(cycle) * 77 &&
           read(pipe_fds[0], &n, sizeof(n)) == sizeof(n)) {
      acknowledged.push_back(n);
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(pipe_fds[0], &n, sizeof(n)) == sizeof(n)) acknowledged.push_back(n);
    close(pipe_fds[0]);
    Shard shard(folder.path());
    std::map<BlockKey, SsdEntry> entries;
    for (const SsdEntry& entry : shard.recovered) entries[entry.key] = entry;
    for (const uint64_t i : acknowledged) {
      ASSERT_TRUE(entries.contains(KeyOf(i))) << i << " was acknowledged as durable";
      std::vector<std::byte> bytes;
      ASSERT_TRUE(shard.Read(entries[KeyOf(i)], bytes));
      ASSERT_EQ(bytes, RecordOf(i, bytes.size()));
    }
  }
}

TEST(SsdRocksdbTest, FlippedBitsOnDiskAreNeverServed) {
  TempFolder folder;
  {
    Shard shard(folder.path());
    Fill(shard, 0, 60);
  }
  SplitMix64 random(5);
  const int flips = std::getenv("TIERCEL_FULL") != nullptr ? 1000 : 25;
  uint64_t refused = 0;
  for (int flip = 0; flip < flips; ++flip) {
    std::vector<std::filesystem::path> files;
    for (const auto& item : std::filesystem::directory_iterator(folder.path() + "/data")) {
      if (item.path().extension() == ".sst") files.push_back(item.path());
    }
    ASSERT_FALSE(files.empty());
    const auto file = files[random.Below(files.size())];
    const auto at = static_cast<std::streamoff>(random.Below(std::filesystem::file_size(file)));
    std::fstream io(file, std::ios::in | std::ios::out | std::ios::binary);
    io.seekg(at);
    const auto byte = static_cast<char>(io.get());
    const auto flipped = static_cast<char>(byte ^ (1 << random.Below(8)));
    io.seekp(at);
    io.put(flipped);
    io.close();
    SsdDisk::Options disk_options;
    disk_options.path = folder.path();
    auto disk = SsdDisk::Open(disk_options);
    if (disk) {
      auto store = std::move(*(*disk)->OpenShard(0, SmallSegments(), Clock::Monotonic()));
      const auto entries = store->Recover();
      if (entries) {
        for (const SsdEntry& entry : *entries) {
          std::vector<std::byte> bytes(entry.record_bytes);
          std::optional<Status> result;
          if (!store->Read(entry, bytes, [&](Status status) { result = std::move(status); }))
            continue;
          while (!result) {
            if (store->Poll() == 0) usleep(50);
          }
          if (!*result) {
            ++refused;
          } else {
            ASSERT_EQ(bytes, RecordOf(entry.generation - 1, bytes.size()));
          }
        }
      }
      store->Shutdown(kSecond);
    }
    std::fstream restore(file, std::ios::in | std::ios::out | std::ios::binary);
    restore.seekp(at);
    restore.put(byte);
  }
  EXPECT_GT(refused, 0u) << "no flip hit a record: the test proves nothing";
}

TEST(SsdRocksdbTest, AFolderInUseOrOfAnotherKindIsRefusedByName) {
  TempFolder folder;
  Shard shard(folder.path());
  SsdDisk::Options options;
  options.path = folder.path();
  EXPECT_THAT(SsdDisk::Open(options).error().message, HasSubstr("in use by another process"));
  TempFolder other;
  std::ofstream(other.path() + "/FORMAT") << "tiercel-ssd 7\n";
  options.path = other.path();
  EXPECT_THAT(SsdDisk::Open(options).error().message,
              HasSubstr("'tiercel-ssd 7', this build reads 'tiercel-ssd 1'"));
  std::ofstream(other.path() + "/FORMAT") << "tiercel-ssd 1\x0b\x1b[2J" << std::string(1000, 'x');
  const std::string told = SsdDisk::Open(options).error().message;
  EXPECT_THAT(told, HasSubstr("'tiercel-ssd 1??[2Jxxx"));
  EXPECT_LT(told.size(), 300u);
  TempFolder home;
  std::ofstream(home.path() + "/thesis.tex") << "precious";
  options.path = home.path();
  EXPECT_THAT(SsdDisk::Open(options).error().message, HasSubstr("thesis.tex"));
}

TEST(SsdRocksdbTest, AFreshDisksOwnRootIsAnEmptyFolder) {
  TempFolder folder;
  std::filesystem::create_directory(folder.path() + "/lost+found");
  Shard shard(folder.path());
  EXPECT_EQ(Fill(shard, 0, 3).size(), 3u);
}

TEST(SsdRocksdbTest, ADiskThatRefusesWritesIsToldAndUsedAgainWhenItTakesThem) {
  TempFolder folder;
  SimClock clock;
  SsdDisk::Options disk_options;
  disk_options.path = folder.path();
  auto disk = std::move(*SsdDisk::Open(disk_options));
  auto store = std::move(*disk->OpenShard(0, SmallSegments(), clock));
  ASSERT_TRUE(store->Recover());
  const auto record = RecordOf(1, 200'000);
  const auto append = [&]() -> Status {
    std::optional<Status> result;
    const Status queued =
        store->Append(EntryOf(1, record.size()), record, [&](Result<SsdEntry> where) {
          result = where ? OkStatus() : Status(tl::unexpected<Error>(where.error()));
        });
    if (!queued) return queued;
    store->Flush([](Status) {});
    while (!result) {
      if (store->Poll() == 0) usleep(200);
    }
    return *result;
  };
  ASSERT_TRUE(append());
  // No file may grow beyond this, which is what a full disk looks like to a writer.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  rlimit tiny = before;
  tiny.rlim_cur = 64 * 1024;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tiny), 0);
  const Status full = append();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, Code::kUnavailable);
  EXPECT_FALSE(store->available());
  EXPECT_THAT(store->why(), HasSubstr("segment"));
  EXPECT_EQ(append().error().code, Code::kUnavailable) << "left alone for a while";
  clock.Advance(10 * kSecond);
  EXPECT_TRUE(store->available());
  EXPECT_TRUE(append());
  EXPECT_EQ(store->stats().failed_writes, 1u);
  store->Shutdown(kSecond);
}

TEST(SsdRocksdbTest, ASegmentWithoutItsIndexEntryIsIndexedAgain) {
  TempFolder folder;
  {
    Shard shard(folder.path());
    Fill(shard, 0, 40);
  }
  // The crash between ingest and index: the data is there, the index knows nothing.
  std::filesystem::remove_all(folder.path() + "/index");
  {
    Shard shard(folder.path());
    EXPECT_EQ(shard.recovered.size(), 40u);
    ExpectFilledBytes(shard);
  }
  // And the other way round: an index of what is not there is forgotten.
  std::filesystem::remove_all(folder.path() + "/data");
  Shard shard(folder.path());
  EXPECT_TRUE(shard.recovered.empty());
  EXPECT_EQ(Fill(shard, 100, 5).size(), 5u);
}

TEST(SsdRocksdbTest, ADamagedIndexIsMadeAgainFromTheSegmentsAndWhatWasClearedStaysCleared) {
  for (const char* const victim : {"CURRENT", "MANIFEST", ".sst", ".log"}) {
    TempFolder folder;
    for (uint64_t round = 0; round < 2; ++round) {  // Twice: rows in a table, and rows in a log.
      Shard shard(folder.path());
      EXPECT_EQ(Fill(shard, round * 20, 20).size(), 20u);
      if (round == 0) {
        ASSERT_TRUE(shard.store->Clear(3, Scope{}, 5));
      }
    }
    int damaged = 0;
    for (const auto& item : std::filesystem::directory_iterator(folder.path() + "/index")) {
      if (item.path().filename().string().find(victim) == std::string::npos) continue;
      const auto bytes = std::filesystem::file_size(item.path());
      if (bytes == 0) continue;
      std::fstream io(item.path(), std::ios::in | std::ios::out | std::ios::binary);
      io.seekp(static_cast<std::streamoff>(bytes / 3));
      io << std::string(std::min<size_t>(bytes - bytes / 3, 200), '\xa5');
      ++damaged;
    }
    ASSERT_GT(damaged, 0) << victim;
    Shard shard(folder.path());
    EXPECT_EQ(shard.recovered.size(), 35u) << victim;
    for (const SsdEntry& entry : shard.recovered) {
      EXPECT_GT(entry.generation, 5u);
      std::vector<std::byte> bytes;
      ASSERT_TRUE(shard.Read(entry, bytes));
      EXPECT_EQ(bytes, RecordOf(entry.generation - 1, bytes.size()));
    }
    EXPECT_EQ(Fill(shard, 100, 5).size(), 5u);
  }
}

TEST(SsdRocksdbTest, LargeRecordsComeBackByteForByteHoweverManyPiecesTheyAreReadIn) {
  TempFolder folder;
  SsdStore::Options options = SmallSegments();
  options.segment_bytes = 16 * kMiB;
  options.capacity_bytes = 256 * kMiB;
  options.verify_record = nullptr;  // Nobody else is to find a wrong byte.
  Shard shard(folder.path(), options);
  // Around where one read becomes several, and around whole pieces.
  uint64_t n = 0;
  for (const size_t bytes :
       {1 * kMiB, 2559 * kKiB, 2561 * kKiB, 4 * kMiB - 80, 4 * kMiB, 9 * kMiB + 24}) {
    for (const auto& [i, entry] : Fill(shard, n, 3, bytes)) {
      std::vector<std::byte> read;
      ASSERT_TRUE(shard.Read(entry, read)) << bytes;
      EXPECT_TRUE(read == RecordOf(i, bytes + i % 7 * 8)) << bytes << ", record " << i;
    }
    n += 3;
  }
}

TEST(SsdRocksdbTest, ItsRoomIsWhatIsFreeAndWhatItsSegmentsHave) {
  TempFolder folder;
  Shard shard(folder.path());
  Fill(shard, 0, 400);
  uint64_t free = 0;
  uint64_t room = 1;
  for (int i = 0; i < 1000 && free != std::filesystem::space(folder.path()).available; ++i) {
    free = std::filesystem::space(folder.path()).available;  // Others may write to that disk, too.
    room = shard.disk->room_bytes();
  }
  EXPECT_GT(shard.store->stats().disk_bytes, 400u * 20'000);
  EXPECT_EQ(room - free, shard.store->stats().disk_bytes);
}

// RocksDB looks at the first row of what it takes in, in pages of 4 KiB, for which all other reads
// of the disk wait.
TEST(SsdRocksdbTest, ReadsNoRecordWhileItWrites) {
  TempFolder folder;
  SsdStore::Options options = SmallSegments();
  options.segment_bytes = 16 * kMiB;
  options.capacity_bytes = 1 * kGiB;
  Shard shard(folder.path(), options);
  const auto read_bytes = [] {
    std::ifstream io("/proc/self/io");
    std::string word;
    uint64_t value = 0;
    while (io >> word >> value && word != "rchar:") {
    }
    return value;
  };
  Fill(shard, 0, 4, 4 * kMiB);  // From the first file it learns how long their ends are.
  const uint64_t before = read_bytes();
  Fill(shard, 4, 16, 4 * kMiB);
  EXPECT_LT(read_bytes() - before, 4 * kMiB) << "of 64 MiB written";
}

TEST(SsdRocksdbTest, ABlockWhoseKeyIsThatOfTheFirstRowIsABlockAsAnyOther) {
  TempFolder folder;
  for (int open = 0; open < 2; ++open) {
    Shard shard(folder.path());
    if (open == 0) {
      const auto record = RecordOf(0, 20'000);
      SsdEntry entry = EntryOf(0, record.size());
      entry.key = BlockKey{};
      std::optional<Result<SsdEntry>> stored;
      ASSERT_TRUE(
          shard.store->Append(entry, record, [&](Result<SsdEntry> where) { stored = where; }));
      Fill(shard, 1, 3);
      ASSERT_TRUE(stored && *stored);
      shard.recovered.push_back(**stored);
    }
    const auto zero = std::find_if(shard.recovered.begin(), shard.recovered.end(),
                                   [](const SsdEntry& entry) { return entry.key == BlockKey{}; });
    ASSERT_NE(zero, shard.recovered.end());
    EXPECT_EQ(zero->where.slot, 0u);
    std::vector<std::byte> read;
    ASSERT_TRUE(shard.Read(*zero, read));
    EXPECT_EQ(read, RecordOf(0, 20'000));
  }
}

TEST(SsdRocksdbTest, ASegmentWrittenBeforeThereWasAFirstRowIsReadAsEver) {
  TempFolder folder;
  { Shard shard(folder.path()); }
  std::vector<SsdEntry> entries;
  {
    Database data;
    ASSERT_TRUE(OpenDatabase(folder.path() + "/data", DataOptions(true), 1, &data));
    const std::string path = folder.path() + "/old.sst";
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), DataOptions(true), data.families[0]);
    ASSERT_TRUE(writer.Open(path).ok());
    for (uint32_t i = 0; i < 10; ++i) {
      const auto record = RecordOf(i, 20'000 + i);
      entries.push_back(EntryOf(i, record.size()));
      entries.back().where = {9, i};
      ASSERT_TRUE(writer.Put(DataKey(9, i, &entries.back().key), ToSlice(record)).ok());
    }
    ASSERT_TRUE(writer.Put(DataKey(9, kManifestSlot, nullptr), EncodeManifest(9, entries)).ok());
    ASSERT_TRUE(writer.Finish().ok());
    const auto file = SegmentFile::Open(path, true, entries, /*has_first_row=*/false);
    ASSERT_NE(file, nullptr);
    for (uint32_t i = 0; i < 10; ++i) {
      std::vector<std::byte> read(entries[i].record_bytes);
      ASSERT_TRUE(file->Read(entries[i], read)) << i;
      EXPECT_EQ(read, RecordOf(i, 20'000 + i));
    }
    ASSERT_TRUE(data.db->IngestExternalFile(data.families[0], {path}, IngestOptions()).ok());
  }
  Shard shard(folder.path());
  ASSERT_EQ(shard.recovered.size(), 10u);
  ExpectFilledBytes(shard);
}

TEST(SsdRocksdbTest, DamagedDataIsMadeAgainFromTheSegmentsThatAreWhole) {
  // RocksDB's manifest; a segment where its properties are, so that RocksDB does not open it; and
  // with the former a segment that opens, but its first row, its first record or its own manifest
  // does not verify. A record costs itself alone.
  for (const std::string damage :
       {"manifest", "properties", "first row", "first record", "own manifest"}) {
    SCOPED_TRACE(damage);
    TempFolder folder;
    {
      Shard shard(folder.path());
      EXPECT_EQ(Fill(shard, 0, 60).size(), 60u);
      ASSERT_TRUE(shard.store->Clear(3, Scope{}, 5));
    }
    std::filesystem::path manifest;
    std::filesystem::path segment;
    for (const auto& item : std::filesystem::directory_iterator(folder.path() + "/data")) {
      if (item.path().filename().string().starts_with("MANIFEST")) manifest = item.path();
      if (item.path().extension() == ".sst" && item.file_size() > 200'000)
        segment = std::max(segment, item.path());  // None of its blocks is cleared.
    }
    ASSERT_FALSE(manifest.empty() || segment.empty());
    const auto break_at = [](const std::filesystem::path& victim, uint64_t at, size_t bytes) {
      std::fstream io(victim, std::ios::in | std::ios::out | std::ios::binary);
      io.seekp(static_cast<std::streamoff>(at));
      io << std::string(bytes, '\xa5');
    };
    const uint64_t end = std::filesystem::file_size(segment);
    if (damage != "properties") break_at(manifest, 20, 1);
    if (damage == "properties") break_at(segment, end - 700, 100);
    if (damage == "first row") break_at(segment, 20, 10);
    if (damage == "first record") break_at(segment, 1000, 100);
    if (damage == "own manifest") {
      std::ifstream in(segment, std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
      const size_t at = bytes.rfind("TCM1");
      ASSERT_NE(at, std::string::npos);
      break_at(segment, at + 50, 100);
    }
    Shard shard(folder.path());
    ASSERT_NE(shard.store, nullptr);
    const bool a_segment = damage != "manifest" && damage != "first record";
    EXPECT_GE(shard.recovered.size(), a_segment ? 40u : 55u);
    EXPECT_LE(shard.recovered.size(), a_segment ? 54u : 55u);
    size_t bad = 0;
    for (const SsdEntry& entry : shard.recovered) {
      EXPECT_GT(entry.generation, 5u) << "what was cleared stays cleared";
      std::vector<std::byte> read;
      if (const Status status = shard.Read(entry, read); !status) {
        EXPECT_EQ(status.error().code, Code::kDataLoss);
        ++bad;
        continue;
      }
      EXPECT_EQ(read, RecordOf(entry.generation - 1, read.size()));
    }
    EXPECT_EQ(bad, damage == "first record" ? 1u : 0u);
    EXPECT_EQ(Fill(shard, 100, 20).size(), 20u);
  }
}

TEST(SsdRocksdbTest, AProcessKilledAtAnyNamedPointServesWhatItToldAsDurable) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer follows no threads that a forked process starts";
#endif
  for (const char* const point :
       {"segment.opened", "segment.half", "segment.finished", "segment.ingested", "segment.indexed",
        "drop.begun", "drop.unindexed", "drop.done", "clear.half", "clear.done"}) {
    TempFolder folder;
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    if (child == 0) {
      KillPlan::Get().Set(std::string(point) + ":3");
      auto options = SmallSegments();
      options.capacity_bytes = 4 * kMiB;
      Shard shard(folder.path(), options);
      shard.store->SetDropListener([&](const std::vector<SsdEntry>& dropped) {
        for (const SsdEntry& entry : dropped) {
          const int64_t no = -static_cast<int64_t>(entry.generation);
          (void)!write(pipe_fds[1], &no, sizeof(no));
        }
      });
      std::deque<std::vector<std::byte>> records;
      for (uint64_t i = 0; i < 2000; ++i) {
        records.push_back(RecordOf(i, 20'000));
        while (!shard.store->Append(EntryOf(i, records.back().size()), records.back(),
                                    [&, i](Result<SsdEntry> where) {
                                      const auto generation = static_cast<int64_t>(i + 1);
                                      if (where)
                                        (void)!write(pipe_fds[1], &generation, sizeof(generation));
                                    })) {
          shard.store->Poll();
        }
        shard.store->Poll();
        if (i % 50 == 49) (void)shard.store->Clear(9, Scope{}, 1);
      }
      _exit(0);
    }
    close(pipe_fds[1]);
    std::set<uint64_t> durable;
    for (int64_t told = 0; read(pipe_fds[0], &told, sizeof(told)) == sizeof(told);) {
      if (told > 0) durable.insert(static_cast<uint64_t>(told));
      if (told < 0) durable.erase(static_cast<uint64_t>(-told));
    }
    close(pipe_fds[0]);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 137) << point << " was never passed";
    Shard shard(folder.path());
    std::map<uint64_t, SsdEntry> entries;
    for (const SsdEntry& entry : shard.recovered) entries[entry.generation] = entry;
    for (const uint64_t generation : durable) {
      ASSERT_TRUE(entries.contains(generation))
          << point << ": " << generation << " was told as durable";
      std::vector<std::byte> bytes;
      ASSERT_TRUE(shard.Read(entries[generation], bytes)) << point;
      ASSERT_EQ(bytes, RecordOf(generation - 1, bytes.size())) << point;
    }
  }
}

TEST(SsdRocksdbTest, TwoShardsShareADiskAndNothingElse) {
  TempFolder folder;
  SsdDisk::Options disk_options;
  disk_options.path = folder.path();
  disk_options.shards = 2;
  auto disk = std::move(*SsdDisk::Open(disk_options));
  std::vector<std::unique_ptr<SsdStore>> stores;
  const auto record = RecordOf(1, 10'000);
  for (uint32_t shard = 0; shard < 2; ++shard) {
    stores.push_back(std::move(*disk->OpenShard(shard, SmallSegments(), Clock::Monotonic())));
    ASSERT_TRUE(stores.back()->Recover());
  }
  EXPECT_FALSE(disk->OpenShard(2, SmallSegments(), Clock::Monotonic()));
  bool durable = false;
  ASSERT_TRUE(stores[0]->Append(EntryOf(1, record.size()), record,
                                [&](Result<SsdEntry>) { durable = true; }));
  while (!durable) {
    if (stores[0]->Poll() == 0) usleep(200);
  }
  for (auto& store : stores) store->Shutdown(kSecond);
  stores.clear();
  disk.reset();
  disk_options.shards = 1;
  EXPECT_THAT(SsdDisk::Open(disk_options).error().message, HasSubstr("more shards"));
  disk_options.shards = 2;
  disk = std::move(*SsdDisk::Open(disk_options));
  for (uint32_t shard = 0; shard < 2; ++shard) {
    auto store = std::move(*disk->OpenShard(shard, SmallSegments(), Clock::Monotonic()));
    EXPECT_EQ(store->Recover()->size(), shard == 0 ? 1u : 0u);
  }
}

TEST(SsdRocksdbTest, OpensManyBlocksQuickly) {
  TempFolder folder;
  const bool full = std::getenv("TIERCEL_FULL") != nullptr;
  const uint64_t blocks = full ? 100'000 : 20'000;
  auto options = SmallSegments();
  options.segment_bytes = 8 * kMiB;
  options.capacity_bytes = 8 * kGiB;
  options.max_queued_bytes = kGiB;
  {
    Shard shard(folder.path(), options);
    EXPECT_EQ(Fill(shard, 0, blocks, 4'000).size(), blocks);
  }
  const Nanos start = Clock::Monotonic().Now();
  Shard shard(folder.path(), options);
  const Nanos took = Clock::Monotonic().Now() - start;
  EXPECT_EQ(shard.recovered.size(), blocks);
  EXPECT_LE(took, (full ? 2 : 1) * kSecond) << took / kMillisecond << " ms for " << blocks;
  RecordProperty("open_ms", static_cast<int>(took / kMillisecond));
  std::printf("opened %llu blocks in %lld ms\n", static_cast<unsigned long long>(blocks),
              static_cast<long long>(took / kMillisecond));
}

// The worked example of docs/ssd-format.md.
TEST(SsdManifestTest, HasTheBytesThatAreWrittenDown) {
  SsdEntry entry;
  for (size_t i = 0; i < 32; ++i) {
    entry.key.bytes[i] = static_cast<std::byte>(i);
    entry.parent.bytes[i] = static_cast<std::byte>(0x20 + i);
    entry.anchor.bytes[i] = static_cast<std::byte>(0x40 + i);
  }
  for (size_t i = 0; i < 16; ++i) entry.scope.bytes[i] = static_cast<std::byte>(0x60 + i);
  entry.generation = 9;
  entry.raw_bytes = 98304;
  entry.name_space = 1;
  entry.chain_index = 3;
  entry.record_bytes = 73920;
  entry.where = {7, 0};
  EXPECT_EQ(ToHex(AsBytes(EncodeManifest(7, {entry}))),
            "54434d31010000000700000001000000b77e4720000000000000000000000000"
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
            "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
            "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f"
            "606162636465666768696a6b6c6d6e6f09000000000000000080010000000000"
            "0100000003000000c02001000000000000000000000000000000000000000000");
  EXPECT_EQ(ToHex(AsBytes(DataKey(7, 0, &entry.key))),
            "0000000700000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
  EXPECT_EQ(ToHex(AsBytes(DataKey(7, kManifestSlot, nullptr))), "00000007ffffffff");
  EXPECT_EQ(ToHex(AsBytes(FirstKey(7))), "0000000700000000" + std::string(64, '0'));
  EXPECT_TRUE(IsFirstKey(FirstKey(7)));
  EXPECT_FALSE(IsFirstKey(DataKey(7, 0, &entry.key)));
  EXPECT_FALSE(IsFirstKey(DataKey(7, kManifestSlot, nullptr)));
  EXPECT_EQ(ToHex(AsBytes(IndexKey(7))), "7300000007");
}

TEST(SsdManifestTest, RefusesEveryTruncationAndEveryFlippedBit) {
  const std::vector<SsdEntry> entries = {EntryOf(1, 100), EntryOf(2, 200)};
  const std::string good = EncodeManifest(9, entries);
  ASSERT_TRUE(DecodeManifest(good, 9));
  EXPECT_EQ((*DecodeManifest(good, 9))[1].key, KeyOf(2));
  EXPECT_FALSE(DecodeManifest(good, 8));
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(DecodeManifest(good.substr(0, size), 9));
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    if (bit / 8 >= 20 && bit / 8 < 32) continue;  // Reserved, outside the checksum.
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeManifest(bad, 9)) << bit;
  }
}

}  // namespace
}  // namespace tiercel
