#include "base/clock.h"

#include <ctime>

namespace tiercel {
namespace {

class MonotonicClock final : public Clock {
 public:
  Nanos Now() const override {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<Nanos>(ts.tv_sec) * kSecond + ts.tv_nsec;
  }
  uint32_t UnixSeconds() const override { return static_cast<uint32_t>(std::time(nullptr)); }
};

}  // namespace

const Clock& Clock::Monotonic() {
  static const MonotonicClock clock;
  return clock;
}

}  // namespace tiercel
