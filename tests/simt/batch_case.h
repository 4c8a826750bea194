// A random cache with some blocks in it, for whoever runs a batch: on the CPU (tests/simt) or on a GPU
// (tests/gpu). All planes lie in one piece of memory, so that it can be moved as a whole.
#ifndef TIERCEL_TESTS_SIMT_BATCH_CASE_H_
#define TIERCEL_TESTS_SIMT_BATCH_CASE_H_

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "kernels/cuda/batch.h"
#include "kernels/paged.h"
#include "kernels/record.h"
#include "tests/kernels/artifact_testing.h"

namespace tiercel::batch_case {

inline constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kLlf, CodecId::kLle, CodecId::kF8, CodecId::kI8,
                                      CodecId::kI4h, CodecId::kEcC, CodecId::kEcK, CodecId::kEcX, CodecId::kI8e};

struct Sizes {
  uint32_t most_values = 3000;  // Of a segment, about.
  uint32_t most_layers = 3;
  uint32_t most_blocks = 3;
};

enum class Fill { kUsual, kZeros, kNoise, kOdd, kWide, kOne };

// Options with all that they point to; an artifact is in use as long.
struct CaseOptions {
  EncodeOptions options;
  std::vector<uint64_t> frequencies;
  std::vector<float> scales;
  std::shared_ptr<const Artifact> artifact;
  CaseOptions() = default;
  CaseOptions(const CaseOptions&) = delete;
  ~CaseOptions() {
    if (artifact != nullptr) DropArtifact(artifact->id());
  }
  void Use(const ArtifactShape& shape, uint64_t seed) {
    auto parsed = Artifact::Parse(ArtifactWriter(shape, seed).Finish());
    TIERCEL_CHECK(parsed.has_value());
    artifact = *parsed;
    TIERCEL_CHECK(UseArtifact(artifact).has_value());
    options.artifact = artifact.get();
  }
};

struct Case {
  RecordSpec spec;
  std::shared_ptr<const CaseOptions> options;  // spec's, where it has some.
  CodecId codec = CodecId::kRaw;
  uint32_t blocks = 1;
  uint32_t pages_a_block = 1;
  PagedKv kv;                    // Its planes lie in cache.
  std::vector<std::byte> cache;
  std::vector<uint32_t> pages;   // [blocks][pages_a_block].
  std::vector<uint64_t> pos0;

  std::span<const uint32_t> PagesOf(uint32_t block) const { return std::span(pages).subspan(block * pages_a_block, pages_a_block); }
  // The same planes in other memory.
  PagedKv KvIn(std::byte* memory) const {
    PagedKv moved = kv;
    for (auto* planes : {&moved.k, &moved.v}) {
      for (PagedPlane& plane : *planes) plane.base = memory + (plane.base - cache.data());
    }
    return moved;
  }
  RecordSpec SpecOf(uint32_t block) const {
    RecordSpec own = spec;
    own.pos0 = pos0[block];
    return own;
  }
  std::string ToString() const {
    const KvLayout& l = spec.layout;
    return std::string(Name(codec)) + ", dtype " + std::to_string(static_cast<int>(l.dtype)) + ", " + std::to_string(l.layers) + " layers, " +
           std::to_string(l.kv_heads) + " heads of " + std::to_string(l.head_dim_k) + " and " + std::to_string(l.head_dim_v) + ", " +
           std::to_string(l.tokens_per_block) + " tokens in " + std::to_string(pages_a_block) + " pages, orders " +
           std::to_string(static_cast<int>(l.k_order)) + " and " + std::to_string(static_cast<int>(l.v_order)) + ", packing " +
           std::to_string(static_cast<int>(l.packing)) + ", " + std::to_string(blocks) + " blocks";
  }
};

