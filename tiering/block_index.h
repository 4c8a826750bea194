// BlockIndex is the table of records: key to record, how many children of each are in RAM, and a
// bounded memory of keys that are no longer here.
//
//   Insert --> in RAM --> Cool --> on SSD alone --> Warm --> in RAM        Remove, Remember(why)
//   InsertCold (found on SSD) -----^                           WhyAbsent: evicted, cleared, corrupt
//
// There are far more records on SSD than in RAM, so one that is on SSD alone costs a slot of 80
// bytes and its bucket: what chains share (anchor, scope) is kept once a run, and a parent is named
// by its slot. A record that is in RAM or on the device, or on its way, has a Block besides, which
// says all about it.
//
// Invariants
//   A key has at most one exact and one lossy record.
//   Block::resident_children is the number of ChildEntered for its key less ChildLeft, whether the
//   block came before its children or after them. What Remember was told is forgotten only when
//   another key takes its place; WhyAbsent then says never_seen. Size it at several times the
//   records that are stored. No call costs more than its own record: the table grows by a bucket a
//   record.
//
// Ownership: blocks live in the index until Cool, or until Remove hands them out; a Block* is good
// until then, a Found until the record it names changes. Threads: the shard's owner alone. Errors:
// none; inserting a second record of one kind is a bug.
#ifndef TIERCEL_TIERING_BLOCK_INDEX_H_
#define TIERCEL_TIERING_BLOCK_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "proto/block_key.h"
#include "proto/types.h"
#include "tiering/device_memory.h"
#include "tiering/host_arena.h"
#include "tiering/slot_pool.h"
#include "tiering/ssd_store.h"

namespace tiercel {

// A record that is in RAM or on the device, is being read, or is still pinned.
struct Block {
  BlockKey key;
  BlockKey parent;
  PlacementKey anchor;
  Scope scope;
  uint64_t generation = 0;
  uint64_t raw_bytes = 0;
  Extent host;               // Empty: not in RAM.
  DeviceExtent device;       // Empty: not on the device.
  uint64_t device_turn = 0;  // When it came there.
  SsdLocation ssd;           // Empty: not on SSD.
  uint32_t name_space = 0;
  uint32_t chain_index = 0;
  uint32_t record_bytes = 0;  // Of the copy in RAM where there is one, else of that on SSD.
  uint32_t ssd_bytes = 0;     // Of the copy on SSD, which may be coded anew.
  uint32_t pins = 0;          // Fetchers, and the writer while it reads the record.
  uint32_t resident_children =
      0;               // Records of its run in RAM whose parent it is; kept by the index.
  uint32_t hits = 0;   // Kept on SSD, too, up to 255.
  uint32_t stored = 0;  // SsdEntry::stored.
  uint32_t slot = 0;   // The index's own; 0: no longer in it.
  uint64_t stamp = 0;  // Of the last use, in the policy's own count.
  uint32_t used = 0;   // When that was, in the policy's ticks; the next four are the policy's, too.
  uint32_t order = 0;
  uint8_t list = 0;
  uint8_t uses = 0;
  uint8_t turn = 0;
  QualityClass quality = QualityClass::kExact;
  bool doomed = false;      // Forgotten, but pinned: freed with the last pin.
  bool reading = false;     // Its RAM copy is being read from the device or from SSD.
  bool transient = false;   // Leaves RAM with its last pin.
  bool unverified = false;  // Its RAM copy is of the process before this one, and not checked yet.
  bool counted = false;     // Its parent's resident_children counts it.
  bool run_admitted = false;  // Its request's tail run is written to SSD, and goes on.
  bool passed_over = false;   // Not written to SSD for its budget's sake.
  bool read_ahead = false;    // Came from SSD ahead of being asked for, and was not asked for yet.
  Block* colder = nullptr;  // The policy's list of those in RAM.
  Block* hotter = nullptr;

  bool lossy() const { return quality != QualityClass::kExact; }
  SsdEntry Entry() const;
  SsdEntry EntryOnSsd() const;
};

class BlockIndex {
 public:
  explicit BlockIndex(uint64_t max_ghosts)
      : table_(slots_), run_table_(runs_), max_ghosts_(max_ghosts) {}
  ~BlockIndex();
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // What there is to know about a record without asking more of the index.
  struct Found {
    uint32_t slot = 0;       // 0: no such record.
    Block* block = nullptr;  // Null: on SSD alone.
    uint32_t name_space = 0;
    uint32_t record_bytes = 0;
    QualityClass quality = QualityClass::kExact;
    uint32_t stored = 0;  // SsdEntry::stored; of one on SSD alone up to a minute earlier.
    SsdLocation ssd;
    explicit operator bool() const { return slot != 0; }
  };

  // The exact or the lossy record of a key.
  Found Find(const BlockKey& key, bool lossy) const;
  // Before many Finds: their waits for memory overlap.
  void Prefetch(std::span<const BlockKey> keys) const;
  SsdEntry Entry(const Found& found) const;
  // Calls fn with each record among the next `many` slots; returns where to go on, 0 at the end.
  template <class Fn>
  uint32_t VisitFrom(uint32_t from, uint32_t many, Fn&& fn) const {
    uint32_t at = std::max(from, 1u);
    for (; at < slots_.end() && many > 0; ++at, --many) {
      if (slots_[at].has_record()) fn(View(at));
    }
    return at < slots_.end() ? at : 0;
  }
  uint32_t Hits(const Found& found) const;

