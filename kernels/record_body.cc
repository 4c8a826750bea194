// Coding, checking and copying the segments of a record, each byte while it is warm.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/crc32c.h"
#include "kernels/artifact.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/levels.h"
#include "kernels/record.h"
#include "kernels/record_head.h"

namespace tiercel {
namespace {

using namespace record_head;  // NOLINT: offsets of this very file's format.

// Scratch stays with its thread: a block's size repeats, so it grows once. At most one segment
// (kMaxPayloadBytes) each.
MutableByteSpan Scratch(uint64_t bytes) {
  thread_local std::vector<std::byte> scratch;
  if (scratch.size() < bytes) scratch.resize(bytes);
  return {scratch.data(), bytes};
}

std::string SegmentName(const SegmentShape& shape) {
  if (shape.layer == kOpaqueLayer) return "the opaque segment";
  return fmt::format("segment {} of layer {}", Name(shape.kind), shape.layer);
}

Status CheckSpec(const RecordSpec& spec, uint64_t opaque_bytes) {
  const KvLayout& layout = spec.layout;
  if (layout.opaque()) {
    if (layout != [&] {
          KvLayout opaque = KvLayout::Opaque();
          opaque.rank = layout.rank;
          opaque.world = layout.world;
          opaque.engine = layout.engine;
          opaque.isa = layout.isa;
          return opaque;
        }()) {
      return Fail(Code::kInvalidArgument, "layout: opaque bytes have no dimensions, orders, packing");
    }
    if (layout.world == 0 || layout.world > 65536 || layout.rank >= layout.world) {
      return Fail(Code::kInvalidArgument,
                  fmt::format("layout: rank {} of a world of {}", layout.rank, layout.world));
    }
    if (spec.layer_begin != 0 || spec.layer_end != 0) {
      return Fail(Code::kInvalidArgument, "layers asked of opaque bytes, which have none");
    }
  } else {
    TIERCEL_TRY(Validate(layout));
    const bool all = spec.layer_begin == 0 && spec.layer_end == 0;
    if (!all && (spec.layer_begin >= spec.layer_end || spec.layer_end > layout.layers)) {
      return Fail(Code::kInvalidArgument, fmt::format("layers {}..{} of {}", spec.layer_begin,
                                                      spec.layer_end, layout.layers));
    }
  }
  if (layout.engine.size() > kMaxLayoutTextBytes || layout.isa.size() > kMaxLayoutTextBytes) {
    return Fail(Code::kInvalidArgument, fmt::format("layout: engine or isa is over {} bytes",
                                                    kMaxLayoutTextBytes));
  }
  if (static_cast<int>(spec.quality) >= kQualityClasses) {
    return Fail(Code::kInvalidArgument,
                fmt::format("no quality class {}", static_cast<int>(spec.quality)));
  }
  // Tested before any sum, so that no sum overflows.
  if (opaque_bytes > kMaxPayloadBytes || RawBytes(spec, opaque_bytes) > kMaxPayloadBytes ||
      MaxRecordBytes(spec, opaque_bytes) > kMaxPayloadBytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("{} raw bytes can exceed a record's limit of {} bytes; store fewer "
                            "layers a record",
                            RawBytes(spec, opaque_bytes), kMaxPayloadBytes));
  }
  return OkStatus();
}

uint32_t RopeDims(const RecordSpec& spec) {
  return spec.options == nullptr ? 0 : spec.options->rope.dims;
}

uint64_t HeaderBytes(const RecordSpec& spec) {
  const KvLayout& layout = spec.layout;
  uint64_t bytes = kRecordHeaderBytes + TlvBytes(16) + TlvBytes(8);
  if (RopeDims(spec) != 0) bytes += TlvBytes(kRopeFrequencies + 4 * uint64_t{RopeDims(spec)});
  if (!layout.engine.empty()) bytes += TlvBytes(layout.engine.size());
  if (!layout.isa.empty()) bytes += TlvBytes(layout.isa.size());
  return Align(bytes);
}

uint32_t SegmentCount(const RecordSpec& spec) {
  if (spec.layout.opaque()) return 1;
  const uint32_t layers =
      spec.layer_end == 0 ? spec.layout.layers : uint32_t{spec.layer_end} - spec.layer_begin;
  return layers * SegmentsPerLayer(spec.layout);
}

// The artifact without which the record cannot be decoded.
const Artifact* ArtifactOf(const RecordSpec& spec, CodecId codec) {
  return spec.options != nullptr && FindCodec(codec)->needs_artifact() ? spec.options->artifact : nullptr;
}

// Header and TLVs, without record size, digest and checksum; gives where the digest belongs.
size_t WriteHeader(const RecordSpec& spec, CodecId codec, QualityClass quality, bool lossy,
                   std::byte* head) {
  const KvLayout& layout = spec.layout;
  const auto put8 = [&](size_t at, auto value) { head[at] = static_cast<std::byte>(value); };
  const auto put16 = [&](size_t at, uint32_t value) {
    StoreLe(head + at, static_cast<uint16_t>(value));
  };
  StoreLe(head + kMagic, kRecordMagic);
  put8(kMajor, kRecordVersion);
  put16(kHeaderSize, static_cast<uint32_t>(HeaderBytes(spec)));
  put8(kCodec, codec);
  put8(kQuality, quality);
  const Artifact* artifact = ArtifactOf(spec, codec);
  put8(kFlags, (lossy ? kFlagLossy : 0) | (artifact != nullptr ? kFlagArtifact : 0));
  StoreLe(head + kArtifact, artifact != nullptr ? artifact->id() : 0);
  put8(kDtype, layout.dtype);
  put8(kOrders, static_cast<unsigned>(layout.k_order) | static_cast<unsigned>(layout.v_order) << 4);
  put8(kPacking, layout.packing);
  put8(kKinds, layout.opaque()                             ? SegmentKind::kOpaque
               : layout.packing == KvPacking::kLatent ? SegmentKind::kLatent
                                                      : SegmentKind::kKv);
  put16(kLayerBegin, spec.layer_begin);
  put16(kLayerCount, layout.opaque() ? 0 : SegmentCount(spec) / SegmentsPerLayer(layout));
  put16(kLayers, layout.layers);
  put16(kKvHeads, layout.kv_heads);
  put16(kDimK, layout.head_dim_k);
  put16(kDimV, layout.head_dim_v);
  put16(kTokens, layout.tokens_per_block);
  put16(kSegments, SegmentCount(spec));
  StoreLe(head + kPos0, spec.pos0);
  put16(kRank, layout.rank);
  put16(kWorldMinus1, layout.world - 1);
  size_t at = kRecordHeaderBytes;
  const auto tlv = [&](uint16_t type, ByteSpan value) {
    put16(at, type);
    put16(at + 2, static_cast<uint32_t>(value.size()));
    std::memcpy(head + at + 4, value.data(), value.size());
    const size_t value_at = at + 4;
    at += TlvBytes(value.size());
    return value_at;
  };
  tlv(kTlvScope, spec.scope.bytes);
  constexpr std::byte kZero[8] = {};
  const size_t digest_at = tlv(kTlvDigest, kZero);
  if (!layout.engine.empty()) tlv(kTlvEngine, AsBytes(layout.engine));
  if (!layout.isa.empty()) tlv(kTlvIsa, AsBytes(layout.isa));
  if (RopeDims(spec) != 0) {
    const Rope& rope = spec.options->rope;
    std::byte value[kRopeFrequencies + 4 * kMaxRopeDims] = {};
    value[kRopeStyle] = static_cast<std::byte>(rope.style);
    StoreLe(value + kRopeFirst, static_cast<uint16_t>(rope.first));
    StoreLe(value + kRopeDims, static_cast<uint16_t>(rope.dims));
    std::memcpy(value + kRopeFrequencies, rope.frequencies, size_t{4} * rope.dims);
    tlv(kTlvRope, {value, kRopeFrequencies + size_t{4} * rope.dims});
  }
  return digest_at;
}

// The tables of a record's rotation, which stay with their thread until the next record.
class RopeOfRecord {
 public:
  RopeOfRecord(const Rope& rope, uint64_t pos0, uint32_t tokens) {
    if (rope.dims == 0) return;
    thread_local std::vector<float> memory;
    tables_.rope = rope;
    tables_.stride = ColumnStride(tokens);
    const size_t size = tables_.stride * rope.pairs();
    if (memory.size() < 2 * size) memory.resize(2 * size);
    rope::FillTables(rope, pos0, tokens, tables_.stride, memory.data(), memory.data() + size);
    tables_.cos = memory.data();
    tables_.sin = memory.data() + size;
  }
  const RopeTables* get() const { return tables_.rope.dims == 0 ? nullptr : &tables_; }

