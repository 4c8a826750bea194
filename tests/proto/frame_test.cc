#include "proto/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/random.h"
#include "tests/proto/golden.h"

namespace tiercel {
namespace {

using ::testing::HasSubstr;
using nlohmann::json;
using HeaderBytes = std::array<std::byte, kFrameHeaderBytes>;

FrameHeader Example() {
  FrameHeader header;
  header.op = Op::kData;
  header.flags = kFlagLast;
  header.session_id = 0x1122334455667788;
  header.req_id = 42;
  header.count = 3;
  header.index = 2;
  header.payload_bytes = 1'048'960;
  header.quality = QualityClass::kNear;
  header.min_class = QualityClass::kBalanced;
  header.deadline_ms = 2000;
  header.reuse_hint = ReuseHint::kLikely;
  header.tier = Tier::kSsd;
  header.generation = 7;
  return header;
}

HeaderBytes Encode(const FrameHeader& header) {
  HeaderBytes bytes;
  EncodeFrameHeader(header, bytes.data());
  return bytes;
}

BlockKey Key(uint64_t seed) {
  BlockKey key;
  SplitMix64 random(seed);
  for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(key.bytes.data() + i, random.Next());
  return key;
}

ChainMeta ExampleMeta(uint32_t first, uint32_t n) {
  ChainMeta meta;
  for (size_t i = 0; i < 16; ++i) meta.scope.bytes[i] = static_cast<std::byte>(i);
  meta.first_index = first;
  meta.parent = Key(1000 + first);
  meta.layer_begin = 2;
  meta.layer_end = 9;
  for (size_t i = 0; i < 25; ++i) meta.traceparent[i] = static_cast<std::byte>(0xa0 + i);
  for (uint64_t i = 0; i < RunsTouched(first, n); ++i) meta.anchors.push_back(Key(100 + i));
  for (uint64_t i = 0; i < n; ++i) meta.keys.push_back(Key(i));
  return meta;
}

TEST(FrameHeaderTest, GoldenVectors) {
  FrameHeader hello;
  hello.op = Op::kHello;
  hello.session_id = 1;
  FrameHeader miss = Example();
  miss.payload_bytes = 0;
  miss.status = Code::kNotFound;
  miss.reason = MissReason::kEvicted;
  json vectors = json::array();
  for (const FrameHeader& header : {hello, Example(), miss}) {
    vectors.push_back({{"op", static_cast<int>(header.op)}, {"bytes", ToHex(Encode(header))}});
  }
  ExpectGolden("frame_header", vectors);
}

TEST(FrameHeaderTest, ReadsBackWhatWasWritten) {
  const FrameHeader in = Example();
  const Result<FrameHeader> out = DecodeFrameHeader(Encode(in));
  ASSERT_TRUE(out);
  EXPECT_EQ(Encode(*out), Encode(in));
  EXPECT_EQ(out->generation, 7u);
  EXPECT_EQ(out->tier, Tier::kSsd);
  EXPECT_EQ(out->session_id, in.session_id);
}

TEST(FrameHeaderTest, CatchesEverySingleFlippedBit) {
  const HeaderBytes good = Encode(Example());
  for (size_t bit = 0; bit < kFrameHeaderBytes * 8; ++bit) {
    HeaderBytes bad = good;
    bad[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(DecodeFrameHeader(bad)) << "bit " << bit;
  }
}

TEST(FrameHeaderTest, RefusesEveryTruncation) {
  const HeaderBytes good = Encode(Example());
  for (size_t size = 0; size < kFrameHeaderBytes; ++size) {
    EXPECT_FALSE(DecodeFrameHeader(ByteSpan(good).first(size)));
  }
}

// Changes a byte and repairs the checksum, as a peer of another make would.
Result<FrameHeader> Forged(size_t at, uint8_t value) {
  FrameHeader header = Example();
  HeaderBytes bytes = Encode(header);
  bytes[at] = static_cast<std::byte>(value);
  const uint32_t crc = Crc32c(ByteSpan(bytes).subspan(56, 8), Crc32c(ByteSpan(bytes).first(52)));
  StoreLe<uint32_t>(bytes.data() + 52, crc);
  return DecodeFrameHeader(bytes);
}

TEST(FrameHeaderTest, SaysWhichFieldIsWrong) {
  EXPECT_EQ(Forged(4, 2).error().code, Code::kUnimplemented);
  EXPECT_THAT(Forged(4, 2).error().message, HasSubstr("wire version 2, this side speaks 1"));
  EXPECT_THAT(Forged(5, 0).error().message, HasSubstr("unknown op 0"));
  EXPECT_THAT(Forged(5, 99).error().message, HasSubstr("unknown op 99"));
  EXPECT_THAT(Forged(7, 0x80).error().message, HasSubstr("flags"));
  EXPECT_THAT(Forged(24, 65).error().message, HasSubstr("count is 65"));
  EXPECT_THAT(Forged(39, 1).error().message, HasSubstr("payload_bytes"));
  EXPECT_THAT(Forged(41, 12).error().message, HasSubstr("reason is 12"));
  EXPECT_THAT(Forged(43, 5).error().message, HasSubstr("min_class is 5"));
  EXPECT_THAT(Forged(48, 4).error().message, HasSubstr("reuse_hint is 4"));
  EXPECT_THAT(Forged(49, 4).error().message, HasSubstr("tier is 4"));
}

TEST(ChainMetaTest, GoldenVectors) {
  json vectors = json::array();
  for (const auto& [first, n] : {std::pair<uint32_t, uint32_t>{0, 1}, {30, 4}}) {
    vectors.push_back({{"first_index", first}, {"n", n}, {"bytes", ToHex(EncodeChainMeta(ExampleMeta(first, n)))}});
  }
  ExpectGolden("chain_meta", vectors);
}

TEST(ChainMetaTest, ReadsBackWhatWasWrittenAcrossRuns) {
  for (const auto& [first, n] : {std::pair<uint32_t, uint32_t>{0, 64}, {31, 2}, {1, 64}, {32, 1}}) {
    const ChainMeta in = ExampleMeta(first, n);
    const auto bytes = EncodeChainMeta(in);
    EXPECT_LE(bytes.size(), kMaxMetaBytes);
    ChainMeta out;
    ASSERT_TRUE(DecodeChainMeta(bytes, out));
    EXPECT_EQ(out.keys, in.keys);
    EXPECT_EQ(out.anchors, in.anchors);
    EXPECT_EQ(out.parent, in.parent);
    EXPECT_EQ(out.scope, in.scope);
    EXPECT_EQ(out.traceparent, in.traceparent);
    EXPECT_EQ(out.layer_end, 9);
    EXPECT_EQ(out.anchor_of(0), in.anchors.front());
    EXPECT_EQ(out.anchor_of(n - 1), in.anchors.back());
  }
}

TEST(ChainMetaTest, RefusesEveryTruncationAndEveryLie) {
  const auto good = EncodeChainMeta(ExampleMeta(30, 4));
  ChainMeta out;
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(DecodeChainMeta(ByteSpan(good).first(size), out)) << size;
  }
  const auto lie = [&](size_t at, uint16_t value) {
    auto bytes = good;
    StoreLe<uint16_t>(bytes.data() + at, value);
    const Status status = DecodeChainMeta(bytes, out);
    return status ? std::string("accepted") : status.error().message;
  };
  EXPECT_THAT(lie(20, 0), HasSubstr("0 keys"));
  EXPECT_THAT(lie(20, 65), HasSubstr("65 keys"));
  EXPECT_THAT(lie(20, 5), HasSubstr("do not hold 5 keys"));
  EXPECT_THAT(lie(22, 3), HasSubstr("3 anchors"));
  EXPECT_THAT(lie(56, 10), HasSubstr("layers 10..9"));
  auto absurd = good;
  StoreLe<uint32_t>(absurd.data() + 16, UINT32_MAX);
  EXPECT_FALSE(DecodeChainMeta(absurd, out));
}

TEST(MatchEntryTest, ReadsBackWhatWasWrittenAndRefusesTheRest) {
  std::array<std::byte, kMatchEntryBytes> bytes;
  EncodeMatchEntry({Tier::kHost, MissReason::kNone, QualityClass::kHigh, 123456}, bytes.data());
  const Result<MatchEntry> entry = DecodeMatchEntry(bytes);
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->tier, Tier::kHost);
  EXPECT_EQ(entry->quality, QualityClass::kHigh);
  EXPECT_EQ(entry->record_bytes, 123456u);
  EXPECT_EQ(ToHex(bytes), "0200020040e20100");
  bytes[0] = std::byte{9};
  EXPECT_FALSE(DecodeMatchEntry(bytes));
  EXPECT_FALSE(DecodeMatchEntry(ByteSpan(bytes).first(7)));
}

}  // namespace
}  // namespace tiercel
