// EC-K and EC-X: K before its rotation, or V, through the transform of a model's artifact (of each head,
// or of all heads of a layer), one step for the whole model, entropy-coded coefficients. The segment:
//
//   0 version | 1 exact tokens | 2 log2 of the streams | 3 log2 of the bands | 4 step, f32 | 8 bytes of the classes,
//   u32 | 12 bytes of the level part, u32 | the level part | the classes | the exact tokens' values, column by
//   column in each | coefficients
//
// Version 2 has levels; version 1 has none, and one band.
//
// Formulas: docs/artifact-format.md; bitstream: docs/block-format.md, "EC-K and EC-X".
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
#include <string>

#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/klt_columns.h"
#include "kernels/klt_core.h"
#include "kernels/klt_loops.h"
#include "kernels/levels.h"
#include "kernels/rans.h"
#include "kernels/scratch.h"

namespace tiercel {
namespace klt {
namespace {

void Analyse(uint32_t n, const float* analysis, const float* mean, const float* x, size_t stride,
             const float* inverse_steps, float* /*panel*/, int16_t* q) {
  for (uint32_t c = 0; c < n; ++c) {
    for (size_t t = 0; t < stride; ++t) {
      float sum = 0;
      for (uint32_t j = 0; j < n; ++j) sum = __builtin_fmaf(analysis[size_t{c} * n + j], x[j * stride + t] - mean[j], sum);
      q[c * stride + t] = Quantize(sum, inverse_steps[t]);
    }
  }
}

void Synthesise(uint32_t n, uint32_t row_pairs, const uint8_t* /*raised*/, const int32_t* pairs, const uint16_t* active,
                uint32_t count, const int16_t* q, size_t stride, const float* factor, const float* steps, const float* mean,
                int32_t* /*room*/, float* x) {
  for (uint32_t j = 0; j < n; ++j) {
    for (size_t t = 0; t < stride; ++t) {
      uint32_t sum = 0;  // Of what no encoder writes it may wrap, as the wide loops' do.
      for (uint32_t i = 0; i < count; ++i) {
        const int32_t pair = pairs[size_t{j} * row_pairs + active[i]];
        const uint32_t c = uint32_t{active[i]} * 2;
        sum += static_cast<uint32_t>(static_cast<int16_t>(pair & 0xffff) * q[c * stride + t]);
        if (c + 1 < n) sum += static_cast<uint32_t>((pair >> 16) * q[(c + 1) * stride + t]);
      }
      x[j * stride + t] = Restore(static_cast<int32_t>(sum), factor[j], steps[t], mean[j]);
    }
  }
}

void Rotate(float* a, float* b, const float* cosine, const float* sine, size_t stride, bool back) {
  for (size_t t = 0; t < stride; ++t) {
    const rope::Turned by{cosine[t], sine[t]};
    back ? rope::Unrotate(a[t], b[t], by) : rope::Rotate(a[t], b[t], by);
  }
}

bool LoadBf16(const uint16_t* values, size_t count, size_t stride, float* x) {
  bool finite = true;
  for (size_t t = 0; t < stride; ++t) {
    x[t] = t < count ? FromBf16(values[t]) : 0;
    finite = finite && (t >= count || (values[t] & 0x7f80u) != 0x7f80u);
  }
  return finite;
}

void StoreBf16(const float* x, size_t stride, uint16_t* values) {
  for (size_t t = 0; t < stride; ++t) values[t] = ToBf16(x[t]);
}

void Weigh(uint32_t n, const float* x, size_t stride, const float* mean, const float* weight, float* z) {
  for (size_t t = 0; t < stride; ++t) {
    for (uint32_t j = 0; j < n; ++j) z[t] = levels::Weigh(z[t], x[j * stride + t], mean[j], weight[j]);
  }
}

}  // namespace

Fns ScalarFns() { return {Analyse, Synthesise, Rotate, LoadBf16, StoreBf16, Weigh}; }

}  // namespace klt

namespace {

using klt::kHeaderBytes;

constexpr uint64_t kSymbolsAStream = 24 << 10;

// The arrays of one segment, cut from scratch. Columns hold the tokens in the order of `steps`.
struct Work {
  uint32_t columns, tokens;
  uint32_t group;   // No transform is larger.
  size_t stride;
  float* x;         // [columns][stride]
  int16_t* q;       // [columns][stride]
  uint16_t* tile;   // [kTileColumns][stride]
  float* turns;     // [2][dim / 2][stride]
  float* factor;    // [group]
  float* inverses;  // [stride]
  float* panel;     // [group][32]
  int32_t* room;    // 32 words a pair of coefficients.
  uint16_t* active;
  uint8_t* classes;  // [columns][bands]
  std::span<int32_t> list;
  std::byte* raw;   // Encoder: what the decoder will give.
  TokenSteps steps;
  MutableByteSpan coder;

