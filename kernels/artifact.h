// Artifact (KVA1) holds what was measured of one model so that its KV can be coded well: the transforms of
// EC-K and EC-X, the scales of EC-C's heads, the rotation of its keys, what foretells a token's own step, and
// which step gives which class.
// Written by `tiercel codec calibrate`, named by its content.
//
//   bytes --> Artifact::Parse (every size, order and number checked once) --> Find, steps, head scales, levels
//
// Invariants
//   All numbers are finite and every transform's scales are not zero: a codec need not look again.
//   Two artifacts of one id have the same bytes.
//
// Ownership: owns a copy of its bytes; spans and pointers live as long as it. Threads: immutable, any.
// Errors: kDataLoss names the field or section; kUnimplemented another version.
//
// Byte tables and formulas: docs/artifact-format.md.
#ifndef TIERCEL_KERNELS_ARTIFACT_H_
#define TIERCEL_KERNELS_ARTIFACT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "kernels/codec.h"
#include "kernels/rope_core.h"
#include "proto/types.h"

namespace tiercel {

inline constexpr uint32_t kArtifactMagic = 0x3141564b;  // "KVA1"
inline constexpr uint16_t kArtifactVersion = 1;
inline constexpr size_t kArtifactHeaderBytes = 64;
inline constexpr size_t kArtifactEntryBytes = 32;
inline constexpr uint64_t kMaxArtifactBytes = uint64_t{1} << 30;
inline constexpr uint32_t kMaxTransform = 1024;  // Dimensions of a group.
inline constexpr uint8_t kWholeLayer = 255;      // Group: all heads together (EC-X).

// Of one group of n dimensions: x = (scale * step) * (synthesis * q) + mean, q = analysis * (x - mean) / step.
struct KltTransform {
  uint32_t n = 0;
  std::span<const float> mean;        // [n]
  std::span<const float> scale;       // [n]
  std::span<const int8_t> synthesis;  // [n][n]: dimension, coefficient.
  std::span<const float> analysis;    // [n][n]: coefficient, dimension.
  std::vector<int32_t> pairs;         // [n][row_pairs]: synthesis as two int16 a word, low half first.
  std::vector<uint8_t> raised;        // [n][n] and 3 more: synthesis + 128.
  uint32_t row_pairs() const { return (n + 1) / 2; }
};

// What foretells the level of a token's step in one plane, from K of its layer before rotation: a number of
// half octaves, position_weight * (log2 position - position_mean) + the sum of weight * (k - mean).
struct LevelWeights {
  float position_weight = 0;
  float position_mean = 0;
  std::span<const float> mean;    // [kv_heads * head_dim_k], head by head.
  std::span<const float> weight;  // The same.
};

struct QualityStep {
  CodecId codec = CodecId::kEcX;
  QualityClass quality = QualityClass::kNear;
  float step = 0;
  float mean_kl = 0;  // As measured at calibration: nats a token.
  float bits = 0;     // A value.
};

class Artifact {
 public:
  static Result<std::shared_ptr<const Artifact>> Parse(ByteSpan bytes);

  uint64_t id() const { return id_; }
  ByteSpan bytes() const { return bytes_; }
  uint32_t layers() const { return layers_; }
  uint32_t kv_heads() const { return kv_heads_; }
  uint32_t head_dim(SegmentKind kind) const { return kind == SegmentKind::kV ? head_dim_v_ : head_dim_k_; }
  RopeStyle rope_style() const { return rope_style_; }
  uint32_t rope_dims() const { return rope_dims_; }  // 0: K is not rotated.
  // Of each rotated pair, turns a position times 2^64, rope_dims / 2 of them, in a layer that the artifact has.
  std::span<const uint64_t> rope(uint16_t layer) const;
  bool has_own_rope(uint16_t layer) const { return own_ropes_.contains(layer); }
  // Of the layers that have none of their own; empty: there are none, or K is not rotated.
  std::span<const uint64_t> common_rope() const { return common_rope_; }
  std::string_view about() const { return about_; }

  // group: the head, or kWholeLayer. Null: there is none.
  const KltTransform* Find(uint16_t layer, SegmentKind kind, uint8_t group) const;
  // [kv_heads], or empty.
  std::span<const float> HeadScales(uint16_t layer, SegmentKind kind) const;
  // Null: there are none.
  const LevelWeights* Levels(uint16_t layer, SegmentKind kind) const;
  bool has_levels() const { return !levels_.empty(); }
  std::span<const QualityStep> steps() const { return steps_; }
  // The step for that class, or for the next better one that was measured.
  std::optional<QualityStep> StepOf(CodecId codec, QualityClass quality) const;

 private:
  using Key = std::tuple<uint16_t, uint8_t, uint8_t>;  // Layer, kind, group.
  struct Entry;

  Artifact() = default;
  Status ReadSection(const Entry& entry);
  Status ReadRope(const Entry& entry);
  Status ReadTransform(const Entry& entry);
  Status ReadLevels(const Entry& entry);
  // [count] numbers at an offset of the file, all finite.
  Result<std::span<const float>> Floats(uint64_t at, uint64_t count, const char* what) const;

  std::vector<std::byte> bytes_;
  uint64_t id_ = 0;
  uint32_t layers_ = 0, kv_heads_ = 0, head_dim_k_ = 0, head_dim_v_ = 0, rope_dims_ = 0;
  RopeStyle rope_style_ = RopeStyle::kHalves;
  std::string_view about_;
  std::span<const uint64_t> common_rope_;
  std::map<uint16_t, std::span<const uint64_t>> own_ropes_;  // By layer.
  std::vector<QualityStep> steps_;
  std::map<Key, KltTransform> transforms_;
  std::map<Key, std::span<const float>> head_scales_;
  std::map<Key, LevelWeights> levels_;
};

// The artifacts of this process, by id: whoever decodes a record finds its own here. Any thread.
// Errors: kResourceExhausted: kMaxArtifacts are in use already.
inline constexpr size_t kMaxArtifacts = 64;
Status UseArtifact(std::shared_ptr<const Artifact> artifact);
void DropArtifact(uint64_t id);
std::shared_ptr<const Artifact> FindArtifact(uint64_t id);  // Null: not here.

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_ARTIFACT_H_
