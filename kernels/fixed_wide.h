// The loops of fixed_loops.h over vectors, written once for every ISA: V gives the vectors. Internal to
// kernels/; a file for an ISA includes it behind its target pragma, with all other headers before that.
//
// A Pair holds 2 * V::kLanes consecutive values as fp32, the even ones in `e`, the odd ones in `o`: that
// is how 16-bit values fall apart without a shuffle. What is left of a row goes the scalar way.
#ifndef TIERCEL_KERNELS_FIXED_WIDE_H_
#define TIERCEL_KERNELS_FIXED_WIDE_H_

#include <cstring>

#include "base/prefetch.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"
#include "kernels/fixed_scalar.h"

namespace tiercel::fixed {
namespace {

template <class V>
struct Pair {
  typename V::F e;
  typename V::F o;
};

template <class V, bool kFp16>
struct Wide {
  using F = typename V::F;
  using I = typename V::I;
  using P = Pair<V>;
  using S = Scalar<kFp16>;
  static constexpr size_t kPair = 2 * V::kLanes;

  static P Load(const std::byte* from) { return V::template LoadPair<kFp16>(from); }
  static void Store(std::byte* to, P values) { V::template StorePair<kFp16>(to, values); }
  static P Set(float value) { return {V::Set(value), V::Set(value)}; }

  // ---- I8

