#include "transport/loopback.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <unordered_map>

#include "base/check.h"
#include "base/inbox.h"
#include "transport/link.h"

namespace tiercel {
namespace {

constexpr size_t kInLineBytes = 32 * 1024;  // Larger payloads need Receive, as on a fabric.
constexpr size_t kMailboxMessages = size_t{1} << 20;

struct Mailbox;

// One of: a frame, its consumption told back, the end.
struct Message {
  enum class Kind : uint8_t { kFrame, kConsumed, kHangUp } kind = Kind::kFrame;
  uint64_t to_link = 0;    // The receiver's link; 0 in the first frame of a client.
  uint64_t from_link = 0;  // The sender's.
  uint64_t frame = 0;      // Number of the frame at its sender.
  std::shared_ptr<Mailbox> reply;
  std::array<std::byte, kFrameHeaderBytes> header;
  std::vector<std::byte> meta;
  std::vector<std::byte> payload;
};

struct Mailbox {
  Inbox<Message> inbox{kMailboxMessages};
};

}  // namespace

struct LoopbackNetwork::Hub {
  Mutex mutex;
  uint64_t next_address TIERCEL_GUARDED_BY(mutex) = 1;
  std::map<uint64_t, std::weak_ptr<Mailbox>> mailboxes TIERCEL_GUARDED_BY(mutex);

  std::shared_ptr<Mailbox> Find(uint64_t address) {
    MutexLock lock(mutex);
    const auto found = mailboxes.find(address);
    return found == mailboxes.end() ? nullptr : found->second.lock();
  }
};

namespace {

class LoopbackTransport;

class LoopbackLink final : public Link {
 public:
  LoopbackLink(LoopbackTransport& owner, uint64_t id, uint64_t session_id,
               const Transport::Limits& limits, std::shared_ptr<Mailbox> peer, uint64_t peer_link)
      : Link(TransportKind::kLoopback, session_id, limits),
        owner_(&owner),
        id_(id),
        peer_(std::move(peer)),
        peer_link_(peer_link) {}

  std::string Describe() const override { return fmt::format("loopback {}->{}", id_, peer_link_); }
  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override;
  void Close(CloseMode mode) override;

 private:
  friend class LoopbackTransport;
  struct Pending {
    uint64_t bytes = 0;
    Nanos since = 0;
    Done done;
  };

  void HangUp();
  void FailAll(const Error& why);

  LoopbackTransport* owner_;  // Null once the transport let go.
  const uint64_t id_;
  const std::shared_ptr<Mailbox> peer_;
  uint64_t peer_link_;
  uint64_t next_frame_ = 1;
  bool flushing_ = false;
  std::map<uint64_t, Pending> pending_;  // By frame number, so oldest first.
};

class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport(std::shared_ptr<LoopbackNetwork::Hub> hub, uint64_t address,
                    std::shared_ptr<Mailbox> mailbox, FrameSink& sink, const Clock& clock,
                    const Limits& limits)
      : hub_(std::move(hub)),
        address_(address),
        mailbox_(std::move(mailbox)),
        sink_(sink),
        clock_(clock),
        limits_(limits),
        admissions_(limits.max_endpoints) {}
  ~LoopbackTransport() override {
    {
      MutexLock lock(hub_->mutex);
      hub_->mailboxes.erase(address_);
    }
    for (auto& [id, link] : links_) {
      if (!link->closed()) link->HangUp();
      link->closed_ = true;
      link->owner_ = nullptr;
    }
    // Messages hold their senders' mailboxes, and those perhaps ours: break the ring.
    mailbox_->inbox.Drain([](Message&&) {});
  }

  TransportKind kind() const override { return TransportKind::kLoopback; }
  std::string LocalAddress() const override { return fmt::format("loopback:{}", address_); }
  Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) override {
    return admissions_.Admit(session_id, peer_address, name_space);
  }
  void Revoke(uint64_t session_id) override { admissions_.Revoke(session_id); }