 private:
  RopeTables tables_;
};

// Scales a layer and head.
uint32_t PartsOf(const KvLayout& layout, const EncodeOptions& options) {
  return layout.packing == KvPacking::kLatent && options.latent_dims == 0 ? 1 : 2;
}

}  // namespace

bool record_head::TurnsBack(const EncodeOptions& options, uint16_t layer) {
  const Artifact* const artifact = options.artifact;
  const bool of_artifact = artifact != nullptr && options.rope.frequencies == artifact->common_rope().data();
  return !of_artifact || !artifact->has_own_rope(layer);
}

CodecContext record_head::ContextOf(const RecordSpec& spec, const SegmentShape& shape) {
  CodecContext context;
  context.pos0 = spec.pos0;
  if (spec.options == nullptr) return context;
  const EncodeOptions& options = *spec.options;
  context.quality = options.quality;
  context.step = options.step;
  if (spec.pos0 < options.exact_tokens) {
    context.exact_tokens = static_cast<uint32_t>(
        std::min<uint64_t>(options.exact_tokens - spec.pos0, shape.tokens - 1));
  }
  if (shape.kind == SegmentKind::kKv) context.split_dim = spec.layout.head_dim_k;
  if (shape.kind == SegmentKind::kLatent) context.split_dim = options.latent_dims;
  const size_t heads = shape.heads;
  context.artifact = options.artifact;
  context.first_head = spec.layout.rank * spec.layout.kv_heads;
  if (options.scales.empty()) {
    const bool apart = shape.kind == SegmentKind::kK || shape.kind == SegmentKind::kV;
    if (options.artifact != nullptr && apart) {
      const auto all = options.artifact->HeadScales(shape.layer, shape.kind);
      if (all.size() >= context.first_head + heads) context.scales = all.subspan(context.first_head, heads);
    }
    return context;
  }
  const size_t first = shape.layer * PartsOf(spec.layout, options) * heads +
                       (shape.kind == SegmentKind::kV ? heads : 0);
  context.scales = options.scales.subspan(first, context.split_dim != 0 ? 2 * heads : heads);
  return context;
}

