#include "tiering/host_arena.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "tiering/numa.h"

namespace tiercel {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

struct Mapping {
  int fd = -1;
  std::byte* base = nullptr;
};

// A sealed memfd mapped for us alone to write: seals forbid any later writable map.
Result<Mapping> MapSlab(uint32_t id, uint64_t bytes, bool huge, int numa_node) {
  const unsigned memfd_flags =
      MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0u);
  const int fd = memfd_create(fmt::format("tiercel-slab-{}", id).c_str(), memfd_flags);
  if (fd < 0)
    return Fail(Code::kUnavailable, fmt::format("memfd_create: {}", std::strerror(errno)));
  void* base = MAP_FAILED;
  const bool sized = ftruncate(fd, static_cast<off_t>(bytes)) == 0;
  if (sized) {
    // Huge pages are reserved at map time and come now; ordinary ones come as they are touched.
    base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base != MAP_FAILED && numa_node >= 0) (void)PreferNode(base, bytes, numa_node);
    if (base != MAP_FAILED && huge && madvise(base, bytes, MADV_POPULATE_WRITE) != 0) {
      munmap(base, bytes);
      base = MAP_FAILED;
    }
  }
  if (base == MAP_FAILED) {
    const std::string why = std::strerror(errno);
    close(fd);
    return Fail(Code::kUnavailable, fmt::format("slab of {}: {}", FormatBytes(bytes), why));
  }
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    const std::string why = std::strerror(errno);
    munmap(base, bytes);
    close(fd);
    return Fail(Code::kUnavailable, fmt::format("sealing a slab: {}", why));
  }
  if (!huge) madvise(base, bytes, MADV_HUGEPAGE);
  return Mapping{fd, static_cast<std::byte*>(base)};
}

// Lowest pages first, as they are handed out. Its content stays, whoever writes at the same time.
void TouchPages(const std::stop_token& stop, std::byte* base, uint64_t bytes) {
  constexpr uint64_t kStep = 2 * kMiB;  // So that a stop waits for little.
  for (uint64_t at = 0; at < bytes && !stop.stop_requested(); at += kStep) {
    if (madvise(base + at, std::min(kStep, bytes - at), MADV_POPULATE_WRITE) != 0) return;
  }
}

}  // namespace

HostArena::HostArena(const Options& options)
    : options_(options),
      max_slabs_(std::max<uint64_t>(1, options.capacity_bytes / options.slab_bytes)) {
  slabs_.reserve(max_slabs_);
}

Result<std::unique_ptr<HostArena>> HostArena::Create(const Options& options) {
  if (options.slab_bytes == 0 || options.slab_bytes % (2 * kMiB) != 0) {
    return Fail(Code::kInvalidArgument,
                fmt::format("slab size {} is not a multiple of 2 MiB", options.slab_bytes));
  }
  if (options.capacity_bytes < options.slab_bytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("host memory of {} holds no slab of {}",
                            FormatBytes(options.capacity_bytes), FormatBytes(options.slab_bytes)));
  }
  auto arena = std::unique_ptr<HostArena>(new HostArena(options));
  if (options.huge_pages == HugePages::kRequired) {
    TIERCEL_ASSIGN(const Mapping probe,
                   MapSlab(0, options.slab_bytes, /*huge=*/true, options.numa_node));
    munmap(probe.base, options.slab_bytes);
    close(probe.fd);
  }
  return arena;
}

HostArena::~HostArena() {
  for (Slab& slab : slabs_) {
    if (slab.info.base == nullptr) continue;
    slab.toucher = {};
    if (listener_) listener_(slab.info, /*added=*/false);
    if (leave_mapped_) continue;
    munmap(slab.info.base, slab.info.bytes);
    close(slab.info.memfd);
  }
}

void HostArena::SetSlabListener(SlabListener listener) {
  listener_ = std::move(listener);
  for (const Slab& slab : slabs_) {
    if (slab.info.base != nullptr) listener_(slab.info, /*added=*/true);
  }
}

Status HostArena::MakeSlab(uint32_t name_space) {
  slabs_.emplace_back();
  const Status filled = FillSlab(static_cast<uint32_t>(slabs_.size() - 1), name_space);
  if (!filled) slabs_.pop_back();
  return filled;
}

