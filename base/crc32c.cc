#include "base/crc32c.h"

#include <nmmintrin.h>

#include <array>

namespace tiercel {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t ExtendTable(const std::byte* data, size_t size, uint32_t crc) {
  for (size_t i = 0; i < size; ++i) {
    crc = (crc >> 8) ^ kTable[(crc ^ std::to_integer<uint32_t>(data[i])) & 255];
  }
  return crc;
}

__attribute__((target("sse4.2"))) uint32_t ExtendSse42(const std::byte* data, size_t size,
                                                       uint32_t crc) {
  uint64_t wide = crc;
  for (; size >= 8; data += 8, size -= 8) wide = _mm_crc32_u64(wide, LoadLe<uint64_t>(data));
  crc = static_cast<uint32_t>(wide);
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, std::to_integer<uint8_t>(*data));
  return crc;
}

}  // namespace

uint32_t Crc32c(ByteSpan bytes, uint32_t crc) {
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2") != 0;
  crc = ~crc;
  crc = has_sse42 ? ExtendSse42(bytes.data(), bytes.size(), crc)
                  : ExtendTable(bytes.data(), bytes.size(), crc);
  return ~crc;
}

}  // namespace tiercel
