// I8, F8 and I4H on a GPU: the same segments as kernels/i8.cc, f8.cc and i4h.cc. Encoding runs a codec's
// kernels in this order; they add the digest of what will be decoded.
//
//   I8Encode     grid (any, segments): bounds and codes; I8Shown: the digest
//   F8Largest    grid (any, segments): each head's largest; F8Encode: codes and digest
//   I4hEncode    grid (any, segments), 4 KiB shared a warp: a warp takes a vector; I4hShown: the digest
//   I8Decode, F8Decode    grid (any, segments): digest too
//   I4hDecode    grid (any, segments), 4 KiB shared a warp; the digest is PlaneDigest's (record.cuh)
//
// Errors: `failed`, where a value has no code; decoding, where the segment is malformed.
#ifndef TIERCEL_KERNELS_CUDA_FIXED_CUH_
#define TIERCEL_KERNELS_CUDA_FIXED_CUH_

#include "kernels/cuda/segment.cuh"
#include "kernels/fixed_core.h"

namespace tiercel::gpu {

inline constexpr uint8_t kF8Codec = 3;
inline constexpr uint8_t kI8Codec = 4;
inline constexpr uint8_t kI4hCodec = 5;
inline constexpr uint32_t kFixedVersion = 1;
inline constexpr uint32_t kKindK = 1;
inline constexpr uint32_t kKindKv = 3;
inline constexpr uint32_t kFp16Float = 2;  // Dtype.

TIERCEL_DEVICE float ToFloat(const Segment& s, uint32_t half) {
  return s.dtype == kFp16Float ? fixed::FromFp16(static_cast<uint16_t>(half)) : fixed::FromBf16(static_cast<uint16_t>(half));
}
TIERCEL_DEVICE uint32_t ToHalf(const Segment& s, float value) {
  return s.dtype == kFp16Float ? fixed::ToFp16(value) : fixed::ToBf16(value);
}
TIERCEL_DEVICE uint32_t HalfAt(const Segment& s, Coordinates at) { return *reinterpret_cast<const uint16_t*>(AddressOf(s, at)); }
TIERCEL_DEVICE void Fail(Segment& s) { AtomicOr(&s.failed, 1); }
constexpr uint32_t UpTo64(uint32_t bytes) { return (bytes + 63) / 64 * 64; }

// half(index, coordinates) gives a value's bits, for each word of the plane four times; the words' digest is added.
template <class Half>
TIERCEL_DEVICE void ForWords(Segment& s, bool store, Half half) {
  uint64_t share = 0;
  for (uint32_t word = ThreadOfGrid(); word < s.words(); word += ThreadsOfGrid()) {
    uint64_t bytes = 0;
    Coordinates at = CoordinatesOf(s, 4 * word);
    for (uint32_t i = 0; i < 4 && 4 * word + i < s.values; ++i, Advance(s, &at)) {
      bytes |= static_cast<uint64_t>(half(4 * word + i, at)) << (16 * i);
    }
    if (store) StoreWord(s, word, bytes);
    share += DigestTerm(bytes, word);
  }
  AddDigest(share, &s.digest);
}

// ---- I8.

struct I8Plan {
  bool by_channel;
  uint32_t groups, bounds, codes_at, bytes;
  TIERCEL_DEVICE explicit I8Plan(const Segment& s) {
    by_channel = s.kind == kKindKv || (s.kind == kKindK && s.tokens >= 32);
    groups = by_channel ? (s.tokens + 63) / 64 : 1;
    bounds = by_channel ? groups * s.columns() : s.tokens * s.heads;
    codes_at = UpTo64(4 * bounds);
    bytes = codes_at + s.values;
  }
  TIERCEL_DEVICE uint32_t params() const { return kFixedVersion | (by_channel ? 256u : 0u); }
  TIERCEL_DEVICE uint32_t Begin(const Segment& s, uint32_t group) const { return group * s.tokens / groups; }
  TIERCEL_DEVICE uint32_t BoundOf(const Segment& s, Coordinates at) const {
    if (!by_channel) return s.order == 0 ? at.token * s.heads + at.head : at.head * s.tokens + at.token;
    uint32_t group = groups == 1 ? 0 : at.token * groups / s.tokens;
    while (groups != 1 && Begin(s, group + 1) <= at.token) ++group;
    if (s.order == kHeadDimToken) return (at.head * s.dim + at.dim) * groups + group;
    return (s.order == kHeadTokenDim ? at.head * groups + group : group * s.heads + at.head) * s.dim + at.dim;
  }
};

// A bound's least and greatest, sealed; false where there is none.
TIERCEL_DEVICE bool I8Bounds(const Segment& s, int least, int most, uint16_t* low, uint16_t* high) {
  *low = fixed::FromOrdered(static_cast<int16_t>(least));
  *high = fixed::FromOrdered(static_cast<int16_t>(most));
  return s.dtype == kFp16Float ? fixed::I8Seal<true>(*low, *high) : fixed::I8Seal<false>(*low, *high);
}

// Bounds and codes, to bytes of the plan's size. Grid.
TIERCEL_DEVICE void I8EncodeTo(Segment& s, const I8Plan& plan, uint8_t* to) {
  uint8_t* const low = to;
  uint8_t* const high = to + 2 * plan.bounds;
  uint8_t* const codes = to + plan.codes_at;
  uint16_t l = 0, h = 0;
  if (plan.by_channel) {
    // A thread has a group's column; consecutive ones have consecutive dims.
    for (uint32_t i = ThreadOfGrid(); i < plan.bounds; i += ThreadsOfGrid()) {
      const uint32_t group = i / s.columns();
      Coordinates at{plan.Begin(s, group), i % s.columns() / s.dim, i % s.dim};
      const uint32_t bound = plan.BoundOf(s, at);
      const uint32_t begin = at.token;
      const uint32_t end = plan.Begin(s, group + 1);
      int least = 32767, most = -32768;
      for (; at.token < end; ++at.token) {
        const int value = fixed::Ordered(static_cast<uint16_t>(HalfAt(s, at)));
        least = value < least ? value : least;
        most = value > most ? value : most;
      }
      if (!I8Bounds(s, least, most, &l, &h)) {
        Fail(s);
        continue;
      }
      StoreU16(low + 2 * bound, l);
      StoreU16(high + 2 * bound, h);
      const float bottom = ToFloat(s, l);
      const float inverse = fixed::I8Inverse(bottom, ToFloat(s, h));
      for (at.token = begin; at.token < end; ++at.token) {
        codes[IndexOf(s, at)] = static_cast<uint8_t>(fixed::I8Code(ToFloat(s, HalfAt(s, at)), bottom, inverse));
      }
    }
  } else {
    // A warp has a token of a head.
    for (uint32_t i = WarpOfGrid(); i < plan.bounds; i += WarpsOfGrid()) {
      const uint32_t token = s.order == 0 ? i / s.heads : i % s.tokens;
      const uint32_t head = s.order == 0 ? i % s.heads : i / s.tokens;
      uint32_t least = 0, most = 0;  // How far below 32767 and above -32768.
      for (uint32_t dim = Lane(); dim < s.dim; dim += 32) {
        const int value = fixed::Ordered(static_cast<uint16_t>(HalfAt(s, {token, head, dim})));
        const auto down = static_cast<uint32_t>(32767 - value);
        const auto up = static_cast<uint32_t>(value + 32768);
        least = down > least ? down : least;
        most = up > most ? up : most;
      }
      least = WarpMax(least);
      most = WarpMax(most);
      if (!I8Bounds(s, 32767 - static_cast<int>(least), static_cast<int>(most) - 32768, &l, &h)) {
        Fail(s);
        continue;
      }
      if (Lane() == 0) {
        StoreU16(low + 2 * i, l);
        StoreU16(high + 2 * i, h);
      }
      const float bottom = ToFloat(s, l);
      const float inverse = fixed::I8Inverse(bottom, ToFloat(s, h));
      for (uint32_t dim = Lane(); dim < s.dim; dim += 32) {
        const Coordinates at{token, head, dim};
        codes[IndexOf(s, at)] = static_cast<uint8_t>(fixed::I8Code(ToFloat(s, HalfAt(s, at)), bottom, inverse));
      }
    }
  }
  for (uint32_t i = 4 * plan.bounds + ThreadOfGrid(); i < plan.codes_at; i += ThreadsOfGrid()) to[i] = 0;
}
TIERCEL_KERNEL void I8Encode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8Codec) return;
  const I8Plan plan(s);
  if (plan.bytes > s.limit) return;
  I8EncodeTo(s, plan, s.encoded);
  if (ThreadOfGrid() == 0) {
    s.bytes = plan.bytes;
    s.params = plan.params();
  }
}

