#include "tiering/numa.h"

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace tiercel {
namespace {

constexpr int kMaxCores = 4096;
constexpr int kMaxNodes = 1024;

std::string FirstLine(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool Number(std::string_view text, int* out) {
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return ec == std::errc() && end == text.data() + text.size() && *out >= 0 && *out < kMaxCores;
}

}  // namespace

std::vector<int> ParseCoreList(const std::string& text) {
  std::vector<int> cores;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view range(text.data() + at, comma - at);
    at = comma + 1;
    const size_t dash = range.find('-');
    int first = 0;
    int last = 0;
    const bool good = dash == std::string_view::npos ? Number(range, &first) && Number(range, &last)
                                                     : Number(range.substr(0, dash), &first) &&
                                                           Number(range.substr(dash + 1), &last);
    if (!good || last < first) return {};
    for (int core = first; core <= last; ++core) cores.push_back(core);
    if (cores.size() > kMaxCores) return {};
  }
  return cores;
}

std::vector<NumaNode> ReadNumaNodes(const std::string& folder) {
  const std::filesystem::path path(folder);
  std::vector<NumaNode> nodes;
  const std::vector<int> with_memory = ParseCoreList(FirstLine(path / "has_memory"));
  for (const int number : ParseCoreList(FirstLine(path / "has_cpu"))) {
    if (number >= kMaxNodes ||
        std::find(with_memory.begin(), with_memory.end(), number) == with_memory.end())
      continue;
    NumaNode node{number,
                  ParseCoreList(FirstLine(path / fmt::format("node{}", number) / "cpulist"))};
    if (!node.cores.empty()) nodes.push_back(std::move(node));
  }
  return nodes;
}

Status PreferNode(void* base, uint64_t bytes, int node) {
  std::array<unsigned long, kMaxNodes / 64> mask{};
  if (node < 0 || node >= kMaxNodes)
    return Fail(Code::kUnavailable, fmt::format("no memory node {}", node));
  mask[static_cast<size_t>(node) / 64] |= 1ul << (node % 64);
  if (syscall(SYS_mbind, base, bytes, MPOL_PREFERRED, mask.data(), kMaxNodes + 1, 0) == 0)
    return OkStatus();
  return Fail(Code::kUnavailable, fmt::format("memory of node {}: {}", node, std::strerror(errno)));
}

Status RunOn(const std::vector<int>& cores) {
  cpu_set_t* set = CPU_ALLOC(kMaxCores);
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCores);
  CPU_ZERO_S(bytes, set);
  for (const int core : cores) CPU_SET_S(static_cast<size_t>(core), bytes, set);
  const int failed = sched_setaffinity(0, bytes, set);
  const std::string why = std::strerror(errno);
  CPU_FREE(set);
  if (failed == 0) return OkStatus();
  return Fail(Code::kUnavailable,
              fmt::format("running on {} cores of a node: {}", cores.size(), why));
}

}  // namespace tiercel
