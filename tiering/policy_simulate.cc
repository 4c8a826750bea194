#include "tiering/policy_simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <queue>
#include <unordered_map>
#include <utility>

#include "base/check.h"

namespace tiercel {
namespace {

constexpr size_t kMaxLine = size_t{16} << 20;
constexpr uint64_t kMaxAccesses = uint64_t{1} << 28;
constexpr uint64_t kBlockBytes = 4096;

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

BlockKey KeyOf(uint32_t block) {
  BlockKey key;
  for (size_t i = 0; i < 4; ++i)
    StoreLe<uint64_t>(key.bytes.data() + 8 * i, Mix(uint64_t{block} * 4 + i + 1));
  return key;
}

// One member of a line: skips what is between, and reads the number or the list of numbers.
class Line {
 public:
  explicit Line(std::string_view text) : text_(text) {}

  // The text right after "name": ; empty: there is no such member.
  std::string_view Member(std::string_view name) const {
    const std::string quoted = fmt::format("\"{}\"", name);
    const size_t at = text_.find(quoted);
    if (at == std::string_view::npos) return {};
    std::string_view rest = text_.substr(at + quoted.size());
    Space(rest);
    if (!rest.starts_with(':')) return {};
    rest.remove_prefix(1);
    Space(rest);
    return rest;
  }
  static void Space(std::string_view& text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  }
  template <class Number>
  static bool Read(std::string_view& text, Number* number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
    if (error != std::errc{}) return false;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    return true;
  }

 private:
  std::string_view text_;
};

Error BadLine(size_t number, std::string_view what) {
  return {Code::kInvalidArgument, fmt::format("trace, line {}: {}", number, what)};
}

bool ReadHint(std::string_view text, ReuseHint* hint) {
  for (const auto& [name, value] :
       {std::pair("\"likely\"", ReuseHint::kLikely),
        std::pair("\"unlikely\"", ReuseHint::kUnlikely), std::pair("\"done\"", ReuseHint::kDone)}) {
    if (!text.starts_with(name)) continue;
    *hint = value;
    return true;
  }
  return false;
}

// Fills in what needs the whole trace: what was seen before, and which requests go on.
void LookAround(Trace& trace) {
  std::vector<bool> seen(trace.footprint, false);
  std::vector<size_t> known(trace.requests.size());  // Blocks of its head that were seen before.
  for (size_t r = 0; r < trace.requests.size(); ++r) {
    const auto& blocks = trace.requests[r].blocks;
    while (known[r] < blocks.size() && seen[blocks[known[r]]]) ++known[r];
    trace.seen_before += known[r];
    for (const uint32_t block : blocks) seen[block] = true;
  }
  std::vector<bool> used_later(trace.footprint, false);
  for (size_t r = trace.requests.size(); r-- > 0;) {
    Trace::Request& request = trace.requests[r];
    const auto& blocks = request.blocks;
    // The middle of what this request was the first to use; where it was the first of none, its
    // end.
    const size_t last = blocks.empty() ? 0 : blocks.size() - 1;
    const size_t looked_at =
        known[r] < last ? known[r] + (last - known[r]) / 2 : last - (last > 0 ? 1 : 0);
    request.goes_on = !blocks.empty() && used_later[blocks[looked_at]];
    for (const uint32_t block : blocks) used_later[block] = true;
  }
}

}  // namespace

Result<Trace> ParseTrace(std::string_view text) {
  Trace trace;
  std::unordered_map<uint64_t, uint32_t> numbers;
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (line.size() > kMaxLine)
      return Fail(Code::kResourceExhausted, fmt::format("trace, line {}: over 16 MiB", number));
    const Line members(line);
    Trace::Request request;
    std::string_view rest = members.Member("timestamp");
    double millis = 0;
    if (!Line::Read(rest, &millis) || !(millis >= 0 && millis < 1e15)) {
      return tl::unexpected(
          BadLine(number, "\"timestamp\" is missing, or no time in milliseconds"));
    }
    request.at = static_cast<Nanos>(millis * 1e6 < 9e18 ? millis * 1e6 : 9e18);
    if (!trace.requests.empty() && request.at < trace.requests.back().at) {
      return tl::unexpected(BadLine(number, "\"timestamp\" is before the line above's"));
    }
    if (rest = members.Member("hint"); !rest.empty() && !ReadHint(rest, &request.said)) {
      return tl::unexpected(
          BadLine(number, "\"hint\" is not \"likely\", \"unlikely\" or \"done\""));
    }
    rest = members.Member("hash_ids");
    if (!rest.starts_with('['))
      return tl::unexpected(BadLine(number, "\"hash_ids\" is missing, or no list"));
    rest.remove_prefix(1);
    Line::Space(rest);
    while (!rest.starts_with(']')) {
      uint64_t id = 0;
      if (!Line::Read(rest, &id))
        return tl::unexpected(BadLine(number, "\"hash_ids\" holds what is no whole number"));
      request.blocks.push_back(
          numbers.try_emplace(id, static_cast<uint32_t>(numbers.size())).first->second);
      Line::Space(rest);
      if (rest.starts_with(',')) {
        rest.remove_prefix(1);
        Line::Space(rest);
      } else if (!rest.starts_with(']')) {
        return tl::unexpected(BadLine(number, "\"hash_ids\" does not end"));
      }
    }
    trace.accesses += request.blocks.size();
    if (trace.accesses > kMaxAccesses)
      return Fail(Code::kResourceExhausted, "trace: over 2^28 blocks are asked for");
    trace.requests.push_back(std::move(request));
  }
  trace.footprint = numbers.size();
  LookAround(trace);
  return trace;
}

