// The launches of kernels/cuda/batch.h as a client links them. What they compute: tests/simt, tests/gpu/run.
#include "kernels/cuda/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace tiercel {
namespace {

struct Fixture {
  Fixture() {
    spec.layout.layers = 1;
    spec.layout.kv_heads = 2;
    spec.layout.head_dim_k = spec.layout.head_dim_v = 64;
    spec.layout.tokens_per_block = 16;
    spec.layout.dtype = Dtype::kBf16;
    cache.resize(4 * spec.layout.block_bytes());
    kv.n_pages = 4;
    kv.tokens_per_page = 16;
    kv.k = {PagedKv::Dense(cache.data(), spec.layout, AxisOrder::kTokenHeadDim, 64, 4, 16)};
    kv.v = {PagedKv::Dense(cache.data() + cache.size() / 2, spec.layout, AxisOrder::kTokenHeadDim, 64, 4, 16)};
    plan = *gpu::PlanBatch(spec, CodecId::kLlf, kv);
    const uint64_t need = std::max(plan.encode_scratch_bytes(1), plan.decode_scratch_bytes(1));
    scratch.resize(need + 64);
    record.resize(plan.max_record_bytes);
    blocks.count = 1;
    blocks.planes = plan.planes.data();
    blocks.pages = &page;
    blocks.records = &record_at;
    blocks.record_bytes = &size;
    blocks.results = &result;
    const size_t skip = (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
    blocks.scratch = MutableByteSpan(scratch).subspan(skip, need);
  }
  RecordSpec spec;
  PagedKv kv;
  std::vector<std::byte> cache, scratch, record;
  gpu::BatchPlan plan;
  gpu::BatchBlocks blocks;
  uint32_t page = 1;
  std::byte* record_at = nullptr;
  uint64_t size = 0;
  gpu::BlockResult result;
};

TEST(GpuBatchTest, ACallThatCannotBeIsRefusedBeforeAnythingIsLaunched) {
  Fixture f;
  f.blocks.results = nullptr;
  EXPECT_EQ(gpu::EncodeBatch(f.plan, f.blocks, nullptr).error().code, Code::kInvalidArgument);
  EXPECT_EQ(gpu::DecodeBatch(f.plan, f.blocks, nullptr).error().code, Code::kInvalidArgument);
}

TEST(GpuBatchTest, WithoutAGpuABatchSaysSo) {
  if (gpu::GpuHere()) GTEST_SKIP() << "there is a GPU; tests/gpu/run is for it";
  Fixture f;
  EXPECT_EQ(gpu::EncodeBatch(f.plan, f.blocks, nullptr).error().code, Code::kUnavailable);
  EXPECT_EQ(gpu::DecodeBatch(f.plan, f.blocks, nullptr).error().code, Code::kUnavailable);
}

}  // namespace
}  // namespace tiercel
