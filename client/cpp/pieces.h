// Pieces: a value over 16 MiB travels and is stored as several records, each under a key of its own
// that differs only in the piece's number. A piece of KV is a range of layers, a piece of opaque
// bytes a range of bytes. They have one run anchor, so they live on one shard. A reader gets the
// whole value or a miss: a group is as good as the worst of its pieces.
//
//   Chain::Options::pieces = PiecesOf(layout).count      once, where the chain is made
//
// Threads: any.
#ifndef TIERCEL_CLIENT_CPP_PIECES_H_
#define TIERCEL_CLIENT_CPP_PIECES_H_

#include <cstdint>
#include <optional>

#include "base/units.h"
#include "client/cpp/client.h"
#include "proto/kv_layout.h"

namespace tiercel {

inline constexpr uint64_t kMaxPieceBytes = 16 * kMiB;  // Raw.

struct Pieces {
  uint32_t count = 1;   // 0: this cannot be cut; a single layer is too large.
  uint64_t each = 0;    // Layers, or bytes where the layout is opaque, of all but the last.
  uint64_t begin(uint32_t piece) const { return piece * each; }
};

// opaque_bytes: the value's size where the layout is opaque; counts only there.
Pieces PiecesOf(const KvLayout& layout, uint64_t opaque_bytes = 0);

// What of a whole value's slot or source is this piece's. Empty: the slot wants no layer of it.
std::optional<GetSlot> PieceOf(const GetSlot& slot, const KvLayout& layout, uint32_t piece);
PutSource PieceOf(const PutSource& source, const KvLayout& layout, uint32_t piece);

// Makes whole the result of a value whose pieces answered: both.
void AddPiece(BlockResult* whole, const BlockResult& piece);

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_PIECES_H_
