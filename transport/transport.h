// Transport is how frames (proto/frame.h) cross from one thread of one process to one thread of
// another. There are four: UCX active messages, sealed shared memory on the same host, a gRPC stream,
// and an in-process loopback; one conformance suite holds them to what is written here
// (tests/conformance/transport_conformance.h). What the frames mean is none of this room's business.
//
//   server shard                                   client
//   ------------                                   ------
//   Listen, LocalAddress -----(OpenSession)----->  Connect(session, address)
//   Admit(session, peer) <----(OpenSession)------
//   OnFrame(HELLO)       <------------------------ Send(HELLO)
//   Send(DATA, record)   ------------------------> OnFrame(DATA): Receive into my buffer
//
// All data movement is driven by the server: a client names keys and never an address, and no key
// or address of registered memory is ever on a wire.
//
// Invariants
//   Frames of one endpoint, both without payload or both small enough to be carried in line, arrive in
//   the order they were sent; large payloads may be overtaken.
//   Every Send's done runs exactly once, from Poll or Close, never inside Send. Whatever a Send names
//   is not read after its done has run; whatever a Receive names is not written after its done has run.
//   A peer that dies, hangs up or sends nonsense costs its own endpoint and nothing else.
//
// Ownership
//   A Transport owns nothing of its endpoints' users; an Endpoint must die before its Transport. Memory
//   registered with AddMemory stays the caller's and must outlive the Transport or its RemoveMemory.
//
// Threads
//   One owner thread a Transport: it calls everything here, and every callback runs on it, inside Poll
//   or Close. Movers that an implementation needs (gRPC's own threads) are hidden behind its inbox.
//   The exceptions are Admit and Revoke, which any thread may call.
//
// Errors
//   kUnavailable        the peer is gone, or this endpoint is closed.
//   kResourceExhausted  this endpoint's send queue is full: an answer, not a failure.
//   kDeadlineExceeded   a send was older than Options::send_timeout and the endpoint was closed by force.
#ifndef TIERCEL_TRANSPORT_TRANSPORT_H_
#define TIERCEL_TRANSPORT_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"
#include "proto/frame.h"

namespace tiercel {

enum class TransportKind : uint8_t { kLoopback = 1, kMemfd = 2, kUcx = 3, kGrpc = 4 };
std::string_view Name(TransportKind kind);  // "loopback", "memfd", "ucx", "grpc"

using Done = UniqueFunction<void(Status)>;
using FragmentFn = UniqueFunction<void(ByteSpan)>;

// Keeps bytes that the peer serves in place readable while it lives (same host only). Destroying it
// tells the peer; it may outlive the frame but not the Transport.
class InPlaceHold {
 public:
  virtual ~InPlaceHold() = default;
};

// The payload of an arriving frame; lives for the duration of OnFrame only.
class Incoming {
 public:
  virtual ~Incoming() = default;

  uint64_t size() const { return size_; }
  // The bytes, when they are readable here already: a small message, a stream, shared memory. Else
  // null, and only Receive gets at them. Bytes in shared memory may be wrong but never change after
  // the peer published them (an honest server) - so whoever takes them checks them.
  const std::byte* data() const { return data_; }

  // Moves all size() bytes to dst; done runs when they are there or never will be, perhaps before
  // Receive returns. dst must stay until then. At most one of Receive and Hold, once.
  virtual void Receive(MutableByteSpan dst, Done done) = 0;

  // As Receive, where the payload comes in fragments through a buffer of the transport's: each is called
  // with one after the other, the first perhaps before this returns, and puts them where they belong
  // while they are warm. The peer may be able to change a fragment meanwhile: each reads a byte of it once,
  // or checks its own copy. False, and nothing happens, where they do not come so: use Receive.
  virtual bool ReceiveFragments(FragmentFn, Done) { return false; }

  // Same host: keeps data() valid past OnFrame. Null where the transport cannot.
  virtual std::unique_ptr<InPlaceHold> Hold() { return nullptr; }

 protected:
  uint64_t size_ = 0;
  const std::byte* data_ = nullptr;
};

enum class CloseMode : uint8_t {
  kFlush,  // What was sent goes out first.
  kForce,  // Nothing more goes out; late writes into registered memory have ended when it returns.
};

class Endpoint {
 public:
  virtual ~Endpoint() = default;

