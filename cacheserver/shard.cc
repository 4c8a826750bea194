#include "cacheserver/shard.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "kernels/record.h"

namespace tiercel {

namespace {

constexpr Nanos kLeave = 200 * kMillisecond;  // For a refused peer to hear why.
constexpr size_t kMaxLeaving = 64;

// Is a record that is as good as this class on SSD?
bool IsOnSsd(const TierStack& stack, uint32_t name_space, const BlockKey& key, QualityClass quality) {
  const auto records = stack.Describe(name_space, key);
  return std::any_of(records.begin(), records.end(), [quality](const auto& one) {
    return one.entry.quality <= quality && static_cast<bool>(one.entry.where);
  });
}

}  // namespace

struct Shard::Request {
  FrameHeader header;  // As asked.
  Scope scope;
  uint16_t layer_begin = 0;
  uint16_t layer_end = 0;
  uint32_t unanswered = 0;
  uint32_t sends = 0;    // DATA under way, and answers waiting.
  uint32_t waiting = 0;  // Of those, the ones in Session::waiting.
  uint64_t answered = 0;  // Bit a key.
  bool cancelled = false;
  bool refused = false;  // Over the limit: not counted in it.
  Nanos began = 0;
  std::multimap<Nanos, std::pair<uint64_t, uint64_t>>::iterator deadline;
  bool has_deadline = false;
};

struct Shard::Session {
  uint64_t id = 0;
  uint32_t name_space = 0;
  QualityClass worst_class = QualityClass::kSmall;
  Token token{};
  Nanos token_expires = 0;
  std::unique_ptr<Endpoint> endpoint;  // Null until HELLO.
  std::unordered_map<uint64_t, Request> requests;
  uint32_t keys_in_flight = 0;
  uint64_t bytes_in_flight = 0;
  std::deque<Answer> waiting;  // Of GETs, in order.
  std::deque<Answer> replies;  // To all else, in order; never behind bulk.
  struct Hold {
    Nanos expires = 0;
    Pin pin;
  };
  std::deque<Hold> holds;  // Oldest first.
  uint64_t hold_bytes = 0;
  uint64_t put_bytes = 0;  // Being received.
  std::unordered_map<uint64_t, uint32_t> durable_owed;      // req_id -> DURABLE frames to come.
  std::unordered_map<uint64_t, uint32_t> cancelled_puts;  // req_id -> puts that must end first.
};

struct Shard::Put {
  uint64_t session_id = 0;
  FrameHeader header;
  BlockKey key;
  Scope scope;
  Reservation reservation;
  std::optional<Status> checked;  // The record's bytes, where they were checked as they came.
  bool cancelled = false;
  uint64_t raw_bytes = 0;
  struct OnSsd {
    bool acked = false;
    std::optional<Status> result;
  };
  std::shared_ptr<OnSsd> on_ssd;
  Nanos began = 0;
};

Shard::Shard(const Options& options, const Clock& clock, std::unique_ptr<TierStack> stack)
    : options_(options), clock_(clock), stack_(std::move(stack)), inbox_(options.inbox) {}

Shard::~Shard() {
  std::vector<uint64_t> ids;
  for (const auto& [id, session] : sessions_) ids.push_back(id);
  for (const uint64_t id : ids) EndSession(id);
  unbound_.clear();
  dead_.clear();
  leaving_.clear();
  stack_->Shutdown(0);
  stack_->arena().SetSlabListener([](const SlabInfo&, bool) {});
  transports_.clear();
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

void Shard::AddTransport(std::unique_ptr<Transport> transport) {
  transports_.push_back(std::move(transport));
}

void Shard::ServeMemory() {
  stack_->arena().SetSlabListener([this](const SlabInfo& slab, bool added) {
    for (const auto& transport : transports_) {
      if (!added) {
        transport->RemoveMemory(slab.id);
        continue;
      }
      const Status status = transport->AddMemory({slab.base, slab.bytes, slab.id, slab.memfd, slab.name_space});
      if (!status) {
        LogWarn("shard.add_memory", {{"transport", Name(transport->kind())}, {"error", status.error().message}});
      }
    }
  });
}

Transport* Shard::transport(TransportKind kind) const {
  const auto found = std::find_if(transports_.begin(), transports_.end(), [kind](const auto& t) { return t->kind() == kind; });
  return found == transports_.end() ? nullptr : found->get();
}

// ---- sessions ----------------------------------------------------------------------------------

Status Shard::Expect(const Grant& grant) {
  if (sessions_.size() >= options_.max_sessions) {
    return Fail(Code::kResourceExhausted, "this node has all the sessions it allows");
  }
  auto session = std::make_unique<Session>();
  session->id = grant.session_id;
  session->name_space = grant.name_space;
  session->worst_class = grant.worst_class;
  session->token = grant.token;
  session->token_expires = clock_.Now() + options_.token_life;
  if (!sessions_.emplace(grant.session_id, std::move(session)).second) {
    return Fail(Code::kAlreadyExists, "session id in use");
  }
  return OkStatus();
}

Shard::Session* Shard::Find(uint64_t session_id) {
  const auto found = sessions_.find(session_id);
  return found == sessions_.end() ? nullptr : found->second.get();
}

void Shard::EndSession(uint64_t session_id) {
  const auto found = sessions_.find(session_id);
  if (found == sessions_.end()) return;
  const std::unique_ptr<Session> session = std::move(found->second);
  sessions_.erase(found);  // From here on, completions find no session and only free what they hold.
  for (const auto& transport : transports_) transport->Revoke(session_id);
  for (auto& [id, request] : session->requests) {
    if (request.has_deadline) deadlines_.erase(request.deadline);
  }
  if (session->endpoint == nullptr) return;
  session->endpoint->user = nullptr;
  session->endpoint->Close(CloseMode::kForce);
  dead_.push_back(std::move(session->endpoint));
}

void Shard::OnAccept(std::unique_ptr<Endpoint> endpoint) {
  Endpoint* raw = endpoint.get();
  unbound_.emplace(raw, std::move(endpoint));
}

void Shard::OnClosed(Endpoint& endpoint, const Error& why) {
  if (auto* session = static_cast<Session*>(endpoint.user); session != nullptr) {
    LogDebug("session.lost", {{"shard", number()}, {"session", session->id}, {"why", why.message}});
    EndSession(session->id);
    return;
  }
  Drop(endpoint);
}

void Shard::Drop(Endpoint& endpoint) {
  const auto found = unbound_.find(&endpoint);
  if (found == unbound_.end()) return;
  dead_.push_back(std::move(found->second));
  unbound_.erase(found);
}

void Shard::Hello(Endpoint& from, const FrameHeader& header, ByteSpan meta) {
  Session* session = Find(header.session_id);
  const auto bound = unbound_.find(&from);
  const bool good = session != nullptr && session->endpoint == nullptr && bound != unbound_.end() &&
                    header.session_id == from.session_id() && clock_.Now() <= session->token_expires &&
                    meta.size() == session->token.size() &&
                    std::equal(meta.begin(), meta.end(), session->token.begin());
  if (!good) {
    Reject(from, header, {Code::kUnauthenticated, "HELLO: the token is wrong, used or expired"});
    from.Close(CloseMode::kFlush);
    if (bound == unbound_.end()) return;
    leaving_.emplace_back(clock_.Now() + kLeave, std::move(bound->second));
    unbound_.erase(bound);
    return;
  }
  session->token.fill(std::byte{0});
  session->token_expires = 0;  // Single use.
  session->endpoint = std::move(bound->second);
  unbound_.erase(bound);
  session->endpoint->user = session;
  Reply(*session, header, Op::kWelcome, Code::kOk);
}

// ---- frames ------------------------------------------------------------------------------------

void Shard::Reply(Session& session, const FrameHeader& request, Op op, Code status, ByteSpan meta) {
  FrameHeader header;
  header.op = op;
  header.req_id = request.req_id;
  header.index = request.index;
  header.count = request.count;
  header.status = status;
  SendAnswer(session, nullptr, {header, {meta.begin(), meta.end()}, {}, nullptr});
}

void Shard::Reject(Endpoint& endpoint, const FrameHeader& request, const Error& why) {
  ++stats_.rejected;
  Answer answer;
  answer.header.op = Op::kReject;
  answer.header.req_id = request.req_id;
  answer.header.status = why.code;
  const ByteSpan text = AsBytes(std::string_view(why.message).substr(0, kMaxMetaBytes));
  answer.meta.assign(text.begin(), text.end());
  auto* session = static_cast<Session*>(endpoint.user);
  if (session != nullptr) return SendAnswer(*session, nullptr, std::move(answer));
  (void)endpoint.Send(answer.header, answer.meta, {}, nullptr);
}

void Shard::OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) {
  if (header.op == Op::kHello) return Hello(from, header, meta);
  auto* session = static_cast<Session*>(from.user);
  if (session == nullptr) {  // Nothing but HELLO comes from the unbound.
    ++stats_.rejected;
    from.Close(CloseMode::kForce);
    Drop(from);
    return;
  }
  switch (header.op) {
    case Op::kMatch:
      return Match(*session, header, meta);
    case Op::kGet:
      return Get(*session, header, meta);
    case Op::kPut:
      return StartPut(*session, header, meta, payload);
    case Op::kCancel:
      return Cancel(*session, header);
    case Op::kBye:
      return EndSession(session->id);
    default:
      Reject(from, header, {Code::kInvalidArgument, "this op is not for a node"});
  }
}

void Shard::Match(Session& session, const FrameHeader& header, ByteSpan meta) {
  const Nanos began = clock_.Now();
  if (const Status parsed = DecodeChainMeta(meta, chain_); !parsed) {
    return Reject(*session.endpoint, header, parsed.error());
  }
  stack_->Prefetch(chain_.keys);
  std::array<std::byte, kMaxKeys * kMatchEntryBytes> entries;
  std::byte* at = entries.data();
  bool on_ssd = false;
  const Prefer prefer = header.has(kFlagPreferSmall) ? Prefer::kSmall : Prefer::kGood;
  const Nanos pin = std::min<Nanos>(header.deadline_ms * kMillisecond, options_.max_pin);
  for (const BlockKey& key : chain_.keys) {
    MatchEntry entry = stack_->Lookup(session.name_space, key, header.min_class, prefer);
    if (header.has(kFlagPin) && entry.tier != Tier::kNone) {
      const Status kept = stack_->Keep(session.name_space, key, header.min_class, prefer, pin);
      if (!kept) entry = {Tier::kNone, MissReason::kBusy};
    }
    EncodeMatchEntry(entry, at);
    at += kMatchEntryBytes;
    on_ssd = on_ssd || entry.tier == Tier::kSsd;
    if (header.has(kFlagHold) && entry.tier != Tier::kNone) Hold(session, header, key, entry.record_bytes);
  }
  FrameHeader reply;
  reply.op = Op::kMatched;
  reply.req_id = header.req_id;
  reply.count = static_cast<uint32_t>(chain_.keys.size());
  const ByteSpan answer(entries.data(), static_cast<size_t>(at - entries.data()));
  // The way it nearly always goes takes no copy.
  const Status sent = session.endpoint->Send(reply, answer, {}, nullptr);
  if (!sent && sent.error().code == Code::kResourceExhausted) {
    SendAnswer(session, nullptr, {reply, {answer.begin(), answer.end()}, {}, nullptr});
  }
  // Who asks for the head of a chain asks for the rest soon.
  if (on_ssd && !header.has(kFlagHold) && !header.has(kFlagPin) && !header.has(kFlagNoPromote)) {
    stack_->ReadAhead(session.name_space, chain_.keys, header.min_class, prefer);
  }
  stats_.match.Add(clock_.Now() - began);
}

// Its room is reserved now, and it is pinned when it is in RAM.
void Shard::Hold(Session& session, const FrameHeader& header, const BlockKey& key, uint64_t bytes) {
  if (session.hold_bytes + bytes > options_.max_hold_bytes) return;
  session.hold_bytes += bytes;
  const Prefer prefer = header.has(kFlagPreferSmall) ? Prefer::kSmall : Prefer::kGood;
  stack_->Fetch(session.name_space, key, {header.min_class, prefer, true},
                [this, session_id = session.id, bytes](TierStack::Fetched fetched) {
                  Session* live = Find(session_id);
                  if (live == nullptr) return;
                  if (!fetched.pin) {
                    live->hold_bytes -= bytes;
                    return;
                  }
                  const Nanos expires = clock_.Now() + options_.hold_time;
                  live->hold_bytes += fetched.pin.record().size() - bytes;
                  live->holds.push_back({expires, std::move(fetched.pin)});
                  hold_expiries_.emplace(expires, session_id);
                });
}

void Shard::Get(Session& session, const FrameHeader& header, ByteSpan meta) {
  if (const Status parsed = DecodeChainMeta(meta, chain_); !parsed) {
    return Reject(*session.endpoint, header, parsed.error());
  }
  const auto n = static_cast<uint32_t>(chain_.keys.size());
  const auto [it, fresh] = session.requests.try_emplace(header.req_id);
  if (!fresh) {
    return Reject(*session.endpoint, header, {Code::kInvalidArgument, "GET: this req_id is under way"});
  }
  Request& request = it->second;
  request.header = header;
  request.header.count = n;
  request.scope = chain_.scope;
  request.layer_begin = chain_.layer_begin;
  request.layer_end = chain_.layer_end;
  request.unanswered = n;
  request.began = clock_.Now();
  if (session.keys_in_flight + n > options_.max_keys_in_flight) {
    request.refused = true;
    for (uint32_t i = 0; i < n; ++i) SendMiss(session, request, i, MissReason::kBusy);
    stats_.own_misses[static_cast<size_t>(MissReason::kBusy)] += n;
    return FinishIfDone(session, header.req_id);
  }
  session.keys_in_flight += n;
  if (!header.has(kFlagNoTouch)) stack_->Touch(session.name_space, chain_.keys, chain_.parent, header.reuse_hint);
  const uint64_t session_id = session.id;
  TierStack::FetchOptions options;
  options.min_class = header.min_class;
  options.prefer = header.has(kFlagPreferSmall) ? Prefer::kSmall : Prefer::kGood;
  options.promote = !header.has(kFlagNoPromote);
  options.reuse_hint = header.reuse_hint;
  // A done may come at once or later; the session may be gone by then, or even within this loop.
  const std::vector<BlockKey> keys = chain_.keys;
  for (uint32_t i = 0; i < n; ++i) {
    stack_->Fetch(session.name_space, keys[i], options,
                  [this, session_id, req_id = header.req_id, i](TierStack::Fetched fetched) {
                    Deliver(session_id, req_id, i, std::move(fetched));
                  });
    if (Find(session_id) != &session) return;
  }
  const auto still = session.requests.find(header.req_id);
  if (still == session.requests.end() || still->second.unanswered == 0) return;
  Nanos deadline = header.deadline_ms == 0 ? options_.default_deadline : header.deadline_ms * kMillisecond;
  deadline = std::min(deadline, options_.max_deadline);
  still->second.deadline = deadlines_.emplace(still->second.began + deadline, std::pair{session_id, header.req_id});
  still->second.has_deadline = true;
}

void Shard::Deliver(uint64_t session_id, uint64_t req_id, uint32_t index, TierStack::Fetched fetched) {
  Session* session = Find(session_id);
  if (session == nullptr) return;
  const auto found = session->requests.find(req_id);
  if (found == session->requests.end()) return;
  Request& request = found->second;
  if (request.cancelled || (request.answered >> index & 1) != 0) return;
  if (!fetched.pin) {
    SendMiss(*session, request, index, fetched.reason);
  } else if (fetched.pin.scope() != request.scope) {
    // A key is made of its scope; a reader that has the one wrong would refuse the bytes.
    SendMiss(*session, request, index, MissReason::kOtherScope);
    ++stats_.own_misses[static_cast<size_t>(MissReason::kOtherScope)];
  } else {
    FrameHeader header;
    header.op = Op::kData;
    header.req_id = req_id;
    header.count = request.header.count;
    header.index = index;
    header.quality = fetched.pin.quality();
    header.tier = fetched.tier;
    header.generation = fetched.pin.generation();
    request.answered |= uint64_t{1} << index;
    --request.unanswered;
    if (request.unanswered == 0) header.flags |= kFlagLast;
    SendData(*session, request, header, std::move(fetched.pin));
  }
  FinishIfDone(*session, req_id);
}

// The record of these layers alone; null where they are all that it holds.
static Result<std::shared_ptr<std::vector<std::byte>>> SomeLayers(ByteSpan record, uint16_t begin, uint16_t end) {
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(record));
  if (view.layer_begin == begin && view.layer_end == end) return nullptr;
  TIERCEL_ASSIGN(const ExtractPlan plan, PlanExtract(view, begin, end));
  auto part = std::make_shared<std::vector<std::byte>>(plan.record_bytes());
  TIERCEL_ASSIGN([[maybe_unused]] const uint64_t written, ExtractLayers(view, begin, end, *part));
  return part;
}

