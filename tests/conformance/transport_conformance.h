// What transport/transport.h promises, as tests that every transport must pass. A test file makes a
// TransportRig for its transport and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(Loopback, TransportConformance, ::testing::Values(TransportCase{...}));
#ifndef TIERCEL_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
#define TIERCEL_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/random.h"
#include "transport/transport.h"

namespace tiercel {

class TransportRig {
 public:
  virtual ~TransportRig() = default;
  // At most one server a rig.
  virtual std::unique_ptr<Transport> MakeServer(FrameSink& sink, const Clock& clock,
                                                const Transport::Limits& limits) = 0;
  virtual std::unique_ptr<Transport> MakeClient(FrameSink& sink, const Clock& clock,
                                                const Transport::Limits& limits) = 0;
  // Has the server's Transport shared memory to serve from?
  virtual bool in_place() const { return false; }
};

struct TransportCase {
  std::string name;
  std::function<std::unique_ptr<TransportRig>()> make;
};

// Any byte of a payload follows from (seed, position), so a misplaced piece shows.
inline std::vector<std::byte> Pattern(size_t bytes, uint64_t seed) {
  std::vector<std::byte> out(bytes);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = Mix64(seed * 0x9e3779b97f4a7c15ULL + i);
    std::memcpy(out.data() + i, &word, std::min<size_t>(8, bytes - i));
  }
  return out;
}

// Keeps all that arrives. Payloads are taken by Receive unless on_frame says it handled the frame.
class RecordingSink : public FrameSink {
 public:
  struct Got {
    Endpoint* from = nullptr;
    FrameHeader header;
    std::vector<std::byte> meta;
    std::vector<std::byte> payload;
    bool received = false;
    Code receive_code = Code::kOk;
  };

  void OnAccept(std::unique_ptr<Endpoint> endpoint) override {
    accepted.push_back(std::move(endpoint));
  }
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) override {
    EXPECT_EQ(header.payload_bytes, payload.size());
    if (on_frame && on_frame(from, header, meta, payload)) return;
    auto got = std::make_shared<Got>();
    got->from = &from;
    got->header = header;
    got->meta.assign(meta.begin(), meta.end());
    got->payload.resize(payload.size());
    frames.push_back(got);
    if (payload.size() == 0) {
      got->received = true;
      return;
    }
    const auto end = [got](Status status) {
      EXPECT_FALSE(got->received);
      got->received = true;
      got->receive_code = status ? Code::kOk : status.error().code;
    };
    const auto take = [got, at = size_t{0}](ByteSpan fragment) mutable {
      ASSERT_LE(fragment.size(), got->payload.size() - at);
      std::copy(fragment.begin(), fragment.end(), got->payload.begin() + static_cast<std::ptrdiff_t>(at));
      at += fragment.size();
    };
    if (in_fragments && payload.ReceiveFragments(take, end)) return;
    payload.Receive(got->payload, end);
  }
  void OnClosed(Endpoint& endpoint, const Error& why) override {
    EXPECT_TRUE(endpoint.closed());
    closed.emplace_back(&endpoint, why);
  }

  size_t received() const {
    return static_cast<size_t>(
        std::count_if(frames.begin(), frames.end(), [](const auto& f) { return f->received; }));
  }

  std::function<bool(Endpoint&, const FrameHeader&, ByteSpan, Incoming&)> on_frame;
  bool in_fragments = false;  // Payloads are taken so where they come so.
  std::vector<std::unique_ptr<Endpoint>> accepted;
  std::vector<std::shared_ptr<Got>> frames;
  std::vector<std::pair<Endpoint*, Error>> closed;
};

class TransportConformance : public ::testing::TestWithParam<TransportCase> {
 protected:
  static constexpr uint64_t kSession = 0x5e5510;

  void SetUp() override { Start(Transport::Limits()); }
  void TearDown() override { Stop(); }

  void Start(const Transport::Limits& limits) {
    Stop();
    rig_ = GetParam().make();
    server_ = rig_->MakeServer(server_sink_, Clock::Monotonic(), limits);
    ASSERT_NE(server_, nullptr);
    client_ = rig_->MakeClient(client_sink_, Clock::Monotonic(), limits);
    ASSERT_NE(client_, nullptr);
  }
  void Stop() {
    endpoints_.clear();
    server_sink_ = RecordingSink();
    client_sink_ = RecordingSink();
    client_.reset();
    server_.reset();
    rig_.reset();
  }

