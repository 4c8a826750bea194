// I8E: what I8 decodes to, in fewer bytes where the codes of a column are alike.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/codec.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

TEST(I8eTest, DecodesToWhatI8DecodesToAndIsNeverMuchLarger) {
  SplitMix64 random(1);
  int coded = 0, plain = 0;
  for (uint64_t i = 0; i < Rounds(150); ++i) {
    const SegmentShape shape = RandomShape(i % 2 == 0 ? Dtype::kBf16 : Dtype::kFp16, random);
    SCOPED_TRACE(fmt::format("{} tokens, {} heads of {}, order {}, kind {}", shape.tokens, shape.heads, shape.dim,
                             static_cast<int>(shape.order), Name(shape.kind)));
    // Noise has codes that take eight bits whatever is done.
    const auto raw = i % 5 == 0 ? KvLikeBytes(shape.dtype, shape.raw_bytes, i) : PlaneLikeKv(shape, i);
    const auto eight = RunEncode(I8Codec(), shape, raw);
    std::optional<CodedSegment> first;
    for (const KernelIsa isa : kAllIsas) {
      const ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const auto entropy = RunEncode(I8eCodec(), shape, raw);
      if (!entropy) {  // Where the header is too much.
        ASSERT_TRUE(!eight || eight->bytes.size() + 64 > I8eCodec().MaxEncodedBytes(shape));
        continue;
      }
      ASSERT_TRUE(eight);
      ASSERT_LE(entropy->bytes.size(), eight->bytes.size() + 64);
      ASSERT_EQ(entropy->info.params, eight->info.params);
      ASSERT_EQ(entropy->info.decoded_digest, eight->info.decoded_digest);
      if (!first) first = entropy;
      ASSERT_TRUE(entropy->bytes == first->bytes);
      const auto want = RunDecode(I8Codec(), shape, eight->info.params, eight->bytes);
      const auto got = RunDecode(I8eCodec(), shape, entropy->info.params, entropy->bytes);
      ASSERT_TRUE(want && got);
      ASSERT_TRUE(*got == *want);
    }
    if (first) ++(first->bytes[1] == std::byte{0} ? coded : plain);
  }
  EXPECT_GT(coded, 20);
  EXPECT_GT(plain, 0);
}

// Normal values; channels' scales up to `octaves` powers of two apart.
std::vector<std::byte> Scaled(const SegmentShape& shape, double octaves) {
  SplitMix64 random(9);
  std::vector<std::byte> raw(shape.raw_bytes);
  for (uint32_t c = 0; c < ColumnCount(shape); ++c) {
    const double scale = std::exp2(octaves * (random.Uniform() - 1));
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      StoreLe(raw.data() + 2 * ElementIndex(shape, c, t),
              static_cast<uint16_t>(FloatBits(Dtype::kBf16, static_cast<float>(scale * NormalSample(random)))));
    }
  }
  return raw;
}

TEST(I8eTest, IsSmallerThanI8WhereScalesDifferByChannel) {
  const auto ratio = [](SegmentKind kind, double octaves) {
    const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 256, 4, 128, kind);
    const auto raw = Scaled(shape, octaves);
    const auto eight = RunEncode(I8Codec(), shape, raw);
    const auto entropy = RunEncode(I8eCodec(), shape, raw);
    const double bits = 8.0 * static_cast<double>(entropy->bytes.size()) / (256 * 4 * 128);
    const double of = static_cast<double>(entropy->bytes.size()) / static_cast<double>(eight->bytes.size());
    fmt::print("{}, scales up to {} octaves apart: {:.2f} bits a value, {:.3f} of I8\n", Name(kind), octaves, bits, of);
    return of;
  };
  // Keys have bounds by channel: what is left to take is that a normal value is seldom near them.
  EXPECT_LT(ratio(SegmentKind::kK, 0), 0.996);
  EXPECT_LT(ratio(SegmentKind::kK, 4), 0.996);
  // Values are bounded by token: a channel of a small scale has few codes.
  EXPECT_LT(ratio(SegmentKind::kV, 0), 0.98);
  EXPECT_LT(ratio(SegmentKind::kV, 2), 0.95);
  EXPECT_LT(ratio(SegmentKind::kV, 4), 0.925);
}

TEST(I8eTest, AMalformedSegmentIsNamed) {
  const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kHeadTokenDim, 64, 2, 64, SegmentKind::kV);
  const auto good = RunEncode(I8eCodec(), shape, Scaled(shape, 3));
  ASSERT_TRUE(good && good->bytes[1] == std::byte{0});
  const auto error = [&](size_t at, uint8_t value, uint32_t params) {
    auto bytes = good->bytes;
    bytes[at] = std::byte{value};
    const auto out = RunDecode(I8eCodec(), shape, params, bytes);
    return out ? "" : out.error().message;
  };
  EXPECT_EQ(error(0, 1, good->info.params), "");
  EXPECT_THAT(error(0, 2, good->info.params), testing::HasSubstr("not version 1"));
  EXPECT_THAT(error(1, 2, good->info.params), testing::HasSubstr("an unknown form"));
  EXPECT_THAT(error(1, 1, good->info.params), testing::HasSubstr("not of the plain form"));
  EXPECT_THAT(error(2, 9, good->info.params), testing::HasSubstr("too many streams"));
  EXPECT_THAT(error(3, 1, good->info.params), testing::HasSubstr("reserved"));
  EXPECT_NE(error(0, 1, good->info.params ^ 256), "");
  EXPECT_FALSE(RunDecode(I8eCodec(), shape, good->info.params, ByteSpan(good->bytes).first(good->bytes.size() - 1)));
  Torment(I8eCodec(), shape, *good, 3, static_cast<int>(Rounds(300)));
  const auto noise = RandomBytes(shape.raw_bytes, 1);
  EXPECT_FALSE(RunEncode(I8eCodec(), shape, noise)) << "values that are not finite";
}

}  // namespace
}  // namespace tiercel
