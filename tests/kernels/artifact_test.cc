#include "kernels/artifact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/artifact_testing.h"

namespace tiercel {
namespace {

using testing::HasSubstr;

ArtifactShape Small() {
  ArtifactShape shape;
  shape.dim_k = shape.rope_dims = 16;
  shape.dim_v = 8;
  return shape;
}

// What is said of an artifact with another value there, sealed again.
template <class T>
std::string ErrorWith(std::vector<std::byte> artifact, size_t where, T value) {
  StoreLe(artifact.data() + where, value);
  ArtifactWriter::Seal(artifact);
  const auto parsed = Artifact::Parse(artifact);
  return parsed ? std::string("accepted") : parsed.error().message;
}

TEST(ArtifactTest, SaysWhatWasWritten) {
  const auto bytes = ArtifactWriter(Small()).Finish();
  const auto artifact = Artifact::Parse(bytes);
  ASSERT_TRUE(artifact) << artifact.error().message;
  const Artifact& a = **artifact;
  EXPECT_EQ(a.layers(), 2u);
  EXPECT_EQ(a.rope(1).size(), 8u);
  EXPECT_FALSE(a.has_own_rope(1));
  EXPECT_THAT(std::string(a.about()), HasSubstr("made up"));
  for (uint16_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(a.HeadScales(layer, SegmentKind::kK).size(), 2u);
    ASSERT_NE(a.Find(layer, SegmentKind::kK, 1), nullptr);
    EXPECT_EQ(a.Find(layer, SegmentKind::kK, 1)->n, 16u);
    EXPECT_EQ(a.Find(layer, SegmentKind::kV, kWholeLayer)->n, 16u);
  }
  EXPECT_EQ(a.Find(0, SegmentKind::kK, 2), nullptr);
  EXPECT_EQ(a.Find(2, SegmentKind::kK, 0), nullptr);
  EXPECT_FLOAT_EQ(a.StepOf(CodecId::kEcX, QualityClass::kBalanced)->step, 0.15f);
  EXPECT_FALSE(a.StepOf(CodecId::kEcX, QualityClass::kExact));
  EXPECT_EQ(a.id(), (*Artifact::Parse(bytes))->id());
  EXPECT_NE(a.id(), (*Artifact::Parse(ArtifactWriter(Small(), 2).Finish()))->id());
}

TEST(ArtifactTest, AnalysisIsTheInverseOfSynthesis) {
  const auto artifact = Artifact::Parse(ArtifactWriter(Small()).Finish());
  const KltTransform& t = *(*artifact)->Find(0, SegmentKind::kK, kWholeLayer);
  for (uint32_t i = 0; i < t.n; ++i) {
    for (uint32_t j = 0; j < t.n; ++j) {
      double sum = 0;
      for (uint32_t c = 0; c < t.n; ++c) sum += double{t.scale[i]} * t.synthesis[i * t.n + c] * t.analysis[c * t.n + j];
      EXPECT_NEAR(sum, i == j ? 1 : 0, 1e-4);
    }
  }
}

TEST(ArtifactTest, WhatForetellsLevelsIsReadAndChecked) {
  ArtifactShape shape = Small();
  shape.levels = true;
  const auto good = ArtifactWriter(shape).Finish();
  const auto artifact = Artifact::Parse(good);
  ASSERT_TRUE(artifact) << artifact.error().message;
  EXPECT_TRUE((*artifact)->has_levels());
  for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
    const LevelWeights* levels = (*artifact)->Levels(1, kind);
    ASSERT_NE(levels, nullptr);
    EXPECT_EQ(levels->position_weight, 0.5f);
    EXPECT_EQ(levels->position_mean, 8.0f);
    EXPECT_EQ(levels->mean.size(), 32u);  // Of K's dims, of both.
    EXPECT_EQ(levels->weight.size(), 32u);
  }
  EXPECT_EQ((*artifact)->Levels(2, SegmentKind::kK), nullptr);
  EXPECT_FALSE((*Artifact::Parse(ArtifactWriter(Small()).Finish()))->has_levels());

