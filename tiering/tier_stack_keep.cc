// How long a block stays: what was asked to be kept in RAM, and what is too old to be served.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "tiering/tier_stack.h"

namespace tiercel {
namespace {

// The index is looked through for old blocks this many slots at a time: ten million in two minutes.
constexpr uint32_t kSweepSlots = 8192;
constexpr Nanos kSweepEvery = 100 * kMillisecond;
constexpr uint64_t kKeptOfRam = 8;  // An eighth of it, where nothing else is said.

}  // namespace

// ---- kept ----------------------------------------------------------------------------------------

Status TierStack::Keep(uint32_t name_space, const BlockKey& key, QualityClass min_class, Prefer prefer,
                       Nanos how_long) {
  MissReason reason = MissReason::kNone;
  const BlockIndex::Found found = Select(name_space, key, min_class, prefer, &reason);
  if (!found) return Fail(Code::kNotFound, "no such block");
  if (how_long <= 0) {
    if (found.block != nullptr) LetGo(found.block);
    return OkStatus();
  }
  const Nanos until = clock_.Now() + how_long;
  next_kept_end_ = std::min(next_kept_end_, until);
  if (const auto kept = kept_.find(found.block); kept != kept_.end()) {
    kept->second.until = std::max(kept->second.until, until);
    return OkStatus();
  }
  const std::optional<uint64_t> said = options_.keep_limit ? options_.keep_limit(name_space) : std::nullopt;
  const uint64_t limit = said.value_or(arena_->capacity_bytes() / kKeptOfRam);
  const uint64_t bytes = found.record_bytes;
  uint64_t& kept_bytes = kept_of_[name_space];
  if (kept_bytes + bytes > limit) {
    ++stats_.kept_refused;
    return Fail(Code::kResourceExhausted, "all that this name space may keep in RAM is kept");
  }
  kept_bytes += bytes;
  FetchOptions options;
  options.min_class = min_class;
  options.prefer = prefer;
  Fetch(name_space, key, options, [this, name_space, bytes, until](Fetched fetched) {
    kept_of_[name_space] -= bytes;
    Block* block = fetched.pin.block_;
    if (block == nullptr || block->doomed) return;
    block->transient = false;
    const auto [kept, fresh] = kept_.try_emplace(block);
    if (fresh) {
      kept->second.pin = std::move(fetched.pin);
      kept_of_[name_space] += block->record_bytes;
    }
    kept->second.until = std::max(fresh ? until : kept->second.until, until);
  });
  return OkStatus();
}

// It may go when its last other pin does.
void TierStack::LetGo(Block* block) {
  const auto found = kept_.find(block);
  if (found == kept_.end()) return;
  kept_of_[block->name_space] -= block->record_bytes;
  const Kept kept = std::move(found->second);
  kept_.erase(found);
}

// Another name space has more than its reserve, and this one less: what the other keeps stands back.
bool TierStack::LetGoForReserve(uint32_t name_space) {
  std::vector<Block*> yielding;
  for (const auto& [block, kept] : kept_) {
    if (block->name_space != name_space &&
        arena_->slab_bytes_of(block->name_space) > QuotaOf(block->name_space).reserve) {
      yielding.push_back(block);
    }
  }
  for (Block* block : yielding) LetGo(block);
  return !yielding.empty();
}

void TierStack::EndKeeps() {
  if (kept_.empty()) return;  // No look at the clock in every turn.
  const Nanos now = clock_.Now();
  if (now < next_kept_end_) return;
  next_kept_end_ = INT64_MAX;
  std::vector<Block*> ended;
  for (const auto& [block, kept] : kept_) {
    if (kept.until <= now) {
      ended.push_back(block);
    } else {
      next_kept_end_ = std::min(next_kept_end_, kept.until);
    }
  }
  for (Block* block : ended) LetGo(block);
}

// ---- too old -------------------------------------------------------------------------------------

bool TierStack::Expired(const BlockIndex::Found& found) const {
  if (!options_.time_to_live) return false;
  const uint64_t seconds = options_.time_to_live(found.name_space);
  return seconds > 0 && found.stored + seconds <= clock_.UnixSeconds();
}

void TierStack::ForgetExpired() {
  if (!options_.time_to_live || clock_.Now() < next_sweep_) return;
  next_sweep_ = clock_.Now() + kSweepEvery;
  std::vector<BlockIndex::Found> old;
  sweep_at_ = index_.VisitFrom(sweep_at_, kSweepSlots, [&](const BlockIndex::Found& found) {
    if (Expired(found)) old.push_back(found);
  });
  for (const BlockIndex::Found& found : old) Forget(found, MissReason::kExpired);
}

}  // namespace tiercel
