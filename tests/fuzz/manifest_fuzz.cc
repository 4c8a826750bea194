// A segment's manifest, as a disk may give it back.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "tiering/ssd_manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  uint32_t segment = 0;
  uint32_t slot = 0;
  (void)ParseSegment(bytes, &segment, &slot);
  const uint32_t expected = size >= 12 ? LoadLe<uint32_t>(AsBytes(bytes).data() + 8) : 0;
  const auto entries = DecodeManifest(bytes, expected);
  if (entries) TIERCEL_CHECK(DecodeManifest(EncodeManifest(expected, *entries), expected).has_value());
  return 0;
}
