#include "kernels/codec.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <utility>

#include "kernels/digest.h"

namespace tiercel {
namespace {

constexpr std::array<std::pair<CodecId, std::string_view>, 12> kNames = {{
    {CodecId::kRaw, "raw"},
    {CodecId::kLlf, "llf"},
    {CodecId::kLle, "lle"},
    {CodecId::kF8, "f8"},
    {CodecId::kI8, "i8"},
    {CodecId::kI4h, "i4h"},
    {CodecId::kTq, "tq"},
    {CodecId::kEcC, "ec-c"},
    {CodecId::kEcK, "ec-k"},
    {CodecId::kEcX, "ec-x"},
    {CodecId::kI8e, "i8e"},
    {CodecId::kAuto, "auto"},
}};

class RawCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kRaw; }
  QualityClass quality() const override { return QualityClass::kExact; }
  bool Supports(const SegmentShape&) const override { return true; }
  uint64_t step_bytes(const SegmentShape&) const override { return 16 << 10; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out, const CodecContext&) const override {
    if (raw.size() != shape.raw_bytes || out.size() < raw.size()) return std::nullopt;
    DigestStream digest;
    digest.Copy(raw, out.data());
    return EncodedSegment{raw.size(), 0, digest.Finish()};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext&) const override {
    if (params != 0 || encoded.size() != shape.raw_bytes) {
      return Fail(Code::kDataLoss, fmt::format("RAW segment of {} bytes holds {} (params {})",
                                               shape.raw_bytes, encoded.size(), params));
    }
    if (begin > encoded.size() || out.size() > encoded.size() - begin) {
      return Fail(Code::kInvalidArgument, fmt::format("RAW segment of {} bytes: no step {}+{}",
                                                      encoded.size(), begin, out.size()));
    }
    if (!out.empty()) std::memcpy(out.data(), encoded.data() + begin, out.size());
    return OkStatus();
  }
};

}  // namespace

std::string_view Name(CodecId id) {
  for (const auto& [value, name] : kNames) {
    if (value == id) return name;
  }
  return "unknown";
}

std::optional<CodecId> ParseCodecId(std::string_view name) {
  for (const auto& [value, known] : kNames) {
    if (known == name) return value;
  }
  return std::nullopt;
}

std::string_view Name(SegmentKind kind) {
  switch (kind) {
    case SegmentKind::kK:
      return "K";
    case SegmentKind::kV:
      return "V";
    case SegmentKind::kKv:
      return "KV";
    case SegmentKind::kLatent:
      return "latent";
    case SegmentKind::kOpaque:
      return "opaque";
  }
  return "unknown";
}

const Codec& RawCodec() {
  static const RawCodecImpl codec;
  return codec;
}

const Codec* FindCodec(CodecId id) {
  switch (id) {
    case CodecId::kRaw:
      return &RawCodec();
    case CodecId::kLlf:
      return &LlfCodec();
    case CodecId::kLle:
      return &LleCodec();
    case CodecId::kEcK:
      return &EcKCodec();
    case CodecId::kEcX:
      return &EcXCodec();
    case CodecId::kEcC:
      return &EcCCodec();
    case CodecId::kF8:
      return &F8Codec();
    case CodecId::kI8:
      return &I8Codec();
    case CodecId::kI8e:
      return &I8eCodec();
    case CodecId::kI4h:
      return &I4hCodec();
    default:
      return nullptr;
  }
}

CodecId ResolveCodec(CodecId id, Dtype dtype) {
  if (id != CodecId::kAuto) return id;
  return dtype == Dtype::kBf16 || dtype == Dtype::kFp16 ? CodecId::kLlf : CodecId::kRaw;
}

}  // namespace tiercel
