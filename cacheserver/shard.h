// Shard is one owner thread's world: a tier stack, the transports that reach it, the sessions bound to
// it. It takes every decision about its blocks in a plain loop and never waits for anything.
//
//   Expect(grant) ... HELLO --> bound        MATCH --> MATCHED        GET --> pin, DATA ... unpin
//   PUT --> reserve, receive, verify, publish --> ACK [--> DURABLE]    CANCEL --> CANCELLED
//
// A shard is a function of its clock, its transports' frames and its store's completions: the simulator
// (tests/sim) drives RunOnce with virtual ones and runs this very code.
//
// Invariants
//   Nothing of a session outlives it: pins, holds, reservations and half-done puts end with it.
//   Every key of a GET is answered exactly once, with bytes or with a reason, and what is marked last is.
//   A record is published only after its header and every segment's checksum held.
//   After CANCELLED nothing of that request is sent, and no put of it is published.
//   What a session has asked for and not taken is bounded; one that takes nothing is ended.
//
// Ownership: owns stack, transports and endpoints.
// Threads: Post, Stop and number from any thread; everything else from the owner's.
#ifndef TIERCEL_CACHESERVER_SHARD_H_
#define TIERCEL_CACHESERVER_SHARD_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/inbox.h"
#include "base/unique_function.h"
#include "cacheserver/latency.h"
#include "proto/frame.h"
#include "tiering/tier_stack.h"
#include "transport/transport.h"

namespace tiercel {

class Shard final : public FrameSink {
 public:
  struct Options {
    uint32_t number = 0;
    uint32_t max_sessions = 4096;
    uint32_t max_keys_in_flight = 2048;  // A session; more is answered busy.
    uint64_t max_bytes_in_flight = 256u << 20;
    uint64_t max_hold_bytes = 256u << 20;
    Nanos hold_time = 2 * kSecond;
    Nanos max_pin = 3600 * kSecond;
    Nanos default_deadline = 2 * kSecond;
    Nanos max_deadline = 60 * kSecond;
    Nanos token_life = 30 * kSecond;
    Nanos spin = 50 * kMicrosecond;
    size_t inbox = 4096;
  };
  using Message = UniqueFunction<void(Shard&)>;
  using Token = std::array<std::byte, 16>;

  struct Grant {
    uint64_t session_id = 0;
    Token token{};
    uint32_t name_space = 0;
    QualityClass worst_class = QualityClass::kSmall;  // That its puts may have.
  };

  struct Stats {
    TierStack::Stats tiers;
    uint64_t sessions = 0;
    uint64_t keys_in_flight = 0;
    uint64_t bytes_in_flight = 0;
    uint64_t holds = 0;
    uint64_t waiting = 0;   // Answers that endpoints had no room for yet.
    // Misses that the shard said itself, whatever the tiers had: limits and deadlines.
    std::array<uint64_t, kMissReasons> own_misses{};
    uint64_t rejected = 0;  // Frames answered with REJECT, or endpoints closed for what they sent.
    uint64_t puts_bad = 0;  // Records that did not verify on arrival.
    uint64_t get_bytes = 0;
    uint64_t put_bytes = 0;
    LatencyHistogram get, put, match;
    std::array<Transport::Counters, 5> transports{};  // By kind.
    bool ssd_available = false;
    bool has_ssd = false;
    std::string ssd_why;
  };

  Shard(const Options& options, const Clock& clock, std::unique_ptr<TierStack> stack);
  ~Shard() override;
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  // Before the loop runs: all transports, whose sink is this shard, then ServeMemory once. From then on
  // every slab is registered with each of them as it comes.
  void AddTransport(std::unique_ptr<Transport> transport);
  void ServeMemory();
  Transport* transport(TransportKind kind) const;

  uint32_t number() const { return options_.number; }
  // False: the inbox is full; say busy.
  [[nodiscard]] bool Post(Message message) { return inbox_.Push(std::move(message)); }
  void Stop() { stop_.store(true, std::memory_order_release); }

  // One turn: everything that can be done now; returns how much happened.
  size_t RunOnce();
  void RunUntilStopped();

