#include "cacheserver/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <thread>

#include "tiering/eviction.h"

namespace tiercel {
namespace {

// How one setting is read from text and written back.
struct Setting {
  std::string_view key;   // "limits.sessions"
  std::string_view what;  // For people, and what is allowed.
  std::function<Status(Config&, const std::string&)> read;
  std::function<std::string(const Config&)> write;
  std::string_view json_type;
};

Setting Text(std::string_view key, std::string_view what, std::string Config::*field,
             std::vector<std::string> allowed = {}) {
  return {key, what,
          [field, allowed](Config& config, const std::string& text) -> Status {
            if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
              return Fail(Code::kInvalidArgument,
                          fmt::format("'{}' is not one of {}", text, fmt::join(allowed, ", ")));
            }
            config.*field = text;
            return OkStatus();
          },
          [field](const Config& config) { return nlohmann::json(config.*field).dump(); }, "string"};
}

// In the largest unit that loses nothing.
std::string ExactBytes(uint64_t bytes) {
  if (bytes == 0 || bytes % kKiB != 0) return fmt::format("{}B", bytes);
  if (bytes % kMiB != 0) return fmt::format("{}KiB", bytes / kKiB);
  if (bytes % kGiB != 0) return fmt::format("{}MiB", bytes / kMiB);
  return fmt::format("{}GiB", bytes / kGiB);
}

std::string ExactTime(Nanos time) {
  if (time % kMillisecond != 0) return fmt::format("{}us", time / kMicrosecond);
  if (time == 0 || time % kSecond != 0) return fmt::format("{}ms", time / kMillisecond);
  return fmt::format("{}s", time / kSecond);
}

Setting Flag(std::string_view key, std::string_view what, bool Config::*field) {
  return {key, what,
          [field](Config& config, const std::string& text) -> Status {
            if (text != "true" && text != "false") {
              return Fail(Code::kInvalidArgument, fmt::format("'{}' is neither true nor false", text));
            }
            config.*field = text == "true";
            return OkStatus();
          },
          [field](const Config& config) { return std::string(config.*field ? "true" : "false"); }, "boolean"};
}

Setting Number(std::string_view key, std::string_view what, uint64_t Config::*field, uint64_t low, uint64_t high) {
  return {key, what,
          [field, low, high](Config& config, const std::string& text) -> Status {
            uint64_t value = 0;
            const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (ec != std::errc() || end != text.data() + text.size() || value < low || value > high) {
              return Fail(Code::kInvalidArgument, fmt::format("'{}' is not a number in {}..{}", text, low, high));
            }
            config.*field = value;
            return OkStatus();
          },
          [field](const Config& config) { return std::to_string(config.*field); }, "integer"};
}

Setting Bytes(std::string_view key, std::string_view what, uint64_t Config::*field, uint64_t low, uint64_t high) {
  return {key, what,
          [field, low, high](Config& config, const std::string& text) -> Status {
            TIERCEL_ASSIGN(const uint64_t value, ParseBytes(text));
            if (value < low || value > high) {
              return Fail(Code::kInvalidArgument, fmt::format("'{}' is outside {}..{}", text, FormatBytes(low),
                                                              FormatBytes(high)));
            }
            config.*field = value;
            return OkStatus();
          },
          [field](const Config& config) { return ExactBytes(config.*field); }, "string"};
}

Setting Time(std::string_view key, std::string_view what, Nanos Config::*field, Nanos low, Nanos high) {
  return {key, what,
          [field, low, high](Config& config, const std::string& text) -> Status {
            TIERCEL_ASSIGN(const Nanos value, ParseDuration(text));
            if (value < low || value > high) {
              return Fail(Code::kInvalidArgument,
                          fmt::format("'{}' is outside {}us..{}us", text, low / 1000, high / 1000));
            }
            config.*field = value;
            return OkStatus();
          },
          [field](const Config& config) { return ExactTime(config.*field); }, "string"};
}

const std::vector<Setting>& Settings() {
  static const std::vector<Setting> settings = {
      Text("node.id", "name of this node in views; default: the host's name", &Config::node_id),
      Text("node.zone", "failure zone; second candidates go to another", &Config::zone),
      Text("view.file", "JSON view of the cluster, re-read when it changes; default: this node alone",
           &Config::view_file),
      Text("listen.grpc", "host:port or unix:/path of the control plane", &Config::grpc_listen),
      Text("listen.http", "host:port of /metrics, /livez, /readyz; empty: none", &Config::http_listen),
      Text("listen.advertise", "how others reach listen.grpc; default: as it listens", &Config::advertise),
      Text("tls.ca", "PEM of the CA that client certificates must chain to", &Config::tls_ca),
      Text("tls.cert", "PEM of this node's certificate", &Config::tls_cert),
      Text("tls.key", "PEM of its key", &Config::tls_key),
      Flag("insecure", "plain text without authentication: needs a loopback or unix bind", &Config::insecure),
      Flag("memfd.enabled", "shared memory for clients of this host", &Config::memfd),
      Text("memfd.dir", "folder of its sockets; default: a private one of this process", &Config::memfd_dir),
      Text("ucx.devices", "e.g. lo, eth1 or mlx5_0:1; empty: UCX is off. Whoever reaches a UCX TCP port can "
           "write this process's memory: trusted fabrics only", &Config::ucx_devices),
      Text("ucx.tls", "UCX transports, e.g. tcp or rc,tcp", &Config::ucx_tls),
      Number("shards", "owner threads; 0: one up to 4 cores, then one for each 4", &Config::shards, 0, 256),
      Bytes("memory.host", "RAM for blocks, all shards together", &Config::host_memory, 2 * kMiB, 64ull * 1024 * kGiB),
      Bytes("memory.slab", "unit of RAM given to a name space; a multiple of 2MiB", &Config::slab, 2 * kMiB, 16 * kGiB),
      Text("memory.huge_pages", "auto, off or required", &Config::huge_pages, {"auto", "off", "required"}),
      Text("memory.numa", "auto: where there are several memory nodes a shard has its thread and its RAM on one; off", &Config::numa,
           {"auto", "off"}),
      Text("restart.socket", "Unix socket over which the next process takes what is in RAM; off: none; default: "
           "tiercel-PORT.sock in $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR", &Config::restart_socket),
      Bytes("device.memory", "GPU memory for blocks that leave RAM, all shards together; 0: none", &Config::device_memory, 0,
            16ull * 1024 * kGiB),
      Number("device.number", "which GPU", &Config::device_number, 0, 63),
      Text("policy.eviction", "which blocks leave RAM first: hazard learns from the traffic and from callers' hints; "
           "lru, haz1, lfu and s3fifo are there to compare with", &Config::eviction, PolicyNames()),
      Text("ssd.path", "data folder, or several with commas between, one a disk; empty: no SSD tier", &Config::ssd_path),
      Bytes("ssd.capacity", "bytes on SSD, all shards and disks together", &Config::ssd_capacity, 2 * kMiB, 1024ull * 1024 * kGiB),
      Bytes("ssd.segment", "unit of writing and forgetting", &Config::ssd_segment, kMiB, 4 * kGiB),
      Time("ssd.seal_after", "an open segment is written after this long at the latest", &Config::ssd_seal_after,
           kMillisecond, 3600 * kSecond),
      Bytes("ssd.write_rate", "bytes a second on each disk; 0: unlimited", &Config::ssd_write_rate, 0, 1024 * kGiB),
      Bytes("ssd.write_per_day", "bytes that may be written in a day, all disks together; what is beyond stays in RAM "
            "only. An hour's share may be spent at once; 0: unlimited", &Config::ssd_write_per_day, 0,
            1024ull * 1024 * kGiB),
      Bytes("ssd.scrub_rate", "bytes a second that are read and verified in the background; 0: none",
            &Config::ssd_scrub_rate, 0, 1024 * kGiB),
      Time("ssd.stall_after", "a disk that answers nothing for so long is left alone for a while", &Config::ssd_stall_after,
           100 * kMillisecond, 600 * kSecond),
      Number("ssd.readers", "reader threads a shard and disk", &Config::ssd_readers, 1, 64),
      Number("ssd.writers", "segment writers a shard and disk", &Config::ssd_writers, 1, 16),
      Flag("ssd.recompress", "write blocks to SSD in fewer bytes where the disk keeps up: lossless, or as a "
           "namespace's demote_to allows", &Config::ssd_recompress),
      Text("ssd.admission", "what is written to SSD: all, as long as at least half of an hour's share of ssd.write_per_day is left, "
           "and else what is used a second time; second_access: that alone, always", &Config::ssd_admission, {"all", "second_access"}),
      Number("ssd.read_ahead", "blocks at once a shard that a match reads from SSD before they are asked for; 0: none",
             &Config::ssd_read_ahead, 0, 256),
      Text("codec.artifact", "KVA1 file of the model, for a namespace's demote_to; default: none, and lossy "
           "records are larger", &Config::artifact),
      Number("limits.sessions", "sessions at once", &Config::max_sessions, 1, 4096),
      Number("limits.keys_in_flight", "keys a session may have asked for and not got", &Config::max_keys_in_flight, 64, 4000),
      Bytes("limits.bytes_in_flight", "bytes on their way to one session", &Config::max_bytes_in_flight, kMiB, 1024 * kGiB),
      Bytes("limits.hold_bytes", "bytes that one session may hold between match and get", &Config::max_hold_bytes, 0, 1024 * kGiB),
      Time("limits.hold", "how long", &Config::hold, kMillisecond, 60 * kSecond),
      Time("limits.pin", "the longest that a client may have blocks pinned in RAM without asking again", &Config::pin, 0, 30 * 24 * 3600 * kSecond),
      Time("limits.default_deadline", "for requests that name none", &Config::default_deadline, kMillisecond, 60 * kSecond),
      Time("limits.drain", "for flushing at SIGTERM", &Config::drain, 0, 600 * kSecond),
      Time("loop.spin", "busy polling after work before the loop sleeps", &Config::spin, 0, kSecond),
      Text("log.level", "debug, info, warn or error", &Config::log_level, {"debug", "info", "warn", "error"}),
      Text("log.format", "text or json", &Config::log_format, {"text", "json"}),
      Flag("fault_injection", "allow the admin call that flips bits: tests only", &Config::fault_injection),
  };
  return settings;
}
constexpr std::string_view kNamespacesKey = "namespaces";

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

std::string Nearest(std::string_view key) {
  std::string_view best = kNamespacesKey;
  for (const Setting& setting : Settings()) {
    if (EditDistance(key, setting.key) < EditDistance(key, best)) best = setting.key;
  }
  return std::string(best);
}

bool IsSection(std::string_view key) {
  const std::string prefix = std::string(key) + ".";
  return std::any_of(Settings().begin(), Settings().end(),
                     [&](const Setting& setting) { return setting.key.substr(0, prefix.size()) == prefix; });
}

Error At(const std::string& name, const YAML::Node& node, std::string_view what) {
  return {Code::kInvalidArgument, fmt::format("{}:{}: {}", name, node.Mark().line + 1, what)};
}

Status Apply(Config& config, const std::string& key, const std::string& text) {
  for (const Setting& setting : Settings()) {
    if (setting.key != key) continue;
    const Status read = setting.read(config, text);
    if (read) return read;
    return Fail(read.error().code, fmt::format("{}: {} ({})", key, read.error().message, setting.what));
  }
  return Fail(Code::kInvalidArgument, fmt::format("unknown key '{}', did you mean '{}'?", key, Nearest(key)));
}

constexpr std::array<std::pair<std::string_view, uint64_t NamespaceConfig::*>, 5> kQuotas = {{
    {"host_reserve", &NamespaceConfig::host_reserve},
    {"host_limit", &NamespaceConfig::host_limit},
    {"ssd_reserve", &NamespaceConfig::ssd_reserve},
    {"ssd_limit", &NamespaceConfig::ssd_limit},
    {"pin_limit", &NamespaceConfig::pin_limit},
}};

// On SSD a block's time is known to the minute.
constexpr Nanos kShortestTtl = 60 * kSecond;
constexpr Nanos kLongestTtl = 3650LL * 24 * 3600 * kSecond;

// A name, or a map of name and what the namespace may hold.
Result<NamespaceConfig> ReadNamespace(const std::string& file, const YAML::Node& node) {
  NamespaceConfig read;
  if (node.IsScalar()) {
    read.name = node.Scalar();
  } else if (node.IsMap()) {
    for (const auto& item : node) {
      const std::string key = item.first.IsScalar() ? item.first.Scalar() : "";
      const auto bytes_of = std::find_if(kQuotas.begin(), kQuotas.end(), [&](const auto& quota) { return quota.first == key; });
      if (key != "name" && key != "worst_class" && key != "demote_to" && key != "ttl" && bytes_of == kQuotas.end()) {
        return tl::unexpected<Error>(At(file, item.first, fmt::format(
            "unknown key '{}' of a namespace: it has name, worst_class, demote_to, ttl, host_reserve, host_limit, ssd_reserve, "
            "ssd_limit and pin_limit", key)));
      }
      if (!item.second.IsScalar()) {
        return tl::unexpected<Error>(At(file, item.second, fmt::format("{} of a namespace is not a word", key)));
      }
      if (key == "name") {
        read.name = item.second.Scalar();
        continue;
      }
      if (bytes_of != kQuotas.end()) {
        const Result<uint64_t> bytes = ParseBytes(item.second.Scalar());
        if (!bytes) return tl::unexpected<Error>(At(file, item.second, fmt::format("{}: {}", key, bytes.error().message)));
        read.*bytes_of->second = *bytes;
        continue;
      }
      if (key == "ttl") {
        const Result<Nanos> ttl = ParseDuration(item.second.Scalar());
        if (!ttl) return tl::unexpected<Error>(At(file, item.second, fmt::format("ttl: {}", ttl.error().message)));
        if (*ttl != 0 && (*ttl < kShortestTtl || *ttl > kLongestTtl)) {
          return tl::unexpected<Error>(At(file, item.second, fmt::format("ttl: '{}' is neither 0s nor in 60s..315360000s", item.second.Scalar())));
        }
        read.ttl = *ttl;
        continue;
      }
      const std::optional<QualityClass> quality = ParseQualityClass(item.second.Scalar());
      if (!quality) {
        return tl::unexpected<Error>(At(file, item.second, fmt::format(
            "{}: '{}' is not one of exact, near, high, balanced, small", key, item.second.Scalar())));
      }
      (key == "worst_class" ? read.worst_class : read.demote_to) = *quality;
    }
  }
  if (read.name.empty()) return tl::unexpected<Error>(At(file, node, "a namespace that has no name"));
  if (read.demote_to > read.worst_class) {
    return tl::unexpected<Error>(At(file, node, fmt::format("namespace '{}': demote_to {} is worse than worst_class {}",
                                                           read.name, Name(read.demote_to), Name(read.worst_class))));
  }
  return read;
}

Status ReadNode(Config& config, const std::string& name, const std::string& prefix, const YAML::Node& map) {
  if (!map.IsMap()) return tl::unexpected<Error>(At(name, map, fmt::format("{} is not a map of settings", prefix.empty() ? "the file" : prefix)));
  for (const auto& item : map) {
    if (!item.first.IsScalar()) return tl::unexpected<Error>(At(name, item.first, "a key that is not a word"));
    const std::string key = prefix.empty() ? item.first.Scalar() : prefix + "." + item.first.Scalar();
    const YAML::Node& value = item.second;
    if (key == kNamespacesKey) {
      if (!value.IsSequence() || value.size() == 0) return tl::unexpected<Error>(At(name, item.first, "namespaces is not a list of names"));
      config.namespaces.clear();
      for (const YAML::Node& one : value) {
        TIERCEL_ASSIGN(NamespaceConfig read, ReadNamespace(name, one));
        if (config.FindNamespace(read.name) != nullptr) {
          return tl::unexpected<Error>(At(name, one, fmt::format("namespace '{}' is here twice", read.name)));
        }
        config.namespaces.push_back(std::move(read));
      }
    } else if (value.IsMap() && IsSection(key)) {
      TIERCEL_TRY(ReadNode(config, name, key, value));
    } else if (value.IsScalar() || value.IsNull()) {
      const Status applied = Apply(config, key, value.IsNull() ? "" : value.Scalar());
      if (!applied) return tl::unexpected<Error>(At(name, item.first, applied.error().message));
    } else {
      return tl::unexpected<Error>(At(name, item.first, IsSection(key) || value.IsSequence()
                                          ? fmt::format("{} has a value of the wrong shape", key)
                                          : fmt::format("unknown key '{}', did you mean '{}'?", key, Nearest(key))));
    }
  }
  return OkStatus();
}

Status ReadText(Config& config, const std::string& name, std::string_view text) {
  YAML::Node root;
  try {  // The library throws; nothing of ours does.
    root = YAML::Load(std::string(text));
  } catch (const YAML::Exception& e) {
    return Fail(Code::kInvalidArgument, fmt::format("{}:{}: {}", name, e.mark.line + 1, e.msg));
  }
  return root.IsNull() ? OkStatus() : ReadNode(config, name, "", root);
}

bool IsLoopback(std::string_view address) {
  return address.empty() || address.starts_with("unix:") || address.starts_with("127.") ||
         address.starts_with("localhost:") || address.starts_with("[::1]");
}

Status CheckWhole(const Config& config, const std::string& name) {
  const auto wrong = [&name](std::string what) { return Fail(Code::kInvalidArgument, name + ": " + what); };
  const bool tls = !config.tls_cert.empty() || !config.tls_key.empty() || !config.tls_ca.empty();
  if (tls && (config.tls_cert.empty() || config.tls_key.empty())) return wrong("tls needs both tls.cert and tls.key");
  if (tls && config.insecure) return wrong("insecure and tls exclude each other");
  if (!tls && !config.insecure) {
    return wrong("no TLS: name tls.cert and tls.key, or say insecure: true (loopback only)");
  }
  if (config.insecure && !IsLoopback(config.grpc_listen)) {
    return wrong(fmt::format("insecure, but listen.grpc is {}: plain text is for 127.0.0.1, [::1] or unix:", config.grpc_listen));
  }
  if (config.slab % (2 * kMiB) != 0) return wrong("memory.slab is not a multiple of 2MiB");
  const uint64_t shards = std::max<uint64_t>(1, config.shards);
  if (config.host_memory / shards < config.slab) {
    return wrong(fmt::format("memory.host of {} gives {} shards no slab of {} each", FormatBytes(config.host_memory),
                             shards, FormatBytes(config.slab)));
  }
  uint64_t reserved = 0;  // Of one shard.
  for (const NamespaceConfig& one : config.namespaces) {
    if (one.host_limit > 0 && (one.host_limit < one.host_reserve || one.host_limit / shards < config.slab)) {
      return wrong(fmt::format("namespace '{}': host_limit of {} is under its host_reserve of {}, or gives {} shards no slab of {} each",
                               one.name, FormatBytes(one.host_limit), FormatBytes(one.host_reserve), shards, FormatBytes(config.slab)));
    }
    const uint64_t slabs = (one.host_reserve / shards + config.slab - 1) / config.slab;
    if (slabs > (config.host_memory / shards / config.slab * config.slab - reserved) / config.slab) {
      return wrong(fmt::format("namespace '{}': its host_reserve and those before it, each in whole slabs of {}, are more than memory.host",
                               one.name, FormatBytes(config.slab)));
    }
    reserved += slabs * config.slab;
    if (one.pin_limit > config.host_memory / 2) {
      return wrong(fmt::format("namespace '{}': pin_limit of {} is more than half of memory.host", one.name, FormatBytes(one.pin_limit)));
    }
  }
  const std::vector<std::string> disks = config.ssd_paths();
  for (size_t i = 0; i < disks.size(); ++i) {
    if (disks[i].empty()) return wrong(fmt::format("ssd.path '{}' names an empty folder", config.ssd_path));
    if (std::find(disks.begin(), disks.begin() + static_cast<std::ptrdiff_t>(i), disks[i]) != disks.begin() + static_cast<std::ptrdiff_t>(i)) {
      return wrong(fmt::format("ssd.path names {} twice", disks[i]));
    }
  }
  if (!disks.empty() && config.ssd_capacity / shards / disks.size() < 2 * config.ssd_segment) {
    return wrong(fmt::format("ssd.capacity of {} gives {} shards on {} disks no two segments of {} each",
                             FormatBytes(config.ssd_capacity), shards, disks.size(), FormatBytes(config.ssd_segment)));
  }
  const uint64_t shares = shards * std::max<size_t>(1, disks.size());
  uint64_t kept = config.ssd_segment;  // Of one share: what is being written needs room.
  for (const NamespaceConfig& one : config.namespaces) {
    if (one.ssd_limit > 0 && (one.ssd_limit < one.ssd_reserve || one.ssd_limit / shares < 2 * config.ssd_segment)) {
      return wrong(fmt::format("namespace '{}': ssd_limit of {} is under its ssd_reserve of {}, or gives {} shards on {} disks no two segments of {} each",
                               one.name, FormatBytes(one.ssd_limit), FormatBytes(one.ssd_reserve), shards,
                               std::max<size_t>(1, disks.size()), FormatBytes(config.ssd_segment)));
    }
    // A segment more: one that is more than its reserve needs goes whole or not.
    if (one.ssd_reserve > 0) kept += one.ssd_reserve / shares + config.ssd_segment;
    if (one.ssd_reserve > 0 && kept > config.ssd_capacity / shares) {
      return wrong(fmt::format("namespace '{}': its ssd_reserve and those before it, each with a segment of {} more for each shard and disk, are more than ssd.capacity",
                               one.name, FormatBytes(config.ssd_segment)));
    }
  }
  return OkStatus();
}

}  // namespace

