// Real frames with one thing wrong over the gRPC streams, each through a session of its own that said HELLO as
// it should, and session requests with one thing wrong. After each a good block is put and fetched.
//
//   tiercel-e2e-bad-frames ENDPOINT
//       prints "case NAME CODE what the node said", and "case NAME FAILED why" where it said nothing, said
//       yes, or did not serve on; exits 0 when no case failed
#include "tests/e2e/bad_frames.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

class Probe {
 public:
  explicit Probe(std::string endpoint)
      : endpoint_(std::move(endpoint)),
        stub_(v1::Tiercel::NewStub(grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials()))) {}

  Status Start() { return witness_.Start(endpoint_, TransportKind::kGrpc); }

  // wants: kOk where the node may take it, and says for each shard which way was found and why no other.
  void Session(const std::string& name, Code wants, const std::function<void(v1::OpenSessionRequest&)>& spoil) {
    v1::OpenSessionRequest request = Opening(v1::TRANSPORT_GRPC);
    spoil(request);
    v1::OpenSessionResponse reply;
    grpc::ClientContext context;
    Limit(context);
    const grpc::Status status = stub_->OpenSession(&context, request, &reply);
    Close(reply.session_id());
    const std::string said = status.ok() && reply.shards_size() > 0 ? reply.shards(0).reason() : status.error_message();
    const bool as_wanted = static_cast<Code>(status.error_code()) == wants && !said.empty();
    witness_.Tell(name, as_wanted, CodeOf(status), as_wanted ? said : fmt::format("{} '{}'", CodeOf(status), said));
  }

  // A key is asked for under a scope that it was not made of: a miss for that reason, and no bytes.
  void KeyOfAnotherScope() {
    const auto chain = ChainOf("good", ++seed_);
    if (const auto put = witness_.Put(*chain, Bytes(seed_, kBlockBytes)); !put) {
      return witness_.Tell("get-by-a-key-of-another-scope", false, "", put.error().message);
    }
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
  void Frame(const std::string& name, Op op, const Spoil& spoil, bool hello_first = true,
             size_t header_bytes = kFrameHeaderBytes) {
    const auto failed = [&](const std::string& why) { witness_.Tell(name, false, "", why); };
    v1::OpenSessionResponse session;
    grpc::ClientContext opening;
    Limit(opening);
    const auto opened = stub_->OpenSession(&opening, Opening(v1::TRANSPORT_GRPC), &session);
    if (!opened.ok()) return failed(opened.error_message());
    grpc::ClientContext gets_context, puts_context;
    for (grpc::ClientContext* context : {&gets_context, &puts_context}) {
      Limit(*context);
      context->AddMetadata(kGrpcSessionKey, std::to_string(session.session_id()));
      context->AddMetadata(kGrpcShardKey, "0");
    }
    const auto gets = stub_->GetBlocks(&gets_context);
    const auto puts = stub_->PutBlocks(&puts_context);
    const auto& stream = op == Op::kPut ? puts : gets;
    Result<Raw> raw = Raw::Good(op, ++seed_);
    if (!raw) return failed(raw.error().message);
    spoil(*raw);
    v1::Frame in;
    bool written = true;
    if (hello_first) {
      Raw hello;
      hello.header.op = Op::kHello;
      const ByteSpan token = AsBytes(session.shards(0).token());
      hello.meta.assign(token.begin(), token.end());
      written = gets->Write(Wire(hello, session.session_id())) && gets->Read(&in);
      const auto header = DecodeFrameHeader(AsBytes(in.header()));
      if (!written || !header || header->op != Op::kWelcome) return failed("no WELCOME");
    }
    written = stream->Write(Wire(*raw, session.session_id(), header_bytes));
    if (written && stream->Read(&in)) {
      Answered(name, in);
    } else {
      const grpc::Status status = stream->Finish();
      witness_.Tell(name, Clear(status) && wants_ == MissReason::kNone, CodeOf(status), status.error_message());
    }
    gets_context.TryCancel();
    puts_context.TryCancel();
    Close(session.session_id());
  }

  int failures() const { return witness_.failures(); }

 private:
  // Told, and not left to the node's patience: else a few rounds take all the sessions that it has.
  void Close(uint64_t session_id) {
    grpc::ClientContext context;
    Limit(context);
    v1::CloseSessionRequest request;
    request.set_session_id(session_id);
    v1::CloseSessionResponse closed;
    (void)stub_->CloseSession(&context, request, &closed);
  }
  // Not a word of gRPC's about a deadline or a broken connection.
  static bool Clear(const grpc::Status& status) {
    return !status.ok() && !status.error_message().empty() &&
           status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED &&
           status.error_code() != grpc::StatusCode::UNKNOWN && status.error_message().find("ocket") == std::string::npos;
  }
  static std::string CodeOf(const grpc::Status& status) {
    return std::string(CodeName(static_cast<Code>(status.error_code())));
  }

  void Answered(const std::string& name, const v1::Frame& in) {
    const auto header = DecodeFrameHeader(AsBytes(in.header()));
    if (!header) return witness_.Tell(name, false, "", "the answer is no frame: " + header.error().message);
    const std::string code(CodeName(header->status));
    if (wants_ != MissReason::kNone) {
      return witness_.Tell(name, header->op == Op::kData && header->reason == wants_ && in.payload().empty(), code,
                           fmt::format("a miss, {}", Name(header->reason)));
    }
    const bool refused = header->status != Code::kOk && (header->op == Op::kReject || header->op == Op::kAck);
    witness_.Tell(name, refused && !in.meta().empty(), code, in.meta());
  }

  static v1::Frame Wire(const Raw& raw, uint64_t session_id, size_t header_bytes = kFrameHeaderBytes) {
    std::vector<std::byte> header = raw.Header(session_id);
    header.resize(header_bytes);
    const auto text = [](ByteSpan bytes) { return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()); };
    v1::Frame frame;
    frame.set_header(text(header));
    frame.set_meta(text(raw.meta));
    frame.set_payload(text(raw.payload));
    return frame;
  }

  const std::string endpoint_;
  const std::unique_ptr<v1::Tiercel::Stub> stub_;
  Witness witness_;
  uint64_t seed_ = 0;
  MissReason wants_ = MissReason::kNone;  // The answer is to be a miss.
};

