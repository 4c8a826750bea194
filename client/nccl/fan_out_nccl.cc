// FanOut over NCCL: a communicator and a stream of its own; nothing waits longer than the timeout.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "client/nccl/fan_out.h"

namespace tiercel {
namespace {

constexpr auto kLook = std::chrono::microseconds(20);

Status Told(ncclResult_t result, std::string_view what) {
  if (result == ncclSuccess || result == ncclInProgress) return OkStatus();
  return Fail(Code::kUnavailable, fmt::format("NCCL: {}: {}", what, ncclGetErrorString(result)));
}

Status Told(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return OkStatus();
  return Fail(Code::kUnavailable, fmt::format("CUDA: {}: {}", what, cudaGetErrorString(error)));
}

class NcclFanOut final : public FanOut {
 public:
  explicit NcclFanOut(const FanOutOptions& options) : options_(options) {}
  ~NcclFanOut() override {
    (void)cudaSetDevice(options_.device);
    // A group that is good has nothing under way; one that is not has been aborted.
    if (comm_ != nullptr) (void)ncclCommAbort(comm_);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
    if (word_ != nullptr) (void)cudaFree(word_);
  }

  Status Join(const FanOutId& id) {
    TIERCEL_TRY(Told(cudaSetDevice(options_.device), "setting the device"));
    TIERCEL_TRY(
        Told(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    TIERCEL_TRY(Told(cudaMalloc(&word_, sizeof(uint64_t)), "memory for a word"));
    ncclUniqueId unique;
    static_assert(sizeof(unique) == sizeof(FanOutId));
    std::memcpy(&unique, id.data(), sizeof(unique));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return Settle(Told(
        ncclCommInitRankConfig(&comm_, options_.ranks, unique, options_.rank, &config), "joining"));
  }

  int rank() const override { return options_.rank; }
  int ranks() const override { return options_.ranks; }
  std::string why() const override { return why_; }

  Status Broadcast(int root, std::span<const Piece> pieces) override {
    if (root < 0 || root >= options_.ranks)
      return Fail(Code::kInvalidArgument, "fan-out: no such root");
    if (!why_.empty()) return Fail(Code::kUnavailable, "fan-out: " + why_);
    Status status = Told(cudaSetDevice(options_.device), "setting the device");
    if (status) status = Told(ncclGroupStart(), "a group of broadcasts");
    for (const Piece& piece : pieces) {
      if (!status) break;
      status =
          Told(ncclBroadcast(piece.data, piece.data, piece.bytes, ncclUint8, root, comm_, stream_),
               "broadcast");
    }
    const Status ended = Told(ncclGroupEnd(), "a group of broadcasts");
    TIERCEL_TRY(Settle(status ? ended : status));
    return WaitForStream();
  }

  Result<uint64_t> Tell(int root, uint64_t value) override {
    TIERCEL_TRY(Told(cudaSetDevice(options_.device), "setting the device"));
    if (rank() == root) {
      TIERCEL_TRY(
          Told(cudaMemcpyAsync(word_, &value, sizeof(value), cudaMemcpyHostToDevice, stream_),
               "a word"));
    }
    const Piece piece{word_, sizeof(value)};
    TIERCEL_TRY(Broadcast(root, std::span(&piece, 1)));
    TIERCEL_TRY(Told(cudaMemcpyAsync(&value, word_, sizeof(value), cudaMemcpyDeviceToHost, stream_),
                     "a word"));
    TIERCEL_TRY(WaitForStream());
    return value;
  }

 private:
  // Until what was asked of the communicator has happened.
  Status Settle(Status asked) {
    const Nanos end = Clock::Monotonic().Now() + options_.timeout;
    while (asked) {
      ncclResult_t state = ncclSuccess;
      asked = Told(ncclCommGetAsyncError(comm_, &state), "asking how it goes");
      if (asked && state == ncclSuccess) return OkStatus();
      if (asked) asked = Told(state, "the group");
      if (asked && Clock::Monotonic().Now() > end)
        asked = Fail(Code::kDeadlineExceeded, "fan-out: a rank did not come");
      if (asked) std::this_thread::sleep_for(kLook);
    }
    return Abort(std::move(asked));
  }

  Status WaitForStream() {
    const Nanos end = Clock::Monotonic().Now() + options_.timeout;
    while (true) {
      const cudaError_t state = cudaStreamQuery(stream_);
      if (state == cudaSuccess) return OkStatus();
      if (state != cudaErrorNotReady) return Abort(Told(state, "broadcast"));
      ncclResult_t group = ncclSuccess;
      (void)ncclCommGetAsyncError(comm_, &group);
      if (const Status good = Told(group, "the group"); !good) return Abort(good);
      if (Clock::Monotonic().Now() > end)
        return Abort(Fail(Code::kDeadlineExceeded, "fan-out: a rank did not come"));
      std::this_thread::sleep_for(kLook);
    }
  }

  // Ends what is under way on the device, so that pages are the caller's again.
  Status Abort(Status why) {
    why_ = why.error().message;
    if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
    (void)cudaStreamSynchronize(stream_);
    return why;
  }

  const FanOutOptions options_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  void* word_ = nullptr;
  std::string why_;
};

}  // namespace

Result<FanOutId> MakeFanOutId() {
  ncclUniqueId unique;
  TIERCEL_TRY(Told(ncclGetUniqueId(&unique), "naming a group"));
  FanOutId id;
  std::memcpy(id.data(), &unique, sizeof(unique));
  return id;
}

Result<std::unique_ptr<FanOut>> JoinFanOut(const FanOutId& id, const FanOutOptions& options) {
  if (options.ranks < 1 || options.rank < 0 || options.rank >= options.ranks) {
    return Fail(Code::kInvalidArgument,
                fmt::format("fan-out: rank {} of {}", options.rank, options.ranks));
  }
  int devices = 0;
  TIERCEL_TRY(Told(cudaGetDeviceCount(&devices), "looking for devices"));
  auto fan_out = std::make_unique<NcclFanOut>(options);
  TIERCEL_TRY(fan_out->Join(id));
  return fan_out;
}

}  // namespace tiercel
