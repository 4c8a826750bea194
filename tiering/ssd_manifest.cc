#include "tiering/ssd_manifest.h"

#include <fmt/format.h>

#include "base/crc32c.h"

namespace tiercel {
namespace {

void AppendBe32(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    out.push_back(static_cast<char>(value >> shift & 255));
}

uint32_t LoadBe32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

}  // namespace

// Header: magic u32 | version u32 | segment u32 | n u32 | crc32c of the entries u32 | zero 12.
// Entry: key 32 | parent 32 | anchor 32 | scope 16 | generation u64 | raw_bytes u64 | name_space
// u32 | chain_index u32 | record_bytes u32 | slot u32 | quality u8 | zero 3 | stored u32 | zero 8.
std::string EncodeManifest(uint32_t segment, const std::vector<SsdEntry>& entries) {
  std::string out(kManifestHeaderBytes + entries.size() * kManifestEntryBytes, '\0');
  auto* base = reinterpret_cast<std::byte*>(out.data());
  std::byte* p = base + kManifestHeaderBytes;
  for (const SsdEntry& entry : entries) {
    std::memcpy(p, entry.key.bytes.data(), 32);
    std::memcpy(p + 32, entry.parent.bytes.data(), 32);
    std::memcpy(p + 64, entry.anchor.bytes.data(), 32);
    std::memcpy(p + 96, entry.scope.bytes.data(), 16);
    StoreLe<uint64_t>(p + 112, entry.generation);
    StoreLe<uint64_t>(p + 120, entry.raw_bytes);
    StoreLe<uint32_t>(p + 128, entry.name_space);
    StoreLe<uint32_t>(p + 132, entry.chain_index);
    StoreLe<uint32_t>(p + 136, entry.record_bytes);
    StoreLe<uint32_t>(p + 140, entry.where.slot);
    StoreLe<uint8_t>(p + 144, static_cast<uint8_t>(entry.quality));
    StoreLe<uint32_t>(p + 148, entry.stored);
    p += kManifestEntryBytes;
  }
  StoreLe<uint32_t>(base, kManifestMagic);
  StoreLe<uint32_t>(base + 4, kManifestVersion);
  StoreLe<uint32_t>(base + 8, segment);
  StoreLe<uint32_t>(base + 12, static_cast<uint32_t>(entries.size()));
  StoreLe<uint32_t>(base + 16, Crc32c(AsBytes(out).subspan(kManifestHeaderBytes)));
  return out;
}

Result<std::vector<SsdEntry>> DecodeManifest(std::string_view bytes, uint32_t expected_segment) {
  const auto bad = [expected_segment](std::string_view what) {
    return Fail(Code::kDataLoss, fmt::format("manifest of segment {}: {}", expected_segment, what));
  };
  if (bytes.size() < kManifestHeaderBytes) return bad("too short");
  const std::byte* base = AsBytes(bytes).data();
  if (LoadLe<uint32_t>(base) != kManifestMagic) return bad("the magic is not TCM1");
  if (LoadLe<uint32_t>(base + 4) != kManifestVersion) {
    return Fail(Code::kUnimplemented,
                fmt::format("manifest of segment {}: version {}, this build reads {}",
                            expected_segment, LoadLe<uint32_t>(base + 4), kManifestVersion));
  }
  if (LoadLe<uint32_t>(base + 8) != expected_segment) return bad("it names another segment");
  const auto n = LoadLe<uint32_t>(base + 12);
  if (bytes.size() != kManifestHeaderBytes + uint64_t{n} * kManifestEntryBytes)
    return bad("its length does not fit its count");
  if (LoadLe<uint32_t>(base + 16) != Crc32c(AsBytes(bytes).subspan(kManifestHeaderBytes)))
    return bad("checksum mismatch");
  std::vector<SsdEntry> entries(n);
  const std::byte* p = base + kManifestHeaderBytes;
  for (SsdEntry& entry : entries) {
    std::memcpy(entry.key.bytes.data(), p, 32);
    std::memcpy(entry.parent.bytes.data(), p + 32, 32);
    std::memcpy(entry.anchor.bytes.data(), p + 64, 32);
    std::memcpy(entry.scope.bytes.data(), p + 96, 16);
    entry.generation = LoadLe<uint64_t>(p + 112);
    entry.raw_bytes = LoadLe<uint64_t>(p + 120);
    entry.name_space = LoadLe<uint32_t>(p + 128);
    entry.chain_index = LoadLe<uint32_t>(p + 132);
    entry.record_bytes = LoadLe<uint32_t>(p + 136);
    entry.where = {expected_segment, LoadLe<uint32_t>(p + 140)};
    const auto quality = LoadLe<uint8_t>(p + 144);
    if (quality >= kQualityClasses) return bad(fmt::format("an entry has class {}", quality));
    entry.quality = static_cast<QualityClass>(quality);
    entry.stored = LoadLe<uint32_t>(p + 148);
    p += kManifestEntryBytes;
  }
  return entries;
}

std::string DataKey(uint32_t segment, uint32_t slot, const BlockKey* key) {
  std::string out;
  out.reserve(40);
  AppendBe32(out, segment);
  AppendBe32(out, slot);
  if (key != nullptr) out.append(AsText(key->bytes));
  return out;
}

std::string FirstKey(uint32_t segment) {
  const BlockKey none;
  return DataKey(segment, 0, &none);
}

bool IsFirstKey(std::string_view key) {
  uint32_t segment = 0;
  uint32_t slot = 0;
  return ParseSegment(key, &segment, &slot) && key == FirstKey(segment);
}

std::string IndexKey(uint32_t segment) {
  std::string out = "s";
  AppendBe32(out, segment);
  return out;
}

bool ParseSegment(std::string_view key, uint32_t* segment, uint32_t* slot) {
  if (key.size() != 8 && key.size() != 40) return false;
  *segment = LoadBe32(key, 0);
  *slot = LoadBe32(key, 4);
  return (*slot == kManifestSlot) == (key.size() == 8);
}

}  // namespace tiercel
