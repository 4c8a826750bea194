// Pacer spreads writes over time: who takes bytes from it sleeps until the bytes before have had
// theirs.
//
//   rate 390 MB/s, Take(256 KiB): returns at once, the next Take 0.67 ms later
//
// Time that nobody used is not saved up, so there is no burst after a pause. A rate of 0 is no
// limit; a new rate counts from the next Take on.
//
// Threads: any. Errors: none.
#ifndef TIERCEL_TIERING_SSD_PACER_H_
#define TIERCEL_TIERING_SSD_PACER_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/units.h"

namespace tiercel {

class Pacer {
 public:
  explicit Pacer(uint64_t bytes_per_second = 0) : rate_(bytes_per_second) {}

  void SetRate(uint64_t bytes_per_second) { rate_ = bytes_per_second; }
  uint64_t rate() const { return rate_; }
  // How much is best taken at once: little while paced, so that reads get between.
  uint64_t piece_bytes() const { return rate_ == 0 ? 4 * kMiB : 256 * kKiB; }

  void Take(uint64_t bytes) {
    const uint64_t rate = rate_;
    if (rate == 0) return;
    Nanos wait = 0;
    {
      MutexLock lock(mutex_);
      const Nanos now = Clock::Monotonic().Now();
      const Nanos begin = std::max(now, free_at_);
      free_at_ =
          begin + static_cast<Nanos>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate));
      wait = begin - now;
    }
    if (wait > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(wait));
  }

 private:
  std::atomic<uint64_t> rate_;
  Mutex mutex_;
  Nanos free_at_ TIERCEL_GUARDED_BY(mutex_) = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_PACER_H_