  // Some rows at a time, which the hardware then reads ahead in, and their bounds so far beside them.
  static void PanelBounds(const std::byte* values, size_t rows, size_t width, std::byte* low,
                          std::byte* high) {
    constexpr size_t kRows = 8;
    const size_t wide = width / kPair * kPair;
    for (size_t row = 0; row < rows; row += kRows) {
      const size_t count = rows - row < kRows ? rows - row : kRows;
      for (size_t i = 0; i < wide; i += kPair) {
        const std::byte* from = values + 2 * (row * width + i);
        auto least = V::LoadOrdered(from);
        auto most = least;
        if (row != 0) {
          least = V::Min16(least, V::LoadRaw(low + 2 * i));
          most = V::Max16(most, V::LoadRaw(high + 2 * i));
        }
        for (size_t k = 1; k < count; ++k) {
          Prefetch<CacheLevel::kL2>(from + 2 * (k + count) * width);
          const auto value = V::LoadOrdered(from + 2 * k * width);
          least = V::Min16(least, value);
          most = V::Max16(most, value);
        }
        V::StoreRaw(low + 2 * i, least);
        V::StoreRaw(high + 2 * i, most);
      }
    }
    for (size_t i = 0; i < wide; i += kPair) {
      V::StoreBound(low + 2 * i, V::LoadRaw(low + 2 * i));
      V::StoreBound(high + 2 * i, V::LoadRaw(high + 2 * i));
    }
    S::PanelBoundsFrom(wide, values, rows, width, low, high);
  }
  static void RunBounds(const std::byte* values, size_t runs, size_t length, std::byte* low,
                        std::byte* high) {
    if (length < kPair) return S::RunBounds(values, runs, length, low, high);
    for (size_t run = 0; run < runs; ++run) {
      const std::byte* from = values + 2 * run * length;
      auto least = V::LoadOrdered(from);
      auto most = least;
      for (size_t i = kPair; i < length; i += kPair) {
        // The last vector may overlap the one before.
        const auto value = V::LoadOrdered(from + 2 * (i + kPair <= length ? i : length - kPair));
        least = V::Min16(least, value);
        most = V::Max16(most, value);
      }
      S::Store(low, run, FromOrdered(V::LeastOf(least)));
      S::Store(high, run, FromOrdered(V::MostOf(most)));
    }
  }
  static bool Seal(std::byte* low, std::byte* high, size_t count) {
    size_t i = 0;
    for (; i + kPair <= count; i += kPair) {
      const P l = Load(low + 2 * i);
      const P h = Load(high + 2 * i);
      const bool good = V::Sealable(l.e, h.e) && V::Sealable(l.o, h.o);
      alignas(64) std::byte shown[2 * kPair];
      Store(shown, I8Shown(l, h));
      if (!good || std::memcmp(shown, high + 2 * i, sizeof shown) != 0) {
        if (!S::Seal(low + 2 * i, high + 2 * i, kPair)) return false;
      }
    }
    return S::Seal(low + 2 * i, high + 2 * i, count - i);
  }
  static F Step(F low, F high) { return V::Mul(V::Sub(high, low), V::Set(1.0f / 255.0f)); }
  static P I8Shown(P low, P high) {
    const F full = V::Set(255.0f);
    return {V::Add(V::Mul(full, Step(low.e, high.e)), low.e),
            V::Add(V::Mul(full, Step(low.o, high.o)), low.o)};
  }
  static F Inverse(F low, F high) {
    const F range = V::Sub(high, low);
    return V::ZeroWhereZero(V::Div(V::Set(255.0f), range), range);
  }
  static void EncodePair(const std::byte* from, P low, P inverse, std::byte* to) {
    const P x = Load(from);
    V::StoreCodes(to, V::ToInt(V::Mul(V::Sub(x.e, low.e), inverse.e)),
                  V::ToInt(V::Mul(V::Sub(x.o, low.o), inverse.o)));
  }
  static void DecodePair(const std::byte* from, P low, P step, std::byte* to) {
    I even;
    I odd;
    V::LoadCodes(from, even, odd);
    Store(to, {V::Add(V::Mul(V::ToFloat(even), step.e), low.e),
               V::Add(V::Mul(V::ToFloat(odd), step.o), low.o)});
  }
  static void PanelEncode(const std::byte* values, size_t rows, size_t width, const std::byte* low,
                          const std::byte* high, std::byte* codes) {
    size_t i = 0;
    for (; i + 2 * kPair <= width; i += 2 * kPair) {
      EncodeColumns<2>(values, rows, width, i, low, high, codes);
    }
    for (; i + kPair <= width; i += kPair) {
      EncodeColumns<1>(values, rows, width, i, low, high, codes);
    }
    S::PanelEncodeFrom(i, values, rows, width, low, high, codes);
  }
  template <size_t kN>
  static void EncodeColumns(const std::byte* values, size_t rows, size_t width, size_t at,
                            const std::byte* low, const std::byte* high, std::byte* codes) {
    P l[kN];
    P inverse[kN];
#pragma GCC unroll 2
    for (size_t j = 0; j < kN; ++j) {
      l[j] = Load(low + 2 * (at + j * kPair));
      const P h = Load(high + 2 * (at + j * kPair));
      inverse[j] = {Inverse(l[j].e, h.e), Inverse(l[j].o, h.o)};
    }
    for (size_t row = 0; row < rows; ++row) {
      const size_t first = row * width + at;
#pragma GCC unroll 2
      for (size_t j = 0; j < kN; ++j) {
        EncodePair(values + 2 * (first + j * kPair), l[j], inverse[j], codes + first + j * kPair);
      }
    }
  }
  static void RunEncode(const std::byte* values, size_t runs, size_t length, const std::byte* low,
                        const std::byte* high, std::byte* codes) {
    if (length < kPair) return S::RunEncode(values, runs, length, low, high, codes);
    for (size_t run = 0; run < runs; ++run) {
      const float l = S::LoadFloat(low, run);
      const P lows = Set(l);
      const P inverses = Set(I8Inverse(l, S::LoadFloat(high, run)));
      const std::byte* from = values + 2 * run * length;
      std::byte* to = codes + run * length;
      for (size_t i = 0; i < length; i += kPair) {
        const size_t at = i + kPair <= length ? i : length - kPair;
        EncodePair(from + 2 * at, lows, inverses, to + at);
      }
    }
  }
  static bool PanelDecode(const std::byte* codes, size_t rows, size_t width, const std::byte* low,
                          const std::byte* high, std::byte* values) {
    size_t i = 0;
    for (; i + 2 * kPair <= width; i += 2 * kPair) {
      if (!DecodeColumns<2>(codes, rows, width, i, low, high, values)) return false;
    }
    for (; i + kPair <= width; i += kPair) {
      if (!DecodeColumns<1>(codes, rows, width, i, low, high, values)) return false;
    }
    return S::PanelDecodeFrom(i, codes, rows, width, low, high, values);
  }
  template <size_t kN>
  static bool DecodeColumns(const std::byte* codes, size_t rows, size_t width, size_t at,
                            const std::byte* low, const std::byte* high, std::byte* values) {
    P l[kN];
    P step[kN];
#pragma GCC unroll 2
    for (size_t j = 0; j < kN; ++j) {
      l[j] = Load(low + 2 * (at + j * kPair));
      const P h = Load(high + 2 * (at + j * kPair));
      if (!V::Under(l[j].e, kParamLimit) || !V::Under(l[j].o, kParamLimit) ||
          !V::Under(h.e, kParamLimit) || !V::Under(h.o, kParamLimit)) {
        return false;
      }
      step[j] = {Step(l[j].e, h.e), Step(l[j].o, h.o)};
    }
    for (size_t row = 0; row < rows; ++row) {
      const size_t first = row * width + at;
#pragma GCC unroll 2
      for (size_t j = 0; j < kN; ++j) {
        DecodePair(codes + first + j * kPair, l[j], step[j], values + 2 * (first + j * kPair));
      }
    }
    return true;
  }
  static bool RunDecode(const std::byte* codes, size_t runs, size_t length, const std::byte* low,
                        const std::byte* high, std::byte* values) {
    if (length < kPair) return S::RunDecode(codes, runs, length, low, high, values);
    for (size_t run = 0; run < runs; ++run) {
      const float l = S::LoadFloat(low, run);
      const float h = S::LoadFloat(high, run);
      if (!S::Good(l) || !S::Good(h)) return false;
      const P lows = Set(l);
      const P steps = Set(I8Step(l, h));
      const std::byte* from = codes + run * length;
      std::byte* to = values + 2 * run * length;
      for (size_t i = 0; i < length; i += kPair) {
        const size_t at = i + kPair <= length ? i : length - kPair;
        DecodePair(from + at, lows, steps, to + 2 * at);
      }
    }
    return true;
  }

