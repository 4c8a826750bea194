// The codecs of fixed rate: I8, F8, I4H.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "kernels/codec.h"
#include "kernels/digest.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"
#include "kernels/record_head.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

constexpr CodecId kCodecs[] = {CodecId::kI8, CodecId::kF8, CodecId::kI4h};

SegmentShape Shape(Dtype dtype, AxisOrder order, SegmentKind kind, uint32_t tokens, uint32_t heads,
                   uint32_t dim) {
  SegmentShape shape;
  shape.layer = 0;
  shape.kind = kind;
  shape.dtype = dtype;
  shape.order = order;
  shape.tokens = tokens;
  shape.heads = heads;
  shape.dim = dim;
  shape.raw_bytes = uint64_t{2} * tokens * heads * dim;
  return shape;
}

struct Coded {
  std::vector<std::byte> bytes;
  EncodedSegment info;
};
std::optional<Coded> Encode(const Codec& codec, const SegmentShape& shape, ByteSpan raw) {
  Coded coded{std::vector<std::byte>(shape.raw_bytes, std::byte{0xee}), {}};
  std::vector<std::byte> scratch(codec.scratch_bytes(shape), std::byte{0xcc});
  const auto info = codec.Encode(shape, raw, coded.bytes, {scratch, {}, 0});
  if (!info) return std::nullopt;
  coded.info = *info;
  coded.bytes.resize(info->bytes);
  coded.bytes.shrink_to_fit();
  return coded;
}
Result<std::vector<std::byte>> Decode(const Codec& codec, const SegmentShape& shape, uint32_t params,
                                      ByteSpan bytes) {
  std::vector<std::byte> out(shape.raw_bytes, std::byte{0xdd});
  std::vector<std::byte> scratch(codec.scratch_bytes(shape));
  TIERCEL_TRY(codec.Decode(shape, params, bytes, 0, out, {scratch, {}, 0}));
  return out;
}

float ValueAt(const SegmentShape& shape, ByteSpan bytes, uint64_t i) {
  const auto bits = LoadLe<uint16_t>(bytes.data() + 2 * i);
  return shape.dtype == Dtype::kFp16 ? fixed::FromFp16(bits) : fixed::FromBf16(bits);
}
void SetValue(const SegmentShape& shape, MutableByteSpan bytes, uint64_t i, float value) {
  StoreLe(bytes.data() + 2 * i,
          shape.dtype == Dtype::kFp16 ? fixed::ToFp16(value) : fixed::ToBf16(value));
}

uint64_t IndexOf(const SegmentShape& shape, uint32_t token, uint32_t head, uint32_t dim) {
  switch (shape.order) {
    case AxisOrder::kTokenHeadDim:
      return (uint64_t{token} * shape.heads + head) * shape.dim + dim;
    case AxisOrder::kHeadTokenDim:
      return (uint64_t{head} * shape.tokens + token) * shape.dim + dim;
    case AxisOrder::kHeadDimToken:
      return (uint64_t{head} * shape.dim + dim) * shape.tokens + token;
  }
  return 0;
}

// Nearly normal, each channel with a scale and a mean of its own, one in 32 an outlier eightfold.
std::vector<std::byte> ChannelBytes(const SegmentShape& shape, uint64_t seed, float mean = 1) {
  SplitMix64 random(seed);
  const auto normal = [&] {
    float sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<float>(static_cast<int64_t>(random.Next() >> 44)) - 0x1p19f;
    return sum * 0x1p-19f * 0.866f;
  };
  std::vector<std::byte> bytes(shape.raw_bytes);
  for (uint32_t head = 0; head < shape.heads; ++head) {
    for (uint32_t dim = 0; dim < shape.dim; ++dim) {
      const float scale = (0.5f + static_cast<float>(random.Below(64)) / 64) *
                          (random.Below(32) == 0 ? 8.0f : 1.0f);
      const float middle = normal() * scale * mean;
      for (uint32_t token = 0; token < shape.tokens; ++token) {
        SetValue(shape, bytes, IndexOf(shape, token, head, dim), middle + normal() * scale);
      }
    }
  }
  return bytes;
}

