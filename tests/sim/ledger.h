// Ledger is what may and what must be true of each block, by what the clients sent and were told; and
// the first thing that was not.
//
// Threads: one.
#ifndef TIERCEL_TESTS_SIM_LEDGER_H_
#define TIERCEL_TESTS_SIM_LEDGER_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "tests/sim/world.h"

namespace tiercel {

class Ledger {
 public:
  struct Entry {
    bool may_exist = false;  // It was put, and not cleared since.
    bool durable = false;    // A client was told that it is on SSD.
    uint32_t unanswered = 0;  // Puts of the node's present life whose fate no one knows.
    uint64_t cleared_by = 0;  // The number of the last clear that met it.
  };
  Entry& at(const BlockId& id, bool lossy) { return entries_[{id, lossy}]; }
  std::map<std::pair<BlockId, bool>, Entry>& entries() { return entries_; }

  void Cleared(uint32_t space, const Scope& scope) {
    ++clears_;
    for (auto& [key, entry] : entries_) {
      if (key.first.space != space || (scope != Scope{} && World::ScopeOf(key.first.chain) != scope)) continue;
      entry.may_exist = entry.unanswered > 0;
      entry.durable = false;
      entry.cleared_by = clears_;
    }
  }
  uint64_t clears() const { return clears_; }
  void NodeDied() {
    for (auto& [key, entry] : entries_) entry.unanswered = 0;
  }

  void Violated(const std::string& what) {
    if (violation_.empty()) violation_ = what;
  }
  const std::string& violation() const { return violation_; }

 private:
  std::map<std::pair<BlockId, bool>, Entry> entries_;
  uint64_t clears_ = 0;
  std::string violation_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_SIM_LEDGER_H_
