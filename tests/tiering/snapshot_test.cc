#include "tiering/snapshot.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "tests/tiering/records.h"

namespace tiercel {
namespace {

SnapshotRecord RecordAt(uint64_t n) {
  SnapshotRecord record;
  record.entry.key = KeyOf(n);
  record.entry.parent = KeyOf(n - 1);
  record.entry.anchor = KeyOf(1000 + n);
  record.entry.scope.bytes.fill(static_cast<std::byte>(n));
  record.entry.name_space = 7;
  record.entry.chain_index = static_cast<uint32_t>(40 + n);
  record.entry.record_bytes = static_cast<uint32_t>(5000 + n);
  record.entry.raw_bytes = (uint64_t{1} << 33) + n;
  record.entry.generation = 100 + n;
  record.entry.quality = n % 2 == 0 ? QualityClass::kExact : QualityClass::kHigh;
  if (n % 3 == 0) record.entry.where = {4, static_cast<uint32_t>(n)};
  if (n % 3 != 0) record.host = {0, n * 64 * kKiB, 8 * kKiB};
  record.hits = static_cast<uint32_t>(n * 3);
  return record;
}

std::vector<std::byte> Make(uint64_t records) {
  const SnapshotHeader header{1, 2, 2 * kMiB, records, 1000};
  const std::vector<uint32_t> slabs = {7, 9};
  std::vector<std::byte> bytes(SnapshotBytes(slabs.size(), records));
  SnapshotWriter writer(bytes, header, slabs);
  for (uint64_t n = 1; n <= records; ++n) writer.Add(RecordAt(n));
  writer.Finish();
  return bytes;
}

// Opens and reads all; how many records, or why not.
Result<uint64_t> ReadAll(ByteSpan bytes) {
  TIERCEL_ASSIGN(SnapshotReader reader, SnapshotReader::Open(bytes));
  uint64_t n = 0;
  while (!reader.done()) {
    TIERCEL_ASSIGN([[maybe_unused]] const SnapshotRecord record, reader.Next());
    ++n;
  }
  return n;
}

// As a writer of another mind would leave it: with checksums that hold.
void Reseal(std::vector<std::byte>& bytes) {
  StoreLe<uint32_t>(bytes.data() + 56, Crc32c(ByteSpan(bytes).subspan(64)));
  StoreLe<uint32_t>(bytes.data() + 60, Crc32c({bytes.data(), 60}));
}

TEST(SnapshotTest, WhatIsWrittenIsRead) {
  const auto bytes = Make(10);
  auto reader = SnapshotReader::Open(bytes);
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_EQ(reader->header(), (SnapshotHeader{1, 2, 2 * kMiB, 10, 1000}));
  EXPECT_EQ(reader->slabs(), (std::vector<uint32_t>{7, 9}));
  for (uint64_t n = 1; n <= 10; ++n) {
    const auto record = reader->Next();
    ASSERT_TRUE(record) << record.error().message;
    const SnapshotRecord expected = RecordAt(n);
    EXPECT_EQ(record->entry.key, expected.entry.key);
    EXPECT_EQ(record->entry.parent, expected.entry.parent);
    EXPECT_EQ(record->entry.anchor, expected.entry.anchor);
    EXPECT_EQ(record->entry.scope, expected.entry.scope);
    EXPECT_EQ(record->entry.name_space, expected.entry.name_space);
    EXPECT_EQ(record->entry.chain_index, expected.entry.chain_index);
    EXPECT_EQ(record->entry.record_bytes, expected.entry.record_bytes);
    EXPECT_EQ(record->entry.raw_bytes, expected.entry.raw_bytes);
    EXPECT_EQ(record->entry.generation, expected.entry.generation);
    EXPECT_EQ(record->entry.quality, expected.entry.quality);
    EXPECT_EQ(record->entry.where, expected.entry.where);
    EXPECT_EQ(record->hits, expected.hits);
    EXPECT_EQ(record->host.slab, expected.host.slab);
    EXPECT_EQ(record->host.offset, expected.host.offset);
    EXPECT_EQ(record->host.bytes, expected.host.bytes);
  }
  EXPECT_TRUE(reader->done());
}

// Version 1 for all time: header, one slab, one record.
TEST(SnapshotTest, GoldenVector) {
  const SnapshotHeader header{1, 2, 2 * kMiB, 1, 1000};
  const std::vector<uint32_t> slabs = {7};
  std::vector<std::byte> bytes(SnapshotBytes(1, 1));
  SnapshotWriter writer(bytes, header, slabs);
  writer.Add(RecordAt(1));
  writer.Finish();
  ASSERT_EQ(bytes.size(), 64u + 8 + 176);
  const auto hex = [&](size_t at, size_t n) {
    std::string text;
    for (size_t i = at; i < at + n; ++i) {
      constexpr char kDigits[] = "0123456789abcdef";
      text += kDigits[static_cast<uint8_t>(bytes[i]) >> 4];
      text += kDigits[static_cast<uint8_t>(bytes[i]) & 15];
    }
    return text;
  };
  EXPECT_EQ(hex(0, 48),
            "54535331"
            "01000000"
            "01000000"
            "02000000"
            "0000200000000000"
            "0100000000000000"
            "e803000000000000"
            "01000000"
            "b0000000");
  EXPECT_EQ(hex(48, 8),
            "00000000"
            "444f4e45");
  EXPECT_EQ(hex(64, 8), "0700000000000000");
  EXPECT_EQ(hex(72 + 96, 16), "01010101010101010101010101010101");
  EXPECT_EQ(hex(72 + 112, 64),
            "07000000"
            "29000000"
            "89130000"
            "03000000"
            "0100000002000000"
            "6500000000000000"
            "0000000000000000"
            "0000010000000000"
            "00000000"
            "0200000000000000"
            "00000000");
  EXPECT_EQ(LoadLe<uint32_t>(bytes.data() + 56), Crc32c(ByteSpan(bytes).subspan(64)));
  EXPECT_EQ(LoadLe<uint32_t>(bytes.data() + 60), Crc32c({bytes.data(), 60}));
}

TEST(SnapshotTest, NoFlippedBitIsRead) {
  const auto good = Make(3);
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto bytes = good;
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(ReadAll(bytes)) << "bit " << bit;
  }
  EXPECT_EQ(*ReadAll(good), 3u);
}

TEST(SnapshotTest, NoOtherLengthIsRead) {
  auto bytes = Make(3);
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ReadAll({bytes.data(), n})) << n;
  bytes.resize(bytes.size() + 1);
  EXPECT_FALSE(ReadAll(bytes));
}

