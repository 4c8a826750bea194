// The gRPC edge: decodes control-plane calls, asks the node, answers. The only files of the server, with
// transport/grpc_*, that see gRPC. Threads: gRPC's own; no decision is taken on them.
#ifndef TIERCEL_CACHESERVER_GRPC_EDGE_H_
#define TIERCEL_CACHESERVER_GRPC_EDGE_H_

#include <memory>
#include <string>

#include "base/result.h"

namespace tiercel {

class GrpcStreamHub;
class Node;

class GrpcEdge {
 public:
  static std::unique_ptr<GrpcEdge> Make(Node& node);
  virtual ~GrpcEdge() = default;

  virtual GrpcStreamHub& hub() = 0;
  // Binds node.config().grpc_listen and serves; returns the address with its real port.
  // Errors: kUnavailable: it cannot be bound; kInvalidArgument: a TLS file that cannot be read.
  virtual Result<std::string> Listen() = 0;
  // Ends all calls within a second.
  virtual void Shutdown() = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_GRPC_EDGE_H_