struct Snr {
  double plane = 0;    // Of all energy.
  double channel = 0;  // Each channel's variance to its error, as a mean over channels.
};
Snr SnrOf(const SegmentShape& shape, ByteSpan raw, ByteSpan decoded) {
  double energy = 0;
  double errors = 0;
  double ratios = 0;
  for (uint32_t head = 0; head < shape.heads; ++head) {
    for (uint32_t dim = 0; dim < shape.dim; ++dim) {
      double sum = 0;
      double squares = 0;
      double error = 0;
      for (uint32_t token = 0; token < shape.tokens; ++token) {
        const uint64_t i = IndexOf(shape, token, head, dim);
        const double x = ValueAt(shape, raw, i);
        const double d = x - ValueAt(shape, decoded, i);
        sum += x;
        squares += x * x;
        error += d * d;
      }
      energy += squares;
      errors += error;
      const double variance = squares / shape.tokens - sum * sum / shape.tokens / shape.tokens;
      ratios += variance / (error / shape.tokens + 1e-30);
    }
  }
  return {10 * std::log10(energy / errors),
          10 * std::log10(ratios / shape.heads / shape.dim)};
}

bool Full() { return std::getenv("TIERCEL_FULL") != nullptr; }

SegmentShape RandomShape(SplitMix64& random) {
  const uint32_t dims[] = {64, 96, 128, 192, 256, 80, 16, 576};
  const SegmentKind kinds[] = {SegmentKind::kK, SegmentKind::kV, SegmentKind::kKv,
                               SegmentKind::kLatent};
  const auto kind = kinds[random.Below(4)];
  uint32_t heads = 1 + static_cast<uint32_t>(random.Below(random.Below(4) == 0 ? 32 : 4));
  uint32_t dim = dims[random.Below(7)];
  if (kind == SegmentKind::kLatent) {
    heads = 1;
    dim = random.Below(2) == 0 ? 576 : dim;
  }
  const auto tokens = static_cast<uint32_t>(random.Below(3) == 0 ? 16 << random.Below(5)
                                                                 : 1 + random.Below(200));
  return Shape(random.Below(2) == 0 ? Dtype::kBf16 : Dtype::kFp16,
               static_cast<AxisOrder>(random.Below(3)), kind, tokens, heads, dim);
}

// Whatever a segment may hold: plain, all zero, constant, tiny, bits at random without infinities.
std::vector<std::byte> RandomContent(const SegmentShape& shape, SplitMix64& random) {
  const uint64_t what = random.Below(8);
  if (what == 0) return std::vector<std::byte>(shape.raw_bytes);
  auto bytes = ChannelBytes(shape, random.Next(), static_cast<float>(random.Below(40)));
  const uint64_t values = shape.raw_bytes / 2;
  for (uint64_t i = 0; i < values; ++i) {
    const auto bits = static_cast<uint16_t>(random.Next());
    const bool fp16 = shape.dtype == Dtype::kFp16;
    uint16_t value = LoadLe<uint16_t>(bytes.data() + 2 * i);
    switch (what) {
      case 1:  // Denormals and zeros of both signs.
        value = static_cast<uint16_t>(bits & (fp16 ? 0x83ff : 0x807f));
        break;
      case 2:  // Any exponent that may be.
        value = static_cast<uint16_t>((bits & 0x7fff) >= (fp16 ? 0x7c00 : 0x7180) ? bits & 0x83ff : bits);
        break;
      case 3:
        if (bits % 16 == 0) value = static_cast<uint16_t>(bits & 0x8000);
        break;
      case 4:
        value = static_cast<uint16_t>(bits % 97 == 0 ? 0xc000 : 0x3f80);
        break;
      default:
        break;
    }
    StoreLe(bytes.data() + 2 * i, value);
  }
  return bytes;
}

