#include "kernels/llf_core.h"
#include "kernels/llf_groups.h"

namespace tiercel::llf {
namespace {

template <bool kFp16>
uint32_t Exponent(uint16_t value) {
  return kFp16 ? Fp16Exponent(value) : Bf16Exponent(value);
}

template <bool kFp16>
bool Encode(const std::byte* raw, size_t groups, uint32_t base, uint32_t first_position,
            PlanesOut out, EscapeList& escapes) {
  for (size_t group = 0; group < groups; ++group) {
    uint64_t escape_mask = 0;
    uint64_t bits[3] = {0, 0, 0};
    uint8_t codes[kGroup];
    for (uint32_t i = 0; i < kGroup; ++i) {
      const auto value = LoadLe<uint16_t>(raw + 2 * i);
      codes[i] = ExponentCode(Exponent<kFp16>(value), base);
      if (codes[i] == kCodeEscape) escape_mask |= uint64_t{1} << i;
      out.low[i] = static_cast<std::byte>(kFp16 ? Fp16Low(value) : Bf16Low(value));
      if constexpr (kFp16) {
        bits[0] |= static_cast<uint64_t>((value >> 15) & 1) << i;
        bits[1] |= static_cast<uint64_t>((value >> 9) & 1) << i;
        bits[2] |= static_cast<uint64_t>((value >> 8) & 1) << i;
      }
    }
    for (uint32_t i = 0; i < 32; ++i) {
      out.codes[i] = static_cast<std::byte>(codes[i] | (codes[i + 32] << 4));
    }
    if constexpr (kFp16) {
      for (uint32_t plane = 0; plane < 3; ++plane) StoreLe(out.bits + 8 * plane, bits[plane]);
      out.bits += kBitBytes;
    }
    const auto position = first_position + static_cast<uint32_t>(group * kGroup);
    if (!AppendEscapes(escape_mask, position, escapes, [&](uint32_t i) {
          return Exponent<kFp16>(LoadLe<uint16_t>(raw + 2 * i));
        })) {
      return false;
    }
    raw += 2 * kGroup;
    out.low += kLowBytes;
    out.codes += kCodeBytes;
  }
  return true;
}

template <bool kFp16>
void Decode(PlanesIn in, size_t groups, const std::byte* codebook, std::byte* raw) {
  for (size_t group = 0; group < groups; ++group) {
    uint64_t bits[3] = {0, 0, 0};
    if constexpr (kFp16) {
      for (uint32_t plane = 0; plane < 3; ++plane) {
        bits[plane] = LoadLe<uint64_t>(in.bits + 8 * plane);
      }
      in.bits += kBitBytes;
    }
    for (uint32_t i = 0; i < kGroup; ++i) {
      const uint8_t code = CodeOf(reinterpret_cast<const uint8_t*>(in.codes), i);
      const auto exponent = std::to_integer<uint32_t>(codebook[code]);
      const auto low = std::to_integer<uint8_t>(in.low[i]);
      const auto bit = [&](int plane) { return static_cast<uint32_t>((bits[plane] >> i) & 1); };
      StoreLe<uint16_t>(raw + 2 * i, kFp16 ? Fp16Join(low, exponent, bit(0), bit(1), bit(2))
                                           : Bf16Join(low, exponent));
    }
    raw += 2 * kGroup;
    in.low += kLowBytes;
    in.codes += kCodeBytes;
  }
}

}  // namespace

GroupFns ScalarBf16() { return {Encode<false>, Decode<false>}; }
GroupFns ScalarFp16() { return {Encode<true>, Decode<true>}; }

}  // namespace tiercel::llf
