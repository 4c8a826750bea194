#include "tiering/block_index.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tiercel {
namespace {

// What a node of std::unordered_map, or a small allocation, costs beside its content.
constexpr uint64_t kNode = 2 * sizeof(void*);

uint32_t Saturated(uint64_t bytes) {
  return static_cast<uint32_t>(std::min<uint64_t>(bytes, UINT32_MAX));
}

constexpr uint32_t kMinute = 60;
constexpr uint32_t kYear2020 = 1'577'836'800;  // In Unix seconds.
constexpr uint32_t kMaxMinutes = (1u << 24) - 1;

// Rounded down: a block may count as a minute older than it is, never as younger.
uint32_t ToMinutes(uint32_t seconds) {
  return seconds < kYear2020 ? 0 : std::min((seconds - kYear2020) / kMinute, kMaxMinutes);
}
uint32_t ToSeconds(uint32_t minutes) { return minutes == 0 ? 0 : kYear2020 + minutes * kMinute; }

}  // namespace

SsdEntry Block::Entry() const {
  SsdEntry entry;
  entry.key = key;
  entry.parent = parent;
  entry.anchor = anchor;
  entry.scope = scope;
  entry.name_space = name_space;
  entry.chain_index = chain_index;
  entry.record_bytes = record_bytes;
  entry.raw_bytes = raw_bytes;
  entry.generation = generation;
  entry.stored = stored;
  entry.quality = quality;
  entry.where = ssd;
  return entry;
}

SsdEntry Block::EntryOnSsd() const {
  SsdEntry entry = Entry();
  entry.record_bytes = ssd_bytes;
  return entry;
}

BlockIndex::~BlockIndex() {
  ForEach([](const Found& found) { delete found.block; });
}

// ---- finding -----------------------------------------------------------------------------------

uint32_t BlockIndex::FindFirst(const BlockKey& key) const {
  return table_.Find(key.hash64(),
                     [&](const Slot& slot) { return slot.second == 0 && slot.key == key; });
}

uint32_t BlockIndex::FindRecord(const BlockKey& key, bool lossy) const {
  uint32_t at = FindFirst(key);
  if (at == 0 || (slots_[at].has_record() && slots_[at].lossy() == lossy)) return at;
  if (slots_[at].has_second == 0) return 0;
  at = FindSecond(key);
  return slots_[at].lossy() == lossy ? at : 0;
}

uint32_t BlockIndex::FindSecond(const BlockKey& key) const {
  return table_.Find(key.hash64(),
                     [&](const Slot& slot) { return slot.second != 0 && slot.key == key; });
}

BlockIndex::Found BlockIndex::View(uint32_t at) const {
  const Slot& slot = slots_[at];
  Found found;
  found.slot = at;
  found.name_space = slot.name_space;
  found.quality = static_cast<QualityClass>(slot.quality);
  if (slot.state == static_cast<uint64_t>(State::kBlock)) {
    found.block = slot.block;
    found.record_bytes = slot.block->record_bytes;
    found.stored = slot.block->stored;
    found.ssd = slot.block->ssd;
  } else {
    found.record_bytes = slot.ssd_bytes;
    found.stored = ToSeconds(slot.cold.stored);
    found.ssd = slot.ssd;
  }
  return found;
}

BlockIndex::Found BlockIndex::Find(const BlockKey& key, bool lossy) const {
  const uint32_t at = FindRecord(key, lossy);
  return at == 0 ? Found{} : View(at);
}

void BlockIndex::Prefetch(std::span<const BlockKey> keys) const {
  for (const BlockKey& key : keys) table_.PrefetchBucket(key.hash64());
  for (const BlockKey& key : keys) table_.PrefetchHead(key.hash64());
  for (const BlockKey& key : keys) table_.PrefetchNext(key.hash64());
}

SsdEntry BlockIndex::Entry(const Found& found) const {
  if (found.block != nullptr) return found.block->Entry();
  const Slot& slot = slots_[found.slot];
  const Run& run = runs_[slot.run];
  SsdEntry entry;
  entry.key = slot.key;
  if (slot.parent != 0) entry.parent = slots_[slot.parent].key;
  entry.anchor = run.anchor;
  entry.scope = run.scope;
  entry.name_space = slot.name_space;
  entry.chain_index = run.number * kBlocksPerRun + static_cast<uint32_t>(slot.in_run);
  entry.record_bytes = slot.ssd_bytes;
  entry.raw_bytes = slot.cold.raw_bytes;
  entry.generation = slot.generation;
  entry.stored = ToSeconds(slot.cold.stored);
  entry.quality = static_cast<QualityClass>(slot.quality);
  entry.where = slot.ssd;
  return entry;
}

uint32_t BlockIndex::Hits(const Found& found) const {
  return found.block != nullptr ? found.block->hits : slots_[found.slot].cold.hits;
}

