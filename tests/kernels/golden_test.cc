// Records of fixed blocks, byte for byte as every build must write and read them. After a wanted
// change of the format: TIERCEL_REGENERATE=1 kernels_golden_test, and say so in the changelog.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "kernels/artifact.h"
#include "kernels/record.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/column_codecs_testing.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

struct Golden {
  std::string name;
  KvLayout layout;
  CodecId codec;
  const EncodeOptions* options = nullptr;
};

RecordSpec SpecOf(const Golden& golden) {
  RecordSpec spec = SpecOf(golden.layout);
  spec.options = golden.options;
  return spec;
}

// Lossy records: their decoded bytes are fixed by the digest they hold.
bool Lossy(const Golden& golden) { return FindCodec(golden.codec)->lossy(); }

const EncodeOptions* RopedOptions() {
  static constexpr uint64_t kFrequencies[] = {
      0x28be60db9391054a, 0x0ce1a8c30ab0a3d7, 0x0412bf4a64d41a2b, 0x014997c5a20e5e92};
  static constexpr float kScales[] = {1, 0.5f, 2, 0.25f};  // One layer; K then V of two heads.
  static const EncodeOptions options = [] {
    EncodeOptions o;
    o.quality = QualityClass::kHigh;
    o.step = 0.125f;
    o.scales = kScales;
    o.exact_tokens = 4100;  // The golden blocks start at 4096.
    o.rope = {RopeStyle::kHalves, 0, 8, kFrequencies};
    return o;
  }();
  return &options;
}

std::vector<std::byte> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const ByteSpan bytes = AsBytes(text);
  return {bytes.begin(), bytes.end()};
}

// Made once: their numbers went through libm.
std::shared_ptr<const Artifact> KeptArtifact(const std::string& name, const ArtifactShape& shape) {
  const std::string path = fmt::format("{}/tests/kernels/golden/{}.kva1", TIERCEL_SOURCE_DIR, name);
  auto bytes = ReadFile(path);
  if (bytes.empty() && std::getenv("TIERCEL_REGENERATE") != nullptr) {
    bytes = ArtifactWriter(shape).Finish();
    std::ofstream(path, std::ios::binary) << AsText(bytes);
  }
  auto parsed = Artifact::Parse(bytes);
  EXPECT_TRUE(parsed) << parsed.error().message;
  EXPECT_TRUE(UseArtifact(*parsed));
  return *parsed;
}

// One layer of two heads of 16, of which 8 dims turn; with levels, one that foretells them.
const Artifact* GoldenArtifact(bool levels) {
  static std::array<std::shared_ptr<const Artifact>, 2> all;
  auto& artifact = all[levels ? 1 : 0];
  if (artifact == nullptr) {
    ArtifactShape shape;
    shape.layers = 1;
    shape.dim_k = shape.dim_v = 16;
    shape.rope_dims = 8;
    shape.levels = levels;
    artifact = KeptArtifact(levels ? "layer-of-2x16-levels" : "layer-of-2x16", shape);
  }
  return artifact.get();
}

const EncodeOptions* TransformOptions(QualityClass quality, bool levels) {
  static std::array<std::array<EncodeOptions, 5>, 2> all;
  EncodeOptions& options = all[levels ? 1 : 0][static_cast<size_t>(quality)];
  options.quality = quality;
  options.artifact = GoldenArtifact(levels);
  options.exact_tokens = quality == QualityClass::kNear ? 4098 : 0;  // The golden blocks start at 4096.
  return &options;
}

// Two layers, the second with a rotation of its own.
const EncodeOptions* TwoRopesOptions() {
  static EncodeOptions options;
  static std::shared_ptr<const Artifact> artifact;
  if (artifact == nullptr) {
    ArtifactShape shape;
    shape.dim_k = shape.dim_v = 16;
    shape.rope_dims = 8;
    shape.levels = true;
    shape.own_ropes = 1;
    artifact = KeptArtifact("two-layers-of-2x16-two-ropes", shape);
    options.quality = QualityClass::kBalanced;
    options.artifact = artifact.get();
  }
  return &options;
}

