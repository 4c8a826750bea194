#include "kernels/columns.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

size_t IndexOf(const SegmentShape& s, uint32_t column, uint32_t token) {
  const size_t head = column / s.dim;
  const size_t dim = column % s.dim;
  switch (s.order) {
    case AxisOrder::kTokenHeadDim:
      return (size_t{token} * s.heads + head) * s.dim + dim;
    case AxisOrder::kHeadTokenDim:
      return (head * s.tokens + token) * s.dim + dim;
    case AxisOrder::kHeadDimToken:
      return (head * s.dim + dim) * s.tokens + token;
  }
  return 0;
}

// The tokens in some order.
std::vector<uint16_t> Shuffled(uint32_t tokens, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<uint16_t> order(tokens);
  for (uint32_t t = 0; t < tokens; ++t) {
    const auto at = random.Below(t + 1);
    order[t] = order[at];
    order[at] = static_cast<uint16_t>(t);
  }
  return order;
}

template <class T>
void CheckShape(const SegmentShape& shape, uint64_t seed, const std::vector<uint16_t>& order) {
  // As long as the plane exactly, so that ASan sees a step beyond.
  const auto raw = RandomBytes(sizeof(T) * shape.tokens * ColumnCount(shape), seed);
  const size_t stride = ColumnStride(shape.tokens);
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    std::vector<std::byte> back(raw.size());
    for (uint32_t first = 0; first < ColumnCount(shape); first += kTileColumns) {
      const uint32_t count = std::min(kTileColumns, ColumnCount(shape) - first);
      std::vector<T> columns(stride * count);
      const uint16_t* const given = order.empty() ? nullptr : order.data();
      LoadColumns<T>(shape, raw, first, count, columns.data(), stride, given);
      for (uint32_t c = 0; c < count; ++c) {
        for (uint32_t t = 0; t < shape.tokens; ++t) {
          T want;
          std::memcpy(&want, raw.data() + sizeof(T) * IndexOf(shape, first + c, order.empty() ? t : order[t]),
                      sizeof(T));
          ASSERT_EQ(columns[c * stride + t], want) << Name(isa) << " " << first + c << "," << t;
        }
      }
      StoreColumns<T>(shape, columns.data(), stride, first, count, back, given);
    }
    ASSERT_TRUE(back == raw) << Name(isa) << " tokens " << shape.tokens << " heads " << shape.heads
                             << " dim " << shape.dim;
  }
}

TEST(ColumnsTest, EveryOrderAndSizeGoesToColumnsAndBack) {
  uint64_t seed = 0;
  for (int order = 0; order < 3; ++order) {
    for (const uint32_t tokens : {1u, 16u, 17u, 31u, 64u, 100u}) {
      for (const auto& [heads, dim] : {std::pair{1u, 1u}, {3u, 64u}, {2u, 80u}, {5u, 7u}, {1u, 576u}}) {
        SegmentShape shape;
        shape.order = static_cast<AxisOrder>(order);
        shape.tokens = tokens;
        shape.heads = heads;
        shape.dim = dim;
        for (const auto& taken : {std::vector<uint16_t>(), Shuffled(tokens, seed)}) {
          CheckShape<uint16_t>(shape, ++seed, taken);
          CheckShape<uint8_t>(shape, ++seed, taken);
          CheckShape<uint32_t>(shape, ++seed, taken);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
