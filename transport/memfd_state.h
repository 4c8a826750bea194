// What the same-host transport and each of its links hold; memfd_connect.cc says how they meet,
// memfd_transport.cc what they do then. Internal to transport/memfd*.
//
// Ownership: the transport and the endpoint's handle share a link; holds share it too.
// Threads: the transport's owner alone.
#ifndef TIERCEL_TRANSPORT_MEMFD_STATE_H_
#define TIERCEL_TRANSPORT_MEMFD_STATE_H_

#include <fmt/format.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "transport/factory.h"
#include "transport/link.h"
#include "transport/memfd_ring.h"
#include "transport/memfd_shared.h"

namespace tiercel {

class MemfdTransport;

class MemfdLink final : public Link {
 public:
  MemfdLink(MemfdTransport& owner, uint64_t key, uint64_t session_id, const Transport::Limits& limits)
      : Link(TransportKind::kMemfd, session_id, limits), owner_(&owner), key_(key) {}

  std::string Describe() const override { return fmt::format("memfd session {:016x}", session_id_); }
  Status Send(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done) override;
  void Close(CloseMode mode) override;
  // The peer may reuse what frame named.
  void Release(uint64_t frame);

 private:
  friend class MemfdTransport;
  struct SendOp {
    uint64_t bytes = 0;
    Done done;
    std::optional<uint64_t> bounce;   // Ours to free, in the bounce area,
    std::optional<uint64_t> staging;  // or in the staging.
  };

  // The rings over the mapped memory; client says which of them is ours to write.
  void SetUp(std::shared_ptr<Mapping> shared, uint64_t ring_bytes, uint64_t bounce_bytes, bool client);
  Status Post(const FrameHeader& header, ByteSpan meta, ByteSpan payload, Done done);
  bool PutRecord(const RecordHead& head, const std::byte* frame_header, ByteSpan meta, ByteSpan in_line);
  void Wake();
  void FreeOp(const SendOp& op);
  void FailSends(const Error& why);
  void FlushReleases();
  bool Drained() { return sends_.empty() && releases_.empty() && out_.Consumed() == out_.head(); }

  MemfdTransport* owner_;  // Null once the transport let go.
  const uint64_t key_;
  bool client_ = false;
  bool bound_ = false;      // HELLO was said (server), or needs not be (client).
  bool flushing_ = false;
  uint32_t name_space_ = 0;
  Nanos since_ = 0;         // Of the connection, then of a flush.
  FileDescriptor socket_;
  std::shared_ptr<Mapping> shared_;
  std::shared_ptr<Mapping> peer_staging_;  // Server: what the client's puts lie in.
  std::byte* bounce_ = nullptr;
  uint64_t bounce_bytes_ = 0;
  std::optional<RangeAllocator> bounce_free_;  // Server: it alone writes there.
  RingProducer out_;
  RingConsumer in_;
  uint64_t next_frame_ = 1;
  std::map<uint64_t, SendOp> sends_;  // Named by reference and not released yet.
  std::deque<std::pair<uint64_t, Nanos>> unread_;  // Ring position and time of records not read yet.
  std::vector<uint64_t> releases_;    // That found the ring full.
  std::unordered_map<uint32_t, uint32_t> passed_;  // Server: region to generation known to this peer.
  struct PeerRegion {
    uint32_t generation = 0;
    std::shared_ptr<Mapping> mapping;
  };
  std::unordered_map<uint32_t, PeerRegion> peer_regions_;  // Client.
};

class MemfdTransport final : public Transport {
 public:
  MemfdTransport(const MemfdOptions& options, FrameSink& sink, const Clock& clock);
  ~MemfdTransport() override;
  Status Open();

  TransportKind kind() const override { return TransportKind::kMemfd; }
  std::string LocalAddress() const override { return options_.socket_path; }
  Status Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) override {
    return admissions_.Admit(session_id, peer_address, name_space);
  }
  void Revoke(uint64_t session_id) override { admissions_.Revoke(session_id); }
  Result<std::unique_ptr<Endpoint>> Connect(uint64_t session_id, std::string_view address) override;
  Status AddMemory(const MemoryRegion& region) override;
  void RemoveMemory(uint32_t region_id) override;
  Result<MutableByteSpan> AllocateStaging(uint64_t bytes) override;
  void FreeStaging(MutableByteSpan span) override;
  size_t Poll() override;
  int event_fd() const override { return epoll_.get(); }
  bool Arm() override;
  Counters counters() const override { return counters_; }

 private:
  friend class MemfdLink;
  static constexpr uint64_t kListenerKey = 0;
  struct Region {
    MemoryRegion region;
    uint32_t generation = 0;
  };

  bool server() const { return !options_.socket_path.empty(); }
  bool Watch(int fd, uint64_t key);
  void AcceptAll();
  void TakeNotes(const std::shared_ptr<MemfdLink>& link);
  bool ShakeHands(MemfdLink& link, const SocketNote& note, std::vector<FileDescriptor>& fds);
  size_t TakeRecords(const std::shared_ptr<MemfdLink>& link);
  bool TakeFrame(const std::shared_ptr<MemfdLink>& link, const RecordHead& head, const std::byte* body);
  // Tells a peer that has said HELLO why, and ends its connection.
  void Garbage(const std::shared_ptr<MemfdLink>& link, const std::string& why, Code code = Code::kInvalidArgument);
  void Lose(const std::shared_ptr<MemfdLink>& link, Error why);
  void Drop(MemfdLink& link);
  void Sweep(Nanos now);
  const Region* FindRegion(const std::byte* at, size_t bytes) const;
  std::optional<uint64_t> StagingOffset(ByteSpan payload) const;

  const MemfdOptions options_;
  const uint64_t ring_bytes_;
  FrameSink& sink_;
  const Clock& clock_;
  const Limits limits_;
  Admissions admissions_;
  Counters counters_;
  FileDescriptor epoll_;
  FileDescriptor listener_;
  FileDescriptor staging_fd_;  // Client.
  std::shared_ptr<Mapping> staging_;
  std::optional<RangeAllocator> staging_free_;
  std::map<const std::byte*, Region> regions_;  // Server, by base.
  uint32_t next_generation_ = 1;
  uint64_t next_key_ = kListenerKey + 1;
  std::unordered_map<uint64_t, uint64_t> by_session_;  // Server: bound sessions.
  std::vector<std::shared_ptr<MemfdLink>> links_;
  bool armed_ = false;
  Nanos next_socket_ = 0;
  Nanos next_sweep_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_MEMFD_STATE_H_
