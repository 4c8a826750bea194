// I8E: the segment of I8 with its codes entropy-coded, a class a column. What is decoded is what I8 decodes to; where
// the codes have nothing to give, the segment of I8 is held as it is.
//
//   coded  0 version, 1 | 1 form, 0 | 2 log2 of the streams | 3 zero | the bounds, but for the first r bytes of them |
//          bases and classes | to a multiple of 4 | the columns, whose cargo are the bounds' first r bytes
//   plain  0 version, 1 | 1 form, 1 | 62 zeros | the segment of I8
//
// Bitstream: docs/block-format.md, "I8E".
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/rans.h"
#include "kernels/scratch.h"

namespace tiercel {
namespace {

constexpr size_t kHeader = 4;
constexpr size_t kPlainHeader = 64;
constexpr uint64_t kSymbolsAStream = 12 << 10;
constexpr uint32_t kMiddle = 128;  // The code halfway between the bounds.
constexpr uint32_t kMostCode = 255;
constexpr uint32_t kBasesFrom = 64;  // Tokens.
constexpr uint32_t kGroupTokens = 64;

bool ByChannel(uint32_t params) { return params >> 8 == 1; }

struct Geometry {
  uint32_t columns, tokens;
  size_t stride;
  uint64_t values;
  explicit Geometry(const SegmentShape& shape)
      : columns(ColumnCount(shape)), tokens(shape.tokens), stride(ColumnStride(shape.tokens)), values(uint64_t{columns} * tokens) {}
  // Of the segment of I8: its bounds lie before the codes.
  uint64_t bound_bytes(const SegmentShape& shape, uint32_t params) const {
    const uint64_t groups = (tokens + kGroupTokens - 1) / kGroupTokens;
    return 4 * (ByChannel(params) ? groups * columns : uint64_t{tokens} * shape.heads);
  }
};
constexpr uint64_t CodesAt(uint64_t bound_bytes) { return (bound_bytes + 63) / 64 * 64; }

// The codes as a plane of bytes.
SegmentShape CodeShape(const SegmentShape& shape) {
  SegmentShape codes = shape;
  codes.raw_bytes = shape.raw_bytes / 2;
  return codes;
}

struct Work {
  std::byte* plain;  // The segment of I8.
  uint8_t* tile;     // [kTileColumns][stride]
  int16_t* values;   // [stride]
  int32_t* bases;
  int32_t* list;
  uint8_t* classes;
  MutableByteSpan rest;  // I8's scratch, and the entropy coder's.

