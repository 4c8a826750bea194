// Any bytes as a plane, through every encoder and back: what is declined is declined on every ISA, what
// is not comes back as its digest says, and of a lossless codec as it was.
#include <cstring>
#include <iterator>

#include "kernels/digest.h"
#include "tests/fuzz/segment_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;  // NOLINT
  constexpr CodecId kTried[] = {CodecId::kLlf, CodecId::kLle, CodecId::kF8,  CodecId::kI8,
                                 CodecId::kI4h, CodecId::kEcC, CodecId::kEcK, CodecId::kEcX, CodecId::kI8e};
  if (size < kSegmentHead) return -1;
  const Codec& codec = *FindCodec(kTried[data[8] % std::size(kTried)]);
  const auto in = ReadSegmentInput(codec, {reinterpret_cast<const std::byte*>(data), size});
  if (!in) return -1;
  std::vector<std::byte> raw(in->shape.raw_bytes);
  // A plane shorter than the bytes repeats: columns that are alike.
  for (size_t at = 0; at < raw.size() && !in->encoded.empty(); at += in->encoded.size()) {
    std::memcpy(raw.data() + at, in->encoded.data(), std::min(in->encoded.size(), raw.size() - at));
  }
  CodecContext context;
  context.pos0 = FuzzRope::kPosition;
  context.quality = static_cast<QualityClass>(1 + data[9] % 4);
  context.exact_tokens = data[10] % 8;
  const auto levels = FuzzLevels(data[11], in->shape.tokens);
  context.levels = levels;
  if (codec.needs_artifact()) context.artifact = &FuzzArtifact();
  std::optional<FuzzRope> rope;
  if (in->roped && !codec.needs_artifact() && in->shape.dim >= 8) context.rope = rope.emplace(in->shape).tables();
  const auto coded = RunEncode(codec, in->shape, raw, context);
  if (in->other_isa < 3) {
    const ForcedIsa forced(static_cast<KernelIsa>(in->other_isa));
    const auto other = RunEncode(codec, in->shape, raw, context);
    if (coded.has_value() != other.has_value() || (coded && coded->bytes != other->bytes)) __builtin_trap();
  }
  if (!coded) return 0;
  const auto decoded = RunDecode(codec, in->shape, coded->info.params, coded->bytes, context);
  if (!decoded || DecodedDigest(*decoded) != coded->info.decoded_digest) __builtin_trap();
  if (!codec.lossy() && *decoded != raw) __builtin_trap();
  return 0;
}
