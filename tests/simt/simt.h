// Runs the CUDA sources of kernels/cuda on the CPU: every thread of a block is a fiber, barriers and warp
// operations are where it gives way to the others. Slow, exact, and it sees divergence: a warp operation
// that not all of a warp's live lanes reach, or reach at different places, or a barrier that not all live
// threads reach, ends the test.
//
//   Launch(grid, block, shared bytes, [&] { SomeKernel(arguments); })      blocks run one after another
//   Shuffled(seed)   from here on threads and blocks take turns in an order of their own in each launch, so
//                    that what counts on an order does not pass for long; 0: in theirs
//
// Test code only. Threads: one launch a thread.
#ifndef TIERCEL_TESTS_SIMT_SIMT_H_
#define TIERCEL_TESTS_SIMT_SIMT_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace tiercel::simt {

inline constexpr uint32_t kWarp = 32;

struct Place {
  uint32_t x = 0, y = 0;
};
Place Thread();       // threadIdx.
Place Block();        // blockIdx.
Place BlockSize();    // blockDim.
Place GridSize();     // gridDim.

void Launch(Place grid, Place block, size_t shared_bytes, const std::function<void()>& kernel);

void Shuffled(uint64_t seed);

void SyncThreads();
// Of all lanes of the warp that have not returned; each must take part.
// site: the line in the source, which must be the same for all.
uint32_t Ballot(bool what, uint32_t site);
uint64_t Shuffle(uint64_t value, uint32_t from_lane, uint32_t site);
void SyncWarp(uint32_t site);
std::byte* Shared();
uint64_t AtomicAdd(uint64_t* at, uint64_t value);

}  // namespace tiercel::simt

#endif  // TIERCEL_TESTS_SIMT_SIMT_H_
