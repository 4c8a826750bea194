// What both ends of the same-host transport do once they have met: frames and releases through the
// rings, notes through the socket. Every rule has its twin on the other side; they are read together.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"
#include "transport/memfd_state.h"

namespace tiercel {
namespace {

constexpr uint64_t kInLineBytes = 8 * kKiB;  // Payloads that travel in the ring itself.
constexpr Nanos kSocketEvery = kMillisecond;
constexpr Nanos kSweepEvery = 20 * kMillisecond;
constexpr Nanos kHandshakeTimeout = 5 * kSecond;

class MemfdHold final : public InPlaceHold {
 public:
  MemfdHold(std::shared_ptr<MemfdLink> link, std::shared_ptr<Mapping> mapping, uint64_t frame)
      : link_(std::move(link)), mapping_(std::move(mapping)), frame_(frame) {}
  ~MemfdHold() override { link_->Release(frame_); }

 private:
  const std::shared_ptr<MemfdLink> link_;
  const std::shared_ptr<Mapping> mapping_;  // Readable even after the endpoint is gone.
  const uint64_t frame_;
};

class MemfdIncoming final : public Incoming {
 public:
  MemfdIncoming(std::shared_ptr<MemfdLink> link, std::shared_ptr<Mapping> mapping, uint64_t frame,
                ByteSpan bytes, bool expose, bool by_reference)
      : link_(std::move(link)), mapping_(std::move(mapping)), frame_(frame), bytes_(bytes),
        by_reference_(by_reference) {
    size_ = bytes.size();
    data_ = expose && !bytes.empty() ? bytes.data() : nullptr;
  }
  ~MemfdIncoming() override {
    if (by_reference_ && !held_) link_->Release(frame_);
  }
  void Receive(MutableByteSpan dst, Done done) override {
    if (dst.size() < bytes_.size()) {
      done(Fail(Code::kInvalidArgument, fmt::format("receive: {} bytes into {}", bytes_.size(), dst.size())));
      return;
    }
    if (!bytes_.empty()) std::memcpy(dst.data(), bytes_.data(), bytes_.size());
    done(OkStatus());
  }
  // The staging of a client, which can change it meanwhile: it is read once, and what was written is judged.
  bool ReceiveFragments(FragmentFn each, Done done) override {
    if (data_ != nullptr || bytes_.empty()) return false;
    each(bytes_);
    done(OkStatus());
    return true;
  }
  std::unique_ptr<InPlaceHold> Hold() override {
    if (!by_reference_ || data_ == nullptr || held_) return nullptr;
    held_ = true;
    return std::make_unique<MemfdHold>(link_, mapping_, frame_);
  }

 private:
  const std::shared_ptr<MemfdLink> link_;
  const std::shared_ptr<Mapping> mapping_;
  const uint64_t frame_;
  const ByteSpan bytes_;
  const bool by_reference_;
  bool held_ = false;
};

}  // namespace

void MemfdLink::Wake() {
  // A full socket means wake-ups are waiting there already.
  (void)SendNote(socket_.get(), SocketNote{}, nullptr, 0);
}

bool MemfdLink::PutRecord(const RecordHead& head, const std::byte* frame_header, ByteSpan meta,
                          ByteSpan in_line) {
  std::byte* at = out_.Reserve(head.record_bytes);
  if (at == nullptr) return false;
  std::memcpy(at, &head, sizeof(head));
  at += sizeof(head);
  if (frame_header != nullptr) {
    std::memcpy(at, frame_header, kFrameHeaderBytes);
    at += kFrameHeaderBytes;
    if (!meta.empty()) std::memcpy(at, meta.data(), meta.size());
    if (!in_line.empty()) std::memcpy(at + meta.size(), in_line.data(), in_line.size());
  }
  if (out_.Publish(head.record_bytes)) Wake();
  return true;
}

Status MemfdLink::Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  TIERCEL_TRY(CheckSend(meta, payload));
  return Post(header, meta, payload, std::move(done));
}

