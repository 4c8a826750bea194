// EC-K and EC-X: K before its rotation, or V, through the transform of a model's artifact (of each head,
// or of all heads of a layer), one step for the whole model, entropy-coded coefficients. The segment:
//
//   0 version, 1 | 1 exact tokens | 2 log2 of the streams | 3 zero | 4 step, f32 | 8 bytes of the classes, u32 |
//   12 zero, u32 | the classes | the exact tokens' values, column by column in each | coefficients
//
// Formulas: docs/artifact-format.md; bitstream: docs/block-format.md, "EC-K and EC-X".
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/isa.h"
#include "kernels/klt_core.h"
#include "kernels/klt_loops.h"
#include "kernels/rans.h"
#include "kernels/rope_core.h"
#include "kernels/scratch.h"

namespace tiercel {
namespace klt {
namespace {

void Analyse(uint32_t n, const float* analysis, const float* x, size_t stride, float inverse_step, int16_t* q) {
  for (uint32_t c = 0; c < n; ++c) {
    for (size_t t = 0; t < stride; ++t) {
      float sum = 0;
      for (uint32_t j = 0; j < n; ++j) sum = __builtin_fmaf(analysis[size_t{c} * n + j], x[j * stride + t], sum);
      q[c * stride + t] = Quantize(sum, inverse_step);
    }
  }
}

void Synthesise(uint32_t n, uint32_t row_pairs, const int32_t* pairs, const uint16_t* active, uint32_t count,
                const int16_t* q, size_t stride, const float* factor, const float* mean, int32_t* /*room*/, float* x) {
  for (uint32_t j = 0; j < n; ++j) {
    for (size_t t = 0; t < stride; ++t) {
      int32_t sum = 0;
      for (uint32_t i = 0; i < count; ++i) {
        const int32_t pair = pairs[size_t{j} * row_pairs + active[i]];
        const uint32_t c = uint32_t{active[i]} * 2;
        sum += static_cast<int16_t>(pair & 0xffff) * q[c * stride + t];
        if (c + 1 < n) sum += (pair >> 16) * q[(c + 1) * stride + t];
      }
      x[j * stride + t] = Restore(sum, factor[j], mean[j]);
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

void Add(float* x, size_t stride, float what) {
  for (size_t t = 0; t < stride; ++t) x[t] += what;
}

}  // namespace

Fns ScalarFns() { return {Analyse, Synthesise, Rotate, LoadBf16, StoreBf16, Add}; }

}  // namespace klt

namespace {

constexpr size_t kHeader = 16;
constexpr uint64_t kSymbolsAStream = 24 << 10;
constexpr uint32_t kMaxExact = 16;

klt::Fns ActiveFns() {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return klt::Avx512Fns();
    case KernelIsa::kAvx2:
      return klt::Avx2Fns();
    case KernelIsa::kScalar:
      break;
  }
#endif
  return klt::ScalarFns();
}

// Cosines and sines of a block's positions, kept by thread: all layers of a record use the same.
class Angles {
 public:
  // [pairs][stride] each.
  static const Angles& Of(const Artifact& artifact, uint64_t pos0, size_t stride) {
    thread_local Angles kept;
    if (kept.id_ != artifact.id() || kept.pos0_ != pos0 || kept.stride_ != stride) kept.Make(artifact, pos0, stride);
    return kept;
  }
  const float* cosine(size_t pair) const { return cosine_.data() + pair * stride_; }
  const float* sine(size_t pair) const { return sine_.data() + pair * stride_; }

 private:
  void Make(const Artifact& artifact, uint64_t pos0, size_t stride) {
    id_ = artifact.id();
    pos0_ = pos0;
    stride_ = stride;
    const auto rope = artifact.rope();
    cosine_.resize(rope.size() * stride);
    sine_.resize(rope.size() * stride);
    rope::FillTables({artifact.rope_style(), 0, static_cast<uint32_t>(rope.size() * 2), rope.data()}, pos0,
                     static_cast<uint32_t>(stride), stride, cosine_.data(), sine_.data());
  }

  uint64_t id_ = 0, pos0_ = 0;
  size_t stride_ = 0;
  std::vector<float> cosine_, sine_;
};

// The arrays of one segment, cut from scratch.
struct Work {
  uint32_t columns, tokens;
  size_t stride;
  float* x;         // [columns][stride]
  int16_t* q;       // [columns][stride]
  uint16_t* tile;   // [kTileColumns][stride]
  float* factor;    // [kMaxTransform]
  int32_t* room;    // 32 words a pair
  uint16_t* active;
  uint8_t* classes;
  int32_t* ranks;
  std::byte* raw;   // Encoder: what the decoder will give.
  MutableByteSpan coder;

  static uint64_t Bytes(const SegmentShape& shape) {
    const uint64_t columns = ColumnCount(shape);
    const uint64_t stride = ColumnStride(shape.tokens);
    const uint64_t coder = std::max(rans::EncodeScratchBytes(ColumnCount(shape), shape.tokens),
                                    rans::DecodeScratchBytes(ColumnCount(shape), shape.tokens));
    return ScratchSizer()
        .Add<float>(columns * stride)
        .Add<int16_t>(columns * stride)
        .Add<uint16_t>(kTileColumns * stride)
        .Add<float>(kMaxTransform)
        .Add<int32_t>(kMaxTransform * 16)
        .Add<uint16_t>(kMaxTransform)
        .Add<uint8_t>(columns)
        .Add<int32_t>(columns + 64)
        .Add<std::byte>(shape.raw_bytes)
        .Add<std::byte>(coder)
        .bytes();
  }
  Work(const SegmentShape& shape, MutableByteSpan scratch)
      : columns(ColumnCount(shape)), tokens(shape.tokens), stride(ColumnStride(shape.tokens)) {
    ScratchCarver carver(scratch);
    x = carver.Take<float>(columns * stride);
    q = carver.Take<int16_t>(columns * stride);
    tile = carver.Take<uint16_t>(kTileColumns * stride);
    factor = carver.Take<float>(kMaxTransform);
    room = carver.Take<int32_t>(kMaxTransform * 16);
    active = carver.Take<uint16_t>(kMaxTransform);
    classes = carver.Take<uint8_t>(columns);
    ranks = carver.Take<int32_t>(columns + 64);
    raw = carver.Take<std::byte>(shape.raw_bytes);
    coder = carver.Rest();
  }
};

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
    if (context.artifact == nullptr || raw.size() != shape.raw_bytes || !Fits(shape, context)) return std::nullopt;
    if (step == 0) {
      const auto measured = context.artifact->StepOf(id_, context.quality);
      if (!measured) return std::nullopt;
      step = measured->step;
    }
    const uint32_t exact = std::min({context.exact_tokens, shape.tokens, kMaxExact});
    Work work(shape, context.scratch);
    const klt::Fns fns = ActiveFns();
    const size_t exact_bytes = size_t{exact} * work.columns * 2;
    // The exact tokens wait at the end of out until it is known where they go.
    if (out.size() < kHeader + exact_bytes) return std::nullopt;
    std::byte* const held = out.data() + out.size() - exact_bytes;
    if (!Load(shape, raw, work, fns, exact, held)) return std::nullopt;
    Turn(shape, context, work, fns, /*back=*/true);
    for (uint32_t first = 0, group = 0; first < work.columns; first += GroupSize(shape), ++group) {
      const KltTransform& transform = *TransformOf(shape, context, group);
      for (uint32_t j = 0; j < transform.n; ++j) fns.add(work.x + (first + j) * work.stride, work.stride, -transform.mean[j]);
      fns.analyse(transform.n, transform.analysis.data(), work.x + first * work.stride, work.stride, 1 / step,
                  work.q + first * work.stride);
    }
    rans::Encoder encoder(rans::TableSet::kQuantized, work.columns, work.tokens, work.coder);
    for (uint32_t c = 0; c < work.columns; ++c) {
      std::fill_n(work.q + c * work.stride, exact, int16_t{0});
      std::fill_n(work.q + c * work.stride + work.tokens, work.stride - work.tokens, int16_t{0});
      encoder.Add(work.q + c * work.stride);
    }
    const uint32_t streams = rans::StreamsFor(uint64_t{work.columns} * work.tokens, kSymbolsAStream);
    BitWriter bits(out.subspan(kHeader, out.size() - kHeader - exact_bytes));
    rans::PutClasses(bits, encoder.classes(), {work.ranks, work.columns + 64});
    const size_t class_bytes = bits.Finish();
    if (kHeader + class_bytes + 2 * exact_bytes > out.size()) return std::nullopt;
    std::memmove(out.data() + kHeader + class_bytes, held, exact_bytes);
    const size_t at = kHeader + class_bytes + exact_bytes;
    const auto block = encoder.Finish(streams, {}, out.subspan(at));
    if (!block) return std::nullopt;
    std::memset(out.data(), 0, kHeader);
    out[0] = std::byte{1};
    out[1] = static_cast<std::byte>(exact);
    out[2] = static_cast<std::byte>(std::countr_zero(streams));
    StoreLe(out.data() + 4, step);
    StoreLe(out.data() + 8, static_cast<uint32_t>(class_bytes));
    EncodedSegment encoded;
    encoded.bytes = at + *block;
    Restore(shape, context, work, fns, step, {out.data() + kHeader + class_bytes, exact_bytes}, exact,
            {work.raw, shape.raw_bytes});
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
    if (encoded.size() < kHeader) return bad(fmt::format("{} bytes cannot hold its header", encoded.size()));
    const auto exact = LoadLe<uint8_t>(encoded.data() + 1);
    const auto log_streams = LoadLe<uint8_t>(encoded.data() + 2);
    const auto step = LoadLe<float>(encoded.data() + 4);
    const auto class_bytes = LoadLe<uint32_t>(encoded.data() + 8);
    if (LoadLe<uint8_t>(encoded.data()) != 1) return bad(fmt::format("version {}", LoadLe<uint8_t>(encoded.data())));
    if (exact > std::min(shape.tokens, kMaxExact)) return bad(fmt::format("{} exact tokens", exact));
    if (LoadLe<uint8_t>(encoded.data() + 3) != 0 || LoadLe<uint32_t>(encoded.data() + 12) != 0) return bad("reserved bytes are not 0");
    if (!std::isfinite(step) || step <= 0) return bad(fmt::format("step {}", step));
    const size_t exact_bytes = size_t{exact} * ColumnCount(shape) * 2;
    if (class_bytes > encoded.size() - kHeader || exact_bytes > encoded.size() - kHeader - class_bytes) {
      return bad(fmt::format("{} bytes of classes and {} exact tokens do not fit", class_bytes, exact));
    }
    Work work(shape, context.scratch);
    BitReader bits(encoded.subspan(kHeader, class_bytes));
    if (!rans::GetClasses(bits, {work.classes, work.columns}, {work.ranks, work.columns + 64}) || bits.bytes_used() != class_bytes) {
      return bad("the classes are malformed");
    }
    rans::Decoder decoder(rans::TableSet::kQuantized, work.columns, work.tokens, work.coder);
    const ByteSpan block = encoded.subspan(kHeader + class_bytes + exact_bytes);
    if (const char* wrong = decoder.Start({work.classes, work.columns}, block)) return bad(wrong);
    if (log_streams > 3 || decoder.streams() != 1u << log_streams) return bad(fmt::format("log2 of the streams is {}", log_streams));
    for (uint32_t c = 0; c < work.columns; ++c) {
      if (const char* wrong = decoder.Column(work.q + c * work.stride)) return bad(wrong);
      // What stands behind the tokens is anything; a sum that nobody reads must not overflow.
      std::fill_n(work.q + c * work.stride + work.tokens, work.stride - work.tokens, int16_t{0});
    }
    if (const char* wrong = decoder.Finish()) return bad(wrong);
    Restore(shape, context, work, ActiveFns(), step, encoded.subspan(kHeader + class_bytes, exact_bytes), exact, out);
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
    for (uint32_t first = 0; first < work.columns; first += kTileColumns) {
      const uint32_t count = std::min(kTileColumns, work.columns - first);
      LoadColumns(shape, raw, first, count, work.tile, work.stride);
      for (uint32_t c = 0; c < count; ++c) {
        const uint16_t* values = work.tile + c * work.stride;
        float* x = work.x + (first + c) * work.stride;
        for (uint32_t t = 0; t < exact; ++t) StoreLe(held + (size_t{t} * work.columns + first + c) * 2, values[t]);
        if (shape.dtype == Dtype::kBf16) {
          finite = fns.load_bf16(values, work.tokens, work.stride, x) && finite;
          continue;
        }
        for (size_t t = 0; t < work.stride; ++t) {
          finite = finite && (t >= work.tokens || (values[t] & 0x7c00u) != 0x7c00u);
          x[t] = t < work.tokens ? klt::FromFp16(values[t]) : 0;
        }
      }
    }
    return finite;
  }

