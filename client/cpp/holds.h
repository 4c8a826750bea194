// HoldRegistry keeps what callers read in place on this host. A HeldRecord may be ended on any
// thread; the transport's part of it dies on the driver.
//
// Threads: Make, Drain, Clear by the driver; a HeldRecord's own methods by any thread.
#ifndef TIERCEL_CLIENT_CPP_HOLDS_H_
#define TIERCEL_CLIENT_CPP_HOLDS_H_

#include <atomic>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "client/cpp/client.h"

namespace tiercel {

class HoldRegistry : public std::enable_shared_from_this<HoldRegistry> {
 public:
  std::unique_ptr<HeldRecord> Make(std::unique_ptr<InPlaceHold> hold, ByteSpan record) {
    const uint64_t id = next_++;
    live_.emplace(id, std::move(hold));
    any_.store(true, std::memory_order_relaxed);
    return std::make_unique<Held>(shared_from_this(), id, record);
  }

  // Ends what callers have let go of; returns how many.
  size_t Drain() {
    if (!ended_any_.exchange(false, std::memory_order_acq_rel)) return 0;
    {
      MutexLock lock(mutex_);
      ended_.swap(draining_);
    }
    for (const uint64_t id : draining_) live_.erase(id);
    const size_t count = draining_.size();
    draining_.clear();
    any_.store(!live_.empty(), std::memory_order_relaxed);
    return count;
  }

  // The transport goes: what is still held reads as empty from here on.
  void Clear() {
    cleared_.store(true, std::memory_order_release);
    live_.clear();
    any_.store(false, std::memory_order_relaxed);
  }
  bool any() const { return any_.load(std::memory_order_relaxed); }

 private:
  class Held final : public HeldRecord {
   public:
    Held(std::shared_ptr<HoldRegistry> registry, uint64_t id, ByteSpan record)
        : registry_(std::move(registry)), id_(id), record_(record) {}
    ~Held() override { registry_->End(id_); }
    ByteSpan record() const override {
      return registry_->cleared_.load(std::memory_order_acquire) ? ByteSpan() : record_;
    }

   private:
    const std::shared_ptr<HoldRegistry> registry_;
    const uint64_t id_;
    const ByteSpan record_;
  };

  void End(uint64_t id) {
    {
      MutexLock lock(mutex_);
      ended_.push_back(id);
    }
    ended_any_.store(true, std::memory_order_release);
  }

  uint64_t next_ = 1;
  std::unordered_map<uint64_t, std::unique_ptr<InPlaceHold>> live_;
  std::vector<uint64_t> draining_;
  std::atomic<bool> any_{false};
  std::atomic<bool> cleared_{false};
  std::atomic<bool> ended_any_{false};
  Mutex mutex_;
  std::vector<uint64_t> ended_ TIERCEL_GUARDED_BY(mutex_);
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_HOLDS_H_
