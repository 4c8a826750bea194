// The tier stack on a virtual clock and a disk that crashes, fills, loses and rots.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <set>

#include "base/random.h"
#include "tests/fakes/memory_ssd_store.h"
#include "tests/fakes/sim_clock.h"
#include "tests/tiering/records.h"
#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

constexpr uint32_t kSpace = 3;
constexpr uint32_t kOtherSpace = 4;

class TierStackSimTest : public ::testing::Test {
 protected:
  struct Sizes {
    uint64_t host = 4 * kMiB;
    uint64_t slab = 2 * kMiB;
    uint64_t ssd = 16 * kMiB;
    bool with_ssd = true;
    std::string policy = PolicyNames().front();
  };
  void Open(const Sizes& sizes) {
    stack_.reset();
    TierStack::Options options;
    options.host.capacity_bytes = sizes.host;
    options.host.slab_bytes = sizes.slab;
    options.host.huge_pages = HostArena::HugePages::kOff;
    options.explain_absent = explain_;
    options.make_policy = [name = sizes.policy](uint64_t seed) { return *MakePolicy(name, seed); };
    std::unique_ptr<MemorySsdStore> store;
    store_ = nullptr;
    if (sizes.with_ssd) {
      SsdStore::Options ssd;
      ssd.segment_bytes = 512 * kKiB;
      ssd.capacity_bytes = sizes.ssd;
      ssd.verify_record = VerifyTestRecord;
      store =
          std::make_unique<MemorySsdStore>(disk_, ssd, MemorySsdStore::Latency(), clock_, ++seed_);
      store_ = store.get();
    }
    auto stack = TierStack::Create(options, clock_, std::move(store));
    ASSERT_TRUE(stack) << stack.error().message;
    stack_ = std::move(*stack);
  }
  void Crash(const Sizes& sizes) {
    store_->Crash();
    Open(sizes);
  }
  // Lets everything happen that is due in this time.
  void Pass(Nanos time) {
    const Nanos end = clock_.Now() + time;
    while (stack_->next_wakeup() <= end) {
      clock_.Set(stack_->next_wakeup());
      stack_->Poll();
    }
    clock_.Set(end);
    stack_->Poll();
  }
  static TierStack::PutInfo Info(uint64_t n, uint32_t name_space = kSpace) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.parent = n > 0 ? KeyOf(n - 1) : BlockKey{};
    info.name_space = name_space;
    return info;
  }
  Status Put(const TierStack::PutInfo& info, uint64_t n, size_t bytes,
             TierStack::DurableDone durable = nullptr) {
    auto reservation = stack_->Reserve(info, bytes);
    if (!reservation) return tl::unexpected<Error>(reservation.error());
    const auto record = RecordOf(n, bytes);
    std::copy_n(record.begin(), bytes, reservation->record().begin());
    return stack_->Publish(std::move(*reservation), bytes * 2, std::move(durable));
  }
  Tier Where(uint64_t n, uint32_t name_space = kSpace) {
    return stack_->Lookup(name_space, KeyOf(n), QualityClass::kExact, Prefer::kGood).tier;
  }

  std::function<MissReason(uint32_t, const BlockKey&)> explain_;
  SimClock clock_;
  MemoryDisk disk_;
  uint64_t seed_ = 0;
  MemorySsdStore* store_ = nullptr;
  std::unique_ptr<TierStack> stack_;
};

