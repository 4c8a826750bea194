// Asks for a cache line ahead of its use.
//
// GCC takes a loop that does nothing but __builtin_prefetch for an empty one and drops it, and with it calls of
// functions that do nothing else. This one stays.
#ifndef TIERCEL_BASE_PREFETCH_H_
#define TIERCEL_BASE_PREFETCH_H_

namespace tiercel {

enum class CacheLevel { kL1 = 3, kL2 = 2 };  // As __builtin_prefetch counts locality.

// The line of this address, which need not be readable, to that level. Threads: any.
template <CacheLevel kTo = CacheLevel::kL1>
inline void Prefetch(const void* address) {
  __builtin_prefetch(address, 0, static_cast<int>(kTo));
  asm volatile("" : : "r"(address));
}

}  // namespace tiercel

#endif  // TIERCEL_BASE_PREFETCH_H_
