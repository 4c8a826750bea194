// The client as it is connected in earnest: Connect, OpenSession, keep-alive and view over gRPC,
// frames over its streams; the node behind the service is scripted.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "client/cpp/client.h"
#include "proto/tiercel.grpc.pb.h"
#include "tests/client/scripted_node.h"
#include "transport/grpc_stream.h"

namespace tiercel {
namespace {

class Service final : public v1::Tiercel::CallbackService {
 public:
  explicit Service(GrpcStreamHub& hub) : hub_(hub) {}
  ScriptedNode* node = nullptr;
  std::atomic<int> beats{0}, closed{0};
  uint32_t proto = kWireVersion;

  grpc::ServerUnaryReactor* OpenSession(grpc::CallbackServerContext* context,
                                        const v1::OpenSessionRequest* request,
                                        v1::OpenSessionResponse* reply) override {
    static std::atomic<uint64_t> next{1000};
    const uint64_t id = ++next;
    EXPECT_EQ(request->name_space(), "default");
    EXPECT_FALSE(request->host_id().empty());
    EXPECT_TRUE(node->transport().Admit(id, "", 0));
    reply->set_session_id(id);
    reply->set_proto(proto);
    reply->set_node_id("a");
    v1::ShardEndpoint* shard = reply->add_shards();
    shard->set_token(std::string(16, 't'));
    shard->set_transport(v1::TRANSPORT_GRPC);
    shard->set_reason("scripted");
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* CloseSession(grpc::CallbackServerContext* context,
                                         const v1::CloseSessionRequest*,
                                         v1::CloseSessionResponse*) override {
    ++closed;
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerBidiReactor<v1::KeepAliveRequest, v1::KeepAliveResponse>* KeepAlive(
      grpc::CallbackServerContext*) override {
    class Beats final
        : public grpc::ServerBidiReactor<v1::KeepAliveRequest, v1::KeepAliveResponse> {
     public:
      explicit Beats(Service& service) : service_(service) { StartRead(&request_); }
      void OnReadDone(bool ok) override {
        if (!ok) {
          Finish(grpc::Status::OK);
          return;
        }
        ++service_.beats;
        StartRead(&request_);
      }
      void OnDone() override { delete this; }

     private:
      Service& service_;
      v1::KeepAliveRequest request_;
    };
    return new Beats(*this);
  }
  grpc::ServerWriteReactor<v1::WatchViewResponse>* WatchView(grpc::CallbackServerContext*,
                                                             const v1::WatchViewRequest*) override {
    class Views final : public grpc::ServerWriteReactor<v1::WatchViewResponse> {
     public:
      Views() {
        response_.set_view_json(
            R"({"epoch":1,"nodes":[{"id":"a","endpoint":"0.0.0.0:1","shards":[100]}]})");
        StartWrite(&response_);
      }
      void OnWriteDone(bool) override {}
      void OnCancel() override { Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }

     private:
      v1::WatchViewResponse response_;
    };
    return new Views;
  }
  grpc::ServerBidiReactor<v1::Frame, v1::Frame>* GetBlocks(
      grpc::CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kGets);
  }
  grpc::ServerBidiReactor<v1::Frame, v1::Frame>* PutBlocks(
      grpc::CallbackServerContext* context) override {
    return hub_.Accept(context, GrpcStreamHub::Half::kPuts);
  }

 private:
  GrpcStreamHub& hub_;
};

class GrpcTest : public testing::Test {
 protected:
  void SetUp() override {
    node_ = std::make_unique<ScriptedNode>("a", [this](FrameSink& sink) {
      return hub_.MakeTransport(0, "localhost", sink, Clock::Monotonic());
    });
    service_.node = node_.get();
    StartServer(0);
  }
  void StartServer(int port) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.SetMaxReceiveMessageSize(kGrpcMaxMessageBytes);
    builder.SetMaxSendMessageSize(kGrpcMaxMessageBytes);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void StopServer() {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  }
  void TearDown() override { StopServer(); }