TEST_F(TierStackSimTest, AFetchPastItsDeadlineIsAMissAndTheReadStillServesTheNext) {
  Open({});
  ASSERT_TRUE(Put(Info(1), 1, 40'000));
  Pass(10 * kSecond);
  Open({});
  ASSERT_EQ(Where(1), Tier::kSsd);
  TierStack::FetchOptions options;
  options.deadline = clock_.Now() + 10 * kMicrosecond;
  std::optional<MissReason> answer;
  std::optional<Nanos> when;
  stack_->Fetch(kSpace, KeyOf(1), options, [&](TierStack::Fetched fetched) {
    answer = fetched.reason;
    when = clock_.Now();
  });
  Pass(kSecond);
  EXPECT_EQ(answer, MissReason::kDeadline);
  EXPECT_EQ(when, options.deadline);
  EXPECT_EQ(Where(1), Tier::kHost);
}

TEST_F(TierStackSimTest, AnUnpromotedBlockLeavesRamWithItsLastPinUnlessSomeoneElseWantsIt) {
  Open({});
  ASSERT_TRUE(Put(Info(1), 1, 40'000));
  Pass(10 * kSecond);
  for (const bool joined : {false, true}) {
    Open({});
    TierStack::FetchOptions passing;
    passing.promote = false;
    std::vector<TierStack::Fetched> held;
    stack_->Fetch(kSpace, KeyOf(1), passing,
                  [&](TierStack::Fetched fetched) { held.push_back(std::move(fetched)); });
    if (joined) {
      stack_->Fetch(kSpace, KeyOf(1), {},
                    [&](TierStack::Fetched fetched) { held.push_back(std::move(fetched)); });
    }
    Pass(kSecond);
    ASSERT_EQ(held.size(), joined ? 2u : 1u);
    EXPECT_TRUE(VerifyTestRecord(held[0].pin.record()));
    EXPECT_EQ(Where(1), Tier::kHost);
    held.clear();
    EXPECT_EQ(Where(1), joined ? Tier::kHost : Tier::kSsd);
    EXPECT_EQ(stack_->stats().reads_shared, joined ? 1u : 0u);
  }
}

TEST_F(TierStackSimTest, WhatIsStoredAfterAClearSurvivesEveryLaterRestart) {
  Open({});
  for (uint64_t n = 0; n < 50; ++n) ASSERT_TRUE(Put(Info(n), n, 10'000));
  Pass(10 * kSecond);
  ASSERT_TRUE(stack_->Clear(kSpace, Scope{}));
  Open({});
  EXPECT_EQ(stack_->stats().blocks, 0u);
  ASSERT_TRUE(Put(Info(7), 7, 10'000)) << "a generation that the clear does not cover";
  Pass(10 * kSecond);
  Open({});
  EXPECT_EQ(Where(7), Tier::kSsd);
}

TEST_F(TierStackSimTest, AParentIsNotEvictedBeforeAChildThatCameBackFromSsd) {
  const Sizes sizes{.host = 2 * kMiB};
  Open(sizes);
  for (uint64_t n = 0; n < 20; ++n) {
    auto info = Info(n);
    info.chain_index = static_cast<uint32_t>(n);
    ASSERT_TRUE(Put(info, n, 20'000, [](Status) {}));
  }
  Pass(10 * kSecond);
  Open(sizes);
  // Head first, so that by age alone the head would go first.
  for (uint64_t n = 0; n < 20; ++n) {
    stack_->Fetch(kSpace, KeyOf(n), {},
                  [](TierStack::Fetched fetched) { EXPECT_TRUE(fetched.pin); });
    Pass(kSecond);
  }
  for (uint64_t n = 1000; n < 1085; ++n) ASSERT_TRUE(Put(Info(n), n, 20'000));
  bool left_ram = false;
  int in_ram = 0;
  for (uint64_t n = 0; n < 20; ++n) {
    const bool here = Where(n) == Tier::kHost;
    EXPECT_FALSE(here && left_ram) << "block " << n << " is in RAM behind a hole";
    left_ram |= !here;
    in_ram += here ? 1 : 0;
  }
  EXPECT_GT(in_ram, 0);
  EXPECT_LT(in_ram, 20);
}

TEST_F(TierStackSimTest, ANameSpaceGetsRoomFromOneThatNoLongerUsesIts) {
  Open({.host = 16 * kMiB, .with_ssd = false});
  for (uint64_t n = 0; n < 1000; ++n) ASSERT_TRUE(Put(Info(n), n, 16'000));
  const auto blocks_of = [&](uint32_t name_space, uint64_t first, uint64_t count) {
    int here = 0;
    for (uint64_t n = first; n < first + count; ++n)
      here += Where(n, name_space) == Tier::kHost ? 1 : 0;
    return here;
  };
  EXPECT_GT(blocks_of(kSpace, 0, 1000), 900);
  for (uint64_t n = 10'000; n < 14'000; ++n) ASSERT_TRUE(Put(Info(n, kOtherSpace), n, 16'000));
  EXPECT_GT(blocks_of(kOtherSpace, 10'000, 4000), 700)
      << "it got most of what the other left unused";
  EXPECT_GT(stack_->stats().slabs_taken, 4u);
  // And not from one that uses them: both at once.
  uint64_t n = 20'000;
  const auto both = [&](int rounds) {
    for (int round = 0; round < rounds; ++round, ++n) {
      ASSERT_TRUE(Put(Info(n), n, 16'000));
      ASSERT_TRUE(Put(Info(n + 50'000, kOtherSpace), n + 50'000, 16'000));
    }
  };
  both(3000);
  EXPECT_GT(blocks_of(kSpace, 22'000, 1000), 200);
  EXPECT_GT(blocks_of(kOtherSpace, 72'000, 1000), 200);
}

TEST_F(TierStackSimTest, ALargeRecordMakesItsHoleFromNeighbours) {
  Open({.host = 8 * kMiB, .slab = 8 * kMiB, .with_ssd = false});
  SplitMix64 random(11);
  // Full of small blocks, in an order of use that has nothing to do with where they lie.
  for (uint64_t n = 0; n < 500; ++n) ASSERT_TRUE(Put(Info(n), n, 16'000));
  for (int i = 0; i < 5000; ++i) stack_->Touch(kSpace, {KeyOf(random.Below(500))});
  const uint64_t before = stack_->stats().host_blocks;
  ASSERT_TRUE(Put(Info(9000), 9000, kMiB));
  EXPECT_LE(before - stack_->stats().host_blocks + 1, 70u) << "64 neighbours are enough";
}

TEST_F(TierStackSimTest, WhatWasJustStoredStaysWhileAColderHoleCanBeMade) {
  for (const bool touched : {false, true}) {
    for (const size_t bytes : {20'000u, 32'000u, 48'000u, 80'000u}) {
      SCOPED_TRACE(::testing::Message() << bytes << (touched ? " touched" : " in order"));
      // By age alone: one that learns may hold what was used four times dearer than what is new.
      Open({.host = 8 * kMiB, .with_ssd = false, .policy = "lru"});
      SplitMix64 random(5);
      // Full of blocks in the order of their places, or used since in an order of its own.
      for (uint64_t n = 0; n < 512; ++n) ASSERT_TRUE(Put(Info(n), n, 16'000));
      ASSERT_EQ(stack_->stats().evicted, 0u);
      for (int i = 0; touched && i < 2000; ++i) stack_->Touch(kSpace, {KeyOf(random.Below(512))});
      constexpr uint64_t kFirst = 1000;
      const uint64_t eighth = kMiB / bytes;  // Of RAM.
      for (uint64_t n = kFirst; n < kFirst + 300; ++n) {
        ASSERT_TRUE(Put(Info(n), n, bytes));
        for (uint64_t newer = n - std::min(n - kFirst, eighth); newer <= n; ++newer) {
          ASSERT_EQ(Where(newer), Tier::kHost) << "block " << newer << " after " << n;
        }
      }
    }
  }
}

TEST_F(TierStackSimTest, AmongFewBlocksTheNewestIsNotTheOneThatHasTheRightSize) {
  Open({.with_ssd = false});
  for (uint64_t n = 0; n < 40; ++n) ASSERT_TRUE(Put(Info(n), n, 100'000));
  ASSERT_EQ(stack_->stats().evicted, 0u);
  for (uint64_t n = 100; n < 112; ++n) {
    ASSERT_TRUE(Put(Info(n), n, 300'000));
    for (uint64_t newer = std::max<uint64_t>(100, n - 1); newer <= n; ++newer) {
      ASSERT_EQ(Where(newer), Tier::kHost) << "block " << newer << " after " << n;
    }
  }
}

TEST_F(TierStackSimTest, LosesAtMostATwentiethOfRamToFragmentationOnMixedSizes) {
  Open({.host = 64 * kMiB, .slab = 32 * kMiB, .with_ssd = false});
  SplitMix64 random(2);
  for (uint64_t n = 0; n < 12'000; ++n) {
    // Encoded sizes: some geometries, each record of its own length.
    const uint64_t base = std::array{40'000u, 150'000u, 400'000u}[random.Below(3)];
    ASSERT_TRUE(Put(Info(n), n, base + random.Below(base / 3)));
    if (n % 3 == 0)
      stack_->Touch(kSpace, {KeyOf(n - random.Below(std::min<uint64_t>(n + 1, 200)))});
  }
  const auto stats = stack_->stats();
  EXPECT_GT(stats.evicting_allocations, 5000u);
  EXPECT_LE(stats.fragmentation, 0.05);
  std::printf(
      "fragmentation %.4f over %llu evicting allocations, %.1f%% of RAM used at the end\n",
      stats.fragmentation, static_cast<unsigned long long>(stats.evicting_allocations),
      100.0 * static_cast<double>(stats.host_bytes) / static_cast<double>(stats.host_capacity));
}

TEST_F(TierStackSimTest, AFullDiskCostsNothingButTheSsdTier) {
  Open({});
  disk_.quota = 0;
  int failed = 0;
  for (uint64_t n = 0; n < 300; ++n) {
    ASSERT_TRUE(Put(Info(n), n, 30'000, [&](Status status) { failed += status ? 0 : 1; }));
    Pass(50 * kMillisecond);
  }
  Pass(10 * kSecond);
  EXPECT_EQ(failed, 300);
  EXPECT_EQ(stack_->stats().pinned, 0u);
  disk_.quota = UINT64_MAX;
  Pass(10 * kSecond);
  bool durable = false;
  ASSERT_TRUE(Put(Info(1000), 1000, 30'000, [&](Status status) { durable = status.has_value(); }));
  Pass(10 * kSecond);
  EXPECT_TRUE(durable);
}

TEST_F(TierStackSimTest, AsksWhoKnowsBetterWhyABlockWasNeverSeen) {
  explain_ = [](uint32_t, const BlockKey& key) {
    return key == KeyOf(5) ? MissReason::kOtherScope : MissReason::kNone;
  };
  Open({});
  EXPECT_EQ(stack_->Lookup(kSpace, KeyOf(5), QualityClass::kExact, Prefer::kGood).reason,
            MissReason::kOtherScope);
  EXPECT_EQ(stack_->Lookup(kSpace, KeyOf(6), QualityClass::kExact, Prefer::kGood).reason,
            MissReason::kNeverSeen);
}

TEST_F(TierStackSimTest, AfterShutdownWhatIsOnlyOnSsdIsAMiss) {
  Open({});
  ASSERT_TRUE(Put(Info(1), 1, 30'000));
  Pass(10 * kSecond);
  Open({});
  stack_->Shutdown(kSecond);
  MissReason reason = MissReason::kNone;
  stack_->Fetch(kSpace, KeyOf(1), {}, [&](TierStack::Fetched fetched) { reason = fetched.reason; });
  EXPECT_EQ(reason, MissReason::kBusy);
}

// Whatever the disk does and whenever power goes: never a wrong byte, never another name space's,
// every miss with a reason, everything that was said to be durable is there after the crash, unless
// it was evicted, cleared or found corrupt since.
TEST_F(TierStackSimTest, NeverLiesWhateverTheDiskDoes) {
  const int seeds = std::getenv("TIERCEL_FULL") != nullptr ? 200 : 12;
  uint64_t all_checked = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE(seed);
    stack_.reset();
    disk_ = MemoryDisk();
    SplitMix64 random(static_cast<uint64_t>(seed) * 77);
    const Sizes sizes{.host = 4 * kMiB, .ssd = 4 * kMiB + random.Below(20 * kMiB)};
    Open(sizes);
    std::set<uint64_t> durable;
    std::vector<TierStack::Fetched> held;
    uint64_t dropped = 0;
    uint64_t crashes_checked = 0;
    bool hold = true;  // Off while a stack ends: its last callbacks must not keep pins.
    uint64_t asked = 0;
    uint64_t answered = 0;
    uint64_t served = 0;
    const auto size_of = [](uint64_t n) { return size_t{8'000} + n % 11 * 8'000; };
    const auto space_of = [](uint64_t n) { return n % 3 == 0 ? kOtherSpace : kSpace; };
    for (int step = 0; step < 3000; ++step) {
      const uint64_t n = random.Below(250);
      // A segment that made room may have held anything.
      if (const uint64_t now = stack_->stats().ssd.dropped_segments; now != dropped) {
        durable.clear();
        dropped = now;
      }
      switch (random.Below(12)) {
        case 0:
        case 1:
        case 2:
        case 3: {
          auto info = Info(n, space_of(n));
          info.chain_index = static_cast<uint32_t>(n % 40);
          info.parent = KeyOf(n + 999);
          const bool ask = random.Below(2) == 0;
          TierStack::DurableDone done;
          if (ask) {
            done = [this, &durable, n](Status status) {
              if (status && disk_.flip == 0 && disk_.lose == 0) durable.insert(n);
            };
          }
          const Status put = Put(info, n, size_of(n), std::move(done));
          if (!put) {
            EXPECT_THAT(put.error().code,
                        ::testing::AnyOf(Code::kAlreadyExists, Code::kResourceExhausted));
          }
          break;
        }
        case 4:
        case 5:
        case 6:
        case 7: {
          ++asked;
          TierStack::FetchOptions options;
          options.promote = random.Below(3) != 0;
          if (random.Below(4) == 0)
            options.deadline = clock_.Now() + static_cast<Nanos>(random.Below(3 * kMillisecond));
          const bool right_space = random.Below(5) != 0;
          const uint32_t space = right_space ? space_of(n) : kSpace + kOtherSpace - space_of(n);
          stack_->Fetch(space, KeyOf(n), options, [&, n, right_space](TierStack::Fetched fetched) {
            ++answered;
            if (!fetched.pin) {
              EXPECT_NE(fetched.reason, MissReason::kNone);
              EXPECT_NE(fetched.reason, MissReason::kUnknown);
              return;
            }
            ++served;
            EXPECT_TRUE(right_space) << "another name space's bytes";
            const auto expected = RecordOf(n, size_of(n));
            EXPECT_TRUE(std::equal(expected.begin(), expected.end(), fetched.pin.record().begin(),
                                   fetched.pin.record().end()));
            if (hold && held.size() < 8) held.push_back(std::move(fetched));
          });
          break;
        }
        case 8:
          stack_->Touch(space_of(n), {KeyOf(n), KeyOf(n + 1), KeyOf(n + 2)});
          break;
        case 9:
          if (!held.empty())
            held.erase(held.begin() + static_cast<long>(random.Below(held.size())));
          break;
        case 10:
          Pass(static_cast<Nanos>(random.Below(2 * kSecond)));
          break;
        default:
          switch (random.Below(40)) {
            case 0:
              held.clear();
              hold = false;
              if (stack_->stats().ssd.dropped_segments != dropped) durable.clear();
              Crash(sizes);
              hold = true;
              dropped = 0;
              if (disk_.flip == 0 && disk_.lose == 0) {
                crashes_checked += durable.empty() ? 0 : 1;
                for (const uint64_t i : durable) EXPECT_EQ(Where(i, space_of(i)), Tier::kSsd) << i;
              }
              asked = answered = served = 0;
              break;
            case 1:
              held.clear();
              hold = false;
              if (stack_->stats().ssd.dropped_segments != dropped) durable.clear();
              Open(sizes);
              dropped = 0;
              hold = true;
              asked = answered = served = 0;
              break;
            case 2:
              ASSERT_TRUE(stack_->Clear(kSpace, Scope{}));
              std::erase_if(durable, [&](uint64_t i) { return space_of(i) == kSpace; });
              break;
            case 3:
              stack_->MarkCorrupt(KeyOf(n));
              durable.erase(n);
              break;
            case 4:
              if (seed % 3 == 0) disk_.flip = random.Below(2) == 0 ? 0.2 : 0;
              if (seed % 3 == 1) disk_.lose = random.Below(2) == 0 ? 0.2 : 0;
              if (seed % 4 == 3) disk_.quota = random.Below(2) == 0 ? 2 * kMiB : UINT64_MAX;
              if (disk_.flip > 0 || disk_.lose > 0) durable.clear();
              break;
            default:
              break;
          }
      }
      ASSERT_LE(stack_->arena().used_bytes(), sizes.host);
      ASSERT_LE(disk_.bytes(), sizes.ssd + 512 * kKiB + 100'000);
    }
    all_checked += crashes_checked;
    Pass(20 * kSecond);
    EXPECT_EQ(answered, asked);
    const auto stats = stack_->stats();
    uint64_t reasons = 0;
    for (const uint64_t count : stats.reasons) reasons += count;
    EXPECT_EQ(stats.misses, reasons);
    EXPECT_EQ(stats.misses + served, asked);
    EXPECT_EQ(stats.hits_host + stats.hits_ssd, served);
    held.clear();
    EXPECT_EQ(stack_->stats().pinned, 0u);
    disk_.quota = UINT64_MAX;
    ASSERT_TRUE(stack_->Clear(kSpace, Scope{}));
    ASSERT_TRUE(stack_->Clear(kOtherSpace, Scope{}));
    EXPECT_EQ(stack_->arena().used_bytes(), 0u);
    EXPECT_EQ(stack_->stats().blocks, 0u);
  }
  EXPECT_GT(all_checked, 5u) << "too few crashes with something to lose: the test proves little";
}

}  // namespace
}  // namespace tiercel
