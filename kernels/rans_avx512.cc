#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/rans_rows.h"

#define TIERCEL_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512bitalg,gfni,avx2,bmi,bmi2,popcnt")))

namespace tiercel::rans {
namespace {

// A stream's lanes: the even ones and the odd ones, so that 32 words are all lanes in order.
struct Lanes {
  __m512i even;
  __m512i odd;
};

TIERCEL_AVX512 inline Lanes LoadLanes(const std::array<uint32_t, kLanes>& states) {
  const __m512i a = _mm512_loadu_si512(states.data());
  const __m512i b = _mm512_loadu_si512(states.data() + 16);
  const __m512i evens =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return {_mm512_permutex2var_epi32(a, evens, b), _mm512_permutex2var_epi32(a, odds, b)};
}
TIERCEL_AVX512 inline void StoreLanes(const Lanes& lanes, std::array<uint32_t, kLanes>& states) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  _mm512_storeu_si512(states.data(), _mm512_permutex2var_epi32(lanes.even, low, lanes.odd));
  _mm512_storeu_si512(states.data() + 16, _mm512_permutex2var_epi32(lanes.even, high, lanes.odd));
}

// 0 to 31.
TIERCEL_AVX512 inline __m512i Ascending() {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_or_si512(evens, _mm512_slli_epi32(_mm512_add_epi32(evens, _mm512_set1_epi32(1)), 16));
}

// Low halves of even and odd to words in order.
TIERCEL_AVX512 inline __m512i Weave(__m512i even, __m512i odd) {
  return _mm512_mask_mov_epi16(even, 0xaaaaaaaau, _mm512_slli_epi32(odd, 16));
}
TIERCEL_AVX512 inline __m512i LowWords(__m512i words) {
  return _mm512_and_si512(words, _mm512_set1_epi32(0xffff));
}
TIERCEL_AVX512 inline __m512i HighWords(__m512i words) { return _mm512_srli_epi32(words, 16); }

// (2 x * reciprocal >> 32) >> level.
TIERCEL_AVX512 inline __m512i Divide(__m512i x, __m512i reciprocal, __m512i level) {
  const __m512i twice = _mm512_add_epi32(x, x);
  const __m512i even = _mm512_mul_epu32(twice, reciprocal);
  const __m512i odd =
      _mm512_mul_epu32(_mm512_srli_epi64(twice, 32), _mm512_srli_epi64(reciprocal, 32));
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  return _mm512_srlv_epi32(high, level);
}

TIERCEL_AVX512 inline __m512i Push(__m512i x, __m512i symbols, __m512i reciprocals,
                                   __m512i packs) {
  const __m512i packed = _mm512_permutexvar_epi32(symbols, packs);
  const __m512i quotient = Divide(x, _mm512_permutexvar_epi32(symbols, reciprocals),
                                  _mm512_srli_epi32(packed, 24));
  const __m512i twelve = _mm512_set1_epi32(kSlots - 1);
  const __m512i rest = _mm512_and_si512(packed, twelve);
  const __m512i start = _mm512_and_si512(_mm512_srli_epi32(packed, 12), twelve);
  return _mm512_add_epi32(_mm512_add_epi32(x, start), _mm512_mullo_epi32(quotient, rest));
}

TIERCEL_AVX512 inline void EncodeFullRow(const LaneTable& table, const uint8_t* symbols,
                                         Lanes& lanes, std::byte*& tail) {
  const __m512i words = _mm512_cvtepu8_epi16(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols)));
  const __m512i frequency =
      _mm512_permutexvar_epi16(words, _mm512_load_si512(table.frequency.data()));
  // x >= f << 19, of words: x >> 19 >= f.
  const __m512i high =
      Weave(_mm512_srli_epi32(lanes.even, 31 - kBits), _mm512_srli_epi32(lanes.odd, 31 - kBits));
  const __mmask32 emit = _mm512_cmpge_epu16_mask(high, frequency);
  const __m512i low = Weave(lanes.even, lanes.odd);
  // The words end at tail, with anything before them: a stream has room for 32 words of each of its rows.
  const auto count = static_cast<uint32_t>(__builtin_popcount(emit));
  const __m512i to_end = _mm512_add_epi16(Ascending(), _mm512_set1_epi16(static_cast<int16_t>(count)));
  _mm512_storeu_si512(tail - 64, _mm512_permutexvar_epi16(to_end, _mm512_maskz_compress_epi16(emit, low)));
  tail -= 2 * count;
  const __m512i spread = _mm512_movm_epi16(emit);
  const __mmask16 even = _mm512_movepi32_mask(_mm512_slli_epi32(spread, 16));
  const __mmask16 odd = _mm512_movepi32_mask(spread);
  const __m512i x = _mm512_mask_srli_epi32(lanes.even, even, lanes.even, 16);
  const __m512i y = _mm512_mask_srli_epi32(lanes.odd, odd, lanes.odd, 16);
  const __m512i reciprocals = _mm512_load_si512(table.reciprocal.data());
  const __m512i packs = _mm512_load_si512(table.packed.data());
  lanes.even = Push(x, LowWords(words), reciprocals, packs);
  lanes.odd = Push(y, HighWords(words), reciprocals, packs);
}

