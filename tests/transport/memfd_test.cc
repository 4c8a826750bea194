#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "tests/conformance/transport_conformance.h"
#include "transport/factory.h"
#include "transport/memfd_ring.h"
#include "transport/memfd_shared.h"

namespace tiercel {
namespace {

std::string SocketPath() {
  static int next = 0;
  return "/tmp/tiercel-memfd-test-" + std::to_string(getpid()) + "-" + std::to_string(next++);
}

class MemfdRig final : public TransportRig {
 public:
  std::unique_ptr<Transport> MakeServer(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    MemfdOptions options;
    options.socket_path = path_;
    options.limits = limits;
    return Take(MakeMemfdTransport(options, sink, clock));
  }
  std::unique_ptr<Transport> MakeClient(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    MemfdOptions options;
    options.limits = limits;
    return Take(MakeMemfdTransport(options, sink, clock));
  }
  bool in_place() const override { return true; }

 private:
  static std::unique_ptr<Transport> Take(Result<std::unique_ptr<Transport>> made) {
    EXPECT_TRUE(made) << made.error().message;
    return made ? std::move(*made) : nullptr;
  }
  const std::string path_ = SocketPath();
};

INSTANTIATE_TEST_SUITE_P(Memfd, TransportConformance,
                         ::testing::Values(TransportCase{
                             "memfd", [] { return std::make_unique<MemfdRig>(); }}),
                         [](const auto& tested) { return tested.param.name; });

// A slab as tiering makes them.
class Slab {
 public:
  explicit Slab(size_t bytes) : bytes_(bytes), fd_(memfd_create("slab", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(bytes)), 0);
    data_ = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
    EXPECT_EQ(fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL), 0);
  }
  ~Slab() {
    munmap(data_, bytes_);
    close(fd_);
  }
  MemoryRegion Region(uint32_t id, uint32_t name_space) const {
    return MemoryRegion{data_, bytes_, id, fd_, name_space};
  }
  std::byte* data() const { return data_; }

 private:
  const size_t bytes_;
  const int fd_;
  std::byte* data_ = nullptr;
};

class MemfdTransport : public TransportConformance {};
INSTANTIATE_TEST_SUITE_P(Memfd, MemfdTransport,
                         ::testing::Values(TransportCase{
                             "memfd", [] { return std::make_unique<MemfdRig>(); }}),
                         [](const auto& tested) { return tested.param.name; });

TEST_P(MemfdTransport, ARecordInASlabIsReadInPlaceUntilItsHoldEnds) {
  Slab slab(4 << 20);
  const auto record = Pattern(1 << 20, 42);
  std::copy(record.begin(), record.end(), slab.data() + 8192);
  ASSERT_TRUE(server_->AddMemory(slab.Region(3, 7)));
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  std::unique_ptr<InPlaceHold> hold;
  ByteSpan seen;
  client_sink_.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming& payload) {
    seen = ByteSpan(payload.data(), payload.size());
    hold = payload.Hold();
    return true;
  };
  int done = 0;
  ASSERT_TRUE(server->Send(Header(Op::kData, 1), {}, ByteSpan(slab.data() + 8192, record.size()),
                           [&](Status status) { done += status ? 1 : 100; }));
  ASSERT_TRUE(PollUntil([&] { return hold != nullptr; }));
  PollFor(20 * kMillisecond);
  EXPECT_EQ(done, 0) << "the server may reuse the record while it is held";
  ASSERT_EQ(seen.size(), record.size());
  EXPECT_TRUE(std::equal(seen.begin(), seen.end(), record.begin()));
  slab.data()[8192] ^= std::byte{0xff};
  EXPECT_EQ(seen[0], slab.data()[8192]) << "it was a copy";
  hold.reset();
  ASSERT_TRUE(PollUntil([&] { return done == 1; }));
}

TEST_P(MemfdTransport, AHoldEndsWithItsClient) {
  Slab slab(1 << 20);
  ASSERT_TRUE(server_->AddMemory(slab.Region(3, 7)));
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  std::unique_ptr<InPlaceHold> hold;
  client_sink_.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming& payload) {
    hold = payload.Hold();
    return true;
  };
  int done = 0;
  ASSERT_TRUE(server->Send(Header(Op::kData, 1), {}, ByteSpan(slab.data(), 65536), [&](Status) { ++done; }));
  ASSERT_TRUE(PollUntil([&] { return hold != nullptr; }));
  endpoints_.clear();
  ASSERT_TRUE(PollUntil([&] { return done == 1; }));
  hold.reset();  // Harmless now.
}

