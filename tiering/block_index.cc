#include "tiering/block_index.h"

#include <utility>

#include "base/check.h"

namespace tiercel {

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
  ForEach([](Block* block) { delete block; });
}

Block* BlockIndex::Find(const BlockKey& key, bool lossy) const {
  const auto found = table_.find(key);
  if (found == table_.end()) return nullptr;
  return lossy ? found->second.lossy : found->second.exact;
}

Block* BlockIndex::Insert(const SsdEntry& entry) {
  auto* block = new Block;
  block->key = entry.key;
  block->parent = entry.parent;
  block->anchor = entry.anchor;
  block->scope = entry.scope;
  block->generation = entry.generation;
  block->raw_bytes = entry.raw_bytes;
  block->ssd = entry.where;
  block->name_space = entry.name_space;
  block->chain_index = entry.chain_index;
  block->record_bytes = entry.record_bytes;
  block->ssd_bytes = entry.where ? entry.record_bytes : 0;
  block->quality = entry.quality;
  Both& both = table_[entry.key];
  Block*& slot = block->lossy() ? both.lossy : both.exact;
  TIERCEL_CHECK(slot == nullptr);
  slot = block;
  block->resident_children = both.children;
  ++size_;
  record_bytes_ += block->record_bytes;
  raw_bytes_ += block->raw_bytes;
  return block;
}

std::unique_ptr<Block> BlockIndex::Remove(Block* block) {
  const auto found = table_.find(block->key);
  TIERCEL_CHECK(found != table_.end());
  Block*& slot = block->lossy() ? found->second.lossy : found->second.exact;
  TIERCEL_CHECK(slot == block);
  slot = nullptr;
  if (found->second.empty()) table_.erase(found);
  --size_;
  record_bytes_ -= block->record_bytes;
  raw_bytes_ -= block->raw_bytes;
  return std::unique_ptr<Block>(block);
}

void BlockIndex::LeftRam(Block* block) {
  TIERCEL_CHECK(block->ssd);
  record_bytes_ -= block->record_bytes;
  block->record_bytes = block->ssd_bytes;
  record_bytes_ += block->record_bytes;
}

void BlockIndex::SetChildren(Both& both, uint32_t children) {
  both.children = children;
  if (both.exact != nullptr) both.exact->resident_children = children;
  if (both.lossy != nullptr) both.lossy->resident_children = children;
}

void BlockIndex::ChildEntered(const BlockKey& parent) {
  Both& both = table_[parent];
  SetChildren(both, both.children + 1);
}

void BlockIndex::ChildLeft(const BlockKey& parent) {
  const auto found = table_.find(parent);
  TIERCEL_CHECK(found != table_.end() && found->second.children > 0);
  SetChildren(found->second, found->second.children - 1);
  if (found->second.empty()) table_.erase(found);
}

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

uint64_t BlockIndex::memory_bytes() const {
  constexpr uint64_t kNode = sizeof(std::pair<const BlockKey, Both>) + 2 * sizeof(void*);
  return size_ * (sizeof(Block) + 16) + table_.size() * kNode +
         table_.bucket_count() * sizeof(void*) + ghosts_.size() * sizeof(uint64_t);
}

}  // namespace tiercel
