#include "cacheserver/grpc_edge.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "base/mutex.h"
#include "cacheserver/node.h"
#include "kernels/record.h"
#include "proto/tiercel.grpc.pb.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr Nanos kAsk = 5 * kSecond;
constexpr Nanos kLongAsk = 600 * kSecond;
constexpr int kMaxControlBytes = 64 << 10;
constexpr size_t kMinUcxAddress = 16, kMaxUcxAddress = 4096;

grpc::Status ToGrpc(const Error& error) {
  return {static_cast<grpc::StatusCode>(error.code), error.message};
}
grpc::Status ToGrpc(const Status& status) { return status ? grpc::Status::OK : ToGrpc(status.error()); }

ServerUnaryReactor* Answer(CallbackServerContext* context, const grpc::Status& status) {
  ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// Long administrative calls wait on a thread of their own, a bounded number at once.
class SlowCalls {
 public:
  ~SlowCalls() { Wait(); }
  bool Run(std::function<void()> work) {
    MutexLock lock(mutex_);
    if (running_ >= 8) return false;
    ++running_;
    std::thread([this, work = std::move(work)] {
      work();
      MutexLock done(mutex_);
      --running_;
      idle_.NotifyAll();
    }).detach();
    return true;
  }
  void Wait() {
    MutexLock lock(mutex_);
    while (running_ > 0) idle_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar idle_;
  int running_ TIERCEL_GUARDED_BY(mutex_) = 0;
};

v1::Transport ToProto(TransportKind kind) { return static_cast<v1::Transport>(kind); }

class KeepAliveReactor final : public grpc::ServerBidiReactor<v1::KeepAliveRequest, v1::KeepAliveResponse> {
 public:
  explicit KeepAliveReactor(Node& node) : node_(node) { StartRead(&request_); }
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (!node_.KeepAlive(request_.session_id())) {
      return Finish({grpc::StatusCode::NOT_FOUND, "no such session"});
    }
    response_.set_view_epoch(node_.view().epoch);
    response_.set_draining(node_.draining());
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      StartRead(&request_);
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnDone() override { delete this; }

 private:
  Node& node_;
  v1::KeepAliveRequest request_;
  v1::KeepAliveResponse response_;
};

// Streams of views: each has at most one write with gRPC and the newest view waiting.
class Watchers {
 public:
  class Reactor final : public grpc::ServerWriteReactor<v1::WatchViewResponse> {
   public:
    explicit Reactor(Watchers& watchers) : watchers_(watchers) {}
    void Offer(const std::string& json) {
      MutexLock lock(mutex_);
      if (finished_) return;
      next_ = json;
      if (!writing_) Write();
    }
    void OnWriteDone(bool ok) override {
      MutexLock lock(mutex_);
      writing_ = false;
      if (!ok) {
        End();
      } else if (!next_.empty()) {
        Write();
      }
    }
    void OnCancel() override {
      MutexLock lock(mutex_);
      End();
    }
    void OnDone() override {
      watchers_.Remove(this);
      delete this;
    }

   private:
    void Write() TIERCEL_REQUIRES(mutex_) {
      response_.set_view_json(std::exchange(next_, {}));
      writing_ = true;
      StartWrite(&response_);
    }
    void End() TIERCEL_REQUIRES(mutex_) {
      if (std::exchange(finished_, true)) return;
      Finish(grpc::Status::OK);
    }
    Watchers& watchers_;
    Mutex mutex_;
    v1::WatchViewResponse response_;
    std::string next_ TIERCEL_GUARDED_BY(mutex_);
    bool writing_ TIERCEL_GUARDED_BY(mutex_) = false;
    bool finished_ TIERCEL_GUARDED_BY(mutex_) = false;
  };

  Reactor* Add(const std::string& json) {
    auto* reactor = new Reactor(*this);
    {
      MutexLock lock(mutex_);
      all_.insert(reactor);
    }
    reactor->Offer(json);
    return reactor;
  }
  void Tell(const std::string& json) {
    MutexLock lock(mutex_);
    for (Reactor* reactor : all_) reactor->Offer(json);
  }
  void Remove(Reactor* reactor) {
    MutexLock lock(mutex_);
    all_.erase(reactor);
  }

 private:
  Mutex mutex_;
  std::set<Reactor*> all_ TIERCEL_GUARDED_BY(mutex_);
};

class DataService final : public v1::Tiercel::CallbackService {
 public:
  DataService(Node& node, GrpcStreamHub& hub, Watchers& watchers) : node_(node), hub_(hub), watchers_(watchers) {}

  ServerUnaryReactor* OpenSession(CallbackServerContext* context, const v1::OpenSessionRequest* request,
                                  v1::OpenSessionResponse* response) override {
    if (request->proto_min() > kWireVersion || request->proto_max() < kWireVersion) {
      return Answer(context, {grpc::StatusCode::FAILED_PRECONDITION,
                              fmt::format("the client speaks wire versions {}..{}, this node {}", request->proto_min(),
                                          request->proto_max(), kWireVersion)});
    }
    // Kept until the session's HELLO: its size is the client's word for now.
    if (const size_t bytes = request->ucx_address().size(); bytes > 0 && (bytes < kMinUcxAddress || bytes > kMaxUcxAddress)) {
      return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, fmt::format("ucx_address: {} bytes, not {}..{}", bytes,
                                                                              kMinUcxAddress, kMaxUcxAddress)});
    }
    Node::SessionAsk ask;
    ask.client_name = request->client_name().substr(0, 256);
    ask.name_space = request->name_space();
    ask.offer.host_id = request->host_id();
    ask.offer.has_ucx_address = !request->ucx_address().empty();
    ask.offer.ucx_version = request->ucx_version();
    ask.ucx_address = request->ucx_address();
    for (const int transport : request->transports()) {
      if (transport >= 1 && transport <= 4) ask.offer.kinds.push_back(static_cast<TransportKind>(transport));
    }
    ServerUnaryReactor* reactor = context->DefaultReactor();
    node_.OpenSession(ask, [this, reactor, response](Result<Node::SessionGrant> grant) {
      if (!grant) return reactor->Finish(ToGrpc(grant.error()));
      Fill(*grant, response);
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerBidiReactor<v1::KeepAliveRequest, v1::KeepAliveResponse>* KeepAlive(CallbackServerContext*) override {
    return new KeepAliveReactor(node_);
  }

  ServerUnaryReactor* CloseSession(CallbackServerContext* context, const v1::CloseSessionRequest* request,
                                   v1::CloseSessionResponse*) override {
    node_.CloseSession(request->session_id());
    return Answer(context, grpc::Status::OK);
  }

  ServerUnaryReactor* Lookup(CallbackServerContext* context, const v1::LookupRequest* request,
                             v1::LookupResponse* response) override {
    const uint32_t name_space = node_.NameSpaceOf(request->session_id());
    if (name_space == 0) return Answer(context, {grpc::StatusCode::UNAUTHENTICATED, "no such session"});
    if (request->keys_size() == 0 || request->keys_size() > static_cast<int>(kMaxKeys)) {
      return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, fmt::format("{} keys, not 1..64", request->keys_size())});
    }
    auto keys = std::make_shared<std::vector<BlockKey>>();
    for (const std::string& bytes : request->keys()) {
      if (bytes.size() != 32) return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, "a key is not 32 bytes"});
      std::memcpy(keys->emplace_back().bytes.data(), bytes.data(), 32);
    }
    auto best = std::make_shared<std::vector<MatchEntry>>(keys->size());
    const auto min_class = static_cast<QualityClass>(std::min<int>(request->min_class(), kQualityClasses - 1));
    for (size_t i = 0; i < node_.shards(); ++i) {
      const Status asked = node_.OnShard(i, kAsk, [keys, best, name_space, min_class](Shard& shard) {
        for (size_t k = 0; k < keys->size(); ++k) {
          const MatchEntry entry = shard.stack().Lookup(name_space, (*keys)[k], min_class, Prefer::kGood);
          MatchEntry& old = (*best)[k];
          if (old.tier == Tier::kNone && (entry.tier != Tier::kNone || old.reason <= MissReason::kNeverSeen)) old = entry;
        }
      });
      if (!asked) return Answer(context, ToGrpc(asked));
    }
    for (const MatchEntry& entry : *best) {
      v1::LookupEntry* out = response->add_entries();
      out->set_tier(std::string(Name(entry.tier)));
      out->set_reason(std::string(Name(entry.reason)));
      out->set_quality(static_cast<v1::QualityClass>(entry.quality));
      out->set_record_bytes(entry.record_bytes);
    }
    return Answer(context, grpc::Status::OK);
  }

  ServerUnaryReactor* Stat(CallbackServerContext* context, const v1::StatRequest*, v1::StatResponse* response) override {
    const NodeSnapshot node = node_.Snapshot();
    response->set_node_id(node.node_id);
    response->set_version(node.version);
    response->set_uptime_s(node.uptime_seconds);
    response->set_rss_bytes(node.rss_bytes);
    response->set_rss_outside_arena_bytes(node.rss_outside_arena());
    response->set_sessions(node.sessions);
    response->set_draining(node.draining);
    response->set_ssd_state("none");
    response->set_device_state(node.device_why.empty() ? "ok" : "off: " + node.device_why);
    for (size_t i = 0; i < node.shards.size(); ++i) {
      const Shard::Stats& s = node.shards[i];
      if (s.has_ssd) response->set_ssd_state(s.ssd_why.empty() ? "ok" : s.ssd_why);
      if (!s.tiers.device_why.empty()) response->set_device_state("off: " + s.tiers.device_why);
      v1::ShardStat* shard = response->add_shards();
      FillShard(s, static_cast<uint32_t>(i), shard);
      if (s.has_ssd) shard->set_ssd_capacity(node_.config().ssd_capacity / node.shards.size());
    }
    FillWhatIf(node, *response);
    return Answer(context, grpc::Status::OK);
  }

  ServerUnaryReactor* Health(CallbackServerContext* context, const v1::HealthRequest*,
                             v1::HealthResponse* response) override {
    std::string why;
    response->set_ready(node_.ready(&why));
    response->set_why(why);
    return Answer(context, grpc::Status::OK);
  }

  grpc::ServerWriteReactor<v1::WatchViewResponse>* WatchView(CallbackServerContext*,
                                                             const v1::WatchViewRequest*) override {
    return watchers_.Add(node_.view_json());
  }

  GrpcStreamHub::Reactor* GetBlocks(CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kGets);
  }
  GrpcStreamHub::Reactor* PutBlocks(CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kPuts);
  }

 private:
  void Fill(const Node::SessionGrant& grant, v1::OpenSessionResponse* response) const {
    const Config& config = node_.config();
    response->set_session_id(grant.session_id);
    response->set_proto(kWireVersion);
    response->set_name_space(grant.name_space);
    response->set_node_id(config.node_id);
    response->set_server_version(kVersion);
    response->set_view_epoch(node_.view().epoch);
    for (size_t i = 0; i < grant.shards.size(); ++i) {
      const Node::ShardOffer& offer = grant.shards[i];
      v1::ShardEndpoint* shard = response->add_shards();
      shard->set_shard(static_cast<uint32_t>(i));
      shard->set_token(offer.token.data(), offer.token.size());
      shard->set_transport(ToProto(offer.kind));
      shard->set_reason(offer.reason);
      shard->set_address(offer.address);
    }
    v1::Limits* limits = response->mutable_limits();
    limits->set_max_keys(kMaxKeys);
    limits->set_max_payload_bytes(kMaxPayloadBytes);
    limits->set_max_bytes_in_flight(config.max_bytes_in_flight);
    limits->set_max_requests_in_flight(static_cast<uint32_t>(config.max_keys_in_flight));
    limits->set_max_hold_bytes(config.max_hold_bytes);
    limits->set_default_deadline_ms(static_cast<uint32_t>(config.default_deadline / kMillisecond));
    limits->set_hold_ms(static_cast<uint32_t>(config.hold / kMillisecond));
  }

  static void FillWhatIf(const NodeSnapshot& node, v1::StatResponse& response) {
    std::map<uint32_t, WhatIf::Curve> sums;
    for (const Shard::Stats& shard : node.shards) {
      for (const auto& [id, curve] : shard.tiers.what_if) {
        WhatIf::Curve& sum = sums[id];
        sum.asked += curve.asked;
        sum.seen += curve.seen;
        for (size_t i = 0; i < curve.hits.size(); ++i) sum.hits[i] += curve.hits[i];
      }
    }
    for (const auto& [id, sum] : sums) {
      v1::WhatIfCurve& out = *response.add_what_if();
      const auto name = node.name_spaces.find(id);
      out.set_name_space(name == node.name_spaces.end() ? std::to_string(id) : name->second);
      out.set_asked(sum.asked);
      out.set_ceiling(sum.seen);
      for (size_t i = 0; i < sum.hits.size(); ++i) {
        out.add_sizes(WhatIf::kSizes[i]);
        out.add_hits(sum.hits[i]);
      }
    }
  }

  static void FillShard(const Shard::Stats& s, uint32_t number, v1::ShardStat* out) {
    const TierStack::Stats& t = s.tiers;
    out->set_shard(number);
    out->set_blocks(t.blocks);
    out->set_host_bytes(t.host_bytes);
    out->set_host_capacity(t.host_capacity);
    out->set_ssd_bytes(t.ssd.used_bytes);
    out->set_hits_host(t.hits_host);
    out->set_hits_ssd(t.hits_ssd);
    out->set_misses(t.misses);
    for (int reason = 1; reason < kMissReasons; ++reason) {
      const uint64_t count = t.reasons[static_cast<size_t>(reason)];
      if (count > 0) (*out->mutable_miss_reasons())[std::string(Name(static_cast<MissReason>(reason)))] = count;
    }
    out->set_puts(t.puts);
    out->set_put_bytes(s.put_bytes);
    out->set_get_bytes(s.get_bytes);
    out->set_evicted(t.evicted);
    out->set_pinned_blocks(t.pinned);
    out->set_sessions(s.sessions);
    out->set_durable_blocks(t.durable);
    out->set_corrupt(t.corrupt);
    out->set_in_flight(s.keys_in_flight);
    out->set_raw_bytes(t.raw_bytes);
    out->set_index_bytes(t.index.all());
    out->set_hits_device(t.hits_device);
    out->set_device_bytes(t.device.used_bytes);
    out->set_device_capacity(t.device.capacity_bytes);
    out->set_kept_blocks(t.kept);
    out->set_kept_bytes(t.kept_bytes);
    out->set_expired(t.expired);
  }

  Node& node_;
  GrpcStreamHub& hub_;
  Watchers& watchers_;
};