Status MemfdLink::Post(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  RecordHead head;
  head.meta_bytes = static_cast<uint32_t>(meta.size());
  head.payload_bytes = payload.size();
  head.frame = next_frame_;
  SendOp op;
  op.bytes = payload.size();
  ByteSpan in_line;
  const MemfdTransport::Region* region = nullptr;
  if (payload.empty()) {
    head.at = PayloadAt::kNone;
  } else if (client_) {
    std::optional<uint64_t> offset = owner_->StagingOffset(payload);
    if (offset) {
      head.at = PayloadAt::kStaging;
    } else if (payload.size() <= kInLineBytes) {
      head.at = PayloadAt::kInLine;
      in_line = payload;
    } else {
      offset = owner_->staging_free_->Allocate(payload.size());
      if (!offset) return Fail(Code::kResourceExhausted, "the staging for puts is full");
      op.staging = offset;
      std::memcpy(owner_->staging_->data() + *offset, payload.data(), payload.size());
      head.at = PayloadAt::kStaging;
    }
    head.offset = offset.value_or(0);
  } else {
    region = owner_->FindRegion(payload.data(), payload.size());
    if (region != nullptr && (region->region.memfd < 0 || region->region.name_space != name_space_)) {
      region = nullptr;
    }
    if (region != nullptr) {
      const auto known = passed_.find(region->region.id);
      if (known == passed_.end() || known->second != region->generation) {
        SocketNote note;
        note.kind = SocketNote::Kind::kRegion;
        note.region = region->region.id;
        note.generation = region->generation;
        note.bytes = region->region.bytes;
        if (SendNote(socket_.get(), note, &region->region.memfd, 1)) {
          passed_[region->region.id] = region->generation;
        } else {
          region = nullptr;  // The socket is full: this one goes by copy.
        }
      }
    }
    if (region != nullptr) {
      head.at = PayloadAt::kRegion;
      head.offset = static_cast<uint64_t>(payload.data() - region->region.base);
      head.region = region->region.id;
      head.region_generation = region->generation;
    } else if (payload.size() <= kInLineBytes) {
      head.at = PayloadAt::kInLine;
      in_line = payload;
    } else {
      op.bounce = bounce_free_->Allocate(payload.size());
      if (!op.bounce) return Fail(Code::kResourceExhausted, "the bounce area of this client is full");
      std::memcpy(bounce_ + *op.bounce, payload.data(), payload.size());
      head.at = PayloadAt::kBounce;
      head.offset = *op.bounce;
    }
  }
  head.record_bytes = static_cast<uint32_t>(
      RoundUp(sizeof(RecordHead) + kFrameHeaderBytes + meta.size() + in_line.size(), 64));
  std::array<std::byte, kFrameHeaderBytes> encoded;
  FrameHeader stamped = header;
  stamped.session_id = session_id_;
  stamped.payload_bytes = payload.size();
  EncodeFrameHeader(stamped, encoded.data());
  if (!releases_.empty()) FlushReleases();
  if (!PutRecord(head, encoded.data(), meta, in_line)) {
    FreeOp(op);
    return Fail(Code::kResourceExhausted, "the ring to the peer is full");
  }
  ++next_frame_;
  unread_.emplace_back(out_.head(), owner_->clock_.Now());
  Began(payload.size());
  ++owner_->counters_.frames_sent;
  owner_->counters_.bytes_sent += payload.size();
  if (head.at == PayloadAt::kNone || head.at == PayloadAt::kInLine) {
    Complete(payload.size(), std::move(done), OkStatus());
  } else {
    op.done = std::move(done);
    sends_.emplace(head.frame, std::move(op));
  }
  return OkStatus();
}

void MemfdLink::FreeOp(const SendOp& op) {
  if (op.bounce) bounce_free_->Free(*op.bounce);
  if (op.staging && owner_ != nullptr) owner_->staging_free_->Free(*op.staging);
}