void Shard::SendData(Session& session, Request& request, FrameHeader header, Pin pin) {
  Answer answer;
  if (request.layer_end > 0) {
    auto part = SomeLayers(pin.record(), request.layer_begin, request.layer_end);
    if (!part) {
      // The reader's range, or a record that went bad under us: a miss either way, and said which.
      header.status = part.error().code;
      header.reason = header.status == Code::kInvalidArgument ? MissReason::kOtherScope : MissReason::kCorrupt;
      ++stats_.own_misses[static_cast<size_t>(header.reason)];
    } else {
      answer.part = std::move(*part);
    }
    if (!part || answer.part != nullptr) pin.Release();
  }
  answer.header = header;
  answer.pin = std::move(pin);
  SendAnswer(session, &request, std::move(answer));
}

void Shard::SendAnswer(Session& session, Request* request, Answer answer) {
  const bool bulk = !answer.payload().empty();
  std::deque<Answer>& queue = request != nullptr ? session.waiting : session.replies;
  // In order within a request, no DATA before one that waits, and replies in order.
  const bool behind = request == nullptr ? !queue.empty() : request->waiting > 0 || (bulk && !queue.empty());
  const Sent sent = behind ? Sent::kLater : TrySend(session, answer);
  if (sent == Sent::kYes && bulk && request != nullptr) ++request->sends;
  if (sent != Sent::kLater) return;
  if (queue.size() >= size_t{2} * options_.max_keys_in_flight + kMaxKeys) {
    hopeless_.push_back(session.id);
    return;
  }
  if (request != nullptr) {
    ++request->sends;
    ++request->waiting;
  }
  if (!HasWaiting(session)) with_waiting_.push_back(session.id);
  queue.push_back(std::move(answer));
}

