// The bench kit: lanes measured in turns, and how what they did is told.
//
//   round 1: lane A, lane B, lane C;  round 2: lane A, lane B, lane C; ...
//
// A lane is one way of moving blocks of one size. Lanes of one size take turns in every round, so that
// a slow phase of the machine falls on all of them, and ratios are taken inside a round: the median of
// the rounds' ratios is what a goal is judged by.
//
// Invariants: a slice that got under 90 % of its core is kept only when no round did better, and told.
// Threads: one.
#ifndef TIERCEL_TESTS_BENCH_BENCH_KIT_H_
#define TIERCEL_TESTS_BENCH_BENCH_KIT_H_

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"

namespace tiercel::bench {

inline Nanos Now() { return Clock::Monotonic().Now(); }

// What one lane did in one round.
struct Slice {
  uint64_t requests = 0;
  uint64_t bytes = 0;  // Payload moved.
  Nanos wall = 0;
  double cpu_share = 1.0;             // Of the time that asker and server wanted their cores.
  std::vector<uint32_t> latencies_ns;  // One a request.
  double gb_s() const { return wall > 0 ? static_cast<double>(bytes) / static_cast<double>(wall) : 0; }
};

class Lane {
 public:
  virtual ~Lane() = default;
  // Makes blocks of this size ready; called once before the first round.
  virtual Status Prepare() = 0;
  // Requests, one after another, for about budget.
  virtual Result<Slice> Run(Nanos budget) = 0;
  // The process that answers; -1: none.
  virtual pid_t server() const { return -1; }
};

// Run, with the share of the cores that it got.
Result<Slice> RunShared(Lane& lane, Nanos budget);

// Runs `request` until budget is over and takes the time of each.
template <class Request>
Result<Slice> RunRequests(Nanos budget, uint64_t bytes_each, Request&& request);

struct Summary {
  double median = 0, low = 0, high = 0;  // GB/s of the rounds.
  double p50_us = 0, p99_us = 0;
  double cpu_share = 0;
  uint64_t requests = 0;
};

// All lanes of all sizes of one program.
class Report {
 public:
  void Add(const std::string& lane, uint64_t size, Slice slice);
  std::optional<Summary> Of(const std::string& lane, uint64_t size) const;
  // Median over rounds of lane's throughput by other's.
  std::optional<double> Ratio(const std::string& lane, const std::string& other, uint64_t size) const;

  // One table: a row a lane, a column a size: GB/s, its range, and p50/p99.
  void PrintTable(std::FILE* out, const std::string& title, const std::vector<std::string>& lanes,
                  const std::vector<uint64_t>& sizes) const;
  void PrintRatios(std::FILE* out, const std::string& title,
                   const std::vector<std::pair<std::string, std::string>>& pairs,
                   const std::vector<uint64_t>& sizes) const;
  void WriteJson(std::FILE* out) const;

 private:
  std::map<std::pair<std::string, uint64_t>, std::vector<Slice>> slices_;
};

// GOAL lines, printed and kept for the JSON.
class Goals {
 public:
  explicit Goals(std::FILE* out) : out_(out) {}
  void AtLeast(const std::string& name, std::optional<double> value, const std::string& unit, double target);
  void AtMost(const std::string& name, std::optional<double> value, const std::string& unit, double target);
  void WriteJson(std::FILE* out) const;
  int missed() const { return missed_; }

 private:
  void Tell(const std::string& name, std::optional<double> value, const std::string& unit,
            const std::string& target, bool met);
  struct Goal {
    std::string name, unit, target;
    std::optional<double> value;
    bool met;
  };
  std::vector<Goal> goals_;
  std::FILE* out_;
  int missed_ = 0;
};

// "64KiB"
std::string SizeName(uint64_t bytes);

// ---- the machine -------------------------------------------------------------------------------

// Own session and a raised autogroup, where that is allowed: nice counts only inside a session.
// Returns what was reached, for people.
std::string RaisePriority();
void PinTo(int core);
// How long runnable threads of a process (0: this thread alone) have waited for a core so far.
Nanos RunDelay(pid_t pid);
// CPU time that a process has used so far, user and system.
Nanos ProcessCpu(pid_t pid);

// Anonymous memory, touched, filled with incompressible bytes from seed.
class Memory {
 public:
  Memory(uint64_t bytes, uint64_t seed);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() const { return data_; }
  uint64_t size() const { return bytes_; }

 private:
  std::byte* data_;
  uint64_t bytes_;
};

// Walks a memory in blocks of one size, 4 KiB aligned, from the start again at the end.
class Walk {
 public:
  Walk(const Memory& memory, uint64_t block) : memory_(&memory), block_(block) {}
  uint64_t blocks() const { return memory_->size() / stride(); }
  std::byte* At(uint64_t i) const { return memory_->data() + (i % blocks()) * stride(); }
  std::byte* Next() { return At(at_++); }

 private:
  uint64_t stride() const { return (block_ + 4095) / 4096 * 4096; }
  const Memory* memory_;
  uint64_t block_;
  uint64_t at_ = 0;
};

// A process of ours, on a core of its own, killed with the bench.
class Child {
 public:
  struct Options {
    std::vector<std::string> argv;
    int core = -1;
    std::string output_file;  // Where stdout and stderr go; empty: ours.
    int stdin_fd = -1, stdout_fd = -1;
    std::vector<std::string> environment;  // "NAME=value", added to ours.
  };
  static Result<std::unique_ptr<Child>> Start(const Options& options);
  // In a fork of this process; never returns there.
  static Result<std::unique_ptr<Child>> Fork(int core, void (*body)(void*), void* argument);
  ~Child();
  pid_t pid() const { return pid_; }
  bool Alive();
  // SIGTERM, then SIGKILL after timeout; the exit status, -1 when it had to be killed.
  int Stop(Nanos timeout);

 private:
  explicit Child(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

// A TCP port on 127.0.0.1 that was free a moment ago.
int FreePort();

template <class Request>
Result<Slice> RunRequests(Nanos budget, uint64_t bytes_each, Request&& request) {
  Slice slice;
  slice.latencies_ns.reserve(65536);
  const Nanos begin = Now();
  Nanos now = begin;
  do {
    Status done = request();
    if (!done) return tl::unexpected(done.error());
    const Nanos after = Now();
    slice.latencies_ns.push_back(static_cast<uint32_t>(after - now < 4'000'000'000 ? after - now : 4'000'000'000));
    now = after;
    ++slice.requests;
    slice.bytes += bytes_each;
  } while (now - begin < budget);
  slice.wall = now - begin;
  return slice;
}

}  // namespace tiercel::bench

#endif  // TIERCEL_TESTS_BENCH_BENCH_KIT_H_
