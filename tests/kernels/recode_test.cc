#include "kernels/recode.h"

#include <gtest/gtest.h>

#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

KvLayout Layout() {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 3);
  layout.tokens_per_block = 128;
  layout.head_dim_k = layout.head_dim_v = 64;
  return layout;
}

TEST(RecodeTest, LosslesslyRecodedIsTheSameBlockInFewerBytes) {
  RecordSpec spec = SpecOf(Layout());
  spec.pos0 = 384;
  const auto block = KvLikeBytes(Dtype::kBf16, spec.layout.block_bytes(), 1);
  const auto record = Encoded(spec, CodecId::kLlf, block);
  ASSERT_TRUE(record);
  RecodeSpace space;
  const auto recoded = RecodeRecord(*record, CodecId::kLle, nullptr, &space);
  ASSERT_TRUE(recoded);
  EXPECT_LT(recoded->record.size(), record->size());
  EXPECT_EQ(recoded->quality, QualityClass::kExact);
  const auto before = ParseRecord(*record);
  const auto after = ParseRecord(recoded->record);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->codec, CodecId::kLle);
  EXPECT_EQ(after->decoded_digest, before->decoded_digest);
  EXPECT_EQ(after->scope, before->scope);
  EXPECT_EQ(after->pos0, 384u);
  std::vector<std::byte> out(block.size());
  ASSERT_TRUE(DecodeRecord(*after, spec.layout, out));
  EXPECT_EQ(out, block);
  EXPECT_FALSE(RecodeRecord(recoded->record, CodecId::kLle, nullptr, &space)) << "it is that already";
}

TEST(RecodeTest, ARangeOfLayersStaysThatRange) {
  const RecordSpec spec = SpecOf(Layout());
  const auto block = KvLikeBytes(Dtype::kBf16, spec.layout.block_bytes(), 2);
  const auto whole = Encoded(spec, CodecId::kRaw, block);
  ASSERT_TRUE(whole);
  std::vector<std::byte> part(whole->size());
  const auto bytes = ExtractLayers(*ParseRecord(*whole), 1, 3, part);
  ASSERT_TRUE(bytes);
  RecodeSpace space;
  const auto recoded = RecodeRecord(ByteSpan(part).first(*bytes), CodecId::kLle, nullptr, &space);
  ASSERT_TRUE(recoded);
  const auto after = ParseRecord(recoded->record);
  EXPECT_EQ(after->layer_begin, 1);
  EXPECT_EQ(after->layer_end, 3);
  std::vector<std::byte> out(2 * spec.layout.layer_bytes());
  ASSERT_TRUE(DecodeRecord(*after, spec.layout, out));
  EXPECT_TRUE(std::equal(out.begin(), out.end(), block.begin() + static_cast<ptrdiff_t>(spec.layout.layer_bytes())));
}

TEST(RecodeTest, ALossyCodecGivesTheClassAskedForAndIsNeverAppliedTwice) {
  const RecordSpec spec = SpecOf(Layout());
  const auto block = KvLikeBytes(Dtype::kBf16, spec.layout.block_bytes(), 3);
  const auto record = Encoded(spec, CodecId::kRaw, block);
  ASSERT_TRUE(record);
  EncodeOptions options;
  options.quality = QualityClass::kBalanced;
  RecodeSpace space;
  EXPECT_FALSE(RecodeRecord(*record, CodecId::kEcC, nullptr, &space)) << "without options: lossless only";
  EXPECT_FALSE(RecodeRecord(*record, CodecId::kLle, &options, &space));
  const auto recoded = RecodeRecord(*record, CodecId::kEcC, &options, &space);
  ASSERT_TRUE(recoded);
  EXPECT_EQ(recoded->quality, QualityClass::kBalanced);
  EXPECT_LT(recoded->record.size(), record->size() / 3);
  const std::vector<std::byte> lossy(recoded->record.begin(), recoded->record.end());
  options.quality = QualityClass::kSmall;
  EXPECT_FALSE(RecodeRecord(lossy, CodecId::kEcC, &options, &space));
  EXPECT_FALSE(RecodeRecord(lossy, CodecId::kI4h, &options, &space));
  EXPECT_FALSE(RecodeRecord(lossy, CodecId::kLle, nullptr, &space));
}

TEST(RecodeTest, WhatIsNotWholeOrOpaqueOrWouldNotShrinkStays) {
  const RecordSpec spec = SpecOf(Layout());
  RecodeSpace space;
  const auto noise = Encoded(spec, CodecId::kRaw, RandomBytes(spec.layout.block_bytes(), 4));
  EXPECT_FALSE(RecodeRecord(*noise, CodecId::kLle, nullptr, &space));
  auto bad = *Encoded(spec, CodecId::kRaw, KvLikeBytes(Dtype::kBf16, spec.layout.block_bytes(), 5));
  bad[bad.size() / 2] ^= std::byte{1};
  EXPECT_FALSE(RecodeRecord(bad, CodecId::kLle, nullptr, &space));
  EXPECT_FALSE(RecodeRecord(ByteSpan(bad).first(100), CodecId::kLle, nullptr, &space));
  KvLayout opaque;
  opaque.dtype = Dtype::kOpaque;
  const std::vector<std::byte> zeros(100'000);
  const auto record = Encoded(SpecOf(opaque), CodecId::kRaw, zeros);
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_FALSE(RecodeRecord(*record, CodecId::kLle, nullptr, &space));
}

}  // namespace
}  // namespace tiercel
