// A stack's RAM outlives it: PlanSnapshot and WriteSnapshot on one side, Adopt on the other.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

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

class RestartTest : public ::testing::Test {
 protected:
  struct LeftBehind {
    std::vector<std::byte> snapshot;
    std::vector<FileDescriptor> slabs;
  };

  void Open(uint64_t host = 8 * kMiB, bool with_ssd = false, uint64_t slab = 2 * kMiB) {
    stack_.reset();
    disk_.reset();
    TierStack::Options options;
    options.host.capacity_bytes = host;
    options.host.slab_bytes = slab;
    options.host.huge_pages = HostArena::HugePages::kOff;
    options.fault_injection = true;
    options.verify_record = VerifyTestRecord;
    std::unique_ptr<SsdStore> store;
    if (with_ssd) {
      SsdDisk::Options disk;
      disk.path = folder_.path();
      auto opened = SsdDisk::Open(disk);
      ASSERT_TRUE(opened) << opened.error().message;
      disk_ = std::move(*opened);
      SsdStore::Options store_options;
      store_options.segment_bytes = 512 * kKiB;
      store_options.seal_after = 10 * kMillisecond;
      store_options.verify_record = VerifyTestRecord;
      store = std::move(*disk_->OpenShard(0, store_options, Clock::Monotonic()));
    }
    auto stack = TierStack::Create(options, Clock::Monotonic(), std::move(store));
    ASSERT_TRUE(stack) << stack.error().message;
    stack_ = std::move(*stack);
  }
  void TearDown() override { Close(); }
  void Close() {
    if (stack_ != nullptr) stack_->Shutdown(5 * kSecond);
    stack_.reset();
    disk_.reset();
  }

  TierStack::PutInfo Info(uint64_t n, uint32_t name_space = kSpace) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.parent = KeyOf(n - 1);
    info.anchor = KeyOf(n / 32);
    info.name_space = name_space;
    return info;
  }
  Status Put(const TierStack::PutInfo& info, uint64_t n, size_t bytes = 50'000) {
    const auto record = RecordOf(n, bytes);
    auto reservation = stack_->Reserve(info, record.size());
    if (!reservation) return tl::unexpected<Error>(reservation.error());
    std::copy(record.begin(), record.end(), reservation->record().begin());
    return stack_->Publish(std::move(*reservation), record.size() * 2, nullptr);
  }
  Status Put(uint64_t n) { return Put(Info(n), n); }

  LeftBehind Leave() {
    const TierStack::Left plan = stack_->PlanSnapshot();
    LeftBehind left;
    left.snapshot.resize(plan.bytes);
    stack_->WriteSnapshot(plan, 0, 1, left.snapshot);
    for (const uint32_t slab : plan.slabs) {
      left.slabs.emplace_back(fcntl(stack_->arena().slab(slab).memfd, F_DUPFD_CLOEXEC, 0));
    }
    Close();
    return left;
  }
  Result<TierStack::Adopted> Adopt(LeftBehind left) {
    return stack_->Adopt(left.snapshot, 0, 1, std::move(left.slabs));
  }
  TierStack::Fetched Fetch(uint64_t n, uint32_t name_space = kSpace) {
    std::optional<TierStack::Fetched> got;
    stack_->Fetch(name_space, KeyOf(n), {},
                  [&](TierStack::Fetched fetched) { got = std::move(fetched); });
    const Nanos end = Clock::Monotonic().Now() + 10 * kSecond;
    while (!got && Clock::Monotonic().Now() < end) stack_->Poll();
    EXPECT_TRUE(got.has_value());
    return got ? std::move(*got) : TierStack::Fetched{};
  }

  TempFolder folder_;
  std::unique_ptr<SsdDisk> disk_;
  std::unique_ptr<TierStack> stack_;
};

