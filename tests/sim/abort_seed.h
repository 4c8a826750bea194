// Names the seed when an invariant of the code under test aborts the process.
#ifndef TIERCEL_TESTS_SIM_ABORT_SEED_H_
#define TIERCEL_TESTS_SIM_ABORT_SEED_H_

#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace tiercel {

inline volatile uint64_t g_running_seed = 0;

inline void NameSeedOnAbort() {
  signal(SIGABRT, [](int) {
    char text[64];
    const int size = std::snprintf(text, sizeof(text), "aborted in seed %llu\n",
                                   static_cast<unsigned long long>(g_running_seed));
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text, static_cast<size_t>(size));
    signal(SIGABRT, SIG_DFL);
  });
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_SIM_ABORT_SEED_H_
