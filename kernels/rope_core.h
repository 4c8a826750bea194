// Rotary position embedding (RoFormer, arXiv:2104.09864) to the bit, in plain C++ that a device compiler
// takes too: the angle is an integer fraction of a turn, sine and cosine come from integer arithmetic, and
// the rotation is separate fp32 multiplications and additions. (Compile with -ffp-contract=off.)
//
//   phase = position * frequency mod 2^64     frequency: turns a position times 2^64
//   Turn(phase) --> cosine, sine              within 6e-9 of the true ones
//   Rotate, Unrotate                          the pair (a, b) by the angle and back
//
// The model's inv_freq[i] (radians a position) is frequency inv_freq[i] / (2 pi) * 2^64, whatever rule it came
// from (plain, llama3-scaled, yarn).
#ifndef TIERCEL_KERNELS_ROPE_CORE_H_
#define TIERCEL_KERNELS_ROPE_CORE_H_

#include <cstdint>

namespace tiercel::rope {

struct Turned {
  float cosine;
  float sine;
};

// Cosine and sine in units of 2^-30, of phase / 2^64 turns. Taylor series about the nearest quarter turn.
struct Fixed {
  int32_t cosine;
  int32_t sine;
};
constexpr Fixed FixedTurn(uint64_t phase) {
  constexpr int64_t kOne = int64_t{1} << 30;
  constexpr int64_t kHalfPi = 6746518852;  // pi / 2 * 2^32.
  const auto turn = static_cast<uint32_t>((phase + (uint64_t{1} << 31)) >> 32);
  const uint32_t quarter = (turn + (1u << 29)) >> 30;
  const auto rest = static_cast<int32_t>(turn - (quarter << 30));  // [-2^29, 2^29).
  const int64_t x = (rest * kHalfPi + (int64_t{1} << 31)) >> 32;   // Radians, 2^-30.
  const int64_t square = (x * x + kOne / 2) >> 30;
  const auto series = [square](int64_t divisor, int64_t tail) {  // 1 - x^2 / divisor * tail
    return kOne - ((square * tail / divisor + kOne / 2) >> 30);
  };
  const int64_t sine = (x * series(6, series(20, series(42, series(72, series(110, kOne))))) + kOne / 2) >> 30;
  const int64_t cosine = series(2, series(12, series(30, series(56, series(90, kOne)))));
  switch (quarter & 3) {
    case 0:
      return {static_cast<int32_t>(cosine), static_cast<int32_t>(sine)};
    case 1:
      return {static_cast<int32_t>(-sine), static_cast<int32_t>(cosine)};
    case 2:
      return {static_cast<int32_t>(-cosine), static_cast<int32_t>(-sine)};
    default:
      return {static_cast<int32_t>(sine), static_cast<int32_t>(-cosine)};
  }
}

constexpr Turned Turn(uint64_t phase) {
  const Fixed fixed = FixedTurn(phase);
  return {static_cast<float>(fixed.cosine) * 0x1p-30f, static_cast<float>(fixed.sine) * 0x1p-30f};
}

constexpr void Rotate(float& a, float& b, Turned by) {
  const float ac = a * by.cosine;
  const float bs = b * by.sine;
  const float bc = b * by.cosine;
  const float as = a * by.sine;
  a = ac - bs;
  b = bc + as;
}
constexpr void Unrotate(float& a, float& b, Turned by) { Rotate(a, b, {by.cosine, -by.sine}); }

}  // namespace tiercel::rope

#endif  // TIERCEL_KERNELS_ROPE_CORE_H_
