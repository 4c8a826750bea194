// doctor: what of this machine and of the node would make a cache slow, unsafe or absent, and what
// to do.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/units.h"
#include "client/cli/common.h"
#include "transport/factory.h"

namespace tiercel::cli {
namespace {

enum class Verdict { kOk, kWarn, kFail };

struct Doctor {
  explicit Doctor(bool as_json) : json(as_json) {}
  void Say(Verdict verdict, const std::string& what, const std::string& found,
           const std::string& remedy = "") {
    const char* word = verdict == Verdict::kOk ? "OK" : verdict == Verdict::kWarn ? "WARN" : "FAIL";
    if (verdict == Verdict::kFail) ++failed;
    if (json) {
      rows.push_back({{"check", what}, {"verdict", word}, {"found", found}, {"remedy", remedy}});
      return;
    }
    fmt::print("{:<5} {:<16} {}\n", word, what, found);
    if (!remedy.empty()) fmt::print("      {:<16} -> {}\n", "", remedy);
  }
  const bool json;
  int failed = 0;
  nlohmann::json rows = nlohmann::json::array();
};

uint64_t MemInfo(const std::string& field) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1));
  }
  return 0;
}

void Machine(Doctor& doctor) {
  const unsigned cores = std::thread::hardware_concurrency();
  doctor.Say(cores >= 2 ? Verdict::kOk : Verdict::kWarn, "cores", std::to_string(cores),
             cores >= 2 ? "" : "a server and an engine on one core wait for each other");
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  const bool avx512 = __builtin_cpu_supports("avx512bw") != 0;
  doctor.Say(avx2 ? Verdict::kOk : Verdict::kWarn, "codecs",
             avx512 ? "AVX-512"
             : avx2 ? "AVX2"
                    : "scalar",
             avx2 ? "" : "encoding will cost several times the CPU");
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  const bool unlimited = limit.rlim_cur == RLIM_INFINITY;
  const bool rdma = std::filesystem::exists("/sys/class/infiniband");
  doctor.Say(unlimited || !rdma ? Verdict::kOk : Verdict::kFail, "memlock",
             unlimited ? "unlimited" : FormatBytes(limit.rlim_cur),
             unlimited || !rdma ? "" : "RDMA registers the whole arena: set LimitMEMLOCK=infinity");
  const uint64_t huge = MemInfo("HugePages_Total");
  doctor.Say(huge > 0 ? Verdict::kOk : Verdict::kWarn, "hugepages",
             fmt::format("{} of {} KiB", huge, MemInfo("Hugepagesize")),
             huge > 0 ? "" : "optional: sysctl vm.nr_hugepages=N makes large copies faster");
  std::string devices;
  for (const char* folder : {"/sys/class/infiniband", "/sys/class/net"}) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
      devices += (devices.empty() ? "" : " ") + entry.path().filename().string();
    }
  }
  doctor.Say(Verdict::kOk, "devices", devices.empty() ? "none" : devices);
}

class NoSink final : public FrameSink {
 public:
  void OnAccept(std::unique_ptr<Endpoint>) override {}
  void OnFrame(Endpoint&, const FrameHeader&, ByteSpan, Incoming&) override {}
  void OnClosed(Endpoint&, const Error&) override {}
};

void Ucx(Doctor& doctor, const Common& common) {
  UcxOptions options;
  options.tls = common.ucx_tls;
  options.devices = common.ucx_devices.empty() ? "lo" : common.ucx_devices;
  NoSink sink;
  const auto made = MakeUcxTransport(options, sink, Clock::Monotonic());
  if (made) {
    doctor.Say(Verdict::kOk, "ucx module",
               fmt::format("loads; {} on {}", options.tls, options.devices));
  } else {
    doctor.Say(common.transport == "ucx" ? Verdict::kFail : Verdict::kWarn, "ucx module",
               made.error().message,
               "install libucx0 (apt) and keep libtiercel_ucx.so beside the program");
  }
}

void Disk(Doctor& doctor, const std::string& folder) {
  const std::string path = folder + "/.tiercel-doctor-" + std::to_string(getpid());
  const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (fd >= 0) {
    close(fd);
    unlink(path.c_str());
    doctor.Say(Verdict::kOk, "direct I/O", folder);
    return;
  }
  unlink(path.c_str());
  doctor.Say(Verdict::kWarn, "direct I/O", fmt::format("{}: {}", folder, std::strerror(errno)),
             "the SSD tier wants a file system with O_DIRECT (ext4, xfs); tmpfs has none");
}

