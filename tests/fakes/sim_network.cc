#include "tests/fakes/sim_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <limits>
#include <vector>

#include "base/check.h"
#include "transport/link.h"

namespace tiercel {

class SimLink;

namespace {
struct Message {
  enum class Kind : uint8_t { kFrame, kTaken, kHangUp } kind = Kind::kFrame;
  uint64_t to = 0;    // The receiver's link; 0: a client that does not know it yet.
  uint64_t from = 0;  // The sender's link.
  std::string sender;
  uint64_t frame = 0;
  std::array<std::byte, kFrameHeaderBytes> header{};
  std::vector<std::byte> meta;
  std::vector<std::byte> payload;
};
}  // namespace

class SimLink final : public Link {
 public:
  SimLink(SimTransport& owner, uint64_t id, uint64_t session, const Transport::Limits& limits,
          std::string peer, uint64_t peer_link)
      : Link(TransportKind::kLoopback, session, limits),
        owner_(&owner), id_(id), peer_(std::move(peer)), peer_link_(peer_link) {}
  std::string Describe() const override { return fmt::format("sim to {}", peer_); }
  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override;
  void Close(CloseMode mode) override;

 private:
  friend class SimTransport;
  struct Pending {
    uint64_t bytes = 0;
    Nanos since = 0;
    Done done;
  };
  void FailSends(const Error& why);

  SimTransport* owner_;
  const uint64_t id_;
  const std::string peer_;
  uint64_t peer_link_;
  uint64_t next_frame_ = 1;
  bool flushing_ = false;
  Nanos last_due_ = 0;  // Keeps the order of what this link sends.
  std::map<uint64_t, Pending> sends_;
};

class SimTransport final : public Transport {
 public:
  SimTransport(SimNetwork& network, std::string name, FrameSink& sink, const Limits& limits)
      : network_(network), name_(std::move(name)), sink_(sink), limits_(limits),
        admissions_(limits.max_endpoints) {
    TIERCEL_CHECK(network_.transports_.emplace(name_, this).second);
  }
  ~SimTransport() override {
    network_.transports_.erase(name_);
    for (auto& [id, link] : links_) {
      if (!link->closed_) Tell(*link, Message::Kind::kHangUp, 0);
      link->closed_ = true;
      link->owner_ = nullptr;
    }
  }

  TransportKind kind() const override { return TransportKind::kLoopback; }
  std::string LocalAddress() const override { return name_; }
  Status Admit(uint64_t session, std::string_view peer, uint32_t name_space) override {
    return admissions_.Admit(session, peer, name_space);
  }
  void Revoke(uint64_t session) override { admissions_.Revoke(session); }
  Result<std::unique_ptr<Endpoint>> Connect(uint64_t session, std::string_view address) override {
    if (!network_.transports_.contains(std::string(address))) {
      return Fail(Code::kUnavailable, fmt::format("sim: nobody is called {}", address));
    }
    if (links_.size() >= limits_.max_endpoints) return Fail(Code::kResourceExhausted, "sim: endpoints");
    return AddLink(session, std::string(address), 0)->MakeEndpoint();
  }
  Status AddMemory(const MemoryRegion&) override { return OkStatus(); }
  void RemoveMemory(uint32_t) override {}

  size_t Poll() override {
    size_t events = 0;
    const Nanos now = network_.clock_.Now();
    for (auto held = held_.begin(); held != held_.end();) {
      if (network_.IsCut(name_, held->first)) {
        ++held;
        continue;
      }
      const std::deque<Message> messages = std::move(held->second);
      held = held_.erase(held);
      for (const Message& message : messages) Take(message);
      events += messages.size();
    }
    while (!inbox_.empty() && inbox_.begin()->first.first <= now) {
      const Message message = std::move(inbox_.begin()->second);
      inbox_.erase(inbox_.begin());
      Take(message);
      ++events;
    }
    const auto links = links_;
    for (const auto& [id, link] : links) {
      events += link->RunCompletions();
      if (!link->sends_.empty() && now - link->sends_.begin()->second.since > limits_.send_timeout) {
        Tell(*link, Message::Kind::kHangUp, 0);
        Lose(link, Error{Code::kDeadlineExceeded, "sim: a send was not taken in time; endpoint closed"});
      }
      if (link->flushing_ && link->sends_.empty()) {
        link->flushing_ = false;
        Tell(*link, Message::Kind::kHangUp, 0);
      }
      if (link->closed_ && !link->flushing_ && !link->has_completions()) links_.erase(id);
    }
    return events;
  }
  int event_fd() const override { return -1; }
  bool Arm() override { return inbox_.empty(); }
  Counters counters() const override { return counters_; }