class AdminService final : public v1::TiercelAdmin::CallbackService {
 public:
  explicit AdminService(Node& node) : node_(node) {}
  void Wait() { slow_.Wait(); }

  ServerUnaryReactor* Clear(CallbackServerContext* context, const v1::ClearRequest* request,
                            v1::ClearResponse* response) override {
    auto scope = std::make_shared<Scope>();
    if (!request->scope().empty()) {
      if (request->scope().size() != 16) return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, "scope is not 16 bytes"});
      std::memcpy(scope->bytes.data(), request->scope().data(), 16);
    }
    return Slow(context, [this, scope, name_space = NameSpaceId(request->name_space()), response]() -> Status {
      uint64_t cleared = 0;
      for (size_t i = 0; i < node_.shards(); ++i) {
        auto result = std::make_shared<Result<uint64_t>>(uint64_t{0});
        TIERCEL_TRY(node_.OnShard(i, kAsk, [scope, name_space, result](Shard& shard) {
          *result = shard.stack().Clear(name_space, *scope);
        }));
        TIERCEL_ASSIGN(const uint64_t n, std::move(*result));
        cleared += n;
      }
      response->set_blocks(cleared);
      return OkStatus();
    });
  }

  ServerUnaryReactor* Verify(CallbackServerContext* context, const v1::VerifyRequest* request,
                             v1::VerifyResponse* response) override {
    return Slow(context, [this, only = request->shard(), all = request->all_shards(), response]() -> Status {
      for (size_t i = 0; i < node_.shards(); ++i) {
        if (!all && i != only) continue;
        auto report = std::make_shared<Result<SsdStore::VerifyReport>>();
        TIERCEL_TRY(node_.OnShardAsync(i, kLongAsk, [report](Shard& shard, std::function<void()> done) {
          if (shard.stack().ssd() == nullptr) return done();
          shard.stack().ssd()->Verify([report, done](Result<SsdStore::VerifyReport> result) {
            *report = std::move(result);
            done();
          });
        }));
        TIERCEL_ASSIGN(const SsdStore::VerifyReport found, std::move(*report));
        response->set_records(response->records() + found.records);
        response->set_bytes(response->bytes() + found.bytes);
        response->set_bad(response->bad() + found.bad);
        for (const std::string& finding : found.findings) {
          if (response->findings_size() < 100) response->add_findings(finding);
        }
      }
      return OkStatus();
    });
  }

  ServerUnaryReactor* Inspect(CallbackServerContext* context, const v1::InspectRequest* request,
                              v1::InspectResponse* response) override {
    if (request->key().size() != 32) return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, "key is not 32 bytes"});
    BlockKey key;
    std::memcpy(key.bytes.data(), request->key().data(), 32);
    struct Found {
      std::string text;
      std::string head;
    };
    for (size_t i = 0; i < node_.shards(); ++i) {
      for (const NamespaceConfig& space : node_.config().namespaces) {
        const std::string& name = space.name;
        auto found = std::make_shared<Found>();
        const Status asked = node_.OnShard(i, kAsk, [key, name, found](Shard& shard) {
          for (const auto& one : shard.stack().Describe(NameSpaceId(name), key)) {
            found->text += fmt::format(
                "shard {} name space {} tier {} class {} record {} raw {} chain index {} generation {} pins {} hits {} "
                "segment {} slot {} scope {} parent {}\n",
                shard.number(), name, Name(one.tier), Name(one.entry.quality), one.entry.record_bytes,
                one.entry.raw_bytes, one.entry.chain_index, one.entry.generation, one.pins, one.hits,
                one.entry.where.segment, one.entry.where.slot, ToHex(one.entry.scope.bytes), ToHex(one.entry.parent.bytes));
          }
          if (found->text.empty()) return;
          TierStack::FetchOptions any;
          any.min_class = QualityClass::kSmall;
          shard.stack().Fetch(NameSpaceId(name), key, any, [found](TierStack::Fetched fetched) {
            if (fetched.pin) found->head = std::string(AsText(fetched.pin.record().first(std::min<size_t>(4096, fetched.pin.record().size()))));
          });
        });
        if (!asked) return Answer(context, ToGrpc(asked));
        if (found->text.empty()) continue;
        response->set_found(true);
        response->set_text(response->text() + found->text);
        response->set_record_header(found->head);
      }
    }
    return Answer(context, grpc::Status::OK);
  }

  ServerUnaryReactor* Flush(CallbackServerContext* context, const v1::FlushRequest*, v1::FlushResponse* response) override {
    return Slow(context, [this, response]() -> Status {
      for (size_t i = 0; i < node_.shards(); ++i) {
        auto result = std::make_shared<Status>();
        auto durable = std::make_shared<uint64_t>(0);
        TIERCEL_TRY(node_.OnShardAsync(i, kLongAsk, [result, durable](Shard& shard, std::function<void()> done) {
          shard.stack().Flush([result, durable, &shard, done](Status status) {
            *result = std::move(status);
            *durable = shard.stack().stats().durable;
            done();
          });
        }));
        TIERCEL_TRY(std::move(*result));
        response->set_durable_blocks(response->durable_blocks() + *durable);
      }
      return OkStatus();
    });
  }

  ServerUnaryReactor* Drain(CallbackServerContext* context, const v1::DrainRequest*, v1::DrainResponse*) override {
    return Slow(context, [this]() -> Status {
      node_.Drain();
      return OkStatus();
    });
  }

  ServerUnaryReactor* Corrupt(CallbackServerContext* context, const v1::CorruptRequest* request, v1::CorruptResponse*) override {
    if (request->key().size() != 32) return Answer(context, {grpc::StatusCode::INVALID_ARGUMENT, "key is not 32 bytes"});
    BlockKey key;
    std::memcpy(key.bytes.data(), request->key().data(), 32);
    const Tier where = request->where() == "ssd" ? Tier::kSsd : Tier::kHost;
    Status last = Fail(Code::kNotFound, "no such block");
    for (size_t i = 0; i < node_.shards(); ++i) {
      auto result = std::make_shared<Status>();
      const Status asked = node_.OnShard(i, kAsk, [key, bit = request->bit(), where, result](Shard& shard) {
        *result = shard.stack().CorruptForTest(key, bit, where);
      });
      last = asked ? *result : asked;
      if (last || last.error().code == Code::kPermissionDenied) break;
    }
    return Answer(context, ToGrpc(last));
  }

 private:
  ServerUnaryReactor* Slow(CallbackServerContext* context, std::function<Status()> work) {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    const bool started = slow_.Run([reactor, work = std::move(work)] { reactor->Finish(ToGrpc(work())); });
    if (!started) reactor->Finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "eight administrative calls are under way"});
    return reactor;
  }

  Node& node_;
  SlowCalls slow_;
};

