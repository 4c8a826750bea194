// Traffic over several nodes, for tests/e2e/nodes. The trace has the shape of real chat traffic and follows
// from its seed alone: conversations are picked by a zipf law (exponent 0.99); a conversation opens with a
// prompt of 4 to 40 blocks, each request extends what it said before by 2 to 6 blocks, and past 96 blocks it
// starts over. With PROMPTS > 0 every conversation opens with the first half of one of so many prompts that
// all share. Every block's bytes follow from its key.
//
// A request matches its chain, gets what was found and checks every byte, and puts the rest. Every eighth
// gets the whole chain unasked, so that misses happen and must name their reasons.
//
//   tiercel-e2e-nodes replay VIEW SEED COUNT BYTES DEADLINE_MS [DEAD]
//       COUNT requests against the nodes of the view file. With DEAD, a node's name: prints "recorded" after
//       a third of them and remembers what was stored so far and where; goes on until the view has changed
//       and 1.5 s have passed; then gets everything remembered that did not sit on DEAD.
//   tiercel-e2e-nodes spread VIEW SEED COUNT PROMPTS
//       where the trace's blocks would lie, by placement alone
//
// Prints lines "NAME VALUE". Exits 0 when it could do its work; what it means is the caller's to judge.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "base/units.h"
#include "client/cpp/client.h"

namespace tiercel {
namespace {

constexpr uint32_t kConversations = 400;
constexpr uint32_t kMaxChain = 96;
constexpr Nanos kSlack = 5 * kMillisecond;
constexpr Nanos kAfterNewView = 1500 * kMillisecond;
constexpr Nanos kLongest = 40 * kSecond;

void Fill(const BlockKey& key, MutableByteSpan out) {
  SplitMix64 random(key.hash64() ^ LoadLe<uint64_t>(key.bytes.data() + 8));
  for (size_t i = 0; i + 8 <= out.size(); i += 8) StoreLe(out.data() + i, random.Next());
}

class Trace {
 public:
  Trace(uint64_t seed, uint32_t prompts) : seed_(seed), prompts_(prompts), random_(seed) {
    double sum = 0;
    for (uint32_t i = 0; i < kConversations; ++i) {
      sum += 1 / std::pow(i + 1.0, 0.99);
      until_.push_back(sum);
    }
  }

  Result<Chain> Next() {
    const double at = static_cast<double>(random_.Next() >> 11) * 0x1p-53 * until_.back();
    const auto who = static_cast<uint32_t>(std::upper_bound(until_.begin(), until_.end(), at) - until_.begin());
    Talk& talk = talks_[std::min(who, kConversations - 1)];
    const auto said = static_cast<uint32_t>(2 + random_.Next() % 5);
    if (talk.blocks == 0 || talk.blocks + said > kMaxChain) {
      ++talk.round;
      talk.blocks = static_cast<uint32_t>(4 + random_.Next() % 37);
      talk.shared = prompts_ == 0 ? 0 : talk.blocks / 2;
      talk.prompt = prompts_ == 0 ? 0 : random_.Next() % prompts_;
    } else {
      talk.blocks += said;
    }
    ScopeFields fields;
    fields.model = "nodes";
    Chain::Options options;
    TIERCEL_ASSIGN(options.scope, MakeScope(fields));
    Chain chain(options);
    SplitMix64 prompt(seed_ ^ (talk.prompt * 0x9e3779b97f4a7c15ull));
    SplitMix64 own(seed_ + who * 1'000'003ull + talk.round * 7'919'000'003ull);
    for (uint32_t i = 0; i < talk.blocks; ++i) {
      std::array<std::byte, 32> hash;
      for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, i < talk.shared ? prompt.Next() : own.Next());
      TIERCEL_TRY(chain.Append(hash));
    }
    return chain;
  }

