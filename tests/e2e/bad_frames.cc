// Real frames with one thing wrong, each through a session of its own that said HELLO as it should, and
// session requests with one thing wrong. After each a good block is put and fetched by a proper client.
//
//   tiercel-e2e-bad-frames ENDPOINT
//       prints "case NAME CODE what the node said", and "case NAME FAILED why" where it said nothing, said
//       yes, or did not serve on; exits 0 when no case failed
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/random.h"
#include "client/cpp/client.h"
#include "kernels/record.h"
#include "proto/tiercel.grpc.pb.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

constexpr size_t kBlockBytes = 8192;
constexpr uint64_t kRequest = 7;

std::vector<std::byte> Bytes(uint64_t seed, size_t size) {
  std::vector<std::byte> out(size);
  SplitMix64 random(seed);
  for (std::byte& b : out) b = static_cast<std::byte>(random.Next());
  return out;
}

Result<Chain> ChainOf(const std::string& model, uint64_t seed, uint32_t blocks = 1) {
  ScopeFields fields;
  fields.model = model;
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  for (uint32_t i = 0; i < blocks; ++i) TIERCEL_TRY(chain.Append(Bytes(seed * 1000 + i, 32)));
  return chain;
}

ChainMeta MetaOf(const Chain& chain) {
  ChainMeta meta;
  meta.scope = chain.options().scope;
  meta.keys.assign(chain.keys().begin(), chain.keys().end());
  for (uint32_t i = 0; i < chain.size(); i += kBlocksPerRun) meta.anchors.push_back(chain.anchor(i));
  return meta;
}

Result<std::vector<std::byte>> RecordOf(const Chain& chain, uint64_t seed) {
  RecordSpec spec;
  spec.layout = KvLayout::Opaque();
  spec.scope = chain.options().scope;
  const auto block = Bytes(seed, kBlockBytes);
  std::vector<std::byte> record(MaxRecordBytes(spec, block.size()));
  TIERCEL_ASSIGN(const uint64_t size, EncodeRecord(spec, CodecId::kRaw, block, record));
  record.resize(size);
  return record;
}

void Sum(std::vector<std::byte>& header) {
  const uint32_t crc = Crc32c(ByteSpan(header).first(52));
  StoreLe(header.data() + 52, Crc32c(ByteSpan(header).subspan(56, 8), crc));
}

// One frame as it goes onto the wire, to be spoilt.
struct Raw {
  FrameHeader header;
  std::vector<std::byte> meta, payload;
  std::vector<std::byte> bytes;  // The header's; empty: encoded from `header`.

  // Changes the encoded header and makes its checksum right again.
  void Poke(size_t at, uint8_t value) {
    bytes.resize(kFrameHeaderBytes);
    EncodeFrameHeader(header, bytes.data());
    bytes[at] = static_cast<std::byte>(value);
    Sum(bytes);
  }
};

