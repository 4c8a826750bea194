#include "client/cpp/session.h"

#include <algorithm>

namespace tiercel {

Lane* Session::FindLane(uint32_t shard) {
  for (auto& lane : lanes_) {
    if (lane->shard == shard) return lane.get();
  }
  return nullptr;
}

Lane& Session::lane(uint32_t shard) {
  if (Lane* found = FindLane(shard)) return *found;
  auto lane = std::make_unique<Lane>();
  lane->session = this;
  lane->shard = shard;
  lanes_.push_back(std::move(lane));
  return *lanes_.back();
}

bool Session::Usable(TransportKind kind, Nanos now) const {
  const auto found = distrust_.find(kind);
  return found == distrust_.end() || found->second.failures < 2 || now >= found->second.until;
}

void Session::Opening(Nanos now) {
  state_ = State::kOpening;
  ++attempt_;
  due_ = now + kOpenTimeout + 200 * kMillisecond;
}

void Session::Greeting(SessionOffer offer, Nanos now) {
  state_ = State::kGreeting;
  session_id_ = offer.session_id;
  offer_ = std::move(offer);
  due_ = now + kGreetTimeout;
}

void Session::Opened() {
  state_ = State::kOpen;
  failures_ = 0;
  due_ = 0;
  for (const auto& lane : lanes_) {
    if (lane->transport != nullptr) distrust_.erase(lane->transport->kind());
  }
}

void Session::Failed(const Error& why, Nanos now) {
  state_ = State::kResting;
  last_error_ = why.ToString();
  ++attempt_;  // What the last attempt still says is ignored.
  const Nanos base =
      std::min<Nanos>(2 * kSecond, (250 * kMillisecond) << std::min(failures_ / 8, 3u));
  due_ = now + base * 9 / 10 + static_cast<Nanos>(random_.Below(static_cast<uint64_t>(base / 5)));
  ++failures_;
  session_id_ = 0;
  requests_in_flight = 0;
  bytes_in_flight = 0;
  probing = false;
}

void Session::GreetFailed(TransportKind kind, Nanos now) {
  Distrust& distrust = distrust_[kind];
  if (now >= distrust.until) distrust.failures = 0;
  ++distrust.failures;
  distrust.until = now + 60 * kSecond;
}

}  // namespace tiercel
