// How a payload crosses a lane that has no direct placement (TCP): cut into pieces, each an active
// message of its own that the receiver copies from UCX's buffer to its place while it is warm. There
// a rendezvous would only add a round trip and a pass over the bytes. Internal to transport/ucx*.
//
//   frame header, meta | piece 0      id kAmId
//   offset (u64 LE)    | piece 1..n   id kAmMoreId, in order
//
// Invariants: pieces are consecutive; at most one payload at a time is on its way on a link.
// Threads: the transport's owner alone.
#ifndef TIERCEL_TRANSPORT_UCX_PIECES_H_
#define TIERCEL_TRANSPORT_UCX_PIECES_H_

#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "transport/transport.h"

namespace tiercel {

// With its headers two of loopback's largest TCP segments (65,483 bytes each): a little more, and each
// piece would end in a segment of a few bytes, which costs a call on either side.
inline constexpr size_t kPieceBytes = size_t{120} << 10;
inline constexpr size_t kPieceHeaderBytes = 8;

constexpr size_t PieceCount(size_t bytes, size_t piece_bytes) {
  return bytes <= piece_bytes ? 1 : (bytes + piece_bytes - 1) / piece_bytes;
}
// Each piece's length: all as long as each other but the last, so that no message has a few bytes.
constexpr size_t PieceStep(size_t bytes, size_t pieces) {
  return pieces == 1 ? bytes : ((bytes + pieces - 1) / pieces + 63) / 64 * 64;
}

// The payload that is arriving on one link, if any.
class ArrivingPieces {
 public:
  bool open() const { return received_ < total_; }
  bool wanted() const { return wanted_; }

  // The first piece, smaller than the payload, is here; Want may follow before the next one.
  void Begin(uint64_t total, uint64_t first) {
    total_ = total;
    received_ = first;
  }
  void Want(PieceFn each, Done done) {
    wanted_ = true;
    each_ = std::move(each);
    done_ = std::move(done);
  }
  // False where it is not the next one.
  bool Add(ByteSpan header, ByteSpan piece) {
    if (!open() || header.size() != kPieceHeaderBytes || piece.empty() ||
        LoadLe<uint64_t>(header.data()) != received_ || piece.size() > total_ - received_) {
      return false;
    }
    if (each_) each_(piece);
    received_ += piece.size();
    return true;
  }
  // Nothing is written after this. The done of a Want, for its one run.
  Done End() {
    total_ = received_ = 0;
    wanted_ = false;
    each_ = nullptr;
    return std::exchange(done_, nullptr);
  }

 private:
  uint64_t total_ = 0, received_ = 0;
  bool wanted_ = false;
  PieceFn each_;
  Done done_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_UCX_PIECES_H_
