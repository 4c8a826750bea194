#include "client/cpp/router.h"

namespace tiercel {

Router::Target Router::Table::Owner(const PlacementKey& anchor) const {
  if (placement.empty()) return {};
  const Placement::Slot slot = placement.Owner(anchor);
  return {&view.nodes[slot.node], slot.shard};
}

void Router::Replace(View view, Nanos now) {
  previous_ = std::move(current_);
  previous_until_ = now + kViewGrace;
  current_ = std::make_unique<Table>(std::move(view));
}

std::optional<Router::Target> Router::PreviousOwner(const PlacementKey& anchor, Nanos now) const {
  if (previous_ == nullptr || now >= previous_until_) return std::nullopt;
  const Target before = previous_->Owner(anchor);
  if (before.node == nullptr || before == current_->Owner(anchor)) return std::nullopt;
  return before;
}

}  // namespace tiercel
