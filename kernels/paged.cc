// A plane is walked as an odometer over its axes in canonical order, outermost first, with the token
// axis split into page and slot. Axes at the inner end that are dense on the engine's side melt into
// one run of bytes; what is left outside is counted up.
#include "kernels/paged.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/random.h"
#include "kernels/record_head.h"

namespace tiercel {
namespace {

struct Axis {
  uint64_t count = 1;
  uint64_t stride = 0;
  bool page = false;  // Its position is looked up in the page table.
};

struct Walk {
  std::array<Axis, 4> axes;  // Outermost first.
  size_t n_axes = 0;
  uint64_t run = 0;  // Contiguous bytes.
};

const PagedPlane& PlaneOf(const PagedKv& kv, const SegmentShape& shape) {
  const auto& planes = shape.kind == SegmentKind::kV ? kv.v : kv.k;
  TIERCEL_CHECK(shape.layer < planes.size());
  return planes[shape.layer];
}

Walk MakeWalk(const PagedKv& kv, const SegmentShape& shape, size_t n_pages) {
  const PagedPlane& plane = PlaneOf(kv, shape);
  const Axis page{n_pages, plane.page_stride, true};
  const Axis slot{kv.tokens_per_page, plane.token_stride, false};
  const Axis head{shape.heads, plane.head_stride, false};
  const Axis dim{shape.dim, plane.dim_stride, false};
  Walk walk;
  switch (shape.order) {
    case AxisOrder::kTokenHeadDim:
      walk.axes = {page, slot, head, dim};
      break;
    case AxisOrder::kHeadTokenDim:
      walk.axes = {head, page, slot, dim};
      break;
    case AxisOrder::kHeadDimToken:
      walk.axes = {head, dim, page, slot};
      break;
  }
  walk.run = DtypeBytes(shape.dtype);
  walk.n_axes = 4;
  while (walk.n_axes > 0) {
    const Axis& inner = walk.axes[walk.n_axes - 1];
    const bool dense = !inner.page && (inner.count == 1 || inner.stride == walk.run);
    if (!dense) break;
    walk.run *= inner.count;
    --walk.n_axes;
  }
  return walk;
}

// Calls move(engine address, offset in the plane, size) for [begin, begin + size), in order.
template <class Move>
void ForEachRun(const PagedKv& kv, const SegmentShape& shape, std::span<const uint32_t> pages,
                uint64_t begin, uint64_t size, Move&& move) {
  const Walk walk = MakeWalk(kv, shape, pages.size());
  const PagedPlane& plane = PlaneOf(kv, shape);
  const auto offset = [&](const Axis& axis, uint64_t at) {
    return (axis.page ? uint64_t{pages[at]} : at) * axis.stride;
  };
  std::array<uint64_t, 4> at{};
  uint64_t rest = begin / walk.run;
  for (size_t i = walk.n_axes; i-- > 0;) {
    at[i] = rest % walk.axes[i].count;
    rest /= walk.axes[i].count;
  }
  uint64_t skip = begin % walk.run;
  uint64_t done = 0;
  const size_t inner = walk.n_axes == 0 ? 0 : walk.n_axes - 1;
  while (done < size) {
    uint64_t outer = 0;
    for (size_t i = 0; i < inner; ++i) outer += offset(walk.axes[i], at[i]);
    const uint64_t count = walk.n_axes == 0 ? 1 : walk.axes[inner].count;
    for (; at[inner] < count && done < size; ++at[inner]) {
      const uint64_t step = walk.n_axes == 0 ? 0 : offset(walk.axes[inner], at[inner]);
      const uint64_t bytes = std::min(walk.run - skip, size - done);
      move(plane.base + outer + step + skip, begin + done, bytes);
      done += bytes;
      skip = 0;
    }
    at[inner] = 0;
    for (size_t i = inner; i-- > 0;) {
      if (++at[i] < walk.axes[i].count) break;
      at[i] = 0;
    }
  }
}

// memcpy of a size the compiler sees, for the runs of transposed planes.
inline void CopyRun(std::byte* to, const std::byte* from, uint64_t bytes) {
  if (bytes == 2) {
    std::memcpy(to, from, 2);
  } else {
    std::memcpy(to, from, bytes);
  }
}

std::byte* Whole(const PagedKv& kv, const SegmentShape& shape, std::span<const uint32_t> pages) {
  const Walk walk = MakeWalk(kv, shape, pages.size());
  const PagedPlane& plane = PlaneOf(kv, shape);
  if (walk.n_axes == 0) return plane.base;
  if (walk.n_axes == 1 && walk.axes[0].page) {  // Dense pages that follow each other?
    for (size_t i = 1; i < pages.size(); ++i) {
      if (plane.page_stride != walk.run || pages[i] != pages[i - 1] + 1) return nullptr;
    }
    return plane.base + uint64_t{pages[0]} * plane.page_stride;
  }
  return nullptr;
}

}  // namespace

PagedPlane PagedKv::Dense(std::byte* base, const KvLayout& layout, AxisOrder order, uint32_t dim,
                          uint32_t n_pages, uint32_t tokens_per_page) {
  const uint64_t elem = DtypeBytes(layout.dtype);
  const uint64_t page = uint64_t{tokens_per_page} * layout.kv_heads * dim * elem;
  PagedPlane plane;
  plane.base = base;
  plane.bytes = page * n_pages;
  plane.page_stride = page;
  switch (order) {
    case AxisOrder::kTokenHeadDim:
      plane.dim_stride = elem;
      plane.head_stride = dim * elem;
      plane.token_stride = layout.kv_heads * plane.head_stride;
      break;
    case AxisOrder::kHeadTokenDim:
      plane.dim_stride = elem;
      plane.token_stride = dim * elem;
      plane.head_stride = tokens_per_page * plane.token_stride;
      break;
    case AxisOrder::kHeadDimToken:
      plane.token_stride = elem;
      plane.dim_stride = tokens_per_page * elem;
      plane.head_stride = dim * plane.dim_stride;
      break;
  }
  return plane;
}

Status CheckPages(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages) {
  const auto bad = [](std::string what) {
    return Fail(Code::kInvalidArgument, "pages: " + std::move(what));
  };
  if (layout.opaque()) return bad("opaque bytes have no pages");
  TIERCEL_TRY(Validate(layout));
  const bool split = layout.packing == KvPacking::kSplit;
  if (kv.k.size() != layout.layers || kv.v.size() != (split ? layout.layers : 0)) {
    return bad(fmt::format("{} K and {} V planes for {} layers{}", kv.k.size(), kv.v.size(),
                           layout.layers, split ? "" : " of one plane"));
  }
  if (kv.tokens_per_page == 0 || pages.empty() ||
      uint64_t{kv.tokens_per_page} * pages.size() != layout.tokens_per_block) {
    return bad(fmt::format("{} pages of {} tokens are not a block of {}", pages.size(),
                           kv.tokens_per_page, layout.tokens_per_block));
  }
  uint32_t last_page = 0;
  for (const uint32_t page : pages) {
    if (page >= kv.n_pages) return bad(fmt::format("page {} of {}", page, kv.n_pages));
    last_page = std::max(last_page, page);
  }
  const uint32_t per_layer = record_head::SegmentsPerLayer(layout);
  for (uint32_t i = 0; i < layout.layers * per_layer; ++i) {
    const SegmentShape shape = record_head::ShapeOf(layout, 0, i, 0);
    const PagedPlane& plane = PlaneOf(kv, shape);
    if (plane.base == nullptr) {
      return bad(fmt::format("layer {} {}: no base", shape.layer, Name(shape.kind)));
    }
    // Strides over the plane's size are refused first, so the sum below cannot overflow.
    const uint64_t largest = std::max({plane.page_stride, plane.token_stride, plane.head_stride,
                                       plane.dim_stride});
    const Uint128 reach = Uint128{last_page} * plane.page_stride +
                          Uint128{kv.tokens_per_page - 1} * plane.token_stride +
                          Uint128{shape.heads - 1} * plane.head_stride +
                          Uint128{shape.dim - 1} * plane.dim_stride + DtypeBytes(shape.dtype);
    if (largest > plane.bytes || reach > plane.bytes) {
      return bad(fmt::format("layer {} {}: strides reach beyond its {} bytes", shape.layer,
                             Name(shape.kind), plane.bytes));
    }
  }
  return OkStatus();
}

ByteSpan PagedSource::Whole(size_t, const SegmentShape& shape) const {
  const std::byte* base = tiercel::Whole(kv_, shape, pages_);
  return base == nullptr ? ByteSpan() : ByteSpan(base, shape.raw_bytes);
}

void PagedSource::Read(size_t, const SegmentShape& shape, uint64_t begin,
                       MutableByteSpan out) const {
  ForEachRun(kv_, shape, pages_, begin, out.size(),
             [&](const std::byte* page, uint64_t at, uint64_t bytes) {
               CopyRun(out.data() + (at - begin), page, bytes);
             });
}

MutableByteSpan PagedSink::Whole(size_t, const SegmentShape& shape) const {
  std::byte* base = tiercel::Whole(kv_, shape, pages_);
  return base == nullptr ? MutableByteSpan() : MutableByteSpan(base, shape.raw_bytes);
}

void PagedSink::Write(size_t, const SegmentShape& shape, uint64_t begin, ByteSpan bytes) const {
  ForEachRun(kv_, shape, pages_, begin, bytes.size(),
             [&](std::byte* page, uint64_t at, uint64_t size) {
               CopyRun(page, bytes.data() + (at - begin), size);
             });
}

namespace {

Status CheckBlock(const KvLayout& layout, size_t block_bytes) {
  if (block_bytes == layout.block_bytes()) return OkStatus();
  return Fail(Code::kInvalidArgument, fmt::format("the block is {} bytes, its layout says {}",
                                                  block_bytes, layout.block_bytes()));
}

}  // namespace

Status Gather(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages,
              MutableByteSpan block) {
  TIERCEL_TRY(CheckPages(kv, layout, pages));
  TIERCEL_TRY(CheckBlock(layout, block.size()));
  const PagedSource source(kv, pages);
  for (uint32_t i = 0; i < layout.layers * record_head::SegmentsPerLayer(layout); ++i) {
    const SegmentShape shape = record_head::ShapeOf(layout, 0, i, 0);
    source.Read(i, shape, 0, block.subspan(shape.block_offset, shape.raw_bytes));
  }
  return OkStatus();
}

Status Scatter(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages,
               ByteSpan block) {
  TIERCEL_TRY(CheckPages(kv, layout, pages));
  TIERCEL_TRY(CheckBlock(layout, block.size()));
  const PagedSink sink(kv, pages);
  for (uint32_t i = 0; i < layout.layers * record_head::SegmentsPerLayer(layout); ++i) {
    const SegmentShape shape = record_head::ShapeOf(layout, 0, i, 0);
    sink.Write(i, shape, 0, block.subspan(shape.block_offset, shape.raw_bytes));
  }
  return OkStatus();
}

}  // namespace tiercel
