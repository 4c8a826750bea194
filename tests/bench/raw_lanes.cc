#include "tests/bench/raw_lanes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace tiercel::bench {
namespace {

struct Order {
  uint32_t put = 0;
  uint32_t count = 0;
  uint64_t bytes = 0;  // Of each block.
};

struct ServeArguments {
  int listener;
  uint64_t pool_bytes;
};

void MakeFast(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

// Spins while there is work, and sleeps after 2 ms without: the core is lent to the other lanes.
bool AwaitOrder(int fd, Order* order) {
  const Nanos begin = Now();
  for (uint32_t i = 0;; ++i) {
    const ssize_t got = recv(fd, order, sizeof(*order), MSG_PEEK);
    if (got == static_cast<ssize_t>(sizeof(*order))) return recv(fd, order, sizeof(*order), 0) > 0;
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (i % 256 == 255 && Now() - begin > 2 * kMillisecond) {
      pollfd waiting{fd, POLLIN, 0};
      poll(&waiting, 1, -1);
    }
  }
}

void Serve(void* argument) {
  const auto* arguments = static_cast<const ServeArguments*>(argument);
  const Memory pool(arguments->pool_bytes, 1);
  const int fd = accept(arguments->listener, nullptr, nullptr);
  MakeFast(fd);
  Order order;
  uint64_t at = 0;
  while (AwaitOrder(fd, &order)) {
    for (uint32_t i = 0; i < order.count; ++i) {
      if (at + order.bytes > pool.size()) at = 0;
      std::byte* block = pool.data() + at;
      at += (order.bytes + 4095) / 4096 * 4096;
      const Status moved =
          order.put != 0 ? ReceiveAll(fd, {block, order.bytes}) : SendAll(fd, {block, order.bytes});
      if (!moved) return;
    }
    if (order.put != 0 && !SendAll(fd, AsBytes("stored!\n"))) return;
  }
}

class TcpLane final : public Lane {
 public:
  TcpLane(int fd, pid_t server, bool put, const Memory& memory, uint64_t block, uint32_t batch)
      : fd_(fd), server_(server), put_(put), walk_(memory, block), block_(block), batch_(batch) {}
  Status Prepare() override { return OkStatus(); }
  Result<Slice> Run(Nanos budget) override {
    return RunRequests(budget, block_ * batch_, [this]() -> Status {
      const Order order{put_ ? 1u : 0u, batch_, block_};
      TIERCEL_TRY(SendAll(fd_, {reinterpret_cast<const std::byte*>(&order), sizeof(order)}));
      for (uint32_t i = 0; i < batch_; ++i) {
        if (put_) {
          TIERCEL_TRY(SendAll(fd_, {walk_.Next(), block_}));
        } else {
          TIERCEL_TRY(ReceiveAll(fd_, {walk_.Next(), block_}));
        }
      }
      if (!put_) return OkStatus();
      std::byte answer[8];
      return ReceiveAll(fd_, answer);
    });
  }

  pid_t server() const override { return server_; }

 private:
  int fd_;
  pid_t server_;
  bool put_;
  Walk walk_;
  uint64_t block_;
  uint32_t batch_;
};

class MemcpyLane final : public Lane {
 public:
  MemcpyLane(const Memory& from, const Memory& to, uint64_t block) : from_(from, block), to_(to, block), block_(block) {}
  Status Prepare() override { return OkStatus(); }
  Result<Slice> Run(Nanos budget) override {
    return RunRequests(budget, block_, [this]() -> Status {
      std::byte* to = to_.Next();
      std::memcpy(to, from_.Next(), block_);
      asm volatile("" : : "r"(to) : "memory");
      return OkStatus();
    });
  }

 private:
  Walk from_, to_;
  uint64_t block_;
};

}  // namespace

Status SendAll(int fd, ByteSpan bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
      return Fail(Code::kUnavailable, fmt::format("send: {}", std::strerror(errno)));
    }
  }
  return OkStatus();
}

Status ReceiveAll(int fd, MutableByteSpan bytes) {
  size_t received = 0;
  while (received < bytes.size()) {
    const ssize_t n = recv(fd, bytes.data() + received, bytes.size() - received, 0);
    if (n > 0) {
      received += static_cast<size_t>(n);
    } else if (n == 0) {
      return Fail(Code::kUnavailable, "recv: the peer closed the connection");
    } else if (errno != EAGAIN && errno != EINTR) {
      return Fail(Code::kUnavailable, fmt::format("recv: {}", std::strerror(errno)));
    }
  }
  return OkStatus();
}

Result<int> ConnectLoopback(int port, Nanos timeout) {
  for (const Nanos until = Now() + timeout;;) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      MakeFast(fd);
      return fd;
    }
    const int error = errno;
    close(fd);
    if (Now() > until) {
      return Fail(Code::kUnavailable, fmt::format("connect to 127.0.0.1:{}: {}", port, std::strerror(error)));
    }
    usleep(10000);
  }
}

Result<std::unique_ptr<RawTcp>> RawTcp::Start(int core, uint64_t pool_bytes) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return Fail(Code::kUnavailable, fmt::format("listen on 127.0.0.1: {}", std::strerror(errno)));
  }
  std::unique_ptr<RawTcp> raw(new RawTcp());
  ServeArguments arguments{listener, pool_bytes};
  TIERCEL_ASSIGN(raw->child_, Child::Fork(core, Serve, &arguments));
  close(listener);
  TIERCEL_ASSIGN(raw->fd_, ConnectLoopback(ntohs(address.sin_port), 30 * kSecond));
  return raw;
}

RawTcp::~RawTcp() {
  if (fd_ >= 0) close(fd_);
}

std::unique_ptr<Lane> RawTcp::Get(const Memory& memory, uint64_t block, uint32_t batch) {
  return std::make_unique<TcpLane>(fd_, child_->pid(), false, memory, block, batch);
}
std::unique_ptr<Lane> RawTcp::Put(const Memory& memory, uint64_t block, uint32_t batch) {
  return std::make_unique<TcpLane>(fd_, child_->pid(), true, memory, block, batch);
}
std::unique_ptr<Lane> ColdMemcpy(const Memory& from, const Memory& to, uint64_t block) {
  return std::make_unique<MemcpyLane>(from, to, block);
}

}  // namespace tiercel::bench
