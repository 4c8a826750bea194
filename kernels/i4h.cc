// I4H: four bits a coefficient of a Walsh-Hadamard transform of each token's head, which spreads outliers
// over all of its block, between bounds of that token and head.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"

namespace tiercel {
namespace {

using fixed::Loops;

constexpr uint32_t kVersion = 1;
constexpr uint64_t kStepBytes = 16 << 10;
constexpr uint64_t kMaxValues = uint64_t{1} << 27;
constexpr uint32_t kTileTokens = 32;

// Vectors lie as the plane has them; where tokens are innermost, by head and then token.
struct Geometry {
  bool fp16;
  bool transposed;
  uint32_t dim;
  uint32_t tokens;
  uint64_t vectors;
  uint64_t codes_at;
  uint64_t step_vectors;

  explicit Geometry(const SegmentShape& shape)
      : fp16(shape.dtype == Dtype::kFp16),
        transposed(shape.order == AxisOrder::kHeadDimToken),
        dim(shape.dim),
        tokens(shape.tokens),
        vectors(uint64_t{shape.tokens} * shape.heads),
        codes_at((4 * vectors + 63) / 64 * 64),
        step_vectors(transposed ? shape.tokens : std::max<uint64_t>(4, kStepBytes / (2 * dim))) {}
  uint64_t encoded_bytes() const { return codes_at + vectors * dim / 2; }
  uint64_t step_bytes() const { return 2 * step_vectors * dim; }
  uint64_t tile_bytes() const { return transposed ? 2 * ColumnStride(dim) * kTileTokens : 0; }

  // One head as a matrix whose columns are tokens.
  SegmentShape HeadShape() const {
    SegmentShape shape;
    shape.order = AxisOrder::kTokenHeadDim;
    shape.tokens = dim;
    shape.heads = 1;
    shape.dim = tokens;
    return shape;
  }
};

// Vectors [first, end) into out; of transposed planes whole heads, by way of a tile.
bool DecodeVectors(const Geometry& at, const Loops& loops, const std::byte* encoded, uint64_t first,
                   uint64_t end, MutableByteSpan out, std::byte* tile) {
  const std::byte* side = encoded;
  const std::byte* codes = encoded + at.codes_at;
  const uint64_t code_bytes = at.dim / 2;
  if (!at.transposed) {
    return loops.i4_decode(side + 4 * first, codes + first * code_bytes, end - first, at.dim,
                           out.data());
  }
  const SegmentShape shape = at.HeadShape();
  const size_t stride = ColumnStride(at.dim);
  for (uint64_t vector = first; vector < end;) {
    const uint64_t token = vector % at.tokens;
    const auto count = static_cast<uint32_t>(std::min<uint64_t>(kTileTokens, at.tokens - token));
    for (uint32_t i = 0; i < count; ++i) {
      if (!loops.i4_decode(side + 4 * (vector + i), codes + (vector + i) * code_bytes, 1, at.dim,
                           tile + 2 * i * stride)) {
        return false;
      }
    }
    const uint64_t head_bytes = uint64_t{2} * at.tokens * at.dim;
    StoreColumns(shape, reinterpret_cast<const uint16_t*>(tile), stride,
                 static_cast<uint32_t>(token), count,
                 out.subspan((vector / at.tokens - first / at.tokens) * head_bytes, head_bytes));
    vector += count;
  }
  return true;
}

bool EncodeVectors(const Geometry& at, const Loops& loops, ByteSpan raw, uint64_t first,
                   uint64_t end, std::byte* encoded, std::byte* tile) {
  std::byte* side = encoded;
  std::byte* codes = encoded + at.codes_at;
  const uint64_t code_bytes = at.dim / 2;
  if (!at.transposed) {
    return loops.i4_encode(raw.data() + 2 * first * at.dim, end - first, at.dim, side + 4 * first,
                           codes + first * code_bytes);
  }
  const SegmentShape shape = at.HeadShape();
  const size_t stride = ColumnStride(at.dim);
  for (uint64_t vector = first; vector < end;) {
    const uint64_t token = vector % at.tokens;
    const auto count = static_cast<uint32_t>(std::min<uint64_t>(kTileTokens, at.tokens - token));
    const uint64_t head_bytes = uint64_t{2} * at.tokens * at.dim;
    LoadColumns(shape, raw.subspan(vector / at.tokens * head_bytes, head_bytes),
                static_cast<uint32_t>(token), count, reinterpret_cast<uint16_t*>(tile), stride);
    for (uint32_t i = 0; i < count; ++i) {
      if (!loops.i4_encode(tile + 2 * i * stride, 1, at.dim, side + 4 * (vector + i),
                           codes + (vector + i) * code_bytes)) {
        return false;
      }
    }
    vector += count;
  }
  return true;
}

class I4hCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kI4h; }
  QualityClass quality() const override { return QualityClass::kBalanced; }
  bool one_class() const override { return true; }