  static uint64_t Bytes(const SegmentShape& shape) {
    const uint64_t stride = ColumnStride(shape.tokens);
    const uint32_t columns = ColumnCount(shape);
    const uint32_t group = std::min(columns, kMaxTransform);
    // Bands are columns of fewer tokens each; of as many as there can be, what a column needs is most.
    const uint32_t log_bands = levels::MostLogBands(shape.tokens);
    const uint64_t coder = std::max(rans::EncodeScratchBytes(columns << log_bands, shape.tokens >> log_bands),
                                    rans::DecodeScratchBytes(columns << log_bands, shape.tokens >> log_bands));
    ScratchSizer sizer;
    sizer.Add<float>(columns * stride)
        .Add<int16_t>(columns * stride)
        .Add<uint16_t>(kTileColumns * stride)
        .Add<float>(shape.dim * stride)
        .Add<float>(group)
        .Add<float>(stride)
        .Add<float>(uint64_t{group} * 32)
        .Add<int32_t>(uint64_t{group + 1} / 2 * 32)
        .Add<uint16_t>((group + 1) / 2)
        .Add<uint8_t>(uint64_t{columns} << log_bands)
        .Add<int32_t>(std::max<uint64_t>(columns, stride))
        .Add<std::byte>(shape.raw_bytes)
        .Add<std::byte>(coder);
    TokenSteps::AddScratch(sizer, stride);
    return sizer.bytes();
  }
  Work(const SegmentShape& shape, MutableByteSpan scratch) : Work(shape, ScratchCarver(scratch)) {}

 private:
  Work(const SegmentShape& shape, ScratchCarver carver)
      : columns(ColumnCount(shape)),
        tokens(shape.tokens),
        group(std::min(columns, kMaxTransform)),
        stride(ColumnStride(shape.tokens)),
        x(carver.Take<float>(columns * stride)),
        q(carver.Take<int16_t>(columns * stride)),
        tile(carver.Take<uint16_t>(kTileColumns * stride)),
        turns(carver.Take<float>(shape.dim * stride)),
        factor(carver.Take<float>(group)),
        inverses(carver.Take<float>(stride)),
        panel(carver.Take<float>(uint64_t{group} * 32)),
        room(carver.Take<int32_t>(uint64_t{group + 1} / 2 * 32)),
        active(carver.Take<uint16_t>((group + 1) / 2)),
        classes(carver.Take<uint8_t>(uint64_t{columns} << levels::MostLogBands(tokens))),
        list(carver.Take<int32_t>(std::max<uint64_t>(columns, stride)), std::max<uint64_t>(columns, stride)),
        raw(carver.Take<std::byte>(shape.raw_bytes)),
        steps(carver, tokens, stride),
        coder(carver.Rest()) {}
};

std::string Describe(klt::HeadFault fault, const klt::Head& head, uint64_t bytes, uint32_t tokens) {
  switch (fault) {
    case klt::HeadFault::kNone:
      return "";
    case klt::HeadFault::kShort:
      return fmt::format("{} bytes cannot hold its header", bytes);
    case klt::HeadFault::kVersion:
      return fmt::format("version {}", head.version);
    case klt::HeadFault::kExact:
      return fmt::format("{} exact tokens", head.exact);
    case klt::HeadFault::kStreams:
      return fmt::format("log2 of the streams is {}", head.log_streams);
    case klt::HeadFault::kBands:
      return fmt::format("log2 of the bands is {}, of {} tokens", head.log_bands, tokens);
    case klt::HeadFault::kReserved:
      return "reserved bytes are not 0";
    case klt::HeadFault::kStep:
      return fmt::format("step {}", head.step);
    case klt::HeadFault::kParts:
      return fmt::format("{} bytes of levels, {} of classes and {} exact tokens do not fit", head.level_bytes, head.class_bytes,
                         head.exact);
  }
  return "malformed";
}

class KltCodec final : public Codec {
 public:
  explicit KltCodec(CodecId id) : id_(id) {}

