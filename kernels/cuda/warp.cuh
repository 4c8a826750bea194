// What 32 lanes do together, and bytes at any alignment. Every live lane of the warp calls.
#ifndef TIERCEL_KERNELS_CUDA_WARP_CUH_
#define TIERCEL_KERNELS_CUDA_WARP_CUH_

#include "kernels/cuda/device.h"

namespace tiercel::gpu {

TIERCEL_DEVICE uint32_t Lane() { return ThreadX() % 32; }
TIERCEL_DEVICE uint32_t LanesBelow() { return (1u << Lane()) - 1; }
TIERCEL_DEVICE uint32_t WarpOfBlock() { return ThreadX() / 32; }
TIERCEL_DEVICE uint32_t WarpOfGrid() { return (BlockX() * BlockSizeX() + ThreadX()) / 32; }
TIERCEL_DEVICE uint32_t WarpsOfGrid() { return GridSizeX() * BlockSizeX() / 32; }
TIERCEL_DEVICE uint32_t ThreadOfGrid() { return BlockX() * BlockSizeX() + ThreadX(); }
TIERCEL_DEVICE uint32_t ThreadsOfGrid() { return GridSizeX() * BlockSizeX(); }

TIERCEL_DEVICE uint32_t LoadU16(const uint8_t* at) { return at[0] | static_cast<uint32_t>(at[1]) << 8; }
TIERCEL_DEVICE uint32_t LoadU32(const uint8_t* at) { return LoadU16(at) | LoadU16(at + 2) << 16; }
TIERCEL_DEVICE uint64_t LoadU64(const uint8_t* at) { return LoadU32(at) | static_cast<uint64_t>(LoadU32(at + 4)) << 32; }
TIERCEL_DEVICE void StoreU16(uint8_t* at, uint32_t value) {
  for (int i = 0; i < 2; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}
TIERCEL_DEVICE void StoreU32(uint8_t* at, uint32_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}
TIERCEL_DEVICE void StoreU64(uint8_t* at, uint64_t value) {
  for (int i = 0; i < 8; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}
TIERCEL_DEVICE bool AlignedTo(const void* at, uint32_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

template <class T>
TIERCEL_DEVICE T WarpSum(T value) {
  for (uint32_t step = 16; step > 0; step /= 2) value += Shuffle(value, Lane() ^ step);
  return value;
}
TIERCEL_DEVICE uint32_t WarpMax(uint32_t value) {
  for (uint32_t step = 16; step > 0; step /= 2) {
    const uint32_t other = Shuffle(value, Lane() ^ step);
    value = other > value ? other : value;
  }
  return value;
}
// The sum of what the lanes below give; *total is the sum of all.
TIERCEL_DEVICE uint32_t WarpScan(uint32_t value, uint32_t* total) {
  uint32_t sum = value;
  for (uint32_t step = 1; step < 32; step *= 2) {
    const uint32_t other = Shuffle(sum, (Lane() + 32 - step) % 32);
    if (Lane() >= step) sum += other;
  }
  *total = Shuffle(sum, 31);
  return sum - value;
}
TIERCEL_DEVICE uint32_t LowestOne(uint32_t bits) { return CountOnes((bits & (~bits + 1)) - 1); }  // bits is not 0.

// Consecutive bytes of one thread, stored four at a time where they lie so.
struct ByteRun {
  uint8_t* at = nullptr;
  uint32_t held = 0;
  uint32_t count = 0;
  ByteRun() = default;
  TIERCEL_DEVICE explicit ByteRun(uint8_t* to) : at(to) {}
  TIERCEL_DEVICE void Put(uint32_t byte) {
    held |= (byte & 255u) << (8 * count);
    if (++count == 4) Flush();
  }
  TIERCEL_DEVICE void Flush() {
    if (count == 4 && AlignedTo(at, 4)) {
      *reinterpret_cast<uint32_t*>(at) = held;
    } else {
      for (uint32_t i = 0; i < count; ++i) at[i] = static_cast<uint8_t>(held >> (8 * i));
    }
    at += count;
    held = count = 0;
  }
};

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_WARP_CUH_
