#include "kernels/rans_tables.h"

#include <bit>

#include "kernels/rans_frozen.h"

namespace tiercel::rans {
namespace {

using Frozen = uint16_t[kTables - 1][kSymbols];

constexpr Tables Make(const Frozen& frequencies, const Frozen& costs) {
  Tables out{};
  for (uint32_t t = 1; t < kTables; ++t) {
    LaneTable& table = out.lane[t];
    uint32_t start = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const uint32_t f = frequencies[t - 1][s];
      const auto level = static_cast<uint32_t>(std::bit_width(f - 1));  // 2^level >= f.
      table.start[s] = table.start[s + 16] = static_cast<uint16_t>(start);
      table.frequency[s] = table.frequency[s + 16] = static_cast<uint16_t>(f);
      table.reciprocal[s] = static_cast<uint32_t>(((uint64_t{1} << (31 + level)) + f - 1) / f);
      table.packed[s] = (kSlots - f) | start << 12 | level << 24;
      start += f;
    }
    for (uint32_t i = 0; i < 32; ++i) {
      for (uint32_t k = 1; k < 4; ++k) table.next[k - 1][i] = table.start[(i + k) % 16];
    }
    for (uint32_t k = 0; k < 3; ++k) table.split[k] = table.start[4 * k + 4] * 0x10001u;
  }
  for (uint32_t p = 0; p < 8; ++p) {
    out.cost.pair[p][0] = 0x7fff7fff;
    for (uint32_t t = 1; t < kTables; ++t) {
      out.cost.pair[p][t] = costs[t - 1][2 * p] | uint32_t{costs[t - 1][2 * p + 1]} << 16;
    }
  }
  return out;
}

constexpr bool Sound(const Frozen& frequencies) {
  for (const auto& row : frequencies) {
    uint32_t sum = 0;
    for (const uint16_t f : row) {
      if (f == 0) return false;
      sum += f;
    }
    if (sum != kSlots) return false;
  }
  return true;
}
static_assert(Sound(kQuantizedFrequencies) && Sound(kExponentFrequencies));

constexpr Tables kQuantized = Make(kQuantizedFrequencies, kQuantizedCosts);
constexpr Tables kExponents = Make(kExponentFrequencies, kExponentCosts);

}  // namespace

const Tables& TablesOf(TableSet set) {
  return set == TableSet::kExponents ? kExponents : kQuantized;
}

}  // namespace tiercel::rans
