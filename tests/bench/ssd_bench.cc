// The SSD tier beside fio and beside a slab engine of plain files (ssd_slab.h), in turns on the
// same disk.
//
//   ssd_bench [--quick] [--dir FOLDER] [--capacity BYTES] [--only SIZE] [--rounds N] [--json FILE]
//
// For blocks of 64 KiB, 256 KiB, 1 and 4 MiB: the store is filled and churned six times over, then
// read in seven short rounds, each in the other order than the one before. One configuration, the
// node's defaults, serves every row; both engines run under the same store, with the same threads,
// queues and verification, and move their bytes over the same huge pages, so that what is compared
// is the engine. fio, over the ordinary pages that it takes, reads a file of the same size in the
// same folder, with O_DIRECT, one request at a time. All that is written is removed at the end.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/io_memory.h"
#include "base/random.h"
#include "base/units.h"
#include "tests/bench/bench_kit.h"
#include "tests/bench/ssd_slab.h"
#include "tiering/ssd_rocksdb.h"
#include "tiering/ssd_segment_store.h"

namespace tiercel::bench {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string dir = "/var/tmp";
  std::string json;
  uint64_t capacity = 1 * kGiB;
  std::vector<uint64_t> sizes = {64 * kKiB, 256 * kKiB, 1 * kMiB, 4 * kMiB};
  // Many short ones: a disk of a virtual machine halves and doubles its speed in seconds.
  int rounds = 7;
  Nanos read_time = 800 * kMillisecond;
  Nanos paced_time = 1500 * kMillisecond;
  uint64_t reopen_blocks = 100'000;
};

constexpr uint64_t kPacedBytesPerSecond = 300'000'000;
constexpr int kReadThreads = 4;
constexpr uint64_t kSegment = 64 * kMiB;

Status VerifyBlock(ByteSpan record) {
  if (LoadLe<uint32_t>(record.data()) == Crc32c(record.subspan(4))) return OkStatus();
  return Fail(Code::kDataLoss, "checksum mismatch");
}

// Blocks that do not compress, each with its checksum in front; they are written again and again
// under new keys.
class Blocks {
 public:
  Blocks(uint64_t bytes, uint64_t block) : memory_(bytes, 7), walk_(memory_, block), block_(block) {
    for (uint64_t i = 0; i < walk_.blocks(); ++i) {
      std::byte* at = walk_.At(i);
      StoreLe<uint32_t>(at, Crc32c({at + 4, block_ - 4}));
    }
  }
  ByteSpan At(uint64_t i) const { return {walk_.At(i), block_}; }

 private:
  Memory memory_;
  Walk walk_;
  uint64_t block_;
};

// write_bytes of this process, as the kernel counts what goes to a disk.
uint64_t WrittenByUs() {
  std::ifstream in("/proc/self/io");
  std::string word;
  uint64_t value = 0;
  while (in >> word >> value) {
    if (word == "write_bytes:") return value;
  }
  return 0;
}

// Each file once, by however many names: a segment has two while the database takes it in.
uint64_t OnDisk(const std::string& folder) {
  std::map<ino_t, uint64_t> bytes_of;
  std::error_code ec;
  for (auto it = fs::recursive_directory_iterator(folder, ec);
       it != fs::recursive_directory_iterator(); it.increment(ec)) {
    struct stat file {};
    if (lstat(it->path().c_str(), &file) == 0 && S_ISREG(file.st_mode))
      bytes_of[file.st_ino] = static_cast<uint64_t>(file.st_blocks) * 512;
    if (ec) break;
  }
  uint64_t bytes = 0;
  for (const auto& [file, its] : bytes_of) bytes += its;
  return bytes;
}

struct Amplification {
  uint64_t user_bytes = 0, disk_writes = 0;
  double space_peak = 0, space_end = 0;
};

