// Real frames with one thing wrong over the same-host transport, and rings, records and greetings with one thing
// wrong, each through a session of its own. After each a good block is put and fetched.
//
//   tiercel-e2e-bad-memfd ENDPOINT
//       prints "case NAME CODE what the node said" where it answered, "case NAME HUNG_UP session=N" where it ended
//       the connection (its log says why), "case NAME FAILED why" where it did neither or did not serve on;
//       exits 0 when no case failed
#include <fstream>

#include "tests/e2e/memfd_peer.h"

namespace tiercel {
namespace {

class Probe {
 public:
  explicit Probe(std::string endpoint)
      : endpoint_(std::move(endpoint)),
        stub_(v1::Tiercel::NewStub(grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials()))) {
    std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), host_);
  }
  Status Start() { return witness_.Start(endpoint_, TransportKind::kMemfd); }

  // wrong: does the one wrong thing; greeted: after a greeting and HELLO that were right.
  void Case(const std::string& name, const std::function<void(Peer&)>& wrong, bool greeted = true) {
    const Status done = Try(name, wrong, greeted);
    if (!done) witness_.Tell(name, false, "", done.error().message);
  }
  int failures() const { return witness_.failures(); }

 private:
  Status Try(const std::string& name, const std::function<void(Peer&)>& wrong, bool greeted) {
    v1::OpenSessionRequest request = Opening(v1::TRANSPORT_MEMFD);
    request.set_host_id(host_);
    v1::OpenSessionResponse session;
    grpc::ClientContext context;
    Limit(context);
    const auto opened = stub_->OpenSession(&context, request, &session);
    if (!opened.ok()) return Fail(Code::kInternal, opened.error_message());
    Peer peer;
    TIERCEL_TRY(peer.Connect(session));
    if (greeted) {
      TIERCEL_TRY(peer.Greet());
      Raw hello;
      hello.header.op = Op::kHello;
      const ByteSpan token = AsBytes(session.shards(0).token());
      hello.meta.assign(token.begin(), token.end());
      peer.Send(hello);
      const auto welcome = peer.Next();
      if (!welcome || welcome->header.op != Op::kWelcome) return Fail(Code::kInternal, "no WELCOME");
    }
    wrong(peer);
    const auto answer = peer.Next();
    if (!answer) return Fail(Code::kInternal, "neither an answer nor a hang-up");
    if (answer->hung_up) {
      witness_.Tell(name, true, "HUNG_UP", fmt::format("session={}", session.session_id()));
    } else {
      const bool refused = answer->header.status != Code::kOk && !answer->text.empty();
      witness_.Tell(name, refused, std::string(CodeName(answer->header.status)), answer->text);
    }
    grpc::ClientContext closing;
    Limit(closing);
    v1::CloseSessionRequest close;
    close.set_session_id(session.session_id());
    v1::CloseSessionResponse closed;
    (void)stub_->CloseSession(&closing, close, &closed);
    return OkStatus();
  }

  const std::string endpoint_;
  const std::unique_ptr<v1::Tiercel::Stub> stub_;
  std::string host_;
  Witness witness_;
};

