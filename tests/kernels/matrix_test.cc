// Which codec codes what: every codec with every dtype, order of axes and packing, on every ISA. What a
// codec does not code is stored RAW, in a record no longer than RAW's own. Random shapes through the CUDA
// source: tests/simt.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <numbers>

#include "kernels/artifact.h"
#include "kernels/record.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {
namespace {

struct Support {
  CodecId codec;
  const char* dtypes;  // Coded (+) or stored RAW (.): bf16 fp16 fp32 e4m3 e5m2 int8.
  bool all_packings;   // Else split ones only.
  bool idempotent;     // What was decoded is coded to the same bytes.
};
constexpr Support kMatrix[] = {
    {CodecId::kRaw, "......", true, true},   {CodecId::kLlf, "++....", true, true},
    {CodecId::kLle, "+++++.", true, true},   {CodecId::kF8, "++....", true, true},
    {CodecId::kI8, "++....", true, true},    {CodecId::kI4h, "++....", true, false},
    {CodecId::kEcC, "++....", true, false},  {CodecId::kEcK, "++....", false, false},
    {CodecId::kEcX, "++....", false, false}, {CodecId::kI8e, "++....", true, true},
};

const Artifact* ArtifactOf(const KvLayout& layout) {
  static std::map<std::array<uint32_t, 4>, std::shared_ptr<const Artifact>> made;
  auto& artifact = made[{layout.layers, layout.kv_heads, layout.head_dim_k, layout.head_dim_v}];
  if (artifact == nullptr) {
    ArtifactShape shape;
    shape.layers = static_cast<uint16_t>(layout.layers);
    shape.heads = static_cast<uint16_t>(layout.kv_heads);
    shape.dim_k = static_cast<uint16_t>(layout.head_dim_k);
    shape.dim_v = static_cast<uint16_t>(layout.head_dim_v);
    shape.rope_dims = 16;
    auto parsed = Artifact::Parse(ArtifactWriter(shape).Finish());
    EXPECT_TRUE(parsed) << parsed.error().message;
    EXPECT_TRUE(UseArtifact(*parsed));
    artifact = *parsed;
  }
  return artifact.get();
}

std::vector<std::byte> BlockOf(const KvLayout& layout, uint64_t seed) {
  std::vector<std::byte> block(layout.block_bytes());
  if (layout.dtype == Dtype::kInt8) return RandomBytes(block.size(), seed);
  SplitMix64 random(seed);
  const uint32_t size = DtypeBytes(layout.dtype);
  for (size_t at = 0; at < block.size(); at += size) {
    const uint64_t bits = FloatBits(layout.dtype, static_cast<float>(NormalSample(random)));
    std::memcpy(block.data() + at, &bits, size);
  }
  return block;
}

// declined: counts the segments that could be coded and, small as they are, were not worth it; null: there is none.
void Check(const Support& support, const KvLayout& layout, const std::string& name, EncodeOptions options = {}, uint64_t pos0 = 4096,
           uint64_t seed = 5, int* declined = nullptr) {
  SCOPED_TRACE(name);
  const bool coded = support.dtypes[static_cast<size_t>(layout.dtype) - 1] == '+' &&
                     (support.all_packings || layout.packing == KvPacking::kSplit);
  const Codec& codec = *FindCodec(support.codec);
  if (codec.needs_artifact() && options.artifact == nullptr) options.artifact = ArtifactOf(layout);
  RecordSpec spec = SpecOf(layout);
  spec.options = &options;
  spec.pos0 = pos0;
  const auto block = BlockOf(layout, seed);
  const auto raw = Encoded(spec, CodecId::kRaw, block);
  std::vector<std::byte> reference;
  std::vector<std::byte> decoded;
  for (const KernelIsa isa : kAllIsas) {
    const ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    SCOPED_TRACE(Name(isa));
    const auto bytes = Encoded(spec, support.codec, block);
    ASSERT_TRUE(bytes) << bytes.error().message;
    if (isa == KernelIsa::kScalar) reference = *bytes;
    ASSERT_TRUE(*bytes == reference);
    // The header of EC-C tells the rotation.
    ASSERT_LE(bytes->size(), raw->size() + (options.rope.dims != 0 ? 64 + 4 * options.rope.dims : 0));
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    for (uint32_t i = 0; i < record->n_segments; ++i) {
      if (declined != nullptr && coded && record->segment(i).codec == CodecId::kRaw) {
        ++*declined;
        continue;
      }
      ASSERT_EQ(Name(record->segment(i).codec), Name(coded ? support.codec : CodecId::kRaw)) << "segment " << i;
    }
    std::vector<std::byte> out(block.size());
    const Status good = DecodeRecord(*record, layout, out);
    ASSERT_TRUE(good) << good.error().message;
    if (isa == KernelIsa::kScalar) decoded = out;
    ASSERT_TRUE(out == decoded);
    if (!coded || !codec.lossy()) { ASSERT_TRUE(out == block); }
    if (support.idempotent) {
      const auto again = Encoded(spec, support.codec, out);
      ASSERT_TRUE(again && *again == *bytes);
    }
  }
}

TEST(MatrixTest, EveryCodecDtypePackingAndOrder) {
  constexpr const char* kPackings[] = {"split", "interleaved", "latent"};
  constexpr const char* kOrders[] = {"token-head-dim", "head-token-dim", "head-dim-token"};
  for (const Support& support : kMatrix) {
    for (uint8_t dtype = 1; dtype <= 6; ++dtype) {
      for (uint8_t packing = 0; packing < 3; ++packing) {
        for (uint8_t order = 0; order < 3; ++order) {
          KvLayout layout = SmallLayout(static_cast<Dtype>(dtype), static_cast<AxisOrder>(order), static_cast<KvPacking>(packing), 1);
          layout.tokens_per_block = 70;
          layout.head_dim_k = 32;
          if (layout.packing != KvPacking::kLatent) layout.head_dim_v = 48;
          ASSERT_NO_FATAL_FAILURE(Check(support, layout,
                                        fmt::format("{}, dtype {}, {}, {}", Name(support.codec), dtype, kPackings[packing], kOrders[order])));
        }
      }
    }
  }
}

TEST(MatrixTest, EveryHeadDimAndBlockLength) {
  for (const Support& support : kMatrix) {
    for (const uint32_t dim : {64u, 96u, 128u, 192u, 256u, 576u}) {
      for (const uint32_t tokens : {16u, 100u, 256u}) {
        KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, dim == 576 ? KvPacking::kLatent : KvPacking::kSplit, 1);
        layout.head_dim_k = dim;
        layout.head_dim_v = dim == 576 ? 0 : dim;
        layout.kv_heads = 1;
        layout.tokens_per_block = tokens;
        ASSERT_NO_FATAL_FAILURE(Check(support, layout, fmt::format("{}, heads of {}, {} tokens", Name(support.codec), dim, tokens)));
      }
    }
  }
}

