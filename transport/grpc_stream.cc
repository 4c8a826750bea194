#include "transport/grpc_stream.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <deque>
#include <map>
#include <unordered_map>

#include "base/check.h"
#include "base/inbox.h"
#include "base/mutex.h"
#include "proto/tiercel.grpc.pb.h"
#include "transport/grpc_pipe.h"
#include "transport/link.h"

namespace tiercel {
namespace {

constexpr Nanos kSweepEvery = 50 * kMillisecond;
constexpr Nanos kWaitForHello = 30 * kSecond;
constexpr Nanos kWaitForPuts = 2 * kSecond;

bool ParseNumber(std::string_view text, uint64_t* out) {
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return ec == std::errc() && end == text.data() + text.size() && !text.empty();
}

grpc::Status ToGrpc(const Error& error) {
  return {static_cast<grpc::StatusCode>(error.code), error.message};
}

Error FromGrpc(const grpc::Status& status, std::string_view what) {
  if (status.ok()) return {Code::kUnavailable, fmt::format("{}: the peer ended the stream", what)};
  return {static_cast<Code>(status.error_code()), fmt::format("{}: {}", what, status.error_message())};
}

// ---- reactors: gRPC's callbacks, forwarded to the pipe ------------------------------------------

class ClientReactor final : public grpc::ClientBidiReactor<v1::Frame, v1::Frame>, public PipeCall {
 public:
  ClientReactor(std::shared_ptr<grpc::Channel> channel, std::shared_ptr<Pipe> pipe, uint32_t shard)
      : stub_(v1::Tiercel::NewStub(std::move(channel))), pipe_(std::move(pipe)) {
    context_.AddMetadata(kGrpcSessionKey, std::to_string(pipe_->session_id));
    context_.AddMetadata(kGrpcShardKey, std::to_string(shard));
    if (pipe_->puts) {
      stub_->async()->PutBlocks(&context_, this);
    } else {
      stub_->async()->GetBlocks(&context_, this);
    }
    // Writes and reads start from the owner's thread, outside reactions: the hold covers that.
    AddHold();
    pipe_->Attach(this);
    StartCall();
  }

  void Read(v1::Frame* into) override { StartRead(into); }
  void Write(const v1::Frame* frame) override { StartWrite(frame); }
  void HalfClose() override { StartWritesDone(); }
  void Cancel(Error /*why*/) override {
    context_.TryCancel();
    DropHold();
  }

  void OnReadDone(bool ok) override {
    pipe_->OnRead(ok);
    if (!ok) DropHold();
  }
  void OnWriteDone(bool ok) override { pipe_->OnWritten(ok); }
  void OnDone(const grpc::Status& status) override {
    pipe_->OnEnded(status.ok(), FromGrpc(status, "grpc stream"));
    delete this;
  }

 private:
  void DropHold() {
    if (!hold_dropped_.exchange(true)) RemoveHold();
  }

  const std::unique_ptr<v1::Tiercel::Stub> stub_;
  const std::shared_ptr<Pipe> pipe_;
  grpc::ClientContext context_;
  std::atomic<bool> hold_dropped_{false};
};

class ServerReactor final : public GrpcStreamHub::Reactor, public PipeCall {
 public:
  explicit ServerReactor(std::shared_ptr<Pipe> pipe) : pipe_(std::move(pipe)) { pipe_->Attach(this); }

  void Read(v1::Frame* into) override { StartRead(into); }
  void Write(const v1::Frame* frame) override { StartWrite(frame); }
  void HalfClose() override { End(grpc::Status::OK); }
  void Cancel(Error why) override { End(ToGrpc(why)); }