// ---- coming and going --------------------------------------------------------------------------

uint32_t BlockIndex::TakeRun(const SsdEntry& entry) {
  const uint32_t number = entry.chain_index / kBlocksPerRun;
  uint32_t at = run_table_.Find(entry.anchor.hash64(), [&](const Run& run) {
    return run.anchor == entry.anchor && run.scope == entry.scope && run.number == number;
  });
  if (at == 0) {
    at = runs_.Take();
    Run& run = runs_[at];
    run.anchor = entry.anchor;
    run.scope = entry.scope;
    run.number = number;
    run_table_.Insert(at);
  }
  ++runs_[at].references;
  return at;
}

void BlockIndex::GiveRun(uint32_t run) {
  if (--runs_[run].references > 0) return;
  run_table_.Erase(run);
  runs_.Give(run);
}

uint32_t BlockIndex::FindOrMakeFirst(const BlockKey& key) {
  uint32_t at = FindFirst(key);
  if (at != 0) return at;
  at = slots_.Take();
  slots_[at].key = key;
  slots_[at].state = static_cast<uint64_t>(State::kAbsent);
  table_.Insert(at);
  return at;
}

// A slot that says all but where the record is.
uint32_t BlockIndex::NewRecord(const SsdEntry& entry) {
  const bool lossy = entry.quality != QualityClass::kExact;
  TIERCEL_CHECK(FindRecord(entry.key, lossy) == 0 && entry.generation < uint64_t{1} << 48);
  const uint32_t first = FindOrMakeFirst(entry.key);
  uint32_t at = first;
  if (slots_[first].has_record()) {
    at = slots_.Take();
    slots_[at].key = entry.key;
    slots_[at].second = 1;
    table_.Insert(at);
    slots_[first].has_second = 1;
    ++slots_[first].references;
  }
  const uint32_t parent = entry.parent == BlockKey{} ? 0 : FindOrMakeFirst(entry.parent);
  if (parent != 0) ++slots_[parent].references;
  Slot& slot = slots_[at];
  slot.parent = parent;
  slot.run = TakeRun(entry);
  slot.in_run = entry.chain_index % kBlocksPerRun;
  slot.name_space = entry.name_space;
  slot.generation = entry.generation & ((uint64_t{1} << 48) - 1);
  slot.quality = static_cast<uint64_t>(entry.quality) & 7;
  ++size_;
  return at;
}

Block* BlockIndex::Attach(uint32_t at, const SsdEntry& entry) {
  auto* block = new Block;
  block->key = entry.key;
  block->parent = entry.parent;
  block->anchor = entry.anchor;
  block->scope = entry.scope;
  block->generation = entry.generation;
  block->stored = entry.stored;
  block->raw_bytes = entry.raw_bytes;
  block->ssd = entry.where;
  block->name_space = entry.name_space;
  block->chain_index = entry.chain_index;
  block->record_bytes = entry.record_bytes;
  block->ssd_bytes = entry.where ? entry.record_bytes : 0;
  block->quality = entry.quality;
  block->slot = at;
  Slot& slot = slots_[at];
  slot.state = static_cast<uint64_t>(State::kBlock);
  slot.block = block;
  const auto children = children_.find(FindFirst(entry.key));
  if (children != children_.end()) block->resident_children = children->second;
  ++blocks_;
  return block;
}

Block* BlockIndex::Insert(const SsdEntry& entry) {
  Block* block = Attach(NewRecord(entry), entry);
  record_bytes_ += block->record_bytes;
  raw_bytes_ += block->raw_bytes;
  return block;
}

void BlockIndex::InsertCold(const SsdEntry& entry) {
  TIERCEL_CHECK(entry.where);
  Slot& slot = slots_[NewRecord(entry)];
  slot.state = static_cast<uint64_t>(State::kCold);
  slot.cold = {Saturated(entry.raw_bytes), 0, ToMinutes(entry.stored) & kMaxMinutes};
  slot.ssd = entry.where;
  slot.ssd_bytes = entry.record_bytes;
  record_bytes_ += slot.ssd_bytes;
  raw_bytes_ += slot.cold.raw_bytes;
}

Block* BlockIndex::Warm(const Found& found) {
  TIERCEL_CHECK(found && found.block == nullptr);
  const uint32_t hits = Hits(found);
  Block* block = Attach(found.slot, Entry(found));
  block->hits = hits;
  return block;
}

void BlockIndex::SetRamBytes(Block* block, uint32_t record_bytes) {
  record_bytes_ += record_bytes - uint64_t{block->record_bytes};
  block->record_bytes = record_bytes;
}

