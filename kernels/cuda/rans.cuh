// The entropy coder of columns (kernels/rans.h) on a GPU: a stream's 32 lanes are a warp's. What codecs of
// entropy-coded columns share: the frozen tables, integer lists, which symbols a row holds, and the rows.
//
// Symbols stand a byte each, [column][token] with columns `pitch` apart. Warp functions: every lane of the
// warp calls. Bounds: readers stay within the bytes they are told of, whatever those are.
//
// Bitstream: docs/block-format.md, "Integer lists" and "Entropy-coded columns".
#ifndef TIERCEL_KERNELS_CUDA_RANS_CUH_
#define TIERCEL_KERNELS_CUDA_RANS_CUH_

#include "kernels/cuda/scratch_bytes.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/rans_core.h"
#include "kernels/rans_frozen.h"

namespace tiercel::gpu {

inline constexpr uint32_t kQuantizedSet = 0;
inline constexpr uint32_t kExponentSet = 1;

struct RansTables {
  uint32_t packed[2][rans::kTables][rans::kSymbols];  // start | frequency << 16.
  uint16_t start[2][rans::kTables][rans::kSymbols];
  uint16_t cost[2][rans::kTables][rans::kSymbols];
};
constexpr RansTables MakeRansTables() {
  RansTables out{};
  for (uint32_t set = 0; set < 2; ++set) {
    const auto& frequencies = set == kQuantizedSet ? rans::kQuantizedFrequencies : rans::kExponentFrequencies;
    const auto& costs = set == kQuantizedSet ? rans::kQuantizedCosts : rans::kExponentCosts;
    for (uint32_t t = 1; t < rans::kTables; ++t) {
      uint32_t start = 0;
      for (uint32_t s = 0; s < rans::kSymbols; ++s) {
        out.packed[set][t][s] = start | static_cast<uint32_t>(frequencies[t - 1][s]) << 16;
        out.start[set][t][s] = static_cast<uint16_t>(start);
        out.cost[set][t][s] = costs[t - 1][s];
        start += frequencies[t - 1][s];
      }
    }
  }
  return out;
}
TIERCEL_TABLE RansTables kRansTables = MakeRansTables();

// The cheapest table from `first` on; among equals the lowest. count(symbol): how many of each.
template <class Count>
TIERCEL_DEVICE uint32_t BestTable(uint32_t set, uint32_t first, Count count) {
  uint32_t counts[rans::kSymbols];
  for (uint32_t s = 0; s < rans::kSymbols; ++s) counts[s] = count(s);
  uint32_t best = first, least = 0xffffffffu;
  for (uint32_t t = first; t < rans::kTables; ++t) {
    uint32_t sum = 0;
    for (uint32_t s = 0; s < rans::kSymbols; ++s) sum += counts[s] * kRansTables.cost[set][t][s];
    if (sum < least) {
      least = sum;
      best = t;
    }
  }
  return best;
}

// ---- Integer lists.

// The low `count` bits (32 at most) of value at bit `at` of words that are zero there.
TIERCEL_DEVICE void PutBits(uint32_t* words, uint32_t at, uint32_t value, uint32_t count) {
  if (count == 0) return;
  if (count < 32) value &= (1u << count) - 1;
  AtomicOr(words + at / 32, value << (at % 32));
  if (at % 32 + count > 32) AtomicOr(words + at / 32 + 1, value >> (32 - at % 32));
}

// Appends a list of n values, value(i), at bit `at`; the bit behind it. Warp.
template <class Value>
TIERCEL_DEVICE uint32_t PutList(uint32_t* words, uint32_t at, uint32_t n, Value value) {
  const uint32_t lane = Lane();
  // Each lane has one way to write the list: the differences or not, of order lane % 16.
  uint32_t cost = 0;
  int32_t last = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const int32_t v = value(i);
    const uint32_t z = rans::ZigZag(lane < 16 ? v : v - last);
    last = v;
    cost += 2 * BitWidth(z + (1u << lane % 16)) - 1 - lane % 16;
  }
  uint32_t best = lane;
  for (uint32_t step = 1; step < 32; step *= 2) {
    const uint32_t other = Shuffle(cost, lane ^ step);
    const uint32_t whose = Shuffle(best, lane ^ step);
    if (other < cost || (other == cost && whose < best)) {
      cost = other;
      best = whose;
    }
  }
  const uint32_t k = best % 16;
  if (lane == 0) PutBits(words, at, best / 16 | k << 1, 5);
  at += 5;
  for (uint32_t first = 0; first < n; first += 32) {
    const uint32_t i = first + lane;
    uint32_t u = 0, bits = 0, width = 0;
    if (i < n) {
      const int32_t v = value(i);
      u = rans::ZigZag(best < 16 || i == 0 ? v : v - value(i - 1)) + (1u << k);
      width = BitWidth(u);
      bits = 2 * width - 1 - k;
    }
    uint32_t all = 0;
    const uint32_t mine = at + WarpScan(bits, &all) + bits - width;  // Where the one stands.
    if (i < n) {
      PutBits(words, mine, 1, 1);
      PutBits(words, mine + 1, u, width - 1);
    }
    at += all;
  }
  return at;
}

