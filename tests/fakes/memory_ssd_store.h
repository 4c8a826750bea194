// MemorySsdStore is the SsdStore seam on a disk that belongs to the test: it lives in memory, takes
// virtual time, and can crash, fill up, fail and rot.
//
//   MemoryDisk disk;                                  what survives a crash
//   auto store = std::make_unique<MemorySsdStore>(disk, options, latency, clock, seed);
//   clock.Set(store->next_wakeup()); store->Poll();
//
// Segments, sealing, limits and the choice of a victim are those of the store it stands for,
// budgets and quotas aside; the conformance suite (tests/conformance/ssd_store_conformance.h) holds
// both to the seam.
//
// Ownership: the disk must outlive its stores; one store a disk at a time. Threads: one.
#ifndef TIERCEL_TESTS_FAKES_MEMORY_SSD_STORE_H_
#define TIERCEL_TESTS_FAKES_MEMORY_SSD_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tiering/open_segment.h"
#include "tiering/ssd_room.h"
#include "tiering/ssd_store.h"

namespace tiercel {

struct MemoryDisk {
  struct Segment {
    std::vector<SsdEntry> entries;
    std::vector<std::vector<std::byte>> records;  // By slot.
  };
  std::map<uint32_t, Segment> segments;
  std::map<std::pair<uint32_t, Scope>, uint64_t> clears;

  // Faults, to be set at any time.
  uint64_t quota = UINT64_MAX;  // Record bytes that fit: a segment over it fails as on a full disk.
  double flip = 0;              // Chance that a read sees one wrong bit.
  double lose = 0;              // Chance that a read finds its segment gone.

  uint64_t bytes() const;
};

class MemorySsdStore final : public SsdStore {
 public:
  struct Latency {
    Nanos min_read = 60 * kMicrosecond;
    Nanos max_read = 3 * kMillisecond;
    double bytes_per_nano = 1.0;  // Of reads and writes alike, one after the other.
  };

  MemorySsdStore(MemoryDisk& disk, const Options& options, const Latency& latency,
                 const Clock& clock, uint64_t seed);
  ~MemorySsdStore() override { Shutdown(0); }

  // Power goes: nothing more reaches the disk. A segment under way is there whole or not at all, by
  // the seed. What waits is answered kUnavailable by Shutdown.
  void Crash();

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
  int event_fd() const override { return -1; }
  bool Arm() override { return next_wakeup() > clock_.Now(); }
  Nanos next_wakeup() const override;
  bool available() const override { return clock_.Now() >= off_until_; }
  bool readable() const override { return true; }
  std::string why() const override { return available() ? "" : why_; }
  Stats stats() const override;
  Budget budget() const override { return {}; }
  Status CorruptForTest(const SsdEntry& entry, uint64_t bit) override;
  void Shutdown(Nanos timeout) override;

 private:
  void At(Nanos when, UniqueFunction<void()> event) { events_.emplace(when, std::move(event)); }
  Nanos Busy(uint64_t bytes);  // When the disk has moved so many more bytes.
  void Seal();
  Status Store(OpenSegment& segment);
  void MakeRoom();
  void FinishFlushes();
  Status ReadNow(const SsdEntry& entry, MutableByteSpan dst);

  MemoryDisk& disk_;
  const Options options_;
  const Latency latency_;
  const Clock& clock_;
  SplitMix64 random_;
  SsdRoom room_;
  std::function<void(const std::vector<SsdEntry>&)> on_dropped_;
  std::multimap<Nanos, UniqueFunction<void()>> events_;
  OpenSegment open_;
  std::vector<std::shared_ptr<OpenSegment>> writing_;
  std::vector<UniqueFunction<void(Status)>> flushes_;
  Status last_write_;
  std::map<uint32_t, uint64_t> last_read_;  // segment -> in reads of this store
  uint64_t reads_ = 0;
  uint32_t next_segment_ = 1;
  uint64_t last_generation_ = 0;
  Nanos busy_until_ = 0;
  Nanos off_until_ = 0;
  std::string why_;
  bool verifying_ = false;
  bool crashed_ = false;
  bool shut_down_ = false;
  Stats stats_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_FAKES_MEMORY_SSD_STORE_H_