bool Shard::HasWaiting(const Session& session) { return !session.waiting.empty() || !session.replies.empty(); }

Shard::Sent Shard::TrySend(Session& session, Answer& answer) {
  const ByteSpan payload = answer.payload();
  const uint64_t bytes = payload.size();
  Status sent = OkStatus();
  if (bytes == 0) {
    sent = session.endpoint->Send(answer.header, answer.meta, {}, nullptr);
  } else {
    if (session.bytes_in_flight > 0 && session.bytes_in_flight + bytes > options_.max_bytes_in_flight) {
      return Sent::kLater;
    }
    // What is sent rides in the completion: it ends when the transport is done with the bytes, whatever came.
    auto held = std::make_shared<Answer>(std::move(answer));
    sent = session.endpoint->Send(held->header, held->meta, payload,
                                  [this, held, session_id = session.id, bytes](Status) {
                                    held->pin.Release();
                                    DataSent(session_id, held->header.req_id, bytes);
                                  });
    if (sent) {
      session.bytes_in_flight += bytes;
      stats_.get_bytes += bytes;
    } else {
      answer = std::move(*held);
    }
  }
  if (sent) return Sent::kYes;
  if (sent.error().code == Code::kResourceExhausted) return Sent::kLater;
  LogDebug("shard.send", {{"shard", number()}, {"error", sent.error().message}});
  return Sent::kGone;  // The endpoint is closed; OnClosed follows.
}

