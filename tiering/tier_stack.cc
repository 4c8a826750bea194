#include "tiering/tier_stack.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tiercel {

namespace {

Tier TierOf(const BlockIndex::Found& found) {
  if (found.block != nullptr && found.block->host) return Tier::kHost;
  return found.block != nullptr && found.block->device ? Tier::kDevice : Tier::kSsd;
}

}  // namespace

// ---- handles -----------------------------------------------------------------------------------

Pin& Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    Release();
    stack_ = other.stack_;
    block_ = std::exchange(other.block_, nullptr);
  }
  return *this;
}

ByteSpan Pin::record() const { return {stack_->arena_->data(block_->host), block_->record_bytes}; }

void Pin::Release() {
  if (block_ != nullptr) stack_->Unpin(std::exchange(block_, nullptr));
}

Reservation::Reservation(Reservation&& other) noexcept
    : stack_(std::exchange(other.stack_, nullptr)),
      extent_(other.extent_),
      entry_(other.entry_),
      hint_(other.hint_) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    stack_ = std::exchange(other.stack_, nullptr);
    extent_ = other.extent_;
    entry_ = other.entry_;
    hint_ = other.hint_;
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

Result<std::unique_ptr<TierStack>> TierStack::Create(const Options& options, const Clock& clock,
                                                     std::unique_ptr<SsdStore> ssd,
                                                     std::unique_ptr<DeviceTier> device) {
  TIERCEL_ASSIGN(auto arena, HostArena::Create(options.host));
  auto stack = std::unique_ptr<TierStack>(
      new TierStack(options, clock, std::move(arena), std::move(ssd), std::move(device)));
  if (stack->ssd_ != nullptr) {
    TIERCEL_ASSIGN(const std::vector<SsdEntry> entries, stack->ssd_->Recover());
    stack->Index(entries);
    stack->ssd_->SetDropListener([raw = stack.get()](const std::vector<SsdEntry>& dropped) {
      for (const SsdEntry& entry : dropped) {
        const auto found = raw->index_.Find(entry.key, entry.quality != QualityClass::kExact);
        if (!found || found.ssd != entry.where) continue;  // Stored anew since.
        if (found.block != nullptr) {
          found.block->ssd = {};
          continue;
        }
        ++raw->stats_.evicted;
        raw->Forget(found, MissReason::kEvicted);
      }
    });
  }
  return stack;
}

TierStack::TierStack(const Options& options, const Clock& clock, std::unique_ptr<HostArena> arena,
                     std::unique_ptr<SsdStore> ssd, std::unique_ptr<DeviceTier> device)
    : options_(options),
      clock_(clock),
      arena_(std::move(arena)),
      ssd_(std::move(ssd)),
      device_(std::move(device)),
      index_(options.max_ghosts),
      what_if_(arena_->capacity_bytes(), options.seed) {
  policy_ = options.make_policy ? options.make_policy(options.seed)
                                : *MakePolicy(PolicyNames().front(), options.seed);
}

TierStack::~TierStack() {
  Shutdown(0);
  TIERCEL_CHECK(pins_ == 0 && reserved_ == 0);
}

void TierStack::Index(const std::vector<SsdEntry>& entries) {
  // What was cleared holds no entry any more, yet its generations are spent.
  next_generation_ = std::max(next_generation_, ssd_->last_generation() + 1);
  constexpr size_t kAhead = 64;  // Millions of them at a start: waits for memory overlap.
  std::vector<BlockKey> ahead;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i % kAhead == 0) {
      ahead.clear();
      for (size_t k = i; k < std::min(i + kAhead, entries.size()); ++k) ahead.push_back(entries[k].key);
      index_.Prefetch(ahead);
    }
    const SsdEntry& entry = entries[i];
    next_generation_ = std::max(next_generation_, entry.generation + 1);
    const auto found = index_.Find(entry.key, entry.quality != QualityClass::kExact);
    if (found && entry.generation <= index_.Entry(found).generation) continue;
    if (found) (void)index_.Remove(found);
    index_.InsertCold(entry);
  }
}