// The values of a segment of I8 that lies at `from`: their digest, and if asked they are stored. Grid.
TIERCEL_DEVICE void I8Values(Segment& s, const I8Plan& plan, const uint8_t* from, bool store) {
  const uint8_t* const low = from;
  const uint8_t* const high = from + 2 * plan.bounds;
  const uint8_t* const codes = from + plan.codes_at;
  ForWords(s, store, [&](uint32_t index, Coordinates at) {
    const uint32_t bound = plan.BoundOf(s, at);
    const float bottom = ToFloat(s, LoadU16(low + 2 * bound));
    const float top = ToFloat(s, LoadU16(high + 2 * bound));
    if (!(fixed::Magnitude(bottom) < fixed::kParamLimit) || !(fixed::Magnitude(top) < fixed::kParamLimit)) {
      Fail(s);
      return 0u;
    }
    return ToHalf(s, fixed::I8Decode(codes[index], bottom, fixed::I8Step(bottom, top)));
  });
}
TIERCEL_KERNEL void I8Shown(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8Codec || s.bytes == 0 || s.failed != 0) return;
  I8Values(s, I8Plan(s), s.encoded, false);
}
TIERCEL_KERNEL void I8Decode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI8Codec) return;
  const I8Plan plan(s);
  if (s.params != plan.params() || s.bytes != plan.bytes) return Fail(s);
  I8Values(s, plan, s.encoded, true);
}