  // ---- F8

  static uint16_t Largest(const std::byte* values, size_t length, uint16_t largest) {
    if (length < kPair) return S::Largest(values, length, largest);
    auto most = V::LoadMagnitude(values);
    for (size_t i = kPair; i < length; i += kPair) {
      const size_t at = i + kPair <= length ? i : length - kPair;
      most = V::Max16(most, V::LoadMagnitude(values + 2 * at));
    }
    const auto found = static_cast<uint16_t>(V::MostOf(most));
    return found > largest ? found : largest;
  }
  // The sum of |x| and a power of two 2^20 (of a denormal: 2^14) above it counts units of the last place
  // of e4m3, rounded as the sum is: nearest, ties to even.
  static I F8Codes(F x, F down) {
    const F y = V::Mul(x, down);
    const F magnitude = V::And(y, 0x7fffffffu);
    const I binade = V::Max32(V::AsInt(V::And(y, 0x7f800000u)), V::SetInt(121u << 23));
    const I shifter = V::AddInt(binade, V::SetInt(20u << 23));
    const I units = V::SubInt(V::AsInt(V::Add(magnitude, V::AsFloat(shifter))), shifter);
    const I code = V::AddInt(units, V::SubInt(V::template Right<20>(binade), V::SetInt(121u << 3)));
    return V::Or(V::Min32(code, V::SetInt(0x7e)),
                 V::AndInt(V::template Right<24>(V::AsInt(y)), V::SetInt(0x80)));
  }
  static F F8Values(I code, F scale) {
    const I magnitude = V::AndInt(code, V::SetInt(0x7f));
    const I bits = V::AddInt(V::template Left<20>(magnitude), V::SetInt(120u << 23));
    const F value = V::FixDenormals(bits, magnitude);
    const I sign = V::template Left<24>(V::AndInt(code, V::SetInt(0x80)));
    return V::AsFloat(V::Or(V::AsInt(V::Mul(value, scale)), sign));
  }
  static void F8Encode(const std::byte* values, size_t length, int k, std::byte* codes) {
    if (length < kPair) return S::F8Encode(values, length, k, codes);
    const F down = V::Set(PowerOfTwo(-k));
    for (size_t i = 0; i < length; i += kPair) {
      const size_t at = i + kPair <= length ? i : length - kPair;
      const P x = Load(values + 2 * at);
      V::StoreCodes(codes + at, F8Codes(x.e, down), F8Codes(x.o, down));
    }
  }
  static void F8Decode(const std::byte* codes, size_t length, float scale, std::byte* values) {
    if (length < kPair) return S::F8Decode(codes, length, scale, values);
    const F up = V::Set(scale);
    for (size_t i = 0; i < length; i += kPair) {
      const size_t at = i + kPair <= length ? i : length - kPair;
      I even;
      I odd;
      V::LoadCodes(codes + at, even, odd);
      Store(values + 2 * at, {F8Values(even, up), F8Values(odd, up)});
    }
  }

