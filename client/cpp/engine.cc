#include "client/cpp/engine.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace tiercel {
namespace {

constexpr uint32_t kMaxWires = 1u << 16;
constexpr uint32_t kStagingRegion = 1;

}  // namespace

Engine::Engine(const Client::Options& options, const Clock& clock, Host& host)
    : options_(options),
      clock_(clock),
      host_(host),
      controller_(options.controller),
      router_(View{}),
      wires_(kMaxWires),
      now_(clock.Now()),
      next_timer_(now_),
      holds_(std::make_shared<HoldRegistry>()) {}

Engine::~Engine() {
  holds_->Clear();
  sessions_.clear();
  graveyard_.clear();
}

Status Engine::Open(const ClientParts& parts) {
  TIERCEL_ASSIGN(staging_, Staging::Create(options_.staging_bytes));
  ask_.client_name = options_.client_name;
  ask_.name_space = options_.name_space;
  ask_.host_id = parts.host_id;
  for (const ClientParts::Way& way : parts.ways) {
    Result<std::unique_ptr<Transport>> made = way.make(*this, clock_);
    if (!made) {
      ways_missing_.push_back(fmt::format("no {}: {}", Name(way.kind), made.error().message));
      continue;
    }
    MemoryRegion region;
    region.base = staging_->memory().data();
    region.bytes = staging_->capacity();
    region.id = kStagingRegion;
    if (Status added = (*made)->AddMemory(region); !added) {
      ways_missing_.push_back(fmt::format("no {}: {}", Name(way.kind), added.error().message));
      continue;
    }
    if (way.kind == TransportKind::kUcx) ask_.ucx_address = (*made)->LocalAddress();
    ask_.transports.push_back(way.kind);
    ways_.push_back(Way{way.kind, std::move(*made)});
  }
  if (ways_.empty()) {
    std::string why;
    for (const std::string& missing : ways_missing_) why += (why.empty() ? "" : "; ") + missing;
    return Fail(Code::kUnavailable, "no transport can be used: " + why);
  }
  return OkStatus();
}

void Engine::Start(Call& call) {
  const auto n = static_cast<uint32_t>(call.keys.size());
  call.live = true;
  call.finished = false;
  call.left = n;
  call.next_put = 0;
  call.borrowed = 0;
  call.results.assign(n, BlockResult{});
  call.state.assign(n, 0);
  call.held.clear();
  call.wires.clear();
  if (call.kind == Call::Kind::kGet) {
    counters_.blocks_asked.fetch_add(n, std::memory_order_relaxed);
    if (call.slots[0].kind == GetSlot::Kind::kInPlace) call.held.resize(n);
  }
  call.live_index = live_.size();
  live_.push_back(&call);
  Soon(call.deadline);
  if (now_ >= call.deadline) {
    Expire(call, OkStatus(), Code::kDeadlineExceeded);
    return;
  }
  if (call.kind == Call::Kind::kPut) {
    counters_.puts.fetch_add(n, std::memory_order_relaxed);
    puts_.push_back(&call);
    return;
  }
  RouteRange(call, 0, n, false);
}

void Engine::Cancel(uint64_t ticket) {
  for (Call* call : live_) {
    if (call->id != ticket) continue;
    Expire(*call, Fail(Code::kCancelled, "cancelled by the caller"), Code::kCancelled);
    return;
  }
}

size_t Engine::Drive() {
  now_ = clock_.Now();
  size_t events = host_.mailbox()->Drain([this](Command&& command) { command(*this); });
  for (Way& way : ways_) events += way.transport->Poll();
  if (!puts_.empty()) events += PumpPuts();
  if (queued_ > 0) {
    for (auto& [key, session] : sessions_) {
      for (auto& lane : session->lanes()) {
        if (lane->welcomed && !lane->queue.empty()) events += PumpLane(*lane);
      }
    }
  }
  events += holds_->Drain();
  if (!graveyard_.empty()) graveyard_.clear();
  if (now_ >= next_timer_) events += RunTimers();
  return events;
}

