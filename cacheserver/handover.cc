#include "cacheserver/handover.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>
#include <utility>

#include "base/log.h"

namespace tiercel {
namespace {

constexpr uint32_t kMagic = 0x314f4854;  // "THO1"
constexpr size_t kFdsANote = 64;
constexpr Nanos kPatience = 5 * kSecond;  // For one note of a peer that has nothing to wait for.
constexpr uint64_t kMaxSlabs = 1 << 20;

// One packet; descriptors ride along. All of it is native: both ends are on one machine.
struct Note {
  enum class Kind : uint32_t { kAsk = 1, kRefuse = 2, kAccept = 3, kShard = 4, kSlabs = 5, kEnd = 6, kServing = 7 };
  uint32_t magic = kMagic;
  Kind kind = Kind::kAsk;
  uint32_t shard = 0;   // kAsk: shards; kShard, kSlabs: whose; kEnd: shards.
  uint32_t count = 0;   // kShard: slabs to come.
  uint64_t bytes = 0;   // kAsk: of a slab; kShard: of the snapshot.
  char text[232] = {};  // kAsk, kAccept: version; kRefuse: why.
};
static_assert(sizeof(Note) == 256);

void SetText(Note& note, std::string_view text) {
  std::memcpy(note.text, text.data(), std::min(text.size(), sizeof(note.text) - 1));
}

Status SendNote(int socket, const Note& note, std::span<const FileDescriptor> fds = {}) {
  iovec io{const_cast<Note*>(&note), sizeof(note)};
  alignas(cmsghdr) char control[CMSG_SPACE(kFdsANote * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    for (size_t i = 0; i < fds.size(); ++i) {
      const int fd = fds[i].get();
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
    }
  }
  ssize_t sent = -1;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent == sizeof(note)) return OkStatus();
  return Fail(Code::kUnavailable, fmt::format("hand-over: {}", std::strerror(errno)));
}

Result<Note> ReadNote(int socket, Nanos timeout, std::vector<FileDescriptor>* fds) {
  const Nanos end = Clock::Monotonic().Now() + timeout;
  while (true) {
    pollfd wait{socket, POLLIN, 0};
    const Nanos left = std::max<Nanos>(0, end - Clock::Monotonic().Now());
    const int ready = poll(&wait, 1, static_cast<int>((left + kMillisecond - 1) / kMillisecond));
    if (ready > 0) break;
    if (ready < 0 && errno == EINTR) continue;
    return Fail(Code::kUnavailable, "hand-over: the other process did not answer in time");
  }
  Note note;
  iovec io{&note, sizeof(note)};
  alignas(cmsghdr) char control[CMSG_SPACE(kFdsANote * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); got >= 0 && header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      FileDescriptor taken(fd);  // Closed again where none are expected.
      if (fds != nullptr) fds->push_back(std::move(taken));
    }
  }
  if (got <= 0) return Fail(Code::kUnavailable, "hand-over: the other process is gone");
  if (got != sizeof(note) || note.magic != kMagic || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return Fail(Code::kDataLoss, "hand-over: the other process says what makes no sense (or too few files may be open)");
  }
  note.text[sizeof(note.text) - 1] = '\0';
  return note;
}

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Fail(Code::kInvalidArgument, fmt::format("{}: longer than a Unix socket's path may be ({} bytes)", path,
                                                    sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// The other end's process.
Result<pid_t> CheckUser(int socket) {
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) {
    return Fail(Code::kUnavailable, fmt::format("hand-over: {}", std::strerror(errno)));
  }
  if (peer.uid == geteuid() || peer.uid == 0) return peer.pid;
  return Fail(Code::kPermissionDenied, fmt::format("hand-over: process {} is user {}'s, this one is user {}'s", peer.pid,
                                                   peer.uid, geteuid()));
}

}  // namespace

// ---- memory ------------------------------------------------------------------------------------

std::string RestartSocket(const Config& config) {
  if (config.restart_socket == "off") return "";
  if (!config.restart_socket.empty()) return config.restart_socket;
  const size_t colon = config.grpc_listen.rfind(':');
  const std::string port = colon == std::string::npos ? "" : config.grpc_listen.substr(colon + 1);
  if (port.empty() || port.find_first_not_of("0123456789") != std::string::npos || port == "0") return "";
  for (const char* variable : {"RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"}) {
    if (const char* folder = std::getenv(variable); folder != nullptr && *folder == '/') {
      return fmt::format("{}/tiercel-{}.sock", folder, port);
    }
  }
  return fmt::format("/tmp/tiercel-{}-{}.sock", geteuid(), port);
}

Result<ShardLeft> LeaveShard(TierStack& stack, uint32_t shard, uint32_t shards) {
  const TierStack::Left plan = stack.PlanSnapshot();
  const auto failed = [&](std::string_view what) {
    return Fail(Code::kUnavailable, fmt::format("shard {}: {}: {}", shard, what, std::strerror(errno)));
  };
  stack.arena().LeaveMapped();
  ShardLeft left;
  left.snapshot_bytes = plan.bytes;
  left.snapshot = FileDescriptor(memfd_create("tiercel-snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!left.snapshot.valid() || ftruncate(left.snapshot.get(), static_cast<off_t>(plan.bytes)) != 0) {
    return failed("memory for a snapshot");
  }
  void* room = mmap(nullptr, plan.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, left.snapshot.get(), 0);
  if (room == MAP_FAILED) return failed("memory for a snapshot");
  stack.WriteSnapshot(plan, shard, shards, {static_cast<std::byte*>(room), plan.bytes});
  munmap(room, plan.bytes);
  for (const uint32_t slab : plan.slabs) {
    left.slabs.emplace_back(fcntl(stack.arena().slab(slab).memfd, F_DUPFD_CLOEXEC, 0));
    if (!left.slabs.back().valid()) return failed("a descriptor for a slab");
  }
  return left;
}

Result<TierStack::Adopted> AdoptShard(TierStack& stack, uint32_t shard, uint32_t shards, ShardLeft left) {
  struct stat info{};
  if (fstat(left.snapshot.get(), &info) != 0 || static_cast<uint64_t>(info.st_size) != left.snapshot_bytes) {
    return Fail(Code::kDataLoss, "snapshot: of another size than was said");
  }
  // A copy: it is checked once and cannot change after.
  std::vector<std::byte> bytes(left.snapshot_bytes);
  for (uint64_t at = 0; at < bytes.size();) {
    const ssize_t got = pread(left.snapshot.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Fail(Code::kDataLoss, "snapshot: cannot be read");
    at += static_cast<uint64_t>(got);
  }
  return stack.Adopt(bytes, shard, shards, std::move(left.slabs));
}

// ---- the old process ---------------------------------------------------------------------------

Result<std::unique_ptr<HandoverServer>> HandoverServer::Listen(const std::string& path, const HandoverTerms& terms,
                                                               std::function<void()> on_asked) {
  TIERCEL_ASSIGN(const sockaddr_un address, AddressOf(path));
  // What a process of ours that was killed left there goes; anything else stays.
  struct stat info{};
  if (lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode) || info.st_uid != geteuid()) {
      return Fail(Code::kInvalidArgument, fmt::format("{}: is there, and not a socket of this user", path));
    }
    unlink(path.c_str());
  }
  FileDescriptor listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const mode_t mask = umask(0177);
  const bool bound = listener.valid() &&
                     bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  umask(mask);
  if (!bound || listen(listener.get(), 4) != 0) {
    return Fail(Code::kUnavailable, fmt::format("{}: {}", path, std::strerror(errno)));
  }
  return std::unique_ptr<HandoverServer>(new HandoverServer(path, terms, std::move(on_asked), std::move(listener)));
}

HandoverServer::HandoverServer(std::string path, HandoverTerms terms, std::function<void()> on_asked,
                               FileDescriptor listener)
    : path_(std::move(path)),
      terms_(std::move(terms)),
      on_asked_(std::move(on_asked)),
      listener_(std::move(listener)),
      wake_(eventfd(0, EFD_CLOEXEC)),
      thread_([this] { Run(); }) {}

HandoverServer::~HandoverServer() {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

bool HandoverServer::asked() const {
  MutexLock lock(mutex_);
  return successor_.valid();
}

void HandoverServer::Run() {
  pthread_setname_np(pthread_self(), "handover");
  while (true) {
    pollfd wait[2] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (poll(wait, 2, -1) < 0 && errno != EINTR) break;
    if (wait[1].revents != 0) break;
    if (wait[0].revents == 0) continue;
    FileDescriptor peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!peer.valid()) continue;
    Answer(std::move(peer));
    if (asked()) break;
  }
  // The successor listens at the same path.
  unlink(path_.c_str());
  listener_.Reset();
}

void HandoverServer::Answer(FileDescriptor peer) {
  const auto refuse = [&](const std::string& why) {
    LogWarn("handover.refused", {{"why", why}});
    Note note;
    note.kind = Note::Kind::kRefuse;
    SetText(note, why);
    (void)SendNote(peer.get(), note);
  };
  if (const auto user = CheckUser(peer.get()); !user) return refuse(user.error().message);
  const Result<Note> ask = ReadNote(peer.get(), kPatience, nullptr);
  if (!ask || ask->kind != Note::Kind::kAsk) return refuse(ask ? "expected a question" : ask.error().message);
  if (ask->shard != terms_.shards) {
    return refuse(fmt::format("this node has {} shards, the new one {}: blocks are placed by shard", terms_.shards, ask->shard));
  }
  if (ask->bytes != terms_.slab_bytes) {
    return refuse(fmt::format("this node has slabs of {} bytes, the new one of {}", terms_.slab_bytes, ask->bytes));
  }
  Note accept;
  accept.kind = Note::Kind::kAccept;
  SetText(accept, terms_.version);
  if (const Status sent = SendNote(peer.get(), accept); !sent) return refuse(sent.error().message);
  LogInfo("handover.asked", {{"by", std::string(ask->text)}});
  {
    MutexLock lock(mutex_);
    successor_ = std::move(peer);
  }
  on_asked_();
}

Status HandoverServer::Send(std::vector<ShardLeft> shards, Nanos timeout) {
  int socket = -1;
  {
    MutexLock lock(mutex_);
    socket = successor_.get();
  }
  for (uint32_t number = 0; number < shards.size(); ++number) {
    ShardLeft& left = shards[number];
    Note note;
    note.kind = Note::Kind::kShard;
    note.shard = number;
    note.count = static_cast<uint32_t>(left.slabs.size());
    note.bytes = left.snapshot_bytes;
    TIERCEL_TRY(SendNote(socket, note, std::span(&left.snapshot, 1)));
    note.kind = Note::Kind::kSlabs;
    for (size_t at = 0; at < left.slabs.size(); at += kFdsANote) {
      const std::span some(left.slabs.data() + at, std::min(kFdsANote, left.slabs.size() - at));
      TIERCEL_TRY(SendNote(socket, note, some));
    }
  }
  Note end;
  end.kind = Note::Kind::kEnd;
  end.shard = static_cast<uint32_t>(shards.size());
  TIERCEL_TRY(SendNote(socket, end));
  TIERCEL_ASSIGN(const Note serving, ReadNote(socket, timeout, nullptr));
  if (serving.kind != Note::Kind::kServing) return Fail(Code::kDataLoss, "hand-over: an answer out of order");
  return OkStatus();
}

// ---- the new process ---------------------------------------------------------------------------

Result<Handover> Handover::Ask(const std::string& path, const HandoverTerms& terms, Nanos timeout) {
  TIERCEL_ASSIGN(const sockaddr_un address, AddressOf(path));
  Handover handover;
  handover.socket_ = FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const int socket = handover.socket_.get();
  if (socket < 0 || connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Fail(Code::kNotFound, fmt::format("no server listens at {}: {}", path, std::strerror(errno)));
  }
  TIERCEL_ASSIGN(const pid_t old, CheckUser(socket));
  const FileDescriptor process(static_cast<int>(syscall(SYS_pidfd_open, old, 0)));
  Note ask;
  ask.shard = terms.shards;
  ask.bytes = terms.slab_bytes;
  SetText(ask, terms.version);
  TIERCEL_TRY(SendNote(socket, ask));
  TIERCEL_ASSIGN(const Note answer, ReadNote(socket, 2 * kPatience, nullptr));
  if (answer.kind == Note::Kind::kRefuse) return Fail(Code::kFailedPrecondition, answer.text);
  if (answer.kind != Note::Kind::kAccept) {
    return Fail(Code::kDataLoss, "hand-over: the old process says what makes no sense");
  }
  handover.version_ = answer.text;
  const Status received = handover.Receive(terms.shards, timeout);
  if (received) return handover;
  // It ends now, or was killed: its ports and its SSD folder are free when it is gone.
  pollfd gone{process.get(), POLLIN, 0};
  if (process.valid()) (void)poll(&gone, 1, static_cast<int>(timeout / kMillisecond));
  return tl::unexpected<Error>(received.error());
}

Status Handover::Receive(uint32_t shards, Nanos timeout) {
  const auto nonsense = [] { return Fail(Code::kDataLoss, "hand-over: the old process says what makes no sense"); };
  // It drains before it sends: that takes what limits.drain allows it.
  const Nanos end = Clock::Monotonic().Now() + timeout;
  uint64_t slabs_to_come = 0;
  while (true) {
    std::vector<FileDescriptor> fds;
    TIERCEL_ASSIGN(const Note note, ReadNote(socket_.get(), std::max<Nanos>(0, end - Clock::Monotonic().Now()), &fds));
    if (note.kind == Note::Kind::kShard) {
      if (slabs_to_come > 0 || fds.size() != 1 || note.shard != shards_.size() || note.shard >= shards ||
          note.count > kMaxSlabs) {
        return nonsense();
      }
      shards_.push_back({std::move(fds[0]), note.bytes, {}});
      slabs_to_come = note.count;
    } else if (note.kind == Note::Kind::kSlabs) {
      if (fds.empty() || fds.size() > slabs_to_come) return nonsense();
      slabs_to_come -= fds.size();
      std::move(fds.begin(), fds.end(), std::back_inserter(shards_.back().slabs));
    } else if (note.kind == Note::Kind::kEnd) {
      if (slabs_to_come > 0 || note.shard != shards || shards_.size() != shards) return nonsense();
      return OkStatus();
    } else {
      return nonsense();
    }
  }
}

void Handover::Confirm() {
  Note note;
  note.kind = Note::Kind::kServing;
  (void)SendNote(socket_.get(), note);
  socket_.Reset();
}

}  // namespace tiercel
