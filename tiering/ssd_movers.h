// Movers is a fixed set of threads that run tasks in order. Their queue has no limit of its own:
// whoever pushes bounds what is under way. The destructor runs what is queued, then joins.
//
// A thread that has just finished looks for more for up to `spin` before it sleeps, one thread at a
// time: of two reads in a row, the second need not wait for a wake-up.
//
// Threads: Push from any.
#ifndef TIERCEL_TIERING_SSD_MOVERS_H_
#define TIERCEL_TIERING_SSD_MOVERS_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/unique_function.h"

namespace tiercel {

class Movers {
 public:
  using Task = UniqueFunction<void()>;
  explicit Movers(uint32_t threads, Nanos spin = 0) : spin_(spin) {
    for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~Movers() {
    {
      MutexLock lock(mutex_);
      stop_ = true;
    }
    wake_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
  }
  void Push(Task task) {
    {
      MutexLock lock(mutex_);
      tasks_.push_back(std::move(task));
      waiting_.store(tasks_.size(), std::memory_order_release);
      if (spinning_ && tasks_.size() == 1)
        return;  // It looks once more, under the lock, before it sleeps.
    }
    wake_.NotifyOne();
  }

 private:
  void Run() {
    bool worked = false;
    for (;;) {
      Task task;
      {
        MutexLock lock(mutex_);
        if (tasks_.empty() && !stop_ && worked && spin_ > 0 && !spinning_) {
          spinning_ = true;
          mutex_.Unlock();
          Look();
          mutex_.Lock();
          spinning_ = false;
        }
        while (tasks_.empty() && !stop_) wake_.Wait(mutex_);
        if (tasks_.empty()) return;  // Stopping, and nothing is left.
        task = std::move(tasks_.front());
        tasks_.pop_front();
        waiting_.store(tasks_.size(), std::memory_order_relaxed);
      }
      task();
      worked = true;
    }
  }
  void Look() const {
    const Nanos until = Clock::Monotonic().Now() + spin_;
    while (waiting_.load(std::memory_order_acquire) == 0 && Clock::Monotonic().Now() < until) {
      std::this_thread::yield();
    }
  }

  const Nanos spin_;
  std::atomic<size_t> waiting_{0};
  bool spinning_ TIERCEL_GUARDED_BY(mutex_) = false;
  Mutex mutex_;
  CondVar wake_;
  std::deque<Task> tasks_ TIERCEL_GUARDED_BY(mutex_);
  bool stop_ TIERCEL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_MOVERS_H_
