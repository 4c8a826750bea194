#include "kernels/rans.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "kernels/isa.h"
#include "kernels/scratch.h"

namespace tiercel::rans {
namespace {

uint32_t FullOf(uint32_t tokens) { return tokens / kLanes * kLanes; }

// Rows of full columns, and those that all tails can take.
uint64_t MaxRows(uint32_t columns, uint32_t tokens) {
  const uint64_t tails = uint64_t{columns} * (tokens % kLanes);
  return uint64_t{columns} * (tokens / kLanes) +
         (tails == 0 ? 0 : tails / kLanes + std::min<uint64_t>(kTables, columns) + 1);
}

uint64_t PlaneBytes(uint32_t tokens) { return (tokens + 7) / 8; }

// Where the tails of each column lie, by table then column, and their rows.
size_t LayTails(std::span<const uint8_t> classes, uint32_t tail, size_t rows, Row* row,
                uint32_t* at) {
  if (tail == 0) return rows;
  uint32_t count[kTables] = {};
  for (const uint8_t klass : classes) ++count[TableOf(klass)];
  size_t next[kTables] = {};
  for (uint32_t t = 1; t < kTables; ++t) {
    next[t] = rows * kLanes;
    for (uint64_t left = uint64_t{count[t]} * tail; left > 0;) {
      const auto lanes = static_cast<uint8_t>(std::min<uint64_t>(left, kLanes));
      row[rows++] = {static_cast<uint8_t>(t), lanes};
      left -= lanes;
    }
  }
  for (size_t c = 0; c < classes.size(); ++c) {
    const uint32_t t = TableOf(classes[c]);
    at[c] = static_cast<uint32_t>(next[t]);
    if (t != 0) next[t] += tail;
  }
  return rows;
}

uint32_t CargoBits(ByteSpan cargo, uint32_t lane) {
  const size_t bit = size_t{lane} * kCargoBits;
  uint32_t window = 0;
  for (size_t i = 0; i < 3 && bit / 8 + i < cargo.size(); ++i) {
    window |= std::to_integer<uint32_t>(cargo[bit / 8 + i]) << (8 * i);
  }
  return window >> (bit % 8) & (kLow - 1);
}

// Calls f(i) for each of n symbols that is an escape.
template <class F>
void ForEscapes(const uint8_t* symbols, uint32_t n, F&& f) {
  // Symbols are 15 at most: one more, and only an escape has bit 4.
  const auto escapes = [symbols](uint32_t at) {
    uint64_t word;
    std::memcpy(&word, symbols + at, 8);
    return (word + 0x0101010101010101u) & 0x1010101010101010u;
  };
  const auto each = [&](uint32_t at) {
    for (uint64_t bits = escapes(at); bits != 0; bits &= bits - 1) f(at + static_cast<uint32_t>(std::countr_zero(bits)) / 8);
  };
  uint32_t first = 0;
  for (; first + 32 <= n; first += 32) {  // They are few.
    if ((escapes(first) | escapes(first + 8) | escapes(first + 16) | escapes(first + 24)) == 0) continue;
    for (uint32_t at = first; at < first + 32; at += 8) each(at);
  }
  for (; first + 8 <= n; first += 8) each(first);
  for (; first < n; ++first) {
    if (symbols[first] == kEscape) f(first);
  }
}

}  // namespace

RowFns ActiveRows() {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return HasAvx512Rows() ? Avx512Rows() : Avx2Rows();
    case KernelIsa::kAvx2:
      return Avx2Rows();
    case KernelIsa::kScalar:
      break;
  }
#endif
  return ScalarRows();
}

uint32_t StreamsFor(uint64_t symbols, uint64_t each) {
  return static_cast<uint32_t>(
      std::bit_floor(std::clamp<uint64_t>(symbols / each, 1, kMaxStreams)));
}

