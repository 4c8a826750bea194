// FanOut gives what one rank of a group has fetched to all of them: the ranks of a tensor-parallel
// group that keep the same latent KV (MLA) need one fetch and a broadcast, not a fetch each.
//
//   MakeFanOutId (one rank, told to the others) --> JoinFanOut(id, rank, ranks) on every rank
//   FetchOnce(fan_out, root, blocks, fetch): root fetches into its own pages, every rank has them
//   then
//
// Invariants
//   Calls are collective: every rank makes the same ones in the same order, with the same root and
//   pieces of the same sizes. A call that fails on one rank fails or times out on all of them, and
//   from then on the group is of no use: why() says how it ended. A block that root could not fetch
//   is a miss on every rank.
//
// Ownership: pieces are the caller's and stay until the call returns. Threads: one at a time a
// rank. Errors: kInvalidArgument: no such root; kUnavailable: this build has no NCCL, or it failed;
// kDeadlineExceeded: a rank did not come.
//
// Implementations: fan_out_nccl.cc over the GPUs' own links, where NCCL is found; fan_out_local.cc,
// ranks as threads of one process over ordinary memory, for tests and machines without a GPU.
#ifndef TIERCEL_CLIENT_NCCL_FAN_OUT_H_
#define TIERCEL_CLIENT_NCCL_FAN_OUT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "base/unique_function.h"

namespace tiercel {

class FanOut {
 public:
  struct Piece {
    void* data = nullptr;  // In the memory of this rank's device.
    uint64_t bytes = 0;
  };

  virtual ~FanOut() = default;
  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  // Every rank's pieces hold root's bytes when it returns.
  virtual Status Broadcast(int root, std::span<const Piece> pieces) = 0;
  // Root's value, on every rank.
  virtual Result<uint64_t> Tell(int root, uint64_t value) = 0;
  virtual std::string why() const = 0;  // Empty while the group is good.
};

inline constexpr size_t kMaxFanOutBlocks = 64;

// Blocks are up to 64, each of some pieces. fetch runs on root alone, fills its pieces and says
// which blocks are there, a bit each; an error of it is a miss of all. Returns those bits, the same
// on every rank: the pieces of those blocks are filled.
Result<uint64_t> FetchOnce(FanOut& fan_out, int root,
                           std::span<const std::vector<FanOut::Piece>> blocks,
                           UniqueFunction<Result<uint64_t>()> fetch);

// Names one group, once.
using FanOutId = std::array<std::byte, 128>;

struct FanOutOptions {
  int rank = 0;
  int ranks = 1;
  int device = 0;
  Nanos timeout = 10 * kSecond;  // For the others to come, and for each call.
};

Result<FanOutId> MakeFanOutId();
Result<std::unique_ptr<FanOut>> JoinFanOut(const FanOutId& id, const FanOutOptions& options);

// One for each of so many threads.
std::vector<std::unique_ptr<FanOut>> MakeLocalFanOut(int ranks, Nanos timeout);

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_NCCL_FAN_OUT_H_
