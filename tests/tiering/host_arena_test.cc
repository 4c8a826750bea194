#include "tiering/host_arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "base/random.h"

namespace tiercel {
namespace {

constexpr uint32_t kSpace = 7;

std::unique_ptr<HostArena> MakeArena(uint64_t capacity, uint64_t slab = 2 * kMiB) {
  HostArena::Options options;
  options.capacity_bytes = capacity;
  options.slab_bytes = slab;
  auto arena = HostArena::Create(options);
  EXPECT_TRUE(arena) << arena.error().message;
  return std::move(*arena);
}

TEST(HostArenaTest, NeverHandsOutTheSameByteTwice) {
  auto arena = MakeArena(8 * kMiB);
  SplitMix64 random(1);
  struct Held {
    Extent extent;
    uint8_t fill;
  };
  std::vector<Held> held;
  uint64_t used = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random.Below(100) < 55) {
      const uint64_t bytes = 1 + random.Below(200 * kKiB);
      const auto extent = arena->Allocate(bytes, kSpace);
      if (!extent) {
        EXPECT_EQ(extent.error().code, Code::kResourceExhausted);
        continue;
      }
      EXPECT_GE(extent->bytes, bytes);
      EXPECT_EQ(extent->offset % kExtentBytes, 0u);
      const auto fill = static_cast<uint8_t>(random.Next());
      // First and last byte of each page stand for the page.
      for (uint64_t at = 0; at < extent->bytes; at += kExtentBytes) {
        arena->data(*extent)[at] = arena->data(*extent)[at + kExtentBytes - 1] =
            static_cast<std::byte>(fill);
      }
      held.push_back({*extent, fill});
      used += extent->bytes;
    } else if (!held.empty()) {
      const size_t victim = random.Below(held.size());
      const Held gone = held[victim];
      held[victim] = held.back();
      held.pop_back();
      for (uint64_t at = 0; at < gone.extent.bytes; at += kExtentBytes) {
        ASSERT_EQ(arena->data(gone.extent)[at], static_cast<std::byte>(gone.fill));
        ASSERT_EQ(arena->data(gone.extent)[at + kExtentBytes - 1],
                  static_cast<std::byte>(gone.fill));
      }
      arena->Free(gone.extent);
      used -= gone.extent.bytes;
    }
    ASSERT_EQ(arena->used_bytes(), used);
  }
  for (const Held& h : held) arena->Free(h.extent);
  EXPECT_EQ(arena->used_bytes(), 0u);
  EXPECT_EQ(arena->largest_free_run(kSpace), 2 * kMiB) << "free neighbours must merge";
}

TEST(HostArenaTest, ASlabServesOneNameSpaceAtATime) {
  std::map<uint32_t, uint32_t> owner;  // Before the arena: it is told of the end, too.
  auto arena = MakeArena(4 * kMiB);
  arena->SetSlabListener([&](const SlabInfo& slab, bool added) {
    if (added) {
      owner[slab.id] = slab.name_space;
    } else {
      owner.erase(slab.id);
    }
  });
  const auto a = arena->Allocate(kMiB, 1);
  const auto b = arena->Allocate(kMiB, 2);
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->slab, b->slab);
  EXPECT_EQ(owner, (std::map<uint32_t, uint32_t>{{0, 1}, {1, 2}}));
  EXPECT_FALSE(arena->Allocate(kMiB, 3)) << "no slab is empty";
  arena->Free(*a);
  const auto c = arena->Allocate(kMiB, 3);
  ASSERT_TRUE(c);
  EXPECT_EQ(c->slab, a->slab);
  EXPECT_EQ(owner, (std::map<uint32_t, uint32_t>{{1, 2}, {2, 3}})) << "new memory, so a new slab";
  arena->Free(*b);
  arena->Free(*c);
}

TEST(HostArenaTest, ItsSealsForbidAnyOtherWriter) {
  int fd = -1;
  auto arena = MakeArena(2 * kMiB);
  arena->SetSlabListener([&](const SlabInfo& slab, bool) { fd = slab.memfd; });
  const auto extent = arena->Allocate(kMiB, 1);
  ASSERT_TRUE(extent);
  EXPECT_EQ(mmap(nullptr, 2 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  void* readable = mmap(nullptr, 2 * kMiB, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(readable, MAP_FAILED);
  arena->data(*extent)[5] = std::byte{42};
  EXPECT_EQ(static_cast<const std::byte*>(readable)[extent->offset + 5], std::byte{42});
  EXPECT_NE(ftruncate(fd, 0), 0);
  munmap(readable, 2 * kMiB);
  arena->Free(*extent);
}

TEST(HostArenaTest, ItsPagesAreThereBeforeTheyAreUsed) {
  HostArena::Options options;
  options.capacity_bytes = options.slab_bytes = 16 * kMiB;
  options.huge_pages = HostArena::HugePages::kOff;
  options.populate = true;
  auto arena = HostArena::Create(options);
  ASSERT_TRUE(arena);
  const auto extent = (*arena)->Allocate(8 * kMiB, kSpace);
  ASSERT_TRUE(extent);
  std::memset((*arena)->data(*extent), 0x5a, extent->bytes);  // While the pages are touched.
  std::vector<unsigned char> resident(16 * kMiB / 4096);
  std::byte* const base = (*arena)->data(*extent) - extent->offset;
  const auto all = [&] {
    EXPECT_EQ(mincore(base, 16 * kMiB, resident.data()), 0);
    return std::all_of(resident.begin(), resident.end(), [](unsigned char page) { return (page & 1) != 0; });
  };
  for (int tries = 0; tries < 2000 && !all(); ++tries) usleep(5000);
  EXPECT_TRUE(all());
  EXPECT_EQ(static_cast<int>((*arena)->data(*extent)[0]), 0x5a);
  EXPECT_EQ(static_cast<int>((*arena)->data(*extent)[extent->bytes - 1]), 0x5a);
}

TEST(HostArenaTest, GoesWhileItsPagesAreStillTouched) {
  HostArena::Options options;
  options.capacity_bytes = options.slab_bytes = 256 * kMiB;
  options.huge_pages = HostArena::HugePages::kOff;
  options.populate = true;
  auto arena = HostArena::Create(options);
  ASSERT_TRUE(arena);
  ASSERT_TRUE((*arena)->Allocate(kMiB, kSpace));
}

TEST(HostArenaTest, RefusesWhatCannotBe) {
  HostArena::Options options;
  options.slab_bytes = 3 * kMiB;
  EXPECT_FALSE(HostArena::Create(options));
  options.slab_bytes = 4 * kMiB;
  options.capacity_bytes = kMiB;
  EXPECT_FALSE(HostArena::Create(options));
  auto arena = MakeArena(2 * kMiB);
  EXPECT_EQ(arena->Allocate(0, 1).error().code, Code::kInvalidArgument);
  EXPECT_EQ(arena->Allocate(3 * kMiB, 1).error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace tiercel
