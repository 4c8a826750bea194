// A client of the same-host transport by hand, which can say what the real one never would.
#ifndef TIERCEL_TESTS_E2E_MEMFD_PEER_H_
#define TIERCEL_TESTS_E2E_MEMFD_PEER_H_

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/units.h"
#include "tests/e2e/bad_frames.h"
#include "transport/memfd_ring.h"
#include "transport/memfd_shared.h"

namespace tiercel {

constexpr uint64_t kRing = 1 << 16;
constexpr uint64_t kControlBytes = 4096, kToClientAt = 1024;
constexpr uint64_t kStaging = 1 << 20;

class Peer {
 public:
  // What a greeting says; changed before Greet.
  SocketNote note;
  bool both_memfds = true, sealed = true;
  uint64_t really = kControlBytes + 2 * kRing;  // Bytes of the shared memory that is passed.

  Status Connect(const v1::OpenSessionResponse& session) {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    const std::string& path = session.shards(0).address();
    if (path.empty() || path.size() >= sizeof(to.sun_path)) return Fail(Code::kInternal, "no socket was offered");
    std::memcpy(to.sun_path, path.data(), path.size());
    socket_ = FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (connect(socket_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
      return Fail(Code::kUnavailable, "connect to " + path);
    }
    note.kind = SocketNote::Kind::kConnect;
    note.session_id = session.session_id();
    note.ring_bytes = kRing;
    note.bytes = kStaging;
    return OkStatus();
  }

  Status Greet() {
    FileDescriptor rings, staging;
    if (sealed) {
      TIERCEL_ASSIGN(rings, MakeSealedMemfd("rings", really));
    } else {
      rings = FileDescriptor(memfd_create("rings", MFD_CLOEXEC | MFD_ALLOW_SEALING));
      if (ftruncate(rings.get(), static_cast<off_t>(really)) != 0) return Fail(Code::kInternal, "ftruncate");
    }
    TIERCEL_ASSIGN(staging, MakeSealedMemfd("staging", kStaging));
    if (sealed && really == kControlBytes + 2 * kRing) {
      TIERCEL_ASSIGN(shared_, Mapping::Map(rings.get(), really, true));
      TIERCEL_ASSIGN(staging_, Mapping::Map(staging.get(), kStaging, true));
      std::byte* at = shared_->data();
      control_ = reinterpret_cast<RingControl*>(at);
      data_ = at + kControlBytes;
      out_ = RingProducer(control_, data_, kRing);
      in_ = RingConsumer(reinterpret_cast<RingControl*>(at + kToClientAt), data_ + kRing, kRing);
    }
    const int fds[] = {rings.get(), staging.get()};
    return SendNote(socket_.get(), note, fds, both_memfds ? 2 : 1) ? OkStatus() : Fail(Code::kUnavailable, "no greeting");
  }

  // A frame with its payload in the staging; spoil may change what stands before it in the ring.
  void Send(const Raw& raw, const std::function<void(RecordHead&)>& spoil = {}) {
    const auto header = raw.Header(note.session_id);
    RecordHead head;
    head.record_bytes = static_cast<uint32_t>(RoundUp(sizeof(head) + header.size() + raw.meta.size(), 64));
    head.meta_bytes = static_cast<uint32_t>(raw.meta.size());
    head.frame = ++frame_;
    head.payload_bytes = raw.payload.size();
    if (head.payload_bytes > 0) head.at = PayloadAt::kStaging;
    if (!raw.payload.empty()) std::memcpy(staging_->data(), raw.payload.data(), raw.payload.size());
    const uint64_t size = head.record_bytes;
    if (spoil) spoil(head);
    std::byte* at = out_.Reserve(size);
    std::memcpy(at, &head, sizeof(head));
    std::memcpy(at + sizeof(head), header.data(), header.size());
    std::memcpy(at + sizeof(head) + header.size(), raw.meta.data(), raw.meta.size());
    if (out_.Publish(size)) Wake();
  }
  void Wake() { Note(SocketNote{}); }
  void Note(const SocketNote& what) { (void)SendNote(socket_.get(), what, nullptr, 0); }
  void SayBytes(ByteSpan bytes) { (void)send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  RingControl& control() { return *control_; }

  struct Answer {
    bool hung_up = false;
    FrameHeader header;
    std::string text;
  };
  // The next frame, or the end of the connection; nothing within 8 s (a peer has 5 to greet and say HELLO).
  std::optional<Answer> Next() {
    bool hung_up = false;
    for (int i = 0; i < 8000; ++i) {
      RecordHead head;
      const std::byte* body = nullptr;
      if (shared_ != nullptr && in_.Peek(&head, &body) == RingConsumer::Peeked::kRecord) {
        Answer answer;
        if (head.kind == RecordKind::kFrame) {
          const auto header = DecodeFrameHeader(ByteSpan(body, kFrameHeaderBytes));
          if (header) answer.header = *header;
          answer.text.assign(reinterpret_cast<const char*>(body) + kFrameHeaderBytes, head.meta_bytes);
        }
        in_.Pop(head.record_bytes);
        if (head.kind == RecordKind::kFrame) return answer;
        continue;
      }
      pollfd wait{socket_.get(), POLLIN, 0};
      char byte[256];
      if (hung_up) return Answer{true, {}, {}};
      // What was said before the hang-up is in the ring by now: one more look.
      hung_up = poll(&wait, 1, 1) == 1 && recv(socket_.get(), byte, sizeof(byte), MSG_DONTWAIT) <= 0;
    }
    return std::nullopt;
  }

 private:
  FileDescriptor socket_;
  std::shared_ptr<Mapping> shared_, staging_;
  RingControl* control_ = nullptr;
  std::byte* data_ = nullptr;
  RingProducer out_;
  RingConsumer in_;
  uint64_t frame_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_E2E_MEMFD_PEER_H_