TEST_P(MemfdTransport, ASlabOfAnotherNameSpaceIsNeverPassed) {
  Slab slab(1 << 20);
  const auto record = Pattern(65536, 5);
  std::copy(record.begin(), record.end(), slab.data());
  ASSERT_TRUE(server_->AddMemory(slab.Region(3, 8)));  // Open admits into 7.
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  std::byte* where = slab.data();
  bool same = true;
  client_sink_.on_frame = [&](Endpoint&, const FrameHeader&, ByteSpan, Incoming& payload) {
    where[0] ^= std::byte{0xff};
    same = payload.data()[0] == where[0];
    where[0] ^= std::byte{0xff};
    return true;
  };
  ASSERT_TRUE(server->Send(Header(Op::kData, 1), {}, ByteSpan(where, record.size()), nullptr));
  ASSERT_TRUE(PollUntil([&] { return !same; })) << "the client sees the slab itself";
}

TEST_P(MemfdTransport, MemoryThatAPeerCouldCutIsRefused) {
  const int fd = memfd_create("soft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, 4096), 0);
  std::byte dummy{};
  const Status added = server_->AddMemory(MemoryRegion{&dummy, 4096, 1, fd, 0});
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().code, Code::kFailedPrecondition);
  close(fd);
}

TEST_P(MemfdTransport, StagingIsReadWithoutACopyAndBounded) {
  const auto [client, server] = Open();
  ASSERT_NE(server, nullptr);
  auto staging = client_->AllocateStaging(1 << 20);
  ASSERT_TRUE(staging);
  const auto record = Pattern(1 << 20, 8);
  std::copy(record.begin(), record.end(), staging->begin());
  int done = 0;
  ASSERT_TRUE(client->Send(Header(Op::kPut, 1), {}, *staging, [&](Status) { ++done; }));
  ASSERT_TRUE(PollUntil([&] { return done == 1 && server_sink_.received() == 2; }));
  EXPECT_TRUE(server_sink_.frames[1]->payload == record);
  client_->FreeStaging(*staging);
  const auto too_much = client_->AllocateStaging(1 << 30);
  ASSERT_FALSE(too_much);
  EXPECT_EQ(too_much.error().code, Code::kResourceExhausted);
}

TEST_P(MemfdTransport, GarbageOnTheSocketCostsOnlyItsSender) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = server_->LocalAddress();
  std::copy(path.begin(), path.end(), address.sun_path);
  const auto noise = Pattern(65536, 77);
  for (size_t bytes : {size_t{1}, size_t{47}, size_t{48}, size_t{49}, size_t{4096}}) {
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(send(fd, noise.data(), bytes, 0), static_cast<ssize_t>(bytes));
    const uint64_t before = server_->counters().rejected_frames;
    EXPECT_TRUE(PollUntil([&] { return server_->counters().rejected_frames > before; })) << bytes;
    close(fd);
  }
  const auto [client, server] = Open();
  EXPECT_NE(server, nullptr);
}

