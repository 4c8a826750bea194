// The launches of a batch, and every kernel, compiled for the GPUs that the project supports.
#include "kernels/cuda/batch.h"

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/cuda/pipeline.cuh"

namespace tiercel::gpu {
namespace {

class OnStream {
 public:
  explicit OnStream(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), Grid grid, uint32_t threads, uint32_t shared, const Arguments&... arguments) {
    if (error_ != cudaSuccess) return;
    kernel<<<dim3(grid.x, grid.y), threads, shared, stream_>>>(arguments...);
    error_ = cudaGetLastError();
  }
  Status Done() const {
    if (error_ == cudaSuccess) return OkStatus();
    return Fail(GpuHere() ? Code::kInternal : Code::kUnavailable, std::string("batch: ") + cudaGetErrorString(error_));
  }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

bool GpuHere() {
  cudaFuncAttributes attributes;
  const bool here = cudaFuncGetAttributes(&attributes, EncodeBegin) == cudaSuccess;
  cudaGetLastError();  // The question leaves no error behind.
  return here;
}

Status EncodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void* stream) {
  TIERCEL_ASSIGN(const BatchArgs args, ArgsOf(plan, blocks, false));
  OnStream launch(stream);
  EncodeAll(args, launch);
  return launch.Done();
}

Status DecodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void* stream) {
  TIERCEL_ASSIGN(const BatchArgs args, ArgsOf(plan, blocks, true));
  OnStream launch(stream);
  DecodeAll(args, plan.codecs, launch);
  return launch.Done();
}

}  // namespace tiercel::gpu
