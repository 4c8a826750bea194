// The HTTP edge: /metrics, /livez, /readyz and a page for people. No data, no decisions.
// Threads: the web server's own; each request asks the shards and waits at most two seconds.
#ifndef TIERCEL_CACHESERVER_HTTP_EDGE_H_
#define TIERCEL_CACHESERVER_HTTP_EDGE_H_

#include <memory>
#include <string>

#include "base/result.h"

namespace tiercel {

class Node;

class HttpEdge {
 public:
  // listen is host:port; port 0 takes any. Errors: kUnavailable: the address cannot be bound.
  static Result<std::unique_ptr<HttpEdge>> Start(Node& node, const std::string& listen);
  virtual ~HttpEdge() = default;
  virtual std::string address() const = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_HTTP_EDGE_H_
