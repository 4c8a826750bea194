#include "kernels/columns.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/columns_tiles.h"
#include "kernels/isa.h"

namespace tiercel {
namespace {

template <class T>
void Transpose(const T* from, columns::Rows from_rows, size_t rows, size_t cols, T* to, columns::Rows to_rows,
               bool room_in_from, bool room_in_to) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, uint16_t>) {
    switch (ActiveKernelIsa()) {
      case KernelIsa::kAvx512:
        return columns::TransposeAvx512(from, from_rows, rows, cols, to, to_rows, room_in_from, room_in_to);
      case KernelIsa::kAvx2:
        return columns::TransposeAvx2(from, from_rows, rows, cols, to, to_rows, room_in_from, room_in_to);
      case KernelIsa::kScalar:
        break;
    }
  }
#endif
  (void)room_in_from;
  (void)room_in_to;
  columns::TransposeScalar(from, from_rows, 0, rows, 0, cols, to, to_rows);
}

}  // namespace

template <class T>
void LoadColumns(const SegmentShape& shape, ByteSpan raw, uint32_t first, uint32_t count,
                 T* columns, size_t stride, const uint16_t* order) {
  TIERCEL_CHECK(raw.size() == sizeof(T) * shape.tokens * uint64_t{ColumnCount(shape)});
  const T* const from = reinterpret_cast<const T*>(raw.data());
  if (shape.order == AxisOrder::kHeadDimToken) {
    for (uint32_t c = 0; c < count; ++c) {
      const T* const column = from + size_t{first + c} * shape.tokens;
      if (order == nullptr) {
        std::memcpy(columns + c * stride, column, sizeof(T) * shape.tokens);
      } else {
        for (uint32_t t = 0; t < shape.tokens; ++t) columns[c * stride + t] = column[order[t]];
      }
    }
    return;
  }
  ForPieces(shape, first, count, [&](uint32_t c, uint32_t n, size_t at, size_t pitch) {
    Transpose(from + at, {pitch, order}, shape.tokens, n, columns + (c - first) * stride, {stride}, false, true);
  });
}

template <class T>
void StoreColumns(const SegmentShape& shape, const T* columns, size_t stride, uint32_t first,
                  uint32_t count, MutableByteSpan raw, const uint16_t* order) {
  TIERCEL_CHECK(raw.size() == sizeof(T) * shape.tokens * uint64_t{ColumnCount(shape)});
  T* const to = reinterpret_cast<T*>(raw.data());
  if (shape.order == AxisOrder::kHeadDimToken) {
    for (uint32_t c = 0; c < count; ++c) {
      T* const column = to + size_t{first + c} * shape.tokens;
      if (order == nullptr) {
        std::memcpy(column, columns + c * stride, sizeof(T) * shape.tokens);
      } else {
        for (uint32_t t = 0; t < shape.tokens; ++t) column[order[t]] = columns[c * stride + t];
      }
    }
    return;
  }
  ForPieces(shape, first, count, [&](uint32_t c, uint32_t n, size_t at, size_t pitch) {
    Transpose(columns + (c - first) * stride, {stride}, n, shape.tokens, to + at, {pitch, order}, true, false);
  });
}

template void LoadColumns(const SegmentShape&, ByteSpan, uint32_t, uint32_t, uint8_t*, size_t, const uint16_t*);
template void LoadColumns(const SegmentShape&, ByteSpan, uint32_t, uint32_t, uint16_t*, size_t, const uint16_t*);
template void LoadColumns(const SegmentShape&, ByteSpan, uint32_t, uint32_t, uint32_t*, size_t, const uint16_t*);
template void StoreColumns(const SegmentShape&, const uint8_t*, size_t, uint32_t, uint32_t, MutableByteSpan,
                           const uint16_t*);
template void StoreColumns(const SegmentShape&, const uint16_t*, size_t, uint32_t, uint32_t, MutableByteSpan,
                           const uint16_t*);
template void StoreColumns(const SegmentShape&, const uint32_t*, size_t, uint32_t, uint32_t, MutableByteSpan,
                           const uint16_t*);

}  // namespace tiercel
