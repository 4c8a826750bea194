#include "kernels/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/crc32c.h"
#include "kernels/digest.h"
#include "kernels/record_head.h"
#include "tests/kernels/artifact_testing.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

using testing::HasSubstr;

std::vector<KvLayout> AllLayouts() {
  std::vector<KvLayout> layouts;
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16, Dtype::kFp32, Dtype::kFp8E4m3}) {
    for (const AxisOrder order :
         {AxisOrder::kTokenHeadDim, AxisOrder::kHeadTokenDim, AxisOrder::kHeadDimToken}) {
      for (const KvPacking packing :
           {KvPacking::kSplit, KvPacking::kInterleaved, KvPacking::kLatent}) {
        layouts.push_back(SmallLayout(dtype, order, packing, 3));
        layouts.back().tokens_per_block = 512;
      }
    }
  }
  return layouts;
}

std::vector<std::byte> BlockOf(const KvLayout& layout, uint64_t seed) {
  return KvLikeBytes(layout.dtype, layout.block_bytes(), seed);
}

TEST(RecordTest, GivesBackTheBlockOfEveryLayoutAndCodec) {
  uint64_t seed = 1;
  for (const KvLayout& layout : AllLayouts()) {
    const auto block = BlockOf(layout, seed++);
    for (const CodecId codec : {CodecId::kRaw, CodecId::kAuto}) {
      const RecordSpec spec = SpecOf(layout);
      const auto bytes = Encoded(spec, codec, block);
      ASSERT_TRUE(bytes) << bytes.error().message;
      const auto record = ParseRecord(*bytes);
      ASSERT_TRUE(record) << record.error().message;
      EXPECT_EQ(record->layout, layout);
      EXPECT_EQ(record->scope, spec.scope);
      EXPECT_EQ(record->pos0, spec.pos0);
      EXPECT_EQ(record->raw_bytes, block.size());
      ASSERT_TRUE(VerifyRecord(*record));
      std::vector<std::byte> out(block.size());
      const Status s = DecodeRecord(*record, layout, out);
      ASSERT_TRUE(s) << s.error().message;
      ASSERT_TRUE(out == block);
      if (ResolveCodec(codec, layout.dtype) == CodecId::kLlf) {
        EXPECT_LT(bytes->size(), block.size());
        EXPECT_EQ(record->segment(0).codec, CodecId::kLlf);
      }
    }
  }
}

TEST(RecordTest, HoldsOpaqueBytesOfAnySize) {
  for (const uint64_t size : {0u, 1u, 63u, 64u, 65u, 100'000u, 1u << 24}) {
    const auto block = RandomBytes(size, size);
    const auto bytes = Encoded(SpecOf(KvLayout::Opaque()), CodecId::kAuto, block);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    EXPECT_EQ(record->raw_bytes, size);
    ASSERT_TRUE(VerifyRecord(*record));
    std::vector<std::byte> out(size);
    ASSERT_TRUE(DecodeRecord(*record, KvLayout::Opaque(), out));
    ASSERT_TRUE(out == block);
  }
}

TEST(RecordTest, EveryIsaWritesTheSameRecord) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit);
  const auto block = BlockOf(layout, 5);
  std::vector<std::byte> reference;
  for (const KernelIsa isa : kAllIsas) {
    ForcedIsa forced(isa);
    if (!forced.usable()) continue;
    const auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, block);
    ASSERT_TRUE(bytes);
    if (reference.empty()) reference = *bytes;
    EXPECT_TRUE(*bytes == reference) << Name(isa);
  }
}

TEST(RecordTest, StoresRawWhatItsCodecCannotShrink) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit);
  layout.tokens_per_block = 64;
  auto block = BlockOf(layout, 6);
  const auto noise = RandomBytes(layout.k_plane_bytes(), 7);
  std::copy(noise.begin(), noise.end(), block.begin());
  const auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, block);
  ASSERT_TRUE(bytes);
  const auto record = ParseRecord(*bytes);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->segment(0).codec, CodecId::kRaw);
  EXPECT_EQ(record->segment(1).codec, CodecId::kLlf);
  std::vector<std::byte> out(block.size());
  ASSERT_TRUE(DecodeRecord(*record, layout, out));
  EXPECT_TRUE(out == block);
}