 private:
  friend class SimLink;
  friend class SimNetwork;

  std::shared_ptr<SimLink> AddLink(uint64_t session, std::string peer, uint64_t peer_link) {
    const uint64_t id = next_link_++;
    auto link = std::make_shared<SimLink>(*this, id, session, limits_, std::move(peer), peer_link);
    links_[id] = link;
    return link;
  }
  void Tell(SimLink& link, Message::Kind kind, uint64_t frame) {
    Message message;
    message.kind = kind;
    message.frame = frame;
    Put(link, std::move(message));
  }
  void Put(SimLink& link, Message message) {
    message.to = link.peer_link_;
    message.from = link.id_;
    message.sender = name_;
    const auto peer = network_.transports_.find(link.peer_);
    if (peer == network_.transports_.end()) return;
    const bool again = message.kind == Message::Kind::kHangUp && network_.Chance(network_.options.close_twice);
    link.last_due_ = std::max(link.last_due_, network_.clock_.Now() + network_.Delay(message.payload.size()));
    SimTransport& to = *peer->second;
    if (again) to.inbox_.emplace(std::pair(link.last_due_ + kMillisecond, to.next_message_++), message);
    to.inbox_.emplace(std::pair(link.last_due_, to.next_message_++), std::move(message));
  }

  void Take(const Message& message) {
    if (network_.IsCut(name_, message.sender)) {  // Waits until the cut is mended, in order.
      held_[message.sender].push_back(message);
      return;
    }
    std::shared_ptr<SimLink> link;
    for (const auto& [id, candidate] : links_) {
      if (candidate->peer_ != message.sender) continue;
      if (id == message.to || (message.to == 0 && candidate->peer_link_ == message.from)) link = candidate;
    }
    if (message.kind == Message::Kind::kHangUp) {
      if (link != nullptr) Lose(link, Error{Code::kUnavailable, "sim: the peer hung up"});
      return;
    }
    if (message.kind == Message::Kind::kTaken) {
      if (link == nullptr) return;
      link->peer_link_ = message.from;
      const auto found = link->sends_.find(message.frame);
      if (found == link->sends_.end()) return;
      SimLink::Pending pending = std::move(found->second);
      link->sends_.erase(found);
      link->Complete(pending.bytes, std::move(pending.done), OkStatus());
      return;
    }
    TakeFrame(std::move(link), message);
  }

  void TakeFrame(std::shared_ptr<SimLink> link, const Message& message) {
    const Result<FrameHeader> header = DecodeFrameHeader(message.header);
    TIERCEL_CHECK(header.has_value());
    if (link == nullptr) {
      if (header->op != Op::kHello || !admissions_.Find(header->session_id, nullptr) ||
          links_.size() >= limits_.max_endpoints) {
        ++counters_.rejected_frames;
        return;
      }
      link = AddLink(header->session_id, message.sender, message.from);
      sink_.OnAccept(link->MakeEndpoint());
    }
    if (link->closed() || link->endpoint() == nullptr) return;
    if (link->peer_link_ == 0) link->peer_link_ = message.from;
    Tell(*link, Message::Kind::kTaken, message.frame);
    ++counters_.frames_received;
    counters_.bytes_received += message.payload.size();
    if (header->op == Op::kBye) {
      Lose(link, Error{Code::kUnavailable, "sim: the peer said goodbye"});
      return;
    }
    MemoryIncoming incoming(message.payload, message.payload.size() <= network_.options.in_line_bytes);
    sink_.OnFrame(*link->endpoint(), *header, message.meta, incoming);
  }

