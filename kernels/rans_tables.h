// The frozen tables (kernels/rans_frozen.h) in the forms that the loops of the entropy coder read.
// Internal to kernels/.
#ifndef TIERCEL_KERNELS_RANS_TABLES_H_
#define TIERCEL_KERNELS_RANS_TABLES_H_

#include <array>
#include <cstdint>

#include "kernels/rans_core.h"

namespace tiercel::rans {

enum class TableSet : uint8_t {
  kQuantized = 0,  // Values that a quantiser gives: nearly symmetric about 0.
  kExponents = 1,  // Exponents less (their rounded mean over the column - 2).
};

// 16 entries twice over, for lookups among 32 words.
using Words = std::array<uint16_t, 32>;

struct alignas(64) LaneTable {
  Words start;     // First slot of each symbol.
  Words next[3];   // start[symbol + 1], + 2, + 3.
  Words frequency;
  std::array<uint32_t, 16> reciprocal;  // x / f == (2 x * reciprocal >> 32) >> level, for x < 2^31.
  std::array<uint32_t, 16> packed;      // 2^kBits - f | start << 12 | level << 24.
  std::array<uint32_t, 3> split;        // start[4], [8], [12], each in both halves.
};

struct alignas(64) CostTable {
  // [p][t]: table t's costs of symbols 2p (low half) and 2p + 1 in 1/256 bit. Table 0 costs most.
  uint32_t pair[8][kTables];
};

struct Tables {
  std::array<LaneTable, kTables> lane;  // lane[0] is never read.
  CostTable cost;
};

const Tables& TablesOf(TableSet set);

}  // namespace tiercel::rans

#endif  // TIERCEL_KERNELS_RANS_TABLES_H_
