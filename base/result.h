// Result<T> carries a value or an Error. Three kinds of not-succeeding, three spellings, never mixed:
// a miss is std::optional or a status in a batch, an operating error is a Result, a bug aborts
// (base/check.h). The function that finds an error writes the sentence; nobody re-logs it.
//
// Reasons and measurements: docs/adr/0001-result-type.md.
#ifndef TIERCEL_BASE_RESULT_H_
#define TIERCEL_BASE_RESULT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace tiercel {

// Values equal gRPC's status codes, so an edge converts with one cast.
enum class Code : uint8_t {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

// "INVALID_ARGUMENT" and so on; "CODE_<n>" for a value that is none of the above.
std::string CodeName(Code code);

struct [[nodiscard]] Error {
  Code code = Code::kUnknown;
  std::string message;  // One sentence: what, where, and what to do about it where we know.

  std::string ToString() const { return CodeName(code) + ": " + message; }
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return Fail(Code::kNotFound, "segment 7 of /data is gone");
inline tl::unexpected<Error> Fail(Code code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

inline Status OkStatus() { return Status(); }

}  // namespace tiercel

// TIERCEL_TRY(expr);                     returns the error of a Status or Result
// TIERCEL_ASSIGN(auto x, expr);          the same, and else moves the value into x
#define TIERCEL_TRY(expr)                                                        \
  do {                                                                           \
    auto tiercel_try_result = (expr);                                            \
    if (!tiercel_try_result)                                                     \
      return ::tl::unexpected<::tiercel::Error>(std::move(tiercel_try_result).error()); \
  } while (0)
#define TIERCEL_CONCAT_(a, b) a##b
#define TIERCEL_CONCAT(a, b) TIERCEL_CONCAT_(a, b)
#define TIERCEL_ASSIGN_(tmp, lhs, expr)                                    \
  auto tmp = (expr);                                                       \
  if (!tmp) return ::tl::unexpected<::tiercel::Error>(std::move(tmp).error()); \
  lhs = std::move(*tmp)
#define TIERCEL_ASSIGN(lhs, expr) TIERCEL_ASSIGN_(TIERCEL_CONCAT(tiercel_result_, __LINE__), lhs, expr)

#endif  // TIERCEL_BASE_RESULT_H_
