// The host's part of a batch: what can be settled before anything is launched. No CUDA here.
#include "kernels/cuda/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/cuda/scratch_bytes.h"
#include "kernels/ecc_core.h"
#include "kernels/record_head.h"

namespace tiercel::gpu {
namespace {

constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kLlf, CodecId::kLle, CodecId::kF8, CodecId::kI8, CodecId::kI4h,
                                CodecId::kEcC, CodecId::kEcK, CodecId::kEcX, CodecId::kI8e};
constexpr uint64_t kAlign = 64;

tl::unexpected<Error> Bad(std::string what) { return Fail(Code::kInvalidArgument, "batch: " + std::move(what)); }

Status CheckAlignment(const PagedPlane& plane, const SegmentShape& shape, uint64_t elem) {
  const uint64_t all = reinterpret_cast<uintptr_t>(plane.base) | plane.page_stride | plane.token_stride | plane.head_stride |
                       plane.dim_stride;
  if (all % elem == 0) return OkStatus();
  return Bad(fmt::format("layer {} {}: its base and strides are not multiples of a value's {} bytes", shape.layer, Name(shape.kind), elem));
}

// The head as the CPU writes it, of a block of zeros, and which of its bytes other records may have otherwise.
Status TakeHead(const RecordSpec& spec, CodecId codec, BatchPlan& plan) {
  std::vector<std::byte> record(MaxRecordBytes(spec, 0));
  TIERCEL_ASSIGN(const uint64_t bytes, EncodeRecord(spec, codec, std::vector<std::byte>(plan.raw_bytes), record));
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(ByteSpan(record).first(bytes)));
  BatchShape& shape = plan.shape;
  shape.header_bytes = view.directory_offset;
  shape.head_bytes = static_cast<uint32_t>(view.head_bytes);
  shape.digest_at = view.digest_offset;
  using namespace record_head;  // NOLINT: offsets of this very format.
  // A rotation's TLV is the last, and too long to be held here.
  uint64_t rope_at = kRecordHeaderBytes + TlvBytes(16) + TlvBytes(8);
  for (const std::string* text : {&spec.layout.engine, &spec.layout.isa}) rope_at += text->empty() ? 0 : TlvBytes(text->size());
  shape.rope_at = static_cast<uint32_t>(rope_at);
  const bool turns = view.rope_dims != 0;
  const uint64_t held = turns ? view.rope_offset : rope_at;
  if (held > kMaxHeader) return Bad(fmt::format("a header of {} bytes, over {}", held, kMaxHeader));
  std::memcpy(shape.header, record.data(), held);
  if (turns) {
    shape.rope_style = static_cast<uint8_t>(view.rope_style);
    shape.rope_first = static_cast<uint16_t>(view.rope_first);
    shape.rope_dims = static_cast<uint16_t>(view.rope_dims);
    plan.tables.assign(record.begin() + view.rope_offset, record.begin() + view.rope_offset + 4 * view.rope_dims);
  }
  const auto ignore = [&shape](size_t at, size_t size) { std::memset(shape.ignored + at, 1, size); };
  ignore(kMinor, 1);
  ignore(kHeaderSize, 2);
  ignore(kRecordSize, 8);
  ignore(kCodec, 1);
  ignore(kQuality, 1);
  ignore(kFlags, 1);
  ignore(kPos0, 8);
  ignore(kArtifact, 8);
  ignore(kCrc, 4);
  ignore(kRecordHeaderBytes + 4, 16);  // The scope: the first TLV.
  ignore(shape.digest_at, 8);
  return OkStatus();
}

// What EC-C, EC-K and EC-X are told by their options.
void TakeOptions(const RecordSpec& spec, CodecId codec, BatchPlan& plan) {
  BatchShape& shape = plan.shape;
  const EncodeOptions& options = *spec.options;
  shape.exact_tokens = options.exact_tokens;
  shape.step = options.step;
  const bool levels = options.artifact != nullptr && options.artifact->has_levels() && spec.layout.packing == KvPacking::kSplit &&
                      FindCodec(codec)->Supports(record_head::ShapeOf(spec.layout, spec.layer_begin, 0, 0));
  shape.foretells = levels ? 1 : 0;
  if (levels || FindCodec(codec)->needs_artifact()) shape.artifact = options.artifact->id();
  shape.class_step = ecc::kStepOfClass[static_cast<size_t>(options.quality)];
  if (codec != CodecId::kEcC) return;
  if (options.quality == QualityClass::kExact) shape.codec = static_cast<uint8_t>(CodecId::kRaw);  // Nothing is coded so.
  for (uint32_t i = 0; i < shape.segments; ++i) {
    const SegmentShape segment = record_head::ShapeOf(spec.layout, spec.layer_begin, i, 0);
    const CodecContext context = record_head::ContextOf(spec, segment);
    KindShape& kind = shape.kind[i % shape.kinds];
    kind.split = static_cast<uint16_t>(context.split_dim);
    kind.groups = context.split_dim != 0 ? 2 : 1;
    std::vector<float> scales(context.scales.begin(), context.scales.end());
    scales.resize(uint64_t{kind.groups} * segment.heads, 1.0f);
    const ByteSpan bytes = std::as_bytes(std::span(scales));
    plan.tables.insert(plan.tables.end(), bytes.begin(), bytes.end());
  }
  shape.unturned_at = static_cast<uint32_t>(plan.tables.size());
  for (uint32_t i = 0; i < shape.segments; ++i) {
    const auto layer = static_cast<uint16_t>(spec.layer_begin + i / shape.kinds);
    plan.tables.push_back(static_cast<std::byte>(record_head::TurnsBack(options, layer) ? 0 : 1));
  }
}

}  // namespace

