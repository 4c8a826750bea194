// The transposition of tiles of 16-bit values, one an ISA. Internal to kernels/.
#ifndef TIERCEL_KERNELS_COLUMNS_TILES_H_
#define TIERCEL_KERNELS_COLUMNS_TILES_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::columns {

// Where row r of a matrix begins, in values; with an order, that of row order[r].
struct Rows {
  size_t pitch;
  const uint16_t* order = nullptr;
  size_t At(size_t r) const { return (order != nullptr ? order[r] : r) * pitch; }
};

// to[c][r] = from[r][c] for rows r and columns c. Each row of `to` has room for rows rounded up to 16, and
// each row of `from` for cols rounded up to 16, where the flag says so; only a side without room has an order.
template <class T>
inline void TransposeScalar(const T* from, Rows from_rows, size_t first_row, size_t end_row, size_t first_column,
                            size_t end_column, T* to, Rows to_rows) {
  for (size_t r0 = first_row; r0 < end_row; r0 += 16) {
    const size_t r1 = r0 + 16 < end_row ? r0 + 16 : end_row;
    for (size_t c = first_column; c < end_column; ++c) {
      T* const column = to + to_rows.At(c);
      for (size_t r = r0; r < r1; ++r) column[r] = from[from_rows.At(r) + c];
    }
  }
}

#if defined(__x86_64__)
void TransposeAvx2(const uint16_t* from, Rows from_rows, size_t rows, size_t cols, uint16_t* to, Rows to_rows,
                   bool room_in_from, bool room_in_to);
void TransposeAvx512(const uint16_t* from, Rows from_rows, size_t rows, size_t cols, uint16_t* to, Rows to_rows,
                     bool room_in_from, bool room_in_to);
#endif

}  // namespace tiercel::columns

#endif  // TIERCEL_KERNELS_COLUMNS_TILES_H_
