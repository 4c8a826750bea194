// Levels: a step of its own for each token, foretold from K by the encoder of a record, read by its decoder.
#include "kernels/levels.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <numeric>

#include "kernels/digest.h"
#include "kernels/klt_core.h"
#include "kernels/paged.h"
#include "kernels/rans.h"
#include "kernels/record.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

using testing::HasSubstr;

constexpr CodecId kCodecsOfLevels[] = {CodecId::kEcC, CodecId::kEcK, CodecId::kEcX};

ArtifactShape Shape(uint16_t heads, uint16_t dim_k, uint16_t dim_v, uint16_t rope, RopeStyle style = RopeStyle::kHalves) {
  ArtifactShape shape;
  shape.heads = heads;
  shape.dim_k = dim_k;
  shape.dim_v = dim_v;
  shape.rope_dims = rope;
  shape.style = style;
  shape.levels = true;
  return shape;
}

const std::vector<ArtifactShape>& Shapes() {
  static const std::vector<ArtifactShape> all = {Shape(3, 64, 64, 64), Shape(2, 96, 48, 48), Shape(1, 128, 128, 128, RopeStyle::kNeighbours),
                                                 Shape(4, 16, 10, 16), Shape(1, 7, 5, 0)};
  return all;
}

std::shared_ptr<const Artifact> ArtifactOf(const ArtifactShape& shape) {
  static std::map<std::array<int, 5>, std::shared_ptr<const Artifact>> made;
  auto& artifact = made[{shape.heads, shape.dim_k, shape.dim_v, shape.rope_dims, static_cast<int>(shape.style)}];
  if (artifact == nullptr) {
    auto parsed = Artifact::Parse(ArtifactWriter(shape).Finish());
    EXPECT_TRUE(parsed) << parsed.error().message;
    artifact = *parsed;
  }
  return artifact;
}

float ToFloat(Dtype dtype, uint16_t bits) { return dtype == Dtype::kBf16 ? klt::FromBf16(bits) : klt::FromFp16(bits); }

struct Case {
  CodecId codec = CodecId::kEcX;
  SegmentShape shape;
  std::vector<std::byte> raw;
  std::vector<int8_t> levels;
  CodecContext context;
  const Codec& with() const { return *FindCodec(codec); }
};

Case MakeCase(SplitMix64& random, CodecId codec, uint32_t tokens = 0) {
  Case made;
  made.codec = codec;
  const ArtifactShape& artifact = Shapes()[random.Below(Shapes().size())];
  constexpr uint32_t kTokens[] = {64, 96, 128, 256, 512};
  if (tokens == 0) tokens = random.Below(2) == 0 ? kTokens[random.Below(5)] : 1 + static_cast<uint32_t>(random.Below(300));
  const SegmentKind kind = random.Below(2) == 0 ? SegmentKind::kK : SegmentKind::kV;
  made.shape = MakeShape(random.Below(3) == 0 ? Dtype::kFp16 : Dtype::kBf16, static_cast<AxisOrder>(random.Below(3)), tokens,
                         artifact.heads, kind == SegmentKind::kK ? artifact.dim_k : artifact.dim_v, kind);
  made.raw = PlaneLikeKv(made.shape, random.Next());
  made.levels.resize(tokens);
  const int32_t middle = static_cast<int32_t>(random.Below(5)) - 2;
  for (int8_t& level : made.levels) {
    const auto wanted = middle + static_cast<int32_t>(std::lround(2.5 * NormalSample(random)));
    level = static_cast<int8_t>(std::clamp(wanted, levels::kLeast, levels::kMost));
  }
  made.context.artifact = ArtifactOf(artifact).get();
  made.context.pos0 = random.Below(2) == 0 ? 0 : random.Below(100'000);
  made.context.quality = static_cast<QualityClass>(1 + random.Below(4));
  made.context.exact_tokens = random.Below(3) == 0 ? static_cast<uint32_t>(random.Below(std::min(tokens, 17u))) : 0;
  if (codec == CodecId::kEcC) made.context.step = 0.2f;
  return made;
}

// Levels are set last: a case may move.
std::optional<CodedSegment> Encode(const Case& given) {
  CodecContext context = given.context;
  context.levels = given.levels;
  return RunEncode(given.with(), given.shape, given.raw, context);
}
Result<std::vector<std::byte>> Decode(const Case& given, ByteSpan bytes) {
  return RunDecode(given.with(), given.shape, 0, bytes, given.context);
}
std::string ErrorOf(const Case& given, ByteSpan bytes) {
  const auto decoded = Decode(given, bytes);
  if (!decoded) { EXPECT_EQ(decoded.error().code, Code::kDataLoss); }
  return decoded ? "accepted" : decoded.error().message;
}

TEST(LevelsTest, AStepIsThePowerOfTwoNextToIt) {
  for (int level = -8; level <= 8; ++level) EXPECT_EQ(levels::StepOf(level), static_cast<float>(std::exp2(-level / 2.0))) << level;
  EXPECT_EQ(levels::InverseStepOf(-8), levels::StepOf(8));
}

TEST(LevelsTest, TheLogarithmOfAPositionIsCutOffBehindSixteenBits) {
  EXPECT_EQ(levels::Log2(0), 0);
  SplitMix64 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t position = 1 + (random.Next() >> (i % 60));
    const double missing = std::log2(static_cast<double>(position)) - double{levels::Log2(position)};
    ASSERT_GE(missing, -1e-9) << position;
    ASSERT_LT(missing, 0x1.1p-16) << position;
  }
}

