// What every DeviceMemory checks before it copies. Internal to tiering/device*.
#ifndef TIERCEL_TIERING_DEVICE_LANE_H_
#define TIERCEL_TIERING_DEVICE_LANE_H_

#include <fmt/format.h>

#include <cstdint>
#include <span>

#include "tiering/device_memory.h"

namespace tiercel {

inline Status CheckPieces(std::span<const DeviceMemory::Piece> pieces, uint64_t device_bytes,
                          uint64_t staging_bytes) {
  for (const DeviceMemory::Piece& piece : pieces) {
    const bool in_device =
        piece.device <= device_bytes && piece.bytes <= device_bytes - piece.device;
    const bool in_staging =
        piece.staging <= staging_bytes && piece.bytes <= staging_bytes - piece.staging;
    if (in_device && in_staging) continue;
    return Fail(
        Code::kInvalidArgument,
        fmt::format("device copy of {} bytes at {} lies outside of its {} of {} bytes", piece.bytes,
                    in_device ? piece.staging : piece.device, in_device ? "staging" : "memory",
                    in_device ? staging_bytes : device_bytes));
  }
  return OkStatus();
}

}  // namespace tiercel

#endif  // TIERCEL_TIERING_DEVICE_LANE_H_