// ---- Random shapes.

// How models turn their keys: turns a position, of each pair.
enum class Turns { kPlain, kLlama3, kYarn, kPartial };
constexpr const char* kTurns[] = {"plain", "llama3", "yarn", "partial"};

std::vector<uint64_t> FrequenciesOf(Turns turns, uint32_t dims) {
  constexpr double kTwoPi = 2 * std::numbers::pi;
  std::vector<uint64_t> out;
  for (uint32_t i = 0; i < dims / 2; ++i) {
    const double base = turns == Turns::kLlama3 ? 500000 : 10000;
    double turn = std::pow(base, -2.0 * i / dims) / kTwoPi;
    if (turns == Turns::kLlama3) {  // Slow pairs by 8, fast ones as they are, in between some of both.
      const double smooth = std::clamp((8192 * turn - 1) / (4 - 1), 0.0, 1.0);
      turn = (1 - smooth) * turn / 8 + smooth * turn;
    } else if (turns == Turns::kYarn) {  // The same by a ramp over the pairs.
      const auto pair_of = [&](double rounds) { return dims * std::log(4096 / (rounds * kTwoPi)) / (2 * std::log(base)); };
      const double low = std::max(std::floor(pair_of(32)), 0.0);
      const double high = std::min(std::ceil(pair_of(1)), dims - 1.0);
      const double ramp = std::clamp((i - low) / std::max(high - low, 0.001), 0.0, 1.0);
      turn = ramp * turn / 16 + (1 - ramp) * turn;
    }
    out.push_back(static_cast<uint64_t>(turn * 0x1p64));
  }
  return out;
}

// An artifact of one layer, of a shape and rotation; kept.
const Artifact* RandomArtifact(const KvLayout& layout, Turns turns, RopeStyle style) {
  static std::map<std::array<uint32_t, 4>, std::shared_ptr<const Artifact>> made;
  auto& artifact = made[{layout.kv_heads, layout.head_dim_k, static_cast<uint32_t>(turns), static_cast<uint32_t>(style)}];
  if (artifact != nullptr) return artifact.get();
  ArtifactShape shape;
  shape.layers = 1;
  shape.heads = static_cast<uint16_t>(layout.kv_heads);
  shape.dim_k = shape.dim_v = static_cast<uint16_t>(layout.head_dim_k);
  shape.rope_dims = static_cast<uint16_t>(turns == Turns::kPartial ? layout.head_dim_k / 4 * 2 : layout.head_dim_k);
  shape.style = style;
  shape.frequencies = FrequenciesOf(turns, shape.rope_dims);
  shape.levels = static_cast<uint32_t>(turns) % 2 == 1;
  shape.own_ropes = style == RopeStyle::kNeighbours ? 1 : 0;
  artifact = *Artifact::Parse(ArtifactWriter(shape, made.size()).Finish());
  EXPECT_TRUE(UseArtifact(artifact));
  return artifact.get();
}