TEST(LevelsTest, ALevelIsTheIntegerNextToItsNumberWhateverThatIs) {
  EXPECT_EQ(levels::LevelOf(2.5f), 2);
  EXPECT_EQ(levels::LevelOf(-3.5f), -4);
  EXPECT_EQ(levels::LevelOf(6.51f), 7);
  EXPECT_EQ(levels::LevelOf(1e30f), 7);
  EXPECT_EQ(levels::LevelOf(-INFINITY), -8);
  EXPECT_EQ(levels::LevelOf(NAN), 7);
}

TEST(LevelsTest, TokensAreOrderedByLevelAndExactOnesComeLast) {
  SplitMix64 random(2);
  for (int i = 0; i < 200; ++i) {
    const auto tokens = 1 + static_cast<uint32_t>(random.Below(300));
    const auto exact = static_cast<uint32_t>(random.Below(std::min(tokens, 5u)));
    std::vector<int8_t> levels(tokens);
    for (int8_t& level : levels) level = static_cast<int8_t>(static_cast<int>(random.Below(16)) - 8);
    std::vector<uint16_t> want(tokens), order(tokens);
    std::iota(want.begin(), want.end(), uint16_t{0});
    std::stable_sort(want.begin() + exact, want.end(), [&](uint16_t a, uint16_t b) { return levels[a] > levels[b]; });
    std::rotate(want.begin(), want.begin() + exact, want.end());
    levels::OrderTokens(levels.data(), exact, tokens, order.data());
    ASSERT_EQ(order, want);
  }
}

