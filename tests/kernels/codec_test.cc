#include "kernels/codec.h"

#include <gtest/gtest.h>

#include "kernels/digest.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

SegmentShape Shape(Dtype dtype, uint64_t raw_bytes) {
  SegmentShape shape;
  shape.layer = 0;
  shape.kind = SegmentKind::kK;
  shape.dtype = dtype;
  shape.raw_bytes = raw_bytes;
  return shape;
}

struct Coded {
  std::vector<std::byte> bytes;
  EncodedSegment info;
};
std::optional<Coded> EncodeLlf(const SegmentShape& shape, ByteSpan raw) {
  Coded coded{std::vector<std::byte>(shape.raw_bytes, std::byte{0xee}), {}};
  const auto info = LlfCodec().Encode(shape, raw, coded.bytes, {});
  if (!info) return std::nullopt;
  coded.info = *info;
  coded.bytes.resize(info->bytes);
  return coded;
}

std::vector<std::byte> DecodeLlf(const SegmentShape& shape, const Coded& coded) {
  std::vector<std::byte> out(shape.raw_bytes, std::byte{0xdd});
  const Status s = LlfCodec().Decode(shape, coded.info.params, coded.bytes, 0, out, {});
  EXPECT_TRUE(s) << s.error().message;
  return out;
}

TEST(DigestTest, EqualsItsDefinitionOnEveryIsaAndLength) {
  const auto bytes = RandomBytes(1500, 1);
  for (size_t size = 0; size <= bytes.size(); size += size < 300 ? 1 : 37) {
    uint64_t expected = Mix64(size);
    for (size_t i = 0; i * 8 < size; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, bytes.data() + 8 * i, std::min<size_t>(8, size - 8 * i));
      expected += Mix64(word ^ ((i + 1) * kDigestPhi));
    }
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      ASSERT_EQ(DecodedDigest({bytes.data(), size}), expected) << Name(isa) << " " << size;
    }
  }
}

TEST(DigestTest, TellsSwappedWordsAndTrailingZerosApart) {
  std::vector<std::byte> bytes(64);
  const uint64_t zeros = DecodedDigest(bytes);
  EXPECT_NE(zeros, DecodedDigest({bytes.data(), 56}));
  EXPECT_NE(zeros, DecodedDigest({bytes.data(), 63}));
  bytes[0] = std::byte{1};
  const uint64_t first = DecodedDigest(bytes);
  std::swap(bytes[0], bytes[8]);
  EXPECT_NE(first, DecodedDigest(bytes));
}

TEST(LlfTest, GivesBackEveryBitPatternOfBothDtypes) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16}) {
    // 2^16 patterns in a sea of common values, so that the escapes fit.
    auto raw = KvLikeBytes(dtype, 2 * 65536 * 16, 7);
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
      StoreLe(raw.data() + 32 * size_t{pattern} + 2 * (pattern % 16),
              static_cast<uint16_t>(pattern));
    }
    const SegmentShape shape = Shape(dtype, raw.size());
    std::vector<std::byte> reference;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      // fp16 gains a sixteenth at best: there the patterns may cost too much.
      const auto coded = EncodeLlf(shape, raw);
      if (!coded) {
        EXPECT_EQ(dtype, Dtype::kFp16);
        continue;
      }
      EXPECT_EQ(coded->info.decoded_digest, DecodedDigest(raw));
      EXPECT_TRUE(DecodeLlf(shape, *coded) == raw) << Name(isa);
      if (reference.empty()) reference = coded->bytes;
      EXPECT_TRUE(coded->bytes == reference) << Name(isa);
    }
  }
}

