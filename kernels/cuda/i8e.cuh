// I8E on a GPU: the same segments as kernels/i8e.cc. The segment of I8 (fixed.cuh) lies in scratch; its codes are
// the columns.
//
//   encode:  I8eCodes      grid (any, segments): the segment of I8
//            I8eColumns    grid (any, segments), 1 KiB shared a warp, a thread a column: bases, classes, symbols
//            I8ePlace      grid (1, segments), one warp: rows, lists, where escapes go
//            I8eRows       grid (1, segments), 8 warps: the streams' words
//            I8ePack       grid (any, segments): the segment, coded or plain
//            I8eShow       grid (any, segments): the digest of what will be decoded
//   decode:  I8eOpen       grid (1, segments), one warp: header, lists, rows
//            I8eSymbols    grid (1, segments), 8 warps
//            I8eScan       grid (1, segments), one warp: where each column's escapes are
//            I8eJoin       grid (any, segments): the segment of I8
//            I8eShow       grid (any, segments): values to the pages, and their digest
#ifndef TIERCEL_KERNELS_CUDA_I8E_CUH_
#define TIERCEL_KERNELS_CUDA_I8E_CUH_

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/fixed.cuh"

namespace tiercel::gpu {

inline constexpr uint8_t kI8eCodec = 10;
inline constexpr uint32_t kI8eHeader = 4;
inline constexpr uint32_t kI8ePlainHeader = 64;
inline constexpr uint32_t kI8eSymbolsAStream = 12 << 10;
inline constexpr uint32_t kI8eMiddle = 128;
inline constexpr uint32_t kI8eBasesFrom = 64;  // Tokens.
inline constexpr uint32_t kMostCode = 255;

TIERCEL_DEVICE ColumnsMemory I8eColumnsOf(const Segment& s) { return {s.scratch, s.columns(), s.tokens}; }
TIERCEL_DEVICE uint8_t* I8ePlain(const Segment& s) {
  const ColumnsLayout at = ColumnsLayoutOf(s.columns(), s.tokens);
  return s.scratch + (s.encoding != 0 ? at.bytes : at.words);
}
TIERCEL_DEVICE uint32_t CodeIndex(const Segment& s, uint32_t column, uint32_t token) {
  return IndexOf(s, {token, column / s.dim, column % s.dim});
}
struct I8ePlaces {
  uint32_t bound_bytes, riding, lists_at;
  TIERCEL_DEVICE I8ePlaces(const I8Plan& plan, uint32_t streams) {
    bound_bytes = 4 * plan.bounds;
    const auto most = static_cast<uint32_t>(rans::kCargoBytes) * streams;
    riding = bound_bytes < most ? bound_bytes : most;
    lists_at = kI8eHeader + bound_bytes - riding;
  }
};

// ---- Encoding.

TIERCEL_DEVICE bool I8eEncodes(const Segment& s) { return s.codec == kI8eCodec && s.failed == 0 && I8Plan(s).bytes <= s.limit; }

TIERCEL_KERNEL void I8eCodes(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8eCodec) return;
  const I8Plan plan(s);
  if (plan.bytes <= s.limit) I8EncodeTo(s, plan, I8ePlain(s));
}

TIERCEL_KERNEL void I8eColumns(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!I8eEncodes(s)) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  const I8Plan plan(s);
  const uint8_t* const codes = I8ePlain(s) + plan.codes_at;
  uint16_t* const counts = Shared<uint16_t>() + WarpOfBlock() * 32 * rans::kSymbols + Lane();
  for (uint32_t c = ThreadOfGrid(); c < m.columns; c += ThreadsOfGrid()) {
    int32_t base = kI8eMiddle;
    if (!plan.by_channel && s.tokens >= kI8eBasesFrom) {
      uint32_t sum = 0;
      for (uint32_t t = 0; t < s.tokens; ++t) sum += codes[CodeIndex(s, c, t)];
      base = static_cast<int32_t>((2 * sum + s.tokens) / (2 * s.tokens));
    }
    m.bases[c] = base;
    ClassifyColumn(m, c, counts, [&](uint32_t t) { return static_cast<int32_t>(codes[CodeIndex(s, c, t)]) - base; });
  }
}

