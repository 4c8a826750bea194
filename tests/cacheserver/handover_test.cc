#include "cacheserver/handover.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace tiercel {
namespace {

class HandoverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "tiercel-handover-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/next.sock";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<HandoverServer> Listen(HandoverTerms terms = {2, 4096, "old"}) {
    auto server = HandoverServer::Listen(path_, terms, [this] { ++asked_; });
    EXPECT_TRUE(server) << server.error().message;
    return std::move(*server);
  }
  // A connected socket that says what it likes.
  FileDescriptor Stranger() {
    FileDescriptor fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  static std::vector<ShardLeft> Shards(size_t slabs) {
    std::vector<ShardLeft> shards(2);
    for (ShardLeft& shard : shards) {
      shard.snapshot = FileDescriptor(memfd_create("snapshot", MFD_CLOEXEC));
      shard.snapshot_bytes = 5;
      EXPECT_EQ(write(shard.snapshot.get(), "hello", 5), 5);
      for (size_t i = 0; i < slabs; ++i) {
        shard.slabs.emplace_back(memfd_create("slab", MFD_CLOEXEC));
        EXPECT_EQ(write(shard.slabs.back().get(), &i, sizeof(i)), static_cast<ssize_t>(sizeof(i)));
      }
    }
    return shards;
  }

  std::string folder_, path_;
  std::atomic<int> asked_ = 0;
};

TEST_F(HandoverTest, EverythingArrivesInOrderWhateverItsNumber) {
  constexpr size_t kSlabs = 150;  // More than one packet takes.
  auto server = Listen();
  std::thread old([&] {
    while (!server->asked()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Status sent = server->Send(Shards(kSlabs), 10 * kSecond);
    EXPECT_TRUE(sent) << sent.error().message;
  });
  auto handover = Handover::Ask(path_, {2, 4096, "new"}, 10 * kSecond);
  ASSERT_TRUE(handover) << handover.error().message;
  EXPECT_EQ(handover->version(), "old");
  ASSERT_EQ(handover->shards().size(), 2u);
  for (const ShardLeft& shard : handover->shards()) {
    char text[5];
    EXPECT_EQ(pread(shard.snapshot.get(), text, 5, 0), 5);
    EXPECT_EQ(std::memcmp(text, "hello", 5), 0);
    ASSERT_EQ(shard.slabs.size(), kSlabs);
    for (size_t i = 0; i < kSlabs; ++i) {
      size_t number = 0;
      EXPECT_EQ(pread(shard.slabs[i].get(), &number, sizeof(number), 0),
                static_cast<ssize_t>(sizeof(number)));
      EXPECT_EQ(number, i);
    }
  }
  handover->Confirm();
  old.join();
  EXPECT_EQ(asked_, 1);
  EXPECT_FALSE(std::filesystem::exists(path_)) << "the place is the successor's now";
}

TEST_F(HandoverTest, OtherTermsAreRefusedWithTheReasonAndTheServerListensOn) {
  auto server = Listen();
  const auto shards = Handover::Ask(path_, {3, 4096, "new"}, kSecond);
  ASSERT_FALSE(shards);
  EXPECT_EQ(shards.error().code, Code::kFailedPrecondition);
  EXPECT_NE(shards.error().message.find("2 shards"), std::string::npos) << shards.error().message;
  const auto slabs = Handover::Ask(path_, {2, 8192, "new"}, kSecond);
  ASSERT_FALSE(slabs);
  EXPECT_EQ(slabs.error().code, Code::kFailedPrecondition);
  EXPECT_EQ(asked_, 0);
  EXPECT_FALSE(server->asked());
}

TEST_F(HandoverTest, StrangersCostNothing) {
  auto server = Listen();
  for (int i = 0; i < 5; ++i) {
    FileDescriptor fd = Stranger();
    if (i % 2 == 0) {
      const std::string garbage(300, static_cast<char>(i));
      (void)!send(fd.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL);
    }
  }
  std::thread old([&] {
    while (!server->asked()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(server->Send(Shards(1), 10 * kSecond));
  });
  auto handover = Handover::Ask(path_, {2, 4096, "new"}, 10 * kSecond);
  ASSERT_TRUE(handover) << handover.error().message;
  handover->Confirm();
  old.join();
}

TEST_F(HandoverTest, ASuccessorThatGoesIsToldToTheOldOne) {
  auto server = Listen();
  std::thread successor([&] {
    auto handover = Handover::Ask(path_, {2, 4096, "new"}, 10 * kSecond);
    EXPECT_TRUE(handover);  // And ends without a word.
  });
  while (!server->asked()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(server->Send(Shards(3), 10 * kSecond).error().code, Code::kUnavailable);
  successor.join();
}

TEST_F(HandoverTest, WhereNobodyListensItSaysSo) {
  EXPECT_EQ(Handover::Ask(path_, {2, 4096, "new"}, kSecond).error().code, Code::kNotFound);
  EXPECT_EQ(Handover::Ask(std::string(200, 'x'), {2, 4096, "new"}, kSecond).error().code,
            Code::kInvalidArgument);
}

TEST_F(HandoverTest, AStaleSocketGoesAndAnythingElseStays) {
  {
    FileDescriptor stale(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    ASSERT_EQ(bind(stale.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  Listen();
  std::ofstream(path_) << "mine";
  EXPECT_EQ(HandoverServer::Listen(path_, {2, 4096, "old"}, [] {}).error().code,
            Code::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(HandoverTest, ItsPlaceFollowsFromThePort) {
  Config config;
  unsetenv("RUNTIME_DIRECTORY");
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  config.grpc_listen = "127.0.0.1:7400";
  EXPECT_EQ(RestartSocket(config), "/run/user/7/tiercel-7400.sock");
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(RestartSocket(config), "/tmp/tiercel-" + std::to_string(geteuid()) + "-7400.sock");
  for (const char* listen : {"127.0.0.1:0", "unix:/run/tiercel.sock", "127.0.0.1"}) {
    config.grpc_listen = listen;
    EXPECT_EQ(RestartSocket(config), "") << listen;
  }
  config.restart_socket = "/run/x.sock";
  EXPECT_EQ(RestartSocket(config), "/run/x.sock");
  config.restart_socket = "off";
  EXPECT_EQ(RestartSocket(config), "");
}

}  // namespace
}  // namespace tiercel