// As docs/artifact-format.md has it, in double precision.
TEST(LevelsTest, AreForetoldFromKeysBeforeRotationOnEveryIsa) {
  SplitMix64 random(3);
  size_t differ = 0, all = 0;
  std::array<size_t, 16> seen{};
  for (int round = 0; round < 40; ++round) {
    ArtifactShape made = Shapes()[random.Below(Shapes().size())];
    const auto artifact = ArtifactOf(made);
    const uint32_t first_head = static_cast<uint32_t>(random.Below(made.heads));
    const uint64_t pos0 = random.Below(3) == 0 ? 0 : random.Below(100'000);
    const SegmentShape k = MakeShape(random.Below(3) == 0 ? Dtype::kFp16 : Dtype::kBf16, static_cast<AxisOrder>(random.Below(3)),
                                     1 + static_cast<uint32_t>(random.Below(200)), made.heads - first_head, made.dim_k);
    const auto raw = PlaneLikeKv(k, random.Next());
    std::array<std::vector<int8_t>, 2> first;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      LevelPredictor predictor(artifact.get(), pos0, first_head);
      std::vector<std::byte> scratch(LevelPredictor::ScratchBytes(k));
      predictor.Predict(k, raw, scratch);
      for (size_t plane = 0; plane < 2; ++plane) {
        const auto levels = predictor.Of(plane == 0 ? SegmentKind::kK : SegmentKind::kV);
        ASSERT_EQ(levels.size(), k.tokens);
        if (first[plane].empty()) first[plane].assign(levels.begin(), levels.end());
        ASSERT_TRUE(std::equal(levels.begin(), levels.end(), first[plane].begin())) << Name(isa);
      }
    }
    for (uint32_t t = 0; t < k.tokens; ++t) {
      std::vector<double> key(size_t{k.heads} * k.dim);
      for (uint32_t c = 0; c < key.size(); ++c) key[c] = ToFloat(k.dtype, LoadLe<uint16_t>(raw.data() + 2 * ElementIndex(k, c, t)));
      const auto rope = artifact->rope(0);
      for (uint32_t head = 0; head < k.heads; ++head) {
        for (size_t i = 0; i < rope.size(); ++i) {
          const double angle = static_cast<double>((pos0 + t) * rope[i]) * 0x1p-64 * 2 * std::numbers::pi;
          double& a = key[head * k.dim + (made.style == RopeStyle::kHalves ? i : 2 * i)];
          double& b = key[head * k.dim + (made.style == RopeStyle::kHalves ? i + rope.size() : 2 * i + 1)];
          const double turned = a * std::cos(angle) + b * std::sin(angle);
          b = b * std::cos(angle) - a * std::sin(angle);
          a = turned;
        }
      }
      for (size_t plane = 0; plane < 2; ++plane) {
        const LevelWeights& w = *artifact->Levels(0, plane == 0 ? SegmentKind::kK : SegmentKind::kV);
        double z = double{w.position_weight} * (std::log2(std::max<double>(static_cast<double>(pos0 + t), 1)) - double{w.position_mean});
        for (size_t c = 0; c < key.size(); ++c) z += double{w.weight[first_head * k.dim + c]} * (key[c] - double{w.mean[first_head * k.dim + c]});
        const double rounded = std::clamp(std::rint(z), -8.0, 7.0);
        const double fraction = std::abs(z - std::floor(z) - 0.5);
        ++all;
        ++seen[static_cast<size_t>(first[plane][t] + 8)];
        if (fraction < 1e-3) {
          ++differ;  // May fall to either side.
          ASSERT_NEAR(first[plane][t], std::clamp(z, -8.0, 7.0), 0.51);
        } else {
          ASSERT_EQ(first[plane][t], rounded) << z;
        }
      }
    }
  }
  EXPECT_LT(differ, all / 100);
  for (size_t level = 2; level < 14; ++level) EXPECT_GT(seen[level], 0u) << level;
}

TEST(LevelsTest, EveryIsaWritesAndReadsTheSame) {
  SplitMix64 random(4);
  int coded = 0, banded = 0;
  const uint64_t rounds = Rounds(150);
  for (uint64_t round = 0; round < rounds; ++round) {
    const Case given = MakeCase(random, kCodecsOfLevels[round % 3]);
    std::optional<std::vector<std::byte>> bytes;
    std::vector<std::byte> decoded;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const auto got = Encode(given);
      const std::vector<std::byte> mine = got ? got->bytes : std::vector<std::byte>{};
      if (!bytes) bytes = mine;
      ASSERT_TRUE(mine == *bytes) << Name(isa) << " round " << round;
      if (!got) continue;
      const auto out = Decode(given, mine);
      ASSERT_TRUE(out) << out.error().message;
      ASSERT_EQ(DecodedDigest(*out), got->info.decoded_digest) << Name(isa) << " round " << round;
      if (decoded.empty()) decoded = *out;
      ASSERT_TRUE(*out == decoded) << Name(isa) << " round " << round;
    }
    if (decoded.empty()) continue;
    ++coded;
    banded += given.codec != CodecId::kEcC && (*bytes)[3] != std::byte{0} ? 1 : 0;
    for (uint32_t t = 0; t < given.context.exact_tokens; ++t) {
      for (uint32_t column = 0; column < ColumnCount(given.shape); ++column) {
        const size_t i = 2 * ElementIndex(given.shape, column, t);
        if (given.codec == CodecId::kEcC || t < klt::kMaxExact) {
          ASSERT_EQ(LoadLe<uint16_t>(decoded.data() + i), LoadLe<uint16_t>(given.raw.data() + i)) << "token " << t;
        }
      }
    }
  }
  EXPECT_GT(coded, static_cast<int>(rounds / 2));
  EXPECT_GT(banded, static_cast<int>(rounds / 10));
}