  // What a segment of I8 is at most: a plane of codes, and bounds of 4 bytes.
  static uint64_t PlainBytes(const SegmentShape& shape) { return 3 * shape.raw_bytes + 64; }
  static uint64_t Bytes(const SegmentShape& shape) {
    const Geometry g(shape);
    const uint64_t rest = std::max({I8Codec().scratch_bytes(shape), rans::EncodeScratchBytes(g.columns, g.tokens),
                                    rans::DecodeScratchBytes(g.columns, g.tokens)});
    return ScratchSizer()
        .Add<std::byte>(PlainBytes(shape))
        .Add<uint8_t>(kTileColumns * g.stride)
        .Add<int16_t>(g.stride)
        .Add<int32_t>(g.columns)
        .Add<int32_t>(g.columns)
        .Add<uint8_t>(g.columns)
        .Add<std::byte>(rest)
        .bytes();
  }
  Work(const SegmentShape& shape, MutableByteSpan scratch) {
    const Geometry g(shape);
    ScratchCarver carve(scratch);
    plain = carve.Take<std::byte>(PlainBytes(shape));
    tile = carve.Take<uint8_t>(kTileColumns * g.stride);
    values = carve.Take<int16_t>(g.stride);
    bases = carve.Take<int32_t>(g.columns);
    list = carve.Take<int32_t>(g.columns);
    classes = carve.Take<uint8_t>(g.columns);
    rest = carve.Rest();
  }
};

// What codes of a column are coded as distances from. Between bounds of their own they lie about the middle.
int32_t BaseOf(const uint8_t* codes, uint32_t tokens, bool by_channel) {
  if (by_channel || tokens < kBasesFrom) return kMiddle;
  uint32_t sum = 0;
  for (uint32_t t = 0; t < tokens; ++t) sum += codes[t];
  return static_cast<int32_t>((2 * sum + tokens) / (2 * tokens));
}

// The coded form of a segment of I8; nothing where it does not fit.
std::optional<uint64_t> EncodeColumns(const SegmentShape& shape, uint32_t params, uint64_t plain_bytes, const Work& work,
                                      MutableByteSpan out) {
  const Geometry g(shape);
  const uint64_t bound_bytes = g.bound_bytes(shape, params);
  TIERCEL_CHECK(CodesAt(bound_bytes) + g.values == plain_bytes);
  const ByteSpan codes{work.plain + CodesAt(bound_bytes), g.values};
  rans::Encoder encoder(rans::TableSet::kQuantized, g.columns, g.tokens, work.rest);
  std::fill_n(work.values, g.stride, int16_t{0});
  for (uint32_t first = 0; first < g.columns; first += kTileColumns) {
    const uint32_t count = std::min(kTileColumns, g.columns - first);
    LoadColumns<uint8_t>(CodeShape(shape), codes, first, count, work.tile, g.stride);
    for (uint32_t c = 0; c < count; ++c) {
      const uint8_t* const column = work.tile + c * g.stride;
      const int32_t base = BaseOf(column, g.tokens, ByChannel(params));
      for (uint32_t t = 0; t < g.tokens; ++t) work.values[t] = static_cast<int16_t>(column[t] - base);
      encoder.Add(work.values);
      work.bases[first + c] = base;
    }
  }
  const uint32_t streams = rans::StreamsFor(g.values, kSymbolsAStream);
  const uint64_t riding = std::min<uint64_t>(streams * rans::kCargoBytes, bound_bytes);
  const uint64_t lists_at = kHeader + bound_bytes - riding;
  if (lists_at > out.size()) return std::nullopt;
  std::memcpy(out.data() + kHeader, work.plain + riding, bound_bytes - riding);
  BitWriter lists(out.subspan(lists_at));
  PutIntegers(lists, {work.bases, g.columns});
  rans::PutClasses(lists, encoder.classes(), {work.list, g.columns});
  const uint64_t end = lists_at + lists.Finish();
  const uint64_t block_at = (end + 3) / 4 * 4;
  if (block_at > out.size()) return std::nullopt;
  std::memset(out.data() + end, 0, block_at - end);
  const auto block = encoder.Finish(streams, {work.plain, riding}, out.subspan(block_at));
  if (!block) return std::nullopt;
  out[0] = std::byte{1};
  out[1] = std::byte{0};
  out[2] = static_cast<std::byte>(std::countr_zero(streams));
  out[3] = std::byte{0};
  return block_at + *block;
}

// Into work.plain; null, or what is wrong.
const char* DecodeColumns(const SegmentShape& shape, uint32_t params, ByteSpan encoded, const Work& work) {
  const Geometry g(shape);
  const auto log_streams = std::to_integer<uint32_t>(encoded[2]);
  if (log_streams > 3 || encoded[3] != std::byte{0}) return "too many streams, or a reserved byte is not 0";
  const uint64_t bound_bytes = g.bound_bytes(shape, params);
  const uint64_t riding = std::min<uint64_t>(uint64_t{rans::kCargoBytes} << log_streams, bound_bytes);
  const uint64_t lists_at = kHeader + bound_bytes - riding;
  if (lists_at > encoded.size()) return "shorter than its bounds";
  BitReader lists(encoded.subspan(lists_at));
  if (!GetIntegers(lists, 0, kMostCode, {work.bases, g.columns})) return "not a list of bases";
  if (!rans::GetClasses(lists, {work.classes, g.columns}, {work.list, g.columns})) return "not a list of classes";
  const uint64_t block_at = (lists_at + lists.bytes_used() + 3) / 4 * 4;
  if (block_at > encoded.size()) return "shorter than its lists";
  rans::Decoder decoder(rans::TableSet::kQuantized, g.columns, g.tokens, work.rest);
  if (const char* bad = decoder.Start({work.classes, g.columns}, encoded.subspan(block_at))) return bad;
  if (decoder.streams() != 1u << log_streams) return "two counts of streams";
  std::memcpy(work.plain, decoder.cargo().data(), riding);
  std::memcpy(work.plain + riding, encoded.data() + kHeader, bound_bytes - riding);
  const MutableByteSpan codes{work.plain + CodesAt(bound_bytes), g.values};
  for (uint32_t first = 0; first < g.columns; first += kTileColumns) {
    const uint32_t count = std::min(kTileColumns, g.columns - first);
    for (uint32_t c = 0; c < count; ++c) {
      if (const char* bad = decoder.Column(work.values)) return bad;
      uint32_t outside = 0;
      for (uint32_t t = 0; t < g.tokens; ++t) {
        const int32_t code = work.values[t] + work.bases[first + c];
        outside |= static_cast<uint32_t>(code);
        work.tile[c * g.stride + t] = static_cast<uint8_t>(code);
      }
      if (outside > kMostCode) return "a code that is none";
    }
    StoreColumns<uint8_t>(CodeShape(shape), work.tile, g.stride, first, count, codes);
  }
  return decoder.Finish();
}

class I8eCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kI8e; }
  QualityClass quality() const override { return QualityClass::kNear; }
  bool one_class() const override { return true; }

