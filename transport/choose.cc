#include "transport/choose.h"

#include <fmt/format.h>

#include <algorithm>

namespace tiercel {
namespace {

bool Has(const std::vector<TransportKind>& kinds, TransportKind kind) {
  return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
}

// Empty: it can be used.
std::string WhyNot(TransportKind kind, const ClientOffer& client, const ServerOffer& server) {
  switch (kind) {
    case TransportKind::kMemfd:
      if (client.host_id.empty() || server.host_id.empty()) return "a side did not say which host it is on";
      if (client.host_id != server.host_id) return "another host";
      break;
    case TransportKind::kUcx:
      if (!server.ucx_why_not.empty()) return server.ucx_why_not;
      if (server.ucx_devices.empty()) return "the server names no devices for it";
      if (!server.trusted_fabric) return "the server's network is not declared a trusted fabric";
      if (!client.has_ucx_address) return "the client has no worker";
      if (client.ucx_version != server.ucx_version) {
        return fmt::format("versions differ, client {} server {}", client.ucx_version, server.ucx_version);
      }
      break;
    case TransportKind::kLoopback:
    case TransportKind::kGrpc:
      break;
  }
  if (!Has(server.kinds, kind)) return "the server does not offer it";
  return "";
}

std::string Why(TransportKind kind, const ServerOffer& server) {
  switch (kind) {
    case TransportKind::kLoopback:
      return "same process";
    case TransportKind::kMemfd:
      return "same host";
    case TransportKind::kUcx:
      return "trusted fabric, ucx over " + server.ucx_devices;
    case TransportKind::kGrpc:
      return "grpc stream";
  }
  return "";
}

}  // namespace

Result<Choice> ChooseTransport(const ClientOffer& client, const ServerOffer& server) {
  static const std::vector<TransportKind> kBestFirst = {TransportKind::kMemfd, TransportKind::kUcx,
                                                        TransportKind::kGrpc};
  std::string refused;
  for (const TransportKind kind : client.kinds.empty() ? kBestFirst : client.kinds) {
    const std::string why_not = WhyNot(kind, client, server);
    if (why_not.empty()) return Choice{kind, refused + Why(kind, server)};
    refused += fmt::format("{} refused: {}; ", Name(kind), why_not);
  }
  return Fail(Code::kUnavailable, "no transport in common: " + refused);
}

}  // namespace tiercel
