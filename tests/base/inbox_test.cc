#include "base/inbox.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <memory>
#include <thread>

namespace tiercel {
namespace {

TEST(InboxTest, HandsMessagesOutInTheOrderTheyCame) {
  Inbox<int> inbox(8);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(inbox.Push(int{i}));
  std::vector<int> got;
  EXPECT_EQ(inbox.Drain([&](int&& i) { got.push_back(i); }), 5u);
  EXPECT_EQ(got, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_EQ(inbox.Drain([](int&&) { FAIL(); }), 0u);
}

TEST(InboxTest, AFullInboxRefusesAndLeavesTheMessageAlone) {
  Inbox<std::unique_ptr<int>> inbox(1);
  ASSERT_TRUE(inbox.Push(std::make_unique<int>(1)));
  auto refused = std::make_unique<int>(2);
  EXPECT_FALSE(inbox.Push(std::move(refused)));
  ASSERT_NE(refused, nullptr);
  EXPECT_EQ(*refused, 2);
}

TEST(InboxTest, DoesNotLetTheOwnerSleepOnWork) {
  Inbox<int> inbox(8);
  ASSERT_TRUE(inbox.Arm());
  ASSERT_TRUE(inbox.Push(7));
  pollfd fd{inbox.event_fd(), POLLIN, 0};
  EXPECT_EQ(poll(&fd, 1, 0), 1);
  EXPECT_FALSE(inbox.Arm());
}

TEST(InboxTest, LosesNoWakeUpBetweenManySendersAndASleepingOwner) {
  constexpr int kSenders = 3;
  constexpr int kEach = 20'000;
  Inbox<int> inbox(1024);
  std::vector<std::thread> senders;
  for (int s = 0; s < kSenders; ++s) {
    senders.emplace_back([&inbox] {
      for (int i = 0; i < kEach; ++i) {
        while (!inbox.Push(1)) std::this_thread::yield();
      }
    });
  }
  int sum = 0;
  bool timed_out = false;
  while (sum < kSenders * kEach && !timed_out) {
    inbox.Drain([&sum](int&& one) { sum += one; });
    if (sum < kSenders * kEach && inbox.Arm()) {
      pollfd fd{inbox.event_fd(), POLLIN, 0};
      timed_out = poll(&fd, 1, 5000) == 0;  // A lost wake-up would sleep for ever.
    }
  }
  for (std::thread& sender : senders) sender.join();
  EXPECT_FALSE(timed_out);
  EXPECT_EQ(sum, kSenders * kEach);
}

}  // namespace
}  // namespace tiercel
