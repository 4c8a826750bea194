// Rotary position embedding in arithmetic that gives the same bits everywhere: phases are integers,
// sine and cosine an integer polynomial, the rotation one fp32 operation after another. Plain C++ that
// a device compiler takes too; compile users with -ffp-contract=off (nvcc: -fmad=false).
//
//   phase(position, pair) = position * frequency[pair]            turns, 64 bits of fraction, mod 1
//   cos, sin              = polynomials in Q30, then one conversion to fp32
//   rotate                  (a, b) -> (a cos - b sin, b cos + a sin); unrotate the other way
//
// FixedTurn is within 4e-9 of the true values before the conversion, which adds at most 2^-25
// (tests/kernels/rope_test.cc). Whatever scaling a model has (linear, llama3, yarn) is in the
// frequencies; yarn's factor on cosine and sine is not: it stays in the keys.
#ifndef TIERCEL_KERNELS_ROPE_CORE_H_
#define TIERCEL_KERNELS_ROPE_CORE_H_

#include <cstddef>
#include <cstdint>

namespace tiercel {

enum class RopeStyle : uint8_t {
  kHalves = 0,      // Pair i is dims i and i + dims / 2 (NeoX, Llama in Hugging Face's order).
  kNeighbours = 1,  // Pair i is dims 2 i and 2 i + 1 (GPT-J, MLA).
};

inline constexpr uint32_t kMaxRopeDims = 512;

// Which dims of a head are rotated, and how fast. frequencies: dims / 2 of them, turns a position as a
// fraction of 2^64.
struct Rope {
  RopeStyle style = RopeStyle::kHalves;
  uint32_t first = 0;  // Of the rotated dims within the head: 512 in a latent of 512 + 64.
  uint32_t dims = 0;   // Even; 0: no rotation.
  const uint64_t* frequencies = nullptr;

  constexpr uint32_t pairs() const { return dims / 2; }
  constexpr uint32_t FirstOf(uint32_t pair) const {
    return first + (style == RopeStyle::kHalves ? pair : 2 * pair);
  }
  constexpr uint32_t SecondOf(uint32_t pair) const {
    return first + (style == RopeStyle::kHalves ? pair + pairs() : 2 * pair + 1);
  }
};

namespace rope {

struct Fixed {  // Q30.
  int32_t cosine;
  int32_t sine;
};

constexpr int32_t MulQ30(int32_t a, int32_t b) {
  return static_cast<int32_t>((int64_t{a} * b + (int64_t{1} << 29)) >> 30);
}

// Of 2 pi phase / 2^64.
constexpr Fixed FixedTurn(uint64_t phase) {
  // (pi / 4)^k / k! in Q30, signs alternating: of cosine k = 0, 2, ..., of sine k = 1, 3, ...
  constexpr int32_t kCos[6] = {1073741824, -331168970, 17023473, -350031, 3856, -26};
  constexpr int32_t kSin[6] = {843314857, -86699834, 2674041, -39273, 336, -2};
  const uint64_t quarter = (phase + (uint64_t{1} << 61)) >> 62;
  // What is left of the nearest quarter turn: +-2^30 is +-pi / 4.
  const auto rest = static_cast<int64_t>(phase - (quarter << 62));
  const auto z = static_cast<int32_t>((rest + (int64_t{1} << 30)) >> 31);
  const int32_t z2 = MulQ30(z, z);
  int32_t c = kCos[5];
  int32_t s = kSin[5];
  for (int k = 4; k >= 0; --k) {
    c = MulQ30(c, z2) + kCos[k];
    s = MulQ30(s, z2) + kSin[k];
  }
  s = MulQ30(s, z);
  switch (quarter & 3) {
    case 0:
      return {c, s};
    case 1:
      return {-s, c};
    case 2:
      return {-c, -s};
    default:
      return {s, -c};
  }
}

struct Turned {
  float cosine;
  float sine;
};
constexpr Turned Turn(uint64_t phase) {
  const Fixed fixed = FixedTurn(phase);
  return {static_cast<float>(fixed.cosine) * 0x1p-30f, static_cast<float>(fixed.sine) * 0x1p-30f};
}

// Entry [pair * stride + token] of both tables for positions pos0 on; those from `tokens` to stride 0.
constexpr void FillTables(const Rope& r, uint64_t pos0, uint32_t tokens, size_t stride, float* cos,
                          float* sin) {
  for (uint32_t p = 0; p < r.pairs(); ++p) {
    uint64_t phase = pos0 * r.frequencies[p];
    for (size_t t = 0; t < stride; ++t) {
      const Turned by = Turn(phase);
      cos[p * stride + t] = t < tokens ? by.cosine : 0.0f;
      sin[p * stride + t] = t < tokens ? by.sine : 0.0f;
      phase += r.frequencies[p];
    }
  }
}

// The pair (a, b) by the angle, and back.
constexpr void Rotate(float& a, float& b, Turned by) {
  const float ac = a * by.cosine;
  const float bs = b * by.sine;
  const float bc = b * by.cosine;
  const float as = a * by.sine;
  a = ac - bs;
  b = bc + as;
}
constexpr void Unrotate(float& a, float& b, Turned by) { Rotate(a, b, {by.cosine, -by.sine}); }

}  // namespace rope

// The tables of a block, which all its layers and heads share. Borrowed.
struct RopeTables {
  Rope rope;
  size_t stride = 0;  // ColumnStride(tokens).
  const float* cos = nullptr;  // [pair][stride].
  const float* sin = nullptr;
};

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_ROPE_CORE_H_
