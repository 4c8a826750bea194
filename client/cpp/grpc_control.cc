#include "client/cpp/grpc_control.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <sstream>

#include "base/mutex.h"
#include "client/cpp/channel.h"
#include "proto/tiercel.grpc.pb.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

constexpr Nanos kKeepAliveEvery = 1 * kSecond;

v1::Transport ToProto(TransportKind kind) {
  switch (kind) {
    case TransportKind::kLoopback:
      return v1::TRANSPORT_LOOPBACK;
    case TransportKind::kMemfd:
      return v1::TRANSPORT_MEMFD;
    case TransportKind::kUcx:
      return v1::TRANSPORT_UCX;
    case TransportKind::kGrpc:
      return v1::TRANSPORT_GRPC;
  }
  return v1::TRANSPORT_UNSPECIFIED;
}

Error FromGrpc(const grpc::Status& status, const std::string& endpoint) {
  const int code = static_cast<int>(status.error_code());
  return Error{code > 0 && code <= 16 ? static_cast<Code>(code) : Code::kUnknown,
               fmt::format("{}: {}", endpoint, status.error_message())};
}

Result<SessionOffer> FromProto(const v1::OpenSessionResponse& reply) {
  SessionOffer offer;
  offer.session_id = reply.session_id();
  offer.node_id = reply.node_id();
  offer.server_version = reply.server_version();
  if (reply.proto() != kWireVersion) {
    return Fail(Code::kUnimplemented, fmt::format("node {} speaks wire version {}, this client {}",
                                                  reply.node_id(), reply.proto(), kWireVersion));
  }
  for (const v1::ShardEndpoint& shard : reply.shards()) {
    ShardOffer one;
    one.shard = shard.shard();
    one.token = shard.token();
    one.reason = shard.reason();
    one.address = shard.address();
    switch (shard.transport()) {
      case v1::TRANSPORT_LOOPBACK:
        one.transport = TransportKind::kLoopback;
        break;
      case v1::TRANSPORT_MEMFD:
        one.transport = TransportKind::kMemfd;
        break;
      case v1::TRANSPORT_UCX:
        one.transport = TransportKind::kUcx;
        break;
      case v1::TRANSPORT_GRPC:
        one.transport = TransportKind::kGrpc;
        break;
      default:
        return Fail(Code::kUnimplemented,
                    fmt::format("node {} offers a transport that this client does not know ({})",
                                reply.node_id(), static_cast<int>(shard.transport())));
    }
    offer.shards.push_back(std::move(one));
  }
  if (offer.shards.empty()) {
    return Fail(Code::kUnavailable, fmt::format("node {} offers no shard", reply.node_id()));
  }
  if (reply.has_limits()) {
    const v1::Limits& limits = reply.limits();
    if (limits.max_keys() > 0) offer.max_keys = std::min(limits.max_keys(), kMaxKeys);
    if (limits.max_bytes_in_flight() > 0) offer.max_bytes_in_flight = limits.max_bytes_in_flight();
    if (limits.max_requests_in_flight() > 0) {
      offer.max_requests_in_flight = limits.max_requests_in_flight();
    }
  }
  return offer;
}

// What callbacks may still touch when the control is gone.
struct Shared {
  Mutex mutex;
  CondVar idle;
  uint32_t running TIERCEL_GUARDED_BY(mutex) = 0;
  uint32_t closing TIERCEL_GUARDED_BY(mutex) = 0;  // CloseSession calls among them.
  bool shut TIERCEL_GUARDED_BY(mutex) = false;
  std::map<uint64_t, grpc::ClientContext*> contexts TIERCEL_GUARDED_BY(mutex);
  uint64_t next TIERCEL_GUARDED_BY(mutex) = 1;

  // 0: no more calls.
  uint64_t Begin(grpc::ClientContext* context) {
    MutexLock lock(mutex);
    if (shut) return 0;
    ++running;
    contexts.emplace(next, context);
    return next++;
  }
  void End(uint64_t id) {
    MutexLock lock(mutex);
    contexts.erase(id);
    --running;
    idle.NotifyAll();
  }
  bool is_shut() {
    MutexLock lock(mutex);
    return shut;
  }
};