TEST(LevelsTest, ATokensErrorIsThatOfItsOwnStep) {
  SplitMix64 random(5);
  for (const CodecId codec : kCodecsOfLevels) {
    Case given = MakeCase(random, codec, 256);
    given.context.quality = QualityClass::kBalanced;
    given.context.exact_tokens = 0;
    const float step = codec == CodecId::kEcC ? 0.2f : 0.05f * 3;
    const auto coded = Encode(given);
    ASSERT_TRUE(coded);
    EXPECT_EQ(coded->bytes[0], std::byte{2});
    const auto out = Decode(given, coded->bytes);
    ASSERT_TRUE(out);
    std::map<int, std::pair<double, double>> errors;  // Of a level: the sum of squares, and what it may be.
    for (uint32_t t = 0; t < 256; ++t) {
      auto& [error, allowed] = errors[given.levels[t]];
      const double own = double{step} * std::exp2(-given.levels[t] / 2.0);
      for (uint32_t c = 0; c < ColumnCount(given.shape); ++c) {
        const size_t i = 2 * ElementIndex(given.shape, c, t);
        const double x = ToFloat(given.shape.dtype, LoadLe<uint16_t>(given.raw.data() + i));
        const double y = ToFloat(given.shape.dtype, LoadLe<uint16_t>(out->data() + i));
        error += (x - y) * (x - y);
        allowed += own * own / 12 * 1.4 + x * x * 0x1p-16;
      }
    }
    for (const auto& [level, sums] : errors) EXPECT_LT(sums.first, sums.second) << Name(codec) << " level " << level;
  }
}

TEST(LevelsTest, WithoutThemSegmentsAreOfVersionOne) {
  SplitMix64 random(6);
  for (const CodecId codec : kCodecsOfLevels) {
    Case given = MakeCase(random, codec, 128);
    given.context.exact_tokens = 2;
    Case without = given;
    without.levels.clear();
    const auto plain = Encode(without);
    ASSERT_TRUE(plain);
    EXPECT_EQ(plain->bytes[0], std::byte{1});
    std::fill(given.levels.begin() + 2, given.levels.end(), int8_t{0});
    given.levels[1] = 5;  // Of an exact token: it does not count.
    EXPECT_EQ(Encode(given)->bytes, plain->bytes);
    given.levels[2] = 1;
    EXPECT_EQ(Encode(given)->bytes[0], std::byte{2});
  }
}

TEST(LevelsTest, LevelsThatNoneHasAreDeclined) {
  SplitMix64 random(7);
  for (const CodecId codec : kCodecsOfLevels) {
    Case given = MakeCase(random, codec, 64);
    ASSERT_TRUE(Encode(given));
    for (const int bad : {-9, 8, 127, -128}) {
      Case wrong = given;
      wrong.levels[9] = static_cast<int8_t>(bad);
      EXPECT_FALSE(Encode(wrong)) << bad;
    }
    given.levels.pop_back();
    EXPECT_FALSE(Encode(given));
  }
}