  CodecId id() const override { return id_; }
  QualityClass quality() const override { return QualityClass::kNear; }
  bool needs_artifact() const override { return true; }
  bool Supports(const SegmentShape& shape) const override {
    return (shape.kind == SegmentKind::kK || shape.kind == SegmentKind::kV) &&
           (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) && shape.tokens > 0 &&
           shape.tokens <= rans::kMaxTokens && GroupSize(shape) <= kMaxTransform && ColumnCount(shape) <= rans::kMaxColumns;
  }
  uint64_t scratch_bytes(const SegmentShape& shape) const override { return Work::Bytes(shape); }
  uint64_t step_bytes(const SegmentShape& shape) const override { return shape.raw_bytes; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw, MutableByteSpan out,
                                       const CodecContext& context) const override {
    float step = context.step;
    if (context.artifact == nullptr || raw.size() != shape.raw_bytes || !Fits(shape, context) ||
        !levels::Fit(context.levels, shape.tokens)) {
      return std::nullopt;
    }
    if (step == 0) {
      const auto measured = context.artifact->StepOf(id_, context.quality);
      if (!measured) return std::nullopt;
      step = measured->step;
    }
    const uint32_t exact = std::min({context.exact_tokens, shape.tokens, klt::kMaxExact});
    Work work(shape, context.scratch);
    const klt::Fns fns = klt::ActiveFns();
    const bool levels = levels::Any(context.levels, exact);
    if (levels) work.steps.Set(context.levels, exact);
    const uint32_t log_bands = levels ? levels::LogBandsFor(work.tokens) : 0;
    const size_t exact_bytes = size_t{exact} * work.columns * 2;
    // The exact tokens wait at the end of out until it is known where they go.
    if (out.size() < kHeaderBytes + exact_bytes) return std::nullopt;
    std::byte* const held = out.data() + out.size() - exact_bytes;
    if (!Load(shape, raw, work, fns, exact, held)) return std::nullopt;
    const float inverse_step = 1 / step;
    for (size_t t = 0; t < work.stride; ++t) work.inverses[t] = inverse_step * work.steps.inverses()[t];
    Turn(shape, context, work, fns, /*back=*/true);
    for (uint32_t first = 0, group = 0; first < work.columns; first += GroupSize(shape), ++group) {
      const KltTransform& transform = *TransformOf(shape, context, group);
      fns.analyse(transform.n, transform.analysis.data(), transform.mean.data(), work.x + first * work.stride, work.stride,
                  work.inverses, work.panel, work.q + first * work.stride);
    }
    const uint32_t band_tokens = work.tokens >> log_bands;
    rans::Encoder encoder(rans::TableSet::kQuantized, work.columns << log_bands, band_tokens, work.coder);
    for (uint32_t c = 0; c < work.columns; ++c) {
      int16_t* const q = work.q + c * work.stride;
      std::fill_n(q + work.steps.exact_at(exact), exact, int16_t{0});
      std::fill_n(q + work.tokens, work.stride - work.tokens, int16_t{0});
      for (uint32_t b = 0; b < 1u << log_bands; ++b) encoder.Add(q + b * band_tokens);
    }
    const uint32_t streams = rans::StreamsFor(uint64_t{work.columns} * work.tokens, kSymbolsAStream);
    const MutableByteSpan parts = out.subspan(kHeaderBytes, out.size() - kHeaderBytes - exact_bytes);
    std::array<int8_t, 1 << levels::kMaxLogBands> offsets{};
    size_t level_bytes = 0;
    if (levels) {
      ChooseOffsets(encoder.classes(), log_bands, offsets.data());
      level_bytes = PutLevels(context.levels, exact, {offsets.data(), (1u << log_bands) - 1}, work.list, parts);
      if (level_bytes > parts.size()) return std::nullopt;
    }
    BitWriter bits(parts.subspan(level_bytes));
    PutBandClasses(bits, encoder.classes(), log_bands, offsets.data(), work.list);
    const size_t class_bytes = bits.Finish();
    const size_t exact_at = kHeaderBytes + level_bytes + class_bytes;
    if (exact_at + 2 * exact_bytes > out.size()) return std::nullopt;
    std::memmove(out.data() + exact_at, held, exact_bytes);
    const size_t at = exact_at + exact_bytes;
    const auto block = encoder.Finish(streams, {}, out.subspan(at));
    if (!block) return std::nullopt;
    std::memset(out.data(), 0, kHeaderBytes);
    out[0] = std::byte{static_cast<unsigned char>(levels ? 2 : 1)};
    out[1] = static_cast<std::byte>(exact);
    out[2] = static_cast<std::byte>(std::countr_zero(streams));
    out[3] = static_cast<std::byte>(log_bands);
    StoreLe(out.data() + 4, step);
    StoreLe(out.data() + 8, static_cast<uint32_t>(class_bytes));
    StoreLe(out.data() + 12, static_cast<uint32_t>(level_bytes));
    EncodedSegment encoded;
    encoded.bytes = at + *block;
    Restore(shape, context, work, fns, step, {out.data() + exact_at, exact_bytes}, exact, {work.raw, shape.raw_bytes});
    encoded.decoded_digest = DecodedDigest({work.raw, shape.raw_bytes});
    return encoded;
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin, MutableByteSpan out,
                const CodecContext& context) const override {
    const auto bad = [this](std::string what) {
      return Status(Fail(Code::kDataLoss, fmt::format("{}: {}", tiercel::Name(id_), what)));
    };
    if (begin != 0 || out.size() != shape.raw_bytes) {
      return Fail(Code::kInvalidArgument, fmt::format("{}: a segment of {} bytes is decoded whole, not {}+{}",
                                                      tiercel::Name(id_), shape.raw_bytes, begin, out.size()));
    }
    if (context.artifact == nullptr || !Fits(shape, context)) {
      return Fail(Code::kFailedPrecondition, fmt::format("{}: no artifact with this layer's transform", tiercel::Name(id_)));
    }
    if (params != 0) return bad(fmt::format("params is {}", params));
    klt::Head head;
    const klt::HeadFault fault = klt::ReadHead(encoded.data(), encoded.size(), shape.tokens, ColumnCount(shape), head);
    if (fault != klt::HeadFault::kNone) return bad(Describe(fault, head, encoded.size(), shape.tokens));
    Work work(shape, context.scratch);
    std::array<int8_t, 1 << levels::kMaxLogBands> offsets{};
    if (head.levels()) {
      const ByteSpan part = encoded.subspan(head.levels_at(), head.level_bytes);
      const std::span<int8_t> moved(offsets.data(), (1u << head.log_bands) - 1);
      if (const char* wrong = GetLevels(part, head.exact, work.steps.levels(), moved, work.list)) return bad(wrong);
      work.steps.Set(work.steps.levels(), head.exact);
    }
    const uint32_t bands = 1u << head.log_bands;
    const uint32_t band_tokens = work.tokens >> head.log_bands;
    const std::span<uint8_t> classes(work.classes, work.columns * bands);
    BitReader bits(encoded.subspan(head.classes_at(), head.class_bytes));
    if (!GetBandClasses(bits, classes, head.log_bands, offsets.data(), work.list) || bits.bytes_used() != head.class_bytes) {
      return bad("the classes are malformed");
    }
    rans::Decoder decoder(rans::TableSet::kQuantized, work.columns * bands, band_tokens, work.coder);
    if (const char* wrong = decoder.Start(classes, encoded.subspan(head.block_at()))) return bad(wrong);
    if (decoder.streams() != 1u << head.log_streams) return bad(fmt::format("log2 of the streams is {}", head.log_streams));
    for (uint32_t c = 0; c < work.columns; ++c) {
      int16_t* const q = work.q + c * work.stride;
      for (uint32_t b = 0; b < bands; ++b) {
        if (const char* wrong = decoder.Column(q + b * band_tokens)) return bad(wrong);
      }
      // What stands behind the tokens is anything; a sum that nobody reads must not overflow.
      std::fill_n(q + work.tokens, work.stride - work.tokens, int16_t{0});
    }
    if (const char* wrong = decoder.Finish()) return bad(wrong);
    const ByteSpan exact_values = encoded.subspan(head.exact_at(), head.exact_bytes);
    Restore(shape, context, work, klt::ActiveFns(), head.step, exact_values, head.exact, out);
    return OkStatus();
  }

