// The transposition of tiles of 16-bit values, one an ISA. Internal to kernels/.
#ifndef TIERCEL_KERNELS_COLUMNS_TILES_H_
#define TIERCEL_KERNELS_COLUMNS_TILES_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::columns {

// to[c][r] = from[r][c] for rows r and columns c; pitches in values. Each row of `to` has room for rows
// rounded up to 16, and each row of `from` for cols rounded up to 16, where the flag says so.
using TransposeFn = void (*)(const uint16_t* from, size_t from_pitch, size_t rows, size_t cols,
                             uint16_t* to, size_t to_pitch, bool room_in_from, bool room_in_to);

template <class T>
inline void TransposeScalar(const T* from, size_t from_pitch, size_t rows, size_t cols, T* to,
                            size_t to_pitch) {
  for (size_t r0 = 0; r0 < rows; r0 += 16) {
    const size_t r1 = r0 + 16 < rows ? r0 + 16 : rows;
    for (size_t c = 0; c < cols; ++c) {
      for (size_t r = r0; r < r1; ++r) to[c * to_pitch + r] = from[r * from_pitch + c];
    }
  }
}

#if defined(__x86_64__)
void TransposeAvx2(const uint16_t* from, size_t from_pitch, size_t rows, size_t cols, uint16_t* to,
                   size_t to_pitch, bool room_in_from, bool room_in_to);
#endif

}  // namespace tiercel::columns

#endif  // TIERCEL_KERNELS_COLUMNS_TILES_H_
