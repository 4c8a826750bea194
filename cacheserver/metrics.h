// What a node tells Prometheus, made from a snapshot of each shard at the time of the scrape.
#ifndef TIERCEL_CACHESERVER_METRICS_H_
#define TIERCEL_CACHESERVER_METRICS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cacheserver/shard.h"

namespace tiercel {

struct NodeSnapshot {
  std::string node_id;
  std::string version;
  double uptime_seconds = 0;
  uint64_t rss_bytes = 0;
  uint64_t arena_made_bytes = 0;  // Slabs that exist; how much of them is resident the kernel knows.
  uint64_t arena_resident_bytes = 0;
  uint64_t sessions = 0;
  uint64_t view_epoch = 0;
  bool draining = false;
  std::string device_why;  // Why there is no device tier; empty: there is one.
  std::vector<Shard::Stats> shards;
  std::map<uint32_t, std::string> name_spaces;  // Their names.

  uint64_t rss_outside_arena() const {
    return rss_bytes > arena_resident_bytes ? rss_bytes - arena_resident_bytes : 0;
  }
};

// The text exposition format, version 0.0.4.
std::string MetricsText(const NodeSnapshot& snapshot);

// Resident bytes of this process: all of it, and the part that is shared memory (the arena).
void ReadResident(uint64_t* all, uint64_t* shared_memory);

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_METRICS_H_