class Probe {
 public:
  explicit Probe(std::string endpoint)
      : endpoint_(std::move(endpoint)),
        stub_(v1::Tiercel::NewStub(grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials()))) {}

  Status Start() {
    Client::Options options;
    options.endpoints = {endpoint_};
    options.transports = {TransportKind::kGrpc};
    TIERCEL_ASSIGN(client_, Client::Connect(options));
    return OkStatus();
  }

  static v1::OpenSessionRequest Opening() {
    v1::OpenSessionRequest request;
    request.set_proto_min(kWireVersion);
    request.set_proto_max(kWireVersion);
    request.set_client_name("bad-frames");
    request.set_name_space("default");
    request.add_transports(v1::TRANSPORT_GRPC);
    return request;
  }

  void Session(const std::string& name, const std::function<void(v1::OpenSessionRequest&)>& spoil) {
    v1::OpenSessionRequest request = Opening();
    spoil(request);
    v1::OpenSessionResponse reply;
    grpc::ClientContext context;
    Limit(context);
    const grpc::Status status = stub_->OpenSession(&context, request, &reply);
    if (status.ok()) {
      // Taken, with a reason for each shard that says which way was found and why no other.
      const bool told = reply.shards_size() > 0 && !reply.shards(0).reason().empty();
      return Tell(name, told, told ? "OK" : "", told ? reply.shards(0).reason() : "accepted without a word");
    }
    Tell(name, !status.error_message().empty() && Clear(status), (CodeName(static_cast<Code>(status.error_code()))),
         status.error_message());
  }

  // A key is asked for under a scope that it was not made of: a miss for that reason, and no bytes.
  void KeyOfAnotherScope() {
    const auto chain = ChainOf("good", ++seed_);
    const auto block = Bytes(seed_, kBlockBytes);
    const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
    (void)client_->Put(*chain, 0, {&source, 1}, KvLayout::Opaque(), {});
    wants_ = MissReason::kOtherScope;
    Frame("get-by-a-key-of-another-scope", Op::kGet, [&](Raw& raw) {
      ChainMeta meta = MetaOf(*chain);
      meta.scope = ChainOf("another-model", 1)->options().scope;
      raw.meta = EncodeChainMeta(meta);
    });
    wants_ = MissReason::kNone;
  }

  // The node must answer the spoilt frame with REJECT, with an answer of status or reason, or end the
  // stream with a status that says why.
  void Frame(const std::string& name, Op op, const std::function<void(Raw&)>& spoil, bool hello_first = true) {
    const auto failed = [&](const std::string& why) { Tell(name, false, "", why); };
    v1::OpenSessionResponse session;
    grpc::ClientContext opening;
    Limit(opening);
    if (const auto s = stub_->OpenSession(&opening, Opening(), &session); !s.ok()) return failed(s.error_message());
    session_id_ = session.session_id();
    const auto context = [&](grpc::ClientContext& c) {
      Limit(c);
      c.AddMetadata(kGrpcSessionKey, std::to_string(session_id_));
      c.AddMetadata(kGrpcShardKey, "0");
    };
    grpc::ClientContext gets_context, puts_context;
    context(gets_context);
    context(puts_context);
    const auto gets = stub_->GetBlocks(&gets_context);
    const auto puts = stub_->PutBlocks(&puts_context);
    v1::Frame in;
    if (hello_first) {
      Raw hello;
      hello.header.op = Op::kHello;
      const ByteSpan token = AsBytes(session.shards(0).token());
      hello.meta.assign(token.begin(), token.end());
      if (!gets->Write(Wire(hello)) || !gets->Read(&in) || OpOf(in) != Op::kWelcome) return failed("no WELCOME");
    }
    Raw raw;
    raw.header.op = op;
    raw.header.req_id = kRequest;
    raw.header.count = 1;
    const auto chain = ChainOf("bad-frames", ++seed_);
    if (!chain) return failed(chain.error().message);
    raw.meta = EncodeChainMeta(MetaOf(*chain));
    if (op == Op::kPut) {
      auto record = RecordOf(*chain, seed_);
      if (!record) return failed(record.error().message);
      raw.payload = std::move(*record);
    }
    spoil(raw);
    const auto& stream = op == Op::kPut ? puts : gets;
    const bool written = stream->Write(Wire(raw));
    std::string said, code;
    bool clear = false;
    if (written && stream->Read(&in)) {
      const auto header = DecodeFrameHeader(AsBytes(in.header()));
      if (header) {
        code = CodeName(header->status);
        said = in.meta();
        if (wants_ != MissReason::kNone) {
          said = fmt::format("a miss, {}", Name(header->reason));
          return Tell(name, header->op == Op::kData && header->reason == wants_ && in.payload().empty(), code, said);
        }
        clear = !said.empty() && header->status != Code::kOk && (header->op == Op::kReject || header->op == Op::kAck);
      }
    } else {
      const grpc::Status status = stream->Finish();
      code = CodeName(static_cast<Code>(status.error_code()));
      said = status.error_message();
      clear = !status.ok() && Clear(status) && !said.empty();
    }
    gets_context.TryCancel();
    puts_context.TryCancel();
    Tell(name, clear, code, said);
  }

  int failures() const { return failures_; }

 private:
  static void Limit(grpc::ClientContext& context) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  }
  // Not a word of gRPC's about a deadline or a broken connection.
  static bool Clear(const grpc::Status& status) {
    return status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED &&
           status.error_code() != grpc::StatusCode::UNKNOWN && status.error_message().find("ocket") == std::string::npos;
  }
  static Op OpOf(const v1::Frame& frame) {
    const auto header = DecodeFrameHeader(AsBytes(frame.header()));
    return header ? header->op : Op::kReject;
  }

  v1::Frame Wire(Raw& raw) const {
    if (raw.header.session_id == 0) raw.header.session_id = session_id_;
    if (raw.header.payload_bytes == 0) raw.header.payload_bytes = raw.payload.size();
    if (raw.bytes.empty()) {
      raw.bytes.resize(kFrameHeaderBytes);
      EncodeFrameHeader(raw.header, raw.bytes.data());
    } else {  // Poked before the session was known.
      StoreLe(raw.bytes.data() + 8, raw.header.session_id);
      StoreLe(raw.bytes.data() + 32, raw.header.payload_bytes);
      if (raw.bytes.size() >= kFrameHeaderBytes) Sum(raw.bytes);
    }
    const auto text = [](ByteSpan bytes) { return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()); };
    v1::Frame frame;
    frame.set_header(text(raw.bytes));
    frame.set_meta(text(raw.meta));
    frame.set_payload(text(raw.payload));
    return frame;
  }

  void Tell(const std::string& name, bool good, const std::string& code, std::string said) {
    if (good) {
      if (const auto served = ServesOn(); !served) {
        good = false;
        said += "; after it: " + served.error().message;
      }
    }
    failures_ += good ? 0 : 1;
    fmt::print("case {} {} {}\n", name, good ? code : "FAILED", said);
  }

  Status ServesOn() {
    TIERCEL_ASSIGN(const Chain chain, ChainOf("good", ++seed_));
    const auto block = Bytes(seed_, kBlockBytes);
    const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
    const Completion put = client_->Put(chain, 0, {&source, 1}, KvLayout::Opaque(), {});
    if (put.blocks.size() != 1 || put.blocks[0].status != Code::kOk) return Fail(Code::kInternal, "a good put fails");
    std::vector<std::byte> back(block.size());
    GetSlot slot;
    slot.dst = back;
    const Completion got = client_->Get(chain, 0, {&slot, 1}, KvLayout::Opaque(), {});
    if (got.blocks.size() != 1 || got.blocks[0].status != Code::kOk || back != block) {
      return Fail(Code::kInternal, "a good get fails");
    }
    return OkStatus();
  }

  const std::string endpoint_;
  const std::unique_ptr<v1::Tiercel::Stub> stub_;
  std::unique_ptr<Client> client_;
  uint64_t session_id_ = 0;
  uint64_t seed_ = 0;
  MissReason wants_ = MissReason::kNone;  // The answer is to be a miss.
  int failures_ = 0;
};