  void OnReadDone(bool ok) override {
    pipe_->OnRead(ok);
    if (!ok) pipe_->OnPeerEnded(/*graceful=*/true, {Code::kUnavailable, "grpc stream: the peer has closed"});
  }
  void OnWriteDone(bool ok) override { pipe_->OnWritten(ok); }
  void OnCancel() override { pipe_->OnPeerEnded(/*graceful=*/false, {Code::kUnavailable, "grpc stream: the peer is gone"}); }
  void OnDone() override {
    pipe_->OnEnded(/*graceful=*/true, {Code::kUnavailable, "grpc stream: the peer has closed"});
    delete this;
  }

 private:
  void End(grpc::Status status) {
    if (!finished_.exchange(true)) Finish(std::move(status));
  }

  const std::shared_ptr<Pipe> pipe_;
  std::atomic<bool> finished_{false};
};

class RefusedReactor final : public GrpcStreamHub::Reactor {
 public:
  explicit RefusedReactor(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// ---- one endpoint: two pipes -------------------------------------------------------------------

class GrpcLink final : public Link {
 public:
  GrpcLink(const Clock& clock, uint64_t session_id, const Transport::Limits& limits, std::string name)
      : Link(TransportKind::kGrpc, session_id, limits), clock_(clock), name_(std::move(name)) {}
  ~GrpcLink() override { Drop({Code::kUnavailable, "the endpoint is gone"}); }

  std::string Describe() const override { return name_; }

  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override {
    TIERCEL_TRY(CheckSend(meta, payload));
    const bool puts = header.op == Op::kPut || header.op == Op::kAck || header.op == Op::kDurable;
    Half& half = halves_[puts && halves_[1].pipe != nullptr ? 1 : 0];
    FrameHeader mine = header;
    mine.session_id = session_id();
    mine.payload_bytes = payload.size();
    auto frame = std::make_unique<v1::Frame>();
    frame->mutable_header()->resize(kFrameHeaderBytes);
    EncodeFrameHeader(mine, reinterpret_cast<std::byte*>(frame->mutable_header()->data()));
    frame->set_meta(meta.data(), meta.size());
    frame->set_payload(payload.data(), payload.size());
    if (!half.pipe->Write(std::move(frame))) return Fail(Code::kUnavailable, name_ + " has ended");
    half.pending.push_back({payload.size(), clock_.Now(), std::move(done)});
    Began(payload.size());
    ++frames_sent;
    bytes_sent += payload.size();
    return OkStatus();
  }

  void Close(CloseMode mode) override {
    if (closed_ && (mode == CloseMode::kFlush || !flushing_)) return;
    if (mode == CloseMode::kFlush) {
      closed_ = true;
      flushing_ = true;
      for (Half& half : halves_) {
        if (half.pipe != nullptr) half.pipe->HalfClose();
      }
      return;
    }
    Drop({Code::kUnavailable, "closed by its owner"});
    RunCompletions();
  }

  // Everything pending ends now; nothing more is read or written.
  void Drop(const Error& why) {
    if (closed_ && !flushing_) return;
    closed_ = true;
    flushing_ = false;
    for (Half& half : halves_) {
      if (half.pipe != nullptr) half.pipe->Cancel(why);
      for (Pending& pending : half.pending) {
        Complete(pending.bytes, std::move(pending.done), tl::unexpected<Error>(why));
      }
      half.pending.clear();
    }
  }

  void Written(bool puts, uint64_t count) {
    Half& half = halves_[puts ? 1 : 0];
    for (; count > 0 && !half.pending.empty(); --count) {
      Pending pending = std::move(half.pending.front());
      half.pending.pop_front();
      Complete(pending.bytes, std::move(pending.done), OkStatus());
    }
  }

  Nanos oldest() const {
    Nanos oldest = INT64_MAX;
    for (const Half& half : halves_) {
      if (!half.pending.empty() && half.pending.front().since < oldest) oldest = half.pending.front().since;
    }
    return oldest;
  }
  bool flushing() const { return flushing_; }
  void SetPipe(std::shared_ptr<Pipe> pipe) {
    const size_t which = pipe->puts ? 1 : 0;
    halves_[which].pipe = std::move(pipe);
  }
  bool has_puts() const { return halves_[1].pipe != nullptr; }
  // One of the two streams is over; true when the other is too. A client opens both, but they are
  // calls of their own: the second may come after all that the first had to say.
  bool HalfEnded(bool puts) {
    halves_[puts ? 1 : 0].ended = true;
    half_ended_at_ = clock_.Now();
    return halves_[0].ended && halves_[1].ended;
  }
  // True when the stream of gets is over and that of puts has not come and will not any more.
  bool puts_never_came(Nanos now) const {
    return halves_[0].ended && halves_[1].pipe == nullptr && now - half_ended_at_ > kWaitForPuts;
  }

  uint64_t frames_sent = 0;
  uint64_t bytes_sent = 0;

 private:
  struct Pending {
    uint64_t bytes;
    Nanos since;
    Done done;
  };
  struct Half {
    std::shared_ptr<Pipe> pipe;
    std::deque<Pending> pending;  // In the order written, which is the order they end.
    bool ended = false;
  };

  const Clock& clock_;
  const std::string name_;
  bool flushing_ = false;
  Nanos half_ended_at_ = 0;
  std::array<Half, 2> halves_;  // Gets, puts.
};

// ---- what both sides' transports share ---------------------------------------------------------

// Base is Transport or GrpcClientTransport.
template <class Base>
class GrpcTransportBase : public Base {
 public:
  GrpcTransportBase(FrameSink& sink, const Clock& clock, const Transport::Limits& limits)
      : sink_(sink),
        clock_(clock),
        limits_(limits),
        admissions_(limits.max_endpoints),
        inbox_(std::make_shared<PipeInbox>(size_t{limits.max_endpoints} * 4 + 16)) {}
  ~GrpcTransportBase() override {
    for (auto& [session, link] : links_) link->Drop({Code::kUnavailable, "the transport is gone"});
    for (auto* waiting : {&gets_waiting_, &puts_waiting_}) {
      for (auto& [session, pipe] : *waiting) pipe.pipe->Cancel({Code::kUnavailable, "shutting down"});
    }
    inbox_->Drain([](std::shared_ptr<Pipe>&& pipe) { pipe->Cancel({Code::kUnavailable, "shutting down"}); });
  }

  TransportKind kind() const override { return TransportKind::kGrpc; }
  Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) override {
    return admissions_.Admit(session_id, peer_address, name_space);
  }
  void Revoke(uint64_t session_id) override { admissions_.Revoke(session_id); }
  Status AddMemory(const MemoryRegion& /*region*/) override { return OkStatus(); }
  void RemoveMemory(uint32_t /*region_id*/) override {}
  int event_fd() const override { return inbox_->event_fd(); }
  bool Arm() override {
    return inbox_->Arm() && completing_.empty();
  }

  size_t Poll() override {
    size_t happened = inbox_->Drain([this](std::shared_ptr<Pipe>&& pipe) { TakeFrom(*pipe, pipe); });
    // A done may send and so on; what that completes waits for the next Poll.
    const auto completing = std::exchange(completing_, {});
    for (const auto& link : completing) {
      happened += link->RunCompletions();
      if (link->has_completions()) completing_.push_back(link);
    }
    const Nanos now = clock_.Now();
    if (now - last_sweep_ >= kSweepEvery) {
      last_sweep_ = now;
      happened += Sweep(now);
    }
    return happened;
  }

  Transport::Counters counters() const override {
    Transport::Counters sum = counters_;
    for (const auto& [session, link] : links_) {
      sum.frames_sent += link->frames_sent;
      sum.bytes_sent += link->bytes_sent;
    }
    return sum;
  }

 protected:
  struct Waiting {  // A stream whose session has not said HELLO here.
    std::shared_ptr<Pipe> pipe;
    Nanos since;
  };
  using WaitingPipes = std::unordered_map<uint64_t, Waiting>;

  // A stream whose session has no endpoint here yet: the server makes one at HELLO, a client never.
  virtual void FirstFrame(const std::shared_ptr<Pipe>& pipe, const FrameHeader& header) = 0;

  // Ends a stream; the session may open another at once.
  void EndWaiting(const std::shared_ptr<Pipe>& pipe, const Error& why) {
    WaitingPipes& waiting = pipe->puts ? puts_waiting_ : gets_waiting_;
    const auto found = waiting.find(pipe->session_id);
    if (found != waiting.end() && found->second.pipe == pipe) waiting.erase(found);
    pipe->Cancel(why);
  }

  std::shared_ptr<GrpcLink> FindLink(uint64_t session_id) {
    const auto found = links_.find(session_id);
    return found == links_.end() ? nullptr : found->second;
  }

  void TakeFrom(Pipe& pipe, const std::shared_ptr<Pipe>& shared) {
    Pipe::Arrived arrived = pipe.TakeArrived();
    std::shared_ptr<GrpcLink> link = FindLink(pipe.session_id);
    if (link != nullptr && arrived.written > 0) {
      link->Written(pipe.puts, arrived.written);
      completing_.push_back(link);
    }
    for (auto& frame : arrived.frames) {
      if (!HandleFrame(shared, *frame)) break;
    }
    if (!arrived.ended) return;
    EndWaiting(shared, arrived.why);
    link = FindLink(pipe.session_id);
    if (link == nullptr || (link->closed() && !link->flushing())) return;
    // What the peer sent on the other stream before it closed is still to be taken.
    if (link->HalfEnded(pipe.puts) || !arrived.graceful) Lose(link, arrived.why);
  }

  bool HandleFrame(const std::shared_ptr<Pipe>& pipe, const v1::Frame& frame) {
    const ByteSpan header_bytes = AsBytes(frame.header());
    Result<FrameHeader> header = DecodeFrameHeader(header_bytes);
    const char* wrong = nullptr;
    if (header_bytes.size() != kFrameHeaderBytes) wrong = "the header is not 64 bytes";
    if (header && header->session_id != pipe->session_id) wrong = "another session's id";
    if (header && header->payload_bytes != frame.payload().size()) wrong = "payload_bytes differs from the payload";
    if (frame.meta().size() > kMaxMetaBytes) wrong = "meta too large";
    if (!header || wrong != nullptr) {
      ++counters_.rejected_frames;
      const Error why = header ? Error{Code::kInvalidArgument, fmt::format("frame: {}", wrong)} : header.error();
      EndWaiting(pipe, why);
      if (const auto link = FindLink(pipe->session_id); link != nullptr && !link->closed()) Lose(link, why);
      return false;
    }
    const std::shared_ptr<GrpcLink> known = FindLink(pipe->session_id);
    if (known == nullptr || (known->closed() && gets_waiting_.contains(pipe->session_id))) {
      FirstFrame(pipe, *header);
    }
    const std::shared_ptr<GrpcLink> link = FindLink(pipe->session_id);
    if (link == nullptr || link->closed() || link->endpoint() == nullptr) {
      ++counters_.rejected_frames;
      return false;
    }
    ++counters_.frames_received;
    counters_.bytes_received += frame.payload().size();
    MemoryIncoming payload(AsBytes(frame.payload()));
    sink_.OnFrame(*link->endpoint(), *header, AsBytes(frame.meta()), payload);
    return true;
  }

  void Lose(const std::shared_ptr<GrpcLink>& link, const Error& why) {
    ++counters_.endpoints_lost;
    const bool ours = link->flushing();
    link->Drop(why);
    link->RunCompletions();
    if (link->endpoint() != nullptr && !ours) sink_.OnClosed(*link->endpoint(), why);
  }

  // Forgets links that nobody holds, ends those whose sends are stuck.
  size_t Sweep(Nanos now) {
    size_t happened = 0;
    for (auto it = links_.begin(); it != links_.end();) {
      const std::shared_ptr<GrpcLink> link = it->second;
      if ((!link->closed() || link->flushing()) && link->oldest() != INT64_MAX && now - link->oldest() > limits_.send_timeout) {
        Lose(link, {Code::kDeadlineExceeded, link->Describe() + ": the peer takes nothing"});
        ++happened;
      } else if (!link->closed() && link->puts_never_came(now)) {
        Lose(link, {Code::kUnavailable, link->Describe() + ": the peer has closed"});
        ++happened;
      }
      if (link->closed() && !link->flushing() && link->endpoint() == nullptr && !link->has_completions()) {
        counters_.frames_sent += link->frames_sent;
        counters_.bytes_sent += link->bytes_sent;
        it = links_.erase(it);
      } else {
        ++it;
      }
    }
    for (WaitingPipes* waiting : {&gets_waiting_, &puts_waiting_}) {
      std::erase_if(*waiting, [now](const auto& entry) {
        if (now - entry.second.since <= kWaitForHello) return false;
        entry.second.pipe->Cancel({Code::kDeadlineExceeded, "no HELLO came for this session"});
        return true;
      });
    }
    return happened;
  }

  FrameSink& sink_;
  const Clock& clock_;
  const Transport::Limits limits_;
  Admissions admissions_;
  const std::shared_ptr<PipeInbox> inbox_;
  std::unordered_map<uint64_t, std::shared_ptr<GrpcLink>> links_;  // By session.
  WaitingPipes gets_waiting_;
  WaitingPipes puts_waiting_;
  std::vector<std::shared_ptr<GrpcLink>> completing_;
  Transport::Counters counters_;
  Nanos last_sweep_ = 0;
};

class ClientTransport final : public GrpcTransportBase<GrpcClientTransport> {
 public:
  using GrpcTransportBase::GrpcTransportBase;