uint64_t EncodeScratchBytes(uint32_t columns, uint32_t tokens) {
  const uint64_t rows = MaxRows(columns, tokens);
  const uint64_t values = uint64_t{columns} * tokens;
  return ScratchSizer()
      .Add<uint8_t>(columns)
      .Add<uint32_t>(columns)
      .Add<Row>(rows)
      .Add<uint8_t>(rows * kLanes + 64)
      .Add<uint8_t>(uint64_t{columns} * (tokens % kLanes) + 64)
      .Add<std::byte>(rows * kLanes * 2 + 64)
      .Add<std::byte>(values)
      .Add<std::byte>(2 * values)
      .Add<std::byte>(columns * kMaxShift * PlaneBytes(tokens))
      .bytes();
}

uint64_t DecodeScratchBytes(uint32_t columns, uint32_t tokens) {
  const uint64_t rows = MaxRows(columns, tokens);
  return ScratchSizer()
      .Add<Row>(rows)
      .Add<uint8_t>(rows * kLanes + 64)
      .Add<uint32_t>(columns)
      .Add<std::byte>(kMaxStreams * kCargoBytes)
      .bytes();
}

void PutClasses(BitWriter& out, std::span<const uint8_t> classes, std::span<int32_t> scratch) {
  for (size_t c = 0; c < classes.size(); ++c) {
    scratch[c] = static_cast<int32_t>(RankOf(classes[c]));
  }
  PutIntegers(out, scratch.first(classes.size()));
}

bool GetClasses(BitReader& in, std::span<uint8_t> classes, std::span<int32_t> scratch) {
  if (!GetIntegers(in, 0, kRanks - 1, scratch.first(classes.size()))) return false;
  for (size_t c = 0; c < classes.size(); ++c) {
    classes[c] = ClassOfRank(static_cast<uint32_t>(scratch[c]));
  }
  return true;
}

Encoder::Encoder(TableSet set, uint32_t columns, uint32_t tokens, MutableByteSpan scratch)
    : tables_(TablesOf(set)),
      fns_(ActiveRows()),
      shifts_(set == TableSet::kQuantized),
      columns_(columns),
      tokens_(tokens),
      full_(FullOf(tokens)) {
  const uint64_t rows = MaxRows(columns, tokens);
  const uint64_t values = uint64_t{columns} * tokens;
  ScratchCarver carve(scratch);
  classes_ = carve.Take<uint8_t>(columns);
  tail_at_ = carve.Take<uint32_t>(columns);
  row_ = carve.Take<Row>(rows);
  symbols_ = carve.Take<uint8_t>(rows * kLanes + 64);
  tails_ = carve.Take<uint8_t>(uint64_t{columns} * (tokens % kLanes) + 64);
  words_ = carve.Take<std::byte>(rows * kLanes * 2 + 64);
  escapes_ = carve.Take<std::byte>(values);
  far_ = carve.Take<std::byte>(2 * values);
  rests_ = carve.Take<std::byte>(columns * kMaxShift * PlaneBytes(tokens));
}

void Encoder::Add(const int16_t* values) {
  TIERCEL_CHECK(columns_added_ < columns_);
  const uint32_t c = columns_added_++;
  classes_[c] = MakeClass(0, 0);
  const uint64_t sum = shifts_ ? fns_.magnitude(values, tokens_) : 1;
  if (sum == 0) return;
  const uint32_t shift = shifts_ ? ShiftFor(sum, tokens_) : 0;
  const uint32_t tail = tokens_ - full_;
  Histogram histogram;
  fns_.symbols(values, full_, shift, symbols_ + rows_ * kLanes, histogram);
  if (tail != 0) fns_.symbols(values + full_, tail, shift, tails_ + size_t{c} * tail, histogram);
  Close(c, shift, histogram, [&](uint32_t t) { return ReducedOf(values[t], shift); });
  if (shift != 0) {
    const size_t plane = PlaneBytes(tokens_);
    fns_.rests(values, tokens_, shift, rests_ + rests_bytes_, plane);
    rests_bytes_ += shift * plane;
  }
}