Result<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return Fail(Code::kInvalidArgument, "cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Result<std::shared_ptr<grpc::ServerCredentials>> Credentials(const Config& config) {
  if (config.insecure) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(config.tls_ca.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  TIERCEL_ASSIGN(std::string key, ReadFile(config.tls_key));
  TIERCEL_ASSIGN(std::string cert, ReadFile(config.tls_cert));
  options.pem_key_cert_pairs.push_back({std::move(key), std::move(cert)});
  if (!config.tls_ca.empty()) {
    TIERCEL_ASSIGN(options.pem_root_certs, ReadFile(config.tls_ca));
  }
  return grpc::SslServerCredentials(options);
}

class Edge final : public GrpcEdge {
 public:
  explicit Edge(Node& node) : node_(node), data_(node, hub_, watchers_), admin_(node) {}
  ~Edge() override { Shutdown(); }

  GrpcStreamHub& hub() override { return hub_; }

  Result<std::string> Listen() override {
    const std::string& listen = node_.config().grpc_listen;
    TIERCEL_ASSIGN(const auto credentials, Credentials(node_.config()));
    grpc::ServerBuilder builder;
    int port = 0;
    grpc::ResourceQuota quota("tiercel");
    quota.Resize(size_t{512} << 20);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kGrpcMaxMessageBytes);
    builder.SetMaxSendMessageSize(kGrpcMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kGrpcStreamWindowBytes);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kGrpcHttp2FrameBytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxControlBytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 256);
    builder.AddListeningPort(listen, credentials, &port);
    builder.RegisterService(&data_);
    builder.RegisterService(&admin_);
    server_ = builder.BuildAndStart();
    const bool socket = listen.starts_with("unix:");
    if (server_ == nullptr || (port == 0 && !socket)) {
      return Fail(Code::kUnavailable, fmt::format("listen.grpc {}: cannot be bound (in use?)", listen));
    }
    node_.SetViewListener([this](const std::string& json) { watchers_.Tell(json); });
    return socket ? listen : fmt::format("{}:{}", listen.substr(0, listen.rfind(':')), port);
  }

  void Shutdown() override {
    if (server_ == nullptr) return;
    node_.SetViewListener(nullptr);
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    admin_.Wait();
    server_->Wait();
    server_.reset();
  }

 private:
  Node& node_;
  GrpcStreamHub hub_;
  Watchers watchers_;
  DataService data_;
  AdminService admin_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

std::unique_ptr<GrpcEdge> GrpcEdge::Make(Node& node) { return std::make_unique<Edge>(node); }

}  // namespace tiercel