TIERCEL_KERNEL void I8ePlace(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!I8eEncodes(s)) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  for (uint32_t i = Lane(); i < ListBytes(m.columns) / 4; i += 32) m.lists[i] = 0;
  SyncWarp();
  PlaceColumns(m, StreamsFor(s.values, kI8eSymbolsAStream));
  uint32_t bits = PutList(m.lists, 0, m.columns, [&](uint32_t c) { return m.bases[c]; });
  bits = PutList(m.lists, bits, m.columns, [&](uint32_t c) { return static_cast<int32_t>(rans::RankOf(m.classes[c])); });
  if (Lane() == 0) m.plan->list_bytes = (bits + 7) / 8;
}

TIERCEL_KERNEL void I8eRows(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!I8eEncodes(s)) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  const uint32_t stream = WarpOfBlock();
  if (stream >= m.plan->streams) return;
  const uint8_t* const plain = I8ePlain(s);
  EncodeStream(kQuantizedSet, m, stream, I8ePlaces(I8Plan(s), m.plan->streams).riding, [plain](uint32_t i) { return plain[i]; });
}

TIERCEL_KERNEL void I8ePack(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!I8eEncodes(s)) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  const I8Plan plan(s);
  const I8ePlaces at(plan, m.plan->streams);
  const uint8_t* const plain = I8ePlain(s);
  const uint32_t thread = ThreadOfGrid();
  const uint32_t threads = ThreadsOfGrid();
  const uint32_t block_at = (at.lists_at + m.plan->list_bytes + 3) / 4 * 4;
  const uint32_t coded_bytes = block_at + BlockBytes(m);
  const uint32_t plain_bytes = kI8ePlainHeader + plan.bytes;
  const bool coded = coded_bytes <= plain_bytes && coded_bytes <= s.limit;
  if (!coded && plain_bytes > s.limit) return;
  if (coded) {
    for (uint32_t i = at.riding + thread; i < at.bound_bytes; i += threads) s.encoded[kI8eHeader + i - at.riding] = plain[i];
    for (uint32_t i = thread; i < block_at - at.lists_at; i += threads) {
      s.encoded[at.lists_at + i] = static_cast<uint8_t>(i < m.plan->list_bytes ? m.lists[i / 4] >> (8 * (i % 4)) : 0);
    }
    const uint8_t* const codes = plain + plan.codes_at;
    PackBlock(m, s.encoded + block_at,
              [&](uint32_t c, uint32_t t) { return static_cast<int32_t>(codes[CodeIndex(s, c, t)]) - m.bases[c]; });
  } else {
    for (uint32_t i = 4 + thread; i < kI8ePlainHeader; i += threads) s.encoded[i] = 0;
    for (uint32_t i = thread; i < plan.bytes; i += threads) s.encoded[kI8ePlainHeader + i] = plain[i];
  }
  if (thread == 0) {
    s.encoded[0] = 1;
    s.encoded[1] = static_cast<uint8_t>(coded ? 0 : 1);
    s.encoded[2] = static_cast<uint8_t>(coded ? BitWidth(m.plan->streams) - 1 : 0);
    s.encoded[3] = 0;
    s.bytes = coded ? coded_bytes : plain_bytes;
    s.params = plan.params();
  }
}

// ---- Decoding.