namespace {

Status CheckOptions(const RecordSpec& spec) {
  if (spec.options == nullptr) return OkStatus();
  const EncodeOptions& options = *spec.options;
  const KvLayout& layout = spec.layout;
  const bool latent = layout.packing == KvPacking::kLatent;
  const uint32_t dim = latent ? layout.head_dim_k + layout.head_dim_v : layout.head_dim_k;
  const auto bad = [](const char* field, uint64_t value) {
    return Fail(Code::kInvalidArgument, fmt::format("encode options: {} is {}", field, value));
  };
  if (static_cast<int>(options.quality) >= kQualityClasses) {
    return bad("quality", static_cast<uint64_t>(options.quality));
  }
  const Rope& rope = options.rope;
  if (rope.dims % 2 != 0 || rope.dims > kMaxRopeDims || rope.dims > dim) {
    return bad("rope.dims", rope.dims);
  }
  if (rope.dims != 0 && rope.first > dim - rope.dims) return bad("rope.first", rope.first);
  if (rope.dims != 0 && rope.frequencies == nullptr) return bad("rope.frequencies", 0);
  if (options.latent_dims != 0 && (!latent || options.latent_dims >= dim)) {
    return bad("latent_dims", options.latent_dims);
  }
  if (!options.scales.empty() &&
      options.scales.size() != uint64_t{layout.layers} * layout.kv_heads *
                                   PartsOf(layout, options)) {
    return bad("scales.size()", options.scales.size());
  }
  return OkStatus();
}

constexpr uint64_t kStep = 16 << 10;

// Copies a plane as it is; each step is summed twice while it is warm.
EncodedSegment EncodeRaw(const PlaneSource& source, uint32_t index, const SegmentShape& shape,
                         std::byte* out, uint32_t& crc) {
  const ByteSpan whole = source.Whole(index, shape);
  DigestStream digest;
  for (uint64_t at = 0; at < shape.raw_bytes; at += kStep) {
    const uint64_t size = std::min(kStep, shape.raw_bytes - at);
    if (whole.data() != nullptr) {
      crc = CopyCrc32c(out + at, whole.subspan(at, size), crc);
    } else {
      source.Read(index, shape, at, {out + at, size});
      crc = Crc32c({out + at, size}, crc);
    }
    digest.Add({out + at, size});
  }
  return {shape.raw_bytes, 0, digest.Finish()};
}

Status CompareLayouts(const KvLayout& have, const KvLayout& want) {
  if (have == want) return OkStatus();
  const auto differs = [](const char* field, auto has, auto wants) {
    return Fail(Code::kInvalidArgument,
                fmt::format("the record's layout has {} {}, the reader expects {}", field, has, wants));
  };
  const auto number = [](auto value) { return static_cast<uint32_t>(value); };
  if (have.dtype != want.dtype) return differs("dtype", number(have.dtype), number(want.dtype));
  if (have.layers != want.layers) return differs("layers", have.layers, want.layers);
  if (have.kv_heads != want.kv_heads) return differs("kv_heads", have.kv_heads, want.kv_heads);
  if (have.head_dim_k != want.head_dim_k) {
    return differs("head_dim_k", have.head_dim_k, want.head_dim_k);
  }
  if (have.head_dim_v != want.head_dim_v) {
    return differs("head_dim_v", have.head_dim_v, want.head_dim_v);
  }
  if (have.tokens_per_block != want.tokens_per_block) {
    return differs("tokens_per_block", have.tokens_per_block, want.tokens_per_block);
  }
  if (have.k_order != want.k_order) {
    return differs("k_order", number(have.k_order), number(want.k_order));
  }
  if (have.v_order != want.v_order) {
    return differs("v_order", number(have.v_order), number(want.v_order));
  }
  if (have.packing != want.packing) {
    return differs("packing", number(have.packing), number(want.packing));
  }
  if (have.rank != want.rank) return differs("rank", have.rank, want.rank);
  if (have.world != want.world) return differs("world", have.world, want.world);
  if (have.engine != want.engine) {
    return differs("engine", "'" + have.engine + "'", "'" + want.engine + "'");
  }
  return differs("isa", "'" + have.isa + "'", "'" + want.isa + "'");
}

tl::unexpected<Error> CrcMismatch(const SegmentInfo& segment, uint32_t crc) {
  return Fail(Code::kDataLoss, fmt::format("record, {}: its bytes sum to crc32c {:08x}, {:08x} was "
                                           "written",
                                           SegmentName(segment.shape), crc, segment.crc32c));
}

// RAW: what is decoded is what was encoded, so the sum of the one checks the other, at a quarter of the
// digest's price. What is summed is the copy: the source may lie in memory that others write.
Status CopySegment(const RecordView& record, const SegmentInfo& segment, ByteSpan encoded,
                   uint32_t sink_index, const SegmentShape& sink_shape, const PlaneSink& sink) {
  const MutableByteSpan whole = sink.Whole(sink_index, sink_shape);
  uint32_t crc = 0;
  if (whole.data() != nullptr || encoded.empty()) {
    crc = CopyCrc32c(whole.data(), encoded, crc, record.record_bytes);
  } else {
    const MutableByteSpan scratch = Scratch(kStep);
    for (uint64_t at = 0; at < encoded.size(); at += kStep) {
      const MutableByteSpan out = scratch.first(std::min<uint64_t>(kStep, encoded.size() - at));
      crc = CopyCrc32c(out.data(), encoded.subspan(at, out.size()), crc);
      sink.Write(sink_index, sink_shape, at, out);
    }
  }
  if (crc != segment.crc32c) return CrcMismatch(segment, crc);
  return OkStatus();
}

Status DecodeSegment(const RecordView& record, const SegmentInfo& segment, uint32_t sink_index,
                     const SegmentShape& sink_shape, const PlaneSink& sink,
                     const RopeTables* rope, const Artifact* artifact) {
  const SegmentShape& shape = segment.shape;
  const Codec* codec = FindCodec(segment.codec);
  if (codec == nullptr || !codec->Supports(shape)) {
    return Fail(Code::kDataLoss, fmt::format("{}: codec {}", SegmentName(shape),
                                             static_cast<int>(segment.codec)));
  }
  const ByteSpan encoded = record.segment_bytes(segment);
  if (segment.codec == CodecId::kRaw && encoded.size() == shape.raw_bytes) {
    return CopySegment(record, segment, encoded, sink_index, sink_shape, sink);
  }
  const uint64_t step = codec->step_bytes(shape);
  const uint64_t scratch_bytes = Align(codec->scratch_bytes(shape));  // Values lie behind it.
  const MutableByteSpan whole = sink.Whole(sink_index, sink_shape);
  const bool scattered = whole.data() == nullptr && shape.raw_bytes != 0;
  const MutableByteSpan scratch = Scratch(scratch_bytes + (scattered ? step : 0));
  CodecContext context;
  context.scratch = scratch.first(scratch_bytes);
  context.pos0 = record.pos0;
  context.rope = rope;
  context.artifact = artifact;
  context.first_head = record.layout.rank * record.layout.kv_heads;
  DigestStream digest;
  for (uint64_t at = 0; at < shape.raw_bytes; at += step) {
    const uint64_t size = std::min(step, shape.raw_bytes - at);
    const MutableByteSpan out =
        scattered ? scratch.subspan(scratch_bytes, size) : whole.subspan(at, size);
    if (Status s = codec->Decode(shape, segment.params, encoded, at, out, context); !s) {
      return Fail(s.error().code,
                  fmt::format("record, {}: {}", SegmentName(shape), s.error().message));
    }
    digest.Add(out);
    if (scattered) sink.Write(sink_index, sink_shape, at, out);
  }
  if (digest.Finish() != segment.decoded_digest) {
    return Fail(Code::kDataLoss, fmt::format("record, {}: decodes to digest {:016x}, {:016x} was "
                                             "encoded",
                                             SegmentName(shape), digest.Finish(),
                                             segment.decoded_digest));
  }
  return OkStatus();
}

Status VerifyRange(const RecordView& record, IndexRange range) {
  for (uint32_t i = range.first; i < range.end; ++i) {
    const SegmentInfo segment = record.segment(i);
    if (const uint32_t crc = Crc32c(record.segment_bytes(segment)); crc != segment.crc32c) {
      return CrcMismatch(segment, crc);
    }
    const uint64_t end = segment.offset + segment.bytes;
    const ByteSpan padding = record.bytes.subspan(end, Align(end) - end);
    if (!std::all_of(padding.begin(), padding.end(), [](std::byte b) { return b == std::byte{0}; })) {
      return Fail(Code::kDataLoss, fmt::format("record, {}: the padding behind it is not zero",
                                               SegmentName(segment.shape)));
    }
  }
  return OkStatus();
}

// That the artifact is of this layout's model and has what the codec wants; EC-C's wishes are filled in.
Status TakeArtifact(const KvLayout& layout, CodecId codec, EncodeOptions& options) {
  const bool needed = FindCodec(codec)->needs_artifact();
  if (options.artifact == nullptr) {
    if (!needed) return OkStatus();
    return Fail(Code::kInvalidArgument, fmt::format("encode options: codec {} needs an artifact", Name(codec)));
  }
  const Artifact& artifact = *options.artifact;
  const auto differs = [](const char* field, uint64_t theirs, uint64_t ours) {
    return Fail(Code::kInvalidArgument, fmt::format("encode options: the artifact's {} is {}, the layout's {}", field, theirs, ours));
  };
  if (artifact.layers() != layout.layers) return differs("layers", artifact.layers(), layout.layers);
  const uint64_t heads = uint64_t{layout.kv_heads} * layout.world;
  if (artifact.kv_heads() != heads) return differs("kv_heads", artifact.kv_heads(), heads);
  if (artifact.head_dim(SegmentKind::kK) != layout.head_dim_k) {
    return differs("head_dim_k", artifact.head_dim(SegmentKind::kK), layout.head_dim_k);
  }
  if (artifact.head_dim(SegmentKind::kV) != layout.head_dim_v) {
    return differs("head_dim_v", artifact.head_dim(SegmentKind::kV), layout.head_dim_v);
  }
  if (options.step == 0) {
    const auto measured = artifact.StepOf(codec, options.quality);
    if (measured) {
      options.step = measured->step;
    } else if (needed) {
      return Fail(Code::kInvalidArgument, fmt::format("encode options: the artifact has no step of {} for class {} or a better one",
                                                      Name(codec), Name(options.quality)));
    }
  }
  if (codec == CodecId::kEcC && options.rope.dims == 0 && layout.packing == KvPacking::kSplit) {
    const auto turns = artifact.common_rope();
    options.rope = {artifact.rope_style(), 0, static_cast<uint32_t>(turns.size() * 2), turns.data()};
  }
  return OkStatus();
}

// Whether the codec takes levels, and K lies by itself, so that they can be foretold from it.
const Artifact* ForetellsLevels(const RecordSpec& spec, CodecId codec) {
  const bool takes = codec == CodecId::kEcC || codec == CodecId::kEcK || codec == CodecId::kEcX;
  return takes && spec.options != nullptr && spec.layout.packing == KvPacking::kSplit && !spec.layout.opaque()
             ? spec.options->artifact
             : nullptr;
}

uint64_t EncodeChecked(const RecordSpec& spec, const Codec& codec, QualityClass quality,
                       const PlaneSource& source, MutableByteSpan out, uint64_t opaque_bytes) {
  const uint32_t segments = SegmentCount(spec);
  const uint64_t header_bytes = HeaderBytes(spec);
  const uint64_t head_bytes = Align(header_bytes + segments * kRecordEntryBytes);
  std::memset(out.data(), 0, head_bytes);
  const size_t digest_at = WriteHeader(spec, codec.id(), quality, codec.lossy(), out.data());
  const RopeOfRecord rope(spec.options != nullptr ? spec.options->rope : Rope{}, spec.pos0,
                          spec.layout.tokens_per_block);

  LevelPredictor levels(ForetellsLevels(spec, codec.id()), spec.pos0, spec.layout.rank * spec.layout.kv_heads);

  uint64_t offset = head_bytes;
  DigestOfDigests digest;
  for (uint32_t i = 0; i < segments; ++i) {
    const SegmentShape shape = ShapeOf(spec.layout, spec.layer_begin, i, opaque_bytes);
    const MutableByteSpan to = out.subspan(offset, shape.raw_bytes);
    CodecId used = CodecId::kRaw;
    uint32_t crc = 0;
    EncodedSegment encoded;
    std::optional<EncodedSegment> smaller;
    if (codec.id() != CodecId::kRaw && codec.Supports(shape)) {
      const bool foretells = levels.any() && shape.kind == SegmentKind::kK;
      const uint64_t foretelling = foretells ? LevelPredictor::ScratchBytes(shape) : 0;
      const uint64_t scratch_bytes = Align(std::max(codec.scratch_bytes(shape), foretelling));  // Values lie behind it.
      ByteSpan raw = source.Whole(i, shape);
      const bool gathered = raw.data() == nullptr;
      const MutableByteSpan scratch = Scratch(scratch_bytes + (gathered ? shape.raw_bytes : 0));
      if (gathered) {
        source.Read(i, shape, 0, scratch.subspan(scratch_bytes));
        raw = scratch.subspan(scratch_bytes);
      }
      CodecContext context = ContextOf(spec, shape);
      context.scratch = scratch.first(scratch_bytes);
      if (spec.options == nullptr || TurnsBack(*spec.options, shape.layer)) context.rope = rope.get();
      if (foretells) levels.Predict(shape, raw, context.scratch);
      context.levels = levels.Of(shape.kind);
      smaller = codec.Encode(shape, raw, to, context);
    }
    if (smaller) {
      used = codec.id();
      encoded = *smaller;
      crc = Crc32c(to.first(encoded.bytes));
    } else {
      encoded = EncodeRaw(source, i, shape, to.data(), crc);
    }
    const uint64_t end = offset + encoded.bytes;
    std::memset(out.data() + end, 0, Align(end) - end);

    std::byte* entry = out.data() + header_bytes + size_t{i} * kRecordEntryBytes;
    StoreLe(entry + kEntryLayer, shape.layer);
    entry[kEntryKind] = static_cast<std::byte>(shape.kind);
    entry[kEntryCodec] = static_cast<std::byte>(used);
    StoreLe(entry + kEntryOffset64, static_cast<uint32_t>(offset / kRecordAlign));
    StoreLe(entry + kEntryBytes, static_cast<uint32_t>(encoded.bytes));
    StoreLe(entry + kEntryRawBytes, static_cast<uint32_t>(shape.raw_bytes));
    StoreLe(entry + kEntryParams, encoded.params);
    StoreLe(entry + kEntryCrc, crc);
    StoreLe(entry + kEntryDigest, encoded.decoded_digest);
    digest.Add(encoded.decoded_digest);
    offset = Align(end);
  }
  StoreLe(out.data() + kRecordSize, offset);
  StoreLe(out.data() + digest_at, digest.Finish());
  StoreLe(out.data() + kCrc, HeadCrc(out.first(head_bytes)));
  return offset;
}

}  // namespace

