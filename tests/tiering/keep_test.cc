// What stays because it was asked for, and what goes because it is too old.
#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/snapshot.h"
#include "tiering/ssd_rocksdb.h"
#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

constexpr uint32_t kSpace = 3;
constexpr uint32_t kOtherSpace = 4;
constexpr size_t kBytes = 50'000;

class MovedClock final : public Clock {  // The machine's, and as much later as it is told.
 public:
  Nanos Now() const override { return Clock::Monotonic().Now() + later_; }
  uint32_t UnixSeconds() const override { return 1'800'000'000 + static_cast<uint32_t>(later_ / kSecond); }
  void Advance(Nanos by) { later_ += by; }

 private:
  Nanos later_ = 0;
};

class KeepTest : public ::testing::Test {
 protected:
  void Open(bool with_ssd) {
    Close();
    TierStack::Options options;
    options.host.capacity_bytes = 4 * kMiB;
    options.host.slab_bytes = 2 * kMiB;
    options.verify_record = VerifyTestRecord;
    if (ttl_ > 0) options.time_to_live = [this](uint32_t name_space) { return name_space == kSpace ? ttl_ : 0; };
    if (keep_limit_ > 0) options.keep_limit = [this](uint32_t) { return keep_limit_; };
    if (!quotas_.empty()) options.host_quota = [this](uint32_t name_space) { return quotas_[name_space]; };
    std::unique_ptr<SsdStore> store;
    if (with_ssd) {
      SsdDisk::Options disk;
      disk.path = folder_.path();
      disk_ = std::move(*SsdDisk::Open(disk));
      SsdStore::Options store_options;
      store_options.segment_bytes = 512 * kKiB;
      store_options.capacity_bytes = 64 * kMiB;
      store_options.seal_after = 10 * kMillisecond;
      store_options.verify_record = VerifyTestRecord;
      store = std::move(*disk_->OpenShard(0, store_options, Clock::Monotonic()));
    }
    stack_ = std::move(*TierStack::Create(options, clock_, std::move(store)));
  }
  void Close() {
    if (stack_ != nullptr) stack_->Shutdown(5 * kSecond);
    stack_.reset();
    disk_.reset();
  }
  void TearDown() override { Close(); }

  Status Put(uint64_t n, uint32_t name_space = kSpace, QualityClass quality = QualityClass::kExact) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.name_space = name_space;
    info.quality = quality;
    const auto record = RecordOf(n, kBytes);
    auto reservation = stack_->Reserve(info, record.size());
    if (!reservation) return tl::unexpected<Error>(reservation.error());
    std::copy(record.begin(), record.end(), reservation->record().begin());
    return stack_->Publish(std::move(*reservation), record.size() * 2, nullptr);
  }
  Status Keep(uint64_t n, Nanos time, uint32_t name_space = kSpace) {
    return stack_->Keep(name_space, KeyOf(n), QualityClass::kExact, Prefer::kGood, time);
  }
  MatchEntry Look(uint64_t n) const { return stack_->Lookup(kSpace, KeyOf(n), QualityClass::kExact, Prefer::kGood); }
  MissReason Fetch(uint64_t n) {
    std::optional<MissReason> reason;
    stack_->Fetch(kSpace, KeyOf(n), {}, [&](TierStack::Fetched fetched) { reason = fetched.reason; });
    while (!reason) stack_->Poll();
    return *reason;
  }
  void Flood(uint64_t from, uint64_t n = 200, uint32_t name_space = kSpace) {
    for (uint64_t i = 0; i < n; ++i) ASSERT_TRUE(Put(from + i, name_space)) << i;
  }
  void WaitForDisk() {
    bool done = false;
    stack_->Flush([&](Status) { done = true; });
    while (!done) stack_->Poll();
  }

  MovedClock clock_;
  TempFolder folder_;
  uint32_t ttl_ = 0;
  uint64_t keep_limit_ = 0;
  std::map<uint32_t, TierStack::HostQuota> quotas_;
  std::unique_ptr<SsdDisk> disk_;
  std::unique_ptr<TierStack> stack_;
};

TEST_F(KeepTest, WhatIsKeptOutlivesAFloodAndTheRestDoesNot) {
  Open(/*with_ssd=*/false);
  for (uint64_t n = 1; n <= 4; ++n) ASSERT_TRUE(Put(n));
  ASSERT_TRUE(Keep(1, 60 * kSecond));
  ASSERT_TRUE(Keep(2, 60 * kSecond));
  Flood(1000);
  EXPECT_EQ(Fetch(1), MissReason::kNone);
  EXPECT_EQ(Fetch(2), MissReason::kNone);
  EXPECT_EQ(Fetch(3), MissReason::kEvicted);
  EXPECT_EQ(stack_->stats().kept, 2u);
  EXPECT_GE(stack_->stats().kept_bytes, 2 * kBytes);
}