// Header and lists, by one thread: where the entropy-coded columns begin, 1 of the plain form; 0: malformed.
TIERCEL_DEVICE uint32_t I8eReadLists(const Segment& s, const ColumnsMemory& m) {
  const I8Plan plan(s);
  if (s.params != plan.params() || s.bytes < kI8eHeader || s.encoded[0] != 1 || s.encoded[1] > 1) return 0;
  m.plan->plain = s.encoded[1];
  if (s.encoded[1] == 1) {
    if (s.bytes != kI8ePlainHeader + plan.bytes) return 0;
    for (uint32_t i = 2; i < kI8ePlainHeader; ++i) {
      if (s.encoded[i] != 0) return 0;
    }
    return 1;
  }
  if (s.encoded[2] > 3 || s.encoded[3] != 0) return 0;
  const I8ePlaces at(plan, 1u << s.encoded[2]);
  if (at.lists_at > s.bytes) return 0;
  BitSource bits(s.encoded + at.lists_at, s.bytes - at.lists_at);
  if (!GetList(bits, m.columns, 0, kMostCode, [&](uint32_t c, int32_t v) { m.bases[c] = v; })) return 0;
  if (!GetList(bits, m.columns, 0, rans::kRanks - 1,
               [&](uint32_t c, int32_t v) { m.classes[c] = rans::ClassOfRank(static_cast<uint32_t>(v)); })) {
    return 0;
  }
  return (at.lists_at + (bits.used + 7) / 8 + 3) / 4 * 4;
}

TIERCEL_KERNEL void I8eOpen(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8eCodec) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  uint32_t at = Lane() == 0 ? I8eReadLists(s, m) : 0;
  SyncWarp();
  at = Shuffle(at, 0);
  const bool good = at == 1 || (at != 0 && OpenBlock(m, s.encoded, s.bytes, at, s.encoded[2]));
  if (!good && Lane() == 0) s.failed = 1;
}

TIERCEL_KERNEL void I8eSymbols(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8eCodec) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  const uint32_t stream = WarpOfBlock();
  // One lane looks for all: another stream's warp may be about to say that the segment is malformed.
  const uint32_t skip = Lane() == 0 && (s.failed != 0 || m.plan->plain != 0 || stream >= m.plan->streams) ? 1 : 0;
  if (Shuffle(skip, 0) != 0) return;
  if (!DecodeStream(kQuantizedSet, m, s.encoded, stream) && Lane() == 0) AtomicOr(&s.failed, 1);
}

TIERCEL_KERNEL void I8eScan(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8eCodec || s.failed != 0) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  if (m.plan->plain == 0 && !ScanColumns(m, s.encoded, s.bytes) && Lane() == 0) s.failed = 1;
}

TIERCEL_KERNEL void I8eJoin(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8eCodec || s.failed != 0) return;
  const ColumnsMemory m = I8eColumnsOf(s);
  if (m.plan->plain != 0) return;
  const I8Plan plan(s);
  const I8ePlaces at(plan, m.plan->streams);
  uint8_t* const plain = I8ePlain(s);
  for (uint32_t i = ThreadOfGrid(); i < at.bound_bytes; i += ThreadsOfGrid()) {
    plain[i] = static_cast<uint8_t>(i < at.riding ? CargoByte(m, i) : s.encoded[kI8eHeader + i - at.riding]);
  }
  for (uint32_t c = ThreadOfGrid(); c < m.columns; c += ThreadsOfGrid()) {
    ColumnReader values(m, s.encoded, c);
    uint32_t outside = 0;
    for (uint32_t t = 0; t < s.tokens; ++t) {
      const int32_t code = static_cast<int16_t>(values.Next()) + m.bases[c];
      outside |= static_cast<uint32_t>(code);
      plain[plan.codes_at + CodeIndex(s, c, t)] = static_cast<uint8_t>(code);
    }
    if (outside > kMostCode) Fail(s);
  }
}

// ---- Both ways.

TIERCEL_KERNEL void I8eShow(Segment* segments, uint32_t decoding) {
  Segment& s = segments[BlockY()];
  // One lane looks for all: a bound that is none makes others say that the segment is malformed.
  const uint32_t skip = Lane() == 0 && (s.codec != kI8eCodec || s.failed != 0 || s.bytes == 0) ? 1 : 0;
  if (Shuffle(skip, 0) != 0) return;
  const bool plain = decoding != 0 && I8eColumnsOf(s).plan->plain != 0;
  I8Values(s, I8Plan(s), plain ? s.encoded + kI8ePlainHeader : I8ePlain(s), decoding != 0);
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_I8E_CUH_
