#include <gtest/gtest.h>

#include <numbers>

#include "kernels/digest.h"
#include "kernels/ecc_core.h"
#include "kernels/rans.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

// A rotation with its tables, for a shape at a position.
struct RopeOf {
  std::vector<uint64_t> frequencies;
  std::vector<float> cos;
  std::vector<float> sin;
  RopeTables tables;

  RopeOf(RopeStyle style, uint32_t first, uint32_t dims, const SegmentShape& shape, uint64_t pos0) {
    for (uint32_t i = 0; i < dims / 2; ++i) {
      const double turns = std::pow(1e5, -2.0 * i / dims) / (2 * std::numbers::pi);
      frequencies.push_back(static_cast<uint64_t>(turns * 0x1p64));
    }
    tables.rope = {style, first, dims, frequencies.data()};
    tables.stride = ColumnStride(shape.tokens);
    cos.resize(tables.stride * dims / 2);
    sin.resize(cos.size());
    rope::FillTables(tables.rope, pos0, shape.tokens, tables.stride, cos.data(), sin.data());
    tables.cos = cos.data();
    tables.sin = sin.data();
  }
  RopeOf(const RopeOf&) = delete;
  RopeOf& operator=(const RopeOf&) = delete;
};

float ValueAt(const SegmentShape& shape, ByteSpan raw, size_t index) {
  const auto bits = LoadLe<uint16_t>(raw.data() + 2 * index);
  return shape.dtype == Dtype::kFp16 ? ecc::FromFp16(bits) : ecc::FromBf16(bits);
}

double RootMeanSquareError(const SegmentShape& shape, ByteSpan a, ByteSpan b) {
  double sum = 0;
  for (size_t i = 0; i < a.size() / 2; ++i) {
    const double d = ValueAt(shape, a, i) - ValueAt(shape, b, i);
    sum += d * d;
  }
  return std::sqrt(sum / static_cast<double>(a.size() / 2));
}

struct Case {
  SegmentShape shape;
  std::vector<float> scales;
  std::unique_ptr<RopeOf> rope;
  CodecContext context;
};