std::string_view Name(BlockCode code) {
  switch (code) {
    case BlockCode::kOk:
      return "ok";
    case BlockCode::kPage:
      return "a page that the cache does not have";
    case BlockCode::kPointer:
      return "a record's address that is null or no multiple of 64";
    case BlockCode::kHead:
      return "a malformed head";
    case BlockCode::kLayout:
      return "a record of another layout";
    case BlockCode::kUnsupported:
      return "a codec without a kernel";
    case BlockCode::kChecksum:
      return "a segment of another checksum";
    case BlockCode::kSegment:
      return "a malformed segment";
    case BlockCode::kDigest:
      return "a segment of another digest";
    case BlockCode::kArtifact:
      return "a record of an artifact that is not here";
  }
  return "unknown";
}

uint64_t BatchPlan::encode_scratch_bytes(uint32_t blocks) const {
  return uint64_t{blocks} * shape.segments * (kSegmentBytes + shape.slot_bytes + shape.encode_scratch);
}
uint64_t BatchPlan::decode_scratch_bytes(uint32_t blocks) const {
  return uint64_t{blocks} * shape.segments * (kSegmentBytes + shape.decode_scratch);
}

Result<BatchPlan> PlanBatch(const RecordSpec& spec, CodecId codec, const PagedKv& kv, uint32_t decodes) {
  const KvLayout& layout = spec.layout;
  if (layout.opaque()) return Bad("opaque bytes have no pages");
  codec = ResolveCodec(codec, layout.dtype);
  if (std::find(std::begin(kCodecs), std::end(kCodecs), codec) == std::end(kCodecs)) {
    return Fail(Code::kUnimplemented, fmt::format("batch: codec {} has no kernel here", Name(codec)));
  }
  if (kv.tokens_per_page == 0 || kv.n_pages == 0 || layout.tokens_per_block % kv.tokens_per_page != 0) {
    return Bad(fmt::format("{} pages of {} tokens do not make up blocks of {}", kv.n_pages, kv.tokens_per_page, layout.tokens_per_block));
  }
  // Whatever page a batch may name, its last value lies in the plane.
  TIERCEL_TRY(CheckPages(kv, layout, std::vector<uint32_t>(layout.tokens_per_block / kv.tokens_per_page, kv.n_pages - 1)));

  BatchPlan plan;
  BatchShape& shape = plan.shape;
  RecordSpec own = spec;
  own.pos0 = 0;
  own.options = nullptr;
  EncodeOptions options;
  const bool heeds_options = !FindCodec(codec)->one_class();
  if (heeds_options) {
    TIERCEL_ASSIGN(options, record_head::OptionsOf(spec, codec));
    own.options = &options;
  }
  plan.raw_bytes = RawBytes(own);
  TIERCEL_TRY(TakeHead(own, codec, plan));
  plan.max_record_bytes = MaxRecordBytes(own, 0);
  shape.kinds = record_head::SegmentsPerLayer(layout);
  shape.layer_begin = spec.layer_begin;
  shape.segments = (spec.layer_end == 0 ? layout.layers : uint32_t{spec.layer_end} - spec.layer_begin) * shape.kinds;
  if (shape.segments > kMaxSegments) return Bad(fmt::format("{} segments, over {}", shape.segments, kMaxSegments));
  shape.tokens = layout.tokens_per_block;
  shape.tokens_per_page = kv.tokens_per_page;
  shape.pages = layout.tokens_per_block / kv.tokens_per_page;
  shape.n_pages = kv.n_pages;
  shape.elem = static_cast<uint8_t>(DtypeBytes(layout.dtype));
  shape.dtype = static_cast<uint8_t>(layout.dtype);
  shape.codec = static_cast<uint8_t>(codec);
  shape.first_head = layout.rank * layout.kv_heads;
  shape.turned_dims = layout.packing == KvPacking::kLatent ? layout.head_dim_k + layout.head_dim_v : layout.head_dim_k;
  uint64_t encode = 0, decode = 0, slot = 0;
  for (uint32_t i = 0; i < shape.kinds; ++i) {
    const SegmentShape segment = record_head::ShapeOf(layout, spec.layer_begin, i, 0);
    KindShape& kind = shape.kind[i];
    kind.heads = segment.heads;
    kind.dim = segment.dim;
    kind.values = static_cast<uint32_t>(segment.raw_bytes / shape.elem);
    kind.limit = static_cast<uint32_t>(FindCodec(codec)->MaxEncodedBytes(segment));
    kind.order = static_cast<uint8_t>(segment.order);
    kind.kind = static_cast<uint8_t>(segment.kind);
    for (const CodecId id : kCodecs) {
      if (!FindCodec(id)->Supports(segment)) continue;
      const uint32_t bit = 1u << static_cast<unsigned>(id);
      kind.supports = static_cast<uint16_t>(kind.supports | bit);
      const ScratchBytes need = ScratchOf(static_cast<uint8_t>(id), uint64_t{segment.heads} * segment.dim, segment.tokens, segment.heads);
      if (id == codec) encode = std::max(encode, need.encode);
      if ((decodes & bit) != 0) decode = std::max(decode, need.decode);
    }
    plan.codecs |= kind.supports & decodes;
    slot = std::max(slot, record_head::Align(segment.raw_bytes));
  }
  shape.codecs = plan.codecs;
  if (heeds_options) TakeOptions(own, codec, plan);
  // Each below 2^31, since a record's raw bytes are below 2^25.
  shape.slot_bytes = static_cast<uint32_t>(slot);
  shape.encode_scratch = static_cast<uint32_t>(record_head::Align(encode));
  shape.decode_scratch = static_cast<uint32_t>(record_head::Align(decode));
  for (uint32_t i = 0; i < shape.segments; ++i) {
    const SegmentShape segment = record_head::ShapeOf(layout, spec.layer_begin, i, 0);
    const PagedPlane& from = segment.kind == SegmentKind::kV ? kv.v[segment.layer] : kv.k[segment.layer];
    TIERCEL_TRY(CheckAlignment(from, segment, shape.elem));
    plan.planes.push_back({from.base, from.page_stride, from.token_stride, from.head_stride, from.dim_stride});
  }
  return plan;
}

