// How a stack's RAM outlives its process: see TierStack::WriteSnapshot and TierStack::Adopt.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tiering/snapshot.h"
#include "tiering/tier_stack.h"

namespace tiercel {

TierStack::Left TierStack::PlanSnapshot() const {
  Left left;
  std::vector<uint32_t> place(arena_->slabs(), UINT32_MAX);
  index_.ForEach([&](const BlockIndex::Found& found) {
    Block* block = found.block;
    if (block == nullptr || !block->host || block->reading) return;
    left.blocks.push_back(block);
    uint32_t& at = place[block->host.slab];
    if (at != UINT32_MAX) return;
    at = static_cast<uint32_t>(left.slabs.size());
    left.slabs.push_back(block->host.slab);
  });
  std::sort(left.blocks.begin(), left.blocks.end(),
            [](const Block* a, const Block* b) { return a->stamp < b->stamp; });
  left.bytes = SnapshotBytes(left.slabs.size(), left.blocks.size());
  return left;
}

void TierStack::WriteSnapshot(const Left& left, uint32_t shard, uint32_t shards,
                              MutableByteSpan room) const {
  std::vector<uint32_t> place(arena_->slabs(), 0);
  std::vector<uint32_t> owners;
  for (const uint32_t slab : left.slabs) {
    place[slab] = static_cast<uint32_t>(owners.size());
    owners.push_back(arena_->slab_owner(slab));
  }
  SnapshotHeader header;
  header.shard = shard;
  header.shards = shards;
  header.slab_bytes = arena_->options().slab_bytes;
  header.records = left.blocks.size();
  header.next_generation = next_generation_;
  SnapshotWriter writer(room, header, owners);
  for (const Block* block : left.blocks) {
    SnapshotRecord record{block->Entry(), block->host, block->hits};
    record.host.slab = place[block->host.slab];
    writer.Add(record);
  }
  writer.Finish();
}

Result<TierStack::Adopted> TierStack::Adopt(ByteSpan snapshot, uint32_t shard, uint32_t shards,
                                            std::vector<FileDescriptor> slabs) {
  TIERCEL_ASSIGN(SnapshotReader reader, SnapshotReader::Open(snapshot));
  const SnapshotHeader& header = reader.header();
  if (header.shard != shard || header.shards != shards) {
    return Fail(Code::kFailedPrecondition,
                fmt::format("snapshot: of shard {} of {}, this is shard {} of {}", header.shard,
                            header.shards, shard, shards));
  }
  if (header.slab_bytes != arena_->options().slab_bytes) {
    return Fail(
        Code::kFailedPrecondition,
        fmt::format("snapshot: of slabs of {}, memory.slab is {}", FormatBytes(header.slab_bytes),
                    FormatBytes(arena_->options().slab_bytes)));
  }
  if (slabs.size() != reader.slabs().size()) {
    return Fail(Code::kDataLoss,
                fmt::format("snapshot: of {} slabs, {} came", reader.slabs().size(), slabs.size()));
  }
  // All of it is read before any of it is believed.
  std::vector<SnapshotRecord> records;
  records.reserve(header.records);
  while (!reader.done()) {
    TIERCEL_ASSIGN(records.emplace_back(), reader.Next());
  }
  std::vector<uint32_t> place;
  for (size_t i = 0; i < slabs.size(); ++i) {
    const Result<uint32_t> adopted = arena_->AdoptSlab(std::move(slabs[i]), reader.slabs()[i]);
    if (!adopted && adopted.error().code != Code::kResourceExhausted) {
      for (const uint32_t slab : place) arena_->DropIfEmpty(slab);
      return tl::unexpected<Error>(adopted.error());
    }
    if (!adopted) break;  // Less memory than before: the rest is forgotten.
    place.push_back(*adopted);
  }
  next_generation_ = std::max(next_generation_, header.next_generation);
  Adopted result;
  for (const SnapshotRecord& record : records) {
    const bool taken = record.host && record.host.slab < place.size() &&
                       AdoptRecord(record, place[record.host.slab]);
    ++(taken ? result.blocks : result.left_out);
    if (taken) result.bytes += record.host.bytes;
  }
  for (const uint32_t slab : place) arena_->DropIfEmpty(slab);
  return result;
}

bool TierStack::AdoptRecord(const SnapshotRecord& record, uint32_t slab) {
  const SsdEntry& entry = record.entry;
  BlockIndex::Found found = index_.Find(entry.key, entry.quality != QualityClass::kExact);
  Extent extent = record.host;
  extent.slab = slab;
  Block* block = nullptr;
  if (found && found.block == nullptr && index_.Entry(found).generation == entry.generation &&
      found.name_space == entry.name_space) {
    if (!arena_->AdoptExtent(extent)) return false;
    block = index_.Warm(found);
    index_.SetRamBytes(block, entry.record_bytes);
  } else {
    // Of two the newer one; what the disk says of itself is newer than any snapshot at its
    // generation.
    if (found && (found.block != nullptr || index_.Entry(found).generation >= entry.generation))
      return false;
    if (!arena_->AdoptExtent(extent)) return false;
    if (found) Forget(found, MissReason::kNone);
    SsdEntry fresh = entry;
    fresh.where = {};
    block = index_.Insert(fresh);
  }
  block->host = extent;
  block->hits = record.hits;
  block->unverified = true;
  EnterRam(block, ReuseHint::kUnknown, /*came_back=*/false);
  return true;
}

// The first time that a block of another process is served, its bytes are checked here.
bool TierStack::VerifyAdopted(Block* block) {
  if (!std::exchange(block->unverified, false) || !options_.verify_record) return true;
  const Status good = options_.verify_record({arena_->data(block->host), block->record_bytes});
  ++stats_.adopted_verified;
  if (good) return true;
  ++stats_.corrupt;
  block->ssd ? DropHostCopy(block) : Forget(block, MissReason::kCorrupt);
  return false;
}

}  // namespace tiercel
