// What tiering/eviction.h promises, as tests that every policy must pass, those of MakePolicy by
// name:
//
//   INSTANTIATE_TEST_SUITE_P(All, PolicyConformance, ::testing::ValuesIn(PolicyNames()));
#ifndef TIERCEL_TESTS_CONFORMANCE_POLICY_CONFORMANCE_H_
#define TIERCEL_TESTS_CONFORMANCE_POLICY_CONFORMANCE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/tiering/records.h"
#include "tiering/block_index.h"
#include "tiering/eviction.h"

namespace tiercel {

class PolicyConformance : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr uint64_t kBytes = 4096;

  PolicyConformance() : policy_(*MakePolicy(GetParam(), 1)) {}
  ~PolicyConformance() override {
    while (!blocks_.empty()) Drop(blocks_.begin()->second);
  }

  static uint64_t Number(uint64_t chain, uint32_t i) { return chain * 100'000 + i; }
  Block* Find(uint64_t chain, uint32_t i) {
    const auto found = blocks_.find(Number(chain, i));
    return found == blocks_.end() ? nullptr : found->second;
  }
  // Block i of a chain comes in, as a node does it.
  Block* Put(uint64_t chain, uint32_t i, ReuseHint hint = ReuseHint::kUnknown,
             uint32_t name_space = 1) {
    SsdEntry entry;
    entry.key = KeyOf(Number(chain, i));
    if (i > 0) entry.parent = KeyOf(Number(chain, i - 1));
    entry.name_space = name_space;
    entry.chain_index = i;
    entry.record_bytes = kBytes;
    Block* block = index_.Insert(entry);
    block->host.bytes = kBytes;
    BlockUse use;
    use.now = now_;
    use.hint = hint;
    use.parent = i > 0 ? Find(chain, i - 1) : nullptr;
    use.grandparent = i > 1 ? Find(chain, i - 2) : nullptr;
    policy_->Add(*block, use);
    block->counted = i % kBlocksPerRun != 0;
    if (block->counted) index_.ChildEntered(block->parent);
    blocks_[Number(chain, i)] = block;
    return block;
  }
  void PutChain(uint64_t chain, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) Put(chain, i);
  }
  // The chain's head is used, as far as it is here.
  uint32_t TouchChain(uint64_t chain, uint32_t most, ReuseHint hint = ReuseHint::kUnknown) {
    BlockUse use;
    use.now = now_;
    use.hint = hint;
    uint32_t i = 0;
    for (; i < most && Find(chain, i) != nullptr; ++i) {
      policy_->Touch(*Find(chain, i), use);
      use.grandparent = use.parent;
      use.parent = Find(chain, i);
    }
    return i;
  }
  void Drop(Block* block) {
    policy_->Remove(*block);
    if (block->counted) index_.ChildLeft(block->parent);
    std::erase_if(blocks_, [block](const auto& one) { return one.second == block; });
    (void)index_.Remove(block);
  }
  static bool MayGo(const Block& block) {
    return EvictionPolicy::CanGo(block) && block.resident_children == 0;
  }
  // Requests as they come: known chains grow, new ones begin, what does not fit goes.
  std::vector<BlockKey> RunTraffic(uint64_t seed, size_t capacity, int requests) {
    SplitMix64 random(seed);
    std::vector<BlockKey> victims;
    std::map<uint64_t, uint32_t> length;
    for (int r = 0; r < requests; ++r) {
      now_ += static_cast<Nanos>(random.Below(4000)) * kMillisecond;
      const uint64_t chain = random.Below(60);
      uint32_t& n = length[chain];
      n = std::min<uint32_t>(n + 1 + static_cast<uint32_t>(random.Below(30)), 90);
      const auto hint = static_cast<ReuseHint>(random.Below(4));
      for (uint32_t i = TouchChain(chain, n, hint); i < n; ++i) {
        if (Find(chain, i) != nullptr) continue;
        while (blocks_.size() >= capacity) {
          Block* victim = policy_->Victim(1, nullptr);
          if (victim == nullptr) return victims;
          EXPECT_TRUE(EvictionPolicy::CanGo(*victim));
          EXPECT_TRUE(victim->resident_children == 0 || None(MayGo)) << "a block with a child went";
          victims.push_back(victim->key);
          Drop(victim);
        }
        Put(chain, i, hint);
      }
      EXPECT_EQ(policy_->size(), blocks_.size());
    }
    return victims;
  }
  template <class Predicate>
  bool None(Predicate&& predicate) const {
    return std::none_of(blocks_.begin(), blocks_.end(),
                        [&](const auto& one) { return predicate(*one.second); });
  }

  BlockIndex index_{0};
  std::unique_ptr<EvictionPolicy> policy_;
  std::map<uint64_t, Block*> blocks_;
  Nanos now_ = kSecond;
};