  Result<std::unique_ptr<Endpoint>> Connect(uint64_t session_id, std::string_view address) override {
    constexpr std::string_view kPrefix = "loopback:";
    uint64_t number = 0;
    if (!address.starts_with(kPrefix) ||
        std::from_chars(address.data() + kPrefix.size(), address.data() + address.size(), number).ec !=
            std::errc()) {
      return Fail(Code::kInvalidArgument, fmt::format("not a loopback address: '{}'", address));
    }
    std::shared_ptr<Mailbox> peer = hub_->Find(number);
    if (peer == nullptr) {
      return Fail(Code::kUnavailable, fmt::format("nobody listens at {}", address));
    }
    if (links_.size() >= limits_.max_endpoints) {
      return Fail(Code::kResourceExhausted, fmt::format("{} endpoints are open", links_.size()));
    }
    return AddLink(session_id, std::move(peer), 0)->MakeEndpoint();
  }

  Status AddMemory(const MemoryRegion&) override { return OkStatus(); }
  void RemoveMemory(uint32_t) override {}

  size_t Poll() override {
    size_t events = mailbox_->inbox.Drain([this](Message&& message) { Take(std::move(message)); });
    events += Sweep();
    return events;
  }
  int event_fd() const override { return mailbox_->inbox.event_fd(); }
  bool Arm() override {
    for (const auto& [id, link] : links_) {
      if (link->has_completions()) return false;
    }
    return mailbox_->inbox.Arm();
  }
  Counters counters() const override { return counters_; }

 private:
  friend class LoopbackLink;

  std::shared_ptr<LoopbackLink> AddLink(uint64_t session_id, std::shared_ptr<Mailbox> peer,
                                        uint64_t peer_link) {
    const uint64_t id = next_link_++;
    auto link =
        std::make_shared<LoopbackLink>(*this, id, session_id, limits_, std::move(peer), peer_link);
    links_.emplace(id, link);
    return link;
  }

  void Take(Message&& message) {
    std::shared_ptr<LoopbackLink> link;
    if (message.to_link != 0) {
      const auto found = links_.find(message.to_link);
      if (found != links_.end()) link = found->second;
    } else {  // A client that has not heard of us yet.
      for (auto& [id, candidate] : links_) {
        if (candidate->peer_link_ == message.from_link && candidate->peer_ == message.reply) link = candidate;
      }
    }
    switch (message.kind) {
      case Message::Kind::kConsumed:
        if (link != nullptr) Consumed(*link, message);
        return;
      case Message::Kind::kHangUp:
        if (link != nullptr) Lose(link, Error{Code::kUnavailable, "the peer hung up"});
        return;
      case Message::Kind::kFrame:
        TakeFrame(std::move(link), std::move(message));
        return;
    }
  }

  void Consumed(LoopbackLink& link, const Message& message) {
    link.peer_link_ = message.from_link;
    const auto found = link.pending_.find(message.frame);
    if (found == link.pending_.end()) return;
    LoopbackLink::Pending pending = std::move(found->second);
    link.pending_.erase(found);
    link.Complete(pending.bytes, std::move(pending.done), OkStatus());
  }

  void TakeFrame(std::shared_ptr<LoopbackLink> link, Message&& message) {
    const Result<FrameHeader> header = DecodeFrameHeader(message.header);
    if (link == nullptr) {
      if (!header || header->op != Op::kHello || links_.size() >= limits_.max_endpoints ||
          !admissions_.Find(header->session_id, nullptr)) {
        ++counters_.rejected_frames;
        Tell(*message.reply, Message::Kind::kHangUp, message.from_link, 0, 0);
        return;
      }
      link = AddLink(header->session_id, message.reply, message.from_link);
      sink_.OnAccept(link->MakeEndpoint());
    }
    if (link->peer_link_ == 0) link->peer_link_ = message.from_link;
    if (link->endpoint() == nullptr || link->closed()) return;
    ++counters_.frames_received;
    counters_.bytes_received += message.payload.size();
    Tell(*link->peer_, Message::Kind::kConsumed, message.from_link, link->id_, message.frame);
    if (header->op == Op::kBye) {
      Lose(link, Error{Code::kUnavailable, "the peer said goodbye"});
      return;
    }
    MemoryIncoming incoming(message.payload, message.payload.size() <= kInLineBytes);
    sink_.OnFrame(*link->endpoint(), *header, message.meta, incoming);
  }

  void Tell(Mailbox& mailbox, Message::Kind kind, uint64_t to, uint64_t from, uint64_t frame) {
    Message message;
    message.kind = kind;
    message.to_link = to;
    message.from_link = from;
    message.frame = frame;
    message.reply = mailbox_;
    // One a frame in flight at most, and frames in flight are bounded well below the mailbox.
    TIERCEL_CHECK(mailbox.inbox.Push(std::move(message)));
  }

