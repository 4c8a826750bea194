#include "transport/ucx_transport.h"

#include <fmt/format.h>
#include <ucp/api/ucp.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "transport/ucx_state.h"

namespace tiercel {
namespace {

constexpr unsigned kAmId = 16;      // A frame: its header says the rest.
constexpr unsigned kAmMoreId = 17;  // More of the frame before: ucx_fragments.h.
constexpr Nanos kSweepEvery = 20 * kMillisecond;
// Over TCP every look of UCX at its sockets is a system call, which the other transports of a spinning
// thread wait for: where nothing has happened for kBusyFor it looks once in kQuietEvery.
constexpr Nanos kBusyFor = 100 * kMicrosecond;
constexpr Nanos kQuietEvery = 2 * kMicrosecond;
constexpr Nanos kCloseTimeout = 2 * kSecond;
constexpr const char* kSegment = "512K";  // Of UCX/TCP's buffers: a fragment and its headers fit.

Error UcxError(const char* what, ucs_status_t status) {
  return Error{Code::kUnavailable, fmt::format("ucx: {}: {}", what, ucs_status_string(status))};
}
tl::unexpected<Error> UcxFail(const char* what, ucs_status_t status) {
  return tl::unexpected<Error>(UcxError(what, status));
}

}  // namespace

class UcxIncoming final : public Incoming {
 public:
  UcxIncoming(UcxTransport& owner, std::shared_ptr<UcxLink> link, const void* data, void* rendezvous,
              size_t here, size_t bytes)
      : owner_(owner), link_(std::move(link)), rendezvous_(rendezvous),
        first_(static_cast<const std::byte*>(data), here) {
    size_ = bytes;
    if (here == bytes) data_ = first_.data();
  }

  void Receive(MutableByteSpan dst, Done done) override {
    if (dst.size() < size_) {
      done(Fail(Code::kInvalidArgument, fmt::format("receive: {} bytes into {}", size_, dst.size())));
      return;
    }
    if (rendezvous_ == nullptr && first_.size() == size_) {
      if (size_ > 0) std::memcpy(dst.data(), data_, size_);
      done(OkStatus());
      return;
    }
    if (rendezvous_ == nullptr) {
      const auto copy = [to = dst.data()](ByteSpan fragment) mutable {
        std::memcpy(to, fragment.data(), fragment.size());
        to += fragment.size();
      };
      TIERCEL_CHECK(ReceiveFragments(copy, std::move(done)));
      return;
    }
    TIERCEL_CHECK(!used_);
    used_ = true;
    auto* op = new UcxLink::ReceiveOp{link_, std::move(done)};
    ++link_->receives_;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                         UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    param.cb.recv_am = UcxTransport::OnReceived;
    param.user_data = op;
    if (ucp_mem_h memory = owner_.FindMemory(dst.data(), size_); memory != nullptr) {
      param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
      param.memh = memory;
    }
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(owner_.worker_, rendezvous_, dst.data(), size_, &param);
    if (UCS_PTR_IS_ERR(request)) UcxTransport::OnReceived(nullptr, UCS_PTR_STATUS(request), 0, op);
  }

  bool ReceiveFragments(FragmentFn each, Done done) override {
    if (rendezvous_ != nullptr || first_.size() == size_) return false;
    TIERCEL_CHECK(!used_);
    used_ = true;
    each(first_);
    ++link_->receives_;
    link_->arriving_.Want(std::move(each), std::move(done));
    return true;
  }

  bool used() const { return used_; }

 private:
  UcxTransport& owner_;
  const std::shared_ptr<UcxLink> link_;
  void* const rendezvous_;
  const ByteSpan first_;  // What is here: all of it, its first fragment, or of a rendezvous nothing.
  bool used_ = false;
};

std::string UcxLink::Describe() const {
  if (owner_ == nullptr) return "ucx (closed)";
  return fmt::format("ucx {}/{} session {:016x}", owner_->options_.tls, owner_->options_.devices,
                     session_id_);
}

Status UcxLink::Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  TIERCEL_TRY(CheckSend(meta, payload));
  return Post(header, meta, payload, std::move(done));
}

