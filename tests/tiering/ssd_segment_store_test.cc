#include "tiering/ssd_segment_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "tests/bench/ssd_slab.h"
#include "tests/conformance/ssd_store_conformance.h"
#include "tests/fakes/sim_clock.h"
#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/ssd_disks.h"
#include "tiering/ssd_pacer.h"
#include "tiering/ssd_rocksdb.h"

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

std::unique_ptr<SsdStore> OpenSlab(const std::string& folder, const SsdStore::Options& options,
                                   const Clock& clock) {
  return MakeSegmentStore(std::make_unique<SlabEngine>(folder), options, SegmentStoreThreads(),
                          clock, folder);
}

class RealTimeRig : public SsdStoreRig {
 public:
  const Clock& clock() const override { return Clock::Monotonic(); }
  void Pass(Nanos time) override { usleep(static_cast<useconds_t>(time / kMicrosecond)); }
};

class SlabRig final : public RealTimeRig {
 public:
  std::unique_ptr<SsdStore> Open(const SsdStore::Options& options) override {
    return OpenSlab(folder_.path(), options, clock());
  }

 private:
  TempFolder folder_;
};

class TwoDisksRig final : public RealTimeRig {
 public:
  std::unique_ptr<SsdStore> Open(const SsdStore::Options& options) override {
    SsdStore::Options half = options;
    half.capacity_bytes /= 2;
    std::vector<std::unique_ptr<SsdStore>> disks;
    for (const TempFolder& folder : folders_)
      disks.push_back(OpenSlab(folder.path(), half, clock()));
    return JoinDisks(std::move(disks), options.segment_bytes);
  }

 private:
  std::array<TempFolder, 2> folders_;
};

INSTANTIATE_TEST_SUITE_P(
    SegmentStores, SsdStoreConformance,
    ::testing::Values(SsdStoreCase{"Slab", [] { return std::make_unique<SlabRig>(); }},
                      SsdStoreCase{"TwoDisks", [] { return std::make_unique<TwoDisksRig>(); }}),
    [](const auto& param) { return param.param.name; });

// An engine in memory whose disk can be told to hang, to fail, and to hold what nobody accounts
// for.
class FakeEngine final : public SegmentEngine {
 public:
  struct Disk {
    std::atomic<bool> hang_reads{false};
    std::atomic<bool> hang_drops{false};
    std::atomic<bool> fail_reads{false};
    std::atomic<bool> fail_writes{false};
    std::atomic<size_t> most_segments{SIZE_MAX};
    std::atomic<uint64_t> pace{0};
    Mutex mutex;
    std::map<uint32_t, std::vector<std::vector<std::byte>>> segments TIERCEL_GUARDED_BY(mutex);
    std::vector<uint32_t> dropped TIERCEL_GUARDED_BY(mutex);
  };
  explicit FakeEngine(Disk& disk) : disk_(disk) {}

  Result<Recovered> Recover() override { return Recovered(); }
  Status Write(OpenSegment& segment, const Recode&) override {
    if (disk_.fail_writes) return Fail(Code::kUnavailable, "input/output error");
    MutexLock lock(disk_.mutex);
    if (disk_.segments.size() >= disk_.most_segments)
      return Fail(Code::kResourceExhausted, "no space left on device");
    for (const auto& append : segment.appends()) {
      disk_.segments[segment.number()].emplace_back(append.record.begin(), append.record.end());
    }
    return OkStatus();
  }
  Status Read(const SsdEntry& entry, MutableByteSpan dst) override {
    while (disk_.hang_reads) usleep(200);
    if (disk_.fail_reads) return Fail(Code::kUnavailable, "input/output error");
    MutexLock lock(disk_.mutex);
    const auto& record = disk_.segments.at(entry.where.segment).at(entry.where.slot);
    std::copy(record.begin(), record.end(), dst.begin());
    return OkStatus();
  }
  Status Drop(uint32_t segment, bool) override {
    while (disk_.hang_drops) usleep(200);
    MutexLock lock(disk_.mutex);
    disk_.segments.erase(segment);
    disk_.dropped.push_back(segment);
    return OkStatus();
  }
  std::vector<uint32_t> Present() const override {
    MutexLock lock(disk_.mutex);
    std::vector<uint32_t> numbers;
    for (const auto& [number, records] : disk_.segments) numbers.push_back(number);
    return numbers;
  }
  Status Clear(uint32_t, const Scope&, uint64_t) override { return OkStatus(); }
  Status Corrupt(const SsdEntry& entry, uint64_t bit) override {
    MutexLock lock(disk_.mutex);
    auto& record = disk_.segments.at(entry.where.segment).at(entry.where.slot);
    record[bit / 8 % record.size()] ^= static_cast<std::byte>(1u << bit % 8);
    return OkStatus();
  }
  void Pace(uint64_t bytes_per_second) override { disk_.pace = bytes_per_second; }
  void Resume() override {}
  uint64_t disk_bytes() const override { return 0; }

