#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/rans_rows.h"

#define TIERCEL_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))

namespace tiercel::rans {
namespace {

inline constexpr uint32_t kQuarters = 4;  // Registers of 8 lanes that make a row.

// What the decoder looks up with byte shuffles: 16-bit numbers of symbols in two tables of bytes.
struct alignas(64) DecodeTable {
  uint16_t next[3][8];  // [k][q]: start[4 q + k + 1], q up to 3.
  uint8_t frequency_low[16], frequency_high[16];
  uint8_t start_low[16], start_high[16];
};
struct DecodeTables {
  std::array<DecodeTable, kTables> table{};
  explicit DecodeTables(const Tables& tables) {
    for (uint32_t t = 1; t < kTables; ++t) {
      const LaneTable& lane = tables.lane[t];
      for (uint32_t k = 0; k < 3; ++k) {
        for (uint32_t q = 0; q < 8; ++q) table[t].next[k][q] = lane.start[4 * (q % 4) + k + 1];
      }
      for (uint32_t s = 0; s < kSymbols; ++s) {
        table[t].frequency_low[s] = static_cast<uint8_t>(lane.frequency[s]);
        table[t].frequency_high[s] = static_cast<uint8_t>(lane.frequency[s] >> 8);
        table[t].start_low[s] = static_cast<uint8_t>(lane.start[s]);
        table[t].start_high[s] = static_cast<uint8_t>(lane.start[s] >> 8);
      }
    }
  }
};
const DecodeTables& DecodeTablesOf(const Tables& tables) {
  static const DecodeTables quantized(TablesOf(TableSet::kQuantized));
  static const DecodeTables exponents(TablesOf(TableSet::kExponents));
  return &tables == &TablesOf(TableSet::kExponents) ? exponents : quantized;
}

// Of each mask of 8 lanes: where lane i of the mask finds its word among words without gaps; and which
// bytes bring the words of the mask's lanes to the end of 16.
struct Masks {
  alignas(64) uint32_t expand[256][8];
  alignas(64) uint8_t pack_down[256][16];
};
constexpr Masks MakeMasks() {
  Masks out{};
  for (uint32_t mask = 0; mask < 256; ++mask) {
    uint32_t before = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      out.expand[mask][lane] = before & 7;
      before += mask >> lane & 1;
    }
    for (uint8_t& byte : out.pack_down[mask]) byte = 0x80;
    uint32_t to = 8;
    for (uint32_t lane = 8; lane-- > 0;) {
      if ((mask >> lane & 1) == 0) continue;
      --to;
      out.pack_down[mask][2 * to] = static_cast<uint8_t>(2 * lane);
      out.pack_down[mask][2 * to + 1] = static_cast<uint8_t>(2 * lane + 1);
    }
  }
  return out;
}
constexpr Masks kMasks = MakeMasks();

TIERCEL_AVX2 inline __m256i Load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
TIERCEL_AVX2 inline void Store(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}
TIERCEL_AVX2 inline __m256i Twice(const void* from) {  // 16 bytes in both halves.
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
TIERCEL_AVX2 inline uint32_t SignBits(__m256i lanes) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

// Entry `symbol` of 16 numbers of 32 bits.
TIERCEL_AVX2 inline __m256i LookUp(__m256i low, __m256i high, __m256i symbol) {
  const __m256 a = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, symbol));
  const __m256 b = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, symbol));
  return _mm256_castps_si256(
      _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(symbol, 28))));
}

// (2 x * reciprocal >> 32) >> level.
TIERCEL_AVX2 inline __m256i Divide(__m256i x, __m256i reciprocal, __m256i level) {
  const __m256i twice = _mm256_add_epi32(x, x);
  const __m256i even = _mm256_mul_epu32(twice, reciprocal);
  const __m256i odd =
      _mm256_mul_epu32(_mm256_srli_epi64(twice, 32), _mm256_srli_epi64(reciprocal, 32));
  return _mm256_srlv_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa), level);
}