Status UcxLink::Post(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) {
  auto& free = owner_->free_sends_;
  if (free.empty()) free.emplace_back();
  sends_.splice(sends_.end(), free, free.begin());
  SendOp& op = sends_.back();
  op.link = std::static_pointer_cast<UcxLink>(shared_from_this());
  op.done = std::move(done);
  op.bytes = payload.size();
  op.since = owner_->clock_.Now();
  owner_->last_event_ = op.since;
  op.at = std::prev(sends_.end());
  FrameHeader stamped = header;
  stamped.session_id = session_id_;
  stamped.payload_bytes = payload.size();
  const size_t head_bytes = kFrameHeaderBytes + meta.size();
  const auto next = [cuts = owner_->cuts_](size_t left) { return cuts ? NextFragment(left) : left; };
  size_t fragments = 1;
  for (size_t left = payload.size(); (left -= next(left)) > 0;) ++fragments;
  op.head.resize(head_bytes + (fragments - 1) * kFragmentHeaderBytes);
  EncodeFrameHeader(stamped, op.head.data());
  if (!meta.empty()) std::memcpy(op.head.data() + kFrameHeaderBytes, meta.data(), meta.size());
  Began(payload.size());

  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = UcxTransport::OnSent;
  param.user_data = &op;
  param.flags = UCP_AM_SEND_FLAG_REPLY;
  if (ucp_mem_h memory = payload.empty() ? nullptr : owner_->FindMemory(payload.data(), payload.size());
      memory != nullptr) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    param.memh = memory;
  }
  if (fragments > 1) param.flags |= UCP_AM_SEND_FLAG_EAGER;
  op.pending = 1;
  op.status = UCS_OK;
  std::byte* head = op.head.data();
  for (size_t i = 0, at = 0; i < fragments; ++i) {
    const ByteSpan fragment = payload.subspan(at, next(payload.size() - at));
    if (i > 0) StoreLe(head, uint64_t{at});
    const size_t bytes = i == 0 ? head_bytes : kFragmentHeaderBytes;
    ucs_status_ptr_t request =
        ucp_am_send_nbx(ep_, i == 0 ? kAmId : kAmMoreId, head, bytes, fragment.data(), fragment.size(), &param);
    head += bytes;
    at += fragment.size();
    if (!UCS_PTR_IS_ERR(request)) {
      op.pending += request != nullptr ? 1 : 0;
      continue;
    }
    op.status = UCS_PTR_STATUS(request);
    owner_->MarkLost(*this, op.status);
    if (i > 0) break;  // Some of it is under way: its done says so.
    bytes_in_flight_ -= op.bytes;
    --frames_in_flight_;
    op.link.reset();
    op.done = nullptr;
    const ucs_status_t status = op.status;
    free.splice(free.begin(), sends_, op.at);
    return UcxFail("send", status);
  }
  ++owner_->counters_.frames_sent;
  owner_->counters_.bytes_sent += payload.size();
  UcxTransport::OnSent(nullptr, UCS_OK, &op);
  return OkStatus();
}

void UcxLink::Close(CloseMode mode) {
  if (owner_ == nullptr) return;
  const std::shared_ptr<Link> keep = shared_from_this();
  const bool was_closed = closed_;
  if (mode == CloseMode::kFlush) {
    if (was_closed) return;
    FrameHeader bye;
    bye.op = Op::kBye;
    (void)Post(bye, {}, {}, nullptr);
    closed_ = true;
    flushing_ = true;
    close_since_ = owner_->clock_.Now();
    owner_->closing_.push_back(std::static_pointer_cast<UcxLink>(keep));
    return;
  }
  closed_ = true;
  flushing_ = false;
  owner_->StartClose(*this);
  // From a callback of UCX nothing can be waited for: what is left ends before that Poll returns.
  if (owner_->progressing_) return;
  const Nanos end = owner_->clock_.Now() + kCloseTimeout;
  owner_->quiet_ = true;
  while ((closing_ != nullptr || !idle()) && owner_->clock_.Now() < end) {
    owner_->Progress();
    owner_->RunClosing();
  }
  owner_->quiet_ = false;
  if (!idle()) LogError("ucx.close_incomplete", {{"session", session_id_}, {"sends", sends_.size()}});
  while (RunCompletions() > 0) {
  }
}

