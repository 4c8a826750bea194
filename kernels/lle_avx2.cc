#if defined(__x86_64__)

#include "kernels/lle_rows.h"

// The scalar loops, which the compiler turns into AVX2 here.
// GCC alone is told to vectorize at any level; clang does so by itself.
#if defined(__clang__)
#define TIERCEL_OPTIMIZE(...)
#else
#define TIERCEL_OPTIMIZE(...) , optimize(__VA_ARGS__)
#endif
#define TIERCEL_AVX2 __attribute__((target("avx2") TIERCEL_OPTIMIZE("O3"), flatten))

namespace tiercel::lle {
namespace {

template <class F>
TIERCEL_AVX2 Exponents Split(const uint16_t* column, size_t n, uint8_t* exponents, std::byte* planes) {
  return SplitColumn<F>(column, n, exponents, planes);
}
template <class F>
TIERCEL_AVX2 void Join(const uint8_t* exponents, const std::byte* planes, size_t n, uint16_t* column) {
  JoinColumn<F>(exponents, planes, n, column);
}

}  // namespace

ColumnFns Avx2Bf16() { return {Split<Bf16>, Join<Bf16>}; }
ColumnFns Avx2Fp16() { return {Split<Fp16>, Join<Fp16>}; }

}  // namespace tiercel::lle

#endif  // __x86_64__
