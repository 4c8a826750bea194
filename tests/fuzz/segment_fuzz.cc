// Any bytes as a segment of the codec TIERCEL_FUZZ_CODEC: an error that says something, or bytes that
// are the same whole, in steps, and on another ISA.
#include <cstring>
#include <memory>

#include "tests/fuzz/segment_input.h"

namespace tiercel {
namespace {

// Room exactly as long as asked for, at an address that suits no vector, so that a step beyond is seen.
class Room {
 public:
  explicit Room(uint64_t size) : size_(size), memory_(std::make_unique_for_overwrite<std::byte[]>(size)) {}
  MutableByteSpan span() const { return {memory_.get(), size_}; }

 private:
  uint64_t size_;
  std::unique_ptr<std::byte[]> memory_;
};

// Scratch ends where its memory ends, which is kept: that much of it afresh each time is what would take longest.
MutableByteSpan Scratch(uint64_t size) {
  static std::unique_ptr<Room> kept;
  if (kept == nullptr || kept->span().size() < size) kept = std::make_unique<Room>(size);
  return kept->span().last(size);
}

Status Decode(const Codec& codec, const SegmentInput& in, CodecContext context, uint64_t step, MutableByteSpan out) {
  context.scratch = Scratch(codec.scratch_bytes(in.shape));
  for (uint64_t at = 0; at < out.size(); at += step) {
    const MutableByteSpan part = out.subspan(at, std::min(step, out.size() - at));
    if (Status s = codec.Decode(in.shape, in.params, in.encoded, at, part, context); !s) return s;
  }
  return OkStatus();
}

}  // namespace
}  // namespace tiercel

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;  // NOLINT
  static const Codec& codec = *FindCodec(CodecId::TIERCEL_FUZZ_CODEC);
  auto in = ReadSegmentInput(codec, {reinterpret_cast<const std::byte*>(data), size});
  if (!in) return -1;
  const Room encoded(in->encoded.size());
  if (!in->encoded.empty()) std::memcpy(encoded.span().data(), in->encoded.data(), in->encoded.size());
  in->encoded = encoded.span();
  CodecContext context;
  context.pos0 = FuzzRope::kPosition;
  if (codec.needs_artifact()) context.artifact = &FuzzArtifact();
  std::optional<FuzzRope> rope;
  if (in->roped && !codec.needs_artifact() && in->shape.dim >= 8) context.rope = rope.emplace(in->shape).tables();

  const Room whole(in->shape.raw_bytes);
  const Status good = Decode(codec, *in, context, in->shape.raw_bytes, whole.span());
  if (!good && (good.error().message.empty() || good.error().code == Code::kInternal)) __builtin_trap();
  const uint64_t step = codec.step_bytes(in->shape);
  if (good && step < in->shape.raw_bytes) {
    const Room again(in->shape.raw_bytes);
    if (!Decode(codec, *in, context, step, again.span())) __builtin_trap();
    if (std::memcmp(whole.span().data(), again.span().data(), whole.span().size()) != 0) __builtin_trap();
  }
  if (in->other_isa < 3) {
    const ForcedIsa forced(static_cast<KernelIsa>(in->other_isa));
    const Room again(in->shape.raw_bytes);
    const Status other = Decode(codec, *in, context, in->shape.raw_bytes, again.span());
    if (good.has_value() != other.has_value()) __builtin_trap();
    if (good && std::memcmp(whole.span().data(), again.span().data(), whole.span().size()) != 0) __builtin_trap();
  }
  return 0;
}