 private:
  struct Talk {
    uint32_t blocks = 0, shared = 0;
    uint64_t round = 0, prompt = 0;
  };
  const uint64_t seed_;
  const uint32_t prompts_;
  SplitMix64 random_;
  std::vector<double> until_;
  std::map<uint32_t, Talk> talks_;
};

// How late this machine wakes a thread that asked for 1 ms: what of a call's overrun may be the machine's.
class Jitter {
 public:
  Jitter() : thread_([this] {
    while (!stop_.load()) {
      const Nanos before = Clock::Monotonic().Now();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      worst_ = std::max(worst_, Clock::Monotonic().Now() - before - kMillisecond);
    }
  }) {}
  Nanos Stop() {
    stop_.store(true);
    thread_.join();
    return worst_;
  }

 private:
  std::atomic<bool> stop_ = false;
  Nanos worst_ = 0;
  std::thread thread_;
};

class Replay {
 public:
  Replay(std::unique_ptr<Client> client, size_t bytes, Nanos deadline)
      : client_(std::move(client)), bytes_(bytes), memory_(kMaxChain * bytes) {
    options_.deadline = deadline;
  }

  Client& client() { return *client_; }

  void Request(const Chain& chain, bool whole) {
    uint32_t found = chain.size();
    if (!whole) found = Timed(options_, [&] { return client_->Match(chain, options_); }).prefix;
    std::vector<bool> have(chain.size());
    if (found > 0) Get(chain, 0, found, options_, &have);
    for (uint32_t from = 0; from < chain.size();) {
      uint32_t to = from;
      while (to < chain.size() && !have[to]) ++to;
      if (to > from) Put(chain, from, to - from);
      from = to + 1;
    }
  }

  // The bytes of blocks first .. first + count - 1 that were served, checked.
  void Get(const Chain& chain, uint32_t first, uint32_t count, const RequestOptions& options,
           std::vector<bool>* have) {
    std::vector<GetSlot> slots(count);
    for (uint32_t i = 0; i < count; ++i) slots[i].dst = Slot(i);
    const Completion done = Timed(options, [&] { return client_->Get(chain, first, slots, KvLayout::Opaque(), options); });
    asked += count;
    if (done.blocks.size() != count) ++malformed;
    std::vector<std::byte> expected(bytes_);
    for (uint32_t i = 0; i < count && i < done.blocks.size(); ++i) {
      const BlockResult& block = done.blocks[i];
      if (block.status != Code::kOk) {
        ++missed[static_cast<size_t>(block.reason)];
        continue;
      }
      if (block.reason != MissReason::kNone) ++malformed;
      ++served;
      (*have)[first + i] = true;
      Fill(chain.key(first + i), expected);
      if (block.bytes != bytes_ || std::memcmp(expected.data(), Slot(i).data(), bytes_) != 0) ++wrong;
    }
  }

  void Put(const Chain& chain, uint32_t first, uint32_t count) {
    std::vector<PutSource> sources;
    for (uint32_t i = 0; i < count; ++i) {
      Fill(chain.key(first + i), Slot(i));
      sources.push_back({PutSource::Kind::kBlock, Slot(i), nullptr, {}});
    }
    const Completion done = Timed(options_, [&] { return client_->Put(chain, first, sources, KvLayout::Opaque(), options_); });
    if (done.blocks.size() != count) ++malformed;
    for (uint32_t i = 0; i < count && i < done.blocks.size(); ++i) {
      if (done.blocks[i].status != Code::kOk) continue;
      ++put;
      if (placement != nullptr) stored[chain.key(first + i)] = placement->Owner(chain.anchor(first + i)).node;
    }
  }

  uint64_t calls = 0, late = 0, at_deadline = 0, malformed = 0;
  uint64_t asked = 0, served = 0, wrong = 0, put = 0;
  Nanos worst = 0;  // Past the deadline; negative: none came near.
  std::array<uint64_t, kMissReasons> missed{};
  const Placement* placement = nullptr;                         // While blocks are remembered.
  std::unordered_map<BlockKey, uint32_t, BlockKeyHash> stored;  // The node's index in that view.