TEST(FixedTest, ConvertsHalvesAsTheStandardSays) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if ((half & 0x7c00) != 0x7c00) {
      EXPECT_EQ(fixed::ToFp16(fixed::FromFp16(half)), half);
    }
    const double magnitude = (half & 0x7c00) == 0
                                 ? std::ldexp(half & 0x3ff, -24)
                                 : std::ldexp(1024 + (half & 0x3ff), ((half >> 10) & 31) - 25);
    if ((half & 0x7c00) != 0x7c00) {
      EXPECT_EQ(std::abs(static_cast<double>(fixed::FromFp16(half))), magnitude);
    }
    if ((half & 0x7f80) != 0x7f80) {
      EXPECT_EQ(fixed::ToBf16(fixed::FromBf16(half)), half);
    }
  }
  EXPECT_EQ(fixed::ToFp16(1e9f), 0x7bff);
  EXPECT_EQ(fixed::ToFp16(-65520.0f), 0xfbff);
  EXPECT_EQ(fixed::ToFp16(0x1p-25f), 0);       // A tie: to even.
  EXPECT_EQ(fixed::ToFp16(0x1.8p-24f), 2);     // A tie: to even.
  EXPECT_EQ(fixed::ToFp16(2049.0f), 0x6800);   // 2048.
  EXPECT_EQ(fixed::ToFp16(2051.0f), 0x6802);   // 2052.
}

TEST(F8Test, TakesTheNearestOfTheCodesAndTheEvenOneOfTwo) {
  for (const int k : {-8, 0, 3}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float x = fixed::FromBf16(static_cast<uint16_t>(bits));
      if (!(std::abs(x) <= 448.0f * fixed::PowerOfTwo(k))) continue;
      const uint8_t code = fixed::F8Code(x, k);
      const double error = std::abs(static_cast<double>(x) - static_cast<double>(fixed::F8Value(code, fixed::PowerOfTwo(k))));
      ASSERT_EQ(code >> 7, bits >> 15);
      ASSERT_NE(code & 0x7f, 0x7f);
      for (const int other : {(code & 0x7f) - 1, (code & 0x7f) + 1}) {
        if (other < 0 || other > 0x7e) continue;
        const float value = fixed::F8Value(static_cast<uint8_t>(other | (code & 0x80)), fixed::PowerOfTwo(k));
        const double other_error = std::abs(static_cast<double>(x) - static_cast<double>(value));
        ASSERT_LE(error, other_error) << x;
        if (error == other_error) {
          ASSERT_EQ(code % 2, 0) << x;
        }
      }
    }
  }
  EXPECT_EQ(fixed::F8Code(1e9f, 0), 0x7e);
  EXPECT_EQ(fixed::F8Code(-1e9f, 0), 0xfe);
  EXPECT_EQ(fixed::F8Code(448.0f, 0), 0x7e);
  EXPECT_EQ(fixed::F8Code(0x1p-10f, 0), 0);  // Half of the least: to even.
}

TEST(F8Test, EveryIsaTurnsEveryValueIntoTheSameCodeAndBack) {
  std::vector<std::byte> codes[3];
  for (const int k : {fixed::kF8MinK, -30, -3, 0, 7, fixed::kF8MaxK}) {
    for (const bool fp16 : {false, true}) {
      std::vector<std::byte> all(2 * 65536);
      for (uint32_t i = 0; i < 65536; ++i) {
        const auto half = static_cast<uint16_t>(i);
        const float x = fp16 ? fixed::FromFp16(half) : fixed::FromBf16(half);
        // What an encoder may meet at this k.
        if (std::abs(x) < 496.0f * fixed::PowerOfTwo(k)) StoreLe(all.data() + 2 * i, half);
      }
      for (const KernelIsa isa : kAllIsas) {
        ForcedIsa forced(isa);
        if (!forced.usable()) continue;
        auto& mine = codes[static_cast<int>(isa)];
        mine.assign(65536, std::byte{});
        fixed::LoopsFor(fp16).f8_encode(all.data(), 65536, k, mine.data());
        ASSERT_TRUE(mine == codes[0]) << Name(isa) << " " << k;
      }
      std::vector<std::byte> any(256);
      for (int i = 0; i < 256; ++i) any[static_cast<size_t>(i)] = static_cast<std::byte>(i);
      std::vector<std::byte> values[3];
      for (const KernelIsa isa : kAllIsas) {
        ForcedIsa forced(isa);
        if (!forced.usable()) continue;
        auto& mine = values[static_cast<int>(isa)];
        mine.assign(512, std::byte{});
        fixed::LoopsFor(fp16).f8_decode(any.data(), 256, fixed::PowerOfTwo(k), mine.data());
        ASSERT_TRUE(mine == values[0]) << Name(isa) << " " << k;
      }
    }
  }
}

