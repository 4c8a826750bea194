#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "base/prefetch.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"
#include "kernels/fixed_scalar.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "kernels/fixed_wide.h"

namespace tiercel::fixed {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using H = __m256i;  // 16-bit values.
  static constexpr size_t kLanes = 8;

  static F AsFloat(I v) { return _mm256_castsi256_ps(v); }
  static I AsInt(F v) { return _mm256_castps_si256(v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static I SetInt(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F MulSub(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F And(F a, uint32_t mask) { return AsFloat(_mm256_and_si256(AsInt(a), SetInt(mask))); }
  static I ToInt(F a) { return _mm256_cvtps_epi32(a); }
  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I AndInt(I a, I b) { return _mm256_and_si256(a, b); }
  static I Or(I a, I b) { return _mm256_or_si256(a, b); }
  static I Min32(I a, I b) { return _mm256_min_epi32(a, b); }
  static I Max32(I a, I b) { return _mm256_max_epi32(a, b); }
  template <int kBits>
  static I Right(I a) { return _mm256_srli_epi32(a, kBits); }
  template <int kBits>
  static I Left(I a) { return _mm256_slli_epi32(a, kBits); }
  static float LeastOf(F a) {
    __m128 v = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_min_ps(v, _mm_shuffle_ps(v, v, 1)));
  }
  static float MostOf(F a) { return -LeastOf(Sub(_mm256_setzero_ps(), a)); }

  static bool All(F mask) { return _mm256_movemask_ps(mask) == 0xff; }
  static bool Under(F a, float limit) {
    return All(_mm256_cmp_ps(And(a, 0x7fffffffu), Set(limit), _CMP_LT_OQ));
  }
  // Finite, small enough, and far enough apart to be bounds as they are.
  static bool Sealable(F low, F high) {
    return Under(low, kLimit) && Under(high, kLimit) &&
           All(_mm256_cmp_ps(Sub(high, low), Set(kTiny), _CMP_GE_OQ));
  }
  static F ZeroWhereZero(F a, F b) {
    return _mm256_and_ps(a, _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  }
  static F FixDenormals(I bits, I magnitude) {
    const I denormal = _mm256_cmpgt_epi32(SetInt(8), magnitude);
    const F shifted = AsFloat(_mm256_add_epi32(bits, _mm256_and_si256(denormal, SetInt(1u << 23))));
    return Sub(shifted, _mm256_and_ps(AsFloat(denormal), Set(0x1p-6f)));
  }

  static __m256i LoadRaw(const std::byte* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static H LoadOrdered(const std::byte* from) {
    const H v = LoadRaw(from);
    return _mm256_xor_si256(
        v, _mm256_and_si256(_mm256_srai_epi16(v, 15), _mm256_set1_epi16(0x7fff)));
  }
  static H LoadMagnitude(const std::byte* from) {
    return _mm256_and_si256(LoadRaw(from), _mm256_set1_epi16(0x7fff));
  }
  static void StoreRaw(std::byte* to, H v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
  static H Min16(H a, H b) { return _mm256_min_epi16(a, b); }
  static H Max16(H a, H b) { return _mm256_max_epi16(a, b); }
  static int16_t LeastOf(H a) {
    __m128i c = _mm_min_epi16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    // The least unsigned one after a shift of the origin.
    c = _mm_minpos_epu16(_mm_xor_si128(c, _mm_set1_epi16(static_cast<short>(0x8000))));
    return static_cast<int16_t>(_mm_extract_epi16(c, 0) ^ 0x8000);
  }
  static int16_t MostOf(H a) {
    return static_cast<int16_t>(~LeastOf(_mm256_xor_si256(a, _mm256_set1_epi16(-1))));
  }
  static void StoreBound(std::byte* to, H v) {
    const H bits = _mm256_xor_si256(
        v, _mm256_and_si256(_mm256_srai_epi16(v, 15), _mm256_set1_epi16(0x7fff)));
    const H negative_zero = _mm256_cmpeq_epi16(v, _mm256_set1_epi16(-1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_andnot_si256(negative_zero, bits));
  }

  // bf16 in the upper half of each lane, whose lower half is anything.
  static I RoundedToBf16(F value) {
    const I bits = AsInt(value);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), SetInt(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, SetInt(0x7fff)), odd);
  }
  static I PackedToFp16(F value) {
    const F bounded = Max(Min(value, Set(65504.0f)), Set(-65504.0f));
    return _mm256_cvtepu16_epi32(
        _mm256_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  template <bool kFp16>
  static Pair<Avx2> LoadPair(const std::byte* from);
  template <bool kFp16>
  static void StorePair(std::byte* to, Pair<Avx2> values);

  static void LoadCodes(const std::byte* from, I& even, I& odd) {
    const __m256i v =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    even = _mm256_and_si256(v, SetInt(0xffff));
    odd = _mm256_srli_epi32(v, 16);
  }
  static void StoreCodes(std::byte* to, I even, I odd) {
    const __m256i v = _mm256_or_si256(even, _mm256_slli_epi32(odd, 16));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  static void LoadNibbles(const std::byte* from, I& even, I& odd) {
    const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    even = _mm256_and_si256(v, SetInt(15));
    odd = _mm256_srli_epi32(v, 4);
  }
  static I Nibbles(I v) { return Min32(Max32(v, _mm256_setzero_si256()), SetInt(15)); }
  static void StoreNibbles(std::byte* to, I even, I odd) {
    const __m256i v = _mm256_or_si256(Nibbles(even), _mm256_slli_epi32(Nibbles(odd), 4));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
  }

  // Lanes `stride` apart become their sum and difference; both are exact.
  template <int kStride>
  static F Level(F v) {
    if constexpr (kStride == 1) {
      return _mm256_fmadd_ps(v, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(v, 0xb1));
    } else if constexpr (kStride == 2) {
      return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(v, 0x4e));
    } else {
      return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(v, v, 1));
    }
  }
  // To the first value of each block.
  template <uint32_t>
  static F AddAtBlocks(F v, float base) {
    return _mm256_blend_ps(v, Add(v, Set(base)), 1);
  }
};

template <>
Pair<Avx2> Avx2::LoadPair<false>(const std::byte* from) {
  const __m256i v = LoadRaw(from);
  return {AsFloat(_mm256_slli_epi32(v, 16)), AsFloat(_mm256_and_si256(v, SetInt(0xffff0000u)))};
}

template <>
void Avx2::StorePair<false>(std::byte* to, Pair<Avx2> values) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to),
      _mm256_blend_epi16(_mm256_srli_epi32(RoundedToBf16(values.e), 16), RoundedToBf16(values.o), 0xaa));
}

template <>
Pair<Avx2> Avx2::LoadPair<true>(const std::byte* from) {
  // Even values of each half, then its odd ones; then the halves' quadwords in order.
  const __m256i split = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(LoadRaw(from), split), 0xd8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}

template <>
void Avx2::StorePair<true>(std::byte* to, Pair<Avx2> values) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to),
      _mm256_or_si256(PackedToFp16(values.e), _mm256_slli_epi32(PackedToFp16(values.o), 16)));
}

}  // namespace

const Loops& Avx2Loops(bool fp16) {
  static constexpr Loops kBf16 = Wide<Avx2, false>::kLoops;
  static constexpr Loops kFp16 = Wide<Avx2, true>::kLoops;
  return fp16 ? kFp16 : kBf16;
}

}  // namespace tiercel::fixed

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