// One engine under the store, and what is known of the blocks in it.
class Engine {
 public:
  static std::unique_ptr<Engine> Rocks(const std::string& folder, uint64_t capacity) {
    auto engine = std::make_unique<Engine>();
    engine->folder_ = folder;
    SsdDisk::Options disk;
    disk.path = folder;
    auto opened = SsdDisk::Open(disk);
    if (!opened) return Told(opened.error());
    engine->disk_ = std::move(*opened);
    auto store = engine->disk_->OpenShard(0, StoreOptions(capacity), Clock::Monotonic());
    if (!store) return Told(store.error());
    engine->store_ = std::move(*store);
    return Opened(std::move(engine));
  }
  static std::unique_ptr<Engine> Slab(const std::string& folder, uint64_t capacity) {
    auto engine = std::make_unique<Engine>();
    engine->folder_ = folder;
    const SsdDisk::Options same;  // As many threads.
    engine->store_ = MakeSegmentStore(std::make_unique<SlabEngine>(folder), StoreOptions(capacity),
                                      {same.writers_per_shard, same.readers_per_shard},
                                      Clock::Monotonic(), folder);
    return Opened(std::move(engine));
  }
  ~Engine() {
    if (store_ != nullptr) store_->Shutdown(10 * kSecond);
    store_.reset();
    disk_.reset();
  }

  // Appends and waits until all of it is durable.
  Result<Slice> Write(const Blocks& blocks, uint64_t block, uint64_t bytes) {
    const Nanos begin = Now();
    for (uint64_t sent = 0; sent < bytes; sent += block) {
      for (;;) {
        if (AppendOne(blocks, block)) break;
        if (failed_ > 0) return Fail(Code::kUnavailable, "a write failed: " + store_->why());
        Wait(5 * kMillisecond);
      }
      if (sent / kSegment != (sent + block) / kSegment) {
        Poll();
        Measure();
      }
    }
    std::optional<Status> flushed;
    store_->Flush([&](Status status) { flushed = std::move(status); });
    while (!flushed) Wait(5 * kMillisecond);
    if (!*flushed) return tl::unexpected<Error>(flushed->error());
    Slice slice;
    slice.requests = bytes / block;
    slice.bytes = bytes;
    slice.wall = Now() - begin;
    amplification.user_bytes += bytes;
    Measure();
    return slice;
  }

