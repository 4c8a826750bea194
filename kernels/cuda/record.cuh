// Records on a GPU: what lies around the codecs' segments. A record is the same as the CPU's to the byte.
//
//   encode:  EncodeBegin   grid (1, blocks), one warp: pages are looked at, segments set up
//            (codecs)
//            EncodeRaw     grid (any, segments): those that no codec took, into their slots
//            EncodePlace   grid (1, blocks), one warp: offsets, directory, header
//            EncodeCopy    grid (any, segments): slots to the record, summed on the way
//            EncodeSeal    grid (1, blocks), one warp: checksums
//   decode:  DecodeBegin   grid (1, blocks), one warp: the head is checked, segments set up
//            DecodeSums    grid (any, segments): checksums; RAW is put where it belongs
//            (codecs)
//            DecodeFinish  grid (1, blocks), one warp: what became of the block
//   PlaneDigest            grid (any, segments): of what lies in the pages, for codecs that do not say
#ifndef TIERCEL_KERNELS_CUDA_RECORD_CUH_
#define TIERCEL_KERNELS_CUDA_RECORD_CUH_

#include "kernels/cuda/batch_shape.h"
#include "kernels/cuda/crc.cuh"
#include "kernels/cuda/ecc.cuh"
#include "kernels/cuda/fixed.cuh"
#include "kernels/cuda/i8e.cuh"
#include "kernels/cuda/klt.cuh"
#include "kernels/cuda/lle.cuh"
#include "kernels/cuda/llf.cuh"