std::unique_ptr<Case> RandomCase(SplitMix64& random) {
  auto c = std::make_unique<Case>();
  c->shape = RandomShape(random.Below(3) == 0 ? Dtype::kFp16 : Dtype::kBf16, random);
  const SegmentShape& shape = c->shape;
  c->context.quality = static_cast<QualityClass>(1 + random.Below(4));
  if (random.Below(3) == 0 && shape.dim > 1) {
    c->context.split_dim = static_cast<uint32_t>(1 + random.Below(shape.dim - 1));
  }
  if (random.Below(2) == 0) {
    c->context.step = static_cast<float>(0.05 + random.Uniform());
    const uint32_t groups = shape.heads * (c->context.split_dim == 0 ? 1 : 2);
    for (uint32_t i = 0; i < groups; ++i) {
      c->scales.push_back(static_cast<float>(std::exp2(2 * random.Uniform() - 1)));
    }
    c->context.scales = c->scales;
  }
  if (random.Below(3) == 0) {
    c->context.exact_tokens = static_cast<uint32_t>(random.Below(std::min(5u, shape.tokens)));
  }
  if (random.Below(2) == 0 && shape.dim >= 4) {
    const uint32_t dims = static_cast<uint32_t>(1 + random.Below(shape.dim / 2)) * 2;
    c->rope = std::make_unique<RopeOf>(static_cast<RopeStyle>(random.Below(2)),
                                       static_cast<uint32_t>(random.Below(shape.dim - dims + 1)),
                                       dims, shape, random.Below(100'000));
    c->context.rope = &c->rope->tables;
  }
  return c;
}

TEST(EcCTest, EveryIsaWritesAndReadsTheSame) {
  SplitMix64 random(1);
  int coded = 0;
  const uint64_t rounds = Rounds(250);
  for (uint64_t round = 0; round < rounds; ++round) {
    const auto c = RandomCase(random);
    const auto raw = PlaneLikeKv(c->shape, round);
    std::optional<std::vector<std::byte>> bytes;
    std::vector<std::byte> decoded;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const auto got = RunEncode(EcCCodec(), c->shape, raw, c->context);
      const std::vector<std::byte> now = got ? got->bytes : std::vector<std::byte>{};
      if (!bytes) bytes = now;
      ASSERT_TRUE(now == *bytes) << Name(isa) << " round " << round;
      if (!got) continue;
      const auto out = RunDecode(EcCCodec(), c->shape, got->info.params, now, c->context);
      ASSERT_TRUE(out) << out.error().message;
      ASSERT_EQ(DecodedDigest(*out), got->info.decoded_digest) << Name(isa) << " round " << round;
      if (decoded.empty()) decoded = *out;
      ASSERT_TRUE(*out == decoded) << Name(isa) << " round " << round;
    }
    if (decoded.empty()) continue;
    ++coded;
    for (uint32_t t = 0; t < c->context.exact_tokens; ++t) {
      for (uint32_t column = 0; column < ColumnCount(c->shape); ++column) {
        const size_t i = ElementIndex(c->shape, column, t);
        ASSERT_EQ(LoadLe<uint16_t>(decoded.data() + 2 * i), LoadLe<uint16_t>(raw.data() + 2 * i));
      }
    }
  }
  EXPECT_GT(coded, static_cast<int>(rounds / 2));
}

TEST(EcCTest, ErrsByHalfAStepAtMost) {
  for (const bool fp16 : {false, true}) {
    for (const bool roped : {false, true}) {
      const SegmentShape shape = MakeShape(fp16 ? Dtype::kFp16 : Dtype::kBf16,
                                           AxisOrder::kTokenHeadDim, 128, 2, 64);
      const auto raw = PlaneLikeKv(shape, 5);
      const RopeOf rope(RopeStyle::kHalves, 0, 64, shape, 1000);
      CodecContext context;
      context.quality = QualityClass::kBalanced;
      context.step = 0.25f;
      if (roped) context.rope = &rope.tables;
      const auto coded = RunEncode(EcCCodec(), shape, raw, context);
      ASSERT_TRUE(coded);
      const auto out = RunDecode(EcCCodec(), shape, 0, coded->bytes, context);
      ASSERT_TRUE(out);
      for (size_t i = 0; i < raw.size() / 2; ++i) {
        const float x = ValueAt(shape, raw, i);
        // Rotated, two errors of half a step lie at an angle.
        const float bound = (roped ? 1.4143f : 1.0f) * 0.125f + std::abs(x) * 0x1p-7f;
        ASSERT_NEAR(ValueAt(shape, *out, i), x, bound) << i;
      }
    }
  }
}

// What a segment of one step, no exact tokens and no split says: read as docs/block-format.md has it.
struct Parsed {
  float step = 0;
  std::vector<int32_t> means;
  std::vector<int16_t> q;  // [column][stride]
};
Parsed Parse(const SegmentShape& shape, ByteSpan bytes) {
  const uint32_t columns = ColumnCount(shape);
  Parsed out;
  out.step = ecc::FromBf16(LoadLe<uint16_t>(bytes.data() + 12));
  out.means.resize(columns);
  std::vector<int32_t> list(columns);
  std::vector<uint8_t> classes(columns);
  const size_t lists_at = 12 + 2 * shape.heads;
  BitReader lists(bytes.subspan(lists_at));
  EXPECT_TRUE(rans::GetClasses(lists, classes, list));
  const size_t mean_bytes = LoadLe<uint32_t>(bytes.data() + 8);
  const size_t riding =
      std::min(mean_bytes, rans::kCargoBytes << std::to_integer<uint32_t>(bytes[6]));
  const size_t means_at = lists_at + lists.bytes_used();
  std::vector<std::byte> scratch(rans::DecodeScratchBytes(columns, shape.tokens));
  rans::Decoder decoder(rans::TableSet::kQuantized, columns, shape.tokens, scratch);
  EXPECT_EQ(decoder.Start(classes, bytes.subspan((means_at + mean_bytes - riding + 3) / 4 * 4)),
            nullptr);
  std::vector<std::byte> means(decoder.cargo().begin(),
                               decoder.cargo().begin() + static_cast<ptrdiff_t>(riding));
  const ByteSpan stored = bytes.subspan(means_at, mean_bytes - riding);
  means.insert(means.end(), stored.begin(), stored.end());
  BitReader reader(means);
  EXPECT_TRUE(GetIntegers(reader, -(1 << 17), 1 << 17, out.means));
  const size_t stride = ColumnStride(shape.tokens);
  out.q.resize(stride * columns);
  for (uint32_t c = 0; c < columns; ++c) {
    EXPECT_EQ(decoder.Column(out.q.data() + c * stride), nullptr);
  }
  return out;
}

TEST(EcCTest, WhatWasDecodedHasTheSameSymbolsUnderTheSameStepAndMeans) {
  for (const bool roped : {false, true}) {
    for (const QualityClass quality :
         {QualityClass::kNear, QualityClass::kHigh, QualityClass::kBalanced, QualityClass::kSmall}) {
      const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 256, 3, 64);
      const auto raw = PlaneLikeKv(shape, 8);
      const RopeOf rope(RopeStyle::kHalves, 0, 64, shape, 512);
      CodecContext context;
      context.quality = QualityClass::kBalanced;
      context.quality = quality;
      if (roped) context.rope = &rope.tables;
      const auto coded = RunEncode(EcCCodec(), shape, raw, context);
      ASSERT_TRUE(coded);
      const auto out = RunDecode(EcCCodec(), shape, 0, coded->bytes, context);
      ASSERT_TRUE(out);
      const Parsed parsed = Parse(shape, coded->bytes);
      const size_t stride = 256;
      std::vector<uint16_t> columns(stride * 192);
      LoadColumns<uint16_t>(shape, *out, 0, 192, columns.data(), stride);
      std::vector<float> x(columns.size());
      ecc::WidenColumn<false>(columns.data(), columns.size(), x.data());
      for (uint32_t head = 0; roped && head < 3; ++head) {
        for (uint32_t p = 0; p < 32; ++p) {
          ecc::UnrotateColumns(x.data() + (head * 64 + p) * stride,
                               x.data() + (head * 64 + p + 32) * stride, stride,
                               rope.cos.data() + p * stride, rope.sin.data() + p * stride);
        }
      }
      std::vector<int16_t> q(columns.size());
      for (uint32_t c = 0; c < 192; ++c) {
        ecc::QuantizeColumn(x.data() + c * stride, stride, 8.0f / parsed.step,
                            static_cast<float>(parsed.means[c]), q.data() + c * stride);
      }
      size_t changed = 0;
      for (size_t i = 0; i < q.size(); ++i) changed += q[i] != parsed.q[i] ? 1 : 0;
      // Bf16 itself errs by up to 2^-9: half a step from 256 steps on, which the finest class reaches.
      EXPECT_LE(changed, quality == QualityClass::kNear ? 10u : 0u)
          << (roped ? "rotated" : "plain") << " class "
                             << static_cast<int>(quality);
    }
  }
}

