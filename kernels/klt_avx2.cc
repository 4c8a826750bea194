#if defined(__x86_64__)

#include <immintrin.h>

#include <array>

#include "kernels/artifact.h"
#include "kernels/klt_core.h"
#include "kernels/klt_loops.h"

#define TIERCEL_AVX2 __attribute__((target("avx2,fma")))

// Sums stay in registers only where these loops are none.
#if defined(__clang__)
#define TIERCEL_UNROLL _Pragma("unroll")
#else
#define TIERCEL_UNROLL _Pragma("GCC unroll 8")
#endif

namespace tiercel::klt {
namespace {

// kRows coefficients of 16 tokens at once.
template <uint32_t kRows>
TIERCEL_AVX2 inline void AnalyseRows(uint32_t n, const float* analysis, const float* panel,
                                     const float* inverse_steps, int16_t* q, size_t stride) {
  __m256 sum[kRows][2];
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) sum[k][0] = sum[k][1] = _mm256_setzero_ps();
  for (uint32_t j = 0; j < n; ++j) {
    const __m256 a = _mm256_loadu_ps(panel + size_t{j} * 16);
    const __m256 b = _mm256_loadu_ps(panel + size_t{j} * 16 + 8);
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      const __m256 w = _mm256_set1_ps(analysis[size_t{k} * n + j]);
      sum[k][0] = _mm256_fmadd_ps(w, a, sum[k][0]);
      sum[k][1] = _mm256_fmadd_ps(w, b, sum[k][1]);
    }
  }
  const __m256 most = _mm256_set1_ps(static_cast<float>(kMaxCoefficient));
  const __m256 least = _mm256_set1_ps(static_cast<float>(-kMaxCoefficient));
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    __m256i whole[2];
    TIERCEL_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      whole[half] = _mm256_cvtps_epi32(
          _mm256_max_ps(_mm256_min_ps(_mm256_mul_ps(sum[k][half], _mm256_loadu_ps(inverse_steps + half * 8)), most), least));
    }
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + k * stride), packed);
  }
}

TIERCEL_AVX2 void Analyse(uint32_t n, const float* analysis, const float* mean, const float* x, size_t stride,
                          const float* inverse_steps, float* panel, int16_t* q) {
  for (size_t t = 0; t < stride; t += 16) {
    // Side by side: columns a power of two apart would push each other out of the first cache.
    for (uint32_t j = 0; j < n; ++j) {
      const __m256 m = _mm256_set1_ps(mean[j]);
      _mm256_storeu_ps(panel + size_t{j} * 16, _mm256_sub_ps(_mm256_loadu_ps(x + j * stride + t), m));
      _mm256_storeu_ps(panel + size_t{j} * 16 + 8, _mm256_sub_ps(_mm256_loadu_ps(x + j * stride + t + 8), m));
    }
    uint32_t c = 0;
    for (; c + 4 <= n; c += 4) AnalyseRows<4>(n, analysis + size_t{c} * n, panel, inverse_steps + t, q + c * stride + t, stride);
    for (; c < n; ++c) AnalyseRows<1>(n, analysis + size_t{c} * n, panel, inverse_steps + t, q + c * stride + t, stride);
  }
}

// What a panel of 16 tokens is made of. Four coefficients go as the bytes of a word where two of them have magnitudes of
// 127 at most together. Products with bytes up to 255 are added two by two in 16 bits, in groups whose sums fit there.
struct Panel {
  std::array<uint16_t, kMaxTransform / 4> quads;  // Which four, and behind them in room:
  std::array<uint16_t, kMaxTransform / 2> pairs;  // which two.
  std::array<uint16_t, kMaxTransform / 4> ends;   // Of groups of quads.
  uint32_t n_quads = 0;
  uint32_t n_pairs = 0;
  uint32_t n_ends = 0;
};
constexpr uint32_t kMostTogether = 127;  // Of two magnitudes.
static_assert(255 * (kMostTogether + 1) <= 32767);

