// ReuseModel learns from a sample of the traffic how blocks of each class come back: how likely,
// and how long after their last use. What is in the cache does not matter to it: it remembers
// sampled keys for itself, so that a block which was evicted and asked for again counts as one that
// came back.
//
//   Use(key, class, tick) ... --> Refit, now and then --> Worth(class, age)
//
// A sampled key's use opens a wait, under the class it has from then on; its next use ends the
// wait. Ended and open waits give, class by class, the share that ends in each span of age (Kaplan
// and Meier's estimate, which takes open waits for what they are: not over yet). A class of few
// waits leans on all classes together, and at ages that few reach on what it was before.
//
// Worth is the chance that a block of that class, this long after its last use, is used within the
// horizon: one and a half times as long as a block stays in the cache.
//
// Invariants: at most max_samples keys are remembered; the share of keys that is sampled follows
// how many blocks the cache holds, so that waits several times longer than a block's stay are seen.
// Equal uses give equal worths: no clock, no lot but the seed's choice of keys.
//
// Ownership: values only. Threads: one. Errors: none.
#ifndef TIERCEL_TIERING_POLICY_REUSE_H_
#define TIERCEL_TIERING_POLICY_REUSE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tiercel {

class ReuseModel {
 public:
  static constexpr size_t kSpans = 64;
  static constexpr uint32_t kMaxWorth = 1023;

  // Of a pair the first is worth no more than the second: that of which it is a part.
  using Parts = std::vector<std::pair<uint8_t, uint8_t>>;
  ReuseModel(uint64_t seed, size_t classes, Parts parts = {}, size_t max_samples = size_t{1} << 16);

  // The block with this hash is used at this tick and belongs to this class from now on.
  void Use(uint64_t hash, uint8_t cls, uint32_t tick);
  // It belongs to another class after all, since its last use.
  void Reclass(uint64_t hash, uint8_t cls);
  // The cache holds so many blocks, and one goes.
  void Evicted(uint64_t resident, uint32_t tick);

  // 0: nothing is known yet; else 1 .. kMaxWorth.
  uint32_t Worth(uint8_t cls, uint32_t age) const { return worths_[cls][Span(age)]; }
  // The chance itself that a wait of this class ends some time.
  double ComesBack(uint8_t cls) const { return comes_back_[cls]; }
  uint32_t horizon() const { return horizon_; }
  size_t samples() const { return where_.size(); }

  // Worths change with each of these alone, and with the age's span.
  uint64_t fits() const { return fits_; }

  static size_t Span(uint32_t age);
  // The first age of the span after this one's; UINT32_MAX: it is the last.
  static uint32_t SpanEnd(uint32_t age);

 private:
  struct Sample {
    uint64_t hash = 0;
    uint32_t tick = 0;
    uint8_t cls = 0;
    bool live = false;
  };
  using Counts = std::array<float, kSpans>;

  void Close(Sample& sample, uint32_t tick, std::vector<Counts>& counts);
  static Counts Fit(const Counts& ended, const Counts& reached, const Counts* all);
  void Refit(uint32_t tick);
  void SetWorths(size_t cls, const Counts& hazard);
  bool Sampled(uint64_t hash) const { return shift_ == 0 || hash >> (64 - shift_) == 0; }

  const size_t max_samples_;
  const Parts parts_;
  const uint64_t seed_;
  std::unordered_map<uint64_t, uint32_t> where_;  // Hash to its place in ring_.
  std::vector<Sample> ring_;                      // In order of last use.
  uint64_t at_ = 0;                               // Next place, ever growing.
  uint32_t shift_ = 0;                            // One key in 2^shift_ is sampled.
  uint32_t since_refit_ = 0;
  uint64_t ends_ = 0;
  uint64_t fits_ = 0;
  uint32_t first_tick_ = 0;
  uint32_t horizon_ = 0;  // Ticks.
  double stays_ = 0;  // Measured so far.
  uint64_t evicted_ = 0;
  uint32_t evicting_since_ = 0;
  std::vector<Counts> ended_;
  std::vector<Counts> lost_;  // Waits that were dropped while open.
  std::vector<std::array<uint16_t, kSpans>> worths_;
  std::vector<double> comes_back_;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_POLICY_REUSE_H_