TEST(LlfTest, EveryIsaWritesAndReadsTheSameBytesAtEverySize) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16}) {
    for (const uint64_t values : {1u, 63u, 64u, 512u, 1000u, 1024u, 1087u, 8192u, 16383u, 40001u}) {
      auto raw = KvLikeBytes(dtype, 2 * values, values);
      // A few escapes, zeros, denormals, infinities and NaNs with payloads.
      for (uint64_t i = 5; i < values; i += 911) {
        StoreLe<uint16_t>(raw.data() + 2 * i, static_cast<uint16_t>(Mix64(i)));
      }
      const SegmentShape shape = Shape(dtype, raw.size());
      std::optional<std::vector<std::byte>> reference;
      for (const KernelIsa isa : kAllIsas) {
        ForcedIsa forced(isa);
        if (!forced.usable()) continue;
        const auto coded = EncodeLlf(shape, raw);
        const std::vector<std::byte> bytes = coded ? coded->bytes : std::vector<std::byte>{};
        if (!reference) reference = bytes;
        ASSERT_TRUE(bytes == *reference) << Name(isa) << " " << values;
        if (coded) {
          ASSERT_TRUE(DecodeLlf(shape, *coded) == raw) << Name(isa) << " " << values;
        }
      }
      if (values >= 8192) {
        EXPECT_FALSE(reference->empty()) << values;
      }
    }
  }
}

TEST(LlfTest, TakesTwelveBitsAValueOfBf16AndFifteenOfFp16) {
  for (const auto& [dtype, bits] : {std::pair{Dtype::kBf16, 12.06}, {Dtype::kFp16, 15.1}}) {
    const auto raw = KvLikeBytes(dtype, 1 << 18, 3);
    const auto coded = EncodeLlf(Shape(dtype, raw.size()), raw);
    ASSERT_TRUE(coded);
    EXPECT_LT(8.0 * static_cast<double>(coded->bytes.size()) / (1 << 17), bits);
  }
}

TEST(LlfTest, DeclinesWhatItCannotShrink) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16}) {
    std::vector<std::byte> raw(1 << 16);
    // Exponents all over the range.
    for (uint64_t i = 0; i < raw.size(); i += 2) {
      StoreLe<uint16_t>(raw.data() + i, static_cast<uint16_t>(Mix64(i)));
    }
    EXPECT_FALSE(EncodeLlf(Shape(dtype, raw.size()), raw));
  }
  EXPECT_FALSE(LlfCodec().Supports(Shape(Dtype::kFp32, 64)));
  EXPECT_FALSE(LlfCodec().Supports(Shape(Dtype::kBf16, 63)));
}

