// A SegmentEngine of plain files: the yardstick that the one on RocksDB is measured with, as simple
// and as fast as we can make it. It holds records across kill -9, but knows nothing of loss of
// power or of older formats, so no node uses it: it lives with the tests.
//
//   FOLDER/N    one file a region, made once and used again: header 4 KiB | records, each from a
//   multiple of
//               4 KiB | manifest, as docs/ssd-format.md has it
//   FOLDER/clears    rows of name space, scope, generation
//
// The header names the segment, and is written when all else is synced; a dropped region has a zero
// header.
//
// Ownership: its files. Threads and errors: as tiering/ssd_engine.h says.
#ifndef TIERCEL_TESTS_BENCH_SSD_SLAB_H_
#define TIERCEL_TESTS_BENCH_SSD_SLAB_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "tiering/ssd_engine.h"
#include "tiering/ssd_pacer.h"

namespace tiercel {

class SlabEngine final : public SegmentEngine {
 public:
  // The folder is made if it is not there.
  explicit SlabEngine(std::string folder);
  ~SlabEngine() override;

  Result<Recovered> Recover() override;
  Status Write(OpenSegment& segment, const Recode& recode) override;
  Status Read(const SsdEntry& entry, MutableByteSpan dst) override;
  Status Drop(uint32_t segment, bool a_write_follows) override;
  std::vector<uint32_t> Present() const override;
  Status Clear(uint32_t name_space, const Scope& scope, uint64_t generation) override;
  Status Corrupt(const SsdEntry& entry, uint64_t bit) override;
  void Pace(uint64_t bytes_per_second) override { pacer_.SetRate(bytes_per_second); }
  void Resume() override {}
  uint64_t disk_bytes() const override { return used_bytes_; }

 private:
  struct Slot {
    BlockKey key;
    uint64_t at = 0;
    uint32_t bytes = 0;
  };
  struct Region {
    int fd = -1;
    uint64_t bytes = 0;  // Of the records in it, as they lie.
    std::vector<Slot> slots;
  };
  Result<std::shared_ptr<Region>> NewRegion();
  std::shared_ptr<Region> Find(uint32_t segment) const;
  static void Place(Region* region, const std::vector<SsdEntry>& entries);

  const std::string folder_;
  Pacer pacer_;
  std::atomic<uint64_t> used_bytes_{0};
  mutable Mutex mutex_;
  std::map<uint32_t, std::shared_ptr<Region>> regions_ TIERCEL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Region>> free_ TIERCEL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Region>> all_ TIERCEL_GUARDED_BY(mutex_);
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_BENCH_SSD_SLAB_H_
