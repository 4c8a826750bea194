#include "cacheserver/metrics.h"

#include <fmt/format.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "base/units.h"

namespace tiercel {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  void Add(const std::string& name, const std::string& help, MetricType type, Labels labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    if (type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    Family(name, help, type).metric.push_back(std::move(metric));
  }
  void Gauge(const std::string& name, const std::string& help, Labels labels, uint64_t value) {
    Add(name, help, MetricType::Gauge, std::move(labels), static_cast<double>(value));
  }
  void Counter(const std::string& name, const std::string& help, Labels labels, uint64_t value) {
    Add(name, help, MetricType::Counter, std::move(labels), static_cast<double>(value));
  }
  void Histogram(const std::string& name, const std::string& help, Labels labels, const LatencyHistogram& latency) {
    ClientMetric metric;
    metric.label = std::move(labels);
    uint64_t total = 0;
    for (int i = 0; i < LatencyHistogram::kBuckets; ++i) {
      total += latency.counts[static_cast<size_t>(i)];
      ClientMetric::Bucket bucket;
      bucket.cumulative_count = total;
      bucket.upper_bound = i + 1 == LatencyHistogram::kBuckets ? std::numeric_limits<double>::infinity()
                                                               : std::ldexp(1e-6, i);
      metric.histogram.bucket.push_back(bucket);
    }
    metric.histogram.sample_count = total;
    metric.histogram.sample_sum = latency.sum_seconds;
    Family(name, help, MetricType::Histogram).metric.push_back(std::move(metric));
  }
  const std::vector<MetricFamily>& all() const { return families_; }

 private:
  MetricFamily& Family(const std::string& name, const std::string& help, MetricType type) {
    for (MetricFamily& family : families_) {
      if (family.name == name) return family;
    }
    families_.push_back({name, help, type, {}});
    return families_.back();
  }
  std::vector<MetricFamily> families_;
};

void AddShard(Families& f, const Shard::Stats& s, const std::string& shard) {
  const Labels mine = {{"shard", shard}};
  const auto with = [&shard](const char* key, std::string_view value) {
    return Labels{{"shard", shard}, {key, std::string(value)}};
  };
  const TierStack::Stats& t = s.tiers;
  f.Counter("tiercel_hits_total", "Blocks served, by the tier they were in.", with("tier", "host"), t.hits_host);
  f.Counter("tiercel_hits_total", "", with("tier", "ssd"), t.hits_ssd);
  f.Counter("tiercel_hits_total", "", with("tier", "device"), t.hits_device);
  for (int reason = 1; reason < kMissReasons; ++reason) {
    f.Counter("tiercel_misses_total", "Blocks asked for and not served, by reason; the reasons are all.",
              with("reason", Name(static_cast<MissReason>(reason))), t.reasons[static_cast<size_t>(reason)]);
  }
  f.Counter("tiercel_puts_total", "Records published.", mine, t.puts);
  f.Counter("tiercel_put_duplicates_total", "Puts of what was here already.", mine, t.put_duplicates);
  f.Counter("tiercel_put_refused_total", "Puts refused because everything in RAM was in use.", mine, t.put_refused);
  f.Counter("tiercel_put_bad_total", "Records that did not verify on arrival.", mine, s.puts_bad);
  f.Counter("tiercel_get_bytes_total", "Bytes of records sent.", mine, s.get_bytes);
  f.Counter("tiercel_put_bytes_total", "Bytes of records published.", mine, s.put_bytes);
  f.Counter("tiercel_evicted_total", "Blocks forgotten to make room.", mine, t.evicted);
  f.Counter("tiercel_evicted_from_host_total", "Blocks that left RAM.", mine, t.evicted_host);
  f.Counter("tiercel_corrupt_total", "Records that failed their checksum at rest.", mine, t.corrupt);
  f.Counter("tiercel_adopted_verified_total", "Blocks of the process before this one, checked when first served.", mine,
            t.adopted_verified);
  f.Counter("tiercel_durable_total", "Records written to SSD.", mine, t.durable);
  f.Counter("tiercel_demoted_total", "Exact records written to SSD as lossy ones, as their namespace allows.", mine, t.demoted);
  f.Counter("tiercel_recoded_total", "Records written to SSD in fewer bytes.", mine, t.ssd.recoded);
  f.Counter("tiercel_recoded_from_bytes_total", "Their bytes before.", mine, t.ssd.recoded_from_bytes);
  f.Counter("tiercel_recoded_bytes_total", "Their bytes as written.", mine, t.ssd.recoded_bytes);
  f.Counter("tiercel_write_behind_skipped_total", "Records that were not written to SSD.", mine, t.write_behind_skipped);
  f.Counter("tiercel_ssd_passed_over_total", "Records not written to SSD when they were put, for the budget's sake.", mine, t.passed_over);
  f.Counter("tiercel_ssd_second_access_total", "Of those, the ones written when they were used again.", mine, t.second_access);
  f.Counter("tiercel_read_ahead_total", "Records read from SSD before they were asked for.", mine, t.read_ahead);
  f.Counter("tiercel_read_ahead_used_total", "Of those, the ones that were asked for.", mine, t.read_ahead_used);
  f.Counter("tiercel_read_ahead_wasted_total", "Of those, the ones that left RAM before.", mine, t.read_ahead_wasted);
  f.Counter("tiercel_read_ahead_refused_total", "Records not read ahead for want of room.", mine, t.read_ahead_refused);
  f.Counter("tiercel_rejected_frames_total", "Frames that a session was told off for.", mine, s.rejected);
  f.Gauge("tiercel_blocks", "Records held, either tier.", mine, t.blocks);
  f.Gauge("tiercel_host_blocks", "Records in RAM.", mine, t.host_blocks);
  f.Gauge("tiercel_host_bytes", "RAM allocated to records.", mine, t.host_bytes);
  f.Gauge("tiercel_host_capacity_bytes", "RAM for records.", mine, t.host_capacity);
  f.Gauge("tiercel_record_bytes", "Bytes of all records, as stored.", mine, t.record_bytes);
  f.Gauge("tiercel_raw_bytes", "Bytes of all records, decoded.", mine, t.raw_bytes);
  const auto index = [&](const char* part, uint64_t bytes) {
    f.Gauge("tiercel_index_bytes", "Memory of the index, by what it holds.", with("part", part), bytes);
  };
  index("records", t.index.records);
  index("runs", t.index.runs);
  index("children", t.index.children);
  index("blocks", t.index.blocks);
  index("ghosts", t.index.ghosts);
  f.Gauge("tiercel_pinned_blocks", "Pins held.", mine, t.pinned);
  f.Gauge("tiercel_kept_blocks", "Blocks that clients asked to keep in RAM.", mine, t.kept);
  f.Gauge("tiercel_kept_bytes", "Their bytes.", mine, t.kept_bytes);
  f.Counter("tiercel_kept_refused_total", "Blocks not kept because their namespace is at its pin_limit.", mine, t.kept_refused);
  f.Counter("tiercel_expired_total", "Blocks forgotten because of their namespace's ttl.", mine, t.expired);
  f.Gauge("tiercel_keys_in_flight", "Keys asked for and not answered.", mine, s.keys_in_flight);
  f.Gauge("tiercel_bytes_in_flight", "Bytes on their way to clients.", mine, s.bytes_in_flight);
  f.Gauge("tiercel_holds", "Blocks held between match and get.", mine, s.holds);
  f.Gauge("tiercel_shard_sessions", "Sessions of the shard.", mine, s.sessions);
  f.Gauge("tiercel_fragmentation_ppm", "Free bytes that an evicting allocation could not use, in millionths of RAM; their mean.",
          mine, static_cast<uint64_t>(t.fragmentation * 1e6));
  f.Gauge("tiercel_device_available", "1 while there is a device tier and it works.", mine,
          t.has_device && t.device_why.empty() ? 1 : 0);
  if (t.has_device) {
    f.Gauge("tiercel_device_bytes", "Device memory allocated to records.", mine, t.device.used_bytes);
    f.Gauge("tiercel_device_capacity_bytes", "Device memory for records.", mine, t.device.capacity_bytes);
    f.Counter("tiercel_device_stored_total", "Records copied to the device.", mine, t.device.stored);
    f.Counter("tiercel_device_loaded_total", "Records copied back.", mine, t.device.loaded);
    f.Counter("tiercel_device_batches_total", "Batches of such copies.", mine, t.device.batches);
    f.Counter("tiercel_evicted_from_device_total", "Records that left the device, and were in RAM no more.", mine, t.evicted_device);
  }
  if (s.has_ssd) {
    f.Gauge("tiercel_ssd_available", "1 while the SSD tier works.", mine, s.ssd_available ? 1 : 0);
    f.Gauge("tiercel_ssd_bytes", "Bytes of live segments.", mine, t.ssd.used_bytes);
    f.Gauge("tiercel_ssd_disk_bytes", "The same as the disk counts it.", mine, t.ssd.disk_bytes);
    f.Gauge("tiercel_ssd_segments", "Live segments.", mine, t.ssd.segments);
    f.Gauge("tiercel_ssd_queued_bytes", "Bytes that wait to be written.", mine, t.ssd.queued_bytes);
    f.Gauge("tiercel_ssd_queued_reads", "Reads that wait.", mine, t.ssd.queued_reads);
    f.Counter("tiercel_ssd_written_bytes_total", "Bytes written.", mine, t.ssd.written_bytes);
    f.Counter("tiercel_ssd_read_bytes_total", "Bytes read.", mine, t.ssd.read_bytes);
    f.Counter("tiercel_ssd_dropped_segments_total", "Segments dropped.", mine, t.ssd.dropped_segments);
    f.Counter("tiercel_ssd_failed_writes_total", "Segments that could not be written.", mine, t.ssd.failed_writes);
    f.Counter("tiercel_ssd_off_total", "Times that a disk was left alone for a while.", mine, t.ssd.switched_off);
    f.Counter("tiercel_ssd_stalls_total", "Of those, because it answered nothing.", mine, t.ssd.stalls);
    f.Counter("tiercel_ssd_over_budget_total", "Records not written because ssd.write_per_day was spent.", mine, t.ssd.over_budget);
    f.Counter("tiercel_ssd_over_limit_total", "Records not written because their namespace is at its ssd_limit.", mine, t.ssd.over_limit);
    f.Gauge("tiercel_ssd_budget_left_bytes", "What may be written at once of ssd.write_per_day; 0 where there is none.", mine,
            t.ssd.budget_left_bytes);
    f.Counter("tiercel_ssd_leaked_segments_total", "Segments found on disk that nobody accounts for: an alarm.", mine,
              t.ssd.leaked_segments);
    f.Counter("tiercel_ssd_scrubbed_bytes_total", "Bytes read and verified in the background.", mine, t.ssd.scrubbed_bytes);
    f.Counter("tiercel_ssd_scrubbed_records_total", "Records read and verified in the background.", mine, t.ssd.scrubbed_records);
    f.Counter("tiercel_ssd_scrub_bad_total", "Of those, the ones that did not verify: an alarm.", mine, t.ssd.scrub_bad);
    f.Counter("tiercel_ssd_scrub_rounds_total", "Times that everything was read.", mine, t.ssd.scrub_rounds);
  }
  f.Histogram("tiercel_get_seconds", "From a GET's arrival to its last byte sent.", mine, s.get);
  f.Histogram("tiercel_put_seconds", "From a PUT's arrival to its ACK.", mine, s.put);
  f.Histogram("tiercel_match_seconds", "Time a MATCH took.", mine, s.match);
  for (const auto kind : {TransportKind::kLoopback, TransportKind::kMemfd, TransportKind::kUcx, TransportKind::kGrpc}) {
    const Transport::Counters& c = s.transports[static_cast<size_t>(kind)];
    const Labels labels = with("transport", Name(kind));
    f.Counter("tiercel_transport_frames_sent_total", "Frames sent.", labels, c.frames_sent);
    f.Counter("tiercel_transport_frames_received_total", "Frames received.", labels, c.frames_received);
    f.Counter("tiercel_transport_bytes_sent_total", "Payload bytes sent.", labels, c.bytes_sent);
    f.Counter("tiercel_transport_bytes_received_total", "Payload bytes received.", labels, c.bytes_received);
    f.Counter("tiercel_transport_rejected_frames_total", "Frames that were malformed or of nobody.", labels, c.rejected_frames);
    f.Counter("tiercel_transport_endpoints_lost_total", "Peers lost.", labels, c.endpoints_lost);
  }
}

Labels OfNameSpace(const NodeSnapshot& node, size_t shard, uint32_t id) {
  const auto name = node.name_spaces.find(id);
  return {{"shard", std::to_string(shard)},
          {"namespace", name == node.name_spaces.end() ? std::to_string(id) : name->second}};
}

void AddSsdSpaces(Families& f, const NodeSnapshot& node, size_t shard) {
  for (const auto& [id, bytes] : node.shards[shard].tiers.ssd.bytes_of) {
    f.Gauge("tiercel_ssd_namespace_bytes", "Bytes of live segments, by name space.", OfNameSpace(node, shard, id), bytes);
  }
}

void AddWhatIf(Families& f, const NodeSnapshot& node, size_t shard) {
  for (const auto& [id, curve] : node.shards[shard].tiers.what_if) {
    const Labels mine = OfNameSpace(node, shard, id);
    const auto count = [&f](const std::string& metric, const std::string& help, Labels labels, double value) {
      f.Add(metric, help, MetricType::Counter, std::move(labels), value);
    };
    count("tiercel_what_if_asked_total", "Blocks that were wanted, estimated from a sample.", mine, curve.asked);
    count("tiercel_what_if_ceiling_total", "Those that a cache without bounds would have served.", mine, curve.seen);
    for (size_t i = 0; i < WhatIf::kSizes.size(); ++i) {
      Labels labels = mine;
      labels.push_back({"ram", fmt::format("{:g}", WhatIf::kSizes[i])});
      count("tiercel_what_if_hits_total", "Those that LRU would have served with so many times the RAM.",
            std::move(labels), curve.hits[i]);
    }
  }
}

}  // namespace

