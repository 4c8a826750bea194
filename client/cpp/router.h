// Router says where each block of a request goes: to its owner by the current view and, for a grace
// time after a view change, where the previous view had put it.
//
// Consecutive blocks with one owner travel in one frame, also across runs, so a chain on one node
// is one frame for 64 blocks.
//
// Threads: one owner. A view is replaced, never changed.
#ifndef TIERCEL_CLIENT_CPP_ROUTER_H_
#define TIERCEL_CLIENT_CPP_ROUTER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/clock.h"
#include "proto/view.h"

namespace tiercel {

inline constexpr Nanos kViewGrace = 30 * kSecond;

class Router {
 public:
  struct Target {
    const NodeInfo* node = nullptr;  // Null: no shard takes blocks. Lives as long as its view.
    uint32_t shard = 0;
    bool operator==(const Target& other) const {
      return shard == other.shard &&
             (node == other.node ||
              (node != nullptr && other.node != nullptr && node->id == other.node->id));
    }
  };

  explicit Router(View view) : current_(std::make_unique<Table>(std::move(view))) {}

  // The old view stays readable for kViewGrace. Its nodes may be gone: then it is asked for
  // nothing.
  void Replace(View view, Nanos now);

  const View& view() const { return current_->view; }
  const View* previous(Nanos now) const {
    return previous_ != nullptr && now < previous_until_ ? &previous_->view : nullptr;
  }

  Target Owner(const PlacementKey& anchor) const { return current_->Owner(anchor); }
  // Where the block sat before, if that is another shard and the grace time is not over.
  std::optional<Target> PreviousOwner(const PlacementKey& anchor, Nanos now) const;

 private:
  struct Table {
    explicit Table(View v) : view(std::move(v)), placement(view) {}
    Target Owner(const PlacementKey& anchor) const;
    View view;
    Placement placement;
  };

  std::unique_ptr<Table> current_;
  std::unique_ptr<Table> previous_;
  Nanos previous_until_ = 0;
};

// Cuts [begin, end) into the longest stretches for which same(i) holds between i - 1 and i, of at
// most max each, and calls use(from, to) for each.
template <class Same, class Use>
void ForEachStretch(uint32_t begin, uint32_t end, uint32_t max, Same&& same, Use&& use) {
  uint32_t from = begin;
  for (uint32_t i = begin + 1; i <= end; ++i) {
    if (i == end || i - from == max || !same(i)) {
      use(from, i);
      from = i;
    }
  }
}

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_ROUTER_H_
