#include "kernels/rope_core.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/random.h"

namespace tiercel {
namespace {

TEST(RopeTest, SineAndCosineAreWithinTheirBound) {
  SplitMix64 random(1);
  double worst = 0;
  for (int i = 0; i < 200'000; ++i) {
    // Also near the quarters and eighths, where the series change.
    const uint64_t phase = i % 4 != 0 ? random.Next() : (random.Next() << 61) + random.Below(1u << 20) - (1u << 19);
    const double angle = static_cast<double>(static_cast<int64_t>(phase)) * std::numbers::pi * 0x1p-63;
    const rope::Fixed got = rope::FixedTurn(phase);
    worst = std::max({worst, std::abs(got.cosine * 0x1p-30 - std::cos(angle)), std::abs(got.sine * 0x1p-30 - std::sin(angle))});
  }
  EXPECT_LT(worst, 6e-9);
}

TEST(RopeTest, APositionTurnsByItsMultipleOfTheFrequency) {
  // theta 10000, dims 64, pair 5: inv_freq = 10000^(-10/64).
  const double inv_freq = std::pow(10000.0, -10.0 / 64);
  const auto frequency = static_cast<uint64_t>(inv_freq / (2 * std::numbers::pi) * 0x1p64);
  for (const uint64_t position : {0u, 1u, 77u, 4095u, 131071u}) {
    const rope::Turned by = rope::Turn(position * frequency);
    EXPECT_NEAR(by.cosine, std::cos(inv_freq * static_cast<double>(position)), 1e-7) << position;
    EXPECT_NEAR(by.sine, std::sin(inv_freq * static_cast<double>(position)), 1e-7) << position;
  }
}

TEST(RopeTest, UnrotateUndoesRotate) {
  SplitMix64 random(2);
  for (int i = 0; i < 1000; ++i) {
    const rope::Turned by = rope::Turn(random.Next());
    float a = 1.25f, b = -0.5f;
    rope::Rotate(a, b, by);
    EXPECT_NEAR(a * a + b * b, 1.8125f, 1e-6);
    rope::Unrotate(a, b, by);
    EXPECT_NEAR(a, 1.25f, 1e-6);
    EXPECT_NEAR(b, -0.5f, 1e-6);
  }
}

}  // namespace
}  // namespace tiercel
