#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "base/random.h"
#include "client/cpp/breaker.h"
#include "client/cpp/request_table.h"
#include "client/cpp/router.h"
#include "client/cpp/staging.h"
#include "client/cpp/view_source.h"

namespace tiercel {
namespace {

TEST(BreakerTest, OpensAfterFiveFailuresInARow) {
  Breaker breaker(1);
  for (int i = 0; i < 4; ++i) breaker.Failed(i * kSecond);
  EXPECT_FALSE(breaker.open());
  breaker.Failed(5 * kSecond);
  EXPECT_TRUE(breaker.open());
}

TEST(BreakerTest, ASuccessBreaksTheRow) {
  Breaker breaker(1);
  for (int i = 0; i < 12; ++i) {
    for (int j = 0; j < 4; ++j) breaker.Failed(i * kSecond);
    breaker.Succeeded(i * kSecond);
  }
  EXPECT_FALSE(breaker.open());
}

TEST(BreakerTest, OpensWhenOverHalfOfTwentyFailWithinTheWindow) {
  Breaker breaker(1);
  for (int i = 0; i < 7; ++i) {
    breaker.Failed(1);
    breaker.Failed(1);
    if (i < 6) breaker.Succeeded(1);
  }
  EXPECT_TRUE(breaker.open());
}

TEST(BreakerTest, SamplesOfAnOlderWindowDoNotCount) {
  Breaker breaker(1);
  for (int i = 0; i < 40; ++i) {
    breaker.Failed(i * 100 * kMillisecond);
    if (i % 4 == 3) breaker.Succeeded(i * 100 * kMillisecond);
  }
  EXPECT_FALSE(breaker.open());
}

TEST(BreakerTest, ProbesAboutEveryQuarterSecondUntilOneSucceeds) {
  Breaker breaker(7);
  for (int i = 0; i < 5; ++i) breaker.Failed(0);
  EXPECT_FALSE(breaker.ProbeDue(200 * kMillisecond));
  int probes = 0;
  for (Nanos now = 0; now < 10 * kSecond; now += kMillisecond)
    probes += breaker.ProbeDue(now) ? 1 : 0;
  EXPECT_GE(probes, 36);
  EXPECT_LE(probes, 44);
  breaker.Succeeded(10 * kSecond);
  EXPECT_FALSE(breaker.open());
  EXPECT_FALSE(breaker.ProbeDue(20 * kSecond));
}

View TwoNodes(uint64_t epoch) {
  View view;
  view.epoch = epoch;
  view.nodes = {{"a", "host-a:1", "", {100}}, {"b", "host-b:1", "", {100}}};
  return view;
}

PlacementKey Anchor(uint64_t n) {
  PlacementKey key;
  SplitMix64 random(n);
  for (size_t i = 0; i < 4; ++i) StoreLe(key.bytes.data() + i * 8, random.Next());
  return key;
}

TEST(RouterTest, FindsWhereABlockSatBeforeAViewChangeUntilTheGraceIsOver) {
  View one;
  one.epoch = 1;
  one.nodes = {{"a", "host-a:1", "", {100}}};
  Router router(one);
  router.Replace(TwoNodes(2), 100);
  int moved = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const PlacementKey anchor = Anchor(i);
    const auto before = router.PreviousOwner(anchor, 101);
    if (router.Owner(anchor).node->id == "a") {
      EXPECT_FALSE(before.has_value());
      continue;
    }
    ++moved;
    ASSERT_TRUE(before.has_value());
    EXPECT_EQ(before->node->id, "a");
    EXPECT_FALSE(router.PreviousOwner(anchor, 100 + kViewGrace).has_value());
  }
  EXPECT_GT(moved, 60);
  EXPECT_LT(moved, 140);
}

TEST(RouterTest, AnEmptyViewOwnsNothing) {
  const Router router{View{}};
  EXPECT_EQ(router.Owner(Anchor(1)).node, nullptr);
}

TEST(RouterTest, StretchesAreLongestAndBounded) {
  const std::vector<int> owner = {1, 1, 1, 2, 2, 1, 1, 1, 1, 1};
  std::vector<std::pair<uint32_t, uint32_t>> got;
  ForEachStretch(
      0, 10, 4, [&](uint32_t i) { return owner[i] == owner[i - 1]; },
      [&](uint32_t from, uint32_t to) { got.emplace_back(from, to); });
  const std::vector<std::pair<uint32_t, uint32_t>> want = {{0, 3}, {3, 5}, {5, 9}, {9, 10}};
  EXPECT_EQ(got, want);
}

TEST(StagingTest, GivesDisjointMemoryAndTakesItBack) {
  auto staging = Staging::Create(1 << 20);
  ASSERT_TRUE(staging);
  SplitMix64 random(3);
  std::map<std::byte*, MutableByteSpan> live;
  for (int i = 0; i < 20000; ++i) {
    if (random.Below(2) == 0 && !live.empty()) {
      auto it = live.begin();
      std::advance(it, static_cast<long>(random.Below(live.size())));
      (*staging)->Free(it->second);
      live.erase(it);
      continue;
    }
    const MutableByteSpan span = (*staging)->Allocate(1 + random.Below(100000));
    if (span.empty()) continue;
    const auto after = live.lower_bound(span.data());
    if (after != live.end()) {
      ASSERT_LE(span.data() + span.size(), after->first);
    }
    if (after != live.begin()) {
      ASSERT_LE(std::prev(after)->second.data() + std::prev(after)->second.size(), span.data());
    }
    live.emplace(span.data(), span);
  }
  for (auto& [at, span] : live) (*staging)->Free(span);
  EXPECT_EQ((*staging)->used(), 0u);
  EXPECT_FALSE((*staging)->Allocate(1 << 20).empty()) << "holes must have merged again";
}

TEST(StagingTest, AnArenaThatIsFullSaysSo) {
  auto staging = Staging::Create(64 << 10);
  ASSERT_TRUE(staging);
  const MutableByteSpan all = (*staging)->Allocate(64 << 10);
  EXPECT_FALSE(all.empty());
  EXPECT_TRUE((*staging)->Allocate(1).empty());
  (*staging)->Free(all);
  EXPECT_FALSE((*staging)->Allocate(1).empty());
}

struct Item {
  uint64_t id = 0;
};

TEST(RequestTableTest, AStaleNumberFindsNothing) {
  RequestTable<Item> table(4);
  Item* first = table.Add();
  const uint64_t old = first->id;
  EXPECT_EQ(table.Find(old), first);
  table.Remove(first);
  EXPECT_EQ(table.Find(old), nullptr);
  Item* again = table.Add();
  EXPECT_NE(again->id, old);
  EXPECT_EQ(table.Find(old), nullptr);
  EXPECT_EQ(table.Find(0), nullptr);
  EXPECT_EQ(table.Find(UINT64_MAX), nullptr);
}

TEST(RequestTableTest, IsBounded) {
  RequestTable<Item> table(2);
  ASSERT_NE(table.Add(), nullptr);
  Item* second = table.Add();
  EXPECT_EQ(table.Add(), nullptr);
  table.Remove(second);
  EXPECT_NE(table.Add(), nullptr);
  EXPECT_EQ(table.live(), 2u);
}

TEST(ViewFileTest, IsReadAgainOnlyWhenItChanges) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("tiercel_view_test_" + std::to_string(getpid()));
  ViewFile file(path.string());
  EXPECT_FALSE(file.Poll());  // Missing: an error, once.
  EXPECT_TRUE(file.Poll());
  std::ofstream(path) << FormatView(TwoNodes(1));
  auto first = file.Poll();
  ASSERT_TRUE(first && *first);
  EXPECT_EQ((*first)->nodes.size(), 2u);
  auto again = file.Poll();
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->has_value());
  std::ofstream(path) << "{\"epoch\": 2, \"nodez\": []}";
  auto bad = file.Poll();
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message.find(path.string()), std::string::npos);
  std::filesystem::remove(path);
}

