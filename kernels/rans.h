// Entropy-coded columns: a matrix of small signed integers, [column][token], to bits and back. What the
// integers mean is the caller's: quantised values, exponents, coefficients.
//
//   Encoder: Add(column) ... -> classes, which the caller writes -> Finish -> a block
//   Decoder: Start(classes, block) -> Column(0), Column(1), ...  -> Finish
//
// Each column has a class: one of 31 frozen tables, or "all zero", and how many low bits stand apart.
// The encoder takes the class of least exact cost. Rows of 32 tokens of a column go round the streams;
// what is left of columns whose tokens are no multiple of 32 is put end to end, by class.
//
// Invariants: the same bytes on every ISA; a decoder reads within the block and writes within its
// scratch and the column it is given, whatever the block holds.
// Ownership: scratch and spans are borrowed for the coder's life. Threads: one a coder.
// Errors: an encoder that does not fit its span gives nullopt; a decoder names what is wrong, or null.
//
// Layout and arithmetic: docs/block-format.md, "Entropy-coded columns". One lane alone: rans_core.h.
#ifndef TIERCEL_KERNELS_RANS_H_
#define TIERCEL_KERNELS_RANS_H_

#include <cstdint>
#include <optional>
#include <span>

#include "base/bytes.h"
#include "kernels/bits.h"
#include "kernels/rans_core.h"
#include "kernels/rans_rows.h"
#include "kernels/rans_tables.h"

namespace tiercel::rans {

inline constexpr uint32_t kMaxTokens = 4096;
inline constexpr uint32_t kMaxColumns = 1u << 16;
inline constexpr int32_t kMaxValue = (1 << 14) - 1;  // Magnitude of a value that Add takes.

// 1, 2, 4 or 8: one for each `each` symbols. A stream costs 72 bytes that carry no cargo; more of them
// decode faster, up to 4 on a CPU.
uint32_t StreamsFor(uint64_t symbols, uint64_t each);

uint64_t EncodeScratchBytes(uint32_t columns, uint32_t tokens);
uint64_t DecodeScratchBytes(uint32_t columns, uint32_t tokens);

// The classes of all columns, in a list of their ranks.
void PutClasses(BitWriter& out, std::span<const uint8_t> classes, std::span<int32_t> scratch);
bool GetClasses(BitReader& in, std::span<uint8_t> classes, std::span<int32_t> scratch);

class Encoder {
 public:
  // Scratch as EncodeScratchBytes says.
  Encoder(TableSet set, uint32_t columns, uint32_t tokens, MutableByteSpan scratch);
  // The next column: `tokens` values of magnitude up to kMaxValue. Called once a column.
  void Add(const int16_t* values);
  // The same of bytes[i] - base, base from -2 to 255; not of a set that is shifted.
  void AddBytes(const uint8_t* bytes, int32_t base);
  // The class of what was added last, and of all.
  uint8_t last_class() const { return classes_[columns_added_ - 1]; }
  std::span<const uint8_t> classes() const { return {classes_, columns_added_}; }
  // Writes the block; cargo is at most streams * kCargoBytes, and rides free. Returns its size.
  std::optional<uint64_t> Finish(uint32_t streams, ByteSpan cargo, MutableByteSpan out);

 private:
  template <class Reduced>
  void Close(uint32_t column, uint32_t shift, const Histogram& histogram, Reduced&& reduced);

  const Tables& tables_;
  const RowFns fns_;
  const bool shifts_;  // Exponents are never shifted.
  const uint32_t columns_;
  const uint32_t tokens_;
  const uint32_t full_;  // Tokens in full rows.
  uint32_t columns_added_ = 0;
  size_t rows_ = 0;
  uint8_t* classes_;
  uint32_t* tail_at_;  // Of each column, in symbols_.
  Row* row_;
  uint8_t* symbols_;
  uint8_t* tails_;   // tokens_ - full_ a column.
  std::byte* words_;
  std::byte* escapes_;
  size_t n_escapes_ = 0;
  std::byte* far_;
  size_t n_far_ = 0;
  std::byte* rests_;
  size_t rests_bytes_ = 0;
};

class Decoder {
 public:
  Decoder(TableSet set, uint32_t columns, uint32_t tokens, MutableByteSpan scratch);
  // Decodes all symbols. The block is all of the span. Null, or what is wrong.
  const char* Start(std::span<const uint8_t> classes, ByteSpan block);
  // streams * kCargoBytes bytes.
  ByteSpan cargo() const { return {cargo_, streams_ * kCargoBytes}; }
  uint32_t streams() const { return streams_; }
  // The next column's values; columns come in order. Null, or what is wrong.
  const char* Column(int16_t* values);
  // The same of a column that AddBytes took: the low byte of each.
  const char* Bytes(int32_t base, uint8_t* bytes);
  const char* Finish() const;

 private:
  // Where the next column's symbols lie.
  struct Place {
    uint8_t klass;
    const uint8_t* full;
    const uint8_t* tail;  // Null: all tokens are in full rows.
  };
  Place Next();
  bool ShiftedBytes(const Place& place, int32_t base, uint8_t* bytes);
  template <class Put>
  const char* ForEscaped(const Place& place, Put&& put);

  const Tables& tables_;
  const RowFns fns_;
  const uint32_t columns_;
  const uint32_t tokens_;
  const uint32_t full_;
  uint32_t streams_ = 0;
  uint32_t column_ = 0;
  std::span<const uint8_t> classes_;
  Row* row_;
  uint8_t* symbols_;
  uint32_t* tail_at_;  // Of each column, in symbols_.
  std::byte* cargo_;
  size_t full_at_ = 0;
  ByteSpan rests_;
  size_t rests_at_ = 0;
  ByteSpan escapes_;  // With the far ones behind.
  size_t escape_at_ = 0;
  size_t far_at_ = 0;
};

}  // namespace tiercel::rans

#endif  // TIERCEL_KERNELS_RANS_H_
