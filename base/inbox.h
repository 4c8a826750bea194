// Inbox is how other threads talk to an owner thread: a bounded queue of messages with an eventfd to
// sleep on. A full inbox refuses, and that refusal is the back-pressure.
//
// Threads: Push from any thread; Drain and Arm from the owner alone.
#ifndef TIERCEL_BASE_INBOX_H_
#define TIERCEL_BASE_INBOX_H_

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/mutex.h"

namespace tiercel {

template <class Message>
class Inbox {
 public:
  explicit Inbox(size_t capacity)
      : capacity_(capacity), event_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    TIERCEL_CHECK(event_fd_ >= 0);
    messages_.reserve(capacity < 1024 ? capacity : 1024);
  }
  ~Inbox() { close(event_fd_); }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  // False, with the message untouched, when the inbox is full.
  [[nodiscard]] bool Push(Message&& message) {
    {
      MutexLock lock(mutex_);
      if (messages_.size() >= capacity_) return false;
      messages_.push_back(std::move(message));
      size_.store(messages_.size(), std::memory_order_release);
    }
    // seq_cst on both sides: either we see the owner asleep, or the owner sees our message.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_relaxed)) Wake();
    return true;
  }

  // Hands all messages to fn, oldest first; returns how many.
  template <class Fn>
  size_t Drain(Fn&& fn) {
    asleep_.store(false, std::memory_order_relaxed);
    if (size_.load(std::memory_order_acquire) == 0) return 0;
    {
      MutexLock lock(mutex_);
      messages_.swap(drained_);
      size_.store(0, std::memory_order_relaxed);
    }
    for (Message& message : drained_) fn(std::move(message));
    const size_t count = drained_.size();
    drained_.clear();
    return count;
  }

  // Call before sleeping on event_fd(). False: there is work, do not sleep.
  bool Arm() {
    uint64_t ignored = 0;
    while (read(event_fd_, &ignored, sizeof(ignored)) > 0) {
    }
    asleep_.store(true, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return size_.load(std::memory_order_acquire) == 0;
  }

  int event_fd() const { return event_fd_; }

 private:
  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const auto written = write(event_fd_, &one, sizeof(one));
  }

  const size_t capacity_;
  const int event_fd_;
  std::atomic<size_t> size_{0};
  std::atomic<bool> asleep_{false};
  Mutex mutex_;
  std::vector<Message> messages_ TIERCEL_GUARDED_BY(mutex_);
  std::vector<Message> drained_;  // Owner only; kept for its capacity.
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_INBOX_H_
