#include "kernels/rope_core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "base/random.h"

namespace tiercel {
namespace {

TEST(RopeTest, SineAndCosineAreNearTheTrueOnesAtEveryPhase) {
  SplitMix64 random(1);
  double worst = 0;
  double worst_float = 0;
  for (int i = 0; i < 2'000'000; ++i) {
    // Multiples of an eighth of a turn and their neighbours, then anything.
    const uint64_t phase = i < 4096 ? (uint64_t{static_cast<uint32_t>(i) / 512} << 61) +
                                          static_cast<uint64_t>(i % 512 - 256) * (i % 2 == 0 ? 1 : 1 << 22)
                                    : random.Next();
    const double angle = 2 * std::numbers::pi * (static_cast<double>(phase) * 0x1p-64);
    const rope::Fixed fixed = rope::FixedTurn(phase);
    const rope::Turned by = rope::Turn(phase);
    worst = std::max({worst, std::abs(fixed.cosine * 0x1p-30 - std::cos(angle)),
                      std::abs(fixed.sine * 0x1p-30 - std::sin(angle))});
    worst_float = std::max({worst_float, std::abs(by.cosine - std::cos(angle)),
                            std::abs(by.sine - std::sin(angle))});
  }
  RecordProperty("worst", std::to_string(worst * 1e9));
  EXPECT_LT(worst, 4e-9);
  EXPECT_LT(worst_float, 4e-9 + 0x1p-25);
}

TEST(RopeTest, PhasesAreThoseOfTheModelAtEveryPosition) {
  // Llama's: theta^(-2 i / d) radians a position.
  const uint32_t dims = 64;
  std::vector<uint64_t> frequencies;
  for (uint32_t i = 0; i < dims / 2; ++i) {
    const long double turns =
        powl(100000.0L, -2.0L * i / dims) / (2 * std::numbers::pi_v<long double>);
    frequencies.push_back(static_cast<uint64_t>(turns * 0x1p64L));
  }
  const Rope r{RopeStyle::kHalves, 0, dims, frequencies.data()};
  constexpr size_t kStride = 64;
  std::vector<float> cos(kStride * 32);
  std::vector<float> sin(kStride * 32);
  for (const uint64_t pos0 : {0ull, 4096ull, 1'000'000ull}) {
    rope::FillTables(r, pos0, 50, kStride, cos.data(), sin.data());
    for (uint32_t p = 0; p < 32; ++p) {
      for (uint32_t t = 0; t < 50; ++t) {
        const long double angle =
            static_cast<long double>(pos0 + t) * powl(100000.0L, -2.0L * p / dims);
        EXPECT_NEAR(cos[p * kStride + t], static_cast<double>(cosl(angle)), 4e-8);
        EXPECT_NEAR(sin[p * kStride + t], static_cast<double>(sinl(angle)), 4e-8);
      }
      EXPECT_EQ(cos[p * kStride + 50], 0.0f);
    }
  }
}

TEST(RopeTest, UnrotatingGivesBackWhatWasRotated) {
  SplitMix64 random(2);
  for (int i = 0; i < 100'000; ++i) {
    const rope::Turned by = rope::Turn(random.Next());
    const auto x = static_cast<float>(random.Uniform() - 0.5);
    const auto y = static_cast<float>(random.Uniform() - 0.5);
    float a = x;
    float b = y;
    rope::Rotate(a, b, by);
    rope::Unrotate(a, b, by);
    EXPECT_NEAR(a, x, 4e-7);
    EXPECT_NEAR(b, y, 4e-7);
  }
}

TEST(RopeTest, PairsAreWhereEachStyleHasThem) {
  const Rope halves{RopeStyle::kHalves, 0, 64, nullptr};
  EXPECT_EQ(halves.FirstOf(3), 3u);
  EXPECT_EQ(halves.SecondOf(3), 35u);
  const Rope latent{RopeStyle::kNeighbours, 512, 64, nullptr};
  EXPECT_EQ(latent.FirstOf(3), 518u);
  EXPECT_EQ(latent.SecondOf(3), 519u);
}

}  // namespace
}  // namespace tiercel
