// EC-C: each column less its mean, in steps that are the same for a whole head, entropy-coded with a
// class a column. It needs no artifact; with the Fisher scales of a model as hints it is within sight
// of the codecs that do.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <span>

#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/ecc_core.h"
#include "kernels/isa.h"
#include "kernels/levels.h"
#include "kernels/rans.h"
#include "kernels/scratch.h"

namespace tiercel {
namespace {

using namespace ecc;  // NOLINT: the codec's own words.

// Of the header; see docs/block-format.md.
constexpr size_t kAtDtype = 1;
constexpr size_t kAtFlags = 2;
constexpr size_t kAtExact = 3;
constexpr size_t kAtSplit = 4;
constexpr size_t kAtStreams = 6;
constexpr size_t kAtBands = 7;
constexpr size_t kAtMeans = 8;
constexpr size_t kAtLevels = 12;
constexpr uint64_t kSymbolsAStream = 32 << 10;

static_assert(std::size(kStepOfClass) == kQualityClasses);

ColumnFns Fns(bool fp16) {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return Avx512Columns(fp16);
    case KernelIsa::kAvx2:
      return Avx2Columns(fp16);
    case KernelIsa::kScalar:
      break;
  }
#endif
  return {fp16 ? WidenColumn<true> : WidenColumn<false>,
          fp16 ? NarrowColumn<true> : NarrowColumn<false>,
          SumColumn,
          QuantizeColumn,
          RebuildColumn,
          QuantizeLevels,
          RebuildLevels,
          RotateColumns,
          UnrotateColumns,
          MomentsOf,
          fp16 ? MomentsOfRows<true> : MomentsOfRows<false>,
          LargestOf};
}

bool Rotates(SegmentKind kind) { return kind != SegmentKind::kV; }

struct Geometry {
  uint32_t heads;
  uint32_t dim;
  uint32_t columns;
  uint32_t tokens;
  size_t stride;
  explicit Geometry(const SegmentShape& shape)
      : heads(shape.heads),
        dim(shape.dim),
        columns(ColumnCount(shape)),
        tokens(shape.tokens),
        stride(ColumnStride(shape.tokens)) {}
  // Columns that are worked on together: pairs of a rotation lie in one head.
  uint32_t unit(bool rope) const { return rope ? dim : std::min(columns, kTileColumns); }
};

// Group g = part * heads + head has a step of its own.
struct Groups {
  uint32_t heads;
  uint32_t dim;
  uint32_t split;  // Of a head's dims, how many are part 0; 0: all.
  uint32_t count() const { return split == 0 ? heads : 2 * heads; }
  uint32_t of(uint32_t column) const {
    const uint32_t head = column / dim;
    return split != 0 && column % dim >= split ? heads + head : head;
  }
};

struct Arrays {
  uint16_t* tile;
  float* x;
  int16_t* q;
  int32_t* means;
  std::span<int32_t> list;
  uint8_t* classes;  // [columns][bands]
  std::byte* mean_bytes;
  std::byte* plane;  // The encoder's: what Decode will give.
  float* turns;      // Of the rotation, in the order of tokens.

  static constexpr uint64_t kMeanBytes = 8;  // Of one, at most: the list's code has up to 49 bits.
  template <class Each>
  static void Layout(const Geometry& g, Each&& each) {
    const uint64_t unit = std::max(g.dim, std::min(g.columns, kTileColumns));
    each.template operator()<uint16_t>(g.stride * unit);
    each.template operator()<float>(g.stride * unit);
    each.template operator()<int16_t>(g.stride);
    each.template operator()<int32_t>(g.columns);
    each.template operator()<int32_t>(ListSize(g));
    each.template operator()<uint8_t>(uint64_t{g.columns} << levels::MostLogBands(g.tokens));
    each.template operator()<std::byte>(kMeanBytes * g.columns + 64);
    each.template operator()<std::byte>(2 * uint64_t{g.columns} * g.tokens);
    each.template operator()<float>(g.stride * g.dim);
  }
  static uint64_t ListSize(const Geometry& g) { return std::max<uint64_t>(g.columns, g.tokens); }
  static uint64_t Bytes(const Geometry& g) {
    ScratchSizer sizer;
    Layout(g, [&]<class U>(uint64_t count) { sizer.Add<U>(count); });
    TokenSteps::AddScratch(sizer, g.stride);
    return sizer.bytes();
  }
  Arrays(const Geometry& g, ScratchCarver& carve) {
    void* at[9];
    size_t i = 0;
    Layout(g, [&]<class U>(uint64_t count) { at[i++] = carve.Take<U>(count); });
    tile = static_cast<uint16_t*>(at[0]);
    x = static_cast<float*>(at[1]);
    q = static_cast<int16_t*>(at[2]);
    means = static_cast<int32_t*>(at[3]);
    list = {static_cast<int32_t*>(at[4]), ListSize(g)};
    classes = static_cast<uint8_t*>(at[5]);
    mean_bytes = static_cast<std::byte*>(at[6]);
    plane = static_cast<std::byte*>(at[7]);
    turns = static_cast<float*>(at[8]);
  }
};

// One segment on its way through either direction. Columns hold the tokens in the order of `steps`.
struct Work {
  const SegmentShape& shape;
  const Geometry g;
  const ColumnFns fns;
  const Arrays& arrays;
  const TokenSteps& steps;
  const RopeTables* rope;  // In that order; null: none.
  uint32_t exact;

