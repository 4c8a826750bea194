#include "tiering/ssd_disks.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/check.h"

namespace tiercel {
namespace {

class JoinedStore final : public SsdStore {
 public:
  JoinedStore(std::vector<std::unique_ptr<SsdStore>> disks, uint64_t segment_bytes)
      : disks_(std::move(disks)),
        segment_bytes_(segment_bytes),
        epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    TIERCEL_CHECK(epoll_ >= 0);
    for (const auto& disk : disks_) {
      if (disk->event_fd() < 0) continue;  // A fake in virtual time.
      epoll_event event{};
      event.events = EPOLLIN;
      TIERCEL_CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, disk->event_fd(), &event) == 0);
    }
  }
  ~JoinedStore() override {
    Shutdown(0);
    close(epoll_);
  }

  Result<std::vector<SsdEntry>> Recover() override {
    std::vector<SsdEntry> all;
    for (size_t i = 0; i < disks_.size(); ++i) {
      TIERCEL_ASSIGN(std::vector<SsdEntry> entries, disks_[i]->Recover());
      for (SsdEntry& entry : entries) all.push_back(Outer(i, std::move(entry)));
    }
    std::stable_sort(all.begin(), all.end(), [](const SsdEntry& a, const SsdEntry& b) {
      return a.generation < b.generation;
    });
    return all;
  }
  uint64_t last_generation() const override {
    uint64_t last = 0;
    for (const auto& disk : disks_) last = std::max(last, disk->last_generation());
    return last;
  }
  void SetDropListener(std::function<void(const std::vector<SsdEntry>&)> on_dropped) override {
    for (size_t i = 0; i < disks_.size(); ++i) {
      disks_[i]->SetDropListener([this, i, on_dropped](const std::vector<SsdEntry>& dropped) {
        std::vector<SsdEntry> outer;
        outer.reserve(dropped.size());
        for (const SsdEntry& entry : dropped) outer.push_back(Outer(i, entry));
        on_dropped(outer);
      });
    }
  }

  // A disk that is off is passed over. One that has too much to do, or has spent its budget, is the
  // answer; the next record goes to another.
  Status Append(const SsdEntry& entry, ByteSpan record,
                UniqueFunction<void(Result<SsdEntry>)> done) override {
    if (appended_ >= segment_bytes_ || !disks_[at_]->available()) TakeTurn();
    // Who is refused must still own done, so it is shared.
    auto told = std::make_shared<UniqueFunction<void(Result<SsdEntry>)>>(std::move(done));
    Status refused = OkStatus();
    for (size_t tries = 0; tries < disks_.size(); ++tries) {
      const size_t disk = at_;
      Status taken =
          disks_[disk]->Append(entry, record, [this, disk, told](Result<SsdEntry> stored) {
            if (stored) *stored = Outer(disk, *stored);
            (*told)(std::move(stored));
          });
      if (taken) {
        appended_ += record.size();
        return taken;
      }
      refused = std::move(taken);
      at_ = (at_ + 1) % disks_.size();
      appended_ = 0;
      if (refused.error().code != Code::kUnavailable) break;
    }
    return refused;
  }
  Status Read(const SsdEntry& entry, MutableByteSpan dst,
              UniqueFunction<void(Status)> done) override {
    return disks_[DiskOf(entry)]->Read(Inner(entry), dst, std::move(done));
  }

  void Flush(UniqueFunction<void(Status)> done) override {
    struct All {
      size_t left;
      Status status;
      UniqueFunction<void(Status)> done;
    };
    auto all = std::make_shared<All>(All{disks_.size(), OkStatus(), std::move(done)});
    for (const auto& disk : disks_) {
      disk->Flush([all](Status status) {
        if (!status && all->status) all->status = std::move(status);
        if (--all->left == 0) all->done(std::move(all->status));
      });
    }
  }
  Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) override {
    for (const auto& disk : disks_) TIERCEL_TRY(disk->Clear(name_space, scope, generation));
    return OkStatus();
  }
  void Verify(UniqueFunction<void(Result<VerifyReport>)> done) override {
    struct All {
      size_t left;
      Result<VerifyReport> report;
      UniqueFunction<void(Result<VerifyReport>)> done;
    };
    auto all = std::make_shared<All>(All{disks_.size(), VerifyReport(), std::move(done)});
    for (const auto& disk : disks_) {
      disk->Verify([all](Result<VerifyReport> one) {
        if (!one) {
          all->report = std::move(one);
        } else if (all->report) {
          all->report->records += one->records;
          all->report->bytes += one->bytes;
          all->report->bad += one->bad;
          for (std::string& finding : one->findings) {
            if (all->report->findings.size() < 100)
              all->report->findings.push_back(std::move(finding));
          }
        }
        if (--all->left == 0) all->done(std::move(all->report));
      });
    }
  }

  size_t Poll() override {
    size_t happened = 0;
    for (const auto& disk : disks_) happened += disk->Poll();
    return happened;
  }
  int event_fd() const override { return epoll_; }
  bool Arm() override {
    bool may_sleep = true;
    for (const auto& disk : disks_) may_sleep = disk->Arm() && may_sleep;
    return may_sleep;
  }
  Nanos next_wakeup() const override {
    Nanos next = INT64_MAX;
    for (const auto& disk : disks_) next = std::min(next, disk->next_wakeup());
    return next;
  }
  bool available() const override {
    return std::any_of(disks_.begin(), disks_.end(),
                       [](const auto& disk) { return disk->available(); });
  }
  bool readable() const override {
    return std::any_of(disks_.begin(), disks_.end(),
                       [](const auto& disk) { return disk->readable(); });
  }
  std::string why() const override {
    std::string all;
    for (size_t i = 0; i < disks_.size(); ++i) {
      const std::string one = disks_[i]->why();
      if (one.empty()) continue;
      if (!all.empty()) all += "; ";
      all += "disk " + std::to_string(i) + ": " + one;
    }
    return all;
  }
  Stats stats() const override {
    Stats all;
    for (const auto& disk : disks_) {
      const Stats one = disk->stats();
      all.used_bytes += one.used_bytes;
      all.segments += one.segments;
      all.queued_bytes += one.queued_bytes;
      all.queued_reads += one.queued_reads;
      all.written_bytes += one.written_bytes;
      all.read_bytes += one.read_bytes;
      all.dropped_segments += one.dropped_segments;
      all.corrupt_reads += one.corrupt_reads;
      all.failed_writes += one.failed_writes;
      all.recoded += one.recoded;
      all.recoded_bytes += one.recoded_bytes;
      all.recoded_from_bytes += one.recoded_from_bytes;
      all.disk_bytes += one.disk_bytes;
      all.leaked_segments += one.leaked_segments;
      all.over_budget += one.over_budget;
      all.budget_left_bytes += one.budget_left_bytes;
      all.scrubbed_records += one.scrubbed_records;
      all.scrubbed_bytes += one.scrubbed_bytes;
      all.scrub_bad += one.scrub_bad;
      all.scrub_rounds += one.scrub_rounds;
      all.switched_off += one.switched_off;
      all.stalls += one.stalls;
      all.over_limit += one.over_limit;
      for (const auto& [name_space, bytes] : one.bytes_of) all.bytes_of[name_space] += bytes;
    }
    return all;
  }
  Budget budget() const override {
    Budget all{0, 0};
    for (const auto& disk : disks_) {
      const Budget one = disk->budget();
      if (one.most == UINT64_MAX) return {};
      all.left += one.left;
      all.most += one.most;
    }
    return all;
  }
  Status CorruptForTest(const SsdEntry& entry, uint64_t bit) override {
    return disks_[DiskOf(entry)]->CorruptForTest(Inner(entry), bit);
  }
  void Shutdown(Nanos timeout) override {
    if (std::exchange(shut_down_, true)) return;
    if (timeout > 0) {
      // Together, so that the slowest takes all of the time and not its share.
      size_t writing = disks_.size();
      for (const auto& disk : disks_) disk->Flush([&writing](Status) { --writing; });
      const Clock& clock = Clock::Monotonic();
      const Nanos end = clock.Now() + timeout;
      while (writing > 0 && clock.Now() < end) {
        if (Poll() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      // Every callback runs before `writing` goes.
      for (const auto& disk : disks_) disk->Shutdown(writing > 0 ? 0 : timeout);
      return;
    }
    for (const auto& disk : disks_) disk->Shutdown(0);
  }

 private:
  size_t DiskOf(const SsdEntry& entry) const { return entry.where.segment % disks_.size(); }
  SsdEntry Inner(SsdEntry entry) const {
    entry.where.segment /= static_cast<uint32_t>(disks_.size());
    return entry;
  }
  SsdEntry Outer(size_t disk, SsdEntry entry) const {
    entry.where.segment =
        entry.where.segment * static_cast<uint32_t>(disks_.size()) + static_cast<uint32_t>(disk);
    return entry;
  }
  void TakeTurn() {
    appended_ = 0;
    const auto filled = [this](size_t i) {
      const Stats stats = disks_[i]->stats();
      // What waits weighs more than what lies there: a slow disk gets less.
      return std::pair(!disks_[i]->available(), stats.used_bytes + 4 * stats.queued_bytes);
    };
    const size_t first = (at_ + 1) % disks_.size();
    auto least = filled(at_ = first);
    for (size_t i = 1; i < disks_.size(); ++i) {
      const size_t other = (first + i) % disks_.size();
      const auto its = filled(other);
      if (its >= least) continue;
      at_ = other;
      least = its;
    }
  }

  const std::vector<std::unique_ptr<SsdStore>> disks_;
  const uint64_t segment_bytes_;
  const int epoll_;
  size_t at_ = 0;
  uint64_t appended_ = 0;  // To this disk since it had its turn.
  bool shut_down_ = false;
};

}  // namespace

std::unique_ptr<SsdStore> JoinDisks(std::vector<std::unique_ptr<SsdStore>> disks,
                                    uint64_t segment_bytes) {
  TIERCEL_CHECK(!disks.empty());
  if (disks.size() == 1) return std::move(disks.front());
  return std::make_unique<JoinedStore>(std::move(disks), segment_bytes);
}

}  // namespace tiercel
