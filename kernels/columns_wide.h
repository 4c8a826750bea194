// Tiles of 16 x 16 for wide registers, written once for every ISA: a file for an ISA includes it with TIERCEL_TILES, its
// target, before it. 16 registers are too few for a tile, so that AVX2 spills; AVX-512's 32 of the same width are enough.
// Internal to kernels/.
#ifndef TIERCEL_KERNELS_COLUMNS_WIDE_H_
#define TIERCEL_KERNELS_COLUMNS_WIDE_H_

#if defined(__x86_64__)

#include <immintrin.h>

#include "base/prefetch.h"
#include "kernels/columns_tiles.h"

#ifndef TIERCEL_TILES
#define TIERCEL_TILES __attribute__((target("avx2")))
#endif

namespace tiercel::columns {
namespace {

// The next 32 columns' part of a row, which the caller comes to after these: rows lie too far apart for
// the hardware to guess. Into the second cache: in the first, rows 2 KiB apart push each other out.
TIERCEL_TILES inline void Ask(const uint16_t* row) {
  Prefetch<CacheLevel::kL2>(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(row) + 64));
}

// Rows and columns of 16 x 16, from row r and column c on; unless kWhole, only the first `in` rows are read
// and the first `out` ones written. By itself: woven into its caller's loops, every row would keep a pointer
// in memory.
template <bool kWhole, class In, class Out>
TIERCEL_TILES __attribute__((noinline)) void Tile(const uint16_t* from, In from_row, size_t r, size_t in, uint16_t* to,
                                                Out to_row, size_t c, size_t out) {
  from += c;
  to += r;
  __m256i a[16];
  __m256i b[16];
  // Row r and r + 8 side by side, so that unpacking within 128 bits ends with whole columns.
  for (size_t i = 0; i < 16; ++i) {
    a[i] = kWhole || i < in ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + from_row(r + i)))
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
      const size_t k = half + 2 * i;
      if (kWhole || k < out) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + to_row(c + k)), low);
      if (kWhole || k + 1 < out) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + to_row(c + k + 1)), high);
    }
  }
}

struct EvenRows {
  size_t pitch;
  size_t operator()(size_t r) const { return r * pitch; }
};
struct OrderedRows {
  size_t pitch;
  const uint16_t* order;
  size_t operator()(size_t r) const { return order[r] * pitch; }
};

template <class In, class Out>
TIERCEL_TILES inline void OneTile(const uint16_t* from, In from_row, size_t rows, size_t cols, uint16_t* to, Out to_row,
                                  size_t r, size_t c) {
  if (rows - r >= 16 && cols - c >= 16) {
    Tile<true>(from, from_row, r, 16, to, to_row, c, 16);
  } else {
    Tile<false>(from, from_row, r, rows - r, to, to_row, c, cols - c);
  }
}

template <class In, class Out>
TIERCEL_TILES void Tiles(const uint16_t* from, In from_row, size_t rows, size_t cols, uint16_t* to, Out to_row,
                        bool room_in_from) {
  if (room_in_from) {
    // From columns to a plane, 16 of whose rows are written at once and along them: rows are often 2 KiB apart, and the
    // first cache has room for few of their lines.
    for (size_t c = 0; c < cols; c += 16) {
      for (size_t r0 = 0; r0 < rows; r0 += 32) {
        for (size_t i = c; i < c + 16 && i < cols; ++i) Ask(to + to_row(i) + r0);
        for (size_t r = r0; r < r0 + 32 && r < rows; r += 16) {
          OneTile(from, from_row, rows, cols, to, to_row, r, c);
        }
      }
    }
    return;
  }
  // From a plane to columns, 32 of them at a time, which are a cache line of its rows.
  for (size_t c0 = 0; c0 < cols; c0 += 32) {
    for (size_t r = 0; r < rows; r += 16) {
      for (size_t i = r; i < r + 16 && i < rows; ++i) Ask(from + from_row(i) + c0);
      for (size_t c = c0; c < c0 + 32 && c < cols; c += 16) {
        OneTile(from, from_row, rows, cols, to, to_row, r, c);
      }
    }
  }
}

TIERCEL_TILES inline void TransposeWide(const uint16_t* from, Rows from_rows, size_t rows, size_t cols, uint16_t* to,
                                        Rows to_rows, bool room_in_from, bool room_in_to) {
  // What the tiles cannot take at the edges, one by one.
  const size_t wide_rows = room_in_to ? rows : rows / 16 * 16;
  const size_t wide_cols = room_in_from ? cols : cols / 16 * 16;
  const EvenRows even_from{from_rows.pitch};
  const EvenRows even_to{to_rows.pitch};
  if (from_rows.order != nullptr) {
    Tiles(from, OrderedRows{from_rows.pitch, from_rows.order}, wide_rows, wide_cols, to, even_to, room_in_from);
  } else if (to_rows.order != nullptr) {
    Tiles(from, even_from, wide_rows, wide_cols, to, OrderedRows{to_rows.pitch, to_rows.order}, room_in_from);
  } else {
    Tiles(from, even_from, wide_rows, wide_cols, to, even_to, room_in_from);
  }
  TransposeScalar(from, from_rows, wide_rows, rows, 0, wide_cols, to, to_rows);
  TransposeScalar(from, from_rows, 0, rows, wide_cols, cols, to, to_rows);
}

}  // namespace
}  // namespace tiercel::columns

#endif  // __x86_64__

#endif  // TIERCEL_KERNELS_COLUMNS_WIDE_H_
