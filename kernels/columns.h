// Columns of a plane: the values of one (head, dim) over all tokens of the block, side by side. Entropy
// coding and scaling by channel work on columns whatever the plane's axis order is.
//
//   LoadColumns:  a plane's bytes, any order --> columns [first, first + count), `stride` values apart
//   StoreColumns: the same columns           --> where they belong in the plane's bytes
//
// Column c of a plane is head c / dim, dim c % dim. Of interleaved and latent planes dim is K's and V's
// together, as SegmentShape has it. Work in tiles of kTileColumns.
//
// Invariants: nothing outside the plane, and of each column nothing outside its `stride` values, is
// read or written; values behind `tokens` may be overwritten with anything. Threads: any.
#ifndef TIERCEL_KERNELS_COLUMNS_H_
#define TIERCEL_KERNELS_COLUMNS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "base/check.h"
#include "kernels/codec.h"

namespace tiercel {

inline constexpr uint32_t kTileColumns = 64;  // Two cache lines of a row of 16-bit values.

// How far apart columns lie in a tile: tokens rounded up to 32.
constexpr size_t ColumnStride(uint32_t tokens) { return (size_t{tokens} + 31) / 32 * 32; }
constexpr uint32_t ColumnCount(const SegmentShape& shape) { return shape.heads * shape.dim; }

// T is uint8_t, uint16_t or uint32_t, as wide as the dtype; raw is the whole plane. stride is at least
// ColumnStride(tokens). order: value i of a column is that of token order[i], which has each token once; null:
// of token i.
template <class T>
void LoadColumns(const SegmentShape& shape, ByteSpan raw, uint32_t first, uint32_t count,
                 T* columns, size_t stride, const uint16_t* order = nullptr);
template <class T>
void StoreColumns(const SegmentShape& shape, const T* columns, size_t stride, uint32_t first,
                  uint32_t count, MutableByteSpan raw, const uint16_t* order = nullptr);

// Calls with each piece of columns [first, first + count) that lies in one matrix of tokens and columns: (first of the
// piece, its count, where its first value lies, how far tokens are apart), both in values. Not of kHeadDimToken.
template <class F>
void ForPieces(const SegmentShape& shape, uint32_t first, uint32_t count, F&& piece) {
  TIERCEL_CHECK(first + count <= ColumnCount(shape));
  if (shape.order == AxisOrder::kTokenHeadDim) {
    return piece(first, count, size_t{first}, size_t{shape.heads} * shape.dim);
  }
  for (uint32_t c = first; c < first + count;) {
    const uint32_t head = c / shape.dim;
    const uint32_t n = std::min(first + count, (head + 1) * shape.dim) - c;
    piece(c, n, size_t{head} * shape.tokens * shape.dim + c % shape.dim, size_t{shape.dim});
    c += n;
  }
}

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_COLUMNS_H_
