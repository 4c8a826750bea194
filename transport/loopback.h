// LoopbackNetwork joins transports of one process: for tests, and for a program that embeds a node.
// Large payloads arrive as they do from a fabric: data() is null and Receive moves them, so code that
// works here meets both ways of arriving.
//
//   LoopbackNetwork network;
//   auto server = network.MakeTransport(sink, clock, limits);      // its own thread, or the same one
//   auto client = network.MakeTransport(other, clock, limits);
//   client->Connect(session, server->LocalAddress());
//
// Threads: MakeTransport from any thread; each Transport has its own owner thread.
// Ownership: the network may die before its transports.
#ifndef TIERCEL_TRANSPORT_LOOPBACK_H_
#define TIERCEL_TRANSPORT_LOOPBACK_H_

#include <memory>

#include "base/clock.h"
#include "transport/transport.h"

namespace tiercel {

class LoopbackNetwork {
 public:
  LoopbackNetwork();
  ~LoopbackNetwork();
  LoopbackNetwork(const LoopbackNetwork&) = delete;
  LoopbackNetwork& operator=(const LoopbackNetwork&) = delete;

  std::unique_ptr<Transport> MakeTransport(FrameSink& sink, const Clock& clock,
                                           const Transport::Limits& limits = Transport::Limits());

  struct Hub;

 private:
  std::shared_ptr<Hub> hub_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_LOOPBACK_H_
