#include "transport/choose.h"

#include <gtest/gtest.h>

namespace tiercel {
namespace {

ServerOffer Server() {
  ServerOffer server;
  server.kinds = {TransportKind::kMemfd, TransportKind::kUcx, TransportKind::kGrpc};
  server.host_id = "a";
  server.ucx_version = "1.13";
  server.ucx_devices = "lo";
  server.trusted_fabric = true;
  return server;
}
ClientOffer Client() {
  ClientOffer client;
  client.host_id = "a";
  client.has_ucx_address = true;
  client.ucx_version = "1.13";
  return client;
}

TEST(ChooseTransport, TheSameHostUsesSharedMemory) {
  const auto choice = ChooseTransport(Client(), Server());
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, TransportKind::kMemfd);
  EXPECT_EQ(choice->reason, "same host");
}

TEST(ChooseTransport, AnotherHostOfATrustedFabricUsesUcx) {
  ClientOffer client = Client();
  client.host_id = "b";
  const auto choice = ChooseTransport(client, Server());
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, TransportKind::kUcx);
  EXPECT_EQ(choice->reason, "memfd refused: another host; trusted fabric, ucx over lo");
}

TEST(ChooseTransport, UcxIsNeverChosenOutsideTheTrustedFabric) {
  ClientOffer client = Client();
  client.kinds = {TransportKind::kUcx, TransportKind::kGrpc};
  ServerOffer server = Server();
  server.trusted_fabric = false;
  const auto choice = ChooseTransport(client, server);
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, TransportKind::kGrpc);
  EXPECT_NE(choice->reason.find("trusted fabric"), std::string::npos);
}

TEST(ChooseTransport, DifferentUcxVersionsFallBackAndSaySo) {
  ClientOffer client = Client();
  client.host_id = "b";
  client.ucx_version = "1.17";
  const auto choice = ChooseTransport(client, Server());
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, TransportKind::kGrpc);
  EXPECT_NE(choice->reason.find("client 1.17 server 1.13"), std::string::npos);
}

TEST(ChooseTransport, TheClientsOrderIsKept) {
  ClientOffer client = Client();
  client.kinds = {TransportKind::kGrpc, TransportKind::kMemfd};
  const auto choice = ChooseTransport(client, Server());
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, TransportKind::kGrpc);
}

TEST(ChooseTransport, NothingInCommonNamesEveryReason) {
  ClientOffer client = Client();
  client.host_id.clear();
  client.kinds = {TransportKind::kMemfd, TransportKind::kUcx};
  ServerOffer server = Server();
  server.ucx_why_not = "libucp.so.0: cannot open";
  const auto choice = ChooseTransport(client, server);
  ASSERT_FALSE(choice);
  EXPECT_EQ(choice.error().code, Code::kUnavailable);
  EXPECT_NE(choice.error().message.find("libucp.so.0"), std::string::npos);
  EXPECT_NE(choice.error().message.find("which host"), std::string::npos);
}

}  // namespace
}  // namespace tiercel
