// What a client tells of itself.
#include "client/cpp/client_impl.h"

namespace tiercel {

std::vector<Client::NodeStatus> ClientImpl::Nodes() const {
  std::vector<NodeStatus> nodes;
  RunOnDriver([&](Engine& engine) { nodes = engine.Nodes(); });
  return nodes;
}

std::vector<CodecController::Candidate> ClientImpl::ExplainCodecs(const CodecController::Ask& ask) const {
  std::vector<CodecController::Candidate> candidates;
  RunOnDriver([&](Engine& engine) { candidates = engine.controller().Explain(ask); });
  return candidates;
}

Client::Stats ClientImpl::stats() const {
  const Engine::Counters& from = engine_.counters();
  Stats stats;
  stats.blocks_asked = from.blocks_asked.load();
  stats.blocks_served = from.blocks_served.load();
  for (size_t i = 0; i < stats.misses.size(); ++i) stats.misses[i] = from.misses[i].load();
  stats.puts = from.puts.load();
  stats.puts_stored = from.puts_stored.load();
  stats.puts_refused = from.puts_refused.load();
  stats.raw_bytes_put = from.raw_put.load();
  stats.record_bytes_put = from.record_put.load();
  stats.raw_bytes_got = from.raw_got.load();
  stats.record_bytes_got = from.record_got.load();
  stats.corrupt = from.corrupt.load();
  stats.late_releases = from.late_releases.load();
  for (size_t i = 0; i < kCodecs; ++i) stats.puts_by_codec[i] = from.puts_by_codec[i].load();
  return stats;
}

}  // namespace tiercel
