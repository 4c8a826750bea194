#include "tests/client/scripted_node.h"

#include <algorithm>
#include <chrono>

#include "kernels/record.h"

namespace tiercel {

class ScriptedControl final : public NodeControl {
 public:
  explicit ScriptedControl(ScriptedNode& node) : node_(node) {}

  void Open(const SessionAsk& ask, Nanos,
            UniqueFunction<void(Result<SessionOffer>)> done) override {
    ++node_.opens;
    if (node_.hang_open) return;
    if (node_.refuse_open) {
      done(Fail(Code::kUnavailable, "refused by the script"));
      return;
    }
    SessionOffer offer;
    offer.session_id = ++node_.next_session_;
    offer.node_id = node_.id_;
    if (!node_.transport_->Admit(offer.session_id, ask.ucx_address, 0)) return;
    ShardOffer shard;
    shard.token = std::string(16, 't');
    shard.transport = node_.transport_->kind();
    shard.reason = "scripted";
    shard.address = node_.address_;
    offer.shards.push_back(shard);
    done(std::move(offer));
  }
  void KeepAlive(uint64_t, UniqueFunction<void(Error)>) override {}
  void Close(uint64_t session_id) override { node_.transport_->Revoke(session_id); }
  void WatchView(std::function<void(std::string)>) override {}
  Result<std::unique_ptr<Endpoint>> ConnectStream(Transport&, uint64_t, uint32_t) override {
    return Fail(Code::kUnimplemented, "no stream");
  }
  void Tick() override {}
  void Shutdown() override {}

 private:
  ScriptedNode& node_;
};

ScriptedNode::ScriptedNode(LoopbackNetwork& network, std::string id)
    : ScriptedNode(std::move(id), [&](FrameSink& sink) {
        return network.MakeTransport(sink, Clock::Monotonic());
      }) {}

ScriptedNode::ScriptedNode(std::string id,
                           const std::function<std::unique_ptr<Transport>(FrameSink&)>& make)
    : id_(std::move(id)), next_session_(std::hash<std::string>()(id_) << 16) {
  transport_ = make(*this);
  address_ = transport_->LocalAddress();
  thread_ = std::thread([this] { Loop(); });
}

ScriptedNode::~ScriptedNode() {
  stop_ = true;
  thread_.join();
  endpoints_.clear();
}

std::shared_ptr<NodeControl> ScriptedNode::MakeControl() {
  return std::make_shared<ScriptedControl>(*this);
}

size_t ScriptedNode::size() const {
  MutexLock lock(mutex_);
  return records_.size();
}
bool ScriptedNode::Has(const BlockKey& key) const {
  MutexLock lock(mutex_);
  return records_.contains(key);
}
void ScriptedNode::Forget(const BlockKey& key) {
  MutexLock lock(mutex_);
  records_.erase(key);
}

void ScriptedNode::Forget() {
  MutexLock lock(mutex_);
  records_.clear();
}
void ScriptedNode::HangUpAll() {
  hang_up_ = true;
  while (hang_up_) std::this_thread::yield();
}
void ScriptedNode::AnswerMuted() {
  answer_muted_ = true;
  while (answer_muted_) std::this_thread::yield();
}

void ScriptedNode::Loop() {
  int quiet = 0;
  while (!stop_) {
    if (hang_up_.exchange(false)) {
      for (auto& endpoint : endpoints_) endpoint->Close(CloseMode::kForce);
      endpoints_.clear();
      kept_.clear();
      waiting_.clear();
    }
    if (answer_muted_) {
      for (auto& answer : kept_) answer();
      kept_.clear();
      answer_muted_ = false;
    }
    quiet = !frozen && transport_->Poll() + Retry() > 0 ? 0 : quiet + 1;
    if (frozen || quiet > 500) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void ScriptedNode::OnAccept(std::unique_ptr<Endpoint> endpoint) {
  endpoints_.push_back(std::move(endpoint));
}

void ScriptedNode::OnClosed(Endpoint& endpoint, const Error&) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.to == &endpoint; });
  std::erase_if(endpoints_, [&](const auto& held) { return held.get() == &endpoint; });
}

