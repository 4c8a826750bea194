#include "tiering/what_if.h"

#include <algorithm>

namespace tiercel {

WhatIf::WhatIf(uint64_t ram_bytes, uint64_t seed, size_t max_samples)
    : ram_bytes_(std::max<uint64_t>(ram_bytes, 1)),
      seed_(seed),
      max_samples_(std::max<size_t>(max_samples, 2)) {}

uint64_t WhatIf::Upto(uint32_t place) const {
  uint64_t sum = 0;
  for (uint32_t i = place + 1; i > 0; i &= i - 1) sum += sums_[i];
  return sum;
}

void WhatIf::Change(uint32_t place, uint64_t by) {
  for (uint32_t i = place + 1; i < sums_.size(); i += i & (~i + 1)) sums_[i] += by;
}

void WhatIf::Count(Curve& curve, const Sample* sample) const {
  const double weight = one_in();
  curve.asked += weight;
  if (sample == nullptr) return;
  curve.seen += weight;
  // What would have to fit: all that was used since, and the block itself.
  const double needed =
      static_cast<double>(total_ - Upto(sample->at)) * weight + static_cast<double>(sample->bytes);
  for (size_t i = 0; i < kSizes.size(); ++i) {
    if (needed <= kSizes[i] * static_cast<double>(ram_bytes_)) curve.hits[i] += weight;
  }
}

void WhatIf::Use(uint32_t name_space, uint64_t hash, uint64_t bytes, bool here) {
  if (order_.empty()) {
    order_.resize(2 * max_samples_, 0);
    sums_.resize(2 * max_samples_ + 1, 0);
  }
  if (hash == 0) return;  // Stands for a hole.
  if (bytes > 0) typical_ = bytes;
  const auto [found, fresh] = samples_.try_emplace(hash);
  Sample& sample = found->second;
  const bool counted = bytes > 0 && sample.wanted;
  if (!counted) Count(curves_[name_space], fresh ? nullptr : &sample);
  sample.wanted = bytes == 0 && !here;
  if (!fresh) {
    Change(sample.at, uint64_t{0} - sample.bytes);
    total_ -= sample.bytes;
    order_[sample.at] = 0;
  }
  if (bytes > 0) {
    sample.bytes = bytes;
  } else if (fresh) {
    sample.bytes = typical_;
  }
  ToEnd(hash, sample);
  if (samples_.size() > max_samples_) Trim();
}

void WhatIf::ToEnd(uint64_t hash, Sample& sample) {
  if (next_ == order_.size()) Compact();
  sample.at = next_++;
  order_[sample.at] = hash;
  Change(sample.at, sample.bytes);
  total_ += sample.bytes;
}

// Takes the holes out: at most half of the places are taken.
void WhatIf::Compact() {
  uint32_t end = 0;
  std::fill(sums_.begin(), sums_.end(), 0);
  for (uint32_t i = oldest_; i < next_; ++i) {
    if (order_[i] == 0) continue;
    order_[end] = order_[i];
    Sample& sample = samples_.find(order_[end])->second;
    sample.at = end;
    sums_[end + 1] = sample.bytes;
    ++end;
  }
  std::fill(order_.begin() + end, order_.end(), 0);
  for (uint32_t i = 1; i < sums_.size(); ++i) {
    const uint32_t above = i + (i & (~i + 1));
    if (above < sums_.size()) sums_[above] += sums_[i];
  }
  next_ = end;
  oldest_ = 0;
}

void WhatIf::Drop(uint64_t hash) {
  const auto found = samples_.find(hash);
  Change(found->second.at, uint64_t{0} - found->second.bytes);
  total_ -= found->second.bytes;
  order_[found->second.at] = 0;
  samples_.erase(found);
}

// One too many: the oldest goes where that is far enough back, else half of the keys are sampled no
// more.
void WhatIf::Trim() {
  while (order_[oldest_] == 0) ++oldest_;
  const double reach = static_cast<double>(total_) * one_in();
  if (total_ == 0 || shift_ == 31 ||
      reach > static_cast<double>(kRemembered) * static_cast<double>(ram_bytes_)) {
    Drop(order_[oldest_]);
    return;
  }
  ++shift_;
  for (uint32_t i = oldest_; i < next_; ++i) {
    if (order_[i] != 0 && !Sampled(order_[i])) Drop(order_[i]);
  }
}

}  // namespace tiercel
