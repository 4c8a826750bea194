// Writes the batches that gpu_check runs (tests/gpu/vectors.h): random caches with the records that the CPU
// writes of them and what it decodes them to; spoilt records with what the kernels, run on the CPU, say of
// them; and the block whose speed is measured.
//
//   gpu_vectors FILE
#include <cstdio>
#include <cstdlib>

#include "base/crc32c.h"
#include "kernels/record_head.h"
#include "tests/gpu/vectors.h"
#include "tests/simt/batch_case.h"
#include "tests/simt/batch_on_cpu.h"

namespace tiercel {
namespace {

using batch_case::Case;
using batch_case::MakeCase;
using gpu_vectors::Entry;
using gpu_vectors::Kind;
using gpu_vectors::kUntouched;

std::vector<uint8_t> BytesOf(const std::vector<std::byte>& bytes) {
  const auto* at = reinterpret_cast<const uint8_t*>(bytes.data());
  return {at, at + bytes.size()};
}

Entry EntryOf(const Case& c, Kind kind) {
  const auto plan = gpu::PlanBatch(c.spec, c.codec, c.kv);
  TIERCEL_CHECK(plan.has_value());
  Entry entry;
  entry.kind = kind;
  entry.name = c.ToString();
  entry.shape = plan->shape;
  entry.blocks = c.blocks;
  entry.codecs = plan->codecs;
  entry.max_record_bytes = plan->max_record_bytes;
  entry.encode_scratch = plan->encode_scratch_bytes(c.blocks);
  entry.decode_scratch = plan->decode_scratch_bytes(c.blocks);
  entry.raw_bytes = plan->raw_bytes;
  entry.planes = plan->planes;
  for (gpu::Plane& plane : entry.planes) {
    plane.base = reinterpret_cast<std::byte*>(static_cast<uintptr_t>(plane.base - c.cache.data()));
  }
  entry.pages = c.pages;
  entry.pos0 = c.pos0;
  entry.tables = BytesOf(plan->tables);
  if (c.options != nullptr && c.options->artifact != nullptr) entry.artifact = BytesOf(gpu::ArtifactImage(*c.options->artifact));
  return entry;
}

void AddRecord(Entry& entry, ByteSpan record) {
  entry.record_bytes.push_back(record.size());
  const auto* at = reinterpret_cast<const uint8_t*>(record.data());
  entry.records.insert(entry.records.end(), at, at + record.size());
}

Entry Exact(const Case& c) {
  Entry entry = EntryOf(c, Kind::kExact);
  entry.cache = BytesOf(c.cache);
  std::vector<std::byte> decoded(c.cache.size(), std::byte{kUntouched});
  for (uint32_t i = 0; i < c.blocks; ++i) {
    const std::vector<std::byte> record = batch_case::RecordOf(c, i);
    AddRecord(entry, record);
    const PagedKv kv = c.KvIn(decoded.data());
    TIERCEL_CHECK(DecodeRecordTo(*ParseRecord(record), c.spec.layout, PagedSink(kv, c.PagesOf(i))).has_value());
  }
  entry.decoded = BytesOf(decoded);
  return entry;
}

// A bit is flipped, and most times the checksums made true again.
Entry Malformed(SplitMix64& random, const Case& c) {
  std::vector<std::byte> record = batch_case::RecordOf(c, 0);
  const auto view = *ParseRecord(record);
  const bool deep = random.Below(4) != 0;
  const size_t head = view.head_bytes;
  const size_t near = std::min<size_t>(record.size() - head, 96);
  const size_t at = !deep ? random.Below(record.size()) : head + random.Below(random.Below(2) == 0 ? near : record.size() - head);
  const auto bit = static_cast<std::byte>(1u << random.Below(8));
  for (uint32_t i = 0; deep && i < view.n_segments; ++i) {
    const SegmentInfo segment = view.segment(i);
    if (at < segment.offset || at >= segment.offset + segment.bytes) continue;
    record[at] ^= bit;
    StoreLe(record.data() + view.directory_offset + i * kRecordEntryBytes + record_head::kEntryCrc,
            Crc32c(ByteSpan(record).subspan(segment.offset, segment.bytes)));
    record[at] ^= bit;
  }
  record[at] ^= bit;
  if (deep) StoreLe(record.data() + record_head::kCrc, record_head::HeadCrc(ByteSpan(record).first(head)));

  Entry entry = EntryOf(c, Kind::kMalformed);
  AddRecord(entry, record);
  entry.cache.assign(c.cache.size(), kUntouched);
  const auto plan = *gpu::PlanBatch(c.spec, c.codec, c.kv);
  std::vector<std::byte> decoded(c.cache.size(), std::byte{kUntouched});
  std::vector<gpu::Plane> planes = plan.planes;
  for (gpu::Plane& plane : planes) plane.base = decoded.data() + (plane.base - c.cache.data());
  const auto aligned = [](size_t bytes) { return static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)); };
  std::byte* const memory = aligned(record.size());
  std::memcpy(memory, record.data(), record.size());
  std::byte* const scratch = aligned(entry.decode_scratch);
  gpu::BlockResult result;
  gpu::BatchBlocks blocks;
  blocks.count = 1;
  blocks.planes = planes.data();
  std::byte* const image = aligned(entry.artifact.size());
  std::memcpy(image, entry.artifact.data(), entry.artifact.size());
  if (!entry.artifact.empty()) blocks.artifact = image;
  blocks.pages = c.pages.data();
  blocks.records = &memory;
  blocks.record_bytes = entry.record_bytes.data();
  blocks.results = &result;
  blocks.scratch = {scratch, entry.decode_scratch};
  TIERCEL_CHECK(simt::DecodeBatch(plan, blocks).has_value());
  entry.code = static_cast<uint32_t>(result.code);
  entry.segment = result.segment;
  if (result.code == gpu::BlockCode::kOk) entry.decoded = BytesOf(decoded);
  std::free(memory);
  std::free(image);
  std::free(scratch);
  return entry;
}