TEST(EcCTest, TakesFewerBitsForEachWorseClass) {
  const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 256, 3, 64);
  const auto raw = PlaneLikeKv(shape, 3);
  double last = 8;
  for (int quality = 1; quality < kQualityClasses; ++quality) {
    CodecContext context;
    context.quality = QualityClass::kBalanced;
    context.quality = static_cast<QualityClass>(quality);
    const auto coded = RunEncode(EcCCodec(), shape, raw, context);
    ASSERT_TRUE(coded);
    const double bits = 8.0 * static_cast<double>(coded->bytes.size()) / (256 * 192);
    const auto out = RunDecode(EcCCodec(), shape, 0, coded->bytes, context);
    ASSERT_TRUE(out);
    RecordProperty("bits_" + std::to_string(quality), std::to_string(bits));
    RecordProperty("rms_" + std::to_string(quality),
                   std::to_string(RootMeanSquareError(shape, raw, *out)));
    EXPECT_LT(bits, last);
    last = bits - 0.4;
  }
}

TEST(EcCTest, DeclinesWhatHasNoSteps) {
  const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 64, 2, 64);
  CodecContext context;
  context.quality = QualityClass::kBalanced;
  auto raw = PlaneLikeKv(shape, 1);
  EXPECT_TRUE(RunEncode(EcCCodec(), shape, raw, context));
  for (const auto odd : {uint16_t{0x7f80}, uint16_t{0xff80}, uint16_t{0x7fc1}}) {  // Infinities and a NaN, anywhere.
    for (const size_t at : {size_t{0}, raw.size() / 2, raw.size() - 2}) {
      auto bad = raw;
      StoreLe(bad.data() + at, odd);
      for (const float step : {0.0f, 0.5f}) {
        context.step = step;
        EXPECT_FALSE(RunEncode(EcCCodec(), shape, bad, context));
      }
      context.step = 0;
    }
  }
  EXPECT_FALSE(RunEncode(EcCCodec(), shape, std::vector<std::byte>(shape.raw_bytes), context));
  context.quality = QualityClass::kExact;
  EXPECT_FALSE(RunEncode(EcCCodec(), shape, raw, context));
  context.quality = QualityClass::kSmall;
  for (const float step : {1e-38f, 1e38f, INFINITY}) {
    context.step = step;
    EXPECT_FALSE(RunEncode(EcCCodec(), shape, raw, context)) << step;
  }
  context.step = 1;
  const float scales[] = {1};
  context.scales = scales;  // Of two heads.
  EXPECT_FALSE(RunEncode(EcCCodec(), shape, raw, context));
}

