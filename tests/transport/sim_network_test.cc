#include "tests/fakes/sim_network.h"

#include <gtest/gtest.h>

#include "tests/conformance/transport_conformance.h"

namespace tiercel {
namespace {

struct World {
  explicit World(uint64_t seed, Transport::Limits limits = {}) : network(seed, clock) {
    server = network.MakeTransport("server", server_sink, limits);
    client = network.MakeTransport("client", client_sink, limits);
    EXPECT_TRUE(server->Admit(1, "", 0));
    endpoint = std::move(*client->Connect(1, "server"));
    FrameHeader hello;
    hello.op = Op::kHello;
    EXPECT_TRUE(endpoint->Send(hello, {}, {}, nullptr));
  }
  ~World() {
    endpoint.reset();
    server_sink.accepted.clear();
  }
  void Run(Nanos time) {
    const Nanos end = clock.Now() + time;
    while (network.NextEvent() <= end) {
      clock.Set(network.NextEvent());
      server->Poll();
      client->Poll();
    }
    clock.Set(end);
    server->Poll();
    client->Poll();
  }
  Status Get(uint64_t req) {
    FrameHeader get;
    get.op = Op::kGet;
    get.req_id = req;
    return endpoint->Send(get, {}, {}, nullptr);
  }
  SimClock clock;
  SimNetwork network;
  RecordingSink server_sink;
  RecordingSink client_sink;
  std::unique_ptr<Transport> server;
  std::unique_ptr<Transport> client;
  std::unique_ptr<Endpoint> endpoint;
};

TEST(SimNetwork, FramesArriveInOrderAfterTheirDelays) {
  World world(1);
  for (uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(world.Get(i));
  EXPECT_TRUE(world.server_sink.frames.empty());
  world.Run(100 * kMillisecond);
  ASSERT_EQ(world.server_sink.frames.size(), 101u);
  for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(world.server_sink.frames[i + 1]->header.req_id, i);
}

TEST(SimNetwork, TheSameSeedGivesTheSameRun) {
  const auto run = [](uint64_t seed) {
    World world(seed);
    world.network.options.drop = 0.3;
    for (uint64_t i = 0; i < 200; ++i) EXPECT_TRUE(world.Get(i));
    world.Run(kSecond);
    std::vector<uint64_t> seen;
    for (const auto& frame : world.server_sink.frames) seen.push_back(frame->header.req_id);
    return seen;
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
  EXPECT_LT(run(7).size(), 180u);
}

TEST(SimNetwork, ACutHoldsFramesUntilItIsMended) {
  World world(1);
  world.Run(10 * kMillisecond);
  world.network.Cut("server", "client");
  ASSERT_TRUE(world.Get(5));
  world.Run(kSecond);
  EXPECT_EQ(world.server_sink.frames.size(), 1u);
  world.network.Mend("client", "server");
  world.Run(10 * kMillisecond);
  EXPECT_EQ(world.server_sink.frames.size(), 2u);
}

TEST(SimNetwork, ACutThatLastsEndsTheEndpoint) {
  World world(1);
  world.Run(10 * kMillisecond);
  world.network.Cut("server", "client");
  ASSERT_TRUE(world.Get(5));
  world.Run(11 * kSecond);
  ASSERT_EQ(world.client_sink.closed.size(), 1u);
  EXPECT_EQ(world.client_sink.closed[0].second.code, Code::kDeadlineExceeded);
}

TEST(SimNetwork, ALostEndpointIsToldToBothOnceEvenIfTheHangUpComesTwice) {
  World world(1);
  world.Run(10 * kMillisecond);
  world.network.options.lose = 1;
  world.network.options.close_twice = 1;
  ASSERT_TRUE(world.Get(5));
  world.Run(kSecond);
  EXPECT_EQ(world.client_sink.closed.size(), 1u);
  EXPECT_EQ(world.server_sink.closed.size(), 1u);
}

}  // namespace
}  // namespace tiercel
