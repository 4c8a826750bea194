#include "tiering/policy_reuse.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace tiercel {
namespace {

constexpr uint32_t kFirstSpan = 8;  // Ticks; then four spans an octave.
constexpr uint32_t kMinRefit = 1024;
constexpr uint64_t kMinEnds = 200;  // Before anything is believed.
// How many waits a class's own stand beside: of all classes at that age, and of its own a span
// before.
constexpr float kLean = 20;
constexpr float kCarry = 100;
constexpr double kStays = 1.5;  // The horizon, in stays.
constexpr double kStaysKept = 8;
constexpr int kRounds = 3;  // Of making parts worth no more than their wholes.

}  // namespace

size_t ReuseModel::Span(uint32_t age) {
  if (age < kFirstSpan) return 0;
  const auto octave = static_cast<uint32_t>(std::bit_width(age)) - 1;
  const size_t span = 1 + size_t{4} * (octave - 3) + ((age >> (octave - 2)) & 3);
  return std::min(span, kSpans - 1);
}

uint32_t ReuseModel::SpanEnd(uint32_t age) {
  if (age < kFirstSpan) return kFirstSpan;
  if (Span(age) == kSpans - 1) return UINT32_MAX;
  const auto shift = static_cast<uint32_t>(std::bit_width(age)) - 3;
  return ((age >> shift) + 1) << shift;
}

namespace {
double SpanBegin(size_t span) {
  if (span == 0) return 0;
  const size_t octave = 3 + (span - 1) / 4;
  return std::ldexp(4.0 + static_cast<double>((span - 1) % 4), static_cast<int>(octave) - 2);
}
}  // namespace

ReuseModel::ReuseModel(uint64_t seed, size_t classes, Parts parts, size_t max_samples)
    : max_samples_(max_samples),
      parts_(std::move(parts)),
      seed_(seed),
      ended_(classes, Counts{}),
      lost_(classes, Counts{}),
      worths_(classes, std::array<uint16_t, kSpans>{}),
      comes_back_(classes, 0) {}

void ReuseModel::Close(Sample& sample, uint32_t tick, std::vector<Counts>& counts) {
  counts[sample.cls][Span(tick - sample.tick)] += 1;
  sample.live = false;
}

void ReuseModel::Use(uint64_t hash, uint8_t cls, uint32_t tick) {
  hash = (hash ^ seed_) * 0x9e3779b97f4a7c15;
  if (!Sampled(hash)) return;
  if (ring_.empty()) {
    ring_.resize(max_samples_);
    first_tick_ = tick;
  }
  const auto [found, fresh] = where_.try_emplace(hash, 0);
  if (!fresh) {
    Close(ring_[found->second], tick, ended_);
    ++ends_;
  }
  Sample& place = ring_[at_ % max_samples_];
  if (place.live) {
    Close(place, tick, lost_);
    where_.erase(place.hash);
  }
  place = {hash, tick, cls, true};
  found->second = static_cast<uint32_t>(at_ % max_samples_);
  ++at_;
  if (++since_refit_ >= std::max<size_t>(kMinRefit, where_.size() / 32)) Refit(tick);
}

void ReuseModel::Reclass(uint64_t hash, uint8_t cls) {
  hash = (hash ^ seed_) * 0x9e3779b97f4a7c15;
  if (!Sampled(hash)) return;
  if (const auto found = where_.find(hash); found != where_.end()) ring_[found->second].cls = cls;
}

void ReuseModel::Evicted(uint64_t resident, uint32_t tick) {
  // How long a block stays: as many as are resident go in that time.
  if (horizon_ == 0) {
    horizon_ = static_cast<uint32_t>(std::clamp(kStays * (tick - first_tick_), 1.0, 1e9));
    Refit(tick);
  }
  if (evicted_ == 0) evicting_since_ = tick;
  if (++evicted_ >= std::clamp<uint64_t>(resident, 256, 65536) / 4) {
    const double stay = static_cast<double>(tick - evicting_since_) /
                        static_cast<double>(evicted_) * static_cast<double>(resident);
    // The mean of the first few; then those before fade.
    stays_ = std::min(stays_ + 1, kStaysKept);
    horizon_ = static_cast<uint32_t>(
        std::clamp(((stays_ - 1) * horizon_ + kStays * stay) / stays_, 1.0, 1e9));
    evicted_ = 0;
  }
  while (resident * 4 >> shift_ > max_samples_) {
    ++shift_;
    for (Sample& sample : ring_) {
      if (!sample.live || Sampled(sample.hash)) continue;
      sample.live = false;
      where_.erase(sample.hash);
    }
  }
}

