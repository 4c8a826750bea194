// LLF on a GPU: the same segments as kernels/llf.cc, many in one launch, decoded and digested in one pass.
//
//   LlfDecode<fp16>    grid (any, jobs), blocks of whole warps: a warp takes groups of 64 values in turn
//   LlfBase<fp16>      grid (1, jobs), one warp: where the codebook begins
//   LlfPlanes<fp16>    grid (any, jobs): planes, digest, and how many escapes each group has
//   LlfPlace           grid (1, jobs), one warp: where each group's escapes go; the header
//   LlfEscapes<fp16>   grid (any, jobs): the escapes
//
// Encoding runs the last four in this order. Nothing goes back to the host in between.
//
// Memory: all pointers are the device's; jobs lie in device memory. Digests and flags are zero before the
// launch. Errors: a malformed segment sets `failed`; what it decodes to is then not specified.
#ifndef TIERCEL_KERNELS_CUDA_LLF_CUH_
#define TIERCEL_KERNELS_CUDA_LLF_CUH_

#include "kernels/cuda/device.h"
#include "kernels/digest.h"
#include "kernels/llf_core.h"

namespace tiercel::gpu {

struct LlfDecodeJob {
  const uint8_t* encoded = nullptr;
  uint64_t encoded_bytes = 0;
  uint16_t* raw = nullptr;
  uint32_t values = 0;
  uint64_t* digest = nullptr;  // Grows by the segment's decoded digest.
  uint64_t* failed = nullptr;
};

struct LlfEncodeJob {
  const uint16_t* raw = nullptr;
  uint32_t values = 0;
  uint8_t dtype = 0;          // For the header.
  uint8_t* encoded = nullptr;
  uint64_t limit = 0;         // Bytes that encoded has; more is not worth having.
  uint32_t* groups = nullptr;  // [groups + 1]: scratch.
  uint64_t* digest = nullptr;
  uint64_t* bytes = nullptr;  // The result's; 0: store RAW.
};

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

TIERCEL_DEVICE uint32_t Lane() { return ThreadX() % 32; }
TIERCEL_DEVICE uint32_t WarpOfGrid() { return (BlockX() * BlockSizeX() + ThreadX()) / 32; }
TIERCEL_DEVICE uint32_t WarpsOfGrid() { return GridSizeX() * BlockSizeX() / 32; }

TIERCEL_DEVICE uint32_t LoadU32(const uint8_t* at) {
  return at[0] | static_cast<uint32_t>(at[1]) << 8 | static_cast<uint32_t>(at[2]) << 16 | static_cast<uint32_t>(at[3]) << 24;
}
TIERCEL_DEVICE void StoreU32(uint8_t* at, uint32_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}

// The digest's share of 32 values, a value a lane; only each fourth lane's is not zero.
TIERCEL_DEVICE uint64_t DigestOf(uint32_t value, uint64_t first_word) {
  const uint32_t lane = Lane();
  uint64_t word = 0;
  for (uint32_t i = 0; i < 4; ++i) word |= static_cast<uint64_t>(Shuffle(value, (lane & ~3u) + i)) << (16 * i);
  return lane % 4 == 0 ? DigestTerm(word, first_word + lane / 4) : 0;
}

// Sums over the warp, into *at; the whole's size is counted once.
TIERCEL_DEVICE void AddDigest(uint64_t share, uint64_t bytes, uint64_t* at) {
  const uint32_t lane = Lane();
  for (uint32_t step = 16; step > 0; step /= 2) share += Shuffle(share, (lane + step) % 32);
  if (lane == 0) AtomicAdd(at, share + (WarpOfGrid() == 0 ? Mix64(bytes) : 0));
}

template <bool kFp16>
TIERCEL_DEVICE uint32_t LlfExponent(uint16_t value) {
  return kFp16 ? llf::Fp16Exponent(value) : llf::Bf16Exponent(value);
}

template <bool kFp16>
TIERCEL_KERNEL void LlfDecode(const LlfDecodeJob* jobs) {
  const LlfDecodeJob job = jobs[BlockY()];
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t escapes = job.encoded_bytes < plan.escapes_at ? 0 : LoadU32(job.encoded + 8);
  if (job.encoded_bytes < plan.escapes_at || job.encoded[0] != 1 || LoadU32(job.encoded + 4) != job.values ||
      job.encoded_bytes != plan.escapes_at + uint64_t{4} * escapes) {
    if (Lane() == 0) AtomicAdd(job.failed, 1);
    return;  // The whole grid of this job.
  }
  const uint8_t* codebook = job.encoded + 16;
  const uint8_t* list = job.encoded + plan.escapes_at;
  const uint32_t lane = Lane();
  uint64_t digest = 0;
  for (uint64_t group = WarpOfGrid(); group < plan.groups; group += WarpsOfGrid()) {
    const uint32_t code = job.encoded[plan.codes_at + group * llf::kCodeBytes + lane];
    const uint8_t* low = job.encoded + plan.low_at + group * llf::kLowBytes;
    const uint8_t* bits = job.encoded + plan.bits_at + group * llf::kBitBytes;
    uint32_t value[2];
    bool escaped = false;
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t mine = half == 0 ? code & 15 : code >> 4;
      escaped = escaped || mine == llf::kCodeEscape;
      if (kFp16) {
        uint32_t bit[3];
        for (uint32_t p = 0; p < 3; ++p) bit[p] = LoadU32(bits + 8 * p + 4 * half) >> lane & 1u;
        value[half] = llf::Fp16Join(low[half * 32 + lane], codebook[mine], bit[0], bit[1], bit[2]);
      } else {
        value[half] = llf::Bf16Join(low[half * 32 + lane], codebook[mine]);
      }
    }
    if (Ballot(escaped) != 0) {
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
    for (uint32_t half = 0; half < 2; ++half) {
      const uint64_t index = group * llf::kGroup + half * 32 + lane;
      if (index >= job.values) value[half] = 0;
      if (index < job.values) job.raw[index] = static_cast<uint16_t>(value[half]);
      // Behind the last value there is no word.
      const uint64_t share = DigestOf(value[half], group * 16 + half * 8);
      if ((index & ~uint64_t{3}) < job.values) digest += share;
    }
  }
  AddDigest(digest, uint64_t{2} * job.values, job.digest);
}

// As ChooseBase of kernels/llf.cc. Shared memory: 512 bytes.
template <bool kFp16>
TIERCEL_KERNEL void LlfBase(const LlfEncodeJob* jobs) {
  const LlfEncodeJob job = jobs[BlockY()];
  constexpr uint32_t kSamples = 512;
  constexpr uint32_t kExponents = kFp16 ? 32 : 256;
  uint8_t* const seen = Shared<uint8_t>();
  const uint32_t lane = Lane();
  const uint32_t samples = job.values < kSamples ? job.values : kSamples;
  for (uint32_t k = lane; k < samples; k += 32) {
    const uint64_t index = job.values <= kSamples ? k : (uint64_t{k * 0x9e3779b1u} * job.values) >> 32;
    seen[k] = static_cast<uint8_t>(LlfExponent<kFp16>(job.raw[index]));
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
    job.groups[LlfPlan<kFp16>(job.values).groups] = base;
  }
}

template <bool kFp16>
TIERCEL_KERNEL void LlfPlanes(const LlfEncodeJob* jobs) {
  const LlfEncodeJob job = jobs[BlockY()];
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = job.groups[plan.groups];
  const bool fits = plan.escapes_at <= job.limit;
  const uint32_t lane = Lane();
  uint64_t digest = 0;
  for (uint64_t group = WarpOfGrid(); group < plan.groups; group += WarpsOfGrid()) {
    uint32_t codes = 0, escapes = 0;
    for (uint32_t half = 0; half < 2; ++half) {
      const uint64_t index = group * llf::kGroup + half * 32 + lane;
      const uint16_t value = index < job.values ? job.raw[index] : uint16_t{0};
      const uint8_t code = llf::ExponentCode(LlfExponent<kFp16>(value), base);
      codes |= static_cast<uint32_t>(code) << (4 * half);
      escapes += CountOnes(Ballot(code == llf::kCodeEscape));
      const uint64_t share = DigestOf(value, group * 16 + half * 8);
      if ((index & ~uint64_t{3}) < job.values) digest += share;
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
    if (lane == 0) job.groups[group] = escapes;
  }
  AddDigest(digest, uint64_t{2} * job.values, job.digest);
}

template <bool kFp16>
TIERCEL_KERNEL void LlfPlace(const LlfEncodeJob* jobs) {
  const LlfEncodeJob job = jobs[BlockY()];
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = job.groups[plan.groups];
  const uint32_t lane = Lane();
  uint32_t before = 0;  // Escapes of the groups before these 32.
  for (uint64_t first = 0; first < plan.groups; first += 32) {
    const uint32_t mine = first + lane < plan.groups ? job.groups[first + lane] : 0;
    uint32_t sum = mine;
    for (uint32_t step = 1; step < 32; step *= 2) {
      const uint32_t other = Shuffle(sum, (lane + 32 - step) % 32);
      if (lane >= step) sum += other;
    }
    if (first + lane < plan.groups) job.groups[first + lane] = before + sum - mine;
    before += Shuffle(sum, 31);
  }
  const uint64_t bytes = plan.escapes_at + uint64_t{4} * before;
  const bool fits = bytes <= job.limit;
  if (lane == 0) *job.bytes = fits ? bytes : 0;
  if (!fits) return;
  for (uint32_t i = lane; i < llf::kHeaderBytes; i += 32) {
    uint32_t byte = i == 0 ? 1 : i == 1 ? job.dtype : i >= 16 && i < 16 + llf::kWindow ? base + i - 16 : 0;
    if (i >= 4 && i < 8) byte = job.values >> (8 * (i - 4));
    if (i >= 8 && i < 12) byte = before >> (8 * (i - 8));
    job.encoded[i] = static_cast<uint8_t>(byte);
  }
}

template <bool kFp16>
TIERCEL_KERNEL void LlfEscapes(const LlfEncodeJob* jobs) {
  const LlfEncodeJob job = jobs[BlockY()];
  if (*job.bytes == 0) return;
  const LlfPlan<kFp16> plan(job.values);
  const uint32_t base = job.groups[plan.groups];
  const uint32_t lane = Lane();
  for (uint64_t group = WarpOfGrid(); group < plan.groups; group += WarpsOfGrid()) {
    uint32_t at = job.groups[group];
    for (uint32_t half = 0; half < 2; ++half) {
      const uint64_t index = group * llf::kGroup + half * 32 + lane;
      const uint32_t exponent = index < job.values ? LlfExponent<kFp16>(job.raw[index]) : 0;
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

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_LLF_CUH_
