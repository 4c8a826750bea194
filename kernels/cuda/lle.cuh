// LLE on a GPU: the same segments as kernels/lle.cc. A thread has a column, a warp a stream.
//
//   encode:  LleColumns    grid (any, segments), 1 KiB shared a warp: bases, classes, symbols, planes
//            LlePlace      grid (1, segments), one warp: rows, lists, where escapes go
//            LleRows       grid (1, segments), 8 warps: the streams' words
//            LlePack       grid (any, segments): all of it behind the planes
//   decode:  LleOpen       grid (1, segments), one warp: header, lists, rows
//            LleSymbols    grid (1, segments), 8 warps
//            LleScan       grid (1, segments), one warp: where each column's escapes are
//            LleJoin       grid (any, segments); the digest is PlaneDigest's (record.cuh)
//
// Errors: a malformed segment sets `failed`; nothing outside its bytes is read, whatever they are.
#ifndef TIERCEL_KERNELS_CUDA_LLE_CUH_
#define TIERCEL_KERNELS_CUDA_LLE_CUH_

#include "kernels/cuda/rans.cuh"
#include "kernels/cuda/segment.cuh"
#include "kernels/lle_core.h"

namespace tiercel::gpu {

inline constexpr uint8_t kLleCodec = 2;
inline constexpr uint32_t kLleHeader = 4;
inline constexpr uint32_t kLleSymbolsAStream = 12 << 10;
inline constexpr uint32_t kLleBlock = 32 * rans::kMaxStreams;  // Threads that a segment's streams take.

struct LleMemory {
  LlePlan* plan;
  uint8_t* symbols;
  uint8_t* classes;
  int32_t* bases;
  uint32_t *order, *sorted, *escapes, *fars, *rests, *lists, *states;
  uint16_t *cargo, *words;
  uint32_t pitch;
  TIERCEL_DEVICE explicit LleMemory(const Segment& s) {
    const LleLayout at = LleLayoutOf(s.columns(), s.tokens);
    const auto u32 = [&s](uint64_t offset) { return reinterpret_cast<uint32_t*>(s.scratch + offset); };
    plan = reinterpret_cast<LlePlan*>(s.scratch + at.plan);
    symbols = s.scratch + at.symbols;
    classes = s.scratch + at.classes;
    bases = reinterpret_cast<int32_t*>(s.scratch + at.bases);
    order = u32(at.order);
    sorted = u32(at.sorted);
    escapes = u32(at.escapes);
    fars = u32(at.fars);
    rests = u32(at.rests);
    lists = u32(at.lists);
    states = u32(at.states);
    cargo = reinterpret_cast<uint16_t*>(s.scratch + at.cargo);
    words = reinterpret_cast<uint16_t*>(s.scratch + at.words);
    pitch = PitchOf(s.tokens);
  }
};

// Calls with the dtype's format.
template <class Call>
TIERCEL_DEVICE void ForFormat(uint32_t dtype, Call call) {
  if (dtype == 1) call(lle::Bf16());
  if (dtype == 2) call(lle::Fp16());
  if (dtype == 3) call(lle::Fp32());
  if (dtype == 4) call(lle::E4m3());
  if (dtype == 5) call(lle::E5m2());
}

// The sizes that the planes' place follows from.
struct LlePlanes {
  uint32_t a_column = 0, all = 0, riding = 0, stored = 0;
  int32_t max_exponent = 0;
  TIERCEL_DEVICE LlePlanes(const Segment& s, uint32_t streams) {
    ForFormat(s.dtype, [&]<class F>(F) {
      a_column = static_cast<uint32_t>(lle::PlaneBytes<F>(s.tokens));
      max_exponent = F::kMaxExponent;
    });
    all = a_column * s.columns();
    const auto most = static_cast<uint32_t>(rans::kCargoBytes) * streams;
    riding = all < most ? all : most;
    stored = all - riding;
  }
};
TIERCEL_DEVICE bool LleEncodes(const Segment& s) {
  return s.codec == kLleCodec && kLleHeader + LlePlanes(s, 1).all <= s.limit;
}
TIERCEL_DEVICE uint32_t LleStreams(const Segment& s) {
  const uint32_t streams = s.values / kLleSymbolsAStream;
  if (streams == 0) return 1;
  return streams >= rans::kMaxStreams ? rans::kMaxStreams : 1u << (BitWidth(streams) - 1);
}
TIERCEL_DEVICE uint8_t* ColumnAt(const Segment& s, uint32_t column) {
  return s.base + column / s.dim * s.head_stride + column % s.dim * s.dim_stride;
}

// ---- Encoding.

template <class F>
TIERCEL_DEVICE void LleColumnsAs(const Segment& s) {
  using T = typename F::Value;
  const LleMemory m(s);
  uint16_t* const counts = Shared<uint16_t>() + WarpOfBlock() * 32 * rans::kSymbols + Lane();
  const uint32_t n = s.tokens;
  const auto a_column = static_cast<uint32_t>(lle::PlaneBytes<F>(n));
  for (uint32_t c = ThreadOfGrid(); c < s.columns(); c += ThreadsOfGrid()) {
    const uint8_t* const at = ColumnAt(s, c);
    lle::Exponents found{0, 0, F::kMaxExponent, 0};
    TokenWalk first_time(s);
    for (uint32_t t = 0; t < n; ++t) {
      const uint32_t e = F::Exponent(*reinterpret_cast<const T*>(at + first_time.Next()));
      found.sum += e;
      found.nonzero += e != 0 ? 1 : 0;
      found.least = e < found.least ? e : found.least;
      found.most = e > found.most ? e : found.most;
    }
    const int32_t base = lle::BaseOf(found);
    m.bases[c] = base;
    for (uint32_t i = 0; i < rans::kSymbols; ++i) counts[32 * i] = 0;
    uint8_t* const planes = s.encoded + kLleHeader + c * a_column;
    ByteRun symbols(m.symbols + c * m.pitch);
    ByteRun bytes[F::kBytePlanes + 1];
    ByteRun bits[F::kBitPlanes + 1];
    uint32_t held[F::kBitPlanes + 1] = {};
    for (uint32_t b = 0; b < F::kBytePlanes; ++b) bytes[b] = ByteRun(planes + b * n);
    for (uint32_t b = 0; b < F::kBitPlanes; ++b) bits[b] = ByteRun(planes + F::kBytePlanes * n + b * ((n + 7) / 8));
    uint32_t any = 0, escapes = 0, fars = 0;
    TokenWalk walk(s);
    for (uint32_t t = 0; t < n; ++t) {
      const T value = *reinterpret_cast<const T*>(at + walk.Next());
      const int32_t v = static_cast<int32_t>(F::Exponent(value)) - base;
      const uint32_t rest = F::Rest(value);
      const uint32_t symbol = rans::SymbolOf(v);
      any |= static_cast<uint32_t>(v);
      ++counts[32 * symbol];
      symbols.Put(symbol);
      if (symbol == rans::kEscape) {
        ++escapes;
        fars += rans::EscapeByte(v) == rans::kFar ? 1 : 0;
      }
      for (uint32_t b = 0; b < F::kBytePlanes; ++b) bytes[b].Put(rest >> (8 * b));
      for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
        held[b] |= (rest >> (8 * F::kBytePlanes + b) & 1) << (t % 8);
        if (t % 8 == 7 || t + 1 == n) {
          bits[b].Put(held[b]);
          held[b] = 0;
        }
      }
    }
    symbols.Flush();
    for (uint32_t b = 0; b < F::kBytePlanes; ++b) bytes[b].Flush();
    for (uint32_t b = 0; b < F::kBitPlanes; ++b) bits[b].Flush();
    const uint32_t table =
        any == 0 ? 0 : BestTable(kExponentSet, 1, [&](uint32_t symbol) { return static_cast<uint32_t>(counts[32 * symbol]); });
    m.classes[c] = rans::MakeClass(table, 0);
    m.escapes[c] = escapes;
    m.fars[c] = fars;
  }
}
TIERCEL_KERNEL void LleColumns(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  ForFormat(s.dtype, [&]<class F>(F) { LleColumnsAs<F>(s); });
}

