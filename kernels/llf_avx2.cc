#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/llf_core.h"
#include "kernels/llf_groups.h"

#define TIERCEL_AVX2 __attribute__((target("avx2")))

namespace tiercel::llf {
namespace {

TIERCEL_AVX2 inline __m256i Load(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
TIERCEL_AVX2 inline void Store(std::byte* to, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}
TIERCEL_AVX2 inline __m256i Bytes(int value) {
  return _mm256_set1_epi8(static_cast<char>(value));
}
// 16-bit lanes of a and b (each under 256) to 32 bytes in order.
TIERCEL_AVX2 inline __m256i Pack(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
}
TIERCEL_AVX2 inline uint32_t Mask(__m256i bytes) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}
// Bit i of mask to byte i: 0xff or 0.
TIERCEL_AVX2 inline __m256i Spread(uint32_t mask) {
  const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101LL, 0x0202020202020202LL,
                                           0x0303030303030303LL);
  const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  const __m256i spread =
      _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(mask)), which);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, select), select);
}

template <bool kFp16>
TIERCEL_AVX2 inline __m256i Exponents(__m256i a, __m256i b) {
  constexpr int kShift = kFp16 ? 10 : 7;
  const __m256i mask = _mm256_set1_epi16(kFp16 ? 0x1f : 0xff);
  return Pack(_mm256_and_si256(_mm256_srli_epi16(a, kShift), mask),
              _mm256_and_si256(_mm256_srli_epi16(b, kShift), mask));
}

TIERCEL_AVX2 inline __m256i Codes(__m256i exponents, __m256i base) {
  const __m256i shifted = _mm256_sub_epi8(exponents, base);
  const __m256i inside =
      _mm256_cmpeq_epi8(_mm256_min_epu8(shifted, Bytes(kWindow - 1)), shifted);
  const __m256i code = _mm256_blendv_epi8(Bytes(kCodeEscape), shifted, inside);
  return _mm256_blendv_epi8(code, Bytes(kCodeZero),
                            _mm256_cmpeq_epi8(exponents, _mm256_setzero_si256()));
}

TIERCEL_AVX2 inline __m256i LowBf16(__m256i v) {
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, 8), _mm256_set1_epi16(0x80)),
                         _mm256_and_si256(v, _mm256_set1_epi16(0x7f)));
}

