// DiskQueue is a thread's reads and writes that the kernel has under way (io_submit(2)), so that it
// copies one piece while another travels. It is for files that are open with O_DIRECT; on others
// Submit does the work before it returns.
//
// Ownership: the memory of a piece belongs to the kernel from Submit until Wait gives its tag back,
// whatever becomes of the file; who destroys a queue has waited for all of it. Threads: one.
// Errors: errno values.
#ifndef TIERCEL_TIERING_SSD_DISK_QUEUE_H_
#define TIERCEL_TIERING_SSD_DISK_QUEUE_H_

#include <linux/aio_abi.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace tiercel {

class DiskQueue {
 public:
  static constexpr size_t kDepth = 32;
  enum class Op { kRead, kWrite };
  struct Done {
    uint64_t tag;
    int64_t result;  // Bytes, which may be fewer than asked for, or minus an errno.
  };
  using Dones = std::array<Done, kDepth>;

  DiskQueue() = default;
  ~DiskQueue();
  DiskQueue(const DiskQueue&) = delete;
  DiskQueue& operator=(const DiskQueue&) = delete;

  // False: the kernel gives this thread no queue (fs.aio-max-nr, or it is forbidden). It is asked
  // once.
  bool Open();
  // bytes, n and at as O_DIRECT wants them. EAGAIN: no room until something is done.
  int Submit(Op op, int fd, std::byte* bytes, uint64_t n, uint64_t at, uint64_t tag);
  // Waits until one at least is done. How many are; none where none is under way.
  size_t Wait(Dones& out);
  size_t under_way() const { return under_way_; }

 private:
  aio_context_t queue_ = 0;
  bool refused_ = false;
  size_t under_way_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_DISK_QUEUE_H_
