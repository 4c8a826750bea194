#if defined(__x86_64__)

#include <immintrin.h>

#include <array>

#include "kernels/artifact.h"
#include "kernels/klt_core.h"
#include "kernels/klt_loops.h"

// With products of pairs that are added at once.
#define TIERCEL_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")))
#define TIERCEL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))

// Sums stay in registers only where these loops are none.
#if defined(__clang__)
#define TIERCEL_UNROLL _Pragma("unroll")
#else
#define TIERCEL_UNROLL _Pragma("GCC unroll 8")
#endif

namespace tiercel::klt {
namespace {

// kRows coefficients of 32 tokens at once.
template <uint32_t kRows>
TIERCEL_AVX512 inline void AnalyseRows(uint32_t n, const float* analysis, const float* panel,
                                       const float* inverse_steps, int16_t* q, size_t stride) {
  __m512 sum[kRows][2];
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) sum[k][0] = sum[k][1] = _mm512_setzero_ps();
  for (uint32_t j = 0; j < n; ++j) {
    const __m512 a = _mm512_loadu_ps(panel + size_t{j} * 32);
    const __m512 b = _mm512_loadu_ps(panel + size_t{j} * 32 + 16);
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      const __m512 w = _mm512_set1_ps(analysis[size_t{k} * n + j]);
      sum[k][0] = _mm512_fmadd_ps(w, a, sum[k][0]);
      sum[k][1] = _mm512_fmadd_ps(w, b, sum[k][1]);
    }
  }
  const __m512 most = _mm512_set1_ps(static_cast<float>(kMaxCoefficient));
  const __m512 least = _mm512_set1_ps(static_cast<float>(-kMaxCoefficient));
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    TIERCEL_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      const __m512 inverse = _mm512_loadu_ps(inverse_steps + half * 16);
      const __m512 scaled = _mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(sum[k][half], inverse), most), least);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + k * stride + half * 16),
                          _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(scaled)));
    }
  }
}

TIERCEL_AVX512 void Analyse(uint32_t n, const float* analysis, const float* mean, const float* x, size_t stride,
                            const float* inverse_steps, float* panel, int16_t* q) {
  for (size_t t = 0; t < stride; t += 32) {
    // Side by side: columns a power of two apart would push each other out of the first cache.
    for (uint32_t j = 0; j < n; ++j) {
      const __m512 m = _mm512_set1_ps(mean[j]);
      _mm512_storeu_ps(panel + size_t{j} * 32, _mm512_sub_ps(_mm512_loadu_ps(x + j * stride + t), m));
      _mm512_storeu_ps(panel + size_t{j} * 32 + 16, _mm512_sub_ps(_mm512_loadu_ps(x + j * stride + t + 16), m));
    }
    uint32_t c = 0;
    for (; c + 8 <= n; c += 8) AnalyseRows<8>(n, analysis + size_t{c} * n, panel, inverse_steps + t, q + c * stride + t, stride);
    for (; c < n; ++c) AnalyseRows<1>(n, analysis + size_t{c} * n, panel, inverse_steps + t, q + c * stride + t, stride);
  }
}

// What a panel of 32 tokens is made of. Coefficients of magnitude up to 127 go four a word, as bytes, with two
// products a lane and cycle more than the others, which go two a word.
struct Panel {
  std::array<uint16_t, kMaxTransform / 4> quads;  // Which four, and behind them in room:
  std::array<uint16_t, kMaxTransform / 2> pairs;  // which two.
  uint32_t n_quads = 0;
  uint32_t n_pairs = 0;
};

