// A step of its own for each token, one value at a time: the scalar reference, in plain C++ that a device
// compiler takes too. (Compile with -ffp-contract=off: one fp32 operation a statement.)
//
//   level L of a token     its step is step * 2^(-L / 2); -8 to 7
//   predicted by           z = weight * (log2 position - mean), then z = fma(weight_j, k_j - mean_j, z) in order
//                          of the dims of K before rotation; L = the integer next to z
//   order of tokens        by level, highest first, else as they come; exact tokens behind all others
//   bands                  the ordered tokens cut into 1, 2, 4 or 8 parts, each a column of the entropy coder
//
// Layout: docs/block-format.md, "Levels"; weights: docs/artifact-format.md.
#ifndef TIERCEL_KERNELS_LEVELS_CORE_H_
#define TIERCEL_KERNELS_LEVELS_CORE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/rans_core.h"

namespace tiercel::levels {

inline constexpr int32_t kLeast = -8;
inline constexpr int32_t kMost = 7;
inline constexpr uint32_t kKinds = 16;
inline constexpr uint32_t kMaxLogBands = 3;

constexpr bool IsLevel(int32_t level) { return level >= kLeast && level <= kMost; }

// The fp32 nearest 2^(-level / 2), of -8 to 8. What a step is multiplied with; its inverse is that of -level.
constexpr float StepOf(int32_t level) {
  const int32_t odd = level & 1;
  const auto exponent = static_cast<uint32_t>(127 - (level >> 1) - odd);
  return std::bit_cast<float>(exponent << 23 | (odd != 0 ? 0x3504f3u : 0u));
}
constexpr float InverseStepOf(int32_t level) { return StepOf(-level); }

// log2 of max(position, 1), cut off behind 16 bits of fraction: bit by bit, by squaring.
constexpr float Log2(uint64_t position) {
  uint64_t mantissa = position == 0 ? 1 : position;
  uint32_t log = 63;
  for (uint32_t shift = 32; shift != 0; shift /= 2) {
    if (mantissa >> (64 - shift) != 0) continue;
    mantissa <<= shift;
    log -= shift;
  }
  mantissa >>= 32;  // One bit before the point, 31 behind.
  for (int bit = 0; bit < 16; ++bit) {
    const uint64_t square = mantissa * mantissa;
    const uint64_t top = square >> 63;
    log = log << 1 | static_cast<uint32_t>(top);
    mantissa = square >> (31 + top);
  }
  return static_cast<float>(log) * 0x1p-16f;
}

// What the sum over K's dims begins with.
constexpr float Start(float log2_position, float position_weight, float position_mean) {
  const float centred = log2_position - position_mean;
  return position_weight * centred;
}
// One dim of K more.
inline float Weigh(float z, float k, float mean, float weight) {
  const float centred = k - mean;
  return __builtin_fmaf(weight, centred, z);
}
constexpr int8_t LevelOf(float z) {
  const float high = z < static_cast<float>(kMost) ? z : static_cast<float>(kMost);  // Of no number, too.
  const float clamped = high > static_cast<float>(kLeast) ? high : static_cast<float>(kLeast);
  const float magic = 12582912.0f;  // 1.5 * 2^23: the addition rounds to nearest, ties to even.
  const float rounded = clamped + magic;
  return static_cast<int8_t>(std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(magic));
}

// The tokens by position in a column, from `levels` of all of them; those below `exact` come last.
constexpr void OrderTokens(const int8_t* levels, uint32_t exact, uint32_t tokens, uint16_t* order) {
  uint32_t next[kKinds + 1] = {};
  for (uint32_t t = exact; t < tokens; ++t) ++next[kMost - levels[t] + 1];
  for (uint32_t i = 1; i <= kKinds; ++i) next[i] += next[i - 1];
  for (uint32_t t = exact; t < tokens; ++t) order[next[kMost - levels[t]]++] = static_cast<uint16_t>(t);
  for (uint32_t t = 0; t < exact; ++t) order[tokens - exact + t] = static_cast<uint16_t>(t);
}

// Whether `tokens` can be cut into 2^log_bands bands: whole rows of the entropy coder each.
constexpr bool BandsFit(uint32_t log_bands, uint32_t tokens) {
  return log_bands == 0 || (log_bands <= kMaxLogBands && tokens % (rans::kLanes << log_bands) == 0);
}
// The most that fit, as log2: what room is made for.
constexpr uint32_t MostLogBands(uint32_t tokens) {
  uint32_t log = kMaxLogBands;
  while (!BandsFit(log, tokens)) --log;
  return log;
}
// The encoder's choice: as many as fit, up to four; of more, classes cost more than they save.
constexpr uint32_t LogBandsFor(uint32_t tokens) {
  uint32_t log = 2;
  while (!BandsFit(log, tokens)) --log;
  return log;
}

// Classes lie [column][band]. The rank of a band's class is foretold from the band before, moved by the
// band's offset; what it differs by is what stands in the segment.
constexpr int32_t ForetoldRank(uint32_t before, int32_t offset) {
  const int32_t moved = static_cast<int32_t>(before) + offset;
  if (moved < 0) return 0;
  return moved < static_cast<int32_t>(rans::kRanks) ? moved : static_cast<int32_t>(rans::kRanks) - 1;
}
// The encoder's choice of a band's offset: of the columns that have symbols in both bands, the median of
// what their ranks differ by, the lower of two.
constexpr int32_t OffsetFor(const uint8_t* classes, uint32_t columns, uint32_t log_bands, uint32_t band) {
  constexpr auto kRanks = static_cast<int32_t>(rans::kRanks);
  uint32_t count[2 * kRanks] = {};
  uint32_t all = 0;
  for (uint32_t c = 0; c < columns; ++c) {
    const auto before = static_cast<int32_t>(rans::RankOf(classes[(size_t{c} << log_bands) + band - 1]));
    const auto rank = static_cast<int32_t>(rans::RankOf(classes[(size_t{c} << log_bands) + band]));
    if (before == 0 || rank == 0) continue;
    ++count[rank - before + kRanks];
    ++all;
  }
  if (all == 0) return 0;
  uint32_t below = 0;
  int32_t i = 0;
  while ((below += count[i]) <= (all - 1) / 2) ++i;
  return i - kRanks;
}

}  // namespace tiercel::levels

#endif  // TIERCEL_KERNELS_LEVELS_CORE_H_