// ---- looking -----------------------------------------------------------------------------------

BlockIndex::Found TierStack::Select(uint32_t name_space, const BlockKey& key,
                                    QualityClass min_class, Prefer prefer,
                                    MissReason* reason) const {
  BlockIndex::Found exact = index_.Find(key, /*lossy=*/false);
  BlockIndex::Found lossy = index_.Find(key, /*lossy=*/true);
  if (exact && exact.name_space != name_space) exact = {};
  if (lossy && lossy.name_space != name_space) lossy = {};
  bool expired = false;
  for (BlockIndex::Found* found : {&exact, &lossy}) {
    if (!*found || !Expired(*found)) continue;
    *found = {};
    expired = true;
  }
  if (lossy && lossy.quality > min_class) {
    if (!exact) *reason = MissReason::kOtherClass;
    lossy = {};
    if (!exact) return {};
  }
  if (!exact && !lossy) {
    *reason = expired ? MissReason::kExpired : index_.WhyAbsent(key);
    if (*reason == MissReason::kNeverSeen && options_.explain_absent) {
      const MissReason better = options_.explain_absent(name_space, key);
      if (better != MissReason::kNone) *reason = better;
    }
    return {};
  }
  if (exact && lossy) {
    const bool smaller = prefer == Prefer::kSmall && lossy.record_bytes < exact.record_bytes;
    return smaller ? lossy : exact;
  }
  return exact ? exact : lossy;
}

MatchEntry TierStack::Lookup(uint32_t name_space, const BlockKey& key, QualityClass min_class,
                             Prefer prefer) const {
  MatchEntry entry;
  const BlockIndex::Found found = Select(name_space, key, min_class, prefer, &entry.reason);
  if (!found) return entry;
  entry.tier = TierOf(found);
  entry.quality = found.quality;
  entry.record_bytes = found.record_bytes;
  return entry;
}

// Either record of a key, where the policy has it; the exact one before the lossy one.
Block* TierStack::InRam(uint32_t name_space, const BlockKey& key) const {
  for (const bool lossy : {false, true}) {
    Block* block = index_.Find(key, lossy).block;
    if (block != nullptr && block->name_space == name_space && policy_->Holds(*block)) return block;
  }
  return nullptr;
}

void TierStack::Touch(uint32_t name_space, const std::vector<BlockKey>& keys,
                      const BlockKey& parent, ReuseHint hint) {
  index_.Prefetch(keys);
  BlockUse use;
  use.now = clock_.Now();
  use.hint = hint;
  if (parent != BlockKey{}) use.parent = InRam(name_space, parent);
  for (const BlockKey& key : keys) {
    Block* first = nullptr;
    for (const bool lossy : {false, true}) {
      Block* block = index_.Find(key, lossy).block;
      if (block == nullptr || block->name_space != name_space || !policy_->Holds(*block)) continue;
      if (!block->read_ahead) policy_->Touch(*block, use);  // It was used when it came.
      UsedAgain(block, use.parent);
      if (first == nullptr) first = block;
    }
    use.grandparent = use.parent;
    use.parent = first;
  }
}

void TierStack::AnswerMiss(FetchDone& done, MissReason reason) {
  ++stats_.misses;
  ++stats_.reasons[static_cast<size_t>(reason)];
  Fetched fetched;
  fetched.reason = reason;
  done(std::move(fetched));
}

void TierStack::Answer(Block* block, FetchDone& done, Tier tier) {
  ++block->pins;
  ++pins_;
  ++block->hits;
  ++(tier == Tier::kHost ? stats_.hits_host : tier == Tier::kDevice ? stats_.hits_device : stats_.hits_ssd);
  Fetched fetched;
  fetched.pin = Pin(this, block);
  fetched.tier = tier;
  done(std::move(fetched));
}

