// Segment is all that the kernels know of one segment of one block: where its values lie in the engine's
// pages, where its encoded bytes are, and what came of it. Segments lie in device memory, one a row of a
// grid (BlockY); a batch's are set up by record.cuh.
//
// A value has an index in the plane's own order, and so a token, head and dim; a word is 8 bytes of
// values that follow each other.
//
// Invariants: only values [0, values) are read or written. base and the strides are multiples of elem.
#ifndef TIERCEL_KERNELS_CUDA_SEGMENT_CUH_
#define TIERCEL_KERNELS_CUDA_SEGMENT_CUH_

#include "kernels/cuda/scratch_bytes.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/digest.h"

namespace tiercel::gpu {

struct ImageTransform;
struct ImageLevels;

inline constexpr uint8_t kNoCodec = 255;  // Nothing to do for this segment.
inline constexpr uint32_t kHeadTokenDim = 1;  // AxisOrder.
inline constexpr uint32_t kHeadDimToken = 2;

struct Segment {
  // The plane.
  uint8_t* base = nullptr;
  const uint32_t* pages = nullptr;
  uint64_t page_stride = 0, token_stride = 0, head_stride = 0, dim_stride = 0;  // In bytes.
  uint32_t tokens_per_page = 1;
  uint32_t tokens = 0, heads = 0, dim = 0;
  uint32_t values = 0;
  uint8_t elem = 2;   // Bytes of a value.
  uint8_t dtype = 0;  // Dtype, AxisOrder, SegmentKind, CodecId as in a record.
  uint8_t order = 0;
  uint8_t kind = 0;
  uint16_t layer = 0;
  uint8_t codec = kNoCodec;  // Asked of the encoder; what is to be decoded.
  uint8_t used = 0;          // By the encoder.
  uint8_t encoding = 0;      // Not 0: it is not being decoded.
  uint32_t limit = 0;        // Encoding: bytes that are worth having.

  uint8_t* encoded = nullptr;  // Aligned to 64; encoding: has room for the plane's bytes.
  uint32_t bytes = 0;          // Of encoded; the encoder's result, 0: store RAW.
  uint32_t params = 0;
  uint8_t* scratch = nullptr;  // Aligned to 64.
  uint32_t failed = 0;         // Not 0: cannot be encoded so; is malformed.
  uint32_t offset = 0;         // In the record.
  uint64_t digest = 0;         // Sum of the words' shares, without the size's.
  uint64_t raw_digest = 0;     // The same of what a lossy encoder was given.
  uint64_t wanted_digest = 0;  // Decoding.
  // EC-C, EC-K and EC-X.
  uint64_t pos0 = 0;
  const uint8_t* frequencies = nullptr;  // Of the rotated pairs, u64, at any alignment.
  uint16_t rope_first = 0;
  uint16_t rope_dims = 0;  // 0: values are not rotated.
  uint8_t rope_style = 0;
  uint16_t split = 0;       // EC-C: dims of a head's part 0; 0: it has one.
  uint32_t exact = 0;       // Encoding: tokens that are to stay as they are.
  uint32_t groups = 0;      // Encoding, EC-C: parts and heads that have a step;
  const float* scales = nullptr;  // of each what the step is multiplied with.
  float step = 0;           // EC-C, encoding: not over 0: from the values' spread, times class_step.
  float class_step = 0;
  const uint8_t* image = nullptr;  // EC-K and EC-X: of the artifact, and there
  const ImageTransform* transforms = nullptr;  // the transform of the segment's first group.
  uint32_t first_head = 0;  // Of the model's heads, the segment's first.
  const ImageLevels* foretelling = nullptr;  // Encoding: of the tokens' levels; null: they have none.
  uint32_t crc = 0;            // Sum of the pieces' shares (crc.cuh).
  uint32_t wanted_crc = 0;

