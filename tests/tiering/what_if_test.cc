#include "tiering/what_if.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <list>
#include <unordered_map>

#include "base/random.h"
#include "tests/tiering/records.h"

namespace tiercel {
namespace {

constexpr uint64_t kBytes = 1000;
constexpr uint32_t kSpace = 7;

BlockKey Key(uint64_t n) {
  BlockKey key;
  SplitMix64 random(n);
  for (size_t i = 0; i < 4; ++i) StoreLe<uint64_t>(key.bytes.data() + 8 * i, random.Next());
  return key;
}

// LRU over blocks of equal size; returns whether the key was there.
class Lru {
 public:
  explicit Lru(size_t blocks) : blocks_(blocks) {}
  bool Use(uint64_t key) {
    const auto found = where_.find(key);
    const bool here = found != where_.end();
    if (here) order_.erase(found->second);
    order_.push_front(key);
    where_[key] = order_.begin();
    if (order_.size() > blocks_) {
      where_.erase(order_.back());
      order_.pop_back();
    }
    return here;
  }

 private:
  const size_t blocks_;
  std::list<uint64_t> order_;
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> where_;
};

// Keys of a skewed popularity, as a node of `blocks` blocks of RAM is asked for them.
double Worst(size_t blocks, size_t samples, int uses, const WhatIf** out = nullptr) {
  static std::unique_ptr<WhatIf> what_if;
  what_if = std::make_unique<WhatIf>(blocks * kBytes, 3, samples);
  std::vector<Lru> lrus;
  for (const double size : WhatIf::kSizes) lrus.emplace_back(static_cast<size_t>(size * static_cast<double>(blocks)));
  std::vector<double> hits(lrus.size(), 0);
  SplitMix64 random(11);
  for (int i = 0; i < uses; ++i) {
    const double lot = static_cast<double>(random.Below(1u << 30)) / (1u << 30);
    const auto key = static_cast<uint64_t>(std::pow(lot, 3) * 20 * static_cast<double>(blocks));
    for (size_t s = 0; s < lrus.size(); ++s) hits[s] += lrus[s].Use(key) ? 1 : 0;
    what_if->Asked(kSpace, Key(key), false);
    what_if->Stored(kSpace, Key(key), kBytes);
  }
  const WhatIf::Curve& curve = what_if->curves().at(kSpace);
  double worst = 0;
  for (size_t s = 0; s < lrus.size(); ++s) worst = std::max(worst, std::abs(curve.hits[s] / curve.asked - hits[s] / uses));
  if (out != nullptr) *out = what_if.get();
  return worst;
}

TEST(WhatIfTest, WithEveryKeyRememberedTheCurveIsThatOfLru) {
  const WhatIf* what_if = nullptr;
  EXPECT_LT(Worst(64, 4096, 50000, &what_if), 1e-9);
  EXPECT_EQ(what_if->one_in(), 1u);
  EXPECT_EQ(what_if->curves().at(kSpace).asked, 50000);
}

TEST(WhatIfTest, ASampleGivesTheCurveWithinAFewHundredths) {
  const WhatIf* what_if = nullptr;
  EXPECT_LT(Worst(2000, 4096, 300000, &what_if), 0.05);
  EXPECT_GT(what_if->one_in(), 4u);
  EXPECT_LE(what_if->samples(), 4096u);
}

TEST(WhatIfTest, WhatIsStoredUnaskedCountsOnceAndSoDoesAMissThatIsStoredThen) {
  WhatIf what_if(100 * kBytes, 3);
  what_if.Stored(kSpace, Key(1), kBytes);
  EXPECT_EQ(what_if.curves().at(kSpace).asked, 1);
  what_if.Asked(kSpace, Key(2), false);
  what_if.Stored(kSpace, Key(2), kBytes);
  EXPECT_EQ(what_if.curves().at(kSpace).asked, 2);
  what_if.Asked(kSpace, Key(2), true);
  what_if.Stored(kSpace, Key(2), kBytes);  // It was evicted, and matched in vain.
  EXPECT_EQ(what_if.curves().at(kSpace).asked, 4);
  EXPECT_EQ(what_if.curves().at(kSpace).seen, 2);
  EXPECT_EQ(what_if.curves().at(kSpace).hits.front(), 2);
}

TEST(WhatIfTest, NameSpacesShareTheRamAndHaveCurvesOfTheirOwn) {
  WhatIf what_if(4 * kBytes, 3);
  what_if.Stored(1, Key(0), kBytes);
  for (uint64_t n = 1; n <= 5; ++n) what_if.Stored(2, Key(n), kBytes);
  what_if.Asked(1, Key(0), true);  // Five others since: it fits in twice the RAM.
  const WhatIf::Curve& curve = what_if.curves().at(1);
  EXPECT_EQ(curve.asked, 2);
  EXPECT_THAT(curve.hits, ::testing::ElementsAre(0, 0, 0, 0, 1, 1, 1, 1));
  EXPECT_EQ(curve.seen, 1);
  EXPECT_EQ(what_if.curves().at(2).asked, 5);
}

TEST(WhatIfTest, AFloodOfKeysNeitherGrowsItNorDrivesOutTheSampling) {
  WhatIf what_if(100 * kBytes, 3, 1024);
  for (uint64_t n = 0; n < 1000000; ++n) {
    what_if.Asked(kSpace, Key(n), false);
    if (n % 4 == 0) what_if.Stored(kSpace, Key(n), kBytes);
  }
  EXPECT_LE(what_if.samples(), 1024u);
  EXPECT_LE(what_if.one_in(), 4u);  // 32 times RAM are 3200 blocks.
  EXPECT_NEAR(what_if.curves().at(kSpace).asked, 1000000, 50000);
  EXPECT_EQ(what_if.curves().at(kSpace).seen, 0);
}

}  // namespace
}  // namespace tiercel
