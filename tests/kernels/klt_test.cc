// EC-K and EC-X: what comes back is near, the same on every ISA, and malformed segments are named.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <map>

#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/isa.h"
#include "kernels/klt_core.h"
#include "kernels/record.h"
#include "tests/kernels/artifact_testing.h"

namespace tiercel {
namespace {

// About normal: the sum of four uniforms.
float Noise(SplitMix64& random) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(random.Next() >> 40) * 0x1p-24f - 0.5f;
  return sum * 1.7f;
}

struct Case {
  SegmentShape shape;
  CodecId codec = CodecId::kEcX;
  std::vector<std::byte> raw;
  CodecContext context;
};

uint16_t FromFloat(Dtype dtype, float x) { return dtype == Dtype::kBf16 ? klt::ToBf16(x) : klt::ToFp16(x); }
float ToFloat(Dtype dtype, uint16_t bits) { return dtype == Dtype::kBf16 ? klt::FromBf16(bits) : klt::FromFp16(bits); }

std::shared_ptr<const Artifact> ArtifactOf(const ArtifactShape& shape) {
  static std::map<std::array<int, 6>, std::shared_ptr<const Artifact>> made;
  auto& artifact = made[{shape.heads, shape.dim_k, shape.dim_v, shape.rope_dims, static_cast<int>(shape.style), shape.layers}];
  if (artifact == nullptr) {
    auto parsed = Artifact::Parse(ArtifactWriter(shape).Finish());
    EXPECT_TRUE(parsed) << parsed.error().message;
    artifact = *parsed;
  }
  return artifact;
}

Case MakeCase(SplitMix64& random, const ArtifactShape& artifact, CodecId codec, Dtype dtype) {
  Case made;
  made.codec = codec;
  SegmentShape& shape = made.shape;
  shape.layer = static_cast<uint16_t>(random.Below(artifact.layers));
  shape.kind = random.Below(2) == 0 ? SegmentKind::kK : SegmentKind::kV;
  shape.dtype = dtype;
  shape.order = static_cast<AxisOrder>(random.Below(3));
  shape.tokens = random.Below(3) == 0 ? 16 : 1 + static_cast<uint32_t>(random.Below(300));
  shape.heads = artifact.heads;
  shape.dim = shape.kind == SegmentKind::kK ? artifact.dim_k : artifact.dim_v;
  shape.raw_bytes = uint64_t{shape.tokens} * shape.heads * shape.dim * 2;
  made.raw.resize(shape.raw_bytes);
  for (size_t i = 0; i < made.raw.size(); i += 2) {
    StoreLe(made.raw.data() + i, FromFloat(dtype, Noise(random) * (i % 64 == 0 ? 20.0f : 1.0f)));
  }
  made.context.artifact = ArtifactOf(artifact).get();
  made.context.pos0 = random.Below(2) == 0 ? 0 : random.Below(100'000);
  made.context.quality = static_cast<QualityClass>(1 + random.Below(4));
  made.context.step = random.Below(4) == 0 ? 0.4f : 0.0f;
  made.context.exact_tokens = made.context.pos0 == 0 ? 4 : 0;
  return made;
}

struct Coded {
  std::vector<std::byte> bytes, decoded;
  uint64_t digest = 0;
  bool raw = false;
};

Coded Code1(const Case& given) {
  const Codec& codec = *FindCodec(given.codec);
  EXPECT_TRUE(codec.Supports(given.shape));
  std::vector<std::byte> scratch(codec.scratch_bytes(given.shape));
  CodecContext context = given.context;
  context.scratch = scratch;
  Coded out;
  out.bytes.resize(given.shape.raw_bytes);
  const auto encoded = codec.Encode(given.shape, given.raw, out.bytes, context);
  out.raw = !encoded;
  if (!encoded) return out;
  out.bytes.resize(encoded->bytes);
  out.digest = encoded->decoded_digest;
  out.decoded.resize(given.shape.raw_bytes);
  std::fill(scratch.begin(), scratch.end(), std::byte{0xa5});
  const Status decoded = codec.Decode(given.shape, encoded->params, out.bytes, 0, out.decoded, context);
  EXPECT_TRUE(decoded) << decoded.error().message;
  return out;
}

ArtifactShape Shape(uint16_t heads, uint16_t dim_k, uint16_t dim_v, uint16_t rope, RopeStyle style = RopeStyle::kHalves) {
  ArtifactShape shape;
  shape.heads = heads;
  shape.dim_k = dim_k;
  shape.dim_v = dim_v;
  shape.rope_dims = rope;
  shape.style = style;
  return shape;
}

TEST(KltTest, WhatComesBackIsWithinTheStep) {
  SplitMix64 random(1);
  for (int i = 0; i < 60; ++i) {
    const ArtifactShape artifact = i % 2 == 0 ? Shape(3, 64, 64, 64) : Shape(2, 64, 32, 16, RopeStyle::kNeighbours);
    const Dtype dtype = i % 3 == 0 ? Dtype::kFp16 : Dtype::kBf16;
    const Case given = MakeCase(random, artifact, i % 4 < 2 ? CodecId::kEcX : CodecId::kEcK, dtype);
    const Coded coded = Code1(given);
    if (coded.raw) continue;  // A tiny block.
    const float step = given.context.step != 0 ? given.context.step : 0.05f * static_cast<float>(given.context.quality);
    // Orthogonal: the mean square error of coefficients is that of values; bf16 adds its own.
    double error = 0, own = 0;
    for (size_t at = 0; at < given.raw.size(); at += 2) {
      const double x = ToFloat(dtype, LoadLe<uint16_t>(given.raw.data() + at));
      const double y = ToFloat(dtype, LoadLe<uint16_t>(coded.decoded.data() + at));
      error += (x - y) * (x - y);
      own += x * x * (dtype == Dtype::kBf16 ? 0x1p-18 : 0x1p-24);
    }
    const double allowed = static_cast<double>(given.raw.size()) / 2 * step * step / 12 * 1.3 + own * 2;
    EXPECT_LT(error, allowed) << "tokens " << given.shape.tokens << " step " << step;
    EXPECT_EQ(coded.digest, DecodedDigest(coded.decoded));
  }
}

TEST(KltTest, TheFirstTokensOfAChainComeBackExactly) {
  SplitMix64 random(2);
  Case given = MakeCase(random, Shape(2, 64, 64, 64), CodecId::kEcX, Dtype::kBf16);
  given.shape.order = AxisOrder::kTokenHeadDim;
  given.shape.tokens = 256;
  given.shape.raw_bytes = 256 * 2 * 64 * 2;
  given.raw.resize(given.shape.raw_bytes, std::byte{0x3f});
  given.context.pos0 = 0;
  given.context.exact_tokens = 4;
  const Coded coded = Code1(given);
  ASSERT_FALSE(coded.raw);
  EXPECT_TRUE(std::equal(given.raw.begin(), given.raw.begin() + 4 * 2 * 64 * 2, coded.decoded.begin()));
}

TEST(KltTest, EveryIsaGivesTheSameBytes) {
  SplitMix64 random(3);
  const bool full = std::getenv("TIERCEL_FULL") != nullptr;
  const std::vector<ArtifactShape> artifacts = {Shape(3, 64, 64, 64), Shape(2, 96, 96, 48), Shape(1, 128, 128, 128, RopeStyle::kNeighbours),
                                                Shape(4, 16, 10, 16), Shape(1, 7, 5, 0), Shape(1, 192, 256, 64)};
  const KernelIsa best = BestKernelIsa();
  int coded_at_all = 0;
  for (int i = 0; i < (full ? 3000 : 60); ++i) {
    const ArtifactShape& artifact = artifacts[random.Below(artifacts.size())];
    Case given = MakeCase(random, artifact, random.Below(2) == 0 ? CodecId::kEcX : CodecId::kEcK,
                          random.Below(3) == 0 ? Dtype::kFp16 : Dtype::kBf16);
    ASSERT_TRUE(ForceKernelIsa(KernelIsa::kScalar));
    const Coded reference = Code1(given);
    coded_at_all += reference.raw ? 0 : 1;
    for (const KernelIsa isa : {KernelIsa::kAvx2, KernelIsa::kAvx512}) {
      if (!ForceKernelIsa(isa)) continue;
      const Coded other = Code1(given);
      ASSERT_EQ(reference.raw, other.raw);
      ASSERT_EQ(reference.bytes, other.bytes) << Name(isa);
      ASSERT_EQ(reference.decoded, other.decoded) << Name(isa);
    }
  }
  ForceKernelIsa(best);
  EXPECT_GT(coded_at_all, 20);
}

TEST(KltTest, ALayersOwnRotationIsWhatOneOfAllLayersWouldBe) {
  SplitMix64 random(6);
  ArtifactShape mixed = Shape(2, 32, 32, 16);
  mixed.layers = 3;
  mixed.own_ropes = 1;  // Layer 2's, half as fast.
  const auto artifact = *Artifact::Parse(ArtifactWriter(mixed).Finish());
  std::array<std::shared_ptr<const Artifact>, 2> plain;  // All layers the one, or the other way; else the same.
  for (size_t i = 0; i < 2; ++i) {
    ArtifactShape shape = mixed;
    shape.own_ropes = 0;
    const auto turns = artifact->rope(i == 0 ? 0 : 2);
    shape.frequencies.assign(turns.begin(), turns.end());
    plain[i] = *Artifact::Parse(ArtifactWriter(shape).Finish());
  }
  int differ = 0;
  for (int i = 0; i < 60; ++i) {
    Case given = MakeCase(random, mixed, i % 2 == 0 ? CodecId::kEcX : CodecId::kEcK, Dtype::kBf16);
    given.context.pos0 = static_cast<uint64_t>(i / 10) * 1000;  // Layers of one block follow each other.
    given.context.artifact = artifact.get();
    const Coded mine = Code1(given);
    std::array<Coded, 2> theirs;
    for (size_t which = 0; which < 2; ++which) {
      given.context.artifact = plain[which].get();
      theirs[which] = Code1(given);
    }
    ASSERT_EQ(mine.bytes, theirs[given.shape.layer / 2].bytes) << "layer " << given.shape.layer;
    ASSERT_EQ(mine.decoded, theirs[given.shape.layer / 2].decoded) << "layer " << given.shape.layer;
    if (given.shape.kind == SegmentKind::kV) { EXPECT_EQ(mine.bytes, theirs[0].bytes); }
    differ += theirs[0].bytes != theirs[1].bytes ? 1 : 0;
  }
  EXPECT_GT(differ, 15);
}

TEST(KltTest, MalformedSegmentsAreNamedAndNeverCrash) {
  SplitMix64 random(4);
  for (int i = 0; i < 40; ++i) {
    const Case given = MakeCase(random, Shape(2, 32, 32, 32), i % 2 == 0 ? CodecId::kEcX : CodecId::kEcK, Dtype::kBf16);
    const Coded coded = Code1(given);
    if (coded.raw) continue;
    const Codec& codec = *FindCodec(given.codec);
    std::vector<std::byte> scratch(codec.scratch_bytes(given.shape));
    std::vector<std::byte> out(given.shape.raw_bytes);
    CodecContext context = given.context;
    context.scratch = scratch;
    for (int n = 0; n < 50; ++n) {
      auto bad = coded.bytes;
      if (n % 3 == 0) {
        bad.resize(random.Below(bad.size()));
      } else {
        bad[random.Below(n % 3 == 1 ? std::min<size_t>(bad.size(), 80) : bad.size())] ^= static_cast<std::byte>(1u << random.Below(8));
      }
      const Status decoded = codec.Decode(given.shape, 0, bad, 0, out, context);
      if (!decoded) { EXPECT_THAT(decoded.error().message, testing::HasSubstr("ec-")); }
      if (bad.size() < coded.bytes.size()) { EXPECT_FALSE(decoded); }
    }
  }
}

TEST(KltTest, ACountOfStreamsThatNoneHasIsRefused) {
  SplitMix64 random(5);
  const Case given = MakeCase(random, Shape(2, 32, 32, 32), CodecId::kEcK, Dtype::kBf16);
  Coded coded = Code1(given);
  ASSERT_FALSE(coded.raw);
  const Codec& codec = *FindCodec(given.codec);
  std::vector<std::byte> scratch(codec.scratch_bytes(given.shape));
  std::vector<std::byte> out(given.shape.raw_bytes);
  CodecContext context = given.context;
  context.scratch = scratch;
  const auto log_streams = std::to_integer<uint8_t>(coded.bytes[2]);
  for (int log = 0; log < 256; ++log) {
    coded.bytes[2] = static_cast<std::byte>(log);
    EXPECT_EQ(codec.Decode(given.shape, 0, coded.bytes, 0, out, context).has_value(), log == log_streams) << log;
  }
}

TEST(KltTest, WithoutItsArtifactNothingIsCodedOrDecoded) {
  SplitMix64 random(5);
  Case given = MakeCase(random, Shape(2, 32, 32, 32), CodecId::kEcX, Dtype::kBf16);
  const CodecContext with = given.context;
  given.context.artifact = nullptr;
  EXPECT_TRUE(Code1(given).raw);
  given.context = with;
  given.shape.layer = 9;
  EXPECT_TRUE(Code1(given).raw);
  given.shape.layer = 0;
  StoreLe(given.raw.data(), uint16_t{0x7f80});  // Infinity.
  EXPECT_TRUE(Code1(given).raw);
}

TEST(KltTest, RoundingToBf16AndFp16IsToNearestEven) {
  EXPECT_EQ(klt::ToBf16(1.00390625f), 0x3f80);  // 1 + 2^-8: a tie, to even.
  EXPECT_EQ(klt::ToBf16(1.01171875f), 0x3f82);
  EXPECT_EQ(klt::ToBf16(3.4e38f), 0x7f7f);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    if ((bits & 0x7c00) != 0x7c00) { ASSERT_EQ(klt::ToFp16(klt::FromFp16(b)), b); }
    if ((bits & 0x7f80) != 0x7f80) { ASSERT_EQ(klt::ToBf16(klt::FromBf16(b)), b); }
  }
  SplitMix64 random(6);
  for (int i = 0; i < 100'000; ++i) {
    const float x = Noise(random) * std::ldexp(1.0f, static_cast<int>(random.Below(40)) - 24);
    ASSERT_EQ(klt::ToFp16(x), std::abs(x) >= 65504 ? klt::ToFp16(x) : std::bit_cast<uint16_t>(static_cast<_Float16>(x))) << x;
  }
}

KvLayout LayoutOf(const ArtifactShape& shape, uint32_t tokens) {
  KvLayout layout;
  layout.layers = shape.layers;
  layout.kv_heads = shape.heads;
  layout.head_dim_k = shape.dim_k;
  layout.head_dim_v = shape.dim_v;
  layout.tokens_per_block = tokens;
  layout.dtype = Dtype::kBf16;
  return layout;
}

TEST(KltTest, ARecordNamesItsArtifactAndIsDecodedWhereThatIsInUse) {
  SplitMix64 random(7);
  const ArtifactShape shape = Shape(2, 64, 32, 64);
  const auto artifact = ArtifactOf(shape);
  EncodeOptions options;
  options.artifact = artifact.get();
  options.exact_tokens = 4;
  RecordSpec spec;
  spec.layout = LayoutOf(shape, 64);
  spec.options = &options;
  std::vector<std::byte> block(spec.layout.block_bytes());
  for (size_t i = 0; i < block.size(); i += 2) StoreLe(block.data() + i, klt::ToBf16(Noise(random)));
  for (const CodecId codec : {CodecId::kEcK, CodecId::kEcX, CodecId::kEcC}) {
    std::vector<std::byte> record(MaxRecordBytes(spec, block.size()));
    const auto size = EncodeRecord(spec, codec, block, record);
    ASSERT_TRUE(size) << size.error().message;
    record.resize(*size);
    EXPECT_LT(record.size(), block.size() / 2);
    const auto view = ParseRecord(record);
    ASSERT_TRUE(view) << view.error().message;
    EXPECT_TRUE(VerifyRecord(*view));
    EXPECT_EQ(view->quality, QualityClass::kBalanced);
    EXPECT_EQ(view->artifact_id, codec == CodecId::kEcC ? 0 : artifact->id());
    std::vector<std::byte> out(block.size());
    if (codec != CodecId::kEcC) {
      const Status without = DecodeRecord(*view, spec.layout, out);
      ASSERT_FALSE(without);
      EXPECT_EQ(without.error().code, Code::kFailedPrecondition);
      EXPECT_THAT(without.error().message, testing::HasSubstr(fmt::format("{:016x}", artifact->id())));
      ASSERT_TRUE(UseArtifact(artifact));
    }
    const Status decoded = DecodeRecord(*view, spec.layout, out);
    ASSERT_TRUE(decoded) << decoded.error().message;
    double error = 0, power = 0;
    for (size_t i = 0; i < block.size(); i += 2) {
      const double x = klt::FromBf16(LoadLe<uint16_t>(block.data() + i));
      const double y = klt::FromBf16(LoadLe<uint16_t>(out.data() + i));
      error += (x - y) * (x - y);
      power += x * x;
    }
    EXPECT_LT(error, power / 50);
    DropArtifact(artifact->id());
  }
}

TEST(KltTest, AnotherModelsArtifactIsRefusedByName) {
  EncodeOptions options;
  RecordSpec spec;
  spec.layout = LayoutOf(Shape(2, 64, 32, 64), 16);
  spec.options = &options;
  std::vector<std::byte> block(spec.layout.block_bytes());
  std::vector<std::byte> record(2 * block.size() + 4096);
  const auto error = [&](CodecId codec) { return EncodeRecord(spec, codec, block, record).error().message; };
  EXPECT_THAT(error(CodecId::kEcX), testing::HasSubstr("needs an artifact"));
  const auto other = ArtifactOf(Shape(2, 32, 32, 32));
  options.artifact = other.get();
  EXPECT_THAT(error(CodecId::kEcX), testing::HasSubstr("head_dim_k is 32, the layout's 64"));
  EXPECT_THAT(error(CodecId::kEcC), testing::HasSubstr("head_dim_k is 32, the layout's 64"));
}

// The decoded digest is of the right bytes: decoding with a like artifact of another content is seen.
TEST(KltTest, AWrongArtifactUnderTheRightIdWouldBeSeenByTheDigest) {
  SplitMix64 random(8);
  const Case given = MakeCase(random, Shape(2, 64, 64, 64), CodecId::kEcX, Dtype::kBf16);
  const Coded coded = Code1(given);
  if (coded.raw) GTEST_SKIP() << "a tiny block";
  const auto other = Artifact::Parse(ArtifactWriter(Shape(2, 64, 64, 64), 99).Finish());
  const Codec& codec = *FindCodec(CodecId::kEcX);
  std::vector<std::byte> scratch(codec.scratch_bytes(given.shape));
  std::vector<std::byte> out(given.shape.raw_bytes);
  CodecContext context = given.context;
  context.scratch = scratch;
  context.artifact = other->get();
  ASSERT_TRUE(codec.Decode(given.shape, 0, coded.bytes, 0, out, context));
  EXPECT_NE(DecodedDigest(out), coded.digest);
}

}  // namespace
}  // namespace tiercel