// Values of one segment in canonical order.
inline void FillPlane(SplitMix64& random, const SegmentShape& shape, Fill fill, std::byte* out) {
  const uint32_t elem = DtypeBytes(shape.dtype);
  uint32_t mantissa = 7, exponents = 255;
  switch (shape.dtype) {
    case Dtype::kFp16:
      mantissa = 10, exponents = 31;
      break;
    case Dtype::kFp32:
      mantissa = 23;
      break;
    case Dtype::kFp8E4m3:
      mantissa = 3, exponents = 15;
      break;
    case Dtype::kFp8E5m2:
      mantissa = 2, exponents = 31;
      break;
    default:
      break;
  }
  const uint32_t middle = exponents == 255 ? 120 : exponents / 2;
  const uint64_t values = shape.raw_bytes / elem;
  for (uint64_t i = 0; i < values; ++i) {
    const auto noise = static_cast<uint32_t>(random.Next());
    // A channel has a scale of its own, and an exponent is one less half of the time.
    const uint64_t channel = shape.order == AxisOrder::kHeadDimToken ? i / shape.tokens : i % shape.dim;
    auto exponent = static_cast<uint32_t>(middle + Mix64(channel) % 4);
    exponent -= std::min(exponent, static_cast<uint32_t>(__builtin_ctz(static_cast<uint32_t>(random.Next()) | 64u)));
    if (fill == Fill::kWide) exponent = static_cast<uint32_t>(random.Below(exponents == 255 ? 40 : exponents)) + (exponents == 255 ? 100 : 0);
    uint32_t value = (noise & ((1u << mantissa) - 1)) | (exponent & exponents) << mantissa | (noise >> 31) << (8 * elem - 1);
    if (fill == Fill::kZeros) value = 0;
    if (fill == Fill::kOne) value = exponent << mantissa;
    if (fill == Fill::kNoise || (fill == Fill::kOdd && random.Below(150) == 0)) value = static_cast<uint32_t>(random.Next());
    if (fill == Fill::kWide && random.Below(40) == 0) value = 0;
    std::memcpy(out + i * elem, &value, elem);
  }
}

// What EC-C, EC-K and EC-X are asked for.
inline std::shared_ptr<const CaseOptions> MakeOptions(SplitMix64& random, const KvLayout& l, CodecId codec) {
  const auto out = std::make_shared<CaseOptions>();
  EncodeOptions& options = out->options;
  options.quality = static_cast<QualityClass>(random.Below(20) == 0 ? 0 : 1 + random.Below(4));
  if (random.Below(2) == 0) options.step = static_cast<float>(1 + random.Below(7)) * 0x1p-12f * static_cast<float>(1u << random.Below(10));
  constexpr uint32_t kExact[] = {0, 0, 1, 4, 16, 40, 100};
  options.exact_tokens = kExact[random.Below(7)];
  const bool split = l.packing == KvPacking::kSplit;
  const bool needed = codec != CodecId::kEcC;
  const uint32_t dim = l.packing == KvPacking::kLatent ? l.head_dim_k + l.head_dim_v : l.head_dim_k;
  if (needed || (split && random.Below(3) == 0)) {
    ArtifactShape shape;
    shape.layers = static_cast<uint16_t>(l.layers);
    shape.heads = static_cast<uint16_t>(l.kv_heads * l.world);
    shape.dim_k = static_cast<uint16_t>(l.head_dim_k);
    shape.dim_v = static_cast<uint16_t>(l.head_dim_v);
    shape.rope_dims = static_cast<uint16_t>(2 * random.Below(l.head_dim_k / 2 + 1));
    shape.style = static_cast<RopeStyle>(random.Below(2));
    shape.own_ropes = static_cast<uint16_t>(random.Below(2) == 0 ? 0 : random.Below(l.layers + 1));
    shape.transforms = needed;
    shape.whole_layers = codec == CodecId::kEcX;
    shape.levels = random.Below(2) == 0;
    shape.step = 0.002f * static_cast<float>(1 + random.Below(40));
    out->Use(shape, random.Next());
    if (needed && options.quality == QualityClass::kExact) options.quality = QualityClass::kNear;
  }
  if (needed) return out;
  if (random.Below(2) == 0 && dim >= 2) {
    const auto dims = static_cast<uint32_t>(2 * (1 + random.Below(std::min(dim, kMaxRopeDims) / 2)));
    for (uint32_t i = 0; i < dims / 2; ++i) out->frequencies.push_back(random.Next() >> random.Below(20));
    options.rope = {static_cast<RopeStyle>(random.Below(2)), static_cast<uint32_t>(random.Below(dim - dims + 1)), dims, out->frequencies.data()};
  }
  if (l.packing == KvPacking::kLatent && dim > 1 && random.Below(2) == 0) options.latent_dims = static_cast<uint32_t>(1 + random.Below(dim - 1));
  if (random.Below(2) == 0) {
    const uint32_t parts = l.packing == KvPacking::kLatent && options.latent_dims == 0 ? 1 : 2;
    for (uint32_t i = 0; i < l.layers * parts * l.kv_heads; ++i) out->scales.push_back(0.25f * static_cast<float>(1 + random.Below(12)));
    options.scales = out->scales;
  }
  return out;
}