  bool Supports(const SegmentShape& shape) const override {
    const uint64_t values = uint64_t{shape.tokens} * shape.heads * shape.dim;
    return (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) && values > 0 &&
           values <= kMaxValues && shape.dim % 16 == 0 && shape.dim <= fixed::kMaxDim &&
           shape.raw_bytes == 2 * values;
  }
  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;
  }
  uint64_t scratch_bytes(const SegmentShape& shape) const override {
    const Geometry at(shape);
    return at.tile_bytes() + at.step_bytes();
  }
  uint64_t step_bytes(const SegmentShape& shape) const override {
    return Geometry(shape).step_bytes();
  }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out,
                                       const CodecContext& context) const override {
    const Geometry at(shape);
    const uint64_t bytes = at.encoded_bytes();
    if (raw.size() != shape.raw_bytes || bytes > MaxEncodedBytes(shape) || out.size() < bytes ||
        context.scratch.size() < scratch_bytes(shape)) {
      return std::nullopt;
    }
    const Loops& loops = fixed::LoopsFor(at.fp16);
    std::memset(out.data() + 4 * at.vectors, 0, at.codes_at - 4 * at.vectors);
    std::byte* tile = context.scratch.data();
    DigestStream digest;
    for (uint64_t first = 0; first < at.vectors; first += at.step_vectors) {
      const uint64_t end = std::min(at.vectors, first + at.step_vectors);
      if (!EncodeVectors(at, loops, raw, first, end, out.data(), tile)) return std::nullopt;
      const MutableByteSpan shown =
          context.scratch.subspan(at.tile_bytes(), 2 * (end - first) * at.dim);
      if (!DecodeVectors(at, loops, out.data(), first, end, shown, tile)) return std::nullopt;
      digest.Add(shown);
    }
    return EncodedSegment{bytes, kVersion, digest.Finish()};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext& context) const override {
    const Geometry at(shape);
    if (params != kVersion) {
      return Fail(Code::kDataLoss, fmt::format("I4H segment: params {:#x}, {:#x} expected", params,
                                               kVersion));
    }
    if (encoded.size() != at.encoded_bytes()) {
      return Fail(Code::kDataLoss, fmt::format("I4H segment of {} vectors: {} bytes, {} expected",
                                               at.vectors, encoded.size(), at.encoded_bytes()));
    }
    const uint64_t unit = at.transposed ? at.step_bytes() : uint64_t{2} * at.dim;
    if (begin % unit != 0 || out.size() % unit != 0 || begin > shape.raw_bytes ||
        out.size() > shape.raw_bytes - begin || context.scratch.size() < at.tile_bytes()) {
      return Fail(Code::kInvalidArgument,
                  fmt::format("I4H segment: no step {}+{}", begin, out.size()));
    }
    const uint64_t first = begin / (2 * at.dim);
    if (!DecodeVectors(at, fixed::LoopsFor(at.fp16), encoded.data(), first,
                       first + out.size() / (2 * at.dim), out, context.scratch.data())) {
      return Fail(Code::kDataLoss, "I4H segment: a parameter is too large or not a number");
    }
    return OkStatus();
  }
};

}  // namespace

const Codec& I4hCodec() {
  static const I4hCodecImpl codec;
  return codec;
}

}  // namespace tiercel