// kRows dimensions of 16 tokens at once. `less` is 128 times the coefficients' sum.
template <uint32_t kRows>
TIERCEL_AVX2 inline void SynthesiseRows(uint32_t n, uint32_t row_pairs, const uint8_t* raised, const int32_t* pairs,
                                        const Panel& panel, const int32_t* room, const __m256i (&less)[2], const float* factor,
                                        const float* steps, const float* mean, float* x, size_t stride) {
  const auto at_room = [room](size_t eighth) TIERCEL_AVX2 {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(room + eighth * 8));
  };
  __m256i sum[kRows][2];
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    sum[k][0] = _mm256_sub_epi32(_mm256_setzero_si256(), less[0]);
    sum[k][1] = _mm256_sub_epi32(_mm256_setzero_si256(), less[1]);
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (uint32_t group = 0, i = 0; group < panel.n_ends; ++group) {
    __m256i some[kRows][2];
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) some[k][0] = some[k][1] = _mm256_setzero_si256();
    for (; i < panel.ends[group]; ++i) {
      const __m256i a = at_room(size_t{i} * 2);
      const __m256i b = at_room(size_t{i} * 2 + 1);
      const uint8_t* const at = raised + size_t{panel.quads[i]} * 4;
      TIERCEL_UNROLL
      for (uint32_t k = 0; k < kRows; ++k) {
        int32_t four;
        __builtin_memcpy(&four, at + size_t{k} * n, 4);
        const __m256i w = _mm256_set1_epi32(four);
        some[k][0] = _mm256_add_epi16(some[k][0], _mm256_maddubs_epi16(w, a));
        some[k][1] = _mm256_add_epi16(some[k][1], _mm256_maddubs_epi16(w, b));
      }
    }
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      sum[k][0] = _mm256_add_epi32(sum[k][0], _mm256_madd_epi16(some[k][0], ones));
      sum[k][1] = _mm256_add_epi32(sum[k][1], _mm256_madd_epi16(some[k][1], ones));
    }
  }
  for (uint32_t i = 0; i < panel.n_pairs; ++i) {
    const __m256i a = at_room(size_t{panel.n_quads + i} * 2);
    const __m256i b = at_room(size_t{panel.n_quads + i} * 2 + 1);
    const int32_t* at = pairs + panel.pairs[i];
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      const __m256i w = _mm256_set1_epi32(at[size_t{k} * row_pairs]);
      sum[k][0] = _mm256_add_epi32(sum[k][0], _mm256_madd_epi16(a, w));
      sum[k][1] = _mm256_add_epi32(sum[k][1], _mm256_madd_epi16(b, w));
    }
  }
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    TIERCEL_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      const __m256 common = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[k][half]), _mm256_set1_ps(factor[k]));
      const __m256 scaled = _mm256_mul_ps(common, _mm256_loadu_ps(steps + half * 8));
      _mm256_storeu_ps(x + k * stride + half * 8, _mm256_add_ps(scaled, _mm256_set1_ps(mean[k])));
    }
  }
}

// 16 tokens of coefficient c; zeros of one that is not there.
TIERCEL_AVX2 inline __m256i Coefficient(const int16_t* q, size_t stride, uint32_t c, uint32_t n) {
  return c < n ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + c * stride)) : _mm256_setzero_si256();
}

// Words of two halves, a low and a high one, of tokens 0 to 7 and 8 to 15.
TIERCEL_AVX2 inline void StoreWords(__m256i low, __m256i high, int32_t* to) {
  const __m256i a = _mm256_permute4x64_epi64(low, 0xd8);
  const __m256i b = _mm256_permute4x64_epi64(high, 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_unpacklo_epi16(a, b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), _mm256_unpackhi_epi16(a, b));
}

// Fills room and panel from the pairs that are not all zero, and adds up `less`.
TIERCEL_AVX2 void Arrange(uint32_t n, const uint16_t* active, uint32_t count, const int16_t* q, size_t stride, int32_t* room,
                          Panel& panel, __m256i (&less)[2]) {
  const __m256i low = _mm256_set1_epi16(0xff);
  less[0] = less[1] = _mm256_setzero_si256();
  panel.n_quads = panel.n_pairs = panel.n_ends = 0;
  uint32_t together = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t quad = active[i] / 2u;
    if (i > 0 && active[i - 1] / 2u == quad) continue;
    __m256i v[4];
    for (uint32_t k = 0; k < 4; ++k) v[k] = Coefficient(q, stride, quad * 4 + k, n);
    const __m256i most = _mm256_max_epu16(_mm256_adds_epu16(_mm256_abs_epi16(v[0]), _mm256_abs_epi16(v[1])),
                                          _mm256_adds_epu16(_mm256_abs_epi16(v[2]), _mm256_abs_epi16(v[3])));
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    const uint32_t largest = 0xffffu ^ static_cast<uint32_t>(_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1))), 0));
    if (largest > kMostTogether) {
      for (uint32_t k = i; k < count && active[k] / 2u == quad; ++k) panel.pairs[panel.n_pairs++] = active[k];
      continue;
    }
    if (largest == 0) continue;  // Here, if not elsewhere.
    if (panel.n_quads > 0 && together + largest > kMostTogether) {
      panel.ends[panel.n_ends++] = static_cast<uint16_t>(panel.n_quads);
      together = 0;
    }
    together += largest;
    int32_t* const to = room + size_t{panel.n_quads} * 16;
    StoreWords(_mm256_or_si256(_mm256_and_si256(v[0], low), _mm256_slli_epi16(v[1], 8)),
               _mm256_or_si256(_mm256_and_si256(v[2], low), _mm256_slli_epi16(v[3], 8)), to);
    const __m256i two = _mm256_add_epi16(_mm256_add_epi16(v[0], v[1]), _mm256_add_epi16(v[2], v[3]));
    less[0] = _mm256_add_epi32(less[0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(two)));
    less[1] = _mm256_add_epi32(less[1], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(two, 1)));
    panel.quads[panel.n_quads++] = static_cast<uint16_t>(quad);
  }
  if (panel.n_quads > 0) panel.ends[panel.n_ends++] = static_cast<uint16_t>(panel.n_quads);
  for (__m256i& sum : less) sum = _mm256_slli_epi32(sum, 7);
  for (uint32_t i = 0; i < panel.n_pairs; ++i) {
    StoreWords(Coefficient(q, stride, panel.pairs[i] * 2u, n), Coefficient(q, stride, panel.pairs[i] * 2u + 1, n),
               room + size_t{panel.n_quads + i} * 16);
  }
}