// ---- F8.

TIERCEL_DEVICE uint32_t F8Bytes(const Segment& s) { return UpTo64(s.heads) + s.values; }
TIERCEL_DEVICE uint32_t* F8Heads(const Segment& s) { return reinterpret_cast<uint32_t*>(s.scratch); }

TIERCEL_KERNEL void F8Clear(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kF8Codec) return;
  for (uint32_t i = ThreadOfGrid(); i < s.heads; i += ThreadsOfGrid()) F8Heads(s)[i] = 0;
}
TIERCEL_KERNEL void F8Largest(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kF8Codec) return;
  // A warp has 32 values of one head, wherever it can.
  for (uint32_t first = 32 * WarpOfGrid(); first < s.values; first += 32 * WarpsOfGrid()) {
    const bool live = first + Lane() < s.values;
    const Coordinates at = CoordinatesOf(s, live ? first + Lane() : first);
    const uint32_t magnitude = HalfAt(s, at) & 0x7fffu;
    const uint32_t head = Shuffle(at.head, 0);
    if (Ballot(at.head != head) == 0) {
      const uint32_t most = WarpMax(magnitude);
      if (Lane() == 0) AtomicMax(F8Heads(s) + head, most);
    } else {
      AtomicMax(F8Heads(s) + at.head, magnitude);
    }
  }
}
TIERCEL_KERNEL void F8Encode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kF8Codec || F8Bytes(s) > s.limit) return;
  const uint32_t codes_at = UpTo64(s.heads);
  for (uint32_t i = ThreadOfGrid(); i < codes_at; i += ThreadsOfGrid()) {
    const float largest = i < s.heads ? ToFloat(s, F8Heads(s)[i]) : 0.0f;
    if (!(largest < fixed::kF8Limit)) Fail(s);
    s.encoded[i] = i < s.heads && largest < fixed::kF8Limit ? fixed::F8StoredK(largest) : uint8_t{0};
  }
  if (ThreadOfGrid() == 0) {
    s.bytes = F8Bytes(s);
    s.params = kFixedVersion;
  }
  ForWords(s, false, [&](uint32_t index, Coordinates at) {
    const float largest = ToFloat(s, F8Heads(s)[at.head]);
    const uint8_t stored = largest < fixed::kF8Limit ? fixed::F8StoredK(largest) : uint8_t{0};
    uint8_t code = 0;
    if (stored != 0) code = fixed::F8Code(ToFloat(s, HalfAt(s, at)), stored - fixed::kF8Bias);
    s.encoded[codes_at + index] = code;
    return stored == 0 ? 0u : ToHalf(s, fixed::F8Value(code, fixed::F8Scale(stored)));
  });
}
TIERCEL_KERNEL void F8Decode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kF8Codec) return;
  if (s.params != kFixedVersion || s.bytes != F8Bytes(s)) return Fail(s);
  const uint32_t codes_at = UpTo64(s.heads);
  ForWords(s, true, [&](uint32_t index, Coordinates at) {
    const uint8_t stored = s.encoded[at.head];
    const int k = static_cast<int>(stored) - fixed::kF8Bias;
    if (stored != 0 && (k < fixed::kF8MinK || k > fixed::kF8MaxK)) {
      Fail(s);
      return 0u;
    }
    return ToHalf(s, fixed::F8Value(s.encoded[codes_at + index], fixed::F8Scale(stored)));
  });
}

