#include "tiering/tier_stack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <set>

#include "base/random.h"
#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/policy_lists.h"
#include "tiering/ssd_rocksdb.h"

namespace tiercel {
namespace {

constexpr uint32_t kSpace = 3;
constexpr uint32_t kOtherSpace = 4;

class TierStackTest : public ::testing::Test {
 protected:
  void Open(bool with_ssd, uint64_t host = 4 * kMiB, uint64_t ssd = 64 * kMiB) {
    Close();
    TierStack::Options options;
    options.host.capacity_bytes = host;
    options.host.slab_bytes = 2 * kMiB;
    options.fault_injection = true;
    options.demote_to = [this](uint32_t) { return demote_to_; };
    options.make_policy = make_policy_;
    options.admit_all = admit_all_;
    options.max_read_ahead = 4;
    if (!quotas_.empty()) {
      options.host_quota = [this](uint32_t name_space) { return quotas_[name_space]; };
    }
    std::unique_ptr<SsdStore> store;
    if (with_ssd) {
      SsdDisk::Options disk;
      disk.path = folder_.path();
      disk_ = std::move(*SsdDisk::Open(disk));
      SsdStore::Options store_options;
      store_options.segment_bytes = 512 * kKiB;
      store_options.capacity_bytes = ssd;
      store_options.seal_after = 10 * kMillisecond;
      store_options.verify_record = VerifyTestRecord;
      store_options.recode = recode_;
      store_options.write_bytes_per_day = write_per_day_;
      store = std::move(*disk_->OpenShard(0, store_options, Clock::Monotonic()));
    }
    auto stack = TierStack::Create(options, Clock::Monotonic(), std::move(store));
    ASSERT_TRUE(stack) << stack.error().message;
    stack_ = std::move(*stack);
  }
  void Close() {
    if (stack_ != nullptr) stack_->Shutdown(5 * kSecond);
    stack_.reset();
    disk_.reset();
  }
  void TearDown() override { Close(); }

  TierStack::PutInfo Info(uint64_t n, uint64_t chain = 0,
                          QualityClass quality = QualityClass::kExact) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.parent = n > 0 ? KeyOf(n - 1) : BlockKey{};
    info.name_space = kSpace;
    info.chain_index = static_cast<uint32_t>(chain);
    info.quality = quality;
    return info;
  }
  Status Put(const TierStack::PutInfo& info, uint64_t n, size_t bytes = 50'000,
             TierStack::DurableDone durable = nullptr) {
    const auto record = RecordOf(n, bytes);
    auto reservation = stack_->Reserve(info, record.size());
    if (!reservation) return tl::unexpected<Error>(reservation.error());
    std::copy(record.begin(), record.end(), reservation->record().begin());
    return stack_->Publish(std::move(*reservation), record.size() * 2, std::move(durable));
  }
  Status Put(uint64_t n) { return Put(Info(n), n); }

  TierStack::Fetched Fetch(uint64_t n, uint32_t name_space = kSpace,
                           TierStack::FetchOptions options = {}) {
    std::optional<TierStack::Fetched> got;
    stack_->Fetch(name_space, KeyOf(n), options,
                  [&](TierStack::Fetched fetched) { got = std::move(fetched); });
    const Nanos end = Clock::Monotonic().Now() + 10 * kSecond;
    while (!got && Clock::Monotonic().Now() < end) stack_->Poll();
    EXPECT_TRUE(got.has_value());
    return got ? std::move(*got) : TierStack::Fetched{};
  }
  void WaitForDisk() {
    bool done = false;
    stack_->Flush([&](Status) { done = true; });
    while (!done) stack_->Poll();
  }

