#include "tiering/device_memory.h"

namespace tiercel {

Result<std::unique_ptr<DeviceMemory>> MakeCudaDeviceMemory(
    const DeviceMemory::Options& /*options*/) {
  return Fail(Code::kUnavailable, "this build has no CUDA: nvcc was not found when it was made");
}

}  // namespace tiercel
