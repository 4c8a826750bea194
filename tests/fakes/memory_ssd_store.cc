#include "tests/fakes/memory_ssd_store.h"

#include <algorithm>

#include "base/check.h"

namespace tiercel {
namespace {

constexpr Nanos kRetryAfter = 5 * kSecond;

}  // namespace

uint64_t MemoryDisk::bytes() const {
  uint64_t total = 0;
  for (const auto& [number, segment] : segments) {
    for (const auto& record : segment.records) total += record.size();
  }
  return total;
}

MemorySsdStore::MemorySsdStore(MemoryDisk& disk, const Options& options, const Latency& latency,
                               const Clock& clock, uint64_t seed)
    : disk_(disk),
      options_(options),
      latency_(latency),
      clock_(clock),
      random_(seed),
      room_(options, clock) {}

Result<std::vector<SsdEntry>> MemorySsdStore::Recover() {
  std::vector<SsdEntry> all;
  for (const auto& [scope, generation] : disk_.clears) {
    last_generation_ = std::max(last_generation_, generation);
  }
  for (const auto& [number, segment] : disk_.segments) {
    next_segment_ = std::max(next_segment_, number + 1);
    last_read_[number] = 0;
    for (const SsdEntry& entry : segment.entries) {
      stats_.used_bytes += entry.record_bytes;
      last_generation_ = std::max(last_generation_, entry.generation);
      const auto cleared = [&](const Scope& scope) {
        const auto found = disk_.clears.find({entry.name_space, scope});
        return found != disk_.clears.end() && entry.generation <= found->second;
      };
      if (!cleared(entry.scope) && !cleared(Scope{})) all.push_back(entry);
    }
  }
  return all;
}

Nanos MemorySsdStore::Busy(uint64_t bytes) {
  busy_until_ = std::max(busy_until_, clock_.Now()) +
                static_cast<Nanos>(static_cast<double>(bytes) / latency_.bytes_per_nano);
  return busy_until_;
}

Status MemorySsdStore::Append(const SsdEntry& entry, ByteSpan record,
                              UniqueFunction<void(Result<SsdEntry>)> done) {
  if (shut_down_ || !available()) return Fail(Code::kUnavailable, "the SSD tier is off");
  if (stats_.queued_bytes + record.size() > room_.most_queued()) {
    return Fail(Code::kResourceExhausted, "too much waits to be written to SSD");
  }
  last_generation_ = std::max(last_generation_, entry.generation);
  open_.Add(entry, record, std::move(done), clock_.Now(), &next_segment_);
  stats_.queued_bytes += record.size();
  if (open_.bytes() >= options_.segment_bytes) Seal();
  return OkStatus();
}

void MemorySsdStore::Seal() {
  if (open_.empty()) return;
  MakeRoom();
  auto sealed = std::make_shared<OpenSegment>(open_.Take());
  writing_.push_back(sealed);
  At(Busy(sealed->bytes()), [this, sealed] {
    std::erase(writing_, sealed);
    const Status status =
        crashed_ || shut_down_ ? Fail(Code::kUnavailable, "the disk is gone") : Store(*sealed);
    stats_.queued_bytes -= sealed->bytes();
    if (status) {
      stats_.used_bytes += sealed->stored_bytes();
      stats_.written_bytes += sealed->stored_bytes();
    } else {
      last_write_ = status;
      ++stats_.failed_writes;
      if (status.error().code == Code::kResourceExhausted) room_.Full(stats_.used_bytes);
      why_ = status.error().message;
      off_until_ = clock_.Now() + kRetryAfter;
    }
    sealed->Answer(status);
    FinishFlushes();
  });
}

Status MemorySsdStore::Store(OpenSegment& segment) {
  if (disk_.bytes() + segment.bytes() > disk_.quota)
    return Fail(Code::kResourceExhausted, "no space left on device");
  MemoryDisk::Segment& stored = disk_.segments[segment.number()];
  for (OpenSegment::Append& append : segment.appends()) {
    ByteSpan bytes;
    if (options_.recode) bytes = options_.recode(&append.entry, append.record);
    if (bytes.empty()) bytes = append.record;
    stored.entries.push_back(append.entry);
    stored.records.emplace_back(bytes.begin(), bytes.end());
  }
  last_read_[segment.number()] = reads_;
  return OkStatus();
}

void MemorySsdStore::MakeRoom() {
  while (stats_.used_bytes + std::min(stats_.queued_bytes, room_.most_queued()) >
             room_.capacity() &&
         !last_read_.empty()) {
    const auto victim =
        std::min_element(last_read_.begin(), last_read_.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    const uint32_t number = victim->first;
    last_read_.erase(victim);
    const auto gone = disk_.segments.extract(number);
    TIERCEL_CHECK(!gone.empty());
    for (const SsdEntry& entry : gone.mapped().entries) stats_.used_bytes -= entry.record_bytes;
    ++stats_.dropped_segments;
    if (on_dropped_) on_dropped_(gone.mapped().entries);
  }
}

Status MemorySsdStore::ReadNow(const SsdEntry& entry, MutableByteSpan dst) {
  const auto segment = disk_.segments.find(entry.where.segment);
  if (crashed_) return Fail(Code::kUnavailable, "the disk is gone");
  if (segment == disk_.segments.end() || random_.Uniform() < disk_.lose ||
      entry.where.slot >= segment->second.entries.size() ||
      segment->second.entries[entry.where.slot].key != entry.key) {
    return Fail(Code::kNotFound, "no such record");
  }
  const auto& record = segment->second.records[entry.where.slot];
  if (record.size() != entry.record_bytes) return Fail(Code::kDataLoss, "another length");
  std::copy(record.begin(), record.end(), dst.begin());
  if (random_.Uniform() < disk_.flip) {
    const uint64_t bit = random_.Below(record.size() * 8);
    dst[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
  }
  return options_.verify_record ? options_.verify_record(dst.first(record.size())) : OkStatus();
}

Status MemorySsdStore::Read(const SsdEntry& entry, MutableByteSpan dst,
                            UniqueFunction<void(Status)> done) {
  if (shut_down_ || !disk_.segments.contains(entry.where.segment)) {
    return Fail(Code::kNotFound, "the segment is gone");
  }
  if (stats_.queued_reads >= options_.max_queued_reads) {
    return Fail(Code::kResourceExhausted, "too many SSD reads are waiting");
  }
  if (dst.size() < entry.record_bytes)
    return Fail(Code::kInvalidArgument, "the buffer is too small");
  ++stats_.queued_reads;
  last_read_[entry.where.segment] = ++reads_;
  const auto spread = static_cast<uint64_t>(latency_.max_read - latency_.min_read + 1);
  const Nanos when =
      Busy(entry.record_bytes) + latency_.min_read + static_cast<Nanos>(random_.Below(spread));
  At(when, [this, entry, dst, done = std::move(done)]() mutable {
    --stats_.queued_reads;
    stats_.read_bytes += entry.record_bytes;
    const Status status = ReadNow(entry, dst);
    if (!status && status.error().code == Code::kDataLoss) ++stats_.corrupt_reads;
    done(status);
  });
  return OkStatus();
}

void MemorySsdStore::Flush(UniqueFunction<void(Status)> done) {
  if (flushes_.empty()) last_write_ = OkStatus();
  flushes_.push_back(std::move(done));
  Seal();
  At(clock_.Now(), [this] { FinishFlushes(); });
}

void MemorySsdStore::FinishFlushes() {
  if (!writing_.empty() || !open_.empty()) return;
  auto flushes = std::exchange(flushes_, {});
  const Status status = std::exchange(last_write_, OkStatus());
  for (auto& done : flushes) done(status);
}

Status MemorySsdStore::Clear(uint32_t name_space, const Scope& scope, uint64_t generation) {
  if (crashed_) return Fail(Code::kUnavailable, "the disk is gone");
  uint64_t& mark = disk_.clears[{name_space, scope}];
  mark = std::max(mark, generation);
  last_generation_ = std::max(last_generation_, generation);
  return OkStatus();
}

void MemorySsdStore::Verify(UniqueFunction<void(Result<VerifyReport>)> done) {
  if (std::exchange(verifying_, true)) {
    At(clock_.Now(), [done = std::move(done)]() mutable {
      done(Fail(Code::kResourceExhausted, "a verification is under way"));
    });
    return;
  }
  At(Busy(disk_.bytes()), [this, done = std::move(done)]() mutable {
    verifying_ = false;
    VerifyReport report;
    for (const auto& [number, segment] : disk_.segments) {
      for (const auto& record : segment.records) {
        ++report.records;
        report.bytes += record.size();
        if (!options_.verify_record || options_.verify_record(record)) continue;
        ++report.bad;
        report.findings.push_back("segment " + std::to_string(number));
      }
    }
    done(report);
  });
}

size_t MemorySsdStore::Poll() {
  if (clock_.Now() >= open_.Due(options_.seal_after)) Seal();
  size_t happened = 0;
  while (!events_.empty() && events_.begin()->first <= clock_.Now()) {
    auto event = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    event();
    ++happened;
  }
  return happened;
}

Nanos MemorySsdStore::next_wakeup() const {
  const Nanos seal = open_.Due(options_.seal_after);
  return events_.empty() ? seal : std::min(seal, events_.begin()->first);
}

SsdStore::Stats MemorySsdStore::stats() const {
  Stats stats = stats_;
  stats.segments = last_read_.size();
  stats.disk_bytes = disk_.bytes();
  return stats;
}

Status MemorySsdStore::CorruptForTest(const SsdEntry& entry, uint64_t bit) {
  const auto segment = disk_.segments.find(entry.where.segment);
  if (segment == disk_.segments.end() || entry.where.slot >= segment->second.records.size()) {
    return Fail(Code::kNotFound, "no such record");
  }
  auto& record = segment->second.records[entry.where.slot];
  record[bit / 8 % record.size()] ^= static_cast<std::byte>(1u << bit % 8);
  return OkStatus();
}

void MemorySsdStore::Crash() {
  if (crashed_) return;
  for (const auto& segment : writing_) {
    if (random_.Below(2) == 0) (void)Store(*segment);  // It had landed; nobody was told.
  }
  crashed_ = true;
}

void MemorySsdStore::Shutdown(Nanos timeout) {
  if (shut_down_) return;
  // With time to spare everything is written: virtual time costs nothing.
  if (timeout > 0 && !crashed_) Seal();
  shut_down_ = timeout <= 0;
  while (!events_.empty()) {
    auto event = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    event();
  }
  shut_down_ = true;
  OpenSegment unwritten = open_.Take();
  unwritten.Answer(Fail(Code::kUnavailable, "shut down before it was written"));
  for (auto& done : std::exchange(flushes_, {})) done(Fail(Code::kUnavailable, "shutting down"));
}

}  // namespace tiercel