void MemfdLink::FailSends(const Error& why) {
  std::map<uint64_t, SendOp> sends;
  sends.swap(sends_);
  for (auto& [frame, op] : sends) {
    FreeOp(op);
    Complete(op.bytes, std::move(op.done), Fail(why.code, why.message));
  }
}

void MemfdLink::Release(uint64_t frame) {
  if (owner_ == nullptr || (closed_ && !flushing_)) return;
  releases_.push_back(frame);
  FlushReleases();
}

void MemfdLink::FlushReleases() {
  size_t told = 0;
  for (; told < releases_.size(); ++told) {
    RecordHead head;
    head.record_bytes = sizeof(RecordHead);
    head.kind = RecordKind::kRelease;
    head.frame = releases_[told];
    if (!PutRecord(head, nullptr, {}, {})) break;
  }
  releases_.erase(releases_.begin(), releases_.begin() + static_cast<std::ptrdiff_t>(told));
}

void MemfdLink::Close(CloseMode mode) {
  if (owner_ == nullptr) return;
  const std::shared_ptr<Link> keep = shared_from_this();
  if (mode == CloseMode::kFlush) {
    if (closed_) return;
    FrameHeader bye;
    bye.op = Op::kBye;
    (void)Post(bye, {}, {}, nullptr);
    closed_ = true;
    flushing_ = true;
    since_ = owner_->clock_.Now();
    return;
  }
  closed_ = true;
  flushing_ = false;
  owner_->Drop(*this);
  FailSends(Error{Code::kUnavailable, "the endpoint was closed"});
  while (RunCompletions() > 0) {
  }
}

Status MemfdTransport::AddMemory(const MemoryRegion& region) {
  if (!server()) return OkStatus();  // A client's own buffers are copied into and need no names.
  for (const auto& [base, other] : regions_) {
    if (other.region.id == region.id) {
      return Fail(Code::kAlreadyExists, fmt::format("memfd: memory region {} is known", region.id));
    }
  }
  if (region.memfd >= 0) {
    constexpr int kNeed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
    const int seals = fcntl(region.memfd, F_GET_SEALS);
    if (seals < 0 || (seals & kNeed) != kNeed) {
      return Fail(Code::kFailedPrecondition,
                  fmt::format("memfd: region {} is not sealed against shrink, grow and future writes; a "
                              "peer could change or cut it",
                              region.id));
    }
  }
  regions_[region.base] = Region{region, next_generation_++};
  return OkStatus();
}

void MemfdTransport::RemoveMemory(uint32_t region_id) {
  std::erase_if(regions_, [&](const auto& entry) { return entry.second.region.id == region_id; });
  for (const auto& link : links_) {
    if (link->passed_.erase(region_id) == 0) continue;
    SocketNote note;
    note.kind = SocketNote::Kind::kForget;
    note.region = region_id;
    (void)SendNote(link->socket_.get(), note, nullptr, 0);
  }
}

const MemfdTransport::Region* MemfdTransport::FindRegion(const std::byte* at, size_t bytes) const {
  const auto after = regions_.upper_bound(at);
  if (after == regions_.begin()) return nullptr;
  const Region& region = std::prev(after)->second;
  const auto offset = static_cast<uint64_t>(at - region.region.base);
  if (offset > region.region.bytes || bytes > region.region.bytes - offset) return nullptr;
  return &region;
}

std::optional<uint64_t> MemfdTransport::StagingOffset(ByteSpan payload) const {
  const std::byte* base = staging_->data();
  if (payload.data() < base || payload.data() + payload.size() > base + staging_->bytes()) {
    return std::nullopt;
  }
  return static_cast<uint64_t>(payload.data() - base);
}

Result<MutableByteSpan> MemfdTransport::AllocateStaging(uint64_t bytes) {
  if (server()) return Fail(Code::kUnimplemented, "memfd: a server has no staging");
  const std::optional<uint64_t> offset = staging_free_->Allocate(bytes);
  if (!offset) return Fail(Code::kResourceExhausted, fmt::format("memfd: no {} bytes of staging left", bytes));
  return MutableByteSpan(staging_->data() + *offset, bytes);
}

