// KernelIsa is which instructions the kernels use. All of them give the same bytes; the scalar one is
// the reference that the others are tested against.
//
// Threads: any; ForceKernelIsa is for tests and benches, and takes effect on the next call of a kernel.
#ifndef TIERCEL_KERNELS_ISA_H_
#define TIERCEL_KERNELS_ISA_H_

#include <cstdint>
#include <string_view>

namespace tiercel {

enum class KernelIsa : uint8_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

std::string_view Name(KernelIsa isa);  // "scalar", "avx2", "avx512".

KernelIsa BestKernelIsa();    // The widest that this CPU and this build have.
KernelIsa ActiveKernelIsa();  // The one in use: the best, unless forced.
// False, with nothing changed, when this CPU lacks it.
bool ForceKernelIsa(KernelIsa isa);

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_ISA_H_