void Sessions(Probe& probe) {
  const auto versions = [&](const std::string& name, uint32_t min, uint32_t max) {
    probe.Session(name, Code::kFailedPrecondition, [=](auto& r) { r.set_proto_min(min), r.set_proto_max(max); });
  };
  versions("session-of-a-later-version", 99, 120);
  versions("session-of-no-version", 0, 0);
  versions("session-of-versions-upside-down", 5, 1);
  probe.Session("session-in-an-unknown-name-space", Code::kPermissionDenied, [](auto& r) { r.set_name_space("nobody"); });
  probe.Session("session-with-a-name-of-a-mebibyte", Code::kOk, [](auto& r) { r.set_client_name(std::string(1 << 20, 'x')); });
  probe.Session("session-with-an-unknown-transport", Code::kOk, [](auto& r) {
    r.clear_transports();
    r.add_transports(static_cast<v1::Transport>(77));
  });
  for (const size_t bytes : {5, 5000, 1 << 20}) {
    probe.Session(fmt::format("session-with-a-ucx-address-of-{}-bytes", bytes), Code::kInvalidArgument, [=](auto& r) {
      r.add_transports(v1::TRANSPORT_UCX);
      r.set_ucx_address(std::string(bytes, '\xfe'));
    });
  }
}

void Frames(Probe& probe) {
  EachBadFrame([&](const std::string& name, Op op, const Spoil& spoil) { probe.Frame(name, op, spoil); });
  for (const Op op : {Op::kMatch, Op::kGet, Op::kPut}) {
    const std::string name = op == Op::kMatch ? "match" : op == Op::kGet ? "get" : "put";
    probe.Frame(name + "-header-cut", op, [](Raw&) {}, true, 63);
    probe.Frame(name + "-header-too-long", op, [](Raw&) {}, true, 65);
    // A stream of puts is not even read before its session has said HELLO on the other.
    if (op != Op::kPut) probe.Frame(name + "-before-hello", op, [](Raw&) {}, false);
  }
  probe.Frame("hello-with-a-wrong-token", Op::kMatch,
              [](Raw& raw) { raw.header.op = Op::kHello, raw.meta.assign(16, std::byte{1}); }, false);
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
