// Levels: a step of its own for each token of a segment, in half octaves. Internal to kernels/.
//
//   encoder of a record   LevelPredictor: K of a layer --> the levels of its K and of its V --> CodecContext::levels
//   EC-C, EC-K, EC-X      TokenSteps: levels --> the order in which tokens lie in columns, and their steps
//                         PutLevels, PutBandClasses --> a segment of version 2 --> GetLevels, GetBandClasses
//
// Invariants: levels are a choice of the encoder, the same on every ISA; a decoder reads them and foretells
// nothing. Without levels everything here is as if all were 0: one band, tokens as they come, all factors 1.
// Ownership: scratch and spans are borrowed. Threads: one an object.
// Errors: what stands in a segment wrongly is named.
//
// One value at a time: levels_core.h. Layout: docs/block-format.md, "Levels".
#ifndef TIERCEL_KERNELS_LEVELS_H_
#define TIERCEL_KERNELS_LEVELS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "kernels/artifact.h"
#include "kernels/bits.h"
#include "kernels/codec.h"
#include "kernels/levels_core.h"
#include "kernels/scratch.h"

namespace tiercel {

namespace levels {
// None, or one of each token, all in their range.
bool Fit(std::span<const int8_t> levels, uint32_t tokens);
// Whether one of a token that is not exact is not 0: else an encoder does without.
bool Any(std::span<const int8_t> levels, uint32_t exact);
}  // namespace levels

// How the tokens of a segment lie in its columns.
class TokenSteps {
 public:
  static void AddScratch(ScratchSizer& sizer, size_t stride);
  TokenSteps(ScratchCarver& carver, uint32_t tokens, size_t stride);

  // Until then there are no levels. Of all tokens.
  void Set(std::span<const int8_t> levels, uint32_t exact);
  // Room for those that a reader finds, [tokens].
  std::span<int8_t> levels() const { return {levels_, tokens_}; }

  bool any() const { return any_; }
  const uint16_t* order() const { return any_ ? order_ : nullptr; }  // Of columns.h.
  const float* steps() const { return steps_; }        // [stride]: what a token's step is multiplied with.
  const float* inverses() const { return inverses_; }  // [stride]: of those.
  // Where in a column the exact tokens are.
  uint32_t exact_at(uint32_t exact) const { return any_ ? tokens_ - exact : 0; }
  // A table of rows `pitch` apart as [rows][stride] in the order of tokens: `room`, and without an order the table
  // itself (whose pitch must be the stride then).
  const float* Ordered(const float* table, size_t rows, size_t pitch, float* room) const;

 private:
  uint32_t tokens_;
  size_t stride_;
  bool any_ = false;
  int8_t* levels_;
  uint16_t* order_;
  float* steps_;
  float* inverses_;
};

// The level part of a segment: the levels of the tokens from `exact` on, then a band's offset each, of all
// but the first band. Returns its bytes; more than out holds means that it does not fit.
uint64_t PutLevels(std::span<const int8_t> levels, uint32_t exact, std::span<const int8_t> offsets,
                   std::span<int32_t> scratch, MutableByteSpan out);
// Null, or what is wrong. The part is all of the span; levels of exact tokens become 0.
const char* GetLevels(ByteSpan part, uint32_t exact, std::span<int8_t> levels, std::span<int8_t> offsets,
                      std::span<int32_t> scratch);

// Classes [column][band], a list a band; offsets of all but the first band, as OffsetFor has them.
void ChooseOffsets(std::span<const uint8_t> classes, uint32_t log_bands, int8_t* offsets);
void PutBandClasses(BitWriter& out, std::span<const uint8_t> classes, uint32_t log_bands, const int8_t* offsets,
                    std::span<int32_t> scratch);
bool GetBandClasses(BitReader& in, std::span<uint8_t> classes, uint32_t log_bands, const int8_t* offsets,
                    std::span<int32_t> scratch);

// The levels that an artifact foretells for the layers of one record.
class LevelPredictor {
 public:
  // Without an artifact, or of one that foretells none, it has none.
  LevelPredictor(const Artifact* artifact, uint64_t pos0, uint32_t first_head);
  bool any() const { return artifact_ != nullptr; }
  static uint64_t ScratchBytes(const SegmentShape& k);
  // Of a layer's K. Where a value is not finite there are none.
  void Predict(const SegmentShape& k, ByteSpan raw, MutableByteSpan scratch);
  // Of the K or V of the layer whose K was given last; empty: none.
  std::span<const int8_t> Of(SegmentKind kind) const { return levels_[kind == SegmentKind::kV ? 1 : 0]; }

 private:
  const Artifact* artifact_;
  const uint64_t pos0_;
  const uint32_t first_head_;
  std::vector<float> logs_;  // Of the positions.
  std::vector<int8_t> levels_[2];
};

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_LEVELS_H_
