#include "proto/block_key.h"

#include <fmt/format.h>

#include "proto/field_hash.h"

namespace tiercel {
namespace {

Status CheckEngineHash(const KeySpace& space, ByteSpan engine_hash) {
  if (engine_hash.empty() || engine_hash.size() > kMaxEngineHashBytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("engine hash has {} bytes, not 1..32", engine_hash.size()));
  }
  if (engine_hash.size() < kMinEngineHashBytes && !space.allow_short_hashes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("engine hash has {} bytes; under 16 prefixes can collide and serve wrong "
                            "KV, so set allow_short_hashes if you accept that",
                            engine_hash.size()));
  }
  return OkStatus();
}

}  // namespace

Result<BlockKey> MakeBlockKey(const KeySpace& space, ByteSpan engine_hash) {
  TIERCEL_TRY(CheckEngineHash(space, engine_hash));
  FieldHash hash("tiercel block key v1");
  hash.Add(space.name_space).Add(ByteSpan(space.scope.bytes)).AddU32(space.part);
  hash.AddU32(static_cast<uint32_t>(space.lineage)).Add(engine_hash);
  return BlockKey{hash.Finish()};
}

Result<PlacementKey> MakePlacementKey(const KeySpace& space, ByteSpan engine_hash) {
  TIERCEL_TRY(CheckEngineHash(space, engine_hash));
  FieldHash hash("tiercel run anchor v1");
  hash.Add(space.name_space).Add(ByteSpan(space.scope.bytes));
  hash.AddU32(static_cast<uint32_t>(space.lineage)).Add(engine_hash);
  return PlacementKey{hash.Finish()};
}

}  // namespace tiercel
