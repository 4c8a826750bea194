// A view file is JSON from an operator or another node.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "proto/view.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const auto view = ParseView({reinterpret_cast<const char*>(data), size});
  if (!view) return 0;
  const auto again = ParseView(FormatView(*view));
  TIERCEL_CHECK(again.has_value());
  const Placement placement(*view);
  if (!placement.empty()) TIERCEL_CHECK(placement.Owner(PlacementKey{}) == Placement(*again).Owner(PlacementKey{}));
  return 0;
}