  void Lose(const std::shared_ptr<SimLink>& link, Error why) {
    const bool ours = link->closed_;
    link->closed_ = true;
    link->flushing_ = false;
    link->FailSends(why);
    link->RunCompletions();
    if (ours || link->endpoint() == nullptr) return;
    ++counters_.endpoints_lost;
    sink_.OnClosed(*link->endpoint(), why);
  }

  SimNetwork& network_;
  const std::string name_;
  FrameSink& sink_;
  const Limits limits_;
  Admissions admissions_;
  Counters counters_;
  uint64_t next_link_ = 1;
  uint64_t next_message_ = 1;
  std::map<uint64_t, std::shared_ptr<SimLink>> links_;
  std::map<std::pair<Nanos, uint64_t>, Message> inbox_;  // By time due, then order.
  std::map<std::string, std::deque<Message>> held_;  // Behind a cut, by sender.
};

Status SimLink::Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  TIERCEL_TRY(CheckSend(meta, payload));
  SimNetwork& network = owner_->network_;
  Message message;
  message.frame = next_frame_++;
  FrameHeader stamped = header;
  stamped.session_id = session_id_;
  stamped.payload_bytes = payload.size();
  EncodeFrameHeader(stamped, message.header.data());
  message.meta.assign(meta.begin(), meta.end());
  message.payload.assign(payload.begin(), payload.end());
  Began(payload.size());
  ++owner_->counters_.frames_sent;
  owner_->counters_.bytes_sent += payload.size();
  if (header.op != Op::kHello && network.Chance(network.options.drop)) {
    Complete(payload.size(), std::move(done), OkStatus());
    return OkStatus();
  }
  sends_.emplace(message.frame, Pending{payload.size(), network.clock_.Now(), std::move(done)});
  owner_->Put(*this, std::move(message));
  if (network.Chance(network.options.lose)) {
    // Both sides hear of it as they would from a broken connection: from their own Poll.
    owner_->Tell(*this, Message::Kind::kHangUp, 0);
    Message self;
    self.kind = Message::Kind::kHangUp;
    self.to = id_;
    self.sender = peer_;
    owner_->inbox_.emplace(std::pair(network.clock_.Now(), owner_->next_message_++), std::move(self));
  }
  return OkStatus();
}

void SimLink::FailSends(const Error& why) {
  auto sends = std::move(sends_);
  sends_.clear();
  for (auto& [frame, pending] : sends) {
    Complete(pending.bytes, std::move(pending.done), Fail(why.code, why.message));
  }
}

void SimLink::Close(CloseMode mode) {
  if (owner_ == nullptr) return;
  if (mode == CloseMode::kFlush) {
    flushing_ = flushing_ || !closed_;
    closed_ = true;
    return;
  }
  if (!closed_ || flushing_) owner_->Tell(*this, Message::Kind::kHangUp, 0);
  closed_ = true;
  flushing_ = false;
  FailSends(Error{Code::kUnavailable, "the endpoint was closed"});
  while (RunCompletions() > 0) {
  }
}

std::unique_ptr<Transport> SimNetwork::MakeTransport(std::string name, FrameSink& sink,
                                                     const Transport::Limits& limits) {
  return std::make_unique<SimTransport>(*this, std::move(name), sink, limits);
}

Nanos SimNetwork::NextEvent() const {
  Nanos next = std::numeric_limits<Nanos>::max();
  for (const auto& [name, transport] : transports_) {
    for (const auto& [sender, messages] : transport->held_) {
      if (!IsCut(name, sender)) next = std::min(next, clock_.Now());
    }
    if (!transport->inbox_.empty()) next = std::min(next, transport->inbox_.begin()->first.first);
  }
  return next;
}

Nanos SimNetwork::Delay(uint64_t bytes) {
  const auto spread = static_cast<uint64_t>(options.max_delay - options.min_delay) + 1;
  return options.min_delay + static_cast<Nanos>(random_.Below(spread)) +
         static_cast<Nanos>(static_cast<double>(bytes) / options.bytes_per_nano);
}

}  // namespace tiercel
