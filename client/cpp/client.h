// Client is what an engine links: it matches a prefix, fetches blocks and stores blocks, on
// whichever nodes the view places them, over whichever transport each node allows.
//
//   Chain chain(...); chain.Append(hash)...
//   Match(chain)            -> how many leading blocks are here
//   Get(chain, slots)       -> each slot filled and verified, or a miss with its reason
//   Put(chain, sources)     -> fire and forget; each block OK, or why not
//
// A block is stored in the class that its put names, by the codec that the controller finds cheapest
// (codec_controller.h), and read only in a class that its get accepts.
//
//   Submit* --> Ticket --> Poll() or event_fd() --> Completion --> (Released) buffers are yours
//   again
//
// A miss is a result, never an error, and has exactly one reason. A dead, slow or lying node costs
// misses, and never more time than the deadline plus 5 ms: after consecutive failures its breaker
// opens and its blocks miss at once (under 50 us), with one probe every 250 ms.
//
// Invariants
//   Bytes reach a slot only after their checksums held; a slot that missed is left as it was, or
//   holds bytes that the caller must not use. Between submit and release a slot or source is the
//   library's. Sum over reasons of Stats().misses == blocks asked for and not served.
//
// Ownership
//   Slots and sources are the caller's memory and must stay until their ticket is released;
//   register long-lived ones once with RegisterMemory. A Client outlives its tickets' buffers:
//   destroying it cancels and waits for what is in flight, at most 1 s.
//
// Threads
//   Every method from any thread. One progress thread a client by default; with progress_thread
//   off, whoever calls Poll (or a blocking call) drives. No code of the caller's runs on our
//   threads.
//
// Errors
//   kInvalidArgument    a malformed request; named.
//   kResourceExhausted  the submission queue, or the bytes in flight, are full: try later. A put
//   that
//                       is refused is a put that did not block the engine.
//   kUnavailable        the client is shut down; or Connect found no node at all.
#ifndef TIERCEL_CLIENT_CPP_CLIENT_H_
#define TIERCEL_CLIENT_CPP_CLIENT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "client/cpp/chain.h"
#include "client/cpp/codec_controller.h"
#include "kernels/codec.h"
#include "kernels/paged.h"
#include "proto/frame.h"
#include "proto/kv_layout.h"
#include "proto/types.h"
#include "proto/view.h"
#include "transport/transport.h"