TEST_F(KeepTest, ItEndsAtTheLaterTimeOrWhenToldTo) {
  Open(/*with_ssd=*/false);
  ASSERT_TRUE(Put(1));
  ASSERT_TRUE(Put(2));
  ASSERT_TRUE(Keep(1, 60 * kSecond));
  ASSERT_TRUE(Keep(1, 10 * kSecond));  // Earlier: nothing changes.
  ASSERT_TRUE(Keep(2, 60 * kSecond));
  ASSERT_TRUE(Keep(2, 0));
  EXPECT_EQ(stack_->stats().kept, 1u);
  clock_.Advance(30 * kSecond);
  stack_->Poll();
  EXPECT_EQ(stack_->stats().kept, 1u);
  clock_.Advance(31 * kSecond);
  stack_->Poll();
  EXPECT_EQ(stack_->stats().kept, 0u);
  EXPECT_EQ(stack_->stats().kept_bytes, 0u);
  EXPECT_EQ(stack_->stats().pinned, 0u);
  Flood(1000);
  EXPECT_EQ(Fetch(1), MissReason::kEvicted);
}

TEST_F(KeepTest, NoMoreThanTheLimitAndNothingThatIsNotHere) {
  keep_limit_ = 2 * kBytes + 1000;
  Open(/*with_ssd=*/false);
  for (uint64_t n = 1; n <= 3; ++n) ASSERT_TRUE(Put(n));
  ASSERT_TRUE(Keep(1, 60 * kSecond));
  ASSERT_TRUE(Keep(2, 60 * kSecond));
  EXPECT_EQ(Keep(3, 60 * kSecond).error().code, Code::kResourceExhausted);
  EXPECT_EQ(Keep(9, 60 * kSecond).error().code, Code::kNotFound);
  EXPECT_EQ(Keep(1, 60 * kSecond, kOtherSpace).error().code, Code::kNotFound);
  EXPECT_EQ(stack_->stats().kept_refused, 1u);
  ASSERT_TRUE(Keep(1, 0));
  EXPECT_TRUE(Keep(3, 60 * kSecond));
}

TEST_F(KeepTest, WhatIsOnSsdAloneIsReadAndKept) {
  Open(/*with_ssd=*/true);
  ASSERT_TRUE(Put(1));
  WaitForDisk();
  Flood(1000, 100);
  WaitForDisk();
  ASSERT_EQ(Look(1).tier, Tier::kSsd);
  ASSERT_TRUE(Keep(1, 60 * kSecond));
  ASSERT_TRUE(Keep(1, 90 * kSecond));  // While the first is being read.
  while (stack_->stats().kept == 0) stack_->Poll();
  EXPECT_EQ(stack_->stats().kept_bytes, RecordOf(1, kBytes).size()) << "counted once";
  for (uint64_t i = 0; i < 150; ++i) {
    (void)Put(5000 + i);
    stack_->Poll();
  }
  EXPECT_EQ(Look(1).tier, Tier::kHost);
  stack_->MarkCorrupt(KeyOf(1));
  EXPECT_EQ(stack_->stats().kept, 0u);
}

TEST_F(KeepTest, ABetterRecordTakesTheKeptOnesPlaceAndClearTakesBoth) {
  Open(/*with_ssd=*/false);
  ASSERT_TRUE(Put(1, kSpace, QualityClass::kBalanced));
  ASSERT_TRUE(stack_->Keep(kSpace, KeyOf(1), QualityClass::kSmall, Prefer::kGood, 60 * kSecond));
  ASSERT_TRUE(Put(1, kSpace, QualityClass::kHigh));  // Forgets the worse one.
  EXPECT_EQ(stack_->stats().kept, 0u);
  ASSERT_TRUE(stack_->Keep(kSpace, KeyOf(1), QualityClass::kSmall, Prefer::kGood, 60 * kSecond));
  ASSERT_EQ(*stack_->Clear(kSpace, {}), 1u);
  EXPECT_EQ(stack_->stats().kept, 0u);
  EXPECT_EQ(stack_->stats().pinned, 0u);
  EXPECT_EQ(stack_->stats().host_bytes, 0u);
}

TEST_F(KeepTest, AnotherNameSpacesReserveComesFirst) {
  quotas_[kOtherSpace] = {2 * kMiB, UINT64_MAX};
  Open(/*with_ssd=*/false);
  Flood(1, 80);  // Both slabs.
  uint64_t first = 0, kept = 0;
  for (uint64_t n = 1; n <= 80; ++n) {
    if (Look(n).tier == Tier::kNone || kept >= 8) continue;
    if (first == 0) first = n;
    if (n % 9 == first % 9 && Keep(n, 60 * kSecond)) ++kept;  // Some in each slab.
  }
  ASSERT_GE(kept, 4u);
  EXPECT_TRUE(Put(7000, kOtherSpace));
  EXPECT_LT(stack_->stats().kept, kept);
}

