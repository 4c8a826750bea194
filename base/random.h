// SplitMix64: a small seeded generator for tests, the simulator, jitter and load; never for secrets
//.
// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
#ifndef TIERCEL_BASE_RANDOM_H_
#define TIERCEL_BASE_RANDOM_H_

#include <cstdint>

namespace tiercel {

__extension__ using Uint128 = unsigned __int128;

// The bijective finaliser on its own: a good 64-bit mix.
constexpr uint64_t Mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix64(state_ += 0x9e3779b97f4a7c15ULL); }
  // Uniform in [0, bound); bound > 0. Bias under 2^-32 for bounds under 2^32.
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<Uint128>(Next()) * bound) >> 64);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_RANDOM_H_
