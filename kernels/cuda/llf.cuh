// LLF on a GPU: the same segments as kernels/llf.cc, many in one launch. Encoding runs the first four in
// this order; nothing goes back to the host in between.
//
//   LlfBase      grid (1, segments), one warp, 512 bytes shared: where the codebook begins
//   LlfPlanes    grid (any, segments): planes, digest, and how many escapes each group has
//   LlfPlace     grid (1, segments), one warp: where each group's escapes go; the header
//   LlfEscapes   grid (any, segments): the escapes
//   LlfDecode    grid (any, segments): a warp takes two groups of 64 values at a time; digest
//
// Blocks are whole warps. Errors: a malformed segment sets `failed`; what it decodes to is then not
// specified.
#ifndef TIERCEL_KERNELS_CUDA_LLF_CUH_
#define TIERCEL_KERNELS_CUDA_LLF_CUH_

#include "kernels/cuda/segment.cuh"
#include "kernels/llf_core.h"

namespace tiercel::gpu {

inline constexpr uint8_t kLlfCodec = 1;
inline constexpr uint8_t kFp16Dtype = 2;

template <bool kFp16>
struct LlfPlan {
  uint64_t groups, low_at, codes_at, bits_at, escapes_at;
  TIERCEL_DEVICE explicit LlfPlan(uint64_t values)
      : groups((values + llf::kGroup - 1) / llf::kGroup),
        low_at(llf::kHeaderBytes),
        codes_at(low_at + groups * llf::kLowBytes),
        bits_at(codes_at + groups * llf::kCodeBytes),
        escapes_at(bits_at + (kFp16 ? groups * llf::kBitBytes : 0)) {}
};

TIERCEL_DEVICE uint32_t* LlfGroups(const Segment& job) { return reinterpret_cast<uint32_t*>(job.scratch); }

template <bool kFp16>
TIERCEL_DEVICE uint32_t LlfExponent(uint16_t value) {
  return kFp16 ? llf::Fp16Exponent(value) : llf::Bf16Exponent(value);
}

template <bool kFp16>
TIERCEL_DEVICE void LlfDecodeAs(Segment& job) {
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t escapes = job.bytes < plan.escapes_at ? 0 : LoadU32(job.encoded + 8);
  if (job.bytes < plan.escapes_at || job.encoded[0] != 1 || job.encoded[1] != job.dtype || job.params != 0 || LoadU32(job.encoded + 4) != job.values ||
      job.bytes != plan.escapes_at + uint64_t{4} * escapes) {
    if (Lane() == 0) AtomicAdd(&job.failed, 1);
    return;  // The whole grid of this job.
  }
  const uint8_t* codebook = job.encoded + 16;
  const uint8_t* list = job.encoded + plan.escapes_at;
  const uint32_t lane = Lane();
  uint64_t digest = 0;
  for (uint64_t first = 2 * WarpOfGrid(); first < plan.groups; first += 2 * WarpsOfGrid()) {
    uint32_t pair[2] = {0, 0};  // Of each group, the lane's value of the first half and, above it, of the second.
    for (uint32_t which = 0; which < 2 && first + which < plan.groups; ++which) {
      const uint64_t group = first + which;
      const uint32_t code = job.encoded[plan.codes_at + group * llf::kCodeBytes + lane];
      const uint8_t* low = job.encoded + plan.low_at + group * llf::kLowBytes;
      const uint8_t* bits = job.encoded + plan.bits_at + group * llf::kBitBytes;
      uint32_t value[2];
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t mine = half == 0 ? code & 15 : code >> 4;
        if (kFp16) {
          uint32_t bit[3];
          for (uint32_t p = 0; p < 3; ++p) bit[p] = LoadU32(bits + 8 * p + 4 * half) >> lane & 1u;
          value[half] = llf::Fp16Join(low[half * 32 + lane], codebook[mine], bit[0], bit[1], bit[2]);
        } else {
          value[half] = llf::Bf16Join(low[half * 32 + lane], codebook[mine]);
        }
      }
      if (escapes != 0) {  // Whatever the codes are: the list alone says where.
        uint32_t at = 0;
        for (uint32_t high = escapes; at < high;) {
          const uint32_t middle = at + (high - at) / 2;
          if (llf::EscapePosition(LoadU32(list + uint64_t{4} * middle)) < group * llf::kGroup) {
            at = middle + 1;
          } else {
            high = middle;
          }
        }
        for (; at < escapes; ++at) {
          const uint32_t escape = LoadU32(list + uint64_t{4} * at);
          const uint64_t index = llf::EscapePosition(escape) - group * llf::kGroup;
          if (index >= llf::kGroup) break;
          if (index % 32 != lane) continue;
          const uint32_t exponent = llf::EscapeExponent(escape);
          value[index / 32] = kFp16 ? (value[index / 32] & ~0x7c00u) | (exponent & 31) << 10
                                    : (value[index / 32] & ~0x7f80u) | exponent << 7;
        }
      }
      pair[which] = value[0] | value[1] << 16;
    }
    // The lane's word of the two groups: its four values stand in four lanes' halves.
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t from = 4 * (lane % 8) + i;
      const uint32_t even = Shuffle(pair[0], from);
      const uint32_t odd = Shuffle(pair[1], from);
      const uint32_t both = lane < 16 ? even : odd;
      bytes |= static_cast<uint64_t>(lane / 8 % 2 == 0 ? both & 0xffffu : both >> 16) << (16 * i);
    }
    const auto word = static_cast<uint32_t>(16 * first + lane);
    if (4 * uint64_t{word} < job.values) {
      if (job.values - 4 * word < 4) bytes &= (uint64_t{1} << (16 * (job.values - 4 * word))) - 1;
      StoreWord(job, word, bytes);
      digest += DigestTerm(bytes, word);
    }
  }
  AddDigest(digest, &job.digest);
}

