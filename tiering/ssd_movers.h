// Movers is a fixed set of threads that run tasks in order. Their queue has no limit of its own:
// whoever pushes bounds what is under way. The destructor runs what is queued, then joins.
//
// Threads: Push from any.
#ifndef TIERCEL_TIERING_SSD_MOVERS_H_
#define TIERCEL_TIERING_SSD_MOVERS_H_

#include <cstdint>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/unique_function.h"

namespace tiercel {

class Movers {
 public:
  using Task = UniqueFunction<void()>;
  explicit Movers(uint32_t threads) {
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
    }
    wake_.NotifyOne();
  }

 private:
  void Run() {
    for (;;) {
      Task task;
      {
        MutexLock lock(mutex_);
        while (tasks_.empty() && !stop_) wake_.Wait(mutex_);
        if (tasks_.empty()) return;  // Stopping, and nothing is left.
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  Mutex mutex_;
  CondVar wake_;
  std::deque<Task> tasks_ TIERCEL_GUARDED_BY(mutex_);
  bool stop_ TIERCEL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_MOVERS_H_
