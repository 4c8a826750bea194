// EC-C one value at a time: the scalar reference, in plain C++ that a device compiler takes too. (Compile
// with -ffp-contract=off: one fp32 operation a statement, rounding to nearest even.)
//
//   encode: y = x * (8 / step)              steps of an eighth
//           m = the column's mean of y      an integer
//           q = rint((y - m) / 8)           entropy-coded (rans_core.h)
//   decode: x = q * step + m * (step / 8)   then back to the plane's dtype
//
// With levels (levels_core.h) what is left of the mean is in a token's own steps:
//           q = rint((y - m) / 8 * (1 / own)),  x = q * step * own + m * (step / 8)
//
// Keys may be unrotated before and rotated after (rope_core.h). Layout: docs/block-format.md, "EC-C".
#ifndef TIERCEL_KERNELS_ECC_CORE_H_
#define TIERCEL_KERNELS_ECC_CORE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/levels_core.h"

namespace tiercel::ecc {

inline constexpr float kLimit = 65528.0f;  // Of y; beyond it, and of NaN, the segment is stored RAW.
inline constexpr int32_t kMostLevelled = (1 << 14) - 1;  // Of q, where tokens have steps of their own; the same.
inline constexpr uint32_t kLeastStep = 0x0d80;  // 2^-100 as bf16 bits, and
inline constexpr uint32_t kMostStep = 0x7180;   // 2^100: eighths and quotients of steps stay normal.

// Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to the nearest integer, ties to even.
inline constexpr float kMagic = 12582912.0f;
constexpr float Round(float v) {
  const float up = v + kMagic;
  return up - kMagic;
}
// The integer itself: it stands in the low bits.
constexpr int32_t RoundToInt(float v) {
  const float up = v + kMagic;
  return static_cast<int32_t>(std::bit_cast<uint32_t>(up) - std::bit_cast<uint32_t>(kMagic));
}

constexpr float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
constexpr uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr float FromFp16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400) return std::bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}
// Nearest even; what is too large becomes the largest finite value.
constexpr uint16_t ToFp16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t out = 0;
  if (magnitude >= 0x477ff000) {  // From 65520 on.
    out = 0x7bff;
  } else if (magnitude >= 0x38800000) {  // From 2^-14 on.
    out = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    out = static_cast<uint32_t>(Round(scaled));
  }
  return static_cast<uint16_t>(sign | out);
}

template <bool kFp16>
constexpr float Widen(uint16_t v) {
  return kFp16 ? FromFp16(v) : FromBf16(v);
}
template <bool kFp16>
constexpr uint16_t Narrow(float v) {
  return kFp16 ? ToFp16(v) : ToBf16(v);
}

// The step nearest to what is asked, as bf16 bits; 0 where it is none.
constexpr uint32_t StepBits(float step) { return step > 0x1p-99f && step < 0x1p99f ? ToBf16(step) : 0u; }
constexpr bool GoodStep(uint32_t bits) { return bits >= kLeastStep && bits <= kMostStep; }

// What values up to `largest` are multiplied with so that none, rotated or not, is beyond 2^11; 0: there is nothing,
// or nothing finite, to measure.
constexpr float MomentsScale(float largest) {
  if (!(largest > 0x1p-60f && largest < 0x1p60f)) return 0;
  // Rotation can make a value larger by the root of two.
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127 + 2;
  return std::bit_cast<float>(static_cast<uint32_t>(127 + 11 - exponent) << 23);
}

// A step in root mean squares of the segment, of each class; exact has none.
inline constexpr float kStepOfClass[5] = {0, 3.0f / 64, 1.0f / 8, 7.0f / 32, 3.0f / 8};

// The mean of n integers that sum to sum, ties up.
constexpr int32_t Mean(int64_t sum, int64_t n) {
  const int64_t twice = 2 * sum + n;
  const int64_t quotient = twice / (2 * n);
  return static_cast<int32_t>(twice % (2 * n) < 0 ? quotient - 1 : quotient);
}

// A column's q, and what they sum to.
struct Sums {
  int64_t values = 0;
  int64_t magnitudes = 0;
};

