// The entropy coder: what goes in comes out, the same bytes on every ISA, near the entropy, and never
// outside its spans.
#include "kernels/rans.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>

#include "kernels/rans_frozen.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel::rans {
namespace {

struct Matrix {
  uint32_t columns = 0;
  uint32_t tokens = 0;
  std::vector<int16_t> values;
  const int16_t* column(uint32_t c) const { return values.data() + size_t{c} * tokens; }
};

double Normal(SplitMix64& random) {
  return std::sqrt(-2 * std::log(1 - random.Uniform())) * std::cos(6.283185307179586 * random.Uniform());
}

// Columns of all scales up to `widest`, some of them zero, a far value here and there.
Matrix RandomMatrix(uint32_t columns, uint32_t tokens, double widest, uint64_t seed) {
  SplitMix64 random(seed);
  Matrix m{columns, tokens, std::vector<int16_t>(size_t{columns} * tokens)};
  for (uint32_t c = 0; c < columns; ++c) {
    const double sigma = random.Below(10) == 0 ? 0 : widest * std::exp2(-6 * random.Uniform());
    for (uint32_t t = 0; t < tokens; ++t) {
      double v = sigma * Normal(random);
      if (sigma > 0 && random.Below(500) == 0) v *= 1000;
      m.values[size_t{c} * tokens + t] =
          static_cast<int16_t>(std::clamp(std::rint(v), -double{kMaxValue}, double{kMaxValue}));
    }
  }
  return m;
}

struct Coded {
  std::vector<uint8_t> classes;
  std::vector<std::byte> block;
};
Coded EncodeMatrix(const Matrix& m, TableSet set, uint32_t streams, ByteSpan cargo = {}) {
  std::vector<std::byte> scratch(EncodeScratchBytes(m.columns, m.tokens));
  Encoder encoder(set, m.columns, m.tokens, scratch);
  for (uint32_t c = 0; c < m.columns; ++c) encoder.Add(m.column(c));
  Coded coded{{encoder.classes().begin(), encoder.classes().end()},
              std::vector<std::byte>(size_t{8} * m.columns * m.tokens + 4096)};
  const auto size = encoder.Finish(streams, cargo, coded.block);
  coded.block.resize(size.value_or(0));
  return coded;
}

const char* DecodeMatrix(const Coded& coded, TableSet set, uint32_t columns, uint32_t tokens,
                         std::vector<int16_t>& out, std::vector<std::byte>* cargo = nullptr) {
  std::vector<std::byte> scratch(DecodeScratchBytes(columns, tokens));
  // Exactly as long as it is, on the heap, so that ASan sees a step beyond.
  const auto block = std::make_unique<std::byte[]>(coded.block.size());
  std::copy(coded.block.begin(), coded.block.end(), block.get());
  Decoder decoder(set, columns, tokens, scratch);
  if (const char* bad = decoder.Start(coded.classes, {block.get(), coded.block.size()})) return bad;
  if (cargo != nullptr) cargo->assign(decoder.cargo().begin(), decoder.cargo().end());
  out.assign(size_t{columns} * tokens, 0);
  std::vector<int16_t> column((tokens + 31) / 32 * 32);
  for (uint32_t c = 0; c < columns; ++c) {
    if (const char* bad = decoder.Column(column.data())) return bad;
    std::copy_n(column.begin(), tokens, out.begin() + static_cast<ptrdiff_t>(size_t{c} * tokens));
  }
  return decoder.Finish();
}

uint64_t Rounds(uint64_t ordinarily) {
  return std::getenv("TIERCEL_FULL") != nullptr ? 10'000 : ordinarily;
}

TEST(RansTest, EveryIsaWritesTheSameBytesAndReadsThemBack) {
  SplitMix64 random(1);
  const uint32_t fixed[] = {1, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 255, 256};
  for (uint64_t round = 0; round < Rounds(300); ++round) {
    const auto columns = static_cast<uint32_t>(1 + random.Below(90));
    const uint32_t tokens = random.Below(2) == 0 ? fixed[random.Below(std::size(fixed))]
                                                 : static_cast<uint32_t>(1 + random.Below(300));
    const uint32_t streams = 1u << random.Below(4);
    const auto set = static_cast<TableSet>(random.Below(2));
    const Matrix m = RandomMatrix(columns, tokens, std::exp2(12 * random.Uniform() - 2), round);
    const auto cargo = RandomBytes(random.Below(streams * kCargoBytes + 1), round);
    Coded reference;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const Coded coded = EncodeMatrix(m, set, streams, cargo);
      ASSERT_FALSE(coded.block.empty());
      if (isa == KernelIsa::kScalar) reference = coded;
      ASSERT_EQ(coded.classes, reference.classes) << Name(isa) << " " << columns << "x" << tokens;
      ASSERT_TRUE(coded.block == reference.block)
          << Name(isa) << " " << columns << "x" << tokens << " streams " << streams;
      std::vector<int16_t> out;
      std::vector<std::byte> rode;
      ASSERT_EQ(DecodeMatrix(coded, set, columns, tokens, out, &rode), nullptr)
          << Name(isa) << " " << columns << "x" << tokens << " streams " << streams;
      ASSERT_TRUE(out == m.values) << Name(isa) << " " << columns << "x" << tokens;
      ASSERT_TRUE(std::equal(cargo.begin(), cargo.end(), rode.begin()));
    }
  }
}