  std::string LocalAddress() const override { return ""; }

  Result<std::unique_ptr<Endpoint>> Connect(uint64_t session_id, std::string_view address) override {
    const size_t slash = address.rfind('/');
    uint64_t shard = 0;
    if (slash == std::string_view::npos || !ParseNumber(address.substr(slash + 1), &shard) || shard > 65535) {
      return Fail(Code::kInvalidArgument, fmt::format("grpc address '{}' is not host:port/shard", address));
    }
    grpc::ChannelArguments args;
    args.SetMaxReceiveMessageSize(kGrpcMaxMessageBytes);
    args.SetMaxSendMessageSize(kGrpcMaxMessageBytes);
    return ConnectOn(grpc::CreateCustomChannel(std::string(address.substr(0, slash)),
                                               grpc::InsecureChannelCredentials(), args),
                     session_id, static_cast<uint32_t>(shard));
  }

  Result<std::unique_ptr<Endpoint>> ConnectOn(std::shared_ptr<grpc::Channel> channel, uint64_t session_id,
                                              uint32_t shard) override {
    const auto found = links_.find(session_id);
    if (found != links_.end() && !found->second->closed()) {
      return Fail(Code::kAlreadyExists, fmt::format("session {} has a stream here already", session_id));
    }
    if (links_.size() >= limits_.max_endpoints) {
      return Fail(Code::kResourceExhausted, fmt::format("{} endpoints already", links_.size()));
    }
    auto link = std::make_shared<GrpcLink>(clock_, session_id, limits_, fmt::format("grpc stream, shard {}", shard));
    for (const bool puts : {false, true}) {
      auto pipe = std::make_shared<Pipe>(inbox_, session_id, puts);
      pipe->Open();
      new ClientReactor(channel, pipe, shard);  // Deletes itself in OnDone.
      link->SetPipe(std::move(pipe));
    }
    links_[session_id] = link;
    return link->MakeEndpoint();
  }

