// The ceilings: what the machine itself gives for the same bytes, without index, pins or checksums.
//
//   RawTcp       a process on the other core, plain sockets, both sides spinning; `batch` blocks are
//                asked for at once, so that as many bytes are outstanding as in the lane beside it
//   ColdMemcpy   one thread, from one memory to another, walked in order
//
// Ownership: lanes borrow the memories, which outlive them. Threads: one.
#ifndef TIERCEL_TESTS_BENCH_RAW_LANES_H_
#define TIERCEL_TESTS_BENCH_RAW_LANES_H_

#include <memory>
#include <string>

#include "tests/bench/bench_kit.h"

namespace tiercel::bench {

// Spins on a connected non-blocking socket until all is through.
Status SendAll(int fd, ByteSpan bytes);
Status ReceiveAll(int fd, MutableByteSpan bytes);
// Non-blocking, TCP_NODELAY, to 127.0.0.1; tries for up to timeout.
Result<int> ConnectLoopback(int port, Nanos timeout);

class RawTcp {
 public:
  // Forks the server, pinned to core; its pool has pool_bytes.
  static Result<std::unique_ptr<RawTcp>> Start(int core, uint64_t pool_bytes);
  ~RawTcp();

  std::unique_ptr<Lane> Get(const Memory& memory, uint64_t block, uint32_t batch);
  std::unique_ptr<Lane> Put(const Memory& memory, uint64_t block, uint32_t batch);

 private:
  RawTcp() = default;
  std::unique_ptr<Child> child_;
  int fd_ = -1;
};

std::unique_ptr<Lane> ColdMemcpy(const Memory& from, const Memory& to, uint64_t block);

}  // namespace tiercel::bench

#endif  // TIERCEL_TESTS_BENCH_RAW_LANES_H_
