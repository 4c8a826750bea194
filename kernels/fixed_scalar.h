// The loops of fixed_loops.h value by value: the reference, and what the wide ones do with what is left
// of a row. Internal to kernels/. Panels have a pitch here, so that the last columns can be done alone.
#ifndef TIERCEL_KERNELS_FIXED_SCALAR_H_
#define TIERCEL_KERNELS_FIXED_SCALAR_H_

#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"

namespace tiercel::fixed {
namespace {  // Files for other ISAs include this too: none may give its code to another.

template <bool kFp16>
struct Scalar {
  static uint16_t Load(const std::byte* from, size_t i) { return LoadLe<uint16_t>(from + 2 * i); }
  static float LoadFloat(const std::byte* from, size_t i) { return FromHalf<kFp16>(Load(from, i)); }
  static void Store(std::byte* to, size_t i, uint16_t value) { StoreLe(to + 2 * i, value); }
  static bool Good(float param) { return Magnitude(param) < kParamLimit; }

  // Columns [first, width).
  static void PanelBoundsFrom(size_t first, const std::byte* values, size_t rows, size_t width,
                              std::byte* low, std::byte* high) {
    for (size_t i = first; i < width; ++i) {
      int16_t least = Ordered(Load(values, i));
      int16_t most = least;
      for (size_t row = 1; row < rows; ++row) {
        const int16_t value = Ordered(Load(values, row * width + i));
        least = value < least ? value : least;
        most = value > most ? value : most;
      }
      Store(low, i, FromOrdered(least));
      Store(high, i, FromOrdered(most));
    }
  }
  static void PanelBounds(const std::byte* values, size_t rows, size_t width, std::byte* low,
                          std::byte* high) {
    PanelBoundsFrom(0, values, rows, width, low, high);
  }
  static void RunBounds(const std::byte* values, size_t runs, size_t length, std::byte* low,
                        std::byte* high) {
    for (size_t run = 0; run < runs; ++run) {
      PanelBoundsFrom(0, values + 2 * run * length, length, 1, low + 2 * run, high + 2 * run);
    }
  }
  static bool Seal(std::byte* low, std::byte* high, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      uint16_t l = Load(low, i);
      uint16_t h = Load(high, i);
      if (!I8Seal<kFp16>(l, h)) return false;
      Store(low, i, l);
      Store(high, i, h);
    }
    return true;
  }
  static void PanelEncodeFrom(size_t first, const std::byte* values, size_t rows, size_t width,
                              const std::byte* low, const std::byte* high, std::byte* codes) {
    for (size_t i = first; i < width; ++i) {
      const float l = LoadFloat(low, i);
      const float inverse = I8Inverse(l, LoadFloat(high, i));
      for (size_t row = 0; row < rows; ++row) {
        codes[row * width + i] =
            static_cast<std::byte>(I8Code(LoadFloat(values, row * width + i), l, inverse));
      }
    }
  }
  static void PanelEncode(const std::byte* values, size_t rows, size_t width, const std::byte* low,
                          const std::byte* high, std::byte* codes) {
    PanelEncodeFrom(0, values, rows, width, low, high, codes);
  }
  static void RunEncode(const std::byte* values, size_t runs, size_t length, const std::byte* low,
                        const std::byte* high, std::byte* codes) {
    for (size_t run = 0; run < runs; ++run) {
      PanelEncodeFrom(0, values + 2 * run * length, length, 1, low + 2 * run, high + 2 * run,
                      codes + run * length);
    }
  }
  static bool PanelDecodeFrom(size_t first, const std::byte* codes, size_t rows, size_t width,
                              const std::byte* low, const std::byte* high, std::byte* values) {
    for (size_t i = first; i < width; ++i) {
      const float l = LoadFloat(low, i);
      const float h = LoadFloat(high, i);
      if (!Good(l) || !Good(h)) return false;
      const float step = I8Step(l, h);
      for (size_t row = 0; row < rows; ++row) {
        const auto code = std::to_integer<uint32_t>(codes[row * width + i]);
        Store(values, row * width + i, ToHalf<kFp16>(I8Decode(code, l, step)));
      }
    }
    return true;
  }
  static bool PanelDecode(const std::byte* codes, size_t rows, size_t width, const std::byte* low,
                          const std::byte* high, std::byte* values) {
    return PanelDecodeFrom(0, codes, rows, width, low, high, values);
  }
  static bool RunDecode(const std::byte* codes, size_t runs, size_t length, const std::byte* low,
                        const std::byte* high, std::byte* values) {
    for (size_t run = 0; run < runs; ++run) {
      if (!PanelDecodeFrom(0, codes + run * length, length, 1, low + 2 * run, high + 2 * run,
                           values + 2 * run * length)) {
        return false;
      }
    }
    return true;
  }

