// What EC-C, EC-K and EC-X have in common on a GPU: the same segments as kernels/ecc.cc and kernels/klt.cc. Values
// of a segment's columns lie in scratch as [token][column]: x, floats, K turned back, and q, what is coded. The entropy
// coder has them in the order of levels, a column's bands each as a column.
//
//   encode:  EcBegin       grid (1, segments), one warp: the exact tokens
//            EcLevels      grid (any, segments), a thread a token: levels, where an artifact foretells them
//            EcOrder       grid (1, segments), one warp: the order of tokens, bands
//            EcLoad        grid (any, segments): x from the pages
//            (ecc.cuh: means and q; klt.cuh: q)
//            EcClasses     grid (any, segments), 1 KiB shared a warp, a thread a column: classes, symbols
//            EcPlace       grid (1, segments), one warp: rows, lists, where escapes go
//            EcRows        grid (1, segments), 8 warps: the streams' words
//            EcPack        grid (any, segments): the segment
//            (klt.cuh: x of what will be decoded)
//            EcShow        grid (any, segments): the digest of what will be decoded
//   decode:  EcOpen        grid (1, segments), one warp: header, levels, classes, rows
//            EcSymbols     grid (1, segments), 8 warps
//            EcScan        grid (1, segments), one warp: where each column's escapes are; EC-C's means
//            EcJoin        grid (any, segments), a thread a column: q
//            (klt.cuh: x)
//            EcShow        grid (any, segments): values to the pages, and their digest
//
// Errors: `failed`, where a segment has no code; decoding, where it is malformed. Nothing outside it is read.
#ifndef TIERCEL_KERNELS_CUDA_EC_CUH_
#define TIERCEL_KERNELS_CUDA_EC_CUH_

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/fixed.cuh"
#include "kernels/cuda/klt_group.cuh"
#include "kernels/cuda/segment.cuh"
#include "kernels/ecc_core.h"
#include "kernels/klt_core.h"
#include "kernels/rope_core.h"