  // ---- I4H. Sums of integers under 2^24 in fp32: exact, so equal to those of int32.

  // A block of kPairs pairs, or `kBlock` values of one pair where that is less.
  template <size_t kPairs, size_t kBlock>
  static void Transform(P* x) {
#pragma GCC unroll 16
    for (size_t p = 0; p < kPairs; ++p) {
      const F a = V::Add(x[p].e, x[p].o);
      const F b = V::Sub(x[p].e, x[p].o);
      x[p] = {a, b};
      if constexpr (kBlock >= 4) x[p] = {V::template Level<1>(x[p].e), V::template Level<1>(x[p].o)};
      if constexpr (kBlock >= 8) x[p] = {V::template Level<2>(x[p].e), V::template Level<2>(x[p].o)};
      if constexpr (kBlock >= 16) {
        x[p] = {V::template Level<4>(x[p].e), V::template Level<4>(x[p].o)};
      }
      if constexpr (kBlock >= 32 && V::kLanes >= 16) {
        x[p] = {V::template Level<8>(x[p].e), V::template Level<8>(x[p].o)};
      }
    }
#pragma GCC unroll 4
    for (size_t stride = 1; stride < kPairs; stride *= 2) {
#pragma GCC unroll 16
      for (size_t p = 0; p < kPairs; ++p) {
        if ((p & stride) != 0) continue;
        const P a = x[p];
        const P b = x[p + stride];
        x[p] = {V::Add(a.e, b.e), V::Add(a.o, b.o)};
        x[p + stride] = {V::Sub(a.e, b.e), V::Sub(a.o, b.o)};
      }
    }
  }