  uint32_t exact_at() const { return steps.exact_at(exact); }

  // Columns [first, first + count) of the plane as floats, keys unrotated; zeros behind the tokens.
  void Load(ByteSpan raw, uint32_t first, uint32_t count) const {
    LoadColumns<uint16_t>(shape, raw, first, count, arrays.tile, g.stride, steps.order());
    for (uint32_t c = 0; c < count; ++c) {
      uint16_t* const column = arrays.tile + c * g.stride;
      std::fill(column + g.tokens, column + g.stride, uint16_t{0});
    }
    fns.widen(arrays.tile, count * g.stride, arrays.x);
    if (rope == nullptr) return;
    for (uint32_t p = 0; p < rope->rope.pairs(); ++p) {
      fns.unrotate(Column(rope->rope.FirstOf(p)), Column(rope->rope.SecondOf(p)), g.stride,
                   rope->cos + p * rope->stride, rope->sin + p * rope->stride);
    }
  }
  float* Column(uint32_t c) const { return arrays.x + c * g.stride; }

  // The integers of a column in arrays.q, and its mean; nothing where a value is beyond all steps.
  std::optional<int32_t> Quantise(float* x, float step) const {
    const auto n = static_cast<int64_t>(g.tokens - exact);
    const float inverse = 8.0f / step;
    std::fill_n(x + exact_at(), exact, 0.0f);
    int64_t sum = 0;
    if (!fns.sum(x, g.stride, inverse, &sum)) return std::nullopt;
    int32_t mean = Mean(sum, n);
    if (steps.any()) {
      if (!fns.quantize_levels(x, g.stride, inverse, static_cast<float>(mean), steps.inverses(), arrays.q)) return std::nullopt;
    } else {
      mean = QuantiseRounds(x, inverse, mean, n);
    }
    std::fill_n(arrays.q + exact_at(), exact, int16_t{0});
    return mean;
  }
  // A mean that what is decoded has, too, so that coding it again changes nothing; of wide columns
  // one half a step lower, where their symbols lie evenly about 0.
  int32_t QuantiseRounds(const float* x, float inverse, int32_t mean, int64_t n) const {
    int32_t wide = 0;
    for (int round = 0;; ++round) {
      // Tokens that do not count: their q is 0, or nearly, and not in the sums.
      const size_t behind = g.stride - g.tokens;
      Sums sums = fns.quantize(x, g.stride, inverse, static_cast<float>(mean), arrays.q);
      if (behind + exact != 0) {
        const int32_t q = behind != 0 ? arrays.q[g.tokens] : arrays.q[0];
        const auto others = static_cast<int64_t>(behind + exact);
        sums.values -= others * q;
        sums.magnitudes -= others * std::abs(q);
      }
      if (round == 0 && 4 * sums.magnitudes > 7 * n) wide = 4;
      const int32_t change = round == 0 && wide != 0 ? wide : Mean(8 * sums.values, n) + wide;
      if (change == 0 || round == 3) return mean;
      mean += change;
    }
  }
  // From arrays.q.
  void Rebuild(float step, int32_t mean, float* x) const {
    const float eighth = step * 0.125f;
    const float level = static_cast<float>(mean) * eighth;
    if (steps.any()) {
      fns.rebuild_levels(arrays.q, g.stride, step, level, steps.steps(), x);
    } else {
      fns.rebuild(arrays.q, g.stride, step, level, x);
    }
  }

