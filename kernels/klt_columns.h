// Columns of a plane as floats, and K's turned by their tokens' positions as an artifact has it: what EC-K,
// EC-X and the prediction of levels begin with. Internal to kernels/.
//
// Errors: none; a value that is not finite is told. Threads: any; angles stay with their thread.
#ifndef TIERCEL_KERNELS_KLT_COLUMNS_H_
#define TIERCEL_KERNELS_KLT_COLUMNS_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/klt_loops.h"

namespace tiercel::klt {

Fns ActiveFns();

// Columns [first, first + count) in that order of tokens (null: as they come): first as they are in tile, then
// as floats in x, both `stride` apart; zeros behind the tokens. False: one is not finite.
bool LoadFloats(const Fns& fns, const SegmentShape& shape, ByteSpan raw, uint32_t first, uint32_t count,
                const uint16_t* order, uint16_t* tile, size_t stride, float* x);

// Cosines and sines of a block's positions. A thread keeps the last kKept of them: the layers of a record use the
// same, or those of a model of two kinds of layers (local, global) two by turns.
class Angles {
 public:
  // [pairs][stride] each; until the thread asks for others.
  static const Angles& Of(const Artifact& artifact, uint16_t layer, uint64_t pos0, size_t stride);
  const float* cosine(size_t pair) const { return cosine_.data() + pair * stride_; }
  const float* sine(size_t pair) const { return sine_.data() + pair * stride_; }

 private:
  static constexpr size_t kKept = 2;

  bool Is(std::span<const uint64_t> turns, uint64_t pos0, size_t stride) const;
  void Make(std::span<const uint64_t> turns, uint64_t pos0, size_t stride);

  std::vector<uint64_t> turns_;  // Of each pair, a position.
  uint64_t pos0_ = 0;
  size_t stride_ = 0;
  std::vector<float> cosine_, sine_;
};

// The dims of one head, `stride` apart from x on, turned by angles [pairs][stride], or back.
void TurnHead(const Fns& fns, const Artifact& artifact, const float* cosine, const float* sine, size_t stride, float* x,
              bool back);

}  // namespace tiercel::klt

#endif  // TIERCEL_KERNELS_KLT_COLUMNS_H_
