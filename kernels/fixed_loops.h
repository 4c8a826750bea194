// The inner loops of the codecs of fixed rate, one set an ISA and dtype. Internal to kernels/.
//
// A panel is `rows` rows of `width` 16-bit values, one behind the other, whose columns have bounds of
// their own; a run is `length` consecutive values that share theirs. Bounds are low and high as u16 of
// the dtype, unaligned.
#ifndef TIERCEL_KERNELS_FIXED_LOOPS_H_
#define TIERCEL_KERNELS_FIXED_LOOPS_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace tiercel::fixed {

struct Loops {
  // I8. The bounds of what is there; sealed by `seal`, which is false where one is too large.
  void (*panel_bounds)(const std::byte* values, size_t rows, size_t width, std::byte* low,
                       std::byte* high);
  void (*run_bounds)(const std::byte* values, size_t runs, size_t length, std::byte* low,
                     std::byte* high);
  bool (*seal)(std::byte* low, std::byte* high, size_t count);
  void (*panel_encode)(const std::byte* values, size_t rows, size_t width, const std::byte* low,
                       const std::byte* high, std::byte* codes);
  void (*run_encode)(const std::byte* values, size_t runs, size_t length, const std::byte* low,
                     const std::byte* high, std::byte* codes);
  // False: a bound of kParamLimit or more, or not a number.
  bool (*panel_decode)(const std::byte* codes, size_t rows, size_t width, const std::byte* low,
                       const std::byte* high, std::byte* values);
  bool (*run_decode)(const std::byte* codes, size_t runs, size_t length, const std::byte* low,
                     const std::byte* high, std::byte* values);

  // F8. The largest magnitude's bits, starting from `largest`.
  uint16_t (*largest)(const std::byte* values, size_t length, uint16_t largest);
  void (*f8_encode)(const std::byte* values, size_t length, int k, std::byte* codes);
  void (*f8_decode)(const std::byte* codes, size_t length, float scale, std::byte* values);

  // I4H. `side` is u16 scale, u16 base a vector. False: a value of kLimit or more, or not a number;
  // at decoding, such a parameter.
  bool (*i4_encode)(const std::byte* values, size_t vectors, uint32_t dim, std::byte* side,
                    std::byte* codes);
  bool (*i4_decode)(const std::byte* side, const std::byte* codes, size_t vectors, uint32_t dim,
                    std::byte* values);
};

// Those of the ISA in use.
const Loops& LoopsFor(bool fp16);

template <bool kFp16>
const Loops& ScalarLoops();
#if defined(__x86_64__)
const Loops& Avx2Loops(bool fp16);
const Loops& Avx512Loops(bool fp16);
#endif

}  // namespace tiercel::fixed

#endif  // TIERCEL_KERNELS_FIXED_LOOPS_H_
