#include "tiering/ssd_segment_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/inbox.h"
#include "base/log.h"
#include "tiering/ssd_movers.h"
#include "tiering/ssd_room.h"

namespace tiercel {
namespace {

constexpr Nanos kRetryAfter = 5 * kSecond;      // How long a failing disk is left alone.
constexpr uint32_t kReadErrorsToSwitchOff = 8;  // In a row.
constexpr Nanos kReaderSpin = 50 * kMicrosecond;
constexpr Nanos kLeakCheckEvery = 60 * kSecond;
constexpr Nanos kDay = 86'400 * kSecond;
constexpr uint64_t kDropsAhead =
    4;  // Segments that may wait to be dropped before writes wait for them.
// A segment is written a little faster than the next one fills; slower than this nobody gains.
constexpr double kPaceAhead = 1.3;
constexpr uint64_t kSlowestPace = 64'000'000;
constexpr uint64_t kScrubStep = 1 * kMiB;

class SegmentStore final : public SsdStore {
 public:
  SegmentStore(std::unique_ptr<SegmentEngine> engine, const Options& options,
               const SegmentStoreThreads& threads, const Clock& clock, const std::string& name)
      : engine_(std::move(engine)),
        options_(options),
        clock_(clock),
        name_(name),
        room_(options, clock),
        writers_(std::make_unique<Movers>(threads.writers)),
        readers_(std::make_unique<Movers>(threads.readers, kReaderSpin)),
        keeper_(std::make_unique<Movers>(1)) {
    budget_ = static_cast<double>(options_.write_bytes_per_day) / 24;
    budget_at_ = next_leak_check_ = next_scrub_ = clock_.Now();
    next_leak_check_ += kLeakCheckEvery;
  }
  ~SegmentStore() override { Shutdown(0); }

  Result<std::vector<SsdEntry>> Recover() override;
  uint64_t last_generation() const override { return last_generation_; }
  void SetDropListener(std::function<void(const std::vector<SsdEntry>&)> on_dropped) override {
    on_dropped_ = std::move(on_dropped);
  }
  Status Append(const SsdEntry& entry, ByteSpan record,
                UniqueFunction<void(Result<SsdEntry>)> done) override;
  Status Read(const SsdEntry& entry, MutableByteSpan dst,
              UniqueFunction<void(Status)> done) override;
  void Flush(UniqueFunction<void(Status)> done) override;
  Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) override;
  void Verify(UniqueFunction<void(Result<VerifyReport>)> done) override;
  size_t Poll() override;
  int event_fd() const override { return inbox_.event_fd(); }
  bool Arm() override { return inbox_.Arm(); }
  Nanos next_wakeup() const override;
  bool available() const override { return readable() && clock_.Now() >= writes_off_until_; }
  bool readable() const override { return clock_.Now() >= off_until_; }
  std::string why() const override { return available() ? "" : why_; }
  Stats stats() const override;
  Budget budget() const override;
  Status CorruptForTest(const SsdEntry& entry, uint64_t bit) override {
    return engine_->Corrupt(entry, bit);
  }
  void Shutdown(Nanos timeout) override;

 private:
  struct Segment {
    uint64_t bytes = 0;
    uint64_t last_read = 0;  // In reads of this store, not in time.
    uint32_t readers = 0;
    bool dropping = false;
    std::vector<SsdEntry> entries;
    // By name space: one, but of segments written before segments had one each.
    std::map<uint32_t, uint64_t> bytes_of;
  };
  using Segments = std::map<uint32_t, Segment>;
  struct ReadDone {
    uint32_t segment;
    uint64_t bytes;
    UniqueFunction<void(Status)> done;
    Status status;
    bool io_error = false;
  };
  struct OwedDrop {
    uint32_t number;
    uint64_t bytes;
  };
  // Whether something that was asked for comes back: when it last did, or when the first was asked.
  struct Watch {
    uint64_t under_way = 0;
    Nanos since = 0;
    void Began(Nanos now) {
      if (under_way++ == 0) since = now;
    }
    void Ended(Nanos now) {
      --under_way;
      since = now;
    }
    Nanos Due(Nanos limit) const { return under_way == 0 ? INT64_MAX : since + limit; }
  };
  using Event = UniqueFunction<void()>;  // Made on a mover, run on the owner.