TEST_F(RestartTest, EveryBlockIsServedByTheNextProcessByteForByte) {
  Open();
  for (uint64_t n = 1; n <= 100; ++n) ASSERT_TRUE(Put(n));
  ASSERT_TRUE(Put(Info(500, kOtherSpace), 500));
  const uint64_t used = stack_->stats().host_bytes;
  auto left = Leave();
  Open();
  const auto adopted = Adopt(std::move(left));
  ASSERT_TRUE(adopted) << adopted.error().message;
  EXPECT_EQ(adopted->blocks, 101u);
  EXPECT_EQ(adopted->left_out, 0u);
  EXPECT_EQ(stack_->stats().host_bytes, used);
  EXPECT_EQ(stack_->stats().adopted_verified, 0u) << "nothing is read before it is asked for";
  for (uint64_t n = 1; n <= 100; ++n) {
    const auto fetched = Fetch(n);
    ASSERT_TRUE(fetched.pin) << n;
    EXPECT_EQ(fetched.tier, Tier::kHost);
    EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
  }
  EXPECT_EQ(stack_->stats().adopted_verified, 100u);
  EXPECT_TRUE(Fetch(1).pin);
  EXPECT_EQ(stack_->stats().adopted_verified, 100u) << "once each";
  EXPECT_EQ(Fetch(500).reason, MissReason::kNeverSeen) << "another name space's";
  EXPECT_TRUE(Fetch(500, kOtherSpace).pin);
  const auto generation = Fetch(1).pin.generation();
  ASSERT_TRUE(Put(600));
  EXPECT_GT(Fetch(600).pin.generation(), generation) << "generations go on";
}

TEST_F(RestartTest, TheOldSlabsEmptyByEvictionOldestFirst) {
  Open(8 * kMiB);
  for (uint64_t n = 1; n <= 150; ++n) ASSERT_TRUE(Put(n));  // 7.8 MB: full.
  auto left = Leave();
  Open(8 * kMiB);
  ASSERT_TRUE(Adopt(std::move(left)));
  const uint64_t before = stack_->stats().host_blocks;
  ASSERT_TRUE(Put(1000)) << "an adopted slab makes way";
  const uint64_t after = stack_->stats().host_blocks;
  EXPECT_LE(before - after, 42u) << "one slab's blocks";
  EXPECT_FALSE(Fetch(1).pin) << "the oldest";
  EXPECT_TRUE(Fetch(150).pin);
  EXPECT_TRUE(Fetch(1000).pin);
  for (uint64_t n = 1001; n <= 1400; ++n) ASSERT_TRUE(Put(n));
  for (uint32_t slab = 0; slab < stack_->arena().slabs(); ++slab)
    EXPECT_FALSE(stack_->arena().adopted(slab));
  for (uint64_t n = 1380; n <= 1400; ++n) EXPECT_TRUE(VerifyTestRecord(Fetch(n).pin.record()));
}

TEST_F(RestartTest, APinnedBlockKeepsItsAdoptedSlab) {
  Open(4 * kMiB);
  for (uint64_t n = 1; n <= 70; ++n) ASSERT_TRUE(Put(n));
  auto left = Leave();
  Open(4 * kMiB);
  ASSERT_TRUE(Adopt(std::move(left)));
  auto held = Fetch(1);
  ASSERT_TRUE(held.pin);
  for (uint64_t n = 1000; n < 1200; ++n) ASSERT_TRUE(Put(n));
  EXPECT_TRUE(VerifyTestRecord(held.pin.record()));
  held.pin.Release();
  for (uint64_t n = 2000; n < 2100; ++n) ASSERT_TRUE(Put(n));
}

TEST_F(RestartTest, ABlockThatWentBadIsNeverServed) {
  Open();
  for (uint64_t n = 1; n <= 10; ++n) ASSERT_TRUE(Put(n));
  for (uint64_t n = 1; n <= 5; ++n)
    ASSERT_TRUE(stack_->CorruptForTest(KeyOf(n), 12345 * n, Tier::kHost));
  auto left = Leave();
  Open();
  ASSERT_TRUE(Adopt(std::move(left)));
  for (uint64_t n = 1; n <= 10; ++n) {
    const auto fetched = Fetch(n);
    EXPECT_EQ(static_cast<bool>(fetched.pin), n > 5) << n;
    if (n <= 5) {
      EXPECT_EQ(fetched.reason, MissReason::kCorrupt);
    }
  }
  EXPECT_EQ(stack_->stats().corrupt, 5u);
}