TIERCEL_KERNEL void LlePlace(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  const LleMemory m(s);
  const uint32_t columns = s.columns();
  for (uint32_t i = Lane(); i < ListBytes(columns) / 4; i += 32) m.lists[i] = 0;
  SyncWarp();
  LayRows(m.classes, columns, s.tokens, &m.plan->rows, m.order, m.sorted);
  uint32_t escapes = 0, fars = 0;
  for (uint32_t first = 0; first < columns; first += 32) {
    const uint32_t c = first + Lane();
    uint32_t all = 0;
    const uint32_t escape_at = escapes + WarpScan(c < columns ? m.escapes[c] : 0, &all);
    escapes += all;
    const uint32_t far_at = fars + WarpScan(c < columns ? m.fars[c] : 0, &all);
    fars += all;
    if (c < columns) {
      m.escapes[c] = escape_at;
      m.fars[c] = far_at;
    }
  }
  uint32_t bits = PutList(m.lists, 0, columns, [&](uint32_t c) { return m.bases[c]; });
  bits = PutList(m.lists, bits, columns, [&](uint32_t c) { return static_cast<int32_t>(rans::RankOf(m.classes[c])); });
  if (Lane() == 0) {
    m.plan->streams = LleStreams(s);
    m.plan->list_bytes = (bits + 7) / 8;
    m.plan->escapes = escapes;
    m.plan->fars = fars;
  }
}

