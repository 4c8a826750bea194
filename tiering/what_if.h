// WhatIf tells what share of the blocks that were asked for LRU would have served, had RAM another
// size: a curve for each name space, from a sample of the keys (SHARDS), while the node runs.
//
//   Asked(name space, key, here)   Stored(name space, key, bytes)   -->   curves()
//
// A key is sampled or not by its hash. Of a sampled one the bytes of all sampled keys that were
// used since its last use, by the share that is sampled, tell how much RAM would have kept it.
// A block that is stored though nobody asked for it first was wanted as well, and was not there:
// callers that match first never ask for what is absent.
//
// RAM is one for all name spaces, as it is without quotas; sizes are of RAM as it is.
//
// Invariants
//   At most max_samples keys are remembered. They reach kRemembered times RAM back: what was seen
//   before, but longer ago than that, counts as never seen. Where that is more keys than may be
//   remembered, fewer are sampled.
//   Of a curve hits rise with the size, and no count ever falls. Counts are estimates: each sampled
//   use stands for the keys that it was drawn from.
//
// Ownership: values only. Threads: one. Errors: none. There are as many curves as name spaces.
#ifndef TIERCEL_TIERING_WHAT_IF_H_
#define TIERCEL_TIERING_WHAT_IF_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "proto/block_key.h"

namespace tiercel {

class WhatIf {
 public:
  static constexpr std::array<double, 8> kSizes = {0.125, 0.25, 0.5, 1, 2, 4, 8, 16};  // Of RAM.
  static constexpr uint64_t kRemembered = 32;
  static constexpr size_t kMaxSamples = 16384;

  struct Curve {
    double asked = 0;
    std::array<double, kSizes.size()> hits{};  // With RAM of each of kSizes.
    double seen = 0;                           // The ceiling: hits of a cache without bounds.
  };

  WhatIf(uint64_t ram_bytes, uint64_t seed, size_t max_samples = kMaxSamples);

  void Asked(uint32_t name_space, const BlockKey& key, bool here) {
    if (const uint64_t hash = Hash(key); Sampled(hash)) Use(name_space, hash, 0, here);
  }
  void Stored(uint32_t name_space, const BlockKey& key, uint64_t bytes) {
    if (const uint64_t hash = Hash(key); Sampled(hash)) Use(name_space, hash, bytes, true);
  }

  const std::map<uint32_t, Curve>& curves() const { return curves_; }  // By name space.
  size_t samples() const { return samples_.size(); }
  uint32_t one_in() const { return uint32_t{1} << shift_; }

 private:
  struct Sample {
    uint64_t bytes = 0;
    uint32_t at = 0;      // Its place in the order of last uses.
    bool wanted = false;  // Asked for and not here; it was counted then.
  };

  uint64_t Hash(const BlockKey& key) const { return (key.hash64() ^ seed_) * 0x9e3779b97f4a7c15; }
  bool Sampled(uint64_t hash) const { return shift_ == 0 || hash >> (64 - shift_) == 0; }
  // bytes: 0, it was asked for, and is here or not; else it was stored.
  void Use(uint32_t name_space, uint64_t hash, uint64_t bytes, bool here);
  void Count(Curve& curve, const Sample* sample) const;
  void ToEnd(uint64_t hash, Sample& sample);
  void Compact();
  void Trim();
  void Drop(uint64_t hash);
  uint64_t Upto(uint32_t place) const;
  void Change(uint32_t place, uint64_t by);

  const uint64_t ram_bytes_;
  const uint64_t seed_;
  const size_t max_samples_;
  uint32_t shift_ = 0;                            // One key in 2^shift_ is sampled.
  std::unordered_map<uint64_t, Sample> samples_;  // By hash.
  std::vector<uint64_t> order_;                   // Hashes by last use, with holes (0).
  std::vector<uint64_t> sums_;  // A Fenwick tree of bytes over order_, modulo 2^64.
  uint32_t next_ = 0;           // Place of the next use.
  uint32_t oldest_ = 0;         // All before it are holes.
  uint64_t total_ = 0;
  uint64_t typical_ = 0;  // Bytes of a block that is asked for and was never stored.
  std::map<uint32_t, Curve> curves_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_WHAT_IF_H_