void Encoder::AddBytes(const uint8_t* bytes, int32_t base) {
  TIERCEL_CHECK(columns_added_ < columns_ && !shifts_);
  const uint32_t c = columns_added_++;
  classes_[c] = MakeClass(0, 0);
  const uint32_t tail = tokens_ - full_;
  Histogram histogram;
  fns_.byte_symbols(bytes, full_, base, symbols_ + rows_ * kLanes, histogram);
  if (tail != 0) fns_.byte_symbols(bytes + full_, tail, base, tails_ + size_t{c} * tail, histogram);
  Close(c, 0, histogram, [&](uint32_t t) { return bytes[t] - base; });
}

// Chooses the table of a column whose symbols stand in their places, and keeps its escapes.
template <class Reduced>
void Encoder::Close(uint32_t column, uint32_t shift, const Histogram& histogram, Reduced&& reduced) {
  if (!shifts_ && histogram.count[kLargest] == tokens_) return;  // All zero.
  const uint32_t table = fns_.best_table(tables_.cost, histogram, shift == 0 ? 1 : kWideTable);
  classes_[column] = MakeClass(table, shift);
  const uint32_t tail = tokens_ - full_;
  const uint8_t* const symbols = symbols_ + rows_ * kLanes;
  for (uint32_t r = 0; r < full_ / kLanes; ++r) {
    row_[rows_++] = {static_cast<uint8_t>(table), kLanes};
  }
  if (histogram.count[kEscape] == 0) return;
  const auto add = [&](uint32_t t) {
    const int32_t value = reduced(t);
    const uint32_t byte = EscapeByte(value);
    escapes_[n_escapes_++] = static_cast<std::byte>(byte);
    if (byte == kFar) StoreLe(far_ + 2 * n_far_++, static_cast<int16_t>(value));
  };
  ForEscapes(symbols, full_, add);
  ForEscapes(tails_ + size_t{column} * tail, tail, [&](uint32_t t) { add(full_ + t); });
}

std::optional<uint64_t> Encoder::Finish(uint32_t streams, ByteSpan cargo, MutableByteSpan out) {
  TIERCEL_CHECK(columns_added_ == columns_ && cargo.size() <= streams * kCargoBytes);
  const uint32_t tail = tokens_ - full_;
  const size_t rows = LayTails(classes(), tail, rows_, row_, tail_at_);
  for (uint32_t c = 0; tail != 0 && c < columns_; ++c) {
    if (TableOf(classes_[c]) == 0) continue;
    std::memcpy(symbols_ + tail_at_[c], tails_ + size_t{c} * tail, tail);
  }

  // Each stream writes downwards from the end of a part of words_ that it cannot overrun.
  States states;
  std::byte* ends[kMaxStreams];
  std::byte* tails[kMaxStreams];
  size_t before = 0;
  for (uint32_t s = 0; s < streams; ++s) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      states[s][lane] = kLow | CargoBits(cargo, s * kLanes + lane);
    }
    before += (rows + streams - 1 - s) / streams * kLanes * 2;
    ends[s] = tails[s] = words_ + before;
  }
  fns_.encode(tables_, row_, rows, streams, symbols_, states, tails);

  uint64_t size = streams * (4 + 4 * kLanes) + rests_bytes_ + n_escapes_ + 2 * n_far_;
  for (uint32_t s = 0; s < streams; ++s) size += static_cast<uint64_t>(ends[s] - tails[s]);
  if (size > out.size()) return std::nullopt;
  std::byte* to = out.data();
  const auto put = [&to](const void* from, size_t bytes) {
    if (bytes != 0) std::memcpy(to, from, bytes);
    to += bytes;
  };
  for (uint32_t s = 0; s < streams; ++s) {
    const auto words = static_cast<uint32_t>((ends[s] - tails[s]) / 2);
    StoreLe(to, s == 0 ? words | static_cast<uint32_t>(std::countr_zero(streams)) << 24 : words);
    to += 4;
  }
  for (uint32_t s = 0; s < streams; ++s) put(tails[s], static_cast<size_t>(ends[s] - tails[s]));
  for (uint32_t s = 0; s < streams; ++s) put(states[s].data(), 4 * kLanes);
  put(rests_, rests_bytes_);
  put(escapes_, n_escapes_);
  put(far_, 2 * n_far_);
  return size;
}

