// The decoded digest: 64 bits over the bytes that a decoder puts out, whatever codec they went
// through. It is a sum, so lanes, steps and thread blocks may add their share in any order:
//
//   digest(bytes) = sum over words i of Mix64(word[i] ^ ((i + 1) * kDigestPhi))
//                   + Mix64(size in bytes),                                        mod 2^64
//
// where word[i] is bytes 8i .. 8i+7 in little-endian order, the last one filled up with zero bytes,
// and Mix64 is SplitMix64's finaliser (base/random.h). The index keeps equal words apart, the size
// keeps trailing zeros apart. It detects accidents, not forgery.
//
// Threads: any. Scalar, AVX2 and AVX-512 give the same value (kernels/isa.h picks).
#ifndef TIERCEL_KERNELS_DIGEST_H_
#define TIERCEL_KERNELS_DIGEST_H_

#include <cstdint>

#include "base/bytes.h"
#include "base/random.h"

namespace tiercel {

inline constexpr uint64_t kDigestPhi = 0x9e3779b97f4a7c15ULL;

// The share of one word.
constexpr uint64_t DigestTerm(uint64_t word, uint64_t index) {
  return Mix64(word ^ ((index + 1) * kDigestPhi));
}

uint64_t DecodedDigest(ByteSpan bytes);

// The same over bytes that come in steps; every step but the last a multiple of 8 bytes long.
class DigestStream {
 public:
  void Add(ByteSpan bytes);
  // As Add, while copying bytes to out: what is summed is what was written.
  void Copy(ByteSpan bytes, std::byte* out);
  uint64_t Finish() const { return sum_ + Mix64(size_); }

 private:
  uint64_t sum_ = 0;
  uint64_t size_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_DIGEST_H_
