#include "tests/sim/world.h"

#include <algorithm>

#include "base/check.h"
#include "base/random.h"
#include "kernels/record.h"

namespace tiercel {
namespace {

uint64_t Number(const BlockId& id) {
  return (uint64_t{id.space} << 40) ^ (uint64_t{id.chain} << 20) ^ id.index;
}

}  // namespace

Scope World::ScopeOf(uint32_t chain) {
  Scope scope;
  scope.bytes[0] = static_cast<std::byte>(1 + chain % 2);
  return scope;
}

KvLayout World::LayoutOf(uint32_t chain) {
  if (!HasLayers(chain)) return KvLayout::Opaque();
  KvLayout layout;
  layout.layers = kLayers;
  layout.kv_heads = 2;
  layout.head_dim_k = 16;
  layout.head_dim_v = 16;
  layout.tokens_per_block = 16;
  layout.dtype = Dtype::kBf16;
  return layout;
}

BlockKey World::Key(const BlockId& id) const {
  BlockKey key;
  SplitMix64 random(Mix64(seed_ + 1) ^ Mix64(Number(id)));
  for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(key.bytes.data() + i, random.Next());
  return key;
}

ChainMeta World::Meta(uint32_t space, uint32_t chain, uint32_t first, uint32_t n) const {
  ChainMeta meta;
  meta.scope = ScopeOf(chain);
  meta.first_index = first;
  if (first > 0) meta.parent = Key({space, chain, first - 1});
  for (uint32_t i = 0; i < n; ++i) meta.keys.push_back(Key({space, chain, first + i}));
  const uint32_t run = first / kBlocksPerRun;
  for (uint32_t i = 0; i < RunsTouched(first, n); ++i) {
    meta.anchors.push_back(Key({space, chain, (run + i) * kBlocksPerRun}));
  }
  return meta;
}

std::vector<std::byte> World::Raw(const BlockId& id, bool lossy) const {
  SplitMix64 random(Mix64(seed_) ^ Mix64(Number(id) * 2 + (lossy ? 1 : 0)));
  if (!HasLayers(id.chain)) {
    std::vector<std::byte> raw(200 + random.Below(40'000));
    for (std::byte& b : raw) b = static_cast<std::byte>(random.Next());
    return raw;
  }
  // Numbers of a narrow range, as KV is, so that the codec has something to do.
  std::vector<std::byte> raw(LayoutOf(id.chain).block_bytes());
  for (size_t i = 0; i < raw.size(); i += 2) {
    const auto bits = static_cast<uint16_t>((random.Next() & 0x807f) | (0x3f00 + (random.Below(6) << 7)));
    StoreLe<uint16_t>(raw.data() + i, bits);
  }
  return raw;
}

const std::vector<std::byte>& World::Record(const BlockId& id, bool lossy) {
  std::vector<std::byte>& record = records_[{id, lossy}];
  if (!record.empty()) return record;
  const std::vector<std::byte> raw = Raw(id, lossy);
  RecordSpec spec;
  spec.layout = LayoutOf(id.chain);
  spec.scope = ScopeOf(id.chain);
  spec.quality = lossy ? kLossy : QualityClass::kExact;
  record.resize(MaxRecordBytes(spec, raw.size()));
  const auto bytes = EncodeRecord(spec, CodecId::kAuto, raw, record);
  TIERCEL_CHECK(bytes.has_value());
  record.resize(*bytes);
  return record;
}

Status World::Check(const BlockId& id, QualityClass quality, ByteSpan record, uint16_t layer_begin,
                    uint16_t layer_end) {
  const bool lossy = quality != QualityClass::kExact;
  if (layer_end == 0) {
    const auto& right = Record(id, lossy);
    if (std::equal(record.begin(), record.end(), right.begin(), right.end())) return OkStatus();
    return Fail(Code::kDataLoss, "other bytes than were put under this key");
  }
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(record));
  TIERCEL_TRY(VerifyRecord(view));
  const KvLayout layout = LayoutOf(id.chain);
  std::vector<std::byte> decoded(layout.layer_bytes() * (layer_end - layer_begin));
  TIERCEL_TRY(DecodeRecord(view, layout, decoded, layer_begin, layer_end));
  const std::vector<std::byte> raw = Raw(id, lossy);
  const auto begin = raw.begin() + static_cast<std::ptrdiff_t>(layout.layer_bytes() * layer_begin);
  if (std::equal(decoded.begin(), decoded.end(), begin)) return OkStatus();
  return Fail(Code::kDataLoss, "other layers than were put under this key");
}

}  // namespace tiercel
