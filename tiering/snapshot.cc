#include "tiering/snapshot.h"

#include <fmt/format.h>

#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"

namespace tiercel {
namespace {

constexpr uint32_t kMagic = 0x31535354;  // "TSS1"
constexpr uint32_t kWhole = 0x454e4f44;  // "DONE"
constexpr uint64_t kHeaderBytes = 64;
constexpr uint64_t kSlabBytes = 8;
constexpr uint64_t kRecordBytes = 176;
constexpr uint32_t kNoSlab = UINT32_MAX;
// Where the header has what is written last: the mark, then the checksums of body and header.
constexpr uint64_t kMarkAt = 52;
constexpr uint64_t kBodyCrcAt = 56;
constexpr uint64_t kHeaderCrcAt = 60;

template <class T>
T Get(const std::byte* at) {
  return LoadLe<T>(at);
}

}  // namespace

uint64_t SnapshotBytes(uint64_t slabs, uint64_t records) {
  return kHeaderBytes + slabs * kSlabBytes + records * kRecordBytes;
}

SnapshotWriter::SnapshotWriter(MutableByteSpan room, const SnapshotHeader& header,
                               std::span<const uint32_t> slabs)
    : room_(room), at_(kHeaderBytes + slabs.size() * kSlabBytes), left_(header.records) {
  TIERCEL_CHECK(room.size() == SnapshotBytes(slabs.size(), header.records));
  std::byte* p = room_.data();
  std::memset(p, 0, at_);
  StoreLe<uint32_t>(p, kMagic);
  StoreLe<uint32_t>(p + 4, kSnapshotVersion);
  StoreLe<uint32_t>(p + 8, header.shard);
  StoreLe<uint32_t>(p + 12, header.shards);
  StoreLe<uint64_t>(p + 16, header.slab_bytes);
  StoreLe<uint64_t>(p + 24, header.records);
  StoreLe<uint64_t>(p + 32, header.next_generation);
  StoreLe<uint32_t>(p + 40, static_cast<uint32_t>(slabs.size()));
  StoreLe<uint32_t>(p + 44, static_cast<uint32_t>(kRecordBytes));
  for (size_t i = 0; i < slabs.size(); ++i) {
    StoreLe<uint32_t>(p + kHeaderBytes + i * kSlabBytes, slabs[i]);
  }
}

void SnapshotWriter::Add(const SnapshotRecord& record) {
  TIERCEL_CHECK(left_ > 0);
  --left_;
  std::byte* p = room_.data() + at_;
  at_ += kRecordBytes;
  std::memset(p + 112, 0, kRecordBytes - 112);
  const SsdEntry& entry = record.entry;
  std::memcpy(p, entry.key.bytes.data(), 32);
  std::memcpy(p + 32, entry.parent.bytes.data(), 32);
  std::memcpy(p + 64, entry.anchor.bytes.data(), 32);
  std::memcpy(p + 96, entry.scope.bytes.data(), 16);
  StoreLe<uint32_t>(p + 112, entry.name_space);
  StoreLe<uint32_t>(p + 116, entry.chain_index);
  StoreLe<uint32_t>(p + 120, entry.record_bytes);
  StoreLe<uint32_t>(p + 124, record.hits);
  StoreLe<uint64_t>(p + 128, entry.raw_bytes);
  StoreLe<uint64_t>(p + 136, entry.generation);
  StoreLe<uint32_t>(p + 144, entry.where.segment);
  StoreLe<uint32_t>(p + 148, entry.where.slot);
  StoreLe<uint64_t>(p + 152, record.host.offset);
  StoreLe<uint32_t>(p + 160, record.host ? record.host.slab : kNoSlab);
  p[164] = static_cast<std::byte>(entry.quality);
  StoreLe<uint32_t>(p + 168, entry.stored);
}

void SnapshotWriter::Finish() {
  TIERCEL_CHECK(left_ == 0);
  std::byte* p = room_.data();
  StoreLe<uint32_t>(p + kBodyCrcAt, Crc32c(ByteSpan(room_).subspan(kHeaderBytes)));
  StoreLe<uint32_t>(p + kMarkAt, kWhole);
  StoreLe<uint32_t>(p + kHeaderCrcAt, Crc32c({p, kHeaderCrcAt}));
}

Result<SnapshotReader> SnapshotReader::Open(ByteSpan bytes) {
  const auto damaged = [](std::string_view what) {
    return Fail(Code::kDataLoss, fmt::format("snapshot: {}", what));
  };
  if (bytes.size() < kHeaderBytes || Get<uint32_t>(bytes.data()) != kMagic) {
    return damaged("this is none");
  }
  const std::byte* p = bytes.data();
  if (Get<uint32_t>(p + 4) != kSnapshotVersion) {
    return Fail(Code::kFailedPrecondition, fmt::format("snapshot: format {}, this build reads {}",
                                                       Get<uint32_t>(p + 4), kSnapshotVersion));
  }
  if (Get<uint32_t>(p + kMarkAt) != kWhole) {
    return Fail(Code::kFailedPrecondition, "snapshot: its writer did not finish");
  }
  if (Get<uint32_t>(p + kHeaderCrcAt) != Crc32c({p, kHeaderCrcAt}))
    return damaged("header checksum");
  SnapshotReader reader;
  reader.bytes_ = bytes;
  reader.header_ = {Get<uint32_t>(p + 8), Get<uint32_t>(p + 12), Get<uint64_t>(p + 16),
                    Get<uint64_t>(p + 24), Get<uint64_t>(p + 32)};
  const uint64_t slabs = Get<uint32_t>(p + 40);
  const uint64_t records = reader.header_.records;
  if (Get<uint32_t>(p + 44) != kRecordBytes || records > bytes.size() / kRecordBytes ||
      bytes.size() != SnapshotBytes(slabs, records)) {
    return damaged(
        fmt::format("{} bytes do not hold {} slabs and {} records", bytes.size(), slabs, records));
  }
  if (Get<uint32_t>(p + kBodyCrcAt) != Crc32c(bytes.subspan(kHeaderBytes)))
    return damaged("checksum");
  for (uint64_t i = 0; i < slabs; ++i) {
    reader.slabs_.push_back(Get<uint32_t>(p + kHeaderBytes + i * kSlabBytes));
  }
  reader.at_ = kHeaderBytes + slabs * kSlabBytes;
  reader.left_ = records;
  return reader;
}

Result<SnapshotRecord> SnapshotReader::Next() {
  TIERCEL_CHECK(left_ > 0);
  const std::byte* p = bytes_.data() + at_;
  SnapshotRecord record;
  SsdEntry& entry = record.entry;
  std::memcpy(entry.key.bytes.data(), p, 32);
  std::memcpy(entry.parent.bytes.data(), p + 32, 32);
  std::memcpy(entry.anchor.bytes.data(), p + 64, 32);
  std::memcpy(entry.scope.bytes.data(), p + 96, 16);
  entry.name_space = Get<uint32_t>(p + 112);
  entry.chain_index = Get<uint32_t>(p + 116);
  entry.record_bytes = Get<uint32_t>(p + 120);
  record.hits = Get<uint32_t>(p + 124);
  entry.stored = Get<uint32_t>(p + 168);
  entry.raw_bytes = Get<uint64_t>(p + 128);
  entry.generation = Get<uint64_t>(p + 136);
  entry.where = {Get<uint32_t>(p + 144), Get<uint32_t>(p + 148)};
  entry.quality = static_cast<QualityClass>(p[164]);
  const uint32_t slab = Get<uint32_t>(p + 160);
  const auto cannot_be = [&](std::string_view what) {
    return Fail(Code::kDataLoss,
                fmt::format("snapshot: record {}: {}", header_.records - left_, what));
  };
  if (static_cast<uint8_t>(p[164]) >= kQualityClasses) return cannot_be("no such class");
  if (entry.generation == 0 || entry.generation >= header_.next_generation)
    return cannot_be("generation");
  if (entry.record_bytes == 0) return cannot_be("no bytes");
  if (slab != kNoSlab) {
    record.host = {slab, Get<uint64_t>(p + 152),
                   RoundUp(uint64_t{entry.record_bytes}, kExtentBytes)};
    if (slab >= slabs_.size()) return cannot_be("no such slab");
    if (slabs_[slab] != entry.name_space) return cannot_be("its slab is another name space's");
    if (record.host.offset % kExtentBytes != 0 || record.host.offset > header_.slab_bytes ||
        record.host.bytes > header_.slab_bytes - record.host.offset) {
      return cannot_be("lies outside its slab");
    }
  }
  at_ += kRecordBytes;
  --left_;
  return record;
}

}  // namespace tiercel
