#include "tiering/tier_stack.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tiercel {

// ---- handles -----------------------------------------------------------------------------------

Pin& Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    Release();
    stack_ = other.stack_;
    block_ = std::exchange(other.block_, nullptr);
  }
  return *this;
}

ByteSpan Pin::record() const {
  return {stack_->arena_->data(block_->host), block_->record_bytes};
}

void Pin::Release() {
  if (block_ != nullptr) stack_->Unpin(std::exchange(block_, nullptr));
}

Reservation::Reservation(Reservation&& other) noexcept
    : stack_(std::exchange(other.stack_, nullptr)), extent_(other.extent_), entry_(other.entry_) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    stack_ = std::exchange(other.stack_, nullptr);
    extent_ = other.extent_;
    entry_ = other.entry_;
  }
  return *this;
}

MutableByteSpan Reservation::record() const {
  return {stack_->arena_->data(extent_), entry_.record_bytes};
}

void Reservation::Release() {
  TierStack* stack = std::exchange(stack_, nullptr);
  if (stack == nullptr) return;
  stack->arena_->Free(extent_);
  --stack->reserved_;
}

// ---- making ------------------------------------------------------------------------------------

struct TierStack::Waiting {
  std::vector<FetchDone> fetches;
};

Result<std::unique_ptr<TierStack>> TierStack::Create(const Options& options, const Clock& clock,
                                                     std::unique_ptr<SsdStore> ssd) {
  TIERCEL_ASSIGN(auto arena, HostArena::Create(options.host));
  auto stack = std::unique_ptr<TierStack>(new TierStack(options, clock, std::move(arena), std::move(ssd)));
  if (stack->ssd_ != nullptr) {
    TIERCEL_ASSIGN(const std::vector<SsdEntry> entries, stack->ssd_->Recover());
    stack->Adopt(entries);
    stack->ssd_->SetDropListener([raw = stack.get()](const std::vector<SsdEntry>& dropped) {
      for (const SsdEntry& entry : dropped) {
        Block* block = raw->index_.Find(entry.key, entry.quality != QualityClass::kExact);
        if (block == nullptr || block->ssd != entry.where) continue;  // Stored anew since.
        block->ssd = {};
        if (block->host || block->reading) continue;
        ++raw->stats_.evicted;
        raw->Forget(block, MissReason::kEvicted);
      }
    });
  }
  return stack;
}

TierStack::TierStack(const Options& options, const Clock& clock, std::unique_ptr<HostArena> arena,
                     std::unique_ptr<SsdStore> ssd)
    : options_(options), clock_(clock), arena_(std::move(arena)), ssd_(std::move(ssd)),
      index_(options.max_ghosts) {}

TierStack::~TierStack() {
  Shutdown(0);
  TIERCEL_CHECK(pins_ == 0 && reserved_ == 0);
}

void TierStack::Adopt(const std::vector<SsdEntry>& entries) {
  for (const SsdEntry& entry : entries) {
    next_generation_ = std::max(next_generation_, entry.generation + 1);
    Block* block = index_.Find(entry.key, entry.quality != QualityClass::kExact);
    if (block == nullptr) {
      index_.Insert(entry);
    } else if (entry.generation > block->generation) {
      (void)index_.Remove(block);
      index_.Insert(entry);
    }
  }
}

// ---- looking -----------------------------------------------------------------------------------

Block* TierStack::Select(uint32_t name_space, const BlockKey& key, QualityClass min_class, Prefer prefer,
                         MissReason* reason) const {
  Block* exact = index_.Find(key, /*lossy=*/false);
  Block* lossy = index_.Find(key, /*lossy=*/true);
  if (exact != nullptr && exact->name_space != name_space) exact = nullptr;
  if (lossy != nullptr && lossy->name_space != name_space) lossy = nullptr;
  if (lossy != nullptr && lossy->quality > min_class) {
    if (exact == nullptr) *reason = MissReason::kOtherClass;
    lossy = nullptr;
    if (exact == nullptr) return nullptr;
  }
  if (exact == nullptr && lossy == nullptr) {
    *reason = index_.WhyAbsent(key);
    return nullptr;
  }
  if (exact != nullptr && lossy != nullptr) {
    const bool smaller = prefer == Prefer::kSmall && lossy->record_bytes < exact->record_bytes;
    return smaller ? lossy : exact;
  }
  return exact != nullptr ? exact : lossy;
}

MatchEntry TierStack::Lookup(uint32_t name_space, const BlockKey& key, QualityClass min_class,
                             Prefer prefer) const {
  MatchEntry entry;
  const Block* block = Select(name_space, key, min_class, prefer, &entry.reason);
  if (block == nullptr) return entry;
  entry.tier = block->host ? Tier::kHost : Tier::kSsd;
  entry.quality = block->quality;
  entry.record_bytes = block->record_bytes;
  return entry;
}