// The loops over a column; n is a multiple of 32.
template <bool kFp16>
constexpr void WidenColumn(const uint16_t* from, size_t n, float* to) {
  for (size_t i = 0; i < n; ++i) to[i] = Widen<kFp16>(from[i]);
}
template <bool kFp16>
constexpr void NarrowColumn(const float* from, size_t n, uint16_t* to) {
  for (size_t i = 0; i < n; ++i) to[i] = Narrow<kFp16>(from[i]);
}
// The sum of rint(x * inverse); false where one is beyond kLimit or no number.
constexpr bool SumColumn(const float* x, size_t n, float inverse, int64_t* sum) {
  uint32_t total = 0;
  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const float y = x[i] * inverse;
    const uint32_t magnitude = std::bit_cast<uint32_t>(y) & 0x7fffffffu;  // Bits in the order of floats, no numbers last.
    largest = magnitude > largest ? magnitude : largest;
    total += static_cast<uint32_t>(RoundToInt(y));
  }
  *sum = static_cast<int32_t>(total);
  return largest <= std::bit_cast<uint32_t>(kLimit);
}
constexpr Sums QuantizeColumn(const float* x, size_t n, float inverse, float mean, int16_t* q) {
  // An eighth of y, of the mean and of what is left is exact, whichever is taken first.
  const float inverse_eighth = inverse * 0.125f;
  const float mean_eighth = mean * 0.125f;
  int32_t values = 0;
  int32_t magnitudes = 0;
  for (size_t i = 0; i < n; ++i) {
    const float y = x[i] * inverse_eighth;
    const float eighth = y - mean_eighth;
    const int32_t v = RoundToInt(eighth);
    q[i] = static_cast<int16_t>(v);
    values += v;
    magnitudes += v < 0 ? -v : v;
  }
  return {values, magnitudes};
}
// With each token's own step: its inverse to quantise, itself to rebuild. False where one is beyond kMostLevelled.
constexpr bool QuantizeLevels(const float* x, size_t n, float inverse, float mean, const float* own_inverse, int16_t* q) {
  int32_t outside = 0;
  for (size_t i = 0; i < n; ++i) {
    const float y = x[i] * inverse;
    const float centred = y - mean;
    const float eighth = centred * 0.125f;
    const float own = eighth * own_inverse[i];
    const auto v = static_cast<int32_t>(Round(own));
    outside |= v > kMostLevelled || v < -kMostLevelled ? 1 : 0;
    q[i] = static_cast<int16_t>(v);
  }
  return outside == 0;
}
constexpr void RebuildLevels(const int16_t* q, size_t n, float step, float mean, const float* own, float* x) {
  for (size_t i = 0; i < n; ++i) {
    const float common = static_cast<float>(q[i]) * step;
    const float scaled = common * own[i];
    x[i] = scaled + mean;
  }
}
constexpr void RebuildColumn(const int16_t* q, size_t n, float step, float mean, float* x) {
  for (size_t i = 0; i < n; ++i) {
    const float scaled = static_cast<float>(q[i]) * step;
    x[i] = scaled + mean;
  }
}
// Rotates by the angle of (cos, sin); with -sin, back.
constexpr void RotateColumns(float* a, float* b, size_t n, const float* cos, const float* sin) {
  for (size_t i = 0; i < n; ++i) {
    const float ac = a[i] * cos[i];
    const float bs = b[i] * sin[i];
    const float bc = b[i] * cos[i];
    const float as = a[i] * sin[i];
    a[i] = ac - bs;
    b[i] = bc + as;
  }
}
constexpr void UnrotateColumns(float* a, float* b, size_t n, const float* cos, const float* sin) {
  for (size_t i = 0; i < n; ++i) {
    const float ac = a[i] * cos[i];
    const float bs = b[i] * sin[i];
    const float bc = b[i] * cos[i];
    const float as = a[i] * sin[i];
    a[i] = ac + bs;
    b[i] = bc - as;
  }
}
// Sums of i and i^2 for i = rint(x * scale), |i| at most 2^11, of n at most 4096 values.
struct Moments {
  int64_t sum = 0;
  int64_t squares = 0;
};
constexpr Moments MomentsOf(const float* x, size_t n, float scale) {
  int32_t sum = 0;
  int64_t squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const int32_t v = RoundToInt(x[i] * scale);
    sum += v;
    squares += v * v;
  }
  return {sum, squares};
}
// The same of kStripe columns of a plane that lie side by side in its rows, as they are there; n is at most 4096.
inline constexpr size_t kStripe = 32;
template <bool kFp16>
constexpr void MomentsOfRows(const uint16_t* rows, size_t pitch, size_t n, float scale, Moments* out) {
  for (size_t begin = 0; begin < n; begin += 512) {  // 2^9 squares of 2^22 are below 2^32.
    int32_t sum[kStripe] = {};
    uint32_t squares[kStripe] = {};
    const size_t end = n - begin < 512 ? n : begin + 512;
    for (size_t r = begin; r < end; ++r) {
      const uint16_t* const row = rows + r * pitch;
      for (size_t c = 0; c < kStripe; ++c) {
        const int32_t v = RoundToInt(Widen<kFp16>(row[c]) * scale);
        sum[c] += v;
        squares[c] += static_cast<uint32_t>(v * v);
      }
    }
    for (size_t c = 0; c < kStripe; ++c) {
      out[c].sum += sum[c];
      out[c].squares += squares[c];
    }
  }
}