 private:
  Disk& disk_;
};

class SegmentStoreTest : public ::testing::Test {
 protected:
  void Open(const SsdStore::Options& options) {
    store_ = MakeSegmentStore(std::make_unique<FakeEngine>(disk_), options, SegmentStoreThreads(),
                              clock_, "fake");
    ASSERT_TRUE(store_->Recover());
  }
  void TearDown() override {
    disk_.hang_reads = disk_.hang_drops = false;
    if (store_ != nullptr) store_->Shutdown(0);
  }
  template <class Condition>
  bool PollUntil(Condition&& condition) {
    for (int i = 0; i < 20'000; ++i) {
      if (condition()) return true;
      if (store_->Poll() == 0) usleep(200);
    }
    return false;
  }
  // Of this many bytes, durable when it returns.
  Result<SsdEntry> Put(uint64_t n, size_t bytes = 20'000, uint32_t name_space = 3) {
    records_.push_back(RecordOf(n, bytes));
    std::optional<Result<SsdEntry>> stored;
    SsdEntry entry = SsdEntryOf(n, records_.back().size());
    entry.name_space = name_space;
    const Status taken =
        store_->Append(entry, records_.back(),
                       [&stored](Result<SsdEntry> durable) { stored = std::move(durable); });
    if (!taken) return tl::unexpected<Error>(taken.error());
    store_->Flush([](Status) {});
    EXPECT_TRUE(PollUntil([&] { return stored.has_value(); }));
    return *stored;
  }
  // Drops may be behind; then nothing is taken.
  Result<SsdEntry> PutWhenTaken(uint64_t n, size_t bytes, uint32_t name_space) {
    Result<SsdEntry> stored = Put(n, bytes, name_space);
    for (int i = 0; i < 2000 && !stored && stored.error().code == Code::kResourceExhausted; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      store_->Poll();
      stored = Put(n, bytes, name_space);
    }
    return stored;
  }

  FakeEngine::Disk disk_;
  SimClock clock_;
  std::deque<std::vector<std::byte>> records_;
  std::unique_ptr<SsdStore> store_;
};

TEST_F(SegmentStoreTest, WritesNoMoreInADayThanItsBudgetAndNoMoreAtOnceThanAnHoursShare) {
  auto options = SmallSegments();
  options.write_bytes_per_day = 24 * 200'000;
  Open(options);
  uint64_t stored = 0;
  while (stored < 100 && Put(stored)) ++stored;
  EXPECT_EQ(stored, 10u) << "of 20,000 bytes, in 200,000";
  const auto refused = Put(500);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("in a day is spent"));
  EXPECT_TRUE(store_->available()) << "what is there is read on";
  EXPECT_GE(store_->stats().over_budget, 2u);
  clock_.Advance(3600 * kSecond);
  EXPECT_TRUE(Put(501));
  clock_.Advance(100 * 3600 * kSecond);
  EXPECT_LE((Put(502), store_->stats().budget_left_bytes), 200'000u) << "an hour's share at most";
}