  template <class Condition>
  [[nodiscard]] bool PollUntil(Condition&& condition, Nanos timeout = 5 * kSecond) {
    const Nanos end = Clock::Monotonic().Now() + timeout;
    while (!condition()) {
      if (Clock::Monotonic().Now() > end) return false;
      server_->Poll();
      client_->Poll();
    }
    return true;
  }
  void PollFor(Nanos time) {
    (void)PollUntil([] { return false; }, time);
  }

  // A bound endpoint: {client's, server's}.
  std::pair<Endpoint*, Endpoint*> Open(uint64_t session = kSession) {
    EXPECT_TRUE(server_->Admit(session, client_->LocalAddress(), 7));
    auto endpoint = client_->Connect(session, server_->LocalAddress());
    EXPECT_TRUE(endpoint) << endpoint.error().message;
    if (!endpoint) return {nullptr, nullptr};
    endpoints_.push_back(std::move(*endpoint));
    Endpoint* mine = endpoints_.back().get();
    FrameHeader hello;
    hello.op = Op::kHello;
    const auto token = Pattern(16, 1);
    EXPECT_TRUE(mine->Send(hello, token, {}, nullptr));
    const size_t before = server_sink_.accepted.size();
    const size_t frames = server_sink_.frames.size();
    EXPECT_TRUE(PollUntil([&] { return server_sink_.frames.size() > frames; })) << "no HELLO arrived";
    if (server_sink_.accepted.size() != before + 1) return {nullptr, nullptr};
    EXPECT_EQ(server_sink_.frames.back()->header.op, Op::kHello);
    EXPECT_EQ(server_sink_.frames.back()->meta, token);
    EXPECT_EQ(server_sink_.accepted.back()->session_id(), session);
    return {mine, server_sink_.accepted.back().get()};
  }

  static FrameHeader Header(Op op, uint64_t req_id) {
    FrameHeader header;
    header.op = op;
    header.req_id = req_id;
    return header;
  }

  std::unique_ptr<TransportRig> rig_;
  RecordingSink server_sink_;
  RecordingSink client_sink_;
  std::unique_ptr<Transport> server_;
  std::unique_ptr<Transport> client_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportConformance);

TEST_P(TransportConformance, SmallFramesArriveInOrderAndWhole) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  size_t done = 0;
  for (uint64_t i = 0; i < 300; ++i) {
    FrameHeader header = Header(Op::kGet, i);
    header.flags = kFlagNoTouch;
    header.deadline_ms = 1234;
    header.generation = i * 3;
    const auto meta = Pattern(i * 13 % (kMaxMetaBytes + 1), i);
    const Status sent = client->Send(header, meta, {}, [&](Status status) {
      EXPECT_TRUE(status);
      ++done;
    });
    if (!sent) {
      ASSERT_EQ(sent.error().code, Code::kResourceExhausted) << sent.error().message;
      server_->Poll();
      client_->Poll();
      --i;
    }
  }
  ASSERT_TRUE(PollUntil([&] { return server_sink_.frames.size() == 301 && done == 300; }));
  for (uint64_t i = 0; i < 300; ++i) {
    const auto& got = *server_sink_.frames[i + 1];
    EXPECT_EQ(got.header.req_id, i);
    EXPECT_EQ(got.header.generation, i * 3);
    EXPECT_EQ(got.header.session_id, kSession);
    ASSERT_EQ(got.meta, Pattern(i * 13 % (kMaxMetaBytes + 1), i));
    EXPECT_EQ(got.from, server);
  }
}