  // `depth` reads under way for about `budget`; with `pace`, writes go on beside them.
  Result<Slice> Read(uint64_t block, int depth, Nanos budget, const Blocks* write_too = nullptr) {
    std::vector<IoMemory> buffers;
    std::vector<size_t> idle;
    for (int i = 0; i < depth; ++i) {
      buffers.emplace_back(block);
      idle.push_back(static_cast<size_t>(i));
    }
    Slice slice;
    Status failure = OkStatus();
    const Nanos begin = Now();
    uint64_t wrote = 0;
    int under_way = 0;
    for (;;) {
      const Nanos now = Now();
      const bool over = now - begin >= budget || !failure;
      if (over && under_way == 0) break;
      if (write_too != nullptr && !over) {
        const auto due =
            static_cast<uint64_t>(static_cast<double>(now - begin) * kPacedBytesPerSecond / 1e9);
        while (wrote + block <= due && AppendOne(*write_too, block)) wrote += block;
      }
      while (!over && !idle.empty()) {
        const size_t at = idle.back();
        idle.pop_back();
        ++under_way;
        const SsdEntry entry = live_[random_.Below(live_.size())];
        const Nanos asked = Now();
        const Status started =
            store_->Read(entry, {buffers[at].data(), block}, [&, at, asked](Status status) {
              --under_way;
              idle.push_back(at);
              if (status) {
                slice.latencies_ns.push_back(
                    static_cast<uint32_t>(std::min<Nanos>(Now() - asked, 4'000'000'000)));
                ++slice.requests;
                slice.bytes += block;
              } else if (status.error().code != Code::kNotFound) {
                failure = std::move(status);
              }
            });
        if (started) continue;
        --under_way;
        idle.push_back(at);
        if (started.error().code != Code::kNotFound) failure = started;
        break;
      }
      // The owner looks all the time, as fio's own thread does; a node's owner does so for
      // loop.spin.
      if (store_->Poll() == 0) std::this_thread::yield();
    }
    slice.wall = Now() - begin;
    if (!failure) return tl::unexpected<Error>(failure.error());
    if (failed_ > 0) return Fail(Code::kUnavailable, "a write failed: " + store_->why());
    return slice;
  }

  size_t recovered() const { return recovered_; }
  void Settle() {
    std::optional<Status> flushed;
    store_->Flush([&](Status status) { flushed = std::move(status); });
    while (!flushed) Wait(5 * kMillisecond);
    for (const Nanos until = Now() + 300 * kMillisecond; Now() < until;) Wait(20 * kMillisecond);
    const auto stats = store_->stats();
    amplification.space_end = static_cast<double>(OnDisk(folder_)) /
                              static_cast<double>(std::max<uint64_t>(stats.used_bytes, 1));
  }

  Amplification amplification;

 private:
  static SsdStore::Options StoreOptions(uint64_t capacity) {
    SsdStore::Options options;
    options.capacity_bytes = capacity;
    options.segment_bytes = kSegment;
    options.verify_record = VerifyBlock;
    return options;
  }
  static std::unique_ptr<Engine> Told(const Error& error) {
    fmt::print(stderr, "ssd_bench: {}\n", error.message);
    return nullptr;
  }
  static std::unique_ptr<Engine> Opened(std::unique_ptr<Engine> engine) {
    auto entries = engine->store_->Recover();
    if (!entries) return Told(entries.error());
    engine->recovered_ = entries->size();
    for (const SsdEntry& entry : *entries) engine->Learn(entry);
    engine->store_->SetDropListener([raw = engine.get()](const std::vector<SsdEntry>& dropped) {
      for (const SsdEntry& entry : dropped) raw->Forget(entry.key);
    });
    return engine;
  }

  bool AppendOne(const Blocks& blocks, uint64_t block) {
    SsdEntry entry;
    const uint64_t n = ++number_;
    SplitMix64 random(n);
    for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(entry.key.bytes.data() + i, random.Next());
    entry.generation = n;
    entry.record_bytes = static_cast<uint32_t>(block);
    entry.raw_bytes = block;
    const Status taken = store_->Append(entry, blocks.At(n), [this](Result<SsdEntry> stored) {
      if (stored) return Learn(*stored);
      ++failed_;
    });
    if (!taken) --number_;
    return taken.has_value();
  }
  void Learn(const SsdEntry& entry) {
    at_[entry.key] = live_.size();
    live_.push_back(entry);
    number_ = std::max(number_, entry.generation);
  }
  void Forget(const BlockKey& key) {
    const auto found = at_.find(key);
    if (found == at_.end()) return;
    const size_t at = found->second;
    at_.erase(found);
    if (at + 1 != live_.size()) {
      live_[at] = live_.back();
      at_[live_[at].key] = at;
    }
    live_.pop_back();
  }
  void Poll() {
    while (store_->Poll() > 0) {
    }
  }
  void Wait(Nanos most) {
    if (store_->Poll() > 0 || !store_->Arm()) return;
    pollfd fd{store_->event_fd(), POLLIN, 0};
    poll(&fd, 1, static_cast<int>(most / kMillisecond));
  }
  // Peak of what the folder takes on the disk by what lives in it, once it is half full.
  void Measure() {
    const auto stats = store_->stats();
    if (stats.used_bytes + stats.queued_bytes < StoreOptions(0).segment_bytes * 8) return;
    const double live = static_cast<double>(stats.used_bytes + stats.queued_bytes);
    amplification.space_peak =
        std::max(amplification.space_peak, static_cast<double>(OnDisk(folder_)) / live);
  }

  std::string folder_;
  std::unique_ptr<SsdDisk> disk_;
  std::unique_ptr<SsdStore> store_;
  std::vector<SsdEntry> live_;
  std::map<BlockKey, size_t> at_;
  uint64_t number_ = 0;
  uint64_t failed_ = 0;
  size_t recovered_ = 0;
  SplitMix64 random_{11};
};

// Random reads of a file by fio, O_DIRECT, one at a time.
class Fio {
 public:
  Fio(std::string folder, uint64_t bytes)
      : file_(folder + "/fio"), json_(folder + "/fio.json"), bytes_(bytes) {}
  Status Prepare(const Blocks& blocks, uint64_t block) {
    const int fd = open(file_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) return Fail(Code::kUnavailable, "cannot make " + file_);
    for (uint64_t at = 0; at < bytes_; at += block) {
      const ByteSpan bytes = blocks.At(at / block);
      if (write(fd, bytes.data(), block) != static_cast<ssize_t>(block)) {
        close(fd);
        return Fail(Code::kUnavailable, "cannot write " + file_);
      }
    }
    close(fd);
    return OkStatus();
  }
  Result<Slice> Read(uint64_t block, Nanos budget) {
    Child::Options options;
    options.argv = {"fio",
                    "--name=read",
                    "--filename=" + file_,
                    fmt::format("--size={}", bytes_),
                    "--readonly",
                    "--direct=1",
                    "--rw=randread",
                    "--norandommap",
                    fmt::format("--bs={}", block),
                    "--ioengine=psync",
                    "--iodepth=1",
                    "--time_based",
                    fmt::format("--runtime={}ms", budget / kMillisecond),
                    "--invalidate=0",
                    "--randrepeat=0",
                    "--thread",
                    "--output-format=json",
                    "--output=" + json_};
    options.output_file = json_ + ".log";
    TIERCEL_ASSIGN(auto child, Child::Start(options));
    while (child->Alive()) usleep(20'000);
    std::ifstream in(json_);
    const auto report = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
    if (report.is_discarded() || !report.contains("jobs"))
      return Fail(Code::kUnavailable, "fio gave no report: is it installed?");
    const auto& read = report["jobs"][0]["read"];
    Slice slice;
    slice.bytes = read["io_bytes"].get<uint64_t>();
    slice.wall = read["runtime"].get<int64_t>() * kMillisecond;
    slice.requests = read["total_ios"].get<uint64_t>();
    const auto latency = [&](const char* percentile) {
      return static_cast<uint32_t>(read["clat_ns"]["percentile"][percentile].get<double>());
    };
    // Bench kit's table asks for latencies: the two that are known, as often as they weigh.
    slice.latencies_ns.assign(98, latency("50.000000"));
    slice.latencies_ns.insert(slice.latencies_ns.end(), 2, latency("99.000000"));
    return slice;
  }
  ~Fio() {
    for (const std::string& file : {file_, json_, json_ + ".log"}) unlink(file.c_str());
  }

 private:
  const std::string file_, json_;
  const uint64_t bytes_;
};

double Percentile(std::vector<uint32_t> values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)] / 1000.0;
}
double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}
std::string Id(uint64_t bytes) {
  return bytes >= kMiB ? fmt::format("{}mib", bytes / kMiB) : fmt::format("{}kib", bytes / kKiB);
}

class Bench {
 public:
  explicit Bench(const Arguments& arguments) : arguments_(arguments) {
    folder_ = fmt::format("{}/tiercel-bench-ssd-{}", arguments_.dir, getpid());
    fs::create_directories(folder_);
  }
  ~Bench() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  int Run() {
    for (const uint64_t size : arguments_.sizes) {
      const Status done = Size(size);
      if (!done) return Say(done);
    }
    const Status reopened = Reopen();
    if (!reopened) return Say(reopened);
    Tell();
    return 0;
  }