TIERCEL_KERNEL void LleRows(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  const LleMemory m(s);
  const LlePlan& plan = *m.plan;
  const uint32_t stream = WarpOfBlock();
  if (stream >= plan.streams) return;
  // 15 bits of the planes' last bytes ride in each lane's first state.
  const LlePlanes planes(s, plan.streams);
  const uint8_t* const cargo = s.encoded + kLleHeader + planes.stored;
  const uint32_t bit = (stream * 32 + Lane()) * rans::kCargoBits;
  uint32_t window = 0;
  for (uint32_t i = 0; i < 3 && bit / 8 + i < planes.riding; ++i) window |= static_cast<uint32_t>(cargo[bit / 8 + i]) << (8 * i);
  uint32_t state = rans::kLow | (window >> (bit % 8) & (rans::kLow - 1));
  uint32_t before = 0;
  for (uint32_t i = 0; i <= stream; ++i) before += (plan.rows.rows + plan.streams - 1 - i) / plan.streams * 32;
  const uint32_t words =
      EncodeRows(kExponentSet, plan.rows.rows, stream, plan.streams, m.symbols, m.pitch, &state, m.words + before,
                 [&](uint32_t row) { return PlaceInRow(plan.rows, m.classes, m.order, m.sorted, row); });
  m.states[stream * 32 + Lane()] = state;
  if (Lane() == 0) m.plan->words[stream] = words;
}