// ---- I4H.

TIERCEL_DEVICE uint32_t I4hCodesAt(const Segment& s) { return UpTo64(4 * s.tokens * s.heads); }
TIERCEL_DEVICE uint32_t I4hBytes(const Segment& s) { return I4hCodesAt(s) + s.values / 2; }
TIERCEL_DEVICE Coordinates VectorAt(const Segment& s, uint32_t vector) {
  return s.order == 0 ? Coordinates{vector / s.heads, vector % s.heads, 0} : Coordinates{vector % s.tokens, vector / s.tokens, 0};
}

// As fixed::Hadamard, of each block of the vector, by the warp.
TIERCEL_DEVICE void WarpHadamard(int32_t* x, uint32_t dim, uint32_t block) {
  SyncWarp();
  for (uint32_t stride = 1; stride < block; stride *= 2) {
    for (uint32_t pair = Lane(); pair < dim / 2; pair += 32) {
      const uint32_t i = pair / stride * 2 * stride + pair % stride;
      const int32_t a = x[i];
      const int32_t b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
    SyncWarp();
  }
}

// What codes in x (in shared memory) stand for, to put(dim, half).
template <class Put>
TIERCEL_DEVICE void I4hShow(const Segment& s, int32_t* x, float scale, float base, Put put) {
  const uint32_t block = fixed::HadamardBlock(s.dim);
  WarpHadamard(x, s.dim, block);
  for (uint32_t i = Lane(); i < s.dim; i += 32) {
    const float scaled = static_cast<float>(x[i]) * scale;
    const float value = i % block == 0 ? scaled + base : scaled;
    put(i, ToHalf(s, value));
  }
  SyncWarp();
}

TIERCEL_KERNEL void I4hEncode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI4hCodec || I4hBytes(s) > s.limit) return;
  int32_t* const x = Shared<int32_t>() + WarpOfBlock() * fixed::kMaxDim;
  auto* const shown = reinterpret_cast<uint16_t*>(s.scratch);
  const uint32_t block = fixed::HadamardBlock(s.dim);
  const uint32_t vectors = s.tokens * s.heads;
  for (uint32_t vector = WarpOfGrid(); vector < vectors; vector += WarpsOfGrid()) {
    Coordinates at = VectorAt(s, vector);
    uint32_t most = 0;
    for (uint32_t i = Lane(); i < s.dim; i += 32) {
      at.dim = i;
      const uint32_t magnitude = HalfAt(s, at) & 0x7fffu;
      most = magnitude > most ? magnitude : most;
    }
    const float largest = ToFloat(s, WarpMax(most));
    if (!(largest < fixed::kLimit)) {
      Fail(s);
      continue;
    }
    fixed::I4Params params;
    if (largest >= fixed::kTiny) {
      const float upscale = fixed::I4Upscale(largest);
      for (uint32_t i = Lane(); i < s.dim; i += 32) {
        at.dim = i;
        const float scaled = ToFloat(s, HalfAt(s, at)) * upscale;
        x[i] = fixed::Nearest(scaled);
      }
      WarpHadamard(x, s.dim, block);
      constexpr int32_t kMiddle = 1 << 30;  // Coefficients are below it in magnitude.
      uint32_t down = 0, up = 0;
      for (uint32_t i = Lane(); i < s.dim; i += 32) {
        const auto below = static_cast<uint32_t>(kMiddle - x[i]);
        const auto above = static_cast<uint32_t>(x[i] + kMiddle);
        down = below > down ? below : down;
        up = above > up ? above : up;
      }
      const int32_t low = kMiddle - static_cast<int32_t>(WarpMax(down));
      const int32_t high = static_cast<int32_t>(WarpMax(up)) - kMiddle;
      params = fixed::I4Choose(largest, static_cast<float>(low), static_cast<float>(high), block);
    } else {
      for (uint32_t i = Lane(); i < s.dim; i += 32) x[i] = 0;
      SyncWarp();
    }
    if (Lane() == 0) StoreU32(s.encoded + 4 * vector, params.scale | static_cast<uint32_t>(params.base) << 16);
    SyncWarp();
    const float base = fixed::FromBf16(params.base);
    uint8_t* const codes = s.encoded + I4hCodesAt(s) + vector * (s.dim / 2);
    for (uint32_t i = Lane(); i < s.dim / 2; i += 32) {
      const uint32_t even = fixed::I4Code(static_cast<float>(x[2 * i]), params.unit, base, params.inverse);
      const uint32_t odd = fixed::I4Code(static_cast<float>(x[2 * i + 1]), params.unit, base, params.inverse);
      codes[i] = static_cast<uint8_t>(even | odd << 4);
      x[2 * i] = static_cast<int32_t>(even);
      x[2 * i + 1] = static_cast<int32_t>(odd);
    }
    I4hShow(s, x, fixed::FromBf16(params.scale), base, [&](uint32_t i, uint32_t half) {
      shown[IndexOf(s, {at.token, at.head, i})] = static_cast<uint16_t>(half);
    });
  }
  for (uint32_t i = 4 * vectors + ThreadOfGrid(); i < I4hCodesAt(s); i += ThreadsOfGrid()) s.encoded[i] = 0;
  if (ThreadOfGrid() == 0) {
    s.bytes = I4hBytes(s);
    s.params = kFixedVersion;
  }
}
TIERCEL_KERNEL void I4hShown(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI4hCodec || s.bytes == 0 || s.failed != 0) return;
  const auto* const shown = reinterpret_cast<const uint16_t*>(s.scratch);
  ForWords(s, false, [&](uint32_t index, Coordinates) { return static_cast<uint32_t>(shown[index]); });
}
TIERCEL_KERNEL void I4hDecode(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kI4hCodec) return;
  if (s.params != kFixedVersion || s.bytes != I4hBytes(s)) return Fail(s);
  int32_t* const x = Shared<int32_t>() + WarpOfBlock() * fixed::kMaxDim;
  const uint32_t vectors = s.tokens * s.heads;
  for (uint32_t vector = WarpOfGrid(); vector < vectors; vector += WarpsOfGrid()) {
    const Coordinates at = VectorAt(s, vector);
    const float scale = fixed::FromBf16(static_cast<uint16_t>(LoadU16(s.encoded + 4 * vector)));
    const float base = fixed::FromBf16(static_cast<uint16_t>(LoadU16(s.encoded + 4 * vector + 2)));
    if (!(fixed::Magnitude(scale) < fixed::kParamLimit) || !(fixed::Magnitude(base) < fixed::kParamLimit)) {
      Fail(s);
      continue;
    }
    const uint8_t* const codes = s.encoded + I4hCodesAt(s) + vector * (s.dim / 2);
    for (uint32_t i = Lane(); i < s.dim / 2; i += 32) {
      x[2 * i] = codes[i] & 15;
      x[2 * i + 1] = codes[i] >> 4;
    }
    I4hShow(s, x, scale, base, [&](uint32_t i, uint32_t half) {
      *reinterpret_cast<uint16_t*>(AddressOf(s, {at.token, at.head, i})) = static_cast<uint16_t>(half);
    });
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_FIXED_CUH_
