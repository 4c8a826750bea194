// HazardPolicy keeps the blocks that are likeliest to be used within the time that a block stays
// here. Blocks fall into classes: how often they were used, and what is known of their
// conversation: the caller's word on whether it goes on (reuse_hint), else its turn. A ReuseModel
// learns how blocks of each class come back; a class is a list, and the victim is the coldest block
// of the list that is worth least.
//
// A hint is a class, not an order: what it is worth is what was seen to come of it. Callers that
// lie teach the model that their word means nothing.
//
// Until the model has seen enough, this is TailFirstLru, but that callers are taken at their word.
//
// With hints_and_turns off, classes are uses alone: HAZ1, to compare with.
//
// Ownership, threads, errors: as EvictionPolicy.
#ifndef TIERCEL_TIERING_POLICY_HAZARD_H_
#define TIERCEL_TIERING_POLICY_HAZARD_H_

#include "tiering/policy_lists.h"
#include "tiering/policy_reuse.h"

namespace tiercel {

class HazardPolicy final : public ListPolicy {
 public:
  HazardPolicy(uint64_t seed, bool hints_and_turns);
  uint64_t Rank(const Block& block) const override;

  const ReuseModel& model() const { return model_; }

 private:
  size_t ClassOf(const Block& block, ReuseHint hint) const;
  size_t Place(Block& block, const BlockUse& use, bool added) override;
  void Chosen(const Block& block) override;
  uint64_t RankUntil(const Block& block, uint32_t* until) const override;
  void Learned();

  const bool hints_and_turns_;
  ReuseModel model_;
  uint64_t fits_ = 0;  // Of the model, as far as ranks were told of them.
};

}  // namespace tiercel

#endif  // TIERCEL_TIERING_POLICY_HAZARD_H_