TEST(RecordTest, DecodesJustSomeLayers) {
  const KvLayout layout =
      SmallLayout(Dtype::kBf16, AxisOrder::kHeadTokenDim, KvPacking::kSplit, 5);
  const auto block = BlockOf(layout, 8);
  const auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, block);
  ASSERT_TRUE(bytes);
  const auto record = ParseRecord(*bytes);
  ASSERT_TRUE(record);
  std::vector<std::byte> out(2 * layout.layer_bytes());
  ASSERT_TRUE(VerifySegments(*record, 2, 4));
  ASSERT_TRUE(DecodeRecord(*record, layout, out, 2, 4));
  EXPECT_EQ(std::memcmp(out.data(), block.data() + 2 * layout.layer_bytes(), out.size()), 0);
  EXPECT_EQ(DecodeRecord(*record, layout, out, 4, 6).error().code, Code::kInvalidArgument);
  EXPECT_EQ(DecodeRecord(*record, layout, out, 3, 3).error().code, Code::kInvalidArgument);
}

TEST(RecordTest, ExtractedLayersAreTheRecordOfThoseLayers) {
  for (const KvPacking packing : {KvPacking::kSplit, KvPacking::kLatent, KvPacking::kInterleaved}) {
    const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, packing, 6);
    const auto block = BlockOf(layout, 9);
    RecordSpec spec = SpecOf(layout);
    const auto bytes = Encoded(spec, CodecId::kAuto, block);
    ASSERT_TRUE(bytes);
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record);
    for (uint16_t begin = 0; begin < 6; ++begin) {
      for (auto end = static_cast<uint16_t>(begin + 1); end <= 6; ++end) {
        const auto plan = PlanExtract(*record, begin, end);
        ASSERT_TRUE(plan);
        std::vector<std::byte> part(plan->record_bytes());
        const auto size = ExtractLayers(*record, begin, end, part);
        ASSERT_TRUE(size) << size.error().message;
        ASSERT_EQ(*size, part.size());
        // The same as encoding those layers alone.
        spec.layer_begin = begin;
        spec.layer_end = end;
        const auto alone = Encoded(
            spec, CodecId::kAuto,
            ByteSpan(block).subspan(begin * layout.layer_bytes(), (end - begin) * layout.layer_bytes()));
        ASSERT_TRUE(alone);
        EXPECT_TRUE(part == *alone);
      }
    }
    EXPECT_EQ(PlanExtract(*record, 0, 7).error().code, Code::kInvalidArgument);
    std::vector<std::byte> small(10);
    EXPECT_EQ(ExtractLayers(*record, 1, 2, small).error().code, Code::kInvalidArgument);
  }
}

