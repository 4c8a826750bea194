#include "base/io_memory.h"

#include <sys/mman.h>

#include <new>

#include "base/units.h"

namespace tiercel {
namespace {
constexpr uint64_t kHugePage = 2 * kMiB;
}  // namespace

IoMemory::IoMemory(uint64_t bytes) {
  const uint64_t whole = RoundUp(bytes == 0 ? kHugePage : bytes, kHugePage);
  // A page more than is asked for, and what lies beside whole ones is given back.
  void* mapped = mmap(nullptr, whole + kHugePage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(mapped);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uint64_t before = RoundUp(address, kHugePage) - address;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(begin + before + whole, kHugePage - before);
  madvise(begin + before, whole, MADV_HUGEPAGE);  // A wish: without it everything works, slower.
  memory_ = std::unique_ptr<std::byte, Unmap>(begin + before, Unmap{whole});
}

void IoMemory::Unmap::operator()(std::byte* memory) const { munmap(memory, bytes); }

}  // namespace tiercel