void TierStack::Fetch(uint32_t name_space, const BlockKey& key, const FetchOptions& options,
                      FetchDone done) {
  MissReason reason = MissReason::kUnknown;
  const BlockIndex::Found found = Select(name_space, key, options.min_class, options.prefer, &reason);
  Block* block = found.block;
  if (block != nullptr && block->host && !block->reading) {
    if (VerifyAdopted(block)) {
      if (block->read_ahead) EndReadAhead(block, /*used=*/true);
      what_if_.Asked(name_space, key, true);
      return Answer(block, done, Tier::kHost);
    }
    return found.ssd ? Fetch(name_space, key, options, std::move(done)) : AnswerMiss(done, MissReason::kCorrupt);
  }
  what_if_.Asked(name_space, key, static_cast<bool>(found));
  if (!found) return AnswerMiss(done, reason);
  if (options.deadline <= clock_.Now()) return AnswerMiss(done, MissReason::kDeadline);
  next_deadline_ = std::min(next_deadline_, options.deadline);
  if (block != nullptr && block->reading) {
    ++stats_.reads_shared;
    block->transient = block->transient && !options.promote;
    Waiting& joined = *reading_[block];
    joined.fetches.push_back({std::move(done), options.deadline});
    if (options.reuse_hint != ReuseHint::kUnknown) joined.hint = options.reuse_hint;
    return;
  }
  if ((block == nullptr && ssd_ == nullptr) || reading_.size() >= options_.max_waiting_fetches) {
    return AnswerMiss(done, MissReason::kBusy);
  }
  // Making room forgets blocks that are in RAM only, so never one on SSD; and on the device none that
  // is being read.
  if (block != nullptr) block->reading = true;
  Result<Extent> extent = AllocateEvicting(found.record_bytes, name_space);
  if (!extent) {
    if (block != nullptr) block->reading = false;
    return AnswerMiss(done, MissReason::kBusy);
  }
  if (block == nullptr) block = index_.Warm(found);
  block->host = *extent;
  block->reading = true;
  block->transient = !options.promote;
  auto waiting = std::make_unique<Waiting>();
  waiting->fetches.push_back({std::move(done), options.deadline});
  waiting->hint = options.reuse_hint;
  reading_.emplace(block, std::move(waiting));
  StartRead(block);
}

void TierStack::ExpireFetches() {
  const Nanos now = clock_.Now();
  if (now < next_deadline_) return;
  next_deadline_ = INT64_MAX;
  std::vector<FetchDone> late;
  for (auto& [block, waiting] : reading_) {
    std::erase_if(waiting->fetches, [&](Waiting::One& one) {
      if (one.deadline > now) {
        next_deadline_ = std::min(next_deadline_, one.deadline);
        return false;
      }
      late.push_back(std::move(one.done));
      return true;
    });
  }
  for (FetchDone& done : late) AnswerMiss(done, MissReason::kDeadline);
}

void TierStack::StartRead(Block* block) {
  const MutableByteSpan room(arena_->data(block->host), block->record_bytes);
  auto done = [this, block](Status status) { FinishRead(block, std::move(status)); };
  const Status started = block->device ? device_->Load(block->device, room, std::move(done))
                                       : ssd_->Read(block->EntryOnSsd(), room, std::move(done));
  if (!started) FinishRead(block, tl::unexpected<Error>(started.error()));
}