  TempFolder folder_;
  std::function<ByteSpan(SsdEntry*, ByteSpan)> recode_;
  QualityClass demote_to_ = QualityClass::kExact;
  std::function<std::unique_ptr<EvictionPolicy>(uint64_t)> make_policy_;
  std::map<uint32_t, TierStack::HostQuota> quotas_;
  uint64_t write_per_day_ = 0;
  bool admit_all_ = true;
  std::unique_ptr<SsdDisk> disk_;
  std::unique_ptr<TierStack> stack_;
};

class TierStackAdmissionTest : public TierStackTest {
 protected:
  static constexpr size_t kBytes = 50'000;
  // Blocks first .. first + n - 1 as one chain.
  void PutRun(uint64_t first, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) ASSERT_TRUE(Put(Info(first + i, i), first + i, kBytes));
    WaitForDisk();
  }
  void TouchRun(uint64_t first, uint64_t n) {
    std::vector<BlockKey> keys;
    for (uint64_t i = 0; i < n; ++i) keys.push_back(KeyOf(first + i));
    stack_->Touch(kSpace, keys);
    WaitForDisk();
  }
  bool OnSsd(uint64_t n) {
    const auto records = stack_->Describe(kSpace, KeyOf(n));
    return !records.empty() && static_cast<bool>(records[0].entry.where);
  }
  std::string OnSsd(uint64_t first, uint64_t n) {
    std::string out;
    for (uint64_t i = 0; i < n; ++i) out += OnSsd(first + i) ? '+' : '-';
    return out;
  }
};

TEST_F(TierStackAdmissionTest, WithHalfTheBudgetSpentOnlyWhatIsUsedAgainIsWritten) {
  write_per_day_ = 24 * 10 * kBytes;
  Open(true);
  PutRun(100, 6);
  EXPECT_EQ(OnSsd(100, 6), "++++++") << "there was budget when it began";
  PutRun(200, 2);
  EXPECT_EQ(OnSsd(200, 2), "--");
  EXPECT_EQ(stack_->stats().passed_over, 2u);
  TouchRun(200, 2);
  EXPECT_EQ(OnSsd(200, 2), "++");
  EXPECT_EQ(stack_->stats().second_access, 2u);
  PutRun(300, 3);
  TouchRun(300, 3);
  EXPECT_EQ(OnSsd(300, 3), "++-")
      << "of the day's budget nothing is left, and the head comes first";
  EXPECT_LE(stack_->stats().ssd.written_bytes, 10 * (kBytes + 8));
}

TEST_F(TierStackAdmissionTest, ARunIsCutAtItsTailAndNeverHoled) {
  write_per_day_ = 24 * 5 * kBytes;
  Open(true);
  PutRun(100, 8);
  EXPECT_EQ(OnSsd(100, 8), "+++++---");
  EXPECT_EQ(stack_->stats().ssd.over_budget, 0u) << "it is not asked of the store";
}

TEST_F(TierStackAdmissionTest, SecondAccessAlonePassesOverWhatIsNewAndTakesWhatCameBack) {
  admit_all_ = false;
  Open(true);
  PutRun(100, 3);
  EXPECT_EQ(OnSsd(100, 3), "---");
  TouchRun(100, 2);
  EXPECT_EQ(OnSsd(100, 3), "++-");
  for (uint64_t n = 1000; n < 1100; ++n) ASSERT_TRUE(Put(n));  // Pushes block 102 out of RAM.
  ASSERT_EQ(stack_->Lookup(kSpace, KeyOf(102), QualityClass::kExact, Prefer::kGood).tier,
            Tier::kNone);
  ASSERT_TRUE(Put(Info(102, 2), 102, kBytes));
  WaitForDisk();
  EXPECT_TRUE(OnSsd(102)) << "it was here before";
}

TEST_F(TierStackAdmissionTest, WhatItsWriterWaitsForIsWrittenWhateverTheAdmission) {
  admit_all_ = false;
  Open(true);
  std::optional<Status> durable;
  ASSERT_TRUE(Put(Info(7), 7, kBytes, [&](Status status) { durable = std::move(status); }));
  WaitForDisk();
  ASSERT_TRUE(durable.has_value());
  EXPECT_TRUE(*durable);
}