inline Case MakeCase(SplitMix64& random, const Sizes& sizes, CodecId codec) {
  Case c;
  c.codec = codec;
  KvLayout& l = c.spec.layout;
  constexpr Dtype kDtypes[] = {Dtype::kBf16, Dtype::kFp16, Dtype::kFp32, Dtype::kFp8E4m3, Dtype::kFp8E5m2, Dtype::kInt8};
  l.dtype = random.Below(3) != 0 ? kDtypes[random.Below(2)] : kDtypes[random.Below(6)];
  l.layers = static_cast<uint32_t>(1 + random.Below(sizes.most_layers));
  l.packing = static_cast<KvPacking>(random.Below(5) < 3 ? 0 : 1 + random.Below(2));
  const bool usual = random.Below(2) == 0;
  constexpr uint32_t kDims[] = {64, 96, 128, 192, 256};
  const auto dim = [&] { return static_cast<uint32_t>(usual ? kDims[random.Below(5)] : random.Below(3) != 0 ? 16 * (1 + random.Below(8)) : 1 + random.Below(70)); };
  l.head_dim_k = dim();
  l.head_dim_v = random.Below(2) == 0 ? l.head_dim_k : dim();
  if (l.packing == KvPacking::kLatent) l.head_dim_v = 0;
  l.kv_heads = l.packing == KvPacking::kLatent ? 1 : static_cast<uint32_t>(1 + random.Below(4));
  if (l.packing == KvPacking::kLatent && usual) l.head_dim_k = 576;
  const bool klt = codec == CodecId::kEcK || codec == CodecId::kEcX;
  if (klt) {  // Transforms are dear to make.
    l.packing = KvPacking::kSplit;
    l.layers = static_cast<uint32_t>(1 + random.Below(2));
    l.kv_heads = static_cast<uint32_t>(1 + random.Below(3));
    l.head_dim_k = static_cast<uint32_t>(1 + random.Below(codec == CodecId::kEcK ? 70 : 40));
    l.head_dim_v = random.Below(2) == 0 ? l.head_dim_k : static_cast<uint32_t>(1 + random.Below(40));
    if (random.Below(3) == 0) {
      l.world = 2;
      l.rank = static_cast<uint32_t>(codec == CodecId::kEcX ? 0 : random.Below(2));
    }
  }
  const uint32_t columns = l.kv_heads * std::max(1u, l.packing == KvPacking::kInterleaved ? l.head_dim_k + l.head_dim_v : l.head_dim_k);
  const uint32_t most_tokens = std::clamp(sizes.most_values / columns, 1u, 256u);
  c.kv.tokens_per_page = static_cast<uint32_t>(1 + random.Below(std::min(most_tokens, 32u)));
  c.pages_a_block = static_cast<uint32_t>(1 + random.Below(std::max(1u, most_tokens / c.kv.tokens_per_page)));
  l.tokens_per_block = c.kv.tokens_per_page * c.pages_a_block;
  l.k_order = static_cast<AxisOrder>(random.Below(3));
  l.v_order = l.packing == KvPacking::kSplit ? static_cast<AxisOrder>(random.Below(3)) : l.k_order;
  if (random.Below(3) == 0) l.engine = "engine";
  for (std::byte& byte : c.spec.scope.bytes) byte = static_cast<std::byte>(random.Next());
  const bool ec = klt || codec == CodecId::kEcC;
  if (ec) {
    c.options = MakeOptions(random, l, codec);
    c.spec.options = &c.options->options;
  }
  if (l.layers > 1 && random.Below(3) == 0) {
    c.spec.layer_begin = static_cast<uint16_t>(random.Below(l.layers));
    c.spec.layer_end = static_cast<uint16_t>(c.spec.layer_begin + 1 + random.Below(l.layers - c.spec.layer_begin));
  }
  c.blocks = static_cast<uint32_t>(1 + random.Below(sizes.most_blocks));
  c.kv.n_pages = c.blocks * c.pages_a_block + static_cast<uint32_t>(random.Below(4));

  // Planes one behind the other, in the engine's own order, sometimes with holes.
  const uint64_t elem = DtypeBytes(l.dtype);
  const uint64_t gap = random.Below(3) == 0 ? elem * (1 + random.Below(5)) : 0;
  const auto plane_of = [&](uint32_t plane_dim) {
    const auto order = static_cast<AxisOrder>(random.Below(3));
    PagedPlane plane = PagedKv::Dense(nullptr, l, order, plane_dim, c.kv.n_pages, c.kv.tokens_per_page);
    plane.page_stride += gap;
    plane.bytes += gap * c.kv.n_pages;
    return plane;
  };
  std::vector<uint64_t> offsets;
  uint64_t end = 64;
  const auto add = [&](std::vector<PagedPlane>& planes, uint32_t plane_dim) {
    planes.push_back(plane_of(plane_dim));
    offsets.push_back(end);
    end += (planes.back().bytes + 63) / 64 * 64 + 64;
  };
  const bool split = l.packing == KvPacking::kSplit;
  for (uint32_t layer = 0; layer < l.layers; ++layer) add(c.kv.k, split ? l.head_dim_k : l.head_dim_k + l.head_dim_v);
  for (uint32_t layer = 0; split && layer < l.layers; ++layer) add(c.kv.v, l.head_dim_v);
  c.cache.assign(end, std::byte{0x5a});
  for (size_t i = 0; i < offsets.size(); ++i) {
    (i < c.kv.k.size() ? c.kv.k[i] : c.kv.v[i - c.kv.k.size()]).base = c.cache.data() + offsets[i];
  }
  std::vector<uint32_t> all(c.kv.n_pages);
  std::iota(all.begin(), all.end(), 0u);
  for (size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random.Below(i)]);
  c.pages.assign(all.begin(), all.begin() + c.blocks * c.pages_a_block);

  std::vector<std::byte> block(l.block_bytes());
  const uint64_t kind = random.Below(12);
  for (uint32_t i = 0; i < c.blocks; ++i) {
    c.pos0.push_back(random.Next() >> (ec && random.Below(2) == 0 ? 60 : random.Below(2) == 0 ? 40 : 1));
    uint64_t at = 0;
    for (uint32_t layer = 0; layer < l.layers; ++layer) {
      for (uint32_t v = 0; v < (split ? 2u : 1u); ++v) {
        SegmentShape shape;
        shape.dtype = l.dtype;
        shape.order = v == 0 ? l.k_order : l.v_order;
        shape.tokens = l.tokens_per_block;
        shape.dim = !split ? l.head_dim_k + l.head_dim_v : v == 0 ? l.head_dim_k : l.head_dim_v;
        shape.raw_bytes = !split ? l.layer_bytes() : v == 0 ? l.k_plane_bytes() : l.v_plane_bytes();
        const Fill fill = kind < 5 ? Fill::kUsual : kind == 5 ? Fill::kNoise : static_cast<Fill>(random.Below(6));
        FillPlane(random, shape, fill, block.data() + at);
        at += shape.raw_bytes;
      }
    }
    TIERCEL_CHECK(Scatter(c.kv, l, c.PagesOf(i), block).has_value());
  }
  return c;
}