TEST_F(RestartTest, ASnapshotThatIsNoGoodAdoptsNothing) {
  Open();
  for (uint64_t n = 1; n <= 10; ++n) ASSERT_TRUE(Put(n));
  auto left = Leave();
  const auto slabs = [&] {
    std::vector<FileDescriptor> copies;
    for (const FileDescriptor& slab : left.slabs)
      copies.emplace_back(fcntl(slab.get(), F_DUPFD_CLOEXEC, 0));
    return copies;
  };
  Open();
  const auto refused = [&](const Result<TierStack::Adopted>& adopted, Code code) {
    ASSERT_FALSE(adopted);
    EXPECT_EQ(adopted.error().code, code) << adopted.error().message;
    EXPECT_EQ(stack_->stats().blocks, 0u);
    EXPECT_EQ(stack_->stats().host_bytes, 0u);
  };
  auto damaged = left.snapshot;
  damaged[100] ^= std::byte{1};
  refused(stack_->Adopt(damaged, 0, 1, slabs()), Code::kDataLoss);
  refused(stack_->Adopt(left.snapshot, 1, 2, slabs()), Code::kFailedPrecondition);
  refused(stack_->Adopt(left.snapshot, 0, 1, {}), Code::kDataLoss);
  // Something else than a sealed slab.
  std::vector<FileDescriptor> other;
  other.emplace_back(memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(other[0].get(), 2 * kMiB), 0);
  refused(stack_->Adopt(left.snapshot, 0, 1, std::move(other)), Code::kInvalidArgument);
  EXPECT_TRUE(stack_->Adopt(left.snapshot, 0, 1, slabs())) << "and the good one after all that";
  Open(8 * kMiB, false, 4 * kMiB);
  refused(stack_->Adopt(left.snapshot, 0, 1, slabs()), Code::kFailedPrecondition);
}

TEST_F(RestartTest, LessRamThanBeforeTakesWhatFits) {
  Open(8 * kMiB);
  for (uint64_t n = 1; n <= 150; ++n) ASSERT_TRUE(Put(n));
  auto left = Leave();
  Open(4 * kMiB);
  const auto adopted = Adopt(std::move(left));
  ASSERT_TRUE(adopted) << adopted.error().message;
  EXPECT_GT(adopted->blocks, 50u);
  EXPECT_GT(adopted->left_out, 50u);
  uint64_t served = 0;
  for (uint64_t n = 1; n <= 150; ++n) {
    const auto fetched = Fetch(n);
    if (fetched.pin) {
      EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
    }
    served += fetched.pin ? 1 : 0;
  }
  EXPECT_EQ(served, adopted->blocks);
}

TEST_F(RestartTest, WhatIsOnSsdKeepsItsPlaceThere) {
  Open(8 * kMiB, true);
  for (uint64_t n = 1; n <= 60; ++n) ASSERT_TRUE(Put(n));
  bool flushed = false;
  stack_->Flush([&](Status) { flushed = true; });
  while (!flushed) stack_->Poll();
  ASSERT_TRUE(Put(61));  // In RAM alone.
  ASSERT_TRUE(stack_->CorruptForTest(KeyOf(7), 999, Tier::kHost));
  auto left = Leave();
  Open(8 * kMiB, true);
  const auto adopted = Adopt(std::move(left));
  ASSERT_TRUE(adopted) << adopted.error().message;
  EXPECT_EQ(adopted->blocks, 61u);
  EXPECT_EQ(stack_->stats().blocks, 61u) << "one record each";
  for (uint64_t n = 1; n <= 61; ++n) {
    const auto fetched = Fetch(n);
    ASSERT_TRUE(fetched.pin) << n;
    // Bad in RAM, good on SSD: served from there.
    EXPECT_EQ(fetched.tier, n == 7 ? Tier::kSsd : Tier::kHost) << n;
    EXPECT_TRUE(VerifyTestRecord(fetched.pin.record())) << n;
  }
  for (uint64_t n = 1; n <= 60; ++n)
    EXPECT_TRUE(stack_->Describe(kSpace, KeyOf(n))[0].entry.where) << n;
}

}  // namespace
}  // namespace tiercel