Decoder::Decoder(TableSet set, uint32_t columns, uint32_t tokens, MutableByteSpan scratch)
    : tables_(TablesOf(set)),
      fns_(ActiveRows()),
      columns_(columns),
      tokens_(tokens),
      full_(FullOf(tokens)) {
  const uint64_t rows = MaxRows(columns, tokens);
  ScratchCarver carve(scratch);
  row_ = carve.Take<Row>(rows);
  symbols_ = carve.Take<uint8_t>(rows * kLanes + 64);
  tail_at_ = carve.Take<uint32_t>(columns);
  cargo_ = carve.Take<std::byte>(kMaxStreams * kCargoBytes);
}

const char* Decoder::Start(std::span<const uint8_t> classes, ByteSpan block) {
  TIERCEL_CHECK(classes.size() == columns_);
  classes_ = classes;
  size_t rows = 0;
  uint64_t rest_bytes = 0;
  for (const uint8_t klass : classes) {
    const auto table = static_cast<uint8_t>(TableOf(klass));
    if (table == 0) continue;
    rest_bytes += ShiftOf(klass) * PlaneBytes(tokens_);
    for (uint32_t r = 0; r < full_ / kLanes; ++r) row_[rows++] = {table, kLanes};
  }
  rows = LayTails(classes, tokens_ - full_, rows, row_, tail_at_);

  if (block.size() < 4) return "shorter than its streams' counts";
  const uint32_t log_streams = LoadLe<uint32_t>(block.data()) >> 24;
  if (log_streams > 3) return "too many streams";
  streams_ = 1u << log_streams;
  uint64_t at = 4 * uint64_t{streams_};
  if (block.size() < at) return "shorter than its streams' counts";
  const std::byte* from[kMaxStreams];
  const std::byte* ends[kMaxStreams];
  for (uint32_t s = 0; s < streams_; ++s) {
    const uint32_t words = LoadLe<uint32_t>(block.data() + 4 * s) & (s == 0 ? 0xffffffu : ~0u);
    if (words > block.size() / 2 || at + 2 * uint64_t{words} > block.size()) {
      return "its words end behind its end";
    }
    from[s] = block.data() + at;
    at += 2 * uint64_t{words};
    ends[s] = block.data() + at;
  }
  if (block.size() - at < streams_ * uint64_t{4 * kLanes}) return "shorter than its states";
  // The states behind the words are what the wide loops may read in vain.
  const std::byte* const limit = block.data() + at;
  States states;
  for (uint32_t s = 0; s < streams_; ++s) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      states[s][lane] = LoadLe<uint32_t>(block.data() + at);
      at += 4;
      if (states[s][lane] < kLow || states[s][lane] >> 31 != 0) return "a state out of its range";
    }
  }
  if (!fns_.decode(tables_, row_, rows, streams_, symbols_, states, from, limit)) {
    return "a stream runs over its words";
  }
  std::memset(cargo_, 0, kMaxStreams * kCargoBytes);
  for (uint32_t s = 0; s < streams_; ++s) {
    if (from[s] != ends[s]) return "a stream does not end where its words end";
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      if (states[s][lane] >> 16 != 0) return "a stream ends in a state that none begins with";
      const size_t bit = size_t{s * kLanes + lane} * kCargoBits;
      const uint32_t bits = (states[s][lane] & (kLow - 1)) << (bit % 8);
      for (size_t i = 0; i < 3; ++i) {
        const uint32_t byte = bits >> (8 * i) & 0xff;
        if (byte != 0) cargo_[bit / 8 + i] |= static_cast<std::byte>(byte);
      }
    }
  }
  if (block.size() - at < rest_bytes) return "shorter than its low bits";
  rests_ = block.subspan(at, rest_bytes);
  escapes_ = block.subspan(at + rest_bytes);
  // How many escapes there are, the columns tell; the far ones come behind.
  const size_t n = fns_.escapes(symbols_, rows * kLanes);
  if (n > escapes_.size()) return "shorter than its escapes";
  far_at_ = n;
  return nullptr;
}

