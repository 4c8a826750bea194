// The inner loops of LLF, one set an ISA. Internal to kernels/.
#ifndef TIERCEL_KERNELS_LLF_GROUPS_H_
#define TIERCEL_KERNELS_LLF_GROUPS_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace tiercel::llf {

// Where the stretches of consecutive groups start, in each plane.
struct PlanesOut {
  std::byte* low;
  std::byte* codes;
  std::byte* bits;  // fp16 only.
};
struct PlanesIn {
  const std::byte* low;
  const std::byte* codes;
  const std::byte* bits;
};

struct EscapeList {
  std::byte* out = nullptr;  // u32 each.
  size_t count = 0;
  size_t capacity = 0;
};

// Encodes `groups` groups of 64 values; false as soon as the escapes do not fit.
using EncodeFn = bool (*)(const std::byte* raw, size_t groups, uint32_t base,
                          uint32_t first_position, PlanesOut out, EscapeList& escapes);
// Escaped values get the exponent codebook[15].
using DecodeFn = void (*)(PlanesIn in, size_t groups, const std::byte* codebook, std::byte* raw);

struct GroupFns {
  EncodeFn encode;
  DecodeFn decode;
};

GroupFns ScalarBf16();
GroupFns ScalarFp16();
#if defined(__x86_64__)
GroupFns Avx2Bf16();
GroupFns Avx2Fp16();
GroupFns Avx512Bf16();
GroupFns Avx512Fp16();
#endif

// Appends the escapes of one group: those of `mask`, in order of position.
template <class ExponentOf>
inline bool AppendEscapes(uint64_t mask, uint32_t position, EscapeList& escapes,
                          ExponentOf exponent_of) {
  while (mask != 0) {
    const auto index = static_cast<uint32_t>(__builtin_ctzll(mask));
    mask &= mask - 1;
    if (escapes.count == escapes.capacity) return false;
    StoreLe<uint32_t>(escapes.out + 4 * escapes.count,
                      (position + index) | (exponent_of(index) << 24));
    ++escapes.count;
  }
  return true;
}

}  // namespace tiercel::llf

#endif  // TIERCEL_KERNELS_LLF_GROUPS_H_
