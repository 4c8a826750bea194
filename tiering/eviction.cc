#include "tiering/eviction.h"

#include <fmt/format.h>

#include "tiering/policy_hazard.h"
#include "tiering/policy_lists.h"

namespace tiercel {

const std::vector<std::string>& PolicyNames() {
  static const std::vector<std::string> names = {"hazard", "lru", "haz1", "lfu", "s3fifo"};
  return names;
}

Result<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name, uint64_t seed) {
  if (name == "lru") return std::make_unique<TailFirstLru>();
  if (name == "lfu") return std::make_unique<Lfu>();
  if (name == "s3fifo") return std::make_unique<S3Fifo>();
  if (name == "haz1") return std::make_unique<HazardPolicy>(seed, /*hints_and_turns=*/false);
  if (name == "hazard") return std::make_unique<HazardPolicy>(seed, /*hints_and_turns=*/true);
  return Fail(Code::kInvalidArgument, fmt::format("there is no policy \"{}\"; there are {}", name,
                                                  fmt::join(PolicyNames(), ", ")));
}

}  // namespace tiercel
