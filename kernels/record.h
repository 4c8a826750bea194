// A record (KVB1) is one encoded block, or a range of its layers, as it travels and rests: it says
// itself what it holds, how it is coded, and what its bytes must sum to.
//
//   head: header (64 bytes) | TLVs | directory (32 bytes a segment) | body: segments, 64-byte aligned
//
//   EncodeRecord --> bytes --> ParseRecord --> VerifyRecord            (the encoded bytes are whole)
//                                          --> DecodeRecord            (the decoded bytes are right)
//                                          --> ExtractLayers --> a record of fewer layers
//
// Segments are ordered by layer, then K, then V, and lie without holes, so a range of layers is one
// range of bytes. Opaque bytes are one segment of layer 0xffff.
//
// Invariants
//   A record that ParseRecord accepts has one possible arrangement: every offset, size and order in
//   its directory is checked against what its header implies.
//   Every bit of a record is covered: the head by its CRC-32C, each segment by its own, padding by
//   being zero (checked by VerifyRecord).
//   Bytes that DecodeRecord reports as good have the digest that the encoder saw.
//
// Ownership: views borrow the bytes; nothing here owns memory, save per-thread scratch that is kept.
// Bytes that change under a view may give kDataLoss, never an access outside them.
//
// Threads: any.
//
// Errors
//   kInvalidArgument  a wrong layout, range or buffer size: the caller's mistake, named.
//   kDataLoss         the bytes are not what was written: named by field or segment.
//   kUnimplemented    a version, flag, field or codec that this build does not know.
//   kFailedPrecondition  the record needs an artifact that this process does not have (UseArtifact).
//
// Byte tables, a worked example and the bitstreams: docs/block-format.md.
#ifndef TIERCEL_KERNELS_RECORD_H_
#define TIERCEL_KERNELS_RECORD_H_

#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "kernels/codec.h"
#include "kernels/planes.h"
#include "kernels/rope_core.h"
#include "proto/frame.h"
#include "proto/kv_layout.h"
#include "proto/types.h"

namespace tiercel {

inline constexpr uint32_t kRecordMagic = 0x3142564b;  // "KVB1"
inline constexpr uint8_t kRecordVersion = 1;
inline constexpr size_t kRecordHeaderBytes = 64;
inline constexpr size_t kRecordEntryBytes = 32;
inline constexpr size_t kRecordAlign = 64;
inline constexpr size_t kMaxLayoutTextBytes = 64;  // KvLayout's engine and isa, each.

// What a lossy codec is asked for, for all segments of a record.
struct EncodeOptions {
  QualityClass quality = QualityClass::kBalanced;  // Of the record, where the codec is lossy.
  float step = 0;  // Global step of the quantiser; 0: by the class, from each segment's own spread.
  // Multiply the step: [layer of the model][K, V][head], V's only where the layout has V; empty: all 1.
  std::span<const float> scales;
  uint32_t latent_dims = 0;   // Of a latent plane, the dims of the latent part, for a step of its own; 0: one part.
  uint32_t exact_tokens = 0;  // The first positions of a chain stay as they are: those below this one.
  Rope rope;                  // How keys are rotated; it travels in the record.
  // What was measured of this model. EC-K and EC-X need it, and so does whoever decodes (UseArtifact); EC-C
  // takes its scales, rotation and step where none are given here, and its records need nothing to decode.
  const Artifact* artifact = nullptr;
};

struct RecordSpec {
  KvLayout layout;
  Scope scope;
  QualityClass quality = QualityClass::kExact;
  uint64_t pos0 = 0;         // Absolute position of the block's first token.
  uint16_t layer_begin = 0;  // A part: only these layers; 0, 0 means all.
  uint16_t layer_end = 0;
  const EncodeOptions* options = nullptr;  // For lossy codecs; borrowed for the call.
};

// An upper bound for EncodeRecord's out. raw_bytes counts only where the layout is opaque.
uint64_t MaxRecordBytes(const RecordSpec& spec, uint64_t raw_bytes);

// The raw bytes of the layers of spec; raw_bytes itself where the layout is opaque.
uint64_t RawBytes(const RecordSpec& spec, uint64_t raw_bytes = 0);

// Writes a record into out, which must hold MaxRecordBytes, and returns its size. A segment that the
// codec would not make at least 1/32 smaller is stored RAW.
// Errors: kInvalidArgument: a bad layout or range, sizes that do not fit, a record that could exceed
// kMaxPayloadBytes; kUnimplemented: a codec this build does not have.
Result<uint64_t> EncodeRecord(const RecordSpec& spec, CodecId codec, ByteSpan block,
                              MutableByteSpan out);
// From planes wherever they lie; opaque_bytes counts only where the layout is opaque.
Result<uint64_t> EncodeRecordFrom(const RecordSpec& spec, CodecId codec, const PlaneSource& source,
                                  MutableByteSpan out, uint64_t opaque_bytes = 0);

struct SegmentInfo {
  SegmentShape shape;
  CodecId codec = CodecId::kRaw;
  uint64_t offset = 0;  // From the record's start.
  uint32_t bytes = 0;
  uint32_t params = 0;
  uint32_t crc32c = 0;
  uint64_t decoded_digest = 0;
};

// What the header and TLVs say.
struct RecordSummary {
  KvLayout layout;
  Scope scope;
  CodecId codec = CodecId::kRaw;  // As asked of the encoder; each segment has its own.
  QualityClass quality = QualityClass::kExact;
  uint16_t layer_begin = 0;  // Both 0 where the layout is opaque.
  uint16_t layer_end = 0;
  uint32_t n_segments = 0;
  uint64_t pos0 = 0;
  uint64_t artifact_id = 0;
  uint64_t record_bytes = 0;
  uint64_t head_bytes = 0;  // Header, TLVs and directory, padded: where the first segment starts.
  uint64_t raw_bytes = 0;   // Zero for opaque bytes: only the directory says.
  uint64_t decoded_digest = 0;
  bool lossy = false;
  RopeStyle rope_style = RopeStyle::kHalves;
  uint32_t rope_first = 0;
  uint32_t rope_dims = 0;  // 0: the record tells no rotation.
  uint32_t tokens() const { return layout.opaque() ? 0 : layout.tokens_per_block; }
};

// A record whose head is checked. Segments are read from the directory as they are asked for.
struct RecordView : RecordSummary {
  ByteSpan bytes;
  uint32_t directory_offset = 0;
  uint32_t digest_offset = 0;  // Of the decoded digest's TLV value.
  uint32_t rope_offset = 0;    // Of the rope's frequencies, u64 each, rope_dims / 2 of them.