// Four layers of a usual model's block: 8 heads of 128, 256 tokens in pages of 16, bf16, [pages][tokens][heads][dim].
Case BenchCase(CodecId codec) {
  Case c;
  c.codec = codec;
  KvLayout& l = c.spec.layout;
  l.layers = 4;
  l.kv_heads = 8;
  l.head_dim_k = l.head_dim_v = 128;
  l.tokens_per_block = 256;
  l.dtype = Dtype::kBf16;
  c.kv.tokens_per_page = 16;
  c.kv.n_pages = c.pages_a_block = 16;
  c.pos0 = {0};
  c.cache.resize(l.block_bytes());
  SplitMix64 random(7);
  for (uint32_t i = 0; i < 2 * l.layers; ++i) {
    std::byte* const base = c.cache.data() + i * l.k_plane_bytes();
    (i < l.layers ? c.kv.k : c.kv.v).push_back(PagedKv::Dense(base, l, AxisOrder::kTokenHeadDim, 128, 16, 16));
    SegmentShape shape;
    shape.dtype = l.dtype;
    shape.tokens = 256;
    shape.dim = 8 * 128;  // A channel of each head.
    shape.raw_bytes = l.k_plane_bytes();
    batch_case::FillPlane(random, shape, batch_case::Fill::kUsual, base);
  }
  for (uint32_t i = 0; i < 16; ++i) c.pages.push_back(i);
  if (codec == CodecId::kEcC || codec == CodecId::kEcK) {
    const auto options = std::make_shared<batch_case::CaseOptions>();
    options->options.quality = QualityClass::kBalanced;
    if (codec == CodecId::kEcK) {
      ArtifactShape shape;
      shape.layers = 4;
      shape.heads = 8;
      shape.dim_k = shape.dim_v = shape.rope_dims = 128;
      shape.whole_layers = false;
      shape.step = 0.001f;  // Values are about 2^-6.
      options->Use(shape, 1);
    }
    c.options = options;
    c.spec.options = &options->options;
  }
  return c;
}

void Write(const char* path) {
  std::vector<uint8_t> out;
  gpu_vectors::Writer writer(out);
  writer(gpu_vectors::kMagic);
  writer(static_cast<uint64_t>(sizeof(gpu::BatchShape)));
  SplitMix64 random(31);
  for (int i = 0; i < 12; ++i) {
    for (const CodecId codec : batch_case::kCodecs) Exact(MakeCase(random, {}, codec)).Visit(writer);
  }
  for (int i = 0; i < 2; ++i) {
    for (const CodecId codec : batch_case::kCodecs) Exact(MakeCase(random, {200000, 1, 2}, codec)).Visit(writer);
  }
  for (int i = 0; i < 40; ++i) {
    for (const CodecId codec : batch_case::kCodecs) Malformed(random, MakeCase(random, {1000, 2, 1}, codec)).Visit(writer);
  }
  bool first = true;
  for (const CodecId codec : batch_case::kCodecs) {
    if (codec == CodecId::kEcX) continue;  // A transform of 1024 dimensions takes minutes to make up.
    const Case c = BenchCase(codec);
    Entry entry = EntryOf(c, Kind::kBench);
    entry.name = Name(codec);
    AddRecord(entry, batch_case::RecordOf(c, 0));
    if (first) entry.cache = BytesOf(c.cache);
    first = false;
    entry.Visit(writer);
  }
  std::FILE* const file = std::fopen(path, "wb");
  if (file == nullptr || std::fwrite(out.data(), 1, out.size(), file) != out.size() || std::fclose(file) != 0) {
    std::perror(path);
    std::exit(1);
  }
  std::printf("%s: %zu bytes\n", path, out.size());
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gpu_vectors FILE\n");
    return 2;
  }
  tiercel::Write(argv[1]);
  return 0;
}
