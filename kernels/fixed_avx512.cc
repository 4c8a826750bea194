#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "base/prefetch.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"
#include "kernels/fixed_scalar.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")
#endif

#include "kernels/fixed_wide.h"

namespace tiercel::fixed {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using H = __m512i;  // 16-bit values.
  static constexpr size_t kLanes = 16;

  static F AsFloat(I v) { return _mm512_castsi512_ps(v); }
  static I AsInt(F v) { return _mm512_castps_si512(v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static I SetInt(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F MulSub(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F And(F a, uint32_t mask) { return AsFloat(_mm512_and_si512(AsInt(a), SetInt(mask))); }
  static I ToInt(F a) { return _mm512_cvtps_epi32(a); }
  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I AndInt(I a, I b) { return _mm512_and_si512(a, b); }
  static I Or(I a, I b) { return _mm512_or_si512(a, b); }
  static I Min32(I a, I b) { return _mm512_min_epi32(a, b); }
  static I Max32(I a, I b) { return _mm512_max_epi32(a, b); }
  template <unsigned kBits>
  static I Right(I a) { return _mm512_srli_epi32(a, kBits); }
  template <unsigned kBits>
  static I Left(I a) { return _mm512_slli_epi32(a, kBits); }
  static float LeastOf(F a) { return _mm512_reduce_min_ps(a); }
  static float MostOf(F a) { return _mm512_reduce_max_ps(a); }

  static bool Under(F a, float limit) {
    return _mm512_cmp_ps_mask(And(a, 0x7fffffffu), Set(limit), _CMP_LT_OQ) == 0xffff;
  }
  // Finite, small enough, and far enough apart to be bounds as they are.
  static bool Sealable(F low, F high) {
    return Under(low, kLimit) && Under(high, kLimit) &&
           _mm512_cmp_ps_mask(Sub(high, low), Set(kTiny), _CMP_GE_OQ) == 0xffff;
  }
  static F ZeroWhereZero(F a, F b) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(b, _mm512_setzero_ps(), _CMP_NEQ_UQ), a);
  }
  static F FixDenormals(I bits, I magnitude) {
    const __mmask16 denormal = _mm512_cmplt_epi32_mask(magnitude, SetInt(8));
    const F shifted = AsFloat(_mm512_mask_add_epi32(bits, denormal, bits, SetInt(1u << 23)));
    return _mm512_mask_sub_ps(shifted, denormal, shifted, Set(0x1p-6f));
  }

  static H LoadOrdered(const std::byte* from) {
    const H v = _mm512_loadu_si512(from);
    return _mm512_xor_si512(
        v, _mm512_and_si512(_mm512_srai_epi16(v, 15), _mm512_set1_epi16(0x7fff)));
  }
  static H LoadMagnitude(const std::byte* from) {
    return _mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi16(0x7fff));
  }
  static H LoadRaw(const std::byte* from) { return _mm512_loadu_si512(from); }
  static void StoreRaw(std::byte* to, H v) { _mm512_storeu_si512(to, v); }
  static H Min16(H a, H b) { return _mm512_min_epi16(a, b); }
  static H Max16(H a, H b) { return _mm512_max_epi16(a, b); }
  static int16_t LeastOf(H a) {
    const __m256i b = _mm256_min_epi16(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m128i c = _mm_min_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    // The least unsigned one after a shift of the origin.
    c = _mm_minpos_epu16(_mm_xor_si128(c, _mm_set1_epi16(static_cast<short>(0x8000))));
    return static_cast<int16_t>(_mm_extract_epi16(c, 0) ^ 0x8000);
  }
  static int16_t MostOf(H a) {
    return static_cast<int16_t>(~LeastOf(_mm512_xor_si512(a, _mm512_set1_epi16(-1))));
  }
  static void StoreBound(std::byte* to, H v) {
    const H bits = _mm512_xor_si512(
        v, _mm512_and_si512(_mm512_srai_epi16(v, 15), _mm512_set1_epi16(0x7fff)));
    const __mmask32 negative_zero = _mm512_cmpeq_epi16_mask(v, _mm512_set1_epi16(-1));
    _mm512_storeu_si512(to, _mm512_mask_mov_epi16(bits, negative_zero, _mm512_setzero_si512()));
  }

  // bf16 in the upper half of each lane, whose lower half is anything.
  static I RoundedToBf16(F value) {
    const I bits = AsInt(value);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), SetInt(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, SetInt(0x7fff)), odd);
  }
  static I PackedToFp16(F value) {
    const F bounded = Max(Min(value, Set(65504.0f)), Set(-65504.0f));
    return _mm512_cvtepu16_epi32(
        _mm512_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  template <bool kFp16>
  static Pair<Avx512> LoadPair(const std::byte* from);
  template <bool kFp16>
  static void StorePair(std::byte* to, Pair<Avx512> values);

  static void LoadCodes(const std::byte* from, I& even, I& odd) {
    const __m512i v =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    even = _mm512_and_si512(v, SetInt(0xffff));
    odd = _mm512_srli_epi32(v, 16);
  }
  static void StoreCodes(std::byte* to, I even, I odd) {
    const __m512i v = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtusepi16_epi8(v));
  }
  static void LoadNibbles(const std::byte* from, I& even, I& odd) {
    const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    even = _mm512_and_si512(v, SetInt(15));
    odd = _mm512_srli_epi32(v, 4);
  }
  static I Nibbles(I v) { return Min32(Max32(v, _mm512_setzero_si512()), SetInt(15)); }
  static void StoreNibbles(std::byte* to, I even, I odd) {
    const __m512i v = _mm512_or_si512(Nibbles(even), _mm512_slli_epi32(Nibbles(odd), 4));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v));
  }

  // Lanes `stride` apart become their sum and difference; both are exact.
  template <int kStride>
  static F Level(F v) {
    F other;
    if constexpr (kStride == 1) {
      other = _mm512_permute_ps(v, 0xb1);
    } else if constexpr (kStride == 2) {
      other = _mm512_permute_ps(v, 0x4e);
    } else if constexpr (kStride == 4) {
      other = _mm512_shuffle_f32x4(v, v, 0xb1);
    } else {
      other = _mm512_shuffle_f32x4(v, v, 0x4e);
    }
    constexpr __mmask16 kUpper = kStride == 1   ? 0xaaaa
                                 : kStride == 2 ? 0xcccc
                                 : kStride == 4 ? 0xf0f0
                                                : 0xff00;
    return _mm512_fmadd_ps(v, _mm512_mask_mov_ps(Set(1), kUpper, Set(-1)), other);
  }
  // To the first value of each block; a pair's even lanes are half its values.
  template <uint32_t kBlock>
  static F AddAtBlocks(F v, float base) {
    return _mm512_mask_add_ps(v, kBlock == 16 ? 0x0101 : 1, v, Set(base));
  }
};

