// UCX active messages behind the Transport seam. Internal to the module (transport/ucx_module.h).
//
// Rules it keeps (each was measured to matter): features AM and WAKEUP only, never RMA; error handling
// mode PEER on both sides, with an endpoint of its own on each; devices and lanes always named; large
// TCP segments; headers kept alive until the send has completed; endpoints force-closed from Poll, not
// from UCX's callbacks; a sweep of our own for peers that are stopped, which UCX never sees.
#ifndef TIERCEL_TRANSPORT_UCX_TRANSPORT_H_
#define TIERCEL_TRANSPORT_UCX_TRANSPORT_H_

#include <memory>

#include "transport/factory.h"

namespace tiercel {

Result<std::unique_ptr<Transport>> OpenUcx(const UcxOptions& options, FrameSink& sink,
                                           const Clock& clock);

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_UCX_TRANSPORT_H_
