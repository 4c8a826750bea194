#include "tiering/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/units.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/host_arena.h"

namespace tiercel {
namespace {

using ::testing::ElementsAre;

TEST(NumaTest, ReadsListsOfCores) {
  EXPECT_THAT(ParseCoreList("0"), ElementsAre(0));
  EXPECT_THAT(ParseCoreList("0-3,8,10-11"), ElementsAre(0, 1, 2, 3, 8, 10, 11));
  for (const char* bad :
       {"", "a", "3-1", "1-", "-1", "1;2", "0-999999999999", "0-4095,0-4095", "4096"}) {
    EXPECT_TRUE(ParseCoreList(bad).empty()) << bad;
  }
}

TEST(NumaTest, FindsTheNodesThatHaveCoresAndMemory) {
  const TempFolder folder;
  const std::filesystem::path root(folder.path());
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text << "\n";
  };
  EXPECT_TRUE(ReadNumaNodes(folder.path()).empty());
  write("has_cpu", "0-2");
  write("has_memory", "0-1,3");  // Node 2 has cores alone, node 3 memory alone.
  write("node0/cpulist", "0-1,4");
  write("node1/cpulist", "2-3");
  write("node2/cpulist", "5");
  const auto nodes = ReadNumaNodes(folder.path());
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].number, 0);
  EXPECT_THAT(nodes[0].cores, ElementsAre(0, 1, 4));
  EXPECT_EQ(nodes[1].number, 1);
  EXPECT_THAT(nodes[1].cores, ElementsAre(2, 3));
}

TEST(NumaTest, MemoryAndThreadGoWhereTheyAreSent) {
  const auto nodes = ReadNumaNodes();
  if (nodes.empty()) GTEST_SKIP() << "this system lists no memory nodes";
  HostArena::Options options;
  options.capacity_bytes = options.slab_bytes = 2 * kMiB;
  options.huge_pages = HostArena::HugePages::kOff;
  options.numa_node = nodes[0].number;
  auto arena = HostArena::Create(options);
  ASSERT_TRUE(arena);
  const auto extent = (*arena)->Allocate(kMiB, 1);
  ASSERT_TRUE(extent);
  int mode = -1;
  const long asked =
      syscall(SYS_get_mempolicy, &mode, nullptr, 0, (*arena)->data(*extent), MPOL_F_ADDR);
  if (asked != 0) GTEST_SKIP() << "this system does not say where memory comes from";
  EXPECT_EQ(mode, MPOL_PREFERRED);
  std::thread([&] {
    cpu_set_t allowed;
    ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    const Status bound = RunOn(nodes[0].cores);
    if (!bound) GTEST_SKIP() << bound.error().message;  // A container may allow other cores only.
    EXPECT_TRUE(std::ranges::count(nodes[0].cores, sched_getcpu()) > 0);
  }).join();
  EXPECT_FALSE(PreferNode((*arena)->data(*extent), kMiB, -1));
  (*arena)->Free(*extent);
}

}  // namespace
}  // namespace tiercel