bool Engine::Arm() {
  bool quiet = host_.mailbox()->Arm();
  for (Way& way : ways_) quiet = way.transport->Arm() && quiet;
  return quiet;
}

std::vector<int> Engine::fds() const {
  std::vector<int> fds;
  for (const Way& way : ways_) fds.push_back(way.transport->event_fd());
  return fds;
}

size_t Engine::RunTimers() {
  now_ = clock_.Now();
  next_timer_ = now_ + kSecond;
  size_t events = 0;
  for (size_t i = 0; i < live_.size();) {
    Call* call = live_[i];
    if (now_ >= call->deadline) {
      ++events;
      Expire(*call, OkStatus(), Code::kDeadlineExceeded);  // Puts another call at i.
    } else {
      Soon(call->deadline);
      ++i;
    }
  }
  Session* hopeless = nullptr;
  if (wires_.live() > 0) {
    wires_.ForEach([&](Wire& wire) {
      if (wire.state != Wire::State::kForsaken || wire.lane == nullptr) return;
      if (now_ >= wire.force_at) {
        hopeless = wire.lane->session;
      } else {
        Soon(wire.force_at);
      }
    });
  }
  if (hopeless != nullptr) {
    ++events;
    LoseSession(*hopeless,
                Error{Code::kDeadlineExceeded, "no answer to a cancel or a probe in time"}, true);
    Soon(now_);  // Another may be as hopeless.
  }
  if (view_until_ != 0 && now_ >= view_until_) {
    view_until_ = 0;
    for (auto& [key, session] : sessions_) session->Retire();
    for (const NodeInfo& node : router_.view().nodes) SessionFor(node);
  } else if (view_until_ != 0) {
    Soon(view_until_);
  }
  SessionTimers();
  return events;
}

void Engine::Shutdown() {
  now_ = clock_.Now();
  while (!live_.empty()) {
    Expire(*live_.back(), Fail(Code::kCancelled, "the client is shut down"), Code::kCancelled);
  }
  FrameHeader bye;
  bye.op = Op::kBye;
  for (auto& [key, session] : sessions_) {
    session->Retire();
    for (auto& lane : session->lanes()) {
      if (lane->endpoint == nullptr) continue;
      [[maybe_unused]] const Status said = lane->endpoint->Send(bye, {}, {}, nullptr);
    }
  }
  for (Way& way : ways_) way.transport->Poll();
  for (auto& [key, session] : sessions_) {
    LoseSession(*session, Error{Code::kUnavailable, "the client is shut down"}, false);
  }
  graveyard_.clear();
  holds_->Clear();
}

Status Engine::AddMemory(MutableByteSpan memory) {
  MemoryRegion region;
  region.base = memory.data();
  region.bytes = memory.size();
  region.id = next_region_;
  for (size_t i = 0; i < ways_.size(); ++i) {
    if (Status added = ways_[i].transport->AddMemory(region); !added) {
      for (size_t j = 0; j < i; ++j) ways_[j].transport->RemoveMemory(region.id);
      return added;
    }
  }
  memory_ids_[reinterpret_cast<uintptr_t>(memory.data())] = next_region_++;
  return OkStatus();
}

void Engine::RemoveMemory(MutableByteSpan memory) {
  const auto found = memory_ids_.find(reinterpret_cast<uintptr_t>(memory.data()));
  if (found == memory_ids_.end()) return;
  for (Way& way : ways_) way.transport->RemoveMemory(found->second);
  memory_ids_.erase(found);
}

void Engine::Resolve(Call& call, uint32_t block, const BlockResult& result) {
  if ((call.state[block] & kBlockDone) != 0) return;
  call.state[block] |= kBlockDone;
  call.results[block] = result;
  if (--call.left == 0 && call.live) Finish(call, OkStatus());
}