  void Tell(Event event) {
    // The inbox holds an event for every task that may be under way, so it cannot be full.
    TIERCEL_CHECK(inbox_.Push(std::move(event)));
  }
  void Seal(OpenSegment& open);
  void SealAll();
  void SealFullest();
  uint64_t open_bytes() const;
  void SetPace(const OpenSegment& sealed);
  void SegmentWritten(const std::shared_ptr<OpenSegment>& segment, const Status& status);
  void MakeRoom(uint32_t name_space);
  template <class Predicate>
  Segments::iterator LeastRead(Predicate&& may_go);
  void Drop(Segments::iterator victim);
  Quota QuotaOf(uint32_t name_space) const;
  uint64_t BytesOf(uint32_t name_space) const;
  void DropIfIdle(uint32_t number);
  void OweDrop(uint32_t number, uint64_t bytes);
  void PushDrops();
  // On a mover.
  void DropNow(const OwedDrop& drop, bool a_write_follows);
  void SwitchOff(Nanos* until, const std::string& why);
  void FinishFlushes();
  void EndRead(uint32_t number);
  double BudgetNow() const;
  void RefillBudget();
  Nanos WriteLimit() const;
  void CheckStalls();
  void CheckLeaks();
  void ScrubNext();
  // On a mover: the record verified, in space that the thread keeps.
  Status ReadAndVerify(const SsdEntry& entry);

  const std::unique_ptr<SegmentEngine> engine_;
  const Options options_;
  const Clock& clock_;
  const std::string name_;
  std::function<void(const std::vector<SsdEntry>&)> on_dropped_;
  Inbox<Event> inbox_{size_t{1} << 16};
  std::map<uint32_t, OpenSegment> open_;  // By name space; none is empty.
  uint32_t next_segment_ = 1;
  uint64_t reads_ = 0;
  std::set<uint32_t> writing_;        // Numbers of segments with a writer.
  std::set<uint32_t> dropping_;       // Given up and not yet off the disk, readers gone.
  std::vector<OwedDrop> owed_drops_;  // Of these, the ones that no mover has yet.
  uint64_t dropping_bytes_ = 0;       // Given up and still on the disk, and no write waits for it.
  uint32_t tasks_ = 0;                // Verifies, scrubs, leak checks and drops under way.
  Segments segments_;
  std::map<uint32_t, uint64_t> used_of_;    // By name space: of live segments,
  std::map<uint32_t, uint64_t> queued_of_;  // and of what waits to be written.
  std::vector<UniqueFunction<void(Status)>> flushes_;
  bool flush_asked_ = false;  // FinishFlushes is in the inbox.
  bool verifying_ = false;
  uint32_t read_errors_ = 0;  // In a row.
  Status last_write_;
  uint64_t last_generation_ = 0;
  std::atomic<bool> abandon_{false};  // Shutting down: writes that have not begun are given up.
  std::atomic<bool> resume_{false};   // The engine saw an error; ask it to go on.
  Nanos off_until_ = 0;               // Nothing is asked of the disk, and no writes.
  Nanos writes_off_until_ = 0;
  SsdRoom room_;
  std::string why_;
  Watch writes_watch_;
  Watch reads_watch_;
  double budget_ = 0;  // Bytes that may be written now.
  Nanos budget_at_ = 0;
  Nanos next_leak_check_ = 0;
  bool checking_leaks_ = false;
  Nanos next_scrub_ = 0;
  bool scrubbing_ = false;
  SsdLocation scrub_at_;  // The next record to scrub.
  Stats stats_;
  bool shut_down_ = false;
  std::unique_ptr<Movers> writers_;  // Last, so that they end first.
  std::unique_ptr<Movers> readers_;
  std::unique_ptr<Movers> keeper_;
};

Result<std::vector<SsdEntry>> SegmentStore::Recover() {
  TIERCEL_ASSIGN(SegmentEngine::Recovered found, engine_->Recover());
  for (const auto& [mark, generation] : found.clears)
    last_generation_ = std::max(last_generation_, generation);
  std::vector<SsdEntry> all;
  for (auto& [number, entries] : found.segments) {
    next_segment_ = std::max(next_segment_, number + 1);
    Segment& segment = segments_[number];
    segment.entries = std::move(entries);
    for (const SsdEntry& entry : segment.entries) {
      segment.bytes += entry.record_bytes;
      segment.bytes_of[entry.name_space] += entry.record_bytes;
      used_of_[entry.name_space] += entry.record_bytes;
      last_generation_ = std::max(last_generation_, entry.generation);
      const auto cleared = [&](const Scope& scope) {
        const auto mark = found.clears.find({entry.name_space, scope});
        return mark != found.clears.end() && entry.generation <= mark->second;
      };
      if (!cleared(entry.scope) && !cleared(Scope{})) all.push_back(entry);
    }
    stats_.used_bytes += segment.bytes;
  }
  for (const uint32_t number : found.unreadable) {
    next_segment_ = std::max(next_segment_, number + 1);
    OweDrop(number, 0);
  }
  LogInfo("ssd.recovered", {{"disk", name_},
                            {"segments", segments_.size()},
                            {"blocks", all.size()},
                            {"reindexed", found.reindexed},
                            {"bad_manifests", found.unreadable.size()}});
  return all;
}

// ---- writing -----------------------------------------------------------------------------------

double SegmentStore::BudgetNow() const {
  const auto day = static_cast<double>(options_.write_bytes_per_day);
  const auto passed = static_cast<double>(clock_.Now() - budget_at_);
  return std::min(day / 24, budget_ + day * passed / static_cast<double>(kDay));
}

void SegmentStore::RefillBudget() {
  if (options_.write_bytes_per_day == 0) return;
  budget_ = BudgetNow();
  budget_at_ = clock_.Now();
}

SsdStore::Budget SegmentStore::budget() const {
  if (options_.write_bytes_per_day == 0) return {};
  return {static_cast<uint64_t>(std::max(0.0, BudgetNow())), options_.write_bytes_per_day / 24};
}

SsdStore::Quota SegmentStore::QuotaOf(uint32_t name_space) const {
  return options_.quota ? options_.quota(name_space) : Quota{};
}

uint64_t SegmentStore::BytesOf(uint32_t name_space) const {
  const auto used = used_of_.find(name_space);
  const auto queued = queued_of_.find(name_space);
  return (used == used_of_.end() ? 0 : used->second) +
         (queued == queued_of_.end() ? 0 : queued->second);
}

uint64_t SegmentStore::open_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name_space, open] : open_) bytes += open.bytes();
  return bytes;
}