TEST(MatrixTest, RandomShapesAreTheSameOnEveryIsaAndComeBack) {
  const bool full = std::getenv("TIERCEL_FULL") != nullptr;
  SplitMix64 random(40);
  std::map<std::string, int> seen;
  int declined = 0;
  const uint32_t rounds = full ? 10'080 : 240;
  for (uint32_t round = 0; round < rounds; ++round) {
    const Support& support = kMatrix[round % std::size(kMatrix)];
    const bool klt = FindCodec(support.codec)->needs_artifact();
    KvLayout layout;
    layout.layers = 1;
    layout.dtype = static_cast<Dtype>(random.Below(2) == 0 ? 1 + random.Below(2) : 1 + random.Below(6));
    layout.packing = static_cast<KvPacking>(klt ? 0 : random.Below(3));
    const bool latent = layout.packing == KvPacking::kLatent;
    constexpr uint32_t kDims[] = {64, 96, 128, 192, 256};
    // Large transforms take long to make up.
    layout.head_dim_k = latent ? 576 : kDims[random.Below(klt ? (full ? 4 : 2) : 5)];
    layout.head_dim_v = latent ? 0 : klt || random.Below(3) != 0 ? layout.head_dim_k : kDims[random.Below(5)];
    layout.kv_heads = static_cast<uint32_t>(latent ? 1 : 1 + random.Below(klt && layout.head_dim_k > 96 ? 1 : 2));
    layout.tokens_per_block = static_cast<uint32_t>(random.Below(3) != 0 ? 16u << random.Below(5) : 16 + random.Below(241));
    layout.k_order = static_cast<AxisOrder>(random.Below(3));
    layout.v_order = layout.packing == KvPacking::kSplit ? static_cast<AxisOrder>(random.Below(3)) : layout.k_order;
    const auto turns = static_cast<Turns>(random.Below(4));
    const auto style = static_cast<RopeStyle>(random.Below(2));
    EncodeOptions options;
    options.quality = static_cast<QualityClass>(1 + random.Below(4));
    options.exact_tokens = static_cast<uint32_t>(random.Below(5));  // Of 16 tokens, more would leave too little.
    std::vector<uint64_t> frequencies;
    if (klt) {
      options.artifact = RandomArtifact(layout, turns, style);
    } else if (support.codec == CodecId::kEcC) {
      const uint32_t dims = latent ? 64 : turns == Turns::kPartial ? layout.head_dim_k / 4 * 2 : layout.head_dim_k;
      frequencies = FrequenciesOf(turns, dims);
      options.rope = {style, latent ? 512u : 0u, dims, frequencies.data()};
      if (latent) options.latent_dims = 512;
    }
    const uint64_t pos0 = random.Below(2) == 0 ? 0 : random.Next() >> random.Below(60);
    const std::string name =
        fmt::format("{}, dtype {}, packing {}, {} heads of {} and {}, {} tokens, orders {} and {}, {} turns, pos0 {}", Name(support.codec),
                    static_cast<int>(layout.dtype), static_cast<int>(layout.packing), layout.kv_heads, layout.head_dim_k, layout.head_dim_v,
                    layout.tokens_per_block, static_cast<int>(layout.k_order), static_cast<int>(layout.v_order),
                    kTurns[static_cast<size_t>(turns)], pos0);
    ASSERT_NO_FATAL_FAILURE(Check(support, layout, name, options, pos0, round + 1, &declined));
    ++seen[fmt::format("codec {}", Name(support.codec))];
    ++seen[fmt::format("dtype {}", static_cast<int>(layout.dtype))];
    ++seen[fmt::format("packing {}", static_cast<int>(layout.packing))];
    ++seen[fmt::format("order {}", static_cast<int>(layout.k_order))];
    ++seen[fmt::format("dim {}", layout.head_dim_k)];
    if (klt || support.codec == CodecId::kEcC) ++seen[fmt::format("{} turns", kTurns[static_cast<size_t>(turns)])];
  }
  EXPECT_LT(declined, static_cast<int>(rounds / 10)) << "of about five segments a round";
  EXPECT_EQ(seen.size(), std::size(kMatrix) + 6 + 3 + 3 + 6 + 4);
  for (const auto& [what, count] : seen) {
    EXPECT_GE(count, static_cast<int>(rounds / 80)) << what;
    RecordProperty(what, count);
  }
}

}  // namespace
}  // namespace tiercel