// A decoder of version 2 of EC-K and EC-X as docs/block-format.md has it, step by step.
std::vector<float> ReadAsDocumented(const Case& given, ByteSpan bytes) {
  const SegmentShape& shape = given.shape;
  const uint32_t columns = ColumnCount(shape);
  const uint32_t tokens = shape.tokens;
  const auto exact = std::to_integer<uint32_t>(bytes[1]);
  const uint32_t bands = 1u << std::to_integer<uint32_t>(bytes[3]);
  const auto step = LoadLe<float>(bytes.data() + 4);
  const auto class_bytes = LoadLe<uint32_t>(bytes.data() + 8);
  const auto level_bytes = LoadLe<uint32_t>(bytes.data() + 12);
  std::vector<int32_t> levels(tokens - exact);
  BitReader level_list(bytes.subspan(16, level_bytes));
  EXPECT_TRUE(GetIntegers(level_list, -8, 7, levels));
  std::vector<int32_t> offsets;
  for (size_t at = 16 + level_list.bytes_used(); at < 16 + level_bytes; ++at) offsets.push_back(static_cast<int8_t>(bytes[at]));
  EXPECT_EQ(offsets.size(), bands - 1);
  std::vector<uint8_t> classes(size_t{columns} * bands);
  BitReader lists(bytes.subspan(16 + level_bytes, class_bytes));
  std::vector<int32_t> ranks(columns), list(columns);
  for (uint32_t b = 0; b < bands; ++b) {
    EXPECT_TRUE(GetIntegers(lists, -87, 87, list));
    for (uint32_t c = 0; c < columns; ++c) {
      ranks[c] = (b == 0 ? 0 : std::clamp(ranks[c] + offsets[b - 1], 0, 87)) + list[c];
      classes[c * bands + b] = rans::ClassOfRank(static_cast<uint32_t>(ranks[c]));
    }
  }
  std::vector<uint32_t> order;
  for (int level = 7; level >= -8; --level) {
    for (uint32_t t = exact; t < tokens; ++t) {
      if (levels[t - exact] == level) order.push_back(t);
    }
  }
  for (uint32_t t = 0; t < exact; ++t) order.push_back(t);
  std::vector<std::byte> scratch(rans::DecodeScratchBytes(columns * bands, tokens / bands));
  rans::Decoder decoder(rans::TableSet::kQuantized, columns * bands, tokens / bands, scratch);
  const size_t exact_bytes = size_t{2} * exact * columns;
  EXPECT_EQ(decoder.Start(classes, bytes.subspan(16 + level_bytes + class_bytes + exact_bytes)), nullptr);
  std::vector<std::vector<int16_t>> q(columns, std::vector<int16_t>(tokens));  // By token.
  std::vector<int16_t> column(ColumnStride(tokens));
  for (uint32_t c = 0; c < columns; ++c) {
    for (uint32_t b = 0; b < bands; ++b) {
      EXPECT_EQ(decoder.Column(column.data()), nullptr);
      for (uint32_t i = 0; i < tokens / bands; ++i) q[c][order[b * (tokens / bands) + i]] = column[i];
    }
  }
  EXPECT_EQ(decoder.Finish(), nullptr);
  const uint32_t group = given.codec == CodecId::kEcX ? columns : shape.dim;
  std::vector<float> x(size_t{tokens} * columns);  // [token][column]
  for (uint32_t first = 0; first < columns; first += group) {
    const auto which = given.codec == CodecId::kEcX ? kWholeLayer : static_cast<uint8_t>(first / group);
    const KltTransform& transform = *given.context.artifact->Find(shape.layer, shape.kind, which);
    for (uint32_t t = exact; t < tokens; ++t) {
      const auto h = static_cast<float>(std::exp2(-levels[t - exact] / 2.0));
      for (uint32_t j = 0; j < group; ++j) {
        int32_t sum = 0;
        for (uint32_t c = 0; c < group; ++c) sum += transform.synthesis[size_t{j} * group + c] * q[first + c][t];
        const float factor = transform.scale[j] * step;
        const float common = static_cast<float>(sum) * factor;
        const float scaled = common * h;
        x[size_t{t} * columns + first + j] = scaled + transform.mean[j];
      }
    }
  }
  return x;
}

TEST(LevelsTest, BandsAreAsManyAsFitUpToFour) {
  for (const auto& [tokens, log] : {std::pair{1u, 0u}, {32u, 0u}, {64u, 1u}, {96u, 0u}, {128u, 2u}, {192u, 1u}, {256u, 2u}, {384u, 2u},
                                    {500u, 0u}, {512u, 2u}, {4096u, 2u}}) {
    EXPECT_EQ(levels::LogBandsFor(tokens), log) << tokens;
  }
  SplitMix64 random(13);
  for (const CodecId codec : kCodecsOfLevels) {
    for (const auto& [tokens, log] : {std::pair{100u, 0}, {64u, 1}, {128u, 2}, {512u, 2}}) {
      const auto coded = Encode(MakeCase(random, codec, tokens));
      ASSERT_TRUE(coded);
      EXPECT_EQ(coded->bytes[codec == CodecId::kEcC ? 7 : 3], static_cast<std::byte>(log)) << tokens;
    }
  }
}