namespace tiercel::gpu {

inline constexpr uint8_t kRawCodec = 0;
inline constexpr uint8_t kNoSuchCodec = 6;
inline constexpr uint8_t kLastCodec = kI8eCodec;
inline constexpr uint32_t kEntryBytes = 32;
// Fields of a record's head (kernels/record_head.h).
inline constexpr uint32_t kAtHeaderSize = 6;
inline constexpr uint32_t kAtRecordSize = 8;
inline constexpr uint32_t kAtCodec = 16;
inline constexpr uint32_t kAtQuality = 18;
inline constexpr uint32_t kAtFlags = 19;
inline constexpr uint32_t kAtPos0 = 40;
inline constexpr uint32_t kAtArtifact = 48;
inline constexpr uint32_t kAtCrc = 60;
inline constexpr uint8_t kFlagLossy = 1;
inline constexpr uint8_t kFlagArtifact = 2;
// The TLV of a rotation: type, length, style, 0, first, dims, 0, frequencies.
inline constexpr uint32_t kRopeType = 5;
inline constexpr uint32_t kRopeHead = 12;
inline constexpr uint32_t kMostRopeDims = 512;

// Whether all of a block's pages are there. Warp.
TIERCEL_DEVICE bool GoodPages(const BatchArgs& args, uint32_t block) {
  bool bad = false;
  for (uint32_t i = Lane(); i < args.shape.pages; i += 32) bad = bad || args.pages[block * args.shape.pages + i] >= args.shape.n_pages;
  return Ballot(bad) == 0;
}

TIERCEL_DEVICE Segment SegmentOf(const BatchArgs& args, uint32_t block, uint32_t index) {
  const BatchShape& shape = args.shape;
  const KindShape& kind = shape.kind[index % shape.kinds];
  const Plane& plane = args.planes[index];
  Segment s;
  s.base = reinterpret_cast<uint8_t*>(plane.base);
  s.pages = args.pages + block * shape.pages;
  s.page_stride = plane.page_stride;
  s.token_stride = plane.token_stride;
  s.head_stride = plane.head_stride;
  s.dim_stride = plane.dim_stride;
  s.tokens_per_page = shape.tokens_per_page;
  s.tokens = shape.tokens;
  s.heads = kind.heads;
  s.dim = kind.dim;
  s.values = kind.values;
  s.elem = shape.elem;
  s.dtype = shape.dtype;
  s.order = kind.order;
  s.kind = kind.kind;
  s.layer = static_cast<uint16_t>(shape.layer_begin + index / shape.kinds);
  s.limit = kind.limit;
  return s;
}

// How EC-C's keys are rotated, by a record or a plan.
struct RopeOf {
  const uint8_t* frequencies = nullptr;
  uint16_t first = 0, dims = 0;
  uint8_t style = 0;
};
// What EC-C, EC-K and EC-X have to know of a segment; false: the artifact has no transform for it.
TIERCEL_DEVICE bool PrepareEc(const BatchArgs& args, const RopeOf& rope, uint64_t pos0, Segment* s) {
  s->pos0 = pos0;
  const bool v = s->kind == kKindV;
  if (s->codec == kEcCCodec) {
    if (v) return true;
    s->frequencies = rope.frequencies;
    s->rope_first = rope.first;
    s->rope_dims = rope.dims;
    s->rope_style = rope.style;
    return true;
  }
  if (s->codec != kEcKCodec && s->codec != kEcXCodec) return true;
  if (args.artifact == nullptr) return false;
  const auto& head = *reinterpret_cast<const ImageHead*>(args.artifact);
  const uint32_t n = KltGroupSize(*s);
  const uint32_t first = s->codec == kEcXCodec ? head.kv_heads : args.shape.first_head;
  const uint32_t groups = s->columns() / n;
  if (s->layer >= head.layers || (v ? head.dim_v : head.dim_k) != s->dim) return false;
  if (s->codec == kEcKCodec && first + groups > head.kv_heads) return false;
  s->image = args.artifact;
  s->transforms = reinterpret_cast<const ImageTransform*>(args.artifact + head.transforms_at) +
                  TransformIndex(head.kv_heads, s->layer, v, first);
  for (uint32_t i = 0; i < groups; ++i) {
    if (s->transforms[i].n != n) return false;
  }
  if (v) return true;
  s->frequencies = args.artifact + FrequenciesAt(head, s->layer);
  s->rope_dims = static_cast<uint16_t>(head.rope_dims);
  s->rope_style = static_cast<uint8_t>(head.rope_style);
  return true;
}
// Whether a record that names this artifact can be had with the batch's.
TIERCEL_DEVICE bool HasArtifact(const BatchArgs& args, uint64_t id) {
  return args.artifact != nullptr && reinterpret_cast<const ImageHead*>(args.artifact)->id == id;
}

// ---- Encoding.

TIERCEL_KERNEL void EncodeBegin(BatchArgs args) {
  const BatchShape& shape = args.shape;
  const uint32_t block = BlockY();
  BlockResult* const result = args.results + block;
  BlockCode code = BlockCode::kOk;
  if (args.records[block] == nullptr || !AlignedTo(args.records[block], 64)) code = BlockCode::kPointer;
  if (!GoodPages(args, block)) code = BlockCode::kPage;
  if (shape.artifact != 0 && !HasArtifact(args, shape.artifact)) code = BlockCode::kArtifact;
  if (Lane() == 0) *result = {code, 0, 0};
  const uint64_t pos0 = args.pos0 == nullptr ? 0 : args.pos0[block];
  for (uint32_t i = Lane(); i < shape.segments; i += 32) {
    Segment s = SegmentOf(args, block, i);
    const uint64_t job = uint64_t{block} * shape.segments + i;
    const bool supported = (shape.kind[i % shape.kinds].supports >> shape.codec & 1) != 0;
    s.codec = code != BlockCode::kOk ? kNoCodec : supported ? shape.codec : kRawCodec;
    s.encoded = args.slots + job * shape.slot_bytes;
    s.scratch = args.scratch + job * shape.encode_scratch;
    s.encoding = 1;
    if (IsEc(s)) {  // Then the artifact is here, where there must be one.
      if (!PrepareEc(args, {args.tables, shape.rope_first, shape.rope_dims, shape.rope_style}, pos0, &s)) s.failed = 1;
      if (pos0 < shape.exact_tokens) {
        const uint64_t exact = shape.exact_tokens - pos0;
        s.exact = exact < s.tokens ? static_cast<uint32_t>(exact) : s.tokens - 1;
      }
      if (shape.foretells != 0) {
        s.image = args.artifact;
        s.first_head = shape.first_head;
        const uint64_t levels_at = reinterpret_cast<const ImageHead*>(args.artifact)->levels_at;
        s.foretelling = reinterpret_cast<const ImageLevels*>(args.artifact + levels_at) + 2 * s.layer + (s.kind == kKindV ? 1 : 0);
        if (s.foretelling->n == 0) s.foretelling = nullptr;
      }
      const KindShape& kind = shape.kind[i % shape.kinds];
      s.step = shape.step;
      s.class_step = shape.class_step;
      s.split = kind.split;
      s.groups = kind.groups * s.heads;
      const uint32_t before = i / shape.kinds * (shape.kind[0].groups * shape.kind[0].heads + shape.kind[1].groups * shape.kind[1].heads) +
                              (i % shape.kinds != 0 ? shape.kind[0].groups * shape.kind[0].heads : 0);
      s.scales = reinterpret_cast<const float*>(args.tables + 4 * shape.rope_dims) + before;
      if (s.codec == kEcCCodec && args.tables[shape.unturned_at + i] != 0) s.rope_dims = 0;
    }
    args.jobs[job] = s;
  }
}

TIERCEL_DEVICE bool StoredRaw(const Segment& s) { return s.bytes == 0 || s.failed != 0; }

TIERCEL_KERNEL void EncodeRaw(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec == kNoCodec || !StoredRaw(s)) return;
  uint64_t share = 0;
  for (uint32_t word = ThreadOfGrid(); word < s.words(); word += ThreadsOfGrid()) {
    const uint64_t bytes = LoadWord(s, word);
    reinterpret_cast<uint64_t*>(s.encoded)[word] = bytes;
    share += DigestTerm(bytes, word);
  }
  AddDigest(share, &s.raw_digest);
}