Status SegmentStore::Append(const SsdEntry& entry, ByteSpan record,
                            UniqueFunction<void(Result<SsdEntry>)> done) {
  if (shut_down_ || !available())
    return Fail(Code::kUnavailable, why_.empty() ? "the SSD tier is closed" : why_);
  if (stats_.queued_bytes + record.size() > room_.most_queued() ||
      dropping_bytes_ > kDropsAhead * options_.segment_bytes) {
    return Fail(Code::kResourceExhausted, "too much waits to be written to SSD");
  }
  uint64_t& queued = queued_of_[entry.name_space];
  if (queued + record.size() > QuotaOf(entry.name_space).limit) {
    ++stats_.over_limit;
    return Fail(Code::kResourceExhausted,
                "what waits to be written is all that the name space may have");
  }
  RefillBudget();
  if (options_.write_bytes_per_day > 0) {
    // What is spent is what is written, which is known later; what waits has spent its size.
    if (budget_ < static_cast<double>(record.size())) {
      ++stats_.over_budget;
      return Fail(Code::kResourceExhausted, "what may be written to SSD in a day is spent");
    }
    budget_ -= static_cast<double>(record.size());
  }
  last_generation_ = std::max(last_generation_, entry.generation);
  OpenSegment& open = open_[entry.name_space];
  open.Add(entry, record, std::move(done), clock_.Now(), &next_segment_);
  stats_.queued_bytes += record.size();
  queued += record.size();
  // Many that fill slowly are not to keep each other from being written.
  if (open.bytes() >= options_.segment_bytes) {
    Seal(open);
  } else if (open_.size() > 1 && open_bytes() > room_.most_queued() / 2) {
    SealFullest();
  }
  return OkStatus();
}

