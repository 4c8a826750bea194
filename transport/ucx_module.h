// The door of libtiercel_ucx.so: the one symbol that it exports. Internal to transport/.
//
// Invariants: the module and its loader are built together; the ABI number and the sizes of what
// crosses are compared, and a mismatch is an Error, never undefined behaviour.
// Ownership: the Transport made is the caller's; the module is never unloaded.
#ifndef TIERCEL_TRANSPORT_UCX_MODULE_H_
#define TIERCEL_TRANSPORT_UCX_MODULE_H_

#include <cstdint>

#include "transport/factory.h"

namespace tiercel {

inline constexpr uint32_t kUcxModuleAbi = 2;
inline constexpr const char kUcxModuleSymbol[] = "tiercel_ucx_open";
inline constexpr const char kUcxModuleFile[] = "libtiercel_ucx.so";

struct UcxModuleCall {
  uint32_t abi = kUcxModuleAbi;
  uint32_t options_bytes = sizeof(UcxOptions);
  uint32_t header_bytes = sizeof(FrameHeader);
  const UcxOptions* options = nullptr;
  FrameSink* sink = nullptr;
  const Clock* clock = nullptr;
  std::unique_ptr<Transport>* out = nullptr;
  Error* error = nullptr;
};
// True: *out is set; false: *error is.
using UcxModuleOpen = bool (*)(const UcxModuleCall* call);

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_UCX_MODULE_H_