template <>
Pair<Avx512> Avx512::LoadPair<false>(const std::byte* from) {
  const __m512i v = _mm512_loadu_si512(from);
  return {AsFloat(_mm512_slli_epi32(v, 16)), AsFloat(_mm512_and_si512(v, SetInt(0xffff0000u)))};
}

template <>
void Avx512::StorePair<false>(std::byte* to, Pair<Avx512> values) {
  _mm512_storeu_si512(to, _mm512_mask_mov_epi16(_mm512_srli_epi32(RoundedToBf16(values.e), 16), 0xaaaaaaaau,
                                                RoundedToBf16(values.o)));
}

template <>
Pair<Avx512> Avx512::LoadPair<true>(const std::byte* from) {
  const __m512i v = _mm512_loadu_si512(from);
  return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)),
          _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)))};
}

template <>
void Avx512::StorePair<true>(std::byte* to, Pair<Avx512> values) {
  _mm512_storeu_si512(
      to, _mm512_or_si512(PackedToFp16(values.e), _mm512_slli_epi32(PackedToFp16(values.o), 16)));
}

}  // namespace

const Loops& Avx512Loops(bool fp16) {
  static constexpr Loops kBf16 = Wide<Avx512, false>::kLoops;
  static constexpr Loops kFp16 = Wide<Avx512, true>::kLoops;
  return fp16 ? kFp16 : kBf16;
}

}  // namespace tiercel::fixed

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