// The chance that a wait ends in each span once it got there.
ReuseModel::Counts ReuseModel::Fit(const Counts& ended, const Counts& reached, const Counts* all) {
  Counts hazard{};
  for (size_t s = 0; s < kSpans; ++s) {
    const float lean = all != nullptr ? kLean : 0;
    const float carry = s > 0 ? kCarry : 0;
    const float weight = reached[s] + lean + carry;
    if (weight == 0) continue;
    hazard[s] =
        (ended[s] + (lean > 0 ? lean * (*all)[s] : 0) + (carry > 0 ? carry * hazard[s - 1] : 0)) /
        weight;
  }
  return hazard;
}

void ReuseModel::Refit(uint32_t tick) {
  since_refit_ = 0;
  if (ends_ < kMinEnds) return;
  ++fits_;
  const size_t classes = ended_.size();
  std::vector<Counts> reached = lost_;  // Waits that got to a span, however they went on.
  for (const Sample& sample : ring_) {
    if (sample.live) reached[sample.cls][Span(tick - sample.tick)] += 1;
  }
  Counts all_ended{};
  Counts all_reached{};
  for (size_t c = 0; c < classes; ++c) {
    float sum = 0;
    for (size_t s = kSpans; s-- > 0;) {
      sum += reached[c][s] + ended_[c][s];
      reached[c][s] = sum;
      all_ended[s] += ended_[c][s];
      all_reached[s] += sum;
    }
  }
  const Counts all = Fit(all_ended, all_reached, nullptr);
  for (size_t c = 0; c < classes; ++c) SetWorths(c, Fit(ended_[c], reached[c], &all));
  // Where a part seems worth more than its whole, both are worth their mean.
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& [part, whole] : parts_) {
      for (size_t s = 0; s < kSpans; ++s) {
        uint16_t& mine = worths_[part][s];
        uint16_t& its = worths_[whole][s];
        if (mine <= its) continue;
        const float weight = (reached[part][s] + 1) / (reached[part][s] + reached[whole][s] + 2);
        mine = its = static_cast<uint16_t>(weight * static_cast<float>(mine) +
                                           (1 - weight) * static_cast<float>(its));
      }
    }
  }
  for (const auto& [part, whole] : parts_) {
    for (size_t s = 0; s < kSpans; ++s)
      worths_[part][s] = std::min(worths_[part][s], worths_[whole][s]);
  }
  // Old counts fade: what is believed rests on the last few fillings of the sample.
  const float most = 4 * static_cast<float>(max_samples_);
  if (all_reached[0] <= most) return;
  for (size_t c = 0; c < classes; ++c) {
    for (size_t s = 0; s < kSpans; ++s) {
      ended_[c][s] *= most / all_reached[0];
      lost_[c][s] *= most / all_reached[0];
    }
  }
}

void ReuseModel::SetWorths(size_t cls, const Counts& hazard) {
  std::array<double, kSpans + 1> left{};  // Share of waits that are still open at the span's begin.
  left[0] = 1;
  for (size_t s = 0; s < kSpans; ++s) left[s + 1] = left[s] * (1 - hazard[s]);
  comes_back_[cls] = 1 - left[kSpans];
  for (size_t s = 0; s < kSpans; ++s) {
    const double until = SpanBegin(s) + horizon_;
    const size_t end = Span(static_cast<uint32_t>(std::min(until, 4e9)));
    const double begin_of = SpanBegin(end);
    const double part = std::clamp((until - begin_of) / (SpanBegin(end + 1) - begin_of), 0.0, 1.0);
    const double at_end = left[end] + part * (left[end + 1] - left[end]);
    const double chance = left[s] > 1e-9 ? std::clamp(1 - at_end / left[s], 0.0, 1.0) : 0;
    worths_[cls][s] = static_cast<uint16_t>(std::lround(1 + chance * (kMaxWorth - 1)));
  }
}

}  // namespace tiercel
