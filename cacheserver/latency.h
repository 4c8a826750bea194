// LatencyHistogram counts durations by powers of two of microseconds.
//
// Threads: one owner; copies are plain values. Errors: none; what is negative counts as zero.
#ifndef TIERCEL_CACHESERVER_LATENCY_H_
#define TIERCEL_CACHESERVER_LATENCY_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace tiercel {

// Bucket i holds those under 2^i us, the last one all that are longer.
struct LatencyHistogram {
  static constexpr int kBuckets = 24;
  std::array<uint64_t, kBuckets> counts{};
  double sum_seconds = 0;

  void Add(Nanos duration) {
    const auto micros = static_cast<uint64_t>(std::max<Nanos>(duration, 0) / kMicrosecond);
    ++counts[std::min<size_t>(static_cast<size_t>(std::bit_width(micros)), kBuckets - 1)];
    sum_seconds += static_cast<double>(duration) * 1e-9;
  }
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_LATENCY_H_
