// The CUDA source of whole batches on the CPU, bit for bit against the records that the CPU writes.
#include "kernels/cuda/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "kernels/record_head.h"
#include "tests/simt/batch_case.h"
#include "tests/simt/batch_on_cpu.h"

namespace tiercel {
namespace {

using batch_case::Case;
using batch_case::MakeCase;
using batch_case::RecordOf;
using batch_case::Sizes;

bool Full() { return std::getenv("TIERCEL_FULL") != nullptr; }

// Memory at a multiple of 64, with something behind it that nobody may write to.
class Aligned {
 public:
  static constexpr size_t kGuard = 256;
  explicit Aligned(size_t bytes) : size_(bytes), memory_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + kGuard + 63) / 64 * 64)), &std::free) {
    std::memset(data(), 0xee, bytes + kGuard);
  }
  std::byte* data() { return memory_.get(); }
  MutableByteSpan span() { return {data(), size_}; }
  bool intact() {
    for (size_t i = 0; i < kGuard; ++i) {
      if (data()[size_ + i] != std::byte{0xee}) return false;
    }
    return true;
  }

 private:
  size_t size_;
  std::unique_ptr<std::byte, decltype(&std::free)> memory_;
};

struct Batch {
  explicit Batch(const Case& the_case)
      : c(the_case), plan(*gpu::PlanBatch(c.spec, c.codec, c.kv)), records(plan.max_record_bytes * c.blocks), results(c.blocks), sizes(c.blocks) {
    for (uint32_t i = 0; i < c.blocks; ++i) pointers.push_back(records.data() + plan.max_record_bytes * i);
    if (c.options != nullptr && c.options->artifact != nullptr) Give(*c.options->artifact);
  }
  void Give(const Artifact& artifact) {
    const std::vector<std::byte> bytes = gpu::ArtifactImage(artifact);
    image = std::make_unique<Aligned>(bytes.size());
    std::memcpy(image->data(), bytes.data(), bytes.size());
  }
  gpu::BatchBlocks Blocks(MutableByteSpan scratch) {
    gpu::BatchBlocks blocks;
    blocks.count = c.blocks;
    blocks.planes = plan.planes.data();
    if (!plan.tables.empty()) blocks.tables = plan.tables.data();
    if (image != nullptr) blocks.artifact = image->data();
    blocks.pages = c.pages.data();
    blocks.pos0 = c.pos0.data();
    blocks.records = pointers.data();
    blocks.record_bytes = sizes.data();
    blocks.results = results.data();
    blocks.scratch = scratch;
    return blocks;
  }
  void Encode() {
    Aligned scratch(plan.encode_scratch_bytes(c.blocks));
    ASSERT_TRUE(simt::EncodeBatch(plan, Blocks(scratch.span())).has_value());
    ASSERT_TRUE(scratch.intact() && records.intact());
  }
  // Into a cache of its own.
  std::vector<std::byte> Decode() {
    std::vector<std::byte> cache(c.cache.size(), std::byte{0x77});
    std::vector<gpu::Plane> planes = plan.planes;
    for (gpu::Plane& plane : planes) plane.base = cache.data() + (plane.base - c.cache.data());
    Aligned scratch(plan.decode_scratch_bytes(c.blocks));
    gpu::BatchBlocks blocks = Blocks(scratch.span());
    blocks.planes = planes.data();
    EXPECT_TRUE(simt::DecodeBatch(plan, blocks).has_value());
    EXPECT_TRUE(scratch.intact() && records.intact());
    return cache;
  }
  void Put(uint32_t block, ByteSpan record) {
    std::memcpy(pointers[block], record.data(), record.size());
    sizes[block] = record.size();
  }

  const Case& c;
  gpu::BatchPlan plan;
  Aligned records;
  std::unique_ptr<Aligned> image;  // Of the artifact.
  std::vector<std::byte*> pointers;
  std::vector<gpu::BlockResult> results;
  std::vector<uint64_t> sizes;
};

