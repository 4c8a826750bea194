#include <array>
#include <cstring>
#include <future>
#include <utility>
#include <vector>

#include "base/check.h"
#include "tiering/device_lane.h"
#include "tiering/device_memory.h"

namespace tiercel {
namespace {

class CpuDeviceMemory final : public DeviceMemory {
 public:
  explicit CpuDeviceMemory(const Options& options) : memory_(options.bytes) {
    for (Lane& lane : lanes_) lane.staging.resize(options.staging_bytes);
  }
  ~CpuDeviceMemory() override {
    for (int lane = 0; lane < kLanes; ++lane) (void)CpuDeviceMemory::Wait(lane);
  }

  std::string name() const override { return "cpu"; }
  uint64_t bytes() const override { return memory_.size(); }
  MutableByteSpan staging(int lane) override { return At(lane).staging; }

  Status Start(int lane, Direction direction, std::span<const Piece> pieces) override {
    Lane& in = At(lane);
    TIERCEL_TRY(CheckPieces(pieces, memory_.size(), in.staging.size()));
    if (in.copying.valid())
      return Fail(Code::kFailedPrecondition, "device lane: the last copy was not waited for");
    in.copying = std::async(std::launch::async, [this, &in, direction,
                                                 own = std::vector(pieces.begin(), pieces.end())] {
      for (const Piece& piece : own) {
        std::byte* device = memory_.data() + piece.device;
        std::byte* host = in.staging.data() + piece.staging;
        direction == Direction::kToDevice ? std::memcpy(device, host, piece.bytes)
                                          : std::memcpy(host, device, piece.bytes);
      }
    });
    return OkStatus();
  }

  Status Wait(int lane) override {
    if (At(lane).copying.valid()) At(lane).copying.get();
    return OkStatus();
  }

 private:
  struct Lane {
    std::vector<std::byte> staging;
    std::future<void> copying;
  };
  Lane& At(int lane) {
    TIERCEL_CHECK(lane >= 0 && lane < kLanes);
    return lanes_[static_cast<size_t>(lane)];
  }

  std::vector<std::byte> memory_;
  std::array<Lane, kLanes> lanes_;
};

}  // namespace

Result<std::unique_ptr<DeviceMemory>> MakeCpuDeviceMemory(const DeviceMemory::Options& options) {
  if (options.bytes == 0 || options.staging_bytes == 0) {
    return Fail(Code::kInvalidArgument, "device memory of no bytes");
  }
  return std::make_unique<CpuDeviceMemory>(options);
}

}  // namespace tiercel
