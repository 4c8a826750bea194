// MakeSegmentStore is the SsdStore over a SegmentEngine: it gathers records into segments, paces
// and hands them to writers, counts who reads what, drops the least recently read segment, keeps to
// the budgets, scrubs, looks for leaks, and leaves a failing disk alone for a while. The engine
// only carries bytes.
//
// Invariants: those of ssd_store.h. A segment is dropped after its last reader; what is on its way
// to be dropped is bounded, and Append is refused beyond that.
//
// Ownership: the store owns its engine. Threads: as ssd_store.h says; its movers are writers,
// readers, and one that drops and looks after the disk. Errors: as ssd_store.h says.
#ifndef TIERCEL_TIERING_SSD_SEGMENT_STORE_H_
#define TIERCEL_TIERING_SSD_SEGMENT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "tiering/ssd_engine.h"
#include "tiering/ssd_store.h"

namespace tiercel {

struct SegmentStoreThreads {
  uint32_t writers = 2;
  uint32_t readers = 4;
};

// name: of the disk, for the log.
std::unique_ptr<SsdStore> MakeSegmentStore(std::unique_ptr<SegmentEngine> engine,
                                           const SsdStore::Options& options,
                                           const SegmentStoreThreads& threads, const Clock& clock,
                                           const std::string& name);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_SEGMENT_STORE_H_