Result<Trace> ReadTrace(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Fail(Code::kNotFound, fmt::format("trace {}: cannot be read", path));
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Result<Trace> trace = ParseTrace(text);
  if (!trace) return Fail(trace.error().code, fmt::format("{}: {}", path, trace.error().message));
  return trace;
}

std::optional<TraceHints> ParseTraceHints(std::string_view name) {
  if (name == "none") return TraceHints::kNone;
  if (name == "honest") return TraceHints::kHonest;
  if (name == "half") return TraceHints::kHalf;
  if (name == "noisy") return TraceHints::kNoisy;
  if (name == "said") return TraceHints::kSaid;
  return std::nullopt;
}

namespace {

ReuseHint HintOf(const Trace::Request& request, TraceHints hints, uint64_t lot) {
  bool says = request.goes_on;
  switch (hints) {
    case TraceHints::kNone:
      return ReuseHint::kUnknown;
    case TraceHints::kSaid:
      return request.said;
    case TraceHints::kHonest:
      break;
    case TraceHints::kHalf:
      if (lot % 2 == 0) return ReuseHint::kUnknown;
      break;
    case TraceHints::kNoisy:
      if (lot % 5 == 0) says = !says;
      break;
  }
  return says ? ReuseHint::kLikely : ReuseHint::kDone;
}

// The blocks of a cache and the policy over them.
class Cache {
 public:
  Cache(const Trace& trace, std::unique_ptr<EvictionPolicy> policy, uint64_t capacity,
        const Clock* stopwatch)
      : stopwatch_(stopwatch),
        here_(trace.footprint, nullptr),
        went_(trace.footprint, false),
        policy_(std::move(policy)),
        capacity_(capacity) {}
  ~Cache() {
    for (Block* block : here_) {
      if (block != nullptr) policy_->Remove(*block);
    }
  }

  // The blocks of the chain's head that are here are used; returns how many.
  size_t Touch(const std::vector<uint32_t>& chain, BlockUse use) {
    size_t n = 0;
    for (; n < chain.size() && here_[chain[n]] != nullptr; ++n) {
      policy_->Touch(*here_[chain[n]], use);
      use.grandparent = use.parent;
      use.parent = here_[chain[n]];
    }
    return n;
  }
  // Stores one block; false: it is here, or there is no room.
  bool Put(const std::vector<uint32_t>& chain, size_t i, BlockUse use) {
    if (here_[chain[i]] != nullptr) return false;
    Block* parent = i > 0 ? here_[chain[i - 1]] : nullptr;
    if (parent != nullptr) ++parent->pins;  // As a node's writer holds what it just wrote.
    const bool room = resident_ < capacity_ || Evict();
    if (parent != nullptr) {
      --parent->pins;
      policy_->Unpinned(*parent);
    }
    if (!room) return false;
    SsdEntry entry;
    entry.key = KeyOf(chain[i]);
    if (i > 0) entry.parent = KeyOf(chain[i - 1]);
    entry.name_space = 1;
    entry.chain_index = static_cast<uint32_t>(i);
    entry.record_bytes = kBlockBytes;
    Block* block = index_.Insert(entry);
    block->host.bytes = kBlockBytes;
    use.parent = parent;
    use.grandparent = i > 1 ? here_[chain[i - 2]] : nullptr;
    use.came_back = went_[chain[i]];
    policy_->Add(*block, use);
    block->counted = i % kBlocksPerRun != 0;
    if (block->counted) index_.ChildEntered(block->parent);
    here_[chain[i]] = block;
    names_[block] = chain[i];
    ++resident_;
    return true;
  }
  uint64_t evictions() const { return evictions_; }
  std::vector<uint32_t> TakeDeciding() { return std::move(deciding_); }