  bool Supports(const SegmentShape& shape) const override {
    return I8Codec().Supports(shape) && shape.tokens <= rans::kMaxTokens &&
           uint64_t{shape.heads} * shape.dim <= rans::kMaxColumns;
  }
  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override { return shape.raw_bytes - shape.raw_bytes / 32; }
  uint64_t scratch_bytes(const SegmentShape& shape) const override { return Work::Bytes(shape); }
  uint64_t step_bytes(const SegmentShape& shape) const override { return shape.raw_bytes; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw, MutableByteSpan out,
                                       const CodecContext& context) const override {
    const uint64_t limit = MaxEncodedBytes(shape);
    if (raw.size() != shape.raw_bytes || out.size() < limit) return std::nullopt;
    const Work work(shape, context.scratch);
    CodecContext own;
    own.scratch = work.rest;
    auto encoded = I8Codec().Encode(shape, raw, {work.plain, Work::PlainBytes(shape)}, own);
    if (!encoded) return std::nullopt;
    const uint64_t plain = kPlainHeader + encoded->bytes;
    // No larger than the plain form, or that.
    if (const auto coded = EncodeColumns(shape, encoded->params, encoded->bytes, work, out.first(std::min(limit, plain)))) {
      encoded->bytes = *coded;
      return encoded;
    }
    if (plain > limit) return std::nullopt;
    std::memset(out.data(), 0, kPlainHeader);
    out[0] = out[1] = std::byte{1};
    std::memcpy(out.data() + kPlainHeader, work.plain, encoded->bytes);
    encoded->bytes = plain;
    return encoded;
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin, MutableByteSpan out,
                const CodecContext& context) const override {
    const auto bad = [&](const char* what) {
      return Status(Fail(Code::kDataLoss, fmt::format("I8E segment of {} bytes: {}", encoded.size(), what)));
    };
    if (!Supports(shape) || begin != 0 || out.size() != shape.raw_bytes) {
      return Fail(Code::kInvalidArgument, fmt::format("I8E segment: no step {}+{} of {}", begin, out.size(), shape.raw_bytes));
    }
    if (encoded.size() < kHeader || encoded[0] != std::byte{1}) return bad("not version 1");
    if (encoded[1] == std::byte{1}) {
      const bool zeros = encoded.size() >= kPlainHeader &&
                         std::all_of(encoded.begin() + 2, encoded.begin() + kPlainHeader, [](std::byte b) { return b == std::byte{0}; });
      if (!zeros) return bad("its header is not of the plain form");
      return I8Codec().Decode(shape, params, encoded.subspan(kPlainHeader), 0, out, context);
    }
    if (encoded[1] != std::byte{0}) return bad("an unknown form");
    const Work work(shape, context.scratch);
    if (const char* what = DecodeColumns(shape, params, encoded, work)) return bad(what);
    const uint64_t bytes = CodesAt(Geometry(shape).bound_bytes(shape, params)) + shape.raw_bytes / 2;
    return I8Codec().Decode(shape, params, {work.plain, bytes}, 0, out, context);
  }
};

}  // namespace

const Codec& I8eCodec() {
  static const I8eCodecImpl codec;
  return codec;
}

}  // namespace tiercel
