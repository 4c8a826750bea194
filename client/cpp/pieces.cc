#include "client/cpp/pieces.h"

#include <algorithm>

namespace tiercel {

Pieces PiecesOf(const KvLayout& layout, uint64_t opaque_bytes) {
  const auto cut = [](uint64_t all, uint64_t each) {
    return Pieces{static_cast<uint32_t>(std::max<uint64_t>(1, (all + each - 1) / each)), each};
  };
  if (layout.opaque()) return cut(opaque_bytes, kMaxPieceBytes);
  const uint64_t layer = layout.layer_bytes();
  if (layout.block_bytes() <= kMaxPieceBytes) return {1, layout.layers};
  if (layer > kMaxPieceBytes) return {0, 0};
  return cut(layout.layers, kMaxPieceBytes / layer);
}

std::optional<GetSlot> PieceOf(const GetSlot& slot, const KvLayout& layout, uint32_t piece) {
  const Pieces pieces = PiecesOf(layout, slot.dst.size());
  GetSlot part = slot;
  const uint64_t begin = pieces.begin(piece);
  if (layout.opaque()) {
    part.dst = slot.dst.subspan(begin, std::min(pieces.each, slot.dst.size() - begin));
    return part;
  }
  const uint64_t wanted_end = slot.layer_end == 0 ? layout.layers : slot.layer_end;
  const uint64_t from = std::max<uint64_t>(begin, slot.layer_begin);
  const uint64_t to = std::min(begin + pieces.each, wanted_end);
  if (from >= to) return std::nullopt;
  part.layer_begin = static_cast<uint16_t>(from);
  part.layer_end = static_cast<uint16_t>(to);
  if (slot.kind == GetSlot::Kind::kBlock) {
    const uint64_t layer = layout.layer_bytes();
    part.dst = slot.dst.subspan((from - slot.layer_begin) * layer, (to - from) * layer);
  }
  return part;
}

PutSource PieceOf(const PutSource& source, const KvLayout& layout, uint32_t piece) {
  const Pieces pieces = PiecesOf(layout, source.src.size());
  PutSource part = source;
  if (source.kind != PutSource::Kind::kBlock) return part;  // Pages: the layers are the request's.
  const uint64_t unit = layout.opaque() ? 1 : layout.layer_bytes();
  const uint64_t begin = pieces.begin(piece) * unit;
  part.src = source.src.subspan(begin, std::min(pieces.each * unit, source.src.size() - begin));
  return part;
}

void AddPiece(BlockResult* whole, const BlockResult& piece) {
  whole->bytes += piece.bytes;
  whole->record_bytes += piece.record_bytes;
  whole->durable = whole->durable && piece.durable;
  whole->tier = std::max(whole->tier, piece.tier);
  whole->quality = std::max(whole->quality, piece.quality);
  if (whole->status != Code::kOk) return;
  whole->status = piece.status;
  whole->reason = piece.reason;
  if (piece.status == Code::kOk && piece.pos0 != whole->pos0) {
    // Of two different values under one key: neither is there.
    whole->status = Code::kNotFound;
    whole->reason = MissReason::kCorrupt;
  }
}

}  // namespace tiercel