TEST(RecordTest, CopiesVerifiedAndRefusesEveryFlippedBit) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit);
  auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, BlockOf(layout, 10));
  ASSERT_TRUE(bytes);
  std::vector<std::byte> copy(bytes->size() + 64, std::byte{0x77});
  const Status copied = CopyRecordVerified(*bytes, copy);
  ASSERT_TRUE(copied) << copied.error().message;
  EXPECT_EQ(std::memcmp(copy.data(), bytes->data(), bytes->size()), 0);
  EXPECT_EQ(copy[bytes->size()], std::byte{0x77});
  for (size_t bit = 0; bit < bytes->size() * 8; ++bit) {
    (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    // A flip in padding is not copied: the copy is then the record all the same.
    if (CopyRecordVerified(*bytes, copy)) {
      const auto record = ParseRecord(ByteSpan(copy).first(bytes->size()));
      ASSERT_TRUE(record && VerifyRecord(*record)) << bit;
    }
    (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
  }
  std::vector<std::byte> small(bytes->size() - 1);
  EXPECT_EQ(CopyRecordVerified(*bytes, small).error().code, Code::kInvalidArgument);
}

// Copies in pieces of `step` bytes.
Status CopyInPieces(ByteSpan record, MutableByteSpan to, size_t step) {
  RecordCopier copier(to);
  for (size_t at = 0; at < record.size(); at += step) {
    copier.Add(record.subspan(at, std::min(step, record.size() - at)));
  }
  return copier.Finish();
}

TEST(RecordTest, CopiesInPiecesOfAnySizeAndRefusesEveryFlippedBit) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit);
  auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, BlockOf(layout, 10));
  ASSERT_TRUE(bytes);
  for (const size_t step : {size_t{1}, size_t{7}, size_t{64}, size_t{1000}, bytes->size()}) {
    std::vector<std::byte> copy(bytes->size(), std::byte{0x77});
    const Status copied = CopyInPieces(*bytes, copy, step);
    ASSERT_TRUE(copied) << step << ": " << copied.error().message;
    EXPECT_TRUE(copy == *bytes) << step;
    for (size_t bit = 0; bit < bytes->size() * 8; bit += step == 1 ? 61 : 1) {
      (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      std::fill(copy.begin(), copy.end(), std::byte{0x77});
      if (CopyInPieces(*bytes, copy, step)) {
        const auto record = ParseRecord(copy);
        ASSERT_TRUE(record && VerifyRecord(*record)) << step << ", " << bit;
      }
      (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    }
    for (const size_t size : {size_t{0}, size_t{10}, size_t{64}, bytes->size() / 2, bytes->size() - 1}) {
      EXPECT_EQ(CopyInPieces(ByteSpan(*bytes).first(size), copy, step).error().code, Code::kDataLoss);
      std::vector<std::byte> small(size);
      EXPECT_EQ(CopyInPieces(*bytes, small, step).error().code, Code::kDataLoss) << size;
    }
  }
}

TEST(RecordTest, EveryFlippedBitIsFound) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kLlf}) {
    const KvLayout layout =
        SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
    const auto block = BlockOf(layout, 11);
    auto bytes = Encoded(SpecOf(layout), codec, block);
    ASSERT_TRUE(bytes);
    std::vector<std::byte> out(block.size());
    for (size_t bit = 0; bit < bytes->size() * 8; ++bit) {
      (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      const auto record = ParseRecord(*bytes);
      if (record) {
        ASSERT_FALSE(VerifyRecord(*record)) << "bit " << bit;
        if (DecodeRecord(*record, layout, out)) {
          ASSERT_TRUE(out == block) << "bit " << bit;  // E.g. an unread byte of a codec's header.
        }
      }
      (*bytes)[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    }
  }
}

TEST(RecordTest, EveryTruncationAndEveryTailIsRefused) {
  const KvLayout layout = SmallLayout(Dtype::kFp16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
  auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, BlockOf(layout, 12));
  ASSERT_TRUE(bytes);
  std::vector<std::byte> out(bytes->size());
  for (size_t size = 0; size < bytes->size(); ++size) {
    // A heap block of just that size, so that ASan sees a read behind it.
    const std::vector<std::byte> cut(bytes->begin(), bytes->begin() + static_cast<long>(size));
    ASSERT_FALSE(ParseRecord(cut)) << size;
    ASSERT_FALSE(CopyRecordVerified(cut, out)) << size;
    (void)PeekRecord(cut);
  }
  bytes->push_back(std::byte{0});
  EXPECT_EQ(ParseRecord(*bytes).error().code, Code::kDataLoss);
}

// Changes a byte of the head and makes the checksum right again: then only the field's own check
// stands between it and the reader.
Error ErrorAfter(std::vector<std::byte> bytes, size_t at, uint8_t value) {
  const auto head = PeekRecord(bytes)->head_bytes;
  bytes[at] = static_cast<std::byte>(value);
  StoreLe(bytes.data() + record_head::kCrc, record_head::HeadCrc(ByteSpan(bytes).first(head)));
  const auto record = ParseRecord(bytes);
  return record ? Error{Code::kOk, "accepted"} : record.error();
}

TEST(RecordTest, NamesTheFieldThatIsWrong) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
  const auto bytes = Encoded(SpecOf(layout), CodecId::kLlf, BlockOf(layout, 13));
  ASSERT_TRUE(bytes);
  const size_t directory = 128;
  const struct {
    size_t at;
    uint8_t value;
    Code code;
    const char* names;
  } kCases[] = {
      {record_head::kMagic, 'X', Code::kDataLoss, "magic"},
      {record_head::kMajor, 2, Code::kUnimplemented, "version 2.0"},
      {record_head::kHeaderSize, 65, Code::kDataLoss, "header_bytes"},
      {record_head::kRecordSize, 1, Code::kDataLoss, "record_bytes"},
      {record_head::kCodec, 6, Code::kUnimplemented, "tq"},
      {record_head::kProfile, 1, Code::kUnimplemented, "profile"},
      {record_head::kQuality, 9, Code::kUnimplemented, "quality"},
      {record_head::kFlags, 1, Code::kDataLoss, "flags 0x01 with codec llf"},
      {record_head::kFlags, 2, Code::kDataLoss, "flags 0x02 with codec llf and artifact 0000000000000000"},
      {record_head::kFlags, 4, Code::kUnimplemented, "flags"},
      {record_head::kDtype, 77, Code::kUnimplemented, "dtype"},
      {record_head::kOrders, 3, Code::kDataLoss, "k_order"},
      {record_head::kPacking, 3, Code::kDataLoss, "packing"},
      {record_head::kKinds, 1, Code::kDataLoss, "kinds"},
      {record_head::kLayerBegin, 1, Code::kDataLoss, "layers 1+2 of 2"},
      {record_head::kLayerCount, 1, Code::kDataLoss, "n_segments"},
      {record_head::kTokens, 9, Code::kDataLoss, "decodes to"},
      {record_head::kArtifact, 1, Code::kDataLoss, "artifact 0000000000000001"},
      {record_head::kRank, 1, Code::kDataLoss, "rank"},
      {64, 99, Code::kUnimplemented, "TLV type 99"},
      {64, 2, Code::kDataLoss, "TLV 2 is 16 bytes"},
      {66, 255, Code::kDataLoss, "runs over"},
      {directory + record_head::kEntryLayer, 1, Code::kDataLoss, "segment 0 is layer 1"},
      {directory + record_head::kEntryKind, 2, Code::kDataLoss, "segment 0"},
      {directory + record_head::kEntryCodec, 6, Code::kUnimplemented, "tq"},
      {directory + record_head::kEntryCodec, 7, Code::kDataLoss, "ec-c in a record that is not lossy"},
      {directory + record_head::kEntryOffset64, 9, Code::kDataLoss, "lies at"},
      {directory + record_head::kEntryBytes + 3, 1, Code::kDataLoss, "is coded (llf) in"},
      {directory + record_head::kEntryDigest, 1, Code::kDataLoss, "decoded digest"},
  };
  for (const auto& c : kCases) {
    const Error error = ErrorAfter(*bytes, c.at, c.value);
    EXPECT_EQ(error.code, c.code) << c.at << ": " << error.message;
    EXPECT_THAT(error.message, HasSubstr(c.names)) << c.at;
  }
}

