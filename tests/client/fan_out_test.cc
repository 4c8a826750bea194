#include "client/nccl/fan_out.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/random.h"

namespace tiercel {
namespace {

constexpr uint64_t kBytes = 10'000;

std::vector<std::byte> BytesOf(uint64_t seed) {
  std::vector<std::byte> bytes(kBytes);
  SplitMix64 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  return bytes;
}

// Memory of one rank: blocks of two pieces each.
struct Rank {
  explicit Rank(size_t n) : pages(n * 2, std::vector<std::byte>(kBytes)) {
    for (size_t i = 0; i < n; ++i) {
      blocks.push_back({{pages[i * 2].data(), kBytes}, {pages[i * 2 + 1].data(), kBytes}});
    }
  }
  std::vector<std::vector<std::byte>> pages;
  std::vector<std::vector<FanOut::Piece>> blocks;
};

TEST(FanOutTest, OneRankFetchesAndEveryRankHasTheBytes) {
  constexpr int kRanks = 4;
  auto group = MakeLocalFanOut(kRanks, 10 * kSecond);
  std::atomic<int> fetches = 0;
  std::vector<Rank> ranks(kRanks, Rank(0));
  for (Rank& rank : ranks) rank = Rank(5);
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      Rank& mine = ranks[static_cast<size_t>(r)];
      for (int root = 0; root < kRanks; ++root) {  // Each has its turn; block 3 is a miss.
        const auto here =
            FetchOnce(*group[static_cast<size_t>(r)], root, mine.blocks, [&]() -> Result<uint64_t> {
              ++fetches;
              EXPECT_EQ(r, root);
              for (size_t i = 0; i < mine.pages.size(); ++i) {
                std::ranges::copy(BytesOf(static_cast<uint64_t>(root) * 100 + i),
                                  mine.pages[i].begin());
              }
              return 0b10111;
            });
        ASSERT_TRUE(here) << here.error().message;
        EXPECT_EQ(*here, 0b10111u);
        for (size_t i = 0; i < mine.pages.size(); ++i) {
          const bool missed = i / 2 == 3 && r != root;
          EXPECT_EQ(mine.pages[i] == BytesOf(static_cast<uint64_t>(root) * 100 + i), !missed)
              << r << " " << i;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(fetches, kRanks) << "one for each round";
}

TEST(FanOutTest, AFetchThatFailsIsAMissOnEveryRank) {
  auto group = MakeLocalFanOut(2, 10 * kSecond);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      Rank mine(3);
      const auto here = FetchOnce(*group[r], 0, mine.blocks, []() -> Result<uint64_t> {
        return Fail(Code::kUnavailable, "the node is gone");
      });
      ASSERT_TRUE(here);
      EXPECT_EQ(*here, 0u);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(FanOutTest, ARankThatDoesNotComeEndsTheGroupForAll) {
  auto group = MakeLocalFanOut(3, 50 * kMillisecond);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      Rank mine(1);
      const auto here =
          FetchOnce(*group[r], 0, mine.blocks, []() -> Result<uint64_t> { return 1; });
      ASSERT_FALSE(here);
      EXPECT_EQ(here.error().code, Code::kDeadlineExceeded);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(group[2]->why(), "a rank did not come");
  EXPECT_FALSE(group[2]->Tell(0, 1));
}

TEST(FanOutTest, PiecesOfOtherSizesEndTheGroup) {
  auto group = MakeLocalFanOut(2, 10 * kSecond);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      std::vector<std::byte> bytes(100 + r);
      const FanOut::Piece piece{bytes.data(), bytes.size()};
      EXPECT_FALSE(group[r]->Broadcast(0, std::span(&piece, 1)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(group[0]->why().empty());
}

TEST(FanOutTest, RefusesWhatIsNoRootAndTooMuch) {
  auto group = MakeLocalFanOut(1, kSecond);
  EXPECT_EQ(group[0]->Broadcast(1, {}).error().code, Code::kInvalidArgument);
  EXPECT_EQ(group[0]->Broadcast(-1, {}).error().code, Code::kInvalidArgument);
  const std::vector<std::vector<FanOut::Piece>> blocks(65);
  EXPECT_EQ(FetchOnce(*group[0], 0, blocks, []() -> Result<uint64_t> { return 1; }).error().code,
            Code::kInvalidArgument);
  EXPECT_EQ(*group[0]->Tell(0, 42), 42u);
}

// A group of one over NCCL, where there is a GPU; elsewhere it says why not.
TEST(FanOutTest, AGroupOfOneOverNccl) {
  const auto id = MakeFanOutId();
  if (!id) GTEST_SKIP() << id.error().message;
  const auto joined = JoinFanOut(*id, {});
  if (!joined) {
    EXPECT_EQ(joined.error().code, Code::kUnavailable);
    GTEST_SKIP() << joined.error().message;
  }
  EXPECT_EQ(*(*joined)->Tell(0, 0x123456789abcdefull), 0x123456789abcdefull);
}

}  // namespace
}  // namespace tiercel
