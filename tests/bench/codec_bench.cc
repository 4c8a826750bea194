// How fast the kernels are, on one core, in bytes of decoded KV a second.
//
//   codec_bench [--benchmark_filter=...]
//   codec_bench --benchmark_filter=Segment --benchmark_repetitions=7
//       --benchmark_enable_random_interleaving=true --benchmark_min_time=0.05
//
// "Cold" figures walk through more memory than the last cache holds, or as much as the machine gives;
// "hot" ones stay in one block.
#include <benchmark/benchmark.h>
#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/crc32c.h"
#include "kernels/digest.h"
#include "kernels/paged.h"
#include "kernels/record.h"
#include "tests/kernels/column_codecs_testing.h"
#include "tests/kernels/kernels_testing.h"

namespace tiercel {
namespace {

constexpr uint64_t kColdBytes = uint64_t{768} << 20;

// A block of 8 KV heads of 128, bf16, with as many layers as bytes ask for; 64 KiB a plane from 128
// KiB blocks on.
KvLayout LayoutOf(uint64_t block_bytes, Dtype dtype = Dtype::kBf16) {
  KvLayout layout;
  layout.kv_heads = 8;
  layout.head_dim_k = layout.head_dim_v = 128;
  layout.dtype = dtype;
  layout.tokens_per_block = block_bytes >= (128 << 10) ? 32 : 16;
  layout.layers = 1;
  layout.layers = static_cast<uint32_t>(block_bytes / layout.layer_bytes());
  return layout;
}

struct Sample {
  RecordSpec spec;
  std::vector<std::byte> block;
  std::vector<std::byte> record;
};
Sample MakeSample(uint64_t block_bytes, CodecId codec, Dtype dtype = Dtype::kBf16) {
  Sample sample;
  sample.spec = SpecOf(LayoutOf(block_bytes, dtype));
  sample.block = KvLikeBytes(dtype, block_bytes, 1);
  sample.record = *Encoded(sample.spec, codec, sample.block);
  return sample;
}

// Slots of a large buffer, one after another.
class Cold {
 public:
  explicit Cold(uint64_t slot_bytes)
      : slot_bytes_((slot_bytes + 4095) / 4096 * 4096),
        slots_(std::max<uint64_t>(1, kColdBytes / slot_bytes_)),
        memory_(slot_bytes_ * slots_) {}
  void Fill(ByteSpan bytes) {
    for (uint64_t i = 0; i < slots_; ++i) {
      std::memcpy(memory_.data() + i * slot_bytes_, bytes.data(), bytes.size());
    }
  }
  MutableByteSpan Next(uint64_t bytes) {
    at_ = (at_ + 1) % slots_;
    return {memory_.data() + at_ * slot_bytes_, bytes};
  }

