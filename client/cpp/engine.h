// Engine is the client's mind: it cuts requests into frames, sends them where the view says, takes
// the answers in, and ends every request by its deadline. It is a plain single-threaded loop;
// whoever holds the client's driver lock calls Drive.
//
//   Start(op) -> Route -> lane queues -> frames out ... frames in -> Resolve(block) -> Finish(op)
//                     deadline: what is open misses, CANCEL goes out, late arrivals land in staging
//
// Invariants
//   Every block of a started op is resolved exactly once, and the op finished when the last one is.
//   A caller's memory is written only while its op is live, save by a Receive that was under way
//   (Call::borrowed): then the op is finished with released false, and released when the Receive
//   ends. A request that was cancelled and is not acknowledged in 200 ms costs its endpoint.
//
// Ownership: owns sessions, transports and staging; borrows ops until Finish said released.
// Threads: the driver's.
#ifndef TIERCEL_CLIENT_CPP_ENGINE_H_
#define TIERCEL_CLIENT_CPP_ENGINE_H_

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/call.h"
#include "client/cpp/codec_controller.h"
#include "client/cpp/control.h"
#include "client/cpp/holds.h"
#include "client/cpp/request_table.h"
#include "client/cpp/router.h"
#include "client/cpp/session.h"
#include "client/cpp/staging.h"
#include "kernels/record.h"

namespace tiercel {

inline constexpr Nanos kCancelGrace = 200 * kMillisecond;

class Engine final : public FrameSink {
 public:
  // What the engine tells its client, from inside Drive.
  class Host {
   public:
    virtual ~Host() = default;
    virtual void Finished(Call& op, Completion completion) = 0;
    virtual std::shared_ptr<NodeControl> ControlOf(const std::string& endpoint) = 0;
    virtual std::shared_ptr<Mailbox> mailbox() = 0;
  };

  struct Counters {  // Read by any thread.
    std::atomic<uint64_t> blocks_asked{0}, blocks_served{0};
    std::array<std::atomic<uint64_t>, kMissReasons> misses{};
    std::atomic<uint64_t> puts{0}, puts_stored{0}, puts_refused{0};
    std::atomic<uint64_t> raw_put{0}, record_put{0}, raw_got{0}, record_got{0};
    std::atomic<uint64_t> corrupt{0}, late_releases{0};
    std::array<std::atomic<uint64_t>, kCodecs> puts_by_codec{};
  };

  Engine(const Client::Options& options, const Clock& clock, Host& host);
  ~Engine() override;

  // Makes staging and the transports; one that cannot be made is not offered, and why is kept.
  Status Open(const ClientParts& parts);

  void SetView(View view);
  const View& view() const { return router_.view(); }

  void Start(Call& op);
  void Cancel(uint64_t ticket);

  // Sends, receives, runs timers; returns how many things happened. Never blocks.
  size_t Drive();
  // True: nothing to do until one of fds() is readable or next_timer() is reached.
  bool Arm();
  std::vector<int> fds() const;
  Nanos next_timer() const {
    return holds_->any() ? std::min(next_timer_, now_ + 10 * kMillisecond) : next_timer_;
  }
  size_t live_ops() const { return live_.size(); }

  // Ends everything at once: every op finishes as cancelled, every endpoint is closed by force.
  void Shutdown();

  Status AddMemory(MutableByteSpan memory);
  void RemoveMemory(MutableByteSpan memory);
  std::vector<Client::NodeStatus> Nodes() const;
  // Every node of the view is connected, or was tried and is not.
  bool settled() const;
  bool any_open() const;
  std::string why_not() const;
  const CodecController& controller() const { return controller_; }
  const Counters& counters() const { return counters_; }
  Counters& counters() { return counters_; }

  // What the control plane reports, through the mailbox.
  void OnOffer(const std::string& session_key, uint64_t attempt, Result<SessionOffer> offer);
  void OnSessionLost(const std::string& session_key, uint64_t session_id, const Error& why);

