#include "proto/types.h"

#include <array>

namespace tiercel {
namespace {

constexpr std::array<std::string_view, kQualityClasses> kClassNames = {"exact", "near", "high",
                                                                       "balanced", "small"};
constexpr std::array<std::string_view, kMissReasons> kReasonNames = {
    "none",    "never_seen", "evicted", "other_scope", "other_class", "cleared",
    "corrupt", "breaker",    "deadline", "busy",       "unknown",     "expired"};
constexpr std::array<std::string_view, 4> kHintNames = {"unknown", "likely", "unlikely", "done"};
constexpr std::array<std::string_view, kTiers> kTierNames = {"none", "device", "host", "ssd"};

template <size_t N, class Enum>
std::string_view Lookup(const std::array<std::string_view, N>& names, Enum value) {
  const auto index = static_cast<size_t>(value);
  return index < N ? names[index] : "invalid";
}

}  // namespace

std::string_view Name(QualityClass value) { return Lookup(kClassNames, value); }
std::string_view Name(MissReason value) { return Lookup(kReasonNames, value); }
std::string_view Name(ReuseHint value) { return Lookup(kHintNames, value); }
std::string_view Name(Tier value) { return Lookup(kTierNames, value); }

std::optional<QualityClass> ParseQualityClass(std::string_view name) {
  for (size_t i = 0; i < kClassNames.size(); ++i) {
    if (kClassNames[i] == name) return static_cast<QualityClass>(i);
  }
  return std::nullopt;
}

}  // namespace tiercel
