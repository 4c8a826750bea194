#include "tests/sim/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "kernels/record.h"

namespace tiercel {
namespace {

constexpr uint32_t kMaxKeysInFlight = 200;
constexpr uint64_t kMaxBytesInFlight = 400 * kKiB;
constexpr uint64_t kMaxHoldBytes = 300 * kKiB;

Status VerifyStored(ByteSpan record) {
  const Result<RecordView> view = ParseRecord(record);
  if (!view) return Fail(Code::kDataLoss, view.error().message);
  return VerifyRecord(*view);
}

}  // namespace

Simulation::Simulation(const Options& options)
    : options_(options), random_(options.seed),
      kind_disk_(random_.Below(2) == 0), network_(random_.Next(), clock_), world_(random_.Next()) {
  network_.options.max_delay = (50 + static_cast<Nanos>(random_.Below(500))) * kMicrosecond;
  network_.options.lose = random_.Below(2) == 0 ? 0.002 : 0;
  network_.options.close_twice = 0.2;
  network_.options.in_line_bytes = random_.Below(20'000);
  for (uint32_t i = 0; i < kClients; ++i) {
    clients_.push_back(std::make_unique<SimClient>(i, i % World::kSpaces, world_, ledger_, network_, clock_,
                                                   random_.Next()));
    clients_.back()->sabotage = options.sabotage;
  }
  StartNode();
}

Simulation::~Simulation() {
  shard_.reset();
  clients_.clear();
}

// ---- the node ----------------------------------------------------------------------------------

void Simulation::StartNode() {
  SsdStore::Options ssd;
  ssd.capacity_bytes = kind_disk_ ? 1 * kGiB : 2 * kMiB;
  ssd.segment_bytes = 256 * kKiB;
  ssd.seal_after = 20 * kMillisecond;
  ssd.max_queued_bytes = 2 * kMiB;
  ssd.max_queued_reads = 32;
  ssd.verify_record = VerifyStored;
  auto store = std::make_unique<MemorySsdStore>(disk_, ssd, MemorySsdStore::Latency{}, clock_, random_.Next());
  store_ = store.get();
  TierStack::Options tiers;
  tiers.host.slab_bytes = 2 * kMiB;
  tiers.host.capacity_bytes = 4 * kMiB;
  tiers.host.huge_pages = HostArena::HugePages::kOff;
  tiers.max_ghosts = 1 << 14;
  tiers.fault_injection = true;
  auto stack = TierStack::Create(tiers, clock_, std::move(store));
  TIERCEL_CHECK(stack.has_value());
  Shard::Options options;
  options.max_sessions = 16;
  options.max_keys_in_flight = kMaxKeysInFlight;
  options.max_bytes_in_flight = kMaxBytesInFlight;
  options.max_hold_bytes = kMaxHoldBytes;
  options.hold_time = 30 * kMillisecond;
  options.default_deadline = 30 * kMillisecond;
  shard_ = std::make_unique<Shard>(options, clock_, std::move(*stack));
  // Small queues, so that they fill. A name of its own for each life: nothing of the last one's reaches it.
  Transport::Limits limits;
  limits.max_bytes_in_flight = 300 * kKiB;
  limits.max_frames_in_flight = 24;
  limits.max_endpoints = 16;
  limits.send_timeout = 2 * kSecond;
  node_address_ = fmt::format("node-{}", ++life_);
  shard_->AddTransport(network_.MakeTransport(node_address_, *shard_, limits));
  shard_->ServeMemory();
  CheckDurable();
}

void Simulation::StopNode(bool crash) {
  if (crash) {
    ++outcome_.crashes;
    store_->Crash();
  } else {
    ++outcome_.restarts;
    shard_->SetDraining();
    bool flushed = false;
    shard_->stack().Flush([&flushed](const Status&) { flushed = true; });
    for (int i = 0; i < 10'000 && !flushed; ++i) RunUntil(clock_.Now() + kMillisecond);
    if (!flushed) ledger_.Violated("a flush did not end within ten seconds");
  }
  const TierStack::Stats tiers = shard_->stats().tiers;
  outcome_.hits_ssd += tiers.hits_ssd;
  outcome_.evicted += tiers.evicted_host;
  outcome_.dropped_segments += tiers.ssd.dropped_segments;
  shard_.reset();
  store_ = nullptr;
  ledger_.NodeDied();
}

void Simulation::OpenSession(SimClient& client) {
  Shard::Grant grant;
  grant.session_id = next_session_++;
  grant.name_space = World::NameSpace(client.space());
  for (std::byte& b : grant.token) b = static_cast<std::byte>(random_.Next());
  if (!shard_->Expect(grant)) return;
  Transport* transport = shard_->transport(TransportKind::kLoopback);
  if (!transport->Admit(grant.session_id, client.address(), grant.name_space)) return;
  Shard::Token token = grant.token;
  const bool thief = random_.Below(20) == 0;
  if (thief) token[3] ^= std::byte{1};
  client.Open(grant.session_id, node_address_, token);
}

void Simulation::Clear(uint32_t space, const Scope& scope) {
  ++outcome_.clears;
  if (shard_->stack().Clear(World::NameSpace(space), scope)) ledger_.Cleared(space, scope);
}

// ---- what happens ------------------------------------------------------------------------------

void Simulation::DisturbNode() {
  switch (random_.Below(6)) {
    case 0:
      StopNode(/*crash=*/true);
      return StartNode();
    case 1:
      StopNode(/*crash=*/false);
      return StartNode();
    case 2:
      return Clear(static_cast<uint32_t>(random_.Below(World::kSpaces)),
                   random_.Below(2) == 0 ? Scope{} : World::ScopeOf(static_cast<uint32_t>(random_.Below(2))));
    case 3:
      return shard_->stack().Flush([](const Status&) {});
    case 4:  // Its keep-alives stopped.
      return shard_->EndSession(clients_[random_.Below(kClients)]->session());
    default:
      return clients_[random_.Below(kClients)]->Leave();
  }
}

void Simulation::DisturbNetwork() {
  const std::string client = clients_[random_.Below(kClients)]->address();
  if (random_.Below(3) == 0) {
    network_.Cut(client, node_address_);
  } else {
    for (const auto& each : clients_) network_.Mend(each->address(), node_address_);
  }
}

void Simulation::DisturbDisk() {
  if (kind_disk_) return;
  switch (random_.Below(5)) {
    case 0:
      disk_.quota = disk_.bytes() + random_.Below(512 * kKiB);
      return;
    case 1:
      disk_.flip = 0.1;
      return;
    case 2:
      disk_.lose = 0.1;
      return;
    case 3: {
      const BlockId id{static_cast<uint32_t>(random_.Below(World::kSpaces)),
                       static_cast<uint32_t>(random_.Below(World::kChains)),
                       static_cast<uint32_t>(random_.Below(World::kLength))};
      (void)shard_->stack().CorruptForTest(world_.Key(id), random_.Next() % 10'000, Tier::kSsd);
      return;
    }
    default:
      disk_.quota = UINT64_MAX;
      disk_.flip = 0;
      disk_.lose = 0;
  }
}

void Simulation::RunUntil(Nanos until) {
  while (true) {
    const Nanos next = std::min(network_.NextEvent(), store_->next_wakeup());
    clock_.Set(std::min(std::max(next, clock_.Now()), until));
    size_t happened = shard_->RunOnce();
    for (const auto& client : clients_) happened += client->Poll();
    if (happened == 0 && clock_.Now() >= until) return;
    if (happened == 0) clock_.Advance(10 * kMicrosecond);  // What is due is held up by a partition.
  }
}

void Simulation::Step() {
  SimClient& client = *clients_[random_.Below(kClients)];
  if (!client.open()) OpenSession(client);
  const uint64_t dice = random_.Below(1000);
  if (dice < 970) {
    // Now and then a burst that no queue has room for.
    const uint64_t asks = random_.Below(40) == 0 ? 30 : 1;
    for (uint64_t i = 0; i < asks; ++i) client.Act();
  } else if (dice < 978) {
    DisturbNode();
  } else if (dice < 988) {
    DisturbNetwork();
  } else {
    DisturbDisk();
  }
  Nanos pause = static_cast<Nanos>(random_.Below(300)) * kMicrosecond;
  if (random_.Below(50) == 0) pause = static_cast<Nanos>(random_.Below(30)) * kMillisecond;
  if (random_.Below(1000) == 0) pause = 3 * kSecond;
  RunUntil(clock_.Now() + pause);
}

// ---- what must be true -------------------------------------------------------------------------

void Simulation::Check() {
  const Shard::Stats stats = shard_->stats();
  const auto bound = [this](std::string_view what, uint64_t value, uint64_t limit) {
    if (value > limit) ledger_.Violated(fmt::format("{} is {}, over its limit of {}", what, value, limit));
  };
  bound("RAM in use", stats.tiers.host_bytes, stats.tiers.host_capacity);
  bound("sessions", stats.sessions, 16);
  bound("keys in flight", stats.keys_in_flight, stats.sessions * (kMaxKeysInFlight + kMaxKeys));
  bound("bytes in flight", stats.bytes_in_flight, stats.sessions * (kMaxBytesInFlight + kMaxPayloadBytes));
  bound("answers waiting", stats.waiting, stats.sessions * 2 * (2 * kMaxKeysInFlight + kMaxKeys));
  bound("bytes waiting for the disk", stats.tiers.ssd.queued_bytes, 2 * kMiB);
  bound("reads waiting", stats.tiers.ssd.queued_reads, 32);
  const auto& reasons = stats.tiers.reasons;
  const uint64_t sum = std::accumulate(reasons.begin(), reasons.end(), uint64_t{0});
  if (sum != stats.tiers.misses) ledger_.Violated(fmt::format("{} misses, {} reasons", stats.tiers.misses, sum));
  if (reasons[static_cast<size_t>(MissReason::kNone)] + reasons[static_cast<size_t>(MissReason::kUnknown)] > 0) {
    ledger_.Violated("a miss was counted without a reason");
  }
}

void Simulation::CheckDurable() {
  if (!kind_disk_) return;
  for (const auto& [key, entry] : ledger_.entries()) {
    if (!entry.durable) continue;
    const BlockId& id = key.first;
    const MatchEntry found = shard_->stack().Lookup(World::NameSpace(id.space), world_.Key(id), QualityClass::kExact,
                                                    Prefer::kGood);
    if (found.tier != Tier::kNone) continue;
    ledger_.Violated(fmt::format("block {} of chain {} of space {} was acknowledged as on SSD and is missed: {}",
                                 id.index, id.chain, id.space, Name(found.reason)));
    return;
  }
}

void Simulation::Finish() {
  for (const auto& client : clients_) network_.Mend(client->address(), node_address_);
  network_.options.lose = 0;
  RunUntil(clock_.Now() + 10 * kSecond);
  for (const auto& client : clients_) {
    if (!client->settled()) ledger_.Violated("requests without an answer:" + client->Unsettled());
  }
  CheckDurable();
  for (const auto& client : clients_) client->Leave();
  RunUntil(clock_.Now() + 40 * kSecond);  // Unused tokens expire, too.
  for (uint32_t space = 0; space < World::kSpaces; ++space) Clear(space, Scope{});
  RunUntil(clock_.Now() + 10 * kSecond);
  const Shard::Stats stats = shard_->stats();
  const auto nothing = [this](std::string_view what, uint64_t value) {
    if (value > 0) ledger_.Violated(fmt::format("at the end {} is {}", what, value));
  };
  nothing("sessions", stats.sessions);
  nothing("keys in flight", stats.keys_in_flight);
  nothing("bytes in flight", stats.bytes_in_flight);
  nothing("holds", stats.holds);
  nothing("answers waiting", stats.waiting);
  nothing("pins", stats.tiers.pinned);
  nothing("blocks", stats.tiers.blocks);
  nothing("RAM in use", stats.tiers.host_bytes);
}

Status Simulation::Run() {
  uint64_t step = 0;
  for (; step < options_.steps && ledger_.violation().empty(); ++step) {
    Step();
    Check();
    if (step % 50 == 0) CheckDurable();
  }
  if (ledger_.violation().empty()) Finish();
  for (const auto& client : clients_) {
    const SimClient::Counts& c = client->counts();
    outcome_.counts.hits += c.hits;
    outcome_.counts.misses += c.misses;
    outcome_.counts.puts += c.puts;
    outcome_.counts.durable += c.durable;
    outcome_.counts.cancelled += c.cancelled;
    outcome_.counts.matched += c.matched;
    outcome_.counts.refused += c.refused;
    outcome_.digest = Mix64(outcome_.digest ^ client->digest());
  }
  const TierStack::Stats tiers = shard_->stats().tiers;
  outcome_.hits_ssd += tiers.hits_ssd;
  outcome_.evicted += tiers.evicted_host;
  outcome_.dropped_segments += tiers.ssd.dropped_segments;
  outcome_.simulated = clock_.Now();
  if (ledger_.violation().empty()) return OkStatus();
  return Fail(Code::kInternal, fmt::format("seed {} step {} at {} us: {}; again: tiercel_sim --seed {} --steps {}",
                                           options_.seed, step, clock_.Now() / kMicrosecond, ledger_.violation(),
                                           options_.seed, options_.steps));
}

}  // namespace tiercel