// A string of bits, one thread's. Zeros behind its end.
struct BitSource {
  const uint8_t* bytes;
  uint32_t size;      // In bytes.
  uint32_t next = 0;  // Byte.
  uint32_t held_bits = 0;
  uint32_t used = 0;  // Bits.
  uint64_t held = 0;
  TIERCEL_DEVICE BitSource(const uint8_t* from, uint32_t n) : bytes(from), size(n) {}
  TIERCEL_DEVICE void Fill() {
    while (held_bits <= 56) {
      held |= static_cast<uint64_t>(next < size ? bytes[next] : 0) << held_bits;
      ++next;
      held_bits += 8;
    }
  }
  TIERCEL_DEVICE void Drop(uint32_t bits) {
    held >>= bits;
    held_bits -= bits;
    used += bits;
  }
  TIERCEL_DEVICE bool ok() const { return used <= 8 * size; }
};

// n values to put(i, v); false: not such a list, or a value outside [low, high]. One thread's.
template <class Put>
TIERCEL_DEVICE bool GetList(BitSource& in, uint32_t n, int32_t low, int32_t high, Put put) {
  in.Fill();
  const bool delta = (in.held & 1) != 0;
  const auto k = static_cast<uint32_t>(in.held >> 1 & 15);
  in.Drop(5);
  int32_t last = 0;
  for (uint32_t i = 0; i < n; ++i) {
    in.Fill();
    const auto window = static_cast<uint32_t>(in.held);
    const uint32_t zeros = window == 0 ? 32 : LowestOne(window);
    const uint32_t bits = zeros + k;
    if (bits > 26) return false;
    const uint32_t u = (1u << bits) + (static_cast<uint32_t>(in.held >> (zeros + 1)) & ((1u << bits) - 1));
    in.Drop(zeros + 1 + bits);
    const int32_t v = rans::UnZigZag(u - (1u << k)) + (delta ? last : 0);
    if (v < low || v > high) return false;
    put(i, v);
    last = v;
  }
  return in.ok();
}

// ---- Rows.

// Fills in the plan, the columns with symbols (order) and, if there are tails, those by table (sorted). Warp.
TIERCEL_DEVICE void LayRows(const uint8_t* classes, uint32_t columns, uint32_t tokens, RowsPlan* plan, uint32_t* order,
                            uint32_t* sorted) {
  const uint32_t lane = Lane();
  const uint32_t tail = tokens % 32;
  uint32_t nonzero = 0, mine = 0;  // Columns of table `lane`.
  for (uint32_t begin = 0; begin < columns; begin += 32) {
    const uint32_t c = begin + lane;
    const uint32_t table = c < columns ? rans::TableOf(classes[c]) : 0;
    const uint32_t live = Ballot(table != 0);
    if (table != 0) order[nonzero + CountOnes(live & LanesBelow())] = c;
    nonzero += CountOnes(live);
    if (tail == 0) continue;
    for (uint32_t i = 0; i < 32; ++i) mine += Shuffle(table, i) == lane ? 1 : 0;
  }
  if (lane == 0) mine = 0;
  uint32_t tail_rows = 0, all = 0;
  const uint32_t full_rows = nonzero * (tokens / 32);
  const uint32_t row = full_rows + WarpScan((mine * tail + 31) / 32, &tail_rows);
  const uint32_t first = WarpScan(mine, &all);
  plan->row_begin[lane] = row;
  plan->first[lane] = first;
  plan->count[lane] = mine;
  if (lane == 0) {
    plan->row_begin[32] = full_rows + tail_rows;
    plan->tail = tail;
    plan->per = tokens / 32;
    plan->full_rows = full_rows;
    plan->rows = full_rows + tail_rows;
  }
  if (tail == 0) return;
  uint32_t next = first;
  for (uint32_t begin = 0; begin < columns; begin += 32) {
    const uint32_t c = begin + lane;
    const uint32_t table = c < columns ? rans::TableOf(classes[c]) : 0;
    uint32_t before = 0, added = 0;
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t other = Shuffle(table, i);
      before += i < lane && other == table ? 1 : 0;
      added += other == lane ? 1 : 0;
    }
    const uint32_t at = Shuffle(next, table) + before;
    if (table != 0) sorted[at] = c;
    if (lane != 0) next += added;
  }
}

