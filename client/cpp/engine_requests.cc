// Engine's requests: from blocks to frames, and from answers to results.
#include <algorithm>

#include "base/check.h"
#include "client/cpp/engine.h"
#include "kernels/record.h"

namespace tiercel {
namespace {

// A payload that this transport may keep remote until Receive needs a place reserved for it.
bool NeedsLanding(TransportKind kind) {
  return kind == TransportKind::kUcx || kind == TransportKind::kLoopback;
}

MissReason ReasonOf(Code code) {
  switch (code) {
    case Code::kResourceExhausted:
      return MissReason::kBusy;
    case Code::kDeadlineExceeded:
    case Code::kCancelled:
      return MissReason::kDeadline;
    case Code::kDataLoss:
      return MissReason::kCorrupt;
    case Code::kNotFound:
      return MissReason::kNeverSeen;
    default:
      return MissReason::kUnknown;
  }
}

uint64_t Bit(uint32_t index) { return uint64_t{1} << index; }

}  // namespace

Lane* Engine::Usable(const Router::Target& target) {
  Session* session = FindSession(target);
  if (session == nullptr) return nullptr;
  if (session->breaker().open() || !session->hopeful()) return nullptr;
  if (!session->open()) return &session->lane(target.shard);  // It waits for the greeting.
  Lane* lane = session->FindLane(target.shard);
  return lane != nullptr && lane->welcomed ? lane : nullptr;
}

void Engine::RouteRange(Call& call, uint32_t begin, uint32_t end, bool previous) {
  uint32_t most = kMaxKeys;
  if (call.kind == Call::Kind::kGet) {
    // One frame may claim a quarter of the staging at most, so that several are under way.
    const uint64_t fit = staging_->capacity() / 4 / std::max<uint64_t>(call.max_record_bytes, 1);
    most = static_cast<uint32_t>(std::clamp<uint64_t>(fit, 1, kMaxKeys));
  }
  if (call.many) most = 1;
  const auto target_of = [&](uint32_t i) {
    if (!previous) return router_.Owner(call.anchor(i));
    const auto before = router_.PreviousOwner(call.anchor(i), now_);
    return before ? *before : Router::Target{};
  };
  const auto same = [&](uint32_t i) {
    const bool new_run = call.many || (call.first + i) % kBlocksPerRun == 0;
    if (new_run && !(target_of(i) == target_of(i - 1))) return false;
    if (call.kind != Call::Kind::kGet) return true;
    return call.slots[i].layer_begin == call.slots[i - 1].layer_begin &&
           call.slots[i].layer_end == call.slots[i - 1].layer_end;
  };
  ForEachStretch(begin, end, most, same, [&](uint32_t from, uint32_t to) {
    if (!call.live) return;  // An earlier stretch ended it.
    Lane* lane = Usable(target_of(from));
    if (lane != nullptr) {
      AddWire(call, *lane, from, to - from, previous);
      return;
    }
    for (uint32_t i = from; i < to; ++i) {
      BlockResult result = call.results[i];
      if (!previous) {
        result.status = Code::kNotFound;
        result.reason = MissReason::kBreaker;
      }
      Resolve(call, i, result);
    }
  });
}

void Engine::AddWire(Call& call, Lane& lane, uint32_t first, uint32_t count, bool previous) {
  Wire* wire = wires_.Add();
  if (wire == nullptr) {
    for (uint32_t i = first; i < first + count; ++i) {
      BlockResult result;
      result.status = call.kind == Call::Kind::kPut ? Code::kResourceExhausted : Code::kNotFound;
      result.reason = MissReason::kBusy;
      Resolve(call, i, result);
    }
    return;
  }
  wire->kind = call.kind == Call::Kind::kMatch ? Wire::Kind::kMatch
               : call.kind == Call::Kind::kGet ? Wire::Kind::kGet
                                               : Wire::Kind::kPut;
  wire->state = Wire::State::kQueued;
  wire->op = &call;
  wire->lender = nullptr;
  wire->lane = &lane;
  wire->first = first;
  wire->count = count;
  wire->answered = 0;
  wire->left = count;
  wire->transfers = 0;
  wire->previous = previous;
  wire->answered_at_all = false;
  wire->sent_at = 0;
  wire->charged_bytes = 0;
  wire->put_memory = {};
  wire->put_owner = nullptr;
  wire->put_bytes = 0;
  wire->put_quality = QualityClass::kExact;
  wire->landing.clear();
  call.wires.push_back(wire->id);
  lane.queue.push_back(wire->id);
  ++queued_;
  if (call.kind != Call::Kind::kPut && lane.welcomed) PumpLane(lane);
}

size_t Engine::PumpLane(Lane& lane) {
  size_t sent = 0;
  while (!lane.queue.empty()) {
    Wire* wire = wires_.Find(lane.queue.front());
    if (wire != nullptr && wire->state == Wire::State::kQueued) {
      if (!SendWire(lane, *wire)) break;
      ++sent;
      if (lane.queue.empty()) break;  // The session was lost.
    }
    lane.queue.pop_front();
    --queued_;
  }
  return sent;
}

FrameHeader Engine::HeaderOf(const Wire& wire, Call::Kind kind) const {
  const Call& call = *wire.op;
  FrameHeader header;
  header.op = kind == Call::Kind::kMatch ? Op::kMatch
              : kind == Call::Kind::kGet ? Op::kGet
                                         : Op::kPut;
  if (call.options.no_touch) header.flags |= kFlagNoTouch;
  const Prefer prefer = call.options.prefer.value_or(
      call.options.min_class == QualityClass::kExact || kind != Call::Kind::kGet
          ? Prefer::kGood
          : controller_.ChooseGet(AskOf(call, wire.lane->transport->kind(), call.options.min_class)));
  if (prefer == Prefer::kSmall) header.flags |= kFlagPreferSmall;
  if (kind == Call::Kind::kGet && call.options.no_promote) header.flags |= kFlagNoPromote;
  if (kind == Call::Kind::kMatch && call.options.hold) header.flags |= kFlagHold;
  const bool pins = kind == Call::Kind::kMatch && call.options.pin;
  if (pins) header.flags |= kFlagPin;
  if (kind == Call::Kind::kPut && call.options.want_durable) header.flags |= kFlagWantDurable;
  header.req_id = wire.id;
  header.count = wire.count;
  header.min_class = call.options.min_class;
  header.quality = wire.put_quality;
  header.reuse_hint = call.options.reuse_hint;
  const Nanos left = pins ? std::max<Nanos>(*call.options.pin, 0) : std::max<Nanos>(call.deadline - now_, kMillisecond);
  header.deadline_ms =
      static_cast<uint32_t>(std::min<Nanos>((left + kMillisecond - 1) / kMillisecond, UINT32_MAX));
  return header;
}

// What the controller is to choose for: this op's blocks over that link.
CodecController::Ask Engine::AskOf(const Call& call, TransportKind link, QualityClass worst) const {
  CodecController::Ask ask;
  ask.scope = call.spec.scope;
  ask.dtype = call.spec.layout.dtype;
  ask.worst = worst;
  ask.artifact = options_.artifact != nullptr || call.kind == Call::Kind::kGet;
  ask.link = link;
  ask.raw_bytes = call.max_record_bytes;
  ask.blocks = static_cast<uint32_t>(call.keys.size());
  return ask;
}

void Engine::ObserveLink(const Wire& wire, uint64_t bytes) {
  if (wire.sent_at != 0) controller_.Carried(wire.lane->transport->kind(), bytes, clock_.Now() - wire.sent_at);
}

size_t Engine::MetaOf(const Wire& wire) {
  const Call& call = *wire.op;
  meta_.scope = call.spec.scope;
  meta_.traceparent = call.options.traceparent;
  meta_.layer_begin = 0;
  meta_.layer_end = 0;
  if (wire.kind == Wire::Kind::kGet) {
    meta_.layer_begin = call.slots[wire.first].layer_begin;
    meta_.layer_end = call.slots[wire.first].layer_end;
  }
  meta_.anchors.clear();
  if (call.many) {
    meta_.first_index = 0;
    meta_.parent = BlockKey{};
    meta_.anchors.push_back(call.anchors[wire.first]);
  } else {
    meta_.first_index = call.first + wire.first;
    meta_.parent = wire.first == 0 ? call.parent : call.keys[wire.first - 1];
    const size_t skip = meta_.first_index / kBlocksPerRun - call.first / kBlocksPerRun;
    const size_t runs = RunsTouched(meta_.first_index, wire.count);
    meta_.anchors.assign(call.anchors.begin() + static_cast<ptrdiff_t>(skip),
                         call.anchors.begin() + static_cast<ptrdiff_t>(skip + runs));
  }
  meta_.keys.assign(call.keys.begin() + wire.first, call.keys.begin() + wire.first + wire.count);
  return EncodeChainMeta(meta_, meta_bytes_.data());
}

bool Engine::MakeLanding(Wire& wire) {
  const Call& call = *wire.op;
  if (!wire.landing.empty() || call.slots[wire.first].kind == GetSlot::Kind::kRecord ||
      !NeedsLanding(wire.lane->transport->kind())) {
    return true;
  }
  for (uint32_t i = 0; i < wire.count; ++i) {
    const MutableByteSpan place = staging_->Allocate(call.max_record_bytes);
    if (place.empty()) {
      for (uint32_t j = 0; j < i; ++j) staging_->Free(wire.landing[j]);
      wire.landing.clear();
      return false;
    }
    wire.landing.push_back(place);
  }
  return true;
}

bool Engine::SendWire(Lane& lane, Wire& wire) {
  Session& session = *lane.session;
  Call& call = *wire.op;
  const uint64_t charge =
      wire.kind == Wire::Kind::kGet ? call.max_record_bytes * wire.count : wire.put_bytes;
  if (session.requests_in_flight > 0 &&
      (session.requests_in_flight >= session.offer().max_requests_in_flight ||
       session.bytes_in_flight + charge > session.offer().max_bytes_in_flight)) {
    return false;
  }
  ByteSpan payload;
  Done done;
  if (wire.kind == Wire::Kind::kGet) {
    if (!MakeLanding(wire)) return false;
  } else if (wire.kind == Wire::Kind::kPut) {
    const PutSource& source = call.sources[wire.first];
    payload = source.kind == PutSource::Kind::kRecord
                  ? source.src
                  : ByteSpan(wire.put_memory.first(wire.put_bytes));
    done = [this, id = wire.id](const Status&) {
      if (Wire* found = wires_.Find(id)) TransferEnded(*found);
    };
  }
  const size_t meta_bytes = MetaOf(wire);
  const Status sent = lane.endpoint->Send(
      HeaderOf(wire, call.kind), {meta_bytes_.data(), meta_bytes}, payload, std::move(done));
  if (!sent) {
    if (sent.error().code == Code::kResourceExhausted) return false;
    if (sent.error().code == Code::kInvalidArgument) {
      FailWire(wire, MissReason::kUnknown, Code::kInvalidArgument);
      return true;
    }
    LoseSession(session, sent.error(), true);
    return true;
  }
  wire.state = Wire::State::kSent;
  wire.sent_at = session.requests_in_flight == 0 && wire.count == 1 ? clock_.Now() : 0;
  wire.charged_bytes = charge;
  ++session.requests_in_flight;
  session.bytes_in_flight += charge;
  if (wire.kind == Wire::Kind::kPut) {
    ++wire.transfers;
    if (call.sources[wire.first].kind == PutSource::Kind::kRecord) {
      wire.lender = &call;
      ++call.borrowed;
    }
  }
  return true;
}

void Engine::OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) {
  auto* lane = static_cast<Lane*>(from.user);
  if (lane == nullptr || lane->endpoint.get() != &from) return;
  Session& session = *lane->session;
  if (header.op == Op::kWelcome) {
    if (session.state() != Session::State::kGreeting) return;
    if (header.status != Code::kOk) {
      LoseSession(session, Error{header.status, "node " + session.node_id() + " refused HELLO"},
                  true);
      return;
    }
    lane->welcomed = true;
    for (const ShardOffer& shard : session.offer().shards) {
      const Lane* other = session.FindLane(shard.shard);
      if (other == nullptr || !other->welcomed) return;
    }
    session.Opened();
    session.breaker().Succeeded(now_);
    return;
  }
  Wire* wire = wires_.Find(header.req_id);
  if (wire == nullptr || wire->lane != lane || wire->state == Wire::State::kQueued) {
    if (header.op == Op::kReject && header.req_id == 0) {
      LoseSession(session, Error{header.status, "node " + session.node_id() + " rejected a frame"},
                  true);
    }
    return;  // Late, or nobody's: dropped.
  }
  session.breaker().Succeeded(now_);
  wire->answered_at_all = true;
  switch (header.op) {
    case Op::kMatched:
      OnMatched(*wire, header, meta);
      return;
    case Op::kData:
      OnData(*wire, header, payload);
      return;
    case Op::kAck:
    case Op::kDurable:
      OnAck(*wire, header);
      return;
    case Op::kCancelled:
      FailWire(*wire, MissReason::kDeadline, Code::kCancelled);
      return;
    case Op::kReject:
      FailWire(*wire, ReasonOf(header.status),
               header.status == Code::kOk ? Code::kUnknown : header.status);
      return;
    default:
      return;  // A server's frame that clients do not get.
  }
}