  // As many vectors at once as kMaxDim values are, step by step: what one waits for, others fill.
  template <uint32_t kBlock>
  static bool I4EncodeBlocks(const std::byte* values, size_t vectors, uint32_t dim, std::byte* side,
                             std::byte* codes) {
    constexpr size_t kPairs = kBlock > kPair ? kBlock / kPair : 1;
    constexpr size_t kMost = kMaxDim / kPair;
    P x[kMost];
    float largest[kMost];
    float least[kMost];
    float most[kMost];
    const size_t pairs = dim / kPair;
    const size_t batch = kMaxDim / dim;
    for (size_t begin = 0; begin < vectors; begin += batch) {
      const size_t count = vectors - begin < batch ? vectors - begin : batch;
      const std::byte* const from = values + 2 * begin * dim;
      for (size_t v = 0; v < count; ++v) {
        // The next ones, while these are worked on.
        for (size_t line = 0; line < 2 * size_t{dim}; line += 64) Prefetch<CacheLevel::kL2>(from + 2 * (batch + v) * dim + line);
        largest[v] = FromHalf<kFp16>(Largest(from + 2 * v * dim, dim, 0));
        if (!(largest[v] < kLimit)) return false;
      }
      for (size_t v = 0; v < count; ++v) {
        const F upscale = V::Set(largest[v] < kTiny ? 0.0f : I4Upscale(largest[v]));
        F low = V::Set(0x1p30f);
        F high = V::Set(-0x1p30f);
        for (size_t first = v * pairs; first < (v + 1) * pairs; first += kPairs) {
          P block[kPairs];
#pragma GCC unroll 16
          for (size_t p = 0; p < kPairs; ++p) {
            const P raw = Load(from + 2 * (first + p) * kPair);
            block[p] = {V::Round(V::Mul(raw.e, upscale)), V::Round(V::Mul(raw.o, upscale))};
          }
          Transform<kPairs, kBlock>(block);
#pragma GCC unroll 16
          for (size_t p = 0; p < kPairs; ++p) {
            low = V::Min(low, V::Min(block[p].e, block[p].o));
            high = V::Max(high, V::Max(block[p].e, block[p].o));
            x[first + p] = block[p];
          }
        }
        least[v] = V::LeastOf(low) + 0.0f;  // -0 is +0 here.
        most[v] = V::MostOf(high) + 0.0f;
      }
      for (size_t v = 0; v < count; ++v) {
        std::byte* const to = codes + (begin + v) * dim / 2;
        if (largest[v] < kTiny) {
          StoreLe<uint32_t>(side + 4 * (begin + v), 0);
          std::memset(to, 0, dim / 2);
          continue;
        }
        const I4Params params = I4Choose(largest[v], least[v], most[v], kBlock);
        S::Store(side, 2 * (begin + v), params.scale);
        S::Store(side, 2 * (begin + v) + 1, params.base);
        const F unit = V::Set(params.unit);
        const F base = V::Set(FromBf16(params.base));
        const F inverse = V::Set(params.inverse);
        const P* const coefficients = x + v * pairs;
        for (size_t p = 0; p < pairs; ++p) {  // Products with unit, a power of two, are exact.
          V::StoreNibbles(to + p * V::kLanes, V::ToInt(V::Mul(V::MulSub(coefficients[p].e, unit, base), inverse)),
                          V::ToInt(V::Mul(V::MulSub(coefficients[p].o, unit, base), inverse)));
        }
      }
    }
    return true;
  }
  template <uint32_t kBlock>
  static bool I4DecodeBlocks(const std::byte* side, const std::byte* codes, size_t vectors,
                             uint32_t dim, std::byte* values) {
    constexpr size_t kPairs = kBlock > kPair ? kBlock / kPair : 1;
    const size_t pairs = dim / kPair;
    for (size_t v = 0; v < vectors; ++v) {
      const float scale = FromBf16(S::Load(side, 2 * v));
      const float base = FromBf16(S::Load(side, 2 * v + 1));
      if (!S::Good(scale) || !S::Good(base)) return false;
      const F scales = V::Set(scale);
      const std::byte* from = codes + v * dim / 2;
      std::byte* to = values + 2 * v * dim;
      for (size_t first = 0; first < pairs; first += kPairs) {
        P block[kPairs];
#pragma GCC unroll 16
        for (size_t p = 0; p < kPairs; ++p) {
          I even;
          I odd;
          V::LoadNibbles(from + (first + p) * V::kLanes, even, odd);
          block[p] = {V::ToFloat(even), V::ToFloat(odd)};
        }
        Transform<kPairs, kBlock>(block);
#pragma GCC unroll 16
        for (size_t p = 0; p < kPairs; ++p) {
          block[p] = {V::Mul(block[p].e, scales), V::Mul(block[p].o, scales)};
          if (p == 0) block[p].e = V::template AddAtBlocks<kBlock>(block[p].e, base);
          Store(to + 2 * (first + p) * kPair, block[p]);
        }
      }
    }
    return true;
  }
  static bool I4Encode(const std::byte* values, size_t vectors, uint32_t dim, std::byte* side,
                       std::byte* codes) {
    if (dim % kPair != 0) return S::I4Encode(values, vectors, dim, side, codes);
    switch (HadamardBlock(dim)) {
      case 16:
        return I4EncodeBlocks<16>(values, vectors, dim, side, codes);
      case 32:
        return I4EncodeBlocks<32>(values, vectors, dim, side, codes);
      case 64:
        return I4EncodeBlocks<64>(values, vectors, dim, side, codes);
      case 128:
        return I4EncodeBlocks<128>(values, vectors, dim, side, codes);
      default:
        return I4EncodeBlocks<256>(values, vectors, dim, side, codes);
    }
  }
  static bool I4Decode(const std::byte* side, const std::byte* codes, size_t vectors, uint32_t dim,
                       std::byte* values) {
    if (dim % kPair != 0) return S::I4Decode(side, codes, vectors, dim, values);
    switch (HadamardBlock(dim)) {
      case 16:
        return I4DecodeBlocks<16>(side, codes, vectors, dim, values);
      case 32:
        return I4DecodeBlocks<32>(side, codes, vectors, dim, values);
      case 64:
        return I4DecodeBlocks<64>(side, codes, vectors, dim, values);
      case 128:
        return I4DecodeBlocks<128>(side, codes, vectors, dim, values);
      default:
        return I4DecodeBlocks<256>(side, codes, vectors, dim, values);
    }
  }

  static constexpr Loops kLoops = {PanelBounds, RunBounds,   Seal,      PanelEncode,
                                   RunEncode,   PanelDecode, RunDecode, Largest,
                                   F8Encode,    F8Decode,    I4Encode,  I4Decode};
};

}  // namespace
}  // namespace tiercel::fixed

#endif  // TIERCEL_KERNELS_FIXED_WIDE_H_
