// Runs the batches of a file (tests/gpu/vectors.h) on the GPU that is here.
//
//   gpu_check exact FILE [few]   every batch is what the CPU says: records, pages, codes; `few` for sanitizers
//   gpu_check bench FILE [DUMP]  GB/s of raw bytes; DUMP gets the cache that was coded, for others to code
//
// Exits 1 with a line where something differs, or CUDA says that something failed.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels/cuda/pipeline.cuh"
#include "tests/gpu/vectors.h"

namespace tiercel {
namespace {

using gpu_vectors::Entry;
using gpu_vectors::Kind;
using gpu_vectors::kUntouched;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
[[noreturn]] void Wrong(const Entry& entry, const std::string& what) {
  std::printf("FAILED: %s: %s\n", entry.name.c_str(), what.c_str());
  std::exit(1);
}

template <class T>
class OnDevice {
 public:
  explicit OnDevice(size_t count, int fill = 0xee) : count_(count) {
    Must(cudaMalloc(&at_, std::max<size_t>(count * sizeof(T), 1)), "cudaMalloc");
    Must(cudaMemset(at_, fill, count * sizeof(T)), "cudaMemset");
  }
  explicit OnDevice(const std::vector<T>& from) : OnDevice(from.size()) { Put(from, 0); }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(at_); }
  T* get() { return at_; }
  void Put(const std::vector<T>& from, size_t at) {
    Must(cudaMemcpy(at_ + at, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  std::vector<T> Get() const {
    std::vector<T> out(count_);
    Must(cudaMemcpy(out.data(), at_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return out;
  }

 private:
  T* at_ = nullptr;
  size_t count_;
};

struct OnStream {
  cudaStream_t stream = nullptr;
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), gpu::Grid grid, uint32_t threads, uint32_t shared, const Arguments&... arguments) const {
    kernel<<<dim3(grid.x, grid.y), threads, shared, stream>>>(arguments...);
    Must(cudaGetLastError(), "launch");
  }
};

// A batch of `blocks` blocks in device memory.
struct Batch {
  Batch(const Entry& e, uint32_t blocks, const std::vector<uint32_t>& block_pages, const std::vector<uint64_t>& positions, size_t cache_bytes)
      : entry(e),
        n(blocks),
        slot((e.max_record_bytes + 63) / 64 * 64),
        cache(cache_bytes, kUntouched),
        planes(Moved(e, cache.get())),
        pages(block_pages),
        pos0(positions),
        tables(e.tables),
        artifact(e.artifact),
        records(slot * blocks),
        pointers(Pointers()),
        sizes(blocks),
        results(blocks),
        scratch(std::max(e.encode_scratch, e.decode_scratch) / e.blocks * blocks) {}

  static std::vector<gpu::Plane> Moved(const Entry& e, uint8_t* to) {
    std::vector<gpu::Plane> moved = e.planes;
    for (gpu::Plane& plane : moved) plane.base = reinterpret_cast<std::byte*>(to) + reinterpret_cast<uintptr_t>(plane.base);
    return moved;
  }
  std::vector<uint8_t*> Pointers() {
    std::vector<uint8_t*> out;
    for (uint32_t i = 0; i < n; ++i) out.push_back(records.get() + slot * i);
    return out;
  }
  gpu::BatchArgs Args(bool decoding) {
    const uint64_t jobs = uint64_t{n} * entry.shape.segments;
    gpu::BatchArgs args;
    args.shape = entry.shape;
    args.blocks = n;
    args.planes = planes.get();
    args.pages = pages.get();
    args.pos0 = pos0.get();
    args.tables = entry.tables.empty() ? nullptr : tables.get();
    args.artifact = entry.artifact.empty() ? nullptr : artifact.get();
    args.records = pointers.get();
    args.record_bytes = sizes.get();
    args.results = results.get();
    args.jobs = reinterpret_cast<gpu::Segment*>(scratch.get());
    args.slots = scratch.get() + jobs * gpu::kSegmentBytes;
    args.scratch = decoding ? args.slots : args.slots + jobs * entry.shape.slot_bytes;
    return args;
  }
  void Encode() { gpu::EncodeAll(Args(false), OnStream()); }
  void Decode() { gpu::DecodeAll(Args(true), entry.codecs, OnStream()); }
  void PutRecords(const std::vector<uint8_t>& all, const std::vector<uint64_t>& bytes) {
    size_t at = 0;
    for (uint32_t i = 0; i < n; ++i) {
      records.Put({all.begin() + at, all.begin() + at + bytes[i]}, slot * i);
      at += bytes[i];
    }
    sizes.Put(bytes, 0);
  }

  const Entry& entry;
  uint32_t n;
  uint64_t slot;
  OnDevice<uint8_t> cache;
  OnDevice<gpu::Plane> planes;
  OnDevice<uint32_t> pages;
  OnDevice<uint64_t> pos0;
  OnDevice<uint8_t> tables, artifact;
  OnDevice<uint8_t> records;
  OnDevice<uint8_t*> pointers;
  OnDevice<uint64_t> sizes;
  OnDevice<gpu::BlockResult> results;
  OnDevice<uint8_t> scratch;
};

void CheckExact(const Entry& e) {
  Batch batch(e, e.blocks, e.pages, e.pos0, e.cache.size());
  batch.cache.Put(e.cache, 0);
  batch.Encode();
  Must(cudaDeviceSynchronize(), e.name.c_str());
  const auto results = batch.results.Get();
  const auto records = batch.records.Get();
  size_t at = 0;
  for (uint32_t i = 0; i < e.blocks; ++i) {
    if (results[i].code != gpu::BlockCode::kOk) Wrong(e, "encoding gave code " + std::to_string(static_cast<int>(results[i].code)));
    if (results[i].bytes != e.record_bytes[i]) {
      Wrong(e, "a record of " + std::to_string(results[i].bytes) + " bytes, the CPU's has " + std::to_string(e.record_bytes[i]));
    }
    for (uint64_t k = 0; k < e.record_bytes[i]; ++k) {
      if (records[batch.slot * i + k] != e.records[at + k]) Wrong(e, "the record of block " + std::to_string(i) + " differs at byte " + std::to_string(k));
    }
    at += e.record_bytes[i];
  }
  // Decoded elsewhere.
  Batch back(e, e.blocks, e.pages, e.pos0, e.cache.size());
  back.PutRecords(e.records, e.record_bytes);
  back.Decode();
  Must(cudaDeviceSynchronize(), e.name.c_str());
  for (const auto& result : back.results.Get()) {
    if (result.code != gpu::BlockCode::kOk) Wrong(e, "decoding gave code " + std::to_string(static_cast<int>(result.code)));
  }
  if (back.cache.Get() != e.decoded) Wrong(e, "decodes to other pages");
}

void CheckMalformed(const Entry& e) {
  Batch batch(e, 1, e.pages, e.pos0, e.cache.size());
  batch.PutRecords(e.records, e.record_bytes);
  batch.Decode();
  Must(cudaDeviceSynchronize(), e.name.c_str());
  const gpu::BlockResult result = batch.results.Get()[0];
  if (static_cast<uint32_t>(result.code) != e.code || result.segment != e.segment) {
    Wrong(e, "a spoilt record gave code " + std::to_string(static_cast<int>(result.code)) + ", not " + std::to_string(e.code));
  }
  if (!e.decoded.empty() && batch.cache.Get() != e.decoded) Wrong(e, "a record decodes to other pages");
}

struct Times {
  std::vector<float> ms;
  template <class F>
  void Take(F&& f) {
    cudaEvent_t begin, end;
    Must(cudaEventCreate(&begin), "event");
    Must(cudaEventCreate(&end), "event");
    Must(cudaEventRecord(begin), "event");
    f();
    Must(cudaEventRecord(end), "event");
    Must(cudaEventSynchronize(end), "a batch");
    float took = 0;
    Must(cudaEventElapsedTime(&took, begin, end), "event");
    ms.push_back(took);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  void Print(const char* what, double bytes) {
    std::sort(ms.begin(), ms.end());
    const auto gbs = [bytes](float t) { return bytes / t / 1e6; };
    std::printf("%-14s %8.1f [%.1f %.1f] GB/s", what, gbs(ms[ms.size() / 2]), gbs(ms.back()), gbs(ms.front()));
  }
};

void Bench(const Entry& e, const std::vector<uint8_t>& block, const char* dump) {
  constexpr uint32_t kBlocks = 128;
  constexpr int kWarm = 3, kRounds = 21;
  // Blocks lie plane by plane, so pages count on from block to block.
  Entry wide = e;
  const size_t planes = e.planes.size();
  const size_t plane_bytes = block.size() / planes;
  for (gpu::Plane& plane : wide.planes) plane.base = reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(plane.base) * kBlocks);
  wide.shape.n_pages *= kBlocks;
  std::vector<uint32_t> pages;
  for (uint32_t i = 0; i < kBlocks * e.shape.pages; ++i) pages.push_back(i);
  Batch batch(wide, kBlocks, pages, std::vector<uint64_t>(kBlocks, 0), block.size() * kBlocks);
  for (size_t p = 0; p < planes; ++p) {
    const std::vector<uint8_t> plane(block.begin() + p * plane_bytes, block.begin() + (p + 1) * plane_bytes);
    for (uint32_t i = 0; i < kBlocks; ++i) batch.cache.Put(plane, (p * kBlocks + i) * plane_bytes);
  }
  const std::vector<uint8_t> before = batch.cache.Get();
  if (dump != nullptr) std::ofstream(dump, std::ios::binary).write(reinterpret_cast<const char*>(before.data()), static_cast<std::streamsize>(before.size()));
  OnDevice<uint8_t> other(before.size());
  Times copy, encode, decode;
  for (int round = -kWarm; round < kRounds; ++round) {
    Times warm;
    (round < 0 ? warm : copy).Take([&] { cudaMemcpyAsync(other.get(), batch.cache.get(), before.size(), cudaMemcpyDeviceToDevice); });
    (round < 0 ? warm : encode).Take([&] { batch.Encode(); });
    if (round == -kWarm) {
      std::vector<uint64_t> sizes;
      for (const auto& result : batch.results.Get()) sizes.push_back(result.bytes);
      if (sizes != std::vector<uint64_t>(kBlocks, e.record_bytes[0])) Wrong(e, "records of another size");
      batch.sizes.Put(sizes, 0);
    }
    (round < 0 ? warm : decode).Take([&] { batch.Decode(); });
    for (const auto& result : batch.results.Get()) {
      if (result.code != gpu::BlockCode::kOk) Wrong(e, "decoding gave code " + std::to_string(static_cast<int>(result.code)));
    }
  }
  // What is idempotent stays what it was; LLE, LLF and RAW are exact from the start.
  if (e.shape.codec <= gpu::kLleCodec && batch.cache.Get() != before) Wrong(e, "decodes to other pages");
  const double raw = static_cast<double>(before.size());
  std::printf("%-5s ratio %5.3f  ", e.name.c_str(), static_cast<double>(e.raw_bytes) / static_cast<double>(e.record_bytes[0]));
  encode.Print("encode", raw);
  decode.Print("  decode", raw);
  copy.Print("  copy", raw);
  std::printf("\n");
}

int Run(const std::string& mode, const char* path, const char* more) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  gpu_vectors::Reader reader(bytes);
  uint64_t magic = 0, size = 0;
  reader(magic);
  reader(size);
  if (magic != gpu_vectors::kMagic || size != sizeof(gpu::BatchShape)) {
    std::printf("FAILED: %s is not a file of this build's gpu_vectors\n", path);
    return 1;
  }
  cudaDeviceProp device;
  Must(cudaGetDeviceProperties(&device, 0), "the GPU");
  const bool few = mode == "exact" && more != nullptr && std::strcmp(more, "few") == 0;
  int exact = 0, malformed = 0;
  std::vector<uint8_t> block;
  while (!reader.AtEnd()) {
    Entry entry;
    entry.Visit(reader);
    if (!reader.good()) {
      std::printf("FAILED: %s ends within an entry\n", path);
      return 1;
    }
    if (mode == "exact" && entry.kind == Kind::kExact && (!few || (exact < 27 && entry.cache.size() < 100000))) {
      CheckExact(entry);
      ++exact;
    }
    if (mode == "exact" && entry.kind == Kind::kMalformed && (!few || malformed < 18)) {
      CheckMalformed(entry);
      ++malformed;
    }
    if (mode == "bench" && entry.kind == Kind::kBench) {
      const bool first = block.empty();
      if (first) block = entry.cache;
      Bench(entry, block, first ? more : nullptr);
    }
  }
  if (mode == "exact") std::printf("%s: %d batches and %d spoilt records as on the CPU\n", device.name, exact, malformed);
  return mode == "exact" && (exact == 0 || malformed == 0) ? 1 : 0;
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (argc < 3 || (mode != "exact" && mode != "bench")) {
    std::fprintf(stderr, "usage: gpu_check exact FILE [few] | gpu_check bench FILE [DUMP]\n");
    return 2;
  }
  return tiercel::Run(mode, argv[2], argc > 3 ? argv[3] : nullptr);
}