namespace tiercel::gpu {

inline constexpr uint8_t kEcCCodec = 7;
inline constexpr uint8_t kEcKCodec = 8;
inline constexpr uint32_t kKindV = 2;
inline constexpr uint32_t kEccSymbolsAStream = 32 << 10;
inline constexpr uint32_t kKltSymbolsAStream = 24 << 10;
inline constexpr int32_t kMostMean = 1 << 17;

TIERCEL_DEVICE bool IsEc(const Segment& s) { return s.codec >= kEcCCodec && s.codec <= kEcXCodec; }
TIERCEL_DEVICE bool IsKlt(const Segment& s) { return s.codec == kEcKCodec || s.codec == kEcXCodec; }

struct EcMemory {
  EcPlan* plan;
  int8_t* levels;     // Of each token; of exact ones 0.
  uint16_t* order;    // Which token is where in a column.
  uint32_t* level_words;
  uint32_t* live;
  int32_t* means;
  uint32_t* mean_words;
  double* terms;
  int16_t* q;
  float* x;
  uint8_t* coder_at;
  uint32_t columns, tokens;
  TIERCEL_DEVICE EcMemory(const Segment& s, const EcLayout& at)
      : plan(reinterpret_cast<EcPlan*>(s.scratch + at.plan)),
        levels(reinterpret_cast<int8_t*>(s.scratch + at.levels)),
        order(reinterpret_cast<uint16_t*>(s.scratch + at.order)),
        level_words(reinterpret_cast<uint32_t*>(s.scratch + at.level_words)),
        live(reinterpret_cast<uint32_t*>(s.scratch + at.live)),
        means(reinterpret_cast<int32_t*>(s.scratch + at.means)),
        mean_words(reinterpret_cast<uint32_t*>(s.scratch + at.mean_words)),
        terms(reinterpret_cast<double*>(s.scratch + at.terms)),
        q(reinterpret_cast<int16_t*>(s.scratch + at.q)),
        x(reinterpret_cast<float*>(s.scratch + (s.encoding != 0 ? at.x_encoding : at.x_decoding))),
        coder_at(s.scratch + at.coder),
        columns(s.columns()),
        tokens(s.tokens) {}
  TIERCEL_DEVICE explicit EcMemory(const Segment& s) : EcMemory(s, EcLayoutOf(s.columns(), s.tokens)) {}
  // Once it is known how many bands there are: a column's band is a column of its own there.
  TIERCEL_DEVICE ColumnsMemory coder() const { return {coder_at, columns << plan->log_bands, tokens >> plan->log_bands}; }
  // Where in q the value of the coder's column c at its place t is.
  TIERCEL_DEVICE uint32_t At(uint32_t c, uint32_t t) const {
    const uint32_t band = c & ((1u << plan->log_bands) - 1);
    return order[band * (tokens >> plan->log_bands) + t] * columns + (c >> plan->log_bands);
  }
};

// ---- Rotation.

// How a dim of a head is turned: with which other, and how fast.
struct Turning {
  bool on = false;
  bool second = false;  // Of its pair.
  uint32_t other = 0;
  uint64_t frequency = 0;
};
TIERCEL_DEVICE Turning TurningOf(const Segment& s, uint32_t dim) {
  Turning out;
  if (dim < s.rope_first || dim - s.rope_first >= s.rope_dims) return out;
  const uint32_t at = dim - s.rope_first;
  const uint32_t pairs = s.rope_dims / 2u;
  const bool halves = s.rope_style == 0;
  const uint32_t step = halves ? pairs : 1;
  out.on = true;
  out.second = halves ? at >= pairs : at % 2 != 0;
  out.other = out.second ? dim - step : dim + step;
  out.frequency = LoadU64(s.frequencies + 8 * (halves ? at % pairs : at / 2));
  return out;
}
// One of a pair, turned by its position's angle, or back.
TIERCEL_DEVICE float Turn(const Turning& by, uint64_t position, float mine, float other, bool back) {
  const rope::Turned angle = rope::Turn(position * by.frequency);
  const float sine = back ? -angle.sine : angle.sine;
  const float straight = mine * angle.cosine;
  const float across = other * sine;
  return by.second ? straight + across : straight - across;
}

// ---- Encoding.

TIERCEL_KERNEL void EcBegin(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || Lane() != 0) return;
  const EcMemory m(s);
  uint32_t exact = s.exact;
  if (IsKlt(s)) {
    exact = exact < klt::kMaxExact ? exact : klt::kMaxExact;
  } else if (exact > ecc::kMaxExact) {
    s.failed = 1;
  }
  m.plan->exact = exact;
  m.plan->wild = 0;
  m.plan->largest = 0;
}

// A value as the page has it, widened; false where a transform has none for it.
TIERCEL_DEVICE bool EcWiden(const Segment& s, uint32_t half, float* value) {
  const bool fp16 = s.dtype == kFp16Float;
  if (!IsKlt(s)) {
    *value = fp16 ? ecc::FromFp16(static_cast<uint16_t>(half)) : ecc::FromBf16(static_cast<uint16_t>(half));
    return true;
  }
  *value = fp16 ? klt::FromFp16(static_cast<uint16_t>(half)) : klt::FromBf16(static_cast<uint16_t>(half));
  const uint32_t exponent = fp16 ? 0x7c00u : 0x7f80u;
  return (half & exponent) != exponent;
}

// The levels that K foretells, a thread a token. K's segment is the one before V's.
TIERCEL_KERNEL void EcLevels(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0 || s.foretelling == nullptr) return;
  const EcMemory m(s);
  const auto& head = *reinterpret_cast<const ImageHead*>(s.image);
  const ImageLevels& by = *s.foretelling;
  const auto* const mean = reinterpret_cast<const float*>(s.image + by.mean_at) + s.first_head * head.dim_k;
  const auto* const weight = reinterpret_cast<const float*>(s.image + by.weight_at) + s.first_head * head.dim_k;
  const Segment& k = segments[BlockY() - (s.kind == kKindV ? 1 : 0)];
  const bool fp16 = s.dtype == kFp16Float;
  const auto widen = [fp16](uint32_t half) {
    return fp16 ? klt::FromFp16(static_cast<uint16_t>(half)) : klt::FromBf16(static_cast<uint16_t>(half));
  };
  const uint32_t infinite = fp16 ? 0x7c00u : 0x7f80u;
  Segment turned;  // As the artifact has K.
  turned.frequencies = s.image + FrequenciesAt(head, s.layer);
  turned.rope_dims = static_cast<uint16_t>(head.rope_dims);
  turned.rope_style = static_cast<uint8_t>(head.rope_style);
  for (uint32_t t = ThreadOfGrid(); t < k.tokens; t += ThreadsOfGrid()) {
    const uint64_t position = s.pos0 + t;
    float z = levels::Start(levels::Log2(position), by.position_weight, by.position_mean);
    bool finite = true;
    for (uint32_t j = 0; j < k.columns(); ++j) {
      const Coordinates at{t, j / k.dim, j % k.dim};
      const uint32_t half = HalfAt(k, at);
      finite = finite && (half & infinite) != infinite;
      float value = widen(half);
      const Turning turning = TurningOf(turned, at.dim);
      if (turning.on) value = Turn(turning, position, value, widen(HalfAt(k, {t, at.head, turning.other})), /*back=*/true);
      const float centred = value - mean[j];
      z = Fma(weight[j], centred, z);
    }
    m.levels[t] = levels::LevelOf(z);
    if (!finite) AtomicOr(&m.plan->wild, 1);
  }
}

