// What the tests of kernels/ share: bytes that look like KV, layouts of every kind, forced ISAs.
#ifndef TIERCEL_TESTS_KERNELS_KERNELS_TESTING_H_
#define TIERCEL_TESTS_KERNELS_KERNELS_TESTING_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/random.h"
#include "kernels/isa.h"
#include "kernels/record.h"

namespace tiercel {

class ForcedIsa {
 public:
  explicit ForcedIsa(KernelIsa isa) : usable_(ForceKernelIsa(isa)) {}
  ~ForcedIsa() { ForceKernelIsa(BestKernelIsa()); }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;
  bool usable() const { return usable_; }

 private:
  bool usable_;
};

inline constexpr KernelIsa kAllIsas[] = {KernelIsa::kScalar, KernelIsa::kAvx2, KernelIsa::kAvx512};

inline std::vector<std::byte> RandomBytes(uint64_t size, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  return bytes;
}

// Values as KV has them: nearly normal, a scale a channel, now and then an outlier. Integer
// arithmetic up to the last rounding, so every machine gives the same bytes.
inline std::vector<std::byte> KvLikeBytes(Dtype dtype, uint64_t size, uint64_t seed) {
  if (dtype != Dtype::kBf16 && dtype != Dtype::kFp16) return RandomBytes(size, seed);
  SplitMix64 random(seed);
  std::vector<std::byte> bytes(size);
  for (uint64_t i = 0; i + 2 <= size; i += 2) {
    int64_t sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<int64_t>(random.Next() >> 44) - (1 << 19);
    if (i / 2 % 64 == 13) sum *= 8;
    const float value = static_cast<float>(sum) * 0x1.0p-19f;
    uint16_t out = 0;
    if (dtype == Dtype::kBf16) {
      const auto bits = std::bit_cast<uint32_t>(value);
      out = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    } else {
      const auto bits = std::bit_cast<uint32_t>(value);
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 112;
      const uint32_t sign = (bits >> 16) & 0x8000u;
      const uint32_t mantissa = (bits >> 13) & 0x3ffu;
      out = static_cast<uint16_t>(
          exponent <= 0 ? sign : sign | static_cast<uint32_t>(exponent) << 10 | mantissa);
    }
    StoreLe(bytes.data() + i, out);
  }
  return bytes;
}

inline KvLayout SmallLayout(Dtype dtype, AxisOrder order, KvPacking packing, uint32_t layers = 2) {
  KvLayout layout;
  layout.layers = layers;
  layout.kv_heads = packing == KvPacking::kLatent ? 1 : 2;
  layout.head_dim_k = 16;
  layout.head_dim_v = packing == KvPacking::kLatent ? 0 : 16;
  layout.tokens_per_block = 8;
  layout.dtype = dtype;
  layout.k_order = order;
  layout.v_order = packing == KvPacking::kLatent ? AxisOrder::kTokenHeadDim : order;
  layout.packing = packing;
  return layout;
}

inline RecordSpec SpecOf(const KvLayout& layout) {
  RecordSpec spec;
  spec.layout = layout;
  for (size_t i = 0; i < spec.scope.bytes.size(); ++i) {
    spec.scope.bytes[i] = static_cast<std::byte>(0xa0 + i);
  }
  spec.pos0 = 4096;
  return spec;
}

inline Result<std::vector<std::byte>> Encoded(const RecordSpec& spec, CodecId codec,
                                              ByteSpan block) {
  // Not zero, so that bytes the encoder forgets to write are seen.
  std::vector<std::byte> out(MaxRecordBytes(spec, block.size()), std::byte{0xee});
  TIERCEL_ASSIGN(const uint64_t size, EncodeRecord(spec, codec, block, out));
  out.resize(size);
  return out;
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_KERNELS_KERNELS_TESTING_H_