// A stream starts below 2^16, so that its first row emits nothing: the 16 bytes that are written down
// to its tail stay in its own part.
TIERCEL_AVX2 inline void EncodeFullRow(const LaneTable& table, const uint8_t* symbols,
                                       std::array<uint32_t, kLanes>& states, std::byte*& tail) {
  const __m256i reciprocal_low = Load(table.reciprocal.data());
  const __m256i reciprocal_high = Load(table.reciprocal.data() + 8);
  const __m256i packed_low = Load(table.packed.data());
  const __m256i packed_high = Load(table.packed.data() + 8);
  const __m256i twelve = _mm256_set1_epi32(kSlots - 1);
  const __m256i low_words = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,
                                             0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
  for (uint32_t i = kQuarters; i-- > 0;) {
    const __m256i symbol =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(symbols + 8 * i)));
    __m256i x = Load(states.data() + 8 * i);
    const __m256i packed = LookUp(packed_low, packed_high, symbol);
    const __m256i rest = _mm256_and_si256(packed, twelve);
    // x >> 19 >= f, with rest = 4096 - f.
    const __m256i emit = _mm256_cmpgt_epi32(
        _mm256_add_epi32(_mm256_srli_epi32(x, 31 - kBits), rest), twelve);
    const uint32_t mask = SignBits(emit);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(x, low_words), 0x08);
    const __m128i down = _mm_shuffle_epi8(
        _mm256_castsi256_si128(words),
        _mm_load_si128(reinterpret_cast<const __m128i*>(kMasks.pack_down[mask])));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(tail - 16), down);
    tail -= 2 * __builtin_popcount(mask);
    x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), emit);
    const __m256i quotient = Divide(x, LookUp(reciprocal_low, reciprocal_high, symbol),
                                    _mm256_srli_epi32(packed, 24));
    const __m256i start = _mm256_and_si256(_mm256_srli_epi32(packed, 12), twelve);
    x = _mm256_add_epi32(_mm256_add_epi32(x, start), _mm256_mullo_epi32(quotient, rest));
    Store(states.data() + 8 * i, x);
  }
}

TIERCEL_AVX2 void Encode(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
                         const uint8_t* symbols, States& states, std::byte** tail) {
  for (size_t r = n; r-- > 0;) {
    const size_t s = r & (streams - 1);
    if (rows[r].lanes == kLanes && r >= streams) {
      EncodeFullRow(tables.lane[rows[r].table], symbols + kLanes * r, states[s], tail[s]);
    } else {
      EncodeRow(tables.lane[rows[r].table], rows[r].lanes, symbols + kLanes * r, states[s], tail[s]);
    }
  }
}

// 16 slots to symbols, words both.
TIERCEL_AVX2 inline __m256i FindSymbols(__m256i slot, const __m256i* split, const __m256i* next) {
  const __m256i below = _mm256_add_epi16(
      _mm256_add_epi16(_mm256_cmpgt_epi16(split[0], slot), _mm256_cmpgt_epi16(split[1], slot)),
      _mm256_cmpgt_epi16(split[2], slot));  // Less 3: the quarter of the alphabet.
  const __m256i at = _mm256_add_epi16(_mm256_mullo_epi16(below, _mm256_set1_epi16(0x0202)),
                                      _mm256_set1_epi16(0x0706));
  __m256i symbol = _mm256_add_epi16(_mm256_slli_epi16(below, 2), _mm256_set1_epi16(15));
  for (int k = 0; k < 3; ++k) {
    symbol = _mm256_add_epi16(symbol,
                              _mm256_cmpgt_epi16(_mm256_shuffle_epi8(next[k], at), slot));
  }
  return symbol;
}