// A burst that fills the disk's queue is what makes reads wait; so a segment takes about the time
// that the next one takes to fill, and everything goes at full speed as soon as segments pile up.
void SegmentStore::SetPace(const OpenSegment& sealed) {
  const uint64_t behind = stats_.queued_bytes - open_bytes();
  const Nanos filled_in = std::max<Nanos>(clock_.Now() - sealed.Due(0), kMicrosecond);
  const double arrival = static_cast<double>(sealed.bytes()) * 1e9 / static_cast<double>(filled_in);
  const bool piling_up = behind > 2 * std::max(options_.segment_bytes, sealed.bytes());
  const double pace = std::max(arrival * kPaceAhead, static_cast<double>(kSlowestPace));
  engine_->Pace(piling_up || !flushes_.empty() || pace > 4e9 ? 0 : static_cast<uint64_t>(pace));
}

void SegmentStore::SealAll() {
  while (!open_.empty()) Seal(open_.begin()->second);
}

void SegmentStore::SealFullest() {
  Seal(std::max_element(open_.begin(), open_.end(), [](const auto& a, const auto& b) {
         return a.second.bytes() < b.second.bytes();
       })->second);
}

void SegmentStore::Seal(OpenSegment& open) {
  const uint32_t name_space = open.appends().front().entry.name_space;
  MakeRoom(name_space);
  auto sealed = std::make_shared<OpenSegment>(open.Take());
  open_.erase(name_space);
  SetPace(*sealed);
  writing_.insert(sealed->number());
  writes_watch_.Began(clock_.Now());
  // Smaller bytes are worth their time only while the disk is not waited for.
  const bool recode = options_.recode && stats_.queued_bytes <= room_.most_queued() / 2;
  // What makes room goes first: little waits to be flushed then, and the file of a dropped segment
  // is there to be written over. As its write waits for it, nothing else has to.
  std::vector<OwedDrop> drops = std::exchange(owed_drops_, {});
  for (OwedDrop& drop : drops) dropping_bytes_ -= std::exchange(drop.bytes, 0);
  writers_->Push([this, sealed, recode, drops = std::move(drops)] {
    if (resume_.exchange(false)) engine_->Resume();
    for (const OwedDrop& drop : drops) DropNow(drop, &drop == &drops.back());
    Status status =
        abandon_.load(std::memory_order_relaxed)
            ? Fail(Code::kUnavailable, "shut down before it was written")
            : engine_->Write(*sealed, recode ? options_.recode : SegmentEngine::Recode());
    Tell([this, sealed, status] { SegmentWritten(sealed, status); });
  });
}

void SegmentStore::SegmentWritten(const std::shared_ptr<OpenSegment>& written,
                                  const Status& status) {
  writing_.erase(written->number());
  writes_watch_.Ended(clock_.Now());
  const uint32_t name_space = written->appends().front().entry.name_space;
  stats_.queued_bytes -= written->bytes();
  queued_of_[name_space] -= written->bytes();
  if (writing_.empty()) engine_->Pace(0);
  if (!status) last_write_ = status;
  if (status) {
    Segment& segment = segments_[written->number()];
    segment.bytes = written->stored_bytes();
    segment.last_read = reads_;
    segment.bytes_of[name_space] = segment.bytes;
    used_of_[name_space] += segment.bytes;
    for (const auto& append : written->appends()) {
      segment.entries.push_back(append.entry);
      if (append.entry.record_bytes == append.record.size()) continue;
      ++stats_.recoded;
      stats_.recoded_bytes += append.entry.record_bytes;
      stats_.recoded_from_bytes += append.record.size();
    }
    stats_.used_bytes += segment.bytes;
    stats_.written_bytes += segment.bytes;
    budget_ += static_cast<double>(written->bytes() - segment.bytes);
  } else {
    ++stats_.failed_writes;
    if (status.error().code == Code::kResourceExhausted) room_.Full(stats_.used_bytes);
    if (!abandon_) SwitchOff(&writes_off_until_, status.error().message);
  }
  written->Answer(status);
  FinishFlushes();
}

