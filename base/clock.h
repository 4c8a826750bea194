// Clock is where every deadline and timeout of ours gets its time, so that the simulator can own it.
// Times are nanoseconds of a monotonic clock whose zero means nothing, save UnixSeconds, which is for what
// must be told after a restart: it may be set, forward and back.
#ifndef TIERCEL_BASE_CLOCK_H_
#define TIERCEL_BASE_CLOCK_H_

#include <cstdint>

namespace tiercel {

using Nanos = int64_t;
inline constexpr Nanos kMicrosecond = 1'000;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanos Now() const = 0;
  virtual uint32_t UnixSeconds() const = 0;

  // The machine's monotonic clock; lives for the whole process; any thread.
  static const Clock& Monotonic();
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_CLOCK_H_
