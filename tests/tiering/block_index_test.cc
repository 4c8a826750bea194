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
  EXPECT_EQ(index.Find(KeyOf(1), false).block, exact);
  EXPECT_EQ(index.Find(KeyOf(1), true).block, lossy);
  EXPECT_EQ(index.size(), 2u);
  EXPECT_EQ(index.record_bytes(), 2000u);
  EXPECT_EQ(index.raw_bytes(), 3000u);
  (void)index.Remove(exact);
  EXPECT_FALSE(index.Find(KeyOf(1), false));
  EXPECT_EQ(index.Find(KeyOf(1), true).block, lossy);
  EXPECT_EQ(index.record_bytes(), 1000u);
  exact = index.Insert(EntryOf(1));
  (void)index.Remove(lossy);
  EXPECT_EQ(index.Find(KeyOf(1), false).block, exact);
  EXPECT_FALSE(index.Find(KeyOf(1), true));
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
  Block* exact = index.Insert(EntryOf(1));
  EXPECT_EQ(exact->resident_children, 2u) << "they are children of the key";
  index.ChildLeft(KeyOf(1));
  index.ChildLeft(KeyOf(1));
  EXPECT_EQ(parent->resident_children, 0u);
  EXPECT_EQ(exact->resident_children, 0u);
  (void)index.Remove(parent);
  (void)index.Remove(exact);
  EXPECT_EQ(index.size(), 0u);
}

TEST(BlockIndexTest, SaysAllOfARecordThatIsOnSsdAlone) {
  BlockIndex index(0);
  SsdEntry entry = EntryOf(5, QualityClass::kHigh, 77);
  entry.parent = KeyOf(4);
  entry.anchor = KeyOf(100);
  entry.scope.bytes.fill(std::byte{9});
  entry.chain_index = 32 * 7 + 31;
  entry.generation = 123'456'789'012;
  entry.where = {3, 14};
  index.InsertCold(entry);
  const auto found = index.Find(KeyOf(5), true);
  ASSERT_TRUE(found);
  EXPECT_EQ(found.block, nullptr);
  EXPECT_EQ(found.name_space, 77u);
  EXPECT_EQ(found.ssd, entry.where);
  const auto same = [&](const SsdEntry& told) {
    EXPECT_EQ(told.key, entry.key);
    EXPECT_EQ(told.parent, entry.parent) << "though it was never here";
    EXPECT_EQ(told.anchor, entry.anchor);
    EXPECT_EQ(told.scope, entry.scope);
    EXPECT_EQ(told.chain_index, entry.chain_index);
    EXPECT_EQ(told.generation, entry.generation);
    EXPECT_EQ(told.quality, entry.quality);
    EXPECT_EQ(told.record_bytes, entry.record_bytes);
    EXPECT_EQ(told.raw_bytes, entry.raw_bytes);
    EXPECT_EQ(told.where, entry.where);
  };
  same(index.Entry(found));
  Block* block = index.Warm(found);
  block->hits = 3;
  index.SetRamBytes(block, 2000);  // As it came; on SSD it is smaller.
  EXPECT_EQ(index.record_bytes(), 2000u);
  same(block->EntryOnSsd());
  index.Cool(block);
  same(index.Entry(index.Find(KeyOf(5), true)));
  EXPECT_EQ(index.Hits(index.Find(KeyOf(5), true)), 3u);
  EXPECT_EQ(index.record_bytes(), 1000u);
}

