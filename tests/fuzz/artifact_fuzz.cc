// Any bytes as an artifact; of one that is accepted, and whose first byte asks for it (one in 16: it takes a hundred
// times as long), levels are foretold and every transform codes and decodes a plane. The first byte also says whether
// to mend the checksum, so that the checks behind it are reached too.
#include "kernels/levels.h"
#include "tests/fuzz/segment_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;  // NOLINT
  if (size == 0) return -1;
  std::vector<std::byte> bytes(size - 1);
  if (size > 1) std::memcpy(bytes.data(), data + 1, size - 1);
  if ((data[0] & 1) != 0 && bytes.size() >= kArtifactHeaderBytes) ArtifactWriter::Seal(bytes);
  const auto parsed = Artifact::Parse(bytes);
  if (!parsed) {
    if (parsed.error().message.empty()) __builtin_trap();
    return 0;
  }
  if ((data[0] >> 1 & 15) != 0) return 0;
  const Artifact& artifact = **parsed;
  LevelPredictor predictor(&artifact, FuzzRope::kPosition, 0);
  const SegmentShape k = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 20, artifact.kv_heads(), artifact.head_dim(SegmentKind::kK));
  if (predictor.any() && k.raw_bytes <= 2 * kMaxFuzzValues) {
    std::vector<std::byte> scratch(LevelPredictor::ScratchBytes(k));
    predictor.Predict(k, KvLikeBytes(k.dtype, k.raw_bytes, 2), scratch);
    for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
      const auto levels = predictor.Of(kind);
      if (levels.size() != (artifact.Levels(0, kind) != nullptr ? k.tokens : 0)) __builtin_trap();
      if (!levels::Fit(levels, k.tokens)) __builtin_trap();
    }
  }
  for (const CodecId id : {CodecId::kEcK, CodecId::kEcX}) {
    for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
      const auto scales = artifact.HeadScales(0, kind);
      if (!scales.empty() && scales.size() != artifact.kv_heads()) __builtin_trap();
      const SegmentShape shape = MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim, 20, artifact.kv_heads(), artifact.head_dim(kind), kind);
      const Codec& codec = *FindCodec(id);
      if (shape.raw_bytes == 0 || shape.raw_bytes > 2 * kMaxFuzzValues || !codec.Supports(shape)) continue;
      CodecContext context;
      context.artifact = &artifact;
      context.quality = QualityClass::kSmall;
      context.levels = predictor.Of(kind);
      const auto coded = RunEncode(codec, shape, KvLikeBytes(shape.dtype, shape.raw_bytes, 1), context);
      if (coded && !RunDecode(codec, shape, coded->info.params, coded->bytes, context)) __builtin_trap();
    }
  }
  return 0;
}