 private:
  void FirstFrame(const std::shared_ptr<Pipe>& /*pipe*/, const FrameHeader& /*header*/) override {}
};

class ServerTransport final : public GrpcTransportBase<Transport> {
 public:
  ServerTransport(std::shared_ptr<GrpcStreamHub::Shards> shards, uint32_t shard, std::string address,
                  FrameSink& sink, const Clock& clock, const Transport::Limits& limits);
  ~ServerTransport() override;

  std::string LocalAddress() const override { return fmt::format("{}/{}", address_, shard_); }
  Result<std::unique_ptr<Endpoint>> Connect(uint64_t /*session*/, std::string_view /*address*/) override {
    return Fail(Code::kUnimplemented, "a serving gRPC transport does not connect");
  }
  size_t Poll() override;
  Transport::Counters counters() const override {
    Transport::Counters sum = GrpcTransportBase::counters();
    sum.rejected_frames += refused_.load(std::memory_order_relaxed);
    return sum;
  }

  // From gRPC's threads. Null and a reason: refused.
  Result<std::shared_ptr<Pipe>> NewPipe(uint64_t session_id, bool puts);

 private:
  void FirstFrame(const std::shared_ptr<Pipe>& pipe, const FrameHeader& header) override {
    if (pipe->puts || header.op != Op::kHello || !admissions_.Find(pipe->session_id, nullptr) ||
        links_.size() >= limits_.max_endpoints) {
      EndWaiting(pipe, {Code::kUnauthenticated, "this session may not begin here"});
      return;
    }
    auto link = std::make_shared<GrpcLink>(clock_, pipe->session_id, limits_,
                                           fmt::format("grpc stream, shard {}", shard_));
    link->SetPipe(pipe);
    gets_waiting_.erase(pipe->session_id);
    links_[pipe->session_id] = link;
    if (const auto waiting = puts_waiting_.find(pipe->session_id); waiting != puts_waiting_.end()) {
      link->SetPipe(waiting->second.pipe);
      waiting->second.pipe->Open();
      puts_waiting_.erase(waiting);
    }
    sink_.OnAccept(link->MakeEndpoint());
  }

