// The device tier over CPU memory; the same suite holds CUDA's, where there is a device.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "tests/conformance/device_memory_conformance.h"
#include "tests/tiering/records.h"
#include "tiering/device_tier.h"
#include "tiering/tier_stack.h"

namespace tiercel {

struct OnCpu {
  static Result<std::unique_ptr<DeviceMemory>> Make(const DeviceMemory::Options& options) {
    return MakeCpuDeviceMemory(options);
  }
};
struct OnCuda {
  static Result<std::unique_ptr<DeviceMemory>> Make(const DeviceMemory::Options& options) {
    return MakeCudaDeviceMemory(options);
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, DeviceMemoryConformance, OnCpu);
INSTANTIATE_TYPED_TEST_SUITE_P(Cuda, DeviceMemoryConformance, OnCuda);

namespace {

constexpr uint32_t kSpace = 3;

// Fails when told to, and counts how many lanes flew at once.
class WatchedMemory final : public DeviceMemory {
 public:
  explicit WatchedMemory(std::unique_ptr<DeviceMemory> below) : below_(std::move(below)) {}
  std::string name() const override { return below_->name(); }
  uint64_t bytes() const override { return below_->bytes(); }
  MutableByteSpan staging(int lane) override { return below_->staging(lane); }
  Status Start(int lane, Direction direction, std::span<const Piece> pieces) override {
    if (fail) return Fail(Code::kUnavailable, "the device fell off the bus");
    flying_ |= 1 << lane;
    both = both || flying_ == 3;
    largest_batch = std::max<size_t>(largest_batch, pieces.size());
    return below_->Start(lane, direction, pieces);
  }
  Status Wait(int lane) override {
    flying_ &= ~(1 << lane);
    return below_->Wait(lane);
  }
  std::atomic<bool> fail = false;
  std::atomic<bool> both = false;
  std::atomic<size_t> largest_batch = 0;