TEST_F(SegmentStoreTest, AFloodTakesWhatANameSpaceLeavesUnusedAndNothingOfItsReserve) {
  constexpr uint32_t kCalm = 1, kFlood = 2;
  auto options = SmallSegments();
  options.capacity_bytes = 8 * kMiB;
  options.quota = [](uint32_t name_space) {
    return name_space == kCalm ? SsdStore::Quota{3 * kMiB, UINT64_MAX} : SsdStore::Quota{};
  };
  Open(options);
  std::map<uint32_t, uint64_t> dropped;
  store_->SetDropListener([&](const std::vector<SsdEntry>& entries) {
    for (const SsdEntry& entry : entries) ++dropped[entry.name_space];
  });
  uint64_t n = 0;
  const auto put = [&](uint32_t name_space, uint64_t bytes) {
    for (uint64_t done = 0; done < bytes; done += 100'000)
      ASSERT_TRUE(PutWhenTaken(n++, 100'000, name_space));
  };
  put(kFlood, 20 * kMiB);
  EXPECT_GT(store_->stats().bytes_of[kFlood], 7 * kMiB) << "what nobody else needs is its own";
  put(kCalm, 3 * kMiB);
  EXPECT_EQ(dropped[kCalm], 0u);
  EXPECT_GE(store_->stats().bytes_of[kCalm], 3 * kMiB) << "and is given back";
  put(kFlood, 30 * kMiB);
  EXPECT_EQ(dropped[kCalm], 0u) << "though nothing of it was read for long";
  EXPECT_GE(store_->stats().bytes_of[kCalm], 3 * kMiB);
  put(kCalm, 10 * kMiB);
  EXPECT_GE(store_->stats().bytes_of[kCalm], 3 * kMiB);
  EXPECT_LE(store_->stats().used_bytes, options.capacity_bytes);
}

TEST_F(SegmentStoreTest, ANameSpaceAtItsLimitMakesRoomFromItsOwnSegments) {
  constexpr uint32_t kSmall = 1, kOther = 2;
  auto options = SmallSegments();
  options.capacity_bytes = 16 * kMiB;
  options.quota = [](uint32_t name_space) {
    return name_space == kSmall ? SsdStore::Quota{0, 2 * kMiB} : SsdStore::Quota{};
  };
  Open(options);
  ASSERT_TRUE(Put(1'000'000, 100'000, kOther));
  std::set<uint32_t> losers;
  store_->SetDropListener([&](const std::vector<SsdEntry>& entries) {
    for (const SsdEntry& entry : entries) losers.insert(entry.name_space);
  });
  Result<SsdEntry> last = Fail(Code::kNotFound, "none");
  for (uint64_t n = 0; n < 100; ++n) {
    last = PutWhenTaken(n, 100'000, kSmall);
    ASSERT_TRUE(last);
    ASSERT_LE(store_->stats().bytes_of[kSmall], 2 * kMiB);
  }
  EXPECT_EQ(losers, std::set<uint32_t>{kSmall}) << "a third of the disk was never used";
  EXPECT_EQ(store_->stats().bytes_of[kOther], 100'000u);
  std::vector<std::byte> bytes(last->record_bytes);
  std::optional<Status> read;
  ASSERT_TRUE(store_->Read(*last, bytes, [&](Status status) { read = std::move(status); }));
  ASSERT_TRUE(PollUntil([&] { return read.has_value(); }));
  EXPECT_TRUE(*read) << "what is new stays, what is old goes";
}

TEST_F(SegmentStoreTest, ASegmentHoldsOneNameSpaceHoweverTheyAreMixed) {
  Open(SmallSegments());
  std::map<uint32_t, std::set<uint32_t>> in;  // Segment -> name spaces.
  size_t stored = 0;
  for (uint64_t n = 0; n < 60; ++n) {
    records_.push_back(RecordOf(n, 20'000));
    SsdEntry entry = SsdEntryOf(n, records_.back().size());
    entry.name_space = static_cast<uint32_t>(n % 3 + 1);
    ASSERT_TRUE(store_->Append(entry, records_.back(), [&](Result<SsdEntry> durable) {
      ASSERT_TRUE(durable);
      in[durable->where.segment].insert(durable->name_space);
      ++stored;
    }));
  }
  store_->Flush([](Status) {});
  ASSERT_TRUE(PollUntil([&] { return stored == 60; }));
  for (const auto& [segment, spaces] : in) EXPECT_EQ(spaces.size(), 1u) << "segment " << segment;
  EXPECT_LE(in.size(), 6u) << "of 256 KiB, for 400 KB of each of three";
}

TEST_F(SegmentStoreTest, ADiskThatDoesNotAnswerIsLeftAloneUntilItDoes) {
  Open(SmallSegments());
  const auto entry = Put(1);
  ASSERT_TRUE(entry);
  disk_.hang_reads = true;
  std::vector<std::byte> bytes(entry->record_bytes);
  std::optional<Status> read;
  ASSERT_TRUE(store_->Read(*entry, bytes, [&](Status status) { read = std::move(status); }));
  clock_.Advance(4900 * kMillisecond);
  store_->Poll();
  EXPECT_TRUE(store_->available());
  EXPECT_LE(store_->next_wakeup(), clock_.Now() + 100 * kMillisecond) << "someone must wake it";
  clock_.Advance(200 * kMillisecond);
  store_->Poll();
  EXPECT_FALSE(store_->available());
  EXPECT_THAT(store_->why(), HasSubstr("answered no read for 5100 ms"));
  EXPECT_EQ(store_->Append(SsdEntryOf(2, bytes.size()), bytes, [](Result<SsdEntry>) { FAIL(); })
                .error()
                .code,
            Code::kUnavailable);
  EXPECT_EQ(store_->stats().stalls, 1u);
  clock_.Advance(6 * kSecond);
  store_->Poll();
  EXPECT_FALSE(store_->available()) << "it still hangs";
  disk_.hang_reads = false;
  ASSERT_TRUE(PollUntil([&] { return read.has_value(); }));
  EXPECT_TRUE(*read) << "late, and right";
  clock_.Advance(6 * kSecond);
  store_->Poll();
  EXPECT_TRUE(store_->available());
  EXPECT_TRUE(Put(3));
}

TEST_F(SegmentStoreTest, ADiskThatTakesNoWritesIsReadOn) {
  Open(SmallSegments());
  const auto entry = Put(1);
  ASSERT_TRUE(entry);
  disk_.fail_writes = true;
  EXPECT_EQ(Put(2).error().code, Code::kUnavailable);
  EXPECT_FALSE(store_->available());
  EXPECT_TRUE(store_->readable());
  EXPECT_THAT(store_->why(), HasSubstr("input/output error"));
  std::vector<std::byte> bytes(entry->record_bytes);
  std::optional<Status> read;
  ASSERT_TRUE(store_->Read(*entry, bytes, [&](Status status) { read = std::move(status); }));
  ASSERT_TRUE(PollUntil([&] { return read.has_value(); }));
  EXPECT_TRUE(*read);
  EXPECT_EQ(bytes, RecordOf(1, bytes.size()));
  disk_.fail_writes = false;
  EXPECT_EQ(Put(3).error().code, Code::kUnavailable) << "left alone for a while";
  clock_.Advance(6 * kSecond);
  EXPECT_TRUE(store_->available());
  EXPECT_TRUE(Put(4));
}

TEST_F(SegmentStoreTest, ADiskThatIsFullBeforeItsCapacityGivesUpItsOldestForTheNew) {
  auto options = SmallSegments();
  options.capacity_bytes = 100 * options.segment_bytes;
  disk_.most_segments = 10;
  std::set<uint64_t> live;
  std::map<BlockKey, uint64_t> number_of;
  Open(options);
  store_->SetDropListener([&](const std::vector<SsdEntry>& dropped) {
    for (const SsdEntry& entry : dropped) live.erase(number_of[entry.key]);
  });
  const auto put = [&](uint64_t n) {
    const auto stored = Put(n, options.segment_bytes - 1000);
    if (!stored) return false;
    number_of[stored->key] = n;
    live.insert(n);
    return true;
  };
  uint64_t n = 0;
  while (n < 20 && put(n)) ++n;
  EXPECT_EQ(n, 10u);
  EXPECT_THAT(store_->why(), HasSubstr("no space left"));
  for (int rounds = 0; rounds < 2; ++rounds) {
    clock_.Advance(6 * kSecond);
    for (uint64_t end = n + 30; n < end; ++n) EXPECT_TRUE(put(n)) << n;
    EXPECT_EQ(store_->stats().failed_writes, 1u + rounds) << "it knows how much there is";
    EXPECT_GE(live.size(), 9u);
    EXPECT_TRUE(live.contains(n - 1) && live.contains(n - 9)) << "the oldest went";
    // After a while it is tried whether there is more by now.
    clock_.Advance(600 * kSecond);
    if (rounds == 0) {
      EXPECT_FALSE(put(n++) && put(n++));
    }
  }
  disk_.most_segments = 20;
  clock_.Advance(600 * kSecond);
  for (uint64_t end = n + 30; n < end; ++n) (void)put(n);
  EXPECT_GE(live.size(), 18u);
}

TEST_F(SegmentStoreTest, ADiskWhoseReadsFailOneAfterAnotherIsLeftAloneForAWhile) {
  Open(SmallSegments());
  const auto entry = Put(1);
  ASSERT_TRUE(entry);
  disk_.fail_reads = true;
  std::vector<std::byte> bytes(entry->record_bytes);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(store_->available());
    std::optional<Status> read;
    ASSERT_TRUE(store_->Read(*entry, bytes, [&](Status status) { read = std::move(status); }));
    ASSERT_TRUE(PollUntil([&] { return read.has_value(); }));
    EXPECT_EQ(read->error().code, Code::kDataLoss);
  }
  EXPECT_FALSE(store_->available());
  EXPECT_THAT(store_->why(), HasSubstr("input/output error"));
  disk_.fail_reads = false;
  clock_.Advance(6 * kSecond);
  EXPECT_TRUE(store_->available());
}

TEST_F(SegmentStoreTest, TheScrubberReadsEverythingAtItsRateAndCountsWhatDoesNotVerify) {
  auto options = SmallSegments();
  options.scrub_bytes_per_second = 100'000;
  Open(options);
  for (uint64_t n = 0; n < 10; ++n) ASSERT_TRUE(Put(n));
  const uint64_t before = store_->stats().scrubbed_records;
  EXPECT_LE(before, 1u) << "no time has passed";
  const Nanos began = clock_.Now();
  for (int i = 0; i < 1000 && store_->stats().scrub_rounds < 1; ++i) {
    clock_.Advance(50 * kMillisecond);
    store_->Poll();
    usleep(2000);
  }
  EXPECT_GE(clock_.Now() - began, 1800 * kMillisecond)
      << "200,000 bytes at 100,000 a second, the first step at once";
  EXPECT_EQ(store_->stats().scrub_rounds, 1u);
  EXPECT_EQ(store_->stats().scrubbed_records, 10u);
  EXPECT_EQ(store_->stats().scrub_bad, 0u);
}

TEST_F(SegmentStoreTest, TheScrubberFindsAFlippedBitThatNobodyAskedFor) {
  auto options = SmallSegments();
  options.scrub_bytes_per_second = 1 << 30;
  Open(options);
  const auto entry = Put(1);
  ASSERT_TRUE(entry);
  FakeEngine(disk_).Corrupt(*entry, 12345);
  for (int i = 0; i < 100 && store_->stats().scrub_bad == 0; ++i) {
    clock_.Advance(kSecond);
    store_->Poll();
    usleep(2000);
  }
  EXPECT_GE(store_->stats().scrub_bad, 1u);
}

TEST_F(SegmentStoreTest, ASegmentThatNobodyAccountsForIsToldAndDroppedAgain) {
  Open(SmallSegments());
  ASSERT_TRUE(Put(1));
  const auto second = Put(2);
  ASSERT_TRUE(second);
  {
    MutexLock lock(disk_.mutex);
    disk_.segments[0] = {};  // As after a drop that the disk forgot.
  }
  clock_.Advance(61 * kSecond);
  ASSERT_TRUE(PollUntil([&] { return store_->stats().leaked_segments == 1; }));
  ASSERT_TRUE(PollUntil([&] {
    MutexLock lock(disk_.mutex);
    return disk_.dropped == std::vector<uint32_t>{0};
  }));
  std::vector<std::byte> bytes(second->record_bytes);
  std::optional<Status> read;
  ASSERT_TRUE(store_->Read(*second, bytes, [&](Status status) { read = std::move(status); }));
  ASSERT_TRUE(PollUntil([&] { return read.has_value(); }));
  EXPECT_TRUE(*read) << "and no other is";
}

TEST_F(SegmentStoreTest, WhatMakesRoomIsGoneBeforeWhatItMakesRoomForIsWritten) {
  auto options = SmallSegments();
  options.capacity_bytes = kMiB;
  Open(options);
  uint64_t n = 0;
  while (store_->stats().dropped_segments == 0) ASSERT_TRUE(Put(n++, 100'000));
  disk_.hang_drops = true;
  uint64_t stored = 0;
  const auto append = [&] {
    records_.push_back(RecordOf(n, 100'000));
    const Status taken = store_->Append(SsdEntryOf(n, records_.back().size()), records_.back(),
                                        [&](Result<SsdEntry> where) { stored += where ? 1 : 0; });
    if (!taken) records_.pop_back();
    n += taken ? 1 : 0;
    return taken.has_value();
  };
  const uint64_t before = n;
  while (n < 200 && append()) {
  }
  EXPECT_LT(n, 60u) << "what waits is bounded";
  for (int i = 0; i < 200; ++i) store_->Poll();
  {
    MutexLock lock(disk_.mutex);
    uint64_t bytes = 0;
    for (const auto& [number, records] : disk_.segments) {
      for (const auto& record : records) bytes += record.size();
    }
    EXPECT_LE(bytes, options.capacity_bytes) << "the disk is never asked to hold more";
  }
  disk_.hang_drops = false;
  store_->Flush([](Status) {});
  EXPECT_TRUE(PollUntil([&] { return stored == n - before; })) << stored << " of " << n - before;
  EXPECT_TRUE(append()) << "and it goes on";
}

TEST_F(SegmentStoreTest, ABurstIsTakenWholeThoughTheDropsThatMakeRoomForItWait) {
  auto options = SmallSegments();
  options.capacity_bytes = 8 * kMiB;  // A quarter of it may wait to be written.
  Open(options);
  uint64_t n = 0;
  while (store_->stats().dropped_segments == 0) ASSERT_TRUE(Put(n++, 100'000));
  disk_.hang_drops = true;
  // More is dropped for these than may wait to be dropped when no write follows.
  for (int i = 0; i < 20; ++i, ++n) {
    records_.push_back(RecordOf(n, 100'000));
    const Status taken = store_->Append(SsdEntryOf(n, records_.back().size()), records_.back(),
                                        [](Result<SsdEntry>) {});
    ASSERT_TRUE(taken) << i << ": " << taken.error().message;
  }
}

TEST_F(SegmentStoreTest,
       ASegmentIsWrittenAtThePaceThatTheNextOneFillsAndAtFullSpeedWhenTheyPileUp) {
  auto options = SmallSegments();
  options.segment_bytes = 100'000'000;  // One second of what comes below.
  options.max_queued_bytes = UINT64_MAX / 2;
  options.seal_after = kSecond;
  options.capacity_bytes = 1ull << 40;
  Open(options);
  // Arrives at 200 MB/s for a second: sealed by age, written at 1.3 of that.
  records_.push_back(RecordOf(1, 10'000'000));  // Which outlives the store.
  const std::vector<std::byte>& record = records_.back();
  for (uint64_t i = 0; i < 9; ++i) {
    ASSERT_TRUE(store_->Append(SsdEntryOf(i, record.size()), record, [](Result<SsdEntry>) {}));
    clock_.Advance(50 * kMillisecond);
  }
  ASSERT_TRUE(store_->Append(SsdEntryOf(9, record.size()), record, [](Result<SsdEntry>) {}));
  EXPECT_NEAR(static_cast<double>(disk_.pace.load()), 100e6 / 0.45 * 1.3, 10e6);
}

TEST(PacerTest, SpreadsWhatIsTakenAndSavesNothingUp) {
  Pacer pacer(100'000'000);
  const Nanos begin = Clock::Monotonic().Now();
  for (int i = 0; i < 10; ++i) pacer.Take(1'000'000);
  EXPECT_GE(Clock::Monotonic().Now() - begin, 89 * kMillisecond)
      << "the first is free, nine wait 10 ms each";
  pacer.SetRate(0);
  const Nanos unpaced = Clock::Monotonic().Now();
  for (int i = 0; i < 1000; ++i) pacer.Take(1'000'000);
  EXPECT_LE(Clock::Monotonic().Now() - unpaced, kSecond);
}

TEST(JoinedDisksTest, SpreadSegmentsOverAllAndServeOnWhatIsLeftWhenOneFails) {
  std::array<FakeEngine::Disk, 2> disks;
  SimClock clock;
  std::vector<std::unique_ptr<SsdStore>> stores;
  for (auto& disk : disks) {
    stores.push_back(MakeSegmentStore(std::make_unique<FakeEngine>(disk), SmallSegments(),
                                      SegmentStoreThreads(), clock, "fake"));
  }
  auto store = JoinDisks(std::move(stores), SmallSegments().segment_bytes);
  ASSERT_TRUE(store->Recover());
  std::map<uint64_t, SsdEntry> durable;
  std::deque<std::vector<std::byte>> records;
  const auto poll_until = [&](auto&& condition) {
    for (int i = 0; i < 20'000 && !condition(); ++i) {
      if (store->Poll() == 0) usleep(200);
    }
    return condition();
  };
  const auto put = [&](uint64_t n) {
    records.push_back(RecordOf(n, 100'000));
    return store->Append(SsdEntryOf(n, records.back().size()), records.back(),
                         [&durable, n](Result<SsdEntry> stored) {
                           if (stored) durable[n] = *stored;
                         });
  };
  for (uint64_t n = 0; n < 24; ++n) ASSERT_TRUE(put(n));
  store->Flush([](Status) {});
  ASSERT_TRUE(poll_until([&] { return durable.size() == 24; }));
  for (auto& disk : disks) {
    MutexLock lock(disk.mutex);
    EXPECT_GE(disk.segments.size(), 3u);
  }
  const auto read = [&](uint64_t n) {
    std::vector<std::byte> bytes(durable[n].record_bytes);
    std::optional<Status> result;
    const Status started =
        store->Read(durable[n], bytes, [&](Status status) { result = std::move(status); });
    if (!started) return false;
    EXPECT_TRUE(poll_until([&] { return result.has_value(); }));
    return result->has_value() && bytes == RecordOf(n, bytes.size());
  };
  for (uint64_t n = 0; n < 24; ++n) EXPECT_TRUE(read(n));
  // One disk fails: what lies on the other is served, and takes what is new.
  disks[0].fail_reads = true;
  for (uint64_t n = 0; n < 24; ++n) (void)read(n);
  EXPECT_TRUE(store->available());
  EXPECT_THAT(store->why(), HasSubstr("disk 0: "));
  int served = 0;
  for (uint64_t n = 0; n < 24; ++n) served += read(n) ? 1 : 0;
  EXPECT_GE(served, 9);
  for (uint64_t n = 100; n < 106; ++n) ASSERT_TRUE(put(n));
  store->Flush([](Status) {});
  ASSERT_TRUE(poll_until([&] { return durable.size() == 30; }));
  for (uint64_t n = 100; n < 106; ++n) EXPECT_TRUE(read(n));
  store->Shutdown(0);
}

TEST(JoinedDisksTest, FoldersMayBeNamedInAnotherOrderAtTheNextStart) {
  std::array<TempFolder, 2> folders;
  const auto open = [&](size_t first) {
    std::vector<std::unique_ptr<SsdStore>> disks;
    for (size_t i = 0; i < 2; ++i) {
      disks.push_back(
          OpenSlab(folders[(first + i) % 2].path(), SmallSegments(), Clock::Monotonic()));
    }
    return JoinDisks(std::move(disks), SmallSegments().segment_bytes);
  };
  std::deque<std::vector<std::byte>> records;
  {
    auto store = open(0);
    ASSERT_TRUE(store->Recover());
    for (uint64_t n = 0; n < 12; ++n) {
      records.push_back(RecordOf(n, 100'000));
      ASSERT_TRUE(store->Append(SsdEntryOf(n, records.back().size()), records.back(),
                                [](Result<SsdEntry>) {}));
    }
    store->Shutdown(10 * kSecond);
  }
  auto store = open(1);
  const auto entries = store->Recover();
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 12u);
  for (size_t i = 0; i < entries->size(); ++i) {
    const SsdEntry& entry = (*entries)[i];
    EXPECT_EQ(entry.generation, i + 1) << "oldest first";
    std::vector<std::byte> bytes(entry.record_bytes);
    std::optional<Status> result;
    ASSERT_TRUE(store->Read(entry, bytes, [&](Status status) { result = std::move(status); }));
    while (!result) {
      if (store->Poll() == 0) usleep(200);
    }
    ASSERT_TRUE(*result);
    EXPECT_EQ(bytes, RecordOf(entry.generation - 1, bytes.size()));
  }
  store->Shutdown(0);
}

}  // namespace
}  // namespace tiercel