  const std::shared_ptr<GrpcStreamHub::Shards> shards_;
  const uint32_t shard_;
  const std::string address_;
  const std::shared_ptr<PipeInbox> new_pipes_;
  std::atomic<uint64_t> refused_{0};  // Streams turned away before they could say anything.
};

}  // namespace

struct GrpcStreamHub::Shards {
  Mutex mutex;
  std::map<uint32_t, ServerTransport*> by_number TIERCEL_GUARDED_BY(mutex);
};

namespace {

ServerTransport::ServerTransport(std::shared_ptr<GrpcStreamHub::Shards> shards, uint32_t shard,
                                 std::string address, FrameSink& sink, const Clock& clock,
                                 const Transport::Limits& limits)
    : GrpcTransportBase(sink, clock, limits),
      shards_(std::move(shards)),
      shard_(shard),
      address_(std::move(address)),
      new_pipes_(std::make_shared<PipeInbox>(size_t{limits.max_endpoints} * 2)) {
  MutexLock lock(shards_->mutex);
  TIERCEL_CHECK(shards_->by_number.emplace(shard_, this).second);
}

ServerTransport::~ServerTransport() {
  MutexLock lock(shards_->mutex);
  shards_->by_number.erase(shard_);
}

Result<std::shared_ptr<Pipe>> ServerTransport::NewPipe(uint64_t session_id, bool puts) {
  if (!admissions_.Find(session_id, nullptr)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return Fail(Code::kUnauthenticated, "no such session is expected here");
  }
  auto pipe = std::make_shared<Pipe>(inbox_, session_id, puts);
  if (!new_pipes_->Push(std::shared_ptr<Pipe>(pipe))) {
    return Fail(Code::kResourceExhausted, "too many streams are waiting to be accepted");
  }
  // new_pipes_ has an event fd of its own that nobody sleeps on: wake the owner through the inbox.
  if (!inbox_->Push(std::shared_ptr<Pipe>(pipe))) {
    return Fail(Code::kResourceExhausted, "too many streams");
  }
  return pipe;
}

size_t ServerTransport::Poll() {
  const Nanos now = clock_.Now();
  size_t happened = new_pipes_->Drain([this, now](std::shared_ptr<Pipe>&& pipe) {
    const std::shared_ptr<GrpcLink> link = FindLink(pipe->session_id);
    const bool live = link != nullptr && !link->closed();
    WaitingPipes& waiting = pipe->puts ? puts_waiting_ : gets_waiting_;
    if (live && pipe->puts && !link->has_puts()) {
      link->SetPipe(pipe);
      pipe->Open();
    } else if (live || waiting.contains(pipe->session_id)) {
      pipe->Cancel({Code::kAlreadyExists, "this session has its stream already"});
    } else if (waiting.size() >= limits_.max_endpoints) {
      pipe->Cancel({Code::kResourceExhausted, "too many streams wait for their HELLO"});
    } else {
      waiting[pipe->session_id] = {pipe, now};
      if (!pipe->puts) pipe->Open();  // Puts are read once the session has said HELLO.
    }
  });
  happened += GrpcTransportBase::Poll();
  return happened;
}

}  // namespace

GrpcStreamHub::GrpcStreamHub() : shards_(std::make_shared<Shards>()) {}
GrpcStreamHub::~GrpcStreamHub() = default;

GrpcStreamHub::Reactor* GrpcStreamHub::Accept(grpc::CallbackServerContext* context, Half half) {
  const auto number = [context](const char* key, uint64_t* out) {
    const auto found = context->client_metadata().find(key);
    return found != context->client_metadata().end() &&
           ParseNumber(std::string_view(found->second.data(), found->second.size()), out);
  };
  uint64_t session_id = 0;
  uint64_t shard = 0;
  if (!number(kGrpcSessionKey, &session_id) || !number(kGrpcShardKey, &shard)) {
    return new RefusedReactor({grpc::StatusCode::INVALID_ARGUMENT,
                               "metadata tiercel-session and tiercel-shard must be decimal numbers"});
  }
  Result<std::shared_ptr<Pipe>> pipe = Fail(Code::kNotFound, fmt::format("no shard {} on this node", shard));
  {
    MutexLock lock(shards_->mutex);
    const auto found = shards_->by_number.find(static_cast<uint32_t>(shard));
    if (shard <= UINT32_MAX && found != shards_->by_number.end()) {
      pipe = found->second->NewPipe(session_id, half == Half::kPuts);
    }
  }
  if (!pipe) return new RefusedReactor(ToGrpc(pipe.error()));
  return new ServerReactor(std::move(*pipe));
}

std::unique_ptr<Transport> GrpcStreamHub::MakeTransport(uint32_t shard, std::string address, FrameSink& sink,
                                                        const Clock& clock, const Transport::Limits& limits) {
  return std::make_unique<ServerTransport>(shards_, shard, std::move(address), sink, clock, limits);
}

void KeepGrpcCallbackThreads() {
  struct Kept {
    std::shared_ptr<grpc::Channel> channel =
        grpc::CreateChannel("unix:/nonexistent", grpc::InsecureChannelCredentials());
    std::unique_ptr<v1::Tiercel::Stub> stub = v1::Tiercel::NewStub(channel);
    grpc::ClientContext context;
    v1::CloseSessionRequest request;
    v1::CloseSessionResponse reply;
  };
  // Volatile: a pointer that is never read would not be stored, and what it owns be told as leaked.
  static Kept* volatile kept = [] {
    auto* made = new Kept;
    made->context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
    made->stub->async()->CloseSession(&made->context, &made->request, &made->reply,
                                      [](const grpc::Status&) {});
    return made;
  }();
  static_cast<void>(kept);
}

std::unique_ptr<GrpcClientTransport> MakeGrpcClientTransport(FrameSink& sink, const Clock& clock,
                                                             const Transport::Limits& limits) {
  KeepGrpcCallbackThreads();
  return std::make_unique<ClientTransport>(sink, clock, limits);
}

}  // namespace tiercel
