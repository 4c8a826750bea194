// TIERCEL_CHECK aborts, in release builds too, when an invariant of ours is broken. It is for bugs
// only: whatever can come from a wire, a file, a config or an argument is an Error (base/result.h).
#ifndef TIERCEL_BASE_CHECK_H_
#define TIERCEL_BASE_CHECK_H_

namespace tiercel {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}  // namespace tiercel

#define TIERCEL_CHECK(condition)                                                  \
  do {                                                                            \
    if (__builtin_expect(!(condition), 0))                                        \
      ::tiercel::CheckFailed(__FILE__, __LINE__, #condition);                     \
  } while (0)

#endif  // TIERCEL_BASE_CHECK_H_
