#include "kernels/planes.h"

#include <cstring>

#include "base/check.h"

namespace tiercel {
namespace {

void Copy(std::byte* to, const std::byte* from, size_t size) {
  if (size != 0) std::memcpy(to, from, size);
}

}  // namespace

ByteSpan BlockSource::Whole(size_t, const SegmentShape& shape) const {
  TIERCEL_CHECK(shape.block_offset + shape.raw_bytes <= block_.size());
  return block_.subspan(shape.block_offset, shape.raw_bytes);
}
void BlockSource::Read(size_t index, const SegmentShape& shape, uint64_t begin,
                       MutableByteSpan out) const {
  Copy(out.data(), Whole(index, shape).data() + begin, out.size());
}

MutableByteSpan BlockSink::Whole(size_t, const SegmentShape& shape) const {
  TIERCEL_CHECK(shape.block_offset + shape.raw_bytes <= block_.size());
  return block_.subspan(shape.block_offset, shape.raw_bytes);
}
void BlockSink::Write(size_t index, const SegmentShape& shape, uint64_t begin,
                      ByteSpan bytes) const {
  Copy(Whole(index, shape).data() + begin, bytes.data(), bytes.size());
}

ByteSpan PointerSource::Whole(size_t index, const SegmentShape& shape) const {
  TIERCEL_CHECK(index < planes_.size());
  return {planes_[index], shape.raw_bytes};
}
void PointerSource::Read(size_t index, const SegmentShape&, uint64_t begin,
                         MutableByteSpan out) const {
  Copy(out.data(), planes_[index] + begin, out.size());
}

MutableByteSpan PointerSink::Whole(size_t index, const SegmentShape& shape) const {
  TIERCEL_CHECK(index < planes_.size());
  return {planes_[index], shape.raw_bytes};
}
void PointerSink::Write(size_t index, const SegmentShape&, uint64_t begin, ByteSpan bytes) const {
  Copy(planes_[index] + begin, bytes.data(), bytes.size());
}

}  // namespace tiercel