void ScriptedNode::Serve(Endpoint& to, const FrameHeader& header, const ChainMeta& meta) {
  for (uint32_t i = 0; i < meta.keys.size(); ++i) {
    FrameHeader answer;
    answer.op = Op::kData;
    answer.req_id = header.req_id;
    answer.count = header.count;
    answer.index = i;
    if (i + 1 == meta.keys.size()) answer.flags = kFlagLast;
    std::shared_ptr<std::vector<std::byte>> record;
    {
      MutexLock lock(mutex_);
      const auto found = records_.find(meta.keys[i]);
      if (found != records_.end()) record = found->second;
    }
    if (busy || record == nullptr) {
      answer.status = Code::kNotFound;
      answer.reason = busy ? MissReason::kBusy : MissReason::kNeverSeen;
      (void)to.Send(answer, {}, {}, nullptr);
      continue;
    }
    answer.tier = Tier::kHost;
    if (flip_a_bit) {
      record = std::make_shared<std::vector<std::byte>>(*record);
      (*record)[record->size() / 2] ^= std::byte{16};
    }
    if (meta.layer_end != 0) {
      auto part = std::make_shared<std::vector<std::byte>>(record->size());
      const auto view = ParseRecord(*record);
      const auto bytes = ExtractLayers(*view, meta.layer_begin, meta.layer_end, *part);
      part->resize(*bytes);
      record = part;
    }
    if (const auto view = PeekRecord(*record)) answer.quality = view->quality;
    Reply(to, answer, std::move(record));
  }
}

void ScriptedNode::Reply(Endpoint& to, const FrameHeader& header,
                         std::shared_ptr<std::vector<std::byte>> record) {
  const Status sent = waiting_.empty() ? to.Send(header, {}, *record, [record](const Status&) {})
                                       : Status(Fail(Code::kResourceExhausted, "others wait"));
  if (!sent && sent.error().code == Code::kResourceExhausted) {
    waiting_.push_back({&to, header, std::move(record)});
  }
}

size_t ScriptedNode::Retry() {
  size_t sent = 0;
  for (; !waiting_.empty(); ++sent) {
    Waiting& next = waiting_.front();
    const Status took =
        next.to->Send(next.header, {}, *next.record, [record = next.record](const Status&) {});
    if (!took && took.error().code == Code::kResourceExhausted) break;
    waiting_.pop_front();
  }
  return sent;
}

void ScriptedNode::OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan bytes,
                           Incoming& payload) {
  FrameHeader answer;
  answer.req_id = header.req_id;
  answer.count = header.count;
  ChainMeta meta;
  if (header.op == Op::kMatch || header.op == Op::kGet) last_flags = header.flags;
  switch (header.op) {
    case Op::kHello:
      ++hellos;
      answer.op = Op::kWelcome;
      (void)from.Send(answer, {}, {}, nullptr);
      return;
    case Op::kMatch: {
      ++matches;
      (void)DecodeChainMeta(bytes, meta);
      std::vector<std::byte> entries(meta.keys.size() * kMatchEntryBytes);
      for (size_t i = 0; i < meta.keys.size(); ++i) {
        MatchEntry entry;
        const bool here = Has(meta.keys[i]);
        entry.tier = here ? Tier::kHost : Tier::kNone;
        entry.reason = here ? MissReason::kNone : MissReason::kNeverSeen;
        EncodeMatchEntry(entry, entries.data() + i * kMatchEntryBytes);
      }
      answer.op = Op::kMatched;
      (void)from.Send(answer, entries, {}, nullptr);
      return;
    }
    case Op::kGet:
      ++gets;
      (void)DecodeChainMeta(bytes, meta);
      if (mute_gets) {
        kept_.push_back([this, to = &from, header, meta] { Serve(*to, header, meta); });
        return;
      }
      Serve(from, header, meta);
      return;
    case Op::kPut: {
      ++puts;
      (void)DecodeChainMeta(bytes, meta);
      answer.op = Op::kAck;
      if (busy) {
        answer.status = Code::kResourceExhausted;
        answer.reason = MissReason::kBusy;
        (void)from.Send(answer, {}, {}, nullptr);
        return;
      }
      auto record = std::make_shared<std::vector<std::byte>>(payload.size());
      const bool durable = header.has(kFlagWantDurable) && !never_durable;
      payload.Receive(*record, [this, record, to = &from, answer, durable,
                                key = meta.keys[0],
                                quality = header.quality](const Status& got) mutable {
        const auto view = ParseRecord(*record);
        if (!got || !view || !VerifyRecord(*view) || view->quality != quality) {
          answer.status = Code::kDataLoss;
        } else {
          MutexLock lock(mutex_);
          if (!keep_first || !records_.contains(key)) records_[key] = record;
        }
        (void)to->Send(answer, {}, {}, nullptr);
        if (!durable) return;
        answer.op = Op::kDurable;
        (void)to->Send(answer, {}, {}, nullptr);
      });
      return;
    }
    case Op::kCancel:
      ++cancels;
      if (deaf_to_cancel) return;
      answer.op = Op::kCancelled;
      (void)from.Send(answer, {}, {}, nullptr);
      return;
    default:
      return;
  }
}

}  // namespace tiercel
