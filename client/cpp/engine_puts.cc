// Engine's puts: blocks are encoded as the controller says, in turn, and sent one a frame.
#include <algorithm>

#include "base/check.h"
#include "client/cpp/engine.h"
#include "kernels/paged.h"
#include "kernels/record.h"

namespace tiercel {

Result<Engine::Encoding> Engine::ChooseEncoding(const Call& call, TransportKind link) {
  Encoding encoding;
  encoding.codec = call.options.codec.value_or(options_.codec);
  encoding.options.quality = call.options.put_class;
  encoding.options.artifact = options_.artifact.get();
  encoding.options.exact_tokens = options_.exact_tokens;
  if (encoding.codec == CodecId::kAuto) {
    const CodecController::Choice choice = controller_.ChoosePut(AskOf(call, link, call.options.put_class));
    encoding.codec = choice.codec;
    encoding.options.quality = choice.quality;
  }
  const Codec* codec = FindCodec(encoding.codec);
  if (codec == nullptr) return Fail(Code::kUnimplemented, "no such codec in this build");
  if (codec->quality() > call.options.put_class) {
    return Fail(Code::kInvalidArgument, "the codec is lossier than the put allows");
  }
  return encoding;
}

size_t Engine::PumpPuts() {
  constexpr uint64_t kRawBytesAtATime = 1u << 20;  // Then the transports get their turn again.
  size_t moved = 0;
  uint64_t raw = 0;
  size_t waiting = 0;
  while (!puts_.empty() && waiting < std::min<size_t>(puts_.size(), 8) && raw < kRawBytesAtATime) {
    Call* call = puts_.front();
    if (call->next_put >= call->keys.size()) {
      puts_.pop_front();
      continue;
    }
    if (PutNext(*call) == PutStep::kWait) {
      ++waiting;
      puts_.pop_front();
      puts_.push_back(call);
      continue;
    }
    raw += call->max_record_bytes;
    ++moved;
  }
  return moved;
}

Engine::PutStep Engine::PutNext(Call& call) {
  const uint32_t i = call.next_put;
  const auto refuse = [&](Code code, MissReason reason) {
    ++call.next_put;
    BlockResult result;
    result.status = code;
    result.reason = reason;
    Resolve(call, i, result);
    return PutStep::kMoved;
  };
  Lane* lane = Usable(router_.Owner(call.anchor(i)));
  if (lane == nullptr) return refuse(Code::kUnavailable, MissReason::kBreaker);
  if (!lane->welcomed || !lane->queue.empty()) return PutStep::kWait;

  const PutSource& source = call.sources[i];
  MutableByteSpan memory;
  Transport* owner = nullptr;
  uint64_t bytes = source.src.size();
  QualityClass quality = QualityClass::kExact;
  if (source.kind == PutSource::Kind::kRecord) {
    const Result<RecordSummary> summary = PeekRecord(source.src);
    if (!summary) return refuse(summary.error().code, MissReason::kNone);
    quality = summary->quality;
  } else {
    const Result<Encoding> encoding = ChooseEncoding(call, lane->transport->kind());
    if (!encoding) return refuse(encoding.error().code, MissReason::kNone);
    RecordSpec spec = call.spec;
    spec.options = &encoding->options;
    const uint64_t most = MaxRecordBytes(spec, source.src.size());
    if (most > kMaxPayloadBytes) return refuse(Code::kInvalidArgument, MissReason::kNone);
    if (lane->transport->kind() == TransportKind::kMemfd) {
      if (Result<MutableByteSpan> place = lane->transport->AllocateStaging(most)) {
        memory = *place;
        owner = lane->transport;
      }
    }
    if (memory.empty()) memory = staging_->Allocate(most);
    if (memory.empty()) {
      if (most > staging_->capacity()) return refuse(Code::kResourceExhausted, MissReason::kBusy);
      return PutStep::kWait;
    }
    if (!call.tags.empty()) {
      spec.pos0 = call.tags[i];
    } else if (!call.many) {
      spec.pos0 = uint64_t{call.first + i} * spec.layout.tokens_per_block;
    }
    const Nanos began = clock_.Now();
    const Result<uint64_t> encoded =
        source.kind == PutSource::Kind::kBlock
            ? EncodeRecord(spec, encoding->codec, source.src, memory)
            : EncodeRecordFrom(spec, encoding->codec, PagedSource(*source.paged, source.pages), memory);
    if (!encoded) {
      owner != nullptr ? owner->FreeStaging(memory) : staging_->Free(memory);
      return refuse(encoded.error().code, MissReason::kNone);
    }
    bytes = *encoded;
    if (const auto summary = PeekRecord(memory.first(bytes))) {
      quality = summary->quality;
      controller_.Encoded(spec.scope, summary->codec, quality, RawBytes(spec, source.src.size()), bytes,
                          clock_.Now() - began);
      counters_.puts_by_codec[static_cast<size_t>(summary->codec)].fetch_add(1, std::memory_order_relaxed);
    }
  }
  ++call.next_put;
  const size_t before = call.wires.size();
  AddWire(call, *lane, i, 1, false);
  Wire* wire = call.live && call.wires.size() > before ? wires_.Find(call.wires.back()) : nullptr;
  if (wire == nullptr) {
    if (!memory.empty()) owner != nullptr ? owner->FreeStaging(memory) : staging_->Free(memory);
    return PutStep::kMoved;
  }
  wire->put_memory = memory;
  wire->put_owner = owner;
  wire->put_bytes = bytes;
  wire->put_quality = quality;
  PumpLane(*lane);
  return PutStep::kMoved;
}

void Engine::OnAck(Wire& wire, const FrameHeader& header) {
  if (wire.kind != Wire::Kind::kPut) return;
  Call* call = wire.op;
  if (call == nullptr) {
    wire.left = 0;
    EndWire(wire);
    return;
  }
  const uint32_t block = wire.first;
  BlockResult& result = call->results[block];
  const bool stored = header.status == Code::kOk || header.status == Code::kAlreadyExists;
  if (header.op == Op::kAck) {
    if (header.status == Code::kOk) ObserveLink(wire, wire.put_bytes);
    result.status = stored ? Code::kOk : header.status;
    result.reason = stored ? MissReason::kNone : header.reason;
    result.tier = header.tier;
    result.quality = wire.put_quality;
    result.record_bytes = wire.put_bytes != 0 ? wire.put_bytes : call->sources[block].src.size();
    result.bytes = call->sources[block].kind == PutSource::Kind::kRecord ? result.record_bytes
                   : call->spec.layout.opaque() ? call->sources[block].src.size()
                                                : RawBytes(call->spec);
    if (stored) call->state[block] |= kBlockAcked;
    if (stored && call->options.want_durable) return;  // kDurable follows.
  } else {
    result.durable = stored;
  }
  wire.left = 0;
  EndWire(wire);  // With the send's end, if that is still to come.
}

}  // namespace tiercel
