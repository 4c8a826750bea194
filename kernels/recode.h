// RecodeRecord writes what a record holds as another record of fewer bytes: for a tier where bytes cost
// more than the time to code them.
//
//   record (RAW or LLF, say) --> decoded, checked --> encoded by another codec --> its decoded digest equals
//
// Invariants
//   A record recoded by a lossless codec decodes to the same bytes, and has the same decoded digest, layout,
//   scope, position, layers and class. By a lossy one it has the options' class, or a better one where
//   everything fell back to RAW; all else is the same.
//   A record that is lossy already stays as it is: errors would add up unmeasured.
//
// Ownership: the result lies in the work space until its next use. Threads: any; a work space each.
// Errors: none: nullopt where the record stays as it is: it is opaque, not whole, or would not be smaller
// by a 32nd.
#ifndef TIERCEL_KERNELS_RECODE_H_
#define TIERCEL_KERNELS_RECODE_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "kernels/record.h"

namespace tiercel {

struct RecodeSpace {
  std::vector<std::byte> decoded;
  std::vector<std::byte> record;
};

struct Recoded {
  ByteSpan record;
  QualityClass quality = QualityClass::kExact;
};

// options: for a lossy codec; null means that the codec must be lossless.
std::optional<Recoded> RecodeRecord(ByteSpan record, CodecId codec, const EncodeOptions* options,
                                    RecodeSpace* space);

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_RECODE_H_
