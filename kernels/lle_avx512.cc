#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/lle_rows.h"

#define TIERCEL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,popcnt")))

namespace tiercel::lle {
namespace {

TIERCEL_AVX512 inline __mmask32 First(size_t n) {
  return n >= 32 ? ~0u : _bzhi_u32(~0u, static_cast<uint32_t>(n));
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

// The first n of 32. Masked stores are slow on some CPUs.
TIERCEL_AVX512 inline void StoreWords(void* to, size_t n, __m512i words) {
  if (n >= 32) {
    _mm512_storeu_si512(to, words);
  } else {
    _mm512_mask_storeu_epi16(to, First(n), words);
  }
}
TIERCEL_AVX512 inline void StoreBytes(void* to, size_t n, __m256i bytes) {
  if (n >= 32) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), bytes);
  } else {
    _mm256_mask_storeu_epi8(to, First(n), bytes);
  }
}

template <bool kFp16>
TIERCEL_AVX512 Exponents Split(const uint16_t* column, size_t n, int16_t* exponents,
                               std::byte* planes) {
  const size_t plane = (n + 7) / 8;
  __m512i sum = _mm512_setzero_si512();
  __m512i least = _mm512_set1_epi16(0x7fff);
  __m512i most = _mm512_setzero_si512();
  uint32_t nonzero = 0;
  for (size_t i = 0; i < n; i += 32) {
    const __mmask32 some = First(n - i);
    const __m512i v = _mm512_maskz_loadu_epi16(some, column + i);
    __m512i e;
    __m512i rest;
    if constexpr (kFp16) {
      e = _mm512_and_si512(_mm512_srli_epi16(v, 10), _mm512_set1_epi16(0x1f));
      rest = _mm512_and_si512(v, _mm512_set1_epi16(0xff));
      std::byte* const bits = planes + n + i / 8;
      StoreBits(bits, some & _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x100)), n - i);
      StoreBits(bits + plane, some & _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x200)), n - i);
      StoreBits(bits + 2 * plane, some & _mm512_movepi16_mask(v), n - i);
    } else {
      e = _mm512_and_si512(_mm512_srli_epi16(v, 7), _mm512_set1_epi16(0xff));
      // Sign from one byte higher up, mantissa as it is.
      rest = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x7f), v, _mm512_srli_epi16(v, 8), 0xca);
      rest = _mm512_and_si512(rest, _mm512_set1_epi16(0xff));
    }
    StoreWords(exponents + i, n - i, e);
    StoreBytes(planes + i, n - i, _mm512_cvtepi16_epi8(rest));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(e, _mm512_set1_epi16(1)));
    nonzero += static_cast<uint32_t>(__builtin_popcount(_mm512_test_epi16_mask(e, e)));
    least = _mm512_mask_min_epi16(least, some, least, e);
    most = _mm512_max_epi16(most, e);
  }
  const auto halves_min = _mm512_min_epi16(least, _mm512_srli_epi32(least, 16));
  const auto halves_max = _mm512_max_epi16(most, _mm512_srli_epi32(most, 16));
  const __m512i low = _mm512_set1_epi32(0xffff);
  return {static_cast<uint32_t>(_mm512_reduce_add_epi32(sum)), nonzero,
          _mm512_reduce_min_epu32(_mm512_and_si512(halves_min, low)),
          _mm512_reduce_max_epu32(_mm512_and_si512(halves_max, low))};
}

TIERCEL_AVX512 void Subtract(int16_t* values, size_t n, int32_t base) {
  const __m512i bases = _mm512_set1_epi16(static_cast<int16_t>(base));
  for (size_t i = 0; i < n; i += 32) {
    const __mmask32 some = First(n - i);
    const __m512i v = _mm512_maskz_loadu_epi16(some, values + i);
    StoreWords(values + i, n - i, _mm512_sub_epi16(v, bases));
  }
}

template <bool kFp16>
TIERCEL_AVX512 void Join(const int16_t* values, int32_t base, const std::byte* planes, size_t n,
                         uint16_t* column) {
  const size_t plane = (n + 7) / 8;
  const __m512i bases = _mm512_set1_epi16(static_cast<int16_t>(base));
  for (size_t i = 0; i < n; i += 32) {
    const __mmask32 some = First(n - i);
    const __m512i e = _mm512_add_epi16(_mm512_maskz_loadu_epi16(some, values + i), bases);
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
      v = _mm512_and_si512(_mm512_slli_epi16(e, 7), _mm512_set1_epi16(0x7f80));
      // | mantissa | sign.
      v = _mm512_ternarylogic_epi32(v, rest, _mm512_set1_epi16(0x7f), 0xf8);
      v = _mm512_ternarylogic_epi32(v, _mm512_slli_epi16(rest, 8),
                                    _mm512_set1_epi16(static_cast<int16_t>(0x8000)), 0xf8);
    }
    StoreWords(column + i, n - i, v);
  }
}

}  // namespace

ColumnFns Avx512Bf16() { return {Split<false>, Subtract, Join<false>}; }
ColumnFns Avx512Fp16() { return {Split<true>, Subtract, Join<true>}; }

}  // namespace tiercel::lle

#endif  // __x86_64__