uint64_t MaxRecordBytes(const RecordSpec& spec, uint64_t raw_bytes) {
  const uint64_t segments = SegmentCount(spec);
  uint64_t head = Align(HeaderBytes(spec) + segments * kRecordEntryBytes);
  // EC-C takes its rotation from there.
  if (spec.options != nullptr && spec.options->artifact != nullptr) head += Align(4 * spec.options->artifact->rope_dims() + 16);
  if (spec.layout.opaque()) return head + Align(raw_bytes);
  uint64_t body = 0;
  for (uint32_t i = 0; i < SegmentsPerLayer(spec.layout); ++i) {
    body += Align(ShapeOf(spec.layout, 0, i, 0).raw_bytes);
  }
  return head + body * (segments / SegmentsPerLayer(spec.layout));
}

Result<EncodeOptions> record_head::OptionsOf(const RecordSpec& spec, CodecId codec) {
  EncodeOptions options = spec.options != nullptr ? *spec.options : EncodeOptions();
  RecordSpec own = spec;
  own.options = &options;
  TIERCEL_TRY(CheckOptions(own));
  TIERCEL_TRY(TakeArtifact(spec.layout, codec, options));
  return options;
}

Result<uint64_t> EncodeRecord(const RecordSpec& spec, CodecId codec, ByteSpan block,
                              MutableByteSpan out) {
  const uint64_t want = RawBytes(spec, block.size());
  if (block.size() != want) {
    return Fail(Code::kInvalidArgument,
                fmt::format("the block is {} bytes, its layout says {}", block.size(), want));
  }
  return EncodeRecordFrom(spec, codec, BlockSource(block), out, block.size());
}