const NamespaceConfig* Config::FindNamespace(std::string_view name) const {
  const auto found = std::find_if(namespaces.begin(), namespaces.end(),
                                  [name](const NamespaceConfig& one) { return one.name == name; });
  return found == namespaces.end() ? nullptr : &*found;
}

std::vector<std::string> Config::ssd_paths() const {
  std::vector<std::string> paths;
  for (size_t at = 0; at < ssd_path.size() + (ssd_path.empty() ? 0 : 1);) {
    const size_t comma = std::min(ssd_path.find(',', at), ssd_path.size());
    paths.push_back(ssd_path.substr(at, comma - at));
    at = comma + 1;
  }
  return paths;
}

LogLevel Config::level() const {
  if (log_level == "debug") return LogLevel::kDebug;
  if (log_level == "warn") return LogLevel::kWarn;
  return log_level == "error" ? LogLevel::kError : LogLevel::kInfo;
}
LogFormat Config::format() const { return log_format == "json" ? LogFormat::kJson : LogFormat::kText; }

Result<Config> LoadConfig(std::string_view text, const std::string& name, const std::vector<std::string>& overrides) {
  Config config;
  TIERCEL_TRY(ReadText(config, name, text));
  for (const std::string& override : overrides) {
    const size_t equals = override.find('=');
    if (equals == std::string::npos) {
      return Fail(Code::kInvalidArgument, fmt::format("--set {}: not of the form key=value", override));
    }
    const std::string key = override.substr(0, equals);
    const std::string value = override.substr(equals + 1);
    if (key == kNamespacesKey) {  // The one list: written as in the file.
      TIERCEL_TRY(ReadText(config, "--set " + override, key + ": " + value));
      continue;
    }
    const Status applied = Apply(config, key, value);
    if (!applied) return Fail(Code::kInvalidArgument, fmt::format("--set {}: {}", override, applied.error().message));
  }
  if (config.node_id.empty()) {
    char host[256] = "localhost";
    (void)gethostname(host, sizeof(host) - 1);
    config.node_id = host;
  }
  if (config.shards == 0) {
    const uint64_t cores = std::max(1u, std::thread::hardware_concurrency());
    config.shards = std::max<uint64_t>(1, cores / 4);
  }
  TIERCEL_TRY(CheckWhole(config, name));
  return config;
}