TEST_P(PolicyConformance, NoVictimIsInUseOrHasAChildOfItsRunHere) {
  EXPECT_GT(RunTraffic(1, 500, 1200).size(), 3000u);
}

TEST_P(PolicyConformance, EqualUsesGiveEqualVictims) {
  const std::vector<BlockKey> victims = RunTraffic(7, 300, 600);
  while (!blocks_.empty()) Drop(blocks_.begin()->second);
  policy_ = *MakePolicy(GetParam(), 1);
  now_ = kSecond;
  EXPECT_EQ(RunTraffic(7, 300, 600), victims);
}

TEST_P(PolicyConformance, OfAChainTheTailGoesFirstWhateverItsLength) {
  PutChain(1, 100);
  for (uint32_t left = 100; left > 0; --left) {
    Block* victim = policy_->Victim(1, nullptr);
    ASSERT_NE(victim, nullptr);
    EXPECT_EQ(victim, Find(1, left - 1))
        << "of " << left << " blocks that one went which has index " << victim->chain_index;
    Drop(victim);
  }
  EXPECT_EQ(policy_->Victim(1, nullptr), nullptr);
}

TEST_P(PolicyConformance, AVictimIsFoundWheneverOneCanGo) {
  PutChain(1, 40);
  PutChain(2, 10);
  Block* last = Find(1, 39);
  for (const auto& [number, block] : blocks_) block->pins = block == last ? 0 : 1;
  EXPECT_EQ(policy_->Victim(1, nullptr), last);
  last->reading = true;
  EXPECT_EQ(policy_->Victim(1, nullptr), nullptr);
  EXPECT_EQ(policy_->Victim(1, nullptr), nullptr);
  Block* parent = Find(1, 5);
  parent->pins = 0;
  policy_->Unpinned(*parent);
  EXPECT_EQ(policy_->Victim(1, nullptr), parent) << "a parent goes rather than none";
  last->reading = false;
  for (const auto& [number, block] : blocks_) block->pins = 0;
  policy_->Unpinned(*last);
  Block* victim = policy_->Victim(1, nullptr);
  ASSERT_NE(victim, nullptr);
  EXPECT_EQ(victim->resident_children, 0u);
}

TEST_P(PolicyConformance, NameSpacesAreApart) {
  Block* one = Put(1, 0, ReuseHint::kUnknown, 1);
  Block* other = Put(2, 0, ReuseHint::kUnknown, 2);
  EXPECT_EQ(policy_->Victim(1, nullptr), one);
  EXPECT_EQ(policy_->Victim(2, nullptr), other);
  EXPECT_EQ(policy_->Victim(3, nullptr), nullptr);
  EXPECT_TRUE(policy_->Holds(*one));
  Drop(one);
  EXPECT_EQ(policy_->Victim(1, nullptr), nullptr);
  EXPECT_EQ(policy_->Victim(2, nullptr), other);
  EXPECT_EQ(policy_->size(), 1u);
}

TEST_P(PolicyConformance, AVisitBeginsWithTheVictimAndSeesWhatMayGoAlone) {
  RunTraffic(3, 400, 800);
  Block* coldest = policy_->Victim(1, nullptr);
  size_t seen = 0;
  policy_->VisitColdest(1, [&](Block& block) {
    EXPECT_TRUE(MayGo(block));
    if (seen++ == 0) {
      EXPECT_EQ(&block, coldest);
    }
    return true;
  });
  EXPECT_GT(seen, 0u);
  size_t first = 0;
  policy_->VisitColdest(1, [&](Block&) { return ++first < 3; });
  EXPECT_LE(first, 3u);
}

TEST_P(PolicyConformance, TheHottestAreFewAndNotNone) {
  RunTraffic(5, 1000, 1500);
  const uint64_t from = policy_->RecentFrom(1);
  uint64_t hot = 0;
  for (const auto& [number, block] : blocks_) hot += policy_->Rank(*block) >= from ? 1 : 0;
  EXPECT_GE(hot, 1u);
  EXPECT_LE(hot, blocks_.size() / 3);
  EXPECT_EQ(policy_->RecentFrom(9), UINT64_MAX);
}

TEST_P(PolicyConformance, OneThatFitsGoesBeforeAColderOneThatDoesNot) {
  for (uint64_t chain = 0; chain < 40; ++chain) {
    now_ += kSecond;
    Put(chain, 0);
  }
  Block* coldest = policy_->Victim(1, nullptr);
  Block* fitting = nullptr;
  int nth = 0;
  policy_->VisitColdest(1, [&](Block& block) {
    fitting = &block;
    return ++nth < 4;
  });
  EXPECT_EQ(policy_->Victim(1, [&](const Block& block) { return &block == fitting; }), fitting);
  EXPECT_EQ(policy_->Victim(1, [](const Block&) { return false; }), coldest);
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_CONFORMANCE_POLICY_CONFORMANCE_H_
