// Which codec codes what: every codec with every dtype, order of axes and packing, on every ISA. What a
// codec does not code is stored RAW, in a record no longer than RAW's own.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

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
    {CodecId::kEcX, "++....", false, false},
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

std::vector<std::byte> BlockOf(const KvLayout& layout) {
  std::vector<std::byte> block(layout.block_bytes());
  if (layout.dtype == Dtype::kInt8) return RandomBytes(block.size(), 5);
  SplitMix64 random(5);
  const uint32_t size = DtypeBytes(layout.dtype);
  for (size_t at = 0; at < block.size(); at += size) {
    const uint64_t bits = FloatBits(layout.dtype, static_cast<float>(NormalSample(random)));
    std::memcpy(block.data() + at, &bits, size);
  }
  return block;
}

void Check(const Support& support, const KvLayout& layout, const std::string& name) {
  SCOPED_TRACE(name);
  const bool coded = support.dtypes[static_cast<size_t>(layout.dtype) - 1] == '+' &&
                     (support.all_packings || layout.packing == KvPacking::kSplit);
  const Codec& codec = *FindCodec(support.codec);
  EncodeOptions options;
  if (codec.needs_artifact()) options.artifact = ArtifactOf(layout);
  RecordSpec spec = SpecOf(layout);
  spec.options = &options;
  const auto block = BlockOf(layout);
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
    ASSERT_LE(bytes->size(), raw->size());
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    for (uint32_t i = 0; i < record->n_segments; ++i) {
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

}  // namespace
}  // namespace tiercel