TEST(LevelsTest, AReaderOfTheDocumentGetsTheSameValues) {
  SplitMix64 random(8);
  int read = 0;
  for (int round = 0; round < 40; ++round) {
    Case given = MakeCase(random, round % 2 == 0 ? CodecId::kEcK : CodecId::kEcX);
    given.shape.kind = SegmentKind::kV;  // Which does not turn.
    given.shape.dim = given.context.artifact->head_dim(SegmentKind::kV);
    given.shape.raw_bytes = uint64_t{2} * given.shape.tokens * ColumnCount(given.shape);
    given.raw = PlaneLikeKv(given.shape, random.Next());
    const auto coded = Encode(given);
    if (!coded || coded->bytes[0] != std::byte{2}) continue;
    const auto out = Decode(given, coded->bytes);
    ASSERT_TRUE(out) << out.error().message;
    const auto x = ReadAsDocumented(given, coded->bytes);
    for (uint32_t t = std::to_integer<uint32_t>(coded->bytes[1]); t < given.shape.tokens; ++t) {
      for (uint32_t c = 0; c < ColumnCount(given.shape); ++c) {
        const float value = x[size_t{t} * ColumnCount(given.shape) + c];
        const uint16_t want = given.shape.dtype == Dtype::kBf16 ? klt::ToBf16(value) : klt::ToFp16(value);
        ASSERT_EQ(LoadLe<uint16_t>(out->data() + 2 * ElementIndex(given.shape, c, t)), want) << "token " << t << " column " << c;
      }
    }
    ++read;
  }
  EXPECT_GT(read, 20);
}

TEST(LevelsTest, WhatIsWrongInASegmentIsNamed) {
  SplitMix64 random(9);
  for (const CodecId codec : kCodecsOfLevels) {
    const size_t bands_at = codec == CodecId::kEcC ? 7 : 3;
    SCOPED_TRACE(Name(codec));
    Case given = MakeCase(random, codec, 128);
    given.context.exact_tokens = 1;
    const auto coded = Encode(given);
    ASSERT_TRUE(coded);
    ASSERT_EQ(coded->bytes[bands_at], std::byte{2});
    const auto with = [&](size_t at, auto value) {
      auto bytes = coded->bytes;
      StoreLe(bytes.data() + at, value);
      return ErrorOf(given, bytes);
    };
    EXPECT_THAT(with(0, uint8_t{3}), HasSubstr("version"));
    EXPECT_THAT(with(0, uint8_t{0}), HasSubstr("version"));
    EXPECT_THAT(with(0, uint8_t{1}), HasSubstr("reserved"));  // Of which there are no bands.
    EXPECT_THAT(with(bands_at, uint8_t{3}), HasSubstr("bands"));
    EXPECT_THAT(with(bands_at, uint8_t{4}), HasSubstr("bands"));
    EXPECT_THAT(with(bands_at, uint8_t{255}), HasSubstr("bands"));
    EXPECT_THAT(with(bands_at, uint8_t{1}), HasSubstr("levels do not end"));
    const auto level_bytes = LoadLe<uint32_t>(coded->bytes.data() + 12);
    EXPECT_THAT(with(12, level_bytes - 1), HasSubstr("levels do not end"));
    EXPECT_THAT(with(12, level_bytes + 1), HasSubstr("levels do not end"));
    EXPECT_THAT(with(12, uint32_t{0}), HasSubstr("not a list of levels"));
    EXPECT_THAT(with(12, level_bytes / 2), HasSubstr("not a list of levels"));
    EXPECT_THAT(with(12, uint32_t{0xffffffff}), HasSubstr("levels"));
    // Where the level part is: two bytes a step, EC-C; then its exact values.
    const size_t part = codec == CodecId::kEcC ? 16 + 2 * given.shape.heads + 2 * ColumnCount(given.shape) : 16;
    std::vector<std::byte> list(level_bytes);
    std::vector<int32_t> levels(127, 0);
    levels[50] = 8;
    BitWriter bits(list);
    PutIntegers(bits, levels);
    ASSERT_LE(bits.Finish(), level_bytes);
    auto bytes = coded->bytes;
    std::copy(list.begin(), list.end(), bytes.begin() + static_cast<ptrdiff_t>(part));
    EXPECT_THAT(ErrorOf(given, bytes), HasSubstr("not a list of levels"));
    // An offset that moves classes out of their range, or to others that the columns do not fit.
    EXPECT_NE(with(part + level_bytes - 1, static_cast<uint8_t>(std::to_integer<uint8_t>(coded->bytes[part + level_bytes - 1]) + 40)),
              "accepted");
    for (size_t size = 0; size < coded->bytes.size(); ++size) {
      ASSERT_NE(ErrorOf(given, ByteSpan(coded->bytes).first(size)), "accepted") << size;
    }
  }
}

