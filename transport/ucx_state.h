// What the UCX transport and each of its links hold; ucx_transport.cc says what they do. Internal to
// transport/ucx*.
//
// Ownership: the transport and the endpoint's handle share a link.
// Threads: the transport's owner alone.
#ifndef TIERCEL_TRANSPORT_UCX_STATE_H_
#define TIERCEL_TRANSPORT_UCX_STATE_H_

#include <ucp/api/ucp.h>

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "transport/factory.h"
#include "transport/link.h"
#include "transport/ucx_fragments.h"

namespace tiercel {

class UcxIncoming;
class UcxTransport;

class UcxLink final : public Link {
 public:
  UcxLink(UcxTransport& owner, uint64_t session_id, const Transport::Limits& limits)
      : Link(TransportKind::kUcx, session_id, limits), owner_(&owner) {}

  std::string Describe() const override;
  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override;
  void Close(CloseMode mode) override;

 private:
  friend class UcxTransport;
  friend class UcxIncoming;
  struct SendOp {
    std::shared_ptr<UcxLink> link;
    Done done;
    uint64_t bytes = 0;
    Nanos since = 0;
    std::vector<std::byte> head;  // Header and meta, then each fragment's; UCX reads it until the end.
    size_t pending = 0;           // Messages that UCX has, and one while they are posted.
    ucs_status_t status = UCS_OK;
    std::list<SendOp>::iterator at;
  };
  struct ReceiveOp {
    std::shared_ptr<UcxLink> link;
    Done done;
  };

  Status Post(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done);
  bool idle() const { return sends_.empty() && receives_ == 0; }

  UcxTransport* owner_;  // Null once the transport let go.
  ucp_ep_h ep_ = nullptr;
  ucp_ep_h reply_ep_ = nullptr;  // As which the peer's frames come; bound by the first.
  ucs_status_ptr_t closing_ = nullptr;
  Nanos close_since_ = 0;
  bool flushing_ = false;
  bool ready_ = false;
  bool lost_ = false;  // In the transport's lost list.
  ucs_status_t lost_status_ = UCS_OK;
  std::list<SendOp> sends_;  // Oldest first.
  size_t receives_ = 0;
  ArrivingFragments arriving_;
};

class UcxTransport final : public Transport {
 public:
  UcxTransport(const UcxOptions& options, FrameSink& sink, const Clock& clock)
      : options_(options),
        sink_(sink),
        clock_(clock),
        limits_(options.limits),
        admissions_(options.limits.max_endpoints) {}
  ~UcxTransport() override;
  Status Open();

  TransportKind kind() const override { return TransportKind::kUcx; }
  std::string LocalAddress() const override { return address_; }
  Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) override {
    if (peer_address.empty()) return Fail(Code::kInvalidArgument, "ucx: the client's address is empty");
    return admissions_.Admit(session_id, peer_address, name_space);
  }
  void Revoke(uint64_t session_id) override { admissions_.Revoke(session_id); }
  Result<std::unique_ptr<Endpoint>> Connect(uint64_t session_id, std::string_view address) override;
  Status AddMemory(const MemoryRegion& region) override;
  void RemoveMemory(uint32_t region_id) override;
  size_t Poll() override;
  int event_fd() const override { return event_fd_; }
  bool Arm() override;
  Counters counters() const override { return counters_; }

 private:
  friend class UcxLink;
  friend class UcxIncoming;
  struct Deferred {  // A frame that came while Close was progressing the worker.
    bool more = false;
    std::vector<std::byte> head;
    std::vector<std::byte> payload;
    void* rendezvous = nullptr;
    size_t bytes = 0;
    ucp_ep_h reply_ep = nullptr;
  };
  struct Region {
    MemoryRegion region;
    ucp_mem_h handle = nullptr;
  };

  static ucs_status_t OnMessage(void* arg, const void* header, size_t header_bytes, void* data,
                                size_t bytes, const ucp_am_recv_param_t* param);
  static ucs_status_t OnMore(void* arg, const void* header, size_t header_bytes, void* data,
                             size_t bytes, const ucp_am_recv_param_t* param);
  static void OnSent(void* request, ucs_status_t status, void* user);
  static void OnReceived(void* request, ucs_status_t status, size_t bytes, void* user);
  static void OnError(void* arg, ucp_ep_h ep, ucs_status_t status);

  Result<std::shared_ptr<UcxLink>> MakeLink(uint64_t session_id, std::string_view peer_address);
  std::shared_ptr<UcxLink> FindLink(ucp_ep_h reply_ep, const FrameHeader& header);
  std::shared_ptr<UcxLink> Accept(ucp_ep_h reply_ep, const FrameHeader& header);
  // True when the descriptor of a rendezvous was used up.
  bool Dispatch(ByteSpan head, const void* data, void* rendezvous, size_t bytes, ucp_ep_h reply_ep);
  void AddFragment(ucp_ep_h reply_ep, ByteSpan head, ByteSpan fragment);
  void EndFragments(UcxLink& link, Status status);
  void Reject(ucp_ep_h reply_ep, const std::string& why);
  void MarkReady(UcxLink& link);
  void MarkLost(UcxLink& link, ucs_status_t status);
  void Lose(const std::shared_ptr<UcxLink>& link, Error why);
  void StartClose(UcxLink& link);
  size_t Progress();
  size_t RunReady();
  size_t RunClosing();
  void Sweep(Nanos now);
  ucp_mem_h FindMemory(const std::byte* at, size_t bytes) const;

  const UcxOptions options_;
  FrameSink& sink_;
  const Clock& clock_;
  const Limits limits_;
  Admissions admissions_;
  Counters counters_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::string address_;
  size_t max_head_bytes_ = 0;
  bool cuts_ = false;  // Large payloads into fragments.
  bool progressing_ = false;  // Inside ucp_worker_progress.
  bool quiet_ = false;        // Frames wait for the next Poll.
  Nanos next_sweep_ = 0;
  Nanos last_event_ = 0;
  Nanos last_progress_ = 0;
  std::vector<std::shared_ptr<UcxLink>> links_;    // All whose endpoint is not gone from UCX.
  std::unordered_map<ucp_ep_h, std::shared_ptr<UcxLink>> by_reply_ep_;
  std::vector<std::shared_ptr<UcxLink>> ready_;    // With completions to run.
  std::vector<std::shared_ptr<UcxLink>> lost_;     // For OnClosed.
  std::vector<std::shared_ptr<UcxLink>> closing_;
  std::list<UcxLink::SendOp> free_sends_;
  std::deque<Deferred> deferred_;
  std::map<const std::byte*, Region> regions_;     // By base.
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_UCX_STATE_H_
