// TierStack is a shard's blocks: which are here, in which tier, who holds them, and which are
// forgotten next. The only class that knows more than one tier.
//
//   Reserve --> fill --> (caller verifies) --> Publish --> in RAM --> written behind to SSD
//   Lookup: what is here; nothing changes    Fetch: a Pin, from RAM at once or from SSD at a later Poll
//   Touch: this chain was used               Keep: it stays in RAM for a while
//   (no room) --> the coldest unpinned block makes it, of a chain the deepest
//
// A key holds at most one exact and one lossy record. A better class is always admitted, an equal
// or worse one of the same kind is told kAlreadyExists.
//
// What is written to SSD: all, while at least half of what may ever be written at once of the day's
// budget is left; else what is used a second time, which is put again after it was forgotten, or
// touched. The blocks that one request puts are written or not from the first on that is not, and
// none is whose parent was passed over: no hole makes what lies behind it worthless.
//
// Where there is a device tier, blocks that are next to leave RAM are copied there ahead of that, and
// come back from there; a Pin is to RAM all the same.
//
// A name space evicts its own blocks; from another it takes a whole slab at a time, and only one
// that was used longer ago than its own coldest block, or when it has nothing of its own that can
// go, or when it has less than its reserve. None is taken that its owner needs for its own reserve,
// and none by a name space that is at its limit.
//
// A name space may say how long its blocks are served after they were put (Options::time_to_live). What is
// older is a miss, and its memory is taken back within minutes; on SSD its bytes go with their segment.
//
// Invariants
//   A block is visible only between Publish and its eviction; its bytes never change while it is.
//   While a Pin lives its bytes neither move nor are reused. Pins never outlive the stack.
//   Eviction has a victim as long as a block of the name space in RAM is neither pinned nor being
//   written. A block with a resident child in its run is passed over, which leaves its deepest
//   descendant; only the giving up of a whole slab asks nothing about children.
//   Half of RAM pinned by writing to SSD is enough: beyond that, blocks are written behind only
//   where Publish was given a `durable`. A block of another name space is as absent as one that was
//   never stored. Stats().misses is the sum over its reasons.
//
// Ownership: the stack owns arena, index, store and device. Reservations and Pins borrow it, are move-only,
// and are given back on the owner's thread. Threads: the shard's owner alone; callbacks run inside
// Poll, Fetch or Shutdown. Errors: named at each call.
#ifndef TIERCEL_TIERING_TIER_STACK_H_
#define TIERCEL_TIERING_TIER_STACK_H_

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "proto/block_key.h"
#include "proto/frame.h"
#include "proto/types.h"
#include "tiering/block_index.h"
#include "tiering/device_tier.h"
#include "tiering/eviction.h"
#include "tiering/host_arena.h"
#include "tiering/ssd_store.h"
#include "tiering/what_if.h"

namespace tiercel {

struct SnapshotRecord;
class TierStack;

// Keeps one record in RAM, where it is, while it lives.
class Pin {
 public:
  Pin() = default;
  Pin(Pin&& other) noexcept : stack_(other.stack_), block_(other.block_) { other.block_ = nullptr; }
  Pin& operator=(Pin&& other) noexcept;
  ~Pin() { Release(); }

  explicit operator bool() const { return block_ != nullptr; }
  ByteSpan record() const;
  QualityClass quality() const { return block_->quality; }
  uint64_t generation() const { return block_->generation; }
  const Scope& scope() const { return block_->scope; }
  void Release();

 private:
  friend class TierStack;
  Pin(TierStack* stack, Block* block) : stack_(stack), block_(block) {}
  TierStack* stack_ = nullptr;
  Block* block_ = nullptr;
};

// Room in RAM for one record that is not a block yet; dropping it gives the room back.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { Release(); }

  explicit operator bool() const { return stack_ != nullptr; }
  MutableByteSpan record() const;

 private:
  friend class TierStack;
  void Release();
  TierStack* stack_ = nullptr;
  Extent extent_;
  SsdEntry entry_;
  ReuseHint hint_ = ReuseHint::kUnknown;
};

