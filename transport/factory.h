// The only place that knows which transports were built and how each is made.
//
// UCX lives in a module of its own (libtiercel_ucx.so), loaded with local symbols only when it is
// chosen: a process may hold another libucp (engines bundle one), and two must never meet.
#ifndef TIERCEL_TRANSPORT_FACTORY_H_
#define TIERCEL_TRANSPORT_FACTORY_H_

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "transport/transport.h"

namespace tiercel {

struct UcxOptions {
  std::string tls = "tcp";     // UCX_TLS; RDMA fabrics say "rc,tcp". Never empty, never "all".
  std::string devices;         // UCX_NET_DEVICES, e.g. "lo" or "mlx5_0:1"; must not be empty.
  std::string module_path;     // Empty: beside this program, then the library path.
  bool server = false;
  Transport::Limits limits;
};
// Errors: kUnavailable: the module or libucp cannot be loaded, or no such device (named).
Result<std::unique_ptr<Transport>> MakeUcxTransport(const UcxOptions& options, FrameSink& sink,
                                                    const Clock& clock);

struct MemfdOptions {
  std::string socket_path;     // Server: where to listen (mode 0600). Client: empty.
  uint32_t ring_slots = 1024;  // Frames each way that may wait; a power of two.
  uint64_t staging_bytes = 64u << 20;  // Client: its own memory that puts are served from.
  Transport::Limits limits;
};
Result<std::unique_ptr<Transport>> MakeMemfdTransport(const MemfdOptions& options, FrameSink& sink,
                                                      const Clock& clock);

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_FACTORY_H_
