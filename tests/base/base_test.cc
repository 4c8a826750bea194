#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/io_memory.h"
#include "base/random.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "base/units.h"

namespace tiercel {
namespace {

Result<int> Half(int n) {
  if (n % 2 != 0) return Fail(Code::kInvalidArgument, "odd");
  return n / 2;
}

Result<int> Quarter(int n) {
  TIERCEL_ASSIGN(const int half, Half(n));
  TIERCEL_TRY(Half(half));
  return Half(half);
}

TEST(ResultTest, CarriesTheFirstErrorOut) {
  EXPECT_EQ(*Quarter(8), 2);
  ASSERT_FALSE(Quarter(6));
  EXPECT_EQ(Quarter(6).error().ToString(), "INVALID_ARGUMENT: odd");
}

TEST(ResultTest, NamesEveryCode) {
  EXPECT_EQ(CodeName(Code::kUnauthenticated), "UNAUTHENTICATED");
  EXPECT_EQ(CodeName(static_cast<Code>(99)), "CODE_99");
}

TEST(CheckTest, AbortsAndNamesTheCondition) {
  EXPECT_DEATH(TIERCEL_CHECK(1 + 1 == 3), "1 \\+ 1 == 3");
}

TEST(BytesTest, HexGoesBothWaysAndRefusesWhatIsNotHex) {
  std::array<std::byte, 3> bytes{};
  ASSERT_TRUE(FromHex("00fFa5", bytes));
  EXPECT_EQ(ToHex(bytes), "00ffa5");
  EXPECT_FALSE(FromHex("00ff", bytes));
  EXPECT_FALSE(FromHex("00ffgg", bytes));
}

TEST(UnitsTest, ReadsSizesAndTimesAsPeopleWriteThem) {
  EXPECT_EQ(*ParseBytes("64KiB"), 65536u);
  EXPECT_EQ(*ParseBytes("1.5 GiB"), 1610612736u);
  EXPECT_EQ(*ParseBytes("2GB"), 2'000'000'000u);
  EXPECT_EQ(*ParseBytes("0"), 0u);
  for (const char* bad : {"", "GiB", "-1", "1 parsec", "nan", "1e300TiB"}) {
    EXPECT_FALSE(ParseBytes(bad)) << bad;
  }
  EXPECT_EQ(*ParseDuration("250ms"), 250 * kMillisecond);
  EXPECT_FALSE(ParseDuration("5"));
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
}

TEST(IoMemoryTest, IsWholeHugePagesOfZerosAndMayBeMovedAndReplaced) {
  constexpr uint64_t kHugePage = 2 * kMiB;
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kHugePage, kHugePage + 1}) {
    IoMemory memory(bytes);
    EXPECT_EQ(memory.size(), std::max(RoundUp(bytes, kHugePage), kHugePage));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kHugePage, 0u);
    EXPECT_EQ(memory.data()[memory.size() - 1], std::byte{0});
    memory.data()[0] = std::byte{7};
    IoMemory moved = std::move(memory);
    EXPECT_EQ(moved.data()[0], std::byte{7});
    moved = IoMemory(3 * kHugePage);
    EXPECT_EQ(moved.size(), 3 * kHugePage);
    EXPECT_EQ(moved.data()[0], std::byte{0});
  }
  IoMemory none;
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.size(), 0u);
}

TEST(RandomTest, FollowsTheReferenceSequence) {
  // The first outputs of SplitMix64 for seed 0, as published with the algorithm.
  SplitMix64 random(0);
  EXPECT_EQ(random.Next(), 0xe220a8397b1dcdafULL);
  EXPECT_EQ(random.Next(), 0x6e789e6aa1b965f4ULL);
  EXPECT_EQ(random.Next(), 0x06c45d188009454fULL);
}

TEST(UniqueFunctionTest, OwnsMoveOnlyCallablesSmallAndLarge) {
  auto small = std::make_unique<int>(1);
  std::array<char, 200> big{};
  big[199] = 2;
  auto also = std::make_unique<int>(3);
  UniqueFunction<int(int)> a = [p = std::move(small)](int n) { return n + *p; };
  UniqueFunction<int(int)> b = [big, p = std::move(also)](int n) { return n + big[199] + *p; };
  UniqueFunction<int(int)> c = std::move(a);
  a = std::move(b);
  EXPECT_EQ(c(10), 11);
  EXPECT_EQ(a(10), 15);
  EXPECT_FALSE(static_cast<bool>(b));
}

TEST(UniqueFunctionTest, DestroysWhatItHoldsExactlyOnce) {
  auto counted = std::make_shared<int>(0);
  {
    UniqueFunction<void()> f = [counted] {};
    UniqueFunction<void()> g = std::move(f);
    EXPECT_EQ(counted.use_count(), 2);
    g = nullptr;
    EXPECT_EQ(counted.use_count(), 1);
  }
  EXPECT_EQ(counted.use_count(), 1);
}

}  // namespace
}  // namespace tiercel
