#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/random.h"

namespace tiercel {
namespace {

uint32_t Bitwise(ByteSpan bytes, uint32_t crc = 0) {
  crc = ~crc;
  for (const std::byte b : bytes) {
    crc ^= std::to_integer<uint32_t>(b);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

std::vector<std::byte> RandomBytes(size_t size, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  return bytes;
}

class Crc32cTest : public testing::TestWithParam<Crc32cPath> {
 protected:
  void SetUp() override {
    if (!Crc32cPathUsable(GetParam())) GTEST_SKIP() << "this CPU lacks the path";
  }
};

TEST_P(Crc32cTest, KnowsTheCheckValueAndTheRfcVectors) {
  EXPECT_EQ(Crc32cBy(GetParam(), AsBytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32cBy(GetParam(), {}), 0u);
  std::vector<std::byte> bytes(32, std::byte{0});
  EXPECT_EQ(Crc32cBy(GetParam(), bytes), 0x8a9136aau);
  std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
  EXPECT_EQ(Crc32cBy(GetParam(), bytes), 0x62a8ab43u);
  for (size_t i = 0; i < 32; ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(Crc32cBy(GetParam(), bytes), 0x46dd794eu);
}

TEST_P(Crc32cTest, EqualsTheBitwiseDefinitionAtEveryLengthAndAlignment) {
  const auto bytes = RandomBytes(2048 + 64, 1);
  for (size_t align = 0; align < 64; align += 7) {
    uint32_t expected = 0;
    for (size_t size = 0; size < 1100; ++size) {
      ASSERT_EQ(Crc32cBy(GetParam(), {bytes.data() + align, size}), expected) << align << " " << size;
      expected = Bitwise({bytes.data() + align + size, 1}, expected);
    }
  }
}

TEST_P(Crc32cTest, EqualsTheBitwiseDefinitionOnLongValues) {
  const auto bytes = RandomBytes(300'000, 2);
  for (const size_t size : {6143u, 6144u, 6145u, 32768u, 100'001u, 299'999u}) {
    ASSERT_EQ(Crc32cBy(GetParam(), {bytes.data() + 1, size}), Bitwise({bytes.data() + 1, size}));
  }
}

TEST_P(Crc32cTest, GoesOnFromAnEarlierSum) {
  const auto bytes = RandomBytes(5000, 3);
  const uint32_t whole = Bitwise(bytes);
  for (const size_t cut : {0u, 1u, 255u, 256u, 257u, 3000u, 5000u}) {
    const ByteSpan all(bytes);
    const uint32_t first = Crc32cBy(GetParam(), all.first(cut));
    EXPECT_EQ(Crc32cBy(GetParam(), all.subspan(cut), first), whole);
  }
}

TEST_P(Crc32cTest, CopiesWhatItSumsAndNothingElse) {
  const auto bytes = RandomBytes(700'000, 4);
  std::vector<std::byte> out(bytes.size() + 256);
  for (const size_t size : {0u, 1u, 255u, 256u, 4097u, 65'535u, 65'536u, 600'001u}) {
    for (const size_t align : {0u, 1u, 63u, 64u}) {
      std::fill(out.begin(), out.end(), std::byte{0xa5});
      const ByteSpan source(bytes.data() + 3, size);
      const size_t of = size % 2 == 0 ? 0 : 1'000'000;  // As itself, and as a part of more.
      ASSERT_EQ(CopyCrc32cBy(GetParam(), out.data() + align, source, 0, of), Bitwise(source));
      ASSERT_TRUE(std::equal(source.begin(), source.end(), out.begin() + static_cast<long>(align)));
      const auto untouched = [](std::byte b) { return b == std::byte{0xa5}; };
      const auto begin = out.begin() + static_cast<long>(align);
      ASSERT_TRUE(std::all_of(out.begin(), begin, untouched));
      ASSERT_TRUE(std::all_of(begin + static_cast<long>(size), out.end(), untouched));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Crc32cTest,
                         testing::Values(Crc32cPath::kTable, Crc32cPath::kSse42,
                                         Crc32cPath::kVpclmul),
                         [](const auto& path) {
                           switch (path.param) {
                             case Crc32cPath::kTable: return "Table";
                             case Crc32cPath::kSse42: return "Sse42";
                             case Crc32cPath::kVpclmul: return "Vpclmul";
                           }
                           return "";
                         });

}  // namespace
}  // namespace tiercel
