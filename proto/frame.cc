#include "proto/frame.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/crc32c.h"

namespace tiercel {
namespace {

// Offsets of the header's fields; docs/wire.md has the table.
enum : size_t {
  kMagicAt = 0,
  kVersionAt = 4,
  kOpAt = 5,
  kFlagsAt = 6,
  kSessionAt = 8,
  kRequestAt = 16,
  kCountAt = 24,
  kIndexAt = 28,
  kPayloadAt = 32,
  kStatusAt = 40,
  kReasonAt = 41,
  kQualityAt = 42,
  kMinClassAt = 43,
  kDeadlineAt = 44,
  kHintAt = 48,
  kTierAt = 49,
  kReservedAt = 50,  // Two bytes, zero.
  kCrcAt = 52,
  kGenerationAt = 56,
};
constexpr uint16_t kKnownFlags = 127;

uint32_t HeaderCrc(const std::byte* header) {
  const uint32_t before = Crc32c(ByteSpan(header, kCrcAt));
  return Crc32c(ByteSpan(header + kGenerationAt, 8), before);
}

Status CheckRange(const char* field, uint64_t value, uint64_t limit) {
  if (value < limit) return OkStatus();
  return Fail(Code::kInvalidArgument,
              fmt::format("frame header: {} is {}, must be under {}", field, value, limit));
}

}  // namespace

void EncodeFrameHeader(const FrameHeader& header, std::byte* out) {
  StoreLe<uint32_t>(out + kMagicAt, kFrameMagic);
  StoreLe<uint8_t>(out + kVersionAt, kWireVersion);
  StoreLe<uint8_t>(out + kOpAt, static_cast<uint8_t>(header.op));
  StoreLe<uint16_t>(out + kFlagsAt, header.flags);
  StoreLe<uint64_t>(out + kSessionAt, header.session_id);
  StoreLe<uint64_t>(out + kRequestAt, header.req_id);
  StoreLe<uint32_t>(out + kCountAt, header.count);
  StoreLe<uint32_t>(out + kIndexAt, header.index);
  StoreLe<uint64_t>(out + kPayloadAt, header.payload_bytes);
  StoreLe<uint8_t>(out + kStatusAt, static_cast<uint8_t>(header.status));
  StoreLe<uint8_t>(out + kReasonAt, static_cast<uint8_t>(header.reason));
  StoreLe<uint8_t>(out + kQualityAt, static_cast<uint8_t>(header.quality));
  StoreLe<uint8_t>(out + kMinClassAt, static_cast<uint8_t>(header.min_class));
  StoreLe<uint32_t>(out + kDeadlineAt, header.deadline_ms);
  StoreLe<uint8_t>(out + kHintAt, static_cast<uint8_t>(header.reuse_hint));
  StoreLe<uint8_t>(out + kTierAt, static_cast<uint8_t>(header.tier));
  StoreLe<uint16_t>(out + kReservedAt, 0);
  StoreLe<uint64_t>(out + kGenerationAt, header.generation);
  StoreLe<uint32_t>(out + kCrcAt, HeaderCrc(out));
}

Result<FrameHeader> DecodeFrameHeader(ByteSpan bytes) {
  if (bytes.size() < kFrameHeaderBytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("frame header: {} bytes, need 64", bytes.size()));
  }
  const std::byte* p = bytes.data();
  if (LoadLe<uint32_t>(p + kMagicAt) != kFrameMagic) {
    return Fail(Code::kInvalidArgument, "frame header: the magic is not TCL1");
  }
  if (LoadLe<uint32_t>(p + kCrcAt) != HeaderCrc(p)) {
    return Fail(Code::kInvalidArgument, "frame header: checksum mismatch");
  }
  const auto version = LoadLe<uint8_t>(p + kVersionAt);
  if (version != kWireVersion) {
    return Fail(Code::kUnimplemented, fmt::format("frame header: wire version {}, this side speaks {}",
                                                  version, kWireVersion));
  }
  const auto op = LoadLe<uint8_t>(p + kOpAt);
  if (op < 1 || op > static_cast<uint8_t>(Op::kReject)) {
    return Fail(Code::kInvalidArgument, fmt::format("frame header: unknown op {}", op));
  }
  FrameHeader header;
  header.op = static_cast<Op>(op);
  header.flags = LoadLe<uint16_t>(p + kFlagsAt);
  header.session_id = LoadLe<uint64_t>(p + kSessionAt);
  header.req_id = LoadLe<uint64_t>(p + kRequestAt);
  header.count = LoadLe<uint32_t>(p + kCountAt);
  header.index = LoadLe<uint32_t>(p + kIndexAt);
  header.payload_bytes = LoadLe<uint64_t>(p + kPayloadAt);
  const auto status = LoadLe<uint8_t>(p + kStatusAt);
  const auto reason = LoadLe<uint8_t>(p + kReasonAt);
  const auto quality = LoadLe<uint8_t>(p + kQualityAt);
  const auto min_class = LoadLe<uint8_t>(p + kMinClassAt);
  const auto hint = LoadLe<uint8_t>(p + kHintAt);
  const auto tier = LoadLe<uint8_t>(p + kTierAt);
  TIERCEL_TRY(CheckRange("flags", header.flags, kKnownFlags + 1));
  TIERCEL_TRY(CheckRange("payload_bytes", header.payload_bytes, kMaxPayloadBytes + 1));
  TIERCEL_TRY(CheckRange("count", header.count, kMaxKeys + 1));
  TIERCEL_TRY(CheckRange("index", header.index, kMaxKeys));
  TIERCEL_TRY(CheckRange("status", status, 17));
  TIERCEL_TRY(CheckRange("reason", reason, kMissReasons));
  TIERCEL_TRY(CheckRange("quality", quality, kQualityClasses));
  TIERCEL_TRY(CheckRange("min_class", min_class, kQualityClasses));
  TIERCEL_TRY(CheckRange("reuse_hint", hint, 4));
  TIERCEL_TRY(CheckRange("tier", tier, kTiers));
  header.status = static_cast<Code>(status);
  header.reason = static_cast<MissReason>(reason);
  header.quality = static_cast<QualityClass>(quality);
  header.min_class = static_cast<QualityClass>(min_class);
  header.deadline_ms = LoadLe<uint32_t>(p + kDeadlineAt);
  header.reuse_hint = static_cast<ReuseHint>(hint);
  header.tier = static_cast<Tier>(tier);
  header.generation = LoadLe<uint64_t>(p + kGenerationAt);
  return header;
}

