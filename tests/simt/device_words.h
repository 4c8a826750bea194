// The words of kernels/cuda/device.h on the CPU: each calls tests/simt/simt.h.
#ifndef TIERCEL_TESTS_SIMT_DEVICE_WORDS_H_
#define TIERCEL_TESTS_SIMT_DEVICE_WORDS_H_

#include <cmath>

#include "tests/simt/simt.h"

#define TIERCEL_KERNEL inline
#define TIERCEL_DEVICE inline
#define TIERCEL_TABLE inline constexpr

namespace tiercel::gpu {

inline uint32_t ThreadX() { return simt::Thread().x; }
inline uint32_t BlockX() { return simt::Block().x; }
inline uint32_t BlockY() { return simt::Block().y; }
inline uint32_t BlockSizeX() { return simt::BlockSize().x; }
inline uint32_t GridSizeX() { return simt::GridSize().x; }
inline void SyncThreads() { simt::SyncThreads(); }
inline void SyncWarp(uint32_t site = __builtin_LINE()) { simt::SyncWarp(site); }
inline uint32_t Ballot(bool what, uint32_t site = __builtin_LINE()) { return simt::Ballot(what, site); }
inline uint32_t Shuffle(uint32_t value, uint32_t lane, uint32_t site = __builtin_LINE()) {
  return static_cast<uint32_t>(simt::Shuffle(value, lane, site));
}
inline uint64_t Shuffle(uint64_t value, uint32_t lane, uint32_t site = __builtin_LINE()) { return simt::Shuffle(value, lane, site); }
inline void AtomicAdd(uint64_t* at, uint64_t value) { simt::AtomicAdd(at, value); }
inline void AtomicAdd(uint32_t* at, uint32_t value) { *at += value; }
inline void AtomicOr(uint32_t* at, uint32_t value) { *at |= value; }
inline void AtomicXor(uint32_t* at, uint32_t value) { *at ^= value; }
inline void AtomicMax(uint32_t* at, uint32_t value) { *at = *at > value ? *at : value; }
inline uint32_t BitWidth(uint32_t bits) { return bits == 0 ? 0 : 32 - static_cast<uint32_t>(__builtin_clz(bits)); }
inline uint32_t CountOnes(uint32_t bits) { return static_cast<uint32_t>(__builtin_popcount(bits)); }
inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double SquareRoot(double value) { return std::sqrt(value); }
inline int32_t DotLow(uint32_t halves, uint32_t bytes, int32_t sum) {
  auto out = static_cast<uint32_t>(sum);
  for (uint32_t i = 0; i < 2; ++i) {
    out += static_cast<uint32_t>(static_cast<int16_t>(halves >> (16 * i)) * static_cast<int8_t>(bytes >> (8 * i)));
  }
  return static_cast<int32_t>(out);
}
inline int32_t DotHigh(uint32_t halves, uint32_t bytes, int32_t sum) { return DotLow(halves, bytes >> 16, sum); }
template <class T>
T* Shared() {
  return reinterpret_cast<T*>(simt::Shared());
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_TESTS_SIMT_DEVICE_WORDS_H_