TEST(LlfTest, DecodesAnyStepByItself) {
  const auto raw = KvLikeBytes(Dtype::kBf16, 100'002, 9);
  const SegmentShape shape = Shape(Dtype::kBf16, raw.size());
  const auto coded = EncodeLlf(shape, raw);
  ASSERT_TRUE(coded);
  for (uint64_t begin = 0; begin < raw.size(); begin += LlfCodec().step_bytes(shape)) {
    std::vector<std::byte> out(std::min(LlfCodec().step_bytes(shape), raw.size() - begin));
    ASSERT_TRUE(LlfCodec().Decode(shape, 0, coded->bytes, begin, out, {}));
    ASSERT_EQ(std::memcmp(out.data(), raw.data() + begin, out.size()), 0);
  }
}

TEST(LlfTest, NeverLeavesItsSpansWhateverTheBytesSay) {
  const auto raw = KvLikeBytes(Dtype::kBf16, 4096, 9);
  const SegmentShape shape = Shape(Dtype::kBf16, raw.size());
  auto coded = EncodeLlf(shape, raw);
  ASSERT_TRUE(coded);
  SplitMix64 random(11);
  for (int round = 0; round < 20'000; ++round) {
    auto bytes = coded->bytes;
    for (int k = 0; k < 4; ++k) {
      bytes[random.Below(bytes.size())] = static_cast<std::byte>(random.Next());
    }
    bytes.resize(random.Below(4) == 0 ? random.Below(bytes.size()) : bytes.size());
    std::vector<std::byte> out(raw.size());
    (void)LlfCodec().Decode(shape, 0, bytes, 0, out, {});  // ASan watches.
  }
  // Escapes that point anywhere.
  auto bytes = coded->bytes;
  const uint32_t n = 50;
  bytes.resize(64 + 2048 * 3 / 2 + 4 * n);
  StoreLe<uint32_t>(bytes.data() + 8, n);
  for (uint32_t i = 0; i < n; ++i) {
    StoreLe(bytes.data() + 64 + 2048 * 3 / 2 + 4 * i, static_cast<uint32_t>(random.Next()));
  }
  std::vector<std::byte> out(raw.size());
  (void)LlfCodec().Decode(shape, 0, bytes, 0, out, {});
}

TEST(LlfTest, RefusesEscapesOutOfOrderOrBehindTheValues) {
  const SegmentShape shape = Shape(Dtype::kBf16, 2 * 640);
  std::vector<std::byte> raw(shape.raw_bytes);
  for (size_t i = 0; i < 640; ++i) StoreLe<uint16_t>(raw.data() + 2 * i, i % 200 == 7 ? 0x7f00 : 0x3f80);
  auto coded = EncodeLlf(shape, raw);
  ASSERT_TRUE(coded);
  EXPECT_TRUE(DecodeLlf(shape, *coded) == raw);
  std::byte* const list = coded->bytes.data() + coded->bytes.size() - 16;  // Of 4.
  std::vector<std::byte> out(shape.raw_bytes);
  const auto refused = [&] {
    return !LlfCodec().Decode(shape, 0, coded->bytes, 0, out, {}) &&
           !LlfCodec().Decode(shape, 0, coded->bytes, 0, MutableByteSpan(out).first(128), {});
  };
  const auto first = LoadLe<uint32_t>(list);
  const auto second = LoadLe<uint32_t>(list + 4);
  StoreLe(list, second);
  EXPECT_TRUE(refused()) << "one position twice";
  StoreLe(list + 4, first);
  EXPECT_TRUE(refused()) << "two swapped";
  StoreLe(list, first);
  StoreLe(list + 4, second);
  StoreLe(list + 12, 640u | 0x90u << 24);
  EXPECT_TRUE(refused()) << "behind the values";
}

TEST(LlfTest, ACodebookOfNoExponentOfFp16IsTheSameOnEveryIsa) {
  const SegmentShape shape = Shape(Dtype::kFp16, 2 * 6400);
  auto coded = EncodeLlf(shape, KvLikeBytes(Dtype::kFp16, shape.raw_bytes, 3));
  ASSERT_TRUE(coded);
  for (size_t i = 16; i < 32; ++i) coded->bytes[i] = static_cast<std::byte>(0xf0 + i);
  const ForcedIsa scalar(KernelIsa::kScalar);
  const auto expected = DecodeLlf(shape, *coded);
  for (const KernelIsa isa : kAllIsas) {
    const ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    EXPECT_TRUE(DecodeLlf(shape, *coded) == expected) << Name(isa);
  }
}

TEST(CodecTest, AutoMeansLlfForSixteenBitFloatsAndRawForTheRest) {
  EXPECT_EQ(ResolveCodec(CodecId::kAuto, Dtype::kBf16), CodecId::kLlf);
  EXPECT_EQ(ResolveCodec(CodecId::kAuto, Dtype::kFp16), CodecId::kLlf);
  EXPECT_EQ(ResolveCodec(CodecId::kAuto, Dtype::kFp8E4m3), CodecId::kRaw);
  EXPECT_EQ(ResolveCodec(CodecId::kAuto, Dtype::kOpaque), CodecId::kRaw);
  EXPECT_EQ(ResolveCodec(CodecId::kRaw, Dtype::kBf16), CodecId::kRaw);
}

TEST(CodecTest, NamesGoBothWays) {
  for (const CodecId id : {CodecId::kRaw, CodecId::kLlf, CodecId::kEcX, CodecId::kI8e, CodecId::kAuto}) {
    EXPECT_EQ(ParseCodecId(Name(id)), id);
  }
  EXPECT_FALSE(ParseCodecId("zip"));
}

}  // namespace
}  // namespace tiercel
