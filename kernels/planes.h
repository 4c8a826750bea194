// PlaneSource and PlaneSink are where the raw bytes of a block come from and go to, segment by
// segment in the record's order, so that a record is encoded from and decoded into an engine's pages
// without a block in between.
//
// A plane that lies in one piece is handed out as a span; any other is read and written in steps.
// Ownership: borrowed for one call. Threads: the caller's; implementations keep no state of a call.
#ifndef TIERCEL_KERNELS_PLANES_H_
#define TIERCEL_KERNELS_PLANES_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "kernels/codec.h"

namespace tiercel {

class PlaneSource {
 public:
  virtual ~PlaneSource() = default;
  // All shape.raw_bytes in one piece; where they lie scattered, a span with null data.
  virtual ByteSpan Whole(size_t index, const SegmentShape& shape) const = 0;
  // Canonical bytes [begin, begin + out.size()) of the plane.
  virtual void Read(size_t index, const SegmentShape& shape, uint64_t begin,
                    MutableByteSpan out) const = 0;
};

class PlaneSink {
 public:
  virtual ~PlaneSink() = default;
  virtual MutableByteSpan Whole(size_t index, const SegmentShape& shape) const = 0;
  virtual void Write(size_t index, const SegmentShape& shape, uint64_t begin,
                     ByteSpan bytes) const = 0;
};

// A canonical block: the planes one after another.
class BlockSource final : public PlaneSource {
 public:
  explicit BlockSource(ByteSpan block) : block_(block) {}
  ByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Read(size_t index, const SegmentShape& shape, uint64_t begin,
            MutableByteSpan out) const override;

 private:
  ByteSpan block_;
};

class BlockSink final : public PlaneSink {
 public:
  explicit BlockSink(MutableByteSpan block) : block_(block) {}
  MutableByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Write(size_t index, const SegmentShape& shape, uint64_t begin,
             ByteSpan bytes) const override;

 private:
  MutableByteSpan block_;
};

// One pointer a segment, each to a plane in one piece.
class PointerSource final : public PlaneSource {
 public:
  explicit PointerSource(std::span<const std::byte* const> planes) : planes_(planes) {}
  ByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Read(size_t index, const SegmentShape& shape, uint64_t begin,
            MutableByteSpan out) const override;

 private:
  std::span<const std::byte* const> planes_;
};

class PointerSink final : public PlaneSink {
 public:
  explicit PointerSink(std::span<std::byte* const> planes) : planes_(planes) {}
  MutableByteSpan Whole(size_t index, const SegmentShape& shape) const override;
  void Write(size_t index, const SegmentShape& shape, uint64_t begin,
             ByteSpan bytes) const override;

 private:
  std::span<std::byte* const> planes_;
};

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_PLANES_H_
