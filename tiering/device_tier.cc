#include "tiering/device_tier.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/check.h"

namespace tiercel {
namespace {

constexpr uint64_t kUnit = 4 * kKiB;

}  // namespace

DeviceTier::DeviceTier(std::unique_ptr<DeviceMemory> memory, size_t max_queued)
    : memory_(std::move(memory)),
      max_queued_(max_queued),
      largest_(memory_->staging(0).size()),
      event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  stats_.capacity_bytes = memory_->bytes() / kUnit * kUnit;
  if (stats_.capacity_bytes > 0) {
    free_.emplace(0, stats_.capacity_bytes);
    free_by_size_.emplace(stats_.capacity_bytes, 0);
  }
  mover_ = std::thread([this] { Run(); });
}

DeviceTier::~DeviceTier() { Shutdown(); }

// ---- room --------------------------------------------------------------------------------------

std::optional<DeviceExtent> DeviceTier::Allocate(uint64_t bytes) {
  if (bytes == 0 || bytes > largest_) return std::nullopt;
  const uint64_t rounded = RoundUp(bytes, kUnit);
  const auto best = free_by_size_.lower_bound({rounded, 0});
  if (best == free_by_size_.end()) return std::nullopt;
  const auto [size, offset] = *best;
  free_by_size_.erase(best);
  free_.erase(offset);
  if (size > rounded) {
    free_.emplace(offset + rounded, size - rounded);
    free_by_size_.emplace(size - rounded, offset + rounded);
  }
  stats_.used_bytes += rounded;
  return DeviceExtent{offset, rounded};
}

void DeviceTier::Free(const DeviceExtent& extent) {
  TIERCEL_CHECK(extent.bytes > 0 && stats_.used_bytes >= extent.bytes);
  stats_.used_bytes -= extent.bytes;
  uint64_t offset = extent.offset;
  uint64_t bytes = extent.bytes;
  auto after = free_.lower_bound(offset);
  if (after != free_.end() && after->first == offset + bytes) {
    bytes += after->second;
    free_by_size_.erase({after->second, after->first});
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    TIERCEL_CHECK(before->first + before->second <= offset);  // Else freed twice.
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      free_by_size_.erase({before->second, before->first});
      free_.erase(before);
    }
  }
  free_.emplace(offset, bytes);
  free_by_size_.emplace(bytes, offset);
}

// ---- asking ------------------------------------------------------------------------------------

Status DeviceTier::Store(ByteSpan record, const DeviceExtent& to, Done done) {
  TIERCEL_CHECK(record.size() <= to.bytes);
  // Stored bytes are only read.
  auto* host = const_cast<std::byte*>(record.data());
  return Queue(
      {DeviceMemory::Direction::kToDevice, host, to.offset, record.size(), std::move(done)});
}

Status DeviceTier::Load(const DeviceExtent& from, MutableByteSpan room, Done done) {
  TIERCEL_CHECK(room.size() <= from.bytes);
  return Queue(
      {DeviceMemory::Direction::kToHost, room.data(), from.offset, room.size(), std::move(done)});
}

Status DeviceTier::Queue(Job job) {
  if (!available()) return Fail(Code::kUnavailable, why_);
  if (under_way_ >= max_queued_)
    return Fail(Code::kResourceExhausted, "too much waits for the device");
  {
    MutexLock lock(mutex_);
    if (stop_) return Fail(Code::kUnavailable, "the device tier is shut down");
    waiting_.push_back(std::move(job));
  }
  ++under_way_;
  work_.NotifyOne();
  return OkStatus();
}

size_t DeviceTier::Poll() {
  uint64_t count = 0;
  (void)!read(event_.get(), &count, sizeof(count));
  std::deque<Job> done;
  {
    MutexLock lock(mutex_);
    done.swap(done_);
  }
  for (Job& job : done) {
    --under_way_;
    if (job.status) {
      ++(job.direction == DeviceMemory::Direction::kToDevice ? stats_.stored : stats_.loaded);
    } else if (why_.empty()) {
      why_ = job.status.error().message;
    }
    job.done(std::move(job.status));
  }
  return done.size();
}

void DeviceTier::Shutdown() {
  if (!mover_.joinable()) return;
  {
    MutexLock lock(mutex_);
    stop_ = true;
  }
  work_.NotifyOne();
  mover_.join();
  while (Poll() > 0) {
  }
}

DeviceTier::Stats DeviceTier::stats() const {
  Stats stats = stats_;
  stats.queued = under_way_;
  MutexLock lock(mutex_);
  stats.batches = batches_;
  return stats;
}

// ---- the mover ---------------------------------------------------------------------------------

// While one lane copies, the other is filled or read.
void DeviceTier::Run() {
  pthread_setname_np(pthread_self(), "device-mover");
  std::array<Batch, DeviceMemory::kLanes> flying;
  static_assert(DeviceMemory::kLanes == 2);
  for (int lane = 0;; lane = 1 - lane) {
    Batch& mine = flying[static_cast<size_t>(lane)];
    Batch& other = flying[static_cast<size_t>(1 - lane)];
    if (NextBatch(&mine, /*wait=*/other.empty())) {
      Begin(lane, mine);
    } else if (other.empty()) {
      return;
    }
    if (!other.empty()) End(1 - lane, other);
  }
}

// Jobs of one direction that fit the staging together. False: none; with wait: and none will come.
bool DeviceTier::NextBatch(Batch* batch, bool wait) {
  MutexLock lock(mutex_);
  while (waiting_.empty() && wait && !stop_) work_.Wait(mutex_);
  uint64_t staging = 0;
  while (!waiting_.empty()) {
    Job& next = waiting_.front();
    const bool fits = staging + next.bytes <= largest_ &&
                      (batch->empty() || next.direction == batch->front().direction);
    if (!fits) break;
    next.staging = staging;
    staging = RoundUp(staging + next.bytes, kUnit);
    batch->push_back(std::move(next));
    waiting_.pop_front();
  }
  batches_ += batch->empty() ? 0 : 1;
  return !batch->empty();
}

void DeviceTier::Begin(int lane, Batch& batch) {
  std::vector<DeviceMemory::Piece> pieces;
  for (const Job& job : batch) {
    pieces.push_back({job.device, job.staging, job.bytes});
    if (job.direction == DeviceMemory::Direction::kToHost) continue;
    std::memcpy(memory_->staging(lane).data() + job.staging, job.host, job.bytes);
  }
  const Status started = memory_->Start(lane, batch.front().direction, pieces);
  for (Job& job : batch) job.status = started;
}

void DeviceTier::End(int lane, Batch& batch) {
  const Status waited = memory_->Wait(lane);
  for (Job& job : batch) {
    if (job.status) job.status = waited;
    if (!job.status || job.direction == DeviceMemory::Direction::kToDevice) continue;
    std::memcpy(job.host, memory_->staging(lane).data() + job.staging, job.bytes);
  }
  {
    MutexLock lock(mutex_);
    for (Job& job : batch) done_.push_back(std::move(job));
  }
  batch.clear();
  const uint64_t one = 1;
  (void)!write(event_.get(), &one, sizeof(one));
}

}  // namespace tiercel
