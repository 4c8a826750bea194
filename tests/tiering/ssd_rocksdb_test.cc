#include "tiering/ssd_rocksdb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "base/random.h"
#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/ssd_manifest.h"

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
    EXPECT_TRUE(
        shard.store->Append(entry, records.back(), [&, i, entry](Result<SsdLocation> where) {
          ++answered;
          ASSERT_TRUE(where) << where.error().message;
          durable[i] = entry;
          durable[i].where = *where;
        }));
  }
  EXPECT_TRUE(shard.PollUntil([&] { return answered == n; }));
  return durable;
}

TEST(SsdRocksdbTest, ServesAfterARestartWhatItSaidWasDurable) {
  TempFolder folder;
  std::map<uint64_t, SsdEntry> durable;
  {
    Shard shard(folder.path());
    durable = Fill(shard, 0, 100);
  }
  Shard shard(folder.path());
  EXPECT_EQ(shard.recovered.size(), 100u);
  for (const SsdEntry& entry : shard.recovered) {
    const uint64_t n = entry.generation - 1;
    std::vector<std::byte> bytes;
    ASSERT_TRUE(shard.Read(entry, bytes));
    EXPECT_EQ(bytes, RecordOf(n, bytes.size()));
    EXPECT_EQ(entry.where, durable[n].where);
    EXPECT_EQ(entry.raw_bytes, bytes.size() * 2);
    EXPECT_EQ(entry.name_space, 3u);
  }
}

TEST(SsdRocksdbTest, AWrongKeyNeverGetsAnothersBytes) {
  TempFolder folder;
  Shard shard(folder.path());
  auto durable = Fill(shard, 0, 4);
  SsdEntry forged = durable[1];
  forged.key = durable[2].key;
  std::vector<std::byte> bytes;
  const Status status = shard.Read(forged, bytes);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kNotFound);
}

TEST(SsdRocksdbTest, DropsTheLeastRecentlyReadSegmentWholeAndStaysWithinItsCapacity) {
  TempFolder folder;
  auto options = SmallSegments();
  options.capacity_bytes = 2 * kMiB;
  Shard shard(folder.path(), options);
  std::map<BlockKey, SsdEntry> gone;
  shard.store->SetDropListener([&](const std::vector<SsdEntry>& dropped) {
    for (const SsdEntry& entry : dropped) gone[entry.key] = entry;
  });
  std::map<uint64_t, SsdEntry> live;
  std::vector<std::byte> bytes;
  for (uint64_t round = 0; round < 20; ++round) {
    for (auto& [n, entry] : Fill(shard, round * 13, 13)) live[n] = entry;
    EXPECT_TRUE(shard.Read(live[0], bytes)) << "the segment that is read stays";
    EXPECT_LE(shard.store->stats().used_bytes, options.capacity_bytes);
  }
  EXPECT_GT(gone.size(), 100u);
  EXPECT_FALSE(gone.contains(KeyOf(0)));
  ASSERT_TRUE(gone.contains(KeyOf(20)));
  EXPECT_EQ(shard.Read(live[20], bytes).error().code, Code::kNotFound);
  // Nothing leaks: the disk holds what is accounted, once the drops are done.
  EXPECT_TRUE(shard.PollUntil(
      [&] { return shard.store->stats().disk_bytes < options.capacity_bytes * 115 / 100; }));
}

TEST(SsdRocksdbTest, SurvivesKillMinusNineWithEverythingItAcknowledged) {
  for (int cycle = 0; cycle < 5; ++cycle) {
    TempFolder folder;
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    if (child == 0) {
      Shard shard(folder.path());
      std::deque<std::vector<std::byte>> records;
      for (uint64_t i = 0;; ++i) {
        records.push_back(RecordOf(i, 20'000));
        const SsdEntry entry = EntryOf(i, records.back().size());
        while (!shard.store->Append(entry, records.back(), [&, i](Result<SsdLocation> where) {
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

TEST(SsdRocksdbTest, WhatWasClearedStaysClearedAcrossARestart) {
  TempFolder folder;
  {
    Shard shard(folder.path());
    Fill(shard, 0, 10);
    ASSERT_TRUE(shard.store->Clear(3, Scope{}, 5));
  }
  Shard shard(folder.path());
  EXPECT_EQ(shard.recovered.size(), 5u);
  for (const SsdEntry& entry : shard.recovered) EXPECT_GT(entry.generation, 5u);
}

TEST(SsdRocksdbTest, FlippedBitsOnDiskAreNeverServed) {
  TempFolder folder;
  {
    Shard shard(folder.path());
    Fill(shard, 0, 60);
  }
  SplitMix64 random(5);
  const int flips = std::getenv("TIERCEL_FULL") != nullptr ? 1000 : 40;
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
  TempFolder home;
  std::ofstream(home.path() + "/thesis.tex") << "precious";
  options.path = home.path();
  EXPECT_THAT(SsdDisk::Open(options).error().message, HasSubstr("thesis.tex"));
}

TEST(SsdRocksdbTest, VerifyReadsEverythingAndFindsNothingWrong) {
  TempFolder folder;
  Shard shard(folder.path());
  Fill(shard, 0, 50);
  std::optional<SsdStore::VerifyReport> report;
  shard.store->Verify([&](Result<SsdStore::VerifyReport> result) { report = *result; });
  ASSERT_TRUE(shard.PollUntil([&] { return report.has_value(); }));
  EXPECT_EQ(report->records, 50u);
  EXPECT_EQ(report->bad, 0u);
}

TEST(SsdRocksdbTest, TooMuchToWriteIsRefusedNotQueued) {
  TempFolder folder;
  auto options = SmallSegments();
  options.max_queued_bytes = 100'000;
  Shard shard(folder.path(), options);
  const auto record = RecordOf(1, 60'000);
  bool answered = false;
  ASSERT_TRUE(shard.store->Append(EntryOf(1, record.size()), record,
                                  [&](Result<SsdLocation>) { answered = true; }));
  const Status refused =
      shard.store->Append(EntryOf(2, record.size()), record, [](Result<SsdLocation>) { FAIL(); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  EXPECT_TRUE(shard.PollUntil([&] { return answered; }));
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
