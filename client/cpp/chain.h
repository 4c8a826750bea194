// Chain is a prefix as the cache sees it: the block keys of consecutive blocks from the prompt's
// first on, and the anchor of each run of 32. Made once a request from the engine's chained hashes,
// then used for match, get and put alike.
//
// Chains without order (a bench, a byte store) are chains of one block each.
// Threads: a value; const use from any thread.
#ifndef TIERCEL_CLIENT_CPP_CHAIN_H_
#define TIERCEL_CLIENT_CPP_CHAIN_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "proto/block_key.h"
#include "proto/kv_layout.h"

namespace tiercel {

class Chain {
 public:
  struct Options {
    std::string name_space = "default";  // Must equal the session's, else every call misses.
    Scope scope;
    uint32_t part = 0;  // Rank or layer group; under 65536.
    // Blocks over 16 MiB are cut: PiecesOf(layout).count of client/cpp/pieces.h. Up to 255.
    uint32_t pieces = 1;
    QualityClass lineage = QualityClass::kExact;
    bool allow_short_hashes = false;
  };
  explicit Chain(Options options) : options_(std::move(options)) {}

  // Appends the next block, by the engine's chained hash of it. Errors: MakeBlockKey's;
  // kInvalidArgument: a part or a number of pieces out of range.
  Status Append(ByteSpan engine_hash);

  const Options& options() const { return options_; }
  uint32_t size() const { return static_cast<uint32_t>(keys_.size()); }
  const BlockKey& key(uint32_t i, uint32_t piece = 0) const { return keys(piece)[i]; }
  std::span<const BlockKey> keys(uint32_t piece = 0) const {
    return piece == 0 ? keys_ : more_keys_[piece - 1];
  }
  // The anchor of block i's run.
  const PlacementKey& anchor(uint32_t i) const { return anchors_[i / kBlocksPerRun]; }

 private:
  Options options_;
  std::vector<BlockKey> keys_;
  std::vector<std::vector<BlockKey>> more_keys_;  // Of each piece after the first.
  std::vector<PlacementKey> anchors_;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CHAIN_H_