template <class F>
TIERCEL_DEVICE void LleEscapesAs(const Segment& s, const LleMemory& m, uint32_t escapes_at) {
  using T = typename F::Value;
  uint8_t* const bytes = s.encoded + escapes_at;
  uint8_t* const far_values = bytes + m.plan->escapes;
  for (uint32_t c = ThreadOfGrid(); c < s.columns(); c += ThreadsOfGrid()) {
    uint32_t at = m.escapes[c];
    uint32_t far_at = m.fars[c];
    const uint32_t end = c + 1 < s.columns() ? m.escapes[c + 1] : m.plan->escapes;
    for (uint32_t t = 0; at < end; ++t) {
      if (m.symbols[c * m.pitch + t] != rans::kEscape) continue;
      const T value = *reinterpret_cast<const T*>(ColumnAt(s, c) + TokenOffset(s, t));
      const int32_t v = static_cast<int32_t>(F::Exponent(value)) - m.bases[c];
      const uint32_t byte = rans::EscapeByte(v);
      bytes[at++] = static_cast<uint8_t>(byte);
      if (byte == rans::kFar) StoreU16(far_values + 2 * far_at++, static_cast<uint32_t>(v));
    }
  }
}
TIERCEL_KERNEL void LlePack(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  const LleMemory m(s);
  const LlePlan& plan = *m.plan;
  const uint32_t streams = plan.streams;
  const uint32_t lists_at = kLleHeader + LlePlanes(s, streams).stored;
  const uint32_t block_at = (lists_at + plan.list_bytes + 3) / 4 * 4;
  uint32_t states_at = block_at + 4 * streams;
  for (uint32_t i = 0; i < streams; ++i) states_at += 2 * plan.words[i];
  const uint32_t escapes_at = states_at + 4 * 32 * streams;
  const uint32_t bytes = escapes_at + plan.escapes + 2 * plan.fars;
  if (bytes > s.limit) return;
  const uint32_t thread = ThreadOfGrid();
  const uint32_t threads = ThreadsOfGrid();
  for (uint32_t i = thread; i < block_at - lists_at; i += threads) {
    s.encoded[lists_at + i] = static_cast<uint8_t>(i < plan.list_bytes ? m.lists[i / 4] >> (8 * (i % 4)) : 0);
  }
  uint32_t at = block_at + 4 * streams;
  uint32_t before = 0;
  for (uint32_t i = 0; i < streams; ++i) {
    before += (plan.rows.rows + streams - 1 - i) / streams * 32;
    const uint32_t words = plan.words[i];
    auto* const to = reinterpret_cast<uint16_t*>(s.encoded + at);
    for (uint32_t j = thread; j < words; j += threads) to[j] = m.words[before - words + j];
    at += 2 * words;
  }
  for (uint32_t i = thread; i < 32 * streams; i += threads) {
    StoreU32(s.encoded + states_at + 4 * i, m.states[i]);
    if (i < streams) StoreU32(s.encoded + block_at + 4 * i, plan.words[i] | (i == 0 ? (BitWidth(streams) - 1) << 24 : 0));
  }
  if (plan.escapes != 0) ForFormat(s.dtype, [&]<class F>(F) { LleEscapesAs<F>(s, m, escapes_at); });
  if (thread == 0) {
    s.encoded[0] = 1;
    s.encoded[1] = s.dtype;
    s.encoded[2] = static_cast<uint8_t>(BitWidth(streams) - 1);
    s.encoded[3] = 0;
    s.bytes = bytes;
    s.params = 0;
  }
}

// ---- Decoding.

// Header and lists, by one thread: where the entropy-coded columns begin; 0: malformed.
TIERCEL_DEVICE uint32_t LleReadLists(const Segment& s, const LleMemory& m) {
  if (s.params != 0 || s.bytes < kLleHeader || s.encoded[0] != 1 || s.encoded[1] != s.dtype || s.encoded[2] > 3) return 0;
  const LlePlanes planes(s, 1u << s.encoded[2]);
  if (s.bytes - kLleHeader < planes.stored) return 0;
  const uint32_t lists_at = kLleHeader + planes.stored;
  BitSource bits(s.encoded + lists_at, s.bytes - lists_at);
  if (!GetList(bits, s.columns(), lle::kLeastBase, planes.max_exponent, [&](uint32_t c, int32_t v) { m.bases[c] = v; })) return 0;
  if (!GetList(bits, s.columns(), 0, rans::kRanks - 1,
               [&](uint32_t c, int32_t v) { m.classes[c] = rans::ClassOfRank(static_cast<uint32_t>(v)); })) {
    return 0;
  }
  const uint32_t block_at = (lists_at + (bits.used + 7) / 8 + 3) / 4 * 4;
  return block_at <= s.bytes ? block_at : 0;
}