// kRows dimensions of 32 tokens at once. `less` is 128 times the coefficients' sum.
template <uint32_t kRows>
TIERCEL_VNNI inline void SynthesiseRows(uint32_t n, uint32_t row_pairs, const uint8_t* raised, const int32_t* pairs,
                                        const Panel& panel, const int32_t* room, const __m512i (&less)[2], const float* factor,
                                        const float* steps, const float* mean, float* x, size_t stride) {
  __m512i sum[kRows][2];
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    sum[k][0] = _mm512_sub_epi32(_mm512_setzero_si512(), less[0]);
    sum[k][1] = _mm512_sub_epi32(_mm512_setzero_si512(), less[1]);
  }
  for (uint32_t i = 0; i < panel.n_quads; ++i) {
    const __m512i a = _mm512_loadu_si512(room + size_t{i} * 32);
    const __m512i b = _mm512_loadu_si512(room + size_t{i} * 32 + 16);
    const uint8_t* const at = raised + size_t{panel.quads[i]} * 4;
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      int32_t four;
      __builtin_memcpy(&four, at + size_t{k} * n, 4);
      const __m512i w = _mm512_set1_epi32(four);
      sum[k][0] = _mm512_dpbusd_epi32(sum[k][0], w, a);
      sum[k][1] = _mm512_dpbusd_epi32(sum[k][1], w, b);
    }
  }
  room += size_t{panel.n_quads} * 32;
  for (uint32_t i = 0; i < panel.n_pairs; ++i) {
    const __m512i a = _mm512_loadu_si512(room + size_t{i} * 32);
    const __m512i b = _mm512_loadu_si512(room + size_t{i} * 32 + 16);
    const int32_t* at = pairs + panel.pairs[i];
    TIERCEL_UNROLL
    for (uint32_t k = 0; k < kRows; ++k) {
      const __m512i w = _mm512_set1_epi32(at[size_t{k} * row_pairs]);
      sum[k][0] = _mm512_dpwssd_epi32(sum[k][0], a, w);
      sum[k][1] = _mm512_dpwssd_epi32(sum[k][1], b, w);
    }
  }
  TIERCEL_UNROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    TIERCEL_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      const __m512 common = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[k][half]), _mm512_set1_ps(factor[k]));
      const __m512 scaled = _mm512_mul_ps(common, _mm512_loadu_ps(steps + half * 16));
      _mm512_storeu_ps(x + k * stride + half * 16, _mm512_add_ps(scaled, _mm512_set1_ps(mean[k])));
    }
  }
}

// 32 tokens of coefficient c; zeros of one that is not there.
TIERCEL_VNNI inline __m512i Coefficient(const int16_t* q, size_t stride, uint32_t c, uint32_t n) {
  return c < n ? _mm512_loadu_si512(q + c * stride) : _mm512_setzero_si512();
}

// Fills room and panel from the pairs that are not all zero, and adds up `less`.
TIERCEL_VNNI void Arrange(uint32_t n, const uint16_t* active, uint32_t count, const int16_t* q, size_t stride, int32_t* room,
                          Panel& panel, __m512i (&less)[2]) {
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i ones = _mm512_set1_epi8(1);
  less[0] = less[1] = _mm512_setzero_si512();
  panel.n_quads = panel.n_pairs = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t quad = active[i] / 2u;
    if (i > 0 && active[i - 1] / 2u == quad) continue;
    __m512i v[4];
    __m512i most = _mm512_setzero_si512();
    for (uint32_t k = 0; k < 4; ++k) {
      v[k] = Coefficient(q, stride, quad * 4 + k, n);
      most = _mm512_max_epu16(most, _mm512_abs_epi16(v[k]));
    }
    if (_mm512_cmpgt_epu16_mask(most, _mm512_set1_epi16(127)) != 0) {
      for (uint32_t k = i; k < count && active[k] / 2u == quad; ++k) panel.pairs[panel.n_pairs++] = active[k];
      continue;
    }
    if (_mm512_test_epi16_mask(most, most) == 0) continue;  // Here, if not elsewhere.
    const __m512i first = _mm512_or_si512(_mm512_and_si512(v[0], low), _mm512_slli_epi16(v[1], 8));
    const __m512i second = _mm512_or_si512(_mm512_and_si512(v[2], low), _mm512_slli_epi16(v[3], 8));
    for (int half = 0; half < 2; ++half) {
      const auto part = [&](__m512i words) TIERCEL_VNNI {
        return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(words) : _mm512_extracti64x4_epi64(words, 1));
      };
      const __m512i four = _mm512_or_si512(part(first), _mm512_slli_epi32(part(second), 16));
      _mm512_storeu_si512(room + size_t{panel.n_quads} * 32 + half * 16, four);
      less[half] = _mm512_dpbusd_epi32(less[half], ones, four);
    }
    panel.quads[panel.n_quads++] = static_cast<uint16_t>(quad);
  }
  for (__m512i& sum : less) sum = _mm512_slli_epi32(sum, 7);
  for (uint32_t i = 0; i < panel.n_pairs; ++i) {
    const __m512i a = Coefficient(q, stride, panel.pairs[i] * 2u, n);
    const __m512i b = Coefficient(q, stride, panel.pairs[i] * 2u + 1, n);
    for (int half = 0; half < 2; ++half) {
      const auto part = [&](__m512i words) TIERCEL_VNNI {
        return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(words) : _mm512_extracti64x4_epi64(words, 1));
      };
      _mm512_storeu_si512(room + size_t{panel.n_quads + i} * 32 + half * 16,
                          _mm512_or_si512(part(a), _mm512_slli_epi32(part(b), 16)));
    }
  }
}