void Records(Probe& probe) {
  const auto record = [&](const std::string& name, const std::function<void(RecordHead&)>& spoil) {
    probe.Case("ring-" + name, [&](Peer& peer) { peer.Send(*Raw::Good(Op::kPut, 1), spoil); });
  };
  record("record-of-no-bytes", [](auto& h) { h.record_bytes = 0; });
  record("record-of-63-bytes", [](auto& h) { h.record_bytes = 63; });
  record("record-longer-than-the-ring", [](auto& h) { h.record_bytes = 1u << 30; });
  record("record-shorter-than-its-parts", [](auto& h) { h.record_bytes = 64; });
  record("meta-of-4-gib", [](auto& h) { h.meta_bytes = UINT32_MAX; });
  record("payload-of-2-to-62", [](auto& h) { h.payload_bytes = uint64_t{1} << 62; });
  record("payload-in-line-of-16-mib", [](auto& h) { h.at = PayloadAt::kInLine, h.payload_bytes = 16u << 20; });
  record("payload-behind-the-staging", [](auto& h) { h.offset = kStaging - 64; });
  record("payload-at-an-offset-that-wraps", [](auto& h) { h.offset = UINT64_MAX - 63; });
  record("payload-in-a-region", [](auto& h) { h.at = PayloadAt::kRegion; });
  record("payload-in-the-bounce-area", [](auto& h) { h.at = PayloadAt::kBounce; });
  record("payload-nowhere", [](auto& h) { h.at = PayloadAt::kNone; });
  record("payload-at-an-unknown-place", [](auto& h) { h.at = static_cast<PayloadAt>(99); });
  record("release-of-nothing", [](auto& h) { h.kind = RecordKind::kRelease, h.record_bytes = 64; });
  record("record-of-an-unknown-kind", [](auto& h) { h.kind = static_cast<RecordKind>(99); });
  for (const uint64_t head : {uint64_t{1}, kRing * 2, UINT64_MAX}) {
    probe.Case(fmt::format("ring-head-at-{}", head), [=](Peer& peer) { peer.control().head.store(head), peer.Wake(); });
  }
  probe.Case("ring-tail-beyond-the-head", [](Peer& peer) {
    reinterpret_cast<RingControl*>(reinterpret_cast<std::byte*>(&peer.control()) + kToClientAt)->tail.store(1u << 20);
    peer.Wake();
  });
}

void Greetings(Probe& probe) {
  const auto greet = [&](const std::string& name, const std::function<void(Peer&)>& spoil) {
    probe.Case("greeting-" + name, [&](Peer& peer) { spoil(peer), (void)peer.Greet(); }, false);
  };
  greet("of-an-unknown-session", [](Peer& p) { p.note.session_id ^= 0xff00; });
  greet("with-another-magic", [](Peer& p) { p.note.magic = 0x32464d54; });
  greet("of-an-unknown-kind", [](Peer& p) { p.note.kind = static_cast<SocketNote::Kind>(77); });
  greet("with-a-ring-of-2-to-62", [](Peer& p) { p.note.ring_bytes = uint64_t{1} << 62; });
  greet("with-a-ring-of-no-power-of-two", [](Peer& p) { p.note.ring_bytes = kRing + 64; });
  greet("with-a-ring-that-is-not-there", [](Peer& p) { p.note.ring_bytes = kRing * 16; });
  greet("with-a-staging-of-2-to-63", [](Peer& p) { p.note.bytes = uint64_t{1} << 63; });
  greet("with-a-staging-that-is-not-there", [](Peer& p) { p.note.bytes = kStaging * 16; });
  greet("with-one-memfd", [](Peer& p) { p.both_memfds = false; });
  greet("with-memory-that-can-shrink", [](Peer& p) { p.sealed = false; });
  greet("with-shared-memory-of-a-page", [](Peer& p) { p.really = 4096; });
  for (const size_t bytes : {1, 47, 49, 4096}) {
    probe.Case(fmt::format("greeting-of-{}-bytes-of-noise", bytes), [=](Peer& p) { p.SayBytes(Bytes(bytes, bytes)); }, false);
  }
  probe.Case("greeting-twice", [](Peer& p) { p.Note(p.note); });
  for (const bool hello : {true, false}) {
    probe.Case(hello ? "hello-with-a-wrong-token" : "match-before-hello", [=](Peer& peer) {
      (void)peer.Greet();
      Raw raw = *Raw::Good(Op::kMatch, 1);
      if (hello) raw.header.op = Op::kHello, raw.meta.assign(16, std::byte{1});
      peer.Send(raw);
    }, false);
  }
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tiercel-e2e-bad-memfd ENDPOINT\n");
    return 2;
  }
  tiercel::Probe probe(argv[1]);
  if (const auto started = probe.Start(); !started) {
    std::fprintf(stderr, "tiercel-e2e-bad-memfd: %s\n", started.error().message.c_str());
    return 2;
  }
  uint64_t seed = 0;
  tiercel::EachBadFrame([&](const std::string& name, tiercel::Op op, const tiercel::Spoil& spoil) {
    probe.Case(name, [&](tiercel::Peer& peer) {
      tiercel::Raw raw = *tiercel::Raw::Good(op, ++seed);
      spoil(raw);
      peer.Send(raw);
    });
  });
  tiercel::Records(probe);
  tiercel::Greetings(probe);
  return probe.failures() == 0 ? 0 : 1;
}