void Shard::DataSent(uint64_t session_id, uint64_t req_id, uint64_t bytes) {
  Session* session = Find(session_id);
  if (session == nullptr) return;
  session->bytes_in_flight -= bytes;
  const auto found = session->requests.find(req_id);
  if (found == session->requests.end()) return;
  --found->second.sends;
  FinishIfDone(*session, req_id);
}

void Shard::RetryWaiting() {
  const auto ids = std::exchange(with_waiting_, {});
  for (const uint64_t id : ids) {
    Session* session = Find(id);
    if (session == nullptr) continue;
    while (!session->replies.empty() && TrySend(*session, session->replies.front()) != Sent::kLater) {
      session->replies.pop_front();
    }
    while (!session->waiting.empty()) {
      Answer& answer = session->waiting.front();
      const uint64_t req_id = answer.header.req_id;
      Request& request = session->requests.at(req_id);
      const bool bulk = !answer.payload().empty();
      const Sent sent = request.cancelled ? Sent::kGone : TrySend(*session, answer);
      if (sent == Sent::kLater) break;  // Still no room: the rest waits on, in order.
      session->waiting.pop_front();
      --request.waiting;
      if (sent == Sent::kYes && bulk) continue;  // Its send ends in DataSent.
      --request.sends;
      FinishIfDone(*session, req_id);
    }
    if (HasWaiting(*session)) with_waiting_.push_back(id);
  }
}