template <class Request, class Reply>
struct Unary {
  grpc::ClientContext context;
  Request request;
  Reply reply;
};

class KeepAliveCall final
    : public grpc::ClientBidiReactor<v1::KeepAliveRequest, v1::KeepAliveResponse> {
 public:
  KeepAliveCall(uint64_t session_id, std::string endpoint, std::shared_ptr<Shared> shared,
                UniqueFunction<void(Error)> lost)
      : endpoint_(std::move(endpoint)), shared_(std::move(shared)), lost_(std::move(lost)) {
    request_.set_session_id(session_id);
  }
  // self keeps it alive until OnDone.
  bool Start(v1::Tiercel::Stub& stub, std::shared_ptr<KeepAliveCall> self) {
    id_ = shared_->Begin(&context_);
    if (id_ == 0) return false;
    self_ = std::move(self);
    stub.async()->KeepAlive(&context_, this);
    AddHold();  // For writes from Tick.
    StartRead(&response_);
    StartWrite(&request_);
    StartCall();
    return true;
  }
  void Beat() {
    MutexLock lock(mutex_);
    if (writing_ || ended_) return;
    writing_ = true;
    StartWrite(&request_);
  }
  void Stop() {
    {
      MutexLock lock(mutex_);
      lost_ = nullptr;
    }
    context_.TryCancel();
    LetGo();
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mutex_);
      writing_ = false;
      if (ok) return;
    }
    LetGo();
  }
  void OnReadDone(bool ok) override {
    if (ok) {
      StartRead(&response_);
      return;
    }
    LetGo();
  }
  void OnDone(const grpc::Status& status) override {
    UniqueFunction<void(Error)> lost;
    {
      MutexLock lock(mutex_);
      ended_ = true;
      lost = std::move(lost_);
      lost_ = nullptr;
    }
    if (lost && !shared_->is_shut()) {
      lost(status.ok()
               ? Error{Code::kUnavailable, endpoint_ + ": the session was ended by the node"}
               : FromGrpc(status, endpoint_));
    }
    shared_->End(id_);
    self_.reset();
  }

 private:
  void LetGo() {
    {
      MutexLock lock(mutex_);
      if (ended_) return;
      ended_ = true;
    }
    RemoveHold();
  }

  const std::string endpoint_;
  const std::shared_ptr<Shared> shared_;
  grpc::ClientContext context_;
  v1::KeepAliveRequest request_;
  v1::KeepAliveResponse response_;
  uint64_t id_ = 0;
  std::shared_ptr<KeepAliveCall> self_;
  Mutex mutex_;
  UniqueFunction<void(Error)> lost_ TIERCEL_GUARDED_BY(mutex_);
  bool writing_ TIERCEL_GUARDED_BY(mutex_) = true;
  bool ended_ TIERCEL_GUARDED_BY(mutex_) = false;
};

class WatchCall final : public grpc::ClientReadReactor<v1::WatchViewResponse> {
 public:
  WatchCall(std::shared_ptr<Shared> shared, std::function<void(std::string)> on_view)
      : shared_(std::move(shared)), on_view_(std::move(on_view)) {}
  bool Start(v1::Tiercel::Stub& stub, std::shared_ptr<WatchCall> self) {
    id_ = shared_->Begin(&context_);
    if (id_ == 0) return false;
    self_ = std::move(self);
    stub.async()->WatchView(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
    return true;
  }
  bool ended() const { return ended_.load(std::memory_order_acquire); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (!shared_->is_shut()) on_view_(response_.view_json());
    StartRead(&response_);
  }
  void OnDone(const grpc::Status&) override {
    ended_.store(true, std::memory_order_release);
    shared_->End(id_);
    self_.reset();
  }

 private:
  const std::shared_ptr<Shared> shared_;
  const std::function<void(std::string)> on_view_;
  grpc::ClientContext context_;
  v1::WatchViewRequest request_;
  v1::WatchViewResponse response_;
  uint64_t id_ = 0;
  std::atomic<bool> ended_{false};
  std::shared_ptr<WatchCall> self_;
};

class GrpcControl final : public NodeControl {
 public:
  GrpcControl(std::string endpoint, std::shared_ptr<grpc::Channel> channel)
      : endpoint_(std::move(endpoint)),
        channel_(std::move(channel)),
        stub_(v1::Tiercel::NewStub(channel_)),
        shared_(std::make_shared<Shared>()) {}
  ~GrpcControl() override { Shutdown(); }