namespace tiercel {

using Ticket = uint64_t;  // Never 0; never reused.

struct RequestOptions {
  Nanos deadline = 2 * kSecond;                   // From submit.
  QualityClass min_class = QualityClass::kExact;  // The worst acceptable.
  // Where an exact and a lossy record are good enough; empty: the one that is predicted to be here first.
  std::optional<Prefer> prefer;
  // Put: the class to store, exact or worse, and the codec; empty: Client::Options::codec. A block that is
  // here in this class or a better one stays as it is.
  QualityClass put_class = QualityClass::kExact;
  std::optional<CodecId> codec;
  ReuseHint reuse_hint = ReuseHint::kUnknown;
  bool no_touch = false;      // Look without making the block younger.
  bool no_promote = false;    // Get: leave what is on SSD there.
  // Match: keep what was found for the server's limits.hold, so that the get that follows finds it.
  // A hold that ran out costs a miss.
  bool hold = false;
  // Match: keep in RAM what was found, for so long (at most the node's limits.pin) and whatever becomes of
  // this client; zero: no longer. What is beyond the name space's pin_limit is a miss, kBusy.
  std::optional<Nanos> pin;
  bool want_durable = false;  // Put: complete only when the block is on SSD (or never will be).
  std::array<std::byte, 25> traceparent{};
};

// Where one fetched block goes.
struct GetSlot {
  enum class Kind : uint8_t {
    kBlock,    // Decode into dst: the layout's block_bytes, or the opaque value's size.
    kRecord,   // The encoded record itself, verified, received straight into dst.
    kPages,    // Decode and scatter into the engine's pages.
    kInPlace,  // Same host: hold the record where it lies (Completion::held); else as a miss of
               // kBusy.
  };
  Kind kind = Kind::kBlock;
  MutableByteSpan dst;              // kBlock, kRecord: must be large enough.
  const PagedKv* paged = nullptr;   // kPages: must stay until released.
  std::span<const uint32_t> pages;  // kPages: page numbers of this block, in token order.
  uint16_t layer_begin = 0;         // Only these layers; 0, 0: all.
  uint16_t layer_end = 0;
};

// Where one block to be stored lies; encoded by the client.
struct PutSource {
  enum class Kind : uint8_t { kBlock, kRecord, kPages };
  Kind kind = Kind::kBlock;
  ByteSpan src;  // kBlock: raw bytes; kRecord: a KVB1 record.
  const PagedKv* paged = nullptr;
  std::span<const uint32_t> pages;
};

struct BlockResult {
  Code status = Code::kOk;  // kOk: served or stored. kNotFound: a miss. Else: why the put failed.
  MissReason reason = MissReason::kNone;
  Tier tier = Tier::kNone;
  QualityClass quality = QualityClass::kExact;
  uint64_t bytes = 0;         // Decoded bytes written (kBlock, kPages); else record bytes.
  uint64_t record_bytes = 0;  // As it travelled.
  // Get: where the block's first token stands; of opaque bytes in pieces, a digest of the whole.
  uint64_t pos0 = 0;
  bool durable = false;  // Put with want_durable: it is on SSD.
  // Get with status kFailedPrecondition: the record needs this artifact (UseArtifact), then ask again.
  uint64_t artifact_id = 0;
};

// A record readable where the server keeps it; end it soon, it is memory that cannot be evicted.
// Its bytes are not checked yet: DecodeRecord or VerifyRecord before use. Empty once the client or
// its session is gone.
class HeldRecord {
 public:
  virtual ~HeldRecord() = default;
  virtual ByteSpan record() const = 0;
};

struct Completion {
  Completion() = default;
  Completion(Completion&&) noexcept = default;
  Completion& operator=(Completion&&) noexcept = default;

  Ticket ticket = 0;
  Status status;                    // An error of the request as a whole; misses are in blocks.
  std::vector<BlockResult> blocks;  // One a key asked for, in order.
  uint32_t prefix = 0;              // Leading blocks that were found (match) or served (get).
  std::vector<std::unique_ptr<HeldRecord>> held;  // kInPlace: one a block, null where missed.
  bool released = true;  // False: a second completion with released follows.
};

class Client {
 public:
  struct Options {
    // One of these. A view file is re-read when it changes; WatchView of any endpoint replaces
    // both.
    std::vector<std::string>
        endpoints;  // "host:port" or "unix:/path"; every node's view is asked for.
    std::string view_file;
    std::string name_space = "default";
    std::string client_name;                // For the server's logs; default: program and pid.
    std::vector<TransportKind> transports;  // In order of preference; empty: memfd, UCX, gRPC.
    std::string ucx_tls = "tcp";
    std::string ucx_devices;  // Empty: UCX is not offered.
    bool progress_thread = true;
    uint32_t max_tickets = 4096;  // In flight; more answers kResourceExhausted.
    uint64_t max_bytes_in_flight = 512u << 20;
    uint64_t staging_bytes = 128u << 20;  // Where records are encoded, received and checked.
    // kAuto: the controller picks, block by block. Another that cannot make a put's class is refused there.
    CodecId codec = CodecId::kAuto;
    std::shared_ptr<const Artifact> artifact;  // Of the model whose blocks are put; may be null.
    uint32_t exact_tokens = 4;  // Of a chain's first, which lossy codecs leave as they are.
    CodecController::Options controller;
    std::string tls_ca_file, tls_cert_file, tls_key_file;  // Empty: plain text.
    const Clock* clock = nullptr;                          // Default: the machine's.
  };

  static Result<std::unique_ptr<Client>> Connect(const Options& options);
  virtual ~Client() = default;