// As ChooseBase of kernels/llf.cc. Shared memory: 512 bytes.
template <bool kFp16>
TIERCEL_DEVICE void LlfBaseAs(Segment& job) {
  constexpr uint32_t kSamples = 512;
  constexpr uint32_t kExponents = kFp16 ? 32 : 256;
  uint8_t* const seen = Shared<uint8_t>();
  const uint32_t lane = Lane();
  const uint32_t samples = job.values < kSamples ? job.values : kSamples;
  for (uint32_t k = lane; k < samples; k += 32) {
    const uint64_t index = job.values <= kSamples ? k : (uint64_t{static_cast<uint32_t>(k * 0x9e3779b1u)} * job.values) >> 32;
    seen[k] = static_cast<uint8_t>(LlfExponent<kFp16>(*ValueAt<uint16_t>(job, static_cast<uint32_t>(index))));
  }
  SyncWarp();
  // How many lie in the window from each base on: the lane's bases are lane, lane + 32, ...
  uint32_t best = 0, lowest = 0;
  for (uint32_t base = 1 + lane; base <= kExponents - llf::kWindow; base += 32) {
    uint32_t covered = 0;
    for (uint32_t k = 0; k < samples; ++k) covered += static_cast<uint32_t>(seen[k] - base) < llf::kWindow ? 1 : 0;
    if (lowest == 0 || covered > best) {
      best = covered;
      lowest = base;
    }
  }
  for (uint32_t from = 1; from < 32; from *= 2) {
    const uint32_t other = Shuffle(best, (lane + from) % 32);
    const uint32_t where = Shuffle(lowest, (lane + from) % 32);
    if (where != 0 && (lowest == 0 || other > best || (other == best && where < lowest))) {
      best = other;
      lowest = where;
    }
  }
  // One step above the lowest, where that covers as much.
  if (lane == 0) {
    uint32_t base = lowest;
    if (lowest + 1 <= kExponents - llf::kWindow) {
      uint32_t covered = 0;
      for (uint32_t k = 0; k < samples; ++k) covered += static_cast<uint32_t>(seen[k] - (lowest + 1)) < llf::kWindow ? 1 : 0;
      if (covered == best) base = lowest + 1;
    }
    LlfGroups(job)[LlfPlan<kFp16>(job.values).groups] = base;
  }
}

template <bool kFp16>
TIERCEL_DEVICE void LlfPlanesAs(Segment& job) {
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = LlfGroups(job)[plan.groups];
  const bool fits = plan.escapes_at <= job.limit;
  const uint32_t lane = Lane();
  uint64_t digest = 0;
  for (uint64_t first = 2 * WarpOfGrid(); first < plan.groups; first += 2 * WarpsOfGrid()) {
    // The lane's word of the two groups.
    const auto word = static_cast<uint32_t>(16 * first + lane);
    const uint64_t bytes = LoadWord(job, word);
    if (4 * uint64_t{word} < job.values) digest += DigestTerm(bytes, word);
    for (uint32_t which = 0; which < 2 && first + which < plan.groups; ++which) {
      const uint64_t group = first + which;
      uint32_t codes = 0, escapes = 0;
      for (uint32_t half = 0; half < 2; ++half) {
        const auto value = static_cast<uint16_t>(Shuffle(bytes, 16 * which + 8 * half + lane / 4) >> (16 * (lane % 4)));
        const uint8_t code = llf::ExponentCode(LlfExponent<kFp16>(value), base);
        codes |= static_cast<uint32_t>(code) << (4 * half);
        escapes += CountOnes(Ballot(code == llf::kCodeEscape));
        uint32_t plane[3] = {0, 0, 0};
        if (kFp16) {
          plane[0] = Ballot((value >> 15 & 1) != 0);
          plane[1] = Ballot((value >> 9 & 1) != 0);
          plane[2] = Ballot((value >> 8 & 1) != 0);
        }
        if (!fits) continue;
        job.encoded[plan.low_at + group * llf::kLowBytes + half * 32 + lane] = kFp16 ? llf::Fp16Low(value) : llf::Bf16Low(value);
        if (kFp16 && lane < 3) StoreU32(job.encoded + plan.bits_at + group * llf::kBitBytes + 8 * lane + 4 * half, plane[lane]);
      }
      if (fits) job.encoded[plan.codes_at + group * llf::kCodeBytes + lane] = static_cast<uint8_t>(codes);
      if (lane == 0) LlfGroups(job)[group] = escapes;
    }
  }
  AddDigest(digest, &job.digest);
}