std::vector<Golden> Goldens() {
  std::vector<Golden> all;
  const char* const orders[] = {"token-head-dim", "head-token-dim", "head-dim-token"};
  for (const auto& [dtype, name, tokens] :
       {std::tuple{Dtype::kBf16, "bf16", 8u}, {Dtype::kFp16, "fp16", 128u}}) {
    for (uint32_t order = 0; order < 3; ++order) {
      KvLayout layout =
          SmallLayout(dtype, static_cast<AxisOrder>(order), KvPacking::kSplit, 1);
      layout.tokens_per_block = tokens;
      all.push_back({fmt::format("{}-{}-llf", name, orders[order]), layout, CodecId::kLlf});
      layout.tokens_per_block = 8;
      all.push_back({fmt::format("{}-{}-raw", name, orders[order]), layout, CodecId::kRaw});
    }
  }
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kLatent, 2);
  layout.tokens_per_block = 32;
  layout.rank = 1;
  layout.world = 2;
  layout.engine = "engine";
  layout.isa = "isa";
  all.push_back({"bf16-latent-llf", layout, CodecId::kLlf});
  layout = SmallLayout(Dtype::kBf16, AxisOrder::kHeadTokenDim, KvPacking::kInterleaved, 2);
  all.push_back({"bf16-interleaved-llf", layout, CodecId::kLlf});
  all.push_back({"opaque-raw", KvLayout::Opaque(), CodecId::kRaw});
  // Tokens that fill rows, that do not, and that share them.
  for (const auto& [order, tokens] : {std::pair{0u, 64u}, {1u, 48u}, {2u, 16u}}) {
    layout = SmallLayout(Dtype::kBf16, static_cast<AxisOrder>(order), KvPacking::kSplit, 1);
    layout.tokens_per_block = tokens;
    all.push_back({fmt::format("bf16-{}-lle", orders[order]), layout, CodecId::kLle});
  }
  for (const auto& [order, tokens] : {std::pair{0u, 64u}, {1u, 48u}, {2u, 16u}}) {
    layout = SmallLayout(Dtype::kBf16, static_cast<AxisOrder>(order), KvPacking::kSplit, 1);
    layout.tokens_per_block = tokens;
    all.push_back({fmt::format("bf16-{}-ec-c", orders[order]), layout, CodecId::kEcC});
  }
  layout = SmallLayout(Dtype::kFp16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
  layout.tokens_per_block = 40;
  all.push_back({"fp16-token-head-dim-ec-c-roped", layout, CodecId::kEcC, RopedOptions()});
  layout = SmallLayout(Dtype::kBf16, AxisOrder::kHeadTokenDim, KvPacking::kInterleaved, 1);
  layout.tokens_per_block = 32;
  all.push_back({"bf16-interleaved-ec-c-roped", layout, CodecId::kEcC, RopedOptions()});
  for (const auto& [dtype, name] :
       {std::pair{Dtype::kFp16, "fp16"}, {Dtype::kFp32, "fp32"}, {Dtype::kFp8E4m3, "e4m3"},
        {Dtype::kFp8E5m2, "e5m2"}}) {
    layout = SmallLayout(dtype, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
    layout.tokens_per_block = 40;
    all.push_back({fmt::format("{}-token-head-dim-lle", name), layout, CodecId::kLle});
  }
  for (const auto& [id, name] :
       {std::pair{CodecId::kI8, "i8"}, {CodecId::kF8, "f8"}, {CodecId::kI4h, "i4h"}, {CodecId::kI8e, "i8e"}}) {
    for (uint32_t order = 0; order < 3; ++order) {
      // Keys in two groups of tokens of unequal length, and of some that are bounded by token.
      layout = SmallLayout(order == 1 ? Dtype::kFp16 : Dtype::kBf16, static_cast<AxisOrder>(order),
                           KvPacking::kSplit, 1);
      layout.tokens_per_block = order == 1 ? 16 : 67;
      all.push_back({fmt::format("{}-{}-{}", order == 1 ? "fp16" : "bf16", orders[order], name),
                     layout, id});
    }
    layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kLatent, 1);
    layout.head_dim_k = 96;
    layout.tokens_per_block = 32;
    all.push_back({fmt::format("bf16-latent-{}", name), layout, id});
  }
  for (const auto& [id, name] : {std::pair{CodecId::kEcK, "ec-k"}, {CodecId::kEcX, "ec-x"}}) {
    for (const auto& [order, tokens] : {std::pair{0u, 64u}, {1u, 48u}, {2u, 16u}}) {
      const Dtype dtype = order == 1 ? Dtype::kFp16 : Dtype::kBf16;
      layout = SmallLayout(dtype, static_cast<AxisOrder>(order), KvPacking::kSplit, 1);
      layout.tokens_per_block = tokens;
      const auto quality = static_cast<QualityClass>(order == 0 ? 1 : 2 + order);
      all.push_back({fmt::format("{}-{}-{}", order == 1 ? "fp16" : "bf16", orders[order], name), layout, id,
                     TransformOptions(quality, false)});
    }
  }
  // Levels in four bands, with exact tokens; in two; in one.
  for (const auto& [id, name] : {std::pair{CodecId::kEcC, "ec-c"}, {CodecId::kEcK, "ec-k"}, {CodecId::kEcX, "ec-x"}}) {
    for (const auto& [order, tokens] : {std::pair{0u, 128u}, {1u, 64u}, {2u, 40u}}) {
      const Dtype dtype = order == 1 ? Dtype::kFp16 : Dtype::kBf16;
      layout = SmallLayout(dtype, static_cast<AxisOrder>(order), KvPacking::kSplit, 1);
      layout.tokens_per_block = tokens;
      const auto quality = static_cast<QualityClass>(order == 0 ? 1 : 2 + order);
      all.push_back({fmt::format("{}-{}-{}-levels", order == 1 ? "fp16" : "bf16", orders[order], name), layout, id,
                     TransformOptions(quality, true)});
    }
    layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
    layout.tokens_per_block = 64;
    all.push_back({fmt::format("bf16-two-ropes-{}-levels", name), layout, id, TwoRopesOptions()});
  }
  return all;
}