// Whether there are levels, and with them the order of tokens. One warp.
TIERCEL_KERNEL void EcOrder(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  EcPlan& plan = *m.plan;
  bool mine = false;
  if (s.foretelling != nullptr && plan.wild == 0) {
    for (uint32_t t = plan.exact + Lane(); t < s.tokens; t += 32) mine = mine || m.levels[t] != 0;
  }
  const bool any = Ballot(mine) != 0;
  for (uint32_t t = Lane(); t < s.tokens; t += 32) {
    if (!any || t < plan.exact) m.levels[t] = 0;
    m.order[t] = static_cast<uint16_t>(t);
  }
  SyncWarp();
  if (Lane() != 0) return;
  if (any) levels::OrderTokens(m.levels, plan.exact, s.tokens, m.order);
  plan.levels = any ? 1 : 0;
  plan.log_bands = any ? levels::LogBandsFor(s.tokens) : 0;
  if (IsKlt(s)) return;
  plan.steps_at = static_cast<uint32_t>(ecc::Head::Bytes(any));
  plan.exact_at = plan.steps_at + 2 * s.groups;
  plan.levels_at = plan.exact_at + 2 * plan.exact * m.columns;
  if (plan.levels_at > s.limit) s.failed = 1;
}

TIERCEL_KERNEL void EcLoad(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const uint32_t columns = s.columns();
  const uint32_t exact = IsKlt(s) ? 0 : m.plan->exact;
  for (uint32_t i = ThreadOfGrid(); i < s.values; i += ThreadsOfGrid()) {
    Coordinates at{i / columns, i % columns / s.dim, i % columns % s.dim};
    float value = 0;
    if (!EcWiden(s, HalfAt(s, at), &value)) Fail(s);
    const Turning by = TurningOf(s, at.dim);
    if (by.on) {
      float other = 0;
      EcWiden(s, HalfAt(s, {at.token, at.head, by.other}), &other);
      value = Turn(by, s.pos0 + at.token, value, other, /*back=*/true);
    }
    if (IsKlt(s)) {
      const KltGroup group = KltGroupOf(s, i % columns);
      value = value - group.mean()[i % columns - group.first];
    }
    m.x[i] = at.token < exact ? 0.0f : value;
  }
}

TIERCEL_KERNEL void EcClasses(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const ColumnsMemory coder = m.coder();
  uint16_t* const counts = Shared<uint16_t>() + WarpOfBlock() * 32 * rans::kSymbols + Lane();
  for (uint32_t c = ThreadOfGrid(); c < coder.columns; c += ThreadsOfGrid()) {
    ClassifyColumn(coder, c, counts, [&](uint32_t t) { return static_cast<int32_t>(m.q[m.At(c, t)]); });
  }
}

// How many coefficients of each transform there are up to the last that is not all zero. Warp.
TIERCEL_DEVICE void KltLive(const Segment& s, const EcMemory& m) {
  if (!IsKlt(s)) return;
  const uint32_t n = KltGroupSize(s);
  const uint32_t log_bands = m.plan->log_bands;
  const uint8_t* const classes = m.coder().classes;
  for (uint32_t group = 0; group < s.columns() / n; ++group) {
    uint32_t live = 0;
    for (uint32_t i = Lane(); i < n << log_bands; i += 32) {
      if (rans::TableOf(classes[(group * n << log_bands) + i]) != 0) live = (i >> log_bands) + 1;
    }
    live = WarpMax(live);
    if (Lane() == 0) m.live[group] = live;
  }
}

