#include "client/nccl/fan_out.h"

#include <fmt/format.h>

namespace tiercel {

Result<uint64_t> FetchOnce(FanOut& fan_out, int root,
                           std::span<const std::vector<FanOut::Piece>> blocks,
                           UniqueFunction<Result<uint64_t>()> fetch) {
  if (blocks.size() > kMaxFanOutBlocks) {
    return Fail(Code::kInvalidArgument,
                fmt::format("fan-out of {} blocks, at most {}", blocks.size(), kMaxFanOutBlocks));
  }
  uint64_t here = 0;
  if (fan_out.rank() == root) {
    const Result<uint64_t> fetched = fetch();
    if (fetched) here = *fetched;
    if (blocks.size() < kMaxFanOutBlocks) here &= (uint64_t{1} << blocks.size()) - 1;
  }
  TIERCEL_ASSIGN(here, fan_out.Tell(root, here));
  std::vector<FanOut::Piece> pieces;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if ((here >> i & 1) != 0) pieces.insert(pieces.end(), blocks[i].begin(), blocks[i].end());
  }
  if (!pieces.empty()) TIERCEL_TRY(fan_out.Broadcast(root, pieces));
  return here;
}

}  // namespace tiercel
