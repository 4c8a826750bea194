// LLF: the exponents of KV lie in a narrow window, so 4 bits name nearly all of them; signs and
// mantissas are noise and stay as they are. 12 bits a bf16 value, 15 a fp16 value, plus the escapes.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/digest.h"
#include "kernels/isa.h"
#include "kernels/llf_core.h"
#include "kernels/llf_groups.h"

namespace tiercel {
namespace {

using namespace llf;  // NOLINT: the codec's own words.

constexpr uint64_t kStepBytes = 16 << 10;
constexpr uint64_t kStepValues = kStepBytes / 2;
constexpr uint32_t kSamples = 512;

// Payload header, little endian.
constexpr size_t kAtVersion = 0;
constexpr size_t kAtDtype = 1;
constexpr size_t kAtValues = 4;
constexpr size_t kAtEscapes = 8;
constexpr size_t kAtCodebook = 16;

struct Geometry {
  bool fp16 = false;
  uint64_t values = 0;
  uint64_t groups = 0;
  uint64_t low_at = 0;
  uint64_t codes_at = 0;
  uint64_t bits_at = 0;
  uint64_t escapes_at = 0;

  explicit Geometry(const SegmentShape& shape)
      : fp16(shape.dtype == Dtype::kFp16),
        values(shape.raw_bytes / 2),
        groups((values + kGroup - 1) / kGroup),
        low_at(kHeaderBytes),
        codes_at(low_at + groups * kLowBytes),
        bits_at(codes_at + groups * kCodeBytes),
        escapes_at(bits_at + (fp16 ? groups * kBitBytes : 0)) {}
};

GroupFns Fns(bool fp16) {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return fp16 ? Avx512Fp16() : Avx512Bf16();
    case KernelIsa::kAvx2:
      return fp16 ? Avx2Fp16() : Avx2Bf16();
    case KernelIsa::kScalar:
      break;
  }
#endif
  return fp16 ? ScalarFp16() : ScalarBf16();
}

// The lowest exponent of the window that covers most of a sample. Among equals, one step above the
// lowest: rare large values then still find a code, and most of the room is left for small ones.
uint32_t ChooseBase(ByteSpan raw, bool fp16) {
  std::array<uint32_t, 256 + kWindow> histogram{};
  const uint64_t values = raw.size() / 2;
  const auto samples = static_cast<uint32_t>(std::min<uint64_t>(kSamples, values));
  for (uint32_t k = 0; k < samples; ++k) {
    // Multiples of the golden ratio: evenly spread, and in step with no tensor dimension.
    const uint64_t index =
        values <= kSamples ? k : (uint64_t{static_cast<uint32_t>(k * 0x9e3779b1u)} * values) >> 32;
    const auto value = LoadLe<uint16_t>(raw.data() + 2 * index);
    ++histogram[fp16 ? Fp16Exponent(value) : Bf16Exponent(value)];
  }
  const uint32_t last_base = (fp16 ? 32 : 256) - kWindow;
  uint32_t covered = 0;
  for (uint32_t e = 1; e < 1 + kWindow; ++e) covered += histogram[e];
  uint32_t best = covered;
  uint32_t lowest = 1;
  uint32_t highest = 1;
  bool run = true;
  for (uint32_t base = 2; base <= last_base; ++base) {
    covered += histogram[base + kWindow - 1] - histogram[base - 1];
    if (covered > best) {
      best = covered;
      lowest = highest = base;
      run = true;
    } else if (covered < best) {
      run = false;
    } else if (run) {
      highest = base;
    }
  }
  return std::min(highest, lowest + 1);
}

class LlfCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kLlf; }
  QualityClass quality() const override { return QualityClass::kExact; }

  bool Supports(const SegmentShape& shape) const override {
    return (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) &&
           shape.raw_bytes % 2 == 0 && shape.raw_bytes >= 2 && shape.raw_bytes / 2 <= kMaxValues;
  }

  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;  // Less gain than that is not worth decoding.
  }

  uint64_t step_bytes(const SegmentShape&) const override { return kStepBytes; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out, const CodecContext&) const override {
    const Geometry at(shape);
    const uint64_t limit = MaxEncodedBytes(shape);
    if (raw.size() != shape.raw_bytes || at.escapes_at > limit || out.size() < limit) {
      return std::nullopt;
    }
    const uint32_t base = ChooseBase(raw, at.fp16);
    const GroupFns fns = Fns(at.fp16);
    EscapeList escapes{out.data() + at.escapes_at, 0, (limit - at.escapes_at) / 4};
    DigestStream digest;
    for (uint64_t first = 0; first < at.values; first += kStepValues) {
      const uint64_t count = std::min(kStepValues, at.values - first);
      const uint64_t groups = count / kGroup;
      const std::byte* from = raw.data() + 2 * first;
      const auto planes = [&](uint64_t group) {
        return PlanesOut{out.data() + at.low_at + group * kLowBytes,
                         out.data() + at.codes_at + group * kCodeBytes,
                         out.data() + at.bits_at + group * kBitBytes};
      };
      if (!fns.encode(from, groups, base, static_cast<uint32_t>(first), planes(first / kGroup),
                      escapes)) {
        return std::nullopt;
      }
      if (const uint64_t rest = count % kGroup; rest != 0) {
        std::array<std::byte, 2 * kGroup> last{};  // Filled up with +0.
        std::memcpy(last.data(), from + 2 * kGroup * groups, 2 * rest);
        if (!fns.encode(last.data(), 1, base, static_cast<uint32_t>(first + groups * kGroup),
                        planes(first / kGroup + groups), escapes)) {
          return std::nullopt;
        }
      }
      digest.Add({from, 2 * count});
    }
    std::byte* header = out.data();
    std::memset(header, 0, kHeaderBytes);
    header[kAtVersion] = std::byte{1};
    header[kAtDtype] = static_cast<std::byte>(shape.dtype);
    StoreLe(header + kAtValues, static_cast<uint32_t>(at.values));
    StoreLe(header + kAtEscapes, static_cast<uint32_t>(escapes.count));
    for (uint32_t code = 0; code < kWindow; ++code) {
      header[kAtCodebook + code] = static_cast<std::byte>(base + code);
    }
    return EncodedSegment{at.escapes_at + 4 * escapes.count, 0, digest.Finish()};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext&) const override {
    const Geometry at(shape);
    const auto bad = [&](const char* what) {
      return Fail(Code::kDataLoss, fmt::format("LLF segment of {} bytes: {}", encoded.size(), what));
    };
    if (encoded.size() < at.escapes_at) return bad("shorter than its planes");
    const std::byte* header = encoded.data();
    if (header[kAtVersion] != std::byte{1} || params != 0) return bad("not version 1");
    if (header[kAtDtype] != static_cast<std::byte>(shape.dtype)) return bad("of another dtype");
    if (LoadLe<uint32_t>(header + kAtValues) != at.values) return bad("of another value count");
    const auto n_escapes = LoadLe<uint32_t>(header + kAtEscapes);
    if (encoded.size() != at.escapes_at + uint64_t{4} * n_escapes) {
      return bad("its escapes do not end where it ends");
    }
    const uint64_t first = begin / 2;
    const uint64_t count = out.size() / 2;
    if (begin % (2 * kGroup) != 0 || out.size() % 2 != 0 || first > at.values ||
        count > at.values - first || (count % kGroup != 0 && first + count != at.values)) {
      return Fail(Code::kInvalidArgument, fmt::format("LLF segment: no step {}+{}", begin, out.size()));
    }
    // Once a segment: whoever decodes it in steps begins at 0.
    if (begin == 0 && !InOrder(encoded.subspan(at.escapes_at), n_escapes, at.values)) {
      return bad("its escapes are out of order or behind its values");
    }
    const GroupFns fns = Fns(at.fp16);
    const auto planes = [&](uint64_t group) {
      return PlanesIn{encoded.data() + at.low_at + group * kLowBytes,
                      encoded.data() + at.codes_at + group * kCodeBytes,
                      encoded.data() + at.bits_at + group * kBitBytes};
    };
    const uint64_t groups = count / kGroup;
    fns.decode(planes(first / kGroup), groups, header + kAtCodebook, out.data());
    if (const uint64_t rest = count % kGroup; rest != 0) {
      std::array<std::byte, 2 * kGroup> last;
      fns.decode(planes(first / kGroup + groups), 1, header + kAtCodebook, last.data());
      std::memcpy(out.data() + 2 * kGroup * groups, last.data(), 2 * rest);
    }
    return ApplyEscapes(encoded.subspan(at.escapes_at), n_escapes, at.fp16, first, count, out);
  }

 private:
  static bool InOrder(ByteSpan escapes, uint32_t n, uint64_t values) {
    uint64_t least = 0;
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t position = EscapePosition(LoadLe<uint32_t>(escapes.data() + size_t{4} * i));
      if (position < least || position >= values) return false;
      least = uint64_t{position} + 1;
    }
    return true;
  }

  static Status ApplyEscapes(ByteSpan escapes, uint32_t n, bool fp16, uint64_t first,
                             uint64_t count, MutableByteSpan out) {
    const auto position = [&](uint32_t i) {
      return EscapePosition(LoadLe<uint32_t>(escapes.data() + size_t{4} * i));
    };
    uint32_t low = 0;  // The first escape at or behind `first`.
    for (uint32_t high = n; low < high;) {
      const uint32_t middle = low + (high - low) / 2;
      if (position(middle) < first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    for (uint32_t i = low; i < n; ++i) {
      const uint64_t at = position(i);
      if (at >= first + count) break;
      if (at < first) return Fail(Code::kDataLoss, "LLF segment: escapes out of order");
      const uint32_t exponent =
          EscapeExponent(LoadLe<uint32_t>(escapes.data() + size_t{4} * i));
      std::byte* to = out.data() + 2 * (at - first);
      const auto value = LoadLe<uint16_t>(to);
      StoreLe<uint16_t>(to, fp16 ? static_cast<uint16_t>((value & ~0x7c00u) | ((exponent & 31) << 10))
                                 : static_cast<uint16_t>((value & ~0x7f80u) | (exponent << 7)));
    }
    return OkStatus();
  }
};

}  // namespace

const Codec& LlfCodec() {
  static const LlfCodecImpl codec;
  return codec;
}

}  // namespace tiercel
