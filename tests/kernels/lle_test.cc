#include <gtest/gtest.h>

#include "kernels/digest.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

constexpr Dtype kDtypes[] = {Dtype::kBf16, Dtype::kFp16, Dtype::kFp32, Dtype::kFp8E4m3,
                             Dtype::kFp8E5m2};

void CheckAllIsas(const SegmentShape& shape, ByteSpan raw) {
  std::optional<std::vector<std::byte>> reference;
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    const auto coded = RunEncode(LleCodec(), shape, raw);
    const std::vector<std::byte> bytes = coded ? coded->bytes : std::vector<std::byte>{};
    if (!reference) reference = bytes;
    ASSERT_TRUE(bytes == *reference)
        << Name(isa) << " dtype " << static_cast<int>(shape.dtype) << " order "
        << static_cast<int>(shape.order) << " " << shape.tokens << "x" << shape.heads << "x" << shape.dim;
    if (!coded) continue;
    ASSERT_EQ(coded->info.decoded_digest, DecodedDigest(raw));
    const auto out = RunDecode(LleCodec(), shape, coded->info.params, coded->bytes);
    ASSERT_TRUE(out) << out.error().message;
    ASSERT_TRUE(std::equal(out->begin(), out->end(), raw.begin(), raw.end())) << Name(isa);
  }
}

TEST(LleTest, EveryShapeComesBackToTheBitOnEveryIsa) {
  SplitMix64 random(1);
  for (uint64_t round = 0; round < Rounds(200); ++round) {
    const SegmentShape shape = RandomShape(kDtypes[round % 5], random);
    auto raw = PlaneLikeKv(shape, round);
    // Whatever a float can be, here and there.
    for (uint64_t k = random.Below(2) * random.Below(raw.size() / 100 + 2); k-- > 0;) {
      raw[random.Below(raw.size())] = static_cast<std::byte>(random.Next());
    }
    CheckAllIsas(shape, raw);
  }
}

TEST(LleTest, KeepsWhatALossyMindWouldMend) {
  for (const Dtype dtype : kDtypes) {
    const SegmentShape shape = MakeShape(dtype, AxisOrder::kTokenHeadDim, 64, 2, 64);
    const uint32_t size = DtypeBytes(dtype);
    auto raw = PlaneLikeKv(shape, 7);
    // -0, the least denormal, infinities, NaNs with payloads: in a column of their own and strewn.
    const uint64_t top = uint64_t{1} << (8 * size - 1);
    const uint64_t odd[] = {0, top, 1, top | 1, top - 1, 2 * top - 1, top / 2, top / 2 + top / 4};
    for (uint32_t t = 0; t < 64; ++t) {
      std::memcpy(raw.data() + ElementIndex(shape, 5, t) * size, &odd[t % 8], size);
      std::memcpy(raw.data() + ElementIndex(shape, t, t) * size, &odd[t / 8], size);
    }
    const auto coded = RunEncode(LleCodec(), shape, raw);
    ASSERT_TRUE(coded) << static_cast<int>(dtype);
    CheckAllIsas(shape, raw);
  }
}

TEST(LleTest, ColumnsOfOneExponentTakeNoSymbols) {
  const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 256, 3, 64);
  std::vector<std::byte> raw(shape.raw_bytes);
  const auto zeros = RunEncode(LleCodec(), shape, raw);
  ASSERT_TRUE(zeros);
  EXPECT_LT(zeros->bytes.size(), raw.size() / 2 + 600);
  CheckAllIsas(shape, raw);
}

TEST(LleTest, TakesElevenBitsOfBf16ThatLooksLikeKv) {
  // The best possible, for normal columns: 8 bits and an exponent of 2.5.
  for (const auto& [tokens, bits] : {std::pair{256u, 10.70}, {64u, 10.95}, {16u, 11.6}}) {
    const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, tokens, 3, 64);
    const auto coded = RunEncode(LleCodec(), shape, PlaneLikeKv(shape, 3));
    ASSERT_TRUE(coded);
    const double a_value =
        8.0 * static_cast<double>(coded->bytes.size()) / (tokens * 192.0);
    RecordProperty("tokens_" + std::to_string(tokens), std::to_string(a_value));
    EXPECT_LT(a_value, bits) << tokens;
  }
}

TEST(LleTest, DeclinesWhatItCannotShrink) {
  const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 64, 2, 64);
  EXPECT_FALSE(RunEncode(LleCodec(), shape, RandomBytes(shape.raw_bytes, 1)));
  EXPECT_FALSE(LleCodec().Supports(MakeShape(Dtype::kInt8, AxisOrder::kTokenHeadDim, 64, 2, 64)));
  SegmentShape odd = shape;
  --odd.raw_bytes;
  EXPECT_FALSE(LleCodec().Supports(odd));
}

TEST(LleTest, NeverLeavesItsSpansWhateverTheBytesSay) {
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    for (const Dtype dtype : kDtypes) {
      for (const uint32_t tokens : {16u, 45u}) {
        const SegmentShape shape = MakeShape(dtype, AxisOrder::kTokenHeadDim, tokens, 1, 40);
        const auto coded = RunEncode(LleCodec(), shape, PlaneLikeKv(shape, tokens));
        if (coded) Torment(LleCodec(), shape, *coded, tokens, 400);
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
