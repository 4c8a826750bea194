#include <gtest/gtest.h>

#include <cstdlib>

#include "base/log.h"
#include "tests/sim/abort_seed.h"
#include "tests/sim/simulation.h"

namespace tiercel {
namespace {

class SimTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ConfigureLog(LogLevel::kError, LogFormat::kText);
    NameSeedOnAbort();
  }
  static Status Run(const Simulation::Options& options, Simulation::Outcome* outcome = nullptr) {
    g_running_seed = options.seed;
    Simulation simulation(options);
    const Status ran = simulation.Run();
    if (outcome != nullptr) *outcome = simulation.outcome();
    return ran;
  }
};

TEST_F(SimTest, NoSeedShowsAWrongByteALeakOrARequestWithoutAnswer) {
  const char* full = std::getenv("TIERCEL_FULL");
  const uint64_t seeds = full != nullptr && *full == '1' ? 1500 : 50;
  Simulation::Outcome total;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    Simulation::Options options;
    options.seed = seed;
    options.steps = seed % 10 == 0 ? 2000 : 500;
    Simulation::Outcome outcome;
    const Status ran = Run(options, &outcome);
    ASSERT_TRUE(ran) << ran.error().message;
    total.counts.hits += outcome.counts.hits;
    total.counts.misses += outcome.counts.misses;
    total.counts.durable += outcome.counts.durable;
    total.counts.cancelled += outcome.counts.cancelled;
    total.hits_ssd += outcome.hits_ssd;
    total.evicted += outcome.evicted;
    total.crashes += outcome.crashes;
    total.dropped_segments += outcome.dropped_segments;
  }
  // What never happened was not tested.
  EXPECT_GT(total.counts.hits, 100 * seeds);
  EXPECT_GT(total.counts.misses, 100 * seeds);
  EXPECT_GT(total.counts.durable, seeds);
  EXPECT_GT(total.counts.cancelled, seeds);
  EXPECT_GT(total.hits_ssd, seeds);
  EXPECT_GT(total.evicted, seeds);
  EXPECT_GT(total.crashes, seeds / 5);
  EXPECT_GT(total.dropped_segments, seeds / 5);
}

TEST_F(SimTest, TheSameSeedGivesTheSameRun) {
  Simulation::Options options;
  options.seed = 7;
  Simulation::Outcome first, second;
  ASSERT_TRUE(Run(options, &first));
  ASSERT_TRUE(Run(options, &second));
  EXPECT_EQ(first.digest, second.digest);
  EXPECT_EQ(first.simulated, second.simulated);
  options.seed = 8;
  ASSERT_TRUE(Run(options, &second));
  EXPECT_NE(first.digest, second.digest);
}

// A check that cannot fail checks nothing: each kind of lie must be noticed.
TEST_F(SimTest, EveryLieIsNoticed) {
  const std::pair<SimClient::Sabotage, const char*> lies[] = {
      {SimClient::Sabotage::kFlipBit, "WRONG BYTES"},
      {SimClient::Sabotage::kDropAnswer, "without an answer"},
      {SimClient::Sabotage::kRepeatAnswer, "answered twice"},
      {SimClient::Sabotage::kForgetPut, "never put"},
  };
  for (const auto& [lie, what] : lies) {
    Simulation::Options options;
    options.seed = 3;
    options.steps = 1000;
    options.sabotage = lie;
    const Status ran = Run(options);
    ASSERT_FALSE(ran) << what;
    EXPECT_NE(ran.error().message.find(what), std::string::npos) << ran.error().message;
  }
}

}  // namespace
}  // namespace tiercel
