// What every DeviceMemory must do, as one suite. An implementation's test names a factory:
//
//   struct Mine { static Result<std::unique_ptr<DeviceMemory>> Make(const DeviceMemory::Options&);
//   }; INSTANTIATE_TYPED_TEST_SUITE_P(Mine, DeviceMemoryConformance, Mine);
//
// Where Make says kUnavailable there is no such device here, and the tests are skipped with its
// reason.
#ifndef TIERCEL_TESTS_CONFORMANCE_DEVICE_MEMORY_CONFORMANCE_H_
#define TIERCEL_TESTS_CONFORMANCE_DEVICE_MEMORY_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "base/random.h"
#include "tiering/device_memory.h"

namespace tiercel {

template <class Factory>
class DeviceMemoryConformance : public ::testing::Test {
 protected:
  using Piece = DeviceMemory::Piece;
  static constexpr uint64_t kBytes = 8 * kMiB;
  static constexpr uint64_t kStaging = kMiB;

  void SetUp() override {
    DeviceMemory::Options options;
    options.bytes = kBytes;
    options.staging_bytes = kStaging;
    auto made = Factory::Make(options);
    if (!made && made.error().code == Code::kUnavailable) GTEST_SKIP() << made.error().message;
    ASSERT_TRUE(made) << made.error().message;
    memory_ = std::move(*made);
  }
  static std::vector<std::byte> Bytes(uint64_t seed, uint64_t n) {
    std::vector<std::byte> bytes(n);
    SplitMix64 random(seed);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
    return bytes;
  }
  void Fill(int lane, uint64_t at, const std::vector<std::byte>& bytes) {
    std::copy(bytes.begin(), bytes.end(),
              memory_->staging(lane).begin() + static_cast<ptrdiff_t>(at));
  }
  void Wipe(int lane) { std::ranges::fill(memory_->staging(lane), std::byte{0xee}); }
  bool Holds(int lane, uint64_t at, const std::vector<std::byte>& bytes) {
    return std::equal(bytes.begin(), bytes.end(),
                      memory_->staging(lane).begin() + static_cast<ptrdiff_t>(at));
  }
  void Copy(int lane, DeviceMemory::Direction direction, std::vector<Piece> pieces) {
    const Status started = memory_->Start(lane, direction, pieces);
    ASSERT_TRUE(started) << started.error().message;
    const Status waited = memory_->Wait(lane);
    ASSERT_TRUE(waited) << waited.error().message;
  }
  std::unique_ptr<DeviceMemory> memory_;
};
TYPED_TEST_SUITE_P(DeviceMemoryConformance);

TYPED_TEST_P(DeviceMemoryConformance, SaysWhatItIs) {
  EXPECT_FALSE(this->memory_->name().empty());
  EXPECT_EQ(this->memory_->bytes(), this->kBytes);
  for (int lane = 0; lane < DeviceMemory::kLanes; ++lane) {
    EXPECT_EQ(this->memory_->staging(lane).size(), this->kStaging);
  }
  EXPECT_NE(this->memory_->staging(0).data(), this->memory_->staging(1).data());
}

TYPED_TEST_P(DeviceMemoryConformance, WhatGoesInComesOutByteForByte) {
  using Direction = DeviceMemory::Direction;
  // The very ends of memory and staging, odd sizes and places, and all of a staging.
  const std::vector<DeviceMemory::Piece> pieces = {
      {0, 0, 1},
      {this->kBytes - 4097, this->kStaging - 4097, 4097},
      {123'457, 511, 70'001},
      {2 * kMiB, 0, this->kStaging}};
  uint64_t seed = 1;
  for (const auto& piece : pieces) {
    for (int lane = 0; lane < DeviceMemory::kLanes; ++lane) {
      const auto bytes = this->Bytes(++seed, piece.bytes);
      this->Fill(lane, piece.staging, bytes);
      this->Copy(lane, Direction::kToDevice, {piece});
      this->Wipe(1 - lane);  // And out by the other lane.
      this->Copy(1 - lane, Direction::kToHost, {piece});
      EXPECT_TRUE(this->Holds(1 - lane, piece.staging, bytes))
          << piece.bytes << " bytes at " << piece.device;
    }
  }
}

TYPED_TEST_P(DeviceMemoryConformance, ManyPiecesOfOneStartGoWhereEachSays) {
  using Direction = DeviceMemory::Direction;
  constexpr uint64_t kEach = 5000;
  std::vector<DeviceMemory::Piece> in;
  std::vector<std::vector<std::byte>> all;
  for (uint64_t i = 0; i < 100; ++i) {
    all.push_back(this->Bytes(100 + i, kEach));
    in.push_back({(i * 37 % 100) * 8192, i * kEach, kEach});
    this->Fill(0, i * kEach, all.back());
  }
  this->Copy(0, Direction::kToDevice, in);
  std::vector<DeviceMemory::Piece> out = in;
  for (uint64_t i = 0; i < 100; ++i) out[i].staging = (99 - i) * kEach;
  this->Wipe(1);
  this->Copy(1, Direction::kToHost, out);
  for (uint64_t i = 0; i < 100; ++i) EXPECT_TRUE(this->Holds(1, (99 - i) * kEach, all[i])) << i;
}

TYPED_TEST_P(DeviceMemoryConformance, BothLanesFlyAtOnceAndNeitherSeesTheOthersBytes) {
  using Direction = DeviceMemory::Direction;
  for (uint64_t round = 0; round < 20; ++round) {
    std::array<std::vector<std::byte>, 2> bytes;
    for (int lane = 0; lane < 2; ++lane) {
      auto& mine = bytes[static_cast<size_t>(lane)];
      mine = this->Bytes(round * 2 + static_cast<uint64_t>(lane), this->kStaging);
      this->Fill(lane, 0, mine);
      const DeviceMemory::Piece piece{static_cast<uint64_t>(lane) * this->kStaging, 0,
                                      this->kStaging};
      ASSERT_TRUE(this->memory_->Start(lane, Direction::kToDevice, std::span(&piece, 1)));
    }
    for (int lane = 1; lane >= 0; --lane) ASSERT_TRUE(this->memory_->Wait(lane));
    for (int lane = 0; lane < 2; ++lane) {
      this->Wipe(lane);
      const DeviceMemory::Piece piece{static_cast<uint64_t>(lane) * this->kStaging, 0,
                                      this->kStaging};
      ASSERT_TRUE(this->memory_->Start(lane, Direction::kToHost, std::span(&piece, 1)));
    }
    for (int lane = 0; lane < 2; ++lane) {
      ASSERT_TRUE(this->memory_->Wait(lane));
      EXPECT_TRUE(this->Holds(lane, 0, bytes[static_cast<size_t>(lane)]));
    }
  }
}

TYPED_TEST_P(DeviceMemoryConformance, RefusesWhatLiesOutsideAndCopiesNothingOfIt) {
  using Direction = DeviceMemory::Direction;
  const auto before = this->Bytes(7, 4096);
  this->Fill(0, 0, before);
  this->Copy(0, Direction::kToDevice, {{0, 0, 4096}});
  this->Fill(0, 0, this->Bytes(8, 4096));
  const std::vector<DeviceMemory::Piece> bad = {{this->kBytes, 0, 1},   {this->kBytes - 1, 0, 2},
                                                {0, this->kStaging, 1}, {UINT64_MAX, 0, 2},
                                                {0, UINT64_MAX, 2},     {1, 1, UINT64_MAX}};
  for (const auto& piece : bad) {
    const std::vector<DeviceMemory::Piece> both = {{0, 0, 4096}, piece};
    for (const Direction direction : {Direction::kToDevice, Direction::kToHost}) {
      const Status refused = this->memory_->Start(0, direction, both);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, Code::kInvalidArgument);
      EXPECT_TRUE(this->memory_->Wait(0));
    }
  }
  this->Wipe(0);
  this->Copy(0, Direction::kToHost, {{0, 0, 4096}});
  EXPECT_TRUE(this->Holds(0, 0, before));
}