void TierStack::Touch(uint32_t name_space, const std::vector<BlockKey>& keys) {
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    for (const bool lossy : {true, false}) {
      Block* block = index_.Find(*key, lossy);
      if (block == nullptr || block->name_space != name_space || !index_.linked(block)) continue;
      index_.Unlink(block);
      index_.PushHottest(block);
    }
  }
}

void TierStack::CountMiss(MissReason reason) {
  ++stats_.misses;
  ++stats_.reasons[static_cast<size_t>(reason)];
}

void TierStack::Answer(Block* block, FetchDone& done, Tier tier) {
  ++block->pins;
  ++pins_;
  ++block->hits;
  ++(tier == Tier::kHost ? stats_.hits_host : stats_.hits_ssd);
  Fetched fetched;
  fetched.pin = Pin(this, block);
  fetched.tier = tier;
  done(std::move(fetched));
}

void TierStack::Fetch(uint32_t name_space, const BlockKey& key, const FetchOptions& options, FetchDone done) {
  MissReason reason = MissReason::kUnknown;
  Block* block = Select(name_space, key, options.min_class, options.prefer, &reason);
  if (block != nullptr && block->host && !block->reading) return Answer(block, done, Tier::kHost);
  if (block != nullptr && block->reading) {
    reading_[block]->fetches.push_back(std::move(done));
    return;
  }
  const auto miss = [&](MissReason why) {
    CountMiss(why);
    Fetched fetched;
    fetched.reason = why;
    done(std::move(fetched));
  };
  if (block == nullptr) return miss(reason);
  if (reading_.size() >= options_.max_waiting_fetches) return miss(MissReason::kBusy);
  Result<Extent> extent = AllocateEvicting(block->record_bytes, name_space);
  if (!extent) return miss(MissReason::kBusy);
  // Making room may have forgotten nothing of this block: it was not in RAM.
  block->host = *extent;
  block->reading = true;
  block->transient = !options.promote;
  auto waiting = std::make_unique<Waiting>();
  waiting->fetches.push_back(std::move(done));
  reading_.emplace(block, std::move(waiting));
  StartRead(block);
}

void TierStack::StartRead(Block* block) {
  const Status started = ssd_->Read(block->Entry(), {arena_->data(block->host), block->record_bytes},
                                    [this, block](Status status) { FinishRead(block, std::move(status)); });
  if (!started) FinishRead(block, tl::unexpected<Error>(started.error()));
}

void TierStack::FinishRead(Block* block, Status status) {
  const auto found = reading_.find(block);
  TIERCEL_CHECK(found != reading_.end());
  std::vector<FetchDone> fetches = std::move(found->second->fetches);
  reading_.erase(found);
  block->reading = false;
  if (status && !block->doomed) {
    index_.PushHottest(block);
    ++block->pins;  // Over the answers: the last fetcher may let go at once.
    ++pins_;
    for (FetchDone& done : fetches) Answer(block, done, Tier::kSsd);
    Unpin(block);
    return;
  }
  arena_->Free(block->host);
  block->host = {};
  MissReason reason = MissReason::kEvicted;
  if (block->doomed) {
    delete block;
  } else if (status.error().code == Code::kResourceExhausted || status.error().code == Code::kUnavailable) {
    reason = MissReason::kBusy;  // The block stays: the disk may come back.
    if (!block->ssd) Forget(block, MissReason::kEvicted);
  } else {
    if (status.error().code == Code::kDataLoss) {
      reason = MissReason::kCorrupt;
      ++stats_.corrupt;
    }
    block->ssd = {};
    Forget(block, reason);
  }
  for (FetchDone& done : fetches) {
    CountMiss(reason);
    Fetched fetched;
    fetched.reason = reason;
    done(std::move(fetched));
  }
}

void TierStack::Unpin(Block* block) {
  TIERCEL_CHECK(block->pins > 0);
  --pins_;
  if (--block->pins > 0) return;
  if (block->doomed) {
    if (block->reading) return;
    if (block->host) arena_->Free(block->host);
    delete block;
  } else if (block->transient && block->ssd) {
    DropHostCopy(block);
  }
}

// ---- storing -----------------------------------------------------------------------------------

