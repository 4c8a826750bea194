#include "tests/bench/peers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <string_view>

#include "base/units.h"
#include "tests/bench/raw_lanes.h"

namespace tiercel::bench {
namespace {

// Reads lines and blocks from a spinning socket: lines through a small buffer, blocks straight to
// where they go.
class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}

  Result<std::string_view> Line() {
    for (;;) {
      const std::string_view have(buffer_ + begin_, end_ - begin_);
      const size_t at = have.find("\r\n");
      if (at != std::string_view::npos) {
        begin_ += at + 2;
        return have.substr(0, at);
      }
      if (begin_ > 0) {
        std::memmove(buffer_, buffer_ + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
      }
      if (end_ == sizeof(buffer_)) return Fail(Code::kDataLoss, "memcached: a line without an end");
      const ssize_t n = recv(fd_, buffer_ + end_, sizeof(buffer_) - end_, 0);
      if (n > 0) {
        end_ += static_cast<size_t>(n);
      } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        return Fail(Code::kUnavailable, "memcached: connection lost");
      }
    }
  }

  Status Block(MutableByteSpan to) {
    const size_t have = std::min(to.size(), end_ - begin_);
    std::memcpy(to.data(), buffer_ + begin_, have);
    begin_ += have;
    return ReceiveAll(fd_, to.subspan(have));
  }

 private:
  int fd_;
  char buffer_[2048];
  size_t begin_ = 0, end_ = 0;
};

Status SendText(int fd, const std::string& text) { return SendAll(fd, AsBytes(text)); }

// Command line and, where it is small, the block in one segment, as clients do.
Status Set(int fd, const std::string& key, ByteSpan block) {
  const std::string head = fmt::format("set {} 0 0 {}\r\n", key, block.size());
  iovec parts[3] = {{const_cast<char*>(head.data()), head.size()},
                    {const_cast<std::byte*>(block.data()), block.size()},
                    {const_cast<char*>("\r\n"), 2}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 3;
  while (message.msg_iovlen > 0) {
    const ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EAGAIN || errno == EINTR) continue;
      return Fail(Code::kUnavailable, fmt::format("memcached: send: {}", std::strerror(errno)));
    }
    auto left = static_cast<size_t>(sent);
    while (message.msg_iovlen > 0 && left >= message.msg_iov[0].iov_len) {
      left -= message.msg_iov[0].iov_len;
      ++message.msg_iov;
      --message.msg_iovlen;
    }
    if (message.msg_iovlen > 0) {
      message.msg_iov[0].iov_base = static_cast<char*>(message.msg_iov[0].iov_base) + left;
      message.msg_iov[0].iov_len -= left;
    }
  }
  return OkStatus();
}

Status ExpectStored(LineReader& reader, const std::string& key) {
  auto line = reader.Line();
  if (!line) return tl::unexpected(line.error());
  if (*line != "STORED") return Fail(Code::kInternal, fmt::format("memcached: set {}: {}", key, *line));
  return OkStatus();
}

class MemcachedGet final : public Lane {
 public:
  MemcachedGet(int fd, pid_t server, const Memory& source, const Memory& to, uint64_t block, uint32_t batch)
      : fd_(fd), server_(server), reader_(fd), source_(source, block), to_(to, block), block_(block), batch_(batch) {}

  Status Prepare() override {
    for (uint64_t i = 0; i < source_.blocks(); ++i) {
      TIERCEL_TRY(Set(fd_, Key(i), {source_.At(i), block_}));
      TIERCEL_TRY(ExpectStored(reader_, Key(i)));
    }
    return OkStatus();
  }
  Result<Slice> Run(Nanos budget) override {
    return RunRequests(budget, block_ * batch_, [this]() -> Status {
      std::string ask = "get";
      for (uint32_t i = 0; i < batch_; ++i) ask += " " + Key((at_ + i) % source_.blocks());
      ask += "\r\n";
      TIERCEL_TRY(SendText(fd_, ask));
      for (uint32_t i = 0; i < batch_; ++i) {
        auto line = reader_.Line();
        if (!line) return tl::unexpected(line.error());
        if (line->substr(0, 6) != "VALUE ") return Fail(Code::kNotFound, "memcached: a block is gone");
        TIERCEL_TRY(reader_.Block({to_.Next(), block_}));
        TIERCEL_TRY(reader_.Line());
      }
      TIERCEL_TRY(reader_.Line());
      at_ += batch_;
      return OkStatus();
    });
  }

  pid_t server() const override { return server_; }

 private:
  std::string Key(uint64_t i) const { return fmt::format("get-{}-{:020}", block_, i); }
  int fd_;
  pid_t server_;
  LineReader reader_;
  Walk source_, to_;
  uint64_t block_;
  uint32_t batch_;
  uint64_t at_ = 0;
};

class MemcachedPut final : public Lane {
 public:
  MemcachedPut(int fd, pid_t server, const Memory& source, uint64_t block, uint32_t batch)
      : fd_(fd), server_(server), reader_(fd), source_(source, block), block_(block), batch_(batch) {}
  // Every name once, so that its memory has been touched before the time is taken.
  Status Prepare() override {
    for (uint64_t i = 0; i < source_.blocks(); ++i) {
      TIERCEL_TRY(Set(fd_, Key(i), {source_.At(i), block_}));
      TIERCEL_TRY(ExpectStored(reader_, Key(i)));
    }
    return OkStatus();
  }
  Result<Slice> Run(Nanos budget) override {
    return RunRequests(budget, block_ * batch_, [this]() -> Status {
      for (uint32_t i = 0; i < batch_; ++i) {
        TIERCEL_TRY(Set(fd_, Key(at_ + i), {source_.Next(), block_}));
      }
      for (uint32_t i = 0; i < batch_; ++i) TIERCEL_TRY(ExpectStored(reader_, Key(at_ + i)));
      at_ += batch_;
      return OkStatus();
    });
  }