void MemfdTransport::FreeStaging(MutableByteSpan span) {
  TIERCEL_CHECK(staging_free_ && staging_free_->Free(static_cast<uint64_t>(span.data() - staging_->data())));
}

void MemfdTransport::TakeNotes(const std::shared_ptr<MemfdLink>& link) {
  for (int i = 0; i < 256 && link->socket_.valid(); ++i) {
    SocketNote note;
    std::vector<FileDescriptor> fds;
    switch (ReadNote(link->socket_.get(), &note, &fds)) {
      case NoteRead::kNothing:
        return;
      case NoteRead::kHangUp:
        if (link->shared_ != nullptr) TakeRecords(link);  // What it said before it left: a goodbye.
        Lose(link, Error{Code::kUnavailable, "memfd: the peer hung up"});
        return;
      case NoteRead::kGarbage:
        Garbage(link, "a message on the socket that is none of ours");
        return;
      case NoteRead::kNote:
        break;
    }
    if (note.kind == SocketNote::Kind::kWake) continue;
    if (server() && note.kind == SocketNote::Kind::kConnect && link->shared_ == nullptr) {
      if (!ShakeHands(*link, note, fds)) Garbage(link, "a greeting that is refused");
      return;
    }
    if (!server() && note.kind == SocketNote::Kind::kRegion && fds.size() == 1) {
      auto mapping = Mapping::Map(fds[0].get(), note.bytes, false);
      if (!mapping) {
        Garbage(link, mapping.error().message);
        return;
      }
      link->peer_regions_[note.region] = MemfdLink::PeerRegion{note.generation, std::move(*mapping)};
      continue;
    }
    if (!server() && note.kind == SocketNote::Kind::kForget) {
      link->peer_regions_.erase(note.region);
      continue;
    }
    Garbage(link, "a message on the socket that has no place there");
    return;
  }
}

size_t MemfdTransport::TakeRecords(const std::shared_ptr<MemfdLink>& link) {
  size_t events = 0;
  RecordHead head;
  const std::byte* body = nullptr;
  while (events < 64 && link->socket_.valid()) {
    const RingConsumer::Peeked peeked = link->in_.Peek(&head, &body);
    if (peeked == RingConsumer::Peeked::kEmpty) break;
    ++events;
    if (peeked == RingConsumer::Peeked::kBad) {
      Garbage(link, "a ring position or record length that cannot be");
      break;
    }
    if (head.kind == RecordKind::kRelease) {
      link->in_.Pop(head.record_bytes);
      const auto found = link->sends_.find(head.frame);
      if (found == link->sends_.end()) {
        Garbage(link, "a release of nothing");
        break;
      }
      MemfdLink::SendOp op = std::move(found->second);
      link->sends_.erase(found);
      link->FreeOp(op);
      link->Complete(op.bytes, std::move(op.done), OkStatus());
      continue;
    }
    if (head.kind != RecordKind::kFrame) {
      Garbage(link, "a record of an unknown kind");
      break;
    }
    if (!TakeFrame(link, head, body)) break;
  }
  return events;
}