class TierStack {
 public:
  // Bytes of slabs. Others borrow what a name space leaves unused of its reserve, and give it back
  // when it asks.
  struct HostQuota {
    uint64_t reserve = 0;
    uint64_t limit = UINT64_MAX;
  };
  struct Options {
    HostArena::Options host;
    uint64_t max_ghosts = 1 << 20;  // Forgotten keys remembered, to tell evicted from never seen.
    uint64_t max_waiting_fetches = 4096;  // SSD fetches under way.
    bool fault_injection = false;         // Allows CorruptForTest.
    uint64_t seed = 1;  // For policies that draw lots; the base policy draws none.
    // Empty: the first of PolicyNames.
    std::function<std::unique_ptr<EvictionPolicy>(uint64_t seed)> make_policy;
    // Asked about a key that was never seen here, by one who knows more about keys than their bytes
    // (the scopes that an engine hash is stored under, say); empty, or kNone: never_seen it is.
    std::function<MissReason(uint32_t name_space, const BlockKey& key)> explain_absent;
    // Checks a record of the process before this one, when it is first served; empty: it is not checked.
    std::function<Status(ByteSpan record)> verify_record;
    // What a name space may have of RAM; empty: no quotas.
    std::function<HostQuota(uint32_t name_space)> host_quota;
    // The worst class that a name space lets its exact blocks have on SSD; empty: exact. Then what
    // is written is the key's lossy record, and the exact one stays in RAM alone, as long as it
    // stays. Not for blocks that Publish was given a `durable` for.
    std::function<QualityClass(uint32_t name_space)> demote_to;
    // False: to SSD goes only what is used a second time, whatever the budget.
    bool admit_all = true;
    // In seconds since a block was put, after which it is not served; 0: for ever. Empty: for ever. To
    // the second in RAM, up to a minute early from SSD.
    std::function<uint32_t(uint32_t name_space)> time_to_live;
    // Bytes that Keep may hold for a name space; empty, or none said: an eighth of RAM.
    std::function<std::optional<uint64_t>(uint32_t name_space)> keep_limit;
    uint32_t max_read_ahead = 16;  // Reads from SSD at once that nobody waits for; 0: none.
  };

  struct PutInfo {
    BlockKey key;
    BlockKey parent;
    PlacementKey anchor;
    Scope scope;
    uint32_t name_space = 0;
    uint32_t chain_index = 0;
    QualityClass quality = QualityClass::kExact;
    ReuseHint reuse_hint = ReuseHint::kUnknown;  // What the writer knows of the chain's future.
  };

  struct Fetched {
    Pin pin;  // Empty: a miss, for the reason.
    MissReason reason = MissReason::kNone;
    Tier tier = Tier::kNone;  // Where it was found.
  };
  struct FetchOptions {
    QualityClass min_class = QualityClass::kExact;
    Prefer prefer = Prefer::kGood;
    bool promote = true;         // Keep the RAM copy after the pins are gone.
    Nanos deadline = INT64_MAX;  // Then it is a miss, though the read goes on.
    ReuseHint reuse_hint = ReuseHint::kUnknown;
  };
  using FetchDone = UniqueFunction<void(Fetched)>;
  // OK once the record is on SSD; an error when it will not be.
  using DurableDone = UniqueFunction<void(Status)>;

  // ssd and device may be null: no such tier. Recovers what is on SSD.
  static Result<std::unique_ptr<TierStack>> Create(const Options& options, const Clock& clock,
                                                   std::unique_ptr<SsdStore> ssd,
                                                   std::unique_ptr<DeviceTier> device = nullptr);
  ~TierStack();
  TierStack(const TierStack&) = delete;
  TierStack& operator=(const TierStack&) = delete;

  MatchEntry Lookup(uint32_t name_space, const BlockKey& key, QualityClass min_class,
                    Prefer prefer) const;
  // Makes the Lookups and Fetches of these keys that follow cheaper; changes nothing else.
  void Prefetch(std::span<const BlockKey> keys) const { index_.Prefetch(keys); }

