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

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/segment.cuh"
#include "kernels/lle_core.h"

namespace tiercel::gpu {

inline constexpr uint8_t kLleCodec = 2;
inline constexpr uint32_t kLleHeader = 4;
inline constexpr uint32_t kLleSymbolsAStream = 12 << 10;

TIERCEL_DEVICE ColumnsMemory LleMemory(const Segment& s) { return {s.scratch, s.columns(), s.tokens}; }

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
TIERCEL_DEVICE uint32_t LleStreams(const Segment& s) { return StreamsFor(s.values, kLleSymbolsAStream); }
TIERCEL_DEVICE uint8_t* ColumnAt(const Segment& s, uint32_t column) {
  return s.base + column / s.dim * s.head_stride + column % s.dim * s.dim_stride;
}

// ---- Encoding.

template <class F>
TIERCEL_DEVICE void LleColumnsAs(const Segment& s) {
  using T = typename F::Value;
  const ColumnsMemory m = LleMemory(s);
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
  const ColumnsMemory m = LleMemory(s);
  const uint32_t columns = s.columns();
  for (uint32_t i = Lane(); i < ListBytes(columns) / 4; i += 32) m.lists[i] = 0;
  SyncWarp();
  PlaceColumns(m, LleStreams(s));
  uint32_t bits = PutList(m.lists, 0, columns, [&](uint32_t c) { return m.bases[c]; });
  bits = PutList(m.lists, bits, columns, [&](uint32_t c) { return static_cast<int32_t>(rans::RankOf(m.classes[c])); });
  if (Lane() == 0) m.plan->list_bytes = (bits + 7) / 8;
}

TIERCEL_KERNEL void LleRows(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  const ColumnsMemory m = LleMemory(s);
  const uint32_t stream = WarpOfBlock();
  if (stream >= m.plan->streams) return;
  const LlePlanes planes(s, m.plan->streams);
  const uint8_t* const cargo = s.encoded + kLleHeader + planes.stored;  // The planes' last bytes.
  EncodeStream(kExponentSet, m, stream, planes.riding, [cargo](uint32_t i) { return cargo[i]; });
}

TIERCEL_KERNEL void LlePack(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!LleEncodes(s)) return;
  const ColumnsMemory m = LleMemory(s);
  const ColumnsPlan& plan = *m.plan;
  const uint32_t lists_at = kLleHeader + LlePlanes(s, plan.streams).stored;
  const uint32_t block_at = (lists_at + plan.list_bytes + 3) / 4 * 4;
  const uint32_t bytes = block_at + BlockBytes(m);
  if (bytes > s.limit) return;
  const uint32_t thread = ThreadOfGrid();
  for (uint32_t i = thread; i < block_at - lists_at; i += ThreadsOfGrid()) {
    s.encoded[lists_at + i] = static_cast<uint8_t>(i < plan.list_bytes ? m.lists[i / 4] >> (8 * (i % 4)) : 0);
  }
  ForFormat(s.dtype, [&]<class F>(F) {
    PackBlock(m, s.encoded + block_at, [&](uint32_t c, uint32_t t) {
      const auto value = *reinterpret_cast<const typename F::Value*>(ColumnAt(s, c) + TokenOffset(s, t));
      return static_cast<int32_t>(F::Exponent(value)) - m.bases[c];
    });
  });
  if (thread == 0) {
    s.encoded[0] = 1;
    s.encoded[1] = s.dtype;
    s.encoded[2] = static_cast<uint8_t>(BitWidth(plan.streams) - 1);
    s.encoded[3] = 0;
    s.bytes = bytes;
    s.params = 0;
  }
}

// ---- Decoding.

// Header and lists, by one thread: where the entropy-coded columns begin; 0: malformed.
TIERCEL_DEVICE uint32_t LleReadLists(const Segment& s, const ColumnsMemory& m) {
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
  const ColumnsMemory m = LleMemory(s);
  uint32_t at = Lane() == 0 ? LleReadLists(s, m) : 0;
  SyncWarp();
  at = Shuffle(at, 0);
  const bool good = at != 0 && OpenBlock(m, s.encoded, s.bytes, at, s.encoded[2]);
  if (!good && Lane() == 0) s.failed = 1;
}

TIERCEL_KERNEL void LleSymbols(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec) return;
  const ColumnsMemory m = LleMemory(s);
  const uint32_t stream = WarpOfBlock();
  // One lane looks for all: another stream's warp may be about to say that the segment is malformed.
  const uint32_t skip = Lane() == 0 && (s.failed != 0 || stream >= m.plan->streams) ? 1 : 0;
  if (Shuffle(skip, 0) != 0) return;
  if (!DecodeStream(kExponentSet, m, s.encoded, stream) && Lane() == 0) AtomicOr(&s.failed, 1);
}

TIERCEL_KERNEL void LleScan(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kLleCodec || s.failed != 0) return;
  const ColumnsMemory m = LleMemory(s);
  if (!ScanColumns(m, s.encoded, s.bytes) && Lane() == 0) s.failed = 1;
}

template <class F>
TIERCEL_DEVICE void LleJoinAs(const Segment& s) {
  using T = typename F::Value;
  const ColumnsMemory m = LleMemory(s);
  const LlePlanes planes(s, m.plan->streams);
  const uint32_t n = s.tokens;
  // Byte `at` of the planes, the last of which rode in the states.
  const auto plane_byte = [&](uint32_t at) -> uint32_t {
    return at < planes.stored ? s.encoded[kLleHeader + at] : CargoByte(m, at - planes.stored);
  };
  for (uint32_t c = ThreadOfGrid(); c < s.columns(); c += ThreadsOfGrid()) {
    const uint32_t planes_at = c * planes.a_column;
    uint8_t* const to = ColumnAt(s, c);
    ColumnReader values(m, s.encoded, c);
    TokenWalk walk(s);
    for (uint32_t t = 0; t < n; ++t) {
      const int32_t exponent = values.Next() + m.bases[c];
      uint32_t rest = 0;
      for (uint32_t b = 0; b < F::kBytePlanes; ++b) rest |= plane_byte(planes_at + b * n + t) << (8 * b);
      for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
        rest |= (plane_byte(planes_at + F::kBytePlanes * n + b * ((n + 7) / 8) + t / 8) >> (t % 8) & 1) << (8 * F::kBytePlanes + b);
      }
      *reinterpret_cast<T*>(to + walk.Next()) = F::Join(static_cast<uint32_t>(exponent), rest);
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
