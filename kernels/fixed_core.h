// The codecs of fixed rate one value at a time: I8, F8 and I4H, in plain C++ that a device compiler
// takes too. The wide paths do the same to many values at once, equal to the bit.
//
// fp32 steps stand one operation a statement; files that use them are compiled without contraction.
// Every product and sum of them is finite: encoders refuse values from kLimit on, decoders parameters
// from kParamLimit on, and encoders take ranges under kTiny for zero.
// Bitstreams: docs/block-format.md, "I8", "F8", "I4H".
#ifndef TIERCEL_KERNELS_FIXED_CORE_H_
#define TIERCEL_KERNELS_FIXED_CORE_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace tiercel::fixed {

inline constexpr float kLimit = 0x1p100f;
inline constexpr float kParamLimit = 0x1p112f;
inline constexpr float kTiny = 0x1p-80f;

constexpr uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }
constexpr float Float(uint32_t bits) { return std::bit_cast<float>(bits); }

constexpr float Magnitude(float value) { return Float(Bits(value) & 0x7fffffffu); }
constexpr float PowerOfTwo(int exponent) {  // -126..127
  return Float(static_cast<uint32_t>(exponent + 127) << 23);
}
constexpr int ExponentOf(float value) { return static_cast<int>((Bits(value) >> 23) & 0xff) - 127; }

// To the nearest integer, ties to even; |value| < 2^22. 1.5 * 2^23 leaves no room for a fraction.
constexpr int32_t Nearest(float value) {
  const float shifted = value + 0x1.8p23f;
  return static_cast<int32_t>(Bits(shifted) - Bits(0x1.8p23f));
}

// ---- 16-bit floats.