  TIERCEL_DEVICE uint32_t raw_bytes() const { return values * elem; }
  TIERCEL_DEVICE uint32_t words() const { return (raw_bytes() + 7) / 8; }
  TIERCEL_DEVICE uint32_t columns() const { return heads * dim; }
};

static_assert(sizeof(Segment) <= kSegmentBytes);

struct Coordinates {
  uint32_t token, head, dim;
};
TIERCEL_DEVICE Coordinates CoordinatesOf(const Segment& s, uint32_t index) {
  if (s.order == kHeadDimToken) {
    const uint32_t row = index / s.tokens;
    return {index % s.tokens, row / s.dim, row % s.dim};
  }
  const uint32_t row = index / s.dim;
  const uint32_t dim = index % s.dim;
  if (s.order == kHeadTokenDim) return {row % s.tokens, row / s.tokens, dim};
  return {row / s.heads, row % s.heads, dim};
}
// Moves on to the next index.
TIERCEL_DEVICE void Advance(const Segment& s, Coordinates* at) {
  const bool by_token = s.order == kHeadDimToken;
  uint32_t& inner = by_token ? at->token : at->dim;
  if (++inner < (by_token ? s.tokens : s.dim)) return;
  inner = 0;
  if (s.order == 0) {
    if (++at->head < s.heads) return;
    at->head = 0;
    ++at->token;
    return;
  }
  uint32_t& middle = by_token ? at->dim : at->token;
  if (++middle < (by_token ? s.dim : s.tokens)) return;
  middle = 0;
  ++at->head;
}
TIERCEL_DEVICE uint32_t IndexOf(const Segment& s, Coordinates at) {
  if (s.order == kHeadDimToken) return (at.head * s.dim + at.dim) * s.tokens + at.token;
  if (s.order == kHeadTokenDim) return (at.head * s.tokens + at.token) * s.dim + at.dim;
  return (at.token * s.heads + at.head) * s.dim + at.dim;
}
TIERCEL_DEVICE uint64_t TokenOffset(const Segment& s, uint32_t token) {
  return s.pages[token / s.tokens_per_page] * s.page_stride + token % s.tokens_per_page * s.token_stride;
}
TIERCEL_DEVICE uint8_t* AddressOf(const Segment& s, Coordinates at) {
  return s.base + TokenOffset(s, at.token) + at.head * s.head_stride + at.dim * s.dim_stride;
}
template <class T>
TIERCEL_DEVICE T* ValueAt(const Segment& s, uint32_t index) {
  return reinterpret_cast<T*>(AddressOf(s, CoordinatesOf(s, index)));
}

// The offsets of tokens 0, 1, ..; no division.
class TokenWalk {
 public:
  TIERCEL_DEVICE explicit TokenWalk(const Segment& s) : s_(s), page_at_(s.pages[0] * s.page_stride) {}
  TIERCEL_DEVICE uint64_t Next() {
    if (slot_ == s_.tokens_per_page) {
      slot_ = 0;
      slot_at_ = 0;
      page_at_ = s_.pages[++page_] * s_.page_stride;
    }
    const uint64_t offset = page_at_ + slot_at_;
    ++slot_;
    slot_at_ += s_.token_stride;
    return offset;
  }

 private:
  const Segment& s_;
  uint32_t page_ = 0;
  uint32_t slot_ = 0;
  uint64_t page_at_;
  uint64_t slot_at_ = 0;
};

// Where the word whose first value is `first` lies in one aligned piece; else null.
TIERCEL_DEVICE uint64_t* WholeWord(const Segment& s, Coordinates first) {
  const uint32_t per = 8u / s.elem;
  const bool by_token = s.order == kHeadDimToken;
  if ((by_token ? s.token_stride : s.dim_stride) != s.elem) return nullptr;
  if ((by_token ? s.tokens_per_page : s.dim) % per != 0) return nullptr;
  uint8_t* const at = AddressOf(s, first);
  return AlignedTo(at, 8) ? reinterpret_cast<uint64_t*>(at) : nullptr;
}

// A word's bytes, zeros behind the last value. Words behind it may be asked for.
TIERCEL_DEVICE uint64_t LoadWord(const Segment& s, uint32_t word) {
  const uint32_t per = 8u / s.elem;
  const uint32_t first = word * per;
  if (first >= s.values) return 0;
  Coordinates place = CoordinatesOf(s, first);
  if (const uint64_t* const whole = WholeWord(s, place)) return *whole;
  uint64_t out = 0;
  for (uint32_t i = 0; i < per && first + i < s.values; ++i, Advance(s, &place)) {
    const uint8_t* const at = AddressOf(s, place);
    const uint64_t value = s.elem == 1   ? *at
                           : s.elem == 2 ? *reinterpret_cast<const uint16_t*>(at)
                                         : *reinterpret_cast<const uint32_t*>(at);
    out |= value << (8 * s.elem * i);
  }
  return out;
}
TIERCEL_DEVICE void StoreWord(const Segment& s, uint32_t word, uint64_t bytes) {
  const uint32_t per = 8u / s.elem;
  const uint32_t first = word * per;
  if (first >= s.values) return;
  Coordinates place = CoordinatesOf(s, first);
  if (uint64_t* const whole = WholeWord(s, place)) {
    *whole = bytes;
    return;
  }
  for (uint32_t i = 0; i < per && first + i < s.values; ++i, Advance(s, &place)) {
    uint8_t* const at = AddressOf(s, place);
    const uint64_t value = bytes >> (8 * s.elem * i);
    if (s.elem == 1) {
      *at = static_cast<uint8_t>(value);
    } else if (s.elem == 2) {
      *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(value);
    } else {
      *reinterpret_cast<uint32_t*>(at) = static_cast<uint32_t>(value);
    }
  }
}

// Adds the lanes' shares of a digest to *at.
TIERCEL_DEVICE void AddDigest(uint64_t share, uint64_t* at) {
  share = WarpSum(share);
  if (Lane() == 0) AtomicAdd(at, share);
}

// The digest of what lies in the plane.
TIERCEL_DEVICE void DigestPlane(const Segment& s, uint64_t* at) {
  uint64_t share = 0;
  for (uint32_t word = ThreadOfGrid(); word < s.words(); word += ThreadsOfGrid()) share += DigestTerm(LoadWord(s, word), word);
  AddDigest(share, at);
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_SEGMENT_CUH_