template <bool kFp16>
TIERCEL_AVX2 bool Encode(const std::byte* raw, size_t groups, uint32_t base,
                         uint32_t first_position, PlanesOut out, EscapeList& escapes) {
  const __m256i bases = Bytes(static_cast<int>(base));
  const __m256i escape = Bytes(kCodeEscape);
  for (size_t group = 0; group < groups; ++group) {
    __m256i codes[2];
    uint64_t escape_mask = 0;
    uint64_t bits[3] = {0, 0, 0};
    for (int half = 0; half < 2; ++half) {
      const __m256i a = Load(raw + 64 * half);
      const __m256i b = Load(raw + 64 * half + 32);
      codes[half] = Codes(Exponents<kFp16>(a, b), bases);
      escape_mask |= uint64_t{Mask(_mm256_cmpeq_epi8(codes[half], escape))} << (32 * half);
      if constexpr (kFp16) {
        const __m256i low = _mm256_set1_epi16(0xff);
        Store(out.low + 32 * half, Pack(_mm256_and_si256(a, low), _mm256_and_si256(b, low)));
        const __m256i high = Pack(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        bits[0] |= uint64_t{Mask(high)} << (32 * half);
        bits[1] |= uint64_t{Mask(_mm256_slli_epi16(high, 6))} << (32 * half);
        bits[2] |= uint64_t{Mask(_mm256_slli_epi16(high, 7))} << (32 * half);
      } else {
        Store(out.low + 32 * half, Pack(LowBf16(a), LowBf16(b)));
      }
    }
    Store(out.codes, _mm256_or_si256(codes[0], _mm256_slli_epi16(codes[1], 4)));
    if constexpr (kFp16) {
      for (uint32_t plane = 0; plane < 3; ++plane) StoreLe(out.bits + 8 * plane, bits[plane]);
      out.bits += kBitBytes;
    }
    if (escape_mask != 0) [[unlikely]] {
      const auto position = first_position + static_cast<uint32_t>(group * kGroup);
      if (!AppendEscapes(escape_mask, position, escapes, [&](uint32_t i) {
            const auto value = LoadLe<uint16_t>(raw + 2 * i);
            return kFp16 ? Fp16Exponent(value) : Bf16Exponent(value);
          })) {
        return false;
      }
    }
    raw += 2 * kGroup;
    out.low += kLowBytes;
    out.codes += kCodeBytes;
  }
  return true;
}

template <bool kFp16>
TIERCEL_AVX2 void Decode(PlanesIn in, size_t groups, const std::byte* codebook, std::byte* raw) {
  // The exponent's bits as they fall into the value's high and low byte.
  alignas(16) uint8_t high_table[16];
  alignas(16) uint8_t low_table[16];
  for (int i = 0; i < 16; ++i) {
    const auto exponent = std::to_integer<uint32_t>(codebook[i]);
    high_table[i] = static_cast<uint8_t>(kFp16 ? (exponent & 31) << 2 : exponent >> 1);
    low_table[i] = static_cast<uint8_t>(kFp16 ? 0 : exponent << 7);
  }
  const __m256i highs = _mm256_broadcastsi128_si256(
      _mm_load_si128(reinterpret_cast<const __m128i*>(high_table)));
  const __m256i lows = _mm256_broadcastsi128_si256(
      _mm_load_si128(reinterpret_cast<const __m128i*>(low_table)));
  const __m256i nibble = Bytes(0x0f);
  for (size_t group = 0; group < groups; ++group) {
    const __m256i packed = Load(in.codes);
    for (int half = 0; half < 2; ++half) {
      const __m256i codes =
          _mm256_and_si256(half == 0 ? packed : _mm256_srli_epi16(packed, 4), nibble);
      const __m256i low_plane = Load(in.low + 32 * half);
      __m256i high = _mm256_shuffle_epi8(highs, codes);
      __m256i low;
      if constexpr (kFp16) {
        const std::byte* bits = in.bits + 4 * half;
        const __m256i sign = Spread(LoadLe<uint32_t>(bits));
        const __m256i m9 = Spread(LoadLe<uint32_t>(bits + 8));
        const __m256i m8 = Spread(LoadLe<uint32_t>(bits + 16));
        high = _mm256_or_si256(high, _mm256_and_si256(sign, Bytes(0x80)));
        high = _mm256_or_si256(high, _mm256_and_si256(m9, Bytes(0x02)));
        high = _mm256_or_si256(high, _mm256_and_si256(m8, Bytes(0x01)));
        low = low_plane;
      } else {
        high = _mm256_or_si256(high, _mm256_and_si256(low_plane, Bytes(0x80)));
        low = _mm256_or_si256(_mm256_shuffle_epi8(lows, codes),
                              _mm256_and_si256(low_plane, Bytes(0x7f)));
      }
      high = _mm256_permute4x64_epi64(high, 0xd8);
      low = _mm256_permute4x64_epi64(low, 0xd8);
      Store(raw + 64 * half, _mm256_unpacklo_epi8(low, high));
      Store(raw + 64 * half + 32, _mm256_unpackhi_epi8(low, high));
    }
    if constexpr (kFp16) in.bits += kBitBytes;
    raw += 2 * kGroup;
    in.low += kLowBytes;
    in.codes += kCodeBytes;
  }
}

}  // namespace

GroupFns Avx2Bf16() { return {Encode<false>, Decode<false>}; }
GroupFns Avx2Fp16() { return {Encode<true>, Decode<true>}; }

}  // namespace tiercel::llf

#endif  // __x86_64__