TIERCEL_AVX2 void Synthesise(uint32_t n, uint32_t row_pairs, const uint8_t* raised, const int32_t* pairs, const uint16_t* active,
                             uint32_t count, const int16_t* q, size_t stride, const float* factor,
                             const float* steps, const float* mean, int32_t* room, float* x) {
  Panel panel;
  __m256i less[2];
  for (size_t t = 0; t < stride; t += 16) {
    Arrange(n, active, count, q + t, stride, room, panel, less);
    uint32_t j = 0;
    for (; j + 4 <= n; j += 4) {
      SynthesiseRows<4>(n, row_pairs, raised + size_t{j} * n, pairs + size_t{j} * row_pairs, panel, room, less, factor + j,
                        steps + t, mean + j, x + j * stride + t, stride);
    }
    for (; j < n; ++j) {
      SynthesiseRows<1>(n, row_pairs, raised + size_t{j} * n, pairs + size_t{j} * row_pairs, panel, room, less, factor + j,
                        steps + t, mean + j, x + j * stride + t, stride);
    }
  }
}

TIERCEL_AVX2 void Rotate(float* a, float* b, const float* cosine, const float* sine, size_t stride, bool back) {
  const __m256 sign = _mm256_set1_ps(back ? -0.0f : 0.0f);
  for (size_t t = 0; t < stride; t += 8) {
    const __m256 x = _mm256_loadu_ps(a + t);
    const __m256 y = _mm256_loadu_ps(b + t);
    const __m256 c = _mm256_loadu_ps(cosine + t);
    const __m256 s = _mm256_xor_ps(_mm256_loadu_ps(sine + t), sign);
    _mm256_storeu_ps(a + t, _mm256_sub_ps(_mm256_mul_ps(x, c), _mm256_mul_ps(y, s)));
    _mm256_storeu_ps(b + t, _mm256_add_ps(_mm256_mul_ps(y, c), _mm256_mul_ps(x, s)));
  }
}

TIERCEL_AVX2 bool LoadBf16(const uint16_t* values, size_t count, size_t stride, float* x) {
  bool finite = true;
  size_t t = 0;
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  __m256i wild = _mm256_setzero_si256();
  for (; t + 8 <= count; t += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + t));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
    wild = _mm256_or_si256(wild, _mm256_cmpeq_epi32(_mm256_and_si256(wide, exponent), exponent));
    _mm256_storeu_ps(x + t, _mm256_castsi256_ps(wide));
  }
  for (; t < count; ++t) {
    finite = finite && (values[t] & 0x7f80u) != 0x7f80u;
    x[t] = FromBf16(values[t]);
  }
  for (; t < stride; ++t) x[t] = 0;
  return finite && _mm256_testz_si256(wild, wild) != 0;
}

TIERCEL_AVX2 void StoreBf16(const float* x, size_t stride, uint16_t* values) {
  const __m256i half = _mm256_set1_epi32(0x7fff);
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i infinite = _mm256_set1_epi32(0x7f80);
  for (size_t t = 0; t < stride; t += 16) {
    __m256i rounded[2];
    for (size_t k = 0; k < 2; ++k) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + t + k * 8));
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
      rounded[k] = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, half), odd), 16);
      const __m256i over = _mm256_cmpeq_epi32(_mm256_and_si256(rounded[k], half), infinite);
      rounded[k] = _mm256_add_epi32(rounded[k], over);  // Minus one.
    }
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded[0], rounded[1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + t), packed);
  }
}

TIERCEL_AVX2 void Weigh(uint32_t n, const float* x, size_t stride, const float* mean, const float* weight, float* z) {
  for (size_t t = 0; t < stride; t += 16) {
    __m256 a = _mm256_loadu_ps(z + t);
    __m256 b = _mm256_loadu_ps(z + t + 8);
    for (uint32_t j = 0; j < n; ++j) {
      const __m256 m = _mm256_set1_ps(mean[j]);
      const __m256 w = _mm256_set1_ps(weight[j]);
      a = _mm256_fmadd_ps(w, _mm256_sub_ps(_mm256_loadu_ps(x + j * stride + t), m), a);
      b = _mm256_fmadd_ps(w, _mm256_sub_ps(_mm256_loadu_ps(x + j * stride + t + 8), m), b);
    }
    _mm256_storeu_ps(z + t, a);
    _mm256_storeu_ps(z + t + 8, b);
  }
}

}  // namespace

Fns Avx2Fns() { return {Analyse, Synthesise, Rotate, LoadBf16, StoreBf16, Weigh}; }

}  // namespace tiercel::klt

#endif  // __x86_64__