  SegmentInfo segment(uint32_t index) const;  // index < n_segments.
  ByteSpan segment_bytes(const SegmentInfo& segment) const {
    return bytes.subspan(segment.offset, segment.bytes);
  }
};

// The header and TLVs alone, without checksum: for a look at a record whose rest is elsewhere. Bytes
// may be any prefix that holds the TLVs (the first 4 KiB always do).
Result<RecordSummary> PeekRecord(ByteSpan prefix);

// All of the head, checksum included; bytes must be exactly the record.
Result<RecordView> ParseRecord(ByteSpan bytes);
// The same where only the first head_bytes are at hand: segment_bytes must not be called.
Result<RecordView> ParseRecordHead(ByteSpan prefix);

// The encoded bytes are what the encoder wrote (and padding is zero).
Status VerifyRecord(const RecordView& record);
Status VerifySegments(const RecordView& record, uint16_t layer_begin, uint16_t layer_end);

// Decodes the given layers (0, 0: all that the record holds) into out, which must be exactly their
// size, and checks each segment while it is warm: its decoded digest, or of RAW, whose decoded bytes are
// the encoded ones, its CRC32C. Out's content is not specified after an error. VerifyRecord need not
// come first.
Status DecodeRecord(const RecordView& record, const KvLayout& expected, MutableByteSpan out,
                    uint16_t layer_begin = 0, uint16_t layer_end = 0);
// To planes wherever they lie; the sink's index counts segments from the first one decoded.
Status DecodeRecordTo(const RecordView& record, const KvLayout& expected, const PlaneSink& sink,
                      uint16_t layer_begin = 0, uint16_t layer_end = 0);
// The decoded size of a range of layers, by the directory.
Result<uint64_t> DecodedBytes(const RecordView& record, uint16_t layer_begin = 0,
                              uint16_t layer_end = 0);

// Copies a record out of memory that another process may write to, and checks the copy: the head is
// parsed from the copy, each segment is summed as it is copied. dst must hold the record; what lies
// behind it stays. Reads every source byte of a segment once.
Status CopyRecordVerified(ByteSpan src_record, MutableByteSpan dst);

// CopyRecordVerified for a record that arrives in consecutive pieces of any sizes.
class RecordCopier {
 public:
  // dst is where the record goes and exactly as long; it must stay until the last Add.
  explicit RecordCopier(MutableByteSpan dst) : dst_(dst) {}
  void Add(ByteSpan piece);
  // What CopyRecordVerified would say; kDataLoss, too, where pieces are missing or too many came.
  Status Finish() const;

 private:
  void Fail(Error why) { status_ = tl::unexpected<Error>(std::move(why)); }
  size_t AddHead(ByteSpan piece);
  size_t AddBody(ByteSpan piece);

  const MutableByteSpan dst_;
  size_t at_ = 0;
  size_t head_bytes_ = 0;  // Zero until the header is here.
  Result<RecordView> record_ = tl::unexpected<Error>(Error{});  // Once the head is here.
  uint32_t segment_ = 0;   // The one that at_ is in or before.
  uint32_t crc_ = 0;       // Of its bytes that are here.
  Status status_;
};

// A record of just some layers is a new head and one range of the old body.
struct ExtractPlan {
  uint64_t head_bytes = 0;
  uint64_t body_offset = 0;  // In the old record.
  uint64_t body_bytes = 0;
  uint64_t record_bytes() const { return head_bytes + body_bytes; }
};
Result<ExtractPlan> PlanExtract(const RecordView& record, uint16_t layer_begin, uint16_t layer_end);
// Writes the new head; out must hold plan.head_bytes. The plan must be this record's and range's.
Result<uint64_t> WriteExtractHead(const RecordView& record, uint16_t layer_begin,
                                  uint16_t layer_end, MutableByteSpan out);
// Head and body; returns the new record's size.
Result<uint64_t> ExtractLayers(const RecordView& record, uint16_t layer_begin, uint16_t layer_end,
                               MutableByteSpan out);

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_RECORD_H_