void TierStack::FinishRead(Block* block, Status status) {
  const auto found = reading_.find(block);
  TIERCEL_CHECK(found != reading_.end());
  std::vector<Waiting::One> fetches = std::move(found->second->fetches);
  const ReuseHint hint = found->second->hint;
  reading_.erase(found);
  block->reading = false;
  if (block->read_ahead) {
    --reading_ahead_;
    const bool good = status && !block->doomed;
    if (!good || !fetches.empty()) EndReadAhead(block, good);
  }
  const Tier tier = block->device ? Tier::kDevice : Tier::kSsd;
  if (status && !block->doomed) {
    EnterRam(block, hint, /*came_back=*/true);
    ++block->pins;  // Over the answers: the last fetcher may let go at once.
    ++pins_;
    for (Waiting::One& one : fetches) Answer(block, one.done, tier);
    Unpin(block);
    return;
  }
  arena_->Free(std::exchange(block->host, {}));
  MissReason reason = MissReason::kEvicted;
  if (block->doomed) {
    reason = index_.WhyAbsent(block->key);
    if (reason == MissReason::kNeverSeen) reason = MissReason::kEvicted;
    if (block->device) LeaveDevice(block);
    delete block;
  } else if (status.error().code == Code::kResourceExhausted ||
             status.error().code == Code::kUnavailable) {
    // The block stays: the disk may come back, and the device was only busy.
    reason = MissReason::kBusy;
    if (block->device && !device_->available()) LeaveDevice(block);
    if (!block->device) {
      block->ssd ? index_.Cool(block) : Forget(block, MissReason::kEvicted);
    }
  } else {
    if (status.error().code == Code::kDataLoss) {
      reason = MissReason::kCorrupt;
      ++stats_.corrupt;
    }
    Forget(block, reason);
  }
  for (Waiting::One& one : fetches) AnswerMiss(one.done, reason);
}

void TierStack::Unpin(Block* block) {
  TIERCEL_CHECK(block->pins > 0);
  --pins_;
  if (--block->pins > 0) return;
  if (block->doomed) {
    arena_->Free(block->host);
    delete block;
  } else if (block->transient && (block->ssd || block->device)) {
    DropHostCopy(block);
  } else {
    policy_->Unpinned(*block);
  }
}

// ---- storing -----------------------------------------------------------------------------------

// Is there a place for such a record? What is here and too old makes way.
Status TierStack::MayStore(uint32_t name_space, const BlockKey& key, QualityClass quality) {
  for (const bool lossy : {false, true}) {
    const BlockIndex::Found present = index_.Find(key, lossy);
    if (!present) continue;
    if (present.name_space != name_space) {
      return Fail(Code::kPermissionDenied, "this key belongs to another name space");
    }
    if (Expired(present)) {
      Forget(present, MissReason::kExpired);
      continue;
    }
    if (present.quality <= quality) {
      ++stats_.put_duplicates;
      return Fail(Code::kAlreadyExists, "an equal or better record is here");
    }
  }
  return OkStatus();
}

Result<Reservation> TierStack::Reserve(const PutInfo& info, uint64_t record_bytes) {
  TIERCEL_TRY(MayStore(info.name_space, info.key, info.quality));
  if (record_bytes > UINT32_MAX) return Fail(Code::kInvalidArgument, "a record of over 4 GiB");
  // What comes before it in its chain is no room for it.
  Block* parent = info.chain_index > 0 ? InRam(info.name_space, info.parent) : nullptr;
  if (parent != nullptr) ++parent->pins;
  Result<Extent> extent = AllocateEvicting(record_bytes, info.name_space);
  if (parent != nullptr) {
    --parent->pins;
    policy_->Unpinned(*parent);
  }
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
  reservation.hint_ = info.reuse_hint;
  ++reserved_;
  return reservation;
}

Status TierStack::Publish(Reservation reservation, uint64_t raw_bytes, DurableDone durable) {
  TIERCEL_CHECK(reservation.stack_ == this);
  SsdEntry& entry = reservation.entry_;
  const bool lossy = entry.quality != QualityClass::kExact;
  TIERCEL_TRY(MayStore(entry.name_space, entry.key, entry.quality));
  if (const auto worse = index_.Find(entry.key, lossy)) Forget(worse, MissReason::kNone);
  entry.raw_bytes = raw_bytes;
  entry.generation = next_generation_++;
  entry.stored = clock_.UnixSeconds();
  Block* block = index_.Insert(entry);
  block->host = reservation.extent_;
  reservation.stack_ = nullptr;
  --reserved_;
  ++stats_.puts;
  const bool came_back = index_.WhyAbsent(block->key) == MissReason::kEvicted;
  EnterRam(block, reservation.hint_, came_back);
  what_if_.Stored(entry.name_space, entry.key, entry.record_bytes);
  if (durable || Admit(block, came_back)) WriteBehind(block, std::move(durable));
  return OkStatus();
}