// What the rank of the coder's column c, of another band than the first, is foretold to be.
TIERCEL_DEVICE int32_t EcForetold(const EcMemory& m, const uint8_t* classes, uint32_t c) {
  const uint32_t band = c & ((1u << m.plan->log_bands) - 1);
  return band == 0 ? 0 : levels::ForetoldRank(rans::RankOf(classes[c - 1]), m.plan->offsets[band - 1]);
}

TIERCEL_KERNEL void EcPlace(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  EcPlan& plan = *m.plan;
  const ColumnsMemory coder = m.coder();
  const uint32_t columns = s.columns();
  const uint32_t bands = 1u << plan.log_bands;
  for (uint32_t i = Lane(); i < ListBytes(coder.columns) / 4; i += 32) coder.lists[i] = 0;
  for (uint32_t i = Lane(); i < ListBytes(s.tokens) / 4; i += 32) m.level_words[i] = 0;
  for (uint32_t i = Lane(); !IsKlt(s) && i < MeanBytes(columns) / 4; i += 32) m.mean_words[i] = 0;
  if (Lane() + 1 < bands) plan.offsets[Lane()] = static_cast<int8_t>(levels::OffsetFor(coder.classes, columns, plan.log_bands, Lane() + 1));
  SyncWarp();
  PlaceColumns(coder, StreamsFor(s.values, IsKlt(s) ? kKltSymbolsAStream : kEccSymbolsAStream));
  KltLive(s, m);
  uint32_t bits = 0;
  for (uint32_t band = 0; band < bands; ++band) {
    bits = PutList(coder.lists, bits, columns, [&](uint32_t column) {
      const uint32_t c = column * bands + band;
      return static_cast<int32_t>(rans::RankOf(coder.classes[c])) - EcForetold(m, coder.classes, c);
    });
  }
  uint32_t level_bits = 0;
  if (plan.levels != 0) {
    level_bits = PutList(m.level_words, 0, s.tokens - plan.exact,
                         [&](uint32_t t) { return static_cast<int32_t>(m.levels[plan.exact + t]); });
  }
  uint32_t mean_bits = 0;
  if (!IsKlt(s)) mean_bits = PutList(m.mean_words, 0, columns, [&](uint32_t c) { return m.means[c]; });
  if (Lane() != 0) return;
  plan.level_bytes = plan.levels != 0 ? (level_bits + 7) / 8 + bands - 1 : 0;
  plan.class_bytes = (bits + 7) / 8;
  plan.mean_bytes = (mean_bits + 7) / 8;
  if (IsKlt(s)) {
    const uint32_t exact_bytes = 2 * plan.exact * columns;
    plan.levels_at = static_cast<uint32_t>(klt::kHeaderBytes);
    plan.classes_at = plan.levels_at + plan.level_bytes;
    plan.exact_at = plan.classes_at + plan.class_bytes;
    plan.block_at = plan.exact_at + exact_bytes;
    // The CPU's encoder holds the exact values twice.
    if (plan.block_at + exact_bytes > s.limit) s.failed = 1;
    return;
  }
  const uint32_t most = static_cast<uint32_t>(rans::kCargoBytes) * coder.plan->streams;
  plan.riding = plan.mean_bytes < most ? plan.mean_bytes : most;
  plan.classes_at = plan.levels_at + plan.level_bytes;
  plan.means_at = plan.classes_at + plan.class_bytes;
  plan.block_at = (plan.means_at + plan.mean_bytes - plan.riding + 3) / 4 * 4;
}

TIERCEL_KERNEL void EcRows(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const ColumnsMemory coder = m.coder();
  const uint32_t stream = WarpOfBlock();
  if (stream >= coder.plan->streams) return;
  EncodeStream(kQuantizedSet, coder, stream, IsKlt(s) ? 0 : m.plan->riding,
               [&](uint32_t i) { return m.mean_words[i / 4] >> (8 * (i % 4)) & 255u; });
}