// ChainMeta: scope 16 | first_index u32 | n_keys u16 | n_anchors u16 | parent 32 | layer_begin u16 |
// layer_end u16 | traceparent 25 | zero 11 | anchors 32 each | keys 32 each.
size_t EncodeChainMeta(const ChainMeta& meta, std::byte* out) {
  TIERCEL_CHECK(!meta.keys.empty() && meta.keys.size() <= kMaxKeys);
  TIERCEL_CHECK(meta.anchors.size() == RunsTouched(meta.first_index, meta.keys.size()));
  std::memset(out, 0, kChainMetaFixedBytes);
  std::memcpy(out, meta.scope.bytes.data(), 16);
  StoreLe<uint32_t>(out + 16, meta.first_index);
  StoreLe<uint16_t>(out + 20, static_cast<uint16_t>(meta.keys.size()));
  StoreLe<uint16_t>(out + 22, static_cast<uint16_t>(meta.anchors.size()));
  std::memcpy(out + 24, meta.parent.bytes.data(), 32);
  StoreLe<uint16_t>(out + 56, meta.layer_begin);
  StoreLe<uint16_t>(out + 58, meta.layer_end);
  std::memcpy(out + 60, meta.traceparent.data(), meta.traceparent.size());
  std::byte* at = out + kChainMetaFixedBytes;
  std::memcpy(at, meta.anchors.data(), meta.anchors.size() * sizeof(BlockKey));
  at += meta.anchors.size() * sizeof(BlockKey);
  std::memcpy(at, meta.keys.data(), meta.keys.size() * sizeof(BlockKey));
  at += meta.keys.size() * sizeof(BlockKey);
  return static_cast<size_t>(at - out);
}