void Shard::SendMiss(Session& session, Request& request, uint32_t index, MissReason reason) {
  FrameHeader header;
  header.op = Op::kData;
  header.req_id = request.header.req_id;
  header.count = request.header.count;
  header.index = index;
  header.status = Code::kNotFound;
  header.reason = reason;
  request.answered |= uint64_t{1} << index;
  --request.unanswered;
  if (request.unanswered == 0) header.flags |= kFlagLast;
  SendAnswer(session, &request, {header, {}, {}, nullptr});
}

void Shard::FinishIfDone(Session& session, uint64_t req_id) {
  const auto found = session.requests.find(req_id);
  if (found == session.requests.end()) return;
  Request& request = found->second;
  if (request.sends > 0 || (request.unanswered > 0 && !request.cancelled)) return;
  if (request.has_deadline) deadlines_.erase(request.deadline);
  if (!request.refused) session.keys_in_flight -= request.header.count;
  const FrameHeader header = request.header;
  const bool cancelled = request.cancelled;
  stats_.get.Add(clock_.Now() - request.began);
  session.requests.erase(found);
  if (cancelled) Reply(session, header, Op::kCancelled, Code::kOk);
}

void Shard::Cancel(Session& session, const FrameHeader& header) {
  const auto found = session.requests.find(header.req_id);
  if (found != session.requests.end()) {
    found->second.cancelled = true;
    return FinishIfDone(session, header.req_id);
  }
  session.durable_owed.erase(header.req_id);
  uint32_t puts = 0;
  for (const auto& [id, put] : puts_) {
    if (put->session_id != session.id || put->header.req_id != header.req_id) continue;
    put->cancelled = true;
    ++puts;
  }
  if (puts == 0) return Reply(session, header, Op::kCancelled, Code::kOk);
  session.cancelled_puts[header.req_id] = puts;  // CANCELLED when the last of them has ended.
}