TIERCEL_AVX2 __attribute__((always_inline)) inline void DecodeFullRow(const LaneTable& table, const DecodeTable& bytes,
                                       uint8_t* symbols, std::array<uint32_t, kLanes>& states,
                                       const std::byte*& at) {
  const __m256i twelve = _mm256_set1_epi32(kSlots - 1);
  __m256i x[kQuarters];
  for (uint32_t i = 0; i < kQuarters; ++i) x[i] = Load(states.data() + 8 * i);
  __m256i split[3];
  __m256i next[3];
  for (size_t k = 0; k < 3; ++k) {
    split[k] = _mm256_set1_epi32(static_cast<int>(table.split[k]));
    next[k] = Twice(bytes.next[k]);
  }
  // Packing works by halves of a register, and so does unpacking below: lanes 0..3 8..11 | 4..7 12..15.
  const __m256i slot_a =
      _mm256_packus_epi32(_mm256_and_si256(x[0], twelve), _mm256_and_si256(x[1], twelve));
  const __m256i slot_b =
      _mm256_packus_epi32(_mm256_and_si256(x[2], twelve), _mm256_and_si256(x[3], twelve));
  const __m256i symbol =
      _mm256_packus_epi16(FindSymbols(slot_a, split, next), FindSymbols(slot_b, split, next));
  Store(symbols, _mm256_permutevar8x32_epi32(symbol, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  const __m256i frequency_low = _mm256_shuffle_epi8(Twice(bytes.frequency_low), symbol);
  const __m256i frequency_high = _mm256_shuffle_epi8(Twice(bytes.frequency_high), symbol);
  const __m256i start_low = _mm256_shuffle_epi8(Twice(bytes.start_low), symbol);
  const __m256i start_high = _mm256_shuffle_epi8(Twice(bytes.start_high), symbol);
  const __m256i within_a =
      _mm256_sub_epi16(slot_a, _mm256_unpacklo_epi8(start_low, start_high));
  const __m256i within_b =
      _mm256_sub_epi16(slot_b, _mm256_unpackhi_epi8(start_low, start_high));
  const __m256i frequency_a = _mm256_unpacklo_epi8(frequency_low, frequency_high);
  const __m256i frequency_b = _mm256_unpackhi_epi8(frequency_low, frequency_high);
  const __m256i both[kQuarters] = {
      _mm256_unpacklo_epi16(frequency_a, within_a), _mm256_unpackhi_epi16(frequency_a, within_a),
      _mm256_unpacklo_epi16(frequency_b, within_b), _mm256_unpackhi_epi16(frequency_b, within_b)};
  const __m256i words = _mm256_set1_epi32(0xffff);
  const __m256i low = _mm256_set1_epi32(kLow);
  for (uint32_t i = 0; i < kQuarters; ++i) {
    const __m256i left =
        _mm256_add_epi32(_mm256_mullo_epi32(_mm256_and_si256(both[i], words),
                                            _mm256_srli_epi32(x[i], kBits)),
                         _mm256_srli_epi32(both[i], 16));
    const __m256i due = _mm256_cmpgt_epi32(low, left);
    const uint32_t mask = SignBits(due);
    const __m256i here =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    at += 2 * __builtin_popcount(mask);
    const __m256i spread = _mm256_permutevar8x32_epi32(
        here, _mm256_load_si256(reinterpret_cast<const __m256i*>(kMasks.expand[mask])));
    const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(left, 16), spread);
    Store(states.data() + 8 * i, _mm256_blendv_epi8(left, refilled, due));
  }
}

TIERCEL_AVX2 bool Decode(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
                         uint8_t* symbols, States& states, const std::byte** at,
                         const std::byte* limit) {
  const DecodeTables& bytes = DecodeTablesOf(tables);
  for (size_t r = 0; r < n; ++r) {
    const size_t s = r & (streams - 1);
    if (at[s] > limit) return false;
    const uint32_t t = rows[r].table;
    if (rows[r].lanes == kLanes) {
      DecodeFullRow(tables.lane[t], bytes.table[t], symbols + kLanes * r, states[s], at[s]);
    } else {
      DecodeRow(tables.lane[t], rows[r].lanes, symbols + kLanes * r, states[s], at[s]);
    }
  }
  return true;
}

// What does not fill a register goes the scalar way.
TIERCEL_AVX2 uint64_t Magnitude(const int16_t* values, size_t n) {
  __m256i sum = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    sum = _mm256_add_epi32(
        sum, _mm256_madd_epi16(_mm256_abs_epi16(Load(values + i)), _mm256_set1_epi16(1)));
  }
  alignas(32) uint32_t parts[8];
  Store(parts, sum);
  uint64_t total = i < n ? ScalarRows().magnitude(values + i, n - i) : 0;
  for (const uint32_t part : parts) total += part;
  return total;
}

