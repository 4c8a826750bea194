// Mutex is std::mutex with clang's thread-safety attributes (libstdc++'s own is not annotated), so
// that `clang++ -Wthread-safety` proves which data it guards.
#ifndef TIERCEL_BASE_MUTEX_H_
#define TIERCEL_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define TIERCEL_THREAD_ATTR(x) __attribute__((x))
#else
#define TIERCEL_THREAD_ATTR(x)
#endif
#define TIERCEL_GUARDED_BY(m) TIERCEL_THREAD_ATTR(guarded_by(m))
#define TIERCEL_REQUIRES(m) TIERCEL_THREAD_ATTR(requires_capability(m))
#define TIERCEL_EXCLUDES(m) TIERCEL_THREAD_ATTR(locks_excluded(m))

namespace tiercel {

class TIERCEL_THREAD_ATTR(capability("mutex")) Mutex {
 public:
  void Lock() TIERCEL_THREAD_ATTR(acquire_capability()) { mutex_.lock(); }
  bool TryLock() TIERCEL_THREAD_ATTR(try_acquire_capability(true)) { return mutex_.try_lock(); }
  void Unlock() TIERCEL_THREAD_ATTR(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class TIERCEL_THREAD_ATTR(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) TIERCEL_THREAD_ATTR(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() TIERCEL_THREAD_ATTR(release_capability()) { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits with the mutex held; spurious wake-ups happen, so wait in a loop over the condition.
class CondVar {
 public:
  void Wait(Mutex& mutex) TIERCEL_REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // False when the time ran out.
  bool WaitFor(Mutex& mutex, std::chrono::nanoseconds timeout) TIERCEL_REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool woken = cv_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_MUTEX_H_
