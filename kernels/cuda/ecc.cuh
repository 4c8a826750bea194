// What EC-C alone has on a GPU (kernels/ecc.cc): steps, means, and q. The rest is ec.cuh.
//
//   EccLargest    grid (any, segments): of segments without a step, the largest value
//   EccSpread     grid (any, segments), a thread a column: the columns' variances
//   EccSteps      grid (1, segments), one warp: the steps of the heads
//   EccColumns    grid (any, segments), a thread a column: means and q
#ifndef TIERCEL_KERNELS_CUDA_ECC_CUH_
#define TIERCEL_KERNELS_CUDA_ECC_CUH_

#include "kernels/cuda/ec.cuh"

namespace tiercel::gpu {

// Whether the segment's step comes from its own spread.
TIERCEL_DEVICE bool EccMeasures(const Segment& s) { return s.codec == kEcCCodec && s.failed == 0 && !(s.step > 0); }

TIERCEL_KERNEL void EccLargest(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!EccMeasures(s)) return;
  const EcMemory m(s);
  uint32_t most = 0;
  for (uint32_t i = ThreadOfGrid(); i < s.values; i += ThreadsOfGrid()) {
    const uint32_t magnitude = HalfAt(s, CoordinatesOf(s, i)) & 0x7fffu;
    most = magnitude > most ? magnitude : most;
  }
  most = WarpMax(most);
  if (Lane() == 0) AtomicMax(&m.plan->largest, most);
}

// What values are multiplied with so that they are at most 2^11; 0: nothing can be measured.
TIERCEL_DEVICE float EccScale(const Segment& s, const EcMemory& m) {
  const auto most = static_cast<uint16_t>(m.plan->largest);
  const float largest = s.dtype == kFp16Float ? ecc::FromFp16(most) : ecc::FromBf16(most);
  return ecc::MomentsScale(largest);
}

TIERCEL_KERNEL void EccSpread(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (!EccMeasures(s)) return;
  const EcMemory m(s);
  const float scale = EccScale(s, m);
  if (scale == 0) return;
  const uint32_t columns = s.columns();
  const auto n = static_cast<double>(s.tokens - m.plan->exact);
  for (uint32_t c = ThreadOfGrid(); c < columns; c += ThreadsOfGrid()) {
    int32_t sum = 0;
    int64_t squares = 0;
    for (uint32_t t = m.plan->exact; t < s.tokens; ++t) {
      const auto v = static_cast<int32_t>(ecc::Round(m.x[t * columns + c] * scale));
      sum += v;
      squares += v * v;
    }
    const auto all = static_cast<double>(sum);
    const double mean_square = all * all / n;
    m.terms[c] = static_cast<double>(squares) - mean_square;
  }
}

TIERCEL_KERNEL void EccSteps(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kEcCCodec || s.failed != 0) return;
  const EcMemory m(s);
  float step = s.step;
  if (!(step > 0)) {
    const float scale = EccScale(s, m);
    const uint32_t columns = s.columns();
    double variance = 0;  // Summed in the columns' order, as the CPU does.
    for (uint32_t first = 0; scale != 0 && first < columns; first += 32) {
      const uint64_t mine = first + Lane() < columns ? std::bit_cast<uint64_t>(m.terms[first + Lane()]) : 0;
      for (uint32_t i = 0; i < 32; ++i) {
        const uint64_t term = Shuffle(mine, i);
        if (first + i < columns) variance += std::bit_cast<double>(term);
      }
    }
    const auto n = static_cast<double>(s.tokens - m.plan->exact);
    const double mean = variance / (n * static_cast<double>(columns));
    const float spread = scale == 0 ? 0.0f : static_cast<float>(SquareRoot(mean)) / scale;
    step = spread * s.class_step;
  }
  bool bad = false;
  for (uint32_t i = Lane(); i < s.groups; i += 32) {
    const float mine = step * s.scales[i];
    const uint32_t bits = ecc::StepBits(mine);
    bad = bad || !ecc::GoodStep(bits);
    StoreU16(s.encoded + m.plan->steps_at + 2 * i, bits);
  }
  if (Ballot(bad) != 0 && Lane() == 0) s.failed = 1;
}

TIERCEL_KERNEL void EccColumns(Segment* segments) {
  Segment& s = segments[BlockY()];
  if (s.codec != kEcCCodec || s.failed != 0) return;
  const EcMemory m(s);
  const uint32_t columns = s.columns();
  const uint32_t exact = m.plan->exact;
  const int64_t n = s.tokens - exact;
  for (uint32_t c = ThreadOfGrid(); c < columns; c += ThreadsOfGrid()) {
    const float* const x = m.x + c;
    int16_t* const q = m.q + c;
    const uint32_t head = c / s.dim;
    const uint32_t group = s.split != 0 && c % s.dim >= s.split ? s.heads + head : head;
    const float step = ecc::FromBf16(static_cast<uint16_t>(LoadU16(s.encoded + m.plan->steps_at + 2 * group)));
    const float inverse = 8.0f / step;
    int64_t sum = 0;
    bool inside = true;
    for (uint32_t t = exact; t < s.tokens; ++t) {
      const float y = x[t * columns] * inverse;
      const bool fits = y <= ecc::kLimit && y >= -ecc::kLimit;
      inside = inside && fits;
      sum += static_cast<int32_t>(ecc::Round(fits ? y : 0.0f));
    }
    for (uint32_t t = 0; t < exact; ++t) q[t * columns] = 0;
    if (!inside) {
      Fail(s);
      continue;
    }
    int32_t mean = ecc::Mean(sum, n);
    int32_t wide = 0;
    for (int round = 0;; ++round) {
      int32_t values = 0, magnitudes = 0;
      for (uint32_t t = exact; t < s.tokens; ++t) {
        const float y = x[t * columns] * inverse;
        const float centred = y - static_cast<float>(mean);
        const float eighth = centred * 0.125f;
        const float own = eighth * levels::InverseStepOf(m.levels[t]);
        const auto v = static_cast<int32_t>(ecc::Round(own));
        inside = inside && v <= ecc::kMostLevelled && v >= -ecc::kMostLevelled;
        q[t * columns] = static_cast<int16_t>(v);
        values += v;
        magnitudes += v < 0 ? -v : v;
      }
      if (m.plan->levels != 0) break;  // Then there is one round.
      if (round == 0 && int64_t{4} * magnitudes > 7 * n) wide = 4;
      const int32_t change = round == 0 && wide != 0 ? wide : ecc::Mean(int64_t{8} * values, n) + wide;
      if (change == 0 || round == 3) break;
      mean += change;
    }
    if (!inside) Fail(s);
    m.means[c] = mean;
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_ECC_CUH_
