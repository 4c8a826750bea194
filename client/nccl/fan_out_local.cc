#include <chrono>
#include <cstring>
#include <utility>

#include "base/mutex.h"
#include "client/nccl/fan_out.h"

namespace tiercel {
namespace {

// Where the ranks meet: all come, root's pieces are seen by all, all leave.
class Group {
 public:
  Group(int ranks, Nanos timeout) : ranks_(ranks), timeout_(timeout) {}
  int ranks() const { return ranks_; }

  std::string why() const {
    MutexLock lock(mutex_);
    return why_;
  }

  // What root brought; it stays root's until Leave. Null: the group is of no use any more.
  const std::vector<FanOut::Piece>* Meet(bool is_root, std::span<const FanOut::Piece> pieces) {
    MutexLock lock(mutex_);
    if (is_root) brought_.assign(pieces.begin(), pieces.end());
    return Gather(&come_) ? &brought_ : nullptr;
  }
  bool Leave(bool good) {
    MutexLock lock(mutex_);
    if (!good && why_.empty()) why_ = "a rank brought pieces of other sizes";
    return Gather(&gone_);
  }

 private:
  struct Door {
    int here = 0;
    uint64_t opened = 0;
  };
  // Until all ranks stand at it; false: one did not come.
  bool Gather(Door* door) TIERCEL_REQUIRES(mutex_) {
    const uint64_t opened = door->opened;
    if (++door->here == ranks_) {
      door->here = 0;
      ++door->opened;
      changed_.NotifyAll();
      return why_.empty();
    }
    const Nanos end = Clock::Monotonic().Now() + timeout_;
    while (door->opened == opened && why_.empty()) {
      const Nanos left = end - Clock::Monotonic().Now();
      if (left <= 0) {
        why_ = "a rank did not come";
        changed_.NotifyAll();
        break;
      }
      changed_.WaitFor(mutex_, std::chrono::nanoseconds(left));
    }
    return why_.empty();
  }

  const int ranks_;
  const Nanos timeout_;
  mutable Mutex mutex_;
  CondVar changed_;
  Door come_ TIERCEL_GUARDED_BY(mutex_), gone_ TIERCEL_GUARDED_BY(mutex_);
  std::vector<FanOut::Piece> brought_ TIERCEL_GUARDED_BY(mutex_);
  std::string why_ TIERCEL_GUARDED_BY(mutex_);
};

class LocalFanOut final : public FanOut {
 public:
  LocalFanOut(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int ranks() const override { return group_->ranks(); }
  std::string why() const override { return group_->why(); }

  Status Broadcast(int root, std::span<const Piece> pieces) override {
    if (root < 0 || root >= ranks()) return Fail(Code::kInvalidArgument, "fan-out: no such root");
    const std::vector<Piece>* from = group_->Meet(rank_ == root, pieces);
    if (from == nullptr) return Ended();
    bool good = from->size() == pieces.size();
    for (size_t i = 0; good && i < pieces.size(); ++i) {
      good = (*from)[i].bytes == pieces[i].bytes;
      if (good && rank_ != root) std::memcpy(pieces[i].data, (*from)[i].data, pieces[i].bytes);
    }
    return group_->Leave(good) ? OkStatus() : Ended();
  }

  Result<uint64_t> Tell(int root, uint64_t value) override {
    const Piece piece{&value, sizeof(value)};
    TIERCEL_TRY(Broadcast(root, std::span(&piece, 1)));
    return value;
  }

 private:
  Status Ended() const { return Fail(Code::kDeadlineExceeded, "fan-out: " + why()); }
  const std::shared_ptr<Group> group_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<FanOut>> MakeLocalFanOut(int ranks, Nanos timeout) {
  const auto group = std::make_shared<Group>(ranks, timeout);
  std::vector<std::unique_ptr<FanOut>> all;
  for (int rank = 0; rank < ranks; ++rank)
    all.push_back(std::make_unique<LocalFanOut>(group, rank));
  return all;
}

}  // namespace tiercel
