#include "kernels/klt_columns.h"

#include <algorithm>
#include <array>

#include "kernels/columns.h"
#include "kernels/isa.h"
#include "kernels/klt_core.h"
#include "kernels/rope_core.h"

namespace tiercel::klt {

Fns ActiveFns() {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return Avx512Fns();
    case KernelIsa::kAvx2:
      return Avx2Fns();
    case KernelIsa::kScalar:
      break;
  }
#endif
  return ScalarFns();
}

bool LoadFloats(const Fns& fns, const SegmentShape& shape, ByteSpan raw, uint32_t first, uint32_t count,
                const uint16_t* order, uint16_t* tile, size_t stride, float* x) {
  LoadColumns(shape, raw, first, count, tile, stride, order);
  bool finite = true;
  for (uint32_t c = 0; c < count; ++c) {
    const uint16_t* const values = tile + c * stride;
    float* const to = x + c * stride;
    if (shape.dtype == Dtype::kBf16) {
      finite = fns.load_bf16(values, shape.tokens, stride, to) && finite;
      continue;
    }
    for (size_t t = 0; t < stride; ++t) {
      finite = finite && (t >= shape.tokens || (values[t] & 0x7c00u) != 0x7c00u);
      to[t] = t < shape.tokens ? FromFp16(values[t]) : 0;
    }
  }
  return finite;
}

const Angles& Angles::Of(const Artifact& artifact, uint16_t layer, uint64_t pos0, size_t stride) {
  thread_local std::array<Angles, kKept> kept;
  thread_local size_t oldest = 0;
  const auto turns = artifact.rope(layer);
  for (const Angles& angles : kept) {
    if (angles.Is(turns, pos0, stride)) return angles;
  }
  Angles& made = kept[oldest];
  oldest = (oldest + 1) % kKept;
  made.Make(turns, pos0, stride);
  return made;
}

bool Angles::Is(std::span<const uint64_t> turns, uint64_t pos0, size_t stride) const {
  return pos0_ == pos0 && stride_ == stride && std::equal(turns_.begin(), turns_.end(), turns.begin(), turns.end());
}

void Angles::Make(std::span<const uint64_t> turns, uint64_t pos0, size_t stride) {
  turns_.assign(turns.begin(), turns.end());
  pos0_ = pos0;
  stride_ = stride;
  cosine_.resize(turns.size() * stride);
  sine_.resize(turns.size() * stride);
  // Tables are the same in either style.
  rope::FillTables({RopeStyle::kHalves, 0, static_cast<uint32_t>(turns.size() * 2), turns_.data()}, pos0,
                   static_cast<uint32_t>(stride), stride, cosine_.data(), sine_.data());
}

void TurnHead(const Fns& fns, const Artifact& artifact, const float* cosine, const float* sine, size_t stride, float* x,
              bool back) {
  const uint32_t pairs = artifact.rope_dims() / 2;
  const bool halves = artifact.rope_style() == RopeStyle::kHalves;
  for (uint32_t i = 0; i < pairs; ++i) {
    const uint32_t a = halves ? i : 2 * i;
    const uint32_t b = halves ? i + pairs : 2 * i + 1;
    fns.rotate(x + a * stride, x + b * stride, cosine + i * stride, sine + i * stride, stride, back);
  }
}

}  // namespace tiercel::klt