void SegmentStore::Flush(UniqueFunction<void(Status)> done) {
  if (flushes_.empty()) last_write_ = OkStatus();
  flushes_.push_back(std::move(done));
  SealAll();
  engine_->Pace(0);  // Someone waits for it.
  // Through the inbox, so that done never runs inside Flush.
  if (std::exchange(flush_asked_, true)) return;
  Tell([this] {
    flush_asked_ = false;
    FinishFlushes();
  });
}

void SegmentStore::FinishFlushes() {
  if (!writing_.empty() || !open_.empty()) return;
  auto flushes = std::exchange(flushes_, {});
  for (auto& done : flushes) done(last_write_);
  last_write_ = OkStatus();
}

Status SegmentStore::Clear(uint32_t name_space, const Scope& scope, uint64_t generation) {
  TIERCEL_TRY(engine_->Clear(name_space, scope, generation));
  last_generation_ = std::max(last_generation_, generation);
  return OkStatus();
}

// ---- reading -----------------------------------------------------------------------------------

Status SegmentStore::Read(const SsdEntry& entry, MutableByteSpan dst,
                          UniqueFunction<void(Status)> done) {
  const auto found = segments_.find(entry.where.segment);
  if (shut_down_ || found == segments_.end() || found->second.dropping) {
    return Fail(Code::kNotFound, "the segment is gone");
  }
  if (!readable()) return Fail(Code::kUnavailable, why_);
  if (stats_.queued_reads >= options_.max_queued_reads) {
    return Fail(Code::kResourceExhausted, "too many SSD reads are waiting");
  }
  if (dst.size() < entry.record_bytes)
    return Fail(Code::kInvalidArgument, "the buffer is too small");
  ++stats_.queued_reads;
  reads_watch_.Began(clock_.Now());
  ++found->second.readers;
  found->second.last_read = ++reads_;
  auto read = std::make_shared<ReadDone>();
  read->segment = entry.where.segment;
  read->bytes = entry.record_bytes;
  read->done = std::move(done);
  readers_->Push([this, entry, dst, read] {
    const MutableByteSpan record = dst.first(entry.record_bytes);
    read->status = engine_->Read(entry, record);
    if (!read->status && read->status.error().code == Code::kUnavailable) {
      // One sector that cannot be read costs one block, not the tier.
      read->io_error = true;
      read->status = Fail(Code::kDataLoss, read->status.error().message);
    }
    if (read->status && options_.verify_record) read->status = options_.verify_record(record);
    Tell([this, read] {
      --stats_.queued_reads;
      reads_watch_.Ended(clock_.Now());
      stats_.read_bytes += read->bytes;
      if (!read->status && read->status.error().code == Code::kDataLoss) ++stats_.corrupt_reads;
      read_errors_ = read->io_error ? read_errors_ + 1 : 0;
      if (read_errors_ >= kReadErrorsToSwitchOff)
        SwitchOff(&off_until_, read->status.error().message);
      EndRead(read->segment);
      read->done(std::move(read->status));
    });
  });
  return OkStatus();
}

void SegmentStore::EndRead(uint32_t number) {
  const auto segment = segments_.find(number);
  if (segment == segments_.end()) return;
  --segment->second.readers;
  if (segment->second.dropping) DropIfIdle(number);
}

Status SegmentStore::ReadAndVerify(const SsdEntry& entry) {
  std::vector<std::byte> space(entry.record_bytes);
  TIERCEL_TRY(engine_->Read(entry, space));
  return options_.verify_record ? options_.verify_record(space) : OkStatus();
}

