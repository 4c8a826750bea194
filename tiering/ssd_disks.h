// JoinDisks makes one SsdStore of several, one a disk: a shard over all the disks of a node.
//
//   Append --> the open segment of one disk; the next segment goes to the disk that is least full
//   Read, Verify, ... --> the disk that the record lies on
//
// Invariants
//   Records that were appended one after another lie together: disks change between segments only.
//   A disk that is off costs what lies on it, as long as it is off; the others take what is new.
//   A clear holds on every disk or is told as failed.
//   A location means the same until the store is closed, not longer: which disk is the how-manieth
//   is the caller's affair, and may change between two starts.
//
// Ownership: owns the stores. Threads and errors: as ssd_store.h says; available() while one disk
// is, why() names those that are not.
#ifndef TIERCEL_TIERING_SSD_DISKS_H_
#define TIERCEL_TIERING_SSD_DISKS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "tiering/ssd_store.h"

namespace tiercel {

// One store is given back as it is. segment_bytes: that of the stores.
std::unique_ptr<SsdStore> JoinDisks(std::vector<std::unique_ptr<SsdStore>> disks,
                                    uint64_t segment_bytes);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_DISKS_H_
