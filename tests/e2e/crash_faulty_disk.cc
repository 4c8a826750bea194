// Preloaded into a node: a disk that does not do what it says. Only regular files whose path has
// FAULTY_FOLDER in it are touched.
//
//   FAULTY_TORN_AT=N    the N-th write puts a part of its bytes on the disk, and the process ends
//   there, as in
//                       a loss of power
//   FAULTY_LOSE=N       one write in N is not done at all, and said to be
//   FAULTY_SEED=N       which part, and which write
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Plan {
  const char* folder = std::getenv("FAULTY_FOLDER");
  long torn_at = Number("FAULTY_TORN_AT");
  long lose = Number("FAULTY_LOSE");
  std::atomic<long> writes{0};
  std::atomic<uint64_t> dice{static_cast<uint64_t>(Number("FAULTY_SEED")) * 2 + 1};

  static long Number(const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? 0 : std::atol(text);
  }
  static Plan& Get() {
    static Plan plan;
    return plan;
  }
  uint64_t Draw() {
    uint64_t z = dice.fetch_add(0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 31);
  }
  bool Ours(int fd) const {
    if (folder == nullptr) return false;
    struct stat file {};
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return false;
    char link[64];
    char path[4096];
    std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0) return false;
    path[n] = '\0';
    // RocksDB's own log is for people.
    return std::strstr(path, folder) != nullptr && std::strstr(path, "/LOG") == nullptr;
  }
};

template <class Write>
ssize_t Faulty(int fd, size_t n, Write&& write) {
  Plan& plan = Plan::Get();
  if (!plan.Ours(fd)) return write(n);
  const long mine = plan.writes.fetch_add(1) + 1;
  if (plan.torn_at > 0 && mine == plan.torn_at) {
    // In sectors where the file is written in sectors.
    const size_t unit = n % 512 == 0 ? 512 : 1;
    const size_t part = plan.Draw() % (n / unit + 1) * unit;
    if (part > 0) (void)write(part);
    _exit(137);
  }
  if (plan.lose > 0 && plan.Draw() % static_cast<uint64_t>(plan.lose) == 0)
    return static_cast<ssize_t>(n);
  return write(n);
}

template <class Fn>
Fn Next(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* bytes, size_t n) {
  static const auto next = Next<ssize_t (*)(int, const void*, size_t)>("write");
  return Faulty(fd, n, [&](size_t part) { return next(fd, bytes, part); });
}
ssize_t pwrite(int fd, const void* bytes, size_t n, off_t at) {
  static const auto next = Next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  return Faulty(fd, n, [&](size_t part) { return next(fd, bytes, part, at); });
}
ssize_t pwrite64(int fd, const void* bytes, size_t n, off64_t at) {
  static const auto next = Next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  return Faulty(fd, n, [&](size_t part) { return next(fd, bytes, part, at); });
}

// A segment's writes come as io_submit, one at a time, by syscall(2).
long syscall(long number, ...) {
  static const auto next = Next<long (*)(long, ...)>("syscall");
  long a[6];
  va_list arguments;
  va_start(arguments, number);
  for (long& argument : a) argument = va_arg(arguments, long);
  va_end(arguments);
  const auto as_asked = [&] { return next(number, a[0], a[1], a[2], a[3], a[4], a[5]); };
  if (number != SYS_io_submit || a[1] != 1) return as_asked();
  iocb* call = *reinterpret_cast<iocb**>(a[2]);
  if (call->aio_lio_opcode != IOCB_CMD_PWRITE) return as_asked();
  static const auto write_at = Next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  static const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
  const auto fd = static_cast<int>(call->aio_fildes);
  bool done = false;
  long submitted = 0;
  (void)Faulty(fd, call->aio_nbytes, [&](size_t part) -> ssize_t {
    done = true;
    if (part == call->aio_nbytes) {
      submitted = as_asked();
      return submitted;
    }
    return write_at(fd, reinterpret_cast<const void*>(call->aio_buf), part, call->aio_offset);
  });
  if (done) return submitted;
  call->aio_fildes = static_cast<uint32_t>(nowhere);  // Lost, and said to be done.
  return as_asked();
}

}  // extern "C"
