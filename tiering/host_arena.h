// HostArena is the host tier's memory: slabs of shared memory, registered once with every
// transport, carved by encoded size in units of 4 KiB.
//
//   Allocate(bytes, name space) --> Extent --> fill, publish, serve --> Free(extent)
//
// Each slab is a memfd of its own, sealed against shrinking, growing and new writable maps, and
// holds one name space's blocks at a time: a same-host client is passed its own name space's slabs
// only. Slabs are made when they are first needed; an empty one makes way for another name space
// with a memfd of its own, since a client may still have the old one mapped.
//
// A slab of a process before this one is adopted: mapped read-only, since its seals forbid more,
// with the extents that are still good. Nothing is allocated in it; its memory goes with its last
// extent.
//
// Invariants
//   Extents never overlap. Free bytes are kept as maximal runs and found best-fit: the smallest run
//   that is large enough, lowest address first.
//   used_bytes() + the runs' bytes == bytes of slabs made so far <= capacity (adopted slabs aside,
//   whose gaps are no runs).
//   An extent has the owner that was last set for it; none until then.
//
// Ownership: the arena owns the slabs and their memfds; an extent is a number that its holder
// frees. Threads: the shard's owner alone; the bytes of an extent may be used on any thread. One
// thread of the arena's own touches pages of a new slab, and is joined before the slab goes.
// Errors: kResourceExhausted: no run is large enough (evict and try again), or the kernel gives no
// more memory, which the message says. kInvalidArgument: a size of zero or over a slab. Create:
// kInvalidArgument for options, kUnavailable when the kernel gives none. AdoptSlab:
// kInvalidArgument: not a slab of this size, or not sealed as one; kResourceExhausted: no room for
// it.
#ifndef TIERCEL_TIERING_HOST_ARENA_H_
#define TIERCEL_TIERING_HOST_ARENA_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/result.h"
#include "base/units.h"

namespace tiercel {

struct Block;

inline constexpr uint64_t kExtentBytes = 4 * kKiB;

struct Extent {
  uint32_t slab = 0;  // Place in the arena; not SlabInfo::id.
  uint64_t offset = 0;
  uint64_t bytes = 0;  // Rounded up to kExtentBytes; 0: no extent.
  explicit operator bool() const { return bytes != 0; }
};

struct SlabInfo {
  uint32_t id = 0;  // Never reused.
  int memfd = -1;
  std::byte* base = nullptr;
  uint64_t bytes = 0;
  uint32_t name_space = 0;
};

class HostArena {
 public:
  enum class HugePages : uint8_t { kOff, kAuto, kRequired };
  struct Options {
    uint64_t capacity_bytes = 1 * kGiB;  // Rounded down to whole slabs, at least one.
    uint64_t slab_bytes =
        256 * kMiB;  // A multiple of 2 MiB, at least as large as the largest block.
    HugePages huge_pages = HugePages::kAuto;
    // A thread touches a new slab's ordinary pages ahead of their use: the first touch of 64 KiB
    // costs as much as its copy.
    bool populate = false;
    int numa_node = -1;  // Where its memory comes from while that has any; -1: anywhere.
  };
  // Told of every slab that appears (added) and of one that leaves a name space (not added), before
  // any of its bytes are used otherwise.
  using SlabListener = std::function<void(const SlabInfo&, bool added)>;

  static Result<std::unique_ptr<HostArena>> Create(const Options& options);
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  void SetSlabListener(SlabListener listener);  // Called at once for the slabs there are.

  // A slab of another process, before any of its extents; returns its place.
  Result<uint32_t> AdoptSlab(FileDescriptor memfd, uint32_t name_space);
  // False: it overlaps another, or the slab is not an adopted one.
  bool AdoptExtent(const Extent& extent);
  bool adopted(uint32_t slab) const { return slabs_[slab].adopted; }
  // Lets go of an adopted slab if no extent is left in it.
  void DropIfEmpty(uint32_t slab);
  // The process ends soon: its slabs stay mapped until then. Unmapping gigabytes takes seconds.
  void LeaveMapped() { leave_mapped_ = true; }

  // May not grow: from slabs that the name space has.
  Result<Extent> Allocate(uint64_t bytes, uint32_t name_space, bool may_grow = true);
  void Free(const Extent& extent);
  std::byte* data(const Extent& extent) const {
    return slabs_[extent.slab].info.base + extent.offset;
  }

  uint64_t capacity_bytes() const { return max_slabs_ * options_.slab_bytes; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t made_bytes() const { return slabs_.size() * options_.slab_bytes; }
  uint64_t largest_free_run(uint32_t name_space) const;
  // Slab bytes of this name space that no extent covers.
  uint64_t free_bytes(uint32_t name_space) const;

  // The last slab made lies on huge pages.
  bool on_huge_pages() const { return on_huge_pages_; }
  const Options& options() const { return options_; }

  // Who can make room: the block whose record lies there.
  void SetOwner(const Extent& extent, Block* owner);
  // What lies beside a piece of a slab: a free run, an extent, or the slab's end (bytes == 0).
  struct Neighbour {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool free = false;
    Block* owner = nullptr;
  };
  // Of an adopted slab: always its end, since nothing becomes of its holes.
  Neighbour Before(uint32_t slab, uint64_t offset) const;  // The one that ends at offset.
  Neighbour After(uint32_t slab, uint64_t offset) const;   // The one that begins there.

  uint32_t slabs() const { return static_cast<uint32_t>(slabs_.size()); }
  uint32_t slab_owner(uint32_t slab) const { return slabs_[slab].info.name_space; }
  const SlabInfo& slab(uint32_t slab) const { return slabs_[slab].info; }
  bool slab_in_use(uint32_t slab) const { return !slabs_[slab].extents.empty(); }
  uint64_t slab_bytes_of(uint32_t name_space) const;  // Of the slabs that it has.
  // Owners of all extents of a slab; null for those without.
  template <class Fn>
  void ForEachExtent(uint32_t slab, Fn&& fn) const {
    for (const auto& [offset, used] : slabs_[slab].extents) fn(used.owner);
  }

 private:
  struct Used {
    uint64_t bytes = 0;
    Block* owner = nullptr;
  };
  struct Slab {
    SlabInfo info;  // base null: its memory went and no other could be had.
    std::jthread toucher;
    bool adopted = false;
    uint32_t index = 0;
    std::map<uint64_t, uint64_t> runs;  // offset -> bytes
    std::map<uint64_t, Used> extents;   // offset ->
  };
  using FreeKey = std::tuple<uint64_t, uint32_t, uint64_t>;  // bytes, slab, offset

  explicit HostArena(const Options& options);
  Status MakeSlab(uint32_t name_space);
  Status FillSlab(uint32_t index, uint32_t name_space);
  void EmptySlab(Slab& slab);
  void Unmap(Slab& slab);
  Status AdoptEmptySlab(uint32_t name_space);
  void AddRun(Slab& slab, uint64_t offset, uint64_t bytes);
  void RemoveRun(Slab& slab, std::map<uint64_t, uint64_t>::iterator run);

  const Options options_;
  const uint64_t max_slabs_;
  bool on_huge_pages_ = false;
  bool leave_mapped_ = false;
  uint64_t used_bytes_ = 0;
  uint32_t next_slab_id_ = 0;
  std::vector<Slab> slabs_;
  struct FreeRuns {
    std::set<FreeKey> by_size;
    uint64_t bytes = 0;
  };
  std::map<uint32_t, FreeRuns> free_;  // By name space.
  SlabListener listener_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_HOST_ARENA_H_