  void Lose(const std::shared_ptr<LoopbackLink>& link, const Error& why) {
    if (link->closed_ && !link->flushing_) return;
    const bool ours = link->closed_;
    link->closed_ = true;
    link->FailAll(why);
    link->RunCompletions();
    if (ours || link->endpoint() == nullptr) return;
    ++counters_.endpoints_lost;
    sink_.OnClosed(*link->endpoint(), why);
  }

  size_t Sweep() {
    size_t events = 0;
    const Nanos now = clock_.Now();
    for (auto it = links_.begin(); it != links_.end();) {
      const std::shared_ptr<LoopbackLink> link = it->second;
      ++it;
      events += link->RunCompletions();
      if (!link->pending_.empty() && now - link->pending_.begin()->second.since > limits_.send_timeout) {
        link->HangUp();
        Lose(link, Error{Code::kDeadlineExceeded, "a send was not taken in time; endpoint closed"});
        ++events;
      }
      if (link->flushing_ && link->pending_.empty()) {
        link->HangUp();
        link->flushing_ = false;
      }
      if (link->closed_ && !link->flushing_ && !link->has_completions()) dead_.push_back(link->id_);
    }
    for (const uint64_t id : dead_) links_.erase(id);
    dead_.clear();
    return events;
  }

  const std::shared_ptr<LoopbackNetwork::Hub> hub_;
  const uint64_t address_;
  const std::shared_ptr<Mailbox> mailbox_;
  FrameSink& sink_;
  const Clock& clock_;
  const Limits limits_;
  Admissions admissions_;
  Counters counters_;
  uint64_t next_link_ = 1;
  std::map<uint64_t, std::shared_ptr<LoopbackLink>> links_;
  std::vector<uint64_t> dead_;
};

Status LoopbackLink::Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  TIERCEL_TRY(CheckSend(meta, payload));
  Message message;
  message.to_link = peer_link_;
  message.from_link = id_;
  message.frame = next_frame_;
  message.reply = owner_->mailbox_;
  FrameHeader stamped = header;
  stamped.session_id = session_id_;
  stamped.payload_bytes = payload.size();
  EncodeFrameHeader(stamped, message.header.data());
  message.meta.assign(meta.begin(), meta.end());
  message.payload.assign(payload.begin(), payload.end());
  if (!peer_->inbox.Push(std::move(message))) {
    return Fail(Code::kResourceExhausted, "the peer's mailbox is full");
  }
  Began(payload.size());
  pending_.emplace(next_frame_++, Pending{payload.size(), owner_->clock_.Now(), std::move(done)});
  ++owner_->counters_.frames_sent;
  owner_->counters_.bytes_sent += payload.size();
  return OkStatus();
}

void LoopbackLink::HangUp() {
  owner_->Tell(*peer_, Message::Kind::kHangUp, peer_link_, id_, 0);
}

void LoopbackLink::FailAll(const Error& why) {
  flushing_ = false;
  auto failed = std::move(pending_);
  pending_.clear();
  for (auto& [frame, pending] : failed) {
    Complete(pending.bytes, std::move(pending.done), Fail(why.code, why.message));
  }
}

void LoopbackLink::Close(CloseMode mode) {
  if (owner_ == nullptr) return;
  if (closed_ && !flushing_ && completions_.empty()) return;
  if (mode == CloseMode::kFlush) {
    flushing_ = !closed_ || flushing_;
    closed_ = true;
    return;
  }
  if (!closed_ || flushing_) HangUp();
  closed_ = true;
  FailAll(Error{Code::kUnavailable, "the endpoint was closed"});
  while (RunCompletions() > 0) {
  }
}

}  // namespace

LoopbackNetwork::LoopbackNetwork() : hub_(std::make_shared<Hub>()) {}
LoopbackNetwork::~LoopbackNetwork() = default;

std::unique_ptr<Transport> LoopbackNetwork::MakeTransport(FrameSink& sink, const Clock& clock,
                                                          const Transport::Limits& limits) {
  auto mailbox = std::make_shared<Mailbox>();
  uint64_t address = 0;
  {
    MutexLock lock(hub_->mutex);
    address = hub_->next_address++;
    hub_->mailboxes.emplace(address, mailbox);
  }
  return std::make_unique<LoopbackTransport>(hub_, address, std::move(mailbox), sink, clock, limits);
}

}  // namespace tiercel
