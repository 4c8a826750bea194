// Codec turns the raw bytes of one segment (one layer's K or V of a block) into fewer, and back. A
// codec knows the segment's shape and nothing of records, caches or engines; what a record says about
// its segments is kernels/record.h.
//
//   Encode: raw ------------------> encoded bytes + params + digest of what Decode will give
//   Decode: encoded, [begin, end) -> that part of the decoded bytes, in steps of step_bytes()
//
// Invariants
//   Encode is a pure function of (shape, raw, artifact): the same bytes on every CPU and ISA.
//   Decode never reads or writes outside the spans it is given, whatever the encoded bytes are.
//   For a lossless codec Decode(Encode(raw)) == raw for every bit pattern.
//
// Ownership: codecs are immutable statics; spans are borrowed for the call.
//
// Threads: any. Nothing is allocated: a codec that needs room asks for scratch.
//
// Errors
//   Encode gives nullopt when the result would not be worth having; the caller stores RAW.
//   Decode gives kDataLoss for encoded bytes that no encoder writes.
//
// Bitstreams: docs/block-format.md.
#ifndef TIERCEL_KERNELS_CODEC_H_
#define TIERCEL_KERNELS_CODEC_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "kernels/rope_core.h"
#include "proto/kv_layout.h"
#include "proto/types.h"

namespace tiercel {

// Values are frozen. Those without a codec in this build are refused with kUnimplemented.
enum class CodecId : uint8_t {
  kRaw = 0,
  kLlf = 1,     // Lossless, fixed 4-bit exponent codes.
  kLle = 2,     // Lossless, entropy-coded exponents.
  kF8 = 3,      // e4m3, a power of two a head.
  kI8 = 4,      // 8 bits between bounds: K by channel, V by token.
  kI4h = 5,     // 4 bits of a Hadamard transform of each token's head.
  kTq = 6,
  kEcC = 7,
  kEcK = 8,
  kEcX = 9,
  kI8e = 10,    // I8 with its codes entropy-coded.
  kAuto = 255,  // Never in a record: LLF for bf16 and fp16, else RAW.
};
inline constexpr size_t kCodecs = 11;  // Of those that records name.
std::string_view Name(CodecId id);  // "raw", "llf", ...
std::optional<CodecId> ParseCodecId(std::string_view name);

// Which tensor a segment holds. Bits, so that one byte of the header can say which are present.
enum class SegmentKind : uint8_t {
  kK = 1,
  kV = 2,
  kKv = 3,      // K and V interleaved (KvPacking::kInterleaved).
  kLatent = 4,  // KvPacking::kLatent.
  kOpaque = 8,
};
std::string_view Name(SegmentKind kind);

inline constexpr uint16_t kOpaqueLayer = 0xffff;

struct SegmentShape {
  uint16_t layer = kOpaqueLayer;
  SegmentKind kind = SegmentKind::kOpaque;
  Dtype dtype = Dtype::kOpaque;
  AxisOrder order = AxisOrder::kTokenHeadDim;
  uint32_t tokens = 0;  // These three are zero for opaque bytes.
  uint32_t heads = 0;
  uint32_t dim = 0;
  uint64_t raw_bytes = 0;
  uint64_t block_offset = 0;  // Of this plane in the canonical bytes of the layers at hand.
};

class Artifact;

struct CodecContext {
  MutableByteSpan scratch;  // At least scratch_bytes(shape).
  const Artifact* artifact = nullptr;  // For codecs that need one.
  uint64_t pos0 = 0;        // Absolute position of the segment's first token.
  const RopeTables* rope = nullptr;  // How keys are rotated here, where no artifact says; null: not known.
  uint32_t first_head = 0;  // Of the model's heads, the segment's first: where ranks share a layer.
  // Encoders of several classes:
  QualityClass quality = QualityClass::kExact;  // The one asked for.
  float step = 0;                               // Instead of the class's own, where not 0.
  uint32_t exact_tokens = 0;                    // So many from the first stay as they are.
  // EC-C: multiply the step, of each part and head of the segment, [part][head]; empty: all 1.
  std::span<const float> scales = {};
  // EC-C, EC-K, EC-X: of each token how many half octaves its step is smaller, -8 to 7 (levels_core.h); empty: none.
  std::span<const int8_t> levels = {};
  uint32_t split_dim = 0;  // EC-C: dims of part 0, of heads that have two (K and V, latent and rope); 0: one.
};
// Whether a rotation's dims lie in the segment's heads, and its tables cover the tokens.
bool Fits(const RopeTables& rope, const SegmentShape& shape);

struct EncodedSegment {
  uint64_t bytes = 0;           // Written to out.
  uint32_t params = 0;          // The codec's own word in the directory.
  uint64_t decoded_digest = 0;  // Of the bytes that Decode gives.
};

class Codec {
 public:
  virtual ~Codec() = default;

  virtual CodecId id() const = 0;
  // The class of what Decode gives; of a codec that heeds CodecHints::quality, the best it can be.
  virtual QualityClass quality() const = 0;
  bool lossy() const { return quality() != QualityClass::kExact; }
  // Whether quality() is its class whatever is asked of it; such a codec heeds no options.
  virtual bool one_class() const { return !lossy(); }
  virtual bool needs_artifact() const { return false; }
  virtual bool Supports(const SegmentShape& shape) const = 0;

  // What Encode's out must hold, at most raw_bytes: a larger result is not worth having.
  virtual uint64_t MaxEncodedBytes(const SegmentShape& shape) const { return shape.raw_bytes; }
  virtual uint64_t scratch_bytes(const SegmentShape&) const { return 0; }
  // Decode may start at multiples of this many decoded bytes.
  virtual uint64_t step_bytes(const SegmentShape& shape) const = 0;

  virtual std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                               MutableByteSpan out,
                                               const CodecContext& context) const = 0;

  // Decoded bytes [begin, begin + out.size()); begin is a multiple of step_bytes, and the end is one
  // too or is raw_bytes. out must not overlap encoded.
  virtual Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded,
                        uint64_t begin, MutableByteSpan out, const CodecContext& context) const = 0;
};

// nullptr: this build has no such codec.
const Codec* FindCodec(CodecId id);

// Resolves kAuto for a layout's dtype; every other id stays.
CodecId ResolveCodec(CodecId id, Dtype dtype);

const Codec& RawCodec();
const Codec& LlfCodec();
const Codec& LleCodec();
const Codec& EcKCodec();
const Codec& EcXCodec();
const Codec& EcCCodec();
const Codec& F8Codec();
const Codec& I8Codec();
const Codec& I8eCodec();
const Codec& I4hCodec();

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_CODEC_H_