TIERCEL_KERNEL void EncodePlace(BatchArgs args) {
  const BatchShape& shape = args.shape;
  const uint32_t block = BlockY();
  BlockResult* const result = args.results + block;
  if (result->code != BlockCode::kOk) return;
  uint8_t* const record = args.records[block];
  Segment* const jobs = args.jobs + uint64_t{block} * shape.segments;
  uint32_t offset = shape.head_bytes;
  uint64_t digest = 0;
  for (uint32_t first = 0; first < shape.segments; first += 32) {
    const uint32_t i = first + Lane();
    uint32_t bytes = 0;
    Segment& s = jobs[i < shape.segments ? i : 0];
    if (i < shape.segments) {
      const bool raw = StoredRaw(s);
      s.used = raw ? kRawCodec : s.codec;
      s.bytes = raw ? s.raw_bytes() : s.bytes;
      s.params = raw ? 0 : s.params;
      s.digest = (raw ? s.raw_digest : s.digest) + Mix64(s.raw_bytes());
      s.failed = 0;
      bytes = s.bytes;
      digest += DigestTerm(s.digest, i);
    }
    uint32_t all = 0;
    const uint32_t at = offset + WarpScan(UpTo64(bytes), &all);
    offset += all;
    if (i >= shape.segments) continue;
    s.offset = at;
    uint8_t* const entry = record + shape.header_bytes + i * kEntryBytes;
    StoreU16(entry, s.layer);
    entry[2] = s.kind;
    entry[3] = s.used;
    StoreU32(entry + 4, at / 64);
    StoreU32(entry + 8, bytes);
    StoreU32(entry + 12, s.raw_bytes());
    StoreU32(entry + 16, s.params);
    StoreU32(entry + 20, 0);
    StoreU64(entry + 24, s.digest);
  }
  digest = WarpSum(digest) + Mix64(uint64_t{8} * shape.segments);
  const uint32_t frequencies_at = shape.rope_at + kRopeHead;
  for (uint32_t i = Lane(); i < shape.header_bytes; i += 32) {
    const bool frequency = shape.rope_dims != 0 && i >= frequencies_at && i < frequencies_at + 4 * shape.rope_dims;
    record[i] = frequency ? args.tables[i - frequencies_at] : i < kMaxHeader ? shape.header[i] : 0;
  }
  for (uint32_t i = shape.header_bytes + shape.segments * kEntryBytes + Lane(); i < shape.head_bytes; i += 32) record[i] = 0;
  SyncWarp();
  if (Lane() == 0) {
    StoreU64(record + kAtRecordSize, offset);
    StoreU64(record + kAtPos0, args.pos0 == nullptr ? 0 : args.pos0[block]);
    StoreU64(record + shape.digest_at, digest);
    StoreU32(record + kAtCrc, 0);
    result->bytes = offset;
  }
}