// A client that is admitted and then writes what it likes into its ring.
TEST_P(MemfdTransport, GarbageInTheRingCostsOnlyItsSender) {
  constexpr uint64_t kRing = 65536;
  constexpr uint64_t kBytes = 4096 + 2 * kRing;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = server_->LocalAddress();
  std::copy(path.begin(), path.end(), address.sun_path);
  SplitMix64 random(5);
  for (uint64_t round = 0; round < 300; ++round) {
    const FileDescriptor fd(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    auto rings = MakeSealedMemfd("rings", kBytes);
    auto staging = MakeSealedMemfd("staging", 4096);
    ASSERT_TRUE(rings && staging);
    auto mapping = Mapping::Map(rings->get(), kBytes, true);
    ASSERT_TRUE(mapping);
    ASSERT_TRUE(server_->Admit(9000 + round, "", 7));
    SocketNote note;
    note.kind = SocketNote::Kind::kConnect;
    note.session_id = 9000 + round;
    note.ring_bytes = kRing;
    note.bytes = 4096;
    const int fds[] = {rings->get(), staging->get()};
    ASSERT_TRUE(SendNote(fd.get(), note, fds, 2));
    std::byte* ring = (*mapping)->data() + 4096;
    auto* control = reinterpret_cast<RingControl*>((*mapping)->data());
    const auto noise = Pattern(8192, round);
    std::copy(noise.begin(), noise.end(), ring);
    RecordHead head;
    head.record_bytes = 64 * static_cast<uint32_t>(random.Below(70));
    head.kind = static_cast<RecordKind>(random.Below(5));
    head.meta_bytes = static_cast<uint32_t>(random.Below(5000));
    head.at = static_cast<PayloadAt>(random.Below(7));
    head.payload_bytes = random.Below(4) == 0 ? random.Next() : random.Below(10000);
    head.offset = random.Below(2) == 0 ? random.Next() : 0;
    FrameHeader frame;
    frame.op = random.Below(2) == 0 ? Op::kHello : Op::kPut;
    frame.session_id = note.session_id;
    frame.payload_bytes = std::min<uint64_t>(head.payload_bytes, kMaxPayloadBytes);
    if (round % 3 != 0) {
      std::memcpy(ring, &head, sizeof(head));
      EncodeFrameHeader(frame, ring + sizeof(head));
    }
    control->head.store(round % 5 == 0 ? random.Next() : head.record_bytes);
    PollFor(3 * kMillisecond);
    server_->Revoke(note.session_id);
  }
  EXPECT_GT(server_->counters().rejected_frames, 200u);
  server_sink_.accepted.clear();
  const auto [client, server] = Open();
  EXPECT_NE(server, nullptr);
}

// A client by hand that says HELLO and then one record more.
TEST_P(MemfdTransport, WhoIsCutOffIsToldWhyFirst) {
  constexpr uint64_t kRing = 65536;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = server_->LocalAddress();
  std::copy(path.begin(), path.end(), address.sun_path);
  uint64_t session = 9000;
  for (const bool unknown_kind : {true, false}) {
    const FileDescriptor fd(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    auto rings = MakeSealedMemfd("rings", 4096 + 2 * kRing);
    auto staging = MakeSealedMemfd("staging", 4096);
    ASSERT_TRUE(rings && staging);
    auto mapping = Mapping::Map(rings->get(), 4096 + 2 * kRing, true);
    ASSERT_TRUE(mapping);
    std::byte* shared = (*mapping)->data();
    ASSERT_TRUE(server_->Admit(++session, "", 7));
    SocketNote note;
    note.kind = SocketNote::Kind::kConnect;
    note.session_id = session;
    note.ring_bytes = kRing;
    note.bytes = 4096;
    const int fds[] = {rings->get(), staging->get()};
    ASSERT_TRUE(SendNote(fd.get(), note, fds, 2));
    RingProducer out(reinterpret_cast<RingControl*>(shared), shared + 4096, kRing);
    const auto say = [&](RecordKind kind, uint8_t version) {
      FrameHeader frame;
      frame.op = Op::kHello;
      frame.session_id = session;
      RecordHead head;
      head.record_bytes = 128;
      head.kind = kind;
      std::byte* at = out.Reserve(128);
      std::memcpy(at, &head, sizeof(head));
      EncodeFrameHeader(frame, at + 64);
      at[68] = static_cast<std::byte>(version);
      const uint32_t crc = Crc32c(ByteSpan(at + 64, 52));
      StoreLe(at + 116, Crc32c(ByteSpan(at + 120, 8), crc));
      if (out.Publish(128)) (void)SendNote(fd.get(), SocketNote{}, nullptr, 0);
    };
    say(RecordKind::kFrame, 1);
    const uint64_t rejected = server_->counters().rejected_frames;
    say(unknown_kind ? static_cast<RecordKind>(99) : RecordKind::kFrame, unknown_kind ? 1 : 9);
    ASSERT_TRUE(PollUntil([&] { return server_->counters().rejected_frames > rejected; }));
    RingConsumer in(reinterpret_cast<RingControl*>(shared + 1024), shared + 4096 + kRing, kRing);
    RecordHead head;
    const std::byte* body = nullptr;
    ASSERT_EQ(in.Peek(&head, &body), RingConsumer::Peeked::kRecord);
    const auto answer = DecodeFrameHeader(ByteSpan(body, kFrameHeaderBytes));
    ASSERT_TRUE(answer) << answer.error().message;
    EXPECT_EQ(answer->op, Op::kReject);
    EXPECT_EQ(answer->status, unknown_kind ? Code::kInvalidArgument : Code::kUnimplemented);
    const std::string said(reinterpret_cast<const char*>(body) + kFrameHeaderBytes, head.meta_bytes);
    EXPECT_NE(said.find(unknown_kind ? "unknown kind" : "wire version 9"), std::string::npos) << said;
    char byte;
    EXPECT_EQ(recv(fd.get(), &byte, 1, 0), 0) << "the connection is still there";
    server_->Revoke(session);
  }
}

}  // namespace
}  // namespace tiercel
