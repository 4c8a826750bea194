// Breaker decides whether a node is worth asking. A node that keeps failing costs nothing until a
// probe of ours finds it well again.
//
//   closed --5 failures in a row, or over half of at least 20 in 500 ms--> open
//   open   --every 250 ms, with jitter: ProbeDue--> probe --answered--> closed
//
// A failure is no answer: a deadline, a lost connection. A miss or a refusal is an answer.
//
// Threads: one owner; the caller passes the time.
#ifndef TIERCEL_CLIENT_CPP_BREAKER_H_
#define TIERCEL_CLIENT_CPP_BREAKER_H_

#include <cstdint>

#include "base/clock.h"
#include "base/random.h"

namespace tiercel {

class Breaker {
 public:
  static constexpr uint32_t kConsecutiveFailures = 5;
  static constexpr uint32_t kMinSamples = 20;
  static constexpr Nanos kWindow = 500 * kMillisecond;
  static constexpr Nanos kProbeInterval = 250 * kMillisecond;

  explicit Breaker(uint64_t seed) : random_(seed) {}

  bool open() const { return open_; }
  void Succeeded(Nanos now);
  void Failed(Nanos now);

  // Open, and time for a probe; the next one is then an interval away.
  bool ProbeDue(Nanos now);
  Nanos next_probe() const { return next_probe_; }

 private:
  void Roll(Nanos now);
  void Schedule(Nanos now);

  SplitMix64 random_;
  bool open_ = false;
  uint32_t consecutive_ = 0;
  Nanos window_start_ = 0;
  uint32_t samples_ = 0;
  uint32_t failures_ = 0;
  Nanos next_probe_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_BREAKER_H_