TIERCEL_KERNEL void EcPack(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const EcPlan& plan = *m.plan;
  const ColumnsMemory coder = m.coder();
  const uint32_t columns = s.columns();
  const uint32_t bytes = plan.block_at + BlockBytes(coder);
  if (bytes > s.limit) return;
  const uint32_t thread = ThreadOfGrid();
  const uint32_t threads = ThreadsOfGrid();
  const auto byte_of = [](const uint32_t* words, uint32_t i) { return static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4))); };
  const uint32_t bands = 1u << plan.log_bands;
  for (uint32_t i = thread; i < plan.level_bytes; i += threads) {
    const uint32_t list = plan.level_bytes - (bands - 1);
    s.encoded[plan.levels_at + i] = i < list ? byte_of(m.level_words, i) : static_cast<uint8_t>(plan.offsets[i - list]);
  }
  for (uint32_t i = thread; i < plan.class_bytes; i += threads) s.encoded[plan.classes_at + i] = byte_of(coder.lists, i);
  for (uint32_t i = thread; i < plan.exact * columns; i += threads) {
    const uint32_t token = IsKlt(s) ? i / columns : i % plan.exact;
    const uint32_t column = IsKlt(s) ? i % columns : i / plan.exact;
    StoreU16(s.encoded + plan.exact_at + 2 * i, HalfAt(s, {token, column / s.dim, column % s.dim}));
  }
  for (uint32_t i = thread; !IsKlt(s) && i < plan.block_at - plan.means_at; i += threads) {
    const uint32_t at = plan.riding + i;
    s.encoded[plan.means_at + i] = at < plan.mean_bytes ? byte_of(m.mean_words, at) : uint8_t{0};
  }
  PackBlock(coder, s.encoded + plan.block_at, [&](uint32_t c, uint32_t t) { return static_cast<int32_t>(m.q[m.At(c, t)]); });
  if (thread != 0) return;
  const auto log_streams = static_cast<uint8_t>(BitWidth(coder.plan->streams) - 1);
  s.encoded[0] = plan.levels != 0 ? 2 : 1;
  if (IsKlt(s)) {
    s.encoded[1] = static_cast<uint8_t>(plan.exact);
    s.encoded[2] = log_streams;
    s.encoded[3] = static_cast<uint8_t>(plan.log_bands);
    StoreU32(s.encoded + 4, std::bit_cast<uint32_t>(s.step));
    StoreU32(s.encoded + 8, plan.class_bytes);
    StoreU32(s.encoded + 12, plan.level_bytes);
  } else {
    s.encoded[1] = s.dtype;
    s.encoded[2] = static_cast<uint8_t>(s.rope_dims != 0 ? ecc::kFlagRope : 0);
    s.encoded[3] = static_cast<uint8_t>(plan.exact);
    StoreU16(s.encoded + 4, s.split);
    s.encoded[6] = log_streams;
    s.encoded[7] = static_cast<uint8_t>(plan.log_bands);
    StoreU32(s.encoded + 8, plan.mean_bytes);
    if (plan.levels != 0) StoreU32(s.encoded + 12, plan.level_bytes);
  }
  s.bytes = bytes;
  s.params = 0;
}

// ---- Decoding.

