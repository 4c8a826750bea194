// tiercel_sim: runs the simulator from a seed, or over many.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "tests/sim/abort_seed.h"
#include "tests/sim/simulation.h"

int main(int argc, char** argv) {
  CLI::App app{"Runs a node's shard with virtual clients, network, clock and disk, and checks what happens"};
  tiercel::Simulation::Options options;
  uint64_t seeds = 1;
  bool verbose = false;
  app.add_option("--seed", options.seed, "the first seed");
  app.add_option("--seeds", seeds, "how many seeds from there on");
  app.add_option("--steps", options.steps, "steps of each");
  app.add_flag("-v,--verbose", verbose, "a line for each seed, and the node's own log");
  CLI11_PARSE(app, argc, argv);
  tiercel::ConfigureLog(verbose ? tiercel::LogLevel::kDebug : tiercel::LogLevel::kError, tiercel::LogFormat::kText);
  tiercel::NameSeedOnAbort();
  uint64_t failed = 0;
  for (uint64_t i = 0; i < seeds; ++i, ++options.seed) {
    tiercel::g_running_seed = options.seed;
    tiercel::Simulation simulation(options);
    const tiercel::Status ran = simulation.Run();
    const auto& o = simulation.outcome();
    if (!ran) {
      ++failed;
      fmt::print("FAILED {}\n", ran.error().message);
    }
    if (verbose || seeds == 1) {
      fmt::print("seed {}: {} hits ({} from SSD), {} misses, {} puts, {} durable, {} refused, {} cancelled, "
                 "{} evicted, {} crashes, {} restarts, {} clears, {} segments dropped, {:.1f} s simulated\n",
                 options.seed, o.counts.hits, o.hits_ssd, o.counts.misses, o.counts.puts, o.counts.durable,
                 o.counts.refused, o.counts.cancelled, o.evicted, o.crashes, o.restarts, o.clears,
                 o.dropped_segments, static_cast<double>(o.simulated) * 1e-9);
    }
  }
  fmt::print("{} seeds of {} steps, {} failed\n", seeds, options.steps, failed);
  return failed == 0 ? 0 : 1;
}
