// What the fuzz targets of segments read their bytes as, and what writes their seeds.
//
//   0 dtype | 1 axis order + 4 * ISA to compare with | 2 kind | 3 heads | 4 dim, u16 | 6 tokens, u16 |
//   8 params, u32 | 12 layer | 13 rope: 0 none | 14 0, u16 | 16 the encoded bytes
//
// EC-K and EC-X find the transforms of FuzzArtifact.
#ifndef TIERCEL_TESTS_FUZZ_SEGMENT_INPUT_H_
#define TIERCEL_TESTS_FUZZ_SEGMENT_INPUT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/columns.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/column_codecs_testing.h"

namespace tiercel {

inline constexpr size_t kSegmentHead = 16;
inline constexpr uint64_t kMaxFuzzValues = 4096;

struct SegmentInput {
  SegmentShape shape;
  uint32_t params = 0;
  uint8_t other_isa = 0;  // 3: none.
  bool roped = false;
  ByteSpan encoded;
};

inline std::vector<std::byte> WriteSegmentInput(const SegmentShape& shape, uint32_t params, bool roped, ByteSpan encoded) {
  std::vector<std::byte> out(kSegmentHead);
  StoreLe(out.data(), static_cast<uint8_t>(shape.dtype));
  StoreLe(out.data() + 1, static_cast<uint8_t>(shape.order));
  StoreLe(out.data() + 2, static_cast<uint8_t>(shape.kind));
  StoreLe(out.data() + 3, static_cast<uint8_t>(shape.heads));
  StoreLe(out.data() + 4, static_cast<uint16_t>(shape.dim));
  StoreLe(out.data() + 6, static_cast<uint16_t>(shape.tokens));
  StoreLe(out.data() + 8, params);
  StoreLe(out.data() + 12, static_cast<uint8_t>(shape.layer));
  StoreLe(out.data() + 13, static_cast<uint8_t>(roped ? 1 : 0));
  out.insert(out.end(), encoded.begin(), encoded.end());
  return out;
}

// Nothing where the codec would not be asked.
inline std::optional<SegmentInput> ReadSegmentInput(const Codec& codec, ByteSpan bytes) {
  if (bytes.size() < kSegmentHead) return std::nullopt;
  const auto at = [&](size_t i) { return std::to_integer<uint32_t>(bytes[i]); };
  SegmentInput in;
  in.shape = MakeShape(static_cast<Dtype>(1 + (at(0) - 1) % 5), static_cast<AxisOrder>((at(1) & 3) % 3),
                       LoadLe<uint16_t>(bytes.data() + 6), at(3), LoadLe<uint16_t>(bytes.data() + 4),
                       static_cast<SegmentKind>(1 + (at(2) - 1) % 4));
  if (uint64_t{in.shape.tokens} * in.shape.heads * in.shape.dim > kMaxFuzzValues || !codec.Supports(in.shape)) return std::nullopt;
  in.shape.layer = static_cast<uint16_t>(at(12) % 2);
  in.params = LoadLe<uint32_t>(bytes.data() + 8);
  in.other_isa = static_cast<uint8_t>(at(1) >> 2 & 3);
  in.roped = at(13) != 0;
  in.encoded = bytes.subspan(kSegmentHead);
  return in;
}

// Levels of tokens that a byte stands for: none of 0.
inline std::vector<int8_t> FuzzLevels(uint8_t seed, uint32_t tokens) {
  std::vector<int8_t> levels;
  SplitMix64 random(seed);
  for (uint32_t t = 0; seed != 0 && t < tokens; ++t) {
    levels.push_back(static_cast<int8_t>(static_cast<int>(random.Below(random.Below(16) + 1)) - 8));
  }
  return levels;
}

// Two layers of two heads of 16, of K and of V, for both codecs; the second is turned in a way of its own.
inline const Artifact& FuzzArtifact() {
  static const std::shared_ptr<const Artifact> artifact = [] {
    ArtifactShape shape;
    shape.dim_k = shape.dim_v = 16;
    shape.rope_dims = 16;
    shape.levels = true;
    shape.own_ropes = 1;
    auto parsed = Artifact::Parse(ArtifactWriter(shape).Finish());
    TIERCEL_CHECK(parsed.has_value());
    TIERCEL_CHECK(UseArtifact(*parsed).has_value());
    return *parsed;
  }();
  return *artifact;
}

// How keys are turned where the input says that they are: 8 dims of each head, from position 4096 on.
class FuzzRope {
 public:
  explicit FuzzRope(const SegmentShape& shape) : stride_(ColumnStride(shape.tokens)), cosine_(4 * stride_), sine_(4 * stride_) {
    const Rope rope{RopeStyle::kHalves, 0, 8, kFrequencies};
    rope::FillTables(rope, kPosition, shape.tokens, stride_, cosine_.data(), sine_.data());
    tables_ = {rope, stride_, cosine_.data(), sine_.data()};
  }
  const RopeTables* tables() const { return &tables_; }
  static constexpr uint64_t kPosition = 4096;

 private:
  static constexpr uint64_t kFrequencies[] = {0x28be60db9391054a, 0x0ce1a8c30ab0a3d7, 0x0412bf4a64d41a2b, 0x014997c5a20e5e92};
  size_t stride_;
  std::vector<float> cosine_, sine_;
  RopeTables tables_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_FUZZ_SEGMENT_INPUT_H_