// The largest of n magnitudes, as bits.
constexpr uint32_t LargestOf(const uint16_t* values, size_t n) {
  uint16_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto magnitude = static_cast<uint16_t>(values[i] & 0x7fffu);
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

// A segment's first 12 bytes, 16 of version 2, which has levels. Then a step of each part and head, the exact
// values of each column, the level part, the classes, the means, and at a multiple of 4 the columns.
inline constexpr uint32_t kMaxExact = 64;
inline constexpr uint32_t kFlagRope = 1;

struct Head {
  uint32_t version = 0;
  uint32_t dtype = 0;
  uint32_t flags = 0;
  uint32_t exact = 0;  // Tokens.
  uint32_t split = 0;
  uint32_t log_streams = 0;
  uint32_t log_bands = 0;    // Of version 1: 0.
  uint32_t mean_bytes = 0;
  uint32_t level_bytes = 0;  // Of version 1: 0.
  uint32_t groups = 0;       // Parts times heads.
  uint64_t exact_bytes = 0;

  constexpr bool levels() const { return version == 2; }
  static constexpr uint64_t Bytes(bool levels) { return levels ? 16 : 12; }
  constexpr uint64_t steps_at() const { return Bytes(levels()); }
  constexpr uint64_t exact_at() const { return steps_at() + uint64_t{2} * groups; }
  constexpr uint64_t levels_at() const { return exact_at() + exact_bytes; }
  constexpr uint64_t classes_at() const { return levels_at() + level_bytes; }
};

enum class HeadFault : uint8_t { kNone, kVersion, kDtype, kFlags, kExact, kSplit, kStreams, kBands, kReserved, kMeans, kParts };

// bytes: uint8_t or std::byte, `size` of them; of a segment of `heads` heads of `dim` dims.
template <class Byte>
constexpr HeadFault ReadHead(const Byte* bytes, uint64_t size, uint32_t dtype, uint32_t tokens, uint32_t heads,
                             uint32_t dim, Head& head) {
  const auto u8 = [bytes](uint32_t at) { return static_cast<uint32_t>(bytes[at]); };
  const auto u32 = [u8](uint32_t at) { return u8(at) | u8(at + 1) << 8 | u8(at + 2) << 16 | u8(at + 3) << 24; };
  if (size < Head::Bytes(false)) return HeadFault::kVersion;
  head.version = u8(0);
  if ((head.version != 1 && head.version != 2) || size < Head::Bytes(head.levels())) return HeadFault::kVersion;
  head.dtype = u8(1);
  head.flags = u8(2);
  head.exact = u8(3);
  head.split = u8(4) | u8(5) << 8;
  head.log_streams = u8(6);
  head.log_bands = u8(7);
  head.mean_bytes = u32(8);
  head.level_bytes = head.levels() ? u32(12) : 0;
  if (head.dtype != dtype) return HeadFault::kDtype;
  if ((head.flags & ~kFlagRope) != 0) return HeadFault::kFlags;
  if (head.exact > kMaxExact || head.exact >= tokens) return HeadFault::kExact;
  if (head.split >= dim) return HeadFault::kSplit;
  if (head.log_streams > 3) return HeadFault::kStreams;
  if (!head.levels() && head.log_bands != 0) return HeadFault::kReserved;
  if (!levels::BandsFit(head.log_bands, tokens)) return HeadFault::kBands;
  head.groups = head.split == 0 ? heads : 2 * heads;
  head.exact_bytes = uint64_t{2} * head.exact * heads * dim;
  if (head.mean_bytes > uint64_t{8} * heads * dim) return HeadFault::kMeans;
  return head.classes_at() > size ? HeadFault::kParts : HeadFault::kNone;
}

struct ColumnFns {
  void (*widen)(const uint16_t*, size_t, float*);
  void (*narrow)(const float*, size_t, uint16_t*);
  bool (*sum)(const float*, size_t, float, int64_t*);
  Sums (*quantize)(const float*, size_t, float, float, int16_t*);
  void (*rebuild)(const int16_t*, size_t, float, float, float*);
  bool (*quantize_levels)(const float*, size_t, float, float, const float*, int16_t*);
  void (*rebuild_levels)(const int16_t*, size_t, float, float, const float*, float*);
  void (*rotate)(float*, float*, size_t, const float*, const float*);
  void (*unrotate)(float*, float*, size_t, const float*, const float*);
  Moments (*moments)(const float*, size_t, float);
  void (*moments_of_rows)(const uint16_t*, size_t, size_t, float, Moments*);
  uint32_t (*largest)(const uint16_t*, size_t);
};

#if defined(__x86_64__)
ColumnFns Avx2Columns(bool fp16);
ColumnFns Avx512Columns(bool fp16);
#endif

}  // namespace tiercel::ecc

#endif  // TIERCEL_KERNELS_ECC_CORE_H_