// Adds the sums of a segment's pieces to its own; word(at) is the one that begins at byte `at`.
template <class Word>
TIERCEL_DEVICE void SumPieces(Segment& s, Word word) {
  for (uint32_t at = WarpOfGrid() * kCrcPiece; at < s.bytes; at += WarpsOfGrid() * kCrcPiece) {
    const uint32_t bytes = s.bytes - at < kCrcPiece ? s.bytes - at : kCrcPiece;
    // The initial value falls upon the first word.
    const uint32_t sum = CrcShare(at, (bytes + 3) / 4, s.bytes,
                                  [&](uint32_t i) { return word(at + 4 * i) ^ (at + i == 0 ? 0xffffffffu : 0u); });
    if (Lane() == 0) AtomicXor(&s.crc, sum);
  }
}

TIERCEL_KERNEL void EncodeCopy(BatchArgs args) {
  Segment& s = args.jobs[BlockY()];
  if (s.codec == kNoCodec) return;
  uint8_t* const to = args.records[BlockY() / args.shape.segments] + s.offset;
  SumPieces(s, [&](uint32_t at) {
    const uint32_t word = WordOf(s.encoded, s.bytes, at);
    *reinterpret_cast<uint32_t*>(to + at) = word;
    return word;
  });
  for (uint32_t i = (s.bytes + 3) / 4 + ThreadOfGrid(); i < UpTo64(s.bytes) / 4; i += ThreadsOfGrid()) {
    reinterpret_cast<uint32_t*>(to)[i] = 0;
  }
}

// The head's checksum, its own field taken as zero. Warp.
TIERCEL_DEVICE uint32_t HeadSum(const uint8_t* record, uint32_t bytes) {
  return ~CrcShare(0, bytes / 4, bytes, [&](uint32_t i) {
    if (i == kAtCrc / 4) return 0u;
    return reinterpret_cast<const uint32_t*>(record)[i] ^ (i == 0 ? 0xffffffffu : 0u);
  });
}

TIERCEL_KERNEL void EncodeSeal(BatchArgs args) {
  const BatchShape& shape = args.shape;
  const uint32_t block = BlockY();
  if (args.results[block].code != BlockCode::kOk) return;
  uint8_t* const record = args.records[block];
  for (uint32_t i = Lane(); i < shape.segments; i += 32) {
    StoreU32(record + shape.header_bytes + i * kEntryBytes + 20, ~args.jobs[uint64_t{block} * shape.segments + i].crc);
  }
  SyncWarp();
  const uint32_t sum = HeadSum(record, shape.head_bytes);
  if (Lane() == 0) StoreU32(record + kAtCrc, sum);
}

// ---- Both ways.

TIERCEL_KERNEL void PlaneDigest(Segment* segments, uint32_t decoding) {
  Segment& s = segments[BlockY()];
  if (s.failed != 0 || (s.codec != kLleCodec && (s.codec != kI4hCodec || decoding == 0))) return;
  DigestPlane(s, &s.digest);
}

// ---- Decoding.

// The class of what a codec decodes to, at best.
TIERCEL_DEVICE uint32_t LeastQuality(uint32_t codec) {
  return codec < kF8Codec ? 0 : codec == kF8Codec ? 2 : codec == kI4hCodec ? 3 : 1;
}