 private:
  uint64_t slot_bytes_;
  uint64_t slots_;
  std::vector<std::byte> memory_;
  uint64_t at_ = 0;
};

void SetBytes(benchmark::State& state, uint64_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

template <CodecId kCodec, Dtype kDtype>
void Encode(benchmark::State& state) {
  ForcedIsa forced(static_cast<KernelIsa>(state.range(1)));
  if (!forced.usable()) return state.SkipWithError("this CPU lacks the ISA");
  const auto size = static_cast<uint64_t>(state.range(0));
  const Sample sample = MakeSample(size, kCodec, kDtype);
  std::vector<std::byte> out(MaxRecordBytes(sample.spec, size));
  for (auto _ : state) {
    benchmark::DoNotOptimize(EncodeRecord(sample.spec, kCodec, sample.block, out));
  }
  SetBytes(state, size);
  state.counters["ratio"] =
      static_cast<double>(size) / static_cast<double>(sample.record.size());
}

template <CodecId kCodec, Dtype kDtype>
void Decode(benchmark::State& state) {
  ForcedIsa forced(static_cast<KernelIsa>(state.range(1)));
  if (!forced.usable()) return state.SkipWithError("this CPU lacks the ISA");
  const auto size = static_cast<uint64_t>(state.range(0));
  const Sample sample = MakeSample(size, kCodec, kDtype);
  std::vector<std::byte> out(size);
  for (auto _ : state) {
    const auto record = ParseRecord(sample.record);
    if (!record || !DecodeRecord(*record, sample.spec.layout, out)) {
      return state.SkipWithError("a good record did not decode");
    }
  }
  SetBytes(state, size);
}

// One segment of `tokens` tokens, that many heads and dims, columns like KV's; the bytes are cold.
struct Segment {
  SegmentShape shape;
  std::vector<std::byte> raw;
  Cold cold;
  explicit Segment(benchmark::State& state)
      : shape(MakeShape(Dtype::kBf16, AxisOrder::kTokenHeadDim,
                        static_cast<uint32_t>(state.range(0)),
                        static_cast<uint32_t>(state.range(1)),
                        static_cast<uint32_t>(state.range(2)))),
        raw(PlaneLikeKv(shape, 1)),
        cold(raw.size()) {
    cold.Fill(raw);
  }
};
CodecContext BenchContext(MutableByteSpan scratch) {
  CodecContext context;
  context.scratch = scratch;
  context.quality = QualityClass::kBalanced;
  return context;
}

template <CodecId kCodec>
void EncodeSegment(benchmark::State& state) {
  Segment segment(state);
  const Codec& codec = *FindCodec(kCodec);
  std::vector<std::byte> scratch(codec.scratch_bytes(segment.shape));
  std::vector<std::byte> out(segment.raw.size());
  const CodecContext context = BenchContext(scratch);
  std::optional<EncodedSegment> coded;
  for (auto _ : state) {
    coded = codec.Encode(segment.shape, segment.cold.Next(segment.raw.size()), out, context);
    if (!coded) return state.SkipWithError("declined");
  }
  SetBytes(state, segment.raw.size());
  state.counters["bits"] =
      16.0 * static_cast<double>(coded->bytes) / static_cast<double>(segment.raw.size());
}

template <CodecId kCodec>
void DecodeSegment(benchmark::State& state) {
  Segment segment(state);
  const Codec& codec = *FindCodec(kCodec);
  std::vector<std::byte> scratch(codec.scratch_bytes(segment.shape));
  std::vector<std::byte> coded(segment.raw.size());
  const CodecContext context = BenchContext(scratch);
  const auto info = codec.Encode(segment.shape, segment.raw, coded, context);
  if (!info) return state.SkipWithError("declined");
  for (auto _ : state) {
    const MutableByteSpan out = segment.cold.Next(segment.raw.size());
    for (uint64_t at = 0; at < out.size();) {
      const uint64_t size = std::min(codec.step_bytes(segment.shape), out.size() - at);
      if (!codec.Decode(segment.shape, info->params, ByteSpan(coded).first(info->bytes), at,
                        out.subspan(at, size), context)) {
        return state.SkipWithError("a good segment did not decode");
      }
      at += size;
    }
  }
  SetBytes(state, segment.raw.size());
}

// What the codecs are measured beside: a copy, lz4 and zstd -1 of the same bytes.
void CopySegment(benchmark::State& state) {
  Segment segment(state);
  Cold to(segment.raw.size());
  for (auto _ : state) {
    std::memcpy(to.Next(segment.raw.size()).data(), segment.cold.Next(segment.raw.size()).data(),
                segment.raw.size());
    benchmark::ClobberMemory();
  }
  SetBytes(state, segment.raw.size());
}

template <bool kZstd, bool kDecode>
void GeneralSegment(benchmark::State& state) {
  Segment segment(state);
  const size_t size = segment.raw.size();
  const auto n = static_cast<int>(size);
  std::vector<char> coded(kZstd ? ZSTD_compressBound(size)
                                : static_cast<size_t>(LZ4_compressBound(n)));
  const auto encode = [&](ByteSpan from) {
    const auto* bytes = reinterpret_cast<const char*>(from.data());
    return kZstd ? ZSTD_compress(coded.data(), coded.size(), bytes, size, 1)
                 : static_cast<size_t>(LZ4_compress_default(bytes, coded.data(), n,
                                                            static_cast<int>(coded.size())));
  };
  size_t coded_size = encode(segment.raw);
  for (auto _ : state) {
    const MutableByteSpan at = segment.cold.Next(size);
    if constexpr (!kDecode) {
      coded_size = encode(at);
    } else if constexpr (kZstd) {
      benchmark::DoNotOptimize(ZSTD_decompress(at.data(), size, coded.data(), coded_size));
    } else {
      benchmark::DoNotOptimize(LZ4_decompress_safe(coded.data(), reinterpret_cast<char*>(at.data()),
                                                   static_cast<int>(coded_size), n));
    }
  }
  SetBytes(state, size);
  state.counters["bits"] = 16.0 * static_cast<double>(coded_size) / static_cast<double>(size);
}

void CopyColdMemcpy(benchmark::State& state) {
  const Sample sample = MakeSample(static_cast<uint64_t>(state.range(0)), CodecId::kRaw);
  Cold source(sample.record.size());
  Cold destination(sample.record.size());
  source.Fill(sample.record);
  destination.Fill(sample.record);
  for (auto _ : state) {
    const auto from = source.Next(sample.record.size());
    std::memcpy(destination.Next(sample.record.size()).data(), from.data(), from.size());
    benchmark::ClobberMemory();
  }
  SetBytes(state, sample.record.size());
}

void CopyColdVerified(benchmark::State& state) {
  const Sample sample = MakeSample(static_cast<uint64_t>(state.range(0)), CodecId::kRaw);
  Cold source(sample.record.size());
  Cold destination(sample.record.size());
  source.Fill(sample.record);
  destination.Fill(sample.record);
  for (auto _ : state) {
    if (!CopyRecordVerified(source.Next(sample.record.size()),
                            destination.Next(sample.record.size()))) {
      return state.SkipWithError("a good record was refused");
    }
  }
  SetBytes(state, sample.record.size());
}

void VerifyHot(benchmark::State& state) {
  const Sample sample = MakeSample(static_cast<uint64_t>(state.range(0)), CodecId::kRaw);
  for (auto _ : state) {
    const auto record = ParseRecord(sample.record);
    if (!record || !VerifyRecord(*record)) return state.SkipWithError("a good record was refused");
  }
  SetBytes(state, sample.record.size());
}

void Crc(benchmark::State& state) {
  const auto path = static_cast<Crc32cPath>(state.range(1));
  if (!Crc32cPathUsable(path)) return state.SkipWithError("this CPU lacks the path");
  const auto bytes = RandomBytes(static_cast<uint64_t>(state.range(0)), 1);
  for (auto _ : state) benchmark::DoNotOptimize(Crc32cBy(path, bytes));
  SetBytes(state, bytes.size());
}

void Digest(benchmark::State& state) {
  ForcedIsa forced(static_cast<KernelIsa>(state.range(1)));
  if (!forced.usable()) return state.SkipWithError("this CPU lacks the ISA");
  const auto bytes = RandomBytes(static_cast<uint64_t>(state.range(0)), 1);
  for (auto _ : state) benchmark::DoNotOptimize(DecodedDigest(bytes));
  SetBytes(state, bytes.size());
}

// Pages of 16 tokens; argument 1 is the engine's order, the block's is token-head-dim.
void GatherPages(benchmark::State& state) {
  const KvLayout layout = LayoutOf(1 << 20);
  PagedKv kv;
  kv.n_pages = 64;
  kv.tokens_per_page = 16;
  const uint64_t plane = uint64_t{64} * 16 * 8 * 128 * 2;
  std::vector<std::byte> memory(plane * 2 * layout.layers);
  for (uint32_t i = 0; i < 2 * layout.layers; ++i) {
    (i % 2 == 0 ? kv.k : kv.v)
        .push_back(PagedKv::Dense(memory.data() + i * plane, layout,
                                  static_cast<AxisOrder>(state.range(0)), 128, 64, 16));
  }
  const std::vector<uint32_t> pages = {5, 40};
  std::vector<std::byte> block(layout.block_bytes());
  for (auto _ : state) benchmark::DoNotOptimize(Gather(kv, layout, pages, block));
  SetBytes(state, block.size());
}

void Sizes(benchmark::internal::Benchmark* b) {
  for (const int64_t size : {64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}) b->Arg(size);
}
void SizesAndIsas(benchmark::internal::Benchmark* b) {
  for (const int64_t isa : {0, 1, 2}) b->Args({1 << 20, isa});
  for (const int64_t size : {64 << 10, 256 << 10, 4 << 20, 16 << 20}) b->Args({size, 2});
}

BENCHMARK_TEMPLATE(Encode, CodecId::kRaw, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Encode, CodecId::kLlf, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Encode, CodecId::kLlf, Dtype::kFp16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kRaw, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kLlf, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kLlf, Dtype::kFp16)->Apply(SizesAndIsas);
// SmolLM2-135M's K or V of 256 tokens; a Llama's of 256 and of 16.
void Segments(benchmark::internal::Benchmark* b) {
  b->Args({256, 3, 64})->Args({256, 8, 128})->Args({16, 8, 128});
}
BENCHMARK(CopySegment)->Apply(Segments);
BENCHMARK_TEMPLATE(EncodeSegment, CodecId::kLlf)->Apply(Segments);
BENCHMARK_TEMPLATE(DecodeSegment, CodecId::kLlf)->Apply(Segments);
BENCHMARK_TEMPLATE(EncodeSegment, CodecId::kLle)->Apply(Segments);
BENCHMARK_TEMPLATE(DecodeSegment, CodecId::kLle)->Apply(Segments);
BENCHMARK_TEMPLATE(EncodeSegment, CodecId::kEcC)->Apply(Segments);
BENCHMARK_TEMPLATE(DecodeSegment, CodecId::kEcC)->Apply(Segments);
BENCHMARK_TEMPLATE(GeneralSegment, false, false)->Name("EncodeSegment<lz4>")->Apply(Segments);
BENCHMARK_TEMPLATE(GeneralSegment, false, true)->Name("DecodeSegment<lz4>")->Apply(Segments);
BENCHMARK_TEMPLATE(GeneralSegment, true, false)->Name("EncodeSegment<zstd -1>")->Apply(Segments);
BENCHMARK_TEMPLATE(GeneralSegment, true, true)->Name("DecodeSegment<zstd -1>")->Apply(Segments);
BENCHMARK(CopyColdMemcpy)->Apply(Sizes);
BENCHMARK(CopyColdVerified)->Apply(Sizes);
BENCHMARK(VerifyHot)->Apply(Sizes);
BENCHMARK(Crc)->ArgsProduct({{4 << 10, 64 << 10, 1 << 20}, {0, 1, 2}});
BENCHMARK(Digest)->ArgsProduct({{64 << 10}, {0, 1, 2}});
BENCHMARK(GatherPages)->Arg(0)->Arg(1)->Arg(2);
BENCHMARK_TEMPLATE(Encode, CodecId::kI8, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Encode, CodecId::kF8, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Encode, CodecId::kI4h, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kI8, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kF8, Dtype::kBf16)->Apply(SizesAndIsas);
BENCHMARK_TEMPLATE(Decode, CodecId::kI4h, Dtype::kBf16)->Apply(SizesAndIsas);

}  // namespace
}  // namespace tiercel

BENCHMARK_MAIN();
