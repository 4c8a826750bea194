// The CUDA source of LLF on the CPU, bit for bit against the codec.
#include "kernels/cuda/llf.cuh"

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "base/random.h"
#include "kernels/codec.h"

namespace tiercel {
namespace {

struct Result {
  std::vector<std::byte> bytes;  // Empty: not worth having.
  uint64_t digest = 0;
};

SegmentShape ShapeOf(Dtype dtype, uint32_t values) {
  SegmentShape shape;
  shape.layer = 0;
  shape.kind = SegmentKind::kK;
  shape.dtype = dtype;
  shape.tokens = values;
  shape.heads = shape.dim = 1;
  shape.raw_bytes = uint64_t{2} * values;
  return shape;
}

Result OnCpu(const SegmentShape& shape, ByteSpan raw) {
  Result out;
  out.bytes.resize(shape.raw_bytes);
  const auto encoded = LlfCodec().Encode(shape, raw, out.bytes, {});
  out.bytes.resize(encoded ? encoded->bytes : 0);
  out.digest = encoded ? encoded->decoded_digest : 0;
  return out;
}

template <bool kFp16>
Result OnDevice(const SegmentShape& shape, const std::vector<uint16_t>& raw, uint32_t blocks, uint32_t threads) {
  Result out;
  out.bytes.assign(shape.raw_bytes + 64, std::byte{0xee});
  std::vector<uint32_t> groups(raw.size() / 64 + 2);
  uint64_t digest = 0, bytes = ~uint64_t{0};
  gpu::LlfEncodeJob job;
  job.raw = raw.data();
  job.values = static_cast<uint32_t>(raw.size());
  job.dtype = static_cast<uint8_t>(shape.dtype);
  job.encoded = reinterpret_cast<uint8_t*>(out.bytes.data());
  job.limit = LlfCodec().MaxEncodedBytes(shape);
  job.groups = groups.data();
  job.digest = &digest;
  job.bytes = &bytes;
  simt::Launch({1, 1}, {32, 1}, 512, [&] { gpu::LlfBase<kFp16>(&job); });
  simt::Launch({blocks, 1}, {threads, 1}, 0, [&] { gpu::LlfPlanes<kFp16>(&job); });
  simt::Launch({1, 1}, {32, 1}, 0, [&] { gpu::LlfPlace<kFp16>(&job); });
  simt::Launch({blocks, 1}, {threads, 1}, 0, [&] { gpu::LlfEscapes<kFp16>(&job); });
  for (size_t i = std::max<size_t>(bytes, job.limit); i < out.bytes.size(); ++i) {
    EXPECT_EQ(static_cast<int>(out.bytes[i]), 0xee) << "written behind its limit";
  }
  out.bytes.resize(bytes);
  out.digest = digest;
  return out;
}

template <bool kFp16>
void Compare(SplitMix64& random, uint32_t values) {
  const SegmentShape shape = ShapeOf(kFp16 ? Dtype::kFp16 : Dtype::kBf16, values);
  std::vector<uint16_t> raw(values);
  const uint64_t kind = random.Below(5);
  for (uint16_t& value : raw) {
    const auto noise = static_cast<uint16_t>(random.Next());
    const uint32_t spread = kind == 0 ? 3 : kind == 1 ? 14 : 18;
    const auto exponent = static_cast<uint32_t>((kFp16 ? 8 : 110) + random.Below(spread));
    const uint32_t shift = kFp16 ? 10 : 7;
    value = static_cast<uint16_t>((noise & 0x8000u) | (noise & ((1u << shift) - 1)) | exponent << shift);
    if (random.Below(200) == 0) value = static_cast<uint16_t>(random.Next());  // NaN, infinity, denormals.
    if (kind == 3 && random.Below(3) == 0) value = 0;
    if (kind == 4) value = noise;
  }
  const auto blocks = static_cast<uint32_t>(1 + random.Below(3));
  const auto threads = static_cast<uint32_t>(32 << random.Below(3));
  const Result cpu = OnCpu(shape, std::as_bytes(std::span(raw)));
  const Result device = OnDevice<kFp16>(shape, raw, blocks, threads);
  ASSERT_EQ(cpu.bytes, device.bytes) << values << " values, kind " << kind;
  if (cpu.bytes.empty()) return;
  ASSERT_EQ(cpu.digest, device.digest);

  std::vector<uint16_t> back(values + 8, 0x7777);
  uint64_t digest = 0, failed = 0;
  gpu::LlfDecodeJob job{reinterpret_cast<const uint8_t*>(cpu.bytes.data()), cpu.bytes.size(), back.data(), values, &digest, &failed};
  simt::Launch({blocks, 1}, {threads, 1}, 0, [&] { gpu::LlfDecode<kFp16>(&job); });
  ASSERT_EQ(failed, 0u);
  ASSERT_TRUE(std::equal(raw.begin(), raw.end(), back.begin()));
  ASSERT_EQ(back[values], 0x7777);
  ASSERT_EQ(digest, cpu.digest);
}

TEST(SimtLlfTest, GivesTheCodecsBytesAndTakesThemBack) {
  SplitMix64 random(11);
  for (int i = 0; i < (std::getenv("TIERCEL_FULL") != nullptr ? 3000 : 60); ++i) {
    const auto values = static_cast<uint32_t>(i % 4 == 0 ? 64 * (1 + random.Below(40)) : 1 + random.Below(3000));
    Compare<false>(random, values);
    Compare<true>(random, values);
    if (HasFatalFailure()) return;
  }
}

TEST(SimtLlfTest, AMalformedSegmentIsSaidOrDecodesToTheSame) {
  SplitMix64 random(12);
  const SegmentShape shape = ShapeOf(Dtype::kBf16, 640);
  std::vector<uint16_t> raw(640, 0x3f80);
  for (int i = 0; i < 20; ++i) raw[random.Below(640)] = static_cast<uint16_t>(random.Next());
  const Result cpu = OnCpu(shape, std::as_bytes(std::span(raw)));
  ASSERT_FALSE(cpu.bytes.empty());
  const auto seen = [&](std::vector<std::byte> bytes) {
    std::vector<uint16_t> back(640);
    uint64_t digest = 0, said = 0;
    gpu::LlfDecodeJob job{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), back.data(), 640, &digest, &said};
    simt::Launch({2, 1}, {64, 1}, 0, [&] { gpu::LlfDecode<false>(&job); });
    return said != 0 || digest != cpu.digest || back == raw;
  };
  for (int i = 0; i < 200; ++i) {
    auto bad = cpu.bytes;
    if (i % 4 == 0) {
      bad.resize(random.Below(bad.size()));
    } else {
      const size_t at = random.Below(bad.size());
      bad[at] ^= static_cast<std::byte>(1u << random.Below(8));
    }
    EXPECT_TRUE(seen(bad)) << i;
  }
}

}  // namespace
}  // namespace tiercel