// What the headers of both kinds of segments tell.
template <class Head>
TIERCEL_DEVICE void TakeHead(const Head& head, EcPlan& plan) {
  plan.exact = head.exact;
  plan.levels = head.levels() ? 1 : 0;
  plan.log_bands = head.log_bands;
  plan.log_streams = head.log_streams;
  plan.level_bytes = head.level_bytes;
  plan.exact_at = static_cast<uint32_t>(head.exact_at());
  plan.levels_at = static_cast<uint32_t>(head.levels_at());
  plan.classes_at = static_cast<uint32_t>(head.classes_at());
}
// Headers, by one thread: where all is; false: malformed.
TIERCEL_DEVICE bool EccReadHead(Segment& s, EcPlan& plan) {
  ecc::Head head;
  if (ecc::ReadHead(s.encoded, s.bytes, s.dtype, s.tokens, s.heads, s.dim, head) != ecc::HeadFault::kNone) return false;
  const bool rope = (head.flags & ecc::kFlagRope) != 0;
  if (rope && (s.kind == kKindV || s.rope_dims == 0 || uint32_t{s.rope_first} + s.rope_dims > s.dim)) return false;
  if (!rope) s.rope_dims = 0;
  s.split = static_cast<uint16_t>(head.split);
  TakeHead(head, plan);
  plan.mean_bytes = head.mean_bytes;
  plan.steps_at = static_cast<uint32_t>(head.steps_at());
  for (uint32_t i = 0; i < head.groups; ++i) {
    if (!ecc::GoodStep(LoadU16(s.encoded + plan.steps_at + 2 * i))) return false;
  }
  return true;
}
TIERCEL_DEVICE bool KltReadHead(Segment& s, EcPlan& plan) {
  klt::Head head;
  if (klt::ReadHead(s.encoded, s.bytes, s.tokens, s.columns(), head) != klt::HeadFault::kNone) return false;
  s.step = head.step;
  TakeHead(head, plan);
  plan.class_bytes = head.class_bytes;
  plan.block_at = static_cast<uint32_t>(head.block_at());
  return true;
}
// The tokens' levels, their order, and the bands' offsets, by one thread.
TIERCEL_DEVICE bool EcReadLevels(const Segment& s, const EcMemory& m) {
  EcPlan& plan = *m.plan;
  for (uint32_t t = 0; t < s.tokens; ++t) {
    m.levels[t] = 0;
    m.order[t] = static_cast<uint16_t>(t);
  }
  if (plan.levels == 0) return true;
  BitSource bits(s.encoded + plan.levels_at, plan.level_bytes);
  if (!GetList(bits, s.tokens - plan.exact, levels::kLeast, levels::kMost,
               [&](uint32_t t, int32_t v) { m.levels[plan.exact + t] = static_cast<int8_t>(v); })) {
    return false;
  }
  const uint32_t used = (bits.used + 7) / 8;
  const uint32_t offsets = (1u << plan.log_bands) - 1;
  if (used + offsets != plan.level_bytes) return false;
  for (uint32_t i = 0; i < offsets; ++i) plan.offsets[i] = static_cast<int8_t>(s.encoded[plan.levels_at + used + i]);
  levels::OrderTokens(m.levels, plan.exact, s.tokens, m.order);
  return true;
}
// All before the entropy-coded columns but EC-C's means, by one thread.
TIERCEL_DEVICE bool EcReadLists(Segment& s, const EcMemory& m) {
  EcPlan& plan = *m.plan;
  if (s.params != 0 || !(IsKlt(s) ? KltReadHead(s, plan) : EccReadHead(s, plan)) || !EcReadLevels(s, m)) return false;
  const ColumnsMemory coder = m.coder();
  const uint32_t size = IsKlt(s) ? plan.class_bytes : s.bytes - plan.classes_at;
  BitSource bits(s.encoded + plan.classes_at, size);
  constexpr int32_t kMostRank = rans::kRanks - 1;
  const uint32_t bands = 1u << plan.log_bands;
  for (uint32_t band = 0; band < bands; ++band) {
    bool good = true;
    good = GetList(bits, s.columns(), band == 0 ? 0 : -kMostRank, kMostRank, [&](uint32_t column, int32_t v) {
             const uint32_t c = column * bands + band;
             const int32_t rank = v + EcForetold(m, coder.classes, c);
             good = good && rank >= 0 && rank <= kMostRank;
             coder.classes[c] = good ? rans::ClassOfRank(static_cast<uint32_t>(rank)) : uint8_t{0};
           }) && good;
    if (!good) return false;
  }
  const uint32_t used = (bits.used + 7) / 8;
  if (IsKlt(s)) return used == plan.class_bytes;
  const uint32_t most = static_cast<uint32_t>(rans::kCargoBytes) << plan.log_streams;
  plan.riding = plan.mean_bytes < most ? plan.mean_bytes : most;
  plan.means_at = plan.classes_at + used;
  plan.block_at = (plan.means_at + plan.mean_bytes - plan.riding + 3) / 4 * 4;
  return true;
}

TIERCEL_KERNEL void EcOpen(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s)) return;
  const EcMemory m(s);
  uint32_t good = Lane() == 0 && EcReadLists(s, m) ? 1 : 0;
  SyncWarp();
  good = Shuffle(good, 0);
  if (good == 0 || !OpenBlock(m.coder(), s.encoded, s.bytes, m.plan->block_at, m.plan->log_streams)) {
    if (Lane() == 0) s.failed = 1;
    return;
  }
  KltLive(s, m);
}