Result<uint64_t> EncodeRecordFrom(const RecordSpec& spec, CodecId codec_id,
                                  const PlaneSource& source, MutableByteSpan out,
                                  uint64_t opaque_bytes) {
  TIERCEL_TRY(CheckSpec(spec, opaque_bytes));
  if (const uint64_t max = MaxRecordBytes(spec, opaque_bytes); out.size() < max) {
    return Fail(Code::kInvalidArgument,
                fmt::format("a record of up to {} bytes does not fit in {}", max, out.size()));
  }
  codec_id = ResolveCodec(codec_id, spec.layout.dtype);
  const Codec* codec = FindCodec(codec_id);
  if (codec == nullptr) {
    return Fail(Code::kUnimplemented,
                fmt::format("codec {} ({}) is not in this build", static_cast<int>(codec_id),
                            Name(codec_id)));
  }
  QualityClass quality = spec.quality;
  RecordSpec used_spec = spec;  // Options are for codecs of several classes.
  EncodeOptions options;
  if (!codec->one_class()) {
    TIERCEL_ASSIGN(options, OptionsOf(spec, codec_id));
    used_spec.options = &options;
    quality = std::max({quality, codec->quality(), options.quality});
  } else {
    used_spec.options = nullptr;
    quality = std::max(quality, codec->quality());
  }
  return EncodeChecked(used_spec, *codec, quality, source, out, opaque_bytes);
}

