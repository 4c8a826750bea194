// BlockIndex is the table of blocks: key to record, how many children of each are in RAM, and a
// bounded memory of keys that are no longer here.
//
//   Insert --> Find ... --> Remove --> Remember(why) --> WhyAbsent: evicted, cleared, corrupt
//
// Invariants
//   A key has at most one exact and one lossy record.
//   Block::resident_children is the number of ChildEntered for its key less ChildLeft, whether the
//   block came before its children or after them. What Remember was told is forgotten only when
//   another key takes its place; WhyAbsent then says never_seen. Size it at several times the
//   blocks that are stored.
//
// Ownership: blocks live in the index until Remove, which hands them out; a Block* is good until
// then. Threads: the shard's owner alone. Errors: none; inserting a second record of one kind is a
// bug.
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
  Extent host;      // Empty: not in RAM.
  SsdLocation ssd;  // Empty: not on SSD.
  uint32_t name_space = 0;
  uint32_t chain_index = 0;
  uint32_t record_bytes = 0;  // Of the copy in RAM where there is one, else of that on SSD.
  uint32_t ssd_bytes = 0;     // Of the copy on SSD, which may be coded anew.
  uint32_t pins = 0;  // Fetchers, and the writer while it reads the record.
  uint32_t resident_children =
      0;  // Records of its run in RAM whose parent it is; kept by the index.
  uint32_t hits = 0;
  uint64_t stamp = 0;  // Of the last use, in the policy's own count.
  uint32_t used = 0;   // When that was, in the policy's ticks; the next three are the policy's, too.
  uint8_t list = 0;
  uint8_t uses = 0;
  uint8_t turn = 0;
  QualityClass quality = QualityClass::kExact;
  bool doomed = false;      // Forgotten, but pinned: freed with the last pin.
  bool reading = false;     // Its RAM copy is being read from SSD.
  bool transient = false;   // Leaves RAM with its last pin.
  bool counted = false;     // Its parent's resident_children counts it.
  Block* colder = nullptr;  // The policy's list of those in RAM.
  Block* hotter = nullptr;

  bool lossy() const { return quality != QualityClass::kExact; }
  SsdEntry Entry() const;
  SsdEntry EntryOnSsd() const;
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

  // Its copy in RAM is gone: from now on the record is that on SSD.
  void LeftRam(Block* block);

  // A record in RAM has this parent in its own run.
  void ChildEntered(const BlockKey& parent);
  void ChildLeft(const BlockKey& parent);

  // Why a key is not here, as far as is remembered.
  void Remember(const BlockKey& key, MissReason why);
  MissReason WhyAbsent(const BlockKey& key) const;

  uint64_t size() const { return size_; }
  uint64_t record_bytes() const { return record_bytes_; }
  uint64_t raw_bytes() const { return raw_bytes_; }
  uint64_t memory_bytes() const;  // Of table, blocks and memory of the forgotten, by their sizes.

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
    uint32_t children = 0;
    bool empty() const { return exact == nullptr && lossy == nullptr && children == 0; }
  };
  static void SetChildren(Both& both, uint32_t children);

  // Forgotten keys as (56-bit tag, reason) in a table of fixed size: the newest of a slot stays. A
  // tag collision (2^-56 a lookup) can only give a miss the wrong reason.
  std::unordered_map<BlockKey, Both, BlockKeyHash> table_;
  std::vector<uint64_t> ghosts_;
  const uint64_t max_ghosts_;
  uint64_t size_ = 0;
  uint64_t record_bytes_ = 0;
  uint64_t raw_bytes_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_BLOCK_INDEX_H_