void Sessions(Probe& probe) {
  probe.Session("session-of-a-later-version", [](auto& r) { r.set_proto_min(99), r.set_proto_max(120); });
  probe.Session("session-of-no-version", [](auto& r) { r.set_proto_min(0), r.set_proto_max(0); });
  probe.Session("session-of-versions-upside-down", [](auto& r) { r.set_proto_min(5), r.set_proto_max(1); });
  probe.Session("session-in-an-unknown-name-space", [](auto& r) { r.set_name_space("nobody"); });
  probe.Session("session-with-a-name-of-a-mebibyte", [](auto& r) { r.set_client_name(std::string(1 << 20, 'x')); });
  probe.Session("session-with-an-unknown-transport", [](auto& r) {
    r.clear_transports();
    r.add_transports(static_cast<v1::Transport>(77));
  });
  probe.Session("session-with-a-ucx-address-of-noise", [](auto& r) {
    r.clear_transports();
    r.add_transports(v1::TRANSPORT_UCX);
    r.add_transports(v1::TRANSPORT_GRPC);
    r.set_ucx_address(std::string(5000, '\xfe'));
  });
}

void Frames(Probe& probe) {
  for (const Op op : {Op::kMatch, Op::kGet, Op::kPut}) {
    const std::string name = op == Op::kMatch ? "match" : op == Op::kGet ? "get" : "put";
    const auto poke = [](size_t at, uint8_t value) { return [=](Raw& raw) { raw.Poke(at, value); }; };
    probe.Frame(name + "-bad-magic", op, poke(0, 'X'));
    probe.Frame(name + "-unknown-version", op, poke(4, 9));
    probe.Frame(name + "-unknown-op", op, poke(5, 99));
    probe.Frame(name + "-unknown-flag", op, poke(7, 0x80));
    probe.Frame(name + "-unknown-class", op, poke(43, 9));
    probe.Frame(name + "-header-cut", op, [](Raw& raw) { raw.Poke(0, 'T'), raw.bytes.resize(63); });
    probe.Frame(name + "-header-too-long", op, [](Raw& raw) { raw.Poke(0, 'T'), raw.bytes.resize(65); });
    probe.Frame(name + "-payload-of-2-to-62", op, [](Raw& raw) { raw.header.payload_bytes = uint64_t{1} << 62; });
    probe.Frame(name + "-payload-one-too-many", op, [](Raw& raw) { raw.header.payload_bytes = raw.payload.size() + 1; });
    probe.Frame(name + "-meta-too-long", op, [](Raw& raw) { raw.meta.resize(kMaxMetaBytes + 1); });
    probe.Frame(name + "-meta-cut", op, [](Raw& raw) { raw.meta.resize(raw.meta.size() - 1); });
    probe.Frame(name + "-no-meta", op, [](Raw& raw) { raw.meta.clear(); });
    probe.Frame(name + "-no-keys", op, [](Raw& raw) { StoreLe(raw.meta.data() + 20, uint16_t{0}); });
    probe.Frame(name + "-more-keys-than-are-there", op, [](Raw& raw) { StoreLe(raw.meta.data() + 20, uint16_t{64}); });
    probe.Frame(name + "-65535-keys", op, [](Raw& raw) { StoreLe(raw.meta.data() + 20, uint16_t{65535}); });
    probe.Frame(name + "-layers-upside-down", op, [](Raw& raw) {
      StoreLe(raw.meta.data() + 56, uint16_t{9});
      StoreLe(raw.meta.data() + 58, uint16_t{3});
    });
    probe.Frame(name + "-of-another-session", op, [](Raw& raw) { raw.header.session_id = 12345; });
    // A stream of puts is not even read before its session has said HELLO on the other.
    if (op != Op::kPut) probe.Frame(name + "-before-hello", op, [](Raw&) {}, false);
  }
  probe.Frame("an-answer-sent-to-a-node", Op::kMatch, [](Raw& raw) { raw.header.op = Op::kData; });
  probe.Frame("hello-twice", Op::kMatch, [](Raw& raw) { raw.header.op = Op::kHello, raw.meta.assign(16, std::byte{1}); });
  probe.Frame("hello-with-a-wrong-token", Op::kMatch,
              [](Raw& raw) { raw.header.op = Op::kHello, raw.meta.assign(16, std::byte{1}); }, false);
  const auto record = [&probe](const std::string& name, const std::function<void(std::vector<std::byte>&)>& spoil) {
    probe.Frame("put-record-" + name, Op::kPut, [&](Raw& raw) { spoil(raw.payload); });
  };
  record("none", [](auto& r) { r.clear(); });
  record("of-noise", [](auto& r) { r = Bytes(1, 5000); });
  record("cut", [](auto& r) { r.resize(r.size() - 64); });
  record("with-more-behind", [](auto& r) { r.resize(r.size() + 64); });
  record("head-alone", [](auto& r) { r.resize(64); });
  record("of-another-version", [](auto& r) { r[4] = std::byte{7}; });
  record("with-a-flipped-bit", [](auto& r) { r[r.size() - 3000] ^= std::byte{16}; });
  record("of-another-scope", [](auto& r) {
    const auto other = ChainOf("another-model", 1);
    const auto made = RecordOf(*other, 1);
    r = *made;
  });
  probe.Frame("put-record-of-another-class", Op::kPut, [](Raw& raw) { raw.header.quality = QualityClass::kSmall; });
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tiercel-e2e-bad-frames ENDPOINT\n");
    return 2;
  }
  tiercel::Probe probe(argv[1]);
  if (const auto started = probe.Start(); !started) {
    std::fprintf(stderr, "tiercel-e2e-bad-frames: %s\n", started.error().message.c_str());
    return 2;
  }
  tiercel::Sessions(probe);
  tiercel::Frames(probe);
  probe.KeyOfAnotherScope();
  return probe.failures() == 0 ? 0 : 1;
}