  const auto count = LoadLe<uint32_t>(good.data() + 28);
  const size_t entry = kArtifactHeaderBytes + (count - 1) * kArtifactEntryBytes;  // The last section's.
  const auto at = LoadLe<uint64_t>(good.data() + entry + 8);
  const auto error = [&good](size_t where, auto value) { return ErrorWith(good, where, value); };
  EXPECT_THAT(error(entry + 2, uint16_t{2}), HasSubstr("section 6 of layer 2, kind 2, group 0: no such layer"));
  EXPECT_THAT(error(entry + 5, uint8_t{1}), HasSubstr("32 dimensions, K has 32 of all heads, group 0"));
  EXPECT_THAT(error(entry + 6, uint16_t{31}), HasSubstr("31 dimensions, K has 32"));
  EXPECT_THAT(error(entry + 16, uint64_t{16 + 8 * 31}), HasSubstr("264 bytes for 32 dimensions"));
  EXPECT_THAT(error(at + 8, 1), HasSubstr("a reserved field is not 0"));
  EXPECT_THAT(error(at + 4, uint32_t{0x7f800000}), HasSubstr("position[1] is not finite"));
  EXPECT_THAT(error(at + 16 + 4 * 31, uint32_t{0x7fc00000}), HasSubstr("mean[31] is not finite"));
  EXPECT_THAT(error(at + 16 + 4 * 32, uint32_t{0xff800000}), HasSubstr("weight[0] is not finite"));
}

TEST(ArtifactTest, ALayerMayBeTurnedInAWayOfItsOwn) {
  ArtifactShape shape = Small();
  shape.layers = 3;
  shape.own_ropes = 2;
  shape.transforms = false;
  const auto good = ArtifactWriter(shape).Finish();
  const auto artifact = Artifact::Parse(good);
  ASSERT_TRUE(artifact) << artifact.error().message;
  const Artifact& a = **artifact;
  EXPECT_EQ(a.rope_dims(), 16u);
  ASSERT_EQ(a.common_rope().size(), 8u);
  EXPECT_FALSE(a.has_own_rope(0));
  EXPECT_EQ(a.rope(0).data(), a.common_rope().data());
  for (uint16_t layer = 1; layer < 3; ++layer) {
    EXPECT_TRUE(a.has_own_rope(layer));
    ASSERT_EQ(a.rope(layer).size(), 8u);
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(a.rope(layer)[i], a.rope(0)[i] / 2);
  }

  const size_t entry = kArtifactHeaderBytes + kArtifactEntryBytes;  // Of layer 1's table; layer 2's and the common one follow.
  const auto error = [&good](size_t where, auto value) { return ErrorWith(good, where, value); };
  EXPECT_THAT(error(entry + 32 + 2, uint16_t{3}), HasSubstr("section 2 of layer 3, kind 0, group 0 belongs to no layer that is here"));
  EXPECT_THAT(error(entry + 32 + 2, uint16_t{1}), HasSubstr("section 2 of layer 1, kind 0, group 0 is out of order or there twice"));
  EXPECT_THAT(error(entry + 64 + 2, uint16_t{2}), HasSubstr("section 2 of layer 2, kind 0, group 0 is out of order or there twice"));
  EXPECT_THAT(error(entry + 4, uint8_t{1}), HasSubstr("section 2 of layer 1, kind 1, group 0 belongs to no layer"));
  EXPECT_THAT(error(entry + 16, uint64_t{60}), HasSubstr("60 bytes for 16 dimensions"));
  // Without a common table each layer needs its own.
  shape.own_ropes = 3;
  auto all = ArtifactWriter(shape).Finish();
  ASSERT_TRUE(Artifact::Parse(all));
  EXPECT_TRUE((*Artifact::Parse(all))->common_rope().empty());
  StoreLe(all.data() + 16, uint16_t{4});  // A layer more.
  ArtifactWriter::Seal(all);
  ASSERT_FALSE(Artifact::Parse(all));
  EXPECT_THAT(Artifact::Parse(all).error().message, HasSubstr("rope_dims is 16, layer 3 has no frequencies"));
}

TEST(ArtifactTest, EveryFlippedBitIsSeen) {
  const auto good = ArtifactWriter(Small()).Finish();
  SplitMix64 random(3);
  for (int i = 0; i < 2000; ++i) {
    auto bad = good;
    bad[random.Below(bad.size())] ^= static_cast<std::byte>(1u << random.Below(8));
    EXPECT_FALSE(Artifact::Parse(bad));
  }
}

TEST(ArtifactTest, WhatIsWrongIsNamedThoughTheChecksumIsRight) {
  const auto good = ArtifactWriter(Small()).Finish();
  const auto error = [&good](size_t where, auto value) { return ErrorWith(good, where, value); };
  EXPECT_THAT(error(0, uint32_t{7}), HasSubstr("magic"));
  EXPECT_THAT(error(4, uint16_t{2}), HasSubstr("version 2"));
  EXPECT_THAT(error(8, uint64_t{64}), HasSubstr("file_bytes"));
  EXPECT_THAT(error(16, uint16_t{0}), HasSubstr("layers"));
  EXPECT_THAT(error(24, uint16_t{17}), HasSubstr("rope_dims"));
  EXPECT_THAT(error(26, uint8_t{2}), HasSubstr("rope_style"));
  EXPECT_THAT(error(28, uint32_t{0xffffffff}), HasSubstr("sections do not fit"));
  EXPECT_THAT(error(64 + 8, uint64_t{1} << 63), HasSubstr("section 1"));
  EXPECT_THAT(error(64 + 32, uint16_t{1}), HasSubstr("out of order or there twice"));
  EXPECT_THAT(error(64 + 2 * 32 + 2, uint16_t{9}), HasSubstr("no such layer"));
}

TEST(ArtifactTest, NoiseBehindARightChecksumNeverCrashes) {
  const auto good = ArtifactWriter(Small()).Finish();
  SplitMix64 random(4);
  for (int i = 0; i < 3000; ++i) {
    auto bad = good;
    for (int n = 0; n < 4; ++n) bad[random.Below(std::min<size_t>(bad.size(), 1200))] = static_cast<std::byte>(random.Next());
    if (i % 5 == 0) bad.resize(random.Below(bad.size()) / 64 * 64);
    if (bad.size() < 64) continue;
    StoreLe(bad.data(), kArtifactMagic);
    StoreLe(bad.data() + 4, kArtifactVersion);
    StoreLe(bad.data() + 8, uint64_t{bad.size()});
    ArtifactWriter::Seal(bad);
    (void)Artifact::Parse(bad);
  }
}

}  // namespace
}  // namespace tiercel
