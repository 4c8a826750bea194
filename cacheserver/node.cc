#include "cacheserver/node.h"

#include <fmt/format.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "cacheserver/grpc_edge.h"
#include "cacheserver/http_edge.h"
#include "kernels/artifact.h"
#include "kernels/record.h"
#include "proto/field_hash.h"
#include "tiering/ssd_disks.h"
#include "transport/factory.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr Nanos kSessionSilence = 3 * kSecond;
constexpr Nanos kShardAnswer = 2 * kSecond;
constexpr Nanos kHandoverFlush = kSecond;
constexpr Nanos kSuccessorStarts = 60 * kSecond;

std::string ReadHostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

Status VerifyStored(ByteSpan record) {
  const Result<RecordView> view = ParseRecord(record);
  if (!view) return Fail(Code::kDataLoss, view.error().message);
  return VerifyRecord(*view);
}

template <class T>
void FillRandom(T* out) {
  TIERCEL_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(out), sizeof(T)) == 1);
}

// Null where no file is named.
Result<std::shared_ptr<const Artifact>> ReadArtifact(const std::string& path) {
  if (path.empty()) return std::shared_ptr<const Artifact>();
  const auto wrong = [&path](std::string_view why) {
    return Fail(Code::kInvalidArgument, fmt::format("codec.artifact {}: {}", path, why));
  };
  std::error_code ec;
  const uint64_t size = fs::file_size(path, ec);
  if (ec) return wrong(ec.message());
  if (size > kMaxArtifactBytes) return wrong("larger than any artifact");
  std::vector<std::byte> bytes(size);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size))) return wrong("cannot be read");
  Result<std::shared_ptr<const Artifact>> artifact = Artifact::Parse(bytes);
  if (!artifact) return wrong(artifact.error().message);
  return artifact;
}

}  // namespace

uint32_t NameSpaceId(std::string_view name) {
  FieldHash hash("tiercel name space v1");
  hash.Add(name);
  return LoadLe<uint32_t>(hash.Finish().data()) | 1;  // Never 0: that means none.
}

Result<std::unique_ptr<Node>> Node::Start(const Config& config, bool take_over) {
  auto node = std::unique_ptr<Node>(new Node(config));
  if (take_over) TIERCEL_TRY(node->TakeOver());
  TIERCEL_TRY(node->StartAll());
  return node;
}

Node::Node(const Config& config) : config_(config) {}

Node::~Node() { Stop(); }

