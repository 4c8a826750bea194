#include "client/cpp/chain.h"

namespace tiercel {

Status Chain::Append(ByteSpan engine_hash) {
  const KeySpace space{options_.name_space, options_.scope, options_.part, options_.lineage,
                       options_.allow_short_hashes};
  TIERCEL_ASSIGN(const BlockKey key, MakeBlockKey(space, engine_hash));
  if (keys_.size() % kBlocksPerRun == 0) {
    TIERCEL_ASSIGN(const PlacementKey anchor, MakePlacementKey(space, engine_hash));
    anchors_.push_back(anchor);
  }
  keys_.push_back(key);
  return OkStatus();
}

}  // namespace tiercel