// ---- forgetting --------------------------------------------------------------------------------

void TierStack::EnterRam(Block* block, ReuseHint hint, bool came_back) {
  arena_->SetOwner(block->host, block);
  BlockUse use;
  use.now = clock_.Now();
  use.hint = hint;
  use.came_back = came_back;
  if (block->chain_index > 0) use.parent = InRam(block->name_space, block->parent);
  if (use.parent != nullptr && block->chain_index > 1) {
    use.grandparent = InRam(block->name_space, use.parent->parent);
  }
  policy_->Add(*block, use);
  // A run is placed and found as one; across runs nothing is promised.
  block->counted = block->chain_index % kBlocksPerRun != 0;
  if (block->counted) index_.ChildEntered(block->parent);
  DemoteAhead(block->name_space);
}

void TierStack::LeaveRam(Block* block) {
  if (!policy_->Holds(*block)) return;
  if (block->read_ahead) EndReadAhead(block, /*used=*/false);
  policy_->Remove(*block);
  arena_->SetOwner(block->host, nullptr);
  if (std::exchange(block->counted, false)) index_.ChildLeft(block->parent);
}

void TierStack::DropHostCopy(Block* block) {
  TIERCEL_CHECK(block->pins == 0 && !block->reading && block->host);
  LeaveRam(block);
  evicted_since_look_ += block->host.bytes;
  arena_->Free(std::exchange(block->host, {}));
  block->transient = false;
  ++stats_.evicted_host;
  if (block->device) return;
  if (!block->ssd) {
    ++stats_.evicted;
    return Forget(block, MissReason::kEvicted);
  }
  index_.Cool(block);
}

void TierStack::Forget(Block* block, MissReason why) {
  LetGo(block);
  LeaveRam(block);
  if (why == MissReason::kExpired) ++stats_.expired;
  if (why != MissReason::kNone) index_.Remember(block->key, why);
  if (block->device && !block->reading) LeaveDevice(block);
  std::unique_ptr<Block> gone = index_.Remove(block);
  if (gone->reading || gone->pins > 0) {
    gone->doomed = true;
    (void)gone.release();  // The last pin, or the read's end, frees it.
    return;
  }
  if (gone->host) arena_->Free(gone->host);
}

void TierStack::Forget(const BlockIndex::Found& found, MissReason why) {
  if (found.block != nullptr) return Forget(found.block, why);
  if (why == MissReason::kExpired) ++stats_.expired;
  if (why != MissReason::kNone) index_.Remember(index_.Entry(found).key, why);
  (void)index_.Remove(found);
}

void TierStack::MarkCorrupt(const BlockKey& key) {
  for (const bool lossy : {false, true}) {
    const BlockIndex::Found found = index_.Find(key, lossy);
    if (!found) continue;
    ++stats_.corrupt;
    Forget(found, MissReason::kCorrupt);
  }
}

Result<uint64_t> TierStack::Clear(uint32_t name_space, const Scope& scope) {
  const bool every_scope = scope == Scope{};
  std::vector<BlockIndex::Found> cleared;
  index_.ForEach([&](const BlockIndex::Found& found) {
    if (found.name_space != name_space) return;
    if (every_scope || index_.Entry(found).scope == scope) cleared.push_back(found);
  });
  if (ssd_ != nullptr) TIERCEL_TRY(ssd_->Clear(name_space, scope, next_generation_ - 1));
  for (const BlockIndex::Found& found : cleared) Forget(found, MissReason::kCleared);
  return cleared.size();
}

