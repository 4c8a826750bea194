#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace tiercel {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "tiercel: check failed at %s:%d: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace tiercel