class TierStackReadAheadTest : public TierStackAdmissionTest {
 protected:
  // Blocks 0 .. n-1 of a chain, on SSD alone.
  void StoreCold(uint64_t n) {
    PutRun(0, n);
    for (uint64_t i = 1000; i < 1100; ++i) ASSERT_TRUE(Put(i));
    WaitForDisk();
    for (uint64_t i = 0; i < n; ++i) ASSERT_EQ(TierOf(i), Tier::kSsd);
  }
  Tier TierOf(uint64_t n) {
    return stack_->Lookup(kSpace, KeyOf(n), QualityClass::kExact, Prefer::kGood).tier;
  }
  void Expect(uint64_t first, uint64_t n) {
    std::vector<BlockKey> keys;
    for (uint64_t i = 0; i < n; ++i) keys.push_back(KeyOf(first + i));
    stack_->ReadAhead(kSpace, keys, QualityClass::kExact, Prefer::kGood);
  }
  void WaitForReads() {
    const Nanos end = Clock::Monotonic().Now() + 10 * kSecond;
    while (stack_->stats().reads_waiting > 0 && Clock::Monotonic().Now() < end) stack_->Poll();
    EXPECT_EQ(stack_->stats().reads_waiting, 0u);
  }
};

TEST_F(TierStackReadAheadTest, TheTailOfAChainIsInRamWhenItIsAskedFor) {
  Open(true);
  StoreCold(8);
  Expect(0, 8);
  WaitForReads();
  EXPECT_EQ(stack_->stats().read_ahead, 8u);
  for (uint64_t i = 0; i < 8; ++i) {
    const auto fetched = Fetch(i);
    ASSERT_TRUE(fetched.pin);
    EXPECT_EQ(fetched.tier, Tier::kHost);
    EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
  }
  EXPECT_EQ(stack_->stats().read_ahead_used, 8u);
  EXPECT_EQ(stack_->stats().read_ahead_wasted, 0u);
}

TEST_F(TierStackReadAheadTest, BehindAGapNothingIsReadAhead) {
  Open(true);
  StoreCold(8);
  stack_->MarkCorrupt(KeyOf(3));
  Expect(0, 8);
  WaitForReads();
  EXPECT_EQ(stack_->stats().read_ahead, 3u);
  EXPECT_EQ(TierOf(4), Tier::kSsd);
}

TEST_F(TierStackReadAheadTest, WhatIsReadAheadTakesAnEighthOfRamAtMostAndIsToldAsWastedWhenItGoes) {
  Open(true);
  StoreCold(30);
  Expect(0, 30);
  WaitForReads();
  const uint64_t read = stack_->stats().read_ahead;
  EXPECT_GE(read, 8u);
  EXPECT_LE(read * kBytes, 4 * kMiB / 8);
  EXPECT_EQ(stack_->stats().read_ahead_refused, 30 - read);
  for (uint64_t i = 2000; i < 2100; ++i) ASSERT_TRUE(Put(i));
  WaitForDisk();
  EXPECT_EQ(stack_->stats().read_ahead_wasted, read);
  Expect(0, 4);
  WaitForReads();
  EXPECT_EQ(stack_->stats().read_ahead, read + 4) << "and gives its room back";
}

TEST_F(TierStackReadAheadTest, AFetchJoinsTheReadThatIsUnderWay) {
  Open(true);
  StoreCold(4);
  Expect(0, 4);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(Fetch(i).pin);
  WaitForReads();
  EXPECT_EQ(stack_->stats().read_ahead_used, 4u);
  EXPECT_EQ(stack_->stats().hits_host + stack_->stats().hits_ssd, 4u);
}