Result<Reservation> TierStack::Reserve(const PutInfo& info, uint64_t record_bytes) {
  for (const bool lossy : {false, true}) {
    const Block* present = index_.Find(info.key, lossy);
    if (present == nullptr) continue;
    if (present->name_space != info.name_space) {
      return Fail(Code::kPermissionDenied, "this key belongs to another name space");
    }
    if (present->quality <= info.quality) {
      ++stats_.put_duplicates;
      return Fail(Code::kAlreadyExists, "an equal or better record is here");
    }
  }
  if (record_bytes > UINT32_MAX) return Fail(Code::kInvalidArgument, "a record of over 4 GiB");
  Result<Extent> extent = AllocateEvicting(record_bytes, info.name_space);
  if (!extent) {
    ++stats_.put_refused;
    return tl::unexpected<Error>(extent.error());
  }
  Reservation reservation;
  reservation.stack_ = this;
  reservation.extent_ = *extent;
  SsdEntry& entry = reservation.entry_;
  entry.key = info.key;
  entry.parent = info.parent;
  entry.anchor = info.anchor;
  entry.scope = info.scope;
  entry.name_space = info.name_space;
  entry.chain_index = info.chain_index;
  entry.quality = info.quality;
  entry.record_bytes = static_cast<uint32_t>(record_bytes);
  ++reserved_;
  return reservation;
}

Status TierStack::Publish(Reservation reservation, uint64_t raw_bytes, DurableDone durable) {
  TIERCEL_CHECK(reservation.stack_ == this);
  SsdEntry& entry = reservation.entry_;
  const bool lossy = entry.quality != QualityClass::kExact;
  for (const bool other : {false, true}) {
    const Block* present = index_.Find(entry.key, other);
    if (present == nullptr) continue;
    if (present->name_space != entry.name_space) {
      return Fail(Code::kPermissionDenied, "this key belongs to another name space");
    }
    if (present->quality <= entry.quality) {
      ++stats_.put_duplicates;
      return Fail(Code::kAlreadyExists, "an equal or better record is here");
    }
  }
  if (Block* worse = index_.Find(entry.key, lossy); worse != nullptr) Forget(worse, MissReason::kNone);
  entry.raw_bytes = raw_bytes;
  entry.generation = next_generation_++;
  Block* block = index_.Insert(entry);
  block->host = reservation.extent_;
  reservation.stack_ = nullptr;
  --reserved_;
  ++stats_.puts;
  index_.PushHottest(block);
  if (block->chain_index % kBlocksPerRun != 0) {
    Block* parent = index_.Find(block->parent, /*lossy=*/false);
    if (parent != nullptr) ++parent->resident_children;
  }
  WriteBehind(block, std::move(durable));
  return OkStatus();
}

void TierStack::WriteBehind(Block* block, DurableDone durable) {
  if (ssd_ == nullptr) {
    if (durable) durable(Fail(Code::kUnavailable, "this node has no SSD tier"));
    return;
  }
  ++block->pins;
  ++pins_;
  // The completion is shared, since Append may refuse it.
  auto told = std::make_shared<DurableDone>(std::move(durable));
  const Status queued =
      ssd_->Append(block->Entry(), {arena_->data(block->host), block->record_bytes},
                   [this, block, told](Result<SsdLocation> where) {
                     if (where) {
                       block->ssd = *where;
                       ++stats_.durable;
                     } else {
                       ++stats_.write_behind_skipped;
                     }
                     Unpin(block);
                     if (*told) (*told)(where ? OkStatus() : Status(tl::unexpected<Error>(where.error())));
                   });
  if (queued) return;
  ++stats_.write_behind_skipped;
  Unpin(block);
  if (*told) (*told)(queued);
}

// ---- forgetting --------------------------------------------------------------------------------

Result<Extent> TierStack::AllocateEvicting(uint64_t bytes, uint32_t name_space) {
  for (;;) {
    Result<Extent> extent = arena_->Allocate(bytes, name_space);
    if (extent || extent.error().code != Code::kResourceExhausted) return extent;
    if (!EvictOne(name_space)) return Fail(Code::kResourceExhausted, "everything in host memory is in use");
  }
}

bool TierStack::EvictOne(uint32_t prefer_name_space) {
  // Coldest first; a block with a resident child is passed over as long as another can go.
  Block* with_child = nullptr;
  Block* foreign = nullptr;
  for (Block* block = index_.coldest(); block != nullptr; block = block->hotter) {
    if (block->pins > 0 || block->reading) continue;
    if (block->resident_children > 0) {
      if (with_child == nullptr) with_child = block;
      continue;
    }
    if (block->name_space == prefer_name_space) {
      DropHostCopy(block);
      return true;
    }
    if (foreign == nullptr) foreign = block;
  }
  Block* victim = foreign != nullptr ? foreign : with_child;
  if (victim == nullptr) return false;
  DropHostCopy(victim);
  return true;
}