TEST(FixedTest, EveryIsaWritesAndReadsTheSameBytesOfEveryShape) {
  SplitMix64 random(5);
  int coded_ones = 0;
  for (int round = 0; round < (Full() ? 10'000 : 250); ++round) {
    const SegmentShape shape = RandomShape(random);
    const auto raw = RandomContent(shape, random);
    for (const CodecId id : kCodecs) {
      const Codec& codec = *FindCodec(id);
      ASSERT_TRUE(codec.Supports(shape));
      std::optional<std::vector<std::byte>> reference;
      std::vector<std::byte> shown;
      for (const KernelIsa isa : kAllIsas) {
        ForcedIsa forced(isa);
        if (!forced.usable()) continue;
        const std::string what =
            fmt::format("{} {} dtype {} order {} kind {} {}x{}x{} round {}", Name(id), Name(isa),
                        static_cast<int>(shape.dtype), static_cast<int>(shape.order),
                        Name(shape.kind), shape.tokens, shape.heads, shape.dim, round);
        const auto coded = Encode(codec, shape, raw);
        const std::vector<std::byte> bytes = coded ? coded->bytes : std::vector<std::byte>{};
        if (!reference) reference = bytes;
        ASSERT_TRUE(bytes == *reference) << what;
        if (!coded) continue;
        ++coded_ones;
        const auto out = Decode(codec, shape, coded->info.params, bytes);
        ASSERT_TRUE(out) << what << ": " << out.error().message;
        ASSERT_EQ(DecodedDigest(*out), coded->info.decoded_digest) << what;
        if (shown.empty()) shown = *out;
        ASSERT_TRUE(*out == shown) << what;
        if (id == CodecId::kI4h) continue;
        // I8 and F8: what was decoded is coded as it was.
        const auto again = Encode(codec, shape, *out);
        ASSERT_TRUE(again) << what;
        ASSERT_TRUE(again->bytes == bytes) << what;
      }
    }
  }
  EXPECT_GT(coded_ones, 1000);
}

TEST(FixedTest, DecodesAnyStepByItself) {
  for (const CodecId id : kCodecs) {
    const Codec& codec = *FindCodec(id);
    for (uint32_t order = 0; order < 3; ++order) {
      for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
        const SegmentShape shape =
            Shape(Dtype::kBf16, static_cast<AxisOrder>(order), kind, 150, 5, 96);
        const auto raw = ChannelBytes(shape, 3);
        const auto coded = Encode(codec, shape, raw);
        ASSERT_TRUE(coded);
        const auto whole = Decode(codec, shape, coded->info.params, coded->bytes);
        ASSERT_TRUE(whole);
        std::vector<std::byte> scratch(codec.scratch_bytes(shape));
        for (uint64_t begin = 0; begin < raw.size(); begin += codec.step_bytes(shape)) {
          std::vector<std::byte> out(std::min(codec.step_bytes(shape), raw.size() - begin));
          ASSERT_TRUE(codec.Decode(shape, coded->info.params, coded->bytes, begin, out,
                                   {scratch, {}, 0}));
          ASSERT_EQ(std::memcmp(out.data(), whole->data() + begin, out.size()), 0);
        }
      }
    }
  }
}

TEST(FixedTest, IsAsGoodAndAsSmallAsItIsMeantToBeWhereChannelsHaveOutliers) {
  struct Row {
    CodecId codec;
    SegmentKind kind;
    uint32_t dim;
    double bits;
    double snr;
  };
  for (const Row& row : {Row{CodecId::kI8, SegmentKind::kK, 128, 8.51, 44.5},
                         Row{CodecId::kI8, SegmentKind::kV, 128, 8.26, 37.0},
                         Row{CodecId::kI8, SegmentKind::kV, 64, 8.51, 38.0},
                         Row{CodecId::kI8, SegmentKind::kLatent, 576, 8.06, 33.0},
                         Row{CodecId::kI4h, SegmentKind::kLatent, 576, 4.06, 15.0},
                         Row{CodecId::kF8, SegmentKind::kK, 128, 8.01, 31.0},
                         Row{CodecId::kF8, SegmentKind::kV, 128, 8.01, 31.0},
                         Row{CodecId::kI4h, SegmentKind::kK, 128, 4.26, 17.0},
                         Row{CodecId::kI4h, SegmentKind::kV, 64, 4.51, 17.0}}) {
    const Codec& codec = *FindCodec(row.codec);
    for (uint32_t order = 0; order < 3; ++order) {
      const SegmentShape shape =
          Shape(Dtype::kBf16, static_cast<AxisOrder>(order), row.kind, 256,
                                       row.kind == SegmentKind::kLatent ? 1 : 8, row.dim);
      const auto raw = ChannelBytes(shape, 11, row.kind == SegmentKind::kK ? 1.0f : 0.0f);
      const auto coded = Encode(codec, shape, raw);
      ASSERT_TRUE(coded);
      const auto out = Decode(codec, shape, coded->info.params, coded->bytes);
      ASSERT_TRUE(out);
      const double bits =
          8.0 * static_cast<double>(coded->bytes.size()) / (static_cast<double>(raw.size()) / 2);
      const Snr snr = SnrOf(shape, raw, *out);
      if (order == 0) {
        fmt::print("{:<4} {} dim {:>3}: {:.3f} bits, {:.1f} dB, {:.1f} dB by channel\n",
                   Name(row.codec), Name(row.kind), row.dim, bits, snr.plane, snr.channel);
      }
      EXPECT_LT(bits, row.bits) << Name(row.codec);
      EXPECT_GT(snr.plane, row.snr) << Name(row.codec) << " order " << order;
    }
  }
}

