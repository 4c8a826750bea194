// Which transport one client and one server use, and the sentence that says why: decided by the server
// at OpenSession, shown to the client, in `tiercel doctor` and in the logs.
//
//   same host and both speak memfd -> memfd;  trusted fabric and both speak UCX -> ucx;  else -> grpc
//
// Invariants: a pure function; UCX is never chosen for a peer outside the trusted fabric.
// Threads: any. Errors: kUnavailable with the reasons when there is no transport in common.
#ifndef TIERCEL_TRANSPORT_CHOOSE_H_
#define TIERCEL_TRANSPORT_CHOOSE_H_

#include <string>
#include <vector>

#include "base/result.h"
#include "transport/transport.h"

namespace tiercel {

struct ClientOffer {
  std::vector<TransportKind> kinds;  // In the client's order of preference; empty: all that it has.
  std::string host_id;               // Boot id; empty: unknown.
  bool has_ucx_address = false;      // Its worker's address came along.
  std::string ucx_version;           // "1.13"
};

struct ServerOffer {
  std::vector<TransportKind> kinds;
  std::string host_id;
  std::string ucx_version;
  std::string ucx_devices;      // Empty: UCX is off.
  std::string ucx_why_not;      // Why it is off, when it is: the module's own words.
  // Only where every host that can reach the UCX ports is trusted: a UCX TCP port writes memory for
  // whoever connects.
  bool trusted_fabric = false;
};

struct Choice {
  TransportKind kind = TransportKind::kGrpc;
  std::string reason;  // "same host"; "memfd refused: another host; ucx over lo".
};

Result<Choice> ChooseTransport(const ClientOffer& client, const ServerOffer& server);

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_CHOOSE_H_
