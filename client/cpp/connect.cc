// Client::Connect: the one place that knows what a real client is made of.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "client/cpp/client_impl.h"
#include "client/cpp/grpc_control.h"
#include "transport/factory.h"

namespace tiercel {

Result<std::unique_ptr<Client>> Client::Connect(const Options& given) {
  Options options = given;
  if (options.endpoints.empty() == options.view_file.empty()) {
    return Fail(Code::kInvalidArgument, "connect: either endpoints or a view file must be given");
  }
  if (options.client_name.empty()) {
    options.client_name = fmt::format("{} pid {}", program_invocation_short_name, getpid());
  }
  if (options.transports.empty()) {
    options.transports = {TransportKind::kMemfd, TransportKind::kUcx, TransportKind::kGrpc};
  }
  // Fails now if the TLS files cannot be read, not at the first node.
  if (auto control = MakeGrpcControl("localhost:1", options); !control) {
    return tl::unexpected<Error>(control.error());
  }
  ClientParts parts;
  parts.host_id = HostId();
  parts.control = [options](const std::string& endpoint) {
    return *MakeGrpcControl(endpoint, options);
  };
  for (const TransportKind kind : options.transports) {
    ClientParts::Way way;
    way.kind = kind;
    switch (kind) {
      case TransportKind::kMemfd:
        way.make = [bytes = options.staging_bytes](FrameSink& sink, const Clock& clock) {
          MemfdOptions memfd;
          memfd.staging_bytes = bytes;
          return MakeMemfdTransport(memfd, sink, clock);
        };
        break;
      case TransportKind::kUcx:
        if (options.ucx_devices.empty()) continue;
        way.make = [tls = options.ucx_tls, devices = options.ucx_devices](FrameSink& sink,
                                                                          const Clock& clock) {
          UcxOptions ucx;
          ucx.tls = tls;
          ucx.devices = devices;
          return MakeUcxTransport(ucx, sink, clock);
        };
        break;
      case TransportKind::kGrpc:
        way.make = MakeGrpcStreamWay;
        break;
      case TransportKind::kLoopback:
        return Fail(Code::kInvalidArgument, "connect: loopback is for tests");
    }
    parts.ways.push_back(std::move(way));
  }
  auto client = std::make_unique<ClientImpl>(std::move(options), std::move(parts));
  TIERCEL_TRY(client->Open(3 * kSecond));
  return std::unique_ptr<Client>(std::move(client));
}

}  // namespace tiercel