// Full rows [begin, end), both multiples of kStreams.
template <uint32_t kStreams>
TIERCEL_AVX512 void EncodeRun(const Tables& tables, const Row* rows, size_t begin, size_t end,
                              const uint8_t* symbols, States& states, std::byte** tail) {
  Lanes lanes[kStreams];
  std::byte* to[kStreams];
  for (uint32_t s = 0; s < kStreams; ++s) {
    lanes[s] = LoadLanes(states[s]);
    to[s] = tail[s];
  }
  for (size_t r = end; r > begin;) {
    r -= kStreams;
    for (uint32_t s = 0; s < kStreams; ++s) {
      EncodeFullRow(tables.lane[rows[r + s].table], symbols + kLanes * (r + s), lanes[s], to[s]);
    }
  }
  for (uint32_t s = 0; s < kStreams; ++s) {
    StoreLanes(lanes[s], states[s]);
    tail[s] = to[s];
  }
}

void EncodeAny(const Tables& tables, const Row* rows, size_t begin, size_t end, uint32_t streams,
               const uint8_t* symbols, States& states, std::byte** tail) {
  switch (streams) {
    case 1:
      return EncodeRun<1>(tables, rows, begin, end, symbols, states, tail);
    case 2:
      return EncodeRun<2>(tables, rows, begin, end, symbols, states, tail);
    case 4:
      return EncodeRun<4>(tables, rows, begin, end, symbols, states, tail);
    default:  // Two halves would each need every other row; 8 run as they are.
      return EncodeRun<8>(tables, rows, begin, end, symbols, states, tail);
  }
}

void Encode(const Tables& tables, const Row* rows, size_t n, uint32_t streams,
            const uint8_t* symbols, States& states, std::byte** tail) {
  size_t r = n;
  while (r > 0) {
    // The longest run of full rows that ends here and covers whole rounds of the streams.
    size_t begin = r;
    if (r % streams == 0) {
      while (begin > 0 && rows[begin - 1].lanes == kLanes) --begin;
      begin = (begin + streams - 1) / streams * streams;
    }
    if (begin < r) {
      EncodeAny(tables, rows, begin, r, streams, symbols, states, tail);
      r = begin;
      continue;
    }
    --r;
    EncodeRow(tables.lane[rows[r].table], rows[r].lanes, symbols + kLanes * r,
              states[r % streams], tail[r % streams]);
  }
}

