// What is written to SSD, and what is read from there ahead of being asked for.
#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

constexpr size_t kMaxAhead = 256;    // Blocks that wait to be read ahead.
constexpr uint64_t kAheadOfRam = 8;  // An eighth of it, read ahead and not used.

}  // namespace

// ---- admission ---------------------------------------------------------------------------------

// A block was put: is it to be written?
bool TierStack::Admit(Block* block, bool came_back) {
  if (ssd_ == nullptr) return true;
  const SsdStore::Budget budget = ssd_->budget();
  if (budget.most == UINT64_MAX && options_.admit_all) return true;
  const Block* parent = block->chain_index > 0 ? InRam(block->name_space, block->parent) : nullptr;
  bool admitted = budget.left >= block->record_bytes && (parent == nullptr || !parent->passed_over);
  if (admitted && (parent == nullptr || !parent->run_admitted)) {
    admitted = came_back || (options_.admit_all && budget.left >= budget.most / 2);
  }
  block->run_admitted = admitted;
  block->passed_over = !admitted;
  if (!admitted) ++stats_.passed_over;
  return admitted;
}

// A block that is in RAM was touched, after its parent: another request is at work.
void TierStack::UsedAgain(Block* block, const Block* parent) {
  block->run_admitted = false;
  if (!block->passed_over || (parent != nullptr && parent->passed_over)) return;
  if (block->reading || ssd_->budget().left < block->record_bytes) return;
  block->passed_over = false;
  ++stats_.second_access;
  WriteBehind(block, nullptr);
}

void TierStack::WriteBehind(Block* block, DurableDone durable) {
  if (ssd_ == nullptr) {
    if (durable) durable(Fail(Code::kUnavailable, "this node has no SSD tier"));
    return;
  }
  // Records wait to be written in RAM, pinned: not so many that they crowd out everything else, in
  // the node or in what their name space may have, unless their writer waits for the disk, and so
  // waits for room too.
  const auto crowds_out = [block](uint64_t waiting, uint64_t room) {
    return waiting > 0 && waiting + block->record_bytes > room / 2;
  };
  uint64_t& waiting_of = writing_of_[block->name_space];
  if (!durable && (crowds_out(writing_bytes_, arena_->capacity_bytes()) ||
                   crowds_out(waiting_of, QuotaOf(block->name_space).limit))) {
    ++stats_.write_behind_skipped;
    if (!std::exchange(hurrying_, true)) {
      ssd_->Flush([this](Status) { hurrying_ = false; });  // What waits for company is written now.
    }
    return;
  }
  ++block->pins;
  ++pins_;
  // The completion is shared, since Append may refuse it.
  auto told = std::make_shared<DurableDone>(std::move(durable));
  SsdEntry entry = block->Entry();
  if (options_.demote_to && !*told) entry.demote_to = options_.demote_to(block->name_space);
  const Status queued = ssd_->Append(entry, {arena_->data(block->host), block->record_bytes},
                                     [this, block, told](Result<SsdEntry> stored) {
                                       writing_bytes_ -= block->record_bytes;
                                       writing_of_[block->name_space] -= block->record_bytes;
                                       Status status = OkStatus();
                                       if (stored) {
                                         status = Written(block, *stored);
                                       } else {
                                         ++stats_.write_behind_skipped;
                                         status = tl::unexpected<Error>(stored.error());
                                       }
                                       Unpin(block);
                                       if (*told) (*told)(std::move(status));
                                     });
  if (queued) {
    writing_bytes_ += block->record_bytes;
    waiting_of += block->record_bytes;
    return;
  }
  ++stats_.write_behind_skipped;
  Unpin(block);
  if (*told) (*told)(queued);
}

// The block is pinned, so its record_bytes are those of its copy in RAM.
Status TierStack::Written(Block* block, const SsdEntry& stored) {
  ++stats_.durable;
  if (stored.quality == block->quality) {
    block->ssd = stored.where;
    block->ssd_bytes = stored.record_bytes;
  } else if (!block->doomed) {
    const BlockIndex::Found lossy = index_.Find(block->key, /*lossy=*/true);
    if (lossy && lossy.quality <= stored.quality) return OkStatus();  // As good is here.
    if (lossy) Forget(lossy, MissReason::kNone);
    index_.InsertCold(stored);
    ++stats_.demoted;
  }
  if (block->doomed) return Fail(Code::kAborted, "forgotten while it was being written");
  return OkStatus();
}

// ---- reading ahead -----------------------------------------------------------------------------

void TierStack::ReadAhead(uint32_t name_space, std::span<const BlockKey> keys,
                          QualityClass min_class, Prefer prefer) {
  if (ssd_ == nullptr || !ssd_->readable() || options_.max_read_ahead == 0) return;
  for (const BlockKey& key : keys) {
    MissReason reason = MissReason::kNone;
    const BlockIndex::Found found = Select(name_space, key, min_class, prefer, &reason);
    if (!found) break;
    if (found.block != nullptr) continue;
    if (ahead_.size() >= kMaxAhead) {
      ++stats_.read_ahead_refused;
      break;
    }
    ahead_.push_back({name_space, key, min_class, prefer});
  }
  StartReadsAhead();
}

void TierStack::StartReadsAhead() {
  while (!ahead_.empty() && reading_ahead_ < options_.max_read_ahead) {
    const Ahead next = ahead_.front();
    ahead_.pop_front();
    MissReason reason = MissReason::kNone;
    const BlockIndex::Found found =
        Select(next.name_space, next.key, next.min_class, next.prefer, &reason);
    if (!found || found.block != nullptr) continue;
    const bool room = reading_.size() < options_.max_waiting_fetches &&
                      RoomAhead(next.name_space, found.record_bytes);
    Result<Extent> extent = room ? AllocateEvicting(found.record_bytes, next.name_space)
                                 : Fail(Code::kResourceExhausted, "no room to read ahead");
    if (!extent) {
      // Of a chain what lies behind would be read for nothing.
      stats_.read_ahead_refused += 1 + ahead_.size();
      ahead_.clear();
      return;
    }
    Block* block = index_.Warm(found);
    block->host = *extent;
    block->reading = true;
    block->read_ahead = true;
    ahead_bytes_ += block->host.bytes;
    ++reading_ahead_;
    ++stats_.read_ahead;
    reading_.emplace(block, std::make_unique<Waiting>());
    StartRead(block);
  }
}

bool TierStack::RoomAhead(uint32_t name_space, uint64_t bytes) const {
  if (ahead_bytes_ + bytes > arena_->capacity_bytes() / kAheadOfRam) return false;
  if (arena_->largest_free_run(name_space) >= bytes) return true;
  if (arena_->made_bytes() < arena_->capacity_bytes() && MayGrow(name_space)) return true;
  bool cold = false;
  const uint64_t recent = policy_->RecentFrom(name_space);
  policy_->VisitColdest(name_space, [&](const Block& coldest) {
    cold = policy_->Rank(coldest) < recent;
    return false;
  });
  return cold;
}

void TierStack::EndReadAhead(Block* block, bool used) {
  block->read_ahead = false;
  ahead_bytes_ -= block->host.bytes;
  ++(used ? stats_.read_ahead_used : stats_.read_ahead_wasted);
}

}  // namespace tiercel
