// The inner loops of the entropy coder, one set an ISA; all give the same. Internal to kernels/.
#ifndef TIERCEL_KERNELS_RANS_ROWS_H_
#define TIERCEL_KERNELS_RANS_ROWS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "kernels/rans_core.h"
#include "kernels/rans_tables.h"

namespace tiercel::rans {

struct Row {
  uint8_t table;
  uint8_t lanes;  // 32, or fewer in the last row of a table's tails: the first lanes only.
};

using States = std::array<std::array<uint32_t, kLanes>, kMaxStreams>;

// Row r is row r / streams of stream r % streams; its symbols, a byte each, are at 32 r. Encodes from
// the last row to the first; the words of stream s are written downwards from tail[s], where there is room for 64 bytes
// of each of its rows: what is left of that may be written to.
using EncodeRowsFn = void (*)(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
                              const uint8_t* symbols, States& states, std::byte** tail);

// at[s] is where the words of stream s go on. False as soon as one is beyond limit; 64 bytes from limit
// on can be read.
using DecodeRowsFn = bool (*)(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
                              uint8_t* symbols, States& states, const std::byte** at,
                              const std::byte* limit);

// What a column's values come to, reduced by a shift.
struct alignas(32) Histogram {
  std::array<uint16_t, kSymbols> count{};
};
// The sum of magnitudes of n values.
using MagnitudeFn = uint64_t (*)(const int16_t* values, size_t n);
// Symbols of n values (n at most 4096).
using SymbolsFn = void (*)(const int16_t* values, size_t n, uint32_t shift, uint8_t* symbols,
                           Histogram& histogram);
// The same of n values bytes[i] - base, not reduced; base is -2 to 255.
using ByteSymbolsFn = void (*)(const uint8_t* bytes, size_t n, int32_t base, uint8_t* symbols, Histogram& histogram);
// The cheapest table from `first` on; among equals the lowest.
using BestTableFn = uint32_t (*)(const CostTable& costs, const Histogram& histogram, uint32_t first);
// The low bits of n values to `shift` planes.
using RestsFn = void (*)(const int16_t* values, size_t n, uint32_t shift, std::byte* planes,
                         size_t plane_bytes);
// How many of n symbols are escapes; n is a multiple of 32.
using EscapesFn = size_t (*)(const uint8_t* symbols, size_t n);
// n symbols to values -7..8, shifted left; true where one is an escape. rests: shift planes of
// plane_bytes, or null where shift is 0.
using ValuesFn = bool (*)(const uint8_t* symbols, size_t n, uint32_t shift, const std::byte* rests,
                          size_t plane_bytes, int16_t* values);
// n symbols to the low bytes of base - 7..8; true where one is an escape.
using ByteValuesFn = bool (*)(const uint8_t* symbols, size_t n, int32_t base, uint8_t* bytes);

struct RowFns {
  EncodeRowsFn encode;
  DecodeRowsFn decode;
  MagnitudeFn magnitude;
  SymbolsFn symbols;
  ByteSymbolsFn byte_symbols;
  BestTableFn best_table;
  RestsFn rests;
  EscapesFn escapes;
  ValuesFn values;
  ByteValuesFn byte_values;
};

RowFns ScalarRows();
#if defined(__x86_64__)
RowFns Avx2Rows();
bool HasAvx512Rows();  // They need VBMI2, BITALG and GFNI.
RowFns Avx512Rows();
#endif
RowFns ActiveRows();

// One row, any number of lanes: the reference, and what the wide loops do with a short row.
inline void EncodeRow(const LaneTable& table, uint32_t lanes, const uint8_t* symbols,
                      std::array<uint32_t, kLanes>& states, std::byte*& tail) {
  for (uint32_t lane = lanes; lane-- > 0;) {
    const uint32_t symbol = symbols[lane];
    uint16_t word = 0;
    if (EncodeLane(states[lane], table.frequency[symbol], table.start[symbol], &word)) {
      tail -= 2;
      StoreLe(tail, word);
    }
  }
}
inline void DecodeRow(const LaneTable& table, uint32_t lanes, uint8_t* symbols,
                      std::array<uint32_t, kLanes>& states, const std::byte*& at) {
  for (uint32_t lane = 0; lane < lanes; ++lane) {
    uint32_t& x = states[lane];
    const uint32_t symbol = FindSymbol(table.start, x & (kSlots - 1));
    symbols[lane] = static_cast<uint8_t>(symbol);
    x = DecodeLane(x, table.frequency[symbol], table.start[symbol]);
    if (x < kLow) {
      x = RefillLane(x, LoadLe<uint16_t>(at));
      at += 2;
    }
  }
  for (uint32_t lane = lanes; lane < kLanes; ++lane) symbols[lane] = 0;
}

}  // namespace tiercel::rans

#endif  // TIERCEL_KERNELS_RANS_ROWS_H_