  // Consecutive keys of one chain were used: the deepest becomes the first of them to go. parent is
  // the key before them, zero where there is none.
  void Touch(uint32_t name_space, const std::vector<BlockKey>& keys, const BlockKey& parent = {},
             ReuseHint hint = ReuseHint::kUnknown);

  // These keys of one chain, in order, were asked about: those of them that are on SSD alone are
  // read into RAM, as far as the head is here without a gap, and as there is room: bytes that no
  // block has, or a block that is none of the policy's hottest. What was read so and not used is at
  // most an eighth of RAM, what waits at most 256 blocks; beyond that nothing is read ahead.
  void ReadAhead(uint32_t name_space, std::span<const BlockKey> keys, QualityClass min_class, Prefer prefer);

  // The record that a Fetch would serve stays in RAM for so long, whoever comes or goes, until another name
  // space wants its reserve back; 0: no longer than others. One that is on SSD alone is read first, and
  // kept if that goes well. A later end counts, an earlier one does not.
  // Errors: kNotFound: there is none; kResourceExhausted: all that its name space may keep is kept.
  Status Keep(uint32_t name_space, const BlockKey& key, QualityClass min_class, Prefer prefer,
              Nanos how_long);

  // A RAM hit or a miss runs done before Fetch returns; an SSD hit from a later Poll. Two fetches
  // of one block share one read. Counts the hit or miss.
  void Fetch(uint32_t name_space, const BlockKey& key, const FetchOptions& options, FetchDone done);

  // Errors: kAlreadyExists: an equal or better record is here (which is success for a writer);
  // kResourceExhausted: everything in RAM is pinned; kInvalidArgument: too large, or zero bytes;
  // kPermissionDenied: the key belongs to another name space.
  Result<Reservation> Reserve(const PutInfo& info, uint64_t record_bytes);
  // The record is whole and verified: from now on it is a block. durable may be null.
  // Errors: kAlreadyExists: another publisher was first.
  Status Publish(Reservation reservation, uint64_t raw_bytes, DurableDone durable);

  // Forgets a block that was found wrong outside.
  void MarkCorrupt(const BlockKey& key);
  // Forgets a name space, or one scope of it (all zero: every scope); survives a crash. Returns how
  // many.
  Result<uint64_t> Clear(uint32_t name_space, const Scope& scope);

  // A planned restart: what this stack has in RAM, for the process that follows. Its slabs' memfds go
  // along, in the order of Left::slabs; from here on nothing may change until the stack goes.
  struct Left {
    std::vector<uint32_t> slabs;  // Places in arena().
    std::vector<Block*> blocks;   // Least recently used first.
    uint64_t bytes = 0;           // Of the snapshot.
  };
  Left PlanSnapshot() const;
  void WriteSnapshot(const Left& left, uint32_t shard, uint32_t shards, MutableByteSpan room) const;
  // The other half, once, before anything else: the blocks are there, in the order of their last use,
  // and each is verified before it is served for the first time. What is as new on SSD keeps its place
  // there. Errors: kFailedPrecondition, kDataLoss, kInvalidArgument: nothing is adopted, and why.
  struct Adopted {
    uint64_t blocks = 0;
    uint64_t bytes = 0;
    uint64_t left_out = 0;  // Older than what is on SSD, or of slabs that found no room.
  };
  Result<Adopted> Adopt(ByteSpan snapshot, uint32_t shard, uint32_t shards, std::vector<FileDescriptor> slabs);

  size_t Poll();
  Nanos next_wakeup() const;
  SsdStore* ssd() { return ssd_.get(); }
  const DeviceTier* device() const { return device_.get(); }
  HostArena& arena() { return *arena_; }

  // Seals and waits for the disk; done runs from Poll.
  void Flush(DurableDone done);
  void Shutdown(Nanos timeout);