// Exponents as LLE has them: bytes, and a base of each column; of a column far from its base, values of any size.
TEST(RansTest, BytesLessABaseAreTheirValues) {
  SplitMix64 random(7);
  for (uint64_t round = 0; round < Rounds(200); ++round) {
    const auto columns = static_cast<uint32_t>(1 + random.Below(40));
    const auto tokens = static_cast<uint32_t>(1 + random.Below(random.Below(8) == 0 ? 2000 : 300));
    std::vector<uint8_t> bytes(size_t{columns} * tokens);
    std::vector<int32_t> bases(columns);
    Matrix m{columns, tokens, std::vector<int16_t>(bytes.size())};
    for (uint32_t c = 0; c < columns; ++c) {
      bases[c] = random.Below(4) == 0 ? -2 : static_cast<int32_t>(random.Below(258)) - 2;
      const double sigma = std::exp2(8 * random.Uniform() - 2);
      for (uint32_t t = 0; t < tokens; ++t) {
        const double near = std::clamp(std::rint(bases[c] + sigma * Normal(random)), 0.0, 255.0);
        const auto byte = random.Below(50) == 0 ? static_cast<uint8_t>(random.Next()) : static_cast<uint8_t>(near);
        bytes[size_t{c} * tokens + t] = byte;
        m.values[size_t{c} * tokens + t] = static_cast<int16_t>(byte - bases[c]);
      }
    }
    const uint32_t streams = 1u << random.Below(4);
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      const Coded as_values = EncodeMatrix(m, TableSet::kExponents, streams);
      std::vector<std::byte> scratch(std::max(EncodeScratchBytes(columns, tokens), DecodeScratchBytes(columns, tokens)));
      Encoder encoder(TableSet::kExponents, columns, tokens, scratch);
      for (uint32_t c = 0; c < columns; ++c) encoder.AddBytes(bytes.data() + size_t{c} * tokens, bases[c]);
      ASSERT_TRUE(std::equal(as_values.classes.begin(), as_values.classes.end(), encoder.classes().begin())) << Name(isa);
      std::vector<std::byte> block(as_values.block.size());
      ASSERT_EQ(encoder.Finish(streams, {}, block), block.size()) << Name(isa);
      ASSERT_TRUE(block == as_values.block) << Name(isa) << " " << columns << "x" << tokens;
      Decoder decoder(TableSet::kExponents, columns, tokens, scratch);
      ASSERT_EQ(decoder.Start(as_values.classes, block), nullptr);
      std::vector<uint8_t> out(bytes.size());
      for (uint32_t c = 0; c < columns; ++c) ASSERT_EQ(decoder.Bytes(bases[c], out.data() + size_t{c} * tokens), nullptr);
      ASSERT_EQ(decoder.Finish(), nullptr);
      ASSERT_TRUE(out == bytes) << Name(isa) << " " << columns << "x" << tokens;
    }
  }
}

