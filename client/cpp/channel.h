// A gRPC channel as every client of ours makes it: message limits, quick reconnects, TLS or plain.
// For edges only.
#ifndef TIERCEL_CLIENT_CPP_CHANNEL_H_
#define TIERCEL_CLIENT_CPP_CHANNEL_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "base/result.h"

namespace tiercel {

struct TlsFiles {
  std::string ca, cert, key;  // PEM; all empty: plain text.
};

// Errors: kInvalidArgument: a TLS file that cannot be read.
Result<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& endpoint,
                                                   const TlsFiles& tls);

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CHANNEL_H_