// Puts n symbols, 32 at a time, of which symbols_at(i) makes those of values i on; how many: what is left is less.
// Of 64 the counts are those of their bits.
template <class SymbolsAt>
TIERCEL_AVX2 inline size_t PutSymbols(size_t n, uint8_t* symbols, Histogram& histogram, SymbolsAt&& symbols_at) {
  uint64_t counts[4] = {};  // Four symbols a word, 16 bits each.
  size_t i = 0;
  while (i + 32 <= n) {
    uint64_t plane[4] = {};
    uint64_t none = 64;  // Of these 64.
    for (unsigned half = 0; half < 2 && i + 32 <= n; ++half, i += 32) {
      const __m256i made = symbols_at(i);
      Store(symbols + i, made);
      for (unsigned bit = 0; bit < 4; ++bit) {
        const auto bits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(made, static_cast<int>(7 - bit))));
        plane[bit] |= uint64_t{bits} << (32 * half);
      }
      none -= 32;
    }
    const uint64_t low[4] = {~(plane[0] | plane[1]), plane[0] & ~plane[1], plane[1] & ~plane[0], plane[0] & plane[1]};
    const uint64_t high[4] = {~(plane[2] | plane[3]), plane[2] & ~plane[3], plane[3] & ~plane[2], plane[2] & plane[3]};
    for (unsigned h = 0; h < 4; ++h) {
      for (unsigned l = 0; l < 4; ++l) {
        counts[h] += static_cast<uint64_t>(__builtin_popcountll(high[h] & low[l])) << (16 * l);
      }
    }
    counts[0] -= none;  // Their bits were taken for zeros.
  }
  for (unsigned h = 0; h < 4; ++h) {
    uint64_t all;
    __builtin_memcpy(&all, &histogram.count[4 * h], 8);
    all += counts[h];
    __builtin_memcpy(&histogram.count[4 * h], &all, 8);
  }
  return i;
}

TIERCEL_AVX2 void Symbols(const int16_t* values, size_t n, uint32_t shift, uint8_t* symbols,
                          Histogram& histogram) {
  const __m256i offset = _mm256_set1_epi16(static_cast<int16_t>(HalfOf(shift)));
  const __m128i by = _mm_cvtsi32_si128(static_cast<int>(shift));
  const __m256i seven = _mm256_set1_epi16(kLargest);
  const __m256i escape = _mm256_set1_epi16(kEscape);
  const auto reduce = [&](const int16_t* from) TIERCEL_AVX2 {
    const __m256i reduced = _mm256_sra_epi16(_mm256_add_epi16(Load(from), offset), by);
    return _mm256_min_epu16(_mm256_add_epi16(reduced, seven), escape);
  };
  const size_t done = PutSymbols(n, symbols, histogram, [&](size_t i) TIERCEL_AVX2 {
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(reduce(values + i), reduce(values + i + 16)), 0xd8);
  });
  if (done < n) ScalarRows().symbols(values + done, n - done, shift, symbols + done, histogram);
}

TIERCEL_AVX2 void ByteSymbols(const uint8_t* bytes, size_t n, int32_t base, uint8_t* symbols, Histogram& histogram) {
  // Symbol 0 is the byte base - 7: up by as much as that is below 0, or down.
  const int32_t zero = base - kLargest;
  const __m256i up = _mm256_set1_epi8(static_cast<char>(zero < 0 ? -zero : 0));
  const __m256i down = _mm256_set1_epi8(static_cast<char>(zero < 0 ? 0 : zero));
  const __m256i escape = _mm256_set1_epi8(kEscape);
  const size_t done = PutSymbols(n, symbols, histogram, [&](size_t i) TIERCEL_AVX2 {
    const __m256i raised = _mm256_adds_epu8(Load(bytes + i), up);
    const __m256i reached = _mm256_cmpeq_epi8(_mm256_max_epu8(raised, down), raised);
    return _mm256_blendv_epi8(escape, _mm256_min_epu8(_mm256_sub_epi8(raised, down), escape), reached);
  });
  if (done < n) ScalarRows().byte_symbols(bytes + done, n - done, base, symbols + done, histogram);
}

TIERCEL_AVX2 uint32_t BestTable(const CostTable& costs, const Histogram& histogram,
                                uint32_t first) {
  __m256i sum[4] = {};
  for (uint32_t p = 0; p < 8; ++p) {
    int32_t two;
    __builtin_memcpy(&two, &histogram.count[2 * p], 4);
    const __m256i counts = _mm256_set1_epi32(two);
    for (uint32_t i = 0; i < 4; ++i) {
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(counts, Load(&costs.pair[p][8 * i])));
    }
  }
  // Cost and table in one number: at most 4096 * 5120 < 2^25 of cost, 32 tables.
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i least = _mm256_set1_epi32(-1);
  for (uint32_t i = 0; i < 4; ++i) {
    const __m256i table = _mm256_add_epi32(index, _mm256_set1_epi32(static_cast<int>(8 * i)));
    const __m256i barred = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(first)), table);
    const __m256i key = _mm256_or_si256(_mm256_slli_epi32(sum[i], 5), table);
    least = _mm256_min_epu32(least, _mm256_or_si256(key, barred));
  }
  alignas(32) uint32_t parts[8];
  Store(parts, least);
  uint32_t best = parts[0];
  for (const uint32_t part : parts) best = part < best ? part : best;
  return best & 31;
}