  pid_t server() const override { return server_; }

 private:
  // As many names as the source has blocks: old ones are written over, and memory stays bounded.
  std::string Key(uint64_t i) const { return fmt::format("put-{}-{:020}", block_, i % source_.blocks()); }
  int fd_;
  pid_t server_;
  LineReader reader_;
  Walk source_;
  uint64_t block_;
  uint32_t batch_;
  uint64_t at_ = 0;
};

class MooncakeLane final : public Lane {
 public:
  MooncakeLane(Mooncake& mooncake, std::string op, uint64_t block, uint32_t batch)
      : mooncake_(mooncake), op_(std::move(op)), block_(block), batch_(batch) {}
  Status Prepare() override {
    TIERCEL_TRY(mooncake_.Ask(fmt::format("prepare {} {}", op_, block_)));
    return OkStatus();
  }
  Result<Slice> Run(Nanos budget) override {
    TIERCEL_ASSIGN(const std::string line, mooncake_.Ask(fmt::format("run {} {} {} {}", op_, block_, batch_, budget)));
    std::istringstream words(line);
    Slice slice;
    uint64_t cpu = 0;
    words >> slice.requests >> slice.wall >> cpu;
    if (!words || slice.wall <= 0) return Fail(Code::kInternal, "mooncake: no answer in " + line);
    slice.bytes = slice.requests * block_ * batch_;
    // Its client sleeps while it waits: a share under one is its own doing, not the machine's.
    slice.cpu_share = 1.0;
    for (uint32_t ns = 0; words >> ns;) slice.latencies_ns.push_back(ns);
    return slice;
  }

 private:
  Mooncake& mooncake_;
  std::string op_;
  uint64_t block_;
  uint32_t batch_;
};

}  // namespace

Result<std::unique_ptr<Memcached>> Memcached::Start(int core, uint64_t memory_bytes) {
  const int port = FreePort();
  std::unique_ptr<Memcached> peer(new Memcached());
  Child::Options options;
  options.argv = {"memcached", "-l", "127.0.0.1", "-p", fmt::format("{}", port), "-U", "0", "-t", "1",
                  "-m", fmt::format("{}", memory_bytes / kMiB), "-I", "32m"};
  if (getuid() == 0) options.argv.insert(options.argv.end(), {"-u", "root"});
  options.core = core;
  TIERCEL_ASSIGN(peer->child_, Child::Start(options));
  TIERCEL_ASSIGN(peer->fd_, ConnectLoopback(port, 5 * kSecond));
  return peer;
}
Memcached::~Memcached() {
  if (fd_ >= 0) close(fd_);
}
std::unique_ptr<Lane> Memcached::Get(const Memory& source, const Memory& to, uint64_t block, uint32_t batch) {
  return std::make_unique<MemcachedGet>(fd_, child_->pid(), source, to, block, batch);
}
std::unique_ptr<Lane> Memcached::Put(const Memory& source, uint64_t block, uint32_t batch) {
  return std::make_unique<MemcachedPut>(fd_, child_->pid(), source, block, batch);
}

Result<std::unique_ptr<Mooncake>> Mooncake::Start(const std::string& python, const std::string& script,
                                                  int client_core, int server_core, const std::string& log_dir) {
  int there[2], back[2];
  if (pipe2(there, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0) return Fail(Code::kInternal, "pipe");
  std::unique_ptr<Mooncake> peer(new Mooncake());
  Child::Options options;
  options.argv = {python, script, "client", fmt::format("{}", client_core), fmt::format("{}", server_core), log_dir};
  options.stdin_fd = there[0];
  options.stdout_fd = back[1];
  TIERCEL_ASSIGN(peer->child_, Child::Start(options));
  close(there[0]);
  close(back[1]);
  peer->to_ = fdopen(there[1], "w");
  peer->from_ = fdopen(back[0], "r");
  TIERCEL_TRY(peer->Ask("hello"));
  return peer;
}
Mooncake::~Mooncake() {
  if (to_ != nullptr) std::fclose(to_);  // End of input: it stops its processes and exits.
  for (const Nanos until = Now() + 10 * kSecond; child_ != nullptr && child_->Alive() && Now() < until;) usleep(10000);
  if (from_ != nullptr) std::fclose(from_);
}
Result<std::string> Mooncake::Ask(const std::string& line) {
  fmt::print(to_, "{}\n", line);
  std::fflush(to_);
  char* text = nullptr;
  size_t size = 0;
  std::string answer;
  // Its libraries write to stdout too; our lines start with a word of ours.
  for (;;) {
    const ssize_t n = getline(&text, &size, from_);
    if (n < 0) {
      std::free(text);
      return Fail(Code::kUnavailable, "mooncake: the client ended at: " + line);
    }
    const std::string_view got(text, static_cast<size_t>(n));
    if (got.substr(0, 7) == "ANSWER ") {
      answer = std::string(got.substr(7));
      break;
    }
    if (got.substr(0, 6) == "ERROR ") {
      answer = std::string(got.substr(6));
      std::free(text);
      return Fail(Code::kInternal, "mooncake: " + answer);
    }
  }
  std::free(text);
  return answer;
}
std::unique_ptr<Lane> Mooncake::Get(uint64_t block, uint32_t batch) {
  return std::make_unique<MooncakeLane>(*this, "get", block, batch);
}
std::unique_ptr<Lane> Mooncake::Put(uint64_t block, uint32_t batch) {
  return std::make_unique<MooncakeLane>(*this, "put", block, batch);
}

}  // namespace tiercel::bench