TIERCEL_KERNEL void LleOpen(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec) return;
  const LleMemory m(s);
  LlePlan& plan = *m.plan;
  const uint32_t columns = s.columns();
  uint32_t at = Lane() == 0 ? LleReadLists(s, m) : 0;
  SyncWarp();
  at = Shuffle(at, 0);
  bool good = at != 0;
  // Each stream's count of words, then the words, then the states.
  const uint32_t streams = good ? 1u << s.encoded[2] : 1;
  good = good && s.bytes - at >= 4 * streams && s.encoded[at + 3] == s.encoded[2];
  uint64_t words_at = uint64_t{at} + 4 * streams;
  for (uint32_t i = 0; good && i < streams; ++i) {
    const uint32_t words = LoadU32(s.encoded + at + 4 * i) & (i == 0 ? 0xffffffu : 0xffffffffu);
    if (Lane() == 0) {
      plan.words[i] = words;
      plan.words_at[i] = static_cast<uint32_t>(words_at);
    }
    words_at += uint64_t{2} * words;
    good = words_at <= s.bytes;
  }
  good = good && s.bytes - words_at >= 4 * 32 * streams;
  if (good) {
    bool bad = false;
    for (uint32_t i = 0; i < streams; ++i) {
      const uint32_t state = LoadU32(s.encoded + words_at + 4 * (32 * i + Lane()));
      bad = bad || state < rans::kLow || state >> 31 != 0;
    }
    good = Ballot(bad) == 0;
  }
  if (!good) {
    if (Lane() == 0) s.failed = 1;
    return;
  }
  LayRows(m.classes, columns, s.tokens, &plan.rows, m.order, m.sorted);
  uint64_t rests = 0;  // Below 2^29.
  for (uint32_t first = 0; first < columns; first += 32) {
    const uint32_t c = first + Lane();
    uint32_t all = 0;
    const uint32_t mine = WarpScan(c < columns ? rans::ShiftOf(m.classes[c]) * ((s.tokens + 7) / 8) : 0, &all);
    if (c < columns) {
      m.rests[c] = static_cast<uint32_t>(rests) + mine;
      m.escapes[c] = 0;
    }
    rests += all;
  }
  const uint64_t rests_at = words_at + 4 * 32 * streams;
  if (rests_at + rests > s.bytes) {
    if (Lane() == 0) s.failed = 1;
    return;
  }
  if (Lane() == 0) {
    plan.streams = streams;
    plan.states_at = static_cast<uint32_t>(words_at);
    plan.rests_at = static_cast<uint32_t>(rests_at);
    plan.escapes_at = static_cast<uint32_t>(rests_at + rests);
  }
}

TIERCEL_KERNEL void LleSymbols(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec) return;
  const LleMemory m(s);
  const LlePlan& plan = *m.plan;
  const uint32_t stream = WarpOfBlock();
  // One lane looks for all: another stream's warp may be about to say that the segment is malformed.
  const uint32_t skip = Lane() == 0 && (s.failed != 0 || stream >= plan.streams) ? 1 : 0;
  if (Shuffle(skip, 0) != 0) return;
  uint32_t state = LoadU32(s.encoded + plan.states_at + 4 * (32 * stream + Lane()));
  const bool good =
      DecodeRows(kExponentSet, plan.rows.rows, stream, plan.streams, m.symbols, m.pitch, &state, s.encoded + plan.words_at[stream],
                 plan.words[stream], [&](uint32_t row) { return PlaceInRow(plan.rows, m.classes, m.order, m.sorted, row); },
                 [&](uint32_t column) { AtomicAdd(m.escapes + column, 1u); });
  m.cargo[32 * stream + Lane()] = static_cast<uint16_t>(state & (rans::kLow - 1));
  if (!good && Lane() == 0) AtomicOr(&s.failed, 1);
}

