#include "proto/view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/random.h"
#include "tests/proto/golden.h"

namespace tiercel {
namespace {

using ::testing::HasSubstr;
using nlohmann::json;

PlacementKey Anchor(uint64_t seed) {
  PlacementKey key;
  SplitMix64 random(seed);
  for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(key.bytes.data() + i, random.Next());
  return key;
}

View ThreeNodes() {
  View view;
  view.epoch = 1;
  view.nodes = {{"a", "127.0.0.1:1", "z1", {100, 100}},
                {"b", "127.0.0.1:2", "z1", {100}},
                {"c", "127.0.0.1:3", "z2", {50, 300}}};
  return view;
}

TEST(PlacementTest, GoldenVectors) {
  const View view = ThreeNodes();
  const Placement placement(view);
  json anchors = json::array();
  for (uint64_t i = 0; i < 64; ++i) {
    const auto owner = placement.Owner(Anchor(i));
    const auto second = placement.Second(Anchor(i));
    anchors.push_back({{"anchor", ToHex(Anchor(i).bytes)},
                       {"hash_a0", std::to_string(PlacementHash(Anchor(i), ShardSeed("a", 0)))},
                       {"owner", view.nodes[owner.node].id + "/" + std::to_string(owner.shard)},
                       {"second", view.nodes[second.node].id + "/" + std::to_string(second.shard)}});
  }
  json logs = json::array();
  for (const uint64_t hash : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{0x7fffffffffffffff},
                              uint64_t{0x123456789abcdef0}, UINT64_MAX - 1, UINT64_MAX}) {
    logs.push_back({{"hash", std::to_string(hash)}, {"neg_log2", std::to_string(NegLog2Fixed(hash))}});
  }
  ExpectGolden("placement", {{"view", json::parse(FormatView(view))},
                             {"seed_a0", std::to_string(ShardSeed("a", 0))},
                             {"neg_log2", logs},
                             {"anchors", anchors}});
}

TEST(PlacementTest, TheFixedPointLogarithmIsTheLogarithm) {
  SplitMix64 random(7);
  for (int i = 0; i < 10'000; ++i) {
    const uint64_t hash = random.Next() >> random.Below(60);
    const double exact = 64.0 - std::log2(static_cast<double>(hash) + 1.0);
    EXPECT_NEAR(static_cast<double>(NegLog2Fixed(hash)) / 4294967296.0, exact, 1e-8) << hash;
  }
}

TEST(PlacementTest, SharesFollowTheWeights) {
  const View view = ThreeNodes();
  const Placement placement(view);
  std::map<std::pair<uint32_t, uint32_t>, int> counts;
  constexpr int kAnchors = 65'000;
  for (uint64_t i = 0; i < kAnchors; ++i) {
    const auto owner = placement.Owner(Anchor(i));
    ++counts[{owner.node, owner.shard}];
  }
  for (const auto& [slot, count] : counts) {
    const double weight = view.nodes[slot.first].shard_weights[slot.second];
    EXPECT_NEAR(count, kAnchors * weight / 650.0, kAnchors * weight / 650.0 * 0.08);
  }
  EXPECT_EQ(counts.size(), 5u);
}

TEST(PlacementTest, ANodeThatLeavesMovesOnlyItsOwn) {
  const View before = ThreeNodes();
  View after = before;
  after.nodes.erase(after.nodes.begin() + 1);
  const Placement was(before);
  const Placement is(after);
  for (uint64_t i = 0; i < 5000; ++i) {
    const auto old_owner = was.Owner(Anchor(i));
    if (before.nodes[old_owner.node].id == "b") continue;
    const auto new_owner = is.Owner(Anchor(i));
    EXPECT_EQ(before.nodes[old_owner.node].id, after.nodes[new_owner.node].id);
    EXPECT_EQ(old_owner.shard, new_owner.shard);
  }
}

TEST(PlacementTest, TheSecondIsOnAnotherNodeAndInAnotherZoneWhereThereIsOne) {
  const View view = ThreeNodes();
  const Placement placement(view);
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto owner = placement.Owner(Anchor(i));
    const auto second = placement.Second(Anchor(i));
    EXPECT_NE(owner.node, second.node);
    EXPECT_NE(view.nodes[owner.node].zone, view.nodes[second.node].zone);
  }
  View one = view;
  one.nodes.resize(1);
  EXPECT_EQ(Placement(one).Second(Anchor(1)).node, 0u);
}

TEST(ViewTest, AShardOfWeightZeroTakesNothing) {
  View view = ThreeNodes();
  view.nodes[2].shard_weights[1] = 0;
  const Placement placement(view);
  EXPECT_EQ(placement.size(), 4u);
  for (uint64_t i = 0; i < 2000; ++i) {
    EXPECT_NE(placement.Owner(Anchor(i)), (Placement::Slot{2, 1}));
  }
}

TEST(ViewTest, ReadsWhatItWrites) {
  const Result<View> view = ParseView(FormatView(ThreeNodes()));
  ASSERT_TRUE(view) << view.error().message;
  EXPECT_EQ(FormatView(*view), FormatView(ThreeNodes()));
}

TEST(ViewTest, SaysWhatIsWrongAndWhere) {
  const auto error = [](std::string_view text) {
    const Result<View> view = ParseView(text);
    return view ? std::string("accepted") : view.error().message;
  };
  EXPECT_THAT(error("{"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error(R"({"nodes":[]})"), HasSubstr("epoch"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[],"node":1})"), HasSubstr("unknown key 'node'"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[{"id":"a","endpoint":"x","shards":[-1]}]})"),
              HasSubstr("nodes[0].shards holds -1"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[{"id":"a","endpoint":"x","shards":[]}]})"), HasSubstr("0 shards"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[{"id":"a","endpoint":"","shards":[1]}]})"), HasSubstr("no endpoint"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[{"id":"a","endpoint":"x","shards":[1]},
                                            {"id":"a","endpoint":"y","shards":[1]}]})"),
              HasSubstr("'a' appears twice"));
  EXPECT_THAT(error(R"({"epoch":1,"nodes":[{"id":7,"endpoint":"x","shards":[1]}]})"), HasSubstr("id is not a string"));
}

}  // namespace
}  // namespace tiercel
