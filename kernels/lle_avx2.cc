#if defined(__x86_64__)

#include <immintrin.h>

#include <type_traits>

#include "base/bytes.h"
#include "kernels/lle_rows.h"

// GCC alone is told to vectorize at any level; clang does so by itself.
#if defined(__clang__)
#define TIERCEL_OPTIMIZE(...)
#else
#define TIERCEL_OPTIMIZE(...) , optimize(__VA_ARGS__)
#endif
#define TIERCEL_AVX2 __attribute__((target("avx2,bmi,popcnt")))

namespace tiercel::lle {
namespace {

// Words up to 255 as bytes.
TIERCEL_AVX2 inline __m256i Pack(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
}
TIERCEL_AVX2 inline void Store(void* to, __m256i bytes) { _mm256_storeu_si256(static_cast<__m256i*>(to), bytes); }

template <bool kFp16>
TIERCEL_AVX2 inline __m256i ExponentsOf(__m256i v) {
  return kFp16 ? _mm256_and_si256(_mm256_srli_epi16(v, 10), _mm256_set1_epi16(0x1f))
               : _mm256_and_si256(_mm256_srli_epi16(v, 7), _mm256_set1_epi16(0xff));
}
// The lowest byte of the rest.
template <bool kFp16>
TIERCEL_AVX2 inline __m256i RestsOf(__m256i v) {
  if constexpr (kFp16) return _mm256_and_si256(v, _mm256_set1_epi16(0xff));
  return _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi16(0x7f)),
                         _mm256_and_si256(_mm256_srli_epi16(v, 8), _mm256_set1_epi16(0x80)));
}
TIERCEL_AVX2 inline uint32_t LeastOf(__m256i bytes) {
  const __m128i half = _mm_min_epu8(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  const __m128i words = _mm_min_epu16(_mm_and_si128(half, _mm_set1_epi16(0xff)), _mm_srli_epi16(half, 8));
  return static_cast<uint32_t>(_mm_extract_epi16(_mm_minpos_epu16(words), 0));
}

// What does not fill a register, and the bits of fp16, go the scalar way.
template <bool kFp16>
TIERCEL_AVX2 Exponents Split(const uint16_t* column, size_t n, uint8_t* exponents, std::byte* planes) {
  using F = std::conditional_t<kFp16, Fp16, Bf16>;
  const size_t plane = (n + 7) / 8;
  std::byte* const bits = planes + n;
  __m256i sum = _mm256_setzero_si256();
  __m256i least = _mm256_set1_epi8(-1);
  __m256i most = _mm256_setzero_si256();
  Exponents out{0, 0, F::kMaxExponent, 0};
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column + i + 16));
    const __m256i e = Pack(ExponentsOf<kFp16>(a), ExponentsOf<kFp16>(b));
    Store(exponents + i, e);
    Store(planes + i, Pack(RestsOf<kFp16>(a), RestsOf<kFp16>(b)));
    if constexpr (kFp16) {
      const __m256i high = Pack(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));  // Its bits 0, 1 and 7.
      StoreLe(bits + i / 8, static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(high, 7))));
      StoreLe(bits + plane + i / 8, static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(high, 6))));
      StoreLe(bits + 2 * plane + i / 8, static_cast<uint32_t>(_mm256_movemask_epi8(high)));
    }
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(e, _mm256_setzero_si256()));
    const auto zeros = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(e, _mm256_setzero_si256())));
    out.nonzero += 32 - static_cast<uint32_t>(__builtin_popcount(zeros));
    least = _mm256_min_epu8(least, e);
    most = _mm256_max_epu8(most, e);
  }
  if (i > 0) {
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    out.sum = static_cast<uint32_t>(_mm_extract_epi64(two, 0) + _mm_extract_epi64(two, 1));
    out.least = LeastOf(least);
    out.most = 255 - LeastOf(_mm256_xor_si256(most, _mm256_set1_epi8(-1)));
  }
  if (i == n) return out;
  // The rest, whose planes are of another length: by way of its own.
  const size_t left = n - i;
  std::byte own[PlaneBytes<F>(32)];
  const Exponents last = SplitColumn<F>(column + i, left, exponents + i, own);
  __builtin_memcpy(planes + i, own, left);
  for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
    const size_t bytes = (left + 7) / 8;
    __builtin_memcpy(bits + b * plane + i / 8, own + left + b * bytes, bytes);
  }
  return {out.sum + last.sum, out.nonzero + last.nonzero, out.least < last.least ? out.least : last.least,
          out.most > last.most ? out.most : last.most};
}

// The scalar loop, which the compiler turns into AVX2 here.
template <class F>
__attribute__((target("avx2") TIERCEL_OPTIMIZE("O3"), flatten)) void Join(const uint8_t* exponents, const std::byte* planes,
                                                                         size_t n, uint16_t* column) {
  JoinColumn<F>(exponents, planes, n, column);
}

}  // namespace

ColumnFns Avx2Bf16() { return {Split<false>, Join<Bf16>}; }
ColumnFns Avx2Fp16() { return {Split<true>, Join<Fp16>}; }

}  // namespace tiercel::lle

#endif  // __x86_64__