  // K's columns turned by their tokens' positions, or back.
  static void Turn(const SegmentShape& shape, const CodecContext& context, Work& work, const klt::Fns& fns, bool back) {
    const auto pairs = static_cast<uint32_t>(context.artifact->rope().size());
    if (shape.kind != SegmentKind::kK || pairs == 0) return;
    const Angles& angles = Angles::Of(*context.artifact, context.pos0, work.stride);
    const bool halves = context.artifact->rope_style() == RopeStyle::kHalves;
    for (uint32_t head = 0; head < shape.heads; ++head) {
      float* const x = work.x + size_t{head} * shape.dim * work.stride;
      for (uint32_t i = 0; i < pairs; ++i) {
        const uint32_t a = halves ? i : 2 * i;
        const uint32_t b = halves ? i + pairs : 2 * i + 1;
        fns.rotate(x + a * work.stride, x + b * work.stride, angles.cosine(i), angles.sine(i), work.stride, back);
      }
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
      fns.synthesise(n, transform.row_pairs(), transform.pairs.data(), work.active, count, work.q + first * work.stride,
                     work.stride, work.factor, transform.mean.data(), work.room, work.x + first * work.stride);
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
          values[t] = LoadLe<uint16_t>(exact_values.data() + (size_t{t} * work.columns + first + c) * 2);
        }
      }
      StoreColumns(shape, work.tile, work.stride, first, count, out);
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