Status HostArena::FillSlab(uint32_t index, uint32_t name_space) {
  const uint32_t id = next_slab_id_++;
  Result<Mapping> mapping = Fail(Code::kUnavailable, "no huge pages asked for");
  const bool try_huge = options_.huge_pages != HugePages::kOff;
  if (try_huge) mapping = MapSlab(id, options_.slab_bytes, /*huge=*/true, options_.numa_node);
  on_huge_pages_ = mapping.has_value();
  if (!mapping && options_.huge_pages != HugePages::kRequired) {
    mapping = MapSlab(id, options_.slab_bytes, /*huge=*/false, options_.numa_node);
  }
  if (!mapping) {
    return Fail(Code::kResourceExhausted,
                "no memory for the host tier: " + mapping.error().message);
  }
  Slab& slab = slabs_[index];
  slab.index = index;
  slab.info = {id, mapping->fd, mapping->base, options_.slab_bytes, name_space};
  AddRun(slab, 0, options_.slab_bytes);
  if (options_.populate && !on_huge_pages_) {
    slab.toucher = std::jthread(TouchPages, slab.info.base, slab.info.bytes);
  }
  if (listener_) listener_(slab.info, /*added=*/true);
  return OkStatus();
}

Result<uint32_t> HostArena::AdoptSlab(FileDescriptor memfd, uint32_t name_space) {
  const auto refuse = [](std::string_view why) {
    return Fail(Code::kInvalidArgument, fmt::format("slab to adopt: {}", why));
  };
  struct stat info {};
  if (fstat(memfd.get(), &info) != 0) return refuse(std::strerror(errno));
  if (static_cast<uint64_t>(info.st_size) != options_.slab_bytes) {
    return refuse(fmt::format("of {} bytes, not {}", info.st_size, options_.slab_bytes));
  }
  // Without these it could shrink under a reader, or change.
  const int seals = fcntl(memfd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) return refuse("not sealed");
  if (slabs_.size() >= max_slabs_)
    return Fail(Code::kResourceExhausted, "slab to adopt: no room for it");
  void* base = mmap(nullptr, options_.slab_bytes, PROT_READ, MAP_SHARED, memfd.get(), 0);
  if (base == MAP_FAILED) return refuse(std::strerror(errno));
  slabs_.emplace_back();
  Slab& slab = slabs_.back();
  slab.index = static_cast<uint32_t>(slabs_.size() - 1);
  slab.adopted = true;
  slab.info = {next_slab_id_++, memfd.Release(), static_cast<std::byte*>(base), options_.slab_bytes,
               name_space};
  if (listener_) listener_(slab.info, /*added=*/true);
  return slab.index;
}

bool HostArena::AdoptExtent(const Extent& extent) {
  if (extent.slab >= slabs_.size() || !slabs_[extent.slab].adopted) return false;
  auto& extents = slabs_[extent.slab].extents;
  const auto after = extents.lower_bound(extent.offset);
  if (after != extents.end() && after->first < extent.offset + extent.bytes) return false;
  if (after != extents.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.bytes > extent.offset) return false;
  }
  extents.emplace(extent.offset, Used{extent.bytes, nullptr});
  used_bytes_ += extent.bytes;
  return true;
}

void HostArena::DropIfEmpty(uint32_t slab) {
  if (slabs_[slab].adopted && slabs_[slab].extents.empty()) Unmap(slabs_[slab]);
}

void HostArena::EmptySlab(Slab& slab) {
  RemoveRun(slab, slab.runs.begin());
  Unmap(slab);
}

void HostArena::Unmap(Slab& slab) {
  if (listener_) listener_(slab.info, /*added=*/false);
  slab.toucher = {};
  munmap(slab.info.base, slab.info.bytes);
  close(slab.info.memfd);
  slab.info.base = nullptr;
  slab.info.memfd = -1;
  slab.adopted = false;
}

Status HostArena::AdoptEmptySlab(uint32_t name_space) {
  for (Slab& slab : slabs_) {
    if (!slab.extents.empty()) continue;
    if (slab.info.base != nullptr && slab.info.name_space == name_space) continue;
    // A client that still has it mapped could read what the next name space writes: new memory.
    if (slab.info.base != nullptr) EmptySlab(slab);
    return FillSlab(slab.index, name_space);
  }
  return Fail(Code::kResourceExhausted, "host memory is full");
}

void HostArena::AddRun(Slab& slab, uint64_t offset, uint64_t bytes) {
  slab.runs.emplace(offset, bytes);
  FreeRuns& free = free_[slab.info.name_space];
  free.by_size.emplace(bytes, slab.index, offset);
  free.bytes += bytes;
}

void HostArena::RemoveRun(Slab& slab, std::map<uint64_t, uint64_t>::iterator run) {
  const auto free = free_.find(slab.info.name_space);
  free->second.by_size.erase({run->second, slab.index, run->first});
  free->second.bytes -= run->second;
  if (free->second.by_size.empty()) free_.erase(free);
  slab.runs.erase(run);
}