// Small heads, so many tokens, and an artifact that foretells levels.
inline Case MakeLevelsCase(SplitMix64& random, CodecId codec, uint32_t tokens) {
  Case c;
  c.codec = codec;
  KvLayout& l = c.spec.layout;
  l.dtype = random.Below(2) == 0 ? Dtype::kBf16 : Dtype::kFp16;
  l.layers = 1;
  l.kv_heads = static_cast<uint32_t>(1 + random.Below(2));
  l.head_dim_k = static_cast<uint32_t>(2 + random.Below(9));
  l.head_dim_v = static_cast<uint32_t>(1 + random.Below(10));
  l.tokens_per_block = tokens;
  l.k_order = static_cast<AxisOrder>(random.Below(3));
  l.v_order = static_cast<AxisOrder>(random.Below(3));
  const auto made = std::make_shared<CaseOptions>();
  made->options.quality = static_cast<QualityClass>(1 + random.Below(4));
  made->options.exact_tokens = static_cast<uint32_t>(random.Below(3) * 7);
  ArtifactShape shape;
  shape.layers = 1;
  shape.heads = static_cast<uint16_t>(l.kv_heads);
  shape.dim_k = static_cast<uint16_t>(l.head_dim_k);
  shape.dim_v = static_cast<uint16_t>(l.head_dim_v);
  shape.rope_dims = static_cast<uint16_t>(2 * random.Below(l.head_dim_k / 2 + 1));
  shape.style = static_cast<RopeStyle>(random.Below(2));
  shape.levels = true;
  shape.step = 0.002f * static_cast<float>(1 + random.Below(40));
  made->Use(shape, random.Next());
  c.options = made;
  c.spec.options = &made->options;
  c.kv.tokens_per_page = tokens / 4;
  c.pages_a_block = 4;
  c.kv.n_pages = 5;
  c.pages = {3, 0, 4, 1};
  c.pos0 = {random.Below(2) == 0 ? random.Below(9) : random.Next() >> random.Below(60)};
  const uint64_t plane = 5 * l.layer_bytes();  // More than either's.
  c.cache.assign(2 * plane + 64, std::byte{0x5a});
  c.kv.k = {PagedKv::Dense(c.cache.data(), l, AxisOrder::kTokenHeadDim, l.head_dim_k, 5, tokens / 4)};
  c.kv.v = {PagedKv::Dense(c.cache.data() + plane, l, AxisOrder::kHeadDimToken, l.head_dim_v, 5, tokens / 4)};
  std::vector<std::byte> block(l.block_bytes());
  for (uint32_t v = 0; v < 2; ++v) {
    SegmentShape segment;
    segment.dtype = l.dtype;
    segment.order = v == 0 ? l.k_order : l.v_order;
    segment.tokens = tokens;
    segment.dim = v == 0 ? l.head_dim_k : l.head_dim_v;
    segment.raw_bytes = v == 0 ? l.k_plane_bytes() : l.v_plane_bytes();
    FillPlane(random, segment, random.Below(5) == 0 ? Fill::kWide : Fill::kUsual, block.data() + (v == 0 ? 0 : l.k_plane_bytes()));
  }
  TIERCEL_CHECK(Scatter(c.kv, l, c.PagesOf(0), block).has_value());
  return c;
}

// The record of a block as the CPU writes it.
inline std::vector<std::byte> RecordOf(const Case& c, uint32_t block) {
  std::vector<std::byte> out(MaxRecordBytes(c.SpecOf(block), 0));
  const auto bytes = EncodeRecordFrom(c.SpecOf(block), c.codec, PagedSource(c.kv, c.PagesOf(block)), out);
  TIERCEL_CHECK(bytes.has_value());
  out.resize(*bytes);
  return out;
}

}  // namespace tiercel::batch_case

#endif  // TIERCEL_TESTS_SIMT_BATCH_CASE_H_
