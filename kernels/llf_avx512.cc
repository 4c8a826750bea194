#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/llf_core.h"
#include "kernels/llf_groups.h"

#define TIERCEL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2")))

namespace tiercel::llf {
namespace {

TIERCEL_AVX512 inline __m512i Bytes(int value) {
  return _mm512_set1_epi8(static_cast<char>(value));
}

// packus works within 128-bit lanes and leaves quadwords in the order 0 4 1 5 2 6 3 7.
TIERCEL_AVX512 inline __m512i Pack(__m512i a, __m512i b) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  return _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a, b));
}

template <bool kFp16>
TIERCEL_AVX512 inline __m512i Exponents(__m512i a, __m512i b) {
  constexpr unsigned kShift = kFp16 ? 10 : 7;
  const __m512i mask = _mm512_set1_epi16(kFp16 ? 0x1f : 0xff);
  return Pack(_mm512_and_si512(_mm512_srli_epi16(a, kShift), mask),
              _mm512_and_si512(_mm512_srli_epi16(b, kShift), mask));
}

TIERCEL_AVX512 inline __m512i LowBf16(__m512i v) {
  // (v >> 8 & 0x80) | (v & 0x7f): bits of v where the mask is set, else of v >> 8 (under 0x100).
  const __m512i take = _mm512_set1_epi16(0x7f);
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(v, 8), _mm512_set1_epi16(0x80));
  return _mm512_ternarylogic_epi64(take, v, sign, 0xea);  // (take & v) | sign
}

template <bool kFp16>
TIERCEL_AVX512 bool Encode(const std::byte* raw, size_t groups, uint32_t base,
                           uint32_t first_position, PlanesOut out, EscapeList& escapes) {
  const __m512i bases = Bytes(static_cast<int>(base));
  const __m512i escape = Bytes(kCodeEscape);
  const __m512i zero = Bytes(kCodeZero);
  const __m512i window = Bytes(kWindow);
  const __m512i low_byte = _mm512_set1_epi16(0xff);
  for (size_t group = 0; group < groups; ++group) {
    const __m512i a = _mm512_loadu_si512(raw);
    const __m512i b = _mm512_loadu_si512(raw + 64);
    const __m512i exponents = Exponents<kFp16>(a, b);
    const __m512i shifted = _mm512_sub_epi8(exponents, bases);
    const __mmask64 is_zero = _mm512_testn_epi8_mask(exponents, exponents);
    const __mmask64 inside = _mm512_cmplt_epu8_mask(shifted, window);
    __m512i codes = _mm512_mask_mov_epi8(escape, inside, shifted);
    codes = _mm512_mask_mov_epi8(codes, is_zero, zero);
    const __m256i first = _mm512_castsi512_si256(codes);
    const __m256i second = _mm512_extracti64x4_epi64(codes, 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.codes),
                        _mm256_or_si256(first, _mm256_slli_epi16(second, 4)));
    if constexpr (kFp16) {
      _mm512_storeu_si512(out.low,
                          Pack(_mm512_and_si512(a, low_byte), _mm512_and_si512(b, low_byte)));
      const __m512i m9 = _mm512_set1_epi16(0x0200);
      const __m512i m8 = _mm512_set1_epi16(0x0100);
      const auto join = [](__mmask32 lo, __mmask32 hi) {
        return uint64_t{lo} | (uint64_t{hi} << 32);
      };
      StoreLe(out.bits, join(_mm512_movepi16_mask(a), _mm512_movepi16_mask(b)));
      StoreLe(out.bits + 8,
              join(_mm512_test_epi16_mask(a, m9), _mm512_test_epi16_mask(b, m9)));
      StoreLe(out.bits + 16,
              join(_mm512_test_epi16_mask(a, m8), _mm512_test_epi16_mask(b, m8)));
      out.bits += kBitBytes;
    } else {
      _mm512_storeu_si512(out.low, Pack(LowBf16(a), LowBf16(b)));
    }
    const __mmask64 escaped = ~(inside | is_zero);
    if (escaped != 0) [[unlikely]] {
      const auto position = first_position + static_cast<uint32_t>(group * kGroup);
      if (!AppendEscapes(escaped, position, escapes, [&](uint32_t i) {
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
TIERCEL_AVX512 void Decode(PlanesIn in, size_t groups, const std::byte* codebook,
                           std::byte* raw) {
  alignas(16) uint8_t high_table[16];
  alignas(16) uint8_t low_table[16];
  for (int i = 0; i < 16; ++i) {
    const auto exponent = std::to_integer<uint32_t>(codebook[i]);
    high_table[i] = static_cast<uint8_t>(kFp16 ? (exponent & 31) << 2 : exponent >> 1);
    low_table[i] = static_cast<uint8_t>(kFp16 ? 0 : exponent << 7);
  }
  const __m512i highs =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(high_table)));
  const __m512i lows =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(low_table)));
  // Quadwords in the order 0 4 1 5 2 6 3 7: what unpacking within lanes turns into 0..63.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i twice = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
  const __m512i shift = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
  const __m512i nibble = Bytes(0x0f);
  for (size_t group = 0; group < groups; ++group) {
    const __m512i packed = _mm512_castsi256_si512(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in.codes)));
    const __m512i codes = _mm512_and_si512(
        _mm512_srlv_epi64(_mm512_permutexvar_epi64(twice, packed), shift), nibble);
    const __m512i plane = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(in.low));
    __m512i high = _mm512_shuffle_epi8(highs, codes);
    __m512i low;
    if constexpr (kFp16) {
      // Bit masks to bytes in plain order first, then into the permuted one.
      __m512i bits = _mm512_maskz_mov_epi8(LoadLe<uint64_t>(in.bits), Bytes(0x80));
      bits = _mm512_or_si512(bits,
                             _mm512_maskz_mov_epi8(LoadLe<uint64_t>(in.bits + 8), Bytes(2)));
      bits = _mm512_or_si512(bits,
                             _mm512_maskz_mov_epi8(LoadLe<uint64_t>(in.bits + 16), Bytes(1)));
      high = _mm512_or_si512(high, _mm512_permutexvar_epi64(order, bits));
      low = plane;
      in.bits += kBitBytes;
    } else {
      // Sign from the plane, the rest from the table; and the other way round for the low byte.
      high = _mm512_ternarylogic_epi64(high, plane, Bytes(0x80), 0xf8);  // high | (plane & mask)
      low = _mm512_ternarylogic_epi64(_mm512_shuffle_epi8(lows, codes), plane, Bytes(0x7f), 0xf8);
    }
    _mm512_storeu_si512(raw, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(raw + 64, _mm512_unpackhi_epi8(low, high));
    raw += 2 * kGroup;
    in.low += kLowBytes;
    in.codes += kCodeBytes;
  }
}

}  // namespace

GroupFns Avx512Bf16() { return {Encode<false>, Decode<false>}; }
GroupFns Avx512Fp16() { return {Encode<true>, Decode<true>}; }

}  // namespace tiercel::llf

#endif  // __x86_64__