std::vector<std::byte> EncodeChainMeta(const ChainMeta& meta) {
  std::vector<std::byte> out(kMaxMetaBytes);
  out.resize(EncodeChainMeta(meta, out.data()));
  return out;
}

Status DecodeChainMeta(ByteSpan bytes, ChainMeta& meta) {
  if (bytes.size() < kChainMetaFixedBytes) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: {} bytes, need at least {}", bytes.size(),
                                                    kChainMetaFixedBytes));
  }
  const std::byte* p = bytes.data();
  const auto n_keys = LoadLe<uint16_t>(p + 20);
  const auto n_anchors = LoadLe<uint16_t>(p + 22);
  if (n_keys == 0 || n_keys > kMaxKeys) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: {} keys, not 1..{}", n_keys, kMaxKeys));
  }
  meta.first_index = LoadLe<uint32_t>(p + 16);
  if (meta.first_index > UINT32_MAX - kMaxKeys) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: first index {} is absurd", meta.first_index));
  }
  if (n_anchors != RunsTouched(meta.first_index, n_keys)) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: {} anchors, but {} keys from block {} touch {} runs",
                                                    n_anchors, n_keys, meta.first_index,
                                                    RunsTouched(meta.first_index, n_keys)));
  }
  if (bytes.size() != kChainMetaFixedBytes + (size_t{n_keys} + n_anchors) * sizeof(BlockKey)) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: {} bytes do not hold {} keys and {} anchors",
                                                    bytes.size(), n_keys, n_anchors));
  }
  std::memcpy(meta.scope.bytes.data(), p, 16);
  std::memcpy(meta.parent.bytes.data(), p + 24, 32);
  meta.layer_begin = LoadLe<uint16_t>(p + 56);
  meta.layer_end = LoadLe<uint16_t>(p + 58);
  if (meta.layer_begin > meta.layer_end) {
    return Fail(Code::kInvalidArgument, fmt::format("chain: layers {}..{} are not a range",
                                                    meta.layer_begin, meta.layer_end));
  }
  std::memcpy(meta.traceparent.data(), p + 60, meta.traceparent.size());
  meta.anchors.resize(n_anchors);
  std::memcpy(meta.anchors.data(), p + kChainMetaFixedBytes, n_anchors * sizeof(BlockKey));
  meta.keys.resize(n_keys);
  std::memcpy(meta.keys.data(), p + kChainMetaFixedBytes + n_anchors * sizeof(BlockKey),
              n_keys * sizeof(BlockKey));
  return OkStatus();
}

void EncodeMatchEntry(const MatchEntry& entry, std::byte* out) {
  StoreLe<uint8_t>(out, static_cast<uint8_t>(entry.tier));
  StoreLe<uint8_t>(out + 1, static_cast<uint8_t>(entry.reason));
  StoreLe<uint8_t>(out + 2, static_cast<uint8_t>(entry.quality));
  StoreLe<uint8_t>(out + 3, 0);
  StoreLe<uint32_t>(out + 4, entry.record_bytes);
}

Result<MatchEntry> DecodeMatchEntry(ByteSpan bytes) {
  if (bytes.size() < kMatchEntryBytes) {
    return Fail(Code::kInvalidArgument, fmt::format("match entry: {} bytes, need 8", bytes.size()));
  }
  const auto tier = LoadLe<uint8_t>(bytes.data());
  const auto reason = LoadLe<uint8_t>(bytes.data() + 1);
  const auto quality = LoadLe<uint8_t>(bytes.data() + 2);
  TIERCEL_TRY(CheckRange("match tier", tier, kTiers));
  TIERCEL_TRY(CheckRange("match reason", reason, kMissReasons));
  TIERCEL_TRY(CheckRange("match quality", quality, kQualityClasses));
  return MatchEntry{static_cast<Tier>(tier), static_cast<MissReason>(reason),
                    static_cast<QualityClass>(quality), LoadLe<uint32_t>(bytes.data() + 4)};
}

}  // namespace tiercel
