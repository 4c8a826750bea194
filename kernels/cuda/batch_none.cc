// Batches in a build without CUDA.
#include "kernels/cuda/batch.h"

namespace tiercel::gpu {
namespace {

Status None(const BatchPlan& plan, const BatchBlocks& blocks, bool decoding) {
  TIERCEL_TRY(ArgsOf(plan, blocks, decoding));
  return Fail(Code::kUnavailable, "batch: this build has no CUDA; records are coded on the CPU (kernels/record.h)");
}

}  // namespace

bool GpuHere() { return false; }
Status EncodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void*) { return None(plan, blocks, false); }
Status DecodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void*) { return None(plan, blocks, true); }

}  // namespace tiercel::gpu
