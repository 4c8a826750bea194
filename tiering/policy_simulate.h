// Replays a trace of requests through a policy, block by block as a node would: the prefix that is
// here is touched, the rest is stored, and the policy says what goes. The index and the policies
// are those that a node runs; only the bytes are missing.
//
//   ReadTrace(path) --> Simulate(trace, policy, blocks, hints)    Optimum(trace, blocks)
//
// A trace is JSON lines: {"timestamp": ms, "hash_ids": [...]}, and "hint": "likely", "unlikely" or
// "done" where a caller said so; equal ids are equal blocks with equal prefixes, in chain order.
// Other members are passed over.
//
// Invariants: all blocks are of one size. A hit is a block of the part of a request's chain that is
// here without a gap from its head on; what lies behind a gap is none. Equal arguments give equal
// results.
//
// Ownership: values only. Threads: any, one at a time a trace. Errors: named at each call.
#ifndef TIERCEL_TIERING_POLICY_SIMULATE_H_
#define TIERCEL_TIERING_POLICY_SIMULATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "proto/types.h"
#include "tiering/eviction.h"

namespace tiercel {

struct Trace {
  struct Request {
    Nanos at = 0;
    std::vector<uint32_t> blocks;  // 0 .. footprint - 1, in chain order.
    // A later request uses half or more of the blocks again that this one was the first to use, or,
    // where those are none or its last one, all of this one's but the last.
    bool goes_on = false;
    ReuseHint said = ReuseHint::kUnknown;  // By its caller, as the trace tells.
  };
  std::vector<Request> requests;
  uint64_t footprint = 0;  // Blocks that are different.
  uint64_t accesses = 0;
  uint64_t seen_before = 0;  // Of accesses: what a cache without bounds hits.
};

// Errors: kNotFound: no such file; kInvalidArgument: names the line and what is wrong with it;
// kResourceExhausted: over 2^28 accesses, or a line of over 16 MiB.
Result<Trace> ReadTrace(const std::string& path);
// Errors: as above, but for the file's.
Result<Trace> ParseTrace(std::string_view text);

// What callers say of a request: nothing; whether it goes on; that for every second one; that, but
// wrong for one in five; what the trace has them say.
enum class TraceHints : uint8_t { kNone, kHonest, kHalf, kNoisy, kSaid };
std::optional<TraceHints> ParseTraceHints(std::string_view name);

struct SimulatedHits {
  uint64_t accesses = 0;
  uint64_t hits = 0;
  uint64_t late_accesses = 0;  // The second half of the requests alone.
  uint64_t late_hits = 0;
  uint64_t evictions = 0;
  uint64_t uses = 0;  // Adds and touches.
  // Wall time, where it was asked for: of all uses with the index and the evictions, and in ns of
  // each saying which block goes, the reading of the clock included.
  Nanos in_policy = 0;
  std::vector<uint32_t> deciding;
  double ratio() const {
    return accesses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(accesses);
  }
  double late_ratio() const {
    return late_accesses == 0 ? 0
                              : static_cast<double>(late_hits) / static_cast<double>(late_accesses);
  }
};

// A cache of so many blocks, at least 1. Errors: kInvalidArgument: no such policy.
Result<SimulatedHits> Simulate(const Trace& trace, std::string_view policy, uint64_t blocks,
                               TraceHints hints, uint64_t seed, const Clock* stopwatch = nullptr);

// The most hits that any policy can have, since it knows the future: the block whose next use is
// furthest goes first, of a chain its tail (Belady's rule on prefix trees).
SimulatedHits Optimum(const Trace& trace, uint64_t blocks);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_POLICY_SIMULATE_H_
