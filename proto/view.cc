#include "proto/view.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/check.h"
#include "base/random.h"
#include "proto/field_hash.h"

namespace tiercel {
namespace {

using nlohmann::json;

Status CheckKeys(const json& object, const std::set<std::string>& allowed, std::string_view where) {
  for (const auto& item : object.items()) {
    if (!allowed.contains(item.key())) {
      return Fail(Code::kInvalidArgument, fmt::format("view: unknown key '{}' in {}", item.key(), where));
    }
  }
  return OkStatus();
}

Result<NodeInfo> ParseNode(const json& object, size_t index) {
  const std::string where = fmt::format("nodes[{}]", index);
  if (!object.is_object()) return Fail(Code::kInvalidArgument, "view: " + where + " is not an object");
  TIERCEL_TRY(CheckKeys(object, {"id", "endpoint", "zone", "shards"}, where));
  NodeInfo node;
  for (const auto& [name, field] : {std::pair<const char*, std::string*>{"id", &node.id},
                                    {"endpoint", &node.endpoint},
                                    {"zone", &node.zone}}) {
    const auto it = object.find(name);
    if (it == object.end()) continue;
    if (!it->is_string()) {
      return Fail(Code::kInvalidArgument, fmt::format("view: {}.{} is not a string", where, name));
    }
    *field = it->get<std::string>();
  }
  const auto shards = object.find("shards");
  if (shards == object.end() || !shards->is_array()) {
    return Fail(Code::kInvalidArgument, fmt::format("view: {}.shards is not a list of weights", where));
  }
  for (const json& weight : *shards) {
    if (!weight.is_number_unsigned() || weight.get<uint64_t>() > 1'000'000) {
      return Fail(Code::kInvalidArgument,
                  fmt::format("view: {}.shards holds {}, not a weight in 0..1000000", where, weight.dump()));
    }
    node.shard_weights.push_back(weight.get<uint32_t>());
  }
  return node;
}

}  // namespace

Result<View> ParseView(std::string_view text) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return Fail(Code::kInvalidArgument, "view: not a JSON object");
  TIERCEL_TRY(CheckKeys(root, {"epoch", "nodes"}, "the view"));
  const auto epoch = root.find("epoch");
  if (epoch == root.end() || !epoch->is_number_unsigned()) {
    return Fail(Code::kInvalidArgument, "view: epoch is not an unsigned number");
  }
  const auto nodes = root.find("nodes");
  if (nodes == root.end() || !nodes->is_array()) {
    return Fail(Code::kInvalidArgument, "view: nodes is not a list");
  }
  View view;
  view.epoch = epoch->get<uint64_t>();
  for (size_t i = 0; i < nodes->size(); ++i) {
    TIERCEL_ASSIGN(NodeInfo node, ParseNode((*nodes)[i], i));
    view.nodes.push_back(std::move(node));
  }
  std::sort(view.nodes.begin(), view.nodes.end(),
            [](const NodeInfo& a, const NodeInfo& b) { return a.id < b.id; });
  TIERCEL_TRY(Validate(view));
  return view;
}

std::string FormatView(const View& view) {
  json root = {{"epoch", view.epoch}, {"nodes", json::array()}};
  for (const NodeInfo& node : view.nodes) {
    root["nodes"].push_back({{"id", node.id},
                             {"endpoint", node.endpoint},
                             {"zone", node.zone},
                             {"shards", node.shard_weights}});
  }
  return root.dump();
}

Status Validate(const View& view) {
  if (view.nodes.size() > 4096) return Fail(Code::kInvalidArgument, "view: more than 4096 nodes");
  for (size_t i = 0; i < view.nodes.size(); ++i) {
    const NodeInfo& node = view.nodes[i];
    if (node.id.empty() || node.id.size() > 253) {
      return Fail(Code::kInvalidArgument, fmt::format("view: nodes[{}].id is empty or over 253 bytes", i));
    }
    if (i > 0 && view.nodes[i - 1].id >= node.id) {
      return Fail(Code::kInvalidArgument, fmt::format("view: node id '{}' appears twice or out of order", node.id));
    }
    if (node.endpoint.empty()) {
      return Fail(Code::kInvalidArgument, fmt::format("view: node '{}' has no endpoint", node.id));
    }
    if (node.shard_weights.empty() || node.shard_weights.size() > 256) {
      return Fail(Code::kInvalidArgument, fmt::format("view: node '{}' has {} shards, not 1..256", node.id,
                                                      node.shard_weights.size()));
    }
  }
  return OkStatus();
}