TEST(LevelsTest, NeverLeavesItsSpansWhateverTheBytesSay) {
  SplitMix64 random(10);
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    for (int round = 0; round < 12; ++round) {
      constexpr uint32_t kTokens[] = {16, 45, 64, 128};
      const Case given = MakeCase(random, kCodecsOfLevels[round % 3], kTokens[round % 4]);
      const auto coded = Encode(given);
      if (coded) Torment(given.with(), given.shape, *coded, random.Next(), 100, given.context);
    }
  }
}

// Whole records.
struct Recorded {
  RecordSpec spec;
  EncodeOptions options;
  std::vector<std::byte> block;
  std::shared_ptr<const Artifact> artifact;
};

std::unique_ptr<Recorded> MakeRecorded(const ArtifactShape& shape, uint32_t tokens, uint32_t world = 1, uint32_t rank = 0) {
  auto made = std::make_unique<Recorded>();
  made->artifact = ArtifactOf(shape);
  made->options.artifact = made->artifact.get();
  made->spec.options = &made->options;
  KvLayout& layout = made->spec.layout;
  layout.layers = shape.layers;
  layout.kv_heads = shape.heads / world;
  layout.world = world;
  layout.rank = rank;
  layout.head_dim_k = shape.dim_k;
  layout.head_dim_v = shape.dim_v;
  layout.tokens_per_block = tokens;
  layout.dtype = Dtype::kBf16;
  made->block = KvLikeBytes(layout.dtype, layout.block_bytes(), 11 + rank);
  return made;
}

uint8_t VersionOf(const RecordView& record, uint32_t segment) {
  return std::to_integer<uint8_t>(record.segment_bytes(record.segment(segment))[0]);
}

TEST(LevelsTest, ARecordHasThemWhereItsArtifactForetellsThem) {
  for (const auto& [world, rank] : {std::pair{1u, 0u}, {2u, 0u}, {2u, 1u}}) {
    const auto made = MakeRecorded(Shape(4, 32, 16, 16), 64, world, rank);
    made->options.exact_tokens = 2;
    ASSERT_TRUE(UseArtifact(made->artifact));
    for (const CodecId codec : kCodecsOfLevels) {
      if (world > 1 && codec == CodecId::kEcX) continue;  // Its transform is of all heads.
      SCOPED_TRACE(Name(codec));
      std::vector<std::byte> reference, decoded;
      for (const KernelIsa isa : kAllIsas) {
        ForcedIsa forced(isa);
        if (!forced.usable()) continue;
        const auto bytes = Encoded(made->spec, codec, made->block);
        ASSERT_TRUE(bytes) << bytes.error().message;
        if (reference.empty()) reference = *bytes;
        ASSERT_TRUE(*bytes == reference) << Name(isa);
        std::vector<std::byte> out(made->block.size());
        ASSERT_TRUE(DecodeRecord(*ParseRecord(*bytes), made->spec.layout, out));
        if (decoded.empty()) decoded = out;
        ASSERT_TRUE(out == decoded) << Name(isa);
      }
      const auto view = ParseRecord(reference);
      ASSERT_TRUE(view && VerifyRecord(*view));
      LevelPredictor predictor(made->artifact.get(), made->spec.pos0, rank * 2);
      for (uint32_t i = 0; i < view->n_segments; ++i) {
        ASSERT_EQ(view->segment(i).codec, codec);
        EXPECT_EQ(VersionOf(*view, i), 2) << i;
        if (codec != CodecId::kEcK) continue;
        // The levels are those that this rank's keys foretell.
        const SegmentInfo k = view->segment(i / 2 * 2);
        std::vector<std::byte> scratch(LevelPredictor::ScratchBytes(k.shape));
        predictor.Predict(k.shape, ByteSpan(made->block).subspan(k.shape.block_offset, k.shape.raw_bytes), scratch);
        const auto want = predictor.Of(view->segment(i).shape.kind);
        std::vector<int32_t> levels(62);
        BitReader list(view->segment_bytes(view->segment(i)).subspan(16));
        ASSERT_TRUE(GetIntegers(list, -8, 7, levels));
        EXPECT_TRUE(std::equal(levels.begin(), levels.end(), want.begin() + 2)) << i;
      }
      // A layer by itself says all that its decoder needs.
      std::vector<std::byte> part(reference.size());
      const auto size = ExtractLayers(*view, 1, 2, part);
      ASSERT_TRUE(size);
      const auto layer = ParseRecord(ByteSpan(part).first(*size));
      ASSERT_TRUE(layer);
      std::vector<std::byte> out(made->block.size() / 2);
      ASSERT_TRUE(DecodeRecord(*layer, made->spec.layout, out));
      EXPECT_TRUE(std::equal(out.begin(), out.end(), decoded.begin() + static_cast<ptrdiff_t>(out.size())));
    }
    DropArtifact(made->artifact->id());
  }
}