  // The floats of columns [first, first + count) to the plane. exact_values: of all columns, `exact`
  // each.
  void Store(uint32_t first, uint32_t count, const std::byte* exact_values,
             MutableByteSpan raw) const {
    if (rope != nullptr) {
      for (uint32_t p = 0; p < rope->rope.pairs(); ++p) {
        fns.rotate(Column(rope->rope.FirstOf(p)), Column(rope->rope.SecondOf(p)), g.stride,
                   rope->cos + p * rope->stride, rope->sin + p * rope->stride);
      }
    }
    fns.narrow(arrays.x, count * g.stride, arrays.tile);
    for (uint32_t c = 0; exact != 0 && c < count; ++c) {
      std::memcpy(arrays.tile + c * g.stride + exact_at(), exact_values + size_t{2} * exact * (first + c),
                  size_t{2} * exact);
    }
    StoreColumns<uint16_t>(shape, arrays.tile, g.stride, first, count, raw, steps.order());
  }
};

// The rotation's tables in the order of tokens.
RopeTables InOrder(const RopeTables& tables, const TokenSteps& steps, const Geometry& g, float* room) {
  if (!steps.any()) return tables;
  const size_t pairs = tables.rope.pairs();
  RopeTables ordered = tables;
  ordered.stride = g.stride;
  ordered.cos = steps.Ordered(tables.cos, pairs, tables.stride, room);
  ordered.sin = steps.Ordered(tables.sin, pairs, tables.stride, room + pairs * g.stride);
  return ordered;
}

// The plane's spread: the root of the mean variance of its columns. 0 where there is none, or where a
// value is not finite.
float Spread(const Work& work, ByteSpan raw, bool fp16) {
  const uint32_t most =
      work.fns.largest(reinterpret_cast<const uint16_t*>(raw.data()), raw.size() / 2);
  const float largest = fp16 ? FromFp16(static_cast<uint16_t>(most)) : FromBf16(static_cast<uint16_t>(most));
  const float scale = MomentsScale(largest);
  if (scale == 0) return 0;
  const Geometry& g = work.g;
  const auto n = static_cast<double>(g.tokens - work.exact);
  double variance = 0;
  const auto add = [&](const Moments& m) {
    const auto sum = static_cast<double>(m.sum);
    const double mean_square = sum * sum / n;
    variance += static_cast<double>(m.squares) - mean_square;
  };
  if (work.rope == nullptr && work.shape.order != AxisOrder::kHeadDimToken && g.dim % kStripe == 0) {
    // Side by side in the plane's rows, columns need not be taken out of it; exact are its first tokens.
    ForPieces(work.shape, 0, g.columns, [&](uint32_t, uint32_t count, size_t at, size_t pitch) {
      const uint16_t* const rows = reinterpret_cast<const uint16_t*>(raw.data()) + at + work.exact * pitch;
      for (uint32_t c = 0; c < count; c += kStripe) {
        Moments found[kStripe];
        work.fns.moments_of_rows(rows + c, pitch, g.tokens - work.exact, scale, found);
        for (const Moments& m : found) add(m);
      }
    });
  } else {
    const uint32_t unit = g.unit(work.rope != nullptr);
    for (uint32_t first = 0; first < g.columns; first += unit) {
      const uint32_t count = std::min(unit, g.columns - first);
      work.Load(raw, first, count);
      for (uint32_t c = 0; c < count; ++c) {
        std::fill_n(work.Column(c) + work.exact_at(), work.exact, 0.0f);
        add(work.fns.moments(work.Column(c), g.stride, scale));
      }
    }
  }
  const double mean = variance / (n * static_cast<double>(g.columns));
  return static_cast<float>(std::sqrt(mean)) / scale;
}

float StepOf(uint32_t bits) { return FromBf16(static_cast<uint16_t>(bits)); }

std::optional<EncodedSegment> EncodeSegment(const SegmentShape& shape, ByteSpan raw,
                                            MutableByteSpan out, const CodecContext& context) {
  if (context.quality == QualityClass::kExact) return std::nullopt;
  const Geometry g(shape);
  const bool fp16 = shape.dtype == Dtype::kFp16;
  const Groups groups{g.heads, g.dim, context.split_dim};
  const bool rope = context.rope != nullptr && context.rope->rope.dims != 0 && Rotates(shape.kind);
  if (context.split_dim >= g.dim || context.exact_tokens > std::min(kMaxExact, g.tokens - 1) ||
      (rope && !Fits(*context.rope, shape)) || !levels::Fit(context.levels, g.tokens) ||
      (!context.scales.empty() && context.scales.size() != groups.count())) {
    return std::nullopt;
  }
  ScratchCarver carve(context.scratch);
  const Arrays arrays(g, carve);
  TokenSteps steps(carve, g.tokens, g.stride);
  const bool levels = levels::Any(context.levels, context.exact_tokens);
  if (levels) steps.Set(context.levels, context.exact_tokens);
  const RopeTables turns = rope ? InOrder(*context.rope, steps, g, arrays.turns) : RopeTables{};
  const Work work{shape, g, Fns(fp16), arrays, steps, rope ? &turns : nullptr, context.exact_tokens};
  const uint32_t log_bands = levels ? levels::LogBandsFor(g.tokens) : 0;
  const uint64_t steps_at = Head::Bytes(levels);
  const uint64_t exact_at = steps_at + 2 * uint64_t{groups.count()};
  const uint64_t lists_at = exact_at + 2 * uint64_t{work.exact} * g.columns;
  if (lists_at > out.size()) return std::nullopt;
  std::byte* const header = out.data();
  std::memset(header, 0, steps_at);
  header[0] = std::byte{static_cast<unsigned char>(levels ? 2 : 1)};
  header[kAtDtype] = static_cast<std::byte>(shape.dtype);
  header[kAtFlags] = static_cast<std::byte>(rope ? kFlagRope : 0);
  header[kAtExact] = static_cast<std::byte>(work.exact);
  StoreLe(header + kAtSplit, static_cast<uint16_t>(context.split_dim));
  header[kAtBands] = static_cast<std::byte>(log_bands);

  float step = context.step;
  if (!(step > 0)) {
    step = Spread(work, raw, fp16) * kStepOfClass[static_cast<size_t>(context.quality)];
  }
  for (uint32_t i = 0; i < groups.count(); ++i) {
    const uint32_t bits = StepBits(context.scales.empty() ? step : step * context.scales[i]);
    if (!GoodStep(bits)) return std::nullopt;
    StoreLe(header + steps_at + 2 * i, static_cast<uint16_t>(bits));
  }

  const uint32_t band_tokens = g.tokens >> log_bands;
  rans::Encoder encoder(rans::TableSet::kQuantized, g.columns << log_bands, band_tokens, carve.Rest());
  const uint32_t unit = g.unit(rope);
  for (uint32_t first = 0; first < g.columns; first += unit) {
    const uint32_t count = std::min(unit, g.columns - first);
    work.Load(raw, first, count);
    for (uint32_t c = 0; c < count; ++c) {
      float* const x = work.Column(c);
      std::memcpy(out.data() + exact_at + 2 * uint64_t{work.exact} * (first + c),
                  arrays.tile + c * g.stride + work.exact_at(), size_t{2} * work.exact);
      const float a_step = StepOf(LoadLe<uint16_t>(header + steps_at + 2 * groups.of(first + c)));
      const auto mean = work.Quantise(x, a_step);
      if (!mean) return std::nullopt;
      for (uint32_t b = 0; b < 1u << log_bands; ++b) encoder.Add(arrays.q + b * band_tokens);
      work.Rebuild(a_step, *mean, x);
      arrays.means[first + c] = *mean;
    }
    work.Store(first, count, out.data() + exact_at, {arrays.plane, raw.size()});
  }

  BitWriter means({arrays.mean_bytes, Arrays::kMeanBytes * g.columns + 64});
  PutIntegers(means, {arrays.means, g.columns});
  const uint64_t mean_bytes = means.Finish();
  const uint32_t streams = rans::StreamsFor(uint64_t{g.columns} * g.tokens, kSymbolsAStream);
  const uint64_t riding = std::min<uint64_t>(streams * rans::kCargoBytes, mean_bytes);
  header[kAtStreams] = static_cast<std::byte>(std::countr_zero(streams));
  StoreLe(header + kAtMeans, static_cast<uint32_t>(mean_bytes));
  std::array<int8_t, 1 << levels::kMaxLogBands> offsets{};
  uint64_t level_bytes = 0;
  if (levels) {
    ChooseOffsets(encoder.classes(), log_bands, offsets.data());
    const std::span<const int8_t> moved(offsets.data(), (1u << log_bands) - 1);
    level_bytes = PutLevels(context.levels, work.exact, moved, arrays.list, out.subspan(lists_at));
    if (level_bytes > out.size() - lists_at) return std::nullopt;
    StoreLe(header + kAtLevels, static_cast<uint32_t>(level_bytes));
  }
  BitWriter classes(out.subspan(lists_at + level_bytes));
  PutBandClasses(classes, encoder.classes(), log_bands, offsets.data(), arrays.list);
  uint64_t at = lists_at + level_bytes + classes.Finish();
  const uint64_t block_at = (at + mean_bytes - riding + 3) / 4 * 4;
  if (block_at > out.size()) return std::nullopt;
  std::memcpy(out.data() + at, arrays.mean_bytes + riding, mean_bytes - riding);
  at += mean_bytes - riding;
  std::memset(out.data() + at, 0, block_at - at);
  const auto block = encoder.Finish(streams, {arrays.mean_bytes, riding}, out.subspan(block_at));
  if (!block) return std::nullopt;
  return EncodedSegment{block_at + *block, 0, DecodedDigest({arrays.plane, raw.size()})};
}

const char* Describe(HeadFault fault) {
  switch (fault) {
    case HeadFault::kNone:
      return nullptr;
    case HeadFault::kVersion:
      return "not version 1 or 2";
    case HeadFault::kDtype:
      return "of another dtype";
    case HeadFault::kFlags:
      return "unknown flags";
    case HeadFault::kExact:
      return "more exact tokens than there can be";
    case HeadFault::kSplit:
      return "split_dim out of range";
    case HeadFault::kStreams:
      return "too many streams";
    case HeadFault::kBands:
      return "bands that do not fit its tokens";
    case HeadFault::kReserved:
      return "a reserved byte is not 0";
    case HeadFault::kMeans:
      return "more bytes of means than there can be";
    case HeadFault::kParts:
      return "shorter than its steps, exact tokens and levels";
  }
  return "malformed";
}

// Null, or what is wrong.
const char* DecodeSegment(const SegmentShape& shape, ByteSpan encoded, MutableByteSpan out,
                          const CodecContext& context) {
  const Geometry g(shape);
  const bool fp16 = shape.dtype == Dtype::kFp16;
  Head head;
  const auto dtype = static_cast<uint32_t>(shape.dtype);
  if (const char* bad = Describe(ReadHead(encoded.data(), encoded.size(), dtype, g.tokens, g.heads, g.dim, head))) return bad;
  const bool rope = (head.flags & kFlagRope) != 0;
  if (rope && !Rotates(shape.kind)) return "a rotation of values";
  if (rope && (context.rope == nullptr || context.rope->rope.dims == 0)) {
    return "its keys are unrotated, and no rotation is given";
  }
  if (rope && !Fits(*context.rope, shape)) return "a rotation that does not fit its heads";
  const Groups groups{g.heads, g.dim, head.split};
  ScratchCarver carve(context.scratch);
  const Arrays arrays(g, carve);
  TokenSteps steps(carve, g.tokens, g.stride);
  std::array<int8_t, 1 << levels::kMaxLogBands> offsets{};
  if (head.levels()) {
    const ByteSpan part = encoded.subspan(head.levels_at(), head.level_bytes);
    const std::span<int8_t> moved(offsets.data(), (1u << head.log_bands) - 1);
    if (const char* bad = GetLevels(part, head.exact, steps.levels(), moved, arrays.list)) return bad;
    steps.Set(steps.levels(), head.exact);
  }
  const RopeTables turns = rope ? InOrder(*context.rope, steps, g, arrays.turns) : RopeTables{};
  const Work work{shape, g, Fns(fp16), arrays, steps, rope ? &turns : nullptr, head.exact};
  const std::byte* const steps_at = encoded.data() + head.steps_at();
  for (uint32_t i = 0; i < groups.count(); ++i) {
    if (!GoodStep(LoadLe<uint16_t>(steps_at + 2 * i))) return "a step out of range";
  }
  const uint32_t bands = 1u << head.log_bands;
  const uint32_t band_tokens = g.tokens >> head.log_bands;
  const std::span<uint8_t> classes(arrays.classes, g.columns * bands);
  BitReader lists(encoded.subspan(head.classes_at()));
  if (!GetBandClasses(lists, classes, head.log_bands, offsets.data(), arrays.list)) return "not a list of classes";
  const uint64_t mean_bytes = head.mean_bytes;
  const uint64_t riding = std::min<uint64_t>(uint64_t{rans::kCargoBytes} << head.log_streams, mean_bytes);
  const uint64_t means_at = head.classes_at() + lists.bytes_used();
  const uint64_t block_at = (means_at + mean_bytes - riding + 3) / 4 * 4;
  if (block_at > encoded.size()) return "shorter than its lists";
  rans::Decoder decoder(rans::TableSet::kQuantized, g.columns * bands, band_tokens, carve.Rest());
  if (const char* bad = decoder.Start(classes, encoded.subspan(block_at))) return bad;
  if (decoder.streams() != 1u << head.log_streams) return "two counts of streams";
  std::memcpy(arrays.mean_bytes, decoder.cargo().data(), riding);
  std::memcpy(arrays.mean_bytes + riding, encoded.data() + means_at, mean_bytes - riding);
  BitReader means({arrays.mean_bytes, mean_bytes});
  if (!GetIntegers(means, -(1 << 17), 1 << 17, {arrays.means, g.columns}) ||
      means.bytes_used() != mean_bytes) {
    return "not a list of means";
  }
  const uint32_t unit = g.unit(rope);
  for (uint32_t first = 0; first < g.columns; first += unit) {
    const uint32_t count = std::min(unit, g.columns - first);
    for (uint32_t c = 0; c < count; ++c) {
      for (uint32_t b = 0; b < bands; ++b) {
        if (const char* bad = decoder.Column(arrays.q + b * band_tokens)) return bad;
      }
      std::fill(arrays.q + g.tokens, arrays.q + g.stride, int16_t{0});
      work.Rebuild(StepOf(LoadLe<uint16_t>(steps_at + 2 * groups.of(first + c))), arrays.means[first + c], work.Column(c));
    }
    work.Store(first, count, encoded.data() + head.exact_at(), out);
  }
  return decoder.Finish();
}

class EcCCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kEcC; }
  QualityClass quality() const override { return QualityClass::kNear; }  // At best: as it is asked.

  bool Supports(const SegmentShape& shape) const override {
    const uint64_t columns = uint64_t{shape.heads} * shape.dim;
    return (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) && shape.tokens >= 1 &&
           shape.tokens <= rans::kMaxTokens && columns >= 1 && columns <= rans::kMaxColumns &&
           shape.raw_bytes == 2 * columns * shape.tokens;
  }

  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;
  }

  uint64_t scratch_bytes(const SegmentShape& shape) const override {
    const Geometry g(shape);
    // Bands are columns of fewer tokens each; of as many as there can be, what a column needs is most.
    const uint32_t log_bands = levels::MostLogBands(g.tokens);
    return Arrays::Bytes(g) + std::max(rans::EncodeScratchBytes(g.columns << log_bands, g.tokens >> log_bands),
                                       rans::DecodeScratchBytes(g.columns << log_bands, g.tokens >> log_bands));
  }

  uint64_t step_bytes(const SegmentShape& shape) const override { return shape.raw_bytes; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out,
                                       const CodecContext& context) const override {
    const uint64_t limit = MaxEncodedBytes(shape);
    if (!Supports(shape) || raw.size() != shape.raw_bytes || out.size() < limit) {
      return std::nullopt;
    }
    return EncodeSegment(shape, raw, out.first(limit), context);
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext& context) const override {
    if (!Supports(shape) || begin != 0 || out.size() != shape.raw_bytes) {
      return Fail(Code::kInvalidArgument, fmt::format("EC-C segment: no step {}+{} of {}", begin,
                                                      out.size(), shape.raw_bytes));
    }
    const char* bad =
        params == 0 ? tiercel::DecodeSegment(shape, encoded, out, context) : "params is not 0";
    if (bad == nullptr) return OkStatus();
    return Fail(Code::kDataLoss, fmt::format("EC-C segment of {} bytes: {}", encoded.size(), bad));
  }
};

}  // namespace

bool Fits(const RopeTables& tables, const SegmentShape& shape) {
  const Rope& rope = tables.rope;
  return rope.dims % 2 == 0 && rope.dims <= kMaxRopeDims && rope.first <= shape.dim &&
         rope.dims <= shape.dim - rope.first && tables.stride >= ColumnStride(shape.tokens);
}

const Codec& EcCCodec() {
  static const EcCCodecImpl codec;
  return codec;
}

}  // namespace tiercel