 private:
  static int Say(const Status& status) {
    fmt::print(stderr, "ssd_bench: {}\n", status.error().message);
    return 1;
  }

  // A lane's turn, with the CPU time it took.
  template <class Turn>
  Status Take(const std::string& lane, uint64_t size, Turn&& turn) {
    const Nanos cpu = ProcessCpu(getpid());
    Result<Slice> slice = turn();
    if (!slice) return Fail(slice.error().code, lane + ": " + slice.error().message);
    cpu_[{lane, size}].push_back(static_cast<double>(ProcessCpu(getpid()) - cpu) / 1e9 /
                                 (static_cast<double>(std::max<uint64_t>(slice->bytes, 1)) / 1e9));
    report_.Add(lane, size, std::move(*slice));
    return OkStatus();
  }

  Status Size(uint64_t size) {
    const Nanos began = Now();
    const uint64_t capacity = arguments_.capacity / kSegment * kSegment;
    const Blocks blocks(256 * kMiB, size);
    auto rocks = Engine::Rocks(folder_ + "/rocks", capacity);
    auto slab = Engine::Slab(folder_ + "/slab", capacity);
    if (rocks == nullptr || slab == nullptr)
      return Fail(Code::kUnavailable, "an engine did not open");
    Fio fio(folder_, capacity);
    TIERCEL_TRY(fio.Prepare(blocks, size));
    // Fill, then six times over.
    for (int pass = 0; pass < 7; ++pass) {
      const uint64_t before = WrittenByUs();
      TIERCEL_TRY(
          Take("rocksdb write", size, [&] { return rocks->Write(blocks, size, capacity); }));
      rocks->amplification.disk_writes += WrittenByUs() - before;
      const uint64_t between = WrittenByUs();
      TIERCEL_TRY(Take("slab write", size, [&] { return slab->Write(blocks, size, capacity); }));
      slab->amplification.disk_writes += WrittenByUs() - between;
    }
    const uint64_t before = WrittenByUs();
    rocks->Settle();  // What it writes when it is let alone counts, too.
    rocks->amplification.disk_writes += WrittenByUs() - before;
    slab->Settle();
    struct Turn {
      const char* lane;
      std::function<Result<Slice>()> take;
    };
    const Nanos time = arguments_.read_time;
    std::vector<Turn> turns = {
        {"rocksdb read x4", [&] { return rocks->Read(size, kReadThreads, time); }},
        {"slab read x4", [&] { return slab->Read(size, kReadThreads, time); }},
        {"slab read x1", [&] { return slab->Read(size, 1, time); }},
        {"rocksdb read x1", [&] { return rocks->Read(size, 1, time); }},
        {"fio read x1", [&] { return fio.Read(size, time); }},
    };
    for (int round = 0; round < arguments_.rounds; ++round) {
      // Nobody is always the first.
      std::reverse(turns.begin(), turns.end());
      for (const Turn& turn : turns) TIERCEL_TRY(Take(turn.lane, size, turn.take));
      std::array<double, 2> tails{};
      for (const bool first : {true, false}) {
        const bool ours = first == (round % 2 == 0);
        Engine& engine = ours ? *rocks : *slab;
        const std::string lane =
            ours ? "rocksdb read, 300 MB/s writes" : "slab read, 300 MB/s writes";
        TIERCEL_TRY(Take(lane, size, [&]() -> Result<Slice> {
          TIERCEL_ASSIGN(Slice slice, engine.Read(size, 1, arguments_.paced_time, &blocks));
          tails[ours ? 0 : 1] = Percentile(slice.latencies_ns, 0.99);
          return slice;
        }));
        engine.Settle();
      }
      if (tails[1] > 0) paced_[size].push_back(tails[0] / tails[1]);
    }
    amplification_["rocksdb"][size] = rocks->amplification;
    amplification_["slab"][size] = slab->amplification;
    rocks.reset();
    slab.reset();
    for (const char* name : {"/rocks", "/slab"}) fs::remove_all(folder_ + name);
    fmt::print("{}: {:.0f} s\n", SizeName(size), static_cast<double>(Now() - began) / 1e9);
    std::fflush(stdout);
    return OkStatus();
  }

