// A clock that moves only when told.
#ifndef TIERCEL_TESTS_FAKES_SIM_CLOCK_H_
#define TIERCEL_TESTS_FAKES_SIM_CLOCK_H_

#include "base/clock.h"

namespace tiercel {

class SimClock final : public Clock {
 public:
  Nanos Now() const override { return now_; }
  uint32_t UnixSeconds() const override { return 1'800'000'000 + static_cast<uint32_t>(now_ / kSecond); }
  void Set(Nanos now) { now_ = now > now_ ? now : now_; }
  void Advance(Nanos by) { now_ += by; }

 private:
  Nanos now_ = kSecond;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_FAKES_SIM_CLOCK_H_
