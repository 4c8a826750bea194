// DeviceMemory is memory of an accelerator, reached by copies that run by themselves.
//
//   fill staging(lane) --> Start(lane, kToDevice, pieces) --> Wait(lane)
//   Start(lane, kToHost, pieces) --> Wait(lane) --> read staging(lane)
//
// Each lane has a part of registered host memory of its own, its staging, and an order of its own;
// the two lanes run at the same time, so that one copies while the other is filled or read.
//
// Invariants
//   Between Start and Wait the lane's staging belongs to the device. A Wait that succeeds means
//   that every piece of the Start is where it should be. Pieces of one Start overlap neither in the
//   device nor in the staging. Copies of one lane happen in the order of their Starts.
//
// Ownership: owns the device's memory and the staging. Threads: one at a time; not always the same.
// Errors: kInvalidArgument: a piece outside of memory or staging, and nothing is copied;
// kFailedPrecondition: Start on a lane that was not waited for; kUnavailable: the device says no,
// from then on to everything. Making one: kUnavailable: no device, with the reason;
// kResourceExhausted: it has not that much memory.
//
// Implementations: device_cpu.cc, for tests, and device_cuda.cc; one suite holds them:
// tests/conformance/device_memory_conformance.h.
#ifndef TIERCEL_TIERING_DEVICE_MEMORY_H_
#define TIERCEL_TIERING_DEVICE_MEMORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "base/units.h"

namespace tiercel {

// A piece of a device's memory that a record has.
struct DeviceExtent {
  uint64_t offset = 0;
  uint64_t bytes = 0;  // 0: none.
  explicit operator bool() const { return bytes != 0; }
};

class DeviceMemory {
 public:
  static constexpr int kLanes = 2;
  struct Options {
    uint64_t bytes = 0;
    uint64_t staging_bytes = 32 * kMiB;  // Of each lane.
    int device = 0;                      // Which, where there are several.
  };
  enum class Direction : uint8_t { kToDevice, kToHost };
  struct Piece {
    uint64_t device = 0;   // Offset in the device's memory.
    uint64_t staging = 0;  // Offset in the lane's staging.
    uint64_t bytes = 0;
  };

  virtual ~DeviceMemory() = default;
  virtual std::string name() const = 0;  // For people.
  virtual uint64_t bytes() const = 0;
  virtual MutableByteSpan staging(int lane) = 0;
  virtual Status Start(int lane, Direction direction, std::span<const Piece> pieces) = 0;
  // Nothing was started: at once.
  virtual Status Wait(int lane) = 0;
};

// Ordinary memory; each copy runs on a thread of the lane's own.
Result<std::unique_ptr<DeviceMemory>> MakeCpuDeviceMemory(const DeviceMemory::Options& options);
// kUnavailable where this build has no CUDA or this machine no device of it.
Result<std::unique_ptr<DeviceMemory>> MakeCudaDeviceMemory(const DeviceMemory::Options& options);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_DEVICE_MEMORY_H_