// What the CPU makes of a record, in a cache of its own.
bool DecodeOnCpu(const Case& c, uint32_t block, ByteSpan record, std::vector<std::byte>& cache) {
  const PagedKv kv = c.KvIn(cache.data());
  const auto view = ParseRecord(record);
  if (!view || !VerifyRecord(*view)) return false;
  return DecodeRecordTo(*view, c.spec.layout, PagedSink(kv, c.PagesOf(block))).has_value();
}

// How many segments there were of each codec, of I8E coded and plain, and of EC-C, EC-K and EC-X of each count of bands with levels.
struct Seen {
  std::array<int, kCodecs> segments{};
  std::array<int, 2> forms{};
  std::array<int, 4> levels{};
  void Add(const RecordView& record) {
    for (uint32_t i = 0; i < record.n_segments; ++i) {
      const SegmentInfo segment = record.segment(i);
      ++segments.at(static_cast<size_t>(segment.codec));
      const ByteSpan bytes = record.segment_bytes(segment);
      if (segment.codec == CodecId::kI8e) ++forms.at(std::to_integer<size_t>(bytes[1]));
      const bool ec_c = segment.codec == CodecId::kEcC;
      if ((!ec_c && segment.codec != CodecId::kEcK && segment.codec != CodecId::kEcX) || bytes[0] != std::byte{2}) continue;
      ++levels.at(std::to_integer<size_t>(bytes[ec_c ? 7 : 3]));
    }
  }
};

void Compare(const Case& c, uint64_t order, Seen* seen = nullptr) {
  simt::Shuffled(order);
  SCOPED_TRACE(c.ToString());
  Batch batch(c);
  batch.Encode();
  std::vector<std::byte> cache(c.cache.size(), std::byte{0x77});
  for (uint32_t i = 0; i < c.blocks; ++i) {
    const std::vector<std::byte> want = RecordOf(c, i);
    ASSERT_EQ(batch.results[i].code, gpu::BlockCode::kOk) << Name(batch.results[i].code);
    ASSERT_EQ(batch.results[i].bytes, want.size());
    const auto differ = std::mismatch(want.begin(), want.end(), batch.pointers[i]);
    ASSERT_EQ(differ.first - want.begin(), static_cast<ptrdiff_t>(want.size())) << "block " << i << " differs there, of " << want.size();
    batch.Put(i, want);
    if (seen != nullptr) seen->Add(*ParseRecord(want));
    ASSERT_TRUE(DecodeOnCpu(c, i, want, cache));
  }
  const std::vector<std::byte> decoded = batch.Decode();
  for (uint32_t i = 0; i < c.blocks; ++i) {
    ASSERT_EQ(batch.results[i].code, gpu::BlockCode::kOk) << Name(batch.results[i].code) << ", segment " << batch.results[i].segment;
    ASSERT_EQ(batch.results[i].bytes, batch.sizes[i]);
  }
  ASSERT_EQ(decoded, cache);
}

TEST(SimtBatchTest, EveryCodecGivesTheCpusRecordsAndTakesThemBack) {
  SplitMix64 random(21);
  Seen seen;
  for (int i = 0; i < (Full() ? 2000 : 30); ++i) {
    for (const CodecId codec : batch_case::kCodecs) {
      Compare(MakeCase(random, {}, codec), static_cast<uint64_t>(i), &seen);
      if (HasFatalFailure()) return;
    }
  }
  for (const CodecId codec : batch_case::kCodecs) EXPECT_GT(seen.segments[static_cast<size_t>(codec)], 10) << Name(codec);
  EXPECT_GT(seen.levels[0], 10);
  for (const int segments : seen.forms) EXPECT_GT(segments, 5);
}