void SegmentStore::Verify(UniqueFunction<void(Result<VerifyReport>)> done) {
  ++tasks_;
  auto told = std::make_shared<UniqueFunction<void(Result<VerifyReport>)>>(std::move(done));
  if (std::exchange(verifying_, true) || shut_down_) {
    Tell([this, told] {
      --tasks_;
      (*told)(Fail(Code::kResourceExhausted, "a verification is under way"));
    });
    return;
  }
  std::vector<SsdEntry> entries;
  for (const auto& [number, segment] : segments_) {
    entries.insert(entries.end(), segment.entries.begin(), segment.entries.end());
  }
  struct Bad {
    uint32_t segment;
    std::string what;
  };
  readers_->Push([this, told, entries = std::move(entries)] {
    VerifyReport report;
    std::vector<Bad> bad;
    for (const SsdEntry& entry : entries) {
      if (abandon_.load(std::memory_order_relaxed)) break;
      const Status status = ReadAndVerify(entry);
      ++report.records;
      report.bytes += entry.record_bytes;
      if (status) continue;
      bad.push_back(
          {entry.where.segment,
           fmt::format("segment {} slot {} key {}: {}", entry.where.segment, entry.where.slot,
                       ToHex(entry.key.bytes), status.error().message)});
    }
    Tell([this, told, report = std::move(report), bad = std::move(bad)]() mutable {
      --tasks_;
      verifying_ = false;
      for (Bad& one : bad) {
        // What was dropped while we read is not missing.
        const auto segment = segments_.find(one.segment);
        if (segment == segments_.end() || segment->second.dropping) continue;
        ++report.bad;
        if (report.findings.size() < 100) report.findings.push_back(std::move(one.what));
      }
      (*told)(std::move(report));
    });
  });
}

// A step reads about a MiB of one segment, then waits as long as the rate asks for. What does not
// verify is counted and told; whoever fetches it finds out for himself, and it is forgotten then.
void SegmentStore::ScrubNext() {
  if (options_.scrub_bytes_per_second == 0 || scrubbing_ || shut_down_ || !readable()) return;
  if (clock_.Now() < next_scrub_) return;
  auto segment = segments_.lower_bound(scrub_at_.segment);
  if (segment != segments_.end() && segment->first != scrub_at_.segment)
    scrub_at_ = {segment->first, 0};
  while (segment != segments_.end() &&
         (segment->second.dropping || scrub_at_.slot >= segment->second.entries.size())) {
    if (++segment != segments_.end()) scrub_at_ = {segment->first, 0};
  }
  if (segment == segments_.end()) {
    if (!segments_.empty()) ++stats_.scrub_rounds;
    scrub_at_ = {};
    next_scrub_ = clock_.Now() + kSecond;  // From the start again, were there only a record or two.
    return;
  }
  std::vector<SsdEntry> step;
  uint64_t bytes = 0;
  while (scrub_at_.slot < segment->second.entries.size() && (bytes == 0 || bytes < kScrubStep)) {
    step.push_back(segment->second.entries[scrub_at_.slot++]);
    bytes += step.back().record_bytes;
  }
  next_scrub_ =
      clock_.Now() + static_cast<Nanos>(static_cast<double>(bytes) * 1e9 /
                                        static_cast<double>(options_.scrub_bytes_per_second));
  scrubbing_ = true;
  ++tasks_;
  ++segment->second.readers;
  readers_->Push([this, step = std::move(step), bytes] {
    uint64_t bad = 0;
    for (const SsdEntry& entry : step) {
      const Status status = ReadAndVerify(entry);
      if (status) continue;
      ++bad;
      LogWarn("ssd.scrub", {{"disk", name_},
                            {"segment", entry.where.segment},
                            {"slot", entry.where.slot},
                            {"key", ToHex(entry.key.bytes)},
                            {"why", status.error().message}});
    }
    Tell([this, number = step.front().where.segment, records = step.size(), bytes, bad] {
      --tasks_;
      scrubbing_ = false;
      stats_.scrubbed_records += records;
      stats_.scrubbed_bytes += bytes;
      stats_.scrub_bad += bad;
      EndRead(number);
    });
  });
}

// ---- dropping ----------------------------------------------------------------------------------

template <class Predicate>
SegmentStore::Segments::iterator SegmentStore::LeastRead(Predicate&& may_go) {
  auto victim = segments_.end();
  for (auto it = segments_.begin(); it != segments_.end(); ++it) {
    if (it->second.dropping || !may_go(it->second)) continue;
    if (victim == segments_.end() || it->second.last_read < victim->second.last_read) victim = it;
  }
  return victim;
}