TIERCEL_AVX512 inline void DecodeFullRow(const LaneTable& table, uint8_t* symbols, Lanes& lanes,
                                         const std::byte*& at) {
  const __m512i twelve = _mm512_set1_epi16(kSlots - 1);
  const __m512i slot = _mm512_and_si512(Weave(lanes.even, lanes.odd), twelve);
  const auto split = [&](int i) TIERCEL_AVX512 {
    return _mm512_set1_epi32(static_cast<int>(table.split[static_cast<size_t>(i)]));
  };
  __m512i symbol = _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(slot, split(0)),
                                          _mm512_set1_epi16(4));
  symbol = _mm512_mask_mov_epi16(symbol, _mm512_cmpge_epu16_mask(slot, split(1)),
                                 _mm512_set1_epi16(8));
  symbol = _mm512_mask_mov_epi16(symbol, _mm512_cmpge_epu16_mask(slot, split(2)),
                                 _mm512_set1_epi16(12));
  const auto past = [&](int k) TIERCEL_AVX512 {
    return _mm512_cmpge_epu16_mask(
        slot, _mm512_permutexvar_epi16(symbol, _mm512_load_si512(table.next[k].data())));
  };
  const __mmask32 one = past(0);
  const __mmask32 two = past(1);
  const __mmask32 three = past(2);
  const __m512i base = symbol;
  symbol = _mm512_mask_add_epi16(symbol, one, base, _mm512_set1_epi16(1));
  symbol = _mm512_mask_add_epi16(symbol, two, base, _mm512_set1_epi16(2));
  symbol = _mm512_mask_add_epi16(symbol, three, base, _mm512_set1_epi16(3));
  const __m512i frequency =
      _mm512_permutexvar_epi16(symbol, _mm512_load_si512(table.frequency.data()));
  const __m512i within = _mm512_sub_epi16(
      slot, _mm512_permutexvar_epi16(symbol, _mm512_load_si512(table.start.data())));
  const __m512i even = _mm512_add_epi32(
      _mm512_mullo_epi32(LowWords(frequency), _mm512_srli_epi32(lanes.even, kBits)),
      LowWords(within));
  const __m512i odd = _mm512_add_epi32(
      _mm512_mullo_epi32(HighWords(frequency), _mm512_srli_epi32(lanes.odd, kBits)),
      HighWords(within));
  const __m512i high = Weave(_mm512_srli_epi32(even, 15), _mm512_srli_epi32(odd, 15));
  const __mmask32 refill = _mm512_testn_epi16_mask(high, high);
  const __m512i low = _mm512_set1_epi32(kLow);
  const __mmask16 refill_even = _mm512_cmplt_epu32_mask(even, low);
  const __mmask16 refill_odd = _mm512_cmplt_epu32_mask(odd, low);
  const __m512i words = _mm512_maskz_expand_epi16(refill, _mm512_loadu_si512(at));
  at += 2 * __builtin_popcount(refill);
  // Where no word is due, expansion has left 0; the shift alone is masked.
  lanes.even = _mm512_or_si512(_mm512_mask_slli_epi32(even, refill_even, even, 16),
                               LowWords(words));
  lanes.odd = _mm512_or_si512(_mm512_mask_slli_epi32(odd, refill_odd, odd, 16), HighWords(words));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols), _mm512_cvtepi16_epi8(symbol));
}

template <uint32_t kStreams>
TIERCEL_AVX512 bool DecodeRun(const Tables& tables, const Row* rows, size_t begin, size_t end,
                              uint8_t* symbols, States& states, const std::byte** at,
                              const std::byte* limit) {
  Lanes lanes[kStreams];
  const std::byte* from[kStreams];
  for (uint32_t s = 0; s < kStreams; ++s) {
    lanes[s] = LoadLanes(states[s]);
    from[s] = at[s];
  }
  bool good = true;
  for (size_t r = begin; r < end; r += kStreams) {
    for (uint32_t s = 0; s < kStreams; ++s) good &= from[s] <= limit;
    if (!good) [[unlikely]] break;
    for (uint32_t s = 0; s < kStreams; ++s) {
      DecodeFullRow(tables.lane[rows[r + s].table], symbols + kLanes * (r + s), lanes[s],
                    from[s]);
    }
  }
  for (uint32_t s = 0; s < kStreams; ++s) {
    StoreLanes(lanes[s], states[s]);
    at[s] = from[s];
  }
  return good;
}

