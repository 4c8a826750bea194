// Records of many blocks at once on a GPU: out of an engine's pages, and back into them, without the host
// in between. A batch is a handful of launches on the caller's stream, whatever the number of blocks.
//
//   PlanBatch (once a cache and codec) --> plan.planes and plan.tables to the device, scratch from the device
//   ArtifactImage (once an artifact)   --> to the device, for EC-K's and EC-X's records
//   EncodeBatch: pages --gather, encode, sum--> records, results          | on a stream;
//   DecodeBatch: records --check, decode, scatter, digest--> pages, results | nothing waits
//
// Units: bytes; addresses in BatchBlocks are the device's, and so is all that they point to.
//
// Invariants
//   A record is the CPU's (EncodeRecordFrom) to the byte, and either side reads the other's.
//   Encoding writes MaxRecordBytes of a record at most; decoding writes nothing but the block's pages, and
//   reads nothing behind record_bytes, whatever is there. Of a block whose code is not kOk, the record or
//   the pages hold anything.
//   Nothing is allocated, no host memory is read once a call returns, and no call waits for the device.
//
// Ownership: all memory is the caller's and stays until the stream has come past the launches. Scratch
// belongs to one batch at a time, on one stream.
//
// Threads: any. Errors: Status is for the call alone: kUnavailable (no GPU here: see GpuHere),
// kInvalidArgument (an address is null, scratch too small, too many blocks), kInternal (a launch failed). What becomes of each block stands in its BlockResult, in device memory.
//
// Codecs: RAW, LLF, LLE, F8, I8, I8E, I4H, EC-C, EC-K and EC-X.
#ifndef TIERCEL_KERNELS_CUDA_BATCH_H_
#define TIERCEL_KERNELS_CUDA_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/cuda/batch_shape.h"
#include "kernels/paged.h"
#include "kernels/record.h"

namespace tiercel::gpu {

std::string_view Name(BlockCode code);

// Whether batches can be launched: this build has CUDA, and the calling thread's current GPU runs its kernels.
bool GpuHere();

// What all batches of a cache, a layout and a codec have in common.
struct BatchPlan {
  BatchShape shape;
  std::vector<Plane> planes;      // To be copied to the device: [layer of the record][K, V].
  std::vector<std::byte> tables;  // The same, at a multiple of 8: what EC-C's options say; may be empty.
  uint64_t max_record_bytes = 0;  // What each record's memory must hold.
  uint64_t raw_bytes = 0;         // Of a block.
  uint32_t codecs = 0;            // A bit a codec that decoding reckons with, by its id.

  uint32_t max_blocks() const { return kMaxSegments / shape.segments; }  // Of a batch.
  uint64_t encode_scratch_bytes(uint32_t blocks) const;
  uint64_t decode_scratch_bytes(uint32_t blocks) const;
};

// kv's planes are in device memory, and are not looked at. spec.pos0 does not count: BatchBlocks has it. spec.options
// are copied. decodes: a bit a codec, by its id, that records to be decoded may hold; of others the code is
// kUnsupported. EC-C, EC-K, EC-X and I8E take most of the scratch: up to 8 bytes a value.
// Needs no GPU. Errors: kInvalidArgument: a layout, range of layers or cache that does not fit, strides
// that are no multiple of a value's size; kUnimplemented: a codec without a kernel.
inline constexpr uint32_t kEveryCodec = 0xffffffffu;
Result<BatchPlan> PlanBatch(const RecordSpec& spec, CodecId codec, const PagedKv& kv, uint32_t decodes = kEveryCodec);

// An artifact as batches read it: to be copied to the device, at a multiple of 64, for BatchBlocks::artifact.
std::vector<std::byte> ArtifactImage(const Artifact& artifact);

struct BatchBlocks {
  uint32_t count = 0;
  const Plane* planes = nullptr;         // The plan's.
  const std::byte* tables = nullptr;     // The plan's; null where they are empty. Encoding.
  const std::byte* artifact = nullptr;   // An artifact's image: of the plan's options;
                                         // decoding, null or that of the records.
  const uint32_t* pages = nullptr;       // [count][pages of a block], in the order of their tokens.
  const uint64_t* pos0 = nullptr;        // [count]: position of each block's first token; null: 0. Encoding.
  std::byte* const* records = nullptr;   // [count]: multiples of 64.
  const uint64_t* record_bytes = nullptr;  // [count]. Decoding.
  BlockResult* results = nullptr;        // [count].
  MutableByteSpan scratch;               // A multiple of 64; as large as the plan says.
};

// stream is a cudaStream_t; null is the default stream.
Status EncodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void* stream);
Status DecodeBatch(const BatchPlan& plan, const BatchBlocks& blocks, void* stream);

// What a call must hold before it is launched, and the kernels' arguments then. For launchers.
Result<BatchArgs> ArgsOf(const BatchPlan& plan, const BatchBlocks& blocks, bool decoding);

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_BATCH_H_
