// The reference loops: fixed_core.h, value by value.
#include <algorithm>

#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"
#include "kernels/fixed_scalar.h"
#include "kernels/isa.h"

namespace tiercel::fixed {
namespace {

template <bool kFp16>
constexpr Loops kScalar = {
    Scalar<kFp16>::PanelBounds, Scalar<kFp16>::RunBounds,  Scalar<kFp16>::Seal,
    Scalar<kFp16>::PanelEncode, Scalar<kFp16>::RunEncode,  Scalar<kFp16>::PanelDecode,
    Scalar<kFp16>::RunDecode,   Scalar<kFp16>::Largest,    Scalar<kFp16>::F8Encode,
    Scalar<kFp16>::F8Decode,    Scalar<kFp16>::I4Encode,   Scalar<kFp16>::I4Decode};

}  // namespace

template <>
const Loops& ScalarLoops<false>() {
  return kScalar<false>;
}
template <>
const Loops& ScalarLoops<true>() {
  return kScalar<true>;
}

const Loops& LoopsFor(bool fp16) {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return Avx512Loops(fp16);
    case KernelIsa::kAvx2:
      return Avx2Loops(fp16);
    case KernelIsa::kScalar:
      break;
  }
#endif
  return fp16 ? ScalarLoops<true>() : ScalarLoops<false>();
}

}  // namespace tiercel::fixed