bool DecodeAny(const Tables& tables, const Row* rows, size_t begin, size_t end, uint32_t streams,
               uint8_t* symbols, States& states, const std::byte** at, const std::byte* limit) {
  switch (streams) {
    case 1:
      return DecodeRun<1>(tables, rows, begin, end, symbols, states, at, limit);
    case 2:
      return DecodeRun<2>(tables, rows, begin, end, symbols, states, at, limit);
    case 4:
      return DecodeRun<4>(tables, rows, begin, end, symbols, states, at, limit);
    default:
      return DecodeRun<8>(tables, rows, begin, end, symbols, states, at, limit);
  }
}

bool Decode(const Tables& tables, const Row* rows, size_t n, uint32_t streams, uint8_t* symbols,
            States& states, const std::byte** at, const std::byte* limit) {
  size_t r = 0;
  while (r < n) {
    size_t end = r;
    if (r % streams == 0) {
      while (end < n && rows[end].lanes == kLanes) ++end;
      end = end / streams * streams;
    }
    if (r < end) {
      if (!DecodeAny(tables, rows, r, end, streams, symbols, states, at, limit)) return false;
      r = end;
      continue;
    }
    if (at[r % streams] > limit) return false;
    DecodeRow(tables.lane[rows[r].table], rows[r].lanes, symbols + kLanes * r, states[r % streams],
              at[r % streams]);
    ++r;
  }
  return true;
}

TIERCEL_AVX512 inline __mmask32 First(size_t n) {
  return n >= 32 ? ~0u : _bzhi_u32(~0u, static_cast<uint32_t>(n));
}
TIERCEL_AVX512 inline __mmask64 FirstOf64(size_t n) {
  return n >= 64 ? ~uint64_t{0} : _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(n));
}
// Words up to 255 as bytes.
TIERCEL_AVX512 inline __m512i Pack(__m512i a, __m512i b) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(a, b));
}

TIERCEL_AVX512 uint64_t Magnitude(const int16_t* values, size_t n) {
  __m512i sum = _mm512_setzero_si512();
  for (size_t i = 0; i < n; i += 32) {
    const __m512i v = _mm512_abs_epi16(_mm512_maskz_loadu_epi16(First(n - i), values + i));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(v, _mm512_set1_epi16(1)));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi32(sum));  // At most 4096 values: below 2^31.
}

// Counts symbols: a symbol is one bit of a byte, of eight such bytes the bits are turned about and counted.
struct Counts {
  __m512i below_8;
  __m512i from_8;

  TIERCEL_AVX512 void Clear() { below_8 = from_8 = _mm512_setzero_si512(); }
  TIERCEL_AVX512 void Add(__m512i symbols, __mmask64 valid) {
    const __m512i bit = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201));  // Byte i: bit i.
    const __m512i of_8 = _mm512_xor_si512(symbols, _mm512_set1_epi8(8));
    // A shuffle gives 0 where bit 7 of an index is set.
    const __m512i low = _mm512_maskz_shuffle_epi8(valid, bit, _mm512_add_epi8(symbols, _mm512_set1_epi8(0x78)));
    const __m512i high = _mm512_maskz_shuffle_epi8(valid, bit, _mm512_add_epi8(of_8, _mm512_set1_epi8(0x78)));
    below_8 = _mm512_add_epi8(below_8, _mm512_popcnt_epi8(_mm512_gf2p8affine_epi64_epi8(bit, low, 0)));
    from_8 = _mm512_add_epi8(from_8, _mm512_popcnt_epi8(_mm512_gf2p8affine_epi64_epi8(bit, high, 0)));
  }
  // Of at most 31 calls of Add.
  TIERCEL_AVX512 void MoveTo(Histogram& histogram) {
    // Byte s of each word counts symbol s (or 8 + s): the eight of one symbol side by side, and added.
    const __m512i rows = _mm512_setr_epi64(0x3830282018100800, 0x3931292119110901, 0x3a322a221a120a02, 0x3b332b231b130b03,
                                           0x3c342c241c140c04, 0x3d352d251d150d05, 0x3e362e261e160e06, 0x3f372f271f170f07);
    const __m512i zero = _mm512_setzero_si512();
    const __m128i low = _mm512_cvtepi64_epi16(_mm512_sad_epu8(_mm512_permutexvar_epi8(rows, below_8), zero));
    const __m128i high = _mm512_cvtepi64_epi16(_mm512_sad_epu8(_mm512_permutexvar_epi8(rows, from_8), zero));
    auto* const to = reinterpret_cast<__m256i*>(histogram.count.data());
    _mm256_store_si256(to, _mm256_add_epi16(_mm256_load_si256(to), _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1)));
    Clear();
  }
};