  void Open(const SessionAsk& ask, Nanos timeout,
            UniqueFunction<void(Result<SessionOffer>)> done) override {
    struct Opening : Unary<v1::OpenSessionRequest, v1::OpenSessionResponse> {
      UniqueFunction<void(Result<SessionOffer>)> done;
    };
    auto call = std::make_shared<Opening>();
    call->done = std::move(done);
    v1::OpenSessionRequest& request = call->request;
    request.set_proto_min(kWireVersion);
    request.set_proto_max(kWireVersion);
    request.set_client_name(ask.client_name);
    request.set_name_space(ask.name_space);
    request.set_host_id(ask.host_id);
    for (const TransportKind kind : ask.transports) request.add_transports(ToProto(kind));
    request.set_ucx_address(ask.ucx_address);
    call->context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::nanoseconds(timeout));
    const uint64_t id = shared_->Begin(&call->context);
    if (id == 0) return;
    stub_->async()->OpenSession(
        &call->context, &call->request, &call->reply,
        [call, id, shared = shared_, endpoint = endpoint_](const grpc::Status& status) {
          if (!shared->is_shut()) {
            if (status.ok()) {
              call->done(FromProto(call->reply));
            } else {
              const Error error = FromGrpc(status, endpoint);
              call->done(Fail(error.code, error.message));
            }
          }
          shared->End(id);
        });
  }

  void KeepAlive(uint64_t session_id, UniqueFunction<void(Error)> lost) override {
    auto call = std::make_shared<KeepAliveCall>(session_id, endpoint_, shared_, std::move(lost));
    if (!call->Start(*stub_, call)) return;
    MutexLock lock(mutex_);
    sessions_[session_id] = std::move(call);
  }

  void Close(uint64_t session_id) override {
    std::shared_ptr<KeepAliveCall> beat;
    {
      MutexLock lock(mutex_);
      const auto found = sessions_.find(session_id);
      if (found != sessions_.end()) {
        beat = std::move(found->second);
        sessions_.erase(found);
      }
    }
    if (beat != nullptr) beat->Stop();
    using Closing = Unary<v1::CloseSessionRequest, v1::CloseSessionResponse>;
    auto call = std::make_shared<Closing>();
    call->request.set_session_id(session_id);
    call->context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    const uint64_t id = shared_->Begin(&call->context);
    if (id == 0) return;
    {
      MutexLock lock(shared_->mutex);
      ++shared_->closing;
    }
    stub_->async()->CloseSession(&call->context, &call->request, &call->reply,
                                 [call, id, shared = shared_](const grpc::Status&) {
                                   {
                                     MutexLock lock(shared->mutex);
                                     --shared->closing;
                                   }
                                   shared->End(id);
                                 });
  }

  void WatchView(std::function<void(std::string)> on_view) override {
    {
      MutexLock lock(mutex_);
      on_view_ = std::move(on_view);
    }
    Watch();
  }

  Result<std::unique_ptr<Endpoint>> ConnectStream(Transport& stream, uint64_t session_id,
                                                  uint32_t shard) override {
    auto* grpc_stream = dynamic_cast<GrpcClientTransport*>(&stream);
    if (grpc_stream == nullptr) {
      return Fail(Code::kInternal, "the stream transport is not gRPC's");
    }
    return grpc_stream->ConnectOn(channel_, session_id, shard);
  }

