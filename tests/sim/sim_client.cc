#include "tests/sim/sim_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/record.h"

namespace tiercel {

SimClient::SimClient(uint32_t number, uint32_t space, World& world, Ledger& ledger, SimNetwork& network,
                     const Clock& clock, uint64_t seed)
    : number_(number), space_(space), world_(world), ledger_(ledger), clock_(clock), random_(seed),
      transport_(network.MakeTransport(fmt::format("client-{}", number), *this)) {}

SimClient::~SimClient() {
  endpoint_.reset();
  gone_.clear();
}

void SimClient::Open(uint64_t session, const std::string& address, ByteSpan token) {
  auto endpoint = transport_->Connect(session, address);
  if (!endpoint) return;
  endpoint_ = std::move(*endpoint);
  session_ = session;
  welcomed_ = false;
  FrameHeader hello;
  hello.op = Op::kHello;
  (void)endpoint_->Send(hello, token, {}, nullptr);
}

void SimClient::Forget() {
  asks_.clear();  // Puts among them stay unanswered in the ledger: they may yet arrive.
  session_ = 0;
  welcomed_ = false;
}

void SimClient::OnClosed(Endpoint&, const Error&) {
  if (endpoint_ != nullptr) gone_.push_back(std::move(endpoint_));
  Forget();
}

void SimClient::Leave() {
  if (!open()) return;
  FrameHeader bye;
  bye.op = Op::kBye;
  switch (random_.Below(3)) {
    case 0:
      (void)endpoint_->Send(bye, {}, {}, nullptr);
      endpoint_->Close(CloseMode::kFlush);
      break;
    case 1:
      endpoint_->Close(CloseMode::kForce);
      break;
    default:
      endpoint_.reset();  // As when a process dies.
  }
  if (endpoint_ != nullptr) gone_.push_back(std::move(endpoint_));
  Forget();
}

size_t SimClient::Poll() {
  const size_t happened = transport_->Poll();
  // One that is flushing must live a little longer.
  while (gone_.size() > 4) gone_.erase(gone_.begin());
  return happened;
}

void SimClient::Act() {
  if (!open() || asks_.size() > 40) return;
  const uint64_t dice = random_.Below(100);
  if (dice < 40) {
    SendPut();
  } else if (dice < 80) {
    SendGet();
  } else if (dice < 90) {
    SendMatch();
  } else if (dice < 97) {
    SendCancel();
  } else {
    SendNonsense();
  }
}

uint64_t SimClient::Send(Op op, const Ask& ask, FrameHeader header, ByteSpan meta, ByteSpan payload) {
  header.op = op;
  header.req_id = next_req_++;
  if (!endpoint_->Send(header, meta, payload, nullptr)) return 0;
  asks_[header.req_id] = ask;
  asks_[header.req_id].clears = ledger_.clears();
  return header.req_id;
}

void SimClient::PickBlocks(Ask* ask, uint32_t most) {
  ask->chain = static_cast<uint32_t>(random_.Below(World::kChains));
  ask->n = 1 + static_cast<uint32_t>(random_.Below(most));
  ask->first = static_cast<uint32_t>(random_.Below(World::kLength - ask->n + 1));
}

void SimClient::SendPut() {
  Ask ask;
  ask.op = Op::kPut;
  PickBlocks(&ask, 1);
  ask.lossy = random_.Below(5) == 0;
  ask.want_durable = random_.Below(3) == 0;
  FrameHeader header;
  header.quality = ask.lossy ? World::kLossy : QualityClass::kExact;
  if (ask.want_durable) header.flags |= kFlagWantDurable;
  ChainMeta meta = world_.Meta(space_, ask.chain, ask.first, 1);
  std::vector<std::byte> record = world_.Record({space_, ask.chain, ask.first}, ask.lossy);
  switch (random_.Below(30)) {
    case 0: {
      // Padding may be mended on the way; all else must be noticed.
      std::vector<std::byte> mended(record.size());
      uint64_t bit = 0;
      do {
        record = world_.Record({space_, ask.chain, ask.first}, ask.lossy);
        bit = random_.Below(record.size() * 8);
        record[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      } while (CopyRecordVerified(record, mended));
      ask.wrong = fmt::format("bit {} of {} bytes flipped", bit, record.size());
      break;
    }
    case 1:
      record.resize(record.size() - 1 - random_.Below(record.size() / 2));
      ask.wrong = "cut short";
      break;
    case 2:
      meta.scope = World::ScopeOf(ask.chain + 1);
      ask.wrong = "another scope";
      break;
    case 3:
      header.quality = ask.lossy ? QualityClass::kHigh : QualityClass::kNear;
      ask.wrong = "another class";
      break;
    default:
      break;
  }
  Ledger::Entry& entry = ledger_.at({space_, ask.chain, ask.first}, ask.lossy);
  if (Send(Op::kPut, ask, header, EncodeChainMeta(meta), record) == 0 || !ask.honest()) return;
  if (sabotage == Sabotage::kForgetPut) return;
  entry.may_exist = true;
  ++entry.unanswered;
}

void SimClient::SendGet() {
  Ask ask;
  PickBlocks(&ask, random_.Below(4) == 0 ? World::kLength : 8);
  if (random_.Below(4) == 0) ask.min_class = QualityClass::kSmall;
  ask.foreign = random_.Below(20) == 0;
  ChainMeta meta = world_.Meta(ask.foreign ? (space_ + 1) % World::kSpaces : space_, ask.chain, ask.first, ask.n);
  if (World::HasLayers(ask.chain) && random_.Below(3) == 0) {
    ask.layer_begin = static_cast<uint16_t>(random_.Below(World::kLayers));
    ask.layer_end = static_cast<uint16_t>(ask.layer_begin + 1 + random_.Below(World::kLayers - ask.layer_begin));
  }
  meta.layer_begin = ask.layer_begin;
  meta.layer_end = ask.layer_end;
  FrameHeader header;
  header.count = ask.n;
  header.min_class = ask.min_class;
  if (random_.Below(2) == 0) header.deadline_ms = 1 + static_cast<uint32_t>(random_.Below(40));
  if (random_.Below(4) == 0) header.flags |= kFlagNoTouch;
  if (random_.Below(4) == 0) header.flags |= kFlagNoPromote;
  if (random_.Below(4) == 0) header.flags |= kFlagPreferSmall;
  Send(Op::kGet, ask, header, EncodeChainMeta(meta), {});
}

void SimClient::SendMatch() {
  Ask ask;
  ask.op = Op::kMatch;
  PickBlocks(&ask, World::kLength);
  FrameHeader header;
  header.count = ask.n;
  ask.min_class = header.min_class = QualityClass::kSmall;
  if (random_.Below(3) == 0) header.flags |= kFlagHold;
  if (random_.Below(5) == 0) {
    header.flags |= kFlagPin;
    header.deadline_ms = static_cast<uint32_t>(random_.Below(3000));
  }
  Send(Op::kMatch, ask, header, EncodeChainMeta(world_.Meta(space_, ask.chain, ask.first, ask.n)), {});
}

void SimClient::SendCancel() {
  if (asks_.empty()) return;
  auto at = asks_.begin();
  std::advance(at, static_cast<std::ptrdiff_t>(random_.Below(asks_.size())));
  if (at->second.cancelling || at->second.op == Op::kMatch || at->second.op == Op::kReject) return;
  FrameHeader header;
  header.op = Op::kCancel;
  header.req_id = at->first;
  if (endpoint_->Send(header, {}, {}, nullptr)) at->second.cancelling = true;
}

void SimClient::SendNonsense() {
  Ask ask;
  ask.op = Op::kReject;  // What is expected.
  std::vector<std::byte> meta(random_.Below(300));
  for (std::byte& b : meta) b = static_cast<std::byte>(random_.Next());
  const Op ops[] = {Op::kMatch, Op::kGet, Op::kData, Op::kAck, Op::kWelcome};
  Send(ops[random_.Below(5)], ask, FrameHeader(), meta, {});
}

// ---- answers -----------------------------------------------------------------------------------

// It was put, and a clear since then was not yet when this was asked.
bool SimClient::MayServe(const Ask& ask, const BlockId& id, bool lossy) {
  const Ledger::Entry& entry = ledger_.at(id, lossy);
  return entry.may_exist || entry.cleared_by > ask.clears;
}

void SimClient::Violated(const FrameHeader& header, const std::string& what) {
  ledger_.Violated(fmt::format("client {}: op {} req {} index {}: {}", number_, static_cast<int>(header.op),
                               header.req_id, header.index, what));
}

void SimClient::OnFrame(Endpoint&, const FrameHeader& header, ByteSpan meta, Incoming& payload) {
  std::vector<std::byte> bytes(payload.size());
  bool received = payload.size() == 0;
  if (!received) payload.Receive(bytes, [&received](const Status& status) { received = status.has_value(); });
  digest_ = Mix64(digest_ ^ static_cast<uint64_t>(clock_.Now()) ^ header.req_id << 32 ^ header.index << 16 ^
                  static_cast<uint64_t>(header.op) << 8 ^ static_cast<uint64_t>(header.reason) ^ bytes.size() << 40);
  if (!received) return Violated(header, "the payload did not come");
  if (header.op == Op::kWelcome) {
    welcomed_ = true;
    return;
  }
  const auto at = asks_.find(header.req_id);
  if (header.op == Op::kReject && header.req_id == 0) return;
  if (at == asks_.end()) return Violated(header, "an answer to nothing that was asked, or after its end");
  switch (header.op) {
    case Op::kData:
      if (sabotage == Sabotage::kDropAnswer && counts_.hits > 20) return;
      if (sabotage == Sabotage::kFlipBit && !bytes.empty()) bytes[bytes.size() / 2] ^= std::byte{1};
      if (sabotage == Sabotage::kRepeatAnswer && header.count > 1) OnData(at, header, bytes);
      if (asks_.contains(header.req_id)) OnData(at, header, bytes);
      return;
    case Op::kMatched:
      return OnMatched(at, meta);
    case Op::kAck:
      return OnAck(at, header);
    case Op::kDurable:
      return OnDurable(at, header);
    case Op::kCancelled:
      if (!at->second.cancelling) Violated(header, "CANCELLED without CANCEL");
      ++counts_.cancelled;
      asks_.erase(at);
      return;
    case Op::kReject:
      if (at->second.op != Op::kReject) Violated(header, "a good request was rejected: " + std::string(AsText(meta)));
      asks_.erase(at);
      return;
    default:
      return Violated(header, "a frame that is not for clients");
  }
}

void SimClient::OnData(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header, ByteSpan payload) {
  Ask& ask = at->second;
  if (ask.op != Op::kGet || header.index >= ask.n) return Violated(header, "DATA that was not asked for");
  const uint64_t bit = uint64_t{1} << header.index;
  if ((ask.answered & bit) != 0) return Violated(header, "a key answered twice");
  if (ask.last) return Violated(header, "an answer after the last");
  ask.answered |= bit;
  ask.last = header.has(kFlagLast);
  const bool complete = std::popcount(ask.answered) == static_cast<int>(ask.n);
  if (ask.last != complete) Violated(header, ask.last ? "LAST came too early" : "the last answer does not say so");
  const BlockId id{space_, ask.chain, ask.first + header.index};
  if (header.status != Code::kOk) {
    ++counts_.misses;
    if (header.reason == MissReason::kNone || header.reason == MissReason::kUnknown) {
      Violated(header, "a miss without a reason");
    }
    if (!payload.empty()) Violated(header, "a miss with bytes");
  } else {
    ++counts_.hits;
    if (ask.foreign) Violated(header, "ANOTHER NAME SPACE'S BYTES");
    if (header.quality > ask.min_class) Violated(header, "a worse class than was accepted");
    const Status right = world_.Check(id, header.quality, payload, ask.layer_begin, ask.layer_end);
    if (!right) Violated(header, "WRONG BYTES: " + right.error().message);
    if (!MayServe(ask, id, header.quality != QualityClass::kExact)) {
      Violated(header, "a block that was never put, or was cleared");
    }
  }
  // Where a CANCEL is out, its CANCELLED is still to come.
  if (complete && !ask.cancelling) asks_.erase(at);
}

void SimClient::OnMatched(std::map<uint64_t, Ask>::iterator at, ByteSpan meta) {
  const Ask& ask = at->second;
  FrameHeader header;
  header.op = Op::kMatched;
  header.req_id = at->first;
  if (ask.op != Op::kMatch || meta.size() != ask.n * kMatchEntryBytes) return Violated(header, "not what was asked");
  for (uint32_t i = 0; i < ask.n; ++i) {
    const auto entry = DecodeMatchEntry(meta.subspan(i * kMatchEntryBytes, kMatchEntryBytes));
    if (!entry) return Violated(header, entry.error().message);
    header.index = i;
    if (entry->tier == Tier::kNone) {
      if (entry->reason == MissReason::kNone || entry->reason == MissReason::kUnknown) Violated(header, "no reason");
      continue;
    }
    ++counts_.matched;
    const BlockId id{space_, ask.chain, ask.first + i};
    const bool lossy = entry->quality != QualityClass::kExact;
    if (!MayServe(ask, id, lossy)) Violated(header, "a match of what was never put, or was cleared");
    if (entry->record_bytes != world_.Record(id, lossy).size()) Violated(header, "a match of another size");
  }
  asks_.erase(at);
}

void SimClient::OnAck(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header) {
  Ask& ask = at->second;
  if (ask.op != Op::kPut || ask.acked) return Violated(header, "an ACK too many");
  ask.acked = true;
  Ledger::Entry& entry = ledger_.at({space_, ask.chain, ask.first}, ask.lossy);
  if (ask.honest() && entry.unanswered > 0) --entry.unanswered;
  if (header.status == Code::kOk) ++counts_.puts;
  if (header.status == Code::kOk && !ask.honest()) Violated(header, "a broken record was acknowledged: " + ask.wrong);
  const bool stored = header.status == Code::kOk || header.status == Code::kAlreadyExists;
  if (!stored) ++counts_.refused;
  const bool allowed = stored || !ask.honest() || header.status == Code::kResourceExhausted ||
                       header.status == Code::kUnavailable;
  if (!allowed) Violated(header, "a good record was refused with " + CodeName(header.status));
  if ((!stored || !ask.want_durable) && !ask.cancelling) asks_.erase(at);
}

void SimClient::OnDurable(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header) {
  const Ask& ask = at->second;
  if (ask.op != Op::kPut || !ask.want_durable) return Violated(header, "DURABLE that was not asked for");
  if (!ask.acked) return Violated(header, "DURABLE before ACK");
  // Where it was there already, in what class and since when another knows.
  if (header.status == Code::kOk) {
    ++counts_.durable;
    Ledger::Entry& entry = ledger_.at({space_, ask.chain, ask.first}, ask.lossy);
    if (ask.honest() && !ask.lossy && entry.cleared_by <= ask.clears) entry.durable = true;
  }
  if (!ask.cancelling) asks_.erase(at);
}

std::string SimClient::Unsettled() const {
  std::string text;
  for (const auto& [req, ask] : asks_) {
    text += fmt::format(" client {} req {} op {} n {} answered {:x} acked {} cancelling {}", number_, req,
                        static_cast<int>(ask.op), ask.n, ask.answered, ask.acked, ask.cancelling);
  }
  return text;
}

}  // namespace tiercel
