// The hot loops of EC-K and EC-X on columns of floats, one set an ISA: klt.cc (scalar), klt_avx2.cc and
// klt_avx512.cc. Columns lie `stride` values apart, a multiple of 32 values long. Internal to kernels/.
#ifndef TIERCEL_KERNELS_KLT_LOOPS_H_
#define TIERCEL_KERNELS_KLT_LOOPS_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::klt {

// q[c] = Quantize(sum over j of analysis[c][j] * (x[j] - mean[j]), inverse_steps), for all n coefficients; of
// each token its inverse step. panel: 32 * n floats.
using AnalyseFn = void (*)(uint32_t n, const float* analysis, const float* mean, const float* x, size_t stride,
                           const float* inverse_steps, float* panel, int16_t* q);
// x[j] = Restore(sum over pairs p of synthesis pair [j][p] * (q[2p], q[2p + 1]), factor[j], steps, mean[j]),
// where a pair is two int16 in an int32, low half first; of each token its own step. active: the pairs that
// are not all zero. raised: the same + 128 as bytes [n][n], 3 more of which are read. room: 32 * count words.
using SynthesiseFn = void (*)(uint32_t n, uint32_t row_pairs, const uint8_t* raised, const int32_t* pairs,
                              const uint16_t* active, uint32_t count, const int16_t* q, size_t stride, const float* factor,
                              const float* steps, const float* mean, int32_t* room, float* x);
// The pairs (a, b) turned by (cosine, sine), value for value.
using RotateFn = void (*)(float* a, float* b, const float* cosine, const float* sine, size_t stride, bool back);
// x = values, from bf16; false when one of the first `count` is not finite.
using LoadBf16Fn = bool (*)(const uint16_t* values, size_t count, size_t stride, float* x);
using StoreBf16Fn = void (*)(const float* x, size_t stride, uint16_t* values);
// z = fma(weight[j], x[j] - mean[j], z) for n columns in order.
using WeighFn = void (*)(uint32_t n, const float* x, size_t stride, const float* mean, const float* weight, float* z);

struct Fns {
  AnalyseFn analyse;
  SynthesiseFn synthesise;
  RotateFn rotate;
  LoadBf16Fn load_bf16;
  StoreBf16Fn store_bf16;
  WeighFn weigh;
};

Fns ScalarFns();
#if defined(__x86_64__)
Fns Avx2Fns();
Fns Avx512Fns();
#endif

}  // namespace tiercel::klt

#endif  // TIERCEL_KERNELS_KLT_LOOPS_H_
