// KillPoint ends the process at a named place in the SSD tier, as kill -9 would: what a test of
// recovery needs to know is that no such place loses what was told as durable.
//
//   TIERCEL_KILL_POINT=segment.ingested:3 tiercel-server ...     exits with 137 at the third time
//   there
//
// The names are in docs/testing.md. Without the variable a call is one load and one branch.
//
// Threads: any. Errors: none; a name that no place has never ends anything.
#ifndef TIERCEL_TIERING_SSD_KILL_POINT_H_
#define TIERCEL_TIERING_SSD_KILL_POINT_H_

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

namespace tiercel {

struct KillPlan {
  std::string name;
  std::atomic<int64_t> visits_left{0};

  static KillPlan& Get() {
    static KillPlan plan;
    return plan;
  }
  void Set(std::string_view text) {
    const size_t colon = text.find(':');
    name = std::string(text.substr(0, colon));
    visits_left = colon == std::string_view::npos ? 1 : std::atoll(text.data() + colon + 1);
  }

 private:
  KillPlan() {
    if (const char* text = std::getenv("TIERCEL_KILL_POINT")) Set(text);
  }
};

inline void KillPoint(std::string_view name) {
  KillPlan& plan = KillPlan::Get();
  if (plan.name.empty() || plan.name != name) return;
  if (plan.visits_left.fetch_sub(1) == 1) _exit(137);
}

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_KILL_POINT_H_
