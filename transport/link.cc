#include "transport/link.h"

#include <fmt/format.h>

#include "base/check.h"

namespace tiercel {

std::unique_ptr<Endpoint> Link::MakeEndpoint() {
  TIERCEL_CHECK(endpoint_ == nullptr);
  auto endpoint = std::make_unique<LinkEndpoint>(shared_from_this());
  endpoint_ = endpoint.get();
  return endpoint;
}

size_t Link::RunCompletions() {
  if (completions_.empty()) return 0;
  const std::shared_ptr<Link> keep = shared_from_this();
  size_t ran = 0;
  // Those that a done adds wait for the next time, so that this ends.
  for (size_t left = completions_.size(); left > 0 && !completions_.empty(); --left, ++ran) {
    Completion completion = std::move(completions_.front());
    completions_.pop_front();
    bytes_in_flight_ -= completion.bytes;
    frames_in_flight_ -= completion.frames;
    if (completion.done) completion.done(std::move(completion.status));
  }
  return ran;
}

Status Link::CheckSend(ByteSpan meta, ByteSpan payload) const {
  if (closed_) return Fail(Code::kUnavailable, "the endpoint is closed: " + Describe());
  if (meta.size() > kMaxMetaBytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("frame: meta of {} bytes, at most {}", meta.size(), kMaxMetaBytes));
  }
  if (payload.size() > kMaxPayloadBytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("frame: payload of {} bytes, at most {}", payload.size(), kMaxPayloadBytes));
  }
  if (frames_in_flight_ >= limits_.max_frames_in_flight ||
      (bytes_in_flight_ > 0 && bytes_in_flight_ + payload.size() > limits_.max_bytes_in_flight)) {
    return Fail(Code::kResourceExhausted,
                fmt::format("send queue full: {} frames, {} bytes in flight", frames_in_flight_,
                            bytes_in_flight_));
  }
  return OkStatus();
}

Status Admissions::Admit(uint64_t session_id, std::string_view peer_address, uint32_t name_space) {
  MutexLock lock(mutex_);
  if (entries_.size() >= limit_ && !entries_.contains(session_id)) {
    return Fail(Code::kResourceExhausted, fmt::format("{} sessions are admitted already", limit_));
  }
  entries_[session_id] = Entry{std::string(peer_address), name_space};
  return OkStatus();
}

void Admissions::Revoke(uint64_t session_id) {
  MutexLock lock(mutex_);
  entries_.erase(session_id);
}

bool Admissions::Find(uint64_t session_id, Entry* out) const {
  MutexLock lock(mutex_);
  const auto found = entries_.find(session_id);
  if (found == entries_.end()) return false;
  if (out != nullptr) *out = found->second;
  return true;
}

void MemoryIncoming::Receive(MutableByteSpan dst, Done done) {
  if (dst.size() < bytes_.size()) {
    done(Fail(Code::kInvalidArgument, fmt::format("receive: {} bytes into {}", bytes_.size(), dst.size())));
    return;
  }
  if (!bytes_.empty()) std::memcpy(dst.data(), bytes_.data(), bytes_.size());
  done(OkStatus());
}

}  // namespace tiercel
