// The entropy coder one lane at a time: the scalar reference, in plain C++ that a device compiler takes
// too. 32 lanes make a stream (a warp, or two AVX-512 registers) and advance together by rows of 32
// symbols that share one table; a lane is a rANS coder with a state of 31 bits and 16-bit words.
//
//   encode: last row first;  each lane: [emit the low word] x = (x / f) << 12 | x % f + c
//   decode: first row first; each lane: slot = x & 4095, its symbol, x = f * (x >> 12) + slot - c,
//           [x < 2^15: x = x << 16 | the next word]
//
// The words of a row lie in ascending order of their lanes. The alphabet has 16 symbols: 0..14 are the
// values -7..7, 15 is an escape. Layout: docs/block-format.md, "Entropy-coded columns".
#ifndef TIERCEL_KERNELS_RANS_CORE_H_
#define TIERCEL_KERNELS_RANS_CORE_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::rans {

inline constexpr uint32_t kLanes = 32;     // Symbols of a row.
inline constexpr uint32_t kSymbols = 16;
inline constexpr uint32_t kEscape = 15;
inline constexpr int32_t kLargest = 7;     // Of the values with symbols of their own.
inline constexpr uint32_t kBits = 12;      // Frequencies of a table sum to 2^kBits.
inline constexpr uint32_t kSlots = 1u << kBits;
inline constexpr uint32_t kLow = 1u << 15;  // A state at rest is in [kLow, kLow << 16).
inline constexpr uint32_t kMaxStreams = 8;

// A column's class is one byte: table | shift << 5. Table 0: all values are 0 and take no symbols.
// With a shift, the low bits of a value are stored as they are (see Symbol and Rest).
inline constexpr uint32_t kTables = 32;      // With table 0.
inline constexpr uint32_t kWideTable = 24;   // Tables from here on are the ones used with a shift.
inline constexpr uint32_t kMaxShift = 7;
constexpr uint8_t MakeClass(uint32_t table, uint32_t shift) {
  return static_cast<uint8_t>(table | shift << 5);
}
constexpr uint32_t TableOf(uint8_t klass) { return klass & 31u; }
constexpr uint32_t ShiftOf(uint8_t klass) { return klass >> 5; }

// Classes in order of their scale, as they are written: 0..31, then 8 for each further shift.
inline constexpr uint32_t kRanks = kTables + 8 * kMaxShift;
constexpr uint32_t RankOf(uint8_t klass) { return TableOf(klass) + 8 * ShiftOf(klass); }
constexpr uint8_t ClassOfRank(uint32_t rank) {
  return rank < kTables ? MakeClass(rank, 0)
                        : MakeClass(kWideTable + (rank - kTables) % 8, 1 + (rank - kTables) / 8);
}

// The shift for a column whose magnitudes sum to `sum`: the mean is at most 1.75 after it.
constexpr uint32_t ShiftFor(uint64_t sum, uint32_t tokens) {
  uint32_t shift = 0;
  while (shift < kMaxShift && 4 * sum > (uint64_t{7} * tokens) << shift) ++shift;
  return shift;
}

// A value v is v = ((symbol value) << shift | rest) - half, with half = 2^(shift - 1), or 0.
constexpr int32_t HalfOf(uint32_t shift) { return shift == 0 ? 0 : 1 << (shift - 1); }
constexpr int32_t ReducedOf(int32_t value, uint32_t shift) { return (value + HalfOf(shift)) >> shift; }
constexpr uint32_t RestOf(int32_t value, uint32_t shift) {
  return static_cast<uint32_t>(value + HalfOf(shift)) & ((1u << shift) - 1);
}
constexpr int32_t JoinValue(int32_t reduced, uint32_t rest, uint32_t shift) {
  return reduced * (1 << shift) + static_cast<int32_t>(rest) - HalfOf(shift);
}
constexpr uint32_t SymbolOf(int32_t reduced) {
  const uint32_t symbol = static_cast<uint32_t>(reduced + kLargest);
  return symbol < kEscape ? symbol : kEscape;
}

// An escaped (reduced) value takes a byte, the zigzag of it less 15; from 255 on the byte is 255 and the
// value stands among the far ones, 16 bits.
inline constexpr uint32_t kFar = 255;
constexpr uint32_t ZigZag(int32_t v) {
  return (static_cast<uint32_t>(v) << 1) ^ static_cast<uint32_t>(v >> 31);
}
constexpr int32_t UnZigZag(uint32_t z) {
  return static_cast<int32_t>(z >> 1) ^ -static_cast<int32_t>(z & 1);
}
constexpr uint32_t EscapeByte(int32_t reduced) {
  const uint32_t code = ZigZag(reduced) - 15;
  return code < kFar ? code : kFar;
}
constexpr int32_t EscapedValue(uint32_t byte) { return UnZigZag(byte + 15); }

// One lane encodes one symbol of frequency f that starts at slot c. True: *word is to be written.
constexpr bool EncodeLane(uint32_t& x, uint32_t f, uint32_t c, uint16_t* word) {
  const bool emit = x >= f << (31 - kBits);
  if (emit) {
    *word = static_cast<uint16_t>(x);
    x >>= 16;
  }
  x = ((x / f) << kBits) + x % f + c;
  return emit;
}

// The largest symbol whose slots start at or below slot.
template <class Starts>
constexpr uint32_t FindSymbol(const Starts& starts, uint32_t slot) {
  uint32_t symbol = slot >= starts[8] ? 8 : 0;
  symbol += slot >= starts[symbol + 4] ? 4 : 0;
  symbol += slot >= starts[symbol + 2] ? 2 : 0;
  symbol += slot >= starts[symbol + 1] ? 1 : 0;
  return symbol;
}

// What remains of the state once a symbol is taken out. Below kLow, a word must follow (RefillLane).
constexpr uint32_t DecodeLane(uint32_t x, uint32_t f, uint32_t c) {
  return f * (x >> kBits) + (x & (kSlots - 1)) - c;
}
constexpr uint32_t RefillLane(uint32_t x, uint16_t word) { return x << 16 | word; }

// Lanes start at kLow + 15 bits of cargo: bytes that ride in what the first states would waste.
inline constexpr uint32_t kCargoBits = 15;
inline constexpr size_t kCargoBytes = kLanes * kCargoBits / 8;  // Of a stream.

}  // namespace tiercel::rans

#endif  // TIERCEL_KERNELS_RANS_CORE_H_
