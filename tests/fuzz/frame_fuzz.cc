// Everything a peer may send that is not a record: frame headers, chains, match entries.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/crc32c.h"
#include "proto/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  (void)DecodeFrameHeader(bytes);
  if (size >= kFrameHeaderBytes) {
    // With its checksum repaired, so that the fields behind it are reached.
    std::array<std::byte, kFrameHeaderBytes> header;
    std::copy_n(bytes.begin(), header.size(), header.begin());
    StoreLe<uint32_t>(header.data(), kFrameMagic);
    StoreLe<uint32_t>(header.data() + 52,
                      Crc32c(ByteSpan(header).subspan(56, 8), Crc32c(ByteSpan(header).first(52))));
    if (const auto decoded = DecodeFrameHeader(header); decoded) {
      std::array<std::byte, kFrameHeaderBytes> again;
      EncodeFrameHeader(*decoded, again.data());
      const auto twice = DecodeFrameHeader(again);
      TIERCEL_CHECK(twice && twice->req_id == decoded->req_id && twice->op == decoded->op);
    }
  }
  ChainMeta meta;
  if (DecodeChainMeta(bytes, meta)) {
    for (size_t i = 0; i < meta.keys.size(); ++i) (void)meta.anchor_of(i);
    ChainMeta twice;
    TIERCEL_CHECK(DecodeChainMeta(EncodeChainMeta(meta), twice).has_value());
    TIERCEL_CHECK(twice.keys == meta.keys && twice.anchors == meta.anchors);
  }
  (void)DecodeMatchEntry(bytes);
  return 0;
}
