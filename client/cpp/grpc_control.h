// The control plane over gRPC: the only file of the client, with its .cc, that sees gRPC.
#ifndef TIERCEL_CLIENT_CPP_GRPC_CONTROL_H_
#define TIERCEL_CLIENT_CPP_GRPC_CONTROL_H_

#include <memory>
#include <string>

#include "client/cpp/client.h"
#include "client/cpp/control.h"

namespace tiercel {

// Connects lazily and never blocks. TLS when any of the options' tls files is named.
// Errors: kInvalidArgument: a TLS file that cannot be read.
Result<std::shared_ptr<NodeControl>> MakeGrpcControl(const std::string& endpoint,
                                                     const Client::Options& options);
Result<std::unique_ptr<Transport>> MakeGrpcStreamWay(FrameSink& sink, const Clock& clock);

// This machine's boot id, by which a node knows a client of its own host.
std::string HostId();

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_GRPC_CONTROL_H_