std::string MetricsText(const NodeSnapshot& node) {
  Families f;
  f.Gauge("tiercel_build_info", "Version, always 1.", {{"version", node.version}, {"node", node.node_id}}, 1);
  f.Add("tiercel_uptime_seconds", "Since the node was ready.", MetricType::Gauge, {}, node.uptime_seconds);
  f.Gauge("tiercel_sessions", "Sessions open.", {}, node.sessions);
  f.Gauge("tiercel_view_epoch", "Epoch of the view.", {}, node.view_epoch);
  f.Gauge("tiercel_draining", "1 while draining.", {}, node.draining ? 1 : 0);
  f.Gauge("tiercel_process_resident_bytes", "Resident memory.", {}, node.rss_bytes);
  f.Gauge("tiercel_process_resident_outside_arena_bytes", "Resident memory that is not blocks.", {},
          node.rss_outside_arena());
  for (size_t i = 0; i < node.shards.size(); ++i) AddShard(f, node.shards[i], std::to_string(i));
  for (size_t i = 0; i < node.shards.size(); ++i) AddSsdSpaces(f, node, i);
  for (size_t i = 0; i < node.shards.size(); ++i) AddWhatIf(f, node, i);
  return prometheus::TextSerializer().Serialize(f.all());
}

void ReadResident(uint64_t* all, uint64_t* shared_memory) {
  *all = 0;
  *shared_memory = 0;
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("VmRSS:")) *all = std::strtoull(line.c_str() + 6, nullptr, 10) * kKiB;
    if (line.starts_with("RssShmem:")) *shared_memory = std::strtoull(line.c_str() + 9, nullptr, 10) * kKiB;
  }
}

}  // namespace tiercel
