// Sizes in bytes, and how people write them.
#ifndef TIERCEL_BASE_UNITS_H_
#define TIERCEL_BASE_UNITS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"

namespace tiercel {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

constexpr uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// "64KiB", "1.5 GiB", "1000000", "2GB" (10^9). Errors: kInvalidArgument names the text.
Result<uint64_t> ParseBytes(std::string_view text);
// "1.5 GiB"; exact below 1024.
std::string FormatBytes(uint64_t bytes);
// "250ms", "5s", "2m", "10us". Errors: kInvalidArgument names the text.
Result<Nanos> ParseDuration(std::string_view text);

}  // namespace tiercel

#endif  // TIERCEL_BASE_UNITS_H_