// ---- put ---------------------------------------------------------------------------------------

void Shard::StartPut(Session& session, const FrameHeader& header, ByteSpan meta, Incoming& payload) {
  const auto refuse = [&](const Error& why) {
    Reply(session, header, Op::kAck, why.code, AsBytes(std::string_view(why.message).substr(0, kMaxMetaBytes)));
  };
  if (const Status parsed = DecodeChainMeta(meta, chain_); !parsed) return refuse(parsed.error());
  if (chain_.keys.size() != 1) return refuse({Code::kInvalidArgument, "PUT: one key a frame"});
  if (payload.size() == 0) return refuse({Code::kInvalidArgument, "PUT: no record"});
  if (draining_) return refuse({Code::kUnavailable, "this node is draining"});
  if (header.quality > session.worst_class) return refuse({Code::kPermissionDenied, "too lossy for this name space"});
  if (puts_.size() >= options_.max_keys_in_flight) return refuse({Code::kResourceExhausted, "too many puts at once"});
  if (session.put_bytes > 0 && session.put_bytes + payload.size() > options_.max_bytes_in_flight) {
    return refuse({Code::kResourceExhausted, "the session has too many bytes of puts in flight"});
  }
  const TierStack::PutInfo info{chain_.keys[0],      chain_.parent,      chain_.anchors[0], chain_.scope,
                                session.name_space,  chain_.first_index, header.quality,    header.reuse_hint};
  Result<Reservation> reservation = stack_->Reserve(info, payload.size());
  if (!reservation) {
    refuse(reservation.error());
    ReplyIfThereAlready(session, header, reservation.error(), info.key);
    return;
  }
  const uint64_t id = next_put_++;
  auto put = std::make_unique<Put>();
  put->session_id = session.id;
  put->header = header;
  put->key = info.key;
  put->scope = chain_.scope;
  put->reservation = std::move(*reservation);
  put->began = clock_.Now();
  const MutableByteSpan room = put->reservation.record();
  session.put_bytes += room.size();
  if (payload.data() != nullptr) {
    // It is readable here: copied and checked in one pass, and what was checked is the copy.
    put->checked = CopyRecordVerified({payload.data(), payload.size()}, room);
    puts_.emplace(id, std::move(put));
    FinishPut(id, OkStatus());
    return;
  }
  Put& waiting = *put;
  puts_.emplace(id, std::move(put));
  // In fragments: each is checked as it is copied, too.
  auto copier = std::make_shared<RecordCopier>(room);
  const bool in_fragments = payload.ReceiveFragments(
      [copier](ByteSpan fragment) { copier->Add(fragment); },
      [this, id, copier, &waiting](Status received) {
        if (received) waiting.checked = copier->Finish();
        FinishPut(id, std::move(received));
      });
  if (in_fragments) return;
  payload.Receive(room, [this, id](Status received) { FinishPut(id, std::move(received)); });
}

