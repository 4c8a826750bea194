// SimClient asks at random, speaks the wire itself, and believes nothing: every frame that comes is held
// against what was asked and against the world.
//
//   Open -> Ask* (put, get, match, cancel, nonsense) -> Leave, or the node goes
//
// Invariants that it checks
//   An answer is to something asked and not yet answered; after CANCELLED none comes.
//   Served bytes are the key's own, of a class that was accepted, of a block that was put and not cleared.
//   A record sent broken, or under another scope or class than its own, is never acknowledged.
//   Every miss has a reason, and never `unknown`. ACK comes once; DURABLE once, after it, if asked for.
//   LAST is on the last answer of a GET and on no other. Another name space's keys are always missed.
//
// Threads: one.
#ifndef TIERCEL_TESTS_SIM_SIM_CLIENT_H_
#define TIERCEL_TESTS_SIM_SIM_CLIENT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/fakes/sim_network.h"
#include "tests/sim/ledger.h"
#include "tests/sim/world.h"
#include "transport/transport.h"

namespace tiercel {

class SimClient final : public FrameSink {
 public:
  // Makes the client lie to itself, to show that its checks can fail.
  enum class Sabotage : uint8_t { kNone, kFlipBit, kDropAnswer, kRepeatAnswer, kForgetPut };
  struct Counts {
    uint64_t hits = 0, misses = 0, puts = 0, durable = 0, cancelled = 0, matched = 0, refused = 0;
  };

  SimClient(uint32_t number, uint32_t space, World& world, Ledger& ledger, SimNetwork& network,
            const Clock& clock, uint64_t seed);
  ~SimClient() override;

  void Open(uint64_t session, const std::string& address, ByteSpan token);
  bool open() const { return endpoint_ != nullptr; }
  uint64_t session() const { return session_; }
  uint32_t space() const { return space_; }
  std::string address() const { return transport_->LocalAddress(); }
  void Act();
  void Leave();
  size_t Poll();
  // Nothing asked is without its answer.
  bool settled() const { return asks_.empty(); }
  std::string Unsettled() const;
  const Counts& counts() const { return counts_; }
  uint64_t digest() const { return digest_; }  // Of all that came, in order, with its time.

  Sabotage sabotage = Sabotage::kNone;

  void OnAccept(std::unique_ptr<Endpoint>) override {}
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta, Incoming& payload) override;
  void OnClosed(Endpoint& endpoint, const Error& why) override;

 private:
  struct Ask {
    Op op = Op::kGet;
    uint32_t chain = 0, first = 0, n = 0;
    uint16_t layer_begin = 0, layer_end = 0;
    QualityClass min_class = QualityClass::kExact;
    bool lossy = false;
    std::string wrong;     // What is wrong with a put; empty: it ought to be taken.
    bool honest() const { return wrong.empty(); }
    bool foreign = false;  // A get of another name space's keys.
    bool want_durable = false;
    bool acked = false;
    bool last = false;
    bool cancelling = false;
    uint64_t clears = 0;  // That had been when it was sent.
    uint64_t answered = 0;
  };
  void SendPut();
  void SendGet();
  void SendMatch();
  void SendCancel();
  void SendNonsense();
  uint64_t Send(Op op, const Ask& ask, FrameHeader header, ByteSpan meta, ByteSpan payload);
  void PickBlocks(Ask* ask, uint32_t most);
  void OnData(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header, ByteSpan payload);
  void OnMatched(std::map<uint64_t, Ask>::iterator at, ByteSpan meta);
  void OnAck(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header);
  void OnDurable(std::map<uint64_t, Ask>::iterator at, const FrameHeader& header);
  bool MayServe(const Ask& ask, const BlockId& id, bool lossy);
  void Violated(const FrameHeader& header, const std::string& what);
  void Forget();

  const uint32_t number_;
  const uint32_t space_;
  World& world_;
  Ledger& ledger_;
  const Clock& clock_;
  SplitMix64 random_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Endpoint> endpoint_;
  std::vector<std::unique_ptr<Endpoint>> gone_;
  uint64_t session_ = 0;
  bool welcomed_ = false;
  uint64_t next_req_ = 1;
  std::map<uint64_t, Ask> asks_;
  Counts counts_;
  uint64_t digest_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_SIM_SIM_CLIENT_H_
