#include "client/cpp/chain.h"

#include <fmt/format.h>

#include <array>

namespace tiercel {

Status Chain::Append(ByteSpan engine_hash) {
  constexpr uint32_t kMaxPart = 0xffff, kMaxPieces = 0xff;
  const uint32_t pieces = options_.pieces;
  if (options_.part > kMaxPart || pieces == 0 || pieces > kMaxPieces) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: part {} of at most {}, {} pieces of 1 to {}",
                                                    options_.part, kMaxPart, pieces, kMaxPieces));
  }
  KeySpace space{options_.name_space, options_.scope, options_.part, options_.lineage,
                 options_.allow_short_hashes};
  more_keys_.resize(pieces - 1);
  std::array<BlockKey, kMaxPieces> keys;
  for (uint32_t piece = 0; piece < pieces; ++piece) {
    // The number of pieces is in the key, so that the first one is never taken for a whole value.
    if (pieces > 1) space.part = options_.part | piece << 16 | pieces << 24;
    TIERCEL_ASSIGN(keys[piece], MakeBlockKey(space, engine_hash));
  }
  if (keys_.size() % kBlocksPerRun == 0) {
    TIERCEL_ASSIGN(const PlacementKey anchor, MakePlacementKey(space, engine_hash));
    anchors_.push_back(anchor);
  }
  keys_.push_back(keys[0]);
  for (uint32_t piece = 1; piece < pieces; ++piece) more_keys_[piece - 1].push_back(keys[piece]);
  return OkStatus();
}

}  // namespace tiercel