TEST_P(TransportConformance, PayloadsOfEverySizeCrossBothWaysUnchanged) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  uint64_t req = 1;
  for (const size_t bytes :
       {size_t{1}, size_t{63}, size_t{4097}, size_t{16 * 1024}, size_t{65536}, size_t{65537},
        size_t{262144 - 1}, size_t{1} << 20, size_t{4 << 20} + 3, size_t{16} << 20,
        static_cast<size_t>(kMaxPayloadBytes)}) {
    for (int way = 0; way < 4; ++way) {
      Endpoint* from = way % 2 == 0 ? client : server;
      RecordingSink& to = way % 2 == 0 ? server_sink_ : client_sink_;
      to.in_fragments = way >= 2;
      const auto payload = Pattern(bytes, req);
      const auto meta = Pattern(100, req);
      int done = 0;
      const size_t before = to.frames.size();
      ASSERT_TRUE(from->Send(Header(way % 2 == 0 ? Op::kPut : Op::kData, req), meta, payload,
                             [&](Status status) {
                               EXPECT_TRUE(status) << status.error().message;
                               ++done;
                             }));
      EXPECT_EQ(done, 0) << "done ran inside Send";
      ASSERT_TRUE(PollUntil([&] {
        return to.frames.size() == before + 1 && to.frames.back()->received && done == 1;
      })) << bytes << " bytes, way " << way << ", done " << done;
      EXPECT_EQ(to.frames.back()->receive_code, Code::kOk);
      EXPECT_EQ(to.frames.back()->header.req_id, req);
      ASSERT_TRUE(to.frames.back()->payload == payload) << bytes;
      ASSERT_EQ(to.frames.back()->meta, meta);
      EXPECT_EQ(from->bytes_in_flight(), 0u);
      ++req;
    }
  }
}

TEST_P(TransportConformance, ManyLargeSendsInFlightEachEndOnce) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  constexpr size_t kSends = 24;
  std::vector<std::vector<std::byte>> payloads;
  std::vector<int> done(kSends);
  for (size_t i = 0; i < kSends; ++i) payloads.push_back(Pattern(300'000 + i * 7919, 100 + i));
  for (size_t i = 0; i < kSends; ++i) {
    Status sent = OkStatus();
    ASSERT_TRUE(PollUntil([&, sender = server] {
      sent = sender->Send(Header(Op::kData, i), {}, payloads[i], [&done, i](Status) { ++done[i]; });
      return sent || sent.error().code != Code::kResourceExhausted;
    }));
    ASSERT_TRUE(sent) << sent.error().message;
  }
  ASSERT_TRUE(PollUntil([&] {
    return client_sink_.received() == kSends && std::all_of(done.begin(), done.end(), [](int d) { return d > 0; });
  }));
  for (const auto& got : client_sink_.frames) {
    ASSERT_TRUE(got->payload == payloads[got->header.req_id]);
  }
  PollFor(10 * kMillisecond);
  for (const int times : done) EXPECT_EQ(times, 1);
}

TEST_P(TransportConformance, AFrameThatNobodyReceivesStillEndsItsSend) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  size_t seen = 0;
  client_sink_.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming&) { return ++seen > 0; };
  int done = 0;
  const auto payload = Pattern(1 << 20, 9);
  ASSERT_TRUE(server->Send(Header(Op::kData, 1), {}, payload, [&](Status) { ++done; }));
  ASSERT_TRUE(PollUntil([&] { return seen == 1 && done == 1; }));
  client_sink_.on_frame = nullptr;
  ASSERT_TRUE(server->Send(Header(Op::kData, 2), {}, payload, [&](Status) { ++done; }));
  ASSERT_TRUE(PollUntil([&] { return client_sink_.received() == 1 && done == 2; }));
  EXPECT_TRUE(client_sink_.frames[0]->payload == payload);
}

TEST_P(TransportConformance, TooLargeAMetaOrPayloadIsRefused) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  const std::vector<std::byte> big(kMaxPayloadBytes + 1);
  Status sent = client->Send(Header(Op::kPut, 1), ByteSpan(big).first(kMaxMetaBytes + 1), {}, nullptr);
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, Code::kInvalidArgument);
  sent = client->Send(Header(Op::kPut, 1), {}, big, nullptr);
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, Code::kInvalidArgument);
  EXPECT_FALSE(client->closed());
}

TEST_P(TransportConformance, AFullQueueAnswersBusyThenRecovers) {
  Transport::Limits limits;
  limits.max_frames_in_flight = 8;
  limits.max_bytes_in_flight = 1 << 20;
  Start(limits);
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  const auto payload = Pattern(300'000, 3);
  size_t accepted = 0;
  size_t done = 0;
  Status sent = OkStatus();
  while (accepted < 100) {
    sent = server->Send(Header(Op::kData, accepted), {}, payload, [&](Status) { ++done; });
    if (!sent) break;
    ++accepted;
  }
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, Code::kResourceExhausted);
  EXPECT_LE(accepted, 3u);
  EXPECT_LE(server->bytes_in_flight(), limits.max_bytes_in_flight);
  ASSERT_TRUE(PollUntil([&] { return done == accepted && client_sink_.received() == accepted; }));
  EXPECT_TRUE(server->Send(Header(Op::kData, 99), {}, payload, [&](Status) { ++done; }));
  ASSERT_TRUE(PollUntil([&] { return client_sink_.received() == accepted + 1 && done == accepted + 1; }));
}