  // Owner's thread, by way of Post.
  Status Expect(const Grant& grant);
  void EndSession(uint64_t session_id);
  void SetDraining() { draining_ = true; }
  TierStack& stack() { return *stack_; }
  Stats stats() const;

  // FrameSink.
  void OnAccept(std::unique_ptr<Endpoint> endpoint) override;
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) override;
  void OnClosed(Endpoint& endpoint, const Error& why) override;

 private:
  struct Request;  // A GET under way.
  struct Session;
  struct Put;
  struct Answer {  // One frame to a client; kept where the endpoint has no room for it yet.
    FrameHeader header;
    std::vector<std::byte> meta;
    Pin pin;  // The record, or
    std::shared_ptr<const std::vector<std::byte>> part;  // a range of its layers.
    ByteSpan payload() const { return part != nullptr ? ByteSpan(*part) : pin ? pin.record() : ByteSpan(); }
  };
  enum class Sent : uint8_t { kYes, kLater, kGone };

  void Hello(Endpoint& from, const FrameHeader& header, ByteSpan meta);
  void Match(Session& session, const FrameHeader& header, ByteSpan meta);
  void Hold(Session& session, const FrameHeader& header, const BlockKey& key, uint64_t bytes);
  void Get(Session& session, const FrameHeader& header, ByteSpan meta);
  void StartPut(Session& session, const FrameHeader& header, ByteSpan meta, Incoming& payload);
  void FinishPut(uint64_t put_id, Status received);
  Status PublishPut(Put& put);
  Status CheckRecord(Put& put) const;
  // DURABLE for a PUT of what is here already.
  void ReplyIfThereAlready(Session& session, const FrameHeader& header, const Error& why, const BlockKey& key);
  void ReplyDurable(uint64_t session_id, const FrameHeader& header, const Status& on_ssd);
  void Cancel(Session& session, const FrameHeader& header);
  void Deliver(uint64_t session_id, uint64_t req_id, uint32_t index, TierStack::Fetched fetched);
  void SendData(Session& session, Request& request, FrameHeader header, Pin pin);
  void SendAnswer(Session& session, Request* request, Answer answer);
  Sent TrySend(Session& session, Answer& answer);
  static bool HasWaiting(const Session& session);
  void DataSent(uint64_t session_id, uint64_t req_id, uint64_t bytes);
  void SendMiss(Session& session, Request& request, uint32_t index, MissReason reason);
  void FinishIfDone(Session& session, uint64_t req_id);
  void Reply(Session& session, const FrameHeader& request, Op op, Code status, ByteSpan meta = {});
  void Reject(Endpoint& endpoint, const FrameHeader& request, const Error& why);
  void Drop(Endpoint& endpoint);
  Session* Find(uint64_t session_id);
  void RunTimers();
  void RetryWaiting();
  void SleepUntilWork();

  const Options options_;
  const Clock& clock_;
  std::unique_ptr<TierStack> stack_;
  std::vector<std::unique_ptr<Transport>> transports_;
  Inbox<Message> inbox_;
  std::atomic<bool> stop_{false};
  bool draining_ = false;
  int epoll_fd_ = -1;

  std::unordered_map<uint64_t, std::unique_ptr<Session>> sessions_;
  std::unordered_map<Endpoint*, std::unique_ptr<Endpoint>> unbound_;
  std::vector<std::unique_ptr<Endpoint>> dead_;  // Destroyed at the end of a turn, outside callbacks.
  std::deque<std::pair<Nanos, std::unique_ptr<Endpoint>>> leaving_;  // Until their REJECT is out.
  std::unordered_map<uint64_t, std::unique_ptr<Put>> puts_;
  uint64_t next_put_ = 1;
  std::multimap<Nanos, std::pair<uint64_t, uint64_t>> deadlines_;  // -> session, request
  std::multimap<Nanos, uint64_t> hold_expiries_;                   // -> session
  std::vector<uint64_t> with_waiting_;                             // Sessions that have answers waiting.
  std::vector<uint64_t> hopeless_;  // Sessions that take no answers; ended at the end of a turn.
  ChainMeta chain_;  // Reused by every request.
  Stats stats_;
  Nanos next_token_sweep_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_SHARD_H_