void BlockIndex::Cool(Block* block) {
  TIERCEL_CHECK(block->ssd && block->slot != 0 && slots_[block->slot].block == block);
  Slot& slot = slots_[block->slot];
  record_bytes_ += block->ssd_bytes - uint64_t{block->record_bytes};
  slot.state = static_cast<uint64_t>(State::kCold);
  slot.cold = {Saturated(block->raw_bytes), std::min(block->hits, 255u) & 255u, ToMinutes(block->stored) & kMaxMinutes};
  raw_bytes_ += slot.cold.raw_bytes - block->raw_bytes;
  slot.ssd = block->ssd;
  slot.ssd_bytes = block->ssd_bytes;
  --blocks_;
  delete block;
}

std::unique_ptr<Block> BlockIndex::Remove(Block* block) {
  TIERCEL_CHECK(block->slot != 0 && slots_[block->slot].block == block);
  return Remove(View(block->slot));
}

std::unique_ptr<Block> BlockIndex::Remove(const Found& found) {
  const uint32_t at = found.slot;
  Slot& slot = slots_[at];
  TIERCEL_CHECK(found && slot.has_record());
  std::unique_ptr<Block> block(found.block);
  if (block != nullptr) {
    record_bytes_ -= block->record_bytes;
    raw_bytes_ -= block->raw_bytes;
    block->slot = 0;
    --blocks_;
  } else {
    record_bytes_ -= slot.ssd_bytes;
    raw_bytes_ -= slot.cold.raw_bytes;
  }
  --size_;
  GiveRun(std::exchange(slot.run, 0));
  const uint32_t parent = std::exchange(slot.parent, 0);
  slot.state = static_cast<uint64_t>(State::kAbsent);
  slot.cold = {};
  if (slot.second != 0) {
    const uint32_t first = FindFirst(slot.key);
    slots_[first].has_second = 0;
    table_.Erase(at);
    slots_.Give(at);
    Unreference(first);
  } else {
    FreeIfUnused(at);
  }
  if (parent != 0) Unreference(parent);
  return block;
}

void BlockIndex::Unreference(uint32_t at) {
  --slots_[at].references;
  FreeIfUnused(at);
}

void BlockIndex::FreeIfUnused(uint32_t at) {
  const Slot& slot = slots_[at];
  if (slot.has_record() || slot.references > 0 || slot.has_children != 0) return;
  table_.Erase(at);
  slots_.Give(at);
}

// ---- children ----------------------------------------------------------------------------------

void BlockIndex::SetChildren(uint32_t first, uint32_t children) {
  const auto tell = [&](uint32_t at) {
    if (slots_[at].state == static_cast<uint64_t>(State::kBlock)) {
      slots_[at].block->resident_children = children;
    }
  };
  tell(first);
  if (slots_[first].has_second == 0) return;
  tell(FindSecond(slots_[first].key));
}

void BlockIndex::ChildEntered(const BlockKey& parent) {
  const uint32_t first = FindOrMakeFirst(parent);
  slots_[first].has_children = 1;
  SetChildren(first, ++children_[first]);
}

void BlockIndex::ChildLeft(const BlockKey& parent) {
  const uint32_t first = FindFirst(parent);
  const auto found = children_.find(first);
  TIERCEL_CHECK(first != 0 && found != children_.end());
  SetChildren(first, --found->second);
  if (found->second > 0) return;
  children_.erase(found);
  slots_[first].has_children = 0;
  FreeIfUnused(first);
}

// ---- the forgotten -----------------------------------------------------------------------------

void BlockIndex::Remember(const BlockKey& key, MissReason why) {
  if (max_ghosts_ == 0) return;
  if (ghosts_.empty())
    ghosts_.resize(max_ghosts_);  // Eight bytes each, once something is forgotten.
  const uint64_t hash = key.hash64();
  ghosts_[hash % max_ghosts_] =
      (LoadLe<uint64_t>(key.bytes.data() + 8) & ~uint64_t{0xff}) | static_cast<uint8_t>(why);
}

MissReason BlockIndex::WhyAbsent(const BlockKey& key) const {
  if (ghosts_.empty()) return MissReason::kNeverSeen;
  const uint64_t ghost = ghosts_[key.hash64() % max_ghosts_];
  const bool same = ghost != 0 && (ghost & ~uint64_t{0xff}) ==
                                      (LoadLe<uint64_t>(key.bytes.data() + 8) & ~uint64_t{0xff});
  return same ? static_cast<MissReason>(ghost & 0xff) : MissReason::kNeverSeen;
}

BlockIndex::Memory BlockIndex::memory() const {
  Memory memory;
  memory.records = slots_.memory_bytes() + table_.memory_bytes();
  memory.runs = runs_.memory_bytes() + run_table_.memory_bytes();
  memory.children = children_.size() * (sizeof(std::pair<const uint32_t, uint32_t>) + kNode) +
                    children_.bucket_count() * sizeof(void*);
  memory.blocks = blocks_ * (sizeof(Block) + kNode);
  memory.ghosts = ghosts_.size() * sizeof(uint64_t);
  return memory;
}

}  // namespace tiercel
