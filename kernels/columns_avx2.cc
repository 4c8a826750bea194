#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/columns_tiles.h"

#define TIERCEL_AVX2 __attribute__((target("avx2")))

namespace tiercel::columns {
namespace {

// The next 32 columns' part of a row, which the caller comes to after these: rows lie too far apart for
// the hardware to guess. Into the second cache: in the first, rows 2 KiB apart push each other out.
TIERCEL_AVX2 inline void Ask(const uint16_t* row) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(row) + 64), _MM_HINT_T1);
}

// Rows and columns of 16 x 16; unless kWhole, only the first `in` rows are read and the first `out` ones
// written. By itself: woven into its caller's loops, every row would keep a pointer in memory.
template <bool kWhole>
TIERCEL_AVX2 __attribute__((noinline)) void Tile(const uint16_t* from, size_t from_pitch, size_t in, uint16_t* to,
                                                size_t to_pitch, size_t out) {
  __m256i a[16];
  __m256i b[16];
  // Row r and r + 8 side by side, so that unpacking within 128 bits ends with whole columns.
  for (size_t i = 0; i < 16; ++i) {
    a[i] = kWhole || i < in ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * from_pitch))
                  : _mm256_setzero_si256();
  }
  for (size_t i = 0; i < 8; ++i) {
    b[i] = _mm256_permute2x128_si256(a[i], a[i + 8], 0x20);      // Columns 0..7.
    b[i + 8] = _mm256_permute2x128_si256(a[i], a[i + 8], 0x31);  // Columns 8..15.
  }
  for (size_t half = 0; half < 16; half += 8) {
    __m256i* const x = b + half;
    __m256i y[8];
    for (size_t i = 0; i < 4; ++i) {
      y[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
      y[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    }
    __m256i z[8];
    for (size_t i = 0; i < 2; ++i) {
      z[4 * i + 0] = _mm256_unpacklo_epi32(y[4 * i], y[4 * i + 2]);
      z[4 * i + 1] = _mm256_unpackhi_epi32(y[4 * i], y[4 * i + 2]);
      z[4 * i + 2] = _mm256_unpacklo_epi32(y[4 * i + 1], y[4 * i + 3]);
      z[4 * i + 3] = _mm256_unpackhi_epi32(y[4 * i + 1], y[4 * i + 3]);
    }
    for (size_t i = 0; i < 4; ++i) {
      const __m256i low = _mm256_unpacklo_epi64(z[i], z[i + 4]);
      const __m256i high = _mm256_unpackhi_epi64(z[i], z[i + 4]);
      uint16_t* const row = to + (half + 2 * i) * to_pitch;
      if (kWhole || half + 2 * i < out) _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), low);
      if (kWhole || half + 2 * i + 1 < out) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + to_pitch), high);
      }
    }
  }
}

}  // namespace

TIERCEL_AVX2 void TransposeAvx2(const uint16_t* from, size_t from_pitch, size_t rows, size_t cols,
                                uint16_t* to, size_t to_pitch, bool room_in_from,
                                bool room_in_to) {
  // What the tiles cannot take at the edges, one by one.
  const size_t wide_rows = room_in_to ? rows : rows / 16 * 16;
  const size_t wide_cols = room_in_from ? cols : cols / 16 * 16;
  // 32 columns at a time, which are a cache line of `from`.
  for (size_t c0 = 0; c0 < wide_cols; c0 += 32) {
    const size_t c1 = c0 + 32 < wide_cols ? c0 + 32 : wide_cols;
    for (size_t r = 0; r < wide_rows; r += 16) {
      if (!room_in_from) {  // From a plane to columns.
        for (size_t i = r; i < r + 16 && i < wide_rows; ++i) Ask(from + i * from_pitch + c0);
      }
      for (size_t c = c0; c < c1; c += 16) {
        const uint16_t* const at = from + r * from_pitch + c;
        uint16_t* const out = to + c * to_pitch + r;
        if (room_in_from && r % 32 == 0) {  // From columns to a plane: its rows are these columns.
          for (size_t i = c; i < c + 16 && i < wide_cols; ++i) Ask(to + i * to_pitch + r);
        }
        if (wide_rows - r >= 16 && wide_cols - c >= 16) {
          Tile<true>(at, from_pitch, 16, out, to_pitch, 16);
        } else {
          Tile<false>(at, from_pitch, wide_rows - r, out, to_pitch, wide_cols - c);
        }
      }
    }
  }
  if (wide_rows < rows) {
    TransposeScalar(from + wide_rows * from_pitch, from_pitch, rows - wide_rows, wide_cols,
                    to + wide_rows, to_pitch);
  }
  if (wide_cols < cols) {
    TransposeScalar(from + wide_cols, from_pitch, rows, cols - wide_cols, to + wide_cols * to_pitch,
                    to_pitch);
  }
}

}  // namespace tiercel::columns

#endif  // __x86_64__