  virtual Result<Ticket> SubmitMatch(const Chain& chain, const RequestOptions& options) = 0;
  // Blocks first .. first + slots.size() - 1 of the chain. All slots of one call have one kind.
  // Blocks over 16 MiB need a chain made for them (Chain::Options::pieces) and slots of kind kBlock
  // or kPages; opaque ones a dst of exactly their size. In stats() each piece counts as a block.
  virtual Result<Ticket> SubmitGet(const Chain& chain, uint32_t first,
                                   std::span<const GetSlot> slots, const KvLayout& layout,
                                   const RequestOptions& options) = 0;
  virtual Result<Ticket> SubmitPut(const Chain& chain, uint32_t first,
                                   std::span<const PutSource> sources, const KvLayout& layout,
                                   const RequestOptions& options) = 0;
  // Unrelated blocks in one ticket: chains[i] has one block each and slots[i] or sources[i] is its.
  // All have one scope.
  virtual Result<Ticket> SubmitGetMany(std::span<const Chain> chains,
                                       std::span<const GetSlot> slots, const KvLayout& layout,
                                       const RequestOptions& options) = 0;
  virtual Result<Ticket> SubmitPutMany(std::span<const Chain> chains,
                                       std::span<const PutSource> sources, const KvLayout& layout,
                                       const RequestOptions& options) = 0;
  virtual void Cancel(Ticket ticket) = 0;

  // Takes up to max completions; without a progress thread it also drives. Never blocks.
  virtual std::vector<Completion> Poll(size_t max = 64) = 0;
  // Readable while there are completions to take. With no progress thread: also when Poll has work.
  virtual int event_fd() const = 0;
  // Blocks until this ticket's completion (at most its deadline plus 5 ms) and takes it. Where that
  // was not released, Wait again for the release. A ticket that is not alive: kInvalidArgument at
  // once.
  virtual Completion Wait(Ticket ticket) = 0;

  // Submit and Wait in one, driven by the calling thread: no hop to another thread and back.
  virtual Completion Match(const Chain& chain, const RequestOptions& options = {}) = 0;
  virtual Completion Get(const Chain& chain, uint32_t first, std::span<const GetSlot> slots,
                         const KvLayout& layout, const RequestOptions& options = {}) = 0;
  virtual Completion Put(const Chain& chain, uint32_t first, std::span<const PutSource> sources,
                         const KvLayout& layout, const RequestOptions& options = {}) = 0;

  virtual Status RegisterMemory(MutableByteSpan memory) = 0;
  virtual void UnregisterMemory(MutableByteSpan memory) = 0;

  // Replaces the view. Blocks are then looked for where the new view puts them and, for grace after
  // a miss, where the old one did.
  virtual Status SetView(View view) = 0;
  virtual View view() const = 0;

  // What each codec would cost a block put now, cheapest first: what the controller goes by.
  virtual std::vector<CodecController::Candidate> ExplainCodecs(const CodecController::Ask& ask) const = 0;

  struct NodeStatus {
    std::string node_id;
    std::string endpoint;
    bool connected = false;
    bool breaker_open = false;
    std::vector<std::string> transports;  // One a shard: "ucx tcp/lo ...: because ...".
    std::string last_error;
  };
  virtual std::vector<NodeStatus> Nodes() const = 0;

  struct Stats {
    uint64_t blocks_asked = 0;  // By gets; served and missed are of these. Matches are not counted.
    uint64_t blocks_served = 0;
    std::array<uint64_t, kMissReasons> misses{};
    uint64_t puts = 0, puts_stored = 0, puts_refused = 0;
    uint64_t raw_bytes_put = 0, record_bytes_put = 0;
    uint64_t raw_bytes_got = 0, record_bytes_got = 0;
    uint64_t corrupt = 0;        // Records that failed their checksum here.
    uint64_t late_releases = 0;  // Tickets answered before their buffers were free.
    std::array<uint64_t, kCodecs> puts_by_codec{};  // Blocks encoded, by CodecId.
  };
  virtual Stats stats() const = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CLIENT_H_
