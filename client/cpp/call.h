// Call is one ticket's request while it lives, and Wire one frame of it that awaits answers.
// Internal to the client.
//
//   submitter fills Call --> driver: Start, wires out, answers in --> Finish --> taker -->
//   (released) free
//
// Threads: the submitter until it is handed over, then the driver until it is finished; the
// completions belong to ClientImpl's mutex.
#ifndef TIERCEL_CLIENT_CPP_CALL_H_
#define TIERCEL_CLIENT_CPP_CALL_H_

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "client/cpp/client.h"
#include "kernels/record.h"

namespace tiercel {

struct Lane;

struct Call {
  enum class Kind : uint8_t { kMatch, kGet, kPut };

  uint64_t id = 0;  // The ticket.
  Kind kind = Kind::kMatch;
  RequestOptions options;
  Nanos deadline = 0;  // Absolute.
  bool many = false;   // Every block is a chain of its own.
  uint32_t first = 0;  // Index of keys[0] in its chain, unless many.
  BlockKey parent;     // Of keys[0]; zero for a chain's first.
  std::vector<BlockKey> keys;
  std::vector<PlacementKey> anchors;  // Of each run touched; of each block where many.
  // Of a value in pieces: the call that gathers them, which is never the driver's.
  uint64_t whole = 0;
  std::vector<GetSlot> slots;
  std::vector<PutSource> sources;
  std::vector<uint64_t> tags;  // Put of pieces of opaque bytes: a digest of each whole value.
  RecordSpec spec;
  uint64_t max_record_bytes = 0;  // Of the largest block.
  uint64_t charged_bytes = 0;     // Against max_bytes_in_flight.

  // The driver's.
  bool live = false;  // Started and not finished.
  size_t live_index = 0;
  bool finished = false;  // Its completion was given; it waits for its buffers.
  uint32_t left = 0;      // Blocks without a result.
  uint32_t next_put = 0;  // Sources before this one are encoded or have a result.
  uint32_t borrowed = 0;  // Transfers that may touch the caller's memory now.
  std::vector<BlockResult> results;
  std::vector<uint8_t> state;  // A kBlock* below, one a block.
  std::vector<std::unique_ptr<HeldRecord>> held;
  std::vector<uint64_t> wires;

  // Under ClientImpl's mutex.
  std::deque<Completion> completions;
  // Of a call that gathers pieces.
  std::vector<uint64_t> pieces;
  uint32_t unanswered = 0;
  uint32_t unreleased = 0;
  bool answered_as_piece = false;
  Completion gathered;
  uint32_t waiters = 0;
  bool announced = false;  // In the queue that Poll takes from.

  const PlacementKey& anchor(uint32_t i) const {
    return many ? anchors[i] : anchors[(first + i) / kBlocksPerRun - first / kBlocksPerRun];
  }
};

inline constexpr uint8_t kBlockDone = 1;      // Has its result.
inline constexpr uint8_t kBlockPrevious = 2;  // Was asked of the previous view's owner, too.
inline constexpr uint8_t kBlockAcked = 4;     // Put: published; waits to be durable.

struct Wire {
  enum class Kind : uint8_t { kMatch, kGet, kPut, kProbe };
  enum class State : uint8_t { kQueued, kSent, kForsaken };  // Forsaken: only its end is awaited.

  uint64_t id = 0;
  Kind kind = Kind::kMatch;
  State state = State::kQueued;
  Call* op = nullptr;      // Null once the op has finished or never was.
  Call* lender = nullptr;  // Put: whose memory the payload lies in.
  Lane* lane = nullptr;
  uint32_t first = 0;  // Of the op's blocks.
  uint32_t count = 0;
  uint64_t answered = 0;  // A bit a key.
  uint32_t left = 0;
  uint32_t transfers = 0;  // Receives and sends of payload under way.
  bool previous = false;
  bool answered_at_all = false;
  Nanos sent_at = 0;  // When it was sent with nothing else under way; 0: something was.
  Nanos force_at = 0;          // Forsaken: when the endpoint is closed by force.
  uint64_t charged_bytes = 0;  // Against the session's limit.
  uint64_t put_bytes = 0;      // Encoded in put_memory; 0: the caller's own record.
  QualityClass put_quality = QualityClass::kExact;  // What that record says of itself.
  MutableByteSpan put_memory;
  Transport* put_owner = nullptr;        // Whose staging put_memory is; null: ours.
  std::vector<MutableByteSpan> landing;  // Gets: one a key, or none.
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CALL_H_