TIERCEL_KERNEL void EcSymbols(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s)) return;
  const EcMemory m(s);
  const uint32_t stream = WarpOfBlock();
  // One lane looks for all: another stream's warp may be about to say that the segment is malformed.
  const uint32_t skip = Lane() == 0 && (s.failed != 0 || stream >= m.coder().plan->streams) ? 1 : 0;
  if (Shuffle(skip, 0) != 0) return;
  if (!DecodeStream(kQuantizedSet, m.coder(), s.encoded, stream) && Lane() == 0) AtomicOr(&s.failed, 1);
}

TIERCEL_KERNEL void EcScan(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const ColumnsMemory coder = m.coder();
  bool good = ScanColumns(coder, s.encoded, s.bytes);
  if (good && !IsKlt(s)) {
    // The first of the means' bytes rode in the states.
    const EcPlan& plan = *m.plan;
    auto* const bytes = reinterpret_cast<uint8_t*>(m.mean_words);
    for (uint32_t i = Lane(); i < plan.mean_bytes; i += 32) {
      bytes[i] = static_cast<uint8_t>(i < plan.riding ? CargoByte(coder, i) : s.encoded[plan.means_at + i - plan.riding]);
    }
    SyncWarp();
    if (Lane() == 0) {
      BitSource bits(bytes, plan.mean_bytes);
      good = GetList(bits, s.columns(), -kMostMean, kMostMean, [&](uint32_t c, int32_t v) { m.means[c] = v; });
      good = good && (bits.used + 7) / 8 == plan.mean_bytes;
    }
  }
  if (Lane() == 0 && !good) s.failed = 1;
}

TIERCEL_KERNEL void EcJoin(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0) return;
  const EcMemory m(s);
  const ColumnsMemory coder = m.coder();
  for (uint32_t c = ThreadOfGrid(); c < coder.columns; c += ThreadsOfGrid()) {
    ColumnReader values(coder, s.encoded, c);
    for (uint32_t t = 0; t < coder.tokens; ++t) m.q[m.At(c, t)] = static_cast<int16_t>(values.Next());
  }
}

// ---- Both ways.

// What is decoded before K's rotation.
TIERCEL_DEVICE float EcValue(const Segment& s, const EcMemory& m, uint32_t token, uint32_t column) {
  if (IsKlt(s)) return m.x[token * s.columns() + column];
  const uint32_t head = column / s.dim;
  const uint32_t group = s.split != 0 && column % s.dim >= s.split ? s.heads + head : head;
  const float step = ecc::FromBf16(static_cast<uint16_t>(LoadU16(s.encoded + m.plan->steps_at + 2 * group)));
  const float eighth = step * 0.125f;
  const float level = static_cast<float>(m.means[column]) * eighth;
  const float common = static_cast<float>(m.q[token * s.columns() + column]) * step;
  const float scaled = common * levels::StepOf(m.levels[token]);
  return scaled + level;
}
TIERCEL_DEVICE uint32_t EcNarrow(const Segment& s, float value) {
  const bool fp16 = s.dtype == kFp16Float;
  if (!IsKlt(s)) return fp16 ? ecc::ToFp16(value) : ecc::ToBf16(value);
  // Of no number, the one that a CPU gives for infinity times 0.
  if (!(value == value)) value = std::bit_cast<float>(0xffc00000u);
  return fp16 ? klt::ToFp16(value) : klt::ToBf16(value);
}
TIERCEL_KERNEL void EcShow(Segment* segments, uint32_t decoding) {
  Segment& s = segments[BlockY()];
  if (!IsEc(s) || s.failed != 0 || s.bytes == 0) return;
  const EcMemory m(s);
  const EcPlan& plan = *m.plan;
  ForWords(s, decoding != 0, [&](uint32_t, Coordinates at) {
    const uint32_t column = at.head * s.dim + at.dim;
    if (at.token < plan.exact) {
      const uint32_t i = IsKlt(s) ? at.token * s.columns() + column : column * plan.exact + at.token;
      return LoadU16(s.encoded + plan.exact_at + 2 * i);
    }
    float value = EcValue(s, m, at.token, column);
    const Turning by = TurningOf(s, at.dim);
    if (by.on) {
      const float other = EcValue(s, m, at.token, at.head * s.dim + by.other);
      value = Turn(by, s.pos0 + at.token, value, other, /*back=*/false);
    }
    return EcNarrow(s, value);
  });
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_EC_CUH_
