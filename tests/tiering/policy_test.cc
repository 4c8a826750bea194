#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/conformance/policy_conformance.h"
#include "tiering/policy_hazard.h"
#include "tiering/policy_reuse.h"
#include "tiering/policy_simulate.h"

namespace tiercel {
namespace {

using ::testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(All, PolicyConformance, ::testing::ValuesIn(PolicyNames()));

TEST(PolicyTest, AnUnknownNameIsToldWithThoseThatExist) {
  const auto made = MakePolicy("fifo", 1);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Code::kInvalidArgument);
  EXPECT_THAT(made.error().message, HasSubstr("s3fifo"));
}

// What each policy keeps of ranks between decisions is what they are: of the coldest blocks of its
// lists the victim ranks lowest, after uses, pauses, removals and refits alike.
TEST(PolicyTest, TheVictimRanksLowestOfTheColdest) {
  for (const std::string& name : PolicyNames()) {
    const auto policy = *MakePolicy(name, 3);
    std::vector<Block> blocks(600);
    SplitMix64 random(17);
    Nanos now = kSecond;
    size_t decisions = 0;
    for (uint64_t step = 0; step < 40000; ++step) {
      now += static_cast<Nanos>(random.Below(step % 1000 == 0 ? 3600 * kSecond : kSecond / 10));
      BlockUse use;
      use.now = now;
      use.hint = static_cast<ReuseHint>(random.Below(4));
      Block& block = blocks[random.Below(random.Below(blocks.size()) + 1)];
      if (block.record_bytes > 0) {
        policy->Touch(block, use);
        continue;
      }
      if (policy->size() >= 200) {
        Block* victim = policy->Victim(1, nullptr);
        const Block* lowest = nullptr;
        for (const Block& other : blocks) {
          if (other.record_bytes == 0 || other.colder != nullptr) continue;
          if (lowest == nullptr || policy->Rank(other) < policy->Rank(*lowest)) lowest = &other;
        }
        ASSERT_NE(victim, nullptr);
        if (decisions > 0) {  // The first sets the model's horizon, and with it all ranks.
          ASSERT_EQ(policy->Rank(*victim), policy->Rank(*lowest)) << name << ", step " << step;
        }
        policy->Remove(*victim);
        victim->record_bytes = 0;
        ++decisions;
      }
      const auto number = static_cast<uint64_t>(&block - blocks.data());
      StoreLe<uint64_t>(block.key.bytes.data(), (number + 1) * 0x9e3779b97f4a7c15);
      block.name_space = 1;
      block.record_bytes = 4096;
      block.host.bytes = 4096;
      policy->Add(block, use);
    }
    EXPECT_GT(decisions, 5000u) << name;
    for (Block& block : blocks) {
      if (block.record_bytes > 0) policy->Remove(block);
    }
  }
}

// Conversations of three turns, a minute between them, that end half of the time after the first.
Trace Conversations(int n) {
  std::string text;
  SplitMix64 random(9);
  std::vector<std::pair<uint64_t, std::string>> lines;
  for (int c = 0; c < n; ++c) {
    const uint64_t begins = 1000u * static_cast<uint64_t>(c);
    const bool goes_on = random.Below(2) == 0;
    std::string ids = "0";
    int next = 0;
    for (int turn = 0; turn < (goes_on ? 3 : 1); ++turn) {
      for (int i = 0; i < 10; ++i) ids += fmt::format(", {}", 1000 + 100 * c + next++);
      lines.emplace_back(begins + 60'000u * static_cast<uint64_t>(turn), ids);
    }
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [at, ids] : lines)
    text += fmt::format("{{\"timestamp\": {}, \"hash_ids\": [{}]}}\n", at, ids);
  return *ParseTrace(text);
}

double Ratio(const Trace& trace, std::string_view policy, uint64_t blocks, TraceHints hints) {
  return Simulate(trace, policy, blocks, hints, 1)->ratio();
}

TEST(HazardPolicyTest, HonestHintsAreWorthMoreThanNoneAndNoneIsNoWorseThanLru) {
  const Trace trace = Conversations(3000);
  const uint64_t blocks = 1200;  // What goes on fits, and not what does not as well.
  const double lru = Ratio(trace, "lru", blocks, TraceHints::kNone);
  const double none = Ratio(trace, "hazard", blocks, TraceHints::kNone);
  const double half = Ratio(trace, "hazard", blocks, TraceHints::kHalf);
  const double honest = Ratio(trace, "hazard", blocks, TraceHints::kHonest);
  EXPECT_GE(none, 0.97 * lru);
  EXPECT_GT(half, none);
  EXPECT_GT(honest, 1.05 * half);
  EXPECT_LE(honest, Optimum(trace, blocks).ratio() + 1e-9);
}

TEST(HazardPolicyTest, WrongHintsCostLittle) {
  const Trace trace = Conversations(3000);
  EXPECT_GT(Ratio(trace, "hazard", 1200, TraceHints::kNoisy),
            Ratio(trace, "hazard", 1200, TraceHints::kNone));
}

// RAM is full of what came once when a set of 2,000 blocks is written, a sixth of what fits, and
// read round after round, while other new blocks stream in.
struct WorkingSet {
  int chain;         // Blocks a chain of the set.
  int stream;        // New blocks a round,
  int stream_chain;  // in chains of this.
  int round_ms;
  bool mixed;  // The stream comes between the set's reads, not after them.
};

constexpr int kRam = 12000;
constexpr int kSet = 2000;
constexpr int kSetRounds = 20;

Trace Rounds(const WorkingSet& set) {
  std::string text;
  double at = 0;
  int next = 1'000'000;
  const auto request = [&](int first, int n) {
    text += fmt::format("{{\"timestamp\": {:.0f}, \"hash_ids\": [", at);
    for (int i = 0; i < n; ++i) text += fmt::format("{}{}", i > 0 ? ", " : "", first + i);
    text += "]}\n";
    at += n * 0.05;
  };
  const auto stream = [&] {
    request(std::exchange(next, next + set.stream_chain), set.stream_chain);
  };
  for (int filled = 0; filled < kRam; filled += set.stream_chain) stream();
  const int chains = kSet / set.chain;
  for (int c = 0; c < chains; ++c) request(c * set.chain, set.chain);
  for (int round = 0; round < kSetRounds; ++round) {
    const double begun = at;
    int streamed = 0;
    for (int c = 0; c < chains; ++c) {
      request(c * set.chain, set.chain);
      const int due = set.mixed ? set.stream * (c + 1) / chains : c + 1 == chains ? set.stream : 0;
      for (; streamed < due; streamed += set.stream_chain) {
        at = std::max(at, begun + static_cast<double>(set.round_ms) * streamed / set.stream);
        stream();
      }
    }
    at = std::max(at, begun + set.round_ms);
  }
  return *ParseTrace(text);
}

// Of the set's reads alone: nothing else of such a trace is asked for twice.
double SetLost(const Trace& trace, std::string_view policy) {
  return 1 - static_cast<double>(Simulate(trace, policy, kRam, TraceHints::kNone, 1)->hits) /
                 (kSet * kSetRounds);
}

TEST(HazardPolicyTest, AWorkingSetThatIsReadStaysThoughNewBlocksStreamIn) {
  for (const WorkingSet& set : std::vector<WorkingSet>{{1, 4000, 256, 60'000, true},
                                                       {10, 4000, 16, 60'000, true},
                                                       {10, 100, 256, 3'000, false},
                                                       {100, 1000, 256, 60'000, false},
                                                       {2000, 1000, 16, 3'000, true},
                                                       {2000, 1000, 256, 60'000, false},
                                                       {2000, 4000, 256, 3'000, false}}) {
    const Trace trace = Rounds(set);
    EXPECT_LE(SetLost(trace, "hazard"), SetLost(trace, "lru") + 0.02)
        << "chains of " << set.chain << ", " << set.stream << " new blocks a round in chains of "
        << set.stream_chain << ", a round of " << set.round_ms << " ms, mixed " << set.mixed;
  }
}

TEST(ReuseModelTest, LearnsHowLikelyAndHowSoonEachClassComesBack) {
  ReuseModel model(1, 2);
  SplitMix64 random(3);
  uint64_t next = 1;
  // Class 0 never comes back; class 1 does 100 ticks later.
  std::vector<std::pair<uint32_t, uint64_t>> due;
  for (uint32_t tick = 1; tick < 20'000; ++tick) {
    model.Use(next++ * 0x9e3779b97f4a7c15, 0, tick);
    const uint64_t key = next++ * 0x9e3779b97f4a7c15;
    model.Use(key, 1, tick);
    due.emplace_back(tick + 100, key);
    if (tick > 100) model.Use(due[tick - 101].second, 0, tick);
    model.Evicted(400, tick);
  }
  EXPECT_LT(model.ComesBack(0), 0.1);
  EXPECT_GT(model.ComesBack(1), 0.9);
  EXPECT_GT(model.Worth(1, 50), 5 * model.Worth(0, 50));
  EXPECT_LE(model.samples(), size_t{1} << 16);
}

TEST(ReuseModelTest, SamplesLessOfALargerCache) {
  ReuseModel model(1, 1, {}, 1024);
  for (uint32_t n = 0; n < 100'000; ++n) {
    model.Use(n * 0xd1342543de82ef95, 0, n / 100);
    model.Evicted(50'000, n / 100);
  }
  EXPECT_LE(model.samples(), 1024u);
  EXPECT_GE(model.samples(), 100u);
}

TEST(PolicySimulateTest, TheOptimumOfALoopThatDoesNotFitIsKnown) {
  // Three blocks in turn through a cache of two: LRU never hits, the optimum keeps two of them.
  std::string text;
  for (int i = 0; i < 300; ++i)
    text += fmt::format("{{\"timestamp\": {}, \"hash_ids\": [{}]}}\n", i, i % 3);
  const Trace trace = *ParseTrace(text);
  EXPECT_EQ(trace.footprint, 3u);
  EXPECT_EQ(trace.seen_before, 297u);
  EXPECT_EQ(Simulate(trace, "lru", 2, TraceHints::kNone, 1)->hits, 0u);
  EXPECT_NEAR(Optimum(trace, 2).ratio(), 0.66, 0.01);
  EXPECT_NEAR(Simulate(trace, "lru", 3, TraceHints::kNone, 1)->ratio(), 0.99, 0.001);
}

TEST(PolicySimulateTest, NoPolicyBeatsTheOptimum) {
  const Trace trace = Conversations(400);
  for (const uint64_t blocks : {50u, 200u, 800u}) {
    const uint64_t most = Optimum(trace, blocks).hits;
    for (const std::string& name : PolicyNames()) {
      EXPECT_LE(Simulate(trace, name, blocks, TraceHints::kHonest, 1)->hits, most)
          << name << " at " << blocks;
    }
  }
}

TEST(PolicySimulateTest, WhatATraceHasItsCallersSayIsSaid) {
  std::string said;
  std::string unsaid;
  const Trace honest = Conversations(3000);
  for (const Trace::Request& request : honest.requests) {
    const std::string line =
        fmt::format("{{\"timestamp\": {}, \"hash_ids\": [{}]", request.at / kMillisecond,
                    fmt::join(request.blocks, ", "));
    unsaid += line + "}\n";
    said += fmt::format("{}, \"hint\": \"{}\"}}\n", line, request.goes_on ? "likely" : "done");
  }
  const auto hits = [](const Trace& trace, TraceHints hints) {
    return Simulate(trace, "hazard", 1000, hints, 1)->hits;
  };
  EXPECT_EQ(hits(*ParseTrace(said), TraceHints::kSaid), hits(honest, TraceHints::kHonest));
  EXPECT_EQ(hits(*ParseTrace(unsaid), TraceHints::kSaid), hits(honest, TraceHints::kNone));
  EXPECT_NE(hits(honest, TraceHints::kHonest), hits(honest, TraceHints::kNone));
}

TEST(PolicySimulateTest, ABadLineIsNamed) {
  const auto message = [](std::string_view text) {
    const auto trace = ParseTrace(text);
    return trace ? std::string("none") : trace.error().message;
  };
  EXPECT_THAT(message("{\"timestamp\": 1, \"hash_ids\": [1]}\n{\"timestamp\": 2}\n"),
              HasSubstr("line 2: \"hash_ids\""));
  EXPECT_THAT(message("{\"hash_ids\": [1]}"), HasSubstr("line 1: \"timestamp\""));
  EXPECT_THAT(message("{\"timestamp\": 1, \"hash_ids\": [1, x]}"), HasSubstr("no whole number"));
  EXPECT_THAT(message("{\"timestamp\": 1, \"hash_ids\": [1"), HasSubstr("does not end"));
  EXPECT_THAT(
      message("{\"timestamp\": 5, \"hash_ids\": [1]}\n{\"timestamp\": 4, \"hash_ids\": [1]}"),
      HasSubstr("line 2: \"timestamp\" is before"));
  EXPECT_THAT(message("{\"timestamp\": 1, \"hint\": \"maybe\", \"hash_ids\": [1]}"),
              HasSubstr("line 1: \"hint\" is not"));
  EXPECT_EQ(ReadTrace("/no/such/file").error().code, Code::kNotFound);
}

}  // namespace
}  // namespace tiercel
