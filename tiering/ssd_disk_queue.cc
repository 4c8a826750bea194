#include "tiering/ssd_disk_queue.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"

namespace tiercel {

DiskQueue::~DiskQueue() {
  if (queue_ != 0) syscall(SYS_io_destroy, queue_);
}

bool DiskQueue::Open() {
  if (queue_ == 0 && !refused_) refused_ = syscall(SYS_io_setup, kDepth, &queue_) != 0;
  return queue_ != 0;
}

int DiskQueue::Submit(Op op, int fd, std::byte* bytes, uint64_t n, uint64_t at, uint64_t tag) {
  if (under_way_ == kDepth) return EAGAIN;
  iocb call{};
  call.aio_data = tag;
  call.aio_lio_opcode = op == Op::kRead ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
  call.aio_fildes = static_cast<uint32_t>(fd);
  call.aio_buf = reinterpret_cast<uint64_t>(bytes);
  call.aio_nbytes = n;
  call.aio_offset = static_cast<int64_t>(at);
  iocb* one = &call;  // The kernel copies it.
  if (syscall(SYS_io_submit, queue_, 1, &one) != 1) return errno;
  ++under_way_;
  return 0;
}

size_t DiskQueue::Wait(Dones& out) {
  if (under_way_ == 0) return 0;
  std::array<io_event, kDepth> events;
  long came = 0;
  do {
    came = syscall(SYS_io_getevents, queue_, 1, kDepth, events.data(), nullptr);
  } while (came < 0 && errno == EINTR);
  TIERCEL_CHECK(came > 0);
  const auto n = static_cast<size_t>(came);
  for (size_t i = 0; i < n; ++i) out[i] = {events[i].data, events[i].res};
  under_way_ -= n;
  return n;
}

}  // namespace tiercel
