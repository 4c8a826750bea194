// The entropy-coded columns of a segment (docs/block-format.md) in its scratch: what LLE, I8E and the EC
// codecs share. A codec fills in symbols, classes, escapes and fars, column by column; from there on it is the same.
//
//   encode:  PlaceColumns, EncodeStream a warp and stream, PackBlock
//   decode:  OpenBlock, DecodeStream a warp and stream, ScanColumns, ColumnReader a column
//
// Errors: OpenBlock, DecodeStream and ScanColumns say false of a malformed block; nothing outside it is read.
#ifndef TIERCEL_KERNELS_CUDA_COLUMNS_CUH_
#define TIERCEL_KERNELS_CUDA_COLUMNS_CUH_

#include "kernels/cuda/rans.cuh"

namespace tiercel::gpu {

inline constexpr uint32_t kStreamsBlock = 32 * rans::kMaxStreams;  // Threads that a segment's streams take.

struct ColumnsMemory {
  ColumnsPlan* plan;
  uint8_t* symbols;
  uint8_t* classes;
  int32_t* bases;
  uint32_t *order, *sorted, *escapes, *fars, *rests, *lists, *states;
  uint16_t *cargo, *words;
  uint32_t columns, tokens, pitch;
  TIERCEL_DEVICE ColumnsMemory(uint8_t* scratch, uint32_t n_columns, uint32_t n_tokens)
      : columns(n_columns), tokens(n_tokens), pitch(PitchOf(n_tokens)) {
    const ColumnsLayout at = ColumnsLayoutOf(n_columns, n_tokens);
    const auto u32 = [scratch](uint64_t offset) { return reinterpret_cast<uint32_t*>(scratch + offset); };
    plan = reinterpret_cast<ColumnsPlan*>(scratch + at.plan);
    symbols = scratch + at.symbols;
    classes = scratch + at.classes;
    bases = reinterpret_cast<int32_t*>(scratch + at.bases);
    order = u32(at.order);
    sorted = u32(at.sorted);
    escapes = u32(at.escapes);
    fars = u32(at.fars);
    rests = u32(at.rests);
    lists = u32(at.lists);
    states = u32(at.states);
    cargo = reinterpret_cast<uint16_t*>(scratch + at.cargo);
    words = reinterpret_cast<uint16_t*>(scratch + at.words);
  }
  TIERCEL_DEVICE uint32_t rest_bytes() const { return (tokens + 7) / 8; }  // Of one of a column's planes of low bits.
  TIERCEL_DEVICE RowPlace Place(uint32_t row) const { return PlaceInRow(plan->rows, classes, order, sorted, row); }
};

TIERCEL_DEVICE uint32_t StreamsFor(uint32_t values, uint32_t each) {
  const uint32_t streams = values / each;
  if (streams == 0) return 1;
  return streams >= rans::kMaxStreams ? rans::kMaxStreams : 1u << (BitWidth(streams) - 1);
}

// ---- Encoding.

// A column's class of the set "quantized", symbols and counts of escapes; value(t) gives what is coded. counts: of the
// thread alone, every 32nd of rans::kSymbols.
template <class Value>
TIERCEL_DEVICE void ClassifyColumn(const ColumnsMemory& m, uint32_t c, uint16_t* counts, Value value) {
  uint32_t sum = 0;
  for (uint32_t t = 0; t < m.tokens; ++t) {
    const int32_t v = value(t);
    sum += static_cast<uint32_t>(v < 0 ? -v : v);
  }
  m.escapes[c] = 0;
  m.fars[c] = 0;
  m.classes[c] = 0;
  if (sum == 0) return;
  const uint32_t shift = rans::ShiftFor(sum, m.tokens);
  for (uint32_t i = 0; i < rans::kSymbols; ++i) counts[32 * i] = 0;
  ByteRun symbols(m.symbols + c * m.pitch);
  uint32_t escapes = 0, fars = 0;
  for (uint32_t t = 0; t < m.tokens; ++t) {
    const int32_t reduced = rans::ReducedOf(value(t), shift);
    const uint32_t symbol = rans::SymbolOf(reduced);
    ++counts[32 * symbol];
    symbols.Put(symbol);
    if (symbol != rans::kEscape) continue;
    ++escapes;
    fars += rans::EscapeByte(reduced) == rans::kFar ? 1 : 0;
  }
  symbols.Flush();
  const uint32_t table = BestTable(kQuantizedSet, shift == 0 ? 1 : rans::kWideTable,
                                   [&](uint32_t symbol) { return static_cast<uint32_t>(counts[32 * symbol]); });
  m.classes[c] = rans::MakeClass(table, shift);
  m.escapes[c] = escapes;
  m.fars[c] = fars;
}

// Rows, and from each column's counts of escapes where they go. Warp.
TIERCEL_DEVICE void PlaceColumns(const ColumnsMemory& m, uint32_t streams) {
  LayRows(m.classes, m.columns, m.tokens, &m.plan->rows, m.order, m.sorted);
  uint32_t escapes = 0, fars = 0, rests = 0;
  for (uint32_t first = 0; first < m.columns; first += 32) {
    const uint32_t c = first + Lane();
    const bool live = c < m.columns;
    uint32_t all = 0;
    const uint32_t escape_at = escapes + WarpScan(live ? m.escapes[c] : 0, &all);
    escapes += all;
    const uint32_t far_at = fars + WarpScan(live ? m.fars[c] : 0, &all);
    fars += all;
    const uint32_t rest_at = rests + WarpScan(live ? rans::ShiftOf(m.classes[c]) * m.rest_bytes() : 0, &all);
    rests += all;
    if (live) {
      m.escapes[c] = escape_at;
      m.fars[c] = far_at;
      m.rests[c] = rest_at;
    }
  }
  if (Lane() == 0) {
    m.plan->streams = streams;
    m.plan->escapes = escapes;
    m.plan->fars = fars;
    m.plan->rests = rests;
  }
}

// Stream `stream`'s words. 15 bits of the cargo's bytes, cargo(i) of `riding`, ride in each lane's first state. Warp.
template <class Cargo>
TIERCEL_DEVICE void EncodeStream(uint32_t set, const ColumnsMemory& m, uint32_t stream, uint32_t riding, Cargo cargo) {
  const ColumnsPlan& plan = *m.plan;
  const uint32_t bit = (stream * 32 + Lane()) * rans::kCargoBits;
  uint32_t window = 0;
  for (uint32_t i = 0; i < 3 && bit / 8 + i < riding; ++i) window |= static_cast<uint32_t>(cargo(bit / 8 + i)) << (8 * i);
  uint32_t state = rans::kLow | (window >> (bit % 8) & (rans::kLow - 1));
  uint32_t before = 0;
  for (uint32_t i = 0; i <= stream; ++i) before += (plan.rows.rows + plan.streams - 1 - i) / plan.streams * 32;
  const uint32_t words = EncodeRows(set, plan.rows.rows, stream, plan.streams, m.symbols, m.pitch, &state, m.words + before,
                                    [&](uint32_t row) { return m.Place(row); });
  m.states[stream * 32 + Lane()] = state;
  if (Lane() == 0) m.plan->words[stream] = words;
}

TIERCEL_DEVICE uint32_t BlockBytes(const ColumnsMemory& m) {
  const ColumnsPlan& plan = *m.plan;
  uint32_t bytes = (4 + 4 * 32) * plan.streams + plan.rests + plan.escapes + 2 * plan.fars;
  for (uint32_t i = 0; i < plan.streams; ++i) bytes += 2 * plan.words[i];
  return bytes;
}

// Writes the block; value(column, token) gives what was coded. Grid.
template <class Value>
TIERCEL_DEVICE void PackBlock(const ColumnsMemory& m, uint8_t* to, Value value) {
  const ColumnsPlan& plan = *m.plan;
  const uint32_t streams = plan.streams;
  const uint32_t thread = ThreadOfGrid();
  const uint32_t threads = ThreadsOfGrid();
  uint8_t* at = to + 4 * streams;
  uint32_t before = 0;
  for (uint32_t i = 0; i < streams; ++i) {
    before += (plan.rows.rows + streams - 1 - i) / streams * 32;
    const uint32_t words = plan.words[i];
    const uint16_t* const from = m.words + before - words;
    if (AlignedTo(at, 2)) {
      for (uint32_t j = thread; j < words; j += threads) reinterpret_cast<uint16_t*>(at)[j] = from[j];
    } else {
      for (uint32_t j = thread; j < words; j += threads) StoreU16(at + 2 * j, from[j]);
    }
    at += 2 * words;
  }
  for (uint32_t i = thread; i < 32 * streams; i += threads) {
    StoreU32(at + 4 * i, m.states[i]);
    if (i < streams) StoreU32(to + 4 * i, plan.words[i] | (i == 0 ? (BitWidth(streams) - 1) << 24 : 0));
  }
  uint8_t* const rests = at + 4 * 32 * streams;
  uint8_t* const bytes = rests + plan.rests;
  uint8_t* const far_values = bytes + plan.escapes;
  if (plan.rests == 0 && plan.escapes == 0) return;
  for (uint32_t c = thread; c < m.columns; c += threads) {
    const uint32_t shift = rans::ShiftOf(m.classes[c]);
    for (uint32_t first = 0; shift != 0 && first < m.tokens; first += 8) {
      uint64_t planes = 0;  // A byte a plane.
      for (uint32_t i = 0; i < 8 && first + i < m.tokens; ++i) {
        const uint32_t rest = rans::RestOf(value(c, first + i), shift);
        for (uint32_t b = 0; b < shift; ++b) planes |= static_cast<uint64_t>(rest >> b & 1) << (8 * b + i);
      }
      for (uint32_t b = 0; b < shift; ++b) rests[m.rests[c] + b * m.rest_bytes() + first / 8] = static_cast<uint8_t>(planes >> (8 * b));
    }
    uint32_t escape_at = m.escapes[c];
    uint32_t far_at = m.fars[c];
    const uint32_t end = c + 1 < m.columns ? m.escapes[c + 1] : plan.escapes;
    for (uint32_t t = 0; escape_at < end; ++t) {
      if (m.symbols[c * m.pitch + t] != rans::kEscape) continue;
      const int32_t reduced = rans::ReducedOf(value(c, t), shift);
      const uint32_t byte = rans::EscapeByte(reduced);
      bytes[escape_at++] = static_cast<uint8_t>(byte);
      if (byte == rans::kFar) StoreU16(far_values + 2 * far_at++, static_cast<uint32_t>(reduced));
    }
  }
}

// ---- Decoding.

// The block that begins at byte `at` of a segment's and ends with it; its classes are here. Warp.
TIERCEL_DEVICE bool OpenBlock(const ColumnsMemory& m, const uint8_t* encoded, uint32_t size, uint32_t at, uint32_t log_streams) {
  ColumnsPlan& plan = *m.plan;
  const uint32_t streams = 1u << log_streams;
  bool good = at <= size && size - at >= 4 * streams && encoded[at + 3] == log_streams;
  // Each stream's count of words, then the words, then the states.
  uint64_t words_at = uint64_t{at} + 4 * streams;
  for (uint32_t i = 0; good && i < streams; ++i) {
    const uint32_t words = LoadU32(encoded + at + 4 * i) & (i == 0 ? 0xffffffu : 0xffffffffu);
    if (Lane() == 0) {
      plan.words[i] = words;
      plan.words_at[i] = static_cast<uint32_t>(words_at);
    }
    words_at += uint64_t{2} * words;
    good = words_at <= size;
  }
  good = good && size - words_at >= 4 * 32 * streams;
  if (!good) return false;
  bool bad = false;
  for (uint32_t i = 0; i < streams; ++i) {
    const uint32_t state = LoadU32(encoded + words_at + 4 * (32 * i + Lane()));
    bad = bad || state < rans::kLow || state >> 31 != 0;
  }
  if (Ballot(bad) != 0) return false;
  LayRows(m.classes, m.columns, m.tokens, &plan.rows, m.order, m.sorted);
  uint64_t rests = 0;  // Below 2^29.
  for (uint32_t first = 0; first < m.columns; first += 32) {
    const uint32_t c = first + Lane();
    const bool coded = c < m.columns && rans::TableOf(m.classes[c]) != 0;
    uint32_t all = 0;
    const uint32_t mine = WarpScan(coded ? rans::ShiftOf(m.classes[c]) * m.rest_bytes() : 0, &all);
    if (c < m.columns) {
      m.rests[c] = static_cast<uint32_t>(rests) + mine;
      m.escapes[c] = 0;
    }
    rests += all;
  }
  const uint64_t rests_at = words_at + 4 * 32 * streams;
  if (rests_at + rests > size) return false;
  if (Lane() == 0) {
    plan.streams = streams;
    plan.states_at = static_cast<uint32_t>(words_at);
    plan.rests_at = static_cast<uint32_t>(rests_at);
    plan.escapes_at = static_cast<uint32_t>(rests_at + rests);
  }
  return true;
}

// Stream `stream`'s symbols and cargo. Warp.
TIERCEL_DEVICE bool DecodeStream(uint32_t set, const ColumnsMemory& m, const uint8_t* encoded, uint32_t stream) {
  const ColumnsPlan& plan = *m.plan;
  uint32_t state = LoadU32(encoded + plan.states_at + 4 * (32 * stream + Lane()));
  const bool good = DecodeRows(set, plan.rows.rows, stream, plan.streams, m.symbols, m.pitch, &state, encoded + plan.words_at[stream],
                               plan.words[stream], [&](uint32_t row) { return m.Place(row); },
                               [&](uint32_t column) { AtomicAdd(m.escapes + column, 1u); });
  m.cargo[32 * stream + Lane()] = static_cast<uint16_t>(state & (rans::kLow - 1));
  return good;
}
// Byte `at` of the cargo.
TIERCEL_DEVICE uint32_t CargoByte(const ColumnsMemory& m, uint32_t at) {
  const uint32_t bit = 8 * at;
  const uint32_t first = bit / rans::kCargoBits;
  const uint32_t skip = bit % rans::kCargoBits;
  uint32_t byte = static_cast<uint32_t>(m.cargo[first]) >> skip;
  if (skip > rans::kCargoBits - 8) byte |= static_cast<uint32_t>(m.cargo[first + 1]) << (rans::kCargoBits - skip);
  return byte & 255u;
}

// Where each column's escapes are, once all symbols are decoded; whether they end with the segment. Warp.
TIERCEL_DEVICE bool ScanColumns(const ColumnsMemory& m, const uint8_t* encoded, uint32_t size) {
  ColumnsPlan& plan = *m.plan;
  uint32_t all = 0;
  for (uint32_t c = Lane(); c < m.columns; c += 32) all += m.escapes[c];
  all = WarpSum(all);
  const uint32_t room = size - plan.escapes_at;
  if (all > room) return false;
  const uint8_t* const bytes = encoded + plan.escapes_at;
  uint32_t before = 0, fars = 0;
  for (uint32_t first = 0; first < m.columns; first += 32) {
    const uint32_t c = first + Lane();
    const uint32_t count = c < m.columns ? m.escapes[c] : 0;
    uint32_t sum = 0;
    const uint32_t at = before + WarpScan(count, &sum);
    before += sum;
    uint32_t mine = 0;
    for (uint32_t i = 0; i < count; ++i) mine += bytes[at + i] == rans::kFar ? 1 : 0;
    const uint32_t far_at = fars + WarpScan(mine, &sum);
    fars += sum;
    if (c < m.columns) {
      m.escapes[c] = at;
      m.fars[c] = far_at;
    }
  }
  if (Lane() == 0) plan.escapes = all;
  return room - all == 2 * fars;
}

// The values of one column, one after the other.
class ColumnReader {
 public:
  TIERCEL_DEVICE ColumnReader(const ColumnsMemory& m, const uint8_t* encoded, uint32_t column)
      : symbols_(m.symbols + column * m.pitch),
        low_(encoded + m.plan->rests_at + m.rests[column]),
        escapes_(encoded + m.plan->escapes_at + m.escapes[column]),
        fars_(encoded + m.plan->escapes_at + m.plan->escapes + 2 * m.fars[column]),
        shift_(rans::ShiftOf(m.classes[column])),
        plane_(m.rest_bytes()),
        zeros_(rans::TableOf(m.classes[column]) == 0) {}
  TIERCEL_DEVICE int32_t Next() {
    const uint32_t t = token_++;
    if (zeros_) return 0;
    const uint32_t symbol = symbols_[t];
    uint32_t bits = 0;
    for (uint32_t b = 0; b < shift_; ++b) bits |= (static_cast<uint32_t>(low_[b * plane_ + t / 8]) >> (t % 8) & 1) << b;
    int32_t reduced = static_cast<int32_t>(symbol) - rans::kLargest;
    if (symbol == rans::kEscape) {
      const uint32_t byte = *escapes_++;
      reduced = rans::EscapedValue(byte);
      if (byte == rans::kFar) {
        reduced = static_cast<int16_t>(LoadU16(fars_));
        fars_ += 2;
      }
    }
    return rans::JoinValue(reduced, bits, shift_);
  }

 private:
  const uint8_t* symbols_;
  const uint8_t* low_;
  const uint8_t* escapes_;
  const uint8_t* fars_;
  uint32_t shift_, plane_;
  uint32_t token_ = 0;
  bool zeros_;
};

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_COLUMNS_CUH_
