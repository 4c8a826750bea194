#include <cstdlib>

#include "kernels/rans_rows.h"

namespace tiercel::rans {
namespace {

void Encode(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
            const uint8_t* symbols, States& states, std::byte** tail) {
  for (size_t r = n; r-- > 0;) {
    EncodeRow(tables.lane[rows[r].table], rows[r].lanes, symbols + kLanes * r,
              states[r % streams], tail[r % streams]);
  }
}

bool Decode(const Tables& tables, const Row* rows, size_t n, uint32_t streams, uint8_t* symbols,
            States& states, const std::byte** at, const std::byte* limit) {
  for (size_t r = 0; r < n; ++r) {
    if (at[r % streams] > limit) return false;
    DecodeRow(tables.lane[rows[r].table], rows[r].lanes, symbols + kLanes * r, states[r % streams],
              at[r % streams]);
  }
  return true;
}

uint64_t Magnitude(const int16_t* values, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<uint64_t>(std::abs(int32_t{values[i]}));
  return sum;
}

void Symbols(const int16_t* values, size_t n, uint32_t shift, uint8_t* symbols,
             Histogram& histogram) {
  for (size_t i = 0; i < n; ++i) {
    const uint32_t symbol = SymbolOf(ReducedOf(values[i], shift));
    symbols[i] = static_cast<uint8_t>(symbol);
    ++histogram.count[symbol];
  }
}

void ByteSymbols(const uint8_t* bytes, size_t n, int32_t base, uint8_t* symbols, Histogram& histogram) {
  for (size_t i = 0; i < n; ++i) {
    const uint32_t symbol = SymbolOf(bytes[i] - base);
    symbols[i] = static_cast<uint8_t>(symbol);
    ++histogram.count[symbol];
  }
}

uint32_t BestTable(const CostTable& costs, const Histogram& histogram, uint32_t first) {
  uint32_t best = first;
  uint32_t least = UINT32_MAX;
  for (uint32_t t = first; t < kTables; ++t) {
    uint32_t sum = 0;
    for (uint32_t p = 0; p < 8; ++p) {
      sum += histogram.count[2 * p] * (costs.pair[p][t] & 0xffff) +
             histogram.count[2 * p + 1] * (costs.pair[p][t] >> 16);
    }
    if (sum < least) {
      least = sum;
      best = t;
    }
  }
  return best;
}

void Rests(const int16_t* values, size_t n, uint32_t shift, std::byte* planes,
           size_t plane_bytes) {
  for (size_t first = 0; first < n; first += 8) {
    // Eight values' rests, a byte each; then bit b of each byte to plane b.
    uint64_t bytes = 0;
    for (size_t i = first; i < n && i < first + 8; ++i) {
      bytes |= uint64_t{RestOf(values[i], shift)} << (8 * (i - first));
    }
    for (uint32_t b = 0; b < shift; ++b) {
      const uint64_t bits = bytes >> b & 0x0101010101010101u;
      planes[b * plane_bytes + first / 8] = static_cast<std::byte>(bits * 0x0102040810204080u >> 56);
    }
  }
}

size_t Escapes(const uint8_t* symbols, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) count += symbols[i] == kEscape ? 1 : 0;
  return count;
}

bool Values(const uint8_t* symbols, size_t n, uint32_t shift, const std::byte* rests,
            size_t plane_bytes, int16_t* values) {
  bool escapes = false;
  for (size_t i = 0; i < n; ++i) {
    uint32_t rest = 0;
    for (uint32_t b = 0; b < shift; ++b) {
      const auto byte = std::to_integer<uint32_t>(rests[b * plane_bytes + i / 8]);
      rest |= (byte >> (i % 8) & 1) << b;
    }
    escapes |= symbols[i] == kEscape;
    values[i] = static_cast<int16_t>(JoinValue(symbols[i] - kLargest, rest, shift));
  }
  return escapes;
}

bool ByteValues(const uint8_t* symbols, size_t n, int32_t base, uint8_t* bytes) {
  bool escapes = false;
  for (size_t i = 0; i < n; ++i) {
    escapes |= symbols[i] == kEscape;
    bytes[i] = static_cast<uint8_t>(symbols[i] + base - kLargest);
  }
  return escapes;
}

}  // namespace

RowFns ScalarRows() {
  return {Encode, Decode, Magnitude, Symbols, ByteSymbols, BestTable, Rests, Escapes, Values, ByteValues};
}

}  // namespace tiercel::rans