// The format lets columns of bytes have shifted classes, which our encoder never makes: their low bytes come out.
TEST(RansTest, BytesOfShiftedClassesAreTheLowBytesOfTheirValues) {
  SplitMix64 random(8);
  for (uint64_t round = 0; round < Rounds(60); ++round) {
    const auto columns = static_cast<uint32_t>(1 + random.Below(20));
    const auto tokens = static_cast<uint32_t>(1 + random.Below(200));
    const Matrix m = RandomMatrix(columns, tokens, std::exp2(12 * random.Uniform()), round);
    const Coded coded = EncodeMatrix(m, TableSet::kQuantized, 2);
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      std::vector<std::byte> scratch(DecodeScratchBytes(columns, tokens));
      Decoder decoder(TableSet::kQuantized, columns, tokens, scratch);
      ASSERT_EQ(decoder.Start(coded.classes, coded.block), nullptr);
      std::vector<uint8_t> out(tokens);
      for (uint32_t c = 0; c < columns; ++c) {
        const auto base = static_cast<int32_t>(c * 13) - 2;
        ASSERT_EQ(decoder.Bytes(base, out.data()), nullptr);
        for (uint32_t t = 0; t < tokens; ++t) ASSERT_EQ(out[t], static_cast<uint8_t>(m.column(c)[t] + base)) << Name(isa);
      }
      ASSERT_EQ(decoder.Finish(), nullptr);
    }
  }
}

double EntropyBits(const int16_t* values, uint32_t n) {
  std::map<int16_t, double> counts;
  for (uint32_t i = 0; i < n; ++i) ++counts[values[i]];
  double bits = 0;
  for (const auto& [value, count] : counts) bits -= count * std::log2(count / n);
  return bits;
}

TEST(RansTest, ComesNearTheEntropyAtEveryScale) {
  SplitMix64 random(2);
  for (const double sigma : {0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0, 20.0, 60.0}) {
    // One column of a normal distribution, long enough that its own entropy is the distribution's.
    constexpr uint32_t kColumns = 64;
    Matrix m{kColumns, 4096, std::vector<int16_t>(kColumns * 4096)};
    for (auto& v : m.values) v = static_cast<int16_t>(std::rint(sigma * Normal(random)));
    const double entropy = EntropyBits(m.values.data(), kColumns * 4096) / (kColumns * 4096);
    const Coded coded = EncodeMatrix(m, TableSet::kQuantized, 1);
    const double bits = 8.0 * static_cast<double>(coded.block.size()) / (kColumns * 4096);
    EXPECT_LT(bits, entropy + (sigma > 2 ? 0.06 : 0.025)) << sigma;
  }
}

TEST(RansTest, AColumnOfZerosTakesNothing) {
  const Matrix m{100, 256, std::vector<int16_t>(25600)};
  const Coded coded = EncodeMatrix(m, TableSet::kQuantized, 1);
  EXPECT_EQ(coded.block.size(), 4 + 4 * kLanes);
  std::vector<int16_t> out;
  EXPECT_EQ(DecodeMatrix(coded, TableSet::kQuantized, 100, 256, out), nullptr);
  EXPECT_TRUE(out == m.values);
}

TEST(RansTest, OutOfRoomIsNoResult) {
  const Matrix m = RandomMatrix(20, 64, 3, 5);
  std::vector<std::byte> scratch(EncodeScratchBytes(20, 64));
  Encoder encoder(TableSet::kQuantized, 20, 64, scratch);
  for (uint32_t c = 0; c < 20; ++c) encoder.Add(m.column(c));
  std::vector<std::byte> out(100);
  EXPECT_FALSE(encoder.Finish(1, {}, out));
}