  void Tick() override {
    const Nanos now = Clock::Monotonic().Now();
    if (now - last_beat_ >= kKeepAliveEvery) {
      last_beat_ = now;
      MutexLock lock(mutex_);
      for (auto& [id, call] : sessions_) call->Beat();
    }
    Watch();
  }

  void Shutdown() override {
    {
      MutexLock lock(mutex_);
      for (auto& [id, call] : sessions_) call->Stop();
      sessions_.clear();
    }
    MutexLock lock(shared_->mutex);
    shared_->shut = true;
    // A goodbye gets a moment to be heard: it spares the node three seconds of waiting for us.
    for (int i = 0; i < 3 && shared_->closing > 0; ++i) {
      shared_->idle.WaitFor(shared_->mutex, std::chrono::milliseconds(100));
    }
    for (auto& [id, context] : shared_->contexts) context->TryCancel();
    // Bounded: callbacks own what they touch, so one that is late harms nothing.
    for (int i = 0; i < 10 && shared_->running > 0; ++i) {
      shared_->idle.WaitFor(shared_->mutex, std::chrono::milliseconds(100));
    }
  }

 private:
  void Watch() {
    MutexLock lock(mutex_);
    const Nanos now = Clock::Monotonic().Now();
    if (!on_view_ || (watch_ != nullptr && !watch_->ended()) || now < next_watch_) return;
    next_watch_ = now + kSecond;
    watch_ = std::make_shared<WatchCall>(shared_, on_view_);
    if (!watch_->Start(*stub_, watch_)) watch_.reset();
  }

  const std::string endpoint_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Tiercel::Stub> stub_;
  const std::shared_ptr<Shared> shared_;
  Nanos last_beat_ = 0;
  Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<KeepAliveCall>> sessions_ TIERCEL_GUARDED_BY(mutex_);
  std::function<void(std::string)> on_view_ TIERCEL_GUARDED_BY(mutex_);
  std::shared_ptr<WatchCall> watch_ TIERCEL_GUARDED_BY(mutex_);
  Nanos next_watch_ TIERCEL_GUARDED_BY(mutex_) = 0;
};

Result<std::string> ReadFile(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path);
  if (!in) return Fail(Code::kInvalidArgument, fmt::format("cannot read TLS file {}", path));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

Result<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& endpoint,
                                                   const TlsFiles& tls) {
  KeepGrpcCallbackThreads();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kGrpcMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kGrpcMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kGrpcStreamWindowBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kGrpcHttp2FrameBytes);
  // A node that comes back is found again within a quarter of a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Which is also how long one attempt may take: a busy node's first frame may be late.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
  // Channels of two clients in one process must not share a connection's flow control.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (tls.ca.empty() && tls.cert.empty() && tls.key.empty()) {
    return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
  }
  grpc::SslCredentialsOptions options;
  TIERCEL_ASSIGN(options.pem_root_certs, ReadFile(tls.ca));
  TIERCEL_ASSIGN(options.pem_cert_chain, ReadFile(tls.cert));
  TIERCEL_ASSIGN(options.pem_private_key, ReadFile(tls.key));
  return grpc::CreateCustomChannel(endpoint, grpc::SslCredentials(options), arguments);
}

Result<std::shared_ptr<NodeControl>> MakeGrpcControl(const std::string& endpoint,
                                                     const Client::Options& options) {
  TIERCEL_ASSIGN(std::shared_ptr<grpc::Channel> channel,
                 MakeChannel(endpoint, TlsFiles{options.tls_ca_file, options.tls_cert_file,
                                                options.tls_key_file}));
  return std::shared_ptr<NodeControl>(std::make_shared<GrpcControl>(endpoint, std::move(channel)));
}

Result<std::unique_ptr<Transport>> MakeGrpcStreamWay(FrameSink& sink, const Clock& clock) {
  return std::unique_ptr<Transport>(MakeGrpcClientTransport(sink, clock));
}

std::string HostId() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(in, id);
  return id;
}

}  // namespace tiercel
