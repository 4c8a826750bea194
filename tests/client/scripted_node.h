// ScriptedNode is a node that does as it is told: it keeps records in a map and serves them over
// real frames and a real transport on a thread of its own, and can be told to stop, to lie, to be
// slow.
#ifndef TIERCEL_TESTS_CLIENT_SCRIPTED_NODE_H_
#define TIERCEL_TESTS_CLIENT_SCRIPTED_NODE_H_

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "client/cpp/control.h"
#include "proto/block_key.h"
#include "transport/loopback.h"

namespace tiercel {

class ScriptedNode final : public FrameSink {
 public:
  ScriptedNode(LoopbackNetwork& network, std::string id);
  // Over another transport: make gives the server's side of it.
  ScriptedNode(std::string id, const std::function<std::unique_ptr<Transport>(FrameSink&)>& make);
  ~ScriptedNode() override;

  // A control plane of this node; alive as long as the node.
  std::shared_ptr<NodeControl> MakeControl();
  const std::string& id() const { return id_; }
  Transport& transport() { return *transport_; }  // For Admit and Revoke.

  // What it does.
  std::atomic<bool> frozen{false};     // Answers nothing, reads nothing.
  std::atomic<bool> mute_gets{false};  // Takes GETs and never answers.
  std::atomic<bool> deaf_to_cancel{false};
  std::atomic<bool> refuse_open{false};
  std::atomic<bool> hang_open{false};
  std::atomic<bool> flip_a_bit{false};  // Of each record served.
  std::atomic<bool> busy{false};        // Refuses puts and gets.
  std::atomic<bool> never_durable{false};
  std::atomic<bool> keep_first{false};  // As real nodes do: what is there stays.

  // What it saw.
  std::atomic<uint16_t> last_flags{0};
  std::atomic<uint64_t> matches{0}, gets{0}, puts{0}, cancels{0}, hellos{0}, opens{0};
  size_t size() const;
  bool Has(const BlockKey& key) const;
  void Forget();
  void Forget(const BlockKey& key);
  void HangUpAll();    // Loses every endpoint.
  void AnswerMuted();  // Sends what mute_gets kept back.

  // FrameSink.
  void OnAccept(std::unique_ptr<Endpoint> endpoint) override;
  void OnFrame(Endpoint& from, const FrameHeader& header, ByteSpan meta,
               Incoming& payload) override;
  void OnClosed(Endpoint& endpoint, const Error& why) override;

 private:
  friend class ScriptedControl;
  void Loop();
  void Reply(Endpoint& to, const FrameHeader& header,
             std::shared_ptr<std::vector<std::byte>> record);
  size_t Retry();
  void Serve(Endpoint& to, const FrameHeader& header, const ChainMeta& meta);

  const std::string id_;
  std::unique_ptr<Transport> transport_;
  std::string address_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;
  mutable Mutex mutex_;
  std::unordered_map<BlockKey, std::shared_ptr<std::vector<std::byte>>> records_
      TIERCEL_GUARDED_BY(mutex_);
  std::vector<std::function<void()>> kept_;
  struct Waiting {
    Endpoint* to;
    FrameHeader header;
    std::shared_ptr<std::vector<std::byte>> record;
  };
  std::deque<Waiting> waiting_;  // Answers that found the send queue full.
  std::atomic<bool> stop_{false};
  std::atomic<bool> hang_up_{false};
  std::atomic<bool> answer_muted_{false};
  std::atomic<uint64_t> next_session_;
  std::thread thread_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_CLIENT_SCRIPTED_NODE_H_