TEST_F(TierStackTest, ABlockIsInvisibleUntilItIsPublished) {
  Open(false);
  auto reservation = stack_->Reserve(Info(1), 1000);
  ASSERT_TRUE(reservation);
  EXPECT_EQ(stack_->Lookup(kSpace, KeyOf(1), QualityClass::kExact, Prefer::kGood).tier,
            Tier::kNone);
  EXPECT_EQ(Fetch(1).reason, MissReason::kNeverSeen);
  reservation = Reservation();
  EXPECT_EQ(stack_->arena().used_bytes(), 0u) << "an abandoned reservation gives its room back";
  ASSERT_TRUE(Put(1));
  const auto fetched = Fetch(1);
  ASSERT_TRUE(fetched.pin);
  EXPECT_EQ(fetched.tier, Tier::kHost);
  EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
}

TEST_F(TierStackTest, AnotherNameSpaceSeesNothingAndCannotTakeAKeyOver) {
  Open(false);
  ASSERT_TRUE(Put(1));
  EXPECT_EQ(Fetch(1, kOtherSpace).reason, MissReason::kNeverSeen);
  EXPECT_EQ(stack_->Lookup(kOtherSpace, KeyOf(1), QualityClass::kSmall, Prefer::kGood).tier,
            Tier::kNone);
  auto info = Info(1);
  info.name_space = kOtherSpace;
  EXPECT_EQ(Put(info, 1).error().code, Code::kPermissionDenied);
}

