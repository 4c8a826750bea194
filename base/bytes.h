// Spans of raw bytes and little-endian loads and stores. Every file and wire of ours is
// little-endian; the target machines are too (checked below), so a load is one memcpy.
#ifndef TIERCEL_BASE_BYTES_H_
#define TIERCEL_BASE_BYTES_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace tiercel {

static_assert(std::endian::native == std::endian::little, "Tiercel's formats need little-endian");

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

template <class T>
  requires std::is_trivially_copyable_v<T>
T LoadLe(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
  requires std::is_trivially_copyable_v<T>
void StoreLe(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

inline ByteSpan AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view AsText(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Lower-case hex, two digits a byte.
std::string ToHex(ByteSpan bytes);
// False, with out half written, when hex is not exactly two hex digits a byte of out.
bool FromHex(std::string_view hex, MutableByteSpan out);

}  // namespace tiercel

#endif  // TIERCEL_BASE_BYTES_H_
