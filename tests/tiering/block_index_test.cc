#include "tiering/block_index.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/random.h"
#include "tests/tiering/records.h"
#include "tiering/policy_lists.h"

namespace tiercel {
namespace {

SsdEntry EntryOf(uint64_t n, QualityClass quality = QualityClass::kExact, uint32_t name_space = 1) {
  SsdEntry entry;
  entry.key = KeyOf(n);
  entry.name_space = name_space;
  entry.record_bytes = 1000;
  entry.raw_bytes = 1500;
  entry.quality = quality;
  return entry;
}

TEST(BlockIndexTest, HoldsOneExactAndOneLossyRecordOfAKey) {
  BlockIndex index(16);
  Block* exact = index.Insert(EntryOf(1));
  Block* lossy = index.Insert(EntryOf(1, QualityClass::kBalanced));
  EXPECT_EQ(index.Find(KeyOf(1), false), exact);
  EXPECT_EQ(index.Find(KeyOf(1), true), lossy);
  EXPECT_EQ(index.size(), 2u);
  EXPECT_EQ(index.record_bytes(), 2000u);
  EXPECT_EQ(index.raw_bytes(), 3000u);
  (void)index.Remove(exact);
  EXPECT_EQ(index.Find(KeyOf(1), false), nullptr);
  EXPECT_EQ(index.Find(KeyOf(1), true), lossy);
  EXPECT_EQ(index.record_bytes(), 1000u);
}

TEST(BlockIndexTest, CountsChildrenWhateverComesFirstAndWhateverGoesFirst) {
  BlockIndex index(16);
  index.ChildEntered(KeyOf(1));  // The parent is not here yet.
  Block* parent = index.Insert(EntryOf(1));
  EXPECT_EQ(parent->resident_children, 1u);
  index.ChildEntered(KeyOf(1));
  EXPECT_EQ(parent->resident_children, 2u);
  (void)index.Remove(parent);
  parent = index.Insert(EntryOf(1, QualityClass::kNear));
  EXPECT_EQ(parent->resident_children, 2u) << "the children are still there";
  index.ChildLeft(KeyOf(1));
  index.ChildLeft(KeyOf(1));
  EXPECT_EQ(parent->resident_children, 0u);
  (void)index.Remove(parent);
  EXPECT_EQ(index.size(), 0u);
}

TEST(BlockIndexTest, RemembersWhyABlockWentInBoundedMemory) {
  BlockIndex index(1024);
  EXPECT_EQ(index.WhyAbsent(KeyOf(1)), MissReason::kNeverSeen);
  for (uint64_t n = 0; n < 100; ++n) {
    index.Remember(KeyOf(n), n % 2 == 0 ? MissReason::kEvicted : MissReason::kCleared);
  }
  int right = 0;
  for (uint64_t n = 0; n < 100; ++n) {
    const MissReason why = index.WhyAbsent(KeyOf(n));
    if (why == MissReason::kNeverSeen) continue;  // Another took its place.
    EXPECT_EQ(why, n % 2 == 0 ? MissReason::kEvicted : MissReason::kCleared);
    ++right;
  }
  EXPECT_GE(right, 90);
  for (uint64_t n = 1000; n < 2000; ++n)
    EXPECT_EQ(index.WhyAbsent(KeyOf(n)), MissReason::kNeverSeen);
  const uint64_t memory = index.memory_bytes();
  for (uint64_t n = 0; n < 100'000; ++n) index.Remember(KeyOf(n), MissReason::kEvicted);
  EXPECT_EQ(index.memory_bytes(), memory);
}

TEST(BlockIndexTest, SaysWhatABlockCosts) {
  BlockIndex index(0);
  for (uint64_t n = 0; n < 10'000; ++n) index.Insert(EntryOf(n));
  const uint64_t each = index.memory_bytes() / 10'000;
  EXPECT_GE(each, sizeof(Block));
  EXPECT_LE(each, 512u);
}

class TailFirstLruTest : public ::testing::Test {
 protected:
  Block& Add(uint64_t n, uint32_t name_space = 1) {
    Block& block = *index_.Insert(EntryOf(n, QualityClass::kExact, name_space));
    lru_.Add(block, {});
    return block;
  }
  Block* Victim(uint32_t name_space = 1) { return lru_.Victim(name_space, nullptr); }

  BlockIndex index_{0};
  TailFirstLru lru_;
};

TEST_F(TailFirstLruTest, TakesTheLeastRecentlyUsedOfTheNameSpace) {
  Block& a = Add(1);
  Block& b = Add(2);
  Block& other = Add(3, 2);
  EXPECT_EQ(Victim(), &a);
  lru_.Touch(a, {});
  EXPECT_EQ(Victim(), &b);
  EXPECT_EQ(Victim(2), &other);
  EXPECT_EQ(Victim(9), nullptr);
  EXPECT_EQ(lru_.size(), 3u);
}

TEST_F(TailFirstLruTest, PassesOverParentsAndWhatIsHeldButAlwaysFindsAVictim) {
  Block& parent = Add(1);
  Block& child = Add(2);
  index_.ChildEntered(parent.key);
  EXPECT_EQ(Victim(), &child);
  child.pins = 1;
  EXPECT_EQ(Victim(), &parent) << "rather than none";
  parent.reading = true;
  EXPECT_EQ(Victim(), nullptr);
  EXPECT_EQ(Victim(), nullptr);
  child.pins = 0;
  lru_.Unpinned(child);
  EXPECT_EQ(Victim(), &child);
}

TEST_F(TailFirstLruTest, TakesOneThatFitsBeforeAnOlderOneThatDoesNot) {
  Block& old = Add(1);
  Add(2);
  Block& fitting = Add(3);
  const auto fits = [&](const Block& block) { return &block == &fitting; };
  EXPECT_EQ(lru_.Victim(1, fits), &old) << "not the one that was used just now";
  Add(4);
  EXPECT_EQ(lru_.Victim(1, fits), &fitting);
  EXPECT_EQ(lru_.Victim(1, [](const Block&) { return false; }), &old);
}

// Against a list that is looked through from its cold end.
TEST_F(TailFirstLruTest, MatchesAModelUnderRandomUse) {
  SplitMix64 random(3);
  std::vector<Block*> model;  // Coldest first.
  uint64_t next = 1;
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t what = random.Below(10);
    Block* some = model.empty() ? nullptr : model[random.Below(model.size())];
    if (what < 4 || some == nullptr) {
      if (model.size() < 200) model.push_back(&Add(next++));
    } else if (what < 6) {
      lru_.Touch(*some, {});
      std::erase(model, some);
      model.push_back(some);
    } else if (what < 7) {
      if (some->pins > 0) {
        some->pins = 0;
        lru_.Unpinned(*some);
      } else {
        some->pins = 1;
      }
    } else {
      Block* victim = Victim();
      Block* expected = nullptr;
      for (Block* block : model) {
        if (block->pins == 0) {
          expected = block;
          break;
        }
      }
      ASSERT_EQ(victim, expected);
      if (victim == nullptr) continue;
      lru_.Remove(*victim);
      EXPECT_FALSE(lru_.Holds(*victim));
      std::erase(model, victim);
      (void)index_.Remove(victim);
    }
    ASSERT_EQ(lru_.size(), model.size());
  }
}

}  // namespace
}  // namespace tiercel
