#include "transport/grpc_stream.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "proto/tiercel.grpc.pb.h"
#include "tests/conformance/transport_conformance.h"

namespace tiercel {
namespace {

// The two streaming methods alone; the rest of the service is the node's.
class StreamService final : public v1::Tiercel::CallbackService {
 public:
  explicit StreamService(GrpcStreamHub& hub) : hub_(hub) {}
  GrpcStreamHub::Reactor* GetBlocks(grpc::CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kGets);
  }
  GrpcStreamHub::Reactor* PutBlocks(grpc::CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kPuts);
  }

 private:
  GrpcStreamHub& hub_;
};

class GrpcRig final : public TransportRig {
 public:
  GrpcRig() : service_(hub_) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kGrpcMaxMessageBytes);
    builder.SetMaxSendMessageSize(kGrpcMaxMessageBytes);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~GrpcRig() override { server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1)); }

  std::unique_ptr<Transport> MakeServer(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return hub_.MakeTransport(3, address(), sink, clock, limits);
  }
  std::unique_ptr<Transport> MakeClient(FrameSink& sink, const Clock& clock,
                                        const Transport::Limits& limits) override {
    return MakeGrpcClientTransport(sink, clock, limits);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  GrpcStreamHub hub_;
  StreamService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

INSTANTIATE_TEST_SUITE_P(GrpcStream, TransportConformance,
                         ::testing::Values(TransportCase{"grpc", [] { return std::make_unique<GrpcRig>(); }}));

grpc::Status CallRaw(const std::string& address, const std::string& session, const std::string& shard,
                     const v1::Frame* frame = nullptr) {
  auto stub = v1::Tiercel::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  if (!session.empty()) context.AddMetadata(kGrpcSessionKey, session);
  if (!shard.empty()) context.AddMetadata(kGrpcShardKey, shard);
  auto stream = stub->GetBlocks(&context);
  if (frame != nullptr) stream->Write(*frame);
  v1::Frame answer;
  while (stream->Read(&answer)) {
  }
  return stream->Finish();
}

TEST(GrpcStreamTest, RefusesStreamsThatNameNoSessionOrShard) {
  GrpcRig rig;
  RecordingSink sink;
  auto server = rig.MakeServer(sink, Clock::Monotonic(), {});
  ASSERT_TRUE(server->Admit(5, "", 0));
  EXPECT_EQ(CallRaw(rig.address(), "", "3").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(CallRaw(rig.address(), "five", "3").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(CallRaw(rig.address(), "5", "4").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(CallRaw(rig.address(), "6", "3").error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST(GrpcStreamTest, EndsAStreamOfNonsenseAndServesOn) {
  GrpcRig rig;
  RecordingSink sink;
  auto server = rig.MakeServer(sink, Clock::Monotonic(), {});
  ASSERT_TRUE(server->Admit(5, "", 0));
  std::atomic<bool> stop{false};
  std::thread owner([&] {
    while (!stop) server->Poll();
  });
  v1::Frame garbage;
  garbage.set_header(std::string(64, 'x'));
  EXPECT_EQ(CallRaw(rig.address(), "5", "3", &garbage).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  FrameHeader other;
  other.op = Op::kHello;
  other.session_id = 6;
  v1::Frame foreign;
  foreign.mutable_header()->resize(kFrameHeaderBytes);
  EncodeFrameHeader(other, reinterpret_cast<std::byte*>(foreign.mutable_header()->data()));
  EXPECT_EQ(CallRaw(rig.address(), "5", "3", &foreign).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  FrameHeader get;
  get.op = Op::kGet;
  get.session_id = 5;
  v1::Frame early;
  early.mutable_header()->resize(kFrameHeaderBytes);
  EncodeFrameHeader(get, reinterpret_cast<std::byte*>(early.mutable_header()->data()));
  EXPECT_EQ(CallRaw(rig.address(), "5", "3", &early).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  stop = true;
  owner.join();
  EXPECT_TRUE(sink.frames.empty());
  EXPECT_GE(server->counters().rejected_frames, 2u);
}

}  // namespace
}  // namespace tiercel