TEST_P(TransportConformance, ASessionThatWasNeverAdmittedIsDroppedAndCounted) {
  auto stranger = client_->Connect(0xbad, server_->LocalAddress());
  if (stranger) {
    endpoints_.push_back(std::move(*stranger));
    (void)endpoints_.back()->Send(Header(Op::kHello, 0), Pattern(16, 1), {}, nullptr);
  }
  ASSERT_TRUE(PollUntil([&] { return server_->counters().rejected_frames > 0; }));
  EXPECT_TRUE(server_sink_.accepted.empty());
  EXPECT_TRUE(server_sink_.frames.empty());
  const auto [client, server] = Open();  // The server still serves those that were.
  EXPECT_NE(server, nullptr);
}

TEST_P(TransportConformance, ARevokedSessionCannotSayHello) {
  ASSERT_TRUE(server_->Admit(77, client_->LocalAddress(), 7));
  server_->Revoke(77);
  auto endpoint = client_->Connect(77, server_->LocalAddress());
  if (endpoint) {
    endpoints_.push_back(std::move(*endpoint));
    (void)endpoints_.back()->Send(Header(Op::kHello, 0), Pattern(16, 1), {}, nullptr);
  }
  ASSERT_TRUE(PollUntil([&] { return server_->counters().rejected_frames > 0; }));
  EXPECT_TRUE(server_sink_.accepted.empty());
}

TEST_P(TransportConformance, RevokeDoesNotCloseALiveEndpoint) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  server_->Revoke(kSession);
  ASSERT_TRUE(client->Send(Header(Op::kGet, 5), {}, {}, nullptr));
  ASSERT_TRUE(PollUntil([&] { return server_sink_.frames.size() == 2; }));
}

TEST_P(TransportConformance, CloseFlushDeliversWhatWasSentAndTellsThePeer) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  const auto payload = Pattern(700'000, 3);
  int done = 0;
  ASSERT_TRUE(client->Send(Header(Op::kPut, 1), {}, payload, [&](Status s) { done += s ? 1 : 100; }));
  ASSERT_TRUE(client->Send(Header(Op::kGet, 2), {}, {}, nullptr));
  client->Close(CloseMode::kFlush);
  EXPECT_TRUE(client->closed());
  const Status late = client->Send(Header(Op::kGet, 3), {}, {}, nullptr);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Code::kUnavailable);
  ASSERT_TRUE(PollUntil([&, s = server] { return server_sink_.received() == 3 && done == 1 && s->closed(); }))
      << server_sink_.received() << " received, done " << done << ", closed " << server->closed();
  ASSERT_TRUE(PollUntil([&] { return server_sink_.closed.size() == 1; }));
  EXPECT_EQ(server_sink_.closed[0].first, server);
  EXPECT_TRUE(client_sink_.closed.empty()) << "OnClosed is not for a close of ours";
}

TEST_P(TransportConformance, CloseForceEndsEverySendBeforeItReturns) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  const auto payload = Pattern(2 << 20, 3);
  int done = 0;
  for (uint64_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(server->Send(Header(Op::kData, i), {}, payload, [&](Status) { ++done; }));
  }
  server_->Poll();
  server->Close(CloseMode::kForce);
  EXPECT_EQ(done, 8);
  EXPECT_TRUE(server->closed());
  ASSERT_TRUE(PollUntil([&] { return client_sink_.closed.size() == 1; }));
  EXPECT_EQ(client_sink_.closed[0].first, client);
  PollFor(5 * kMillisecond);
  EXPECT_EQ(done, 8);
  for (const auto& got : client_sink_.frames) {
    if (got->received && got->receive_code == Code::kOk) { EXPECT_TRUE(got->payload == payload); }
  }
}

