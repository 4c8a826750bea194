// Reading a record's head, and what can be told or rewritten from it. Coding the body is
// kernels/record_body.cc.
#include "kernels/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "kernels/digest.h"
#include "kernels/record_head.h"

namespace tiercel {

namespace record_head {

uint32_t SegmentsPerLayer(const KvLayout& layout) {
  return !layout.opaque() && layout.packing == KvPacking::kSplit ? 2 : 1;
}

SegmentShape ShapeOf(const KvLayout& layout, uint16_t layer_begin, uint32_t index,
                     uint64_t opaque_bytes) {
  SegmentShape shape;
  if (layout.opaque()) {
    shape.raw_bytes = opaque_bytes;
    return shape;
  }
  const uint32_t per_layer = SegmentsPerLayer(layout);
  const uint32_t layer_index = index / per_layer;
  const bool is_v = index % per_layer == 1;
  shape.layer = static_cast<uint16_t>(layer_begin + layer_index);
  shape.dtype = layout.dtype;
  shape.order = is_v ? layout.v_order : layout.k_order;
  shape.tokens = layout.tokens_per_block;
  shape.heads = layout.kv_heads;
  shape.block_offset = layer_index * layout.layer_bytes() + (is_v ? layout.k_plane_bytes() : 0);
  switch (layout.packing) {
    case KvPacking::kSplit:
      shape.kind = is_v ? SegmentKind::kV : SegmentKind::kK;
      shape.dim = is_v ? layout.head_dim_v : layout.head_dim_k;
      shape.raw_bytes = is_v ? layout.v_plane_bytes() : layout.k_plane_bytes();
      break;
    case KvPacking::kInterleaved:
      shape.kind = SegmentKind::kKv;
      shape.dim = layout.head_dim_k + layout.head_dim_v;
      shape.raw_bytes = layout.layer_bytes();
      break;
    case KvPacking::kLatent:
      shape.kind = SegmentKind::kLatent;
      shape.dim = layout.head_dim_k + layout.head_dim_v;
      shape.raw_bytes = layout.layer_bytes();
      break;
  }
  return shape;
}

uint32_t HeadCrc(ByteSpan head) {
  constexpr std::byte kZero[4] = {};
  uint32_t crc = Crc32c(head.first(kCrc));
  crc = Crc32c(kZero, crc);
  return Crc32c(head.subspan(kCrc + 4), crc);
}

void DigestOfDigests::Add(uint64_t segment_digest) { sum_ += DigestTerm(segment_digest, count_++); }
uint64_t DigestOfDigests::Finish() const { return sum_ + Mix64(8 * count_); }

Result<IndexRange> ResolveLayers(const RecordSummary& record, uint16_t layer_begin,
                                 uint16_t layer_end) {
  if (layer_begin == 0 && layer_end == 0) return IndexRange{0, record.n_segments};
  if (record.layout.opaque()) {
    return Fail(Code::kInvalidArgument,
                fmt::format("layers {}..{} asked of a record of opaque bytes, which has none",
                            layer_begin, layer_end));
  }
  if (layer_begin >= layer_end || layer_begin < record.layer_begin ||
      layer_end > record.layer_end) {
    return Fail(Code::kInvalidArgument,
                fmt::format("layers {}..{} asked of a record of layers {}..{}", layer_begin,
                            layer_end, record.layer_begin, record.layer_end));
  }
  const uint32_t per_layer = SegmentsPerLayer(record.layout);
  return IndexRange{(layer_begin - record.layer_begin) * per_layer,
                    (layer_end - record.layer_begin) * per_layer};
}

}  // namespace record_head

namespace {

using namespace record_head;  // NOLINT: offsets of this very file's format.

template <class... Args>
tl::unexpected<Error> Bad(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Fail(code, "record: " + fmt::format(format, std::forward<Args>(args)...));
}

uint8_t U8(ByteSpan bytes, size_t at) { return std::to_integer<uint8_t>(bytes[at]); }
uint16_t U16(ByteSpan bytes, size_t at) { return LoadLe<uint16_t>(bytes.data() + at); }
uint32_t U32(ByteSpan bytes, size_t at) { return LoadLe<uint32_t>(bytes.data() + at); }
uint64_t U64(ByteSpan bytes, size_t at) { return LoadLe<uint64_t>(bytes.data() + at); }

// What must hold before any other field means anything; gives the size of header and TLVs.
Result<size_t> CheckStart(ByteSpan bytes) {
  if (bytes.size() < kRecordHeaderBytes) {
    return Bad(Code::kDataLoss, "{} bytes cannot hold the header of {}", bytes.size(),
               kRecordHeaderBytes);
  }
  if (U32(bytes, kMagic) != kRecordMagic) {
    return Bad(Code::kDataLoss, "magic is {:#010x}, not KVB1", U32(bytes, kMagic));
  }
  if (U8(bytes, kMajor) != kRecordVersion) {
    return Bad(Code::kUnimplemented, "version {}.{} is not known here, only {}.x",
               U8(bytes, kMajor), U8(bytes, kMinor), kRecordVersion);
  }
  const size_t header_bytes = U16(bytes, kHeaderSize);
  if (header_bytes < kRecordHeaderBytes || header_bytes % kRecordAlign != 0) {
    return Bad(Code::kDataLoss, "header_bytes is {}, not a multiple of {} from {} on",
               header_bytes, kRecordAlign, kRecordHeaderBytes);
  }
  if (header_bytes > bytes.size()) {
    return Bad(Code::kDataLoss, "header_bytes is {}, beyond the {} bytes there are", header_bytes,
               bytes.size());
  }
  return header_bytes;
}

Status ReadLayout(ByteSpan bytes, RecordSummary& out) {
  KvLayout& layout = out.layout;
  if (U8(bytes, kDtype) > static_cast<uint8_t>(Dtype::kInt8)) {
    return Bad(Code::kUnimplemented, "dtype {} is not known here", U8(bytes, kDtype));
  }
  layout.dtype = static_cast<Dtype>(U8(bytes, kDtype));
  layout.k_order = static_cast<AxisOrder>(U8(bytes, kOrders) & 15);
  layout.v_order = static_cast<AxisOrder>(U8(bytes, kOrders) >> 4);
  layout.packing = static_cast<KvPacking>(U8(bytes, kPacking));
  layout.layers = U16(bytes, kLayers);
  layout.kv_heads = U16(bytes, kKvHeads);
  layout.head_dim_k = U16(bytes, kDimK);
  layout.head_dim_v = U16(bytes, kDimV);
  layout.tokens_per_block = U16(bytes, kTokens);
  layout.rank = U16(bytes, kRank);
  layout.world = uint32_t{U16(bytes, kWorldMinus1)} + 1;
  const uint32_t begin = U16(bytes, kLayerBegin);
  const uint32_t count = U16(bytes, kLayerCount);
  uint8_t kinds = 0;
  if (layout.opaque()) {
    if (U8(bytes, kOrders) != 0 || U8(bytes, kPacking) != 0 || layout.layers != 0 ||
        layout.kv_heads != 0 || layout.head_dim_k != 0 || layout.head_dim_v != 0 ||
        layout.tokens_per_block != 0 || begin != 0 || count != 0) {
      return Bad(Code::kDataLoss, "opaque bytes with the dimensions of a tensor");
    }
    if (layout.rank >= layout.world) {
      return Bad(Code::kDataLoss, "rank {} of a world of {}", layout.rank, layout.world);
    }
    if (out.n_segments != 1) {
      return Bad(Code::kDataLoss, "n_segments is {}, 1 expected of opaque bytes", out.n_segments);
    }
    kinds = static_cast<uint8_t>(SegmentKind::kOpaque);
  } else {
    if (Status valid = Validate(layout); !valid) {
      return Bad(Code::kDataLoss, "{}", valid.error().message);
    }
    if (count == 0 || begin + count > layout.layers) {
      return Bad(Code::kDataLoss, "layers {}+{} of {}", begin, count, layout.layers);
    }
    if (out.n_segments != count * SegmentsPerLayer(layout)) {
      return Bad(Code::kDataLoss, "n_segments is {}, {} expected of {} layers", out.n_segments,
                 count * SegmentsPerLayer(layout), count);
    }
    out.layer_begin = static_cast<uint16_t>(begin);
    out.layer_end = static_cast<uint16_t>(begin + count);
    out.raw_bytes = count * layout.layer_bytes();
    if (out.raw_bytes > kMaxPayloadBytes) {
      return Bad(Code::kDataLoss, "{} raw bytes, over the limit of {}", out.raw_bytes,
                 kMaxPayloadBytes);
    }
    kinds = layout.packing == KvPacking::kLatent ? static_cast<uint8_t>(SegmentKind::kLatent)
                                                 : static_cast<uint8_t>(SegmentKind::kKv);
  }
  if (U8(bytes, kKinds) != kinds) {
    return Bad(Code::kDataLoss, "kinds is {}, {} expected of its packing", U8(bytes, kKinds),
               kinds);
  }
  return OkStatus();
}

// Where TLV values that are read later lie.
struct TlvOffsets {
  uint32_t digest = 0;
  uint32_t rope = 0;
};

Status ReadRope(ByteSpan value, RecordSummary& out) {
  if (U8(value, kRopeStyle) > static_cast<uint8_t>(RopeStyle::kNeighbours)) {
    return Bad(Code::kUnimplemented, "rope style {} is not known here", U8(value, kRopeStyle));
  }
  out.rope_style = static_cast<RopeStyle>(U8(value, kRopeStyle));
  out.rope_first = U16(value, kRopeFirst);
  out.rope_dims = U16(value, kRopeDims);
  const uint32_t dim = out.layout.packing == KvPacking::kLatent
                           ? out.layout.head_dim_k + out.layout.head_dim_v
                           : out.layout.head_dim_k;
  if (out.rope_dims % 2 != 0 || out.rope_dims == 0 || out.rope_dims > kMaxRopeDims ||
      out.rope_first + out.rope_dims > dim ||
      value.size() != kRopeFrequencies + size_t{4} * out.rope_dims) {
    return Bad(Code::kDataLoss, "the rope TLV of {} bytes rotates dims {}+{} of {}", value.size(),
               out.rope_first, out.rope_dims, dim);
  }
  return OkStatus();
}

Status ReadTlvs(ByteSpan bytes, size_t header_bytes, RecordSummary& out, TlvOffsets& offsets) {
  uint32_t seen = 0;
  size_t at = kRecordHeaderBytes;
  while (at + 4 <= header_bytes) {
    const uint16_t type = U16(bytes, at);
    const size_t size = U16(bytes, at + 2);
    if (type == kTlvEnd) break;
    if (TlvBytes(size) > header_bytes - at) {
      return Bad(Code::kDataLoss, "TLV {} at {} runs over header_bytes {}", type, at, header_bytes);
    }
    const ByteSpan value = bytes.subspan(at + 4, size);
    const auto want = [&](size_t low, size_t high) -> Status {
      if ((seen & (1u << type)) != 0) return Bad(Code::kDataLoss, "TLV {} stands twice", type);
      seen |= 1u << type;
      if (size >= low && size <= high) return OkStatus();
      return Bad(Code::kDataLoss, "TLV {} is {} bytes, {}..{} expected", type, size, low, high);
    };
    switch (type) {
      case kTlvScope:
        TIERCEL_TRY(want(out.scope.bytes.size(), out.scope.bytes.size()));
        std::memcpy(out.scope.bytes.data(), value.data(), value.size());
        break;
      case kTlvDigest:
        TIERCEL_TRY(want(8, 8));
        out.decoded_digest = LoadLe<uint64_t>(value.data());
        offsets.digest = static_cast<uint32_t>(at + 4);
        break;
      case kTlvEngine:
        TIERCEL_TRY(want(1, kMaxLayoutTextBytes));
        out.layout.engine = AsText(value);
        break;
      case kTlvIsa:
        TIERCEL_TRY(want(1, kMaxLayoutTextBytes));
        out.layout.isa = AsText(value);
        break;
      case kTlvRope:
        TIERCEL_TRY(want(kRopeFrequencies + 8, kRopeFrequencies + 4 * kMaxRopeDims));
        TIERCEL_TRY(ReadRope(value, out));
        offsets.rope = static_cast<uint32_t>(at + 4 + kRopeFrequencies);
        break;
      default:
        if (type < kTlvSkippable) {
          return Bad(Code::kUnimplemented, "TLV type {} is not known here", type);
        }
    }
    at += TlvBytes(size);
  }
  constexpr uint32_t kNeeded = (1u << kTlvScope) | (1u << kTlvDigest);
  if ((seen & kNeeded) != kNeeded) {
    return Bad(Code::kDataLoss, "the {} TLV is missing",
               (seen & (1u << kTlvScope)) == 0 ? "scope" : "decoded digest");
  }
  return OkStatus();
}

// Everything of the header and TLVs, once CheckStart held.
Status ReadHeader(ByteSpan bytes, size_t header_bytes, RecordSummary& out,
                  TlvOffsets& offsets) {
  const uint8_t flags = U8(bytes, kFlags);
  if ((flags & ~(kFlagLossy | kFlagArtifact)) != 0) {
    return Bad(Code::kUnimplemented, "flags {:#04x} are not known here", flags);
  }
  if (U8(bytes, kProfile) != 0) {
    return Bad(Code::kUnimplemented, "codec profile {} is not known here", U8(bytes, kProfile));
  }
  out.codec = static_cast<CodecId>(U8(bytes, kCodec));
  if (FindCodec(out.codec) == nullptr) {
    return Bad(Code::kUnimplemented, "codec {} ({}) is not in this build", U8(bytes, kCodec),
               Name(out.codec));
  }
  if (U8(bytes, kQuality) >= kQualityClasses) {
    return Bad(Code::kUnimplemented, "quality class {} is not known here", U8(bytes, kQuality));
  }
  out.quality = static_cast<QualityClass>(U8(bytes, kQuality));
  out.lossy = (flags & kFlagLossy) != 0;
  if (out.lossy != FindCodec(out.codec)->lossy()) {
    return Bad(Code::kDataLoss, "flags {:#04x} with codec {}", flags, Name(out.codec));
  }
  if (out.quality < FindCodec(out.codec)->quality()) {
    return Bad(Code::kDataLoss, "quality class {} with codec {}", Name(out.quality), Name(out.codec));
  }
  out.n_segments = U16(bytes, kSegments);
  out.pos0 = U64(bytes, kPos0);
  out.artifact_id = U64(bytes, kArtifact);
  const bool needs_artifact = (flags & kFlagArtifact) != 0;
  if (needs_artifact != (out.artifact_id != 0) || needs_artifact != FindCodec(out.codec)->needs_artifact()) {
    return Bad(Code::kDataLoss, "flags {:#04x} with codec {} and artifact {:016x}", flags, Name(out.codec),
               out.artifact_id);
  }
  out.record_bytes = U64(bytes, kRecordSize);
  out.head_bytes = Align(header_bytes + size_t{out.n_segments} * kRecordEntryBytes);
  if (out.record_bytes < out.head_bytes || out.record_bytes % kRecordAlign != 0 ||
      out.record_bytes > kMaxPayloadBytes) {
    return Bad(Code::kDataLoss, "record_bytes is {}: not a multiple of {} within {}..{}",
               out.record_bytes, kRecordAlign, out.head_bytes, kMaxPayloadBytes);
  }
  TIERCEL_TRY(ReadLayout(bytes, out));
  return ReadTlvs(bytes, header_bytes, out, offsets);
}

Status ReadDirectory(RecordView& record) {
  uint64_t expected = record.head_bytes;
  DigestOfDigests digest;
  for (uint32_t i = 0; i < record.n_segments; ++i) {
    const ByteSpan entry =
        record.bytes.subspan(record.directory_offset + i * kRecordEntryBytes, kRecordEntryBytes);
    const uint64_t bytes = U32(entry, kEntryBytes);
    const uint64_t raw = U32(entry, kEntryRawBytes);
    if (record.layout.opaque()) record.raw_bytes = raw;
    const SegmentShape shape = ShapeOf(record.layout, record.layer_begin, i, record.raw_bytes);
    if (U16(entry, kEntryLayer) != shape.layer ||
        U8(entry, kEntryKind) != static_cast<uint8_t>(shape.kind)) {
      return Bad(Code::kDataLoss, "segment {} is layer {} kind {}, expected layer {} {}", i,
                 U16(entry, kEntryLayer), U8(entry, kEntryKind), shape.layer, Name(shape.kind));
    }
    if (raw != shape.raw_bytes) {
      return Bad(Code::kDataLoss, "segment {} decodes to {} bytes, {} expected of its layout", i,
                 raw, shape.raw_bytes);
    }
    const auto codec = static_cast<CodecId>(U8(entry, kEntryCodec));
    if (FindCodec(codec) == nullptr) {
      return Bad(Code::kUnimplemented, "segment {} has codec {} ({}), not in this build", i,
                 U8(entry, kEntryCodec), Name(codec));
    }
    if (FindCodec(codec)->lossy() && !record.lossy) {
      return Bad(Code::kDataLoss, "segment {} has codec {} in a record that is not lossy", i,
                 Name(codec));
    }
    if (codec != CodecId::kRaw && !FindCodec(codec)->Supports(shape)) {
      return Bad(Code::kDataLoss, "segment {} has codec {}, which does not take its shape", i,
                 Name(codec));
    }
    if (bytes > raw || (codec == CodecId::kRaw && bytes != raw)) {
      return Bad(Code::kDataLoss, "segment {} of {} raw bytes is coded ({}) in {}", i, raw,
                 Name(codec), bytes);
    }
    if (U32(entry, kEntryOffset64) * uint64_t{kRecordAlign} != expected) {
      return Bad(Code::kDataLoss, "segment {} lies at {}, expected at {}", i,
                 U32(entry, kEntryOffset64) * uint64_t{kRecordAlign}, expected);
    }
    expected = Align(expected + bytes);
    digest.Add(U64(entry, kEntryDigest));
  }
  if (expected != record.record_bytes) {
    return Bad(Code::kDataLoss, "segments end at {}, record_bytes is {}", expected,
               record.record_bytes);
  }
  if (digest.Finish() != record.decoded_digest) {
    return Bad(Code::kDataLoss, "the decoded digest is not that of its segments");
  }
  return OkStatus();
}

}  // namespace

uint64_t RawBytes(const RecordSpec& spec, uint64_t raw_bytes) {
  if (spec.layout.opaque()) return raw_bytes;
  const uint64_t layers = spec.layer_end == 0 ? spec.layout.layers
                          : spec.layer_end > spec.layer_begin
                              ? uint64_t{spec.layer_end} - spec.layer_begin
                              : 0;
  return layers * spec.layout.layer_bytes();
}

SegmentInfo RecordView::segment(uint32_t index) const {
  TIERCEL_CHECK(index < n_segments);
  const ByteSpan entry =
      bytes.subspan(directory_offset + size_t{index} * kRecordEntryBytes, kRecordEntryBytes);
  SegmentInfo info;
  info.shape = ShapeOf(layout, layer_begin, index, raw_bytes);
  info.codec = static_cast<CodecId>(U8(entry, kEntryCodec));
  info.offset = U32(entry, kEntryOffset64) * uint64_t{kRecordAlign};
  info.bytes = U32(entry, kEntryBytes);
  info.params = U32(entry, kEntryParams);
  info.crc32c = U32(entry, kEntryCrc);
  info.decoded_digest = U64(entry, kEntryDigest);
  // Checked when it was parsed; not so if someone wrote to it since.
  if (info.offset > record_bytes || info.bytes > record_bytes - info.offset) {
    info.offset = head_bytes;
    info.bytes = 0;
  }
  return info;
}

Result<RecordSummary> PeekRecord(ByteSpan prefix) {
  TIERCEL_ASSIGN(const size_t header_bytes, CheckStart(prefix));
  RecordSummary summary;
  TlvOffsets offsets;
  TIERCEL_TRY(ReadHeader(prefix, header_bytes, summary, offsets));
  return summary;
}

Result<RecordView> ParseRecordHead(ByteSpan prefix) {
  TIERCEL_ASSIGN(const size_t header_bytes, CheckStart(prefix));
  const size_t head_bytes = Align(header_bytes + size_t{U16(prefix, kSegments)} * kRecordEntryBytes);
  if (head_bytes > prefix.size()) {
    return Bad(Code::kDataLoss, "its directory ends at {}, beyond the {} bytes there are",
               head_bytes, prefix.size());
  }
  if (const uint32_t crc = HeadCrc(prefix.first(head_bytes)); crc != U32(prefix, kCrc)) {
    return Bad(Code::kDataLoss, "header_crc32c is {:08x}, its bytes sum to {:08x}",
               U32(prefix, kCrc), crc);
  }
  Result<RecordView> view = RecordView{};
  view->bytes = prefix;
  view->directory_offset = static_cast<uint32_t>(header_bytes);
  TlvOffsets offsets;
  if (Status s = ReadHeader(prefix, header_bytes, *view, offsets); !s) {
    return tl::unexpected<Error>(std::move(s).error());
  }
  view->digest_offset = offsets.digest;
  view->rope_offset = offsets.rope;
  TIERCEL_TRY(ReadDirectory(*view));
  return view;
}

Result<RecordView> ParseRecord(ByteSpan bytes) {
  Result<RecordView> view = ParseRecordHead(bytes);
  if (view && view->record_bytes != bytes.size()) {
    return Bad(Code::kDataLoss, "record_bytes is {}, {} bytes are here", view->record_bytes,
               bytes.size());
  }
  return view;
}

Result<uint64_t> DecodedBytes(const RecordView& record, uint16_t layer_begin,
                              uint16_t layer_end) {
  TIERCEL_ASSIGN(const IndexRange range, ResolveLayers(record, layer_begin, layer_end));
  uint64_t bytes = 0;
  for (uint32_t i = range.first; i < range.end; ++i) {
    bytes += ShapeOf(record.layout, record.layer_begin, i, record.raw_bytes).raw_bytes;
  }
  return bytes;
}

Result<ExtractPlan> PlanExtract(const RecordView& record, uint16_t layer_begin,
                                uint16_t layer_end) {
  TIERCEL_ASSIGN(const IndexRange range, ResolveLayers(record, layer_begin, layer_end));
  const SegmentInfo first = record.segment(range.first);
  const SegmentInfo last = record.segment(range.end - 1);
  ExtractPlan plan;
  plan.head_bytes =
      Align(record.directory_offset + uint64_t{range.end - range.first} * kRecordEntryBytes);
  plan.body_offset = first.offset;
  const uint64_t end = Align(last.offset + last.bytes);
  if (end < plan.body_offset || end > record.record_bytes) {
    return Bad(Code::kDataLoss, "its directory changed while it was read");
  }
  plan.body_bytes = end - plan.body_offset;
  return plan;
}

Result<uint64_t> WriteExtractHead(const RecordView& record, uint16_t layer_begin,
                                  uint16_t layer_end, MutableByteSpan out) {
  TIERCEL_ASSIGN(const ExtractPlan plan, PlanExtract(record, layer_begin, layer_end));
  if (out.size() < plan.head_bytes) {
    return Bad(Code::kInvalidArgument, "a head of {} bytes does not fit in {}", plan.head_bytes,
               out.size());
  }
  TIERCEL_ASSIGN(const IndexRange range, ResolveLayers(record, layer_begin, layer_end));
  std::byte* head = out.data();
  std::memset(head, 0, plan.head_bytes);
  std::memcpy(head, record.bytes.data(), record.directory_offset);
  StoreLe(head + kRecordSize, plan.record_bytes());
  const uint32_t per_layer = SegmentsPerLayer(record.layout);
  if (!record.layout.opaque()) {
    StoreLe(head + kLayerBegin, static_cast<uint16_t>(record.layer_begin + range.first / per_layer));
    StoreLe(head + kLayerCount, static_cast<uint16_t>((range.end - range.first) / per_layer));
  }
  StoreLe(head + kSegments, static_cast<uint16_t>(range.end - range.first));
  std::byte* directory = head + record.directory_offset;
  std::memcpy(directory,
              record.bytes.data() + record.directory_offset + range.first * kRecordEntryBytes,
              (range.end - range.first) * kRecordEntryBytes);
  DigestOfDigests digest;
  for (uint32_t i = 0; i < range.end - range.first; ++i) {
    std::byte* entry = directory + i * kRecordEntryBytes;
    const uint64_t offset = LoadLe<uint32_t>(entry + kEntryOffset64) * uint64_t{kRecordAlign} -
                            plan.body_offset + plan.head_bytes;
    StoreLe(entry + kEntryOffset64, static_cast<uint32_t>(offset / kRecordAlign));
    digest.Add(LoadLe<uint64_t>(entry + kEntryDigest));
  }
  StoreLe(head + record.digest_offset, digest.Finish());
  StoreLe(head + kCrc, HeadCrc(out.first(plan.head_bytes)));
  return plan.head_bytes;
}

Result<uint64_t> ExtractLayers(const RecordView& record, uint16_t layer_begin, uint16_t layer_end,
                               MutableByteSpan out) {
  TIERCEL_ASSIGN(const ExtractPlan plan, PlanExtract(record, layer_begin, layer_end));
  if (out.size() < plan.record_bytes()) {
    return Bad(Code::kInvalidArgument, "layers {}..{} are {} bytes and do not fit in {}",
               layer_begin, layer_end, plan.record_bytes(), out.size());
  }
  TIERCEL_TRY(WriteExtractHead(record, layer_begin, layer_end, out));
  std::memcpy(out.data() + plan.head_bytes, record.bytes.data() + plan.body_offset,
              plan.body_bytes);
  return plan.record_bytes();
}

}  // namespace tiercel
