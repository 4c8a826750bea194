// How large the kernels' scratch is, and how LLE's is laid out: for kernels and for the host that hands it
// out. Internal to kernels/cuda.
#ifndef TIERCEL_KERNELS_CUDA_SCRATCH_BYTES_H_
#define TIERCEL_KERNELS_CUDA_SCRATCH_BYTES_H_

#include <cstddef>
#include <cstdint>

#include "kernels/levels_core.h"
#include "kernels/llf_core.h"
#include "kernels/rans_core.h"

namespace tiercel::gpu {

inline constexpr uint64_t kSegmentBytes = 320;  // A Segment has at most so many.

// LLF: a u32 for each group, and the base.
constexpr uint64_t LlfScratchBytes(uint64_t values) { return 4 * ((values + llf::kGroup - 1) / llf::kGroup + 1); }
constexpr uint64_t F8ScratchBytes(uint64_t heads) { return 4 * heads; }
constexpr uint64_t I4hScratchBytes(uint64_t values) { return 2 * values + 8; }  // What will be decoded.

// Which rows of symbols there are (rans.cuh); in memory that all of a segment's warps see.
struct RowsPlan {
  uint32_t tail;       // Tokens of a column behind its full rows.
  uint32_t per;        // Full rows of a column.
  uint32_t full_rows;  // Of all.
  uint32_t rows;
  uint32_t row_begin[33];  // First row of each table's tails.
  uint32_t first[32];      // Of each table's columns in `sorted`.
  uint32_t count[32];
};
constexpr uint32_t PitchOf(uint32_t tokens) { return (tokens + 31) / 32 * 32; }
// More rows than any classes give.
constexpr uint64_t MaxRows(uint64_t columns, uint64_t tokens) {
  return columns * (tokens / 32) + columns * (tokens % 32) / 32 + rans::kTables + 1;
}
// Two integer lists, or one in up to eight pieces; a list takes at most 12 bits a value whose zigzag, and whose
// difference's, is below 768, and 5.
constexpr uint64_t ListBytes(uint64_t values) { return (2 * (5 + 12 * values) + 31) / 32 * 4 + 8; }

struct ColumnsPlan {
  RowsPlan rows;
  uint32_t streams;
  uint32_t list_bytes;
  uint32_t escapes, fars;                // How many.
  uint32_t rests;                        // Bytes of low bits; encoding.
  uint32_t plain;                        // I8E, decoding: not 0: there are no columns.
  uint32_t words[rans::kMaxStreams];     // Of each stream.
  uint32_t words_at[rans::kMaxStreams];  // Decoding, from the segment's start; so the three below.
  uint32_t states_at, rests_at, escapes_at;
};

// Where the scratch holds what.
struct ColumnsLayout {
  uint64_t plan = 0, symbols = 0, classes = 0, bases = 0, order = 0, sorted = 0, escapes = 0, fars = 0, rests = 0, lists = 0,
           states = 0, cargo = 0;
  uint64_t words = 0;  // Encoding alone has what lies from here on.
  uint64_t bytes = 0;
};
constexpr ColumnsLayout ColumnsLayoutOf(uint64_t columns, uint64_t tokens) {
  ColumnsLayout at;
  uint64_t next = 0;
  const auto take = [&next](uint64_t bytes) {
    const uint64_t here = next;
    next += (bytes + 63) / 64 * 64;
    return here;
  };
  at.plan = take(sizeof(ColumnsPlan));
  at.symbols = take(columns * PitchOf(static_cast<uint32_t>(tokens)));
  at.classes = take(columns);
  at.bases = take(4 * columns);
  at.order = take(4 * columns);
  at.sorted = take(4 * columns);
  at.escapes = take(4 * columns);
  at.fars = take(4 * columns);
  at.rests = take(4 * columns);
  at.lists = take(ListBytes(columns));
  at.states = take(4 * 32 * rans::kMaxStreams);
  at.cargo = take(2 * 32 * rans::kMaxStreams);
  at.words = take(64 * MaxRows(columns, tokens));
  at.bytes = next;
  return at;
}

// A segment of I8: codes, and a byte a value of each bound at most twice over.
constexpr uint64_t I8Bytes(uint64_t values) { return 5 * values + 64; }

// EC-C's means as a list: 8 bytes each are the most that a decoder takes.
constexpr uint64_t MeanBytes(uint64_t columns) { return 8 * columns + 64; }

struct EcPlan {
  uint32_t exact;      // Tokens.
  uint32_t levels;     // Not 0: tokens have steps of their own.
  uint32_t log_bands;
  uint32_t wild;       // Encoding: K holds a value that is not finite.
  uint32_t largest;    // EC-C, encoding: of the magnitudes' bits.
  uint32_t log_streams;
  uint32_t level_bytes, class_bytes, mean_bytes;
  uint32_t riding;     // Bytes of the means that ride in the streams' states.
  uint32_t steps_at, exact_at, levels_at, classes_at, means_at, block_at;  // From the segment's start.
  int8_t offsets[1 << levels::kMaxLogBands];  // Of bands 1, 2, ..
};

// Where the scratch of EC-C, EC-K and EC-X holds what.
struct EcLayout {
  uint64_t plan = 0, levels = 0, order = 0, level_words = 0, live = 0, means = 0, mean_words = 0, q = 0, coder = 0;
  uint64_t x_decoding = 0;  // Of EC-K and EC-X.
  uint64_t x_encoding = 0, terms = 0;
  uint64_t bytes = 0;  // Encoding.
};
constexpr EcLayout EcLayoutOf(uint64_t columns, uint64_t tokens) {
  // Of as many bands as there can be, what columns need is most.
  const uint32_t log_bands = levels::MostLogBands(static_cast<uint32_t>(tokens));
  const ColumnsLayout coder = ColumnsLayoutOf(columns << log_bands, tokens >> log_bands);
  EcLayout at;
  uint64_t next = 0;
  const auto take = [&next](uint64_t bytes) {
    const uint64_t here = next;
    next += (bytes + 63) / 64 * 64;
    return here;
  };
  at.plan = take(sizeof(EcPlan));
  at.levels = take(tokens);
  at.order = take(2 * tokens);
  at.level_words = take(ListBytes(tokens));
  at.live = take(4 * columns);
  at.means = take(4 * columns);
  at.mean_words = take(MeanBytes(columns));
  at.q = take(2 * columns * tokens);
  at.coder = next;
  at.x_decoding = at.coder + coder.words;
  next = at.coder + coder.bytes;
  at.x_encoding = take(4 * columns * tokens);
  at.terms = take(8 * columns);
  at.bytes = next;
  return at;
}

// Of a segment, by the codec's id.
struct ScratchBytes {
  uint64_t encode = 0;
  uint64_t decode = 0;
};
constexpr ScratchBytes ScratchOf(uint8_t codec, uint64_t columns, uint64_t tokens, uint64_t heads) {
  switch (codec) {
    case 1:
      return {LlfScratchBytes(columns * tokens), 0};
    case 2:
      return {ColumnsLayoutOf(columns, tokens).bytes, ColumnsLayoutOf(columns, tokens).words};
    case 3:
      return {F8ScratchBytes(heads), 0};
    case 5:
      return {I4hScratchBytes(columns * tokens), 0};
    case 10:
      return {ColumnsLayoutOf(columns, tokens).bytes + I8Bytes(columns * tokens),
              ColumnsLayoutOf(columns, tokens).words + I8Bytes(columns * tokens)};
    case 7:
      return {EcLayoutOf(columns, tokens).bytes, EcLayoutOf(columns, tokens).x_decoding};
    case 8:
    case 9:
      return {EcLayoutOf(columns, tokens).bytes, EcLayoutOf(columns, tokens).x_decoding + 4 * columns * tokens};
    default:
      return {};
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_SCRATCH_BYTES_H_