// For what waits to be written for this name space: first its own segments while it is over its
// limit, then the least recently read that no reserve needs. Where reserves need all, it takes from
// its own; and the capacity stands above them.
void SegmentStore::MakeRoom(uint32_t name_space) {
  const auto is_spare = [&](const auto& part) {
    const auto [other, bytes] = part;
    const uint64_t has = other == name_space ? BytesOf(other) : used_of_[other];
    return has >= QuotaOf(other).reserve + bytes;
  };
  const auto no_reserve_needs = [&](const Segment& segment) {
    return std::all_of(segment.bytes_of.begin(), segment.bytes_of.end(), is_spare);
  };
  const auto is_own = [&](const Segment& segment) {
    return segment.bytes_of.contains(name_space) &&
           std::all_of(segment.bytes_of.begin(), segment.bytes_of.end(), [&](const auto& part) {
             return part.first == name_space || is_spare(part);
           });
  };
  const uint64_t limit = QuotaOf(name_space).limit;
  while (BytesOf(name_space) > limit) {
    const auto victim = LeastRead(is_own);
    if (victim == segments_.end()) break;
    Drop(victim);
  }
  while (stats_.used_bytes + std::min(stats_.queued_bytes, room_.most_queued()) >
         room_.capacity()) {
    auto victim = LeastRead(no_reserve_needs);
    if (victim == segments_.end()) victim = LeastRead(is_own);
    if (victim == segments_.end()) victim = LeastRead([](const Segment&) { return true; });
    if (victim == segments_.end()) return;
    Drop(victim);
  }
}

void SegmentStore::Drop(Segments::iterator victim) {
  victim->second.dropping = true;
  stats_.used_bytes -= victim->second.bytes;
  for (const auto& [name_space, bytes] : victim->second.bytes_of) used_of_[name_space] -= bytes;
  dropping_bytes_ += victim->second.bytes;
  ++stats_.dropped_segments;
  const std::vector<SsdEntry> entries = std::move(victim->second.entries);
  victim->second.entries.clear();
  const uint32_t number = victim->first;
  if (on_dropped_) on_dropped_(entries);
  DropIfIdle(number);
}

void SegmentStore::DropIfIdle(uint32_t number) {
  const auto found = segments_.find(number);
  if (found == segments_.end() || found->second.readers > 0) return;
  if (shut_down_) return;  // It stays on disk, and is there again at the next start.
  const uint64_t bytes = found->second.bytes;
  segments_.erase(found);
  OweDrop(number, bytes);
}

void SegmentStore::OweDrop(uint32_t number, uint64_t bytes) {
  if (shut_down_) return;
  ++tasks_;
  dropping_.insert(number);
  owed_drops_.push_back({number, bytes});
}

// What no write has taken with it.
void SegmentStore::PushDrops() {
  if (shut_down_) return;  // They stay on disk, as above.
  for (const OwedDrop& drop : std::exchange(owed_drops_, {}))
    keeper_->Push([this, drop] { DropNow(drop, false); });
}

void SegmentStore::DropNow(const OwedDrop& drop, bool a_write_follows) {
  const Status status = engine_->Drop(drop.number, a_write_follows);
  if (!status) {
    LogWarn("ssd.drop",
            {{"disk", name_}, {"segment", drop.number}, {"why", status.error().message}});
  }
  Tell([this, drop] {
    --tasks_;
    dropping_.erase(drop.number);
    dropping_bytes_ -= drop.bytes;
  });
}

// ---- looking after the disk --------------------------------------------------------------------

void SegmentStore::SwitchOff(Nanos* until, const std::string& why) {
  if (available()) ++stats_.switched_off;
  why_ = why;
  *until = clock_.Now() + kRetryAfter;
  resume_ = true;
  LogWarn("ssd.off", {{"disk", name_}, {"why", why}});
}

Nanos SegmentStore::WriteLimit() const {
  const uint64_t rate =
      options_.write_bytes_per_second > 0 ? options_.write_bytes_per_second : kSlowestPace;
  // Twice what the slowest pace asks for, for all that waits.
  return options_.stall_after + 2 * static_cast<Nanos>(static_cast<double>(stats_.queued_bytes) *
                                                       1e9 / static_cast<double>(rate));
}