Result<BatchArgs> ArgsOf(const BatchPlan& plan, const BatchBlocks& blocks, bool decoding) {
  if (blocks.count == 0 || blocks.count > plan.max_blocks()) {
    return Bad(fmt::format("{} blocks, 1 to {} expected", blocks.count, plan.max_blocks()));
  }
  const char* missing = blocks.planes == nullptr                      ? "planes"
                        : blocks.pages == nullptr                     ? "pages"
                        : blocks.records == nullptr                   ? "records"
                        : decoding && blocks.record_bytes == nullptr  ? "record_bytes"
                        : blocks.results == nullptr                   ? "results"
                        : !decoding && blocks.tables == nullptr && !plan.tables.empty() ? "tables"
                        : !decoding && blocks.artifact == nullptr && plan.shape.artifact != 0 ? "artifact"
                        : blocks.scratch.data() == nullptr            ? "scratch"
                                                                      : nullptr;
  if (missing != nullptr) return Bad(fmt::format("{} is null", missing));
  const uint64_t need = decoding ? plan.decode_scratch_bytes(blocks.count) : plan.encode_scratch_bytes(blocks.count);
  if (blocks.scratch.size() < need || reinterpret_cast<uintptr_t>(blocks.scratch.data()) % kAlign != 0) {
    return Bad(fmt::format("scratch of {} bytes, {} at a multiple of {} expected", blocks.scratch.size(), need, kAlign));
  }
  BatchArgs args;
  args.shape = plan.shape;
  args.blocks = blocks.count;
  args.planes = blocks.planes;
  args.pages = blocks.pages;
  args.pos0 = blocks.pos0;
  args.tables = reinterpret_cast<const uint8_t*>(blocks.tables);
  args.artifact = reinterpret_cast<const uint8_t*>(blocks.artifact);
  args.records = reinterpret_cast<uint8_t* const*>(blocks.records);
  args.record_bytes = blocks.record_bytes;
  args.results = blocks.results;
  auto* at = reinterpret_cast<uint8_t*>(blocks.scratch.data());
  const uint64_t jobs = uint64_t{blocks.count} * plan.shape.segments;
  args.jobs = reinterpret_cast<Segment*>(at);
  at += jobs * kSegmentBytes;
  args.slots = at;
  args.scratch = decoding ? at : at + jobs * plan.shape.slot_bytes;
  return args;
}

}  // namespace tiercel::gpu