TEST(RecordTest, SkipsTlvsThatMayBeSkippedAndOnlyThose) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
  KvLayout named = layout;
  named.engine = "engine-x";
  const auto bytes = Encoded(SpecOf(named), CodecId::kRaw, BlockOf(layout, 14));
  ASSERT_TRUE(bytes);
  EXPECT_EQ(ParseRecord(*bytes)->layout.engine, "engine-x");
  // The engine TLV is the third: 64 + 24 + 16.
  EXPECT_EQ(ErrorAfter(*bytes, 64 + 24 + 16 + 1, 0x80).message, "accepted");
  EXPECT_EQ(ErrorAfter(*bytes, 64 + 24 + 16 + 1, 0x7f).code, Code::kUnimplemented);
}

TEST(RecordTest, TellsAReaderWhichPartOfItsLayoutDiffers) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
  const auto bytes = Encoded(SpecOf(layout), CodecId::kRaw, BlockOf(layout, 15));
  ASSERT_TRUE(bytes);
  const auto record = ParseRecord(*bytes);
  std::vector<std::byte> out(layout.block_bytes());
  const auto error = [&](auto&& change) {
    KvLayout other = layout;
    change(other);
    const Status s = DecodeRecord(*record, other, out);
    return s ? std::string("accepted") : CodeName(s.error().code) + " " + s.error().message;
  };
  EXPECT_THAT(error([](KvLayout& l) { l.dtype = Dtype::kFp16; }), HasSubstr("INVALID_ARGUMENT"));
  EXPECT_THAT(error([](KvLayout& l) { l.kv_heads = 3; }), HasSubstr("kv_heads 2"));
  EXPECT_THAT(error([](KvLayout& l) { l.tokens_per_block = 9; }), HasSubstr("tokens_per_block"));
  EXPECT_THAT(error([](KvLayout& l) { l.v_order = AxisOrder::kHeadDimToken; }),
              HasSubstr("v_order"));
  EXPECT_THAT(error([](KvLayout& l) { l.world = 2; }), HasSubstr("world"));
  EXPECT_THAT(error([](KvLayout& l) { l.isa = "vec"; }), HasSubstr("isa"));
  out.pop_back();
  EXPECT_EQ(DecodeRecord(*record, layout, out).error().code, Code::kInvalidArgument);
}

