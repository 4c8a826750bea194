// Three ways to the same sum.
//
//  table     one byte a step; any CPU.
//  sse4.2    the crc32 instruction does 8 bytes in 3 cycles of latency, 1 of throughput: three
//            streams of a fixed length fill it, and each is carried over the ones behind it by a
//            carry-less product with x^(8 * distance) mod P.
//  vpclmul   folds 256 bytes a step in four 512-bit accumulators (Gopal et al., "Fast CRC
//            computation for generic polynomials using PCLMULQDQ", Intel 2009), then folds those
//            down to 16 bytes and lets the crc32 instruction reduce them.
//
// A constant K(n) is x^n mod P, bit-reflected. A carry-less product of reflected operands comes out
// one bit low, and crc32 multiplies by x^32; hence the -33 and +31 below.
#include "base/crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tiercel {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t ExtendTable(const std::byte* data, size_t size, uint32_t crc) {
  for (size_t i = 0; i < size; ++i) {
    crc = (crc >> 8) ^ kTable[(crc ^ std::to_integer<uint32_t>(data[i])) & 255];
  }
  return crc;
}

#if defined(__x86_64__)

constexpr uint32_t K(uint32_t n) {
  uint32_t power = 0x80000000u;  // x^0.
  for (uint32_t i = 0; i < n; ++i) power = (power >> 1) ^ ((power & 1) != 0 ? kPolynomial : 0);
  return power;
}

#define TIERCEL_SSE42 __attribute__((target("sse4.2,pclmul")))
#define TIERCEL_VPCLMUL \
  __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,avx512bw,avx512dq,vpclmulqdq")))

TIERCEL_SSE42 inline uint64_t Shift(uint32_t crc, uint32_t k) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(crc)),
                                               _mm_cvtsi32_si128(static_cast<int>(k)), 0);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

TIERCEL_SSE42 uint32_t ExtendShort(const std::byte* data, size_t size, uint32_t crc) {
  uint64_t wide = crc;
  for (; size >= 8; data += 8, size -= 8) wide = _mm_crc32_u64(wide, LoadLe<uint64_t>(data));
  crc = static_cast<uint32_t>(wide);
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, std::to_integer<uint8_t>(*data));
  return crc;
}

template <size_t kStream>
TIERCEL_SSE42 uint32_t ExtendThree(const std::byte*& data, size_t& size, uint32_t crc) {
  constexpr uint32_t kOne = K(kStream * 8 - 33);
  constexpr uint32_t kTwo = K(kStream * 16 - 33);
  while (size >= 3 * kStream) {
    uint64_t a = crc;
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      a = _mm_crc32_u64(a, LoadLe<uint64_t>(data + i));
      b = _mm_crc32_u64(b, LoadLe<uint64_t>(data + kStream + i));
      c = _mm_crc32_u64(c, LoadLe<uint64_t>(data + 2 * kStream + i));
    }
    const uint64_t carried =
        Shift(static_cast<uint32_t>(a), kTwo) ^ Shift(static_cast<uint32_t>(b), kOne);
    crc = static_cast<uint32_t>(c) ^ static_cast<uint32_t>(_mm_crc32_u64(0, carried));
    data += 3 * kStream;
    size -= 3 * kStream;
  }
  return crc;
}

TIERCEL_SSE42 uint32_t ExtendSse42(const std::byte* data, size_t size, uint32_t crc) {
  crc = ExtendThree<2048>(data, size, crc);
  crc = ExtendThree<128>(data, size, crc);
  return ExtendShort(data, size, crc);
}

// The pair of constants that carries a 128-bit lane over `bits` further bits.
template <uint32_t kBits>
TIERCEL_VPCLMUL inline __m512i FoldConstants() {
  return _mm512_broadcast_i32x4(_mm_set_epi64x(K(kBits - 33), K(kBits + 31)));
}
TIERCEL_VPCLMUL inline __m512i Fold(__m512i lane, __m512i k, __m512i next) {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lane, k, 0x00),
                                   _mm512_clmulepi64_epi128(lane, k, 0x11), next, 0x96);
}
template <uint32_t kBits>
TIERCEL_VPCLMUL inline __m128i Fold128(__m128i lane, __m128i next) {
  const __m128i k = _mm_set_epi64x(K(kBits - 33), K(kBits + 31));
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(lane, k, 0x00),
                                     _mm_clmulepi64_si128(lane, k, 0x11)),
                       next);
}

enum class CopyMode { kNone, kPlain, kStream };

// out is null where nothing is copied.
template <CopyMode kMode>
TIERCEL_VPCLMUL inline __m512i LoadAndCopy(const std::byte* data, std::byte* out, size_t at) {
  const __m512i value = _mm512_loadu_si512(data + at);
  if constexpr (kMode == CopyMode::kPlain) _mm512_storeu_si512(out + at, value);
  if constexpr (kMode == CopyMode::kStream) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at), value);
  }
  return value;
}

