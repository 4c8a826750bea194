// What tiering/ssd_store.h promises, as tests that every store must pass. A test file makes an
// SsdStoreRig for its store and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(Rocksdb, SsdStoreConformance, ::testing::Values(SsdStoreCase{...}));
#ifndef TIERCEL_TESTS_CONFORMANCE_SSD_STORE_CONFORMANCE_H_
#define TIERCEL_TESTS_CONFORMANCE_SSD_STORE_CONFORMANCE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "tests/tiering/records.h"
#include "tiering/ssd_store.h"

namespace tiercel {

// One disk, opened again and again.
class SsdStoreRig {
 public:
  virtual ~SsdStoreRig() = default;
  // The store that was opened before is gone by now.
  virtual std::unique_ptr<SsdStore> Open(const SsdStore::Options& options) = 0;
  virtual const Clock& clock() const = 0;
  virtual void Pass(Nanos time) = 0;  // Lets about so much time go by.
};

struct SsdStoreCase {
  std::string name;
  std::function<std::unique_ptr<SsdStoreRig>()> make;
  friend void PrintTo(const SsdStoreCase& which, std::ostream* out) { *out << which.name; }
};

inline SsdEntry SsdEntryOf(uint64_t n, size_t bytes) {
  SsdEntry entry;
  entry.key = KeyOf(n);
  entry.parent = KeyOf(n + 1'000'000);
  entry.anchor = KeyOf(n / 32);
  entry.scope.bytes[0] = static_cast<std::byte>(n % 2 + 1);
  entry.name_space = 3;
  entry.chain_index = static_cast<uint32_t>(n % 32);
  entry.generation = n + 1;
  entry.record_bytes = static_cast<uint32_t>(bytes);
  entry.raw_bytes = bytes * 2;
  entry.quality = n % 5 == 0 ? QualityClass::kNear : QualityClass::kExact;
  return entry;
}

class SsdStoreConformance : public ::testing::TestWithParam<SsdStoreCase> {
 protected:
  static SsdStore::Options SmallSegments() {
    SsdStore::Options options;
    options.segment_bytes = 256 * kKiB;
    options.capacity_bytes = 64 * kMiB;
    options.seal_after = 20 * kMillisecond;
    options.verify_record = VerifyTestRecord;
    return options;
  }
  void SetUp() override { rig_ = GetParam().make(); }
  void TearDown() override { Close(); }
  void Open(const SsdStore::Options& options = SmallSegments()) {
    Close();
    store_ = rig_->Open(options);
    ASSERT_NE(store_, nullptr);
    auto recovered = store_->Recover();
    ASSERT_TRUE(recovered) << recovered.error().message;
    recovered_ = std::move(*recovered);
  }
  void Close() {
    if (store_ != nullptr) store_->Shutdown(5 * kSecond);
    store_.reset();
  }
  template <class Condition>
  bool PollUntil(Condition&& condition) {
    const Nanos end = rig_->clock().Now() + 20 * kSecond;
    while (!condition()) {
      if (rig_->clock().Now() > end) return false;
      if (store_->Poll() == 0) rig_->Pass(200 * kMicrosecond);
    }
    return true;
  }
  Status Read(const SsdEntry& entry, std::vector<std::byte>& out) {
    out.assign(entry.record_bytes, std::byte{0});
    std::optional<Status> result;
    const Status started =
        store_->Read(entry, out, [&](Status status) { result = std::move(status); });
    if (!started) return started;
    EXPECT_FALSE(result.has_value()) << "done must not run inside Read";
    if (!PollUntil([&] { return result.has_value(); })) {
      return Fail(Code::kDeadlineExceeded, "no answer");
    }
    return *result;
  }
  // Appends n records of about this size and waits until all are durable.
  std::map<uint64_t, SsdEntry> Fill(uint64_t first, uint64_t n, size_t bytes = 20'000) {
    std::map<uint64_t, SsdEntry> durable;
    std::vector<std::vector<std::byte>> records;
    records.reserve(n);
    uint64_t answered = 0;
    for (uint64_t i = first; i < first + n; ++i) {
      records.push_back(RecordOf(i, bytes + i % 7 * 8));
      const SsdEntry entry = SsdEntryOf(i, records.back().size());
      EXPECT_TRUE(store_->Append(entry, records.back(), [&, i, entry](Result<SsdEntry> where) {
        ++answered;
        ASSERT_TRUE(where) << where.error().message;
        durable[i] = entry;
        durable[i] = *where;
      }));
    }
    EXPECT_EQ(answered, 0u) << "done must not run inside Append";
    EXPECT_TRUE(PollUntil([&] { return answered == n; }));
    return durable;
  }

