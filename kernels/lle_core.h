// LLE one value at a time: the scalar reference, in plain C++ that a device compiler takes too.
//
// A float is sign, exponent and mantissa. Exponents of a column lie about a base and are entropy-coded
// (rans_core.h) as exponent - base; sign and mantissa, the rest, stay as they are in planes: first the
// bytes of the rest from the low end, then its bits that fill no byte. Layout: docs/block-format.md.
#ifndef TIERCEL_KERNELS_LLE_CORE_H_
#define TIERCEL_KERNELS_LLE_CORE_H_

#include <cstddef>
#include <cstdint>

namespace tiercel::lle {

template <class T, uint32_t kMantissaBits, uint32_t kExponentBits>
struct Format {
  using Value = T;
  static constexpr uint32_t kRestBits = kMantissaBits + 1;
  static constexpr uint32_t kBytePlanes = kRestBits / 8;
  static constexpr uint32_t kBitPlanes = kRestBits % 8;
  static constexpr uint32_t kMaxExponent = (1u << kExponentBits) - 1;

  static constexpr uint32_t Exponent(T value) {
    return static_cast<uint32_t>(value) >> kMantissaBits & kMaxExponent;
  }
  static constexpr uint32_t Rest(T value) {
    const auto bits = static_cast<uint32_t>(value);
    return (bits & ((1u << kMantissaBits) - 1)) |
           (bits >> (kMantissaBits + kExponentBits)) << kMantissaBits;
  }
  static constexpr T Join(uint32_t exponent, uint32_t rest) {
    return static_cast<T>((rest & ((1u << kMantissaBits) - 1)) |
                          (exponent & kMaxExponent) << kMantissaBits |
                          (rest >> kMantissaBits) << (kMantissaBits + kExponentBits));
  }
};

using Bf16 = Format<uint16_t, 7, 8>;
using Fp16 = Format<uint16_t, 10, 5>;
using Fp32 = Format<uint32_t, 23, 8>;
using E4m3 = Format<uint8_t, 3, 4>;
using E5m2 = Format<uint8_t, 2, 5>;

// Bytes of one column's planes.
template <class F>
constexpr size_t PlaneBytes(size_t tokens) {
  return F::kBytePlanes * tokens + F::kBitPlanes * ((tokens + 7) / 8);
}

// What a column's exponents come to.
struct Exponents {
  uint32_t sum = 0;
  uint32_t nonzero = 0;  // How many are not 0.
  uint32_t least = 0;
  uint32_t most = 0;
};

// The encoder's choice: the mean of those that are not 0 gets value 2, where the frozen tables have it;
// of a column of one exponent, that one gets 0, and the column takes no symbols.
constexpr int32_t BaseOf(const Exponents& e) {
  if (e.least == e.most) return static_cast<int32_t>(e.least);
  return static_cast<int32_t>((2 * e.sum + e.nonzero) / (2 * e.nonzero)) - 2;
}
inline constexpr int32_t kLeastBase = -2;

template <class F>
constexpr Exponents SplitColumn(const typename F::Value* column, size_t n, uint8_t* exponents,
                                std::byte* planes) {
  Exponents out{0, 0, F::kMaxExponent, 0};
  const size_t bits = (n + 7) / 8;
  std::byte* const bit_planes = planes + F::kBytePlanes * n;
  for (size_t i = 0; i < F::kBitPlanes * bits; ++i) bit_planes[i] = std::byte{0};
  for (size_t i = 0; i < n; ++i) {
    const uint32_t e = F::Exponent(column[i]);
    const uint32_t rest = F::Rest(column[i]);
    exponents[i] = static_cast<uint8_t>(e);
    out.sum += e;
    out.nonzero += e != 0 ? 1 : 0;
    out.least = e < out.least ? e : out.least;
    out.most = e > out.most ? e : out.most;
    for (uint32_t b = 0; b < F::kBytePlanes; ++b) {
      planes[b * n + i] = static_cast<std::byte>(rest >> (8 * b));
    }
    for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
      bit_planes[b * bits + i / 8] |=
          static_cast<std::byte>((rest >> (8 * F::kBytePlanes + b) & 1) << (i % 8));
    }
  }
  return out;
}

template <class F>
constexpr void JoinColumn(const uint8_t* exponents, const std::byte* planes, size_t n, typename F::Value* column) {
  const size_t bits = (n + 7) / 8;
  const std::byte* const bit_planes = planes + F::kBytePlanes * n;
  for (size_t i = 0; i < n; ++i) {
    uint32_t rest = 0;
    for (uint32_t b = 0; b < F::kBytePlanes; ++b) {
      rest |= static_cast<uint32_t>(planes[b * n + i]) << (8 * b);
    }
    for (uint32_t b = 0; b < F::kBitPlanes; ++b) {
      rest |= (static_cast<uint32_t>(bit_planes[b * bits + i / 8]) >> (i % 8) & 1)
              << (8 * F::kBytePlanes + b);
    }
    column[i] = F::Join(exponents[i], rest);
  }
}

}  // namespace tiercel::lle

#endif  // TIERCEL_KERNELS_LLE_CORE_H_