// False: this link takes no more records now.
bool MemfdTransport::TakeFrame(const std::shared_ptr<MemfdLink>& link, const RecordHead& head,
                               const std::byte* body) {
  const uint64_t in_line = head.at == PayloadAt::kInLine ? head.payload_bytes : 0;
  if (head.meta_bytes > kMaxMetaBytes || head.payload_bytes > kMaxPayloadBytes || in_line > kInLineBytes ||
      sizeof(RecordHead) + kFrameHeaderBytes + head.meta_bytes + in_line > head.record_bytes) {
    Garbage(link, "a record whose parts do not fit in it");
    return false;
  }
  // Copied before it is looked at: the peer can write to the ring at any moment.
  alignas(64) std::array<std::byte, kFrameHeaderBytes + kMaxMetaBytes + kInLineBytes> copy;
  std::memcpy(copy.data(), body, kFrameHeaderBytes + head.meta_bytes + in_line);
  link->in_.Pop(head.record_bytes);
  const Result<FrameHeader> header = DecodeFrameHeader(ByteSpan(copy).first(kFrameHeaderBytes));
  if (!header || header->payload_bytes != head.payload_bytes || header->session_id != link->session_id()) {
    if (header) {
      Garbage(link, "a frame of another session or size");
    } else {
      Garbage(link, header.error().message, header.error().code);
    }
    return false;
  }
  const ByteSpan meta(copy.data() + kFrameHeaderBytes, head.meta_bytes);
  ByteSpan bytes;
  std::shared_ptr<Mapping> mapping;
  bool expose = true;
  bool by_reference = true;
  const std::byte* base = nullptr;
  uint64_t area = 0;
  switch (head.at) {
    case PayloadAt::kNone:
      by_reference = false;
      if (head.payload_bytes != 0) {
        Garbage(link, "a payload that is nowhere");
        return false;
      }
      break;
    case PayloadAt::kInLine:
      by_reference = false;
      base = copy.data() + kFrameHeaderBytes + head.meta_bytes;
      area = in_line;
      break;
    case PayloadAt::kStaging:
      mapping = link->peer_staging_;
      expose = false;  // The client can change these bytes: they are taken by copy, then checked.
      break;
    case PayloadAt::kBounce:
      if (!server()) {
        mapping = link->shared_;
        base = link->bounce_;
        area = link->bounce_bytes_;
      }
      break;
    case PayloadAt::kRegion: {
      auto found = link->peer_regions_.find(head.region);
      if (!server() && (found == link->peer_regions_.end() ||
                        found->second.generation != head.region_generation)) {
        TakeNotes(link);  // Its descriptor was sent before the frame.
        found = link->peer_regions_.find(head.region);
      }
      if (found != link->peer_regions_.end() && found->second.generation == head.region_generation) {
        mapping = found->second.mapping;
      }
      break;
    }
  }
  if (mapping != nullptr && base == nullptr) {
    base = mapping->data();
    area = mapping->bytes();
  }
  if (head.payload_bytes > 0) {
    const uint64_t offset = head.at == PayloadAt::kInLine ? 0 : head.offset;
    if (base == nullptr || offset > area || head.payload_bytes > area - offset) {
      Garbage(link, "a payload outside of what this peer may name");
      return false;
    }
    bytes = ByteSpan(base + offset, head.payload_bytes);
  }
  if (!link->bound_) {
    if (header->op != Op::kHello || !admissions_.Find(link->session_id(), nullptr)) {
      Garbage(link, "a first frame that is no HELLO of an admitted session");
      return false;
    }
    link->bound_ = true;
    sink_.OnAccept(link->MakeEndpoint());
  }
  MemfdIncoming incoming(link, std::move(mapping), head.frame, bytes, expose, by_reference);
  if (link->closed() || link->endpoint() == nullptr) return link->flushing_;
  ++counters_.frames_received;
  counters_.bytes_received += head.payload_bytes;
  if (header->op == Op::kBye) {
    Lose(link, Error{Code::kUnavailable, "the peer said goodbye"});
    return false;
  }
  sink_.OnFrame(*link->endpoint(), *header, meta, incoming);
  return !link->closed() || link->flushing_;
}

void MemfdTransport::Garbage(const std::shared_ptr<MemfdLink>& link, const std::string& why, Code code) {
  ++counters_.rejected_frames;
  LogWarn("memfd.reject", {{"session", link->session_id()}, {"why", why}});
  if (server() && link->bound_ && !link->closed_) {
    FrameHeader reject;
    reject.op = Op::kReject;
    reject.status = code;
    (void)link->Post(reject, AsBytes(why), {}, nullptr);  // In the ring, which outlives the socket.
  }
  Lose(link, Error{code, "memfd: the peer sent " + why});
}

