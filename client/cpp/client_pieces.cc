// ClientImpl's values in pieces: one call a piece, gathered by a call that the driver never sees.
#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "client/cpp/client_impl.h"
#include "client/cpp/pieces.h"
#include "kernels/digest.h"

namespace tiercel {

Status ClientImpl::CheckPieces(const Ask& ask) const {
  if (ask.chains.empty() || ask.count == 0) return OkStatus();  // Refused where all are checked.
  const uint32_t said = ask.chains[0].options().pieces;
  for (const Chain& chain : ask.chains) {
    if (chain.options().pieces == said) continue;
    return Fail(Code::kInvalidArgument, "request: chains of different numbers of pieces");
  }
  if (ask.kind == Call::Kind::kMatch) return OkStatus();
  for (uint32_t i = 0; i < ask.count; ++i) {
    const bool get = ask.kind == Call::Kind::kGet;
    const bool whole = get ? ask.slots[i].kind == GetSlot::Kind::kBlock ||
                                 ask.slots[i].kind == GetSlot::Kind::kPages
                           : ask.sources[i].kind != PutSource::Kind::kRecord;
    const uint64_t bytes = get ? ask.slots[i].dst.size() : ask.sources[i].src.size();
    if (!whole) {
      if (said == 1) continue;
      return Fail(Code::kInvalidArgument,
                  fmt::format("block {}: a value in {} pieces has no one record", i, said));
    }
    // A larger destination than the value needs is no reason to ask for more pieces.
    const uint32_t need = PiecesOf(*ask.layout, bytes).count;
    const bool loose = get && said == 1 && ask.layout->opaque();
    if (need == said || loose) continue;
    if (need == 0) {
      return Fail(Code::kInvalidArgument,
                  fmt::format("block {}: one layer has {} bytes, at most {} travel", i,
                              ask.layout->layer_bytes(), kMaxPieceBytes));
    }
    return Fail(Code::kInvalidArgument,
                fmt::format("block {}: its value travels in {} pieces, the chain says {} "
                            "(Chain::Options::pieces)",
                            i, need, said));
  }
  return OkStatus();
}

Result<Ticket> ClientImpl::SubmitPieces(const Ask& ask) {
  RecordSpec whole_spec;
  uint64_t max_record = 0;
  uint64_t charge = 0;
  TIERCEL_TRY(Check(ask, &whole_spec, &max_record, &charge));
  for (const GetSlot& slot : ask.slots) {
    if (slot.layer_begin == ask.slots[0].layer_begin && slot.layer_end == ask.slots[0].layer_end) {
      continue;
    }
    return Fail(Code::kInvalidArgument,
                fmt::format("slots: layers {} to {} beside {} to {}; values in pieces are asked for "
                            "with one range",
                            slot.layer_begin, slot.layer_end, ask.slots[0].layer_begin,
                            ask.slots[0].layer_end));
  }
  const uint32_t pieces = ask.chains[0].options().pieces;
  const KvLayout& layout = ask.layout != nullptr ? *ask.layout : KvLayout::Opaque();
  // What each piece is asked for. A get of some layers leaves out pieces that hold none of them.
  std::vector<std::vector<GetSlot>> slots(pieces);
  std::vector<std::vector<PutSource>> sources(pieces);
  std::vector<uint32_t> wanted;
  for (uint32_t piece = 0; piece < pieces; ++piece) {
    for (const GetSlot& slot : ask.slots) {
      if (const auto part = PieceOf(slot, layout, piece)) slots[piece].push_back(*part);
    }
    for (const PutSource& source : ask.sources) {
      sources[piece].push_back(PieceOf(source, layout, piece));
    }
    if (ask.kind != Call::Kind::kGet || !slots[piece].empty()) wanted.push_back(piece);
  }
  std::vector<uint64_t> tags;
  if (ask.kind == Call::Kind::kPut && layout.opaque()) {
    for (const PutSource& source : ask.sources) tags.push_back(DecodedDigest(source.src));
  }
  Call* whole = nullptr;
  {
    MutexLock lock(mutex_);
    if (shut_) return Fail(Code::kUnavailable, "the client is shut down");
    whole = calls_.Add();
    if (whole == nullptr) {
      return Fail(Code::kResourceExhausted,
                  fmt::format("{} tickets are in flight or not taken", options_.max_tickets));
    }
    whole->kind = ask.kind;
    whole->whole = 0;
    whole->completions.clear();
    whole->waiters = 0;
    whole->announced = false;
    whole->finished = false;
    whole->charged_bytes = 0;
    whole->pieces.clear();
    // One more than the pieces, so that it is not announced while they are being submitted.
    whole->unanswered = whole->unreleased = static_cast<uint32_t>(wanted.size()) + 1;
    whole->gathered = Completion();
    whole->gathered.ticket = whole->id;
  }
  const Ticket ticket = whole->id;
  bool any = false;
  for (const uint32_t piece : wanted) {
    Ask one = ask;
    one.piece = piece;
    one.whole = ticket;
    one.slots = slots[piece];
    one.sources = sources[piece];
    one.tags = tags;
    const Result<Ticket> submitted = SubmitOne(one);
    MutexLock lock(mutex_);
    if (submitted) {
      any = true;
      whole->pieces.push_back(*submitted);
      continue;
    }
    if (!any && piece == wanted.front()) {
      calls_.Remove(whole);
      return tl::unexpected<Error>(submitted.error());
    }
    BlockResult refused;
    const bool busy = submitted.error().code == Code::kResourceExhausted;
    refused.status = ask.kind == Call::Kind::kPut ? submitted.error().code : Code::kNotFound;
    refused.reason = busy ? MissReason::kBusy : MissReason::kUnknown;
    GatherPiece(*whole, std::vector<BlockResult>(ask.count, refused),
                tl::unexpected<Error>(submitted.error()), true);
  }
  MutexLock lock(mutex_);
  --whole->unreleased;
  --whole->unanswered;
  AnnounceWhole(*whole);
  return ticket;
}

void ClientImpl::PieceFinished(Call& piece, Completion completion) {
  Call* whole = calls_.Find(piece.whole);
  TIERCEL_CHECK(whole != nullptr);  // It lives until its last piece is released.
  const bool first = !piece.answered_as_piece;
  piece.answered_as_piece = true;
  if (completion.released) calls_.Remove(&piece);
  if (first) {
    GatherPiece(*whole, completion.blocks, std::move(completion.status), completion.released);
  } else {
    --whole->unreleased;
  }
  AnnounceWhole(*whole);
}

void ClientImpl::GatherPiece(Call& whole, std::span<const BlockResult> blocks, Status status,
                             bool released) {
  Completion& gathered = whole.gathered;
  if (gathered.blocks.empty()) {
    gathered.blocks.assign(blocks.begin(), blocks.end());
  } else {
    for (size_t i = 0; i < blocks.size(); ++i) AddPiece(&gathered.blocks[i], blocks[i]);
  }
  if (!status && gathered.status) gathered.status = std::move(status);
  --whole.unanswered;
  if (released) --whole.unreleased;
}

// When the last piece has answered, and once more where memory was still borrowed then.
void ClientImpl::AnnounceWhole(Call& whole) {
  if (whole.unanswered > 0) return;
  if (whole.finished) {
    if (whole.unreleased > 0) return;
    Completion last;
    last.ticket = whole.id;
    return Announce(whole, std::move(last));
  }
  whole.finished = true;
  Completion& gathered = whole.gathered;
  gathered.prefix = 0;
  for (const BlockResult& block : gathered.blocks) {
    if (block.status != Code::kOk) break;
    ++gathered.prefix;
  }
  gathered.released = whole.unreleased == 0;
  Announce(whole, std::move(gathered));
}

}  // namespace tiercel