TEST(RecordTest, RefusesToEncodeWhatItCouldNotRead) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
  const auto block = BlockOf(layout, 16);
  const auto code = [&](RecordSpec spec, CodecId codec, ByteSpan from) {
    const auto bytes = Encoded(spec, codec, from);
    return bytes ? Code::kOk : bytes.error().code;
  };
  RecordSpec spec = SpecOf(layout);
  EXPECT_EQ(code(spec, CodecId::kTq, block), Code::kUnimplemented);
  EXPECT_EQ(code(spec, CodecId::kRaw, ByteSpan(block).first(8)), Code::kInvalidArgument);
  spec.layer_begin = 1;
  spec.layer_end = 3;
  EXPECT_EQ(code(spec, CodecId::kRaw, block), Code::kInvalidArgument);
  spec = SpecOf(layout);
  spec.layout.isa.assign(65, 'x');
  EXPECT_EQ(code(spec, CodecId::kRaw, block), Code::kInvalidArgument);
  spec = SpecOf(layout);
  spec.layout.kv_heads = 0;
  EXPECT_EQ(code(spec, CodecId::kRaw, block), Code::kInvalidArgument);
  std::vector<std::byte> small(64);
  EXPECT_EQ(EncodeRecord(SpecOf(layout), CodecId::kRaw, block, small).error().code,
            Code::kInvalidArgument);
  const std::vector<std::byte> big(kMaxPayloadBytes);
  EXPECT_THAT(Encoded(SpecOf(KvLayout::Opaque()), CodecId::kRaw, big).error().message,
              HasSubstr("limit"));
}

TEST(RecordTest, PeekTellsWhatItIsFromTheFirstBytes) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 4);
  RecordSpec spec = SpecOf(layout);
  spec.quality = QualityClass::kNear;
  const auto bytes = Encoded(spec, CodecId::kAuto, BlockOf(layout, 17));
  ASSERT_TRUE(bytes);
  const auto summary = PeekRecord(ByteSpan(*bytes).first(128));
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(summary->codec, CodecId::kLlf);
  EXPECT_EQ(summary->quality, QualityClass::kNear);
  EXPECT_EQ(summary->raw_bytes, layout.block_bytes());
  EXPECT_EQ(summary->record_bytes, bytes->size());
  EXPECT_EQ(summary->tokens(), layout.tokens_per_block);
  EXPECT_EQ(summary->scope, spec.scope);
  const auto head = ParseRecordHead(ByteSpan(*bytes).first(summary->head_bytes));
  ASSERT_TRUE(head);
  EXPECT_EQ(head->decoded_digest, summary->decoded_digest);
}

TEST(RecordTest, ItsDigestDoesNotDependOnTheCodec) {
  const KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
  const auto block = BlockOf(layout, 18);
  const auto raw = Encoded(SpecOf(layout), CodecId::kRaw, block);
  const auto llf = Encoded(SpecOf(layout), CodecId::kLlf, block);
  EXPECT_EQ(ParseRecord(*raw)->decoded_digest, ParseRecord(*llf)->decoded_digest);
  std::vector<uint64_t> digests;
  for (uint64_t i = 0; i < 4; ++i) {
    digests.push_back(DecodedDigest(
        ByteSpan(block).subspan(i * layout.k_plane_bytes(), layout.k_plane_bytes())));
  }
  EXPECT_EQ(ParseRecord(*raw)->decoded_digest, DecodedDigest(std::as_bytes(std::span(digests))));
}

