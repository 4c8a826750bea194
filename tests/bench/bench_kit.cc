#include "tests/bench/bench_kit.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <system_error>

#include "base/check.h"
#include "base/random.h"
#include "base/units.h"

namespace tiercel::bench {
namespace {

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double Percentile(std::vector<uint32_t>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return static_cast<double>(values[static_cast<size_t>(at)]) / 1000.0;
}

// The rounds worth counting: those that had their core, or all where none had.
std::vector<const Slice*> Good(const std::vector<Slice>& slices) {
  std::vector<const Slice*> good;
  for (const Slice& slice : slices) {
    if (slice.cpu_share >= 0.9) good.push_back(&slice);
  }
  if (good.empty()) {
    for (const Slice& slice : slices) good.push_back(&slice);
  }
  return good;
}

void BecomeChild(int core) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (core >= 0) PinTo(core);
}

}  // namespace

void Report::Add(const std::string& lane, uint64_t size, Slice slice) {
  slices_[{lane, size}].push_back(std::move(slice));
}

std::optional<Summary> Report::Of(const std::string& lane, uint64_t size) const {
  const auto found = slices_.find({lane, size});
  if (found == slices_.end() || found->second.empty()) return std::nullopt;
  Summary summary;
  std::vector<double> speeds, shares;
  std::vector<uint32_t> latencies;
  for (const Slice* slice : Good(found->second)) {
    speeds.push_back(slice->gb_s());
    shares.push_back(slice->cpu_share);
    summary.requests += slice->requests;
    latencies.insert(latencies.end(), slice->latencies_ns.begin(), slice->latencies_ns.end());
  }
  summary.median = Median(speeds);
  summary.low = *std::min_element(speeds.begin(), speeds.end());
  summary.high = *std::max_element(speeds.begin(), speeds.end());
  summary.cpu_share = Median(shares);
  summary.p50_us = Percentile(latencies, 0.50);
  summary.p99_us = Percentile(latencies, 0.99);
  return summary;
}

std::optional<double> Report::Ratio(const std::string& lane, const std::string& other, uint64_t size) const {
  const auto ours = slices_.find({lane, size});
  const auto theirs = slices_.find({other, size});
  if (ours == slices_.end() || theirs == slices_.end()) return std::nullopt;
  std::vector<double> good, all;
  for (size_t i = 0; i < std::min(ours->second.size(), theirs->second.size()); ++i) {
    const Slice& a = ours->second[i];
    const Slice& b = theirs->second[i];
    if (b.gb_s() <= 0) continue;
    all.push_back(a.gb_s() / b.gb_s());
    if (a.cpu_share >= 0.9 && b.cpu_share >= 0.9) good.push_back(all.back());
  }
  if (all.empty()) return std::nullopt;
  return Median(good.empty() ? all : good);
}

std::string SizeName(uint64_t bytes) {
  return bytes >= kMiB ? fmt::format("{}MiB", bytes / kMiB) : fmt::format("{}KiB", bytes / kKiB);
}

void Report::PrintTable(std::FILE* out, const std::string& title, const std::vector<std::string>& lanes,
                        const std::vector<uint64_t>& sizes) const {
  fmt::print(out, "\n{}\nGB/s median [low-high of rounds], us p50/p99 a request; ! marks under 90 % of a core\n",
             title);
  fmt::print(out, "{:<28}", "");
  for (const uint64_t size : sizes) fmt::print(out, "| {:<32}", SizeName(size));
  fmt::print(out, "\n");
  for (const std::string& lane : lanes) {
    bool any = false;
    std::string row = fmt::format("{:<28}", lane);
    for (const uint64_t size : sizes) {
      const auto cell = Of(lane, size);
      any = any || cell.has_value();
      row += fmt::format("| {:<32}", cell ? fmt::format("{:.2f} [{:.1f}-{:.1f}] {:.1f}/{:.1f}{}", cell->median, cell->low,
                                                       cell->high, cell->p50_us, cell->p99_us,
                                                       cell->cpu_share < 0.9 ? " !" : "")
                                         : "");
    }
    if (any) fmt::print(out, "{}\n", row);
  }
  std::fflush(out);
}

void Report::PrintRatios(std::FILE* out, const std::string& title,
                         const std::vector<std::pair<std::string, std::string>>& pairs,
                         const std::vector<uint64_t>& sizes) const {
  fmt::print(out, "\n{} (median of the rounds' ratios)\n{:<56}", title, "");
  for (const uint64_t size : sizes) fmt::print(out, "| {:>7} ", SizeName(size));
  fmt::print(out, "\n");
  for (const auto& [lane, other] : pairs) {
    bool any = false;
    std::string row = fmt::format("{:<56}", lane + " / " + other);
    for (const uint64_t size : sizes) {
      const auto ratio = Ratio(lane, other, size);
      any = any || ratio.has_value();
      row += fmt::format("| {:>7} ", ratio ? fmt::format("{:.2f}", *ratio) : "");
    }
    if (any) fmt::print(out, "{}\n", row);
  }
  std::fflush(out);
}

void Report::WriteJson(std::FILE* out) const {
  for (const auto& [key, unused] : slices_) {
    const auto cell = Of(key.first, key.second);
    fmt::print(out,
               "{{\"lane\":\"{}\",\"size\":{},\"gb_s\":{:.4f},\"gb_s_low\":{:.4f},\"gb_s_high\":{:.4f},"
               "\"p50_us\":{:.3f},\"p99_us\":{:.3f},\"requests\":{},\"cpu_share\":{:.3f}}}\n",
               key.first, key.second, cell->median, cell->low, cell->high, cell->p50_us, cell->p99_us,
               cell->requests, cell->cpu_share);
  }
}