void Shard::FinishPut(uint64_t put_id, Status received) {
  const auto found = puts_.find(put_id);
  TIERCEL_CHECK(found != puts_.end());
  const std::unique_ptr<Put> put = std::move(found->second);
  puts_.erase(found);
  Session* session = Find(put->session_id);
  if (session == nullptr) return;  // The reservation gives its room back.
  const uint64_t bytes = put->reservation.record().size();
  session->put_bytes -= bytes;
  const FrameHeader& header = put->header;
  if (put->cancelled) {
    const auto cancelled = session->cancelled_puts.find(header.req_id);
    if (--cancelled->second > 0) return;
    session->cancelled_puts.erase(cancelled);
    return Reply(*session, header, Op::kCancelled, Code::kOk);
  }
  const Status status = received ? PublishPut(*put) : received;
  if (status) stats_.put_bytes += bytes;
  const std::string_view why = status ? std::string_view() : std::string_view(status.error().message);
  Reply(*session, header, Op::kAck, status ? Code::kOk : status.error().code, AsBytes(why.substr(0, kMaxMetaBytes)));
  stats_.put.Add(clock_.Now() - put->began);
  if (!header.has(kFlagWantDurable)) return;
  if (status && put->on_ssd != nullptr) {
    put->on_ssd->acked = true;
    if (put->on_ssd->result) ReplyDurable(session->id, header, *put->on_ssd->result);
  } else if (!status) {
    ReplyIfThereAlready(*session, header, status.error(), put->key);
  }
}

void Shard::ReplyIfThereAlready(Session& session, const FrameHeader& header, const Error& why, const BlockKey& key) {
  if (!header.has(kFlagWantDurable) || why.code != Code::kAlreadyExists) return;
  const bool on_ssd = IsOnSsd(*stack_, session.name_space, key, header.quality);
  Reply(session, header, Op::kDurable, on_ssd ? Code::kOk : Code::kUnavailable);
}

Status Shard::PublishPut(Put& put) {
  const Status good = CheckRecord(put);
  if (!good) {
    ++stats_.puts_bad;
    return good;
  }
  TierStack::DurableDone durable;
  if (put.header.has(kFlagWantDurable)) {
    // It may be told at once, but DURABLE comes after ACK.
    put.on_ssd = std::make_shared<Put::OnSsd>();
    durable = [this, session_id = put.session_id, header = put.header, told = put.on_ssd](Status on_ssd) {
      if (told->acked) return ReplyDurable(session_id, header, on_ssd);
      told->result = std::move(on_ssd);
    };
  }
  const Status published = stack_->Publish(std::move(put.reservation), put.raw_bytes, std::move(durable));
  if (published && put.on_ssd != nullptr) ++Find(put.session_id)->durable_owed[put.header.req_id];
  return published;
}