TEST_P(TransportConformance, AnEndpointMayBeDestroyedInsideItsOwnCallbacks) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  server_sink_.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming&) {
    server_sink_.accepted.clear();
    return true;
  };
  ASSERT_TRUE(client->Send(Header(Op::kGet, 1), {}, {}, nullptr));
  ASSERT_TRUE(PollUntil([&] { return client_sink_.closed.size() == 1; }));
  server_sink_.on_frame = nullptr;
  endpoints_.clear();
  const auto [again, other] = Open(kSession + 1);
  ASSERT_NE(other, nullptr);
  ASSERT_TRUE(other->Send(Header(Op::kAck, 1), {}, {}, [&](Status) { server_sink_.accepted.clear(); }));
  ASSERT_TRUE(PollUntil([&] { return client_sink_.closed.size() == 2; }));
}

TEST_P(TransportConformance, TwoEndpointsAtOnceDoNotMix) {
  const auto [c1, s1] = Open(100);
  const auto [c2, s2] = Open(200);
  ASSERT_NE(s1, nullptr);
  ASSERT_NE(s2, nullptr);
  for (uint64_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(c1->Send(Header(Op::kGet, 1000 + i), {}, {}, nullptr));
    ASSERT_TRUE(c2->Send(Header(Op::kGet, 2000 + i), {}, {}, nullptr));
  }
  const auto payload = Pattern(500'000, 5);
  ASSERT_TRUE(s1->Send(Header(Op::kData, 1), {}, payload, nullptr));
  ASSERT_TRUE(s2->Send(Header(Op::kData, 2), {}, payload, nullptr));
  ASSERT_TRUE(PollUntil([&] { return server_sink_.frames.size() == 102 && client_sink_.received() == 2; }));
  for (const auto& got : server_sink_.frames) {
    if (got->header.op != Op::kGet) continue;
    EXPECT_EQ(got->from, got->header.req_id < 2000 ? s1 : s2);
    EXPECT_EQ(got->header.session_id, got->header.req_id < 2000 ? 100u : 200u);
  }
  for (const auto& got : client_sink_.frames) EXPECT_EQ(got->from, got->header.req_id == 1 ? c1 : c2);
  c1->Close(CloseMode::kForce);
  ASSERT_TRUE(PollUntil([&] { return server_sink_.closed.size() == 1; }));
  EXPECT_EQ(server_sink_.closed[0].first, s1);
  ASSERT_TRUE(c2->Send(Header(Op::kGet, 2999), {}, {}, nullptr));
  ASSERT_TRUE(PollUntil([&] { return server_sink_.frames.back()->header.req_id == 2999; }));
}

TEST_P(TransportConformance, SleepersAreAlwaysWoken) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  const bool full = std::getenv("TIERCEL_FULL") != nullptr;
  const uint64_t rounds = full ? 10'000 : 1'000;
  server_sink_.on_frame = [&](Endpoint& from, const FrameHeader& header, ByteSpan, Incoming&) {
    FrameHeader answer;
    answer.op = Op::kMatched;
    answer.req_id = header.req_id;
    EXPECT_TRUE(from.Send(answer, {}, {}, nullptr));
    return true;
  };
  std::atomic<uint64_t> overslept{0};
  const auto sleep = [&](Transport& transport) {
    if (!transport.Arm()) return;
    const int ep = epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    epoll_ctl(ep, EPOLL_CTL_ADD, transport.event_fd(), &event);
    if (epoll_wait(ep, &event, 1, 1000) == 0) ++overslept;
    close(ep);
  };
  std::atomic<bool> stop{false};
  std::thread serve([&] {
    while (!stop.load()) {
      if (server_->Poll() == 0 && !stop.load()) sleep(*server_);
    }
  });
  uint64_t answered = 0;
  client_sink_.on_frame = [&](Endpoint&, const FrameHeader& header, ByteSpan, Incoming&) {
    EXPECT_EQ(header.req_id, answered);
    ++answered;
    return true;
  };
  const Nanos end = Clock::Monotonic().Now() + (full ? 60 : 15) * kSecond;
  for (uint64_t i = 0; i < rounds; ++i) {
    ASSERT_TRUE(client->Send(Header(Op::kMatch, i), {}, {}, nullptr));
    while (answered == i && Clock::Monotonic().Now() < end) {
      if (client_->Poll() == 0) sleep(*client_);
    }
  }
  stop = true;
  (void)client->Send(Header(Op::kGet, rounds), {}, {}, nullptr);
  client_->Poll();
  serve.join();
  EXPECT_EQ(answered, rounds);
  EXPECT_LE(overslept.load(), 1u);  // The server's last sleep may find nobody left to wake it.
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
