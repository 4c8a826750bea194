// policy: what eviction would do. The engine of `policy simulate` is tiercel-policy, beside the
// server: policies are of the tiers, which a client never sees.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "client/cli/common.h"

namespace tiercel::cli {
namespace {

constexpr const char* kEngine = "tiercel-policy";

// Becomes the engine: the one beside this program, else one in PATH.
Result<int> RunEngine(const std::vector<std::string>& arguments) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string beside = error ? "" : (self.parent_path() / kEngine).string();
  std::vector<std::string> words = {kEngine, "simulate"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  if (!beside.empty()) execv(beside.c_str(), argv.data());
  execvp(kEngine, argv.data());
  return Fail(Code::kNotFound,
              fmt::format("{} is neither at {} nor in PATH ({}); it comes with tiercel-server",
                          kEngine, beside, std::strerror(errno)));
}

Result<int> CurveCommand(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  TIERCEL_ASSIGN(const Nanos timeout, Timeout(common));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::StatResponse stat;
  TIERCEL_TRY(Check(stubs.data->Stat(&context, v1::StatRequest(), &stat), common));
  uint64_t ram = 0;
  for (const v1::ShardStat& shard : stat.shards()) ram += shard.host_capacity();
  nlohmann::json all = nlohmann::json::array();
  for (const v1::WhatIfCurve& curve : stat.what_if()) {
    if (curve.asked() <= 0) continue;
    nlohmann::json points = nlohmann::json::array();
    if (!common.json) {
      fmt::print("{}: about {:.0f} blocks wanted; with RAM of\n", curve.name_space(),
                 curve.asked());
    }
    for (int i = 0; i < std::min(curve.sizes_size(), curve.hits_size()); ++i) {
      const double ratio = curve.hits(i) / curve.asked();
      const auto bytes = static_cast<uint64_t>(curve.sizes(i) * static_cast<double>(ram));
      points.push_back({{"of_ram", curve.sizes(i)}, {"bytes", bytes}, {"hit_ratio", ratio}});
      if (common.json) continue;
      fmt::print("  {:>10} ({:>5g} x) {:.4f} {}\n", FormatBytes(bytes), curve.sizes(i), ratio,
                 std::string(static_cast<size_t>(std::lround(ratio * 50)), '#'));
    }
    const double ceiling = curve.ceiling() / curve.asked();
    all.push_back({{"name_space", curve.name_space()},
                   {"asked", curve.asked()},
                   {"ceiling", ceiling},
                   {"points", points}});
    if (!common.json) {
      fmt::print("  {:>10} {:>9} {:.4f} {}\n", "ceiling", "", ceiling,
                 std::string(static_cast<size_t>(std::lround(ceiling * 50)), '#'));
    }
  }
  if (common.json) {
    fmt::print("{}\n", all.dump(2));
  } else if (all.empty()) {
    fmt::print("nothing was asked for yet\n");
  }
  return 0;
}

}  // namespace

void AddPolicyCommands(CLI::App& app, Common& common, Commands& commands) {
  CLI::App* policy = app.add_subcommand("policy", "what eviction makes of traffic");
  policy->require_subcommand(1);
  commands.emplace_back(
      policy->add_subcommand("curve", "hit ratio by size of RAM, estimated from a node's traffic"),
      [&common] { return CurveCommand(common); });
  // Every argument is the engine's, --help as well.
  CLI::App* simulate = policy->add_subcommand(
      "simulate", "replay a trace through the policies: hit ratio by size, as text and picture");
  simulate->set_help_flag();
  simulate->fallthrough(false);
  simulate->prefix_command();
  commands.emplace_back(simulate, [simulate] { return RunEngine(simulate->remaining()); });
}

}  // namespace tiercel::cli