// Against std::map, in every state that a key can be in.
TEST(BlockIndexTest, MatchesAModelUnderRandomUse) {
  struct Model {
    uint32_t name_space;
    bool warm;
    uint64_t parent;
  };
  std::map<std::pair<uint64_t, bool>, Model> model;
  std::map<uint64_t, uint32_t> children;
  BlockIndex index(0);
  SplitMix64 random(11);
  for (int step = 0; step < 200'000; ++step) {
    const uint64_t n = 1 + random.Below(500);
    const bool lossy = random.Below(4) == 0;
    const auto at = model.find({n, lossy});
    const auto found = index.Find(KeyOf(n), lossy);
    ASSERT_EQ(static_cast<bool>(found), at != model.end());
    if (at != model.end()) {
      ASSERT_EQ(found.block != nullptr, at->second.warm);
      ASSERT_EQ(found.name_space, at->second.name_space);
      ASSERT_EQ(index.Entry(found).parent,
                at->second.parent == 0 ? BlockKey{} : KeyOf(at->second.parent));
      if (found.block != nullptr) {
        const auto count = children.find(n);
        ASSERT_EQ(found.block->resident_children, count == children.end() ? 0 : count->second);
      }
    }
    switch (random.Below(6)) {
      case 0:
      case 1: {
        if (found) break;
        SsdEntry entry = EntryOf(n, lossy ? QualityClass::kHigh : QualityClass::kExact,
                                 static_cast<uint32_t>(random.Below(3)));
        const uint64_t parent = random.Below(500);  // Any, itself included; 0: none.
        if (parent != 0) entry.parent = KeyOf(parent);
        entry.anchor = KeyOf(1000 + n / 8);
        entry.where = {1, static_cast<uint32_t>(n)};
        const bool warm = random.Below(2) == 0;
        warm ? (void)index.Insert(entry) : index.InsertCold(entry);
        model[{n, lossy}] = {entry.name_space, warm, parent};
        break;
      }
      case 2:
        if (!found) break;
        (void)index.Remove(found);
        model.erase(at);
        break;
      case 3:
        if (!found) break;
        found.block != nullptr ? index.Cool(found.block) : (void)index.Warm(found);
        at->second.warm = !at->second.warm;
        break;
      case 4:
        index.ChildEntered(KeyOf(n));
        ++children[n];
        break;
      default:
        if (!children.contains(n)) break;
        index.ChildLeft(KeyOf(n));
        if (--children[n] == 0) children.erase(n);
    }
    ASSERT_EQ(index.size(), model.size());
  }
  while (!children.empty()) {
    index.ChildLeft(KeyOf(children.begin()->first));
    if (--children.begin()->second == 0) children.erase(children.begin());
  }
  for (const auto& [key, one] : model) (void)index.Remove(index.Find(KeyOf(key.first), key.second));
  EXPECT_EQ(index.record_bytes(), 0u);
  EXPECT_EQ(index.raw_bytes(), 0u);
  EXPECT_EQ(index.slots_in_use(), 0u) << "keys that nothing names stay behind";
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
  const uint64_t memory = index.memory().all();
  for (uint64_t n = 0; n < 100'000; ++n) index.Remember(KeyOf(n), MissReason::kEvicted);
  EXPECT_EQ(index.memory().all(), memory);
}

// Whole runs of chains, as engines make them.
TEST(BlockIndexTest, ARecordOnSsdCostsAtMost96BytesWithItsKey) {
  BlockIndex index(0);
  constexpr uint64_t kRecords = 200'000;
  for (uint64_t n = 0; n < kRecords; ++n) {
    SsdEntry entry = EntryOf(n + 1);
    if (n % 64 > 0) entry.parent = KeyOf(n);
    entry.chain_index = static_cast<uint32_t>(n % 64);
    entry.anchor = KeyOf(n / 32 * 32 + 1);
    entry.where = {1, static_cast<uint32_t>(n)};
    index.InsertCold(entry);
  }
  const BlockIndex::Memory memory = index.memory();
  EXPECT_LE(memory.all(), 96 * kRecords);
  EXPECT_EQ(memory.blocks, 0u);
  EXPECT_GE(memory.records, (sizeof(BlockKey) + 4) * kRecords);
  (void)index.Warm(index.Find(KeyOf(1), false));
  EXPECT_GE(index.memory().blocks, sizeof(Block));
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