TYPED_TEST_P(DeviceMemoryConformance, ALaneThatFliesIsNotStartedAgain) {
  using Direction = DeviceMemory::Direction;
  const DeviceMemory::Piece piece{0, 0, this->kStaging};
  EXPECT_TRUE(this->memory_->Wait(0)) << "nothing was started";
  EXPECT_TRUE(this->memory_->Start(0, Direction::kToDevice, {}));
  EXPECT_TRUE(this->memory_->Wait(0));
  ASSERT_TRUE(this->memory_->Start(0, Direction::kToDevice, std::span(&piece, 1)));
  const Status again = this->memory_->Start(0, Direction::kToDevice, std::span(&piece, 1));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::kFailedPrecondition);
  const DeviceMemory::Piece beside{this->kStaging, 0, this->kStaging};
  EXPECT_TRUE(this->memory_->Start(1, Direction::kToHost, std::span(&beside, 1)))
      << "the other is free";
  EXPECT_TRUE(this->memory_->Wait(0));
  EXPECT_TRUE(this->memory_->Wait(1));
  EXPECT_TRUE(this->memory_->Wait(1));
}

REGISTER_TYPED_TEST_SUITE_P(DeviceMemoryConformance, SaysWhatItIs, WhatGoesInComesOutByteForByte,
                            ManyPiecesOfOneStartGoWhereEachSays,
                            BothLanesFlyAtOnceAndNeitherSeesTheOthersBytes,
                            RefusesWhatLiesOutsideAndCopiesNothingOfIt,
                            ALaneThatFliesIsNotStartedAgain);

}  // namespace tiercel

#endif  // TIERCEL_TESTS_CONFORMANCE_DEVICE_MEMORY_CONFORMANCE_H_