TEST(SnapshotTest, OneThatWasNotFinishedIsRefused) {
  const SnapshotHeader header{1, 2, 2 * kMiB, 2, 1000};
  const std::vector<uint32_t> slabs = {7, 9};
  std::vector<std::byte> bytes(SnapshotBytes(2, 2));
  SnapshotWriter writer(bytes, header, slabs);
  writer.Add(RecordAt(1));
  EXPECT_EQ(ReadAll(bytes).error().code, Code::kFailedPrecondition);
}

TEST(SnapshotTest, AnotherVersionIsRefusedByName) {
  auto bytes = Make(1);
  StoreLe<uint32_t>(bytes.data() + 4, 2);
  Reseal(bytes);
  const auto refused = ReadAll(bytes);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kFailedPrecondition);
  EXPECT_EQ(refused.error().message, "snapshot: format 2, this build reads 1");
}

TEST(SnapshotTest, WhatCannotBeIsRefusedWithGoodChecksumsToo) {
  const size_t record = 64 + 16;  // The first, after two slabs.
  const auto refuses = [&](size_t at, uint64_t value, size_t bytes_of_value) {
    auto bytes = Make(2);
    for (size_t i = 0; i < bytes_of_value; ++i)
      bytes[record + at + i] = static_cast<std::byte>(value >> (8 * i));
    Reseal(bytes);
    const auto refused = ReadAll(bytes);
    EXPECT_FALSE(refused) << at << " = " << value;
    if (!refused) {
      EXPECT_EQ(refused.error().code, Code::kDataLoss);
    }
  };
  refuses(120, 0, 4);                // No bytes.
  refuses(120, UINT32_MAX, 4);       // Longer than its slab.
  refuses(136, 0, 8);                // Generation 0,
  refuses(136, 1000, 8);             // or one that was not given yet.
  refuses(152, 2 * kMiB, 8);         // Behind its slab,
  refuses(152, 2 * kMiB - 4096, 8);  // over its end,
  refuses(152, 100, 8);              // between units,
  refuses(152, UINT64_MAX - 4095, 8);
  refuses(160, 2, 4);  // No such slab.
  refuses(160, 1, 4);  // Another name space's.
  refuses(164, 5, 1);  // No such class.
}

}  // namespace
}  // namespace tiercel