TEST(FixedTest, LeavesWhatIsNotFiniteToRaw) {
  for (const CodecId id : kCodecs) {
    const Codec& codec = *FindCodec(id);
    for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16}) {
      for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
        const SegmentShape shape = Shape(dtype, AxisOrder::kTokenHeadDim, kind, 64, 2, 64);
        const uint16_t infinity = dtype == Dtype::kBf16 ? 0x7f80 : 0x7c00;
        for (const int odd : {infinity + 0, infinity + 1, infinity + 0x8000, 0x7fff, 0xffff}) {
          for (const KernelIsa isa : kAllIsas) {
            ForcedIsa forced(isa);
            if (!forced.usable()) continue;
            auto raw = ChannelBytes(shape, 3);
            StoreLe(raw.data() + 2 * 4321, static_cast<uint16_t>(odd));
            EXPECT_FALSE(Encode(codec, shape, raw)) << Name(id) << " " << Name(isa) << " " << odd;
          }
        }
      }
    }
    // Too large for what is computed with it, and another dtype.
    const SegmentShape shape = Shape(Dtype::kBf16, AxisOrder::kTokenHeadDim, SegmentKind::kK, 64, 2, 64);
    auto raw = ChannelBytes(shape, 3);
    SetValue(shape, raw, 5, 0x1p100f);
    EXPECT_FALSE(Encode(codec, shape, raw));
    SetValue(shape, raw, 5, 0x1p99f);
    EXPECT_TRUE(Encode(codec, shape, raw));
    SegmentShape other = shape;
    other.dtype = Dtype::kFp8E4m3;
    EXPECT_FALSE(codec.Supports(other));
  }
}

TEST(FixedTest, NeverLeavesItsSpansWhateverTheBytesSay) {
  SplitMix64 random(11);
  for (int round = 0; round < (Full() ? 100'000 : 3'000); ++round) {
    SegmentShape shape = RandomShape(random);
    shape.tokens = 1 + shape.tokens % 70;
    shape.heads = 1 + shape.heads % 3;
    shape.raw_bytes = uint64_t{2} * shape.tokens * shape.heads * shape.dim;
    const Codec& codec = *FindCodec(kCodecs[random.Below(3)]);
    const auto coded = Encode(codec, shape, ChannelBytes(shape, 1));
    if (!coded) continue;
    auto bytes = coded->bytes;
    for (int k = 0; k < 8; ++k) {
      bytes[random.Below(std::min<uint64_t>(bytes.size(), random.Below(2) == 0 ? 64 : ~0ull))] =
          static_cast<std::byte>(random.Next());
    }
    if (random.Below(4) == 0) bytes.resize(random.Below(bytes.size()));
    bytes.shrink_to_fit();
    std::optional<std::vector<std::byte>> reference;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const auto out = Decode(codec, shape, coded->info.params, bytes);  // ASan watches.
      const auto shown = out ? *out : std::vector<std::byte>{};
      if (!reference) reference = shown;
      ASSERT_TRUE(shown == *reference) << Name(codec.id()) << " " << Name(isa) << " " << round;
      if (bytes.size() != coded->bytes.size()) {
        ASSERT_EQ(out.error().code, Code::kDataLoss);
      }
    }
    ASSERT_FALSE(Decode(codec, shape, coded->info.params ^ 0x100, coded->bytes));
  }
}

