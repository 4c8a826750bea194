// The arithmetic of EC-K and EC-X one value at a time: the scalar reference, in plain C++ that a device
// compiler takes too. klt_loops.h does the same to whole columns with wide instructions.
//
//   encode  q = Quantize(sum of fma(analysis, x - mean) in order of dimensions, 1 / step)
//   decode  x = Restore(sum of synthesis * q, scale * step, mean)       the sum is of integers, in any order
//
// Compile with -ffp-contract=off: each statement is one rounding.
#ifndef TIERCEL_KERNELS_KLT_CORE_H_
#define TIERCEL_KERNELS_KLT_CORE_H_

#include <bit>
#include <cstdint>

namespace tiercel::klt {

inline constexpr int32_t kMaxCoefficient = (1 << 14) - 1;

constexpr float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
// Nearest, ties to even; beyond the largest finite value that value. x is finite.
constexpr uint16_t ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((rounded & 0x7fffu) == 0x7f80u ? rounded - 1 : rounded);
}

// fp16 is s eeeee mmmmmmmmmm, denormals included.
constexpr float FromFp16(uint16_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x8000u) << 16;
  const uint32_t rest = uint32_t{bits} & 0x7fffu;
  if (rest >= 0x0400u) return std::bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
  const float small = static_cast<float>(rest) * 0x1p-24f;
  return sign != 0 ? -small : small;
}
constexpr uint16_t ToFp16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7bffu);  // 65520 and above: the largest.
  if (rest < 0x38800000u) {  // Below 2^-14: a multiple of 2^-24, rounded by the addition.
    const float shifted = std::bit_cast<float>(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((rest - (112u << 23) + 0x0fffu + ((rest >> 13) & 1u)) >> 13));
}

constexpr int16_t Quantize(float sum, float inverse_step) {
  float scaled = sum * inverse_step;
  if (scaled > static_cast<float>(kMaxCoefficient)) scaled = static_cast<float>(kMaxCoefficient);
  if (scaled < static_cast<float>(-kMaxCoefficient)) scaled = static_cast<float>(-kMaxCoefficient);
  const float magic = 12582912.0f;  // 1.5 * 2^23: the addition rounds to nearest, ties to even.
  const float rounded = scaled + magic;
  return static_cast<int16_t>(std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(magic));
}

constexpr float Restore(int32_t sum, float factor, float mean) {
  const float scaled = static_cast<float>(sum) * factor;
  return scaled + mean;
}

}  // namespace tiercel::klt

#endif  // TIERCEL_KERNELS_KLT_CORE_H_
