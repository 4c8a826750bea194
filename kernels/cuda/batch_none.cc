// Batches in a build without CUDA.
#include "kernels/cuda/batch.h"

namespace tiercel::gpu {
namespace {
Status None() { return Fail(Code::kUnavailable, "batch: this build has no CUDA; records are coded on the CPU (kernels/record.h)"); }
}  // namespace

Status EncodeBatch(const BatchPlan&, const BatchBlocks&, void*) { return None(); }
Status DecodeBatch(const BatchPlan&, const BatchBlocks&, void*) { return None(); }

}  // namespace tiercel::gpu
