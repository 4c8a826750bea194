// The data plane through the whole service, beside what the machine itself gives and, with --peers,
// beside others that do a part of the same job. All lanes of one size take turns in every round of one
// run, and what is judged are ratios inside rounds.
//
//   dataplane_bench --server build/release/bin/tiercel-server [--peers --mooncake-python P] [--quick]
//                   [--sizes 64KiB,1MiB] [--only SUBSTRING,...] [--rounds N] [--slice 200ms] [--json FILE]
//
// The client and all that measures is pinned to core 0, whatever answers to core 1. Memories walked are
// larger than caches commonly are (512 MiB each side); blocks are random bytes.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "tests/bench/bench_kit.h"
#include "tests/bench/peers.h"
#include "tests/bench/raw_lanes.h"
#include "tests/bench/service_lanes.h"

namespace tiercel::bench {
namespace {

constexpr int kClientCore = 0;
constexpr int kServerCore = 1;

struct Arguments {
  std::string server, json, python, script = "tests/bench/peers_mooncake.py";
  std::vector<uint64_t> sizes = {64 * kKiB, 256 * kKiB, 1 * kMiB, 4 * kMiB, 16 * kMiB};
  std::vector<std::string> only, wrapper;
  int rounds = 7;
  Nanos slice = 200 * kMillisecond;
  uint64_t memory = 512 * kMiB;
  bool peers = false;
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> words;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(separator, at), text.size());
    if (end > at) words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

Result<Arguments> Parse(int argc, char** argv) {
  Arguments out;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> Result<std::string> {
      if (i + 1 >= argc) return Fail(Code::kInvalidArgument, word + " needs a value");
      return std::string(argv[++i]);
    };
    if (word == "--quick") {
      out.rounds = 3;
      out.slice = 60 * kMillisecond;
      out.memory = 256 * kMiB;
      continue;
    }
    if (word == "--peers") {
      out.peers = true;
      continue;
    }
    TIERCEL_ASSIGN(const std::string text, value());
    if (word == "--server") {
      out.server = text;
    } else if (word == "--json") {
      out.json = text;
    } else if (word == "--mooncake-python") {
      out.python = text;
    } else if (word == "--mooncake-script") {
      out.script = text;
    } else if (word == "--rounds") {
      out.rounds = std::max(1, std::atoi(text.c_str()));
    } else if (word == "--slice") {
      TIERCEL_ASSIGN(out.slice, ParseDuration(text));
    } else if (word == "--only") {
      out.only = Split(text, ',');
    } else if (word == "--wrapper") {
      out.wrapper = Split(text, ' ');
    } else if (word == "--sizes") {
      out.sizes.clear();
      for (const std::string& size : Split(text, ',')) {
        TIERCEL_ASSIGN(const uint64_t bytes, ParseBytes(size));
        if (bytes < 64 * kKiB || bytes > 16 * kMiB || bytes % (64 * kKiB) != 0) {
          return Fail(Code::kInvalidArgument, "--sizes: " + size + " is not a multiple of 64KiB up to 16MiB");
        }
        out.sizes.push_back(bytes);
      }
    } else {
      return Fail(Code::kInvalidArgument, "unknown option " + word);
    }
  }
  return out;
}

struct Entry {
  std::string name;
  std::function<std::unique_ptr<Lane>(uint64_t block)> make;
  bool ours = true;
  uint64_t only_size = 0;  // 0: every size.
};

// As many as a batch has: 32, or what 128 MiB hold.
uint32_t BatchOf(uint64_t block) { return static_cast<uint32_t>(std::min<uint64_t>(32, 128 * kMiB / block)); }

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments), source_(arguments.memory, 2), to_(arguments.memory + 64 * kMiB, 3), goals_(stdout) {}

  int Run() {
    if (const Status ready = MakeEntries(); !ready) {
      fmt::print(stderr, "{}\n", ready.error().ToString());
      return 1;
    }
    for (const uint64_t size : arguments_.sizes) Measure(size);
    Tell();
    return failed_ ? 1 : 0;
  }

 private:
  Status MakeEntries() {
    TIERCEL_ASSIGN(tcp_, RawTcp::Start(kServerCore, arguments_.memory));
    const auto add = [this](std::string name, auto make, bool ours, uint64_t only_size = 0) {
      for (const std::string& word : arguments_.only) {
        if (name.find(word) != std::string::npos) return entries_.push_back({name, make, ours, only_size});
      }
      if (arguments_.only.empty()) entries_.push_back({std::move(name), make, ours, only_size});
    };
    using Kind = TransportKind;
    using Slot = GetSlot::Kind;
    using Source = PutSource::Kind;
    add("tcp get x1", [this](uint64_t block) { return tcp_->Get(to_, block, 1); }, false);
    add("tcp put x1", [this](uint64_t block) { return tcp_->Put(source_, block, 1); }, false);
    if (!arguments_.peers) {
      add("tcp get x32", [this](uint64_t block) { return tcp_->Get(to_, block, BatchOf(block)); }, false);
      add("tcp put x32", [this](uint64_t block) { return tcp_->Put(source_, block, BatchOf(block)); }, false);
      add("memcpy cold", [this](uint64_t block) { return ColdMemcpy(source_, to_, block); }, false);
    }
    std::filesystem::create_directories(folder_);
    if (!arguments_.server.empty()) {
      const auto get = [this](Kind kind, Slot slot, bool batch) {
        return [=, this](uint64_t block) {
          return service_->Get(kind, slot, source_, to_, block, batch ? BatchOf(block) : 1);
        };
      };
      const auto put = [this](Kind kind, Source what, bool batch) {
        return [=, this](uint64_t block) {
          return service_->Put(kind, what, source_, block, batch ? BatchOf(block) : 1);
        };
      };
      add("ucx get x1", get(Kind::kUcx, Slot::kRecord, false), true);
      add("ucx put x1", put(Kind::kUcx, Source::kRecord, false), true);
      add("ucx get decoded x1", get(Kind::kUcx, Slot::kBlock, false), true);
      add("ucx put encoded x1", put(Kind::kUcx, Source::kBlock, false), true);
      if (!arguments_.peers) {
        add("ucx get x32", get(Kind::kUcx, Slot::kRecord, true), true);
        add("ucx put x32", put(Kind::kUcx, Source::kRecord, true), true);
        add("memfd get x1", get(Kind::kMemfd, Slot::kBlock, false), true);
        add("memfd put x1", put(Kind::kMemfd, Source::kBlock, false), true);
        add("memfd get x32", get(Kind::kMemfd, Slot::kBlock, true), true);
        add("memfd put x32", put(Kind::kMemfd, Source::kBlock, true), true);
        add("memfd lookup", [this](uint64_t block) { return service_->Lookup(source_, block); }, true);
        add("memfd verify", [this](uint64_t block) { return service_->Verify(source_, block); }, true);
        add("grpc get x1", get(Kind::kGrpc, Slot::kRecord, false), true);
        add("grpc put x1", put(Kind::kGrpc, Source::kRecord, false), true);
        add("grpc get x32", get(Kind::kGrpc, Slot::kRecord, true), true);
        add("grpc put x32", put(Kind::kGrpc, Source::kRecord, true), true);
        for (const auto& [kind, name] : {std::pair(Kind::kUcx, "ucx match 64"), std::pair(Kind::kMemfd, "memfd match 64")}) {
          add(name, [this, kind](uint64_t block) { return service_->Match(kind, source_, block, 64); }, true, 64 * kKiB);
        }
      }
    }
    if (arguments_.peers) {
      add("memcached get x1", [this](uint64_t block) { return memcached_->Get(source_, to_, block, 1); }, false);
      add("memcached put x1", [this](uint64_t block) { return memcached_->Put(source_, block, 1); }, false);
      if (arguments_.python.empty()) {
        fmt::print("Mooncake is left out: --mooncake-python names no interpreter that has it\n");
      } else {
        TIERCEL_ASSIGN(mooncake_, Mooncake::Start(arguments_.python, arguments_.script, kClientCore, kServerCore, folder_));
        add("mooncake get x1", [this](uint64_t block) { return mooncake_->Get(block, 1); }, false);
        add("mooncake put x1", [this](uint64_t block) { return mooncake_->Put(block, 1); }, false);
      }
    }
    return OkStatus();
  }

  // Servers of its own for each size: no size meets the holes that another left in their memory.
  Status Serve(uint64_t size) {
    service_.reset();
    if (arguments_.peers) {
      memcached_.reset();
      TIERCEL_ASSIGN(memcached_, Memcached::Start(kServerCore, uint64_t{3} << 30));
    }
    if (arguments_.server.empty()) return OkStatus();
    Service::Options options;
    options.server = arguments_.server;
    options.folder = folder_;
    options.core = kServerCore;
    options.wrapper = arguments_.wrapper;
    options.block = size;
    TIERCEL_ASSIGN(service_, Service::Start(options));
    return OkStatus();
  }

  void Measure(uint64_t size) {
    if (const Status served = Serve(size); !served) {
      fmt::print("FAILED to start the service for {}: {}\n", SizeName(size), served.error().ToString());
      failed_ = true;
      return;
    }
    struct Running {
      const Entry* entry;
      std::unique_ptr<Lane> lane;
      bool failed = false;
    };
    std::vector<Running> lanes;
    const auto fail = [this, size](Running& running, const Error& why) {
      fmt::print("FAILED {} at {}: {}\n", running.entry->name, SizeName(size), why.ToString());
      std::fflush(stdout);
      running.failed = failed_ = true;
    };
    for (const Entry& entry : entries_) {
      if (entry.only_size != 0 && entry.only_size != size) continue;
      lanes.push_back({&entry, entry.make(size), false});
      if (const Status ready = lanes.back().lane->Prepare(); !ready) fail(lanes.back(), ready.error());
    }
    if (arguments_.rounds > 20) {  // A profiler waits for this line.
      fmt::print("{}: ready\n", SizeName(size));
      std::fflush(stdout);
    }
    const Nanos server_cpu = service_ ? ProcessCpu(service_->pid()) : 0;
    const Nanos begin = Now();
    for (int round = -1; round < arguments_.rounds; ++round) {
      if (service_) {
        if (const Status touched = service_->Touch(size); !touched) {
          fmt::print("FAILED touch at {}: {}\n", SizeName(size), touched.error().ToString());
          failed_ = true;
        }
      }
      for (Running& running : lanes) {
        if (running.failed) continue;
        // The first round warms up and is not counted.
        auto slice = RunShared(*running.lane, round < 0 ? arguments_.slice / 4 : arguments_.slice);
        if (!slice) {
          fail(running, slice.error());
        } else if (round >= 0) {
          report_.Add(running.entry->name, size, std::move(*slice));
        }
      }
      if (isatty(2) != 0) fmt::print(stderr, "\r{} round {} of {}  ", SizeName(size), round + 1, arguments_.rounds);
    }
    if (isatty(2) != 0) fmt::print(stderr, "\r{:40}\r", "");
    if (service_) {
      const auto share = static_cast<double>(ProcessCpu(service_->pid()) - server_cpu) / static_cast<double>(Now() - begin);
      fmt::print("{}: {} rounds in {:.1f} s; the server used {:.2f} of a core over all lanes\n", SizeName(size),
                 arguments_.rounds, static_cast<double>(Now() - begin) * 1e-9, share);
    }
    std::fflush(stdout);
  }

  std::string Id(uint64_t size) const { return SizeName(size); }

  void Tell() {
    std::vector<std::string> names;
    for (const Entry& entry : entries_) names.push_back(entry.name);
    report_.PrintTable(stdout, arguments_.peers ? "Beside peers, loopback TCP" : "Through the whole service", names,
                       arguments_.sizes);
    const auto ratio = [this](const std::string& goal, const std::string& lane, const std::string& other, uint64_t size,
                              double target) {
      goals_.AtLeast(fmt::format("{}_{}", goal, Id(size)), report_.Ratio(lane, other, size), "ratio", target);
    };
    if (arguments_.peers) {
      report_.PrintRatios(stdout, "Ratios",
                          {{"ucx get x1", "mooncake get x1"}, {"ucx put x1", "mooncake put x1"},
                           {"ucx get x1", "memcached get x1"}, {"ucx put x1", "memcached put x1"},
                           {"ucx get decoded x1", "memcached get x1"}, {"ucx put encoded x1", "memcached put x1"},
                           {"ucx get x1", "tcp get x1"}, {"ucx put x1", "tcp put x1"}},
                          arguments_.sizes);
      if (!service_ || !arguments_.only.empty()) return;
      fmt::print("\n");
      for (const uint64_t size : arguments_.sizes) {
        const double mooncake = size <= 4 * kMiB ? 3.0 : 2.0;
        const double memcached = size <= 64 * kKiB ? 1.5 : size <= 4 * kMiB ? 1.0 : 0.75;
        ratio("get_of_mooncake", "ucx get x1", "mooncake get x1", size, mooncake);
        ratio("put_of_mooncake", "ucx put x1", "mooncake put x1", size, mooncake);
        ratio("get_of_memcached", "ucx get x1", "memcached get x1", size, memcached);
        ratio("put_of_memcached", "ucx put x1", "memcached put x1", size, memcached);
      }
    } else {
      report_.PrintRatios(stdout, "Ratios to the ceilings",
                          {{"ucx get x1", "tcp get x1"}, {"ucx get x32", "tcp get x32"}, {"ucx put x1", "tcp put x1"},
                           {"ucx put x32", "tcp put x32"}, {"ucx get decoded x1", "tcp get x1"},
                           {"ucx put encoded x1", "tcp put x1"}, {"grpc get x1", "tcp get x1"},
                           {"grpc get x32", "tcp get x32"}, {"grpc put x1", "tcp put x1"}, {"grpc put x32", "tcp put x32"},
                           {"memfd get x1", "memcpy cold"}, {"memfd get x32", "memcpy cold"},
                           {"memfd put x1", "memcpy cold"}, {"memfd put x32", "memcpy cold"},
                           {"memfd verify", "memcpy cold"}},
                          arguments_.sizes);
      if (!service_ || !arguments_.only.empty()) return;
      fmt::print("\n");
      for (const uint64_t size : arguments_.sizes) {
        const double tcp = size <= 64 * kKiB ? 0.60 : 0.70;
        ratio("ucx_get_of_tcp", "ucx get x1", "tcp get x1", size, tcp);
        ratio("ucx_put_of_tcp", "ucx put x1", "tcp put x1", size, tcp);
        ratio("ucx_get_batch_of_tcp", "ucx get x32", "tcp get x32", size, tcp);
        ratio("ucx_put_batch_of_tcp", "ucx put x32", "tcp put x32", size, tcp);
        const double copy = size <= 64 * kKiB ? 0.40 : size <= 256 * kKiB ? 0.60 : 0.70;
        ratio("memfd_get_of_memcpy", "memfd get x1", "memcpy cold", size, copy);
        ratio("memfd_put_of_memcpy", "memfd put x1", "memcpy cold", size, copy / 2);
        const auto lookup = report_.Of("memfd lookup", size);
        goals_.AtMost(fmt::format("memfd_lookup_p50_{}", Id(size)),
                      lookup ? std::optional(lookup->p50_us) : std::nullopt, "us", 3);
      }
      const auto match = report_.Of("ucx match 64", 64 * kKiB);
      goals_.AtMost("ucx_match_64_keys_p50", match ? std::optional(match->p50_us) : std::nullopt, "us", 25);
    }
    if (arguments_.json.empty()) return;
    std::FILE* file = std::fopen(arguments_.json.c_str(), "w");
    if (file == nullptr) {
      fmt::print(stderr, "cannot write {}\n", arguments_.json);
      failed_ = true;
      return;
    }
    report_.WriteJson(file);
    goals_.WriteJson(file);
    std::fclose(file);
  }

  const Arguments& arguments_;
  Memory source_, to_;
  std::string folder_ = fmt::format("/tmp/tiercel-bench-{}", getpid());
  std::unique_ptr<RawTcp> tcp_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Memcached> memcached_;
  std::unique_ptr<Mooncake> mooncake_;
  std::vector<Entry> entries_;
  Report report_;
  Goals goals_;
  bool failed_ = false;
};

int Main(int argc, char** argv) {
  const auto arguments = Parse(argc, argv);
  if (!arguments) {
    fmt::print(stderr, "dataplane_bench: {}\n", arguments.error().message);
    return 2;
  }
  const std::string priority = RaisePriority();
  if (std::thread::hardware_concurrency() < 2) {
    fmt::print(stderr, "dataplane_bench needs two cores: one that asks and one that answers\n");
    return 1;
  }
  PinTo(kClientCore);
  fmt::print("client on core {}, servers on core {}; {}; walks of {}; batches of 32, 8 at 16MiB\n", kClientCore,
             kServerCore, priority, FormatBytes(arguments->memory));
  std::fflush(stdout);
  Bench bench(*arguments);
  return bench.Run();
}

}  // namespace
}  // namespace tiercel::bench

int main(int argc, char** argv) { return tiercel::bench::Main(argc, argv); }