 private:
  uint32_t GroupSize(const SegmentShape& shape) const { return id_ == CodecId::kEcX ? ColumnCount(shape) : shape.dim; }

  const KltTransform* TransformOf(const SegmentShape& shape, const CodecContext& context, uint32_t group) const {
    const uint32_t which = id_ == CodecId::kEcX ? kWholeLayer : context.first_head + group;
    return which > kWholeLayer ? nullptr : context.artifact->Find(shape.layer, shape.kind, static_cast<uint8_t>(which));
  }

  // Every group of the segment has its transform, of its size.
  bool Fits(const SegmentShape& shape, const CodecContext& context) const {
    for (uint32_t first = 0, group = 0; first < ColumnCount(shape); first += GroupSize(shape), ++group) {
      const KltTransform* transform = TransformOf(shape, context, group);
      if (transform == nullptr || transform->n != GroupSize(shape)) return false;
    }
    return context.artifact->head_dim(shape.kind) == shape.dim;
  }

  static bool Load(const SegmentShape& shape, ByteSpan raw, Work& work, const klt::Fns& fns, uint32_t exact, std::byte* held) {
    bool finite = true;
    const uint32_t exact_at = work.steps.exact_at(exact);
    for (uint32_t first = 0; first < work.columns; first += kTileColumns) {
      const uint32_t count = std::min(kTileColumns, work.columns - first);
      finite = klt::LoadFloats(fns, shape, raw, first, count, work.steps.order(), work.tile, work.stride,
                               work.x + first * work.stride) && finite;
      for (uint32_t c = 0; c < count; ++c) {
        const uint16_t* const values = work.tile + c * work.stride + exact_at;
        for (uint32_t t = 0; t < exact; ++t) StoreLe(held + (size_t{t} * work.columns + first + c) * 2, values[t]);
      }
    }
    return finite;
  }