void Engine::OnMatched(Wire& wire, const FrameHeader& header, ByteSpan meta) {
  if (wire.kind == Wire::Kind::kProbe) {
    wire.lane->session->probing = false;
    wire.left = 0;
    EndWire(wire);
    return;
  }
  if (wire.kind != Wire::Kind::kMatch) return;
  Call* call = wire.op;
  if (call == nullptr || header.status != Code::kOk ||
      meta.size() != wire.count * kMatchEntryBytes) {
    const Code code = header.status == Code::kOk ? Code::kDataLoss : header.status;
    FailWire(wire, header.reason != MissReason::kNone ? header.reason : ReasonOf(code), code);
    return;
  }
  const uint64_t id = wire.id;
  for (uint32_t i = 0; i < wire.count; ++i) {
    const Result<MatchEntry> entry =
        DecodeMatchEntry(meta.subspan(i * kMatchEntryBytes, kMatchEntryBytes));
    if (!entry) {
      Missed(wire, i, MissReason::kUnknown);
    } else if (entry->tier == Tier::kNone) {
      Missed(wire, i, entry->reason == MissReason::kNone ? MissReason::kUnknown : entry->reason);
    } else {
      BlockResult result;
      result.tier = entry->tier;
      result.quality = entry->quality;
      result.record_bytes = entry->record_bytes;
      result.bytes = entry->record_bytes;
      Answered(wire, i);
      Resolve(*call, wire.first + i, result);
    }
    if (wires_.Find(id) == nullptr || wire.op == nullptr) break;  // That was its last block.
  }
  if (wires_.Find(id) == nullptr) return;
  wire.left = 0;
  EndWire(wire);
}