bool Node(Doctor& doctor, const Common& common) {
  auto stubs = Dial(common);
  if (!stubs) {
    doctor.Say(Verdict::kFail, "endpoint", stubs.error().message);
    return false;
  }
  grpc::ClientContext context;
  SetDeadline(context, 3 * kSecond);
  v1::HealthResponse health;
  const grpc::Status said = stubs->data->Health(&context, v1::HealthRequest(), &health);
  if (!said.ok()) {
    doctor.Say(Verdict::kFail, "reachable",
               fmt::format("{}: {}", common.endpoint(), said.error_message()),
               "start it: tiercel-server; or name it: --endpoint HOST:PORT, TIERCEL_ENDPOINT");
    return false;
  }
  doctor.Say(Verdict::kOk, "reachable", common.endpoint());
  doctor.Say(health.ready() ? Verdict::kOk : Verdict::kWarn, "ready",
             health.ready() ? "yes" : health.why());
  grpc::ClientContext stat_context;
  SetDeadline(stat_context, 3 * kSecond);
  v1::StatResponse stat;
  if (stubs->data->Stat(&stat_context, v1::StatRequest(), &stat).ok()) {
    const bool same = stat.version() == TIERCEL_VERSION;
    doctor.Say(same ? Verdict::kOk : Verdict::kWarn, "version",
               fmt::format("server {}, this client {}", stat.version(), TIERCEL_VERSION),
               same ? "" : "the wire is versioned, so they may still talk; upgrade the older one");
    uint64_t corrupt = 0;
    for (const v1::ShardStat& shard : stat.shards()) corrupt += shard.corrupt();
    doctor.Say(corrupt == 0 ? Verdict::kOk : Verdict::kWarn, "integrity",
               fmt::format("{} corrupt records found so far", corrupt),
               corrupt == 0 ? "" : "run tiercel verify; look at the disk's and memory's health");
    if (!stat.ssd_state().empty()) doctor.Say(Verdict::kOk, "ssd", stat.ssd_state());
    if (!stat.device_state().empty()) doctor.Say(Verdict::kOk, "device tier", stat.device_state());
  }
  return true;
}

void Ways(Doctor& doctor, const Common& common) {
  for (const std::string way : {"memfd", "ucx", "grpc"}) {
    if (!common.transport.empty() && common.transport != way) continue;
    Common one = common;
    one.transport = way;
    if (way == "ucx" && one.ucx_devices.empty()) {
      doctor.Say(Verdict::kOk, "transport ucx", "not offered: no --ucx-devices");
      continue;
    }
    auto client = Connect(one);
    if (!client) {
      doctor.Say(way == "grpc" || way == common.transport ? Verdict::kFail : Verdict::kWarn,
                 "transport " + way, client.error().message,
                 way == "memfd" ? "only for clients on the server's own machine, as its user" : "");
      continue;
    }
    for (const Client::NodeStatus& node : (*client)->Nodes()) {
      for (const std::string& told : node.transports)
        doctor.Say(Verdict::kOk, "transport " + way, told);
    }
  }
}

Result<int> Examine(const Common& common, const std::string& data) {
  Doctor doctor(common.json);
  Machine(doctor);
  Ucx(doctor, common);
  Disk(doctor, data);
  if (Node(doctor, common)) Ways(doctor, common);
  if (common.json) {
    fmt::print("{}\n", doctor.rows.dump(2));
  } else {
    fmt::print("\n{}\n", doctor.failed == 0 ? "nothing stands in the way"
                                            : fmt::format("{} checks failed", doctor.failed));
  }
  return doctor.failed == 0 ? 0 : 1;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Common& common, Commands& commands) {
  auto data = std::make_shared<std::string>(".");
  CLI::App* doctor =
      app.add_subcommand("doctor", "check this machine, the node and the ways between them");
  doctor->add_option("--data", *data, "folder to check for direct I/O")->capture_default_str();
  commands.emplace_back(doctor, [&common, data] { return Examine(common, *data); });
}

}  // namespace tiercel::cli
