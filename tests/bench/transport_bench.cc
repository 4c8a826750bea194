// Gets over each transport beside raw spinning TCP in the same run: one thread serves, one asks, both
// spin. What is served is one pinned record a request, as a shard serves from its arena; what is asked
// for is received into a buffer of the asker's. Prints us a request, GB/s, and the ratio to TCP.
//
//   transport_bench [seconds per cell, default 0.3]
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "base/check.h"
#include "transport/factory.h"
#include "transport/loopback.h"

namespace tiercel {
namespace {

constexpr size_t kArenaBytes = size_t{256} << 20;
constexpr size_t kSizes[] = {64, 65536, 262144, 1 << 20, 4 << 20, 16 << 20};
double cell_seconds = 0.3;

struct Arena {
  Arena() : fd(memfd_create("bench-slab", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    TIERCEL_CHECK(ftruncate(fd, kArenaBytes) == 0);
    data = static_cast<std::byte*>(mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    std::memset(data, 0x5a, kArenaBytes);
    TIERCEL_CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) == 0);
  }
  // Each request gets the next record of the arena, so that caches are not the story.
  ByteSpan Next(size_t bytes) {
    if (at + bytes > kArenaBytes) at = 0;
    const ByteSpan out(data + at, bytes);
    at += (bytes + 4095) / 4096 * 4096;
    return out;
  }
  int fd;
  std::byte* data;
  size_t at = 0;
};

struct Cell {
  double p50_us = 0;
  double gb_s = 0;
};

double Now() { return static_cast<double>(Clock::Monotonic().Now()) * 1e-9; }

// One measurement: `ask(i)` starts request i, `poll()` moves; finished() counts answers.
Cell Measure(size_t bytes, size_t outstanding, const std::function<bool()>& ask,
             const std::function<void()>& poll, const uint64_t& finished) {
  std::vector<double> times;
  uint64_t asked = finished;
  const uint64_t begin_count = finished;
  const double begin = Now();
  std::vector<double> starts(1024);
  double now = begin;
  uint64_t seen = finished;
  while (now - begin < cell_seconds || finished < asked) {
    while (now - begin < cell_seconds && asked - finished < outstanding) {
      starts[asked % starts.size()] = Now();
      if (!ask()) break;
      ++asked;
    }
    poll();
    now = Now();
    for (; seen < finished; ++seen) times.push_back(now - starts[seen % starts.size()]);
    if (now - begin > cell_seconds + 5) {
      std::fprintf(stderr, "no answer for 5 s\n");
      std::exit(1);
    }
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return Cell{times[times.size() / 2] * 1e6,
              static_cast<double>(finished - begin_count) * static_cast<double>(bytes) / (now - begin) * 1e-9};
}

class ServerSink final : public FrameSink {
 public:
  explicit ServerSink(Arena& arena) : arena_(arena) {}
  void OnAccept(std::unique_ptr<Endpoint> endpoint) override { endpoint_ = std::move(endpoint); }
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan, Incoming&) override {
    if (header.op != Op::kGet) return;
    FrameHeader data;
    data.op = Op::kData;
    data.req_id = header.req_id;
    const Status sent = from.Send(data, {}, arena_.Next(header.generation), nullptr);
    TIERCEL_CHECK(sent.has_value());
  }
  void OnClosed(Endpoint&, const Error&) override {}
  Arena& arena_;
  std::unique_ptr<Endpoint> endpoint_;
};

class ClientSink final : public FrameSink {
 public:
  void OnAccept(std::unique_ptr<Endpoint>) override {}
  void OnFrame(Endpoint&, const FrameHeader& header, ByteSpan, Incoming& payload) override {
    if (in_place && payload.data() != nullptr) {
      touched += static_cast<uint64_t>(payload.data()[0]);
      ++finished;
      return;
    }
    std::byte* to = buffers.data() + header.req_id % 4 * (size_t{16} << 20);
    payload.Receive(MutableByteSpan(to, payload.size()), [this](Status status) {
      TIERCEL_CHECK(status.has_value());
      ++finished;
    });
  }
  void OnClosed(Endpoint&, const Error& why) override {
    std::fprintf(stderr, "closed: %s\n", why.message.c_str());
    std::exit(1);
  }
  std::vector<std::byte> buffers = std::vector<std::byte>(size_t{64} << 20, std::byte{1});
  uint64_t finished = 0;
  uint64_t touched = 0;
  bool in_place = false;
};

using MakeFn = std::function<std::unique_ptr<Transport>(bool server, FrameSink& sink)>;

void RunTransport(const std::string& name, const MakeFn& make, bool in_place,
                  std::map<std::string, std::map<std::pair<size_t, size_t>, Cell>>& table) {
  Arena arena;
  ServerSink server_sink(arena);
  ClientSink client_sink;
  client_sink.in_place = in_place;
  auto server = make(true, server_sink);
  auto client = make(false, client_sink);
  if (server == nullptr || client == nullptr) return;
  TIERCEL_CHECK(server->AddMemory(MemoryRegion{arena.data, kArenaBytes, 1, arena.fd, 1}).has_value());
  TIERCEL_CHECK(client->AddMemory(MemoryRegion{client_sink.buffers.data(), client_sink.buffers.size(), 2, -1, 0})
                    .has_value());
  TIERCEL_CHECK(server->Admit(1, client->LocalAddress(), 1).has_value());
  auto endpoint = client->Connect(1, server->LocalAddress());
  TIERCEL_CHECK(endpoint.has_value());
  FrameHeader hello;
  hello.op = Op::kHello;
  TIERCEL_CHECK((*endpoint)->Send(hello, {}, {}, nullptr).has_value());
  std::atomic<bool> stop{false};
  std::thread serve([&] {
    while (!stop.load(std::memory_order_relaxed)) server->Poll();
  });
  uint64_t req = 0;
  for (const size_t bytes : kSizes) {
    for (const size_t outstanding : {size_t{1}, size_t{4}}) {
      const auto ask = [&] {
        FrameHeader get;
        get.op = Op::kGet;
        get.req_id = req++;
        get.generation = bytes;
        return (*endpoint)->Send(get, {}, {}, nullptr).has_value();
      };
      table[name][{bytes, outstanding}] =
          Measure(bytes, outstanding, ask, [&] { client->Poll(); }, client_sink.finished);
    }
  }
  stop = true;
  serve.join();
  server_sink.endpoint_.reset();
  endpoint->reset();
}

// The ceiling: a request of 64 bytes, the record straight from the arena, both sides spinning.
void RunTcp(std::map<std::string, std::map<std::pair<size_t, size_t>, Cell>>& table) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  TIERCEL_CHECK(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  TIERCEL_CHECK(listen(listener, 1) == 0);
  TIERCEL_CHECK(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  const int asker = socket(AF_INET, SOCK_STREAM, 0);
  TIERCEL_CHECK(connect(asker, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  const int server = accept(listener, nullptr, nullptr);
  const int one = 1;
  for (const int fd : {asker, server}) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  std::atomic<bool> stop{false};
  std::thread serve([&] {
    Arena arena;
    uint64_t request[8];
    size_t have = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      const ssize_t got = read(server, reinterpret_cast<char*>(request) + have, sizeof(request) - have);
      if (got > 0) have += static_cast<size_t>(got);
      if (have < sizeof(request)) continue;
      have = 0;
      ByteSpan out = arena.Next(request[0]);
      while (!out.empty() && !stop.load(std::memory_order_relaxed)) {
        const ssize_t put = write(server, out.data(), out.size());
        if (put > 0) out = out.subspan(static_cast<size_t>(put));
      }
    }
  });
  std::vector<std::byte> buffer(size_t{64} << 20, std::byte{1});
  for (const size_t bytes : kSizes) {
    for (const size_t outstanding : {size_t{1}, size_t{4}}) {
      uint64_t finished = 0;
      size_t have = 0;
      const auto ask = [&] {
        const uint64_t request[8] = {bytes};
        return write(asker, request, sizeof(request)) == sizeof(request);
      };
      const auto poll = [&] {
        std::byte* to = buffer.data() + finished % 4 * (size_t{16} << 20);
        const ssize_t got = read(asker, to + have, bytes - have);
        if (got <= 0) return;
        have += static_cast<size_t>(got);
        if (have == bytes) {
          have = 0;
          ++finished;
        }
      };
      table["tcp"][{bytes, outstanding}] = Measure(bytes, outstanding, ask, poll, finished);
    }
  }
  stop = true;
  serve.join();
  close(asker);
  close(server);
  close(listener);
}

int Main(int argc, char** argv) {
  if (argc > 1) cell_seconds = std::atof(argv[1]);
  std::map<std::string, std::map<std::pair<size_t, size_t>, Cell>> table;
  RunTcp(table);
  const auto checked = [](Result<std::unique_ptr<Transport>> made) -> std::unique_ptr<Transport> {
    if (made) return std::move(*made);
    std::fprintf(stderr, "%s\n", made.error().message.c_str());
    return nullptr;
  };
  const MakeFn memfd = [&](bool server, FrameSink& sink) {
    MemfdOptions options;
    if (server) options.socket_path = "/tmp/tiercel-bench-" + std::to_string(getpid());
    return checked(MakeMemfdTransport(options, sink, Clock::Monotonic()));
  };
  RunTransport("memfd in place", memfd, true, table);
  RunTransport("memfd copy", memfd, false, table);
  RunTransport("ucx tcp/lo",
               [&](bool server, FrameSink& sink) {
                 UcxOptions options;
                 options.devices = "lo";
                 options.server = server;
                 return checked(MakeUcxTransport(options, sink, Clock::Monotonic()));
               },
               false, table);
  LoopbackNetwork network;
  RunTransport("loopback",
               [&](bool, FrameSink& sink) { return network.MakeTransport(sink, Clock::Monotonic()); }, false, table);
  std::printf("%-16s %10s %4s %10s %8s %8s\n", "transport", "bytes", "out", "p50 us", "GB/s", "of tcp");
  for (const auto& [name, cells] : table) {
    for (const auto& [key, cell] : cells) {
      std::printf("%-16s %10zu %4zu %10.2f %8.2f %8.2f\n", name.c_str(), key.first, key.second, cell.p50_us,
                  cell.gb_s, cell.gb_s / table["tcp"][key].gb_s);
    }
  }
  return 0;
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) { return tiercel::Main(argc, argv); }
