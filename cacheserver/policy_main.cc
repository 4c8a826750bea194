// tiercel-policy: what eviction policies would make of a trace, in the code that a node runs.
// `tiercel policy simulate` runs it; it is a program of its own since a client never sees the
// tiers.
//
//   tiercel-policy simulate TRACE [--policy NAME ...] [--sizes 1,2,5] [--hints none] [--png FILE]
//   [--csv FILE]
//
// Exit codes: 0 it worked; 1 a file cannot be read or written; 2 it was asked wrongly, or the trace
// is bad.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "cacheserver/curve_chart.h"
#include "tiering/policy_simulate.h"

namespace tiercel {
namespace {

constexpr size_t kMaxSizes = 64;
constexpr size_t kMaxPolicies =
    CurveChart::kMaxCurves - 2;  // MIN and the ceiling stand beside them.

struct Arguments {
  std::string trace;
  std::vector<std::string> policies;
  std::vector<double> sizes = {1, 2, 5, 10, 20, 30};  // Percent of the footprint.
  std::string hints = "none";
  uint64_t seed = 1;
  std::string png;
  std::string csv;
};

struct Measured {
  std::string name;
  std::vector<SimulatedHits> hits;  // One a size.
};

uint64_t Blocks(const Trace& trace, double percent) {
  return std::max<uint64_t>(
      1, static_cast<uint64_t>(static_cast<double>(trace.footprint) * percent / 100 + 0.5));
}

Status CheckArguments(Arguments& arguments) {
  if (arguments.policies.empty()) arguments.policies = {PolicyNames().front(), "lru"};
  if (arguments.policies.size() > kMaxPolicies) {
    return Fail(Code::kInvalidArgument,
                fmt::format("--policy: at most {} policies in one chart", kMaxPolicies));
  }
  for (const std::string& policy : arguments.policies) {
    if (const auto made = MakePolicy(policy, 1); !made) return tl::unexpected(made.error());
  }
  if (arguments.sizes.size() > kMaxSizes)
    return Fail(Code::kInvalidArgument, fmt::format("--sizes: at most {} sizes", kMaxSizes));
  for (const double size : arguments.sizes) {
    if (!(size > 0 && size <= 100)) {
      return Fail(
          Code::kInvalidArgument,
          fmt::format("--sizes {:g}: must be more than 0 and at most 100 (% of the footprint)",
                      size));
    }
  }
  std::sort(arguments.sizes.begin(), arguments.sizes.end());
  arguments.sizes.erase(std::unique(arguments.sizes.begin(), arguments.sizes.end()),
                        arguments.sizes.end());
  return OkStatus();
}

Status WriteCsv(const Arguments& arguments, const Trace& trace, const std::vector<Measured>& all) {
  std::FILE* out = std::fopen(arguments.csv.c_str(), "w");
  if (out == nullptr)
    return Fail(Code::kUnavailable, fmt::format("{}: {}", arguments.csv, std::strerror(errno)));
  fmt::print(out, "policy,hints,size_percent,blocks,asked,hits,hit_ratio,second_half_hit_ratio\n");
  for (const Measured& m : all) {
    for (size_t i = 0; i < arguments.sizes.size(); ++i) {
      fmt::print(out, "{},{},{:g},{},{},{},{:.6f},{:.6f}\n", m.name, arguments.hints,
                 arguments.sizes[i], Blocks(trace, arguments.sizes[i]), m.hits[i].accesses,
                 m.hits[i].hits, m.hits[i].ratio(), m.hits[i].late_ratio());
    }
  }
  const bool written = std::ferror(out) == 0;
  if (std::fclose(out) != 0 || !written)
    return Fail(Code::kUnavailable, fmt::format("{}: cannot be written", arguments.csv));
  return OkStatus();
}

Status SimulateCommand(Arguments arguments) {
  TIERCEL_TRY(CheckArguments(arguments));
  const auto hints = ParseTraceHints(arguments.hints);
  if (!hints) {
    return Fail(
        Code::kInvalidArgument,
        fmt::format("--hints {}: must be none, honest, half, noisy or said", arguments.hints));
  }
  TIERCEL_ASSIGN(const Trace trace, ReadTrace(arguments.trace));
  if (trace.accesses == 0)
    return Fail(Code::kInvalidArgument,
                fmt::format("{}: the trace asks for no block", arguments.trace));
  const double ceiling =
      static_cast<double>(trace.seen_before) / static_cast<double>(trace.accesses);

  std::vector<Measured> all;
  for (const std::string& policy : arguments.policies) {
    Measured& m = all.emplace_back(Measured{policy, {}});
    for (const double size : arguments.sizes) {
      TIERCEL_ASSIGN(const SimulatedHits hits,
                     Simulate(trace, policy, Blocks(trace, size), *hints, arguments.seed));
      m.hits.push_back(hits);
    }
  }
  Measured& most = all.emplace_back(Measured{"MIN", {}});
  for (const double size : arguments.sizes)
    most.hits.push_back(Optimum(trace, Blocks(trace, size)));

  fmt::print("{}: {} requests, {} blocks asked for, {} different; hints: {}\n", arguments.trace,
             trace.requests.size(), trace.accesses, trace.footprint, arguments.hints);
  fmt::print("ceiling: a cache without bounds hits {:.4f}; MIN knows the future\n\n", ceiling);
  fmt::print("{:>7} {:>10}", "size %", "blocks");
  for (const Measured& m : all) fmt::print(" {:>8}", m.name);
  fmt::print("\n");
  for (size_t i = 0; i < arguments.sizes.size(); ++i) {
    fmt::print("{:>7g} {:>10}", arguments.sizes[i], Blocks(trace, arguments.sizes[i]));
    for (const Measured& m : all) fmt::print(" {:>8.4f}", m.hits[i].ratio());
    fmt::print("\n");
  }

  CurveChart chart;
  chart.title = fmt::format(
      "{}, hints: {}", std::filesystem::path(arguments.trace).filename().string(), arguments.hints);
  chart.x_label = "size, % of the footprint";
  chart.sizes = arguments.sizes;
  for (const Measured& m : all) {
    CurveChart::Curve& curve = chart.curves.emplace_back(CurveChart::Curve{m.name, {}});
    for (const SimulatedHits& hits : m.hits) curve.ratios.push_back(hits.ratio());
  }
  chart.curves.push_back({"ceiling", std::vector<double>(chart.sizes.size(), ceiling)});
  fmt::print("\n{}", DrawText(chart));
  if (!arguments.csv.empty()) TIERCEL_TRY(WriteCsv(arguments, trace, all));
  if (!arguments.png.empty()) TIERCEL_TRY(WritePng(chart, arguments.png));
  return OkStatus();
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  using namespace tiercel;  // NOLINT
  CLI::App app("Replays traces through a node's eviction policies.", "tiercel policy");
  app.require_subcommand(1);
  Arguments arguments;
  CLI::App* simulate =
      app.add_subcommand("simulate", "hit ratio by size of the cache, as text and as a picture");
  simulate->add_option("TRACE", arguments.trace, "JSON lines: docs/policy.md")->required();
  simulate->add_option("--policy", arguments.policies, "hazard, lru, ...; may be repeated")
      ->delimiter(',')
      ->allow_extra_args(false);
  simulate->add_option("--sizes", arguments.sizes, "percent of the trace's footprint")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  simulate
      ->add_option("--hints", arguments.hints,
                   "none, honest, half or noisy; said: by the trace's \"hint\"")
      ->capture_default_str();
  simulate->add_option("--seed", arguments.seed, "of the policies and the hints")
      ->capture_default_str();
  simulate->add_option("--png", arguments.png, "draw the curves into this file");
  simulate->add_option("--csv", arguments.csv, "write the figures into this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status done = SimulateCommand(std::move(arguments));
  if (done) return 0;
  fmt::print(stderr, "tiercel policy simulate: {}\n", done.error().message);
  return done.error().code == Code::kInvalidArgument ? 2 : 1;
}