  // K's columns turned by their tokens' positions, or back.
  static void Turn(const SegmentShape& shape, const CodecContext& context, Work& work, const klt::Fns& fns, bool back) {
    const size_t pairs = context.artifact->rope_dims() / 2;
    if (shape.kind != SegmentKind::kK || pairs == 0) return;
    const klt::Angles& angles = klt::Angles::Of(*context.artifact, shape.layer, context.pos0, work.stride);
    const float* const cosine = work.steps.Ordered(angles.cosine(0), pairs, work.stride, work.turns);
    const float* const sine = work.steps.Ordered(angles.sine(0), pairs, work.stride, work.turns + pairs * work.stride);
    for (uint32_t head = 0; head < shape.heads; ++head) {
      klt::TurnHead(fns, *context.artifact, cosine, sine, work.stride, work.x + size_t{head} * shape.dim * work.stride, back);
    }
  }

  // From work.q to the bytes that a reader gets.
  void Restore(const SegmentShape& shape, const CodecContext& context, Work& work, const klt::Fns& fns, float step,
               ByteSpan exact_values, uint32_t exact, MutableByteSpan out) const {
    for (uint32_t first = 0, group = 0; first < work.columns; first += GroupSize(shape), ++group) {
      const KltTransform& transform = *TransformOf(shape, context, group);
      const uint32_t n = transform.n;
      for (uint32_t j = 0; j < n; ++j) work.factor[j] = transform.scale[j] * step;
      uint32_t count = 0;
      for (uint32_t c = 0; c < n; c += 2) {
        const int16_t* q = work.q + (first + c) * work.stride;
        const size_t values = work.stride * (c + 1 < n ? 2 : 1);
        if (std::any_of(q, q + values, [](int16_t v) { return v != 0; })) work.active[count++] = static_cast<uint16_t>(c / 2);
      }
      fns.synthesise(n, transform.row_pairs(), transform.raised.data(), transform.pairs.data(), work.active, count,
                     work.q + first * work.stride, work.stride, work.factor, work.steps.steps(), transform.mean.data(),
                     work.room, work.x + first * work.stride);
    }
    Turn(shape, context, work, fns, /*back=*/false);
    for (uint32_t first = 0; first < work.columns; first += kTileColumns) {
      const uint32_t count = std::min(kTileColumns, work.columns - first);
      for (uint32_t c = 0; c < count; ++c) {
        uint16_t* values = work.tile + c * work.stride;
        const float* x = work.x + (first + c) * work.stride;
        if (shape.dtype == Dtype::kBf16) {
          fns.store_bf16(x, work.stride, values);
        } else {
          for (size_t t = 0; t < work.stride; ++t) values[t] = klt::ToFp16(x[t]);
        }
        for (uint32_t t = 0; t < exact; ++t) {
          values[work.steps.exact_at(exact) + t] = LoadLe<uint16_t>(exact_values.data() + (size_t{t} * work.columns + first + c) * 2);
        }
      }
      StoreColumns(shape, work.tile, work.stride, first, count, out, work.steps.order());
    }
  }

  const CodecId id_;
};

}  // namespace

const Codec& EcKCodec() {
  static const KltCodec codec(CodecId::kEcK);
  return codec;
}

const Codec& EcXCodec() {
  static const KltCodec codec(CodecId::kEcX);
  return codec;
}

}  // namespace tiercel