TIERCEL_AVX2 void Rests(const int16_t* values, size_t n, uint32_t shift, std::byte* planes,
                        size_t plane_bytes) {
  const __m256i half = _mm256_set1_epi16(static_cast<int16_t>(HalfOf(shift)));
  const __m256i low = _mm256_set1_epi16(0xff);
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i a = _mm256_and_si256(_mm256_add_epi16(Load(values + i), half), low);
    const __m256i b = _mm256_and_si256(_mm256_add_epi16(Load(values + i + 16), half), low);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
    for (uint32_t bit = 0; bit < shift; ++bit) {
      const auto bits = static_cast<uint32_t>(_mm256_movemask_epi8(
          _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(static_cast<int>(7 - bit)))));
      StoreLe(planes + bit * plane_bytes + i / 8, bits);
    }
  }
  if (i < n) ScalarRows().rests(values + i, n - i, shift, planes + i / 8, plane_bytes);
}

TIERCEL_AVX2 size_t Escapes(const uint8_t* symbols, size_t n) {
  const __m256i escape = _mm256_set1_epi8(kEscape);
  size_t count = 0;
  for (size_t i = 0; i < n; i += 32) {
    count += static_cast<size_t>(__builtin_popcount(
        static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(Load(symbols + i), escape)))));
  }
  return count;
}

TIERCEL_AVX2 bool Values(const uint8_t* symbols, size_t n, uint32_t shift, const std::byte* rests,
                         size_t plane_bytes, int16_t* values) {
  const __m256i seven = _mm256_set1_epi16(kLargest);
  const __m256i half = _mm256_set1_epi16(static_cast<int16_t>(HalfOf(shift)));
  const __m256i each = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                                         16384, static_cast<int16_t>(0x8000));
  const __m128i by = _mm_cvtsi32_si128(static_cast<int>(shift));
  __m256i escapes = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i symbol = _mm256_cvtepu8_epi16(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols + i)));
    escapes = _mm256_or_si256(escapes, _mm256_cmpeq_epi16(symbol, _mm256_set1_epi16(kEscape)));
    __m256i value = _mm256_sub_epi16(_mm256_sll_epi16(_mm256_sub_epi16(symbol, seven), by), half);
    for (uint32_t b = 0; b < shift; ++b) {
      const auto bits = LoadLe<uint16_t>(rests + b * plane_bytes + i / 8);
      const __m256i here = _mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(bits)), each);
      value = _mm256_add_epi16(value, _mm256_and_si256(_mm256_cmpeq_epi16(here, each),
                                                       _mm256_set1_epi16(static_cast<int16_t>(1 << b))));
    }
    Store(values + i, value);
  }
  bool some = _mm256_testz_si256(escapes, escapes) == 0;
  if (i < n) {
    some |= ScalarRows().values(symbols + i, n - i, shift, shift == 0 ? rests : rests + i / 8,
                                plane_bytes, values + i);
  }
  return some;
}

TIERCEL_AVX2 bool ByteValues(const uint8_t* symbols, size_t n, int32_t base, uint8_t* bytes) {
  const __m256i zero = _mm256_set1_epi8(static_cast<char>(base - kLargest));
  const __m256i escape = _mm256_set1_epi8(kEscape);
  __m256i escapes = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i some = Load(symbols + i);
    escapes = _mm256_or_si256(escapes, _mm256_cmpeq_epi8(some, escape));
    Store(bytes + i, _mm256_add_epi8(some, zero));
  }
  bool some = _mm256_testz_si256(escapes, escapes) == 0;
  if (i < n) some |= ScalarRows().byte_values(symbols + i, n - i, base, bytes + i);
  return some;
}

}  // namespace

RowFns Avx2Rows() {
  return {Encode, Decode, Magnitude, Symbols, ByteSymbols, BestTable, Rests, Escapes, Values, ByteValues};
}

}  // namespace tiercel::rans

#endif  // __x86_64__
