#if defined(__x86_64__)

#include "kernels/ecc_core.h"

// The scalar loops, which the compiler turns into AVX2 here: lanes do not depend on each other, and
// what is summed are integers. (No contraction: see CMakeLists.txt.)
// GCC alone is told to vectorize at any level; clang does so by itself.
#if defined(__clang__)
#define TIERCEL_OPTIMIZE(...)
#else
#define TIERCEL_OPTIMIZE(...) , optimize(__VA_ARGS__)
#endif
#define TIERCEL_AVX2 \
  __attribute__((target("avx2") TIERCEL_OPTIMIZE("O3", "no-trapping-math"), flatten))

namespace tiercel::ecc {
namespace {

template <bool kFp16>
TIERCEL_AVX2 void WidenAll(const uint16_t* from, size_t n, float* to) {
  WidenColumn<kFp16>(from, n / 32 * 32, to);
}
template <bool kFp16>
TIERCEL_AVX2 void NarrowAll(const float* from, size_t n, uint16_t* to) {
  NarrowColumn<kFp16>(from, n / 32 * 32, to);
}
TIERCEL_AVX2 bool SumAll(const float* x, size_t n, float inverse, int64_t* sum) {
  return SumColumn(x, n / 32 * 32, inverse, sum);
}
TIERCEL_AVX2 Sums QuantizeAll(const float* x, size_t n, float inverse, float mean, int16_t* q) {
  return QuantizeColumn(x, n / 32 * 32, inverse, mean, q);
}
TIERCEL_AVX2 void RebuildAll(const int16_t* q, size_t n, float step, float mean, float* x) {
  RebuildColumn(q, n / 32 * 32, step, mean, x);
}
TIERCEL_AVX2 bool QuantizeLevelsAll(const float* x, size_t n, float inverse, float mean, const float* own_inverse, int16_t* q) {
  return QuantizeLevels(x, n / 32 * 32, inverse, mean, own_inverse, q);
}
TIERCEL_AVX2 void RebuildLevelsAll(const int16_t* q, size_t n, float step, float mean, const float* own, float* x) {
  RebuildLevels(q, n / 32 * 32, step, mean, own, x);
}
TIERCEL_AVX2 void RotateAll(float* a, float* b, size_t n, const float* cos, const float* sin) {
  RotateColumns(a, b, n / 32 * 32, cos, sin);
}
TIERCEL_AVX2 void UnrotateAll(float* a, float* b, size_t n, const float* cos, const float* sin) {
  UnrotateColumns(a, b, n / 32 * 32, cos, sin);
}
TIERCEL_AVX2 Moments MomentsAll(const float* x, size_t n, float scale) {
  return MomentsOf(x, n / 32 * 32, scale);
}
template <bool kFp16>
TIERCEL_AVX2 void MomentsOfRowsAll(const uint16_t* rows, size_t pitch, size_t n, float scale, Moments* out) {
  MomentsOfRows<kFp16>(rows, pitch, n, scale, out);
}
TIERCEL_AVX2 uint32_t LargestAll(const uint16_t* values, size_t n) { return LargestOf(values, n); }

}  // namespace

ColumnFns Avx2Columns(bool fp16) {
  return {fp16 ? WidenAll<true> : WidenAll<false>,
          fp16 ? NarrowAll<true> : NarrowAll<false>,
          SumAll,
          QuantizeAll,
          RebuildAll,
          QuantizeLevelsAll,
          RebuildLevelsAll,
          RotateAll,
          UnrotateAll,
          MomentsAll,
          fp16 ? MomentsOfRowsAll<true> : MomentsOfRowsAll<false>,
          LargestAll};
}

}  // namespace tiercel::ecc

#endif  // __x86_64__