TIERCEL_VNNI void Synthesise(uint32_t n, uint32_t row_pairs, const uint8_t* raised, const int32_t* pairs, const uint16_t* active,
                             uint32_t count, const int16_t* q, size_t stride, const float* factor, const float* steps,
                             const float* mean, int32_t* room, float* x) {
  Panel panel;
  __m512i less[2];
  for (size_t t = 0; t < stride; t += 32) {
    Arrange(n, active, count, q + t, stride, room, panel, less);
    uint32_t j = 0;
    for (; j + 8 <= n; j += 8) {
      SynthesiseRows<8>(n, row_pairs, raised + size_t{j} * n, pairs + size_t{j} * row_pairs, panel, room, less, factor + j,
                        steps + t, mean + j, x + j * stride + t, stride);
    }
    for (; j < n; ++j) {
      SynthesiseRows<1>(n, row_pairs, raised + size_t{j} * n, pairs + size_t{j} * row_pairs, panel, room, less, factor + j,
                        steps + t, mean + j, x + j * stride + t, stride);
    }
  }
}

TIERCEL_AVX512 void Rotate(float* a, float* b, const float* cosine, const float* sine, size_t stride, bool back) {
  const __m512 sign = _mm512_set1_ps(back ? -0.0f : 0.0f);
  for (size_t t = 0; t < stride; t += 16) {
    const __m512 x = _mm512_loadu_ps(a + t);
    const __m512 y = _mm512_loadu_ps(b + t);
    const __m512 c = _mm512_loadu_ps(cosine + t);
    const __m512 s = _mm512_xor_ps(_mm512_loadu_ps(sine + t), sign);
    _mm512_storeu_ps(a + t, _mm512_sub_ps(_mm512_mul_ps(x, c), _mm512_mul_ps(y, s)));
    _mm512_storeu_ps(b + t, _mm512_add_ps(_mm512_mul_ps(y, c), _mm512_mul_ps(x, s)));
  }
}

TIERCEL_AVX512 bool LoadBf16(const uint16_t* values, size_t count, size_t stride, float* x) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  __mmask16 wild = 0;
  for (size_t t = 0; t < stride; t += 16) {
    const size_t left = count > t ? count - t : 0;
    const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
    const __m256i bits = _mm256_maskz_loadu_epi16(inside, values + t);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
    wild = static_cast<__mmask16>(wild | _mm512_cmpeq_epi32_mask(_mm512_and_si512(wide, exponent), exponent));
    _mm512_storeu_ps(x + t, _mm512_castsi512_ps(wide));
  }
  return wild == 0;
}

TIERCEL_AVX512 void StoreBf16(const float* x, size_t stride, uint16_t* values) {
  const __m512i half = _mm512_set1_epi32(0x7fff);
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i infinite = _mm512_set1_epi32(0x7f80);
  for (size_t t = 0; t < stride; t += 16) {
    const __m512i bits = _mm512_loadu_si512(x + t);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, half), odd), 16);
    const __mmask16 over = _mm512_cmpeq_epi32_mask(_mm512_and_si512(rounded, half), infinite);
    rounded = _mm512_mask_sub_epi32(rounded, over, rounded, one);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + t), _mm512_cvtepi32_epi16(rounded));
  }
}

TIERCEL_AVX512 void Weigh(uint32_t n, const float* x, size_t stride, const float* mean, const float* weight, float* z) {
  for (size_t t = 0; t < stride; t += 32) {
    __m512 a = _mm512_loadu_ps(z + t);
    __m512 b = _mm512_loadu_ps(z + t + 16);
    for (uint32_t j = 0; j < n; ++j) {
      const __m512 m = _mm512_set1_ps(mean[j]);
      const __m512 w = _mm512_set1_ps(weight[j]);
      a = _mm512_fmadd_ps(w, _mm512_sub_ps(_mm512_loadu_ps(x + j * stride + t), m), a);
      b = _mm512_fmadd_ps(w, _mm512_sub_ps(_mm512_loadu_ps(x + j * stride + t + 16), m), b);
    }
    _mm512_storeu_ps(z + t, a);
    _mm512_storeu_ps(z + t + 16, b);
  }
}

}  // namespace

Fns Avx512Fns() {
  static const bool has_vnni = __builtin_cpu_supports("avx512vnni") != 0;
  return {Analyse, has_vnni ? Synthesise : Avx2Fns().synthesise, Rotate, LoadBf16, StoreBf16, Weigh};
}

}  // namespace tiercel::klt

#endif  // __x86_64__