template <bool kFp16>
TIERCEL_DEVICE void LlfPlaceAs(Segment& job) {
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = LlfGroups(job)[plan.groups];
  const uint32_t lane = Lane();
  uint32_t before = 0;  // Escapes of the groups before these 32.
  for (uint64_t first = 0; first < plan.groups; first += 32) {
    const uint32_t mine = first + lane < plan.groups ? LlfGroups(job)[first + lane] : 0;
    uint32_t sum = mine;
    for (uint32_t step = 1; step < 32; step *= 2) {
      const uint32_t other = Shuffle(sum, (lane + 32 - step) % 32);
      if (lane >= step) sum += other;
    }
    if (first + lane < plan.groups) LlfGroups(job)[first + lane] = before + sum - mine;
    before += Shuffle(sum, 31);
  }
  const uint64_t bytes = plan.escapes_at + uint64_t{4} * before;
  const bool fits = bytes <= job.limit;
  if (lane == 0) job.bytes = fits ? static_cast<uint32_t>(bytes) : 0;
  if (!fits) return;
  for (uint32_t i = lane; i < llf::kHeaderBytes; i += 32) {
    uint32_t byte = i == 0 ? 1 : i == 1 ? job.dtype : i >= 16 && i < 16 + llf::kWindow ? base + i - 16 : 0;
    if (i >= 4 && i < 8) byte = job.values >> (8 * (i - 4));
    if (i >= 8 && i < 12) byte = before >> (8 * (i - 8));
    job.encoded[i] = static_cast<uint8_t>(byte);
  }
}

template <bool kFp16>
TIERCEL_DEVICE void LlfEscapesAs(Segment& job) {
  if (job.bytes == 0) return;
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = LlfGroups(job)[plan.groups];
  const uint32_t lane = Lane();
  for (uint64_t group = WarpOfGrid(); group < plan.groups; group += WarpsOfGrid()) {
    uint32_t at = LlfGroups(job)[group];
    const uint32_t end = group + 1 < plan.groups ? LlfGroups(job)[group + 1] : static_cast<uint32_t>((job.bytes - plan.escapes_at) / 4);
    if (at == end) continue;
    for (uint32_t half = 0; half < 2; ++half) {
      const uint64_t index = group * llf::kGroup + half * 32 + lane;
      const uint32_t exponent = index < job.values ? LlfExponent<kFp16>(*ValueAt<uint16_t>(job, static_cast<uint32_t>(index))) : 0;
      const bool escaped = llf::ExponentCode(exponent, base) == llf::kCodeEscape;
      const uint32_t all = Ballot(escaped);
      const uint32_t rank = CountOnes(all & ((1u << lane) - 1));
      if (escaped) {
        StoreU32(job.encoded + plan.escapes_at + uint64_t{4} * (at + rank), llf::Escape(static_cast<uint32_t>(index), exponent));
      }
      at += CountOnes(all);
    }
  }
}

TIERCEL_KERNEL void LlfBase(Segment* segments) {
  Segment& job = segments[BlockY()];
  if (job.codec != kLlfCodec) return;
  if (job.dtype == kFp16Dtype) {
    LlfBaseAs<true>(job);
  } else {
    LlfBaseAs<false>(job);
  }
}
TIERCEL_KERNEL void LlfPlanes(Segment* segments) {
  Segment& job = segments[BlockY()];
  if (job.codec != kLlfCodec) return;
  if (job.dtype == kFp16Dtype) {
    LlfPlanesAs<true>(job);
  } else {
    LlfPlanesAs<false>(job);
  }
}
TIERCEL_KERNEL void LlfPlace(Segment* segments) {
  Segment& job = segments[BlockY()];
  if (job.codec != kLlfCodec) return;
  if (job.dtype == kFp16Dtype) {
    LlfPlaceAs<true>(job);
  } else {
    LlfPlaceAs<false>(job);
  }
}
TIERCEL_KERNEL void LlfEscapes(Segment* segments) {
  Segment& job = segments[BlockY()];
  if (job.codec != kLlfCodec) return;
  if (job.dtype == kFp16Dtype) {
    LlfEscapesAs<true>(job);
  } else {
    LlfEscapesAs<false>(job);
  }
}
TIERCEL_KERNEL void LlfDecode(Segment* segments) {
  Segment& job = segments[BlockY()];
  if (job.codec != kLlfCodec) return;
  if (job.dtype == kFp16Dtype) {
    LlfDecodeAs<true>(job);
  } else {
    LlfDecodeAs<false>(job);
  }
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_LLF_CUH_