TEST(EcCTest, DenormalsAndNegativeZerosAreValuesLikeAnyOther) {
  const SegmentShape shape = MakeShape(Dtype::kFp16, AxisOrder::kTokenHeadDim, 64, 1, 64);
  auto raw = PlaneLikeKv(shape, 1);
  for (size_t i = 0; i < raw.size() / 8; i += 2) {
    StoreLe(raw.data() + 8 * i, static_cast<uint16_t>(0x8000 + (i % 4 == 0 ? 0 : 1 + i % 512)));
  }
  CodecContext context;
  context.quality = QualityClass::kBalanced;
  std::optional<std::vector<std::byte>> reference;
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    const auto coded = RunEncode(EcCCodec(), shape, raw, context);
    ASSERT_TRUE(coded);
    if (!reference) reference = coded->bytes;
    EXPECT_TRUE(coded->bytes == *reference);
    EXPECT_TRUE(RunDecode(EcCCodec(), shape, 0, coded->bytes, context));
  }
}

TEST(EcCTest, HalvesGoToFloatsAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if ((half & 0x7c00) == 0x7c00) continue;
    EXPECT_EQ(ecc::ToFp16(ecc::FromFp16(half)), half);
  }
  EXPECT_EQ(ecc::ToFp16(1e9f), 0x7bff);
  EXPECT_EQ(ecc::ToFp16(-65519.0f), 0xfbff);
  EXPECT_EQ(ecc::ToFp16(0x1.8p-24f), 2);  // A tie goes to the even one.
}

TEST(EcCTest, NeverLeavesItsSpansWhateverTheBytesSay) {
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    for (const uint32_t tokens : {16u, 45u}) {
      const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, tokens, 2, 32);
      const RopeOf rope(RopeStyle::kHalves, 0, 32, shape, 5);
      CodecContext context;
      context.quality = QualityClass::kBalanced;
      context.exact_tokens = 2;
      context.rope = &rope.tables;
      const auto coded = RunEncode(EcCCodec(), shape, PlaneLikeKv(shape, tokens), context);
      ASSERT_TRUE(coded);
      Torment(EcCCodec(), shape, *coded, tokens, 1500, context);
      context.rope = nullptr;
      EXPECT_FALSE(RunDecode(EcCCodec(), shape, 0, coded->bytes, context));
    }
  }
}

}  // namespace
}  // namespace tiercel