  // FrameSink.
  void OnAccept(std::unique_ptr<Endpoint> endpoint) override;
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta,
               Incoming& payload) override;
  void OnClosed(Endpoint& endpoint, const Error& why) override;

 private:
  struct Way {
    TransportKind kind;
    std::unique_ptr<Transport> transport;
  };

  // engine_sessions.cc
  Session& SessionFor(const NodeInfo& node);
  Session* FindSession(const Router::Target& target);
  static std::string SessionKey(std::string_view node_id, std::string_view endpoint);
  void BeginOpen(Session& session);
  void LoseSession(Session& session, const Error& why, bool counts);
  void SessionTimers();
  void Probe(Session& session);
  Transport* FindWay(TransportKind kind);

  // engine_requests.cc
  void RouteRange(Call& op, uint32_t begin, uint32_t end, bool previous);
  Lane* Usable(const Router::Target& target);
  void AddWire(Call& op, Lane& lane, uint32_t first, uint32_t count, bool previous);
  size_t PumpLane(Lane& lane);
  bool SendWire(Lane& lane, Wire& wire);  // False: later.
  bool MakeLanding(Wire& wire);
  FrameHeader HeaderOf(const Wire& wire, Call::Kind kind) const;
  size_t MetaOf(const Wire& wire);
  void ObserveLink(const Wire& wire, uint64_t bytes);
  CodecController::Ask AskOf(const Call& op, TransportKind link, QualityClass worst) const;
  // engine_puts.cc
  size_t PumpPuts();
  enum class PutStep : uint8_t { kMoved, kWait };
  PutStep PutNext(Call& op);
  struct Encoding {
    CodecId codec = CodecId::kRaw;
    EncodeOptions options;
  };
  Result<Encoding> ChooseEncoding(const Call& op, TransportKind link);
  void OnMatched(Wire& wire, const FrameHeader& header, ByteSpan meta);
  void OnData(Wire& wire, const FrameHeader& header, Incoming& payload);
  void OnAck(Wire& wire, const FrameHeader& header);
  // checked: what checking the record has said already.
  void Deliver(Wire& wire, uint32_t index, Tier tier, QualityClass quality, ByteSpan record,
               const Status* checked = nullptr);
  void Answered(Wire& wire, uint32_t index);
  void Missed(Wire& wire, uint32_t index, MissReason reason, Code status = Code::kNotFound);
  void EndWire(Wire& wire);
  void FailWire(Wire& wire, MissReason reason, Code code);
  void FreeWire(Wire& wire);
  void FreeLanding(Wire& wire, uint32_t index);
  void FreePutMemory(Wire& wire);
  void TransferEnded(Wire& wire);
  void Forsake(Wire& wire);
  void Resolve(Call& op, uint32_t block, const BlockResult& result);
  void Finish(Call& op, Status status);
  void Expire(Call& op, Status status, Code code);
  void GiveBack(Call& op);
  size_t RunTimers();
  void Soon(Nanos when) { next_timer_ = std::min(next_timer_, when); }

  const Client::Options& options_;
  const Clock& clock_;
  Host& host_;
  Counters counters_;
  CodecController controller_;
  Router router_;
  RequestTable<Wire> wires_;
  std::vector<Call*> live_;
  std::deque<Call*> puts_;
  uint64_t queued_ = 0;  // Wires in lane queues.
  Nanos now_ = 0;
  Nanos next_timer_ = 0;
  Nanos view_until_ = 0;
  SessionAsk ask_;
  ChainMeta meta_;
  std::array<std::byte, kMaxMetaBytes> meta_bytes_;
  std::shared_ptr<HoldRegistry> holds_;
  std::unique_ptr<Staging> staging_;
  std::map<uintptr_t, uint32_t> memory_ids_;  // Registered by the caller, by address.
  uint32_t next_region_ = 2;
  std::vector<std::string> ways_missing_;
  std::vector<Way> ways_;
  std::map<std::string, std::unique_ptr<Session>> sessions_;  // Their endpoints die before ways_.
  std::vector<std::unique_ptr<Endpoint>> graveyard_;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_ENGINE_H_
