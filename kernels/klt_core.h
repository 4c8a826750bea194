// The arithmetic of EC-K and EC-X one value at a time: the scalar reference, in plain C++ that a device
// compiler takes too. klt_loops.h does the same to whole columns with wide instructions.
//
//   encode  q = Quantize(sum of fma(analysis, x - mean) in order of dimensions, 1 / step * 1 / own)
//   decode  x = Restore(sum of synthesis * q, scale * step, own, mean)  the sum is of integers, in any order
//
// own is what a token's step is multiplied with (levels_core.h), 1 where there are no levels.
// Compile with -ffp-contract=off: each statement is one rounding.
#ifndef TIERCEL_KERNELS_KLT_CORE_H_
#define TIERCEL_KERNELS_KLT_CORE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/levels_core.h"

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
  const float most = static_cast<float>(kMaxCoefficient);
  const float scaled = sum * inverse_step;
  const float high = scaled < most ? scaled : most;  // Of no number, too.
  const float clamped = high > -most ? high : -most;
  const float magic = 12582912.0f;  // 1.5 * 2^23: the addition rounds to nearest, ties to even.
  const float rounded = clamped + magic;
  return static_cast<int16_t>(std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(magic));
}

constexpr float Restore(int32_t sum, float factor, float own, float mean) {
  const float common = static_cast<float>(sum) * factor;
  const float scaled = common * own;
  return scaled + mean;
}

// A segment's first 16 bytes; then the level part, the classes, the exact tokens' values, the coefficients.
inline constexpr uint64_t kHeaderBytes = 16;
inline constexpr uint32_t kMaxExact = 16;

struct Head {
  uint32_t version = 0;
  uint32_t exact = 0;        // Tokens.
  uint32_t log_streams = 0;
  uint32_t log_bands = 0;    // Of version 1: 0.
  uint32_t class_bytes = 0;
  uint32_t level_bytes = 0;  // Of version 1: 0.
  float step = 0;
  uint64_t exact_bytes = 0;

  constexpr bool levels() const { return version == 2; }
  constexpr uint64_t levels_at() const { return kHeaderBytes; }
  constexpr uint64_t classes_at() const { return kHeaderBytes + level_bytes; }
  constexpr uint64_t exact_at() const { return classes_at() + class_bytes; }
  constexpr uint64_t block_at() const { return exact_at() + exact_bytes; }
};

enum class HeadFault : uint8_t { kNone, kShort, kVersion, kExact, kStreams, kBands, kReserved, kStep, kParts };

// bytes: uint8_t or std::byte, `size` of them. The head is filled in as far as there are 16 bytes.
template <class Byte>
constexpr HeadFault ReadHead(const Byte* bytes, uint64_t size, uint32_t tokens, uint32_t columns, Head& head) {
  if (size < kHeaderBytes) return HeadFault::kShort;
  const auto u8 = [bytes](uint32_t at) { return static_cast<uint32_t>(bytes[at]); };
  const auto u32 = [u8](uint32_t at) { return u8(at) | u8(at + 1) << 8 | u8(at + 2) << 16 | u8(at + 3) << 24; };
  head.version = u8(0);
  head.exact = u8(1);
  head.log_streams = u8(2);
  head.log_bands = u8(3);
  head.step = std::bit_cast<float>(u32(4));
  head.class_bytes = u32(8);
  head.level_bytes = u32(12);
  head.exact_bytes = uint64_t{2} * head.exact * columns;
  if (head.version != 1 && head.version != 2) return HeadFault::kVersion;
  if (head.exact > tokens || head.exact > kMaxExact) return HeadFault::kExact;
  if (head.log_streams > 3) return HeadFault::kStreams;
  if (head.version == 1 && (head.log_bands != 0 || head.level_bytes != 0)) return HeadFault::kReserved;
  if (!levels::BandsFit(head.log_bands, tokens)) return HeadFault::kBands;
  const uint32_t step = std::bit_cast<uint32_t>(head.step);
  if (step == 0 || step >= 0x7f800000u) return HeadFault::kStep;  // Positive and finite.
  return head.block_at() > size ? HeadFault::kParts : HeadFault::kNone;
}

}  // namespace tiercel::klt

#endif  // TIERCEL_KERNELS_KLT_CORE_H_
