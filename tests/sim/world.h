// World is what the simulated clients know to be true: every key's bytes follow from the key, so whoever
// gets a record can tell whether it is the right one.
//
// Two name spaces of six chains of forty blocks. A third of the chains are KV of a small layout, the
// rest opaque bytes of 200 to 40,000; a block has an exact record and a lossy one, of different bytes.
//
// Threads: one.
#ifndef TIERCEL_TESTS_SIM_WORLD_H_
#define TIERCEL_TESTS_SIM_WORLD_H_

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "proto/frame.h"
#include "proto/kv_layout.h"

namespace tiercel {

struct BlockId {
  uint32_t space = 0;
  uint32_t chain = 0;
  uint32_t index = 0;
  auto operator<=>(const BlockId&) const = default;
};

class World {
 public:
  static constexpr uint32_t kSpaces = 2;
  static constexpr uint32_t kChains = 6;
  static constexpr uint32_t kLength = 40;
  static constexpr uint16_t kLayers = 4;
  static constexpr QualityClass kLossy = QualityClass::kBalanced;

  explicit World(uint64_t seed) : seed_(seed) {}

  static uint32_t NameSpace(uint32_t space) { return 100 + space; }
  static bool HasLayers(uint32_t chain) { return chain % 3 == 0; }
  static Scope ScopeOf(uint32_t chain);
  BlockKey Key(const BlockId& id) const;
  ChainMeta Meta(uint32_t space, uint32_t chain, uint32_t first, uint32_t n) const;

  // The record that clients put; lossy: of class kLossy.
  const std::vector<std::byte>& Record(const BlockId& id, bool lossy);
  // Is this that record, or those layers of it?
  Status Check(const BlockId& id, QualityClass quality, ByteSpan record, uint16_t layer_begin,
               uint16_t layer_end);

 private:
  static KvLayout LayoutOf(uint32_t chain);
  std::vector<std::byte> Raw(const BlockId& id, bool lossy) const;

  const uint64_t seed_;
  std::map<std::pair<BlockId, bool>, std::vector<std::byte>> records_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_SIM_WORLD_H_
