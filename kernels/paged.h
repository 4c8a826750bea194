// PagedKv says where an engine keeps its KV: for each layer, strides to a value's page, token, head
// and dimension. Any engine whose cache is a strided tensor is described by it, without copies:
//
//   [pages][2][heads][tokens][dim]    one base, K and V half a page apart
//   [2][pages][tokens][heads][dim]    K and V are two bases
//   [pages][heads][dim][tokens]       transposed: dim_stride > token_stride
//   [pages][tokens][dim]              a latent cache: one head, no V
//
// A block is tokens_per_block / tokens_per_page pages in the order given. Gathering puts its planes
// into canonical order (proto/kv_layout.h: AxisOrder), scattering does the reverse; either way runs
// of bytes that are contiguous on both sides move by one memcpy.
//
// Ownership: the pages are the engine's; a PagedKv borrows them.
// Threads: any, as long as the engine does not touch the pages named.
// Errors: CheckPages names what does not fit; gather and scatter require that it passed.
#ifndef TIERCEL_KERNELS_PAGED_H_
#define TIERCEL_KERNELS_PAGED_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "kernels/planes.h"
#include "proto/kv_layout.h"

namespace tiercel {

// One layer's K or V (or interleaved KV, or latent) over all pages. Strides are in bytes.
struct PagedPlane {
  std::byte* base = nullptr;
  uint64_t bytes = 0;  // Of the memory from base on that may be touched.
  uint64_t page_stride = 0;
  uint64_t token_stride = 0;
  uint64_t head_stride = 0;
  uint64_t dim_stride = 0;
};

struct PagedKv {
  uint32_t n_pages = 0;
  uint32_t tokens_per_page = 0;
  std::vector<PagedPlane> k;  // One a layer; interleaved and latent caches are here too.
  std::vector<PagedPlane> v;  // One a layer where packing is kSplit, else empty.

  // One layer whose K and V are separate, densely packed tensors of [pages] and then `order`.
  static PagedPlane Dense(std::byte* base, const KvLayout& layout, AxisOrder order, uint32_t dim,
                          uint32_t n_pages, uint32_t tokens_per_page);
};

// Errors: kInvalidArgument names the layer and field: a missing plane, pages that do not make up a
// block, a page number out of range, strides that reach beyond a plane's bytes.
Status CheckPages(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages);

// The pages of one block as a source or sink of planes. CheckPages must have passed.
class PagedSource final : public PlaneSource {
 public:
  PagedSource(const PagedKv& kv, std::span<const uint32_t> pages) : kv_(kv), pages_(pages) {}
  ByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Read(size_t index, const SegmentShape& shape, uint64_t begin,
            MutableByteSpan out) const override;

 private:
  const PagedKv& kv_;
  std::span<const uint32_t> pages_;
};

class PagedSink final : public PlaneSink {
 public:
  PagedSink(const PagedKv& kv, std::span<const uint32_t> pages) : kv_(kv), pages_(pages) {}
  MutableByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Write(size_t index, const SegmentShape& shape, uint64_t begin,
             ByteSpan bytes) const override;

 private:
  const PagedKv& kv_;
  std::span<const uint32_t> pages_;
};

// Pages to a canonical block of layout.block_bytes(), and back.
Status Gather(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages,
              MutableByteSpan block);
Status Scatter(const PagedKv& kv, const KvLayout& layout, std::span<const uint32_t> pages,
               ByteSpan block);

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_PAGED_H_