  Status Reopen() {
    constexpr uint64_t kBlock = 4 * kKiB;
    const std::string folder = folder_ + "/reopen";
    const Blocks blocks(64 * kMiB, kBlock);
    {
      auto engine = Engine::Rocks(folder, 4 * kGiB);
      if (engine == nullptr) return Fail(Code::kUnavailable, "did not open");
      const auto written = engine->Write(blocks, kBlock, arguments_.reopen_blocks * kBlock);
      if (!written) return tl::unexpected<Error>(written.error());
    }
    for (int i = 0; i < arguments_.rounds; ++i) {
      const Nanos began = Now();
      auto engine = Engine::Rocks(folder, 4 * kGiB);
      reopen_s_.push_back(static_cast<double>(Now() - began) / 1e9);
      if (engine == nullptr || engine->recovered() != arguments_.reopen_blocks) {
        return Fail(Code::kDataLoss, fmt::format("{} blocks of {} after a reopen",
                                                 engine == nullptr ? 0 : engine->recovered(),
                                                 arguments_.reopen_blocks));
      }
    }
    fs::remove_all(folder);
    return OkStatus();
  }

  void Tell() {
    const std::vector<std::string> lanes = {"rocksdb write",
                                            "slab write",
                                            "fio read x1",
                                            "rocksdb read x1",
                                            "slab read x1",
                                            "rocksdb read x4",
                                            "slab read x4",
                                            "rocksdb read, 300 MB/s writes",
                                            "slab read, 300 MB/s writes"};
    report_.PrintTable(stdout, "SSD tier", lanes, arguments_.sizes);
    fmt::print(
        "\nCPU seconds a GB, median of rounds (the asking thread looks all the time while it "
        "reads)\n{:<32}",
        "");
    for (const uint64_t size : arguments_.sizes) fmt::print("| {:>8} ", SizeName(size));
    fmt::print("\n");
    for (const std::string& lane : lanes) {
      if (lane.starts_with("fio")) continue;  // Another process.
      fmt::print("{:<32}", lane);
      for (const uint64_t size : arguments_.sizes)
        fmt::print("| {:>8.3f} ", Median(cpu_[{lane, size}]));
      fmt::print("\n");
    }
    for (const auto& [name, sizes] : amplification_) {
      for (const auto& [size, a] : sizes) {
        fmt::print(
            "{:<8} {:<7} writes {:.4f} of user bytes; space {:.3f} of live bytes at most, {:.3f} "
            "at the end\n",
            name, SizeName(size),
            static_cast<double>(a.disk_writes) /
                static_cast<double>(std::max<uint64_t>(a.user_bytes, 1)),
            a.space_peak, a.space_end);
      }
    }
    report_.PrintRatios(stdout, "Ratios",
                        {{"rocksdb read x1", "fio read x1"},
                         {"slab read x1", "fio read x1"},
                         {"rocksdb read x4", "slab read x4"},
                         {"rocksdb write", "slab write"}},
                        arguments_.sizes);
    fmt::print("\n");
    for (const uint64_t size : arguments_.sizes) {
      const std::string id = Id(size);
      goals_.AtLeast("ssd_read_of_fio_" + id, report_.Ratio("rocksdb read x1", "fio read x1", size),
                     "ratio", 0.9);
      goals_.AtLeast("ssd_read_4_threads_of_slab_" + id,
                     report_.Ratio("rocksdb read x4", "slab read x4", size), "ratio", 0.85);
      goals_.AtLeast("ssd_write_of_slab_" + id, report_.Ratio("rocksdb write", "slab write", size),
                     "ratio", size > kMiB ? 0.3 : 0.5);
      const Amplification& a = amplification_["rocksdb"][size];
      goals_.AtMost("ssd_write_amplification_" + id,
                    static_cast<double>(a.disk_writes) /
                        static_cast<double>(std::max<uint64_t>(a.user_bytes, 1)),
                    "ratio", 1.02);
      goals_.AtMost("ssd_space_amplification_" + id, a.space_peak, "ratio", 1.10);
      goals_.AtMost("ssd_paced_read_p99_of_slab_" + id,
                    paced_[size].empty() ? std::nullopt : std::optional(Median(paced_[size])),
                    "ratio", 1.6);
      const auto cpu = [&](const std::string& lane) { return Median(cpu_[{lane, size}]); };
      fmt::print(
          "ssd_cpu_{}: {:.3f} s a GB written (slab {:.3f}), {:.3f} s a GB read with 4 threads "
          "(slab {:.3f})\n",
          id, cpu("rocksdb write"), cpu("slab write"), cpu("rocksdb read x4"), cpu("slab read x4"));
    }
    goals_.AtMost("ssd_reopen_100000_blocks",
                  reopen_s_.empty() ? std::nullopt : std::optional(Median(reopen_s_)), "s", 2);
    if (arguments_.json.empty()) return;
    if (std::FILE* file = std::fopen(arguments_.json.c_str(), "w")) {
      report_.WriteJson(file);
      goals_.WriteJson(file);
      std::fclose(file);
    }
  }

