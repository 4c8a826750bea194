// The inner loops of LLE for 16-bit floats, one set an ISA. Internal to kernels/.
#ifndef TIERCEL_KERNELS_LLE_ROWS_H_
#define TIERCEL_KERNELS_LLE_ROWS_H_

#include "kernels/lle_core.h"

namespace tiercel::lle {

using SplitFn = Exponents (*)(const uint16_t* column, size_t n, uint8_t* exponents, std::byte* planes);
using JoinFn = void (*)(const uint8_t* exponents, const std::byte* planes, size_t n, uint16_t* column);
struct ColumnFns {
  SplitFn split;
  JoinFn join;
};

#if defined(__x86_64__)
ColumnFns Avx2Bf16();
ColumnFns Avx2Fp16();
ColumnFns Avx512Bf16();
ColumnFns Avx512Fp16();
#endif

}  // namespace tiercel::lle

#endif  // TIERCEL_KERNELS_LLE_ROWS_H_