std::vector<std::byte> BlockOf(const Golden& golden) {
  if (golden.layout.opaque()) return RandomBytes(100, 1);
  const Dtype dtype = golden.layout.dtype;
  if (dtype != Dtype::kBf16 && dtype != Dtype::kFp16) {
    const uint64_t size = DtypeBytes(dtype);
    std::vector<std::byte> block(golden.layout.block_bytes());
    const auto from = KvLikeBytes(Dtype::kBf16, block.size() / size * 2, 42);
    for (uint64_t i = 0; i < block.size() / size; ++i) {
      const auto value = std::bit_cast<float>(uint32_t{LoadLe<uint16_t>(from.data() + 2 * i)} << 16);
      const uint64_t bits = FloatBits(dtype, value);
      std::memcpy(block.data() + i * size, &bits, size);
    }
    return block;
  }
  auto block = KvLikeBytes(dtype, golden.layout.block_bytes(), 42);
  // One of each kind that a lossy mind would mend: -0, a denormal, infinity, NaNs with payloads.
  const uint16_t odd[] = {0x8000, 0x0001, 0x7f80, 0x7c00, 0xffc1, 0x7fff};
  const size_t n_odd = Lossy(golden) ? 2 : std::size(odd);  // Lossy codecs decline infinities.
  for (size_t i = 0; i < n_odd; ++i) StoreLe(block.data() + 34 * i, odd[i]);
  return block;
}

std::string PathOf(const Golden& golden) {
  return std::string(TIERCEL_SOURCE_DIR) + "/tests/kernels/golden/" + golden.name + ".kvb1";
}

TEST(GoldenTest, EveryIsaWritesAndReadsTheGoldenRecords) {
  for (const Golden& golden : Goldens()) {
    const auto block = BlockOf(golden);
    if (std::getenv("TIERCEL_REGENERATE") != nullptr) {
      const auto bytes = Encoded(SpecOf(golden), golden.codec, block);
      ASSERT_TRUE(bytes) << bytes.error().message;
      std::ofstream(PathOf(golden), std::ios::binary) << AsText(*bytes);
    }
    const auto bytes = ReadFile(PathOf(golden));
    ASSERT_FALSE(bytes.empty()) << PathOf(golden);
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const auto written = Encoded(SpecOf(golden), golden.codec, block);
      ASSERT_TRUE(written);
      EXPECT_TRUE(*written == bytes) << golden.name << " " << Name(isa);
      const auto record = ParseRecord(bytes);
      ASSERT_TRUE(record) << golden.name << ": " << record.error().message;
      EXPECT_TRUE(VerifyRecord(*record));
      EXPECT_EQ(record->segment(0).codec, golden.codec) << golden.name;
      if (golden.name.ends_with("-levels")) {
        EXPECT_EQ(record->segment_bytes(record->segment(0))[0], std::byte{2}) << golden.name;
      }
      std::vector<std::byte> out(block.size());
      EXPECT_TRUE(DecodeRecord(*record, golden.layout, out));
      if (Lossy(golden)) {
        EXPECT_FALSE(out == block) << golden.name;
      } else {
        EXPECT_TRUE(out == block) << golden.name << " " << Name(isa);
      }
    }
  }
}

std::string HexDump(ByteSpan bytes) {
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 16) {
    text += fmt::format("{:04x} ", at);
    for (size_t i = at; i < at + 16; i += 4) text += " " + ToHex(bytes.subspan(i, 4));
    text += "\n";
  }
  return text;
}

TEST(GoldenTest, TheDocumentsExampleIsWhatTheEncoderWrites) {
  RecordSpec spec = SpecOf(KvLayout::Opaque());
  spec.pos0 = 0;
  const auto bytes = Encoded(spec, CodecId::kRaw, AsBytes("Tiercel block one."));
  ASSERT_TRUE(bytes);
  const std::string dump = HexDump(*bytes);
  const auto document = ReadFile(std::string(TIERCEL_SOURCE_DIR) + "/docs/block-format.md");
  EXPECT_NE(AsText(document).find(dump), std::string_view::npos)
      << "docs/block-format.md should hold:\n"
      << dump;
}

}  // namespace
}  // namespace tiercel