void MemfdTransport::Drop(MemfdLink& link) {
  link.socket_.Reset();  // Also takes it out of the epoll set; the peer sees a hang-up.
  link.releases_.clear();
  const auto bound = by_session_.find(link.session_id());
  if (bound != by_session_.end() && bound->second == link.key_) by_session_.erase(bound);
}

void MemfdTransport::Lose(const std::shared_ptr<MemfdLink>& link, Error why) {
  const bool ours = link->closed_;
  link->closed_ = true;
  link->flushing_ = false;
  Drop(*link);
  link->FailSends(why);
  link->RunCompletions();
  if (ours || link->endpoint() == nullptr) return;
  ++counters_.endpoints_lost;
  sink_.OnClosed(*link->endpoint(), why);
}

void MemfdTransport::Sweep(Nanos now) {
  next_sweep_ = now + kSweepEvery;
  const auto links = links_;
  for (const auto& link : links) {
    if (link->shared_ == nullptr) {
      if (!link->closed_ && now - link->since_ > kHandshakeTimeout) Garbage(link, "no greeting in time");
      continue;
    }
    if (link->closed_ && !link->flushing_) continue;
    const uint64_t read = link->out_.Consumed();
    if (link->out_.bad()) {
      Garbage(link, "a ring position that cannot be");
      continue;
    }
    while (!link->unread_.empty() && link->unread_.front().first <= read) link->unread_.pop_front();
    // Held bytes have no clock; frames that the peer does not even read have.
    if (!link->unread_.empty() && now - link->unread_.front().second > limits_.send_timeout) {
      Lose(link, Error{Code::kDeadlineExceeded,
                       fmt::format("memfd: the peer read nothing for {} ms; endpoint closed",
                                   limits_.send_timeout / kMillisecond)});
      continue;
    }
    if (!link->bound_ && now - link->since_ > kHandshakeTimeout) Garbage(link, "no HELLO in time");
  }
}

size_t MemfdTransport::Poll() {
  size_t events = 0;
  const Nanos now = clock_.Now();
  if (armed_ || now >= next_socket_) {
    if (armed_) {
      for (const auto& link : links_) {
        if (link->shared_ != nullptr && link->socket_.valid()) link->in_.SetAsleep(false);
      }
      armed_ = false;
    }
    next_socket_ = now + kSocketEvery;
    std::array<epoll_event, 64> ready;
    const int count = epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), 0);
    for (int i = 0; i < count; ++i) {
      const uint64_t key = ready[static_cast<size_t>(i)].data.u64;
      if (key == kListenerKey) {
        AcceptAll();
        continue;
      }
      const auto found = std::find_if(links_.begin(), links_.end(),
                                      [key](const auto& link) { return link->key_ == key; });
      if (found == links_.end()) continue;
      const std::shared_ptr<MemfdLink> link = *found;
      TakeNotes(link);
    }
  }
  bool any_dead = false;
  for (size_t i = 0; i < links_.size(); ++i) {  // Callbacks may add links.
    const std::shared_ptr<MemfdLink> link = links_[i];
    if (link->shared_ != nullptr && link->socket_.valid()) {
      events += TakeRecords(link);
      if (!link->releases_.empty() && link->socket_.valid()) link->FlushReleases();
      if (link->flushing_ && link->Drained()) {
        link->flushing_ = false;
        Drop(*link);
      }
    }
    events += link->RunCompletions();
    if (link->closed_ && !link->flushing_ && !link->has_completions()) any_dead = true;
  }
  if (any_dead) {
    std::erase_if(links_, [](const auto& link) {
      return link->closed_ && !link->flushing_ && !link->has_completions();
    });
  }
  if (now >= next_sweep_) Sweep(now);
  return events;
}

bool MemfdTransport::Arm() {
  armed_ = true;
  for (const auto& link : links_) {
    if (link->has_completions()) return false;
    if (link->shared_ == nullptr || !link->socket_.valid()) continue;
    link->in_.SetAsleep(true);
    if (!link->in_.Empty()) return false;
  }
  return true;
}

}  // namespace tiercel