  virtual TransportKind kind() const = 0;
  // For people: "ucx tcp/lo 127.0.0.1:40123".
  virtual std::string Describe() const = 0;
  virtual uint64_t session_id() const = 0;
  virtual bool closed() const = 0;

  // Queues one frame. header.payload_bytes is set from payload; header.session_id from the endpoint.
  // meta is copied; payload must stay readable and unchanged until done has run.
  // Errors (done then never runs): kResourceExhausted, kUnavailable, kInvalidArgument (meta or payload
  // too large).
  virtual Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) = 0;

  // Bytes queued and not done.
  virtual uint64_t bytes_in_flight() const = 0;

  // Every pending done runs (kUnavailable) before Close(kForce) returns, or where it was called from a
  // callback, before that Poll returns; after Close(kFlush) they run
  // from Poll. OnClosed is not called for a close of ours.
  virtual void Close(CloseMode mode) = 0;

  // The user's own: a transport never touches it.
  void* user = nullptr;
};

// Where frames go. Every call comes from inside Poll.
class FrameSink {
 public:
  virtual ~FrameSink() = default;

  // Server side: a peer that was admitted has said HELLO; the sink owns the endpoint from here, and the
  // HELLO itself comes as this endpoint's first OnFrame.
  virtual void OnAccept(std::unique_ptr<Endpoint> endpoint) = 0;
  // meta and payload are valid for this call only.
  virtual void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) = 0;
  // The peer is gone, or has sent kBye (which never comes as OnFrame). The sink destroys the endpoint, now or later; it is closed already.
  virtual void OnClosed(Endpoint& endpoint, const Error& why) = 0;
};

// Memory that payloads are sent from or received into, told once.
struct MemoryRegion {
  std::byte* base = nullptr;
  uint64_t bytes = 0;
  uint32_t id = 0;           // The owner's, unique within the Transport: a slab's number.
  int memfd = -1;            // Sealed; passed to same-host peers of this name space. -1: none.
  uint32_t name_space = 0;   // Whose bytes these are; peers of other name spaces never get the memfd.
};

class Transport {
 public:
  struct Limits {
    uint64_t max_bytes_in_flight = 256u << 20;  // A endpoint; more answers kResourceExhausted.
    uint32_t max_frames_in_flight = 4096;       // A endpoint.
    uint32_t max_endpoints = 4096;
    Nanos send_timeout = 10 * kSecond;
  };

  virtual ~Transport() = default;

  virtual TransportKind kind() const = 0;
  // What a peer needs to Connect: opaque, only ever passed through an authenticated OpenSession.
  virtual std::string LocalAddress() const = 0;

  // Server: a session may say HELLO from now on. peer_address is the client's LocalAddress (UCX), else
  // empty. name_space limits which memfds it is passed. Frames of sessions never admitted are dropped
  // and counted. Any thread; takes effect before a HELLO that the peer sends after it returns.
  virtual Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) = 0;
  // The session's HELLO is no longer accepted; a live endpoint is not closed by this. Any thread.
  virtual void Revoke(uint64_t session_id) = 0;

  // Client: an endpoint to the server whose LocalAddress this is. Frames may be sent at once.
  virtual Result<std::unique_ptr<Endpoint>> Connect(uint64_t session_id, std::string_view address) = 0;

  virtual Status AddMemory(const MemoryRegion& region) = 0;
  virtual void RemoveMemory(uint32_t region_id) = 0;

  // Client, same host: memory of ours that the server reads puts from without a copy on our side. A
  // payload inside it must stay until its Send's done. Elsewhere: kUnimplemented.
  // Errors: kResourceExhausted: the staging is full.
  virtual Result<MutableByteSpan> AllocateStaging(uint64_t bytes);
  virtual void FreeStaging(MutableByteSpan) {}

  // Moves what can be moved, runs callbacks; returns how many things happened. Never blocks.
  virtual size_t Poll() = 0;
  // To sleep: Arm(), and if it says true, epoll on event_fd() for at most 10 ms, then Poll again.
  virtual int event_fd() const = 0;
  virtual bool Arm() = 0;

  // Frames refused, endpoints lost, bytes and frames each way.
  struct Counters {
    uint64_t frames_sent = 0;
    uint64_t frames_received = 0;
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
    uint64_t rejected_frames = 0;  // Malformed, or of sessions never admitted.
    uint64_t endpoints_lost = 0;
  };
  virtual Counters counters() const = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_TRANSPORT_H_