TEST(SimtBatchTest, TokensWithStepsOfTheirOwnInOneTwoAndFourBands) {
  SplitMix64 random(26);
  Seen seen;
  constexpr uint32_t kTokens[] = {40, 64, 128, 256};
  const int rounds = Full() ? 400 : 12;
  for (int i = 0; i < rounds; ++i) {
    for (const CodecId codec : {CodecId::kEcC, CodecId::kEcK, CodecId::kEcX}) {
      Compare(batch_case::MakeLevelsCase(random, codec, kTokens[i % 4]), static_cast<uint64_t>(i), &seen);
      if (HasFatalFailure()) return;
    }
  }
  for (uint32_t log_bands = 0; log_bands <= 2; ++log_bands) EXPECT_GT(seen.levels[log_bands], rounds / 4) << log_bands;
}

TEST(SimtBatchTest, GoldenRecordsDecodeAndExactOnesComeOutAgain) {
  std::map<uint64_t, std::shared_ptr<const Artifact>> artifacts;
  for (const char* name : {"layer-of-2x16.kva1", "layer-of-2x16-levels.kva1", "two-layers-of-2x16-two-ropes.kva1"}) {
    std::ifstream file(std::string(TIERCEL_SOURCE_DIR "/tests/kernels/golden/") + name, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const auto artifact = Artifact::Parse(AsBytes(bytes));
    ASSERT_TRUE(artifact && UseArtifact(*artifact));
    artifacts[(*artifact)->id()] = *artifact;
  }
  int decoded = 0, with_artifact = 0;
  for (const auto& golden : std::filesystem::directory_iterator(TIERCEL_SOURCE_DIR "/tests/kernels/golden")) {
    SCOPED_TRACE(golden.path().filename());
    std::ifstream in(golden.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const ByteSpan record = AsBytes(text);
    const auto view = ParseRecord(record);
    if (!view || view->layout.opaque()) continue;
    Case c;
    c.spec.layout = view->layout;
    c.spec.scope = view->scope;
    c.spec.quality = view->quality;
    c.spec.layer_begin = view->layer_begin;
    c.spec.layer_end = view->layer_end;
    c.pos0 = {view->pos0};
    c.kv.n_pages = 1;
    c.kv.tokens_per_page = view->layout.tokens_per_block;
    c.pages = {0};
    const KvLayout& l = view->layout;
    const bool split = l.packing == KvPacking::kSplit;
    c.cache.assign(l.block_bytes() + 64 * 2 * l.layers, std::byte{0x77});
    std::byte* at = c.cache.data();
    for (uint32_t i = 0; i < l.layers * (split ? 2 : 1); ++i) {
      const uint32_t dim = split ? (i < l.layers ? l.head_dim_k : l.head_dim_v) : l.head_dim_k + l.head_dim_v;
      (i < l.layers ? c.kv.k : c.kv.v).push_back(PagedKv::Dense(at, l, AxisOrder::kTokenHeadDim, dim, 1, l.tokens_per_block));
      at += ((i < l.layers ? c.kv.k : c.kv.v).back().bytes + 63) / 64 * 64;
    }
    const bool exact = !view->lossy;
    c.codec = exact ? view->codec : CodecId::kRaw;
    Batch batch(c);
    if (record.size() > batch.plan.max_record_bytes) continue;
    batch.Put(0, record);
    if (view->artifact_id != 0) {
      batch.Decode();
      ASSERT_EQ(batch.results[0].code, gpu::BlockCode::kArtifact) << Name(batch.results[0].code);
      batch.Give(*artifacts.at(view->artifact_id));
      ++with_artifact;
    }
    const std::vector<std::byte> cache = batch.Decode();
    ASSERT_EQ(batch.results[0].code, gpu::BlockCode::kOk) << Name(batch.results[0].code);
    std::vector<std::byte> want(c.cache.size(), std::byte{0x77});
    ASSERT_TRUE(DecodeOnCpu(c, 0, record, want));
    ASSERT_EQ(cache, want);
    ++decoded;
    if (!exact) continue;
    std::copy(cache.begin(), cache.end(), c.cache.begin());  // In place: the planes lie there.
    Batch again(c);
    again.Encode();
    ASSERT_EQ(again.results[0].bytes, record.size());
    ASSERT_TRUE(std::equal(record.begin(), record.end(), again.pointers[0]));
  }
  for (const auto& [id, artifact] : artifacts) DropArtifact(id);
  EXPECT_GE(decoded, 36);
  EXPECT_GE(with_artifact, 4);
}

TEST(SimtBatchTest, LargeSegmentsHaveManyStreamsAndPieces) {
  SplitMix64 random(22);
  for (int i = 0; i < (Full() ? 200 : 2); ++i) {
    for (const CodecId codec : batch_case::kCodecs) {
      if (codec != CodecId::kLle && codec != CodecId::kEcC && !Full()) continue;
      Case c = MakeCase(random, {120000, 1, 1}, codec);
      const bool klt = codec == CodecId::kEcK || codec == CodecId::kEcX;  // Of few heads and small ones.
      while (!klt && (c.spec.layout.k_plane_bytes() < 80000 || !FindCodec(codec)->Supports(record_head::ShapeOf(c.spec.layout, 0, 0, 0)))) {
        c = MakeCase(random, {120000, 1, 1}, codec);
      }
      Compare(c, static_cast<uint64_t>(i));
      if (HasFatalFailure()) return;
    }
  }
}

// A record whose checksums are true again after something was changed.
void Reseal(std::vector<std::byte>& record, size_t changed) {
  const auto view = ParseRecord(record);
  TIERCEL_CHECK(view.has_value());
  for (uint32_t i = 0; i < view->n_segments; ++i) {
    const SegmentInfo segment = view->segment(i);
    if (changed < segment.offset || changed >= segment.offset + segment.bytes) continue;
    StoreLe(record.data() + view->directory_offset + i * kRecordEntryBytes + record_head::kEntryCrc,
            Crc32c(ByteSpan(record).subspan(segment.offset, segment.bytes)));
  }
  StoreLe(record.data() + record_head::kCrc, record_head::HeadCrc(ByteSpan(record).first(view->head_bytes)));
}

TEST(SimtBatchTest, AMalformedRecordIsSaidOrDecodesToTheSame) {
  SplitMix64 random(23);
  std::map<gpu::BlockCode, int> seen;
  for (int i = 0; i < (Full() ? 20000 : 400); ++i) {
    const Case c = MakeCase(random, {1500, 2, 1}, batch_case::kCodecs[i % std::size(batch_case::kCodecs)]);
    SCOPED_TRACE(c.ToString());
    std::vector<std::byte> record = RecordOf(c, 0);
    const size_t head = ParseRecord(record)->head_bytes;
    Batch batch(c);
    bool shorter = false;
    if (random.Below(8) == 0) {  // Another length.
      shorter = true;
      record.resize(random.Below(record.size()));
    } else if (random.Below(4) == 0) {  // Anything, as it is.
      record[random.Below(record.size())] ^= static_cast<std::byte>(1u << random.Below(8));
    } else {  // A segment whose checksums are true; its lists and headers more often than its planes.
      const size_t body = record.size() - head;
      const size_t at = head + (random.Below(2) == 0 ? random.Below(std::min<size_t>(body, 96)) : random.Below(body));
      record[at] ^= static_cast<std::byte>(1u << random.Below(8));
      Reseal(record, at);
    }
    batch.Put(0, record);
    std::vector<std::byte> cache(c.cache.size(), std::byte{0x77});
    const bool good = DecodeOnCpu(c, 0, record, cache);
    const std::vector<std::byte> decoded = batch.Decode();
    const bool ours = batch.results[0].code == gpu::BlockCode::kOk;
    ++seen[batch.results[0].code];
    // Padding that is not zero is the CPU's to say.
    if (good) {
      ASSERT_TRUE(ours) << Name(batch.results[0].code);
    }
    if (ours && good) {
      ASSERT_EQ(decoded, cache);
    } else if (ours) {
      ASSERT_FALSE(shorter);
      const std::vector<std::byte> first = RecordOf(c, 0);
      std::vector<std::byte> want(c.cache.size(), std::byte{0x77});
      ASSERT_TRUE(DecodeOnCpu(c, 0, first, want));
      ASSERT_EQ(decoded, want);
    }
    if (HasFatalFailure()) return;
  }
  for (const auto code : {gpu::BlockCode::kHead, gpu::BlockCode::kChecksum, gpu::BlockCode::kSegment, gpu::BlockCode::kDigest}) {
    EXPECT_GT(seen[code], 0) << Name(code);
  }
}

TEST(SimtBatchTest, ABlockThatCannotBeIsSaidAndTheOthersGoOn) {
  SplitMix64 random(24);
  Case c = MakeCase(random, {1500, 1, 3}, CodecId::kLlf);
  while (c.blocks != 3) c = MakeCase(random, {1500, 1, 3}, CodecId::kLlf);
  Case bad = c;
  bad.kv = c.KvIn(bad.cache.data());
  bad.pages[c.pages_a_block] = c.kv.n_pages;
  Batch batch(bad);
  batch.pointers[2] += 32;
  batch.Encode();
  EXPECT_EQ(batch.results[0].code, gpu::BlockCode::kOk);
  EXPECT_EQ(batch.results[1].code, gpu::BlockCode::kPage);
  EXPECT_EQ(batch.results[2].code, gpu::BlockCode::kPointer);
  EXPECT_EQ(batch.pointers[1][0], std::byte{0xee});

  // A record of another layout.
  const std::vector<std::byte> record = RecordOf(c, 0);
  bad.pages = c.pages;
  batch.pointers[2] -= 32;
  for (uint32_t i = 0; i < 3; ++i) batch.Put(i, record);
  batch.pointers[1][record_head::kRank] ^= std::byte{1};
  batch.sizes[2] += 64;
  batch.Decode();
  EXPECT_EQ(batch.results[0].code, gpu::BlockCode::kOk);
  EXPECT_EQ(batch.results[1].code, gpu::BlockCode::kLayout);
  EXPECT_EQ(batch.results[2].code, gpu::BlockCode::kHead);
}

TEST(SimtBatchTest, APlanSaysWhatDoesNotFit) {
  SplitMix64 random(25);
  const Case c = MakeCase(random, {}, CodecId::kRaw);
  EXPECT_EQ(gpu::PlanBatch(c.spec, CodecId::kTq, c.kv).error().code, Code::kUnimplemented);
  EXPECT_EQ(gpu::PlanBatch(c.spec, CodecId::kEcK, c.kv).error().code, Code::kInvalidArgument);
  PagedKv other = c.kv;
  other.n_pages = 0;
  EXPECT_EQ(gpu::PlanBatch(c.spec, c.codec, other).error().code, Code::kInvalidArgument);
  other = c.kv;
  other.k[0].bytes = 0;
  EXPECT_EQ(gpu::PlanBatch(c.spec, c.codec, other).error().code, Code::kInvalidArgument);
  RecordSpec opaque;
  EXPECT_EQ(gpu::PlanBatch(opaque, c.codec, c.kv).error().code, Code::kInvalidArgument);

  Batch batch(c);
  Aligned scratch(batch.plan.encode_scratch_bytes(c.blocks));
  gpu::BatchBlocks blocks = batch.Blocks(scratch.span());
  EXPECT_TRUE(gpu::ArgsOf(batch.plan, blocks, false).has_value());
  blocks.scratch = scratch.span().first(scratch.span().size() - 1);
  EXPECT_EQ(gpu::ArgsOf(batch.plan, blocks, false).error().code, Code::kInvalidArgument);
  blocks = batch.Blocks(scratch.span());
  blocks.results = nullptr;
  EXPECT_EQ(gpu::ArgsOf(batch.plan, blocks, false).error().code, Code::kInvalidArgument);
  blocks = batch.Blocks(scratch.span());
  blocks.count = batch.plan.max_blocks() + 1;
  EXPECT_EQ(gpu::ArgsOf(batch.plan, blocks, false).error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace tiercel