// Puts n symbols, 64 at a time: symbols_at(i, valid) makes those of values i on, of which valid are there.
template <class SymbolsAt>
TIERCEL_AVX512 inline void PutSymbols(size_t n, uint8_t* symbols, Histogram& histogram, SymbolsAt&& symbols_at) {
  Counts counts;
  counts.Clear();
  for (size_t i = 0; i < n; i += 64) {
    if (n - i >= 64) {  // Masked stores are slow on some CPUs.
      const __m512i made = symbols_at(i, ~uint64_t{0});
      _mm512_storeu_si512(symbols + i, made);
      counts.Add(made, ~uint64_t{0});
    } else {
      const uint64_t valid = FirstOf64(n - i);
      const __m512i made = symbols_at(i, valid);
      _mm512_mask_storeu_epi8(symbols + i, valid, made);
      counts.Add(made, valid);
    }
    if (i % 1024 == 1024 - 64) counts.MoveTo(histogram);
  }
  counts.MoveTo(histogram);
}

TIERCEL_AVX512 void Symbols(const int16_t* values, size_t n, uint32_t shift, uint8_t* symbols,
                            Histogram& histogram) {
  const __m512i offset = _mm512_set1_epi16(static_cast<int16_t>(HalfOf(shift)));
  const __m128i by = _mm_cvtsi32_si128(static_cast<int>(shift));
  const __m512i seven = _mm512_set1_epi16(kLargest);
  const __m512i escape = _mm512_set1_epi16(kEscape);
  const auto reduce = [&](const int16_t* from, __mmask32 some) TIERCEL_AVX512 {
    const __m512i v = some == ~0u ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(some, from);
    const __m512i reduced = _mm512_sra_epi16(_mm512_add_epi16(v, offset), by);
    return _mm512_min_epu16(_mm512_add_epi16(reduced, seven), escape);
  };
  PutSymbols(n, symbols, histogram, [&](size_t i, uint64_t valid) TIERCEL_AVX512 {
    const __m512i a = reduce(values + i, static_cast<__mmask32>(valid));
    const __m512i b = reduce(values + i + 32, static_cast<__mmask32>(valid >> 32));
    return Pack(a, b);
  });
}

TIERCEL_AVX512 void ByteSymbols(const uint8_t* bytes, size_t n, int32_t base, uint8_t* symbols, Histogram& histogram) {
  // Symbol 0 is the byte base - 7: up by as much as that is below 0, or down.
  const int32_t zero = base - kLargest;
  const __m512i up = _mm512_set1_epi8(static_cast<char>(zero < 0 ? -zero : 0));
  const __m512i down = _mm512_set1_epi8(static_cast<char>(zero < 0 ? 0 : zero));
  const __m512i escape = _mm512_set1_epi8(kEscape);
  PutSymbols(n, symbols, histogram, [&](size_t i, uint64_t valid) TIERCEL_AVX512 {
    const __m512i v = valid == ~uint64_t{0} ? _mm512_loadu_si512(bytes + i) : _mm512_maskz_loadu_epi8(valid, bytes + i);
    const __m512i raised = _mm512_adds_epu8(v, up);
    const __mmask64 below = _mm512_cmplt_epu8_mask(raised, down);
    return _mm512_mask_mov_epi8(_mm512_min_epu8(_mm512_sub_epi8(raised, down), escape), below, escape);
  });
}