  std::unique_ptr<SsdStoreRig> rig_;
  std::unique_ptr<SsdStore> store_;
  std::vector<SsdEntry> recovered_;
};

TEST_P(SsdStoreConformance, ServesAfterARestartWhatItSaidWasDurableWithAllThatIsKnownOfIt) {
  Open();
  const auto durable = Fill(0, 100);
  Open();
  EXPECT_EQ(recovered_.size(), 100u);
  EXPECT_EQ(store_->last_generation(), 100u);
  for (const SsdEntry& entry : recovered_) {
    const uint64_t n = entry.generation - 1;
    const SsdEntry expected = durable.at(n);
    EXPECT_EQ(entry.key, expected.key);
    EXPECT_EQ(entry.parent, expected.parent);
    EXPECT_EQ(entry.anchor, expected.anchor);
    EXPECT_EQ(entry.scope, expected.scope);
    EXPECT_EQ(entry.name_space, expected.name_space);
    EXPECT_EQ(entry.chain_index, expected.chain_index);
    EXPECT_EQ(entry.raw_bytes, expected.raw_bytes);
    EXPECT_EQ(entry.quality, expected.quality);
    EXPECT_EQ(entry.where, expected.where);
    std::vector<std::byte> bytes;
    ASSERT_TRUE(Read(entry, bytes));
    EXPECT_EQ(bytes, RecordOf(n, bytes.size()));
  }
}

TEST_P(SsdStoreConformance, AWrongKeyNeverGetsAnothersBytes) {
  Open();
  auto durable = Fill(0, 4);
  SsdEntry forged = durable[1];
  forged.key = durable[2].key;
  std::vector<std::byte> bytes;
  const Status status = Read(forged, bytes);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kNotFound);
}

