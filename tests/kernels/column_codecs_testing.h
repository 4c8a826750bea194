// What the tests of column codecs share: planes of every shape that look like KV, and a codec driven by
// itself, its spans exactly as long as they say, so that ASan sees a step beyond.
#ifndef TIERCEL_TESTS_KERNELS_COLUMN_CODECS_TESTING_H_
#define TIERCEL_TESTS_KERNELS_COLUMN_CODECS_TESTING_H_

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/codec.h"
#include "kernels/columns.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {

inline uint64_t Rounds(uint64_t ordinarily) {
  return std::getenv("TIERCEL_FULL") != nullptr ? 10'000 : ordinarily;
}

inline SegmentShape MakeShape(Dtype dtype, AxisOrder order, uint32_t tokens, uint32_t heads,
                              uint32_t dim, SegmentKind kind = SegmentKind::kK) {
  SegmentShape shape;
  shape.layer = 0;
  shape.kind = kind;
  shape.dtype = dtype;
  shape.order = order;
  shape.tokens = tokens;
  shape.heads = heads;
  shape.dim = dim;
  shape.raw_bytes = uint64_t{tokens} * heads * dim * DtypeBytes(dtype);
  return shape;
}

inline SegmentShape RandomShape(Dtype dtype, SplitMix64& random) {
  const uint32_t dims[] = {64, 96, 128, 192, 256, 576, 1 + static_cast<uint32_t>(random.Below(40))};
  const uint32_t tokens[] = {16, 32, 64, 100, 128, 256, 1 + static_cast<uint32_t>(random.Below(80))};
  const uint32_t dim = dims[random.Below(7)];
  const auto heads = static_cast<uint32_t>(1 + random.Below(dim > 128 ? 2 : 6));
  const SegmentKind kinds[] = {SegmentKind::kK, SegmentKind::kV, SegmentKind::kKv,
                               SegmentKind::kLatent};
  return MakeShape(dtype, static_cast<AxisOrder>(random.Below(3)), tokens[random.Below(7)], heads, dim,
                   kinds[random.Below(4)]);
}

inline double NormalSample(SplitMix64& random) {
  return std::sqrt(-2 * std::log(1 - random.Uniform())) *
         std::cos(6.283185307179586 * random.Uniform());
}

inline uint64_t FloatBits(Dtype dtype, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  switch (dtype) {
    case Dtype::kBf16:
      return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    case Dtype::kFp16: {
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 112;
      if (exponent <= 0) return (bits >> 16) & 0x8000u;
      return ((bits >> 16) & 0x8000u) | static_cast<uint32_t>(std::min(exponent, 30)) << 10 |
             ((bits >> 13) & 0x3ffu);
    }
    case Dtype::kFp8E4m3: {
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 120;
      if (exponent <= 0) return (bits >> 24) & 0x80u;
      return ((bits >> 24) & 0x80u) | static_cast<uint32_t>(std::min(exponent, 14)) << 3 |
             ((bits >> 20) & 7u);
    }
    case Dtype::kFp8E5m2: {
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 112;
      if (exponent <= 0) return (bits >> 24) & 0x80u;
      return ((bits >> 24) & 0x80u) | static_cast<uint32_t>(std::min(exponent, 30)) << 2 |
             ((bits >> 21) & 3u);
    }
    default:
      return bits;
  }
}

inline size_t ElementIndex(const SegmentShape& s, uint32_t column, uint32_t token) {
  const size_t head = column / s.dim;
  const size_t dim = column % s.dim;
  switch (s.order) {
    case AxisOrder::kTokenHeadDim:
      return (size_t{token} * s.heads + head) * s.dim + dim;
    case AxisOrder::kHeadTokenDim:
      return (head * s.tokens + token) * s.dim + dim;
    case AxisOrder::kHeadDimToken:
      break;
  }
  return (head * s.dim + dim) * s.tokens + token;
}

// A normal distribution a channel: scales an octave or two apart, means of the order of the scale, one
// channel in 40 an outlier 8 to 16 times as large with a large mean.
inline std::vector<std::byte> PlaneLikeKv(const SegmentShape& shape, uint64_t seed) {
  SplitMix64 random(seed);
  const uint32_t size = DtypeBytes(shape.dtype);
  std::vector<std::byte> raw(shape.raw_bytes);
  for (uint32_t c = 0; c < ColumnCount(shape); ++c) {
    double sigma = std::exp2(NormalSample(random) * 0.7);
    double mean = 0.4 * sigma * NormalSample(random);
    if (random.Below(40) == 0) {
      sigma *= 4;
      mean = 12 * sigma * (random.Uniform() - 0.5);
    }
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      const auto value = static_cast<float>(mean + sigma * NormalSample(random));
      const uint64_t bits = FloatBits(shape.dtype, value);
      std::memcpy(raw.data() + ElementIndex(shape, c, t) * size, &bits, size);
    }
  }
  return raw;
}

struct CodedSegment {
  EncodedSegment info;
  std::vector<std::byte> bytes;
};

inline std::optional<CodedSegment> RunEncode(const Codec& codec, const SegmentShape& shape,
                                             ByteSpan raw, CodecContext context = {}) {
  std::vector<std::byte> scratch(codec.scratch_bytes(shape));
  std::vector<std::byte> out(codec.MaxEncodedBytes(shape));
  context.scratch = scratch;
  const auto info = codec.Encode(shape, raw, out, context);
  if (!info) return std::nullopt;
  out.resize(info->bytes);
  return CodedSegment{*info, std::move(out)};
}

inline Result<std::vector<std::byte>> RunDecode(const Codec& codec, const SegmentShape& shape,
                                                uint32_t params, ByteSpan encoded,
                                                CodecContext context = {}) {
  std::vector<std::byte> scratch(codec.scratch_bytes(shape));
  context.scratch = scratch;
  const auto copy = std::make_unique<std::byte[]>(encoded.size());
  if (!encoded.empty()) std::memcpy(copy.get(), encoded.data(), encoded.size());
  std::vector<std::byte> out(shape.raw_bytes);
  if (Status s = codec.Decode(shape, params, {copy.get(), encoded.size()}, 0, out, context); !s) {
    return tl::unexpected<Error>(s.error());
  }
  return out;
}

// Bytes changed, cut and doubled: nothing may crash.
inline void Torment(const Codec& codec, const SegmentShape& shape, const CodedSegment& good,
                    uint64_t seed, int rounds, const CodecContext& context = {}) {
  SplitMix64 random(seed);
  for (int round = 0; round < rounds; ++round) {
    auto bytes = good.bytes;
    for (uint64_t k = random.Below(4); k-- > 0;) {
      // Half of the changes go where the headers are.
      const uint64_t range = random.Below(2) == 0 ? std::min<uint64_t>(64, bytes.size()) : bytes.size();
      bytes[random.Below(range)] = static_cast<std::byte>(random.Next());
    }
    if (random.Below(3) == 0) bytes.resize(random.Below(bytes.size()));
    (void)RunDecode(codec, shape, good.info.params, bytes, context);
  }
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_KERNELS_COLUMN_CODECS_TESTING_H_