TEST_F(TierStackTest, KeepsTheBetterRecordAndServesNoWorseThanAccepted) {
  Open(false);
  ASSERT_TRUE(Put(Info(1, 0, QualityClass::kBalanced), 1, 8'000));
  EXPECT_EQ(Fetch(1).reason, MissReason::kOtherClass);
  TierStack::FetchOptions accepts;
  accepts.min_class = QualityClass::kSmall;
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.quality(), QualityClass::kBalanced);
  EXPECT_EQ(Put(Info(1, 0, QualityClass::kBalanced), 1).error().code, Code::kAlreadyExists);
  EXPECT_EQ(Put(Info(1, 0, QualityClass::kSmall), 1).error().code, Code::kAlreadyExists);
  ASSERT_TRUE(Put(Info(1, 0, QualityClass::kNear), 1, 9'000));
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.quality(), QualityClass::kNear);
  ASSERT_TRUE(Put(Info(1), 1, 16'000));
  EXPECT_EQ(stack_->stats().blocks, 2u) << "one exact and one lossy";
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.quality(), QualityClass::kExact);
  accepts.prefer = Prefer::kSmall;
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.quality(), QualityClass::kNear);
}

// The base policy, and what it was told.
class ToldPolicy final : public ListPolicy {
 public:
  explicit ToldPolicy(std::vector<std::string>* told) : ListPolicy(1), told_(told) {}

 private:
  size_t Place(Block& block, const BlockUse& use, bool added) override {
    std::string parent = use.parent == nullptr ? "none" : std::to_string(use.parent->chain_index);
    told_->push_back((added ? "add " : "touch ") + std::to_string(block.chain_index) + " after " +
                     parent + " " + std::string(Name(use.hint)) +
                     (use.came_back ? " came back" : ""));
    return 0;
  }
  std::vector<std::string>* told_;
};

TEST_F(TierStackTest, ThePolicyIsToldOfHintsParentsAndWhatCameBack) {
  std::vector<std::string> told;
  make_policy_ = [&](uint64_t) { return std::make_unique<ToldPolicy>(&told); };
  Open(false, 2 * kMiB);
  for (uint64_t i = 0; i < 2; ++i) {
    auto info = Info(i, i);
    info.reuse_hint = ReuseHint::kLikely;
    ASSERT_TRUE(Put(info, i));
  }
  stack_->Touch(kSpace, {KeyOf(0)}, {}, ReuseHint::kUnlikely);
  stack_->Touch(kSpace, {KeyOf(1)}, KeyOf(0), ReuseHint::kDone);
  EXPECT_THAT(told, ::testing::ElementsAre("add 0 after none likely", "add 1 after 0 likely",
                                           "touch 0 after none unlikely", "touch 1 after 0 done"));
  for (uint64_t i = 100; i < 150; ++i) ASSERT_TRUE(Put(i));
  ASSERT_EQ(Fetch(0).reason, MissReason::kEvicted);
  told.clear();
  ASSERT_TRUE(Put(0));
  EXPECT_THAT(told, ::testing::ElementsAre("add 0 after none unknown came back"));
  Close();
}

TEST_F(TierStackTest, AFloodLeavesAReserveAloneAndGivesBackWhatItBorrowed) {
  quotas_[kSpace] = {4 * kMiB, UINT64_MAX};
  Open(false, 8 * kMiB);
  const auto flood = [&](uint64_t from) {
    for (uint64_t i = from; i < from + 400; ++i) {
      auto info = Info(i);
      info.name_space = kOtherSpace;
      ASSERT_TRUE(Put(info, i));
    }
  };
  flood(10'000);
  EXPECT_GT(stack_->arena().slab_bytes_of(kOtherSpace), 4 * kMiB) << "what nobody uses is lent";
  for (uint64_t i = 0; i < 60; ++i) ASSERT_TRUE(Put(i));  // 3 MB.
  flood(20'000);
  for (uint64_t i = 0; i < 60; ++i) EXPECT_TRUE(Fetch(i).pin) << i;
  EXPECT_EQ(stack_->arena().slab_bytes_of(kSpace), 4 * kMiB);
}

TEST_F(TierStackTest, ANameSpaceAtItsLimitEvictsItsOwn) {
  quotas_[kSpace] = {0, 4 * kMiB};
  Open(false, 8 * kMiB);
  for (uint64_t i = 0; i < 300; ++i) ASSERT_TRUE(Put(i));
  EXPECT_EQ(stack_->arena().slab_bytes_of(kSpace), 4 * kMiB);
  EXPECT_TRUE(Fetch(299).pin);
  EXPECT_EQ(Fetch(0).reason, MissReason::kEvicted);
}

TEST_F(TierStackTest, ForgetsTheTailOfAChainBeforeItsHead) {
  Open(false, 2 * kMiB);
  std::vector<BlockKey> keys;
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(Put(Info(i, i), i));
    keys.push_back(KeyOf(i));
  }
  stack_->Touch(kSpace, keys);
  for (uint64_t i = 100; i < 130; ++i) ASSERT_TRUE(Put(Info(i, 0), i));
  // Whatever is left of the chain is a prefix of it.
  bool gone = false;
  size_t left = 0;
  for (const BlockKey& key : keys) {
    const bool here =
        stack_->Lookup(kSpace, key, QualityClass::kExact, Prefer::kGood).tier != Tier::kNone;
    EXPECT_FALSE(here && gone) << "a hole in the chain";
    gone |= !here;
    left += here ? 1 : 0;
  }
  EXPECT_LT(left, 20u);
  EXPECT_GT(left, 0u);
  EXPECT_EQ(Fetch(19).reason, MissReason::kEvicted);
}

TEST_F(TierStackTest, APinnedBlockStaysWhereItIsWhateverComes) {
  Open(false, 2 * kMiB);
  ASSERT_TRUE(Put(1));
  auto held = Fetch(1);
  const std::byte* where = held.pin.record().data();
  for (uint64_t i = 100; i < 200; ++i) ASSERT_TRUE(Put(i));
  EXPECT_EQ(held.pin.record().data(), where);
  EXPECT_TRUE(VerifyTestRecord(held.pin.record()));
  std::vector<TierStack::Fetched> all;
  for (uint64_t i = 100; i < 200; ++i) {
    auto one = Fetch(i);
    if (one.pin) all.push_back(std::move(one));
  }
  EXPECT_EQ(Put(500).error().code, Code::kResourceExhausted) << "everything is pinned";
  all.clear();
  EXPECT_TRUE(Put(500)) << "and now there is a victim";
}

TEST_F(TierStackTest, AForgottenBlockLivesUntilItsLastPin) {
  Open(false);
  ASSERT_TRUE(Put(1));
  auto held = Fetch(1);
  stack_->MarkCorrupt(KeyOf(1));
  EXPECT_EQ(Fetch(1).reason, MissReason::kCorrupt);
  EXPECT_TRUE(VerifyTestRecord(held.pin.record()));
  held.pin.Release();
  EXPECT_EQ(stack_->arena().used_bytes(), 0u);
}

TEST_F(TierStackTest, EvictedToSsdItComesBackWholeAndOneReadServesAll) {
  Open(true, 2 * kMiB);
  std::set<uint64_t> durable;
  for (uint64_t i = 0; i < 100; ++i) {
    while (!Put(Info(i), i, 50'000, [&durable, i](Status s) {
      if (s) durable.insert(i);
    }))
      stack_->Poll();
    stack_->Poll();
  }
  WaitForDisk();
  EXPECT_EQ(durable.size(), 100u);
  EXPECT_EQ(stack_->Lookup(kSpace, KeyOf(0), QualityClass::kExact, Prefer::kGood).tier, Tier::kSsd);
  int answers = 0;
  for (int i = 0; i < 3; ++i) {
    stack_->Fetch(kSpace, KeyOf(0), {}, [&](TierStack::Fetched fetched) {
      ASSERT_TRUE(fetched.pin);
      EXPECT_EQ(fetched.tier, Tier::kSsd);
      const auto record = fetched.pin.record();
      EXPECT_TRUE(std::equal(record.begin(), record.end(), RecordOf(0, 50'000).begin()));
      ++answers;
    });
  }
  while (answers < 3) stack_->Poll();
  EXPECT_EQ(stack_->stats().ssd.read_bytes, 50'000u);
  EXPECT_EQ(Fetch(0).tier, Tier::kHost) << "promoted";
}

TEST_F(TierStackTest, WhatWaitsToBeWrittenDoesNotFillWhatItsNameSpaceMayHave) {
  quotas_[kSpace] = {0, 2 * kMiB};
  Open(true, 16 * kMiB);
  // Nothing is written meanwhile, since nobody polls.
  for (uint64_t n = 1; n <= 100; ++n) {
    TierStack::PutInfo info = Info(n);
    info.parent = {};
    const Status put = Put(info, n);
    ASSERT_TRUE(put) << n << ": " << put.error().message;
  }
  EXPECT_GT(stack_->stats().write_behind_skipped, 0u);
}

TEST_F(TierStackTest, WhatIsOnSsdMayBeFewerBytesThanWhatIsInRam) {
  recode_ = [](SsdEntry* entry, ByteSpan record) -> ByteSpan {
    static thread_local std::vector<std::byte> smaller;
    smaller = RecordOf(77, record.size() / 2);
    entry->record_bytes = static_cast<uint32_t>(smaller.size());
    return smaller;
  };
  Open(true);
  for (uint64_t n = 0; n < 8; ++n) ASSERT_TRUE(Put(Info(1000 + n), 1000 + n));
  EXPECT_EQ(stack_->stats().record_bytes, 8 * 50'000u);
  WaitForDisk();
  EXPECT_EQ(Fetch(1003).pin.record().size(), 50'000u) << "the copy in RAM stays as it is";
  const auto before = stack_->stats();
  EXPECT_EQ(before.ssd.recoded, 8u);
  EXPECT_EQ(before.ssd.recoded_from_bytes, 8 * 50'000u);
  EXPECT_EQ(before.ssd.written_bytes, 8 * 25'000u);
  for (uint64_t n = 0; n < 200; ++n)
    ASSERT_TRUE(Put(Info(2000 + n), 2000 + n, 49'000));  // Out of RAM.
  WaitForDisk();
  EXPECT_EQ(stack_->Lookup(kSpace, KeyOf(1003), QualityClass::kExact, Prefer::kGood).record_bytes,
            25'000u);
  const auto fetched = Fetch(1003);
  EXPECT_EQ(fetched.tier, Tier::kSsd);
  EXPECT_EQ(fetched.pin.record().size(), 25'000u);
  EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
  uint64_t sum = 0;
  for (const uint64_t first : {1000, 2000}) {
    for (uint64_t n = 0; n < (first == 1000 ? 8 : 200); ++n) {
      sum += stack_->Lookup(kSpace, KeyOf(first + n), QualityClass::kExact, Prefer::kGood)
                 .record_bytes;
    }
  }
  EXPECT_EQ(stack_->stats().record_bytes, sum);
}

TEST_F(TierStackTest, ANameSpaceThatAllowsItKeepsALossyRecordOnSsdAndTheExactOneInRam) {
  recode_ = [](SsdEntry* entry, ByteSpan record) -> ByteSpan {
    if (entry->demote_to == QualityClass::kExact) return {};
    static thread_local std::vector<std::byte> smaller;
    smaller = RecordOf(78, record.size() / 5);
    entry->record_bytes = static_cast<uint32_t>(smaller.size());
    entry->quality = entry->demote_to;
    return smaller;
  };
  demote_to_ = QualityClass::kBalanced;
  TierStack::FetchOptions accepts;
  accepts.min_class = QualityClass::kBalanced;
  Open(true);
  ASSERT_TRUE(Put(1));
  std::optional<Status> durable;
  ASSERT_TRUE(Put(Info(2), 2, 50'000, [&](Status status) { durable = std::move(status); }));
  WaitForDisk();
  ASSERT_TRUE(durable && *durable);
  EXPECT_EQ(stack_->stats().demoted, 1u) << "whoever asked for durable gets what was put";
  EXPECT_EQ(Fetch(1).pin.quality(), QualityClass::kExact);
  accepts.prefer = Prefer::kSmall;
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.record().size(), 10'000u);
  for (uint64_t n = 0; n < 200; ++n) ASSERT_TRUE(Put(Info(2000 + n), 2000 + n, 49'000));
  WaitForDisk();
  EXPECT_EQ(Fetch(1).reason, MissReason::kOtherClass) << "never served to who did not accept it";
  EXPECT_EQ(Fetch(1, kSpace, accepts).pin.quality(), QualityClass::kBalanced);
  EXPECT_EQ(Fetch(2).pin.quality(), QualityClass::kExact);
  Open(true);
  EXPECT_EQ(Fetch(1).reason, MissReason::kOtherClass);
  const auto fetched = Fetch(1, kSpace, accepts);
  ASSERT_TRUE(fetched.pin);
  EXPECT_EQ(fetched.pin.quality(), QualityClass::kBalanced);
  EXPECT_TRUE(VerifyTestRecord(fetched.pin.record()));
}

TEST_F(TierStackTest, AFlippedBitInRamOrOnDiskIsAMissWithItsReason) {
  Open(true, 2 * kMiB);
  ASSERT_TRUE(Put(1));
  ASSERT_TRUE(stack_->CorruptForTest(KeyOf(1), 8 * 777, Tier::kHost));
  WaitForDisk();  // The wrong byte goes to disk, as it would.
  for (uint64_t i = 100; i < 200; ++i) {
    while (!Put(i)) stack_->Poll();
  }
  WaitForDisk();
  ASSERT_EQ(stack_->Lookup(kSpace, KeyOf(1), QualityClass::kExact, Prefer::kGood).tier, Tier::kSsd);
  EXPECT_EQ(Fetch(1).reason, MissReason::kCorrupt);
  EXPECT_EQ(stack_->stats().corrupt, 1u);
}

TEST_F(TierStackTest, ClearingForgetsForGood) {
  Open(true);
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(Put(i));
  WaitForDisk();
  EXPECT_EQ(*stack_->Clear(kSpace, Scope{}), 20u);
  EXPECT_EQ(Fetch(5).reason, MissReason::kCleared);
  ASSERT_TRUE(Put(30));
  WaitForDisk();
  Open(true);
  EXPECT_EQ(stack_->stats().blocks, 1u);
  EXPECT_TRUE(Fetch(30).pin);
}

TEST_F(TierStackTest, ARestartServesEverythingThatWasFlushed) {
  Open(true);
  int durable = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(
        Put(Info(i, i), i, 50'000, [&durable](Status status) { durable += status ? 1 : 0; }));
  }
  WaitForDisk();
  EXPECT_EQ(durable, 50);
  Open(true);
  for (uint64_t i = 0; i < 50; ++i) {
    const auto fetched = Fetch(i);
    ASSERT_TRUE(fetched.pin) << i;
    EXPECT_EQ(fetched.tier, Tier::kSsd);
    const auto expected = RecordOf(i, 50'000);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), fetched.pin.record().begin()));
  }
}

// Whatever happens: right bytes or a miss, every miss with a reason, no room lost.
TEST_F(TierStackTest, MatchesAModelUnderRandomUse) {
  const int seeds = std::getenv("TIERCEL_FULL") != nullptr ? 50 : 4;
  for (int seed = 1; seed <= seeds; ++seed) {
    Open(seed % 2 == 0, 2 * kMiB, 8 * kMiB);
    SplitMix64 random(static_cast<uint64_t>(seed));
    std::vector<TierStack::Fetched> held;
    uint64_t asked = 0;
    uint64_t served = 0;
    const uint64_t base = static_cast<uint64_t>(seed) * 1000;
    for (int step = 0; step < 4000; ++step) {
      const uint64_t n = base + random.Below(120);
      switch (random.Below(6)) {
        case 0:
        case 1: {
          const Status put = Put(Info(n, n % 40), n, 10'000 + n % 9 * 8'000);
          if (!put) {
            EXPECT_THAT(put.error().code,
                        ::testing::AnyOf(Code::kAlreadyExists, Code::kResourceExhausted));
          }
          break;
        }
        case 2: {
          std::vector<BlockKey> keys;
          for (uint64_t i = 0; i < 8; ++i) keys.push_back(KeyOf(n + i));
          stack_->Touch(kSpace, keys);
          break;
        }
        case 3:
          if (!held.empty())
            held.erase(held.begin() + static_cast<long>(random.Below(held.size())));
          break;
        default: {
          ++asked;
          auto fetched = Fetch(n);
          if (!fetched.pin) {
            EXPECT_NE(fetched.reason, MissReason::kNone);
            EXPECT_NE(fetched.reason, MissReason::kUnknown);
            break;
          }
          ++served;
          const auto expected = RecordOf(n, 10'000 + n % 9 * 8'000);
          ASSERT_TRUE(std::equal(expected.begin(), expected.end(), fetched.pin.record().begin()));
          if (held.size() < 6) held.push_back(std::move(fetched));
        }
      }
      stack_->Poll();
    }
    const auto stats = stack_->stats();
    uint64_t reasons = 0;
    for (const uint64_t count : stats.reasons) reasons += count;
    EXPECT_EQ(stats.misses, reasons);
    EXPECT_EQ(stats.misses + served, asked);
    EXPECT_EQ(stats.hits_host + stats.hits_ssd, served);
    held.clear();
    WaitForDisk();
    EXPECT_EQ(stack_->stats().pinned, 0u);
    ASSERT_TRUE(stack_->Clear(kSpace, Scope{}));
    EXPECT_EQ(stack_->arena().used_bytes(), 0u);
  }
}

}  // namespace
}  // namespace tiercel