// What the header says; warp, all lanes get the same. Where it is good, *header_bytes and *rope are the record's.
TIERCEL_DEVICE BlockCode CheckHeader(const BatchArgs& args, const uint8_t* record, uint64_t bytes, uint32_t* header_bytes, RopeOf* rope) {
  const BatchShape& shape = args.shape;
  if (record == nullptr || !AlignedTo(record, 64)) return BlockCode::kPointer;
  if (bytes < UpTo64(shape.rope_at) || bytes % 64 != 0 || bytes > 0xffffffc0u || LoadU64(record + kAtRecordSize) != bytes) {
    return BlockCode::kHead;
  }
  bool other = false;
  for (uint32_t i = Lane(); i < shape.rope_at; i += 32) {
    other = other || (shape.ignored[i] == 0 && record[i] != shape.header[i]);
  }
  if (Ballot(other) != 0) return BlockCode::kLayout;
  uint32_t end = shape.rope_at;
  const uint32_t header = LoadU16(record + kAtHeaderSize);
  if (bytes < header + shape.segments * kEntryBytes) return BlockCode::kHead;
  if (header > end + kRopeHead && LoadU16(record + end) == kRopeType) {
    const uint8_t* const tlv = record + end;
    rope->style = tlv[4];
    rope->first = static_cast<uint16_t>(LoadU16(tlv + 6));
    rope->dims = static_cast<uint16_t>(LoadU16(tlv + 8));
    rope->frequencies = tlv + kRopeHead;
    if (rope->dims == 0 || rope->dims % 2 != 0 || rope->dims > kMostRopeDims || rope->style > 1 ||
        uint32_t{rope->first} + rope->dims > shape.turned_dims || LoadU16(tlv + 2) != kRopeHead - 4 + 4u * rope->dims) {
      return BlockCode::kHead;
    }
    end += (kRopeHead + 4u * rope->dims + 7) / 8 * 8;
  }
  if (header != UpTo64(end)) return BlockCode::kLayout;
  for (uint32_t i = end + Lane(); i < header; i += 32) other = other || record[i] != 0;
  if (Ballot(other) != 0) return BlockCode::kLayout;
  *header_bytes = header;
  const uint32_t head_bytes = UpTo64(header + shape.segments * kEntryBytes);
  if (bytes < head_bytes || HeadSum(record, head_bytes) != LoadU32(record + kAtCrc)) return BlockCode::kHead;
  const uint32_t codec = record[kAtCodec];
  const uint32_t flags = record[kAtFlags];
  if (codec > kLastCodec || codec == kNoSuchCodec || flags > (kFlagLossy | kFlagArtifact)) return BlockCode::kUnsupported;
  const bool needs_artifact = codec == kEcKCodec || codec == kEcXCodec;
  const uint64_t artifact = LoadU64(record + kAtArtifact);
  if ((codec >= kF8Codec) != ((flags & kFlagLossy) != 0) || record[kAtQuality] > 4 || record[kAtQuality] < LeastQuality(codec) ||
      needs_artifact != ((flags & kFlagArtifact) != 0) || needs_artifact != (artifact != 0)) {
    return BlockCode::kHead;
  }
  return needs_artifact && !HasArtifact(args, artifact) ? BlockCode::kArtifact : BlockCode::kOk;
}