TIERCEL_AVX512 uint32_t BestTable(const CostTable& costs, const Histogram& histogram,
                                  uint32_t first) {
  __m512i low = _mm512_setzero_si512();
  __m512i high = _mm512_setzero_si512();
  for (uint32_t p = 0; p < 8; ++p) {
    int32_t two;
    __builtin_memcpy(&two, &histogram.count[2 * p], 4);
    const __m512i counts = _mm512_set1_epi32(two);
    low = _mm512_add_epi32(low, _mm512_madd_epi16(counts, _mm512_load_si512(&costs.pair[p][0])));
    high = _mm512_add_epi32(high, _mm512_madd_epi16(counts, _mm512_load_si512(&costs.pair[p][16])));
  }
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // Cost and table in one number: at most 4096 * 5120 < 2^25 of cost, 32 tables.
  low = _mm512_or_si512(_mm512_slli_epi32(low, 5), index);
  high = _mm512_or_si512(_mm512_slli_epi32(high, 5),
                         _mm512_add_epi32(index, _mm512_set1_epi32(16)));
  const uint32_t barred = ~(~0u << first);
  const __m512i most = _mm512_set1_epi32(-1);
  low = _mm512_mask_mov_epi32(low, static_cast<__mmask16>(barred), most);
  high = _mm512_mask_mov_epi32(high, static_cast<__mmask16>(barred >> 16), most);
  return _mm512_reduce_min_epu32(_mm512_min_epu32(low, high)) & 31;
}

TIERCEL_AVX512 void Rests(const int16_t* values, size_t n, uint32_t shift, std::byte* planes,
                          size_t plane_bytes) {
  const __m512i half = _mm512_set1_epi16(static_cast<int16_t>(HalfOf(shift)));
  const __m512i low = _mm512_set1_epi16(0xff);
  for (size_t i = 0; i < n; i += 64) {
    const size_t left = n - i;
    const __m512i a = _mm512_maskz_loadu_epi16(First(left), values + i);
    const __m512i b = _mm512_maskz_loadu_epi16(left > 32 ? First(left - 32) : 0, values + i + 32);
    const __m512i bytes = Pack(_mm512_and_si512(_mm512_add_epi16(a, half), low), _mm512_and_si512(_mm512_add_epi16(b, half), low));
    const uint64_t valid = FirstOf64(left);
    for (uint32_t bit = 0; bit < shift; ++bit) {
      const uint64_t bits = valid & _mm512_movepi8_mask(_mm512_slli_epi16(bytes, 7 - bit));
      std::byte* const to = planes + bit * plane_bytes + i / 8;
      if (left >= 64) {
        __builtin_memcpy(to, &bits, 8);
      } else {
        for (size_t k = 0; k < (left + 7) / 8; ++k) to[k] = static_cast<std::byte>(bits >> (8 * k));
      }
    }
  }
}

TIERCEL_AVX512 size_t Escapes(const uint8_t* symbols, size_t n) {
  const __m256i escape = _mm256_set1_epi8(kEscape);
  size_t count = 0;
  for (size_t i = 0; i < n; i += 32) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols + i));
    count += static_cast<size_t>(__builtin_popcount(_mm256_cmpeq_epi8_mask(some, escape)));
  }
  return count;
}

// 32 symbols to values; bits_of(b): bit b of the rest of each.
template <uint32_t kShift, class BitsOf>
TIERCEL_AVX512 inline __m512i ValuesFrom(__m512i symbols, BitsOf&& bits_of) {
  __m512i value = _mm512_slli_epi16(_mm512_sub_epi16(symbols, _mm512_set1_epi16(kLargest)), kShift);
  value = _mm512_sub_epi16(value, _mm512_set1_epi16(static_cast<int16_t>(HalfOf(kShift))));
#pragma GCC unroll 8
  for (uint32_t b = 0; b < kShift; ++b) {
    value = _mm512_mask_add_epi16(value, bits_of(b), value, _mm512_set1_epi16(static_cast<int16_t>(1 << b)));
  }
  return value;
}

