// A batch (kernels/cuda/batch.h) whose launches run on the CPU.
#ifndef TIERCEL_TESTS_SIMT_BATCH_ON_CPU_H_
#define TIERCEL_TESTS_SIMT_BATCH_ON_CPU_H_

#include "kernels/cuda/batch.h"
#include "kernels/cuda/pipeline.cuh"

namespace tiercel::simt {

struct OnCpu {
  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, gpu::Grid grid, uint32_t threads, uint32_t shared, const Arguments&... arguments) const {
    Launch({grid.x, grid.y}, {threads, 1}, shared, [&] { kernel(arguments...); });
  }
};

inline Status EncodeBatch(const gpu::BatchPlan& plan, const gpu::BatchBlocks& blocks) {
  TIERCEL_ASSIGN(const gpu::BatchArgs args, gpu::ArgsOf(plan, blocks, false));
  gpu::EncodeAll(args, OnCpu());
  return OkStatus();
}
inline Status DecodeBatch(const gpu::BatchPlan& plan, const gpu::BatchBlocks& blocks) {
  TIERCEL_ASSIGN(const gpu::BatchArgs args, gpu::ArgsOf(plan, blocks, true));
  gpu::DecodeAll(args, plan.codecs, OnCpu());
  return OkStatus();
}

}  // namespace tiercel::simt

#endif  // TIERCEL_TESTS_SIMT_BATCH_ON_CPU_H_