// Whole 256-byte steps; size must be at least 256. Returns the bytes done.
template <CopyMode kMode>
TIERCEL_VPCLMUL size_t FoldVpclmul(std::byte* out, const std::byte* data, size_t size,
                                   uint32_t& crc) {
  // A cold source is asked for this far ahead: the hardware prefetcher stops at each page.
  constexpr size_t kAhead = kMode == CopyMode::kNone ? 1024 : 2048;
  const __m512i k = FoldConstants<2048>();
  __m512i a = _mm512_xor_si512(LoadAndCopy<kMode>(data, out, 0),
                               _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
  __m512i b = LoadAndCopy<kMode>(data, out, 64);
  __m512i c = LoadAndCopy<kMode>(data, out, 128);
  __m512i d = LoadAndCopy<kMode>(data, out, 192);
  size_t done = 256;
  for (; done + 256 <= size; done += 256) {
    const std::byte* from = data + done;
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + 64), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + 128), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + 192), _MM_HINT_T0);
    a = Fold(a, k, LoadAndCopy<kMode>(data, out, done));
    b = Fold(b, k, LoadAndCopy<kMode>(data, out, done + 64));
    c = Fold(c, k, LoadAndCopy<kMode>(data, out, done + 128));
    d = Fold(d, k, LoadAndCopy<kMode>(data, out, done + 192));
  }
  const __m512i k512 = FoldConstants<512>();
  a = Fold(Fold(Fold(a, k512, b), k512, c), k512, d);
  const __m128i lane3 = _mm512_extracti32x4_epi32(a, 3);
  const __m128i low = Fold128<384>(_mm512_extracti32x4_epi32(a, 0), lane3);
  const __m128i mid = Fold128<256>(_mm512_extracti32x4_epi32(a, 1), low);
  const __m128i last = Fold128<128>(_mm512_extracti32x4_epi32(a, 2), mid);
  uint64_t wide = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_extract_epi64(last, 0)));
  wide = _mm_crc32_u64(wide, static_cast<uint64_t>(_mm_extract_epi64(last, 1)));
  crc = static_cast<uint32_t>(wide);
  return done;
}

uint32_t ExtendVpclmul(const std::byte* data, size_t size, uint32_t crc) {
  if (size >= 256) {
    const size_t done = FoldVpclmul<CopyMode::kNone>(nullptr, data, size, crc);
    data += done;
    size -= done;
  }
  return ExtendShort(data, size, crc);
}

// From here on streaming stores pay: they spare reading the destination into the cache.
constexpr size_t kStreamFrom = 64 << 10;

uint32_t CopyVpclmul(std::byte* out, const std::byte* data, size_t size, uint32_t crc, size_t of) {
  const auto step = [&](size_t done) {
    out += done;
    data += done;
    size -= done;
  };
  if (std::max(size, of) >= kStreamFrom && size >= 4096) {
    const size_t lead = (64 - reinterpret_cast<uintptr_t>(out) % 64) % 64;
    std::memcpy(out, data, lead);
    crc = ExtendShort(out, lead, crc);
    step(lead);
    step(FoldVpclmul<CopyMode::kStream>(out, data, size, crc));
    _mm_sfence();
  } else if (size >= 256) {
    step(FoldVpclmul<CopyMode::kPlain>(out, data, size, crc));
  }
  std::memcpy(out, data, size);
  return ExtendShort(out, size, crc);
}

#endif  // __x86_64__

Crc32cPath BestPath() {
  static const Crc32cPath best = Crc32cPathUsable(Crc32cPath::kVpclmul) ? Crc32cPath::kVpclmul
                                 : Crc32cPathUsable(Crc32cPath::kSse42) ? Crc32cPath::kSse42
                                                                        : Crc32cPath::kTable;
  return best;
}

}  // namespace

bool Crc32cPathUsable(Crc32cPath path) {
#if defined(__x86_64__)
  const bool sse42 = __builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0;
  if (path == Crc32cPath::kSse42) return sse42;
  if (path == Crc32cPath::kVpclmul) {
    return sse42 && __builtin_cpu_supports("avx512f") != 0 &&
           __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
           __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0;
  }
#endif
  return path == Crc32cPath::kTable;
}

uint32_t Crc32cBy(Crc32cPath path, ByteSpan bytes, uint32_t crc) {
  crc = ~crc;
#if defined(__x86_64__)
  if (path == Crc32cPath::kVpclmul) return ~ExtendVpclmul(bytes.data(), bytes.size(), crc);
  if (path == Crc32cPath::kSse42) return ~ExtendSse42(bytes.data(), bytes.size(), crc);
#endif
  return ~ExtendTable(bytes.data(), bytes.size(), crc);
}

uint32_t CopyCrc32cBy(Crc32cPath path, std::byte* out, ByteSpan bytes, uint32_t crc,
                      [[maybe_unused]] size_t of) {
  if (bytes.empty()) return crc;  // There may be no place for nothing.
#if defined(__x86_64__)
  if (path == Crc32cPath::kVpclmul) {
    return ~CopyVpclmul(out, bytes.data(), bytes.size(), ~crc, of);
  }
#endif
  // Summed over the copy, step by step while it is warm.
  constexpr size_t kStep = 32 << 10;
  for (size_t at = 0; at < bytes.size(); at += kStep) {
    const size_t size = bytes.size() - at < kStep ? bytes.size() - at : kStep;
    std::memcpy(out + at, bytes.data() + at, size);
    crc = Crc32cBy(path, {out + at, size}, crc);
  }
  return crc;
}

uint32_t Crc32c(ByteSpan bytes, uint32_t crc) { return Crc32cBy(BestPath(), bytes, crc); }
uint32_t CopyCrc32c(std::byte* out, ByteSpan bytes, uint32_t crc, size_t of) {
  return CopyCrc32cBy(BestPath(), out, bytes, crc, of);
}

}  // namespace tiercel