void Engine::OnData(Wire& wire, const FrameHeader& header, Incoming& payload) {
  if (wire.kind != Wire::Kind::kGet || header.index >= wire.count ||
      (wire.answered & Bit(header.index)) != 0) {
    return;
  }
  const uint32_t index = header.index;
  if (wire.op == nullptr) {  // Nobody waits: the payload is dropped, the answer counted.
    Answered(wire, index);
    EndWire(wire);
    return;
  }
  Call& call = *wire.op;
  const uint32_t block = wire.first + index;
  if (header.status != Code::kOk || header.reason != MissReason::kNone) {
    Missed(wire, index,
           header.reason != MissReason::kNone ? header.reason : ReasonOf(header.status));
    EndWire(wire);
    return;
  }
  if (header.quality > call.options.min_class) {
    Missed(wire, index, MissReason::kOtherClass);
    EndWire(wire);
    return;
  }
  GetSlot& slot = call.slots[block];
  if (slot.kind == GetSlot::Kind::kInPlace) {
    std::unique_ptr<InPlaceHold> hold = payload.data() != nullptr ? payload.Hold() : nullptr;
    if (hold == nullptr) {
      Missed(wire, index, MissReason::kBusy);
    } else {
      call.held[block] = holds_->Make(std::move(hold), {payload.data(), payload.size()});
      BlockResult result;
      result.tier = header.tier;
      result.quality = header.quality;
      result.bytes = result.record_bytes = payload.size();
      Answered(wire, index);
      Resolve(call, block, result);
    }
    EndWire(wire);
    return;
  }
  if (payload.data() != nullptr) {
    Deliver(wire, index, header.tier, header.quality, {payload.data(), payload.size()});
    return;
  }
  if (payload.size() == 0) {
    Missed(wire, index, MissReason::kCorrupt);
    EndWire(wire);
    return;
  }
  const bool direct = slot.kind == GetSlot::Kind::kRecord;
  MutableByteSpan place;
  if (direct) {
    place = slot.dst;
  } else {
    if (wire.landing.empty()) wire.landing.resize(wire.count);
    if (wire.landing[index].empty()) wire.landing[index] = staging_->Allocate(payload.size());
    place = wire.landing[index];
  }
  if (place.size() < payload.size()) {
    Missed(wire, index, place.empty() ? MissReason::kBusy : MissReason::kUnknown,
           Code::kOutOfRange);
    EndWire(wire);
    return;
  }
  wire.answered |= Bit(index);  // Nothing else counts as this key's answer now.
  ++wire.transfers;
  Call* const lender = direct ? &call : nullptr;
  if (direct) ++call.borrowed;
  const MutableByteSpan where = place.first(payload.size());
  // In pieces, a record that stays as it is is checked as it is copied.
  auto copier = direct ? std::make_shared<RecordCopier>(where) : nullptr;
  const auto ended_with = [this, id = wire.id, where, lender, index, tier = header.tier,
                           quality = header.quality](const Status& got, const Status* checked) {
    Wire* found = wires_.Find(id);
    TIERCEL_CHECK(found != nullptr && found->transfers > 0);
    Wire& ended = *found;
    --ended.transfers;
    ended.answered &= ~Bit(index);
    // The loan ends before the block is resolved, so that a finished call is a released one.
    if (lender != nullptr) GiveBack(*lender);
    if (ended.op != nullptr && got) {
      Deliver(ended, index, tier, quality, where, checked);
      return;
    }
    if (ended.op != nullptr) {
      Missed(ended, index, MissReason::kDeadline);
    } else {
      Answered(ended, index);
      FreeLanding(ended, index);
    }
    EndWire(ended);
  };
  if (copier != nullptr &&
      payload.ReceiveFragments([copier](ByteSpan fragment) { copier->Add(fragment); },
                               [copier, ended_with](const Status& got) {
                                 const Status checked = copier->Finish();
                                 ended_with(got, &checked);
                               })) {
    return;
  }
  payload.Receive(where, [ended_with](const Status& got) { ended_with(got, nullptr); });
}