Status VerifyRecord(const RecordView& record) { return VerifyRange(record, {0, record.n_segments}); }

Status VerifySegments(const RecordView& record, uint16_t layer_begin, uint16_t layer_end) {
  TIERCEL_ASSIGN(const IndexRange range, ResolveLayers(record, layer_begin, layer_end));
  return VerifyRange(record, range);
}

Status DecodeRecordTo(const RecordView& record, const KvLayout& expected, const PlaneSink& sink,
                      uint16_t layer_begin, uint16_t layer_end) {
  TIERCEL_TRY(CompareLayouts(record.layout, expected));
  TIERCEL_ASSIGN(const IndexRange range, ResolveLayers(record, layer_begin, layer_end));
  uint64_t frequencies[kMaxRopeDims / 2];
  Rope rope{record.rope_style, record.rope_first, record.rope_dims, frequencies};
  std::memcpy(frequencies, record.bytes.data() + record.rope_offset, size_t{4} * rope.dims);
  const RopeOfRecord tables(rope, record.pos0, record.tokens());
  const std::shared_ptr<const Artifact> artifact = FindArtifact(record.artifact_id);
  if (record.artifact_id != 0 && artifact == nullptr) {
    return Fail(Code::kFailedPrecondition,
                fmt::format("record: needs artifact {:016x}, which is not here", record.artifact_id));
  }
  const uint64_t base =
      ShapeOf(record.layout, record.layer_begin, range.first, record.raw_bytes).block_offset;
  for (uint32_t i = range.first; i < range.end; ++i) {
    const SegmentInfo segment = record.segment(i);
    SegmentShape sink_shape = segment.shape;
    sink_shape.block_offset -= base;
    TIERCEL_TRY(DecodeSegment(record, segment, i - range.first, sink_shape, sink, tables.get(), artifact.get()));
  }
  return OkStatus();
}