 private:
  std::unique_ptr<DeviceMemory> below_;
  int flying_ = 0;
};

std::unique_ptr<DeviceTier> MakeTier(uint64_t bytes, WatchedMemory** memory = nullptr,
                                     uint64_t staging = 256 * kKiB, size_t max_queued = 256) {
  DeviceMemory::Options options;
  options.bytes = bytes;
  options.staging_bytes = staging;
  auto watched = std::make_unique<WatchedMemory>(std::move(*MakeCpuDeviceMemory(options)));
  if (memory != nullptr) *memory = watched.get();
  return std::make_unique<DeviceTier>(std::move(watched), max_queued);
}

bool PollUntil(DeviceTier& tier, const std::function<bool()>& what) {
  const Nanos end = Clock::Monotonic().Now() + 20 * kSecond;
  while (!what() && Clock::Monotonic().Now() < end) tier.Poll();
  return what();
}

TEST(DeviceTierTest, GivesRoomOnceAndJoinsWhatIsFreed) {
  auto tier = MakeTier(kMiB);
  SplitMix64 random(4);
  std::map<uint64_t, uint64_t> held;
  for (int step = 0; step < 20'000; ++step) {
    if (random.Below(2) == 0) {
      const auto extent = tier->Allocate(1 + random.Below(60'000));
      if (!extent) continue;
      const auto after = held.lower_bound(extent->offset);
      ASSERT_TRUE(after == held.end() || extent->offset + extent->bytes <= after->first);
      ASSERT_TRUE(after == held.begin() ||
                  std::prev(after)->first + std::prev(after)->second <= extent->offset);
      ASSERT_LE(extent->offset + extent->bytes, kMiB);
      held.emplace(extent->offset, extent->bytes);
    } else if (!held.empty()) {
      const auto one = std::next(held.begin(), static_cast<ptrdiff_t>(random.Below(held.size())));
      tier->Free({one->first, one->second});
      held.erase(one);
    }
  }
  for (const auto& [offset, bytes] : held) tier->Free({offset, bytes});
  EXPECT_EQ(tier->stats().used_bytes, 0u);
  int all = 0;
  while (tier->Allocate(256 * kKiB)) ++all;
  EXPECT_EQ(all, 4) << "free neighbours must join";
  EXPECT_FALSE(tier->Allocate(0));
  EXPECT_FALSE(tier->Allocate(256 * kKiB + 1)) << "more than a lane's staging";
}

TEST(DeviceTierTest, ManyRecordsGoInAndComeOutInBatchesOnBothLanes) {
  WatchedMemory* memory = nullptr;
  auto tier = MakeTier(8 * kMiB, &memory);
  constexpr uint64_t kRecords = 100;
  std::vector<std::vector<std::byte>> in, out;
  std::vector<DeviceExtent> where;
  int stored = 0;
  for (uint64_t n = 0; n < kRecords; ++n) {
    in.push_back(RecordOf(n, 1000 + n * 600));
    where.push_back(*tier->Allocate(in[n].size()));
  }
  for (uint64_t n = 0; n < kRecords; ++n) {
    ASSERT_TRUE(
        tier->Store(in[n], where[n], [&](const Status& status) { stored += status ? 1 : 0; }));
  }
  ASSERT_TRUE(PollUntil(*tier, [&] { return stored == kRecords; }));
  int loaded = 0;
  for (uint64_t n = 0; n < kRecords; ++n) out.emplace_back(in[n].size());
  for (uint64_t n = 0; n < kRecords; ++n) {
    ASSERT_TRUE(
        tier->Load(where[n], out[n], [&](const Status& status) { loaded += status ? 1 : 0; }));
  }
  ASSERT_TRUE(PollUntil(*tier, [&] { return loaded == kRecords; }));
  for (uint64_t n = 0; n < kRecords; ++n) EXPECT_EQ(in[n], out[n]) << n;
  EXPECT_GT(memory->largest_batch, 1u);
  EXPECT_TRUE(memory->both) << "one lane copies while the other is filled";
  EXPECT_EQ(tier->stats().stored, kRecords);
  EXPECT_LT(tier->stats().batches, 2 * kRecords);
}

TEST(DeviceTierTest, WhatWaitsIsBoundedAndAllOfItIsToldAtTheEnd) {
  auto tier = MakeTier(kMiB, nullptr, 256 * kKiB, 8);
  const auto record = RecordOf(1, 20'000);
  int told = 0;
  int accepted = 0;
  for (int i = 0; i < 20; ++i) {
    const auto where = tier->Allocate(record.size());
    ASSERT_TRUE(where);
    const Status queued = tier->Store(record, *where, [&](const Status&) { ++told; });
    if (!queued) {
      EXPECT_EQ(queued.error().code, Code::kResourceExhausted);
    }
    accepted += queued ? 1 : 0;
  }
  EXPECT_EQ(accepted, 8);
  tier->Shutdown();
  EXPECT_EQ(told, accepted);
  const auto where = tier->Allocate(record.size());
  EXPECT_FALSE(tier->Store(record, *where, [](const Status&) {}));
}

TEST(DeviceTierTest, ADeviceThatFailsIsOffAndSaysWhy) {
  WatchedMemory* memory = nullptr;
  auto tier = MakeTier(kMiB, &memory);
  const auto record = RecordOf(1, 5'000);
  const auto where = tier->Allocate(record.size());
  memory->fail = true;
  std::optional<Status> told;
  ASSERT_TRUE(tier->Store(record, *where, [&](Status status) { told = std::move(status); }));
  ASSERT_TRUE(PollUntil(*tier, [&] { return told.has_value(); }));
  EXPECT_FALSE(*told);
  EXPECT_FALSE(tier->available());
  EXPECT_EQ(tier->why(), "the device fell off the bus");
  EXPECT_EQ(tier->Store(record, *where, [](const Status&) {}).error().code, Code::kUnavailable);
}

class DeviceStackTest : public ::testing::Test {
 protected:
  void Open(uint64_t host, uint64_t device) {
    TierStack::Options options;
    options.host.capacity_bytes = host;
    options.host.slab_bytes = 2 * kMiB;
    auto stack =
        TierStack::Create(options, Clock::Monotonic(), nullptr, MakeTier(device, &memory_));
    ASSERT_TRUE(stack);
    stack_ = std::move(*stack);
  }
  Status Put(uint64_t n, size_t bytes = 50'000) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.name_space = kSpace;
    const auto record = RecordOf(n, bytes);
    auto reservation = stack_->Reserve(info, record.size());
    if (!reservation) return tl::unexpected<Error>(reservation.error());
    std::copy(record.begin(), record.end(), reservation->record().begin());
    const Status published = stack_->Publish(std::move(*reservation), record.size(), nullptr);
    Settle();
    return published;
  }
  void Settle() {
    const Nanos end = Clock::Monotonic().Now() + 20 * kSecond;
    while (stack_->device()->stats().queued > 0 && Clock::Monotonic().Now() < end) stack_->Poll();
  }
  TierStack::Fetched Fetch(uint64_t n) {
    std::optional<TierStack::Fetched> got;
    stack_->Fetch(kSpace, KeyOf(n), {},
                  [&](TierStack::Fetched fetched) { got = std::move(fetched); });
    const Nanos end = Clock::Monotonic().Now() + 20 * kSecond;
    while (!got && Clock::Monotonic().Now() < end) stack_->Poll();
    EXPECT_TRUE(got.has_value());
    return got ? std::move(*got) : TierStack::Fetched{};
  }
  Tier Where(uint64_t n) {
    return stack_->Lookup(kSpace, KeyOf(n), QualityClass::kExact, Prefer::kGood).tier;
  }

  WatchedMemory* memory_ = nullptr;
  std::unique_ptr<TierStack> stack_;
};

TEST_F(DeviceStackTest, WhatLeavesRamIsOnTheDeviceAndComesBackWhole) {
  Open(4 * kMiB, 16 * kMiB);
  constexpr uint64_t kBlocks = 200;  // 10 MB.
  for (uint64_t n = 0; n < kBlocks; ++n) ASSERT_TRUE(Put(n));
  uint64_t on_device = 0;
  for (uint64_t n = 0; n < kBlocks; ++n) {
    ASSERT_NE(Where(n), Tier::kNone) << n << ": both tiers together hold it";
    on_device += Where(n) == Tier::kDevice ? 1 : 0;
  }
  EXPECT_GT(on_device, 100u);
  for (uint64_t n = 0; n < kBlocks; ++n) {
    const Tier was = Where(n);
    auto fetched = Fetch(n);
    ASSERT_TRUE(fetched.pin) << n;
    EXPECT_EQ(fetched.tier, was);
    EXPECT_TRUE(VerifyTestRecord(fetched.pin.record())) << n;
    fetched.pin.Release();
    Settle();
  }
  const auto stats = stack_->stats();
  EXPECT_EQ(stats.hits_host + stats.hits_device, kBlocks);
  EXPECT_GT(stats.hits_device, 0u);
  EXPECT_EQ(stats.misses, 0u);
  EXPECT_EQ(stats.evicted, 0u);
}

TEST_F(DeviceStackTest, AFullDeviceForgetsWhatCameFirst) {
  Open(4 * kMiB, 2 * kMiB);
  for (uint64_t n = 0; n < 400; ++n) ASSERT_TRUE(Put(n));
  EXPECT_EQ(Where(0), Tier::kNone);
  EXPECT_EQ(Fetch(0).reason, MissReason::kEvicted);
  EXPECT_EQ(Where(399), Tier::kHost);
  const auto stats = stack_->stats();
  EXPECT_GT(stats.evicted_device, 0u);
  EXPECT_LE(stats.device.used_bytes, 2 * kMiB);
  uint64_t here = 0;
  for (uint64_t n = 0; n < 400; ++n) here += Where(n) != Tier::kNone ? 1 : 0;
  EXPECT_EQ(here, stats.blocks);
}

TEST_F(DeviceStackTest, ADeviceThatFailsCostsItsBlocksAndNothingElse) {
  Open(4 * kMiB, 16 * kMiB);
  for (uint64_t n = 0; n < 200; ++n) ASSERT_TRUE(Put(n));
  memory_->fail = true;
  uint64_t served = 0;
  for (uint64_t n = 0; n < 200; ++n) {
    const Tier was = Where(n);
    auto fetched = Fetch(n);
    if (was == Tier::kHost) {
      ASSERT_TRUE(fetched.pin) << n;
    }
    if (fetched.pin) {
      EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
    }
    served += fetched.pin ? 1 : 0;
  }
  EXPECT_GT(served, 30u);
  EXPECT_FALSE(stack_->stats().device_why.empty());
  for (uint64_t n = 1000; n < 1200; ++n) ASSERT_TRUE(Put(n)) << "RAM serves on";
  EXPECT_EQ(stack_->stats().pinned, 0u);
}

TEST_F(DeviceStackTest, ClearReachesTheDevice) {
  Open(4 * kMiB, 16 * kMiB);
  for (uint64_t n = 0; n < 200; ++n) ASSERT_TRUE(Put(n));
  ASSERT_GT(stack_->stats().device.used_bytes, 0u);
  const auto cleared = stack_->Clear(kSpace, Scope{});
  ASSERT_TRUE(cleared);
  EXPECT_EQ(*cleared, 200u);
  EXPECT_EQ(stack_->stats().device.used_bytes, 0u);
  EXPECT_EQ(stack_->stats().host_bytes, 0u);
  EXPECT_EQ(Fetch(0).reason, MissReason::kCleared);
}

TEST_F(DeviceStackTest, RandomUseNeverGivesAWrongByte) {
  Open(4 * kMiB, 3 * kMiB);
  SplitMix64 random(8);
  for (int step = 0; step < 3000; ++step) {
    const uint64_t n = random.Below(300);
    if (random.Below(2) == 0) {
      const Status put = Put(n, 20'000 + n % 7 * 10'000);
      ASSERT_TRUE(put || put.error().code == Code::kAlreadyExists) << put.error().message;
    } else {
      auto fetched = Fetch(n);
      if (!fetched.pin) continue;
      ASSERT_TRUE(VerifyTestRecord(fetched.pin.record()));
      ASSERT_EQ(fetched.pin.record().size(), RecordOf(n, 20'000 + n % 7 * 10'000).size());
    }
    if (step % 500 == 499) stack_->MarkCorrupt(KeyOf(n));
  }
  EXPECT_GT(stack_->stats().hits_device, 0u);
}

}  // namespace
}  // namespace tiercel
