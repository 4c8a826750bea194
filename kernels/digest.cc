#include "kernels/digest.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tiercel {
namespace {

uint64_t WordsScalar(const std::byte* data, size_t words, uint64_t first) {
  uint64_t sum = 0;
  for (size_t i = 0; i < words; ++i) sum += DigestTerm(LoadLe<uint64_t>(data + 8 * i), first + i);
  return sum;
}

#if defined(__x86_64__)
constexpr uint64_t kMul1 = 0xbf58476d1ce4e5b9ULL;
constexpr uint64_t kMul2 = 0x94d049bb133111ebULL;

#define TIERCEL_AVX2 __attribute__((target("avx2")))
#define TIERCEL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

TIERCEL_AVX2 inline __m256i Wide(uint64_t v) {
  return _mm256_set1_epi64x(static_cast<long long>(v));
}

TIERCEL_AVX2 inline __m256i Mul64(__m256i a, __m256i b, __m256i b_high) {
  const __m256i cross =
      _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), b), _mm256_mul_epu32(a, b_high));
  return _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64(cross, 32));
}

TIERCEL_AVX2 uint64_t WordsAvx2(const std::byte* data, size_t words, uint64_t first) {
  const __m256i m1 = Wide(kMul1);
  const __m256i m1h = Wide(kMul1 >> 32);
  const __m256i m2 = Wide(kMul2);
  const __m256i m2h = Wide(kMul2 >> 32);
  const __m256i step = Wide(4 * kDigestPhi);
  __m256i key = _mm256_set_epi64x(static_cast<long long>((first + 4) * kDigestPhi),
                                  static_cast<long long>((first + 3) * kDigestPhi),
                                  static_cast<long long>((first + 2) * kDigestPhi),
                                  static_cast<long long>((first + 1) * kDigestPhi));
  __m256i sum = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 4 <= words; i += 4) {
    __m256i z = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 8 * i));
    z = _mm256_xor_si256(z, key);
    key = _mm256_add_epi64(key, step);
    z = Mul64(_mm256_xor_si256(z, _mm256_srli_epi64(z, 30)), m1, m1h);
    z = Mul64(_mm256_xor_si256(z, _mm256_srli_epi64(z, 27)), m2, m2h);
    sum = _mm256_add_epi64(sum, _mm256_xor_si256(z, _mm256_srli_epi64(z, 31)));
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] +
         WordsScalar(data + 8 * i, words - i, first + i);
}

TIERCEL_AVX512 uint64_t WordsAvx512(const std::byte* data, size_t words, uint64_t first) {
  const __m512i m1 = _mm512_set1_epi64(static_cast<long long>(kMul1));
  const __m512i m2 = _mm512_set1_epi64(static_cast<long long>(kMul2));
  const __m512i phi = _mm512_set1_epi64(static_cast<long long>(kDigestPhi));
  const __m512i step = _mm512_set1_epi64(static_cast<long long>(16 * kDigestPhi));
  const __m512i lane = _mm512_set_epi64(8, 7, 6, 5, 4, 3, 2, 1);
  __m512i key0 = _mm512_mullo_epi64(
      _mm512_add_epi64(lane, _mm512_set1_epi64(static_cast<long long>(first))), phi);
  __m512i key1 =
      _mm512_add_epi64(key0, _mm512_set1_epi64(static_cast<long long>(8 * kDigestPhi)));
  __m512i sum0 = _mm512_setzero_si512();
  __m512i sum1 = _mm512_setzero_si512();
  size_t i = 0;
  for (; i + 16 <= words; i += 16) {
    __m512i y = _mm512_xor_si512(_mm512_loadu_si512(data + 8 * i), key0);
    __m512i z = _mm512_xor_si512(_mm512_loadu_si512(data + 8 * i + 64), key1);
    key0 = _mm512_add_epi64(key0, step);
    key1 = _mm512_add_epi64(key1, step);
    y = _mm512_mullo_epi64(_mm512_xor_si512(y, _mm512_srli_epi64(y, 30)), m1);
    z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)), m1);
    y = _mm512_mullo_epi64(_mm512_xor_si512(y, _mm512_srli_epi64(y, 27)), m2);
    z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)), m2);
    sum0 = _mm512_add_epi64(sum0, _mm512_xor_si512(y, _mm512_srli_epi64(y, 31)));
    sum1 = _mm512_add_epi64(sum1, _mm512_xor_si512(z, _mm512_srli_epi64(z, 31)));
  }
  // Summed here: the header's reduction adds signed lanes, which may overflow.
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(sum0, sum1));
  uint64_t sum = WordsScalar(data + 8 * i, words - i, first + i);
  for (const uint64_t lane_sum : lanes) sum += lane_sum;
  return sum;
}
#endif

uint64_t Words(const std::byte* data, size_t words, uint64_t first) {
#if defined(__x86_64__)
  switch (ActiveKernelIsa()) {
    case KernelIsa::kAvx512:
      return WordsAvx512(data, words, first);
    case KernelIsa::kAvx2:
      return WordsAvx2(data, words, first);
    case KernelIsa::kScalar:
      break;
  }
#endif
  return WordsScalar(data, words, first);
}

}  // namespace

uint64_t DecodedDigest(ByteSpan bytes) {
  DigestStream stream;
  stream.Add(bytes);
  return stream.Finish();
}

void DigestStream::Add(ByteSpan bytes) {
  TIERCEL_CHECK(size_ % 8 == 0 || bytes.empty());
  const size_t words = bytes.size() / 8;
  const uint64_t first = size_ / 8;
  sum_ += Words(bytes.data(), words, first);
  if (const size_t rest = bytes.size() % 8; rest != 0) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + 8 * words, rest);
    sum_ += DigestTerm(word, first + words);
  }
  size_ += bytes.size();
}

void DigestStream::Copy(ByteSpan bytes, std::byte* out) {
  constexpr size_t kStep = 16 << 10;
  for (size_t at = 0; at < bytes.size(); at += kStep) {
    const size_t size = std::min(kStep, bytes.size() - at);
    std::memcpy(out + at, bytes.data() + at, size);
    Add({out + at, size});
  }
}

}  // namespace tiercel
