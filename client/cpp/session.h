// Session is one node as a client knows it: its control plane, an endpoint a shard, a breaker.
//
//   resting --(at once, then with backoff)--> opening --offer--> greeting --WELCOME of each
//   shard--> open
//      ^-------------- any endpoint lost, keep-alive lost, time out
//      ------------------------------------+
//
// A transport that fails to greet twice is not offered again for a minute, so a fabric that is
// announced and cannot be reached costs two attempts and then the next way is taken; the reason is
// kept.
//
// Threads: the driver's. Ownership: lanes live as long as their session.
#ifndef TIERCEL_CLIENT_CPP_SESSION_H_
#define TIERCEL_CLIENT_CPP_SESSION_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/inbox.h"
#include "client/cpp/breaker.h"
#include "client/cpp/control.h"
#include "proto/view.h"

namespace tiercel {

class Engine;
class Session;
using Command = UniqueFunction<void(Engine&)>;
using Mailbox = Inbox<Command>;

// One shard of a node.
struct Lane {
  Session* session = nullptr;
  uint32_t shard = 0;
  std::unique_ptr<Endpoint> endpoint;
  Transport* transport = nullptr;
  bool welcomed = false;
  std::string reason;
  std::deque<uint64_t> queue;  // Requests not sent yet.
};

class Session {
 public:
  enum class State : uint8_t { kResting, kOpening, kGreeting, kOpen };
  static constexpr Nanos kOpenTimeout = 2 * kSecond;
  static constexpr Nanos kGreetTimeout = 1 * kSecond;

  Session(std::string node_id, std::string endpoint, std::shared_ptr<NodeControl> control,
          uint64_t seed)
      : node_id_(std::move(node_id)),
        endpoint_(std::move(endpoint)),
        control_(std::move(control)),
        breaker_(seed),
        random_(seed ^ 0x5e55) {}

  const std::string& node_id() const { return node_id_; }
  const std::string& endpoint() const { return endpoint_; }
  NodeControl& control() { return *control_; }
  State state() const { return state_; }
  bool open() const { return state_ == State::kOpen; }
  // Open, or never yet refused: a request may wait for it.
  bool hopeful() const { return open() || failures_ == 0; }
  Breaker& breaker() { return breaker_; }
  const Breaker& breaker() const { return breaker_; }
  uint64_t session_id() const { return session_id_; }
  const SessionOffer& offer() const { return offer_; }
  const std::string& last_error() const { return last_error_; }
  bool attempted() const { return open() || failures_ > 0; }

  Lane& lane(uint32_t shard);
  Lane* FindLane(uint32_t shard);
  std::vector<std::unique_ptr<Lane>>& lanes() { return lanes_; }
  const std::vector<std::unique_ptr<Lane>>& lanes() const { return lanes_; }

  // What the engine does with it: see engine_sessions.cc.
  bool Usable(TransportKind kind, Nanos now) const;
  void Opening(Nanos now);
  void Greeting(SessionOffer offer, Nanos now);
  void Opened();
  // To rest; the next attempt comes after a backoff of 250 ms, growing to 2 s.
  void Failed(const Error& why, Nanos now);
  void GreetFailed(TransportKind kind, Nanos now);
  uint64_t attempt() const { return attempt_; }
  Nanos due() const { return due_; }
  void Retire() { retired_ = true; }
  bool retired() const { return retired_; }
  void Revive() { retired_ = false; }

  uint32_t requests_in_flight = 0;
  uint64_t bytes_in_flight = 0;
  bool probing = false;

 private:
  const std::string node_id_;
  const std::string endpoint_;
  const std::shared_ptr<NodeControl> control_;
  Breaker breaker_;
  SplitMix64 random_;
  State state_ = State::kResting;
  uint64_t session_id_ = 0;
  uint64_t attempt_ = 0;
  uint32_t failures_ = 0;
  Nanos due_ = 0;  // Resting: next attempt. Opening, greeting: time out.
  bool retired_ = false;
  SessionOffer offer_;
  std::string last_error_;
  struct Distrust {
    uint32_t failures = 0;
    Nanos until = 0;
  };
  std::map<TransportKind, Distrust> distrust_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_SESSION_H_