TEST_F(KeepTest, TheStackEndsWhileBlocksAreKeptAndOnTheirWay) {
  Open(/*with_ssd=*/true);
  for (uint64_t n = 1; n <= 3; ++n) ASSERT_TRUE(Put(n));
  WaitForDisk();
  Flood(1000, 100);
  WaitForDisk();
  ASSERT_TRUE(Keep(1099, 60 * kSecond));  // The newest is in RAM.
  ASSERT_TRUE(Keep(1, 60 * kSecond));
  ASSERT_TRUE(Keep(2, 60 * kSecond));
  Close();  // Checks that no pin is left.
}

// ---- time to live --------------------------------------------------------------------------------

TEST_F(KeepTest, AnOldBlockIsNotServedAndIsStoredAnew) {
  ttl_ = 100;
  Open(/*with_ssd=*/false);
  ASSERT_TRUE(Put(1));
  ASSERT_TRUE(Put(2, kOtherSpace));
  ASSERT_TRUE(Keep(1, 3600 * kSecond));
  clock_.Advance(99 * kSecond);
  EXPECT_EQ(Look(1).tier, Tier::kHost);
  EXPECT_EQ(Put(1).error().code, Code::kAlreadyExists);
  clock_.Advance(1 * kSecond);
  EXPECT_EQ(Look(1).tier, Tier::kNone);
  EXPECT_EQ(Look(1).reason, MissReason::kExpired);
  EXPECT_EQ(Fetch(1), MissReason::kExpired);
  EXPECT_EQ(Keep(1, kSecond).error().code, Code::kNotFound);
  EXPECT_EQ(stack_->Lookup(kOtherSpace, KeyOf(2), QualityClass::kExact, Prefer::kGood).tier, Tier::kHost);
  ASSERT_TRUE(Put(1));
  EXPECT_EQ(Look(1).tier, Tier::kHost) << "its time begins again";
  clock_.Advance(99 * kSecond);
  EXPECT_EQ(Fetch(1), MissReason::kNone);
}

TEST_F(KeepTest, MemoryOfOldBlocksIsTakenBack) {
  ttl_ = 100;
  Open(/*with_ssd=*/false);
  for (uint64_t n = 1; n <= 20; ++n) ASSERT_TRUE(Put(n));
  ASSERT_TRUE(Keep(3, 3600 * kSecond));
  ASSERT_TRUE(Put(100, kOtherSpace));
  clock_.Advance(200 * kSecond);
  stack_->Poll();
  EXPECT_EQ(stack_->stats().blocks, 1u);
  EXPECT_EQ(stack_->stats().expired, 20u);
  EXPECT_EQ(stack_->stats().kept, 0u);
  EXPECT_EQ(Look(7).reason, MissReason::kExpired) << "remembered";
}

TEST_F(KeepTest, TimesOutliveTheProcessOnSsd) {
  ttl_ = 3600;
  Open(/*with_ssd=*/true);
  ASSERT_TRUE(Put(1));
  WaitForDisk();
  clock_.Advance(1800 * kSecond);
  ASSERT_TRUE(Put(2));
  WaitForDisk();
  Open(/*with_ssd=*/true);
  EXPECT_EQ(Look(1).tier, Tier::kSsd);
  clock_.Advance(1800 * kSecond);
  EXPECT_EQ(Look(1).reason, MissReason::kExpired);
  EXPECT_EQ(Look(2).tier, Tier::kSsd);
  EXPECT_EQ(Fetch(2), MissReason::kNone) << "and it keeps its time in RAM";
  clock_.Advance(1735 * kSecond);
  EXPECT_EQ(Look(2).tier, Tier::kHost);
  clock_.Advance(65 * kSecond);
  EXPECT_EQ(Look(2).reason, MissReason::kExpired);
}

TEST_F(KeepTest, OnSsdAMinuteMayBeLostAndNoneIsGained) {
  ttl_ = 3600;
  Open(/*with_ssd=*/true);
  clock_.Advance(59 * kSecond);  // 1.8e9 is a whole minute.
  ASSERT_TRUE(Put(1));
  WaitForDisk();
  Open(/*with_ssd=*/true);
  clock_.Advance(3540 * kSecond);
  EXPECT_EQ(Look(1).tier, Tier::kSsd);
  clock_.Advance(1 * kSecond);
  EXPECT_EQ(Look(1).reason, MissReason::kExpired);
}

TEST_F(KeepTest, TimesTravelInASnapshot) {
  SsdEntry entry;
  entry.key = KeyOf(1);
  entry.record_bytes = 4096;
  entry.generation = 5;
  entry.stored = 1'800'000'123;
  std::vector<std::byte> bytes(SnapshotBytes(1, 1));
  SnapshotWriter writer(bytes, {0, 1, 2 * kMiB, 1, 10}, std::vector<uint32_t>{kSpace});
  entry.name_space = kSpace;
  writer.Add({entry, {}, 0});
  writer.Finish();
  auto reader = SnapshotReader::Open(bytes);
  ASSERT_TRUE(reader);
  const auto record = reader->Next();
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_EQ(record->entry.stored, 1'800'000'123u);
}

}  // namespace
}  // namespace tiercel
