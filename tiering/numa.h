// Which memory is near which cores, and how memory and a thread are put together.
//
// Threads: any. Errors: kUnavailable, as the kernel says it; memory that could not be bound is good
// memory all the same.
#ifndef TIERCEL_TIERING_NUMA_H_
#define TIERCEL_TIERING_NUMA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace tiercel {

struct NumaNode {
  int number = 0;
  std::vector<int> cores;
};

// The nodes that have cores and memory, as the system lists them; empty where it lists none.
std::vector<NumaNode> ReadNumaNodes(const std::string& folder = "/sys/devices/system/node");
// "0-3,8" -> 0 1 2 3 8; empty: not a list of numbers, or one of more than 4096.
std::vector<int> ParseCoreList(const std::string& text);

// Pages of this range that are not there yet come from the node while it has any.
Status PreferNode(void* base, uint64_t bytes, int node);
// The calling thread runs on these cores from now on.
Status RunOn(const std::vector<int>& cores);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_NUMA_H_