uint64_t ShardSeed(std::string_view node_id, uint32_t shard) {
  FieldHash hash("tiercel shard v1");
  hash.Add(node_id).AddU32(shard);
  const auto digest = hash.Finish();
  return LoadLe<uint64_t>(digest.data());
}

uint64_t PlacementHash(const PlacementKey& anchor, uint64_t shard_seed) {
  return Mix64(Mix64(anchor.hash64() ^ shard_seed) ^ LoadLe<uint64_t>(anchor.bytes.data() + 8));
}

uint64_t NegLog2Fixed(uint64_t hash) {
  // u = (hash + 1) / 2^64 in (0, 1]; log2(hash + 1) bit by bit, by repeated squaring of the mantissa.
  if (hash == UINT64_MAX) return 0;
  const uint64_t value = hash + 1;
  const int exponent = 63 - __builtin_clzll(value);
  uint64_t mantissa = value << (63 - exponent);  // 1.63 fixed point in [1, 2)
  uint64_t fraction = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const auto square = static_cast<Uint128>(mantissa) * mantissa;  // 2.126
    fraction <<= 1;
    if ((square >> 127) != 0) {
      fraction |= 1;
      mantissa = static_cast<uint64_t>(square >> 64);
    } else {
      mantissa = static_cast<uint64_t>(square >> 63);
    }
  }
  return (uint64_t{64} << 32) - ((static_cast<uint64_t>(exponent) << 32) + fraction);
}

Placement::Placement(const View& view) {
  std::map<std::string, uint32_t> zones;
  for (uint32_t n = 0; n < view.nodes.size(); ++n) {
    const NodeInfo& node = view.nodes[n];
    const uint32_t zone = zones.try_emplace(node.zone, static_cast<uint32_t>(zones.size())).first->second;
    for (uint32_t s = 0; s < node.shard_weights.size(); ++s) {
      if (node.shard_weights[s] == 0) continue;
      slots_.push_back({{n, s}, ShardSeed(node.id, s), node.shard_weights[s], zone});
    }
  }
}

namespace {

// The score of a slot is weight / neglog2; a beats b when a.weight * b.neglog > b.weight * a.neglog,
// which needs no division and, with weights to 2^20 and logarithms to 2^38, no more than 64 bits. Ties go to the earlier slot.
struct Score {
  uint64_t neglog;
  uint64_t weight;
  bool Beats(const Score& other) const {
    return weight * other.neglog > other.weight * neglog;
  }
};

}  // namespace

Placement::Slot Placement::Owner(const PlacementKey& anchor) const {
  TIERCEL_CHECK(!slots_.empty());
  size_t best = 0;
  Score best_score{};
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Score score{NegLog2Fixed(PlacementHash(anchor, slots_[i].seed)), slots_[i].weight};
    if (i == 0 || score.Beats(best_score)) {
      best = i;
      best_score = score;
    }
  }
  return slots_[best].slot;
}

Placement::Slot Placement::Second(const PlacementKey& anchor) const {
  const Slot owner = Owner(anchor);
  uint32_t owner_zone = 0;
  for (const Entry& entry : slots_) {
    if (entry.slot == owner) owner_zone = entry.zone;
  }
  const Entry* best = nullptr;
  Score best_score{};
  bool best_other_zone = false;
  for (const Entry& entry : slots_) {
    if (entry.slot.node == owner.node) continue;
    const bool other_zone = entry.zone != owner_zone;
    const Score score{NegLog2Fixed(PlacementHash(anchor, entry.seed)), entry.weight};
    if (best == nullptr || (other_zone && !best_other_zone) ||
        (other_zone == best_other_zone && score.Beats(best_score))) {
      best = &entry;
      best_score = score;
      best_other_zone = other_zone;
    }
  }
  return best == nullptr ? owner : best->slot;
}

}  // namespace tiercel