void Engine::Deliver(Wire& wire, uint32_t index, Tier tier, QualityClass quality, ByteSpan record,
                     const Status* checked) {
  Call& call = *wire.op;
  const uint32_t block = wire.first + index;
  GetSlot& slot = call.slots[block];
  if (tier == Tier::kHost) ObserveLink(wire, record.size());
  CodecId codec = CodecId::kRaw;
  uint64_t artifact_id = 0;
  const Nanos began = clock_.Now();
  BlockResult result;
  result.tier = tier;
  result.quality = quality;
  result.record_bytes = record.size();
  const auto decode = [&]() -> Status {
    if (checked != nullptr && !*checked) return *checked;
    const bool copied = slot.kind == GetSlot::Kind::kRecord && record.data() != slot.dst.data();
    if (copied) {
      if (slot.dst.size() < record.size()) {
        return Fail(Code::kOutOfRange, "the slot is smaller than the record");
      }
      TIERCEL_TRY(CopyRecordVerified(record, slot.dst));
      record = slot.dst.first(record.size());
    }
    TIERCEL_ASSIGN(const RecordView view, ParseRecord(record));
    if (view.scope != call.spec.scope) {
      return Fail(Code::kDataLoss, "the record is of another scope");
    }
    if (view.quality > call.options.min_class) {
      return Fail(Code::kDataLoss, "the record is of a worse class than its answer says");
    }
    codec = view.codec;
    artifact_id = view.artifact_id;
    if (slot.kind == GetSlot::Kind::kRecord) {
      result.bytes = record.size();
      return copied || checked != nullptr ? OkStatus() : VerifyRecord(view);
    }
    if (!view.layout.opaque() && slot.layer_end == 0 &&
        (view.layer_begin != 0 || view.layer_end != view.layout.layers)) {
      return Fail(Code::kDataLoss, "the record holds only some layers");
    }
    result.pos0 = view.pos0;
    TIERCEL_ASSIGN(const uint64_t bytes, DecodedBytes(view, slot.layer_begin, slot.layer_end));
    result.bytes = bytes;
    if (slot.kind == GetSlot::Kind::kBlock) {
      if (slot.dst.size() < bytes)
        return Fail(Code::kOutOfRange, "the slot is smaller than the block");
      return DecodeRecord(view, call.spec.layout, slot.dst.first(bytes), slot.layer_begin,
                          slot.layer_end);
    }
    return DecodeRecordTo(view, call.spec.layout, PagedSink(*slot.paged, slot.pages),
                          slot.layer_begin, slot.layer_end);
  };
  const Status decoded = decode();
  const uint64_t id = wire.id;
  if (decoded) {
    if (slot.kind != GetSlot::Kind::kRecord && slot.layer_end == 0) {
      controller_.Decoded(call.spec.scope, codec, quality, result.bytes, result.record_bytes, clock_.Now() - began);
    }
    Answered(wire, index);
    FreeLanding(wire, index);
    Resolve(call, block, result);
  } else {
    switch (decoded.error().code) {
      case Code::kInvalidArgument:  // Another layout than the caller's.
        Missed(wire, index, MissReason::kOtherScope);
        break;
      case Code::kOutOfRange:
        Missed(wire, index, MissReason::kUnknown, Code::kOutOfRange);
        break;
      case Code::kUnimplemented:  // A codec that this build cannot read.
        Missed(wire, index, MissReason::kOtherClass, Code::kUnimplemented);
        break;
      case Code::kFailedPrecondition:  // An artifact that this process does not have.
        call.results[block].artifact_id = artifact_id;
        Missed(wire, index, MissReason::kOtherClass, Code::kFailedPrecondition);
        break;
      default:
        counters_.corrupt.fetch_add(1, std::memory_order_relaxed);
        Missed(wire, index, MissReason::kCorrupt);
        break;
    }
  }
  if (Wire* still = wires_.Find(id)) EndWire(*still);
}

