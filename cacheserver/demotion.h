// Demotion decides what a block is written to SSD as: without loss in as few bytes as a codec of ours
// makes of it, or, where its namespace allows, in the class that it allows (SsdStore::Options::recode).
//
//   exact record, namespace says exact     --> LLE, the same block
//   exact record, namespace says balanced  --> EC-X with the model's artifact where it fits, else EC-C: the
//                                              key's lossy record
//   lossy or opaque record                 --> as it is
//
// Ownership: borrows the artifact's owner for its life. Threads: any; each thread has its own work space,
// which it keeps. Errors: none: what cannot be made smaller stays as it is.
#ifndef TIERCEL_CACHESERVER_DEMOTION_H_
#define TIERCEL_CACHESERVER_DEMOTION_H_

#include <memory>
#include <utility>

#include "base/bytes.h"
#include "kernels/artifact.h"
#include "tiering/ssd_store.h"

namespace tiercel {

class Demotion {
 public:
  // artifact may be null.
  explicit Demotion(std::shared_ptr<const Artifact> artifact) : artifact_(std::move(artifact)) {}

  // The bytes to write instead, and entry changed to match; empty: the record as it is. They are good until
  // the next call on the same thread.
  ByteSpan Recode(SsdEntry* entry, ByteSpan record) const;

 private:
  std::shared_ptr<const Artifact> artifact_;
};

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_DEMOTION_H_
