#include "kernels/paged.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

constexpr uint32_t kPages = 9;
constexpr uint32_t kPageTokens = 4;
const std::vector<uint32_t> kBlockPages = {7, 2, 3};

KvLayout Layout(AxisOrder k_order, AxisOrder v_order, KvPacking packing = KvPacking::kSplit) {
  KvLayout layout = SmallLayout(Dtype::kBf16, k_order, packing, 2);
  layout.k_order = k_order;
  layout.v_order = packing == KvPacking::kLatent ? AxisOrder::kTokenHeadDim : v_order;
  layout.tokens_per_block = kPageTokens * 3;
  return layout;
}

// Where canonical order puts one value, in values.
uint64_t CanonicalIndex(AxisOrder order, const KvLayout& layout, uint32_t dims, uint32_t token,
                        uint32_t head, uint32_t dim) {
  const uint64_t tokens = layout.tokens_per_block;
  const uint64_t heads = layout.kv_heads;
  switch (order) {
    case AxisOrder::kTokenHeadDim:
      return (token * heads + head) * dims + dim;
    case AxisOrder::kHeadTokenDim:
      return (head * tokens + token) * dims + dim;
    case AxisOrder::kHeadDimToken:
      return (uint64_t{head} * dims + dim) * tokens + token;
  }
  return 0;
}

struct Engine {
  std::vector<std::byte> memory;
  PagedKv kv;
};

// One layer after another; `interlace` puts K and V of a page side by side: [pages][2][...].
Engine MakeEngine(const KvLayout& layout, AxisOrder order, bool interlace) {
  const bool split = layout.packing == KvPacking::kSplit;
  const uint32_t dims = split ? layout.head_dim_k : layout.head_dim_k + layout.head_dim_v;
  const uint64_t page = uint64_t{kPageTokens} * layout.kv_heads * dims * 2;
  const uint64_t layer = page * kPages * (split ? 2 : 1);
  Engine engine;
  engine.memory = RandomBytes(layer * layout.layers, 77);
  engine.kv.n_pages = kPages;
  engine.kv.tokens_per_page = kPageTokens;
  for (uint32_t l = 0; l < layout.layers; ++l) {
    std::byte* base = engine.memory.data() + l * layer;
    PagedPlane k = PagedKv::Dense(base, layout, order, dims, kPages, kPageTokens);
    if (!split) {
      engine.kv.k.push_back(k);
      continue;
    }
    PagedPlane v = k;
    if (interlace) {
      k.page_stride = v.page_stride = 2 * page;
      k.bytes = layer;
      v.base = base + page;
      v.bytes = layer - page;
    } else {
      v.base = base + page * kPages;
    }
    engine.kv.k.push_back(k);
    engine.kv.v.push_back(v);
  }
  return engine;
}

// By the definition, one value at a time.
std::vector<std::byte> SlowGather(const PagedKv& kv, const KvLayout& layout) {
  std::vector<std::byte> block(layout.block_bytes());
  const bool split = layout.packing == KvPacking::kSplit;
  for (uint32_t l = 0; l < layout.layers; ++l) {
    for (int which = 0; which < (split ? 2 : 1); ++which) {
      const PagedPlane& plane = which == 0 ? kv.k[l] : kv.v[l];
      const uint32_t dims = split ? layout.head_dim_k : layout.head_dim_k + layout.head_dim_v;
      const AxisOrder order = which == 0 ? layout.k_order : layout.v_order;
      std::byte* to =
          block.data() + l * layout.layer_bytes() + (which == 0 ? 0 : layout.k_plane_bytes());
      for (uint32_t t = 0; t < layout.tokens_per_block; ++t) {
        for (uint32_t h = 0; h < layout.kv_heads; ++h) {
          for (uint32_t d = 0; d < dims; ++d) {
            const std::byte* from = plane.base + kBlockPages[t / kPageTokens] * plane.page_stride +
                                    (t % kPageTokens) * plane.token_stride +
                                    h * plane.head_stride + d * plane.dim_stride;
            std::memcpy(to + 2 * CanonicalIndex(order, layout, dims, t, h, d), from, 2);
          }
        }
      }
    }
  }
  return block;
}

constexpr AxisOrder kOrders[] = {AxisOrder::kTokenHeadDim, AxisOrder::kHeadTokenDim,
                                 AxisOrder::kHeadDimToken};

