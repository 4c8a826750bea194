// A preloaded library that damages what a process receives: about once in FLIP_EVERY large reads
// from a TCP socket it flips one random bit of the bytes read. Tests only.
//
//   FLIP_EVERY=N   on average one flip in N reads of at least FLIP_MIN bytes; unset: none
//   FLIP_MIN=BYTES default 4096
//   FLIP_LIMIT=N   no more flips than that in one process; default: no limit
//   FLIP_SEED=N    default 1
//   FLIP_LOG=FILE  one byte is appended for each flip, so the file's size counts them
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace {

uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

uint64_t Random() {
  static std::atomic<uint64_t> state{Setting("FLIP_SEED", 1) * 0x9e3779b97f4a7c15ull};
  uint64_t z = state.fetch_add(0x9e3779b97f4a7c15ull) + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

bool IsTcp(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t size = sizeof domain;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0) return false;
  size = sizeof type;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) return false;
  return (domain == AF_INET || domain == AF_INET6) && type == SOCK_STREAM;
}

void MayFlip(int fd, const iovec* parts, size_t count, ssize_t got) {
  static const uint64_t every = Setting("FLIP_EVERY", 0);
  static const uint64_t least = Setting("FLIP_MIN", 4096);
  if (every == 0 || got <= 0 || static_cast<uint64_t>(got) < least || !IsTcp(fd)) return;
  if (Random() % every != 0) return;
  static const uint64_t limit = Setting("FLIP_LIMIT", UINT64_MAX);
  static std::atomic<uint64_t> flips{0};
  if (flips.fetch_add(1) >= limit) return;
  uint64_t at = Random() % static_cast<uint64_t>(got);
  for (size_t i = 0; i < count; ++i) {
    if (at < parts[i].iov_len) {
      auto* byte = static_cast<uint8_t*>(parts[i].iov_base) + at;
      *byte = static_cast<uint8_t>(*byte ^ (1u << (Random() % 8)));
      break;
    }
    at -= parts[i].iov_len;
  }
  static const int log = [] {
    const char* path = std::getenv("FLIP_LOG");
    return path == nullptr ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  }();
  if (log >= 0 && write(log, "f", 1) != 1) std::abort();
}

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t recv(int fd, void* out, size_t size, int flags) {
  static auto* const next = Next<ssize_t(int, void*, size_t, int)>("recv");
  const ssize_t got = next(fd, out, size, flags);
  const iovec part{out, size};
  if ((flags & MSG_PEEK) == 0) MayFlip(fd, &part, 1, got);
  return got;
}

ssize_t recvfrom(int fd, void* out, size_t size, int flags, sockaddr* from, socklen_t* from_size) {
  static auto* const next =
      Next<ssize_t(int, void*, size_t, int, sockaddr*, socklen_t*)>("recvfrom");
  const ssize_t got = next(fd, out, size, flags, from, from_size);
  const iovec part{out, size};
  if ((flags & MSG_PEEK) == 0) MayFlip(fd, &part, 1, got);
  return got;
}

ssize_t recvmsg(int fd, msghdr* message, int flags) {
  static auto* const next = Next<ssize_t(int, msghdr*, int)>("recvmsg");
  const ssize_t got = next(fd, message, flags);
  if ((flags & (MSG_PEEK | MSG_ERRQUEUE)) == 0)
    MayFlip(fd, message->msg_iov, message->msg_iovlen, got);
  return got;
}

ssize_t read(int fd, void* out, size_t size) {
  static auto* const next = Next<ssize_t(int, void*, size_t)>("read");
  const ssize_t got = next(fd, out, size);
  const iovec part{out, size};
  MayFlip(fd, &part, 1, got);
  return got;
}

ssize_t readv(int fd, const iovec* parts, int count) {
  static auto* const next = Next<ssize_t(int, const iovec*, int)>("readv");
  const ssize_t got = next(fd, parts, count);
  MayFlip(fd, parts, static_cast<size_t>(count), got);
  return got;
}

}  // extern "C"
