// Where things lie in a record's head. Internal to kernels/; the same table is docs/block-format.md.
#ifndef TIERCEL_KERNELS_RECORD_HEAD_H_
#define TIERCEL_KERNELS_RECORD_HEAD_H_

#include <cstdint>

#include "kernels/record.h"

namespace tiercel::record_head {

// Header.
inline constexpr size_t kMagic = 0;
inline constexpr size_t kMajor = 4;
inline constexpr size_t kMinor = 5;
inline constexpr size_t kHeaderSize = 6;
inline constexpr size_t kRecordSize = 8;
inline constexpr size_t kCodec = 16;
inline constexpr size_t kProfile = 17;
inline constexpr size_t kQuality = 18;
inline constexpr size_t kFlags = 19;
inline constexpr size_t kDtype = 20;
inline constexpr size_t kOrders = 21;  // k_order | v_order << 4.
inline constexpr size_t kPacking = 22;
inline constexpr size_t kKinds = 23;
inline constexpr size_t kLayerBegin = 24;
inline constexpr size_t kLayerCount = 26;
inline constexpr size_t kLayers = 28;
inline constexpr size_t kKvHeads = 30;
inline constexpr size_t kDimK = 32;
inline constexpr size_t kDimV = 34;
inline constexpr size_t kTokens = 36;
inline constexpr size_t kSegments = 38;
inline constexpr size_t kPos0 = 40;
inline constexpr size_t kArtifact = 48;
inline constexpr size_t kRank = 56;
inline constexpr size_t kWorldMinus1 = 58;
inline constexpr size_t kCrc = 60;

// Directory entry.
inline constexpr size_t kEntryLayer = 0;
inline constexpr size_t kEntryKind = 2;
inline constexpr size_t kEntryCodec = 3;
inline constexpr size_t kEntryOffset64 = 4;  // In units of 64 bytes from the record's start.
inline constexpr size_t kEntryBytes = 8;
inline constexpr size_t kEntryRawBytes = 12;
inline constexpr size_t kEntryParams = 16;
inline constexpr size_t kEntryCrc = 20;
inline constexpr size_t kEntryDigest = 24;

// TLV types. A reader skips unknown ones from kSkippable on and refuses unknown ones below it.
inline constexpr uint16_t kTlvEnd = 0;
inline constexpr uint16_t kTlvScope = 1;
inline constexpr uint16_t kTlvDigest = 2;
inline constexpr uint16_t kTlvEngine = 3;
inline constexpr uint16_t kTlvIsa = 4;
inline constexpr uint16_t kTlvRope = 5;
inline constexpr uint16_t kTlvSkippable = 0x8000;

inline constexpr uint8_t kFlagLossy = 1;
inline constexpr uint8_t kFlagArtifact = 2;

// The rope's TLV: u8 style, u8 0, u16 first, u16 dims, u16 0, then the frequencies.
inline constexpr size_t kRopeStyle = 0;
inline constexpr size_t kRopeFirst = 2;
inline constexpr size_t kRopeDims = 4;
inline constexpr size_t kRopeFrequencies = 8;

constexpr uint64_t Align(uint64_t value, uint64_t to = kRecordAlign) {
  return (value + to - 1) / to * to;
}
constexpr uint64_t TlvBytes(uint64_t value_bytes) { return Align(4 + value_bytes, 8); }

// How many segments each layer has, and the shape of segment `index` of a record that starts at
// layer_begin. opaque_bytes counts only where the layout is opaque.
uint32_t SegmentsPerLayer(const KvLayout& layout);
SegmentShape ShapeOf(const KvLayout& layout, uint16_t layer_begin, uint32_t index,
                     uint64_t opaque_bytes);

// The options of a codec of several classes: those given, or none, with what their artifact says filled in.
// kInvalidArgument names what is wrong with them.
Result<EncodeOptions> OptionsOf(const RecordSpec& spec, CodecId codec);
// What spec's options (OptionsOf) say of one segment.
CodecContext ContextOf(const RecordSpec& spec, const SegmentShape& shape);
// Whether EC-C turns that layer's keys back by the options' rotation: not where it came from their artifact, in which
// the layer has one of its own. A record tells only one.
bool TurnsBack(const EncodeOptions& options, uint16_t layer);

// The header's checksum: over the head with the checksum's own field zero.
uint32_t HeadCrc(ByteSpan head);

// The record's digest: DecodedDigest over the segments' digests, 8 bytes each, in their order.
class DigestOfDigests {
 public:
  void Add(uint64_t segment_digest);
  uint64_t Finish() const;

 private:
  uint64_t sum_ = 0;
  uint64_t count_ = 0;
};

// Segment indices [first, end) of a range of layers; 0, 0 means all.
struct IndexRange {
  uint32_t first = 0;
  uint32_t end = 0;
};
Result<IndexRange> ResolveLayers(const RecordSummary& record, uint16_t layer_begin,
                                 uint16_t layer_end);

}  // namespace tiercel::record_head

#endif  // TIERCEL_KERNELS_RECORD_HEAD_H_
