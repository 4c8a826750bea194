// I8: eight bits a value between two bounds. Keys are bounded by channel, over up to 64 tokens: their
// outliers stay in their channels. Values and latents are bounded by token and head.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/digest.h"
#include "kernels/fixed_loops.h"

namespace tiercel {
namespace {

using fixed::Loops;

constexpr uint32_t kVersion = 1;
constexpr uint32_t kByToken = 0;    // The axis of the bounds, bits 8 to 15 of params.
constexpr uint32_t kByChannel = 1;
constexpr uint32_t kGroupTokens = 64;
constexpr uint64_t kStepBytes = 16 << 10;
constexpr uint64_t kMaxValues = uint64_t{1} << 27;

// By channel two bounds are shared by a group's tokens: with few of them, by token is cheaper, and of K
// alone still near.
uint32_t AxisFor(const SegmentShape& shape) {
  if (shape.kind == SegmentKind::kKv) return kByChannel;
  return shape.kind == SegmentKind::kK && shape.tokens >= 32 ? kByChannel : kByToken;
}

// The plane in its own order as rows of `width` values. In panels, values of a column share their
// bounds over the rows of a panel; else each row is `runs` runs that have bounds of their own.
struct Geometry {
  bool fp16;
  bool panels;
  uint64_t rows;
  uint64_t width;
  uint64_t period;  // Panels: rows of `groups` consecutive panels.
  uint32_t groups;  // Of tokens; also the runs of a row.
  uint64_t bounds;
  uint64_t codes_at;
  uint64_t step_rows;

  Geometry(const SegmentShape& shape, uint32_t axis) {
    const uint64_t tokens = shape.tokens;
    const bool transposed = shape.order == AxisOrder::kHeadDimToken;
    fp16 = shape.dtype == Dtype::kFp16;
    panels = (axis == kByChannel) != transposed;
    groups = axis == kByChannel ? static_cast<uint32_t>((tokens + kGroupTokens - 1) / kGroupTokens) : 1;
    if (transposed) {
      width = tokens;
      period = shape.dim;
    } else {
      const bool whole = shape.order == AxisOrder::kTokenHeadDim && panels;
      width = whole ? uint64_t{shape.heads} * shape.dim : shape.dim;
      period = tokens;
    }
    rows = shape.tokens * uint64_t{shape.heads} * shape.dim / width;
    bounds = panels ? rows / period * groups * width : rows * groups;
    codes_at = (4 * bounds + 63) / 64 * 64;
    // A multiple of 8 bytes whatever the width.
    step_rows = std::max<uint64_t>(4, kStepBytes / (2 * width) / 4 * 4);
  }
  uint64_t encoded_bytes() const { return codes_at + rows * width; }
  uint64_t GroupBegin(uint64_t group, uint64_t length) const { return group * length / groups; }
};

// The panel that a row lies in, and where it ends.
struct Panel {
  uint64_t index;
  uint64_t begin;
  uint64_t end;
};
Panel PanelOf(const Geometry& at, uint64_t row) {
  const uint64_t outer = row / at.period;
  const uint64_t inside = row % at.period;
  uint64_t group = inside * at.groups / at.period;
  while (at.GroupBegin(group + 1, at.period) <= inside) ++group;
  return {outer * at.groups + group, outer * at.period + at.GroupBegin(group, at.period),
          outer * at.period + at.GroupBegin(group + 1, at.period)};
}

// Calls with each stretch of equally long runs of rows [first, end): (index of its first run, where its
// values begin, how many, how long).
template <class F>
bool ForRuns(const Geometry& at, uint64_t first, uint64_t end, F&& stretch) {
  if (at.width % at.groups == 0) {
    return stretch(first * at.groups, first * at.width, (end - first) * at.groups,
                   at.width / at.groups);
  }
  for (uint64_t row = first; row < end; ++row) {
    for (uint64_t group = 0; group < at.groups; ++group) {
      const uint64_t begin = at.GroupBegin(group, at.width);
      if (!stretch(row * at.groups + group, row * at.width + begin, 1,
                   at.GroupBegin(group + 1, at.width) - begin)) {
        return false;
      }
    }
  }
  return true;
}

bool DecodeRows(const Geometry& at, const Loops& loops, const std::byte* encoded, uint64_t first,
                uint64_t end, std::byte* out) {
  const std::byte* low = encoded;
  const std::byte* high = encoded + 2 * at.bounds;
  const std::byte* codes = encoded + at.codes_at;
  if (!at.panels) {
    return ForRuns(at, first, end, [&](uint64_t run, uint64_t begin, uint64_t runs, uint64_t length) {
      return loops.run_decode(codes + begin, runs, length, low + 2 * run, high + 2 * run,
                              out + 2 * (begin - first * at.width));
    });
  }
  for (uint64_t row = first; row < end;) {
    const Panel panel = PanelOf(at, row);
    const uint64_t stop = std::min(end, panel.end);
    if (!loops.panel_decode(codes + row * at.width, stop - row, at.width,
                            low + 2 * panel.index * at.width, high + 2 * panel.index * at.width,
                            out + 2 * (row - first) * at.width)) {
      return false;
    }
    row = stop;
  }
  return true;
}

// Encodes from row `first` on, a panel or a step; gives the row behind. Zero: it cannot.
uint64_t EncodeRows(const Geometry& at, const Loops& loops, const std::byte* raw, uint64_t first,
                    std::byte* encoded) {
  std::byte* low = encoded;
  std::byte* high = encoded + 2 * at.bounds;
  std::byte* codes = encoded + at.codes_at;
  if (at.panels) {
    const Panel panel = PanelOf(at, first);
    const std::byte* from = raw + 2 * first * at.width;
    const uint64_t rows = panel.end - first;
    low += 2 * panel.index * at.width;
    high += 2 * panel.index * at.width;
    loops.panel_bounds(from, rows, at.width, low, high);
    if (!loops.seal(low, high, at.width)) return 0;
    loops.panel_encode(from, rows, at.width, low, high, codes + first * at.width);
    return panel.end;
  }
  const uint64_t end = std::min(at.rows, first + at.step_rows);
  const bool good =
      ForRuns(at, first, end, [&](uint64_t run, uint64_t begin, uint64_t runs, uint64_t length) {
        loops.run_bounds(raw + 2 * begin, runs, length, low + 2 * run, high + 2 * run);
        if (!loops.seal(low + 2 * run, high + 2 * run, runs)) return false;
        loops.run_encode(raw + 2 * begin, runs, length, low + 2 * run, high + 2 * run, codes + begin);
        return true;
      });
  return good ? end : 0;
}

class I8CodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kI8; }
  QualityClass quality() const override { return QualityClass::kNear; }
  bool one_class() const override { return true; }

