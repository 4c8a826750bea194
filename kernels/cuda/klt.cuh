// What EC-K and EC-X alone have on a GPU (kernels/klt.cc): their transforms, tile by tile of 64 x 64. The rest is
// ec.cuh.
//
//   KltAnalyse       grid (any, segments), 256 threads, kKltShared: q of x
//   KltSynthesise    grid (any, segments), 256 threads, kKltShared: x of q
//
// Analysis is a sum of fp32 fma in the order of dimensions, synthesis one of integers modulo 2^32.
#ifndef TIERCEL_KERNELS_CUDA_KLT_CUH_
#define TIERCEL_KERNELS_CUDA_KLT_CUH_

#include "kernels/cuda/ec.cuh"

namespace tiercel::gpu {

inline constexpr uint32_t kTile = 64;
inline constexpr uint32_t kTileDepth = 16;  // Terms of a sum that are in shared memory at a time.
inline constexpr uint32_t kKltThreads = 256;
inline constexpr uint32_t kKltShared = 2 * kTileDepth * kTile * 4;

// Rows are outputs of a group, columns tokens; a thread has 4 x 4 of a tile.
struct TilePlace {
  KltGroup group;
  uint32_t n, rows, tokens;  // First row and token of the tile.
  TIERCEL_DEVICE TilePlace(const Segment& s, uint32_t tile) {
    n = KltGroupSize(s);
    const uint32_t across = (s.tokens + kTile - 1) / kTile;
    const uint32_t down = (n + kTile - 1) / kTile;
    group = KltGroupOf(s, tile / (across * down) * n);
    rows = tile / across % down * kTile;
    tokens = tile % across * kTile;
  }
};
TIERCEL_DEVICE uint32_t TilesOf(const Segment& s) {
  const uint32_t n = KltGroupSize(s);
  return s.columns() / n * ((n + kTile - 1) / kTile) * ((s.tokens + kTile - 1) / kTile);
}
// put(row, token, sum) for each of a thread's 16.
template <class T, class Put>
TIERCEL_DEVICE void PutTile(const Segment& s, const TilePlace& at, const T (&sum)[4][4], Put put) {
  for (uint32_t i = 0; i < 4; ++i) {
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t row = at.rows + ThreadX() / 16 * 4 + i;
      const uint32_t token = at.tokens + ThreadX() % 16 * 4 + k;
      if (row < at.n && token < s.tokens) put(row, token, sum[i][k]);
    }
  }
}

TIERCEL_KERNEL void KltAnalyse(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!IsKlt(s) || s.failed != 0) return;
  const EcMemory m(s);
  const uint32_t columns = s.columns();
  const float inverse = 1 / s.step;
  float* const a = Shared<float>();  // [depth][row]
  float* const b = a + kTileDepth * kTile;  // [depth][token]
  const uint32_t row = ThreadX() / 16 * 4;
  const uint32_t token = ThreadX() % 16 * 4;
  for (uint32_t tile = BlockX(); tile < TilesOf(s); tile += GridSizeX()) {
    const TilePlace at(s, tile);
    const float* const analysis = at.group.analysis();
    float sum[4][4] = {};
    for (uint32_t first = 0; first < at.n; first += kTileDepth) {
      const uint32_t depth = at.n - first < kTileDepth ? at.n - first : kTileDepth;
      for (uint32_t i = ThreadX(); i < kTileDepth * kTile; i += kKltThreads) {
        const uint32_t j = i % kTileDepth;
        const uint32_t k = i / kTileDepth;
        const bool row_there = j < depth && at.rows + k < at.n;
        const bool token_there = j < depth && at.tokens + k < s.tokens;
        a[j * kTile + k] = row_there ? analysis[uint64_t{at.rows + k} * at.n + first + j] : 0.0f;
        b[j * kTile + k] = token_there ? m.x[(at.tokens + k) * columns + at.group.first + first + j] : 0.0f;
      }
      SyncThreads();
      for (uint32_t j = 0; j < depth; ++j) {
        for (uint32_t i = 0; i < 4; ++i) {
          for (uint32_t k = 0; k < 4; ++k) sum[i][k] = Fma(a[j * kTile + row + i], b[j * kTile + token + k], sum[i][k]);
        }
      }
      SyncThreads();
    }
    PutTile(s, at, sum, [&](uint32_t c, uint32_t t, float value) {
      const float own = inverse * levels::InverseStepOf(m.levels[t]);
      m.q[t * columns + at.group.first + c] = t < m.plan->exact ? int16_t{0} : klt::Quantize(value, own);
    });
  }
}

TIERCEL_KERNEL void KltSynthesise(Segment* segments) {
  const Segment& s = segments[BlockY()];
  if (!IsKlt(s) || s.failed != 0) return;
  const EcMemory m(s);
  const uint32_t columns = s.columns();
  auto* const a = Shared<uint32_t>();  // [depth / 2][row]: four coefficients of synthesis.
  uint32_t* const b = a + kTileDepth * kTile;  // [depth][token]: two of q.
  const uint32_t row = ThreadX() / 16 * 4;
  const uint32_t token = ThreadX() % 16 * 4;
  for (uint32_t tile = BlockX(); tile < TilesOf(s); tile += GridSizeX()) {
    const TilePlace at(s, tile);
    const uint32_t live = m.live[at.group.first / at.n];
    int32_t sum[4][4] = {};
    for (uint32_t first = 0; first < live; first += 2 * kTileDepth) {
      for (uint32_t i = ThreadX(); i < kTileDepth * kTile; i += kKltThreads) {
        const uint32_t j = i % kTileDepth;
        const uint32_t k = i / kTileDepth;
        if (j % 2 == 0) {
          const uint32_t c = first + 2 * j;
          a[j / 2 * kTile + k] = c < at.n && at.rows + k < at.n ? at.group.synthesis(at.rows + k, c) : 0;
        }
        const uint32_t c = first + 2 * j;
        uint32_t pair = 0;
        if (at.tokens + k < s.tokens) {
          const auto* const q = reinterpret_cast<const uint16_t*>(m.q) + (at.tokens + k) * columns + at.group.first + c;
          if (c < live) pair = q[0];
          if (c + 1 < live) pair |= static_cast<uint32_t>(q[1]) << 16;
        }
        b[j * kTile + k] = pair;
      }
      SyncThreads();
      for (uint32_t j = 0; j < kTileDepth; j += 2) {
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t weights = a[j / 2 * kTile + row + i];
          for (uint32_t k = 0; k < 4; ++k) {
            const int32_t half = DotLow(b[j * kTile + token + k], weights, sum[i][k]);
            sum[i][k] = DotHigh(b[(j + 1) * kTile + token + k], weights, half);
          }
        }
      }
      SyncThreads();
    }
    PutTile(s, at, sum, [&](uint32_t j, uint32_t t, int32_t value) {
      const float factor = at.group.scale()[j] * s.step;
      m.x[t * columns + at.group.first + j] = klt::Restore(value, factor, levels::StepOf(m.levels[t]), at.group.mean()[j]);
    });
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_KLT_CUH_