  static uint16_t Largest(const std::byte* values, size_t length, uint16_t largest) {
    for (size_t i = 0; i < length; ++i) {
      const auto magnitude = static_cast<uint16_t>(Load(values, i) & 0x7fffu);
      largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
  }
  static void F8Encode(const std::byte* values, size_t length, int k, std::byte* codes) {
    for (size_t i = 0; i < length; ++i) {
      codes[i] = static_cast<std::byte>(F8Code(LoadFloat(values, i), k));
    }
  }
  static void F8Decode(const std::byte* codes, size_t length, float scale, std::byte* values) {
    for (size_t i = 0; i < length; ++i) {
      Store(values, i, ToHalf<kFp16>(F8Value(std::to_integer<uint8_t>(codes[i]), scale)));
    }
  }

  static bool I4Encode(const std::byte* values, size_t vectors, uint32_t dim, std::byte* side,
                       std::byte* codes) {
    const uint32_t block = HadamardBlock(dim);
    for (size_t v = 0; v < vectors; ++v) {
      const std::byte* from = values + 2 * v * dim;
      const float largest = FromHalf<kFp16>(Largest(from, dim, 0));
      if (!(largest < kLimit)) return false;
      I4Params params;
      int32_t x[kMaxDim] = {};
      if (largest >= kTiny) {
        const float upscale = I4Upscale(largest);
        for (uint32_t i = 0; i < dim; ++i) {
          const float scaled = LoadFloat(from, i) * upscale;
          x[i] = Nearest(scaled);
        }
        for (uint32_t at = 0; at < dim; at += block) Hadamard(x + at, block);
        int32_t low = x[0];
        int32_t high = x[0];
        for (uint32_t i = 1; i < dim; ++i) {
          low = x[i] < low ? x[i] : low;
          high = x[i] > high ? x[i] : high;
        }
        params = I4Choose(largest, static_cast<float>(low), static_cast<float>(high), block);
      }
      Store(side, 2 * v, params.scale);
      Store(side, 2 * v + 1, params.base);
      const float base = FromBf16(params.base);
      std::byte* to = codes + v * dim / 2;
      for (uint32_t i = 0; i < dim; i += 2) {
        const uint32_t even =
            I4Code(static_cast<float>(x[i]), params.unit, base, params.inverse);
        const uint32_t odd =
            I4Code(static_cast<float>(x[i + 1]), params.unit, base, params.inverse);
        to[i / 2] = static_cast<std::byte>(even | odd << 4);
      }
    }
    return true;
  }
  static bool I4Decode(const std::byte* side, const std::byte* codes, size_t vectors, uint32_t dim,
                       std::byte* values) {
    const uint32_t block = HadamardBlock(dim);
    for (size_t v = 0; v < vectors; ++v) {
      const float scale = FromBf16(Load(side, 2 * v));
      const float base = FromBf16(Load(side, 2 * v + 1));
      if (!Good(scale) || !Good(base)) return false;
      const std::byte* from = codes + v * dim / 2;
      std::byte* to = values + 2 * v * dim;
      int32_t x[kMaxDim];
      for (uint32_t i = 0; i < dim; i += 2) {
        const auto pair = std::to_integer<int32_t>(from[i / 2]);
        x[i] = pair & 15;
        x[i + 1] = pair >> 4;
      }
      for (uint32_t at = 0; at < dim; at += block) {
        Hadamard(x + at, block);
        for (uint32_t i = 0; i < block; ++i) {
          const float scaled = static_cast<float>(x[at + i]) * scale;
          const float value = i == 0 ? scaled + base : scaled;
          Store(to, at + i, ToHalf<kFp16>(value));
        }
      }
    }
    return true;
  }
};

}  // namespace
}  // namespace tiercel::fixed

#endif  // TIERCEL_KERNELS_FIXED_SCALAR_H_