TEST(RansTest, NeverLeavesItsSpansWhateverTheBlockSays) {
  SplitMix64 random(3);
  for (const uint32_t tokens : {16u, 45u, 96u}) {
    const Matrix m = RandomMatrix(24, tokens, 20, tokens);
    const Coded good = EncodeMatrix(m, TableSet::kQuantized, 2);
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      for (int round = 0; round < 1500; ++round) {
        Coded bad = good;
        for (int k = 0; k < 3; ++k) {
          bad.block[random.Below(bad.block.size())] = static_cast<std::byte>(random.Next());
        }
        if (random.Below(4) == 0) bad.block.resize(random.Below(bad.block.size()));
        if (random.Below(4) == 0) {
          bad.classes[random.Below(24)] = ClassOfRank(static_cast<uint32_t>(random.Below(kRanks)));
        }
        std::vector<int16_t> out;
        (void)DecodeMatrix(bad, TableSet::kQuantized, 24, tokens, out);
      }
    }
  }
}

TEST(RansTest, EveryIsaSeesTheSameInAMalformedBlock) {
  SplitMix64 random(4);
  const Matrix m = RandomMatrix(24, 96, 20, 9);
  const Coded good = EncodeMatrix(m, TableSet::kQuantized, 2);
  for (int round = 0; round < 500; ++round) {
    Coded bad = good;
    bad.block[random.Below(bad.block.size())] = static_cast<std::byte>(random.Next());
    std::optional<std::string> reference;
    for (const KernelIsa isa : kAllIsas) {
      ForcedIsa forced(isa);
      if (!forced.usable()) continue;
      std::vector<int16_t> out;
      const char* what = DecodeMatrix(bad, TableSet::kQuantized, 24, 96, out);
      // Which of the two ways a stream goes wrong may depend on how far a loop looks ahead.
      const std::string said = what == nullptr ? "" : "bad";
      if (!reference) reference = said;
      EXPECT_EQ(said, *reference) << Name(isa);
    }
  }
}

TEST(RansTest, TheDocumentHasTheTablesAndTheExample) {
  std::ifstream file(std::string(TIERCEL_SOURCE_DIR) + "/docs/block-format.md");
  const std::string document{std::istreambuf_iterator<char>(file), {}};
  for (const auto* frequencies : {kQuantizedFrequencies, kExponentFrequencies}) {
    for (uint32_t t = 1; t < kTables; ++t) {
      std::string line = fmt::format("    {:2}  ", t);
      for (uint32_t s = 0; s < kSymbols; ++s) {
        line += fmt::format("{}{}", frequencies[t - 1][s], s + 1 < kSymbols ? " " : "\n");
      }
      EXPECT_NE(document.find(line), std::string::npos) << line;
    }
  }
  const LaneTable& table = TablesOf(TableSet::kQuantized).lane[20];
  uint32_t x = kLow;
  uint16_t word = 0;
  EXPECT_FALSE(EncodeLane(x, table.frequency[8], table.start[8], &word));
  EXPECT_EQ(x, 0x24cdeu);
  EXPECT_FALSE(EncodeLane(x, table.frequency[7], table.start[7], &word));
  EXPECT_EQ(x, 0x4ca96u);
  EXPECT_NE(document.find("0x4ca96"), std::string::npos);
}

TEST(BitsTest, ListsOfIntegersComeBack) {
  SplitMix64 random(6);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> values(random.Below(300));
    const uint64_t range = uint64_t{1} << random.Below(20);
    for (auto& v : values) {
      v = static_cast<int32_t>(random.Below(range)) - static_cast<int32_t>(range / 2);
    }
    std::vector<std::byte> bytes(4096);
    BitWriter writer(bytes);
    PutIntegers(writer, values);
    writer.Put(5, 3);
    const size_t size = writer.Finish();
    ASSERT_LE(size, bytes.size());
    BitReader reader(ByteSpan(bytes).first(size));
    std::vector<int32_t> back(values.size());
    ASSERT_TRUE(GetIntegers(reader, -(1 << 20), 1 << 20, back));
    EXPECT_EQ(reader.Get(3), 5u);
    EXPECT_EQ(back, values);
    EXPECT_EQ(reader.bytes_used(), size);
    if (!values.empty() && size > 1) {
      BitReader shorter(ByteSpan(bytes).first(size / 2));
      (void)GetIntegers(shorter, -(1 << 20), 1 << 20, back);
    }
  }
}

}  // namespace
}  // namespace tiercel::rans
