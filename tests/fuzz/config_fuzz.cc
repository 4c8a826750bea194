// A config file, as people write them.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "cacheserver/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const auto config = LoadConfig({reinterpret_cast<const char*>(data), size}, "fuzz.yaml", {});
  if (config) TIERCEL_CHECK(LoadConfig(PrintConfig(*config), "printed.yaml", {}).has_value());
  return 0;
}