TEST(FixedTest, RefusesBoundsAndParametersThatNoEncoderWrites) {
  const SegmentShape shape = Shape(Dtype::kBf16, AxisOrder::kTokenHeadDim, SegmentKind::kK, 64, 2, 64);
  const auto raw = ChannelBytes(shape, 3);
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    for (const CodecId id : kCodecs) {
      auto coded = Encode(*FindCodec(id), shape, raw);
      ASSERT_TRUE(coded);
      StoreLe<uint16_t>(coded->bytes.data(), 0x7fff);
      const auto out = Decode(*FindCodec(id), shape, coded->info.params, coded->bytes);
      ASSERT_FALSE(out) << Name(id) << " " << Name(isa);
      EXPECT_EQ(out.error().code, Code::kDataLoss);
    }
  }
}

TEST(FixedTest, ARecordSaysThatItIsLossyAndOfWhichClass) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
  layout.tokens_per_block = 32;
  const auto block = KvLikeBytes(layout.dtype, layout.block_bytes(), 3);
  for (const auto& [id, quality] : {std::pair{CodecId::kRaw, QualityClass::kExact},
                                    {CodecId::kLlf, QualityClass::kExact},
                                    {CodecId::kI8, QualityClass::kNear},
                                    {CodecId::kF8, QualityClass::kHigh},
                                    {CodecId::kI4h, QualityClass::kBalanced}}) {
    auto bytes = Encoded(SpecOf(layout), id, block);
    ASSERT_TRUE(bytes);
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    EXPECT_EQ(record->quality, quality);
    EXPECT_EQ(record->segment(0).codec, id);
    const bool lossy = quality != QualityClass::kExact;
    EXPECT_EQ((*bytes)[record_head::kFlags], static_cast<std::byte>(lossy ? 1 : 0));
    std::vector<std::byte> out(block.size());
    const Status decoded = DecodeRecord(*record, layout, out);
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(out == block, !lossy);
    EXPECT_LT(bytes->size(), MaxRecordBytes(SpecOf(layout), 0) + 1);
    if (!lossy) continue;
    // A record that does not own up to its loss, or to how much, is none.
    const auto error_with = [&](size_t at, uint8_t value) {
      auto changed = *bytes;
      changed[at] = static_cast<std::byte>(value);
      const size_t head = record->head_bytes;
      StoreLe(changed.data() + record_head::kCrc,
              record_head::HeadCrc(ByteSpan(changed).first(head)));
      return ParseRecord(changed).error();
    };
    EXPECT_EQ(error_with(record_head::kFlags, 0).code, Code::kDataLoss);
    EXPECT_THAT(error_with(record_head::kQuality, 0).message, testing::HasSubstr("class exact"));
    RecordSpec worse = SpecOf(layout);
    worse.quality = QualityClass::kSmall;
    const auto small = Encoded(worse, id, block);
    ASSERT_TRUE(small);
    EXPECT_EQ(ParseRecord(*small)->quality, QualityClass::kSmall);
  }
}

TEST(FixedTest, ASegmentThatIsNotFiniteIsExactInALossyRecord) {
  KvLayout layout = SmallLayout(Dtype::kFp16, AxisOrder::kHeadTokenDim, KvPacking::kSplit, 1);
  layout.tokens_per_block = 32;
  auto block = KvLikeBytes(layout.dtype, layout.block_bytes(), 3);
  StoreLe<uint16_t>(block.data() + 40, 0x7c00);
  for (const CodecId id : kCodecs) {
    const auto bytes = Encoded(SpecOf(layout), id, block);
    ASSERT_TRUE(bytes);
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record);
    EXPECT_EQ(record->segment(0).codec, CodecId::kRaw);
    EXPECT_EQ(record->segment(1).codec, id);
    std::vector<std::byte> out(block.size());
    ASSERT_TRUE(DecodeRecord(*record, layout, out));
    EXPECT_EQ(std::memcmp(out.data(), block.data(), layout.k_plane_bytes()), 0);
  }
}

}  // namespace
}  // namespace tiercel
