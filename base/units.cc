#include "base/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>

namespace tiercel {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

Result<double> ParseWithUnit(std::string_view text, const Unit* units, size_t count,
                             std::string_view what) {
  double number = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  if (ec == std::errc() && std::isfinite(number) && number >= 0) {
    for (size_t i = 0; i < count; ++i) {
      const double value = number * units[i].factor;
      if (unit == units[i].name && value < 9e18) return value;
    }
  }
  return Fail(Code::kInvalidArgument, fmt::format("'{}' is not {}", text, what));
}

}  // namespace

Result<uint64_t> ParseBytes(std::string_view text) {
  static constexpr std::array<Unit, 14> kUnits = {
      {{"", 1}, {"B", 1}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0},
       {"TiB", 1099511627776.0}, {"K", 1024.0}, {"M", 1048576.0}, {"G", 1073741824.0},
       {"T", 1099511627776.0}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}}};
  TIERCEL_ASSIGN(const double value, ParseWithUnit(text, kUnits.data(), kUnits.size(),
                                                   "a size like 512MiB or 20GiB"));
  return static_cast<uint64_t>(value);
}

std::string FormatBytes(uint64_t bytes) {
  static constexpr std::array<std::string_view, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kNames[unit]);
}

Result<Nanos> ParseDuration(std::string_view text) {
  static constexpr std::array<Unit, 6> kUnits = {
      {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}, {"d", 86400e9}}};
  TIERCEL_ASSIGN(const double value, ParseWithUnit(text, kUnits.data(), kUnits.size(),
                                                   "a time like 250ms, 5s or 2m"));
  return static_cast<Nanos>(value);
}

}  // namespace tiercel
