// Pipe is one bidirectional stream of frames, client's or server's, between gRPC's threads and the
// transport that owns it. Internal to transport/grpc_*.
//
//   owner: Write, TakeArrived, HalfClose, Cancel      gRPC: OnRead, OnWritten, OnEnded
//
// Invariants
//   At most one read and one write are with gRPC; at most kReadWindowBytes are read and not taken.
//   A pipe is in its transport's inbox at most once, so an inbox of one place a pipe never overflows.
//
// Ownership: shared by transport and reactor; the reactor dies when gRPC says so (OnDone).
// Threads: every method from any thread.
#ifndef TIERCEL_TRANSPORT_GRPC_PIPE_H_
#define TIERCEL_TRANSPORT_GRPC_PIPE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/inbox.h"
#include "base/mutex.h"
#include "base/result.h"
#include "proto/tiercel.pb.h"

namespace tiercel {

inline constexpr uint64_t kReadWindowBytes = uint64_t{64} << 20;

class Pipe;
using PipeInbox = Inbox<std::shared_ptr<Pipe>>;

// What a reactor can be asked to do; calls come one at a time, under the pipe's mutex.
class PipeCall {
 public:
  virtual ~PipeCall() = default;
  virtual void Read(v1::Frame* into) = 0;
  virtual void Write(const v1::Frame* frame) = 0;
  virtual void HalfClose() = 0;  // Nothing more will be written.
  virtual void Cancel(Error why) = 0;
};

class Pipe : public std::enable_shared_from_this<Pipe> {
 public:
  Pipe(const std::shared_ptr<PipeInbox>& inbox, uint64_t session, bool is_puts)
      : session_id(session), puts(is_puts), inbox_(inbox) {}

  const uint64_t session_id;
  const bool puts;

  // Owner. Begins reading; before this nothing arrives.
  void Open();
  // Queues one message; false when the stream has ended.
  bool Write(std::unique_ptr<v1::Frame> frame);
  void HalfClose();
  void Cancel(Error why);

  // What happened since the last time: frames in order, how many writes ended, whether it is over.
  struct Arrived {
    std::deque<std::unique_ptr<v1::Frame>> frames;
    uint64_t written = 0;
    bool ended = false;
    bool graceful = false;  // The peer sent all it had and then ended the stream.
    Error why;
  };
  Arrived TakeArrived();

  // Reactor.
  void Attach(PipeCall* call);
  void OnRead(bool ok);
  void OnWritten(bool ok);
  void OnPeerEnded(bool graceful, Error why);  // Server: ends the call too.
  void OnEnded(bool graceful, Error why);      // The reactor is about to die.

 private:
  void Notify() TIERCEL_REQUIRES(mutex_);
  void NoteEnd(bool graceful, Error why) TIERCEL_REQUIRES(mutex_);
  void StartRead() TIERCEL_REQUIRES(mutex_);
  void StartWrite() TIERCEL_REQUIRES(mutex_);

  const std::weak_ptr<PipeInbox> inbox_;  // Gone with the transport; then nobody is told any more.
  Mutex mutex_;
  PipeCall* call_ TIERCEL_GUARDED_BY(mutex_) = nullptr;  // Null: not yet, or no longer.
  std::unique_ptr<v1::Frame> reading_ TIERCEL_GUARDED_BY(mutex_);
  std::unique_ptr<v1::Frame> writing_ TIERCEL_GUARDED_BY(mutex_);
  std::deque<std::unique_ptr<v1::Frame>> to_write_ TIERCEL_GUARDED_BY(mutex_);
  Arrived arrived_ TIERCEL_GUARDED_BY(mutex_);
  uint64_t untaken_bytes_ TIERCEL_GUARDED_BY(mutex_) = 0;
  bool open_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool read_ended_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool half_close_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool half_closed_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool ended_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool notified_ TIERCEL_GUARDED_BY(mutex_) = false;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_GRPC_PIPE_H_
