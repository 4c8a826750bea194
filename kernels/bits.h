// Bit strings, least significant bit first, and lists of small integers in them: the side information
// of the column codecs. Internal to kernels/; docs/block-format.md, "Integer lists".
//
// Bounds: a writer that runs out of room says so at the end, a reader that runs over its end gives zeros
// and says so. Ownership: the bytes are borrowed.
#ifndef TIERCEL_KERNELS_BITS_H_
#define TIERCEL_KERNELS_BITS_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "kernels/rans_core.h"

namespace tiercel {

class BitWriter {
 public:
  explicit BitWriter(MutableByteSpan out) : out_(out) {}

  // The low `count` bits of value; count is at most 32.
  void Put(uint32_t value, uint32_t count) {
    held_ |= (uint64_t{value} & ((uint64_t{1} << count) - 1)) << bits_;
    bits_ += count;
    if (bits_ < 32) return;
    if (out_.size() >= at_ + 4) {
      StoreLe(out_.data() + at_, static_cast<uint32_t>(held_));
      at_ += 4;
      held_ >>= 32;
      bits_ -= 32;
    }
    while (bits_ >= 32) Byte();
  }
  // Fills the last byte up with zeros; the bytes in all. More than there is room for means that the
  // rest was dropped.
  size_t Finish() {
    bits_ = (bits_ + 7) / 8 * 8;
    while (bits_ > 0) Byte();
    return at_;
  }

 private:
  void Byte() {
    if (at_ < out_.size()) out_[at_] = static_cast<std::byte>(held_);
    ++at_;
    held_ >>= 8;
    bits_ -= 8;
  }

  MutableByteSpan out_;
  size_t at_ = 0;
  uint64_t held_ = 0;
  uint32_t bits_ = 0;
};

class BitReader {
 public:
  explicit BitReader(ByteSpan bytes) : bytes_(bytes) {}

  uint32_t Get(uint32_t count) {  // At most 32.
    const auto value = static_cast<uint32_t>(Peek() & ((uint64_t{1} << count) - 1));
    at_ += count;
    return value;
  }
  // How many zeros come before the next one, which is taken too; at most 32.
  uint32_t GetZeros() {
    const auto zeros = static_cast<uint32_t>(std::countr_zero(Peek() | uint64_t{1} << 32));
    at_ += zeros + 1;
    return zeros;
  }
  bool ok() const { return at_ <= 8 * bytes_.size(); }
  size_t bytes_used() const { return (at_ + 7) / 8; }  // The last one's rest is skipped.

 private:
  // At least 57 bits, zeros behind the end.
  uint64_t Peek() const {
    const size_t byte = at_ / 8;
    uint64_t window = 0;
    if (byte + 8 <= bytes_.size()) {
      window = LoadLe<uint64_t>(bytes_.data() + byte);
    } else if (byte < bytes_.size()) {
      std::memcpy(&window, bytes_.data() + byte, bytes_.size() - byte);
    }
    return window >> (at_ % 8);
  }

  ByteSpan bytes_;
  size_t at_ = 0;
};

// A list of integers under 2^24 in magnitude: 1 bit, whether each is less the one before it (the first
// less 0), 4 bits k; then each in an Exp-Golomb code of order k of its zigzag z: with u = z + 2^k of n
// bits, n - 1 - k zeros, a one, and the low n - 1 bits of u. The writer takes the shortest of the 32.
inline void PutIntegers(BitWriter& out, std::span<const int32_t> values) {
  uint32_t cost[2][16] = {};
  int32_t last = 0;
  uint32_t any = 1;
  for (const int32_t v : values) {
    any |= rans::ZigZag(v) | rans::ZigZag(v - last);
    last = v;
  }
  // Orders above that of the largest only make every code longer.
  const uint32_t orders = std::min(16u, static_cast<uint32_t>(std::bit_width(any)) + 1);
  for (uint32_t k = orders; k < 16; ++k) cost[0][k] = cost[1][k] = UINT32_MAX;
  // Small ones are counted first: a list has many of few kinds.
  constexpr uint32_t kKinds = 256;
  uint32_t count[2][kKinds] = {};
  const auto add = [&](uint32_t d, uint32_t z, uint32_t times) {
    for (uint32_t k = 0; k < orders; ++k) {
      cost[d][k] += times * (2 * static_cast<uint32_t>(std::bit_width(z + (1u << k))) - 1 - k);
    }
  };
  last = 0;
  for (const int32_t v : values) {
    const uint32_t z[2] = {rans::ZigZag(v), rans::ZigZag(v - last)};
    last = v;
    for (uint32_t d = 0; d < 2; ++d) {
      if (z[d] < kKinds) {
        ++count[d][z[d]];
      } else {
        add(d, z[d], 1);
      }
    }
  }
  const uint32_t kinds = std::min(kKinds, any + 1);
  for (uint32_t d = 0; d < 2; ++d) {
    for (uint32_t z = 0; z < kinds; ++z) {
      if (count[d][z] != 0) add(d, z, count[d][z]);
    }
  }
  uint32_t best = 0;
  for (uint32_t i = 1; i < 32; ++i) {
    if (cost[i / 16][i % 16] < cost[best / 16][best % 16]) best = i;
  }
  const bool delta = best >= 16;
  const uint32_t k = best % 16;
  out.Put(delta ? 1 : 0, 1);
  out.Put(k, 4);
  last = 0;
  for (const int32_t v : values) {
    const uint32_t u = rans::ZigZag(delta ? v - last : v) + (1u << k);
    last = v;
    const auto n = static_cast<uint32_t>(std::bit_width(u));
    const uint32_t low = u & ((1u << (n - 1)) - 1);
    if (const uint32_t length = 2 * n - 1 - k; length <= 32) {
      out.Put((low << 1 | 1) << (n - 1 - k), length);
    } else {
      out.Put(0, n - 1 - k);
      out.Put(low << 1 | 1, n);
    }
  }
}

// False: not such a list, or a value outside [low, high].
inline bool GetIntegers(BitReader& in, int32_t low, int32_t high, std::span<int32_t> values) {
  const bool delta = in.Get(1) != 0;
  const uint32_t k = in.Get(4);
  int32_t last = 0;
  for (int32_t& v : values) {
    const uint32_t zeros = in.GetZeros();
    if (zeros + k > 26) return false;
    const uint32_t u = (1u << (zeros + k)) + in.Get(zeros + k);
    v = rans::UnZigZag(u - (1u << k)) + (delta ? last : 0);
    if (v < low || v > high) return false;
    last = v;
  }
  return in.ok();
}

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_BITS_H_