Result<Config> LoadConfigFile(const std::string& path, const std::vector<std::string>& overrides) {
  if (path.empty()) return LoadConfig("", "defaults", overrides);
  std::ifstream file(path);
  if (!file) return Fail(Code::kNotFound, fmt::format("cannot read {}", path));
  std::ostringstream text;
  text << file.rdbuf();
  return LoadConfig(text.str(), path, overrides);
}

std::string PrintConfig(const Config& config) {
  std::string out;
  std::string section;
  for (const Setting& setting : Settings()) {
    const size_t dot = setting.key.find('.');
    const std::string mine = dot == std::string_view::npos ? "" : std::string(setting.key.substr(0, dot));
    if (mine != section && !mine.empty()) out += mine + ":\n";
    section = mine;
    out += fmt::format("# {}\n", setting.what).insert(0, mine.empty() ? "" : "  ");
    out += fmt::format("{}{}: {}\n", mine.empty() ? "" : "  ", setting.key.substr(mine.empty() ? 0 : dot + 1),
                       setting.write(config));
  }
  auto namespaces = nlohmann::json::array();
  for (const NamespaceConfig& one : config.namespaces) {
    if (one == NamespaceConfig{one.name}) {
      namespaces.push_back(one.name);
    } else {
      namespaces.push_back({{"name", one.name}, {"worst_class", Name(one.worst_class)}, {"demote_to", Name(one.demote_to)}});
      for (const auto& [key, bytes] : kQuotas) {
        if (one.*bytes > 0) namespaces.back()[std::string(key)] = std::to_string(one.*bytes);
      }
      if (one.ttl > 0) namespaces.back()["ttl"] = ExactTime(one.ttl);
    }
  }
  out += fmt::format("namespaces: {}\n", namespaces.dump());
  return out;
}