TEST(RecordTest, RandomShapesGoThereAndBack) {
  SplitMix64 random(19);
  const int rounds = std::getenv("TIERCEL_FULL") != nullptr ? 3000 : 150;
  for (int round = 0; round < rounds; ++round) {
    KvLayout layout;
    layout.dtype = static_cast<Dtype>(1 + random.Below(6));
    layout.packing = static_cast<KvPacking>(random.Below(3));
    layout.k_order = static_cast<AxisOrder>(random.Below(3));
    layout.v_order = static_cast<AxisOrder>(random.Below(3));
    layout.layers = static_cast<uint32_t>(1 + random.Below(4));
    layout.kv_heads = static_cast<uint32_t>(1 + random.Below(5));
    layout.head_dim_k = static_cast<uint32_t>(1 + random.Below(70));
    layout.head_dim_v =
        layout.packing == KvPacking::kLatent ? 0 : static_cast<uint32_t>(1 + random.Below(70));
    layout.tokens_per_block = static_cast<uint32_t>(1 + random.Below(40));
    layout.world = static_cast<uint32_t>(1 + random.Below(4));
    layout.rank = static_cast<uint32_t>(random.Below(layout.world));
    if (random.Below(2) == 0) layout.engine = "engine";
    if (random.Below(2) == 0) layout.isa = "some-longer-name-of-an-isa";
    ForcedIsa forced(kAllIsas[random.Below(3)]);
    const auto block = BlockOf(layout, random.Next());
    const auto bytes = Encoded(SpecOf(layout), CodecId::kAuto, block);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    ASSERT_TRUE(VerifyRecord(*record));
    std::vector<std::byte> out(block.size());
    ASSERT_TRUE(DecodeRecord(*record, layout, out));
    ASSERT_TRUE(out == block);
  }
}

TEST(RecordTest, ALossyRecordSaysSoAndDecodesByItself) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 3);
  layout.tokens_per_block = 64;
  layout.head_dim_k = layout.head_dim_v = 64;
  const auto block = BlockOf(layout, 5);
  std::vector<uint64_t> frequencies(16);
  for (size_t i = 0; i < 16; ++i) frequencies[i] = uint64_t{1} << (62 - 2 * i);
  std::vector<float> scales(3 * 2 * 2, 1.0f);
  EncodeOptions options;
  options.quality = QualityClass::kHigh;
  options.step = 0.05f;
  options.scales = scales;
  options.exact_tokens = 4;
  options.rope = {RopeStyle::kNeighbours, 16, 32, frequencies.data()};
  RecordSpec spec = SpecOf(layout);
  spec.pos0 = 1;
  spec.options = &options;
  const auto bytes = Encoded(spec, CodecId::kEcC, block);
  ASSERT_TRUE(bytes) << bytes.error().message;
  const auto record = ParseRecord(*bytes);
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_TRUE(record->lossy);
  EXPECT_EQ(record->quality, QualityClass::kHigh);
  EXPECT_EQ(record->rope_style, RopeStyle::kNeighbours);
  EXPECT_EQ(record->rope_first, 16u);
  EXPECT_EQ(record->rope_dims, 32u);
  EXPECT_LT(bytes->size(), block.size() * 2 / 3);
  std::vector<std::byte> out(block.size());
  ASSERT_TRUE(DecodeRecord(*record, layout, out));
  // Positions 1, 2 and 3 are exact.
  const size_t token = size_t{2} * 2 * 64;
  for (uint32_t plane = 0; plane < 6; ++plane) {
    const size_t at = plane * token * 64;
    EXPECT_EQ(std::memcmp(out.data() + at, block.data() + at, 3 * token), 0);
    EXPECT_NE(std::memcmp(out.data() + at, block.data() + at, 64 * token), 0);
  }
  // Layers taken out decode as they do within the whole.
  std::vector<std::byte> part(bytes->size());
  const auto size = ExtractLayers(*record, 1, 2, part);
  ASSERT_TRUE(size);
  const auto extracted = ParseRecord(ByteSpan(part).first(*size));
  ASSERT_TRUE(extracted) << extracted.error().message;
  std::vector<std::byte> layer(layout.layer_bytes());
  ASSERT_TRUE(DecodeRecord(*extracted, layout, layer, 1, 2));
  EXPECT_EQ(std::memcmp(layer.data(), out.data() + layout.layer_bytes(), layer.size()), 0);

  // The worst class of what went in and what was asked.
  spec.quality = QualityClass::kSmall;
  const auto worse = Encoded(spec, CodecId::kEcC, block);
  ASSERT_TRUE(worse);
  EXPECT_EQ(ParseRecord(*worse)->quality, QualityClass::kSmall);
  // A lossless codec heeds no options.
  const auto lossless = Encoded(spec, CodecId::kLle, block);
  ASSERT_TRUE(lossless);
  EXPECT_EQ(ParseRecord(*lossless)->rope_dims, 0u);
  EXPECT_FALSE(ParseRecord(*lossless)->lossy);

  const auto refused = [&](const char* field) {
    const auto got = Encoded(spec, CodecId::kEcC, block);
    ASSERT_FALSE(got) << field;
    EXPECT_EQ(got.error().code, Code::kInvalidArgument);
    EXPECT_NE(got.error().message.find(field), std::string::npos) << got.error().message;
  };
  options.scales = std::span(scales).first(5);
  refused("scales");
  options.scales = {};
  options.rope.first = 40;
  refused("rope.first");
  options.rope.dims = 31;
  refused("rope.dims");
  options.rope.dims = 0;
  options.latent_dims = 8;
  refused("latent_dims");
}

