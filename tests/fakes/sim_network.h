// SimNetwork is the Transport seam with a clock and a network that belong to the test: every frame gets
// a delay from a seed, links can be cut and mended, frames can vanish, endpoints can be lost. One thread,
// no system call; the same seed gives the same run.
//
//   SimNetwork network(seed, clock);
//   auto server = network.MakeTransport("node-a/0", sink, limits);
//   auto client = network.MakeTransport("client", other, limits);
//   client->Connect(session, "node-a/0");
//   clock.Set(network.NextEvent()); server->Poll(); client->Poll();
//
// Invariants
//   Frames of an endpoint arrive in order, whatever their delays, as transport.h promises; a payload over
//   Options::in_line_bytes has data() == nullptr and must be received.
//   A dropped frame is one that its sender's system took and its receiver never saw: its done runs.
//   A frame sent into a partition waits there; Limits::send_timeout ends its endpoint.
//
// Ownership: the network must outlive its transports. Threads: one.
#ifndef TIERCEL_TESTS_FAKES_SIM_NETWORK_H_
#define TIERCEL_TESTS_FAKES_SIM_NETWORK_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/random.h"
#include "tests/fakes/sim_clock.h"
#include "transport/transport.h"

namespace tiercel {

class SimTransport;

class SimNetwork {
 public:
  struct Options {
    Nanos min_delay = 5 * kMicrosecond;
    Nanos max_delay = 200 * kMicrosecond;
    double bytes_per_nano = 1.0;
    double drop = 0;          // Chance that a frame vanishes.
    double lose = 0;          // Chance that sending a frame ends the endpoint, for both sides.
    double close_twice = 0;   // Chance that a hang-up is delivered again later.
    uint64_t in_line_bytes = 16 * 1024;
  };

  SimNetwork(uint64_t seed, SimClock& clock) : random_(seed), clock_(clock) {}

  std::unique_ptr<Transport> MakeTransport(std::string name, FrameSink& sink,
                                           const Transport::Limits& limits = Transport::Limits());
  // Between these two nothing passes until Mend; both ways.
  void Cut(const std::string& a, const std::string& b) { cut_.insert(std::minmax(a, b)); }
  void Mend(const std::string& a, const std::string& b) { cut_.erase(std::minmax(a, b)); }
  // When something is due; INT64_MAX when nothing is.
  Nanos NextEvent() const;

  Options options;

 private:
  friend class SimTransport;
  friend class SimLink;
  bool IsCut(const std::string& a, const std::string& b) const { return cut_.contains(std::minmax(a, b)); }
  Nanos Delay(uint64_t bytes);
  bool Chance(double p) { return p > 0 && random_.Uniform() < p; }

  SplitMix64 random_;
  SimClock& clock_;
  std::map<std::string, SimTransport*> transports_;
  std::set<std::pair<std::string, std::string>> cut_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_FAKES_SIM_NETWORK_H_