void Engine::Answered(Wire& wire, uint32_t index) {
  if ((wire.answered & Bit(index)) != 0) return;
  wire.answered |= Bit(index);
  if (wire.left > 0) --wire.left;
}

void Engine::Missed(Wire& wire, uint32_t index, MissReason reason, Code status) {
  Call* call = wire.op;
  Answered(wire, index);
  FreeLanding(wire, index);
  if (call == nullptr) return;
  const uint32_t block = wire.first + index;
  BlockResult result;
  result.status = status;
  result.reason = reason;
  result.artifact_id = call->results[block].artifact_id;
  if (wire.previous) {
    // The owner's own reason stands, unless it only never saw the block and the older one knows
    // more.
    if (reason == MissReason::kNeverSeen || call->results[block].reason != MissReason::kNeverSeen) {
      result = call->results[block];
    }
  } else if (reason != MissReason::kCorrupt && reason != MissReason::kDeadline &&
             router_.PreviousOwner(call->anchor(block), now_)) {
    call->results[block] = result;
    call->state[block] |= kBlockPrevious;  // Asked when this request's answers are all in.
    return;
  }
  Resolve(*call, block, result);
}

void Engine::EndWire(Wire& wire) {
  if (wire.left > 0) return;
  Call* call = wire.op;
  if (wire.kind == Wire::Kind::kPut) {
    if (wire.transfers > 0) return;
    if (call != nullptr) {
      const BlockResult result = call->results[wire.first];
      const uint32_t block = wire.first;
      FreeWire(wire);
      Resolve(*call, block, result);
    } else {
      FreeWire(wire);
    }
    return;
  }
  // Blocks that were missing here may still sit where the previous view had put them.
  const uint32_t begin = wire.first;
  const uint32_t end = wire.first + wire.count;
  const bool previous = wire.previous;
  if (wire.transfers == 0) {
    FreeWire(wire);
  } else if (call != nullptr) {
    return;  // A Receive's own end comes back here.
  }
  if (call == nullptr || previous || !call->live) return;
  for (uint32_t i = begin; i < end && call->live;) {
    const auto open = [&](uint32_t b) {
      return (call->state[b] & kBlockPrevious) != 0 && (call->state[b] & kBlockDone) == 0;
    };
    if (!open(i)) {
      ++i;
      continue;
    }
    uint32_t to = i + 1;
    while (to < end && open(to)) ++to;
    RouteRange(*call, i, to, true);
    i = to;
  }
}

