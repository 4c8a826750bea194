// What the launches of a batch tell their kernels: plain values and device pointers, passed by value.
// Internal to kernels/cuda; whoever wants to encode or decode reads batch.h.
#ifndef TIERCEL_KERNELS_CUDA_BATCH_SHAPE_H_
#define TIERCEL_KERNELS_CUDA_BATCH_SHAPE_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::gpu {

// One layer's K or V over all pages, as PagedPlane (kernels/paged.h) says it.
struct Plane {
  std::byte* base = nullptr;
  uint64_t page_stride = 0;
  uint64_t token_stride = 0;
  uint64_t head_stride = 0;
  uint64_t dim_stride = 0;
};

// What became of a block.
enum class BlockCode : uint32_t {
  kOk = 0,
  kPage = 1,         // A page number that the cache does not have.
  kPointer = 2,      // The record's address is null or no multiple of 64.
  kHead = 3,         // The record's head is malformed, or does not sum to its checksum.
  kLayout = 4,       // The record is of another layout, or other layers.
  kUnsupported = 5,  // A codec or field that has no kernel here: decode it on the CPU.
  kChecksum = 6,     // A segment's bytes do not sum to its checksum.
  kSegment = 7,      // A segment is malformed.
  kDigest = 8,       // A segment decodes to something else than was encoded.
  kArtifact = 9,     // It needs an artifact that is not the batch's, or that has no transform for a segment.
};
struct BlockResult {
  BlockCode code = BlockCode::kOk;
  uint32_t segment = 0;  // The first that is wrong, where one is.
  uint64_t bytes = 0;    // Of the record.
};

inline constexpr uint32_t kMaxHeader = 320;  // Without the frequencies of a rotation.
inline constexpr uint32_t kMaxSegments = 65535;  // Of a batch: a grid has no more rows.

// Segments of one kind: K, or V, or both in one.
struct KindShape {
  uint32_t heads = 0;
  uint32_t dim = 0;
  uint32_t values = 0;
  uint32_t limit = 0;    // Encoded bytes worth having.
  uint8_t order = 0;     // AxisOrder.
  uint8_t kind = 0;      // SegmentKind.
  uint8_t groups = 0;    // EC-C, encoding: parts of a head that have a step of their own.
  uint16_t split = 0;    // Dims of the first of two.
  uint16_t supports = 0;  // A bit a codec, by its id.
};

struct BatchShape {
  uint32_t segments = 0;  // Of a record.
  uint32_t kinds = 1;     // Of a layer.
  uint32_t tokens = 0;
  uint32_t layer_begin = 0;
  uint32_t tokens_per_page = 0;
  uint32_t pages = 0;      // Of a block.
  uint32_t n_pages = 0;    // Of the cache.
  uint8_t elem = 0;
  uint8_t dtype = 0;
  uint8_t codec = 0;
  uint32_t header_bytes = 0;  // Of what is encoded.
  uint32_t head_bytes = 0;    // With the directory.
  uint32_t rope_at = 0;       // Where a rotation's TLV stands, or the list of TLVs ends.
  uint32_t digest_at = 0;
  uint32_t slot_bytes = 0;     // Encoding: of a segment, before it has its place in the record.
  uint32_t encode_scratch = 0;  // Of a segment; multiples of 64.
  uint32_t decode_scratch = 0;
  uint32_t codecs = 0;     // A bit a codec that records to be decoded may hold.
  uint32_t turned_dims = 0;  // Of a head, those that a record's rotation may turn.
  uint32_t first_head = 0;  // Of the model's heads, this rank's first.
  // EC-C, EC-K and EC-X, encoding.
  uint64_t artifact = 0;      // The id of the one whose image the batch must have; 0: none.
  uint8_t foretells = 0;      // Not 0: it has what foretells levels, from K.
  uint64_t exact_tokens = 0;  // The first positions of a chain, which stay as they are.
  float step = 0;
  float class_step = 0;
  uint16_t rope_first = 0;  // EC-C's rotation; its frequencies are the first of the tables.
  uint16_t rope_dims = 0;
  uint8_t rope_style = 0;
  uint32_t unturned_at = 0;  // EC-C, in the tables: a byte a segment, not 0 where its keys stay as they are turned.
  KindShape kind[2];
  uint8_t header[kMaxHeader] = {};   // As the CPU writes it; sizes, digest, pos0 and checksum change.
  uint8_t ignored[kMaxHeader] = {};  // Not 0: a record of this layout may have another byte here.
};

struct Segment;

struct BatchArgs {
  BatchShape shape;
  uint32_t blocks = 0;
  const Plane* planes = nullptr;      // [segments]: one block's, in the record's order.
  const uint32_t* pages = nullptr;    // [blocks][pages].
  const uint64_t* pos0 = nullptr;     // [blocks], encoding; null: all 0.
  uint8_t* const* records = nullptr;  // [blocks].
  const uint64_t* record_bytes = nullptr;  // [blocks], decoding.
  const uint8_t* tables = nullptr;         // The plan's; null: it has none.
  const uint8_t* artifact = nullptr;       // Its image; null: none.
  BlockResult* results = nullptr;          // [blocks].
  Segment* jobs = nullptr;                 // [blocks][segments].
  uint8_t* slots = nullptr;
  uint8_t* scratch = nullptr;
};

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_BATCH_SHAPE_H_