UcxTransport::~UcxTransport() {
  quiet_ = true;
  if (worker_ != nullptr) {
    const std::vector<std::shared_ptr<UcxLink>> links = links_;
    for (const auto& link : links) {
      link->closed_ = true;
      StartClose(*link);
    }
    const Nanos end = Clock::Monotonic().Now() + kCloseTimeout;
    while (!closing_.empty() && Clock::Monotonic().Now() < end) {
      Progress();
      RunClosing();
    }
    for (const auto& link : links) link->RunCompletions();
    for (Deferred& frame : deferred_) {
      if (frame.rendezvous != nullptr) ucp_am_data_release(worker_, frame.rendezvous);
    }
    for (auto& [base, region] : regions_) {
      if (region.handle != nullptr) (void)ucp_mem_unmap(context_, region.handle);
    }
    ucp_worker_destroy(worker_);
    for (const auto& link : links) link->owner_ = nullptr;
    for (auto& [ep, link] : by_reply_ep_) link->owner_ = nullptr;
    for (auto& link : ready_) link->owner_ = nullptr;
  }
  if (context_ != nullptr) ucp_cleanup(context_);
}

Status UcxTransport::Open() {
  if (options_.devices.empty()) {
    return Fail(Code::kInvalidArgument, "ucx: devices must be named, e.g. \"lo\" or \"mlx5_0:1\"");
  }
  if (options_.tls.empty() || options_.tls == "all") {
    return Fail(Code::kInvalidArgument, "ucx: tls must name its lanes, e.g. \"tcp\" or \"rc,tcp\"");
  }
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return UcxFail("config", status);
  // Up to 1.13 a lane's settings are matched without the lane's prefix, later with it.
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  ucp_get_version(&major, &minor, &release);
  const std::string lane = major == 1 && minor <= 13 ? "" : "TCP_";
  // Where nothing can be placed directly: fragments, which are never a rendezvous.
  cuts_ = options_.tls == "tcp";
  const std::pair<std::string, std::string> settings[] = {
      {"TLS", options_.tls},           {"NET_DEVICES", options_.devices},
      {lane + "TX_SEG_SIZE", kSegment}, {lane + "RX_SEG_SIZE", kSegment},
      {lane + "CM_REUSEADDR", "y"},    {"KEEPALIVE_INTERVAL", "1s"},
      {"PROTO_ENABLE", "n"},           {"RNDV_THRESH", cuts_ ? "inf" : "auto"},
  };
  for (const auto& [name, value] : settings) {
    status = ucp_config_modify(config, name.c_str(), value.c_str());
    if (status != UCS_OK) {
      ucp_config_release(config);
      return Fail(Code::kInvalidArgument,
                  fmt::format("ucx: setting {}={}: {}", name, value, ucs_status_string(status)));
    }
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;  // Never RMA: over TCP it checks no address.
  status = ucp_init(&params, config, &context_);
  ucp_config_release(config);
  if (status != UCS_OK) {
    return Fail(Code::kUnavailable, fmt::format("ucx: no lane of '{}' on device '{}': {}", options_.tls,
                                                options_.devices, ucs_status_string(status)));
  }
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SINGLE;
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) {
    return Fail(Code::kUnavailable, fmt::format("ucx: worker on device '{}' with '{}': {}",
                                                options_.devices, options_.tls, ucs_status_string(status)));
  }
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return UcxFail("event fd", status);
  ucp_worker_attr_t attributes{};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  status = ucp_worker_query(worker_, &attributes);
  if (status != UCS_OK) return UcxFail("worker query", status);
  max_head_bytes_ = attributes.max_am_header;
  if (max_head_bytes_ < kFrameHeaderBytes + kMaxMetaBytes) {
    return Fail(Code::kUnavailable, fmt::format("ucx: lanes of '{}' carry headers of {} bytes, need {}",
                                                options_.tls, max_head_bytes_,
                                                kFrameHeaderBytes + kMaxMetaBytes));
  }
  ucp_am_handler_param_t handler{};
  handler.field_mask =
      UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kAmId;
  handler.cb = OnMessage;
  handler.arg = this;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return UcxFail("handler", status);
  handler.id = kAmMoreId;
  handler.cb = OnMore;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return UcxFail("handler", status);
  ucp_address_t* address = nullptr;
  size_t address_bytes = 0;
  status = ucp_worker_get_address(worker_, &address, &address_bytes);
  if (status != UCS_OK) return UcxFail("worker address", status);
  address_.assign(reinterpret_cast<const char*>(address), address_bytes);
  ucp_worker_release_address(worker_, address);
  return OkStatus();
}