void Goals::AtLeast(const std::string& name, std::optional<double> value, const std::string& unit, double target) {
  Tell(name, value, unit, fmt::format(">={:g}", target), value && *value >= target);
}
void Goals::AtMost(const std::string& name, std::optional<double> value, const std::string& unit, double target) {
  Tell(name, value, unit, fmt::format("<={:g}", target), value && *value <= target);
}
void Goals::Tell(const std::string& name, std::optional<double> value, const std::string& unit,
                 const std::string& target, bool met) {
  if (!met) ++missed_;
  goals_.push_back(Goal{name, unit, target, value, met});
  fmt::print(out_, "GOAL {} {} {} {} {}\n", name, value ? fmt::format("{:.3f}", *value) : "unmeasured", unit, target,
             met ? "MET" : "MISSED");
  std::fflush(out_);
}
void Goals::WriteJson(std::FILE* out) const {
  for (const Goal& goal : goals_) {
    fmt::print(out, "{{\"goal\":\"{}\",\"value\":{},\"unit\":\"{}\",\"target\":\"{}\",\"met\":{}}}\n", goal.name,
               goal.value ? fmt::format("{:.4f}", *goal.value) : "null", goal.unit, goal.target, goal.met);
  }
}

std::string RaisePriority() {
  if (getpgrp() == getpid() && getsid(0) != getpid()) {
    // A group's leader cannot start a session: its child goes on in its place.
    const pid_t child = fork();
    if (child > 0) {
      int status = 0;
      while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
      _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
  }
  const bool session = getsid(0) == getpid() || setsid() >= 0;
  bool raised = false;
  if (std::FILE* file = std::fopen("/proc/self/autogroup", "w")) {
    raised = std::fputs("-20", file) >= 0;
    raised = std::fclose(file) == 0 && raised;
  }
  return fmt::format("{}, {}", session ? "own session" : "no session of our own",
                     raised ? "autogroup raised" : "autogroup not raised");
}

void PinTo(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

Nanos RunDelay(pid_t pid) {
  const auto delay_of = [](const std::string& path) -> Nanos {
    long long ran = 0, waited = 0;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
      if (std::fscanf(file, "%lld %lld", &ran, &waited) != 2) waited = 0;
      std::fclose(file);
    }
    return waited;
  };
  if (pid == 0) return delay_of("/proc/thread-self/schedstat");
  Nanos sum = 0;
  std::error_code gone;
  for (const auto& task : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), gone)) {
    sum += delay_of(task.path().string() + "/schedstat");
  }
  return sum;
}

Result<Slice> RunShared(Lane& lane, Nanos budget) {
  const pid_t server = lane.server();
  const auto delay = [server] { return RunDelay(0) + (server > 0 ? RunDelay(server) : 0); };
  const Nanos begin = Now();
  const Nanos before = delay();
  auto slice = lane.Run(budget);
  if (slice) {
    slice->cpu_share =
        std::max(0.0, 1.0 - static_cast<double>(delay() - before) / static_cast<double>(Now() - begin));
  }
  return slice;
}

Nanos ProcessCpu(pid_t pid) {
  clockid_t clock{};
  timespec time{};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return static_cast<Nanos>(time.tv_sec) * kSecond + time.tv_nsec;
}

Memory::Memory(uint64_t bytes, uint64_t seed) : bytes_(bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TIERCEL_CHECK(at != MAP_FAILED);
  data_ = static_cast<std::byte*>(at);
  // A fork would make every page's next write a fault.
  madvise(at, bytes, MADV_DONTFORK);
  SplitMix64 random(seed);
  for (uint64_t i = 0; i + 8 <= bytes; i += 8) StoreLe(data_ + i, random.Next());
}
Memory::~Memory() { munmap(data_, bytes_); }

Result<std::unique_ptr<Child>> Child::Start(const Options& options) {
  std::vector<char*> argv;
  for (const std::string& word : options.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid < 0) return Fail(Code::kInternal, fmt::format("fork: {}", std::strerror(errno)));
  if (pid == 0) {
    BecomeChild(options.core);
    if (!options.output_file.empty()) {
      const int file = open(options.output_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      if (file >= 0) {
        dup2(file, 1);
        dup2(file, 2);
      }
    }
    if (options.stdin_fd >= 0) dup2(options.stdin_fd, 0);
    if (options.stdout_fd >= 0) dup2(options.stdout_fd, 1);
    for (const std::string& pair : options.environment) putenv(const_cast<char*>(pair.c_str()));
    execvp(argv[0], argv.data());
    std::fprintf(stderr, "%s: %s\n", argv[0], std::strerror(errno));
    _exit(127);
  }
  return std::unique_ptr<Child>(new Child(pid));
}

Result<std::unique_ptr<Child>> Child::Fork(int core, void (*body)(void*), void* argument) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid < 0) return Fail(Code::kInternal, fmt::format("fork: {}", std::strerror(errno)));
  if (pid == 0) {
    BecomeChild(core);
    body(argument);
    _exit(0);
  }
  return std::unique_ptr<Child>(new Child(pid));
}

Child::~Child() { Stop(5 * kSecond); }

bool Child::Alive() { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }

int Child::Stop(Nanos timeout) {
  if (pid_ <= 0) return -1;
  kill(pid_, SIGTERM);
  int status = 0;
  for (const Nanos until = Now() + timeout; Now() < until;) {
    const pid_t done = waitpid(pid_, &status, WNOHANG);
    if (done != 0) {
      pid_ = -1;
      return done > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    usleep(2000);
  }
  kill(pid_, SIGKILL);
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return -1;
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  TIERCEL_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  TIERCEL_CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  close(fd);
  return ntohs(address.sin_port);
}

}  // namespace tiercel::bench