Status DecodeRecord(const RecordView& record, const KvLayout& expected, MutableByteSpan out,
                    uint16_t layer_begin, uint16_t layer_end) {
  TIERCEL_TRY(CompareLayouts(record.layout, expected));
  TIERCEL_ASSIGN(const uint64_t bytes, DecodedBytes(record, layer_begin, layer_end));
  if (out.size() != bytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("the record decodes to {} bytes, the buffer has {}", bytes, out.size()));
  }
  return DecodeRecordTo(record, expected, BlockSink(out), layer_begin, layer_end);
}

Status CopyRecordVerified(ByteSpan src_record, MutableByteSpan dst) {
  // The source may change at any time: a field that was checked is one that was copied first.
  if (dst.size() < src_record.size()) {
    return Fail(Code::kInvalidArgument, fmt::format("a record of {} bytes does not fit in {}",
                                                    src_record.size(), dst.size()));
  }
  if (src_record.size() < kRecordHeaderBytes) {
    return Fail(Code::kDataLoss, fmt::format("record: {} bytes cannot hold the header",
                                             src_record.size()));
  }
  std::memcpy(dst.data(), src_record.data(), kRecordHeaderBytes);
  const uint64_t head_bytes =
      Align(uint64_t{LoadLe<uint16_t>(dst.data() + kHeaderSize)} +
            uint64_t{LoadLe<uint16_t>(dst.data() + kSegments)} * kRecordEntryBytes);
  if (head_bytes > kRecordHeaderBytes && head_bytes <= src_record.size()) {
    std::memcpy(dst.data() + kRecordHeaderBytes, src_record.data() + kRecordHeaderBytes,
                head_bytes - kRecordHeaderBytes);
  }
  TIERCEL_ASSIGN(const RecordView record,
                 ParseRecordHead(dst.first(std::min<uint64_t>(head_bytes, src_record.size()))));
  if (record.record_bytes != src_record.size()) {
    return Fail(Code::kDataLoss, fmt::format("record: record_bytes is {}, {} bytes are here",
                                             record.record_bytes, src_record.size()));
  }
  for (uint32_t i = 0; i < record.n_segments; ++i) {
    const SegmentInfo segment = record.segment(i);
    const uint32_t crc = CopyCrc32c(dst.data() + segment.offset,
                                    src_record.subspan(segment.offset, segment.bytes), 0,
                                    src_record.size());
    if (crc != segment.crc32c) return CrcMismatch(segment, crc);
    const uint64_t end = segment.offset + segment.bytes;
    std::memset(dst.data() + end, 0, Align(end) - end);
  }
  return OkStatus();
}

