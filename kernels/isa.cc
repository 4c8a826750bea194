#include "kernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

namespace tiercel {
namespace {

std::atomic<KernelIsa>& Active() {
  static std::atomic<KernelIsa> active{BestKernelIsa()};
  return active;
}

}  // namespace

std::string_view Name(KernelIsa isa) {
  switch (isa) {
    case KernelIsa::kScalar:
      return "scalar";
    case KernelIsa::kAvx2:
      return "avx2";
    case KernelIsa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

KernelIsa BestKernelIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return KernelIsa::kAvx512;
  }
  unsigned a = 0, b = 0, features = 0, d = 0;  // Clang 14 has no name for F16C.
  const bool f16c = __get_cpuid(1, &a, &b, &features, &d) != 0 && (features & bit_F16C) != 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) return KernelIsa::kAvx2;
#endif
  return KernelIsa::kScalar;
}

KernelIsa ActiveKernelIsa() { return Active().load(std::memory_order_relaxed); }

bool ForceKernelIsa(KernelIsa isa) {
  if (isa > BestKernelIsa()) return false;
  Active().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace tiercel
