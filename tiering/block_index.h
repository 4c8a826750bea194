// BlockIndex is the table of blocks and the order in which they will be forgotten: key to record, the
// list of those in RAM from coldest to hottest, and a bounded memory of keys that are no longer here.
//
// Threads: the shard's owner alone. Ownership: blocks live in the index until Erase; a Block* is good
// until then.
#ifndef TIERCEL_TIERING_BLOCK_INDEX_H_
#define TIERCEL_TIERING_BLOCK_INDEX_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "proto/block_key.h"
#include "proto/types.h"
#include "tiering/host_arena.h"
#include "tiering/ssd_store.h"

namespace tiercel {

// One stored record.
struct Block {
  BlockKey key;
  BlockKey parent;
  PlacementKey anchor;
  Scope scope;
  uint64_t generation = 0;
  uint64_t raw_bytes = 0;
  Extent host;        // Empty: not in RAM.
  SsdLocation ssd;    // Empty: not on SSD.
  uint32_t name_space = 0;
  uint32_t chain_index = 0;
  uint32_t record_bytes = 0;
  uint32_t pins = 0;  // Fetchers, and the writer while it reads the record.
  uint32_t resident_children = 0;  // Of the same run, in RAM.
  uint32_t hits = 0;
  QualityClass quality = QualityClass::kExact;
  bool doomed = false;   // Forgotten, but pinned: freed with the last pin.
  bool reading = false;  // Its RAM copy is being read from SSD.
  bool transient = false;  // Leaves RAM with its last pin.
  Block* colder = nullptr;  // In the list of those in RAM.
  Block* hotter = nullptr;

  bool lossy() const { return quality != QualityClass::kExact; }
  SsdEntry Entry() const;
};

class BlockIndex {
 public:
  explicit BlockIndex(uint64_t max_ghosts) : max_ghosts_(max_ghosts) {}
  ~BlockIndex();
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // The exact or the lossy record of a key; null: none.
  Block* Find(const BlockKey& key, bool lossy) const;
  Block* Insert(const SsdEntry& entry);
  // Takes the block out of the table; its bytes of memory go when the caller deletes it.
  std::unique_ptr<Block> Remove(Block* block);

  // The recency list holds blocks in RAM only.
  void PushHottest(Block* block);
  void Unlink(Block* block);
  bool linked(const Block* block) const { return block->hotter != nullptr || block == hottest_; }
  Block* coldest() const { return coldest_; }

  // Why a key is not here, as far as is remembered.
  void Remember(const BlockKey& key, MissReason why);
  MissReason WhyAbsent(const BlockKey& key) const;

  uint64_t size() const { return size_; }
  uint64_t memory_bytes() const;

  template <class Fn>
  void ForEach(Fn&& fn) const {
    for (const auto& [key, both] : table_) {
      if (both.exact != nullptr) fn(both.exact);
      if (both.lossy != nullptr) fn(both.lossy);
    }
  }

 private:
  struct Both {
    Block* exact = nullptr;
    Block* lossy = nullptr;
  };
  // Forgotten keys as (56-bit tag, reason) in a table of fixed size: the newest of a slot stays. A tag
  // collision (2^-56 a lookup) can only give a miss the wrong reason.
  std::unordered_map<BlockKey, Both, BlockKeyHash> table_;
  std::vector<uint64_t> ghosts_;
  const uint64_t max_ghosts_;
  Block* coldest_ = nullptr;
  Block* hottest_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_BLOCK_INDEX_H_