void Engine::FailWire(Wire& wire, MissReason reason, Code code) {
  Call* call = wire.op;
  if (wire.lane != nullptr && wire.lane->session->session_id() == 0) wire.lane = nullptr;
  if (call == nullptr) {
    wire.left = 0;
    if (wire.transfers == 0) FreeWire(wire);
    return;
  }
  wire.op = nullptr;
  const uint32_t first = wire.first;
  const uint32_t count = wire.count;
  const bool put = wire.kind == Wire::Kind::kPut;
  const bool previous = wire.previous;
  wire.left = 0;
  if (wire.transfers == 0) FreeWire(wire);
  for (uint32_t i = 0; i < count && call->live; ++i) {
    const uint32_t block = first + i;
    if ((call->state[block] & kBlockDone) != 0) continue;
    BlockResult result = call->results[block];
    if (put) {
      if ((call->state[block] & kBlockAcked) == 0) {
        result.status = code;
        result.reason = reason;
      }
    } else if (!previous && (call->state[block] & kBlockPrevious) == 0) {
      result.status = Code::kNotFound;
      result.reason = reason;
    }
    const bool last = call->left == 1;
    Resolve(*call, block, result);
    if (last) break;  // The call may be gone.
  }
}

void Engine::FreeLanding(Wire& wire, uint32_t index) {
  if (wire.landing.empty() || wire.landing[index].empty()) return;
  staging_->Free(wire.landing[index]);
  wire.landing[index] = {};
}

