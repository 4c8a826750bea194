// Every message of the data plane, on every transport, is one frame:
//
//   header (64 bytes, fixed)  |  meta (at most kMaxMetaBytes)  |  payload (0 .. kMaxPayloadBytes)
//
// The meta says what is asked (a chain and its keys, below); the payload is bulk: one record. They
// travel apart so that a payload can go straight from one registered memory into another.
// Byte tables, life of each operation and worked examples: docs/wire.md.
#ifndef TIERCEL_PROTO_FRAME_H_
#define TIERCEL_PROTO_FRAME_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "proto/block_key.h"
#include "proto/kv_layout.h"
#include "proto/types.h"

namespace tiercel {

inline constexpr uint32_t kFrameMagic = 0x314c4354;  // "TCL1"
inline constexpr uint8_t kWireVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 64;
inline constexpr size_t kMaxMetaBytes = 4096;
inline constexpr uint64_t kMaxPayloadBytes = (uint64_t{16} << 20) + (uint64_t{64} << 10);  // One part.
inline constexpr uint32_t kMaxKeys = 64;  // Of one GET, PUT group or MATCH frame.

enum class Op : uint8_t {
  kHello = 1,     // c->s  meta: 16-byte token. Binds the endpoint to its session.
  kWelcome = 2,   // s->c  The session is bound; status says otherwise.
  kMatch = 3,     // c->s  meta: ChainMeta. Which of these keys are here?
  kMatched = 4,   // s->c  meta: one MatchEntry a key.
  kGet = 5,       // c->s  meta: ChainMeta. Send me these.
  kData = 6,      // s->c  One block (idx), or its miss reason; kFlagLast on the final one of a GET.
  kPut = 7,       // c->s  meta: ChainMeta of one key; payload: its record.
  kAck = 8,       // s->c  The PUT idx is published, or why not.
  kDurable = 9,   // s->c  The PUT idx is on SSD (only where the PUT had kFlagWantDurable).
  kCancel = 10,   // c->s  Stop answering req_id.
  kCancelled = 11,  // s->c  Nothing more will be sent for req_id.
  kRelease = 12,  // Transport-internal: the receiver is done with bytes served in place.
  kBye = 13,      // Either side: the session ends; no frame follows.
  kReject = 14,   // s->c  The frame was not understood; status says why.
};

inline constexpr uint16_t kFlagLast = 1;
inline constexpr uint16_t kFlagWantDurable = 2;
inline constexpr uint16_t kFlagNoTouch = 4;  // A look that must not change what is evicted next.
inline constexpr uint16_t kFlagNoPromote = 8;  // Serve from SSD without keeping a host copy.
inline constexpr uint16_t kFlagPreferSmall = 16;
inline constexpr uint16_t kFlagHold = 32;  // MATCH: hold what is found for the limits' hold time.
inline constexpr uint16_t kFlagPin = 64;  // MATCH: keep it in RAM until the deadline, or, that being 0, no longer.

struct FrameHeader {
  Op op = Op::kReject;
  uint16_t flags = 0;
  uint64_t session_id = 0;
  uint64_t req_id = 0;      // The client's; answers carry it back.
  uint32_t count = 0;       // Keys in this request, or in the request answered.
  uint32_t index = 0;       // Which key this frame is about.
  uint64_t payload_bytes = 0;
  Code status = Code::kOk;  // One byte on the wire.
  MissReason reason = MissReason::kNone;
  QualityClass quality = QualityClass::kExact;      // Of the record in the payload.
  QualityClass min_class = QualityClass::kExact;    // The worst the reader accepts.
  uint32_t deadline_ms = 0;  // From receipt; 0: the server's default.
  ReuseHint reuse_hint = ReuseHint::kUnknown;
  Tier tier = Tier::kNone;   // Where an answer was served from.
  uint64_t generation = 0;   // Of the block served; grows when a key is stored anew.

  bool has(uint16_t flag) const { return (flags & flag) != 0; }
};

// Writes exactly kFrameHeaderBytes, header checksum included.
void EncodeFrameHeader(const FrameHeader& header, std::byte* out);

// Errors: kInvalidArgument: bad magic, bad header checksum, an unknown op or enum value, a payload
// over the limit; kUnimplemented: another wire version. Never reads past kFrameHeaderBytes.
Result<FrameHeader> DecodeFrameHeader(ByteSpan bytes);

// Which consecutive blocks of which chain a request is about. Everything a node needs to place,
// touch and explain: a key alone could not say whose child it is.
struct ChainMeta {
  Scope scope;
  uint32_t first_index = 0;  // Of keys[0] in its chain, counted in blocks.
  BlockKey parent;           // Key of block first_index - 1; zero for the chain's first.
  uint16_t layer_begin = 0;  // GET: only these layers' segments;
  uint16_t layer_end = 0;    // 0, 0 means the whole record.
  std::array<std::byte, 25> traceparent{};  // W3C: trace id 16, parent id 8, flags 1; zero: none.
  std::vector<PlacementKey> anchors;  // Of each run that the keys touch, in order: see RunsTouched.
  std::vector<BlockKey> keys;         // 1..kMaxKeys, consecutive, in chain order.

  // The anchor of the run that keys[i] is in.
  const PlacementKey& anchor_of(size_t i) const {
    return anchors[(first_index + i) / kBlocksPerRun - first_index / kBlocksPerRun];
  }
};

// How many runs of kBlocksPerRun the blocks first_index .. first_index + n_keys - 1 lie in.
constexpr size_t RunsTouched(uint32_t first_index, size_t n_keys) {
  return (first_index + n_keys - 1) / kBlocksPerRun - first_index / kBlocksPerRun + 1;
}

inline constexpr size_t kChainMetaFixedBytes = 96;
std::vector<std::byte> EncodeChainMeta(const ChainMeta& meta);
// As above into a caller's buffer of kMaxMetaBytes; returns the bytes written.
size_t EncodeChainMeta(const ChainMeta& meta, std::byte* out);
// Errors: kInvalidArgument names the field. Reuses meta's storage.
Status DecodeChainMeta(ByteSpan bytes, ChainMeta& meta);

// The answer to one key of a MATCH.
struct MatchEntry {
  Tier tier = Tier::kNone;  // kNone: a miss, for the reason given.
  MissReason reason = MissReason::kNone;
  QualityClass quality = QualityClass::kExact;
  uint32_t record_bytes = 0;
};
inline constexpr size_t kMatchEntryBytes = 8;
void EncodeMatchEntry(const MatchEntry& entry, std::byte* out);
Result<MatchEntry> DecodeMatchEntry(ByteSpan bytes);

}  // namespace tiercel

#endif  // TIERCEL_PROTO_FRAME_H_
