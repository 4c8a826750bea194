// The LLF bitstream one value at a time: the scalar reference, in plain C++ that a device compiler
// takes too. The wide paths (llf.cc) do the same to 64 values at once.
//
// A value is split into a low byte, a 4-bit exponent code and, for fp16, three more bits:
//
//   bf16  s eeeeeeee mmmmmmm    low = s mmmmmmm      code of 8-bit e
//   fp16  s eeeee mmmmmmmmmm    low = m7..m0         code of 5-bit e, bits = s, m9, m8
//
// Code 0..13 is exponent base + code, 14 is exponent 0 (zeros and denormals), 15 is an escape: the
// exponent stands in the list of escapes. Layout of the planes: docs/block-format.md, "LLF".
#ifndef TIERCEL_KERNELS_LLF_CORE_H_
#define TIERCEL_KERNELS_LLF_CORE_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::llf {

inline constexpr uint32_t kGroup = 64;    // Values that share a stretch of each plane.
inline constexpr uint32_t kWindow = 14;   // Consecutive exponents with codes of their own.
inline constexpr uint8_t kCodeZero = 14;  // Exponent 0.
inline constexpr uint8_t kCodeEscape = 15;
inline constexpr size_t kHeaderBytes = 64;
inline constexpr uint32_t kMaxValues = 1u << 24;  // An escape has 24 bits of position.

// Bytes of each plane for one group.
inline constexpr size_t kLowBytes = 64;
inline constexpr size_t kCodeBytes = 32;
inline constexpr size_t kBitBytes = 24;  // fp16: sign, m9, m8; 8 bytes each.

constexpr uint32_t Bf16Exponent(uint16_t value) { return (value >> 7) & 0xffu; }
constexpr uint32_t Fp16Exponent(uint16_t value) { return (value >> 10) & 0x1fu; }

constexpr uint8_t ExponentCode(uint32_t exponent, uint32_t base) {
  if (exponent == 0) return kCodeZero;
  const uint32_t code = exponent - base;
  return code < kWindow ? static_cast<uint8_t>(code) : kCodeEscape;
}

constexpr uint8_t Bf16Low(uint16_t value) {
  return static_cast<uint8_t>(((value >> 8) & 0x80u) | (value & 0x7fu));
}
constexpr uint16_t Bf16Join(uint8_t low, uint32_t exponent) {
  return static_cast<uint16_t>(((low & 0x80u) << 8) | (exponent << 7) | (low & 0x7fu));
}

constexpr uint8_t Fp16Low(uint16_t value) { return static_cast<uint8_t>(value & 0xffu); }
constexpr uint16_t Fp16Join(uint8_t low, uint32_t exponent, uint32_t sign, uint32_t m9,
                            uint32_t m8) {
  return static_cast<uint16_t>((sign << 15) | ((exponent & 31) << 10) | (m9 << 9) | (m8 << 8) | low);
}

constexpr uint32_t Escape(uint32_t position, uint32_t exponent) {
  return position | (exponent << 24);
}
constexpr uint32_t EscapePosition(uint32_t escape) { return escape & 0xffffffu; }
constexpr uint32_t EscapeExponent(uint32_t escape) { return escape >> 24; }

// Byte j of a group's codes holds value j's code in its low half and value j + 32's in its high half.
constexpr uint8_t CodeOf(const uint8_t* codes, uint32_t index) {
  return static_cast<uint8_t>(index < 32 ? codes[index] & 15 : codes[index - 32] >> 4);
}

}  // namespace tiercel::llf

#endif  // TIERCEL_KERNELS_LLF_CORE_H_
