// DeviceMemory on CUDA's runtime: plain cudaMalloc, pinned staging, a stream a lane.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <utility>

#include "base/check.h"
#include "tiering/device_lane.h"
#include "tiering/device_memory.h"

namespace tiercel {
namespace {

Status Told(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return OkStatus();
  return Fail(Code::kUnavailable, fmt::format("CUDA: {}: {}", what, cudaGetErrorString(error)));
}

class CudaDeviceMemory final : public DeviceMemory {
 public:
  explicit CudaDeviceMemory(const Options& options) : options_(options) {}

  ~CudaDeviceMemory() override {
    (void)cudaSetDevice(options_.device);
    for (Lane& lane : lanes_) {
      if (lane.stream != nullptr) {
        (void)cudaStreamSynchronize(lane.stream);
        (void)cudaStreamDestroy(lane.stream);
      }
      if (lane.staging != nullptr) (void)cudaFreeHost(lane.staging);
    }
    if (memory_ != nullptr) (void)cudaFree(memory_);
  }

  Status Open() {
    int devices = 0;
    TIERCEL_TRY(Told(cudaGetDeviceCount(&devices), "looking for devices"));
    if (options_.device < 0 || options_.device >= devices) {
      return Fail(Code::kUnavailable,
                  fmt::format("CUDA: no device {}, there are {}", options_.device, devices));
    }
    TIERCEL_TRY(Told(cudaSetDevice(options_.device), "setting the device"));
    cudaDeviceProp properties{};
    TIERCEL_TRY(
        Told(cudaGetDeviceProperties(&properties, options_.device), "asking for its properties"));
    name_ = properties.name;
    size_t free = 0;
    size_t total = 0;
    TIERCEL_TRY(Told(cudaMemGetInfo(&free, &total), "asking for its memory"));
    if (options_.bytes > free || cudaMalloc(&memory_, options_.bytes) != cudaSuccess) {
      (void)cudaGetLastError();  // Told here; the next call must not say it again.
      memory_ = nullptr;
      return Fail(Code::kResourceExhausted,
                  fmt::format("CUDA: {} of {} has {} free, not {}", name_, FormatBytes(total),
                              FormatBytes(free), FormatBytes(options_.bytes)));
    }
    for (Lane& lane : lanes_) {
      TIERCEL_TRY(Told(cudaHostAlloc(&lane.staging, options_.staging_bytes, cudaHostAllocDefault),
                       "pinning staging"));
      TIERCEL_TRY(
          Told(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking), "making a stream"));
    }
    return OkStatus();
  }

  std::string name() const override { return name_; }
  uint64_t bytes() const override { return options_.bytes; }
  MutableByteSpan staging(int lane) override {
    return {static_cast<std::byte*>(At(lane).staging), options_.staging_bytes};
  }

  Status Start(int lane, Direction direction, std::span<const Piece> pieces) override {
    Lane& in = At(lane);
    TIERCEL_TRY(CheckPieces(pieces, options_.bytes, options_.staging_bytes));
    if (in.busy)
      return Fail(Code::kFailedPrecondition, "device lane: the last copy was not waited for");
    TIERCEL_TRY(failed_);
    // The device is the calling thread's, and another may have called before.
    Status status = Told(cudaSetDevice(options_.device), "setting the device");
    for (const Piece& piece : pieces) {
      if (!status) break;
      auto* device = static_cast<std::byte*>(memory_) + piece.device;
      auto* host = static_cast<std::byte*>(in.staging) + piece.staging;
      status =
          direction == Direction::kToDevice
              ? Told(cudaMemcpyAsync(device, host, piece.bytes, cudaMemcpyHostToDevice, in.stream),
                     "copying in")
              : Told(cudaMemcpyAsync(host, device, piece.bytes, cudaMemcpyDeviceToHost, in.stream),
                     "copying out");
    }
    in.busy = true;  // Whatever was started must end before the staging is used.
    if (!status) {
      failed_ = status;
      (void)Wait(lane);
    }
    return status;
  }

  Status Wait(int lane) override {
    Lane& in = At(lane);
    if (!std::exchange(in.busy, false)) return OkStatus();
    Status status = Told(cudaSetDevice(options_.device), "setting the device");
    if (status) status = Told(cudaStreamSynchronize(in.stream), "waiting for copies");
    if (!status) failed_ = status;
    return status;
  }

 private:
  struct Lane {
    void* staging = nullptr;
    cudaStream_t stream = nullptr;
    bool busy = false;
  };
  Lane& At(int lane) {
    TIERCEL_CHECK(lane >= 0 && lane < kLanes);
    return lanes_[static_cast<size_t>(lane)];
  }

  const Options options_;
  std::string name_;
  void* memory_ = nullptr;
  std::array<Lane, kLanes> lanes_;
  Status failed_ = OkStatus();
};

}  // namespace

Result<std::unique_ptr<DeviceMemory>> MakeCudaDeviceMemory(const DeviceMemory::Options& options) {
  if (options.bytes == 0 || options.staging_bytes == 0) {
    return Fail(Code::kInvalidArgument, "device memory of no bytes");
  }
  auto memory = std::make_unique<CudaDeviceMemory>(options);
  TIERCEL_TRY(memory->Open());
  return memory;
}

}  // namespace tiercel
