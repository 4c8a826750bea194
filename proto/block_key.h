// BlockKey names some bytes for all time: 32 bytes, SHA-256 over namespace, scope, part, lineage and
// the engine's chained block hash (design section 11.2). Equal keys mean equal prefixes of one
// tenant, one model, one layout. PlacementKey is the same without the part, so that all the parts of
// a block live together. Golden vectors: docs/wire.md, "Block key".
#ifndef TIERCEL_PROTO_BLOCK_KEY_H_
#define TIERCEL_PROTO_BLOCK_KEY_H_

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "proto/kv_layout.h"
#include "proto/types.h"

namespace tiercel {

struct BlockKey {
  std::array<std::byte, 32> bytes{};
  auto operator<=>(const BlockKey&) const = default;

  // A key is already uniformly distributed; any eight bytes of it are a hash.
  uint64_t hash64() const { return LoadLe<uint64_t>(bytes.data()); }
};

struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const { return key.hash64(); }
};

// What rendezvous hashing sees: the run anchor.
using PlacementKey = BlockKey;

inline constexpr uint32_t kBlocksPerRun = 32;
inline constexpr size_t kMaxEngineHashBytes = 32;
inline constexpr size_t kMinEngineHashBytes = 16;

struct KeySpace {
  std::string_view name_space;  // The tenant's; from the session, never from a request.
  Scope scope;
  uint32_t part = 0;  // Rank or layer group.
  QualityClass lineage = QualityClass::kExact;  // The worst class consumed so far in this chain.
  bool allow_short_hashes = false;  // Accept engine hashes under 128 bits: collisions are possible.
};

// Errors: kInvalidArgument: an engine hash that is empty, over 32 bytes, or under 16 without
// allow_short_hashes.
Result<BlockKey> MakeBlockKey(const KeySpace& space, ByteSpan engine_hash);
// The placement key of the run whose first block has this engine hash.
Result<PlacementKey> MakePlacementKey(const KeySpace& space, ByteSpan engine_hash);

}  // namespace tiercel

template <>
struct std::hash<tiercel::BlockKey> : tiercel::BlockKeyHash {};

#endif  // TIERCEL_PROTO_BLOCK_KEY_H_