TEST(LevelsTest, ARecordOfEcCWithThemNeedsNoArtifactToBeRead) {
  const auto made = MakeRecorded(Shape(2, 32, 32, 32), 64);
  const auto bytes = Encoded(made->spec, CodecId::kEcC, made->block);
  ASSERT_TRUE(bytes);
  const auto view = ParseRecord(*bytes);
  EXPECT_EQ(VersionOf(*view, 0), 2);
  EXPECT_EQ(view->artifact_id, 0u);
  std::vector<std::byte> out(made->block.size());
  const Status decoded = DecodeRecord(*view, made->spec.layout, out);
  EXPECT_TRUE(decoded) << decoded.error().message;
}

// Planes that lie in pieces and planes in one piece.
class InPieces final : public PlaneSource {
 public:
  explicit InPieces(ByteSpan block) : block_(block) {}
  ByteSpan Whole(size_t, const SegmentShape&) const override { return {}; }
  void Read(size_t, const SegmentShape& shape, uint64_t begin, MutableByteSpan out) const override {
    std::memcpy(out.data(), block_.data() + shape.block_offset + begin, out.size());
  }

 private:
  ByteSpan block_;
};

TEST(LevelsTest, WhereverPlanesLieTheRecordIsTheSame) {
  const auto made = MakeRecorded(Shape(2, 32, 32, 32), 96);
  for (const CodecId codec : kCodecsOfLevels) {
    const auto want = Encoded(made->spec, codec, made->block);
    ASSERT_TRUE(want);
    std::vector<std::byte> record(MaxRecordBytes(made->spec, 0));
    const auto size = EncodeRecordFrom(made->spec, codec, InPieces(made->block), record);
    ASSERT_TRUE(size);
    record.resize(*size);
    EXPECT_TRUE(record == *want) << Name(codec);
  }
}

TEST(LevelsTest, KeysThatAreNotFiniteForetellNothingAndTheirValuesAreCodedWithout) {
  const auto made = MakeRecorded(Shape(2, 32, 32, 32), 64);
  StoreLe(made->block.data() + 2 * 100, uint16_t{0x7f80});
  for (const CodecId codec : kCodecsOfLevels) {
    const auto bytes = Encoded(made->spec, codec, made->block);
    ASSERT_TRUE(bytes);
    const auto view = ParseRecord(*bytes);
    EXPECT_EQ(view->segment(0).codec, CodecId::kRaw);
    EXPECT_EQ(view->segment(1).codec, codec);
    EXPECT_EQ(VersionOf(*view, 1), 1);
    EXPECT_EQ(VersionOf(*view, 2), 2);  // The next layer's K.
  }
}

TEST(LevelsTest, InterleavedPlanesHaveNone) {
  const auto made = MakeRecorded(Shape(2, 32, 32, 32), 64);
  made->spec.layout.packing = KvPacking::kInterleaved;
  made->options.step = 0.1f;
  const auto bytes = Encoded(made->spec, CodecId::kEcC, made->block);
  ASSERT_TRUE(bytes) << bytes.error().message;
  const auto view = ParseRecord(*bytes);
  ASSERT_EQ(view->segment(0).codec, CodecId::kEcC);
  EXPECT_EQ(VersionOf(*view, 0), 1);
}

}  // namespace
}  // namespace tiercel