 private:
  MutableByteSpan Slot(uint32_t i) { return MutableByteSpan(memory_).subspan(i * bytes_, bytes_); }

  template <class Do>
  Completion Timed(const RequestOptions& options, Do&& call) {
    const Nanos before = Clock::Monotonic().Now();
    Completion done = call();
    const Nanos over = Clock::Monotonic().Now() - before - options.deadline;
    worst = calls == 0 ? over : std::max(worst, over);
    ++calls;
    if (over > kSlack) ++late;
    if (over >= 0) ++at_deadline;
    // The memory is used again by the next call. Its release has no deadline.
    for (bool released = done.released; !released;) released = client_->Wait(done.ticket).released;
    return done;
  }

  std::unique_ptr<Client> client_;
  const size_t bytes_;
  std::vector<std::byte> memory_;
  RequestOptions options_;
};

Result<View> ReadView(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return ParseView(text.str());
}

// Everything remembered that did not sit on the dead node: where its run's owner is the same, and where it
// is another one by the new view and the client must look where it sat.
Status Verify(Replay& replay, const std::vector<Chain>& chains, const View& before, const std::string& dead) {
  const View after = replay.client().view();
  const Placement placement(after);
  RequestOptions options;
  options.deadline = 5 * kSecond;
  uint64_t stayed = 0, stayed_found = 0, moved = 0, moved_found = 0, gone = 0;
  for (const Chain& chain : chains) {
    for (uint32_t from = 0; from < chain.size(); from += kBlocksPerRun) {
      const uint32_t count = std::min(kBlocksPerRun, chain.size() - from);
      std::vector<bool> have(chain.size());
      replay.Get(chain, from, count, options, &have);
      for (uint32_t i = from; i < from + count; ++i) {
        const auto at = replay.stored.find(chain.key(i));
        if (at == replay.stored.end()) continue;
        const std::string& sat = before.nodes[at->second].id;
        const bool same = after.nodes[placement.Owner(chain.anchor(i)).node].id == sat;
        if (sat == dead) {
          ++gone;
        } else {
          ++(same ? stayed : moved);
          (same ? stayed_found : moved_found) += have[i] ? 1 : 0;
        }
        replay.stored.erase(at);
      }
    }
  }
  fmt::print("stayed {}\nstayed_found {}\nmoved {}\nmoved_found {}\non_dead {}\nunvisited {}\nepoch {}\n", stayed,
             stayed_found, moved, moved_found, gone, replay.stored.size(), after.epoch);
  return OkStatus();
}

Result<int> RunReplay(const std::string& view_file, uint64_t seed, uint64_t count, size_t bytes, Nanos deadline,
                      const std::string& dead) {
  TIERCEL_ASSIGN(const View before, ReadView(view_file));
  const Placement placement(before);
  Client::Options options;
  options.view_file = view_file;
  if (const char* way = std::getenv("TIERCEL_E2E_TRANSPORT"); way != nullptr && std::string(way) == "grpc") {
    options.transports = {TransportKind::kGrpc};
  }
  TIERCEL_ASSIGN(auto client, Client::Connect(options));
  Replay replay(std::move(client), bytes, deadline);
  Trace trace(seed, 0);
  Jitter jitter;
  std::vector<Chain> chains;
  if (!dead.empty()) replay.placement = &placement;
  const Nanos began = Clock::Monotonic().Now();
  Nanos changed = 0;
  uint64_t done = 0;
  const auto more = [&] {
    const Nanos now = Clock::Monotonic().Now();
    if (now - began > kLongest) return false;
    return done < count || (!dead.empty() && (changed == 0 || now - changed < kAfterNewView));
  };
  for (; more(); ++done) {
    TIERCEL_ASSIGN(const Chain chain, trace.Next());
    replay.Request(chain, done % 8 == 7);
    if (replay.placement != nullptr) chains.push_back(chain);
    if (!dead.empty() && done == count / 3) {
      replay.placement = nullptr;
      fmt::print("recorded {}\n", replay.stored.size());
      std::fflush(stdout);
    }
    if (changed == 0 && replay.client().view().epoch > before.epoch) changed = Clock::Monotonic().Now();
  }
  const double seconds = static_cast<double>(Clock::Monotonic().Now() - began) / static_cast<double>(kSecond);
  const double rate = static_cast<double>(replay.served + replay.put) / seconds;
  if (!dead.empty()) TIERCEL_TRY(Verify(replay, chains, before, dead));
  const Client::Stats stats = replay.client().stats();
  uint64_t sum = 0, told = 0, differ = 0;
  for (size_t i = 0; i < stats.misses.size(); ++i) {
    sum += stats.misses[i];
    told += replay.missed[i];
    differ += stats.misses[i] != replay.missed[i] ? 1 : 0;
    if (replay.missed[i] > 0) fmt::print("reason.{} {}\n", Name(static_cast<MissReason>(i)), replay.missed[i]);
  }
  fmt::print("requests {}\nseconds {:.3f}\nblocks_per_second {:.1f}\ncalls {}\nat_deadline {}\nlate {}\n", done, seconds,
             rate, replay.calls, replay.at_deadline, replay.late);
  fmt::print("worst_overrun_ms {:.3f}\nmachine_late_ms {:.3f}\n", static_cast<double>(replay.worst) / kMillisecond,
             static_cast<double>(jitter.Stop()) / kMillisecond);
  fmt::print("asked {}\nserved {}\nwrong {}\nput {}\nmalformed {}\nmissed {}\nunnamed {}\n", replay.asked, replay.served,
             replay.wrong, replay.put, replay.malformed, told, replay.missed[0]);
  fmt::print("stats_asked {}\nstats_served {}\nstats_missed {}\nstats_differ {}\nstats_corrupt {}\n", stats.blocks_asked,
             stats.blocks_served, sum, differ, stats.corrupt);
  return 0;
}

Result<int> RunSpread(const std::string& view_file, uint64_t seed, uint64_t count, uint32_t prompts) {
  TIERCEL_ASSIGN(const View view, ReadView(view_file));
  const Placement placement(view);
  Trace trace(seed, prompts);
  std::set<BlockKey> seen;
  std::map<std::string, uint64_t> blocks;
  for (const NodeInfo& node : view.nodes) blocks[node.id] = 0;
  for (uint64_t i = 0; i < count; ++i) {
    TIERCEL_ASSIGN(const Chain chain, trace.Next());
    for (uint32_t j = 0; j < chain.size(); ++j) {
      if (seen.insert(chain.key(j)).second) ++blocks[view.nodes[placement.Owner(chain.anchor(j)).node].id];
    }
  }
  for (const auto& [id, n] : blocks) fmt::print("{} {}\n", id, n);
  return 0;
}

Result<int> Run(const std::vector<std::string>& args) {
  const auto number = [&args](size_t i) { return std::strtoull(args[i].c_str(), nullptr, 10); };
  if (args.size() >= 6 && args[0] == "replay") {
    return RunReplay(args[1], number(2), number(3), number(4), static_cast<Nanos>(number(5)) * kMillisecond,
                     args.size() > 6 ? args[6] : "");
  }
  if (args.size() == 5 && args[0] == "spread") {
    return RunSpread(args[1], number(2), number(3), static_cast<uint32_t>(number(4)));
  }
  return Fail(Code::kInvalidArgument, "see the first lines of tests/e2e/nodes_load.cc");
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  const auto done = tiercel::Run(std::vector<std::string>(argv + 1, argv + argc));
  std::fflush(stdout);
  if (!done) {
    std::fprintf(stderr, "tiercel-e2e-nodes: %s\n", done.error().message.c_str());
    return 2;
  }
  return *done;
}