Status Node::StartAll() {
  started_ = Clock::Monotonic().Now();
  host_id_ = ReadHostId();
  std::string pattern = (fs::temp_directory_path() / "tiercel-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) return Fail(Code::kUnavailable, "cannot make a runtime folder under /tmp");
  runtime_dir_ = pattern;
  if (config_.memfd_dir.empty()) {
    config_.memfd_dir = runtime_dir_;
  } else {
    std::error_code ec;
    fs::create_directories(config_.memfd_dir, ec);
    if (ec) return Fail(Code::kUnavailable, fmt::format("memfd.dir {}: {}", config_.memfd_dir, ec.message()));
  }
  for (const NamespaceConfig& one : config_.namespaces) {
    if (!demote_to_.emplace(NameSpaceId(one.name), one.demote_to).second) {
      return Fail(Code::kInvalidArgument, fmt::format("namespaces: '{}' has the same number as another: rename it", one.name));
    }
    if (one.host_reserve > 0 || one.host_limit > 0) {
      TierStack::HostQuota& quota = host_quota_[NameSpaceId(one.name)];
      quota.reserve = one.host_reserve / config_.shards;
      if (one.host_limit > 0) quota.limit = one.host_limit / config_.shards;
    }
    if (one.pin_limit > 0) pin_limit_[NameSpaceId(one.name)] = one.pin_limit / config_.shards;
    if (one.ttl > 0) ttl_[NameSpaceId(one.name)] = static_cast<uint32_t>(one.ttl / kSecond);
    if (one.ssd_reserve > 0 || one.ssd_limit > 0) {
      const uint64_t shares = config_.shards * std::max<size_t>(1, config_.ssd_paths().size());
      SsdStore::Quota& quota = ssd_quota_[NameSpaceId(one.name)];
      quota.reserve = one.ssd_reserve / shares;
      if (one.ssd_limit > 0) quota.limit = one.ssd_limit / shares;
    }
  }
  if (!config_.ssd_path.empty()) {
    TIERCEL_ASSIGN(std::shared_ptr<const Artifact> artifact, ReadArtifact(config_.artifact));
    demotion_ = std::make_unique<Demotion>(std::move(artifact));
    SsdDisk::Options disk;
    disk.shards = static_cast<uint32_t>(config_.shards);
    disk.write_bytes_per_second = config_.ssd_write_rate;
    disk.readers_per_shard = static_cast<uint32_t>(config_.ssd_readers);
    disk.writers_per_shard = static_cast<uint32_t>(config_.ssd_writers);
    const std::vector<std::string> paths = config_.ssd_paths();
    const uint64_t share = config_.ssd_capacity / paths.size();
    for (const std::string& path : paths) {
      disk.path = path;
      TIERCEL_ASSIGN(auto opened, SsdDisk::Open(disk));
      const uint64_t room = opened->room_bytes();
      if (room < share) {
        LogWarn("ssd.room", {{"disk", path}, {"room", FormatBytes(room)},
                             {"share_of_ssd.capacity", FormatBytes(share)},
                             {"then", "once the disk is full its oldest segments go for new ones"}});
      }
      disks_.push_back(std::move(opened));
    }
  }
  offer_.host_id = host_id_;
  offer_.ucx_devices = config_.ucx_devices;
  offer_.trusted_fabric = !config_.ucx_devices.empty();
  offer_.kinds = {TransportKind::kGrpc};
  if (config_.memfd) offer_.kinds.insert(offer_.kinds.begin(), TransportKind::kMemfd);
  if (config_.ucx_devices.empty()) {
    offer_.ucx_why_not = "ucx.devices names no device";
  } else {
    offer_.kinds.push_back(TransportKind::kUcx);
  }
  if (config_.numa == "auto") numa_ = ReadNumaNodes();
  if (numa_.size() < 2) numa_.clear();  // One node is near everything.
  grpc_ = GrpcEdge::Make(*this);
  for (uint32_t i = 0; i < config_.shards; ++i) TIERCEL_TRY(StartShard(i));
  for (const auto& shard : shards_) {
    threads_.emplace_back([this, raw = shard.get()] {
      if (!numa_.empty()) {
        const Status bound = RunOn(numa_[raw->number() % numa_.size()].cores);
        if (!bound) LogWarn("shard.numa", {{"shard", raw->number()}, {"why", bound.error().message}});
      }
      pthread_setname_np(pthread_self(), fmt::format("shard-{}", raw->number()).c_str());
      raw->RunUntilStopped();
    });
  }
  TIERCEL_ASSIGN(grpc_address_, grpc_->Listen());
  {
    MutexLock lock(mutex_);
    view_.epoch = 1;
    NodeInfo self{config_.node_id, config_.advertise.empty() ? grpc_address_ : config_.advertise, config_.zone,
                  std::vector<uint32_t>(shards_.size(), 100)};
    view_.nodes = {self};
  }
  if (!config_.view_file.empty()) TIERCEL_TRY(ReadView());
  if (!config_.http_listen.empty()) {
    TIERCEL_ASSIGN(http_, HttpEdge::Start(*this, config_.http_listen));
    http_address_ = http_->address();
  }
  housekeeper_ = std::thread([this] { Housekeeping(); });
  if (taken_over_) taken_over_->Confirm();
  taken_over_.reset();
  ListenForSuccessor();
  LogInfo("node.ready", {{"node", config_.node_id}, {"version", kVersion}, {"grpc", grpc_address_},
                         {"http", http_address_}, {"shards", shards_.size()},
                         {"host_memory", FormatBytes(config_.host_memory)},
                         {"numa", numa_.empty() ? "one node" : fmt::format("{} nodes", numa_.size())},
                         {"device", device_why_.empty() ? FormatBytes(config_.device_memory) : "off: " + device_why_},
                         {"ssd", config_.ssd_path.empty() ? "none" : config_.ssd_path},
                         {"ucx", config_.ucx_devices.empty() ? "off" : config_.ucx_devices}});
  return OkStatus();
}

// Null, and device_why_ says why, where there is none.
std::unique_ptr<DeviceTier> Node::OpenDevice() {
  if (config_.device_memory == 0) return nullptr;
  DeviceMemory::Options options;
  options.bytes = config_.device_memory / config_.shards;
  options.device = static_cast<int>(config_.device_number);
  auto memory = MakeCudaDeviceMemory(options);
  if (!memory) {
    device_why_ = memory.error().message;
    LogWarn("device.off", {{"why", device_why_}});
    return nullptr;
  }
  device_why_.clear();
  LogInfo("device.on", {{"device", (*memory)->name()}, {"memory", FormatBytes((*memory)->bytes())}});
  return std::make_unique<DeviceTier>(std::move(*memory));
}

Status Node::StartShard(uint32_t number) {
  const Clock& clock = Clock::Monotonic();
  TierStack::Options tiers;
  tiers.host.capacity_bytes = config_.host_memory / config_.shards;
  tiers.host.slab_bytes = config_.slab;
  tiers.host.populate = true;
  if (!numa_.empty()) tiers.host.numa_node = numa_[number % numa_.size()].number;
  if (config_.huge_pages == "off") tiers.host.huge_pages = HostArena::HugePages::kOff;
  if (config_.huge_pages == "required") tiers.host.huge_pages = HostArena::HugePages::kRequired;
  tiers.fault_injection = config_.fault_injection;
  TIERCEL_TRY(MakePolicy(config_.eviction, number).map([](const auto&) {}));
  tiers.make_policy = [name = config_.eviction](uint64_t seed) { return *MakePolicy(name, seed); };
  tiers.seed = number + 1;
  if (!host_quota_.empty()) {
    tiers.host_quota = [this](uint32_t name_space) {
      const auto found = host_quota_.find(name_space);
      return found == host_quota_.end() ? TierStack::HostQuota{} : found->second;
    };
  }
  tiers.keep_limit = [this](uint32_t name_space) {
    const auto found = pin_limit_.find(name_space);
    return found == pin_limit_.end() ? std::nullopt : std::optional(found->second);
  };
  if (!ttl_.empty()) {
    tiers.time_to_live = [this](uint32_t name_space) {
      const auto found = ttl_.find(name_space);
      return found == ttl_.end() ? 0 : found->second;
    };
  }
  std::unique_ptr<SsdStore> store;
  if (!disks_.empty()) {
    const uint64_t shares = config_.shards * disks_.size();  // Each shard has its part of each disk.
    SsdStore::Options ssd;
    ssd.capacity_bytes = config_.ssd_capacity / shares;
    ssd.write_bytes_per_day = config_.ssd_write_per_day / shares;
    ssd.scrub_bytes_per_second = config_.ssd_scrub_rate / shares;
    ssd.stall_after = config_.ssd_stall_after;
    ssd.segment_bytes = config_.ssd_segment;
    ssd.seal_after = config_.ssd_seal_after;
    ssd.verify_record = VerifyStored;
    tiers.admit_all = config_.ssd_admission == "all";
    tiers.max_read_ahead = static_cast<uint32_t>(config_.ssd_read_ahead);
    if (!ssd_quota_.empty()) {
      ssd.quota = [this](uint32_t name_space) {
        const auto found = ssd_quota_.find(name_space);
        return found == ssd_quota_.end() ? SsdStore::Quota{} : found->second;
      };
    }
    if (config_.ssd_recompress) {
      ssd.recode = [this](SsdEntry* entry, ByteSpan record) { return demotion_->Recode(entry, record); };
      tiers.demote_to = [this](uint32_t name_space) {
        const auto found = demote_to_.find(name_space);
        return found == demote_to_.end() ? QualityClass::kExact : found->second;
      };
    }
    std::vector<std::unique_ptr<SsdStore>> stores;
    for (const auto& disk : disks_) {
      TIERCEL_ASSIGN(auto one, disk->OpenShard(number, ssd, clock));
      stores.push_back(std::move(one));
    }
    store = JoinDisks(std::move(stores), ssd.segment_bytes);
  }
  tiers.verify_record = VerifyStored;
  TIERCEL_ASSIGN(auto stack, TierStack::Create(tiers, clock, std::move(store), OpenDevice()));
  if (taken_over_) {
    ShardLeft left = std::move(taken_over_->shards()[number]);
    const auto adopted = AdoptShard(*stack, number, static_cast<uint32_t>(config_.shards), std::move(left));
    if (!adopted) {
      LogWarn("takeover.cold", {{"shard", number}, {"why", adopted.error().message}});
    } else {
      LogInfo("takeover.adopted", {{"shard", number}, {"blocks", adopted->blocks}, {"bytes", FormatBytes(adopted->bytes)},
                                   {"left_out", adopted->left_out}});
    }
  }
  Shard::Options options;
  options.number = number;
  options.max_sessions = static_cast<uint32_t>(config_.max_sessions);
  options.max_keys_in_flight = static_cast<uint32_t>(config_.max_keys_in_flight);
  options.max_bytes_in_flight = config_.max_bytes_in_flight;
  options.max_hold_bytes = config_.max_hold_bytes;
  options.hold_time = config_.hold;
  options.max_pin = config_.pin;
  options.default_deadline = config_.default_deadline;
  options.spin = config_.spin;
  auto shard = std::make_unique<Shard>(options, clock, std::move(stack));
  Transport::Limits limits;
  limits.max_endpoints = static_cast<uint32_t>(config_.max_sessions);
  limits.max_bytes_in_flight = config_.max_bytes_in_flight + kMaxPayloadBytes;
  if (config_.memfd) {
    MemfdOptions memfd;
    memfd.socket_path = fmt::format("{}/shard-{}.sock", config_.memfd_dir, number);
    memfd.limits = limits;
    TIERCEL_ASSIGN(auto transport, MakeMemfdTransport(memfd, *shard, clock));
    shard->AddTransport(std::move(transport));
  }
  if (!config_.ucx_devices.empty()) {
    UcxOptions ucx;
    ucx.tls = config_.ucx_tls;
    ucx.devices = config_.ucx_devices;
    ucx.server = true;
    ucx.limits = limits;
    TIERCEL_ASSIGN(auto transport, MakeUcxTransport(ucx, *shard, clock));
    shard->AddTransport(std::move(transport));
  }
  shard->AddTransport(grpc_->hub().MakeTransport(number, "", *shard, clock, limits));
  shard->ServeMemory();
  shards_.push_back(std::move(shard));
  return OkStatus();
}

// ---- sessions ----------------------------------------------------------------------------------

void Node::OpenSession(const SessionAsk& ask, std::function<void(Result<SessionGrant>)> done) {
  if (draining_) return done(Fail(Code::kUnavailable, "this node is draining"));
  const std::string name = ask.name_space.empty() ? config_.namespaces.front().name : ask.name_space;
  const NamespaceConfig* name_space = config_.FindNamespace(name);
  if (name_space == nullptr) {
    return done(Fail(Code::kPermissionDenied, fmt::format("name space '{}' is not among this node's", name)));
  }
  Result<Choice> choice = ChooseTransport(ask.offer, offer_);
  if (!choice) return done(tl::unexpected<Error>(choice.error()));

  struct Opening {
    SessionGrant grant;
    std::atomic<size_t> left{0};
    Mutex mutex;
    Status failed TIERCEL_GUARDED_BY(mutex);
    std::function<void(Result<SessionGrant>)> done;
  };
  auto opening = std::make_shared<Opening>();
  FillRandom(&opening->grant.session_id);
  opening->grant.session_id |= 1;
  opening->grant.name_space = name;
  opening->left = shards_.size();
  opening->done = std::move(done);
  const uint64_t id = opening->grant.session_id;
  {
    MutexLock lock(mutex_);
    if (sessions_.size() >= config_.max_sessions) {
      return opening->done(Fail(Code::kResourceExhausted, fmt::format("all {} sessions are taken", config_.max_sessions)));
    }
    sessions_[id] = {ask.client_name, NameSpaceId(name), Clock::Monotonic().Now()};
  }
  opening->grant.shards.resize(shards_.size());
  const auto answered = [this, opening, id](const Status& status) {
    if (!status) {
      MutexLock lock(opening->mutex);
      opening->failed = status;
    }
    if (opening->left.fetch_sub(1) != 1) return;
    Status failed = OkStatus();
    {
      MutexLock lock(opening->mutex);
      failed = opening->failed;
    }
    if (failed) {
      LogInfo("session.open", {{"session", id}, {"transport", Name(opening->grant.shards[0].kind)},
                               {"why", opening->grant.shards[0].reason}});
      return opening->done(std::move(opening->grant));
    }
    CloseSession(id);
    opening->done(tl::unexpected<Error>(failed.error()));
  };
  for (size_t i = 0; i < shards_.size(); ++i) {
    ShardOffer& offer = opening->grant.shards[i];
    FillRandom(&offer.token);
    offer.kind = choice->kind;
    offer.reason = choice->reason;
    Transport* transport = shards_[i]->transport(offer.kind);
    TIERCEL_CHECK(transport != nullptr);
    offer.address = transport->LocalAddress();
    Shard::Grant grant{id, offer.token, NameSpaceId(name), name_space->worst_class};
    Status admitted = transport->Admit(id, ask.ucx_address, grant.name_space);
    if (admitted && !shards_[i]->Post([grant, answered](Shard& shard) { answered(shard.Expect(grant)); })) {
      admitted = Fail(Code::kResourceExhausted, "the shard's inbox is full");
    } else if (admitted) {
      continue;
    }
    answered(admitted);
  }
}

bool Node::KeepAlive(uint64_t session_id) {
  MutexLock lock(mutex_);
  const auto found = sessions_.find(session_id);
  if (found == sessions_.end()) return false;
  found->second.last_seen = Clock::Monotonic().Now();
  return true;
}

void Node::CloseSession(uint64_t session_id) {
  {
    MutexLock lock(mutex_);
    if (sessions_.erase(session_id) == 0) return;
  }
  for (const auto& shard : shards_) {
    // An inbox that is full for a moment must not keep a dead session's pins: try until it is told.
    while (!shard->Post([session_id](Shard& s) { s.EndSession(session_id); }) && !stopping_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

uint32_t Node::NameSpaceOf(uint64_t session_id) const {
  MutexLock lock(mutex_);
  const auto found = sessions_.find(session_id);
  return found == sessions_.end() ? 0 : found->second.name_space;
}

void Node::Housekeeping() {
  pthread_setname_np(pthread_self(), "housekeeper");
  auto next_view = std::chrono::steady_clock::now();
  fs::file_time_type view_time{};
  while (!stopping_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const Nanos now = Clock::Monotonic().Now();
    std::vector<uint64_t> silent;
    {
      MutexLock lock(mutex_);
      for (const auto& [id, session] : sessions_) {
        if (now - session.last_seen > kSessionSilence) silent.push_back(id);
      }
    }
    for (const uint64_t id : silent) {
      LogInfo("session.silent", {{"session", id}});
      CloseSession(id);
    }
    if (config_.view_file.empty() || std::chrono::steady_clock::now() < next_view) continue;
    next_view = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    std::error_code ec;
    const auto changed = fs::last_write_time(config_.view_file, ec);
    if (ec || changed == view_time) continue;
    view_time = changed;
    if (const Status read = ReadView(); !read) LogWarn("view.refused", {{"why", read.error().message}});
  }
}

// ---- view --------------------------------------------------------------------------------------

Status Node::ReadView() {
  std::ifstream file(config_.view_file);
  if (!file) return Fail(Code::kNotFound, fmt::format("cannot read view.file {}", config_.view_file));
  std::ostringstream text;
  text << file.rdbuf();
  TIERCEL_ASSIGN(View view, ParseView(text.str()));
  std::function<void(const std::string&)> listener;
  std::string json = FormatView(view);
  {
    MutexLock lock(mutex_);
    if (json == FormatView(view_)) return OkStatus();
    // The static view of ourselves gives way to any file; a file only to a later one.
    const bool own = view_.nodes.size() == 1 && view_.epoch == 1 && view_.nodes[0].id == config_.node_id;
    if (!own && view.epoch <= view_.epoch) {
      return Fail(Code::kFailedPrecondition, fmt::format("{}: epoch {} is not after {}", config_.view_file, view.epoch,
                                                         view_.epoch));
    }
    view_ = std::move(view);
    listener = view_listener_;
  }
  LogInfo("view.new", {{"view", json}});
  if (listener) listener(json);
  return OkStatus();
}

View Node::view() const {
  MutexLock lock(mutex_);
  return view_;
}
std::string Node::view_json() const { return FormatView(view()); }
void Node::SetViewListener(std::function<void(const std::string&)> listener) {
  MutexLock lock(mutex_);
  view_listener_ = std::move(listener);
}

// ---- asking shards -----------------------------------------------------------------------------

Status Node::OnShardAsync(size_t shard, Nanos timeout, std::function<void(Shard&, std::function<void()>)> fn) const {
  struct Waiting {
    Mutex mutex;
    CondVar done;
    bool finished TIERCEL_GUARDED_BY(mutex) = false;
  };
  if (shard >= shards_.size()) return Fail(Code::kNotFound, fmt::format("no shard {}", shard));
  auto waiting = std::make_shared<Waiting>();
  const bool posted = shards_[shard]->Post([waiting, fn = std::move(fn)](Shard& s) {
    fn(s, [waiting] {
      MutexLock lock(waiting->mutex);
      waiting->finished = true;
      waiting->done.NotifyAll();
    });
  });
  if (!posted) return Fail(Code::kResourceExhausted, fmt::format("shard {} is busy", shard));
  const Nanos end = Clock::Monotonic().Now() + timeout;
  MutexLock lock(waiting->mutex);
  while (!waiting->finished) {
    const Nanos left = end - Clock::Monotonic().Now();
    if (left <= 0) return Fail(Code::kDeadlineExceeded, fmt::format("shard {} did not answer in time", shard));
    waiting->done.WaitFor(waiting->mutex, std::chrono::nanoseconds(left));
  }
  return OkStatus();
}

Status Node::OnShard(size_t shard, Nanos timeout, std::function<void(Shard&)> fn) const {
  return OnShardAsync(shard, timeout, [fn = std::move(fn)](Shard& s, const std::function<void()>& done) {
    fn(s);
    done();
  });
}

NodeSnapshot Node::Snapshot() const {
  NodeSnapshot snapshot;
  snapshot.node_id = config_.node_id;
  snapshot.version = kVersion;
  snapshot.uptime_seconds = static_cast<double>(Clock::Monotonic().Now() - started_) * 1e-9;
  ReadResident(&snapshot.rss_bytes, &snapshot.arena_resident_bytes);
  snapshot.draining = draining_;
  for (const NamespaceConfig& name_space : config_.namespaces)
    snapshot.name_spaces[NameSpaceId(name_space.name)] = name_space.name;
  snapshot.device_why = device_why_;
  {
    MutexLock lock(mutex_);
    snapshot.sessions = sessions_.size();
    snapshot.view_epoch = view_.epoch;
  }
  for (size_t i = 0; i < shards_.size(); ++i) {
    // Shared, since a shard that answers too late must find where to write.
    auto stats = std::make_shared<Shard::Stats>();
    const Status asked = OnShard(i, kShardAnswer, [stats](Shard& shard) { *stats = shard.stats(); });
    snapshot.shards.push_back(asked ? *stats : Shard::Stats());
  }
  return snapshot;
}

bool Node::ready(std::string* why) const {
  if (draining_ || stopping_) {
    *why = "draining";
    return false;
  }
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Status asked = OnShard(i, kShardAnswer, [](Shard&) {});
    if (!asked) {
      *why = asked.error().message;
      return false;
    }
  }
  return true;
}

// ---- planned restart ---------------------------------------------------------------------------

Status Node::TakeOver() {
  const std::string path = RestartSocket(config_);
  if (path.empty()) {
    return Fail(Code::kFailedPrecondition, "take-over: restart.socket is off, or listen.grpc has no port of its own");
  }
  const HandoverTerms terms{static_cast<uint32_t>(config_.shards), config_.slab, kVersion};
  Result<Handover> asked = Handover::Ask(path, terms, config_.drain + kSuccessorStarts);
  if (asked) {
    LogInfo("takeover.from", {{"version", asked->version()}});
    taken_over_ = std::move(*asked);
    return OkStatus();
  }
  // It runs and stays: two of them cannot serve.
  const Code code = asked.error().code;
  if (code == Code::kFailedPrecondition || code == Code::kPermissionDenied || code == Code::kInvalidArgument) {
    return Fail(code, "take-over: " + asked.error().message);
  }
  LogWarn("takeover.cold", {{"why", asked.error().message}});
  return OkStatus();
}

void Node::ListenForSuccessor() {
  const std::string path = RestartSocket(config_);
  if (path.empty()) return;
  const HandoverTerms terms{static_cast<uint32_t>(shards_.size()), config_.slab, kVersion};
  auto listening = HandoverServer::Listen(path, terms, [this] { RequestStop(); });
  if (!listening) return LogWarn("handover.off", {{"why", listening.error().message}});
  handover_ = std::move(*listening);
}

std::vector<ShardLeft> Node::LeaveShards() {
  std::vector<ShardLeft> all;
  for (const auto& shard : shards_) {
    Result<ShardLeft> left = LeaveShard(shard->stack(), shard->number(), static_cast<uint32_t>(shards_.size()));
    if (!left) {  // The successor is told nothing, and starts cold.
      LogWarn("handover.lost", {{"why", left.error().message}});
      return {};
    }
    all.push_back(std::move(*left));
  }
  return all;
}

// ---- the end -----------------------------------------------------------------------------------

void Node::Drain() {
  if (draining_.exchange(true)) return;
  LogInfo("node.draining", {{"node", config_.node_id}});
  // A successor gets what is in RAM: it is not worth a wait for the disk.
  const bool handing_over = handover_ != nullptr && handover_->asked();
  const Nanos patience = handing_over ? std::min(config_.drain, kHandoverFlush) : config_.drain;
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Status flushed = OnShardAsync(i, patience, [](Shard& shard, std::function<void()> done) {
      shard.SetDraining();
      shard.stack().Flush([done](const Status&) { done(); });
    });
    if (!flushed) LogWarn("node.drain", {{"shard", i}, {"error", flushed.error().message}});
  }
}

void Node::Stop() {
  if (std::exchange(stopped_, true)) return;
  stopping_ = true;
  draining_ = true;
  if (housekeeper_.joinable()) housekeeper_.join();
  http_.reset();
  if (grpc_ != nullptr) grpc_->Shutdown();
  for (const auto& shard : shards_) {
    shard->Stop();
    (void)shard->Post([](Shard&) {});  // Wakes it.
  }
  for (std::thread& thread : threads_) thread.join();
  const bool handing_over = handover_ != nullptr && handover_->asked();
  std::vector<ShardLeft> left = handing_over ? LeaveShards() : std::vector<ShardLeft>();
  shards_.clear();
  grpc_.reset();
  disks_.clear();
  if (!left.empty()) {
    const Status taken = handover_->Send(std::move(left), kSuccessorStarts);
    if (taken) LogInfo("handover.done", {{"node", config_.node_id}});
    if (!taken) LogWarn("handover.lost", {{"why", taken.error().message}});
  }
  handover_.reset();
  if (!runtime_dir_.empty()) {
    std::error_code ignored;
    fs::remove_all(runtime_dir_, ignored);
  }
  LogInfo("node.stopped", {{"node", config_.node_id}});
}

}  // namespace tiercel