TIERCEL_KERNEL void DecodeBegin(BatchArgs args) {
  const BatchShape& shape = args.shape;
  const uint32_t block = BlockY();
  BlockResult* const result = args.results + block;
  const uint8_t* const record = args.records[block];
  const uint64_t bytes = args.record_bytes[block];
  Segment* const jobs = args.jobs + uint64_t{block} * shape.segments;
  uint32_t header_bytes = shape.header_bytes;
  RopeOf rope;
  BlockCode code = GoodPages(args, block) ? CheckHeader(args, record, bytes, &header_bytes, &rope) : BlockCode::kPage;
  uint32_t where = 0;
  uint64_t offset = UpTo64(header_bytes + shape.segments * kEntryBytes);
  uint64_t digest = 0;
  for (uint32_t first = 0; first < shape.segments && code == BlockCode::kOk; first += 32) {
    const uint32_t i = first + Lane();
    const bool live = i < shape.segments;
    const uint8_t* const entry = record + header_bytes + (live ? i : 0) * kEntryBytes;
    Segment s = SegmentOf(args, block, live ? i : 0);
    const uint32_t encoded = live ? LoadU32(entry + 8) : 0;
    // Sizes are below 2^25: no sum of 32 overflows.
    const bool large = encoded > s.raw_bytes();
    uint32_t all = 0;
    const uint64_t at = offset + WarpScan(large ? 0 : UpTo64(encoded), &all);
    offset += all;
    s.codec = entry[3];
    s.bytes = encoded;
    s.params = LoadU32(entry + 16);
    s.wanted_crc = LoadU32(entry + 20);
    s.wanted_digest = LoadU64(entry + 24);
    const bool bad = live && (large || LoadU16(entry) != s.layer || entry[2] != s.kind || LoadU32(entry + 12) != s.raw_bytes() ||
                              uint64_t{64} * LoadU32(entry + 4) != at || at + UpTo64(encoded) > bytes ||
                              (s.codec == kRawCodec && (encoded != s.raw_bytes() || s.params != 0)) ||
                              (s.codec >= kF8Codec && s.codec <= kLastCodec && (record[kAtFlags] & kFlagLossy) == 0));
    const bool unknown = live && (s.codec > kLastCodec || (shape.codecs >> s.codec & 1) == 0 ||
                                  (shape.kind[i % shape.kinds].supports >> s.codec & 1) == 0);
    // An artifact is the record's to name.
    const bool has_transforms = PrepareEc(args, rope, LoadU64(record + kAtPos0), &s) && (!IsKlt(s) || LoadU64(record + kAtArtifact) != 0);
    if (live) digest += DigestTerm(s.wanted_digest, i);
    if (const uint32_t which = Ballot(bad); which != 0) {
      code = BlockCode::kHead;
      where = first + LowestOne(which);
    } else if (const uint32_t not_here = Ballot(unknown); not_here != 0) {
      code = BlockCode::kUnsupported;
      where = first + LowestOne(not_here);
    } else if (const uint32_t without = Ballot(live && !has_transforms); without != 0) {
      code = BlockCode::kArtifact;
      where = first + LowestOne(without);
    } else if (live) {
      s.encoded = const_cast<uint8_t*>(record) + at;
      s.scratch = args.scratch + (uint64_t{block} * shape.segments + i) * shape.decode_scratch;
      jobs[i] = s;
    }
  }
  digest = WarpSum(digest) + Mix64(uint64_t{8} * shape.segments);
  if (code == BlockCode::kOk && (offset != bytes || digest != LoadU64(record + shape.digest_at))) code = BlockCode::kHead;
  if (Lane() == 0) *result = {code, where, code == BlockCode::kOk ? bytes : 0};
  if (code == BlockCode::kOk) return;
  SyncWarp();
  for (uint32_t i = Lane(); i < shape.segments; i += 32) {
    jobs[i].codec = kNoCodec;
    jobs[i].failed = 0;
  }
}

TIERCEL_KERNEL void DecodeSums(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec == kNoCodec) return;
  SumPieces(s, [&](uint32_t at) { return WordOf(s.encoded, s.bytes, at); });
  if (s.codec != kRawCodec) return;
  for (uint32_t word = ThreadOfGrid(); word < s.words(); word += ThreadsOfGrid()) {
    StoreWord(s, word, reinterpret_cast<const uint64_t*>(s.encoded)[word]);
  }
}

TIERCEL_KERNEL void DecodeFinish(BatchArgs args) {
  const BatchShape& shape = args.shape;
  const uint32_t block = BlockY();
  BlockResult* const result = args.results + block;
  if (result->code != BlockCode::kOk) return;
  const Segment* const jobs = args.jobs + uint64_t{block} * shape.segments;
  for (uint32_t first = 0; first < shape.segments; first += 32) {
    const uint32_t i = first + Lane();
    BlockCode mine = BlockCode::kOk;
    if (i < shape.segments) {
      const Segment& s = jobs[i];
      if (~s.crc != s.wanted_crc) {
        mine = BlockCode::kChecksum;
      } else if (s.failed != 0) {
        mine = BlockCode::kSegment;
      } else if (s.codec != kRawCodec && s.digest + Mix64(s.raw_bytes()) != s.wanted_digest) {
        mine = BlockCode::kDigest;  // Of RAW, the checksum is over the decoded bytes.
      }
    }
    const uint32_t which = Ballot(mine != BlockCode::kOk);
    if (which == 0) continue;
    if (Lane() == LowestOne(which)) *result = {mine, i, 0};
    return;
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_RECORD_CUH_