TEST(PagedTest, GathersEveryEngineOrderIntoEveryCanonicalOrder) {
  for (const AxisOrder engine_order : kOrders) {
    for (const bool interlace : {false, true}) {
      for (const AxisOrder k_order : kOrders) {
        for (const AxisOrder v_order : kOrders) {
          const KvLayout layout = Layout(k_order, v_order);
          const Engine engine = MakeEngine(layout, engine_order, interlace);
          std::vector<std::byte> block(layout.block_bytes());
          const Status s = Gather(engine.kv, layout, kBlockPages, block);
          ASSERT_TRUE(s) << s.error().message;
          ASSERT_TRUE(block == SlowGather(engine.kv, layout));
        }
      }
    }
  }
}

TEST(PagedTest, ScatterUndoesGatherAndTouchesNoOtherPage) {
  for (const AxisOrder engine_order : kOrders) {
    for (const AxisOrder order : kOrders) {
      const KvLayout layout = Layout(order, order);
      Engine engine = MakeEngine(layout, engine_order, true);
      const auto before = engine.memory;
      std::vector<std::byte> block(layout.block_bytes());
      ASSERT_TRUE(Gather(engine.kv, layout, kBlockPages, block));
      for (const PagedPlane& plane : engine.kv.k) {
        for (const uint32_t page : kBlockPages) {
          std::memset(plane.base + page * plane.page_stride, 0, plane.page_stride);
        }
      }
      ASSERT_FALSE(engine.memory == before);
      ASSERT_TRUE(Scatter(engine.kv, layout, kBlockPages, block));
      ASSERT_TRUE(engine.memory == before);
    }
  }
}

TEST(PagedTest, LatentAndInterleavedCachesAreOnePlaneALayer) {
  for (const KvPacking packing : {KvPacking::kLatent, KvPacking::kInterleaved}) {
    for (const AxisOrder order : kOrders) {
      const KvLayout layout = Layout(order, order, packing);
      const Engine engine = MakeEngine(layout, AxisOrder::kTokenHeadDim, false);
      std::vector<std::byte> block(layout.block_bytes());
      ASSERT_TRUE(Gather(engine.kv, layout, kBlockPages, block));
      EXPECT_TRUE(block == SlowGather(engine.kv, layout));
    }
  }
}

TEST(PagedTest, RecordsAreEncodedFromPagesAndDecodedIntoThem) {
  for (const AxisOrder engine_order : kOrders) {
    for (const AxisOrder order : kOrders) {
      for (const CodecId codec : {CodecId::kRaw, CodecId::kLlf}) {
        KvLayout layout = Layout(order, order);
        Engine engine = MakeEngine(layout, engine_order, false);
        // Real-looking values, so that LLF is what is stored.
        const auto values = KvLikeBytes(Dtype::kBf16, engine.memory.size(), 3);
        std::copy(values.begin(), values.end(), engine.memory.begin());
        const RecordSpec spec = SpecOf(layout);
        const auto expected = Encoded(spec, codec, SlowGather(engine.kv, layout));
        ASSERT_TRUE(expected);
        std::vector<std::byte> record(MaxRecordBytes(spec, 0));
        const auto size =
            EncodeRecordFrom(spec, codec, PagedSource(engine.kv, kBlockPages), record);
        ASSERT_TRUE(size) << size.error().message;
        record.resize(*size);
        ASSERT_TRUE(record == *expected);

        Engine other = MakeEngine(layout, engine_order, false);
        const auto view = ParseRecord(record);
        ASSERT_TRUE(view);
        const Status s = DecodeRecordTo(*view, layout, PagedSink(other.kv, kBlockPages));
        ASSERT_TRUE(s) << s.error().message;
        ASSERT_TRUE(SlowGather(other.kv, layout) == SlowGather(engine.kv, layout));
        // One layer of it.
        Engine third = MakeEngine(layout, engine_order, false);
        ASSERT_TRUE(DecodeRecordTo(*view, layout, PagedSink(third.kv, kBlockPages), 1, 2));
        const auto got = SlowGather(third.kv, layout);
        const auto want = SlowGather(engine.kv, layout);
        ASSERT_EQ(std::memcmp(got.data() + layout.layer_bytes(), want.data() + layout.layer_bytes(),
                              layout.layer_bytes()),
                  0);
        ASSERT_NE(std::memcmp(got.data(), want.data(), layout.layer_bytes()), 0);
      }
    }
  }
}

