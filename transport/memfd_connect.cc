// How the two ends of the same-host transport meet: the socket's name, the greeting with its
// descriptors, and the rings over the memory that they share from then on.
#include <errno.h>
#include <fmt/format.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "base/units.h"
#include "transport/memfd_state.h"

namespace tiercel {
namespace {

constexpr uint64_t kSlotBytes = 256;
constexpr uint64_t kMinRingBytes = 64 * kKiB;
constexpr uint64_t kMaxRingBytes = 64 * kMiB;
constexpr uint64_t kMaxStagingBytes = 64 * kGiB;
constexpr uint64_t kBounceBytes = 2 * 17 * kMiB;  // Two of the largest payloads.
constexpr uint64_t kControlBytes = 4096;
constexpr uint64_t kServerControlAt = 1024;

uint64_t SharedBytes(uint64_t ring, uint64_t bounce) { return kControlBytes + 2 * ring + bounce; }

}  // namespace

MemfdTransport::MemfdTransport(const MemfdOptions& options, FrameSink& sink, const Clock& clock)
    : options_(options),
      ring_bytes_(std::max<uint64_t>(kMinRingBytes, options.ring_slots * kSlotBytes)),
      sink_(sink),
      clock_(clock),
      limits_(options.limits),
      admissions_(options.limits.max_endpoints) {}

MemfdTransport::~MemfdTransport() {
  const auto links = links_;
  for (const auto& link : links) {
    link->Close(CloseMode::kForce);
    link->owner_ = nullptr;
  }
  if (listener_.valid()) unlink(options_.socket_path.c_str());
}

Status MemfdTransport::Open() {
  if ((options_.ring_slots & (options_.ring_slots - 1)) != 0 || ring_bytes_ > kMaxRingBytes) {
    return Fail(Code::kInvalidArgument, fmt::format("memfd: {} ring slots are no power of two up to {}",
                                                    options_.ring_slots, kMaxRingBytes / kSlotBytes));
  }
  epoll_ = FileDescriptor(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return Fail(Code::kUnavailable, fmt::format("memfd: epoll: {}", strerror(errno)));
  if (!server()) {
    if (options_.staging_bytes < kMaxPayloadBytes || options_.staging_bytes > kMaxStagingBytes) {
      return Fail(Code::kInvalidArgument, fmt::format("memfd: staging of {} bytes, need {} to {}",
                                                      options_.staging_bytes, kMaxPayloadBytes,
                                                      kMaxStagingBytes));
    }
    TIERCEL_ASSIGN(staging_fd_, MakeSealedMemfd("tiercel-staging", options_.staging_bytes));
    TIERCEL_ASSIGN(staging_, Mapping::Map(staging_fd_.get(), options_.staging_bytes, true));
    staging_free_.emplace(options_.staging_bytes);
    return OkStatus();
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options_.socket_path.size() >= sizeof(address.sun_path)) {
    return Fail(Code::kInvalidArgument, fmt::format("memfd: the socket path '{}' is over {} bytes",
                                                    options_.socket_path, sizeof(address.sun_path) - 1));
  }
  memcpy(address.sun_path, options_.socket_path.data(), options_.socket_path.size());
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  {  // A socket that nobody listens on is a leftover of a process that died.
    const FileDescriptor probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (connect(probe.get(), where, sizeof(address)) == 0) {
      return Fail(Code::kAlreadyExists,
                  fmt::format("memfd: another process listens on {}", options_.socket_path));
    }
    struct stat info{};
    if (lstat(options_.socket_path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
      unlink(options_.socket_path.c_str());
    }
  }
  FileDescriptor listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid() || fchmod(listener.get(), 0600) != 0 ||
      bind(listener.get(), where, sizeof(address)) != 0 || listen(listener.get(), 128) != 0 ||
      chmod(options_.socket_path.c_str(), 0600) != 0) {
    return Fail(Code::kUnavailable,
                fmt::format("memfd: listen on {}: {}", options_.socket_path, strerror(errno)));
  }
  listener_ = std::move(listener);
  if (!Watch(listener_.get(), kListenerKey)) {
    return Fail(Code::kUnavailable, fmt::format("memfd: epoll: {}", strerror(errno)));
  }
  return OkStatus();
}

bool MemfdTransport::Watch(int fd, uint64_t key) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = key;
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

Result<std::unique_ptr<Endpoint>> MemfdTransport::Connect(uint64_t session_id, std::string_view address) {
  if (server()) return Fail(Code::kFailedPrecondition, "memfd: a server does not connect");
  if (links_.size() >= limits_.max_endpoints) {
    return Fail(Code::kResourceExhausted, fmt::format("memfd: {} endpoints are open", links_.size()));
  }
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  if (address.empty() || address.size() >= sizeof(to.sun_path)) {
    return Fail(Code::kInvalidArgument, fmt::format("memfd: '{}' is no socket path", address));
  }
  memcpy(to.sun_path, address.data(), address.size());
  auto link = std::make_shared<MemfdLink>(*this, next_key_++, session_id, limits_);
  link->socket_ = FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!link->socket_.valid() ||
      connect(link->socket_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    return Fail(Code::kUnavailable, fmt::format("memfd: connect to {}: {}", address, strerror(errno)));
  }
  const uint64_t shared_bytes = SharedBytes(ring_bytes_, kBounceBytes);
  TIERCEL_ASSIGN(const FileDescriptor shared, MakeSealedMemfd("tiercel-rings", shared_bytes));
  TIERCEL_ASSIGN(std::shared_ptr<Mapping> mapping, Mapping::Map(shared.get(), shared_bytes, true));
  link->SetUp(std::move(mapping), ring_bytes_, kBounceBytes, /*client=*/true);
  link->bound_ = true;
  SocketNote note;
  note.kind = SocketNote::Kind::kConnect;
  note.session_id = session_id;
  note.ring_bytes = ring_bytes_;
  note.bounce_bytes = kBounceBytes;
  note.bytes = options_.staging_bytes;
  const int fds[] = {shared.get(), staging_fd_.get()};
  if (!SendNote(link->socket_.get(), note, fds, 2) || !Watch(link->socket_.get(), link->key_)) {
    return Fail(Code::kUnavailable, fmt::format("memfd: greet {}: {}", address, strerror(errno)));
  }
  links_.push_back(link);
  return link->MakeEndpoint();
}

void MemfdTransport::AcceptAll() {
  for (int i = 0; i < 64; ++i) {
    FileDescriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;
    if (links_.size() >= limits_.max_endpoints) {
      ++counters_.rejected_frames;
      LogWarn("memfd.full", {{"endpoints", links_.size()}});
      continue;
    }
    // The session is learned from the socket's first message; nothing is allocated before.
    auto link = std::make_shared<MemfdLink>(*this, next_key_++, 0, limits_);
    link->socket_ = std::move(socket);
    link->since_ = clock_.Now();
    if (Watch(link->socket_.get(), link->key_)) links_.push_back(std::move(link));
  }
}

bool MemfdTransport::ShakeHands(MemfdLink& link, const SocketNote& note, std::vector<FileDescriptor>& fds) {
  Admissions::Entry entry;
  if (!admissions_.Find(note.session_id, &entry) || by_session_.contains(note.session_id)) {
    LogWarn("memfd.refuse", {{"session", note.session_id}, {"why", "not admitted"}});
    return false;
  }
  if (fds.size() != 2 || note.ring_bytes < kMinRingBytes || note.ring_bytes > kMaxRingBytes ||
      (note.ring_bytes & (note.ring_bytes - 1)) != 0 || note.bounce_bytes > kMaxRingBytes ||
      note.bounce_bytes % 4096 != 0 || note.bytes == 0 || note.bytes > kMaxStagingBytes) {
    LogWarn("memfd.refuse", {{"session", note.session_id}, {"why", "absurd sizes"}});
    return false;
  }
  auto shared = Mapping::Map(fds[0].get(), SharedBytes(note.ring_bytes, note.bounce_bytes), true);
  auto staging = Mapping::Map(fds[1].get(), note.bytes, false);
  if (!shared || !staging) {
    LogWarn("memfd.refuse", {{"session", note.session_id},
                             {"why", !shared ? shared.error().message : staging.error().message}});
    return false;
  }
  ucred who{};
  socklen_t who_bytes = sizeof(who);
  getsockopt(link.socket_.get(), SOL_SOCKET, SO_PEERCRED, &who, &who_bytes);
  LogInfo("memfd.connect", {{"session", note.session_id}, {"pid", who.pid}, {"uid", who.uid}});
  // The link made at accept gets a successor of its own session.
  auto bound = std::make_shared<MemfdLink>(*this, link.key_, note.session_id, limits_);
  bound->socket_ = std::move(link.socket_);
  bound->since_ = link.since_;
  bound->name_space_ = entry.name_space;
  bound->peer_staging_ = std::move(*staging);
  bound->SetUp(std::move(*shared), note.ring_bytes, note.bounce_bytes, /*client=*/false);
  if (armed_) bound->in_.SetAsleep(true);
  by_session_[note.session_id] = link.key_;
  for (auto& other : links_) {
    if (other.get() == &link) {
      link.closed_ = true;
      other = std::move(bound);
      break;
    }
  }
  return true;
}

void MemfdLink::SetUp(std::shared_ptr<Mapping> shared, uint64_t ring_bytes, uint64_t bounce_bytes,
                      bool client) {
  client_ = client;
  shared_ = std::move(shared);
  std::byte* at = shared_->data();
  auto* to_server = reinterpret_cast<RingControl*>(at);
  auto* to_client = reinterpret_cast<RingControl*>(at + kServerControlAt);
  std::byte* to_server_data = at + kControlBytes;
  std::byte* to_client_data = to_server_data + ring_bytes;
  bounce_ = to_client_data + ring_bytes;
  bounce_bytes_ = bounce_bytes;
  if (client) {
    out_ = RingProducer(to_server, to_server_data, ring_bytes);
    in_ = RingConsumer(to_client, to_client_data, ring_bytes);
  } else {
    out_ = RingProducer(to_client, to_client_data, ring_bytes);
    in_ = RingConsumer(to_server, to_server_data, ring_bytes);
    bounce_free_.emplace(bounce_bytes);
  }
}

Result<std::unique_ptr<Transport>> MakeMemfdTransport(const MemfdOptions& options, FrameSink& sink,
                                                      const Clock& clock) {
  auto transport = std::make_unique<MemfdTransport>(options, sink, clock);
  TIERCEL_TRY(transport->Open());
  return transport;
}

}  // namespace tiercel