// Nothing that is under way can be taken back, its buffers are the disk's until it ends; but no
// more is asked of a disk that does not answer.
void SegmentStore::CheckStalls() {
  if (shut_down_ || !readable()) return;
  const Nanos now = clock_.Now();
  const bool reads = now >= reads_watch_.Due(options_.stall_after);
  if (!reads && now < writes_watch_.Due(WriteLimit())) return;
  ++stats_.stalls;
  SwitchOff(&off_until_,
            fmt::format("the disk has answered no {} for {} ms", reads ? "read" : "write",
                        (now - (reads ? reads_watch_ : writes_watch_).since) / kMillisecond));
}

// What lies on the disk and is in nobody's account would fill it, silently and for ever.
void SegmentStore::CheckLeaks() {
  if (checking_leaks_ || shut_down_ || clock_.Now() < next_leak_check_) return;
  next_leak_check_ = clock_.Now() + kLeakCheckEvery;
  checking_leaks_ = true;
  ++tasks_;
  const uint32_t before = next_segment_;  // Younger ones may come while we look.
  keeper_->Push([this, before] {
    Tell([this, before, present = engine_->Present()] {
      --tasks_;
      checking_leaks_ = false;
      for (const uint32_t number : present) {
        if (number >= before || segments_.contains(number) || writing_.contains(number) ||
            dropping_.contains(number)) {
          continue;
        }
        ++stats_.leaked_segments;
        LogWarn("ssd.leak", {{"disk", name_}, {"segment", number}});
        OweDrop(number, 0);
      }
    });
  });
}

Nanos SegmentStore::next_wakeup() const {
  Nanos next = INT64_MAX;
  for (const auto& [name_space, open] : open_) next = std::min(next, open.Due(options_.seal_after));
  if (!readable()) return std::min(next, off_until_);
  next = std::min({next, reads_watch_.Due(options_.stall_after), writes_watch_.Due(WriteLimit()),
                   next_leak_check_});
  if (options_.scrub_bytes_per_second > 0 && !scrubbing_ && !segments_.empty())
    next = std::min(next, next_scrub_);
  return next;
}

size_t SegmentStore::Poll() {
  if (!shut_down_) {
    for (auto open = open_.begin(); open != open_.end();) {
      OpenSegment& one = (open++)->second;  // Sealing takes it out.
      if (clock_.Now() >= one.Due(options_.seal_after)) Seal(one);
    }
    CheckStalls();
    CheckLeaks();
    ScrubNext();
  }
  const size_t events = inbox_.Drain([](Event&& event) { event(); });
  PushDrops();
  return events;
}

SsdStore::Stats SegmentStore::stats() const {
  Stats stats = stats_;
  stats.segments = segments_.size();
  stats.disk_bytes = engine_->disk_bytes();
  stats.budget_left_bytes = options_.write_bytes_per_day == 0 ? 0 : budget().left;
  stats.bytes_of = used_of_;
  return stats;
}

void SegmentStore::Shutdown(Nanos timeout) {
  if (shut_down_) return;
  if (timeout > 0) {
    SealAll();
    engine_->Pace(0);
  }
  const Nanos end = clock_.Now() + timeout;
  while (timeout > 0 && (!writing_.empty() || tasks_ > 0) && clock_.Now() < end) {
    Poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  shut_down_ = true;
  abandon_ = true;
  engine_->Pace(0);
  writers_.reset();
  readers_.reset();
  keeper_.reset();
  while (Poll() > 0) {
  }
  for (auto& [name_space, unwritten] : std::exchange(open_, {})) {
    stats_.queued_bytes -= unwritten.bytes();
    queued_of_[name_space] -= unwritten.bytes();
    unwritten.Answer(Fail(Code::kUnavailable, "shut down before it was written"));
  }
  for (auto& done : std::exchange(flushes_, {})) done(Fail(Code::kUnavailable, "shutting down"));
}

}  // namespace

std::unique_ptr<SsdStore> MakeSegmentStore(std::unique_ptr<SegmentEngine> engine,
                                           const SsdStore::Options& options,
                                           const SegmentStoreThreads& threads, const Clock& clock,
                                           const std::string& name) {
  return std::make_unique<SegmentStore>(std::move(engine), options, threads, clock, name);
}

}  // namespace tiercel
