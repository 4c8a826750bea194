#include "transport/ucx_module.h"

#include <fmt/format.h>

#include "transport/ucx_transport.h"

extern "C" __attribute__((visibility("default"))) bool tiercel_ucx_open(
    const tiercel::UcxModuleCall* call) {
  const tiercel::UcxModuleCall ours;
  if (call->abi != ours.abi || call->options_bytes != ours.options_bytes ||
      call->header_bytes != ours.header_bytes) {
    // The error's own layout is in doubt: say nothing through it.
    return false;
  }
  tiercel::Result<std::unique_ptr<tiercel::Transport>> made =
      tiercel::OpenUcx(*call->options, *call->sink, *call->clock);
  if (!made) {
    *call->error = std::move(made).error();
    return false;
  }
  *call->out = std::move(*made);
  return true;
}
