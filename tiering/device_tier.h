// DeviceTier keeps records in a device's memory: room by extents, copies in and out by one mover
// thread that gathers what waits into batches and keeps both lanes of the DeviceMemory busy.
//
//   Allocate --> Store(record, extent, done) ... Load(extent, room, done) ... Free(extent)
//
// Invariants
//   Extents never overlap and lie in units of 4 KiB; best fit, free neighbours join.
//   What Load gives after a Store that succeeded are the bytes of that Store. Every done runs once,
//   in Poll or Shutdown. At most max_queued jobs wait.
//
// Ownership: owns the memory. A record given to Store, room given to Load, and their extent stay
// until done. Threads: the shard's owner alone; the mover sees bytes and decides nothing. Errors:
// kResourceExhausted: no room (Allocate gives none), or too much waits; kUnavailable: the device
// failed, and why() says how: from then on nothing is stored or loaded.
#ifndef TIERCEL_TIERING_DEVICE_TIER_H_
#define TIERCEL_TIERING_DEVICE_TIER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "tiering/device_memory.h"

namespace tiercel {

class DeviceTier {
 public:
  using Done = UniqueFunction<void(Status)>;
  struct Stats {
    uint64_t used_bytes = 0;
    uint64_t capacity_bytes = 0;
    uint64_t stored = 0;
    uint64_t loaded = 0;
    uint64_t batches = 0;
    uint64_t queued = 0;
  };

  explicit DeviceTier(std::unique_ptr<DeviceMemory> memory, size_t max_queued = 256);
  ~DeviceTier();
  DeviceTier(const DeviceTier&) = delete;
  DeviceTier& operator=(const DeviceTier&) = delete;

  std::optional<DeviceExtent> Allocate(uint64_t bytes);  // None: no run is large enough.
  void Free(const DeviceExtent& extent);

  Status Store(ByteSpan record, const DeviceExtent& to, Done done);
  Status Load(const DeviceExtent& from, MutableByteSpan room, Done done);

  size_t Poll();
  int event_fd() const { return event_.get(); }  // Readable when Poll has work.
  void Shutdown();                               // Finishes what waits.

  bool available() const { return why_.empty(); }
  const std::string& why() const { return why_; }
  std::string name() const { return memory_->name(); }
  uint64_t largest() const { return largest_; }  // Record that fits a lane's staging.
  Stats stats() const;

 private:
  struct Job {
    DeviceMemory::Direction direction;
    std::byte* host;
    uint64_t device;
    uint64_t bytes;
    Done done;
    uint64_t staging = 0;
    Status status = OkStatus();
  };
  using Batch = std::vector<Job>;

  Status Queue(Job job);
  void Run();
  bool NextBatch(Batch* batch, bool wait) TIERCEL_EXCLUDES(mutex_);
  void Begin(int lane, Batch& batch);
  void End(int lane, Batch& batch);

  const std::unique_ptr<DeviceMemory> memory_;
  const size_t max_queued_;
  const uint64_t largest_;
  FileDescriptor event_;
  std::string why_;

  std::map<uint64_t, uint64_t> free_;                     // offset -> bytes
  std::set<std::pair<uint64_t, uint64_t>> free_by_size_;  // bytes, offset
  Stats stats_;

  mutable Mutex mutex_;
  CondVar work_;
  std::deque<Job> waiting_ TIERCEL_GUARDED_BY(mutex_);
  std::deque<Job> done_ TIERCEL_GUARDED_BY(mutex_);
  uint64_t batches_ TIERCEL_GUARDED_BY(mutex_) = 0;
  bool stop_ TIERCEL_GUARDED_BY(mutex_) = false;
  size_t under_way_ = 0;  // Queued and not told of yet.
  std::thread mover_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_DEVICE_TIER_H_