uint64_t HostArena::slab_bytes_of(uint32_t name_space) const {
  const auto has = std::count_if(slabs_.begin(), slabs_.end(), [name_space](const Slab& slab) {
    return slab.info.base != nullptr && slab.info.name_space == name_space;
  });
  return static_cast<uint64_t>(has) * options_.slab_bytes;
}

Result<Extent> HostArena::Allocate(uint64_t bytes, uint32_t name_space, bool may_grow) {
  if (bytes == 0 || bytes > options_.slab_bytes) {
    return Fail(Code::kInvalidArgument, fmt::format("a block of {} bytes does not fit a slab of {}",
                                                    bytes, options_.slab_bytes));
  }
  const uint64_t rounded = RoundUp(bytes, kExtentBytes);
  const auto find = [&]() -> std::optional<FreeKey> {
    const auto free = free_.find(name_space);
    if (free == free_.end()) return std::nullopt;
    const auto run = free->second.by_size.lower_bound({rounded, 0, 0});
    if (run == free->second.by_size.end()) return std::nullopt;
    return *run;
  };
  std::optional<FreeKey> best = find();
  if (!best) {
    Status made = Fail(Code::kResourceExhausted, "host memory is full");
    if (!may_grow) return tl::unexpected<Error>(made.error());
    if (slabs_.size() < max_slabs_) made = MakeSlab(name_space);
    if (!made && !AdoptEmptySlab(name_space)) return tl::unexpected<Error>(made.error());
    best = find();
    TIERCEL_CHECK(best);
  }
  const auto [run_bytes, slab_id, offset] = *best;
  Slab& slab = slabs_[slab_id];
  RemoveRun(slab, slab.runs.find(offset));
  if (run_bytes > rounded) AddRun(slab, offset + rounded, run_bytes - rounded);
  slab.extents.emplace(offset, Used{rounded, nullptr});
  used_bytes_ += rounded;
  return Extent{slab_id, offset, rounded};
}

void HostArena::Free(const Extent& extent) {
  TIERCEL_CHECK(extent.bytes > 0 && extent.slab < slabs_.size());
  Slab& slab = slabs_[extent.slab];
  uint64_t offset = extent.offset;
  uint64_t bytes = extent.bytes;
  const auto used = slab.extents.find(offset);
  TIERCEL_CHECK(used != slab.extents.end() && used->second.bytes == bytes);  // Else freed twice.
  slab.extents.erase(used);
  if (slab.adopted) {
    used_bytes_ -= bytes;
    return DropIfEmpty(extent.slab);
  }
  auto next = slab.runs.lower_bound(offset);
  if (next != slab.runs.end() && next->first == offset + bytes) {
    bytes += next->second;
    const auto merged = next++;
    RemoveRun(slab, merged);
  }
  if (next != slab.runs.begin()) {
    const auto before = std::prev(next);
    TIERCEL_CHECK(before->first + before->second <= offset);
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      RemoveRun(slab, before);
    }
  }
  AddRun(slab, offset, bytes);
  used_bytes_ -= extent.bytes;
}

void HostArena::SetOwner(const Extent& extent, Block* owner) {
  const auto used = slabs_[extent.slab].extents.find(extent.offset);
  TIERCEL_CHECK(used != slabs_[extent.slab].extents.end());
  used->second.owner = owner;
}

HostArena::Neighbour HostArena::Before(uint32_t slab, uint64_t offset) const {
  const Slab& in = slabs_[slab];
  if (in.adopted) return {};
  if (auto run = in.runs.lower_bound(offset); run != in.runs.begin()) {
    --run;
    if (run->first + run->second == offset) return {run->first, run->second, true, nullptr};
  }
  if (auto used = in.extents.lower_bound(offset); used != in.extents.begin()) {
    --used;
    return {used->first, used->second.bytes, false, used->second.owner};
  }
  return {};
}

HostArena::Neighbour HostArena::After(uint32_t slab, uint64_t offset) const {
  const Slab& in = slabs_[slab];
  if (in.adopted) return {};
  if (const auto run = in.runs.find(offset); run != in.runs.end()) {
    return {run->first, run->second, true, nullptr};
  }
  const auto used = in.extents.find(offset);
  if (used == in.extents.end()) return {};
  return {used->first, used->second.bytes, false, used->second.owner};
}

uint64_t HostArena::largest_free_run(uint32_t name_space) const {
  const auto found = free_.find(name_space);
  return found == free_.end() ? 0 : std::get<0>(*found->second.by_size.rbegin());
}

uint64_t HostArena::free_bytes(uint32_t name_space) const {
  const auto found = free_.find(name_space);
  return found == free_.end() ? 0 : found->second.bytes;
}

}  // namespace tiercel