TEST(RecordTest, EcCLeavesKeysOfLayersWithARotationOfTheirOwn) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 3);
  layout.tokens_per_block = 64;
  const auto block = BlockOf(layout, 5);
  ArtifactShape shape;
  shape.layers = 3;
  shape.dim_k = shape.dim_v = shape.rope_dims = static_cast<uint16_t>(layout.head_dim_k);
  shape.transforms = false;
  shape.own_ropes = 1;
  const auto artifact = *Artifact::Parse(ArtifactWriter(shape).Finish());
  EncodeOptions options;
  options.artifact = artifact.get();
  options.quality = QualityClass::kHigh;
  RecordSpec spec = SpecOf(layout);
  spec.options = &options;
  // What an artifact says, and what was said beside it: that is of all layers.
  for (const bool said : {false, true}) {
    std::vector<uint64_t> frequencies(artifact->common_rope().begin(), artifact->common_rope().end());
    if (said) options.rope = {RopeStyle::kHalves, 0, shape.rope_dims, frequencies.data()};
    const auto bytes = Encoded(spec, CodecId::kEcC, block);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const auto record = ParseRecord(*bytes);
    ASSERT_TRUE(record) << record.error().message;
    EXPECT_EQ(record->rope_dims, shape.rope_dims);
    for (uint32_t i = 0; i < record->n_segments; ++i) {
      const SegmentInfo segment = record->segment(i);
      ASSERT_EQ(segment.codec, CodecId::kEcC);
      const bool turned = segment.shape.kind == SegmentKind::kK && (said || segment.shape.layer < 2);
      EXPECT_EQ(record->segment_bytes(segment)[2], std::byte{turned ? uint8_t{1} : uint8_t{0}}) << "segment " << i;
    }
    std::vector<std::byte> out(block.size());
    const Status decoded = DecodeRecord(*record, layout, out);
    EXPECT_TRUE(decoded) << decoded.error().message;
  }
}

TEST(RecordTest, AWrongRotationIsToldByTheDigestOrByName) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 1);
  layout.tokens_per_block = 64;
  const auto block = BlockOf(layout, 5);
  const uint64_t frequencies[] = {uint64_t{1} << 60, uint64_t{1} << 50};
  EncodeOptions options;
  options.rope = {RopeStyle::kHalves, 0, 4, frequencies};
  RecordSpec spec = SpecOf(layout);
  spec.options = &options;
  const auto good = Encoded(spec, CodecId::kEcC, block);
  ASSERT_TRUE(good);
  const auto view = ParseRecord(*good);
  ASSERT_TRUE(view);
  ASSERT_EQ(view->segment(0).codec, CodecId::kEcC);
  const auto broken = [&](size_t at, uint8_t value) {
    auto bytes = *good;
    bytes[at] = static_cast<std::byte>(value);
    StoreLe(bytes.data() + record_head::kCrc,
            record_head::HeadCrc(ByteSpan(bytes).first(view->head_bytes)));
    const auto record = ParseRecord(bytes);
    if (!record) return record.error().message;
    std::vector<std::byte> out(block.size());
    const Status s = DecodeRecord(*record, layout, out);
    return s ? std::string("good") : s.error().message;
  };
  const size_t tlv = view->rope_offset - record_head::kRopeFrequencies;
  EXPECT_NE(broken(view->rope_offset + 7, 0x55).find("decodes to digest"), std::string::npos);
  EXPECT_NE(broken(tlv + record_head::kRopeStyle, 1).find("decodes to digest"), std::string::npos);
  EXPECT_NE(broken(tlv + record_head::kRopeStyle, 2).find("rope style"), std::string::npos);
  EXPECT_NE(broken(tlv + record_head::kRopeDims, 6).find("rope"), std::string::npos);
  EXPECT_NE(broken(tlv + record_head::kRopeFirst, 15).find("rope"), std::string::npos);
}

}  // namespace
}  // namespace tiercel
