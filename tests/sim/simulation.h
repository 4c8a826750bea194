// Simulation runs one node's shard, the production code, with random clients over a network, a clock and
// a disk that come from a seed, and holds what happens against what must be true.
//
//   Simulation(options).Run() --> OK, or the first thing that was wrong, with the seed that shows it
//
// What it does to the node: half-done and broken puts, cancels, lost and repeated hang-ups, partitions,
// full queues, kill -9 and restart, planned restart, clears, a disk that fills, rots, loses segments.
//
// Checked throughout, beside what the clients check (sim_client.h)
//   RAM in use <= capacity; queues and sessions within their limits; misses == the sum of their reasons.
//   What a client was told is on SSD is found after every restart (worlds whose disk is kind and large).
// Checked at the end, when all is healed
//   Every request has its answer. No session, pin, hold or reservation is left; after a clear RAM is empty.
//
// Threads: one. The same options give the same run.
#ifndef TIERCEL_TESTS_SIM_SIMULATION_H_
#define TIERCEL_TESTS_SIM_SIMULATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "cacheserver/shard.h"
#include "tests/fakes/memory_ssd_store.h"
#include "tests/fakes/sim_clock.h"
#include "tests/fakes/sim_network.h"
#include "tests/sim/ledger.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/world.h"

namespace tiercel {

class Simulation {
 public:
  struct Options {
    uint64_t seed = 1;
    uint64_t steps = 2000;
    SimClient::Sabotage sabotage = SimClient::Sabotage::kNone;
  };
  struct Outcome {
    SimClient::Counts counts;
    uint64_t hits_ssd = 0;
    uint64_t crashes = 0;
    uint64_t restarts = 0;
    uint64_t clears = 0;
    uint64_t dropped_segments = 0;
    uint64_t evicted = 0;
    uint64_t digest = 0;
    Nanos simulated = 0;
  };

  explicit Simulation(const Options& options);
  ~Simulation();
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  Status Run();
  const Outcome& outcome() const { return outcome_; }

 private:
  static constexpr uint32_t kClients = 4;

  void StartNode();
  void StopNode(bool crash);
  void Step();
  void DisturbNode();
  void DisturbNetwork();
  void DisturbDisk();
  void OpenSession(SimClient& client);
  void Clear(uint32_t space, const Scope& scope);
  void RunUntil(Nanos until);
  void Check();
  void CheckDurable();
  void Finish();

  const Options options_;
  SplitMix64 random_;
  // The kind of world, drawn once.
  const bool kind_disk_;  // Large, and without faults: what is durable stays.
  SimClock clock_;
  SimNetwork network_;
  MemoryDisk disk_;
  World world_;
  Ledger ledger_;
  uint64_t life_ = 0;
  uint64_t next_session_ = 1;
  std::string node_address_;
  MemorySsdStore* store_ = nullptr;
  std::unique_ptr<Shard> shard_;
  std::vector<std::unique_ptr<SimClient>> clients_;
  Outcome outcome_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_SIM_SIMULATION_H_
