// Config is one YAML file and what it may say. The schema is one table: it reads, checks, prints and
// documents the settings, so that none is known in two places.
//
//   defaults -> file (--config) -> overrides (--set a.b=value) -> Check -> Config
//
// Errors: kInvalidArgument, as "file:line: what, what is allowed": an unknown key names the nearest
// known one; nothing is applied by half.
#ifndef TIERCEL_CACHESERVER_CONFIG_H_
#define TIERCEL_CACHESERVER_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/units.h"
#include "proto/types.h"

namespace tiercel {

// What a tenant's key space may hold.
struct NamespaceConfig {
  std::string name;
  QualityClass worst_class = QualityClass::kSmall;  // A put of a worse one is refused.
  // What an exact block may become when it is written to SSD, at worst; exact: recoded without loss.
  QualityClass demote_to = QualityClass::kExact;
  // Of memory.host, in whole slabs of each shard: what it can have back at any time, and the most it may
  // have; 0: no limit.
  uint64_t host_reserve = 0;
  uint64_t host_limit = 0;
  // Of ssd.capacity, in whole segments of each shard and disk: what others' writes leave it, and the most
  // it may have; 0: no limit.
  uint64_t ssd_reserve = 0;
  uint64_t ssd_limit = 0;
  uint64_t pin_limit = 0;  // Of memory.host, that clients may have pinned; 0: an eighth of it.
  Nanos ttl = 0;  // Since a block was put, after which it is not served; 0: for ever.
  bool operator==(const NamespaceConfig&) const = default;
};

struct Config {
  std::string node_id;  // Empty: the host's name.
  std::string zone;
  std::string view_file;  // Empty: this node alone.

  std::string grpc_listen = "127.0.0.1:7400";
  std::string http_listen = "127.0.0.1:7480";
  std::string advertise;  // How others reach grpc_listen; empty: as it listens.
  std::string tls_ca, tls_cert, tls_key;
  bool insecure = false;

  bool memfd = true;
  std::string memfd_dir;  // Sockets; empty: a folder under the runtime folder.
  std::string ucx_devices;  // Empty: UCX is off.
  std::string ucx_tls = "tcp";

  uint64_t shards = 0;  // 0: one up to four cores, then one for each four.
  uint64_t host_memory = 1 * kGiB;  // Of the node; divided among the shards.
  uint64_t slab = 256 * kMiB;
  std::string huge_pages = "auto";
  std::string eviction = "hazard";  // Of PolicyNames.

  std::string numa = "auto";
  std::string restart_socket;  // Empty: by the port of grpc_listen; "off": none.

  uint64_t device_memory = 0;  // Of the node; divided among the shards. 0: no device tier.
  uint64_t device_number = 0;

  std::string ssd_path;  // Empty: no SSD tier; several, one a disk, with commas between.
  std::vector<std::string> ssd_paths() const;
  uint64_t ssd_capacity = 20 * kGiB;
  uint64_t ssd_segment = 64 * kMiB;
  Nanos ssd_seal_after = 5 * kSecond;
  uint64_t ssd_write_rate = 0;
  uint64_t ssd_write_per_day = 0;
  uint64_t ssd_scrub_rate = 4 * kMiB;
  Nanos ssd_stall_after = 5 * kSecond;
  uint64_t ssd_readers = 4;
  uint64_t ssd_writers = 2;
  bool ssd_recompress = true;
  std::string ssd_admission = "all";
  uint64_t ssd_read_ahead = 16;
  std::string artifact;  // Empty: lossy demotion needs none, and codes worse.

  std::vector<NamespaceConfig> namespaces = {{"default"}};
  const NamespaceConfig* FindNamespace(std::string_view name) const;  // Null: not this node's.

  uint64_t max_sessions = 1024;
  uint64_t max_keys_in_flight = 2048;
  uint64_t max_bytes_in_flight = 256 * kMiB;
  uint64_t max_hold_bytes = 256 * kMiB;
  Nanos hold = 2 * kSecond;
  Nanos pin = 3600 * kSecond;
  Nanos default_deadline = 2 * kSecond;
  Nanos drain = 10 * kSecond;
  Nanos spin = 50 * kMicrosecond;

  std::string log_level = "info";
  std::string log_format = "text";
  bool fault_injection = false;

  LogLevel level() const;
  LogFormat format() const;
};

// text is the file's content and name how errors call it; overrides are "a.b=value".
Result<Config> LoadConfig(std::string_view text, const std::string& name,
                          const std::vector<std::string>& overrides);
// Reads the file; an empty path means defaults alone.
Result<Config> LoadConfigFile(const std::string& path, const std::vector<std::string>& overrides);

// The settings with their values, as YAML that LoadConfig reads back.
std::string PrintConfig(const Config& config);
// JSON Schema of the file.
std::string PrintSchema();

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_CONFIG_H_