template <uint32_t kShift>
TIERCEL_AVX512 bool ValuesOfShift(const uint8_t* symbols, size_t n, const std::byte* rests, size_t plane_bytes,
                                  int16_t* values) {
  const __m256i escape = _mm256_set1_epi8(kEscape);
  __mmask32 escapes = 0;
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols + i));
    escapes |= _mm256_cmpeq_epi8_mask(bytes, escape);
    _mm512_storeu_si512(values + i, ValuesFrom<kShift>(_mm512_cvtepu8_epi16(bytes), [&](uint32_t b) TIERCEL_AVX512 {
      uint32_t bits;
      __builtin_memcpy(&bits, rests + b * plane_bytes + i / 8, 4);
      return bits;
    }));
  }
  if (i < n) {
    const __mmask32 some = First(n - i);
    const __m256i bytes = _mm256_maskz_loadu_epi8(some, symbols + i);
    escapes |= _mm256_cmpeq_epi8_mask(bytes, escape);
    const __m512i last = ValuesFrom<kShift>(_mm512_cvtepu8_epi16(bytes), [&](uint32_t b) TIERCEL_AVX512 {
      uint32_t bits = 0;
      __builtin_memcpy(&bits, rests + b * plane_bytes + i / 8, (n - i + 7) / 8);
      return bits;
    });
    _mm512_mask_storeu_epi16(values + i, some, last);
  }
  return escapes != 0;
}

TIERCEL_AVX512 bool Values(const uint8_t* symbols, size_t n, uint32_t shift, const std::byte* rests,
                           size_t plane_bytes, int16_t* values) {
  static constexpr decltype(&ValuesOfShift<0>) kOfShift[kMaxShift + 1] = {
      ValuesOfShift<0>, ValuesOfShift<1>, ValuesOfShift<2>, ValuesOfShift<3>,
      ValuesOfShift<4>, ValuesOfShift<5>, ValuesOfShift<6>, ValuesOfShift<7>};
  return kOfShift[shift](symbols, n, rests, plane_bytes, values);
}

TIERCEL_AVX512 bool ByteValues(const uint8_t* symbols, size_t n, int32_t base, uint8_t* bytes) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(base - kLargest));
  const __m512i escape = _mm512_set1_epi8(kEscape);
  __mmask64 escapes = 0;
  size_t i = 0;
  for (; i + 64 <= n; i += 64) {
    const __m512i some = _mm512_loadu_si512(symbols + i);
    escapes |= _mm512_cmpeq_epi8_mask(some, escape);
    _mm512_storeu_si512(bytes + i, _mm512_add_epi8(some, zero));
  }
  if (i < n) {
    const __mmask64 valid = FirstOf64(n - i);
    const __m512i some = _mm512_maskz_loadu_epi8(valid, symbols + i);
    escapes |= _mm512_cmpeq_epi8_mask(some, escape);
    _mm512_mask_storeu_epi8(bytes + i, valid, _mm512_add_epi8(some, zero));
  }
  return escapes != 0;
}

}  // namespace

bool HasAvx512Rows() {
  static const bool has =
      __builtin_cpu_supports("avx512vbmi2") != 0 && __builtin_cpu_supports("avx512vbmi") != 0 &&
      __builtin_cpu_supports("avx512bitalg") != 0 && __builtin_cpu_supports("gfni") != 0;
  return has;
}
RowFns Avx512Rows() {
  return {Encode, Decode, Magnitude, Symbols, ByteSymbols, BestTable, Rests, Escapes, Values, ByteValues};
}

}  // namespace tiercel::rans

#endif  // __x86_64__