TIERCEL_KERNEL void LleScan(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec || s.failed != 0) return;
  const LleMemory m(s);
  LlePlan& plan = *m.plan;
  const uint32_t columns = s.columns();
  uint32_t all = 0;
  for (uint32_t c = Lane(); c < columns; c += 32) all += m.escapes[c];
  all = WarpSum(all);
  const uint32_t room = s.bytes - plan.escapes_at;
  if (all > room) {
    if (Lane() == 0) s.failed = 1;
    return;
  }
  const uint8_t* const bytes = s.encoded + plan.escapes_at;
  uint32_t before = 0, fars = 0;
  for (uint32_t first = 0; first < columns; first += 32) {
    const uint32_t c = first + Lane();
    const uint32_t count = c < columns ? m.escapes[c] : 0;
    uint32_t sum = 0;
    const uint32_t at = before + WarpScan(count, &sum);
    before += sum;
    uint32_t mine = 0;
    for (uint32_t i = 0; i < count; ++i) mine += bytes[at + i] == rans::kFar ? 1 : 0;
    const uint32_t far_at = fars + WarpScan(mine, &sum);
    fars += sum;
    if (c < columns) {
      m.escapes[c] = at;
      m.fars[c] = far_at;
    }
  }
  if (Lane() == 0) {
    plan.escapes = all;
    if (room - all != 2 * fars) s.failed = 1;
  }
}

template <class F>
TIERCEL_DEVICE void LleJoinAs(const Segment& s) {
  using T = typename F::Value;
  const LleMemory m(s);
  const LlePlan& plan = *m.plan;
  const LlePlanes planes(s, plan.streams);
  const uint32_t n = s.tokens;
  const uint8_t* const escapes = s.encoded + plan.escapes_at;
  const uint8_t* const far_values = escapes + plan.escapes;
  // Byte `at` of the planes, the last of which rode in the states.
  const auto plane_byte = [&](uint32_t at) -> uint32_t {
    if (at < planes.stored) return s.encoded[kLleHeader + at];
    const uint32_t bit = 8 * (at - planes.stored);
    const uint32_t first = bit / rans::kCargoBits;
    const uint32_t skip = bit % rans::kCargoBits;
    uint32_t byte = static_cast<uint32_t>(m.cargo[first]) >> skip;
    if (skip > rans::kCargoBits - 8) byte |= static_cast<uint32_t>(m.cargo[first + 1]) << (rans::kCargoBits - skip);
    return byte & 255u;
  };
  for (uint32_t c = ThreadOfGrid(); c < s.columns(); c += ThreadsOfGrid()) {
    const uint32_t shift = rans::ShiftOf(m.classes[c]);
    const bool zeros = rans::TableOf(m.classes[c]) == 0;
    const uint8_t* const low = s.encoded + plan.rests_at + m.rests[c];
    const uint32_t planes_at = c * planes.a_column;
    const int32_t base = m.bases[c];
    uint8_t* const to = ColumnAt(s, c);
    uint32_t escape_at = m.escapes[c];
    uint32_t far_at = m.fars[c];
    TokenWalk walk(s);
    for (uint32_t t = 0; t < n; ++t) {
      int32_t v = 0;
      if (!zeros) {
        const uint32_t symbol = m.symbols[c * m.pitch + t];
        uint32_t bits = 0;
        for (uint32_t b = 0; b < shift; ++b) bits |= (static_cast<uint32_t>(low[b * ((n + 7) / 8) + t / 8]) >> (t % 8) & 1) << b;
        int32_t reduced = static_cast<int32_t>(symbol) - rans::kLargest;
        if (symbol == rans::kEscape) {
          const uint32_t byte = escapes[escape_at++];
          reduced = byte == rans::kFar ? static_cast<int16_t>(LoadU16(far_values + 2 * far_at++)) : rans::EscapedValue(byte);
        }
        v = rans::JoinValue(reduced, bits, shift);
      }
      uint32_t rest = 0;
      for (uint32_t b = 0; b < F::kBytePlanes; ++b) rest |= plane_byte(planes_at + b * n + t) << (8 * b);
      for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
        rest |= (plane_byte(planes_at + F::kBytePlanes * n + b * ((n + 7) / 8) + t / 8) >> (t % 8) & 1) << (8 * F::kBytePlanes + b);
      }
      *reinterpret_cast<T*>(to + walk.Next()) = F::Join(static_cast<uint32_t>(v + base), rest);
    }
  }
}
TIERCEL_KERNEL void LleJoin(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec || s.failed != 0) return;
  ForFormat(s.dtype, [&]<class F>(F) { LleJoinAs<F>(s); });
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_LLE_CUH_
