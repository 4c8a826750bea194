#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/lle_rows.h"

#define TIERCEL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,popcnt")))

namespace tiercel::lle {
namespace {

TIERCEL_AVX512 inline __mmask32 First(size_t n) {
  return n >= 32 ? ~0u : _bzhi_u32(~0u, static_cast<uint32_t>(n));
}
TIERCEL_AVX512 inline __mmask64 FirstOf64(size_t n) {
  return n >= 64 ? ~uint64_t{0} : _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(n));
}
// The first (n + 7) / 8 bytes of a mask, at most 4.
inline void StoreBits(std::byte* to, uint32_t bits, size_t n) {
  const size_t bytes = n >= 32 ? 4 : (n + 7) / 8;
  if (bytes == 4) {
    __builtin_memcpy(to, &bits, 4);
  } else {
    for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(bits >> (8 * i));
  }
}
inline uint32_t LoadBits(const std::byte* from, size_t n) {
  uint32_t bits = 0;
  if (n >= 32) {
    __builtin_memcpy(&bits, from, 4);
  } else {
    for (size_t i = 0; i < (n + 7) / 8; ++i) bits |= static_cast<uint32_t>(from[i]) << (8 * i);
  }
  return bits;
}

// The first n of 32 or 64. Masked stores are slow on some CPUs.
TIERCEL_AVX512 inline void StoreWords(void* to, size_t n, __m512i words) {
  if (n >= 32) {
    _mm512_storeu_si512(to, words);
  } else {
    _mm512_mask_storeu_epi16(to, First(n), words);
  }
}
TIERCEL_AVX512 inline void StoreBytes(void* to, size_t n, __m512i bytes) {
  if (n >= 64) {
    _mm512_storeu_si512(to, bytes);
  } else {
    _mm512_mask_storeu_epi8(to, FirstOf64(n), bytes);
  }
}
TIERCEL_AVX512 inline __m512i LoadWords(const uint16_t* from, size_t n) {
  return n >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(First(n), from);
}
// Words up to 255 as bytes.
TIERCEL_AVX512 inline __m512i Pack(__m512i a, __m512i b) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(a, b));
}

template <bool kFp16>
TIERCEL_AVX512 inline __m512i ExponentsOf(__m512i v) {
  return kFp16 ? _mm512_and_si512(_mm512_srli_epi16(v, 10), _mm512_set1_epi16(0x1f))
               : _mm512_and_si512(_mm512_srli_epi16(v, 7), _mm512_set1_epi16(0xff));
}
// The lowest byte of the rest.
template <bool kFp16>
TIERCEL_AVX512 inline __m512i RestsOf(__m512i v) {
  // Of bf16 the sign from one byte higher up, the mantissa as it is.
  const __m512i low = kFp16 ? v : _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x7f), v, _mm512_srli_epi16(v, 8), 0xca);
  return _mm512_and_si512(low, _mm512_set1_epi16(0xff));
}

template <bool kFp16>
TIERCEL_AVX512 Exponents Split(const uint16_t* column, size_t n, uint8_t* exponents, std::byte* planes) {
  const size_t plane = (n + 7) / 8;
  __m512i sum = _mm512_setzero_si512();
  __m512i least = _mm512_set1_epi8(-1);
  __m512i most = _mm512_setzero_si512();
  uint32_t nonzero = 0;
  for (size_t i = 0; i < n; i += 64) {
    const size_t left = n - i;
    const __m512i a = LoadWords(column + i, left);
    const __m512i b = left > 32 ? LoadWords(column + i + 32, left - 32) : _mm512_setzero_si512();
    const __m512i e = Pack(ExponentsOf<kFp16>(a), ExponentsOf<kFp16>(b));
    StoreBytes(exponents + i, left, e);
    StoreBytes(planes + i, left, Pack(RestsOf<kFp16>(a), RestsOf<kFp16>(b)));
    if constexpr (kFp16) {
      std::byte* bits = planes + n + i / 8;
      constexpr int kBits[3] = {0x100, 0x200, 0x8000};
      for (const int bit : kBits) {
        const __m512i one = _mm512_set1_epi16(static_cast<int16_t>(bit));
        StoreBits(bits, _mm512_test_epi16_mask(a, one), left);
        if (left > 32) StoreBits(bits + 4, _mm512_test_epi16_mask(b, one), left - 32);
        bits += plane;
      }
    }
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(e, _mm512_setzero_si512()));
    nonzero += static_cast<uint32_t>(__builtin_popcountll(_mm512_test_epi8_mask(e, e)));
    least = _mm512_mask_min_epu8(least, FirstOf64(left), least, e);
    most = _mm512_max_epu8(most, e);
  }
  // The least and, as its complement, the most of 16 bytes in words of their own.
  const auto least_of = [](__m512i v) TIERCEL_AVX512 {
    const __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i quarter = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i words = _mm_min_epu16(_mm_and_si128(quarter, _mm_set1_epi16(0xff)), _mm_srli_epi16(quarter, 8));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(words))) & 0xffffu;
  };
  return {static_cast<uint32_t>(_mm512_reduce_add_epi64(sum)), nonzero, least_of(least),
          255 - least_of(_mm512_xor_si512(most, _mm512_set1_epi8(-1)))};
}

template <bool kFp16>
TIERCEL_AVX512 void Join(const uint8_t* exponents, const std::byte* planes, size_t n, uint16_t* column) {
  const size_t plane = (n + 7) / 8;
  for (size_t i = 0; i < n; i += 32) {
    const __mmask32 some = First(n - i);
    const __m512i e = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(some, exponents + i));
    const __m512i rest = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(some, planes + i));
    __m512i v;
    if constexpr (kFp16) {
      v = _mm512_and_si512(_mm512_slli_epi16(e, 10), _mm512_set1_epi16(0x7c00));
      v = _mm512_or_si512(v, rest);
      const std::byte* const bits = planes + n + i / 8;
      const auto add = [&](uint32_t mask, int bit) TIERCEL_AVX512 {
        v = _mm512_or_si512(v, _mm512_maskz_mov_epi16(mask, _mm512_set1_epi16(static_cast<int16_t>(bit))));
      };
      add(LoadBits(bits, n - i), 0x100);
      add(LoadBits(bits + plane, n - i), 0x200);
      add(LoadBits(bits + 2 * plane, n - i), 0x8000);
    } else {
      // Exponent | mantissa | sign.
      v = _mm512_ternarylogic_epi32(_mm512_slli_epi16(e, 7), rest, _mm512_set1_epi16(0x7f), 0xf8);
      v = _mm512_ternarylogic_epi32(v, _mm512_slli_epi16(rest, 8),
                                    _mm512_set1_epi16(static_cast<int16_t>(0x8000)), 0xf8);
    }
    StoreWords(column + i, n - i, v);
  }
}

}  // namespace

ColumnFns Avx512Bf16() { return {Split<false>, Join<false>}; }
ColumnFns Avx512Fp16() { return {Split<true>, Join<true>}; }

}  // namespace tiercel::lle

#endif  // __x86_64__
