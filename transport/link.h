// Link is what every transport's endpoints have in common: limits, completions that wait for Poll, and
// a handle that the user may destroy at any moment, callbacks included. Internal to transport/.
//
//   user ---> LinkEndpoint (a handle) ---> Link (shared) <--- Transport (while it lives)
//
// Invariants
//   A Send that was accepted has exactly one Pending; it ends by Complete, once.
//   A done runs from RunCompletions (Poll) or from Close, never inside Send.
//
// Ownership: the handle and the transport share a Link; whoever calls back holds a reference of its own.
// Threads: the transport's owner alone.
#ifndef TIERCEL_TRANSPORT_LINK_H_
#define TIERCEL_TRANSPORT_LINK_H_

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "transport/transport.h"

namespace tiercel {

class LinkEndpoint;

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(TransportKind kind, uint64_t session_id, const Transport::Limits& limits)
      : kind_(kind), session_id_(session_id), limits_(limits) {}
  virtual ~Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  virtual std::string Describe() const = 0;
  virtual Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) = 0;
  virtual void Close(CloseMode mode) = 0;

  TransportKind kind() const { return kind_; }
  uint64_t session_id() const { return session_id_; }
  bool closed() const { return closed_; }
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  uint32_t frames_in_flight() const { return frames_in_flight_; }
  LinkEndpoint* endpoint() const { return endpoint_; }
  bool has_completions() const { return !completions_.empty(); }

  // Makes the handle; once. The link lives at least as long as it.
  std::unique_ptr<Endpoint> MakeEndpoint();

  // Runs what Complete collected; returns how many. A done may destroy the handle.
  size_t RunCompletions();

 protected:
  friend class LinkEndpoint;

  // Is there room for one frame of these sizes? Everything that Send refuses.
  Status CheckSend(ByteSpan meta, ByteSpan payload) const;
  void Began(uint64_t payload_bytes) {
    bytes_in_flight_ += payload_bytes;
    ++frames_in_flight_;
  }
  // The send of these bytes has ended; its done waits for RunCompletions.
  // It counts as in flight until then, so that completions nobody polls for stay bounded.
  void Complete(uint64_t payload_bytes, Done done, Status status) {
    completions_.push_back({std::move(done), std::move(status), payload_bytes, 1});
  }
  // As Complete for what is no send: a Receive.
  void CompleteReceive(Done done, Status status) {
    if (done) completions_.push_back({std::move(done), std::move(status), 0, 0});
  }

  const TransportKind kind_;
  const uint64_t session_id_;
  const Transport::Limits limits_;
  bool closed_ = false;
  uint64_t bytes_in_flight_ = 0;
  uint32_t frames_in_flight_ = 0;
  LinkEndpoint* endpoint_ = nullptr;
  struct Completion {
    Done done;
    Status status;
    uint64_t bytes = 0;
    uint32_t frames = 0;
  };
  std::deque<Completion> completions_;
};

class LinkEndpoint final : public Endpoint {
 public:
  explicit LinkEndpoint(std::shared_ptr<Link> link) : link_(std::move(link)) {}
  ~LinkEndpoint() override {
    link_->endpoint_ = nullptr;
    link_->Close(CloseMode::kForce);
  }

  TransportKind kind() const override { return link_->kind(); }
  std::string Describe() const override { return link_->Describe(); }
  uint64_t session_id() const override { return link_->session_id(); }
  bool closed() const override { return link_->closed(); }
  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override {
    return link_->Send(header, meta, payload, std::move(done));
  }
  uint64_t bytes_in_flight() const override { return link_->bytes_in_flight(); }
  void Close(CloseMode mode) override {
    const std::shared_ptr<Link> keep = link_;  // A done may destroy this handle.
    keep->Close(mode);
  }

 private:
  const std::shared_ptr<Link> link_;
};

// Who may say HELLO. Any thread.
class Admissions {
 public:
  struct Entry {
    std::string peer_address;
    uint32_t name_space = 0;
  };

  explicit Admissions(size_t limit) : limit_(limit) {}

  // Errors: kResourceExhausted: more sessions waiting for their HELLO than endpoints allowed.
  Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space);
  void Revoke(uint64_t session_id);
  bool Find(uint64_t session_id, Entry* out) const;

 private:
  const size_t limit_;
  mutable Mutex mutex_;
  std::unordered_map<uint64_t, Entry> entries_ TIERCEL_GUARDED_BY(mutex_);
};

// Memory that is here already: a payload of this kind copies itself.
class MemoryIncoming final : public Incoming {
 public:
  explicit MemoryIncoming(ByteSpan bytes, bool expose = true) : bytes_(bytes) {
    size_ = bytes.size();
    data_ = expose && !bytes.empty() ? bytes.data() : nullptr;
  }
  void Receive(MutableByteSpan dst, Done done) override;

 private:
  const ByteSpan bytes_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_LINK_H_
