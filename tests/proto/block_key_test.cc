#include "proto/block_key.h"

#include <gtest/gtest.h>

#include <gmock/gmock.h>

#include <set>

#include "base/random.h"
#include "proto/kv_layout.h"
#include "tests/proto/golden.h"

namespace tiercel {
namespace {

using nlohmann::json;

KvLayout SmolLayout() {
  KvLayout layout;
  layout.layers = 30;
  layout.kv_heads = 3;
  layout.head_dim_k = 64;
  layout.head_dim_v = 64;
  layout.tokens_per_block = 128;
  layout.dtype = Dtype::kBf16;
  return layout;
}

ScopeFields SmolFields() {
  ScopeFields fields;
  fields.model = "HuggingFaceTB/SmolLM2-135M-Instruct";
  fields.revision = "main";
  fields.layout = SmolLayout();
  return fields;
}

json ToJson(const ScopeFields& f) {
  return {{"model", f.model},
          {"revision", f.revision},
          {"adapters", f.adapters},
          {"rope", f.rope},
          {"salt", f.salt},
          {"dtype", static_cast<int>(f.layout.dtype)},
          {"layers", f.layout.layers},
          {"kv_heads", f.layout.kv_heads},
          {"head_dim_k", f.layout.head_dim_k},
          {"head_dim_v", f.layout.head_dim_v},
          {"tokens_per_block", f.layout.tokens_per_block},
          {"k_order", static_cast<int>(f.layout.k_order)},
          {"v_order", static_cast<int>(f.layout.v_order)},
          {"packing", static_cast<int>(f.layout.packing)},
          {"world", f.layout.world},
          {"engine", f.layout.engine},
          {"isa", f.layout.isa}};
}

// Every field changed on its own.
std::vector<ScopeFields> Variants() {
  std::vector<ScopeFields> all(16, SmolFields());
  size_t i = 1;
  all[i++].model = "other";
  all[i++].revision = "v2";
  all[i++].adapters = {"lora-a"};
  all[i++].adapters = {"lora-a", "lora-b"};
  all[i++].rope = "theta=100000";
  all[i++].salt = "tenant";
  all[i++].layout.layers = 31;
  all[i++].layout.kv_heads = 4;
  all[i++].layout.head_dim_k = 128;
  all[i++].layout.head_dim_v = 128;
  all[i++].layout.tokens_per_block = 256;
  all[i++].layout.dtype = Dtype::kFp16;
  all[i++].layout.k_order = AxisOrder::kHeadDimToken;
  all[i++].layout.engine = "vllm-cpu";
  all[i++].layout.isa = "vec";
  return all;
}

TEST(ScopeTest, GoldenVectors) {
  json vectors = json::array();
  for (const ScopeFields& fields : Variants()) {
    json entry = ToJson(fields);
    entry["scope"] = ToHex(MakeScope(fields)->bytes);
    vectors.push_back(entry);
  }
  ExpectGolden("scope", vectors);
}

TEST(ScopeTest, EveryFieldKeepsSharersApartButTheRankDoesNot) {
  std::set<Scope> scopes;
  for (const ScopeFields& fields : Variants()) scopes.insert(*MakeScope(fields));
  EXPECT_EQ(scopes.size(), Variants().size());
  ScopeFields ranked = SmolFields();
  ranked.layout.world = 2;
  const Scope first = *MakeScope(ranked);
  ranked.layout.rank = 1;
  EXPECT_EQ(*MakeScope(ranked), first);
}

TEST(ScopeTest, FieldBoundariesCannotBeMoved) {
  ScopeFields a = SmolFields();
  a.model = "ab";
  a.revision = "c";
  ScopeFields b = SmolFields();
  b.model = "a";
  b.revision = "bc";
  EXPECT_NE(*MakeScope(a), *MakeScope(b));
}

TEST(KvLayoutTest, CountsTheBytesOfABlock) {
  EXPECT_EQ(SmolLayout().block_bytes(), 30u * 2 * 128 * 3 * 64 * 2);
  KvLayout latent = SmolLayout();
  latent.packing = KvPacking::kLatent;
  latent.kv_heads = 1;
  latent.head_dim_k = 576;
  latent.head_dim_v = 0;
  ASSERT_TRUE(Validate(latent));
  EXPECT_EQ(latent.block_bytes(), 30u * 128 * 576 * 2);
}

TEST(KvLayoutTest, NamesTheFieldThatIsWrong) {
  const auto message = [](auto change) {
    KvLayout layout = SmolLayout();
    change(layout);
    const Status status = Validate(layout);
    return status ? std::string("accepted") : status.error().message;
  };
  EXPECT_THAT(message([](KvLayout& l) { l.layers = 0; }), ::testing::HasSubstr("layers is 0"));
  EXPECT_THAT(message([](KvLayout& l) { l.rank = 1; }), ::testing::HasSubstr("rank is 1"));
  EXPECT_THAT(message([](KvLayout& l) { l.head_dim_v = 0; }), ::testing::HasSubstr("head_dim_v"));
  EXPECT_THAT(message([](KvLayout& l) { l.tokens_per_block = 4096; l.kv_heads = 4096; }),
              ::testing::HasSubstr("block bytes"));
  EXPECT_THAT(message([](KvLayout& l) { l.dtype = static_cast<Dtype>(77); }), ::testing::HasSubstr("dtype is 77"));
}

std::array<std::byte, 32> EngineHash(uint64_t seed) {
  std::array<std::byte, 32> hash;
  SplitMix64 random(seed);
  for (size_t i = 0; i < hash.size(); i += 8) StoreLe<uint64_t>(hash.data() + i, random.Next());
  return hash;
}

TEST(BlockKeyTest, GoldenVectors) {
  json vectors = json::array();
  const Scope scope = *MakeScope(SmolFields());
  for (uint32_t i = 0; i < 8; ++i) {
    KeySpace space{i % 2 == 0 ? "default" : "tenant-b", scope, i / 2, static_cast<QualityClass>(i % 5), true};
    const auto hash = EngineHash(i);
    const ByteSpan engine = ByteSpan(hash).first(i == 7 ? 8 : i == 6 ? 16 : 32);
    vectors.push_back({{"name_space", std::string(space.name_space)},
                       {"scope", ToHex(scope.bytes)},
                       {"part", space.part},
                       {"lineage", static_cast<int>(space.lineage)},
                       {"engine_hash", ToHex(engine)},
                       {"block_key", ToHex(MakeBlockKey(space, engine)->bytes)},
                       {"placement_key", ToHex(MakePlacementKey(space, engine)->bytes)}});
  }
  ExpectGolden("block_key", vectors);
}

TEST(BlockKeyTest, EveryFieldIsInTheKeyAndThePartIsNotInThePlacement) {
  const auto hash = EngineHash(1);
  const auto other_hash = EngineHash(2);
  const KeySpace base{"default", *MakeScope(SmolFields()), 0, QualityClass::kExact, false};
  KeySpace space = base;
  std::set<BlockKey> keys = {*MakeBlockKey(base, hash), *MakeBlockKey(base, other_hash)};
  space.name_space = "other";
  keys.insert(*MakeBlockKey(space, hash));
  space = base;
  space.scope.bytes[3] ^= std::byte{1};
  keys.insert(*MakeBlockKey(space, hash));
  space = base;
  space.lineage = QualityClass::kNear;
  keys.insert(*MakeBlockKey(space, hash));
  space = base;
  space.part = 1;
  keys.insert(*MakeBlockKey(space, hash));
  EXPECT_EQ(keys.size(), 6u);
  EXPECT_EQ(*MakePlacementKey(space, hash), *MakePlacementKey(base, hash));
  EXPECT_FALSE(keys.contains(*MakePlacementKey(base, hash)));
}

TEST(BlockKeyTest, RefusesHashesThatCouldCollideUnlessToldTo) {
  const auto hash = EngineHash(1);
  KeySpace space{"default", {}, 0, QualityClass::kExact, false};
  EXPECT_TRUE(MakeBlockKey(space, ByteSpan(hash).first(16)));
  EXPECT_FALSE(MakeBlockKey(space, ByteSpan(hash).first(15)));
  EXPECT_FALSE(MakeBlockKey(space, {}));
  std::array<std::byte, 33> long_hash{};
  EXPECT_FALSE(MakeBlockKey(space, long_hash));
  space.allow_short_hashes = true;
  EXPECT_TRUE(MakeBlockKey(space, ByteSpan(hash).first(8)));
}

}  // namespace
}  // namespace tiercel