  const Arguments arguments_;
  std::string folder_;
  Report report_;
  Goals goals_{stdout};
  std::map<std::pair<std::string, uint64_t>, std::vector<double>> cpu_;
  std::map<std::string, std::map<uint64_t, Amplification>> amplification_;
  std::map<uint64_t, std::vector<double>> paced_;
  std::vector<double> reopen_s_;
};

Result<Arguments> Parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--quick") {
      arguments.capacity = 768 * kMiB;
      arguments.rounds = 1;
      arguments.read_time = 500 * kMillisecond;
      arguments.paced_time = 1000 * kMillisecond;
      continue;
    }
    if (i + 1 >= argc)
      return Fail(Code::kInvalidArgument, "see the first lines of tests/bench/ssd_bench.cc");
    const std::string value = argv[++i];
    if (word == "--dir") {
      arguments.dir = value;
    } else if (word == "--json") {
      arguments.json = value;
    } else if (word == "--rounds") {
      arguments.rounds = std::max(1, std::atoi(value.c_str()));
    } else if (word == "--capacity") {
      TIERCEL_ASSIGN(arguments.capacity, ParseBytes(value));
      if (arguments.capacity < 12 * kSegment)
        return Fail(Code::kInvalidArgument,
                    "a capacity under 12 segments of 64 MiB measures nothing");
    } else if (word == "--only") {
      TIERCEL_ASSIGN(const uint64_t size, ParseBytes(value));
      arguments.sizes = {size};
    } else {
      return Fail(Code::kInvalidArgument, "unknown option " + word);
    }
  }
  return arguments;
}

}  // namespace
}  // namespace tiercel::bench

int main(int argc, char** argv) {
  using namespace tiercel::bench;
  const auto arguments = Parse(argc, argv);
  if (!arguments) {
    fmt::print(stderr, "ssd_bench: {}\n", arguments.error().message);
    return 2;
  }
  return Bench(*arguments).Run();
}