  struct Stats {
    uint64_t blocks = 0;  // Records, of either kind.
    uint64_t host_blocks = 0;
    uint64_t host_bytes = 0;  // Allocated, whole extents.
    uint64_t host_capacity = 0;
    uint64_t record_bytes = 0;  // Of all blocks, either tier.
    uint64_t raw_bytes = 0;
    uint64_t pinned = 0;
    uint64_t hits_host = 0;
    uint64_t hits_device = 0;
    uint64_t hits_ssd = 0;
    uint64_t misses = 0;
    std::array<uint64_t, kMissReasons> reasons{};
    uint64_t puts = 0;
    uint64_t put_duplicates = 0;
    uint64_t put_refused = 0;
    uint64_t evicted_host = 0;  // Left RAM; may be on SSD still.
    uint64_t evicted_device = 0;  // Left the device, and were in RAM no more.
    uint64_t evicted = 0;       // Forgotten altogether to make room.
    // An allocation that had to evict although bytes were free could not use them: how many bytes,
    // all such allocations together, how many allocations, and their mean as a share of RAM.
    uint64_t evicted_for_hole_bytes = 0;
    uint64_t evicting_allocations = 0;
    double fragmentation = 0;
    uint64_t slabs_taken = 0;  // From another name space.
    uint64_t reads_waiting = 0;
    uint64_t reads_shared = 0;  // Fetches that joined another's read.
    uint64_t durable = 0;
    uint64_t write_behind_skipped = 0;
    uint64_t demoted = 0;  // Written as a lossy record of their own.
    uint64_t passed_over = 0;    // Not written for the budget's sake, when they were put;
    uint64_t second_access = 0;  // and those written when they were used again.
    // Read ahead of being asked for; of those, what was asked for, and what left RAM before; and what
    // would have been read had there been room.
    uint64_t read_ahead = 0;
    uint64_t read_ahead_used = 0;
    uint64_t read_ahead_wasted = 0;
    uint64_t read_ahead_refused = 0;
    uint64_t kept = 0;  // Blocks that Keep holds in RAM now,
    uint64_t kept_bytes = 0;
    uint64_t kept_refused = 0;
    uint64_t expired = 0;  // Forgotten because of their name space's time to live.
    uint64_t corrupt = 0;
    uint64_t adopted_verified = 0;  // Blocks of the process before this one, when first served.
    BlockIndex::Memory index;
    SsdStore::Stats ssd;
    std::map<uint32_t, WhatIf::Curve> what_if;  // By name space.
    bool has_device = false;
    std::string device_why;  // Empty while it works.
    DeviceTier::Stats device;
  };
  Stats stats() const;

  struct Described {
    Tier tier = Tier::kNone;
    SsdEntry entry;
    uint32_t pins = 0;
    uint64_t hits = 0;
  };
  std::vector<Described> Describe(uint32_t name_space, const BlockKey& key) const;

  // With Options::fault_injection only: flips one bit of a stored record, in RAM or on SSD.
  Status CorruptForTest(const BlockKey& key, uint64_t bit, Tier where);

 private:
  friend class Pin;
  friend class Reservation;
  struct Waiting {  // Fetches of one block that is being read.
    struct One {
      FetchDone done;
      Nanos deadline;
    };
    std::vector<One> fetches;
    ReuseHint hint = ReuseHint::kUnknown;  // Of the newest that had one.
  };