// The record's bytes and what they say of themselves agree with what the frame says.
Status Shard::CheckRecord(Put& put) const {
  if (put.checked && !*put.checked) return *put.checked;
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(put.reservation.record()));
  if (view.scope != put.scope) {
    return Fail(Code::kInvalidArgument, "PUT: the record is of another scope than the chain");
  }
  if (view.quality != put.header.quality) {
    return Fail(Code::kInvalidArgument, "PUT: the record is of another class than the frame says");
  }
  if (!put.checked) TIERCEL_TRY(VerifyRecord(view));
  TIERCEL_ASSIGN(put.raw_bytes, DecodedBytes(view));
  return OkStatus();
}

void Shard::ReplyDurable(uint64_t session_id, const FrameHeader& header, const Status& on_ssd) {
  Session* session = Find(session_id);
  if (session == nullptr) return;
  const auto owed = session->durable_owed.find(header.req_id);
  if (owed == session->durable_owed.end()) return;  // Cancelled.
  if (--owed->second == 0) session->durable_owed.erase(owed);
  Reply(*session, header, Op::kDurable, on_ssd ? Code::kOk : on_ssd.error().code);
}

// ---- the loop ----------------------------------------------------------------------------------

void Shard::RunTimers() {
  const Nanos now = clock_.Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto [session_id, req_id] = deadlines_.begin()->second;
    Session* session = Find(session_id);
    TIERCEL_CHECK(session != nullptr);
    Request& request = session->requests.at(req_id);
    deadlines_.erase(deadlines_.begin());
    request.has_deadline = false;
    for (uint32_t i = 0; i < request.header.count; ++i) {
      if ((request.answered >> i & 1) != 0) continue;
      SendMiss(*session, request, i, MissReason::kDeadline);
      ++stats_.own_misses[static_cast<size_t>(MissReason::kDeadline)];
    }
    FinishIfDone(*session, req_id);
  }
  while (!hold_expiries_.empty() && hold_expiries_.begin()->first <= now) {
    Session* session = Find(hold_expiries_.begin()->second);
    hold_expiries_.erase(hold_expiries_.begin());
    if (session == nullptr) continue;
    while (!session->holds.empty() && session->holds.front().expires <= now) {
      session->hold_bytes -= session->holds.front().pin.record().size();
      session->holds.pop_front();
    }
  }
  while (!leaving_.empty() && (leaving_.front().first <= now || leaving_.size() > kMaxLeaving)) leaving_.pop_front();
  if (now < next_token_sweep_) return;
  next_token_sweep_ = now + kSecond;
  std::vector<uint64_t> silent;
  for (const auto& [id, session] : sessions_) {
    if (session->endpoint == nullptr && now > session->token_expires) silent.push_back(id);
  }
  for (const uint64_t id : silent) EndSession(id);
}

size_t Shard::RunOnce() {
  size_t happened = 0;
  for (const auto& transport : transports_) happened += transport->Poll();
  happened += inbox_.Drain([this](Message&& message) { message(*this); });
  happened += stack_->Poll();
  if (!with_waiting_.empty() && happened > 0) RetryWaiting();
  RunTimers();
  for (const uint64_t id : std::exchange(hopeless_, {})) {
    if (Find(id) != nullptr) LogWarn("session.takes_nothing", {{"shard", number()}, {"session", id}});
    EndSession(id);
  }
  dead_.clear();
  return happened;
}

Shard::Stats Shard::stats() const {
  Stats stats = stats_;
  stats.tiers = stack_->stats();
  stats.sessions = sessions_.size();
  for (const auto& [id, session] : sessions_) {
    stats.keys_in_flight += session->keys_in_flight;
    stats.bytes_in_flight += session->bytes_in_flight;
    stats.holds += session->holds.size();
    stats.waiting += session->waiting.size() + session->replies.size();
  }
  for (const auto& transport : transports_) {
    stats.transports[static_cast<size_t>(transport->kind())] = transport->counters();
  }
  if (const SsdStore* ssd = stack_->ssd(); ssd != nullptr) {
    stats.has_ssd = true;
    stats.ssd_available = ssd->available();
    stats.ssd_why = ssd->why();
  }
  return stats;
}

}  // namespace tiercel