  Block* Insert(const SsdEntry& entry);
  void InsertCold(const SsdEntry& entry);  // Its copy is on SSD alone.
  // A Block for a record that is on SSD alone.
  Block* Warm(const Found& found);
  // Its copies elsewhere are gone: from now on the record is that on SSD, and the block is no more.
  void Cool(Block* block);
  // Its copy in RAM is of another size than that on SSD.
  void SetRamBytes(Block* block, uint32_t record_bytes);
  // Takes the record out; its block, if it has one, goes when the caller deletes it.
  std::unique_ptr<Block> Remove(const Found& found);
  std::unique_ptr<Block> Remove(Block* block);

  // A record in RAM has this parent in its own run.
  void ChildEntered(const BlockKey& parent);
  void ChildLeft(const BlockKey& parent);

  // Why a key is not here, as far as is remembered.
  void Remember(const BlockKey& key, MissReason why);
  MissReason WhyAbsent(const BlockKey& key) const;

  uint64_t size() const { return size_; }
  uint64_t slots_in_use() const { return slots_.used(); }  // Records and absent parents.
  uint64_t record_bytes() const { return record_bytes_; }
  uint64_t raw_bytes() const { return raw_bytes_; }

  // By the sizes of what is held.
  struct Memory {
    uint64_t records = 0;  // Slots of records and absent parents, and their buckets.
    uint64_t runs = 0;
    uint64_t children = 0;  // Counts of parents that are not in RAM.
    uint64_t blocks = 0;    // What records in RAM have besides.
    uint64_t ghosts = 0;
    uint64_t all() const { return records + runs + children + blocks + ghosts; }
  };
  Memory memory() const;

  template <class Fn>
  void ForEach(Fn&& fn) const {  // Of each record, a Found. fn changes nothing.
    for (uint32_t at = 1; at < slots_.end(); ++at) {
      if (slots_[at].has_record()) fn(View(at));
    }
  }

 private:
  enum class State : uint8_t { kFree = 0, kAbsent = 1, kCold = 2, kBlock = 3 };
  // A record, or a key that is some record's parent and not here (kAbsent). A key's second record
  // has a slot of its own, and the first one's slot outlives it: parents are named by first slots.
  struct Slot {
    BlockKey key;
    uint32_t next;
    uint32_t parent;      // Slot of its parent; 0: none.
    uint32_t references;  // Slots that name this one as parent, and that of a second record.
    uint32_t run;
    struct Cold {
      uint32_t raw_bytes;
      uint32_t hits : 8;
      uint32_t stored : 24;  // In minutes since 2020; 0: not known.
    };
    union {
      Cold cold;
      Block* block;
    };
    SsdLocation ssd;  // These two of a cold record only.
    uint32_t ssd_bytes;
    uint32_t name_space;
    uint64_t generation : 48;
    uint64_t quality : 3;
    uint64_t in_run : 5;
    uint64_t state : 2;
    uint64_t second : 1;        // Of its key's second record.
    uint64_t has_second : 1;    // Of a first slot.
    uint64_t has_children : 1;  // Of a first slot: children_ counts some.
    uint64_t hash() const { return key.hash64(); }
    bool has_record() const { return state >= static_cast<uint64_t>(State::kCold); }
    bool lossy() const { return quality != 0; }
  };
  // Up to 32 records of one chain.
  struct Run {
    PlacementKey anchor;
    Scope scope;
    uint32_t number;  // Chain index of its first, by 32.
    uint32_t references;
    uint32_t next;
    uint64_t hash() const { return anchor.hash64(); }
  };

  Found View(uint32_t at) const;
  uint32_t FindFirst(const BlockKey& key) const;
  uint32_t FindSecond(const BlockKey& key) const;
  uint32_t FindRecord(const BlockKey& key, bool lossy) const;
  uint32_t FindOrMakeFirst(const BlockKey& key);
  uint32_t NewRecord(const SsdEntry& entry);
  Block* Attach(uint32_t at, const SsdEntry& entry);
  uint32_t TakeRun(const SsdEntry& entry);
  void GiveRun(uint32_t run);
  void Unreference(uint32_t at);
  void FreeIfUnused(uint32_t at);
  void SetChildren(uint32_t first, uint32_t children);

  SlotPool<Slot> slots_;
  HandleTable<Slot> table_;
  SlotPool<Run> runs_;
  HandleTable<Run> run_table_;
  // Children in RAM, of first slots that have some.
  std::unordered_map<uint32_t, uint32_t> children_;
  // Forgotten keys as (56-bit tag, reason) in a table of fixed size: the newest of a slot stays. A
  // tag collision (2^-56 a lookup) can only give a miss the wrong reason.
  std::vector<uint64_t> ghosts_;
  const uint64_t max_ghosts_;
  uint64_t size_ = 0;
  uint64_t blocks_ = 0;
  uint64_t record_bytes_ = 0;
  uint64_t raw_bytes_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_BLOCK_INDEX_H_