  TierStack(const Options& options, const Clock& clock, std::unique_ptr<HostArena> arena,
            std::unique_ptr<SsdStore> ssd, std::unique_ptr<DeviceTier> device);
  void Index(const std::vector<SsdEntry>& entries);
  bool AdoptRecord(const SnapshotRecord& record, uint32_t slab);
  bool VerifyAdopted(Block* block);
  BlockIndex::Found Select(uint32_t name_space, const BlockKey& key, QualityClass min_class,
                           Prefer prefer, MissReason* reason) const;
  Block* InRam(uint32_t name_space, const BlockKey& key) const;
  Status MayStore(uint32_t name_space, const BlockKey& key, QualityClass quality);
  bool Expired(const BlockIndex::Found& found) const;
  void ForgetExpired();
  void LetGo(Block* block);
  bool LetGoForReserve(uint32_t name_space);
  void EndKeeps();
  Result<Extent> AllocateEvicting(uint64_t bytes, uint32_t name_space);
  bool EvictFor(uint64_t bytes, uint32_t name_space);
  bool MakeHole(uint32_t name_space, uint64_t bytes);
  uint64_t GrowHole(Block* seed, uint64_t bytes, uint64_t ranked_before, std::vector<Block*>* hole,
                    uint32_t* looks) const;
  bool TakeSlab(uint32_t name_space, uint64_t used_before, bool own_adopted);
  HostQuota QuotaOf(uint32_t name_space) const;
  bool MayGrow(uint32_t name_space) const;
  // tier_stack_device.cc
  void DemoteAhead(uint32_t name_space);
  bool StoreOnDevice(Block* block);
  void LeaveDevice(Block* block);
  bool DropOldestOnDevice();
  void EnterRam(Block* block, ReuseHint hint, bool came_back);
  void LeaveRam(Block* block);
  void DropHostCopy(Block* block);
  void Forget(Block* block, MissReason why);
  void Forget(const BlockIndex::Found& found, MissReason why);
  // tier_stack_ssd.cc
  bool Admit(Block* block, bool came_back);
  void UsedAgain(Block* block, const Block* parent);
  void StartReadsAhead();
  bool RoomAhead(uint32_t name_space, uint64_t bytes) const;
  void EndReadAhead(Block* block, bool used);
  void WriteBehind(Block* block, DurableDone durable);
  Status Written(Block* block, const SsdEntry& stored);
  void StartRead(Block* block);
  void ExpireFetches();
  void AnswerMiss(FetchDone& done, MissReason reason);
  void FinishRead(Block* block, Status status);
  void Unpin(Block* block);
  void Answer(Block* block, FetchDone& done, Tier tier);

  const Options options_;
  const Clock& clock_;
  std::unique_ptr<HostArena> arena_;
  std::unique_ptr<SsdStore> ssd_;
  std::unique_ptr<DeviceTier> device_;
  std::map<uint64_t, Block*> on_device_;  // By device_turn.
  uint64_t device_turns_ = 0;
  BlockIndex index_;
  std::unique_ptr<EvictionPolicy> policy_;
  WhatIf what_if_;
  std::unordered_map<Block*, std::unique_ptr<Waiting>> reading_;
  Nanos next_deadline_ = INT64_MAX;  // Of those that wait; may be too early.
  uint64_t evicted_since_look_ = 0;  // Bytes, since another name space's slabs were looked at.
  uint64_t next_generation_ = 1;
  uint64_t reserved_ = 0;
  uint64_t writing_bytes_ = 0;  // Pinned by the store until they are on SSD,
  std::map<uint32_t, uint64_t> writing_of_;  // and by name space.
  bool hurrying_ = false;       // A flush is under way that makes room.
  struct Ahead {
    uint32_t name_space;
    BlockKey key;
    QualityClass min_class;
    Prefer prefer;
  };
  std::deque<Ahead> ahead_;     // To be read ahead.
  uint32_t reading_ahead_ = 0;  // Under way.
  uint64_t ahead_bytes_ = 0;    // Read ahead, or on the way, and not used.
  uint64_t pins_ = 0;
  struct Kept {
    Pin pin;
    Nanos until;
  };
  std::unordered_map<Block*, Kept> kept_;
  std::map<uint32_t, uint64_t> kept_of_;  // Bytes by name space, those on their way included.
  Nanos next_kept_end_ = INT64_MAX;       // May be too early.
  uint32_t sweep_at_ = 0;                 // Where in the index ForgetExpired goes on,
  Nanos next_sweep_ = 0;                  // and when.
  Stats stats_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_TIER_STACK_H_