TEST(ViewMergeTest, NodesThatKnowOnlyThemselvesAreTakenTogether) {
  ViewMerge merge;
  View a;
  a.epoch = 1;
  a.nodes = {{"a", "0.0.0.0:1", "", {100}}};
  View b;
  b.epoch = 1;
  b.nodes = {{"b", "0.0.0.0:1", "", {100}}};
  auto one = merge.Take("near-a:1", FormatView(a));
  ASSERT_TRUE(one && *one);
  EXPECT_EQ((*one)->nodes[0].endpoint, "near-a:1") << "reached where it was asked";
  auto both = merge.Take("near-b:1", FormatView(b));
  ASSERT_TRUE(both && *both);
  EXPECT_EQ((*both)->nodes.size(), 2u);
  auto same = merge.Take("near-b:1", FormatView(b));
  ASSERT_TRUE(same);
  EXPECT_FALSE(same->has_value());
}

TEST(ViewMergeTest, TheHighestEpochOfARealViewCounts) {
  ViewMerge merge;
  ASSERT_TRUE(merge.Take("x:1", FormatView(TwoNodes(7))));
  auto older = merge.Take("y:1", FormatView(TwoNodes(6)));
  ASSERT_TRUE(older);
  EXPECT_FALSE(older->has_value());
  auto newer = merge.Take("y:1", FormatView(TwoNodes(8)));
  ASSERT_TRUE(newer && *newer);
  EXPECT_EQ((*newer)->epoch, 8u);
}

}  // namespace
}  // namespace tiercel