std::string PrintSchema() {
  nlohmann::json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                           {"title", "tiercel-server"},
                           {"type", "object"},
                           {"additionalProperties", false}};
  for (const Setting& setting : Settings()) {
    nlohmann::json* at = &schema;
    std::string_view key = setting.key;
    if (const size_t dot = key.find('.'); dot != std::string_view::npos) {
      at = &schema["properties"][std::string(key.substr(0, dot))];
      (*at)["type"] = "object";
      (*at)["additionalProperties"] = false;
      key.remove_prefix(dot + 1);
    }
    (*at)["properties"][std::string(key)] = {{"type", setting.json_type}, {"description", setting.what}};
  }
  const nlohmann::json quality = {{"enum", {"exact", "near", "high", "balanced", "small"}}};
  nlohmann::json settings = {{"type", "object"}, {"additionalProperties", false}, {"required", {"name"}},
      {"properties", {{"name", {{"type", "string"}}}, {"worst_class", quality}, {"demote_to", quality}, {"ttl", {{"type", "string"}}}}}};
  for (const auto& [key, bytes] : kQuotas) settings["properties"][std::string(key)] = {{"type", "string"}};
  schema["properties"]["namespaces"] = {
      {"type", "array"}, {"items", {{"anyOf", nlohmann::json::array({{{"type", "string"}}, settings})}}}};
  return schema.dump(2);
}

}  // namespace tiercel
