#include "client/cpp/breaker.h"

namespace tiercel {

void Breaker::Roll(Nanos now) {
  if (now - window_start_ < kWindow) return;
  window_start_ = now;
  samples_ = 0;
  failures_ = 0;
}

void Breaker::Schedule(Nanos now) {
  const uint64_t jitter = random_.Below(static_cast<uint64_t>(kProbeInterval / 5));
  next_probe_ = now + kProbeInterval * 9 / 10 + static_cast<Nanos>(jitter);
}

void Breaker::Succeeded(Nanos now) {
  consecutive_ = 0;
  if (open_) {
    open_ = false;
    window_start_ = now;
    samples_ = 0;
    failures_ = 0;
    return;
  }
  Roll(now);
  ++samples_;
}

void Breaker::Failed(Nanos now) {
  Roll(now);
  ++samples_;
  ++failures_;
  ++consecutive_;
  if (open_) return;
  if (consecutive_ >= kConsecutiveFailures ||
      (samples_ >= kMinSamples && failures_ * 2 > samples_)) {
    open_ = true;
    Schedule(now);
  }
}

bool Breaker::ProbeDue(Nanos now) {
  if (!open_ || now < next_probe_) return false;
  Schedule(now);
  return true;
}

}  // namespace tiercel
