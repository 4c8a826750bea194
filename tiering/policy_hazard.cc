#include "tiering/policy_hazard.h"

#include <algorithm>

namespace tiercel {
namespace {

constexpr size_t kUses = 4;                // 1, 2, 3, more.
constexpr size_t kTurns = 3;               // 1, 2, more.
constexpr size_t kStates = kTurns + 3;     // Turns; likely, unlikely, done.
constexpr size_t kTips = kUses * kStates;  // A class a hint.
constexpr size_t kClasses = kTips + 4;
constexpr int kWorthShift = 54;
constexpr int kUsedShift = 22;
constexpr int kOrderShift = 12;
constexpr uint64_t kOrders = uint64_t{1} << (kUsedShift - kOrderShift);
constexpr uint64_t kDeepest = (uint64_t{1} << kOrderShift) - 1;
// A child that comes this long after its parent's last use belongs to another request.
constexpr uint32_t kSameRequest = 150;

size_t StateOf(ReuseHint hint, size_t turn) {
  switch (hint) {
    case ReuseHint::kLikely:
      return 3;
    case ReuseHint::kUnlikely:
      return 4;
    case ReuseHint::kDone:
      return 5;
    case ReuseHint::kUnknown:
      break;
  }
  return std::min<size_t>(turn, 3) - 1;
}

// A block cannot come back without its parent, and of one request's chain the parent was used as
// often or oftener. A use takes a block to the next turn as well: what was just used again is worth
// no less than what was not, whatever little is known of the next turn yet.
ReuseModel::Parts Parts() {
  ReuseModel::Parts parts;
  for (size_t state = kStates; state-- > 0;) {
    for (size_t uses = kUses - 1; uses > 0; --uses) {
      parts.emplace_back(state * kUses + uses - 1, state * kUses + uses);
      if (state + 1 < kTurns)
        parts.emplace_back(state * kUses + uses - 1, (state + 1) * kUses + uses);
    }
  }
  for (size_t hint = 0; hint < 4; ++hint) {
    parts.emplace_back(kTips + hint, kUses * StateOf(static_cast<ReuseHint>(hint), 1));
  }
  return parts;
}

// What a class is worth before the model knows anything: what callers say is taken for true.
uint64_t Untaught(size_t list) {
  const size_t state =
      list < kTips ? list / kUses : StateOf(static_cast<ReuseHint>(list - kTips), 1);
  if (state < 3) return 1;
  return state == 3 ? 2 : 0;
}

}  // namespace

HazardPolicy::HazardPolicy(uint64_t seed, bool hints_and_turns)
    : ListPolicy(kClasses), hints_and_turns_(hints_and_turns), model_(seed, kClasses, Parts()) {}

size_t HazardPolicy::ClassOf(const Block& block, ReuseHint hint) const {
  const size_t uses = std::min<size_t>(block.uses, kUses) - 1;
  return hints_and_turns_ ? uses + kUses * StateOf(hint, block.turn + block.uses - 1u) : uses;
}

size_t HazardPolicy::Place(Block& block, const BlockUse& use, bool added) {
  if (!added) {
    if (block.uses < 255) ++block.uses;
    const size_t list = ClassOf(block, use.hint);
    model_.Use(block.key.hash64(), static_cast<uint8_t>(list), tick_now());
    Learned();
    return list;
  }
  block.uses = use.came_back ? 2 : 1;
  block.turn = 1;
  Block* parent = use.parent;
  if (parent != nullptr) {
    const bool same = parent->uses == 1 && tick_now() - parent->used <= kSameRequest;
    block.turn = static_cast<uint8_t>(std::min(parent->turn + (same ? 0 : 1), 255));
    if (parent->list >= kTips) {  // It has a child: no tip.
      const size_t list = ClassOf(*parent, static_cast<ReuseHint>(parent->list - kTips));
      model_.Reclass(parent->key.hash64(), static_cast<uint8_t>(list));
      Move(SpaceOf(*parent), *parent, list, use.grandparent);
    }
  }
  const size_t list =
      hints_and_turns_ ? kTips + static_cast<size_t>(use.hint) : ClassOf(block, use.hint);
  model_.Use(block.key.hash64(), static_cast<uint8_t>(list), tick_now());
  Learned();
  return list;
}

void HazardPolicy::Chosen(const Block& /*block*/) {
  model_.Evicted(size(), tick_now());
  Learned();
}

void HazardPolicy::Learned() {
  if (model_.fits() == fits_) return;
  fits_ = model_.fits();
  RanksChanged();
}

uint64_t HazardPolicy::RankUntil(const Block& block, uint32_t* until) const {
  const uint64_t end = ReuseModel::SpanEnd(tick_now() - block.used);
  *until = static_cast<uint32_t>(std::min<uint64_t>(end + block.used, UINT32_MAX));
  return Rank(block);
}

uint64_t HazardPolicy::Rank(const Block& block) const {
  uint64_t worth = model_.Worth(block.list, tick_now() - block.used);
  if (worth == 0 && hints_and_turns_) worth = Untaught(block.list);
  // Of equal worth the one used longer ago goes; of one tick, as their chains came; of one chain
  // the deeper.
  return worth << kWorthShift | uint64_t{block.used} << kUsedShift |
         block.order % kOrders << kOrderShift |
         (kDeepest - std::min<uint64_t>(block.chain_index, kDeepest));
}

}  // namespace tiercel
