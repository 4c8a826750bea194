// What a kernel's source says instead of CUDA's own words, so that the same source runs on the CPU in
// tests. With nvcc each is the CUDA word it names.
//
// A kernel is a template or inline function marked TIERCEL_KERNEL; warps are 32 lanes, and every live lane
// of a warp takes part in its operations.
#ifndef TIERCEL_KERNELS_CUDA_DEVICE_H_
#define TIERCEL_KERNELS_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#define TIERCEL_KERNEL static __global__  // No other file's: tests link the CPU's as well.
#define TIERCEL_DEVICE __device__ __forceinline__
#define TIERCEL_TABLE static __device__ const  // A constant array that threads look things up in.

namespace tiercel::gpu {

TIERCEL_DEVICE uint32_t ThreadX() { return threadIdx.x; }
TIERCEL_DEVICE uint32_t BlockX() { return blockIdx.x; }
TIERCEL_DEVICE uint32_t BlockY() { return blockIdx.y; }
TIERCEL_DEVICE uint32_t BlockSizeX() { return blockDim.x; }
TIERCEL_DEVICE uint32_t GridSizeX() { return gridDim.x; }
TIERCEL_DEVICE void SyncThreads() { __syncthreads(); }
TIERCEL_DEVICE void SyncWarp() { __syncwarp(); }
TIERCEL_DEVICE uint32_t Ballot(bool what) { return __ballot_sync(0xffffffffu, what); }
TIERCEL_DEVICE uint32_t Shuffle(uint32_t value, uint32_t lane) { return __shfl_sync(0xffffffffu, value, static_cast<int>(lane)); }
TIERCEL_DEVICE uint64_t Shuffle(uint64_t value, uint32_t lane) {
  return __shfl_sync(0xffffffffu, static_cast<unsigned long long>(value), static_cast<int>(lane));
}
TIERCEL_DEVICE void AtomicAdd(uint64_t* at, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
TIERCEL_DEVICE void AtomicAdd(uint32_t* at, uint32_t value) { atomicAdd(at, value); }
TIERCEL_DEVICE void AtomicOr(uint32_t* at, uint32_t value) { atomicOr(at, value); }
TIERCEL_DEVICE void AtomicXor(uint32_t* at, uint32_t value) { atomicXor(at, value); }
TIERCEL_DEVICE void AtomicMax(uint32_t* at, uint32_t value) { atomicMax(at, value); }
TIERCEL_DEVICE uint32_t CountOnes(uint32_t bits) { return static_cast<uint32_t>(__popc(bits)); }
TIERCEL_DEVICE uint32_t BitWidth(uint32_t bits) { return 32 - static_cast<uint32_t>(__clz(static_cast<int>(bits))); }
TIERCEL_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TIERCEL_DEVICE double SquareRoot(double value) { return __dsqrt_rn(value); }
// sum + the products of two int16 and the lower, or the upper, two of four int8; modulo 2^32.
TIERCEL_DEVICE int32_t DotLow(uint32_t halves, uint32_t bytes, int32_t sum) {
  return __dp2a_lo(static_cast<int>(halves), static_cast<int>(bytes), sum);
}
TIERCEL_DEVICE int32_t DotHigh(uint32_t halves, uint32_t bytes, int32_t sum) {
  return __dp2a_hi(static_cast<int>(halves), static_cast<int>(bytes), sum);
}
template <class T>
TIERCEL_DEVICE T* Shared() {
  extern __shared__ __align__(16) unsigned char tiercel_shared[];
  return reinterpret_cast<T*>(tiercel_shared);
}

}  // namespace tiercel::gpu

#else

// Who compiles a kernel for the CPU says where these words come from.
#include TIERCEL_DEVICE_WORDS

#endif

#endif  // TIERCEL_KERNELS_CUDA_DEVICE_H_