TEST(PagedTest, PlanesOfManyStepsComeThroughScratchUnharmed) {
  // 48 pages of 4 tokens, K of 96 KiB: more than one step, and no run divides a step.
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kHeadTokenDim, KvPacking::kSplit, 1);
  layout.kv_heads = 4;
  layout.head_dim_k = layout.head_dim_v = 72;
  layout.tokens_per_block = 192;
  PagedKv kv;
  kv.n_pages = 50;
  kv.tokens_per_page = 4;
  const uint64_t plane_bytes = uint64_t{50} * 4 * 4 * 72 * 2;
  auto memory = KvLikeBytes(Dtype::kBf16, 2 * plane_bytes, 4);
  for (int i = 0; i < 2; ++i) {
    (i == 0 ? kv.k : kv.v)
        .push_back(PagedKv::Dense(memory.data() + static_cast<uint64_t>(i) * plane_bytes, layout,
                                  AxisOrder::kTokenHeadDim, 72, 50, 4));
  }
  std::vector<uint32_t> pages;
  for (uint32_t i = 0; i < 48; ++i) pages.push_back((i * 7 + 1) % 50);
  std::vector<std::byte> block(layout.block_bytes());
  ASSERT_TRUE(Gather(kv, layout, pages, block));
  for (const CodecId codec : {CodecId::kRaw, CodecId::kLlf}) {
    const auto expected = Encoded(SpecOf(layout), codec, block);
    ASSERT_TRUE(expected);
    std::vector<std::byte> record(MaxRecordBytes(SpecOf(layout), 0));
    const auto size = EncodeRecordFrom(SpecOf(layout), codec, PagedSource(kv, pages), record);
    ASSERT_TRUE(size);
    record.resize(*size);
    ASSERT_TRUE(record == *expected);
    const auto before = memory;
    for (const uint32_t page : pages) {
      std::memset(kv.k[0].base + page * kv.k[0].page_stride, 0, kv.k[0].page_stride);
      std::memset(kv.v[0].base + page * kv.v[0].page_stride, 0, kv.v[0].page_stride);
    }
    ASSERT_TRUE(DecodeRecordTo(*ParseRecord(record), layout, PagedSink(kv, pages)));
    ASSERT_TRUE(memory == before);
  }
}

TEST(PagedTest, NamesWhatDoesNotFit) {
  const KvLayout layout = Layout(AxisOrder::kTokenHeadDim, AxisOrder::kTokenHeadDim);
  Engine engine = MakeEngine(layout, AxisOrder::kTokenHeadDim, false);
  const auto error = [&](const PagedKv& kv, std::vector<uint32_t> pages) {
    const Status s = CheckPages(kv, layout, pages);
    return s ? std::string("fits") : s.error().message;
  };
  using testing::HasSubstr;
  EXPECT_EQ(error(engine.kv, kBlockPages), "fits");
  EXPECT_THAT(error(engine.kv, {1, 2}), HasSubstr("not a block"));
  EXPECT_THAT(error(engine.kv, {}), HasSubstr("not a block"));
  EXPECT_THAT(error(engine.kv, {1, 2, 9}), HasSubstr("page 9 of 9"));
  PagedKv kv = engine.kv;
  kv.v.pop_back();
  EXPECT_THAT(error(kv, kBlockPages), HasSubstr("planes"));
  kv = engine.kv;
  kv.v[1].base = nullptr;
  EXPECT_THAT(error(kv, kBlockPages), HasSubstr("layer 1 V: no base"));
  kv = engine.kv;
  kv.k[0].head_stride = ~uint64_t{0} / 2;
  EXPECT_THAT(error(kv, kBlockPages), HasSubstr("layer 0 K: strides reach beyond"));
  kv = engine.kv;
  kv.k[0].bytes -= kv.k[0].page_stride;
  EXPECT_EQ(error(kv, {1, 2, 3}), "fits");
  EXPECT_THAT(error(kv, {1, 2, 8}), HasSubstr("reach beyond"));
}

}  // namespace
}  // namespace tiercel