  Result<std::unique_ptr<Client>> Connect() {
    Client::Options options;
    options.endpoints = {"127.0.0.1:" + std::to_string(port_)};
    options.transports = {TransportKind::kGrpc};
    return Client::Connect(options);
  }
  static Chain OneBlock(uint64_t seed) {
    Chain chain{Chain::Options{}};
    std::array<std::byte, 32> hash{};
    StoreLe(hash.data(), seed);
    EXPECT_TRUE(chain.Append(hash));
    return chain;
  }

  GrpcStreamHub hub_;
  Service service_{hub_};
  int port_ = 0;
  std::unique_ptr<ScriptedNode> node_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcTest, ConnectsKeepsAliveAndMovesBlocks) {
  auto client = Connect();
  ASSERT_TRUE(client) << client.error().ToString();
  for (const size_t size : {10u, 100'000u, 16u << 20}) {
    const Chain chain = OneBlock(size);
    std::vector<std::byte> block(size, std::byte{7});
    const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
    ASSERT_EQ((*client)->Put(chain, 0, {&source, 1}, KvLayout::Opaque()).prefix, 1u);
    ASSERT_EQ((*client)->Match(chain).prefix, 1u);
    std::vector<std::byte> out(size);
    GetSlot slot;
    slot.dst = out;
    ASSERT_EQ((*client)->Get(chain, 0, {&slot, 1}, KvLayout::Opaque()).prefix, 1u);
    EXPECT_EQ(out, block);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  EXPECT_GE(service_.beats, 2);
  EXPECT_TRUE((*client)->Nodes()[0].connected);
  client->reset();
  EXPECT_EQ(service_.closed, 1);
}

TEST_F(GrpcTest, ANodeThatGoesIsMissesAndIsFoundAgainWhenItComesBack) {
  auto client = Connect();
  ASSERT_TRUE(client) << client.error().ToString();
  const Chain chain = OneBlock(1);
  std::vector<std::byte> out(64);
  GetSlot slot;
  slot.dst = out;
  const PutSource source{PutSource::Kind::kBlock, out, nullptr, {}};
  ASSERT_EQ((*client)->Put(chain, 0, {&source, 1}, KvLayout::Opaque()).prefix, 1u);
  StopServer();
  server_.reset();
  RequestOptions options;
  options.deadline = 100 * kMillisecond;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const Completion gone = (*client)->Get(chain, 0, {&slot, 1}, KvLayout::Opaque(), options);
  EXPECT_TRUE(gone.blocks[0].reason == MissReason::kBreaker ||
              gone.blocks[0].reason == MissReason::kDeadline)
      << Name(gone.blocks[0].reason);
  StartServer(port_);
  const Nanos until = Clock::Monotonic().Now() + 5 * kSecond;
  uint32_t found = 0;
  while (found == 0 && Clock::Monotonic().Now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    found = (*client)->Get(chain, 0, {&slot, 1}, KvLayout::Opaque()).prefix;
  }
  EXPECT_EQ(found, 1u);
}

TEST_F(GrpcTest, AnotherWireVersionIsRefusedClearly) {
  service_.proto = 9;
  const auto client = Connect();
  ASSERT_FALSE(client);
  EXPECT_NE(client.error().message.find("wire version 9"), std::string::npos)
      << client.error().message;
}

TEST(ConnectTest, NoNodeAtAllIsAnErrorWithinItsTime) {
  Client::Options options;
  options.endpoints = {"127.0.0.1:1"};
  const Nanos before = Clock::Monotonic().Now();
  const auto client = Client::Connect(options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Code::kUnavailable);
  EXPECT_LT(Clock::Monotonic().Now() - before, 5 * kSecond);
  EXPECT_EQ(Client::Connect(Client::Options{}).error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace tiercel