TEST_P(SsdStoreConformance, SealsAnOpenSegmentWhenItIsOldEvenIfItIsNotFull) {
  Open();
  const auto record = RecordOf(1, 8'000);
  const Nanos before = rig_->clock().Now();
  std::optional<Nanos> durable;
  ASSERT_TRUE(store_->Append(SsdEntryOf(1, record.size()), record, [&](Result<SsdEntry> where) {
    ASSERT_TRUE(where);
    durable = rig_->clock().Now();
  }));
  EXPECT_LE(store_->next_wakeup(), before + 21 * kMillisecond) << "someone must wake it";
  ASSERT_TRUE(PollUntil([&] { return durable.has_value(); }));
  EXPECT_GE(*durable - before, 20 * kMillisecond);
}

TEST_P(SsdStoreConformance, AFlushIsDoneWhenEverythingBeforeItIsDurable) {
  auto options = SmallSegments();
  options.seal_after = 1000 * kSecond;
  Open(options);
  std::vector<std::vector<std::byte>> records;
  uint64_t durable = 0;
  for (uint64_t i = 0; i < 20; ++i) records.push_back(RecordOf(i, 30'000));
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(store_->Append(SsdEntryOf(i, records[i].size()), records[i],
                               [&](Result<SsdEntry> where) { durable += where ? 1u : 0u; }));
  }
  std::optional<Status> flushed;
  store_->Flush([&](Status status) { flushed = std::move(status); });
  EXPECT_FALSE(flushed.has_value()) << "done must not run inside Flush";
  ASSERT_TRUE(PollUntil([&] { return flushed.has_value(); }));
  EXPECT_TRUE(*flushed);
  EXPECT_EQ(durable, 20u);
  EXPECT_EQ(store_->stats().queued_bytes, 0u);
}

TEST_P(SsdStoreConformance, DropsTheLeastRecentlyReadSegmentWholeAndStaysWithinItsCapacity) {
  auto options = SmallSegments();
  options.capacity_bytes = 2 * kMiB;
  Open(options);
  std::map<BlockKey, SsdEntry> gone;
  store_->SetDropListener([&](const std::vector<SsdEntry>& dropped) {
    for (const SsdEntry& entry : dropped) gone[entry.key] = entry;
  });
  std::map<uint64_t, SsdEntry> live;
  std::vector<std::byte> bytes;
  for (uint64_t round = 0; round < 20; ++round) {
    for (auto& [n, entry] : Fill(round * 13, 13)) live[n] = entry;
    EXPECT_TRUE(Read(live[0], bytes)) << "the segment that is read stays";
    EXPECT_LE(store_->stats().used_bytes, options.capacity_bytes);
  }
  EXPECT_GT(gone.size(), 100u);
  EXPECT_FALSE(gone.contains(KeyOf(0)));
  ASSERT_TRUE(gone.contains(KeyOf(20)));
  EXPECT_EQ(Read(live[20], bytes).error().code, Code::kNotFound);
  // What was not said to be gone is there.
  for (auto& [n, entry] : live) {
    if (gone.contains(entry.key)) continue;
    ASSERT_TRUE(Read(entry, bytes)) << n;
    EXPECT_EQ(bytes, RecordOf(n, bytes.size()));
  }
  // Nothing leaks: the disk holds what is accounted, once the drops are done.
  EXPECT_TRUE(
      PollUntil([&] { return store_->stats().disk_bytes < options.capacity_bytes * 115 / 100; }));
  const size_t still = live.size() - gone.size();
  Open(options);
  EXPECT_EQ(recovered_.size(), still);
}

TEST_P(SsdStoreConformance, WhatWasClearedStaysClearedAcrossARestartAndTheRestStays) {
  Open();
  Fill(0, 20);
  Scope one;
  one.bytes[0] = std::byte{1};
  ASSERT_TRUE(store_->Clear(3, one, 10));
  ASSERT_TRUE(store_->Clear(3, Scope{}, 5));
  ASSERT_TRUE(store_->Clear(4, Scope{}, 500));
  Open();
  EXPECT_GE(store_->last_generation(), 500u) << "generations that a clear covers are spent";
  EXPECT_EQ(recovered_.size(), 13u);
  for (const SsdEntry& entry : recovered_) {
    EXPECT_GT(entry.generation, entry.scope == one ? 10u : 5u);
  }
}

TEST_P(SsdStoreConformance, VerifyReadsEverythingAndFindsJustWhatIsWrong) {
  Open();
  const auto durable = Fill(0, 50);
  const auto verify = [&] {
    std::optional<SsdStore::VerifyReport> report;
    store_->Verify([&](Result<SsdStore::VerifyReport> result) { report = *result; });
    std::optional<Code> second;
    store_->Verify([&](Result<SsdStore::VerifyReport> result) { second = result.error().code; });
    EXPECT_TRUE(PollUntil([&] { return report.has_value() && second.has_value(); }));
    EXPECT_EQ(second, Code::kResourceExhausted);
    return *report;
  };
  auto report = verify();
  EXPECT_EQ(report.records, 50u);
  EXPECT_GE(report.bytes, 50u * 20'000);
  EXPECT_EQ(report.bad, 0u);
  for (const uint64_t n : {3u, 17u, 31u})
    ASSERT_TRUE(store_->CorruptForTest(durable.at(n), 8 * 999 + n));
  report = verify();
  EXPECT_EQ(report.records, 50u);
  EXPECT_EQ(report.bad, 3u);
  EXPECT_EQ(report.findings.size(), 3u);
}

TEST_P(SsdStoreConformance, AFlippedBitIsDataLossAndCostsOneRecordOnly) {
  Open();
  const auto durable = Fill(0, 60);
  SplitMix64 random(7);
  std::vector<std::byte> bytes;
  for (int flip = 0; flip < 40; ++flip) {
    const uint64_t n = random.Below(60);
    const SsdEntry entry = durable.at(n);
    const uint64_t bit = random.Below(uint64_t{entry.record_bytes} * 8);
    ASSERT_TRUE(store_->CorruptForTest(entry, bit));
    const Status wrong = Read(entry, bytes);
    ASSERT_FALSE(wrong) << "bit " << bit << " of record " << n;
    EXPECT_EQ(wrong.error().code, Code::kDataLoss);
    ASSERT_TRUE(store_->CorruptForTest(entry, bit)) << "and back";
    ASSERT_TRUE(Read(entry, bytes));
    EXPECT_EQ(bytes, RecordOf(n, bytes.size()));
  }
  EXPECT_EQ(store_->stats().corrupt_reads, 40u);
}

TEST_P(SsdStoreConformance, TooMuchToWriteOrReadIsRefusedNotQueued) {
  auto options = SmallSegments();
  options.max_queued_bytes = 100'000;
  options.max_queued_reads = 2;
  Open(options);
  const auto record = RecordOf(1, 60'000);
  std::optional<SsdLocation> where;
  ASSERT_TRUE(store_->Append(SsdEntryOf(1, record.size()), record,
                             [&](Result<SsdEntry> at) { where = at->where; }));
  const Status refused =
      store_->Append(SsdEntryOf(2, record.size()), record, [](Result<SsdEntry>) { FAIL(); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  ASSERT_TRUE(PollUntil([&] { return where.has_value(); }));
  SsdEntry entry = SsdEntryOf(1, record.size());
  entry.where = *where;
  std::vector<std::vector<std::byte>> buffers(3, std::vector<std::byte>(record.size()));
  int answers = 0;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(store_->Read(entry, buffers[static_cast<size_t>(i)], [&](Status status) {
      EXPECT_TRUE(status);
      ++answers;
    }));
  }
  const Status busy = store_->Read(entry, buffers[2], [](Status) { FAIL(); });
  ASSERT_FALSE(busy);
  EXPECT_EQ(busy.error().code, Code::kResourceExhausted);
  EXPECT_TRUE(PollUntil([&] { return answers == 2; }));
}

TEST_P(SsdStoreConformance, ShutdownAnswersEverythingThatWaits) {
  auto options = SmallSegments();
  options.seal_after = 1000 * kSecond;
  Open(options);
  std::vector<std::vector<std::byte>> records;
  int answers = 0;
  for (uint64_t i = 0; i < 40; ++i) records.push_back(RecordOf(i, 30'000));
  for (uint64_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(store_->Append(SsdEntryOf(i, records[i].size()), records[i],
                               [&](Result<SsdEntry>) { ++answers; }));
  }
  store_->Flush([&](Status) { ++answers; });
  store_->Shutdown(0);
  EXPECT_EQ(answers, 41);
  const Status late =
      store_->Append(SsdEntryOf(99, 30'000), records[0], [](Result<SsdEntry>) { FAIL(); });
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Code::kUnavailable);
}

TEST_P(SsdStoreConformance, ShutdownWithTimeWritesWhatWaits) {
  auto options = SmallSegments();
  options.seal_after = 1000 * kSecond;
  Open(options);
  const auto record = RecordOf(5, 30'000);
  ASSERT_TRUE(store_->Append(SsdEntryOf(5, record.size()), record, [](Result<SsdEntry>) {}));
  Open(options);
  ASSERT_EQ(recovered_.size(), 1u);
  EXPECT_EQ(recovered_[0].key, KeyOf(5));
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_CONFORMANCE_SSD_STORE_CONFORMANCE_H_