// ---- the rest ----------------------------------------------------------------------------------

size_t TierStack::Poll() {
  size_t happened = ssd_ == nullptr ? 0 : ssd_->Poll();
  if (device_ != nullptr) happened += device_->Poll();
  ExpireFetches();
  EndKeeps();
  ForgetExpired();
  StartReadsAhead();
  return happened;
}

Nanos TierStack::next_wakeup() const {
  return ssd_ == nullptr ? INT64_MAX : std::min(ssd_->next_wakeup(), next_deadline_);
}

void TierStack::Flush(DurableDone done) {
  if (ssd_ == nullptr) return done(OkStatus());
  ssd_->Flush(std::move(done));
}

void TierStack::Shutdown(Nanos timeout) {
  ahead_.clear();
  if (device_ != nullptr) device_->Shutdown();
  if (ssd_ != nullptr) {
    ssd_->Shutdown(timeout);
    ssd_.reset();
    TIERCEL_CHECK(reading_.empty());
  }
  while (!kept_.empty()) LetGo(kept_.begin()->first);
}

TierStack::Stats TierStack::stats() const {
  Stats stats = stats_;
  stats.blocks = index_.size();
  stats.host_bytes = arena_->used_bytes();
  stats.host_capacity = arena_->capacity_bytes();
  stats.pinned = pins_;
  stats.kept = kept_.size();
  for (const auto& [name_space, bytes] : kept_of_) stats.kept_bytes += bytes;
  stats.index = index_.memory();
  stats.record_bytes = index_.record_bytes();
  stats.raw_bytes = index_.raw_bytes();
  stats.host_blocks = policy_->size();
  stats.reads_waiting = reading_.size();
  if (stats.evicting_allocations > 0) {
    stats.fragmentation = static_cast<double>(stats.evicted_for_hole_bytes) /
                          static_cast<double>(stats.evicting_allocations) /
                          static_cast<double>(stats.host_capacity);
  }
  if (ssd_ != nullptr) stats.ssd = ssd_->stats();
  stats.what_if = what_if_.curves();
  stats.has_device = device_ != nullptr;
  if (device_ != nullptr) {
    stats.device = device_->stats();
    stats.device_why = device_->why();
  }
  return stats;
}

std::vector<TierStack::Described> TierStack::Describe(uint32_t name_space,
                                                      const BlockKey& key) const {
  std::vector<Described> found;
  for (const bool lossy : {false, true}) {
    const BlockIndex::Found record = index_.Find(key, lossy);
    if (!record || record.name_space != name_space) continue;
    const Block* block = record.block;
    found.push_back({TierOf(record), index_.Entry(record),
                     block != nullptr ? block->pins : 0, index_.Hits(record)});
  }
  return found;
}

Status TierStack::CorruptForTest(const BlockKey& key, uint64_t bit, Tier where) {
  if (!options_.fault_injection) {
    return Fail(Code::kPermissionDenied, "this node runs without fault injection");
  }
  BlockIndex::Found found = index_.Find(key, /*lossy=*/false);
  if (!found) found = index_.Find(key, /*lossy=*/true);
  if (!found) return Fail(Code::kNotFound, "no such block");
  Block* block = found.block;
  if (where == Tier::kSsd) {
    if (ssd_ == nullptr || !found.ssd) return Fail(Code::kNotFound, "the block is not on SSD");
    return ssd_->CorruptForTest(block != nullptr ? block->EntryOnSsd() : index_.Entry(found), bit);
  }
  if (block == nullptr || !block->host || block->reading) {
    return Fail(Code::kNotFound, "the block is not in RAM");
  }
  if (arena_->adopted(block->host.slab)) {
    return Fail(Code::kFailedPrecondition, "the block came from the process before this one: its slab is read-only");
  }
  arena_->data(block->host)[bit / 8 % block->record_bytes] ^=
      static_cast<std::byte>(1u << (bit % 8));
  return OkStatus();
}

}  // namespace tiercel
