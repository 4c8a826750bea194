// Peers that are killed or stopped in the middle of things: a child process, this program again with
// other arguments, is the client.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "tests/conformance/transport_conformance.h"
#include "transport/factory.h"

extern char** environ;

namespace tiercel {
namespace {

constexpr uint64_t kSession = 0xdead;

Result<std::unique_ptr<Transport>> Make(const std::string& kind, bool server, FrameSink& sink,
                                        const Transport::Limits& limits) {
  if (kind == "ucx") {
    UcxOptions options;
    options.devices = "lo";
    options.server = server;
    options.limits = limits;
    return MakeUcxTransport(options, sink, Clock::Monotonic());
  }
  MemfdOptions options;
  if (server) options.socket_path = "/tmp/tiercel-death-" + std::to_string(getpid());
  options.limits = limits;
  return MakeMemfdTransport(options, sink, Clock::Monotonic());
}

void WriteAll(int fd, const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  EXPECT_EQ(write(fd, &size, 4), 4);
  EXPECT_EQ(write(fd, text.data(), size), static_cast<ssize_t>(size));
}
std::string ReadAll(int fd) {
  uint32_t size = 0;
  if (read(fd, &size, 4) != 4 || size > 65536) return "";
  std::string text(size, '\0');
  size_t got = 0;
  while (got < size) {
    const ssize_t n = read(fd, text.data() + got, size - got);
    if (n <= 0) return "";
    got += static_cast<size_t>(n);
  }
  return text;
}

// The child: says its address, hears the server's, says HELLO, holds or receives until it is killed.
int Child(const std::string& kind) {
  RecordingSink sink;
  std::vector<std::unique_ptr<InPlaceHold>> holds;
  sink.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming& payload) {
    holds.push_back(payload.Hold());
    return holds.back() != nullptr;
  };
  auto transport = Make(kind, false, sink, Transport::Limits());
  if (!transport) return 3;
  WriteAll(1, (*transport)->LocalAddress());
  const std::string address = ReadAll(0);
  auto endpoint = (*transport)->Connect(kSession, address);
  if (!endpoint) return 4;
  FrameHeader hello;
  hello.op = Op::kHello;
  (void)(*endpoint)->Send(hello, {}, {}, nullptr);
  for (;;) {
    (*transport)->Poll();
    sink.frames.clear();
  }
}

class PeerDeath : public ::testing::TestWithParam<std::string> {
 protected:
  void Start(const Transport::Limits& limits) {
    auto made = Make(GetParam(), true, sink_, limits);
    ASSERT_TRUE(made) << made.error().message;
    server_ = std::move(*made);
    int to_child[2];
    int from_child[2];
    ASSERT_EQ(pipe2(to_child, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(from_child, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to_child[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from_child[1], 1);
    std::string program = "peer_death_test";
    std::string flag = "--child=" + GetParam();
    char* arguments[] = {program.data(), flag.data(), nullptr};
    ASSERT_EQ(posix_spawn(&child_, "/proc/self/exe", &actions, nullptr, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(to_child[0]);
    close(from_child[1]);
    const std::string address = ReadAll(from_child[0]);
    ASSERT_TRUE(server_->Admit(kSession, address, 7));
    WriteAll(to_child[1], server_->LocalAddress());
    ASSERT_TRUE(PollUntil([&] { return sink_.accepted.size() == 1 && sink_.frames.size() == 1; }));
    close(to_child[1]);
    close(from_child[0]);
  }
  void TearDown() override {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
  }
  template <class Condition>
  bool PollUntil(Condition&& condition, Nanos timeout = 8 * kSecond) {
    const Nanos end = Clock::Monotonic().Now() + timeout;
    while (!condition()) {
      if (Clock::Monotonic().Now() > end) return false;
      server_->Poll();
    }
    return true;
  }
  // Large payloads: as many as are accepted at once.
  size_t SendSome() {
    FrameHeader data;
    data.op = Op::kData;
    size_t sent = 0;
    while (sent < 4 && sink_.accepted[0]->Send(data, {}, payload_, [this](Status) { ++done_; })) ++sent;
    return sent;
  }

  RecordingSink sink_;
  std::unique_ptr<Transport> server_;
  pid_t child_ = -1;
  const std::vector<std::byte> payload_ = Pattern(6 << 20, 1);
  size_t done_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Transports, PeerDeath, ::testing::Values("memfd", "ucx"),
                         [](const auto& tested) { return tested.param; });

TEST_P(PeerDeath, AKilledPeerEndsEverySendAndIsTold) {
  Start(Transport::Limits());
  ASSERT_FALSE(HasFatalFailure());
  const size_t sent = SendSome();
  ASSERT_GT(sent, 0u);
  server_->Poll();
  kill(child_, SIGKILL);
  waitpid(child_, nullptr, 0);
  child_ = -1;
  EXPECT_TRUE(PollUntil([&] { return done_ == sent && sink_.closed.size() == 1; })) << done_ << " of " << sent;
  EXPECT_TRUE(sink_.accepted[0]->closed());
  sink_.accepted.clear();
}

TEST_P(PeerDeath, AStoppedPeerIsClosedByForceAfterTheSendTimeout) {
  Transport::Limits limits;
  limits.send_timeout = 300 * kMillisecond;
  Start(limits);
  ASSERT_FALSE(HasFatalFailure());
  kill(child_, SIGSTOP);
  int status = 0;
  waitpid(child_, &status, WUNTRACED);
  const size_t sent = SendSome();
  ASSERT_GT(sent, 0u);
  const Nanos begin = Clock::Monotonic().Now();
  ASSERT_TRUE(PollUntil([&] { return sink_.closed.size() == 1; }));
  EXPECT_EQ(sink_.closed[0].second.code, Code::kDeadlineExceeded) << sink_.closed[0].second.message;
  EXPECT_LT(Clock::Monotonic().Now() - begin, 3 * kSecond);
  EXPECT_TRUE(PollUntil([&] { return done_ == sent; })) << "bytes stay pinned for a peer that hangs";
  sink_.accepted.clear();
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc == 2 && std::strncmp(argv[1], "--child=", 8) == 0) return tiercel::Child(argv[1] + 8);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