void Engine::FreePutMemory(Wire& wire) {
  if (wire.put_memory.empty()) return;
  if (wire.put_owner != nullptr) {
    wire.put_owner->FreeStaging(wire.put_memory);
  } else {
    staging_->Free(wire.put_memory);
  }
  wire.put_memory = {};
}

void Engine::FreeWire(Wire& wire) {
  TIERCEL_CHECK(wire.transfers == 0);
  for (uint32_t i = 0; i < wire.landing.size(); ++i) FreeLanding(wire, i);
  wire.landing.clear();
  FreePutMemory(wire);
  if (wire.lane != nullptr && wire.state != Wire::State::kQueued) {
    Session& session = *wire.lane->session;
    if (session.requests_in_flight > 0) --session.requests_in_flight;
    session.bytes_in_flight -= std::min(session.bytes_in_flight, wire.charged_bytes);
  }
  wire.op = nullptr;
  wire.lane = nullptr;
  wires_.Remove(&wire);
}

void Engine::TransferEnded(Wire& wire) {
  TIERCEL_CHECK(wire.transfers > 0);
  --wire.transfers;
  FreePutMemory(wire);
  Call* const lender = wire.lender;
  wire.lender = nullptr;
  if (lender != nullptr) GiveBack(*lender);
  if (wire.left == 0) EndWire(wire);
}

void Engine::Forsake(Wire& wire) {
  wire.state = Wire::State::kForsaken;
  wire.force_at = now_ + kCancelGrace;
  Soon(wire.force_at);
  Lane* lane = wire.lane;
  if (lane == nullptr || lane->endpoint == nullptr) return;
  FrameHeader cancel;
  cancel.op = Op::kCancel;
  cancel.req_id = wire.id;
  cancel.count = wire.count;
  // A queue too full to take it: force_at will close the endpoint.
  [[maybe_unused]] const Status sent = lane->endpoint->Send(cancel, {}, {}, nullptr);
}

}  // namespace tiercel
