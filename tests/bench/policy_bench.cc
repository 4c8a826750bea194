// Every eviction policy beside LRU and the optimum that knows the future, on traces of real traffic, in
// the production code: prefix-hit ratio at 1 to 30 % of each trace's footprint, with and without hints,
// and what a decision costs; and the curve that a node draws of its traffic beside the replayed one.
//
//   policy_bench [--traces FOLDER] [--quick] [--json FILE]
//
// Figures are over whole traces, from an empty cache; the second half of the requests, when it is full and
// has learned, stands beside them. The policy's constants were chosen with both traces before us, whole:
// neither half is unseen traffic. Hints are drawn with three seeds: a figure is their mean.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "tests/bench/bench_kit.h"
#include "tiering/policy_simulate.h"
#include "tiering/what_if.h"

namespace tiercel::bench {
namespace {

constexpr int kSizes[] = {1, 2, 5, 10, 20, 30};  // Percent of the footprint.
constexpr const char* kConversation = "conversation_trace_first6000";
constexpr const char* kSynthetic = "synthetic_trace";

struct Cell {
  double whole = 0;
  double late = 0;
};
using Row = std::map<int, Cell>;  // By size.

uint64_t Blocks(const Trace& trace, int percent) {
  return std::max<uint64_t>(1, (trace.footprint * static_cast<uint64_t>(percent) + 50) / 100);
}

Row Measure(const Trace& trace, const std::string& policy, TraceHints hints, int seeds) {
  Row row;
  for (const int size : kSizes) {
    Cell& cell = row[size];
    for (int seed = 1; seed <= seeds; ++seed) {
      const auto hits = Simulate(trace, policy, Blocks(trace, size), hints, static_cast<uint64_t>(seed));
      TIERCEL_CHECK(hits);
      cell.whole += hits->ratio() / seeds;
      cell.late += hits->late_ratio() / seeds;
    }
  }
  return row;
}

void Print(const std::string& name, const Row& row, const Row& lru) {
  fmt::print("{:<16}", name);
  for (const int size : kSizes) fmt::print("  {:.4f} {:5.2f}", row.at(size).whole, row.at(size).whole / lru.at(size).whole);
  fmt::print("   |");
  for (const int size : kSizes) fmt::print(" {:.4f}", row.at(size).late);
  fmt::print("\n");
  std::fflush(stdout);
}

// The least of a row by another, over sizes.
double Worst(const Row& row, const Row& other, double Cell::*part) {
  double worst = 1e9;
  for (const int size : kSizes) worst = std::min(worst, row.at(size).*part / (other.at(size).*part));
  return worst;
}

struct Figures {
  Row lru, most, haz1, none, honest, half, noisy;
};

Figures MeasureTrace(const std::string& name, const Trace& trace, int seeds) {
  fmt::print("\n{}: {} requests, {} blocks asked for, {} different; a cache without bounds hits {:.4f}\n", name,
             trace.requests.size(), trace.accesses, trace.footprint,
             static_cast<double>(trace.seen_before) / static_cast<double>(trace.accesses));
  fmt::print("{:<16}", "hits, and by LRU");
  for (const int size : kSizes) fmt::print("  {:>10} %", size);
  fmt::print("   | second half of the requests\n");
  Figures f;
  f.lru = Measure(trace, "lru", TraceHints::kNone, 1);
  for (const int size : kSizes) {
    const SimulatedHits hits = Optimum(trace, Blocks(trace, size));
    f.most[size] = {hits.ratio(), hits.late_ratio()};
  }
  Print("MIN", f.most, f.lru);
  Print("lru", f.lru, f.lru);
  for (const std::string policy : {"lfu", "s3fifo"}) Print(policy, Measure(trace, policy, TraceHints::kNone, 1), f.lru);
  f.haz1 = Measure(trace, "haz1", TraceHints::kNone, seeds);
  Print("haz1", f.haz1, f.lru);
  f.none = Measure(trace, "hazard", TraceHints::kNone, seeds);
  Print("hazard", f.none, f.lru);
  f.half = Measure(trace, "hazard", TraceHints::kHalf, seeds);
  Print("  hints: half", f.half, f.lru);
  f.noisy = Measure(trace, "hazard", TraceHints::kNoisy, seeds);
  Print("  hints: noisy", f.noisy, f.lru);
  f.honest = Measure(trace, "hazard", TraceHints::kHonest, seeds);
  Print("  hints: honest", f.honest, f.lru);
  return f;
}

struct Cost {
  std::vector<double> use, decision;
};

std::string Spread(std::vector<double> ns) {
  std::sort(ns.begin(), ns.end());
  return fmt::format("{:.0f} [{:.0f} {:.0f}]", ns[ns.size() / 2], ns.front(), ns.back());
}

double Median(std::vector<double> ns) {
  std::sort(ns.begin(), ns.end());
  return ns[ns.size() / 2];
}

void MeasureCost(const std::string& name, const Trace& trace, Goals& goals, int rounds) {
  constexpr int kReads = 100000;
  const Nanos began = Clock::Monotonic().Now();
  for (int i = 1; i < kReads; ++i) (void)Clock::Monotonic().Now();
  const double read = static_cast<double>(Clock::Monotonic().Now() - began) / kReads;
  fmt::print("\n{}, 5 %: ns, median [least most]; of a decision {:.0f} ns are the reading of the clock\n", name, read);
  fmt::print("{:<10} {:<24} {}\n", "", "the median decision", "a block used, with the index and its victim");
  std::map<std::string, Cost> each;
  for (int round = 0; round < rounds; ++round) {
    for (const std::string& policy : PolicyNames()) {
      const auto hits = Simulate(trace, policy, Blocks(trace, 5), TraceHints::kNone, 1, &Clock::Monotonic());
      TIERCEL_CHECK(hits && hits->evictions > 0);
      each[policy].use.push_back(static_cast<double>(hits->in_policy) / static_cast<double>(hits->uses));
      std::vector<uint32_t> each_ns = hits->deciding;
      std::nth_element(each_ns.begin(), each_ns.begin() + static_cast<ptrdiff_t>(each_ns.size() / 2), each_ns.end());
      each[policy].decision.push_back(each_ns[each_ns.size() / 2]);
    }
  }
  for (const auto& [policy, cost] : each) fmt::print("{:<10} {:<24} {}\n", policy, Spread(cost.decision), Spread(cost.use));
  goals.AtMost("policy_decision_ns", Median(each["hazard"].decision), "ns", 500);
  goals.AtMost("policy_use_ns", Median(each["hazard"].use), "ns", 2000);
}

// The online curve beside the replay of LRU at each of its sizes, and what it costs a block.
void MeasureWhatIf(const std::string& name, const Trace& trace, Goals& goals, int rounds) {
  const uint64_t ram = Blocks(trace, 5);
  constexpr uint64_t kBytes = 4096;
  std::vector<BlockKey> keys(trace.footprint);
  for (size_t i = 0; i < keys.size(); ++i) {
    SplitMix64 random(i);
    for (size_t word = 0; word < 4; ++word) StoreLe<uint64_t>(keys[i].bytes.data() + 8 * word, random.Next());
  }
  std::vector<double> ns;
  WhatIf::Curve curve;
  uint32_t one_in = 0;
  for (int round = 0; round < rounds; ++round) {
    WhatIf what_if(ram * kBytes, 1);
    const Nanos began = Clock::Monotonic().Now();
    for (const Trace::Request& request : trace.requests) {
      for (const uint32_t block : request.blocks) {
        what_if.Asked(1, keys[block], false);
        what_if.Stored(1, keys[block], kBytes);
      }
    }
    ns.push_back(static_cast<double>(Clock::Monotonic().Now() - began) / static_cast<double>(trace.accesses));
    curve = what_if.curves().at(1);
    one_in = what_if.one_in();
  }
  fmt::print("\n{}: the online curve, RAM of 5 %; of {} keys one in {} is remembered; ns a block wanted {}\n", name,
             trace.footprint, one_in, Spread(ns));
  double worst = 0;
  for (size_t i = 0; i < WhatIf::kSizes.size(); ++i) {
    const auto blocks = static_cast<uint64_t>(WhatIf::kSizes[i] * static_cast<double>(ram));
    const auto lru = Simulate(trace, "lru", blocks, TraceHints::kNone, 1);
    TIERCEL_CHECK(lru);
    const double told = curve.hits[i] / curve.asked;
    fmt::print("  {:>6g} x RAM  told {:.4f}  LRU hits {:.4f}\n", WhatIf::kSizes[i], told, lru->ratio());
    worst = std::max(worst, std::abs(told - lru->ratio()));
  }
  const std::string which = name == kConversation ? "chat" : "synthetic";
  goals.AtMost("what_if_worst_error_" + which, worst, "hit_ratio", 0.03);
  goals.AtMost("what_if_ns_" + which, Median(ns), "ns", 200);
}

int Main(const std::string& folder, bool quick, const std::string& json) {
  const int seeds = quick ? 1 : 3;
  Goals goals(stdout);
  std::vector<std::pair<std::string, Trace>> traces;
  for (const std::string name : {kConversation, kSynthetic}) {
    auto trace = ReadTrace(fmt::format("{}/{}.jsonl", folder, name));
    if (!trace) {
      fmt::print(stderr, "policy_bench: {}; name the traces' folder with --traces\n", trace.error().message);
      return 1;
    }
    traces.emplace_back(name, std::move(*trace));
  }
  std::map<std::string, Figures> figures;
  for (const auto& [name, trace] : traces) figures[name] = MeasureTrace(name, trace, seeds);
  MeasureCost(kConversation, traces.front().second, goals, quick ? 1 : 5);

  for (const auto& [name, trace] : traces) MeasureWhatIf(name, trace, goals, quick ? 1 : 5);

  fmt::print("\n");
  const Figures& chat = figures[kConversation];
  const auto by = [](const Row& row, const Row& other, int size) { return row.at(size).whole / other.at(size).whole; };
  goals.AtLeast("policy_no_hints_5pct", by(chat.none, chat.lru, 5), "of_lru", 1.20);
  goals.AtLeast("policy_no_hints_10pct", by(chat.none, chat.lru, 10), "of_lru", 1.03);
  double worst = 1e9;
  double worst_late = 1e9;
  for (const auto& [name, f] : figures) {
    worst = std::min(worst, Worst(f.none, f.lru, &Cell::whole));
    worst_late = std::min(worst_late, Worst(f.none, f.lru, &Cell::late));
  }
  goals.AtLeast("policy_worst_cell", worst, "of_lru", 0.97);
  goals.AtLeast("policy_worst_cell_second_half", worst_late, "of_lru", 0.97);
  goals.AtLeast("policy_honest_hints_5pct", by(chat.honest, chat.most, 5), "of_min", 0.88);
  goals.AtLeast("policy_honest_hints_10pct", by(chat.honest, chat.most, 10), "of_min", 0.96);
  goals.AtLeast("policy_half_hints_5pct", by(chat.half, chat.most, 5), "of_min", 0.50);
  goals.AtLeast("policy_half_hints_10pct", by(chat.half, chat.most, 10), "of_min", 0.75);
  for (const int size : {5, 10}) {
    goals.AtLeast(fmt::format("policy_noisy_hints_{}pct_by_lru", size), by(chat.noisy, chat.lru, size), "of_lru", 1.0);
    goals.AtLeast(fmt::format("policy_noisy_hints_{}pct_by_haz1", size), by(chat.noisy, chat.haz1, size), "of_haz1", 1.0);
  }
  goals.AtLeast("policy_moonshot_no_hints_5pct", by(chat.none, chat.most, 5), "of_min", 0.60);
  if (!json.empty()) {
    std::FILE* out = std::fopen(json.c_str(), "w");
    if (out == nullptr) {
      fmt::print(stderr, "policy_bench: cannot write {}\n", json);
      return 1;
    }
    goals.WriteJson(out);
    std::fclose(out);
  }
  return 0;
}

}  // namespace
}  // namespace tiercel::bench

int main(int argc, char** argv) {
  std::string folder = "../shared/traces";
  std::string json;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    if (option == "--quick") {
      quick = true;
    } else if (option == "--traces" && i + 1 < argc) {
      folder = argv[++i];
    } else if (option == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      fmt::print(stderr, "usage: policy_bench [--traces FOLDER] [--quick] [--json FILE]\n");
      return 2;
    }
  }
  return tiercel::bench::Main(folder, quick, json);
}