void RecordCopier::Add(ByteSpan piece) {
  if (piece.size() > dst_.size() - at_) {
    Fail({Code::kDataLoss, fmt::format("record: more than its {} bytes came", dst_.size())});
  }
  while (!piece.empty() && status_) {
    const size_t used = record_ ? AddBody(piece) : AddHead(piece);
    at_ += used;
    piece = piece.subspan(used);
  }
  // Segments of no bytes end where the one before does.
  while (status_ && record_ && segment_ < record_->n_segments && at_ == dst_.size() &&
         record_->segment(segment_).bytes == 0) {
    AddBody({});
  }
}

size_t RecordCopier::AddHead(ByteSpan piece) {
  const size_t end = head_bytes_ > 0 ? head_bytes_ : std::min<size_t>(kRecordHeaderBytes, dst_.size());
  const size_t used = std::min(piece.size(), end - at_);
  std::memcpy(dst_.data() + at_, piece.data(), used);
  if (at_ + used < end) return used;
  if (head_bytes_ == 0) {
    if (dst_.size() < kRecordHeaderBytes) {
      Fail({Code::kDataLoss, fmt::format("record: {} bytes cannot hold the header", dst_.size())});
      return used;
    }
    head_bytes_ = Align(uint64_t{LoadLe<uint16_t>(dst_.data() + kHeaderSize)} +
                        uint64_t{LoadLe<uint16_t>(dst_.data() + kSegments)} * kRecordEntryBytes);
    head_bytes_ = std::clamp<size_t>(head_bytes_, kRecordHeaderBytes, dst_.size());
    if (head_bytes_ > at_ + used) return used;
  }
  record_ = ParseRecordHead(dst_.first(head_bytes_));
  if (!record_) {
    Fail(record_.error());
  } else if (record_->record_bytes != dst_.size()) {
    Fail({Code::kDataLoss, fmt::format("record: record_bytes is {}, {} bytes are here",
                                       record_->record_bytes, dst_.size())});
  }
  return used;
}

size_t RecordCopier::AddBody(ByteSpan piece) {
  // Behind the last segment and between two there is padding, which is written and not read.
  const bool inside = segment_ < record_->n_segments;
  const SegmentInfo segment = inside ? record_->segment(segment_) : SegmentInfo{};
  const uint64_t begin = inside ? segment.offset : dst_.size();
  if (at_ < begin) {
    const size_t used = std::min<uint64_t>(piece.size(), begin - at_);
    std::memset(dst_.data() + at_, 0, used);
    return used;
  }
  const uint64_t end = begin + segment.bytes;
  const size_t used = std::min<uint64_t>(piece.size(), end - at_);
  crc_ = CopyCrc32c(dst_.data() + at_, piece.first(used), crc_, dst_.size());
  if (at_ + used == end) {
    const Status good = crc_ == segment.crc32c ? OkStatus() : Status(CrcMismatch(segment, crc_));
    if (!good) status_ = good;
    crc_ = 0;
    ++segment_;
  }
  return used;
}

Status RecordCopier::Finish() const {
  if (!status_) return status_;
  if (at_ == dst_.size() && record_ && segment_ == record_->n_segments) return OkStatus();
  return tiercel::Fail(Code::kDataLoss, fmt::format("record: {} of {} bytes came", at_, dst_.size()));
}

}  // namespace tiercel