 private:
  bool Evict() {
    const Nanos began = stopwatch_ != nullptr ? stopwatch_->Now() : 0;
    Block* victim = policy_->Victim(1, nullptr);
    if (stopwatch_ != nullptr) {
      deciding_.push_back(
          static_cast<uint32_t>(std::clamp<Nanos>(stopwatch_->Now() - began, 0, UINT32_MAX)));
    }
    if (victim == nullptr) return false;
    policy_->Remove(*victim);
    if (victim->counted) index_.ChildLeft(victim->parent);
    const auto name = names_.find(victim);
    here_[name->second] = nullptr;
    went_[name->second] = true;
    names_.erase(name);
    (void)index_.Remove(victim);
    --resident_;
    ++evictions_;
    return true;
  }

  const Clock* const stopwatch_;
  BlockIndex index_{0};
  std::vector<Block*> here_;
  std::vector<bool> went_;
  std::unordered_map<const Block*, uint32_t> names_;
  std::unique_ptr<EvictionPolicy> policy_;
  const uint64_t capacity_;
  uint64_t resident_ = 0;
  uint64_t evictions_ = 0;
  std::vector<uint32_t> deciding_;
};

void Count(SimulatedHits* hits, size_t request, const Trace& trace, size_t hit) {
  const size_t asked = trace.requests[request].blocks.size();
  hits->accesses += asked;
  hits->hits += hit;
  if (request < trace.requests.size() / 2) return;
  hits->late_accesses += asked;
  hits->late_hits += hit;
}

}  // namespace

Result<SimulatedHits> Simulate(const Trace& trace, std::string_view policy, uint64_t blocks,
                               TraceHints hints, uint64_t seed, const Clock* stopwatch) {
  TIERCEL_ASSIGN(auto made, MakePolicy(policy, seed));
  Cache cache(trace, std::move(made), std::max<uint64_t>(blocks, 1), stopwatch);
  SimulatedHits result;
  for (size_t r = 0; r < trace.requests.size(); ++r) {
    const Trace::Request& request = trace.requests[r];
    BlockUse use;
    use.now = request.at;
    use.hint = HintOf(request, hints, Mix(seed ^ (r << 20)) >> 32);
    const Nanos began = stopwatch != nullptr ? stopwatch->Now() : 0;
    const size_t hit = cache.Touch(request.blocks, use);
    for (size_t i = hit; i < request.blocks.size(); ++i) (void)cache.Put(request.blocks, i, use);
    if (stopwatch != nullptr) result.in_policy += stopwatch->Now() - began;
    result.uses += request.blocks.size();
    Count(&result, r, trace, hit);
  }
  result.evictions = cache.evictions();
  result.deciding = cache.TakeDeciding();
  return result;
}

SimulatedHits Optimum(const Trace& trace, uint64_t blocks) {
  constexpr uint64_t kNever = UINT64_MAX;
  // Uses in order, a request's deepest block first; next_use[i]: when the block of use i is used
  // again.
  std::vector<uint32_t> block_of;
  for (const Trace::Request& request : trace.requests) {
    for (size_t i = request.blocks.size(); i-- > 0;) block_of.push_back(request.blocks[i]);
  }
  std::vector<uint64_t> next_use(block_of.size(), kNever);
  std::vector<uint64_t> later(trace.footprint, kNever);
  for (size_t i = block_of.size(); i-- > 0;) {
    next_use[i] = later[block_of[i]];
    later[block_of[i]] = i;
  }
  std::vector<uint64_t> due(trace.footprint, 0);  // When a block that is here is used next.
  std::vector<bool> here(trace.footprint, false);
  std::priority_queue<std::pair<uint64_t, uint32_t>> furthest;
  uint64_t resident = 0;
  SimulatedHits result;
  size_t at = 0;
  for (size_t r = 0; r < trace.requests.size(); ++r) {
    const auto& chain = trace.requests[r].blocks;
    size_t hit = 0;
    while (hit < chain.size() && here[chain[hit]]) ++hit;
    for (size_t i = chain.size(); i-- > 0; ++at) {
      const uint32_t block = chain[i];
      due[block] = next_use[at];
      if (here[block]) {
        furthest.emplace(due[block], block);
        continue;
      }
      here[block] = true;
      furthest.emplace(due[block], block);
      if (++resident <= std::max<uint64_t>(blocks, 1)) continue;
      while (true) {
        const auto [when, worst] = furthest.top();
        furthest.pop();
        if (!here[worst] || due[worst] != when) continue;  // Told of an earlier use.
        here[worst] = false;
        break;
      }
      --resident;
      ++result.evictions;
    }
    Count(&result, r, trace, hit);
  }
  result.uses = block_of.size();
  return result;
}

}  // namespace tiercel