Result<std::shared_ptr<UcxLink>> UcxTransport::MakeLink(uint64_t session_id,
                                                        std::string_view peer_address) {
  if (links_.size() >= limits_.max_endpoints) {
    return Fail(Code::kResourceExhausted, fmt::format("ucx: {} endpoints are open", links_.size()));
  }
  // libucp trusts the length that is inside an address; ours come through OpenSession, yet not empty.
  if (peer_address.size() < 16 || peer_address.size() > 4096) {
    return Fail(Code::kInvalidArgument,
                fmt::format("ucx: a worker address of {} bytes is none", peer_address.size()));
  }
  auto link = std::make_shared<UcxLink>(*this, session_id, limits_);
  // libucp parses past the end of a cut-off address: give it zeroes to meet there.
  std::string padded(peer_address);
  padded.resize(peer_address.size() + 256);
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(padded.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = OnError;
  params.err_handler.arg = link.get();
  const ucs_status_t status = ucp_ep_create(worker_, &params, &link->ep_);
  if (status != UCS_OK) return UcxFail("connect", status);
  links_.push_back(link);
  by_reply_ep_[link->ep_] = link;
  link->reply_ep_ = link->ep_;
  return link;
}

Result<std::unique_ptr<Endpoint>> UcxTransport::Connect(uint64_t session_id, std::string_view address) {
  TIERCEL_ASSIGN(const std::shared_ptr<UcxLink> link, MakeLink(session_id, address));
  return link->MakeEndpoint();
}

Status UcxTransport::AddMemory(const MemoryRegion& region) {
  for (const auto& [base, other] : regions_) {
    if (other.region.id == region.id) {
      return Fail(Code::kAlreadyExists, fmt::format("ucx: memory region {} is known", region.id));
    }
  }
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = region.base;
  params.length = region.bytes;
  Region entry{region, nullptr};
  const ucs_status_t status = ucp_mem_map(context_, &params, &entry.handle);
  if (status != UCS_OK) return UcxFail("register memory", status);
  regions_[region.base] = entry;
  return OkStatus();
}

void UcxTransport::RemoveMemory(uint32_t region_id) {
  for (auto it = regions_.begin(); it != regions_.end(); ++it) {
    if (it->second.region.id != region_id) continue;
    (void)ucp_mem_unmap(context_, it->second.handle);
    regions_.erase(it);
    return;
  }
}

ucp_mem_h UcxTransport::FindMemory(const std::byte* at, size_t bytes) const {
  auto after = regions_.upper_bound(at);
  if (after == regions_.begin()) return nullptr;
  const Region& region = std::prev(after)->second;
  const auto offset = static_cast<uint64_t>(at - region.region.base);
  if (offset > region.region.bytes || bytes > region.region.bytes - offset) return nullptr;
  return region.handle;
}

void UcxTransport::MarkReady(UcxLink& link) {
  if (link.ready_) return;
  link.ready_ = true;
  ready_.push_back(std::static_pointer_cast<UcxLink>(link.shared_from_this()));
}

void UcxTransport::MarkLost(UcxLink& link, ucs_status_t status) {
  if (link.lost_) return;
  link.lost_ = true;
  link.lost_status_ = status;
  lost_.push_back(std::static_pointer_cast<UcxLink>(link.shared_from_this()));
}

void UcxTransport::OnSent(void* request, ucs_status_t status, void* user) {
  auto& op = *static_cast<UcxLink::SendOp*>(user);
  if (request != nullptr) ucp_request_free(request);
  if (status != UCS_OK) op.status = status;
  if (--op.pending > 0) return;
  const std::shared_ptr<UcxLink> link = std::move(op.link);
  UcxTransport& self = *link->owner_;
  Done done = std::move(op.done);
  link->Complete(op.bytes, std::move(done),
                 op.status == UCS_OK ? OkStatus() : Status(UcxFail("send", op.status)));
  self.free_sends_.splice(self.free_sends_.begin(), link->sends_, op.at);
  self.MarkReady(*link);
}

void UcxTransport::OnReceived(void* request, ucs_status_t status, size_t, void* user) {
  const std::unique_ptr<UcxLink::ReceiveOp> op(static_cast<UcxLink::ReceiveOp*>(user));
  if (request != nullptr) ucp_request_free(request);
  UcxLink& link = *op->link;
  --link.receives_;
  link.CompleteReceive(std::move(op->done),
                       status == UCS_OK ? OkStatus() : Status(UcxFail("receive", status)));
  link.owner_->MarkReady(link);
}

void UcxTransport::OnError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto& link = *static_cast<UcxLink*>(arg);
  if (link.owner_ != nullptr) link.owner_->MarkLost(link, status);
}

