// F8: e4m3 times a power of two a head. Nothing but integers, so it is the same everywhere.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/digest.h"
#include "kernels/fixed_core.h"
#include "kernels/fixed_loops.h"

namespace tiercel {
namespace {

using fixed::Loops;

constexpr uint32_t kVersion = 1;
constexpr uint64_t kStepBytes = 16 << 10;
constexpr uint64_t kMaxValues = uint64_t{1} << 27;
constexpr uint32_t kMaxHeads = 1024;

// The plane in its own order as runs of values of one head.
struct Geometry {
  bool fp16;
  uint64_t runs;
  uint64_t length;
  uint64_t heads;
  uint64_t runs_a_head;  // Consecutive ones; 1 where heads alternate.
  uint64_t codes_at;
  uint64_t step_runs;

  explicit Geometry(const SegmentShape& shape) {
    fp16 = shape.dtype == Dtype::kFp16;
    heads = shape.heads;
    length = shape.order == AxisOrder::kHeadDimToken ? shape.tokens : shape.dim;
    runs = shape.tokens * uint64_t{shape.heads} * shape.dim / length;
    runs_a_head = shape.order == AxisOrder::kTokenHeadDim ? 1 : runs / heads;
    codes_at = (heads + 63) / 64 * 64;
    step_runs = std::max<uint64_t>(4, kStepBytes / (2 * length) / 4 * 4);
  }
  uint64_t HeadOf(uint64_t run) const { return run / runs_a_head % heads; }
  uint64_t encoded_bytes() const { return codes_at + runs * length; }

  // Calls with stretches of values of one head: (head, first value, values).
  template <class F>
  void ForStretches(uint64_t first, uint64_t end, F&& stretch) const {
    for (uint64_t run = first; run < end;) {
      const uint64_t stop = std::min(end, (run / runs_a_head + 1) * runs_a_head);
      stretch(HeadOf(run), run * length, (stop - run) * length);
      run = stop;
    }
  }
};

class F8CodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kF8; }
  QualityClass quality() const override { return QualityClass::kHigh; }
  bool one_class() const override { return true; }

  bool Supports(const SegmentShape& shape) const override {
    const uint64_t values = uint64_t{shape.tokens} * shape.heads * shape.dim;
    return (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) && values > 0 &&
           values <= kMaxValues && shape.heads <= kMaxHeads && shape.raw_bytes == 2 * values;
  }
  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;
  }
  uint64_t scratch_bytes(const SegmentShape& shape) const override { return step_bytes(shape); }
  uint64_t step_bytes(const SegmentShape& shape) const override {
    const Geometry at(shape);
    return 2 * at.step_runs * at.length;
  }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out,
                                       const CodecContext& context) const override {
    const Geometry at(shape);
    const uint64_t bytes = at.encoded_bytes();
    if (raw.size() != shape.raw_bytes || bytes > MaxEncodedBytes(shape) || out.size() < bytes ||
        context.scratch.size() < scratch_bytes(shape)) {
      return std::nullopt;
    }
    const Loops& loops = fixed::LoopsFor(at.fp16);
    std::array<uint16_t, kMaxHeads> largest{};
    at.ForStretches(0, at.runs, [&](uint64_t head, uint64_t first, uint64_t count) {
      largest[head] = loops.largest(raw.data() + 2 * first, count, largest[head]);
    });
    std::memset(out.data(), 0, at.codes_at);
    for (uint64_t head = 0; head < at.heads; ++head) {
      const float value = at.fp16 ? fixed::FromFp16(largest[head]) : fixed::FromBf16(largest[head]);
      if (!(value < fixed::kF8Limit)) return std::nullopt;
      out[head] = static_cast<std::byte>(fixed::F8StoredK(value));
    }
    std::byte* codes = out.data() + at.codes_at;
    DigestStream digest;
    for (uint64_t first = 0; first < at.runs; first += at.step_runs) {
      const uint64_t end = std::min(at.runs, first + at.step_runs);
      at.ForStretches(first, end, [&](uint64_t head, uint64_t value, uint64_t count) {
        const auto stored = std::to_integer<uint8_t>(out[head]);
        std::byte* shown = context.scratch.data() + 2 * (value - first * at.length);
        if (stored == 0) {
          std::memset(codes + value, 0, count);
          std::memset(shown, 0, 2 * count);
          return;
        }
        loops.f8_encode(raw.data() + 2 * value, count, stored - fixed::kF8Bias, codes + value);
        loops.f8_decode(codes + value, count, fixed::F8Scale(stored), shown);
      });
      digest.Add(context.scratch.first(2 * (end - first) * at.length));
    }
    return EncodedSegment{bytes, kVersion, digest.Finish()};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext&) const override {
    const Geometry at(shape);
    if (params != kVersion) {
      return Fail(Code::kDataLoss, fmt::format("F8 segment: params {:#x}, {:#x} expected", params,
                                               kVersion));
    }
    if (encoded.size() != at.encoded_bytes()) {
      return Fail(Code::kDataLoss, fmt::format("F8 segment of {} values: {} bytes, {} expected",
                                               at.runs * at.length, encoded.size(),
                                               at.encoded_bytes()));
    }
    const uint64_t run_bytes = 2 * at.length;
    if (begin % run_bytes != 0 || out.size() % run_bytes != 0 || begin > shape.raw_bytes ||
        out.size() > shape.raw_bytes - begin) {
      return Fail(Code::kInvalidArgument, fmt::format("F8 segment: no step {}+{}", begin, out.size()));
    }
    for (uint64_t head = 0; head < at.heads; ++head) {
      const auto stored = std::to_integer<int>(encoded[head]);
      if (stored != 0 && (stored < fixed::kF8MinK + fixed::kF8Bias ||
                          stored > fixed::kF8MaxK + fixed::kF8Bias)) {
        return Fail(Code::kDataLoss, fmt::format("F8 segment: exponent {} of head {}", stored, head));
      }
    }
    const Loops& loops = fixed::LoopsFor(at.fp16);
    const uint64_t first = begin / run_bytes;
    at.ForStretches(first, first + out.size() / run_bytes,
                    [&](uint64_t head, uint64_t value, uint64_t count) {
                      loops.f8_decode(encoded.data() + at.codes_at + value, count,
                                      fixed::F8Scale(std::to_integer<uint8_t>(encoded[head])),
                                      out.data() + 2 * value - begin);
                    });
    return OkStatus();
  }
};

}  // namespace

const Codec& F8Codec() {
  static const F8CodecImpl codec;
  return codec;
}

}  // namespace tiercel