void TierStack::DropHostCopy(Block* block) {
  TIERCEL_CHECK(block->pins == 0 && !block->reading && block->host);
  index_.Unlink(block);
  arena_->Free(block->host);
  block->host = {};
  block->transient = false;
  ++stats_.evicted_host;
  if (block->chain_index % kBlocksPerRun != 0) {
    Block* parent = index_.Find(block->parent, /*lossy=*/false);
    if (parent != nullptr && parent->resident_children > 0) --parent->resident_children;
  }
  if (!block->ssd) {
    ++stats_.evicted;
    Forget(block, MissReason::kEvicted);
  }
}

void TierStack::Forget(Block* block, MissReason why) {
  if (index_.linked(block)) index_.Unlink(block);
  if (why != MissReason::kNone) index_.Remember(block->key, why);
  std::unique_ptr<Block> gone = index_.Remove(block);
  if (gone->reading || gone->pins > 0) {
    gone->doomed = true;
    (void)gone.release();  // The last pin, or the read's end, frees it.
    return;
  }
  if (gone->host) arena_->Free(gone->host);
}

void TierStack::MarkCorrupt(const BlockKey& key) {
  for (const bool lossy : {false, true}) {
    Block* block = index_.Find(key, lossy);
    if (block == nullptr) continue;
    ++stats_.corrupt;
    Forget(block, MissReason::kCorrupt);
  }
}

Result<uint64_t> TierStack::Clear(uint32_t name_space, const Scope& scope) {
  const bool every_scope = scope == Scope{};
  std::vector<Block*> cleared;
  index_.ForEach([&](Block* block) {
    if (block->name_space == name_space && (every_scope || block->scope == scope)) cleared.push_back(block);
  });
  if (ssd_ != nullptr) TIERCEL_TRY(ssd_->Clear(name_space, scope, next_generation_ - 1));
  for (Block* block : cleared) Forget(block, MissReason::kCleared);
  return cleared.size();
}

// ---- the rest ----------------------------------------------------------------------------------

size_t TierStack::Poll() { return ssd_ == nullptr ? 0 : ssd_->Poll(); }

Nanos TierStack::next_wakeup() const { return ssd_ == nullptr ? INT64_MAX : ssd_->next_wakeup(); }

void TierStack::Flush(DurableDone done) {
  if (ssd_ == nullptr) return done(OkStatus());
  ssd_->Flush(std::move(done));
}

void TierStack::Shutdown(Nanos timeout) {
  if (ssd_ == nullptr) return;
  ssd_->Shutdown(timeout);
  ssd_.reset();
}

TierStack::Stats TierStack::stats() const {
  Stats stats = stats_;
  stats.blocks = index_.size();
  stats.host_bytes = arena_->used_bytes();
  stats.host_capacity = arena_->capacity_bytes();
  stats.pinned = pins_;
  stats.index_bytes = index_.memory_bytes();
  index_.ForEach([&stats](const Block* block) {
    stats.record_bytes += block->record_bytes;
    stats.raw_bytes += block->raw_bytes;
    if (block->host) ++stats.host_blocks;
  });
  if (ssd_ != nullptr) stats.ssd = ssd_->stats();
  return stats;
}

std::vector<TierStack::Described> TierStack::Describe(uint32_t name_space, const BlockKey& key) const {
  std::vector<Described> found;
  for (const bool lossy : {false, true}) {
    const Block* block = index_.Find(key, lossy);
    if (block == nullptr || block->name_space != name_space) continue;
    found.push_back({block->host ? Tier::kHost : Tier::kSsd, block->Entry(), block->pins, block->hits});
  }
  return found;
}

Status TierStack::CorruptForTest(const BlockKey& key, uint64_t bit, Tier where) {
  if (!options_.fault_injection) {
    return Fail(Code::kPermissionDenied, "this node runs without fault injection");
  }
  Block* block = index_.Find(key, /*lossy=*/false);
  if (block == nullptr) block = index_.Find(key, /*lossy=*/true);
  if (block == nullptr) return Fail(Code::kNotFound, "no such block");
  if (where == Tier::kSsd) {
    if (ssd_ == nullptr || !block->ssd) return Fail(Code::kNotFound, "the block is not on SSD");
    return ssd_->CorruptForTest(block->Entry(), bit);
  }
  if (!block->host || block->reading) return Fail(Code::kNotFound, "the block is not in RAM");
  arena_->data(block->host)[bit / 8 % block->record_bytes] ^= static_cast<std::byte>(1u << (bit % 8));
  return OkStatus();
}

}  // namespace tiercel