ucs_status_t UcxTransport::OnMessage(void* arg, const void* header, size_t header_bytes, void* data,
                                     size_t bytes, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxTransport*>(arg);
  const ucp_ep_h reply_ep =
      (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0 ? param->reply_ep : nullptr;
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const ByteSpan head(static_cast<const std::byte*>(header), header_bytes);
  if (head.size() < kFrameHeaderBytes || head.size() > kFrameHeaderBytes + kMaxMetaBytes) {
    self.Reject(reply_ep, fmt::format("a message with a header of {} bytes", head.size()));
    return UCS_OK;
  }
  if (self.quiet_) {
    Deferred frame;
    frame.head.assign(head.begin(), head.end());
    frame.bytes = bytes;
    frame.reply_ep = reply_ep;
    if (rendezvous) {
      frame.rendezvous = data;
    } else {
      const auto* from = static_cast<const std::byte*>(data);
      frame.payload.assign(from, from + bytes);
    }
    self.deferred_.push_back(std::move(frame));
    return rendezvous ? UCS_INPROGRESS : UCS_OK;
  }
  self.Dispatch(head, rendezvous ? nullptr : data, rendezvous ? data : nullptr, bytes, reply_ep);
  return UCS_OK;  // A rendezvous that nobody received ends here, for its sender too.
}

ucs_status_t UcxTransport::OnMore(void* arg, const void* header, size_t header_bytes, void* data,
                                  size_t bytes, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxTransport*>(arg);
  const ucp_ep_h reply_ep =
      (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0 ? param->reply_ep : nullptr;
  const ByteSpan head(static_cast<const std::byte*>(header), header_bytes);
  const ByteSpan fragment(static_cast<const std::byte*>(data), bytes);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    self.Reject(reply_ep, "a fragment that is no eager message");
  } else if (self.quiet_) {
    Deferred frame;
    frame.more = true;
    frame.head.assign(head.begin(), head.end());
    frame.payload.assign(fragment.begin(), fragment.end());
    frame.reply_ep = reply_ep;
    self.deferred_.push_back(std::move(frame));
  } else {
    self.AddFragment(reply_ep, head, fragment);
  }
  return UCS_OK;
}

void UcxTransport::AddFragment(ucp_ep_h reply_ep, ByteSpan head, ByteSpan fragment) {
  const auto found = by_reply_ep_.find(reply_ep);
  if (found == by_reply_ep_.end() || found->second->lost_) return;  // Its frame was dropped, too.
  UcxLink& link = *found->second;
  if (!link.arriving_.Add(head, fragment)) {
    return Reject(reply_ep, fmt::format("a fragment of {} bytes that is not the next", fragment.size()));
  }
  if (!link.arriving_.open()) EndFragments(link, OkStatus());
}

void UcxTransport::EndFragments(UcxLink& link, Status status) {
  const bool wanted = link.arriving_.wanted();
  Done done = link.arriving_.End();
  if (!wanted) return;
  --link.receives_;
  link.CompleteReceive(std::move(done), std::move(status));
  MarkReady(link);
}

void UcxTransport::Reject(ucp_ep_h reply_ep, const std::string& why) {
  ++counters_.rejected_frames;
  const auto found = by_reply_ep_.find(reply_ep);
  if (reply_ep == nullptr || found == by_reply_ep_.end()) return;
  LogWarn("ucx.reject", {{"session", found->second->session_id()}, {"why", why}});
  MarkLost(*found->second, UCS_ERR_INVALID_PARAM);
}

std::shared_ptr<UcxLink> UcxTransport::Accept(ucp_ep_h reply_ep, const FrameHeader& header) {
  Admissions::Entry entry;
  if (!options_.server || header.op != Op::kHello || reply_ep == nullptr ||
      !admissions_.Find(header.session_id, &entry)) {
    return nullptr;
  }
  for (const auto& link : links_) {
    if (link->session_id() == header.session_id && !link->closed()) return nullptr;
  }
  Result<std::shared_ptr<UcxLink>> made = MakeLink(header.session_id, entry.peer_address);
  if (!made) {
    LogWarn("ucx.accept_failed", {{"session", header.session_id}, {"why", made.error().message}});
    return nullptr;
  }
  const std::shared_ptr<UcxLink> link = std::move(*made);
  link->reply_ep_ = reply_ep;
  by_reply_ep_[reply_ep] = link;
  sink_.OnAccept(link->MakeEndpoint());
  return link;
}

std::shared_ptr<UcxLink> UcxTransport::FindLink(ucp_ep_h reply_ep, const FrameHeader& header) {
  const auto found = by_reply_ep_.find(reply_ep);
  if (found != by_reply_ep_.end()) return found->second;
  if (options_.server) return nullptr;
  // A client knows the server by its session until UCX has paired the two endpoints.
  for (const auto& link : links_) {
    if (link->session_id() != header.session_id || link->reply_ep_ != link->ep_) continue;
    link->reply_ep_ = reply_ep;
    by_reply_ep_[reply_ep] = link;
    return link;
  }
  return nullptr;
}

bool UcxTransport::Dispatch(ByteSpan head, const void* data, void* rendezvous, size_t bytes,
                            ucp_ep_h reply_ep) {
  const Result<FrameHeader> header = DecodeFrameHeader(head);
  // Less than all: the first fragment.
  if (!header || (header->payload_bytes != bytes &&
                  (rendezvous != nullptr || bytes == 0 || bytes > header->payload_bytes))) {
    Reject(reply_ep, header ? fmt::format("{} bytes came, the header says {}", bytes, header->payload_bytes)
                            : header.error().message);
    return false;
  }
  std::shared_ptr<UcxLink> link = FindLink(reply_ep, *header);
  if (link == nullptr) {
    link = Accept(reply_ep, *header);
    if (link == nullptr) {
      ++counters_.rejected_frames;
      return false;
    }
  } else if (header->session_id != link->session_id()) {
    Reject(reply_ep, fmt::format("a frame of session {:016x}", header->session_id));
    return false;
  }
  if (link->lost_) return false;
  const uint64_t payload_bytes = header->payload_bytes;
  if (payload_bytes > bytes) {
    if (link->arriving_.open()) {
      Reject(reply_ep, "a frame before the fragments of the one before");
      return false;
    }
    link->arriving_.Begin(payload_bytes, bytes);  // To be dropped, unless somebody wants them.
  }
  if (link->closed() || link->endpoint() == nullptr) return false;
  ++counters_.frames_received;
  counters_.bytes_received += payload_bytes;
  if (header->op == Op::kBye) {
    MarkLost(*link, UCS_ERR_CONNECTION_RESET);
    return false;
  }
  UcxIncoming incoming(*this, link, data, rendezvous, rendezvous != nullptr ? 0 : bytes, payload_bytes);
  sink_.OnFrame(*link->endpoint(), *header, head.subspan(kFrameHeaderBytes), incoming);
  return incoming.used();
}

void UcxTransport::StartClose(UcxLink& link) {
  if (link.ep_ == nullptr) return;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  link.close_since_ = clock_.Now();
  std::erase_if(by_reply_ep_, [&](const auto& entry) { return entry.second.get() == &link; });
  EndFragments(link, UcxFail("receive", UCS_ERR_CANCELED));
  ucs_status_ptr_t request = ucp_ep_close_nbx(link.ep_, &param);
  link.ep_ = nullptr;
  link.closing_ = UCS_PTR_IS_PTR(request) ? request : nullptr;
  auto self = std::static_pointer_cast<UcxLink>(link.shared_from_this());
  if (std::find(closing_.begin(), closing_.end(), self) == closing_.end()) closing_.push_back(self);
}

size_t UcxTransport::RunClosing() {
  size_t events = 0;
  for (size_t i = 0; i < closing_.size();) {
    const std::shared_ptr<UcxLink> link = closing_[i];
    if (link->flushing_ && link->ep_ != nullptr) {
      const bool late = clock_.Now() - link->close_since_ > kCloseTimeout;
      // That a send is done says no more than that the kernel has it; the peer hangs up at our kBye.
      // UCX's own flushing close never ends when the peer hangs up meanwhile.
      if (link->lost_ || late) {
        link->flushing_ = false;
        StartClose(*link);
        ++events;
      }
    }
    if (link->closing_ != nullptr && ucp_request_check_status(link->closing_) != UCS_INPROGRESS) {
      ucp_request_free(link->closing_);
      link->closing_ = nullptr;
      ++events;
    }
    if (link->ep_ == nullptr && link->closing_ == nullptr && link->idle()) {
      std::erase(links_, link);
      closing_.erase(closing_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  return events;
}

void UcxTransport::Lose(const std::shared_ptr<UcxLink>& link, Error why) {
  if (link->closed_) {  // Ours already: no OnClosed, but nothing more will be flushed.
    StartClose(*link);
    return;
  }
  link->closed_ = true;
  StartClose(*link);
  ++counters_.endpoints_lost;
  if (link->endpoint() != nullptr) sink_.OnClosed(*link->endpoint(), why);
}

size_t UcxTransport::Progress() {
  size_t events = 0;
  progressing_ = true;
  while (events < 64 && ucp_worker_progress(worker_) != 0) ++events;
  progressing_ = false;
  return events;
}

size_t UcxTransport::RunReady() {
  size_t events = 0;
  while (!ready_.empty() && events < 4096) {
    std::vector<std::shared_ptr<UcxLink>> ready;
    ready.swap(ready_);
    for (const auto& link : ready) {
      link->ready_ = false;
      events += link->RunCompletions();
    }
    for (const auto& link : ready) {
      if (link->has_completions()) MarkReady(*link);
    }
  }
  return events;
}

void UcxTransport::Sweep(Nanos now) {
  next_sweep_ = now + kSweepEvery;
  const std::vector<std::shared_ptr<UcxLink>> links = links_;
  for (const auto& link : links) {
    if (link->closed_ || link->sends_.empty()) continue;
    if (now - link->sends_.front().since <= limits_.send_timeout) continue;
    Lose(link, Error{Code::kDeadlineExceeded,
                     fmt::format("ucx: a send of {} bytes was not taken within {} ms; endpoint closed",
                                 link->sends_.front().bytes, limits_.send_timeout / kMillisecond)});
  }
}

size_t UcxTransport::Poll() {
  size_t events = 0;
  for (size_t left = deferred_.size(); left > 0; --left, ++events) {
    const Deferred frame = std::move(deferred_.front());
    deferred_.pop_front();
    if (frame.more) {
      AddFragment(frame.reply_ep, frame.head, frame.payload);
      continue;
    }
    const bool used = Dispatch(frame.head, frame.rendezvous == nullptr ? frame.payload.data() : nullptr,
                               frame.rendezvous, frame.bytes, frame.reply_ep);
    if (frame.rendezvous != nullptr && !used) ucp_am_data_release(worker_, frame.rendezvous);
  }
  const Nanos now = clock_.Now();
  if (now - last_event_ < kBusyFor || now - last_progress_ >= kQuietEvery) {
    last_progress_ = now;
    events += Progress();
  }
  events += RunReady();
  if (events > 0) last_event_ = now;
  if (!lost_.empty()) {
    std::vector<std::shared_ptr<UcxLink>> lost;
    lost.swap(lost_);
    for (const auto& link : lost) {
      ++events;
      Error why = UcxError("the peer is gone", link->lost_status_);
      if (link->lost_status_ == UCS_ERR_INVALID_PARAM) {
        why = Error{Code::kInvalidArgument, "ucx: the peer sent a malformed frame"};
      }
      Lose(link, std::move(why));
    }
  }
  if (!closing_.empty()) events += RunClosing() + RunReady();
  if (now >= next_sweep_) Sweep(now);
  return events;
}

bool UcxTransport::Arm() {
  if (!ready_.empty() || !lost_.empty() || !deferred_.empty() || !closing_.empty()) return false;
  return ucp_worker_arm(worker_) == UCS_OK;
}

Result<std::unique_ptr<Transport>> OpenUcx(const UcxOptions& options, FrameSink& sink,
                                           const Clock& clock) {
  auto transport = std::make_unique<UcxTransport>(options, sink, clock);
  TIERCEL_TRY(transport->Open());
  return transport;
}

}  // namespace tiercel
