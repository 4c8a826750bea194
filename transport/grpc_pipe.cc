#include "transport/grpc_pipe.h"

#include <utility>

#include "base/check.h"

namespace tiercel {

void Pipe::Notify() {
  if (notified_) return;
  const std::shared_ptr<PipeInbox> inbox = inbox_.lock();
  notified_ = inbox == nullptr || inbox->Push(shared_from_this());
}

void Pipe::StartRead() {
  if (call_ == nullptr || !open_ || ended_ || read_ended_ || reading_ != nullptr ||
      untaken_bytes_ >= kReadWindowBytes) {
    return;
  }
  reading_ = std::make_unique<v1::Frame>();
  call_->Read(reading_.get());
}

void Pipe::StartWrite() {
  if (call_ == nullptr || ended_ || read_ended_ || writing_ != nullptr) return;
  if (!to_write_.empty()) {
    writing_ = std::move(to_write_.front());
    to_write_.pop_front();
    call_->Write(writing_.get());
  } else if (half_close_ && !half_closed_) {
    half_closed_ = true;
    call_->HalfClose();
  }
}

void Pipe::Open() {
  MutexLock lock(mutex_);
  open_ = true;
  StartRead();
}

bool Pipe::Write(std::unique_ptr<v1::Frame> frame) {
  MutexLock lock(mutex_);
  if (ended_ || half_close_) return false;
  to_write_.push_back(std::move(frame));
  StartWrite();
  return true;
}

void Pipe::HalfClose() {
  MutexLock lock(mutex_);
  half_close_ = true;
  StartWrite();
}

void Pipe::Cancel(Error why) {
  MutexLock lock(mutex_);
  if (ended_) return;
  ended_ = true;
  arrived_.why = why;
  to_write_.clear();
  if (call_ != nullptr) call_->Cancel(std::move(why));
}

Pipe::Arrived Pipe::TakeArrived() {
  MutexLock lock(mutex_);
  notified_ = false;
  Arrived taken = std::move(arrived_);
  arrived_ = Arrived{};
  arrived_.ended = taken.ended;
  arrived_.graceful = taken.graceful;
  arrived_.why = taken.why;
  untaken_bytes_ = 0;
  StartRead();
  return taken;
}

void Pipe::Attach(PipeCall* call) {
  MutexLock lock(mutex_);
  call_ = call;
  if (ended_) {
    call_->Cancel(arrived_.why);
    return;
  }
  StartRead();
  StartWrite();
}

void Pipe::OnRead(bool ok) {
  MutexLock lock(mutex_);
  TIERCEL_CHECK(reading_ != nullptr);
  if (!ok) {
    reading_.reset();
    read_ended_ = true;
    return;  // OnEnded follows, with the reason; a server ends its call when the peer has.
  }
  untaken_bytes_ += reading_->payload().size() + reading_->meta().size() + 256;
  if (!ended_) {
    arrived_.frames.push_back(std::move(reading_));
    Notify();
  }
  reading_.reset();
  StartRead();
}

void Pipe::OnWritten(bool ok) {
  MutexLock lock(mutex_);
  writing_.reset();
  if (!ok) return;  // The stream is broken; OnEnded follows.
  ++arrived_.written;
  if (!ended_) Notify();
  StartWrite();
}

void Pipe::NoteEnd(bool graceful, Error why) {
  if (arrived_.ended) return;
  arrived_.ended = true;
  arrived_.graceful = graceful;
  arrived_.why = std::move(why);
  Notify();
}

void Pipe::OnPeerEnded(bool graceful, Error why) {
  MutexLock lock(mutex_);
  NoteEnd(graceful, why);
  if (ended_) return;
  ended_ = true;
  to_write_.clear();
  if (call_ == nullptr) return;
  // An error here would have the peer give up its other stream too, with what is still under way on it.
  if (graceful) {
    call_->HalfClose();
  } else {
    call_->Cancel(std::move(why));
  }
}

void Pipe::OnEnded(bool graceful, Error why) {
  MutexLock lock(mutex_);
  call_ = nullptr;
  ended_ = true;
  to_write_.clear();
  NoteEnd(graceful, std::move(why));
}

}  // namespace tiercel