Decoder::Place Decoder::Next() {
  TIERCEL_CHECK(column_ < columns_);
  const uint32_t c = column_++;
  const Place place{classes_[c], symbols_ + full_at_, full_ == tokens_ ? nullptr : symbols_ + tail_at_[c]};
  if (TableOf(place.klass) != 0) full_at_ += full_;
  return place;
}

// Calls put(t, value) with each reduced value of a column that has no symbol.
template <class Put>
const char* Decoder::ForEscaped(const Place& place, Put&& put) {
  bool good = true;
  const auto take = [&](uint32_t t) {
    const auto byte = std::to_integer<uint32_t>(escapes_[escape_at_++]);
    int32_t reduced = EscapedValue(byte);
    if (byte == kFar) {
      if (escapes_.size() - far_at_ < 2) {
        good = false;
        return;
      }
      reduced = LoadLe<int16_t>(escapes_.data() + far_at_);
      far_at_ += 2;
    }
    put(t, reduced);
  };
  ForEscapes(place.full, full_, take);
  ForEscapes(place.tail, tokens_ - full_, [&](uint32_t t) { take(full_ + t); });
  return good ? nullptr : "shorter than its far escapes";
}

const char* Decoder::Column(int16_t* values) {
  const Place place = Next();
  if (TableOf(place.klass) == 0) {
    std::memset(values, 0, tokens_ * sizeof(int16_t));
    return nullptr;
  }
  const uint32_t shift = ShiftOf(place.klass);
  const size_t plane = PlaneBytes(tokens_);
  const std::byte* const rests = rests_.data() + rests_at_;
  rests_at_ += shift * plane;
  bool escapes = full_ != 0 && fns_.values(place.full, full_, shift, rests, plane, values);
  if (const uint32_t tail = tokens_ - full_; tail != 0) {
    escapes |= fns_.values(place.tail, tail, shift, rests + full_ / 8, plane, values + full_);
  }
  if (!escapes) return nullptr;
  return ForEscaped(place, [&](uint32_t t, int32_t reduced) {
    // In place of the symbol's 8 stands the value.
    values[t] = static_cast<int16_t>(values[t] + (reduced - 8) * (1 << shift));
  });
}

const char* Decoder::Bytes(int32_t base, uint8_t* bytes) {
  const Place place = Next();
  if (TableOf(place.klass) == 0) {
    std::memset(bytes, static_cast<uint8_t>(base), tokens_);
    return nullptr;
  }
  const uint32_t shift = ShiftOf(place.klass);
  bool escapes = false;
  if (shift == 0) {
    if (full_ != 0) escapes = fns_.byte_values(place.full, full_, base, bytes);
    if (full_ != tokens_) escapes |= fns_.byte_values(place.tail, tokens_ - full_, base, bytes + full_);
  } else {
    escapes = ShiftedBytes(place, base, bytes);
  }
  if (!escapes) return nullptr;
  return ForEscaped(place, [&](uint32_t t, int32_t reduced) {
    bytes[t] = static_cast<uint8_t>(bytes[t] + static_cast<uint32_t>(reduced - 8) * (1u << shift));
  });
}

// No encoder of bytes shifts them, but the format lets one.
bool Decoder::ShiftedBytes(const Place& place, int32_t base, uint8_t* bytes) {
  const uint32_t shift = ShiftOf(place.klass);
  const size_t plane = PlaneBytes(tokens_);
  bool escapes = false;
  for (uint32_t t = 0; t < tokens_; t += kLanes) {
    int16_t values[kLanes];
    const uint32_t n = std::min(kLanes, tokens_ - t);
    const uint8_t* const symbols = t < full_ ? place.full + t : place.tail;
    escapes |= fns_.values(symbols, n, shift, rests_.data() + rests_at_ + t / 8, plane, values);
    for (uint32_t i = 0; i < n; ++i) bytes[t + i] = static_cast<uint8_t>(values[i] + base);
  }
  rests_at_ += shift * plane;
  return escapes;
}

const char* Decoder::Finish() const {
  return far_at_ == escapes_.size() ? nullptr : "its escapes do not end where it ends";
}

}  // namespace tiercel::rans