constexpr float FromBf16(uint16_t value) { return Float(static_cast<uint32_t>(value) << 16); }
constexpr uint16_t ToBf16(float value) {
  const uint32_t bits = Bits(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

constexpr float FromFp16(uint16_t value) {
  const uint32_t sign = (value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 0x1fu;
  const uint32_t mantissa = value & 0x3ffu;
  if (exponent == 31) return Float(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return Float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return Float(sign | Bits(magnitude));
}
// Nearest, ties to even; never infinite: 65504 at most.
constexpr uint16_t ToFp16(float value) {
  const uint32_t sign = (Bits(value) >> 16) & 0x8000u;
  const float magnitude = Magnitude(value);
  if (magnitude > 65504.0f) return static_cast<uint16_t>(sign | 0x7bffu);
  if (magnitude < 0x1p-14f) {
    const float scaled = magnitude * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(Nearest(scaled)));
  }
  const uint32_t bits = Bits(magnitude) - (112u << 23);
  return static_cast<uint16_t>(sign | ((bits + 0xfffu + ((bits >> 13) & 1)) >> 13));
}

template <bool kFp16>
constexpr float FromHalf(uint16_t value) {
  return kFp16 ? FromFp16(value) : FromBf16(value);
}
template <bool kFp16>
constexpr uint16_t ToHalf(float value) {
  return kFp16 ? ToFp16(value) : ToBf16(value);
}

// Integers in the order of the floats; its own inverse.
constexpr int16_t Ordered(uint16_t value) {
  return static_cast<int16_t>((value & 0x8000u) != 0 ? value ^ 0x7fffu : value);
}
constexpr uint16_t FromOrdered(int16_t value) {
  const auto bits = static_cast<uint16_t>(value);
  const auto half = static_cast<uint16_t>((bits & 0x8000u) != 0 ? bits ^ 0x7fffu : bits);
  return half == 0x8000u ? uint16_t{0} : half;  // -0 is +0 as a bound.
}

// ---- I8: low + code * step, code 0..255.

constexpr float I8Step(float low, float high) {
  const float range = high - low;
  return range * (1.0f / 255.0f);
}
constexpr float I8Decode(uint32_t code, float low, float step) {
  const float offset = static_cast<float>(code) * step;
  return offset + low;
}
constexpr float I8Inverse(float low, float high) {
  const float range = high - low;
  return range == 0.0f ? 0.0f : 255.0f / range;
}
constexpr uint32_t I8Code(float value, float low, float inverse) {
  const float offset = value - low;
  const float scaled = offset * inverse;
  const int32_t code = Nearest(scaled);
  return static_cast<uint32_t>(code > 255 ? 255 : code);
}
// Makes the bounds what the decoder will show of them, so that its output has the same: high is moved
// to where code 255 lands. False: not finite, or too large.
template <bool kFp16>
constexpr bool I8Seal(uint16_t& low, uint16_t& high) {
  const float l = FromHalf<kFp16>(low);
  if (!(Magnitude(l) < kLimit) || !(Magnitude(FromHalf<kFp16>(high)) < kLimit)) return false;
  for (int round = 0; round < 8; ++round) {
    const float h = FromHalf<kFp16>(high);
    if (h - l < kTiny) {
      high = low;
      return true;
    }
    const uint16_t shown = ToHalf<kFp16>(I8Decode(255, l, I8Step(l, h)));
    if (shown == high) return true;
    high = shown == 0x8000u ? uint16_t{0} : shown;
  }
  return false;
}

// ---- F8: e4m3 (no infinities, 448 at most) times 2^k.

inline constexpr int kF8Bias = 128;  // Of k as it is stored; 0 stands for a head of zeros.
inline constexpr float kF8Limit = 0x1.fp99f;  // From here on rounding to e4m3 would reach kLimit.
inline constexpr int kF8MinK = -88;
inline constexpr int kF8MaxK = 92;

// The stored k of a head whose largest magnitude is this; 0 where that is under kTiny.
constexpr uint8_t F8StoredK(float largest) {
  if (largest < kTiny) return 0;
  // Rounded to four significant bits, as the code of the largest will be; 1.875 * 2^8 is no e4m3.
  const uint32_t bits = Bits(largest);
  const uint32_t rounded = bits + 0x7ffffu + ((bits >> 20) & 1);
  const int exponent = static_cast<int>(rounded >> 23) - 127;
  return static_cast<uint8_t>(exponent - ((rounded >> 20 & 7) == 7 ? 7 : 8) + kF8Bias);
}
// Integers all the way: nearest, ties to even, 448 at most.
constexpr uint8_t F8Code(float value, int k) {
  const uint32_t bits = Bits(value);
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 120 - k;  // e4m3's field, if above 0.
  const uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  const int field = exponent > 1 ? exponent : 1;
  const int down = 20 + field - exponent;
  const uint32_t shift = static_cast<uint32_t>(down > 25 ? 25 : down);
  const uint32_t rounded =
      (mantissa + ((1u << (shift - 1)) - 1) + ((mantissa >> shift) & 1)) >> shift;
  const uint32_t code = static_cast<uint32_t>(field - 1) * 8 + rounded;
  return static_cast<uint8_t>((bits >> 24 & 0x80u) | (code > 0x7e ? 0x7e : code));
}
// Exact in fp32 and, of what an encoder writes, in bf16.
constexpr float F8Value(uint8_t code, float scale) {
  const uint32_t magnitude = code & 0x7fu;
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f
                                    : Float((magnitude << 20) + (120u << 23));
  const float scaled = value * scale;
  return Float((code & 0x80u) << 24 | Bits(scaled));
}
constexpr float F8Scale(uint8_t stored_k) {
  return stored_k == 0 ? 0.0f : PowerOfTwo(stored_k - kF8Bias);
}

// ---- I4H: codes 0..15 of a Walsh-Hadamard transform.

inline constexpr uint32_t kMaxDim = 1024;
inline constexpr uint32_t kMaxBlock = 256;

// The largest power of two that divides dim, 256 at most.
constexpr uint32_t HadamardBlock(uint32_t dim) {
  const uint32_t block = dim & (~dim + 1);
  return block < kMaxBlock ? block : kMaxBlock;
}
// y[j] = sum over i of (-1)^popcount(i & j) x[i], in place.
constexpr void Hadamard(int32_t* x, uint32_t block) {
  for (uint32_t stride = 1; stride < block; stride *= 2) {
    for (uint32_t i = 0; i < block; ++i) {
      if ((i & stride) != 0) continue;
      const int32_t a = x[i];
      const int32_t b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  }
}

// What a vector (one token of one head) is quantised with. `base` and `scale` are stored as bf16.
struct I4Params {
  uint16_t scale = 0;
  uint16_t base = 0;
  float unit = 0;     // Of the integers that are transformed.
  float inverse = 0;  // Codes a unit of value.
};
// Integers are value * 2^(14 - exponent of the largest).
constexpr float I4Upscale(float largest) { return PowerOfTwo(14 - ExponentOf(largest)); }
constexpr I4Params I4Choose(float largest, float low, float high, uint32_t block) {
  I4Params params;
  params.unit = PowerOfTwo(ExponentOf(largest) - 14);
  const float bottom = low * params.unit;
  const float top = high * params.unit;
  params.base = ToBf16(bottom);
  const float range = top - FromBf16(params.base);
  const float step = range * (1.0f / 15.0f);
  if (!(step >= 0x1p-100f)) return params;
  params.scale = ToBf16(step / static_cast<float>(block));
  const float back = FromBf16(params.scale) * static_cast<float>(block);
  params.inverse = 1.0f / back;
  return params;
}
constexpr uint32_t I4Code(float coefficient, float unit, float base, float inverse) {
  const float value = coefficient * unit;
  const float offset = value - base;
  const float scaled = offset * inverse;
  const int32_t code = Nearest(scaled);
  return static_cast<uint32_t>(code < 0 ? 0 : code > 15 ? 15 : code);
}

}  // namespace tiercel::fixed

#endif  // TIERCEL_KERNELS_FIXED_CORE_H_