  bool Supports(const SegmentShape& shape) const override {
    const uint64_t values = uint64_t{shape.tokens} * shape.heads * shape.dim;
    return (shape.dtype == Dtype::kBf16 || shape.dtype == Dtype::kFp16) && values > 0 &&
           values <= kMaxValues && shape.raw_bytes == 2 * values;
  }
  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;
  }
  uint64_t scratch_bytes(const SegmentShape& shape) const override { return step_bytes(shape); }
  uint64_t step_bytes(const SegmentShape& shape) const override {
    const Geometry at(shape, AxisFor(shape));
    return 2 * at.step_rows * at.width;
  }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out,
                                       const CodecContext& context) const override {
    const uint32_t axis = AxisFor(shape);
    const Geometry at(shape, axis);
    const uint64_t bytes = at.encoded_bytes();
    if (raw.size() != shape.raw_bytes || bytes > MaxEncodedBytes(shape) || out.size() < bytes ||
        context.scratch.size() < scratch_bytes(shape)) {
      return std::nullopt;
    }
    const Loops& loops = fixed::LoopsFor(at.fp16);
    std::memset(out.data() + 4 * at.bounds, 0, at.codes_at - 4 * at.bounds);
    DigestStream digest;
    uint64_t shown = 0;
    for (uint64_t row = 0; row < at.rows;) {
      row = EncodeRows(at, loops, raw.data(), row, out.data());
      if (row == 0) return std::nullopt;
      while (shown < row && (row - shown >= at.step_rows || row == at.rows)) {
        const uint64_t end = std::min(row, shown + at.step_rows);
        if (!DecodeRows(at, loops, out.data(), shown, end, context.scratch.data())) {
          return std::nullopt;
        }
        digest.Add(context.scratch.first(2 * (end - shown) * at.width));
        shown = end;
      }
    }
    return EncodedSegment{bytes, kVersion | axis << 8, digest.Finish()};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext&) const override {
    const uint32_t axis = AxisFor(shape);
    if (params != (kVersion | axis << 8)) {
      return Fail(Code::kDataLoss, fmt::format("I8 segment: params {:#x}, {:#x} expected", params,
                                               kVersion | axis << 8));
    }
    const Geometry at(shape, axis);
    if (encoded.size() != at.encoded_bytes()) {
      return Fail(Code::kDataLoss, fmt::format("I8 segment of {} values: {} bytes, {} expected",
                                               at.rows * at.width, encoded.size(),
                                               at.encoded_bytes()));
    }
    const uint64_t row_bytes = 2 * at.width;
    if (begin % row_bytes != 0 || out.size() % row_bytes != 0 || begin > shape.raw_bytes ||
        out.size() > shape.raw_bytes - begin) {
      return Fail(Code::kInvalidArgument, fmt::format("I8 segment: no step {}+{}", begin, out.size()));
    }
    const uint64_t first = begin / row_bytes;
    if (!DecodeRows(at, fixed::LoopsFor(at.fp16), encoded.data(), first,
                    first + out.size() / row_bytes, out.data())) {
      return Fail(Code::kDataLoss, "I8 segment: a bound is too large or not a number");
    }
    return OkStatus();
  }
};

}  // namespace

const Codec& I8Codec() {
  static const I8CodecImpl codec;
  return codec;
}

}  // namespace tiercel