void Engine::Expire(Call& call, Status status, Code code) {
  // Blocks first: Finish comes with the last of them, and must know the status.
  const auto n = static_cast<uint32_t>(call.keys.size());
  for (uint32_t i = 0; i < n; ++i) {
    if ((call.state[i] & kBlockDone) != 0) continue;
    BlockResult result = call.results[i];
    if (call.kind == Call::Kind::kPut) {
      if ((call.state[i] & kBlockAcked) == 0) {
        result.status = code;
        result.reason = MissReason::kDeadline;
      }
    } else if ((call.state[i] & kBlockPrevious) == 0) {
      result.status = Code::kNotFound;
      result.reason = MissReason::kDeadline;
    }
    call.state[i] |= kBlockDone;
    call.results[i] = result;
    --call.left;
  }
  // One count against each node that owed an answer.
  std::vector<Session*> owing;
  for (const uint64_t id : call.wires) {
    Wire* wire = wires_.Find(id);
    if (wire == nullptr || wire->op != &call || wire->state != Wire::State::kSent) continue;
    if (code != Code::kDeadlineExceeded || wire->answered_at_all) continue;
    Session* session = wire->lane->session;
    if (std::find(owing.begin(), owing.end(), session) == owing.end()) owing.push_back(session);
  }
  Finish(call, std::move(status));
  for (Session* session : owing) {
    session->breaker().Failed(now_);
    if (session->breaker().open()) Soon(session->breaker().next_probe());
  }
}

void Engine::Finish(Call& call, Status status) {
  TIERCEL_CHECK(call.live && call.left == 0);
  call.live = false;
  live_[call.live_index] = live_.back();
  live_[call.live_index]->live_index = call.live_index;
  live_.pop_back();
  if (call.kind == Call::Kind::kPut) std::erase(puts_, &call);
  for (const uint64_t id : call.wires) {
    Wire* wire = wires_.Find(id);
    if (wire == nullptr || wire->op != &call) continue;
    wire->op = nullptr;
    if (wire->state == Wire::State::kQueued) {
      FreeWire(*wire);
    } else if (wire->left > 0) {
      Forsake(*wire);
    }
  }
  Completion completion;
  completion.ticket = call.id;
  completion.status = std::move(status);
  const auto relaxed = std::memory_order_relaxed;
  bool leading = true;
  for (const BlockResult& result : call.results) {
    const bool good = result.status == Code::kOk;
    leading = leading && good;
    if (leading) ++completion.prefix;
    if (call.kind == Call::Kind::kGet) {
      if (good) {
        counters_.blocks_served.fetch_add(1, relaxed);
        counters_.raw_got.fetch_add(result.bytes, relaxed);
        counters_.record_got.fetch_add(result.record_bytes, relaxed);
      } else {
        counters_.misses[static_cast<size_t>(result.reason)].fetch_add(1, relaxed);
      }
    } else if (call.kind == Call::Kind::kPut) {
      (good ? counters_.puts_stored : counters_.puts_refused).fetch_add(1, relaxed);
      if (good) {
        counters_.raw_put.fetch_add(result.bytes, relaxed);
        counters_.record_put.fetch_add(result.record_bytes, relaxed);
      }
    }
  }
  completion.blocks = std::move(call.results);
  completion.held = std::move(call.held);
  completion.released = call.borrowed == 0;
  call.finished = true;
  if (!completion.released) counters_.late_releases.fetch_add(1, relaxed);
  host_.Finished(call, std::move(completion));  // If released, call is gone from here.
}

void Engine::GiveBack(Call& call) {
  TIERCEL_CHECK(call.borrowed > 0);
  if (--call.borrowed > 0 || !call.finished) return;
  Completion completion;
  completion.ticket = call.id;
  completion.released = true;
  host_.Finished(call, std::move(completion));
}

}  // namespace tiercel
