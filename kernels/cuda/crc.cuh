// CRC-32C (base/crc32c.h) by many warps at once: the sum without its initial value and final xor is a
// polynomial's remainder, so every 4 bytes have a share of their own, and shares are added by xor:
//
//   sum(bytes) = xor over words q of word[q] * x^(8 (size - 4 q))      mod P
//   crc32c     = ~(sum ^ 0xffffffff * x^(8 size))
//
// A lane takes each 32nd word of a piece, carrying what it has over 128 bytes by four table look-ups;
// powers of x are made by the warp together. Remainders stand reflected: bit 31 is x^0.
#ifndef TIERCEL_KERNELS_CUDA_CRC_CUH_
#define TIERCEL_KERNELS_CUDA_CRC_CUH_

#include "kernels/cuda/warp.cuh"

namespace tiercel::gpu {

inline constexpr uint32_t kCrcPolynomial = 0x82f63b78u;
inline constexpr uint32_t kCrcOne = 0x80000000u;
inline constexpr uint32_t kCrcOrder = 0x7fffffffu;  // x to this is 1.
inline constexpr uint32_t kCrcPiece = 16 << 10;     // Bytes that a warp takes at a time.

constexpr uint32_t CrcTimes(uint32_t a, uint32_t b) {
  uint32_t out = 0;
  for (uint32_t bit = 0; bit < 32; ++bit) {
    out ^= (a & (kCrcOne >> bit)) != 0 ? b : 0;
    b = (b >> 1) ^ ((b & 1) != 0 ? kCrcPolynomial : 0);
  }
  return out;
}

struct CrcTables {
  uint32_t stride[4][256];  // byte << 8 k, times x^1024.
  uint32_t square[32];      // x^(2^k); [31] is 1.
  uint32_t lane[32];        // x^(32 (31 - lane)).
};
constexpr CrcTables MakeCrcTables() {
  CrcTables out{};
  uint32_t power = kCrcOne >> 1;
  for (uint32_t k = 0; k < 31; ++k) {
    out.square[k] = power;
    power = CrcTimes(power, power);
  }
  out.square[31] = kCrcOne;
  out.lane[31] = kCrcOne;
  for (uint32_t i = 31; i > 0; --i) out.lane[i - 1] = CrcTimes(out.lane[i], out.square[5]);
  for (uint32_t k = 0; k < 4; ++k) {
    for (uint32_t bit = 0; bit < 8; ++bit) {
      const uint32_t one = CrcTimes(1u << (8 * k + bit), out.square[10]);
      for (uint32_t byte = 0; byte < 256; ++byte) out.stride[k][byte] ^= (byte >> bit & 1) != 0 ? one : 0;
    }
  }
  return out;
}
static_assert(CrcTimes(MakeCrcTables().square[30], MakeCrcTables().square[30]) == kCrcOne >> 1);  // The order.
TIERCEL_TABLE CrcTables kCrcTables = MakeCrcTables();

// x^bits; the whole warp calls with one value.
TIERCEL_DEVICE uint32_t CrcPower(uint32_t bits) {
  uint32_t mine = Lane() < 31 && (bits >> Lane() & 1) != 0 ? kCrcTables.square[Lane()] : kCrcOne;
  for (uint32_t step = 16; step > 0; step /= 2) mine = CrcTimes(mine, Shuffle(mine, Lane() ^ step));
  return mine;
}

// The shares of the bytes' words 0 to words - 1 that begin at byte `begin` of `size`; word(i) gives the
// i-th. The whole warp calls; every lane gets the result. Words behind the end count as zeros.
template <class Word>
TIERCEL_DEVICE uint32_t CrcShare(uint32_t begin, uint32_t words, uint32_t size, Word word) {
  uint32_t sum = 0;
  const uint32_t rounds = (words + 31) / 32;
  for (uint32_t round = 0; round < rounds; ++round) {
    sum = kCrcTables.stride[0][sum & 255] ^ kCrcTables.stride[1][sum >> 8 & 255] ^ kCrcTables.stride[2][sum >> 16 & 255] ^
          kCrcTables.stride[3][sum >> 24];
    const uint32_t i = 32 * round + Lane();
    if (i < words) sum ^= word(i);
  }
  sum = CrcTimes(sum, kCrcTables.lane[Lane()]);
  for (uint32_t step = 16; step > 0; step /= 2) sum ^= Shuffle(sum, Lane() ^ step);
  // The last lane's last word: it may lie behind the end, so the power may be negative.
  const uint32_t last = begin + 4 * (32 * rounds - 1);
  const uint32_t power = last <= size ? 8 * (size - last) : kCrcOrder - 8 * (last - size);
  return CrcTimes(sum, CrcPower(power));
}

// The finished sum.
TIERCEL_DEVICE uint32_t CrcFinish(uint32_t sum, uint32_t size) { return ~(sum ^ CrcTimes(0xffffffffu, CrcPower(8 * size))); }

// A word of bytes that are aligned to 4, zeros behind the end.
TIERCEL_DEVICE uint32_t WordOf(const uint8_t* bytes, uint32_t size, uint32_t at) {
  if (at + 4 <= size) return *reinterpret_cast<const uint32_t*>(bytes + at);
  uint32_t word = 0;
  for (uint32_t i = 0; at + i < size; ++i) word |= static_cast<uint32_t>(bytes[at + i]) << (8 * i);
  return word;
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_CRC_CUH_