// The lane's place in a row.
struct RowPlace {
  uint32_t table;
  uint32_t column;
  uint32_t token;
  bool live;
};
TIERCEL_DEVICE RowPlace PlaceInRow(const RowsPlan& plan, const uint8_t* classes, const uint32_t* order, const uint32_t* sorted,
                                   uint32_t row) {
  const uint32_t lane = Lane();
  if (row < plan.full_rows) {
    const uint32_t column = order[row / plan.per];
    return {rans::TableOf(classes[column]), column, row % plan.per * 32 + lane, true};
  }
  const uint32_t table = LowestOne(Ballot(row >= plan.row_begin[lane] && row < plan.row_begin[lane + 1]));
  const uint32_t at = (row - plan.row_begin[table]) * 32 + lane;
  const bool live = at < plan.count[table] * plan.tail;
  if (!live) return {table, 0, 0, false};
  return {table, sorted[plan.first[table] + at / plan.tail], plan.per * 32 + at % plan.tail, true};
}

// The rows of stream `stream` of `streams`, from the last to the first; the words end at `end`. Gives how many
// words there are. Warp.
template <class Place>
TIERCEL_DEVICE uint32_t EncodeRows(uint32_t set, uint32_t rows, uint32_t stream, uint32_t streams, const uint8_t* symbols,
                                   uint32_t pitch, uint32_t* state, uint16_t* end, Place place) {
  uint32_t words = 0;
  const uint32_t mine = rows > stream ? (rows - 1 - stream) / streams + 1 : 0;
  for (uint32_t left = mine; left > 0; --left) {
    const RowPlace at = place(stream + (left - 1) * streams);
    uint16_t word = 0;
    bool emit = false;
    if (at.live) {
      const uint32_t entry = kRansTables.packed[set][at.table][symbols[at.column * pitch + at.token]];
      emit = rans::EncodeLane(*state, entry >> 16, entry & 0xffffu, &word);
    }
    const uint32_t all = Ballot(emit);
    words += CountOnes(all);
    if (emit) *(end - words + CountOnes(all & LanesBelow())) = word;
  }
  return words;
}

// The same rows from the first to the last, out of `words` words; false where they do not come to their end
// exactly. escape(column) is called for each escape. Warp.
template <class Place, class Escape>
TIERCEL_DEVICE bool DecodeRows(uint32_t set, uint32_t rows, uint32_t stream, uint32_t streams, uint8_t* symbols, uint32_t pitch,
                               uint32_t* state, const uint8_t* words, uint32_t n_words, Place place, Escape escape) {
  uint32_t used = 0;
  uint32_t x = *state;
  for (uint32_t row = stream; row < rows; row += streams) {
    const RowPlace at = place(row);
    bool need = false;
    if (at.live) {
      const uint16_t* const start = kRansTables.start[set][at.table];
      const uint32_t slot = x & (rans::kSlots - 1);
      uint32_t symbol = 0;
      for (uint32_t s = 1; s < rans::kSymbols; ++s) symbol += slot >= start[s] ? 1 : 0;
      const uint32_t entry = kRansTables.packed[set][at.table][symbol];
      x = rans::DecodeLane(x, entry >> 16, entry & 0xffffu);
      symbols[at.column * pitch + at.token] = static_cast<uint8_t>(symbol);
      if (symbol == rans::kEscape) escape(at.column);
      need = x < rans::kLow;
    }
    const uint32_t all = Ballot(need);
    if (used + CountOnes(all) > n_words) return false;
    if (need) x = rans::RefillLane(x, static_cast<uint16_t>(LoadU16(words + 2 * (used + CountOnes(all & LanesBelow())))));
    used += CountOnes(all);
  }
  *state = x;
  return used == n_words && Ballot(x >> 16 != 0) == 0;
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_RANS_CUH_
