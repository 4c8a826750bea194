// The small enumerations that files and wires of ours carry. Values are frozen: new ones may be
// added at the end, none may change.
#ifndef TIERCEL_PROTO_TYPES_H_
#define TIERCEL_PROTO_TYPES_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace tiercel {

// What quality a record has, or a reader accepts at worst. Smaller is better.
enum class QualityClass : uint8_t { kExact = 0, kNear = 1, kHigh = 2, kBalanced = 3, kSmall = 4 };
inline constexpr int kQualityClasses = 5;

// Why a block was not served. Every miss has exactly one; kUnknown is counted and is an alarm.
enum class MissReason : uint8_t {
  kNone = 0,        // Not a miss.
  kNeverSeen = 1,   // No block of this key was ever stored here, as far as this node remembers.
  kEvicted = 2,     // It was here and made room for others.
  kOtherScope = 3,  // The engine hash is here under another model, revision or layout.
  kOtherClass = 4,  // It is here, in a class worse than the reader accepts.
  kCleared = 5,     // An operator or tenant cleared it.
  kCorrupt = 6,     // It was here and failed its checksum.
  kBreaker = 7,     // Not asked: the client's breaker for that node is open.
  kDeadline = 8,    // The answer did not come in time.
  kBusy = 9,        // The node refused: a queue or limit was full.
  kUnknown = 10,
  kExpired = 11,  // It was here for as long as its name space keeps blocks.
};
inline constexpr int kMissReasons = 12;

// What the caller knows about the chain's future; unknown is the honest default.
enum class ReuseHint : uint8_t { kUnknown = 0, kLikely = 1, kUnlikely = 2, kDone = 3 };

// Of several stored representations that are good enough: the smaller, or the better one?
enum class Prefer : uint8_t { kGood = 0, kSmall = 1 };

enum class Tier : uint8_t { kNone = 0, kDevice = 1, kHost = 2, kSsd = 3 };
inline constexpr int kTiers = 4;

// "exact", "never_seen", "host", ...: the spelling in metrics, logs and configs.
std::string_view Name(QualityClass value);
std::string_view Name(MissReason value);
std::string_view Name(ReuseHint value);
std::string_view Name(Tier value);
std::optional<QualityClass> ParseQualityClass(std::string_view name);

}  // namespace tiercel

#endif  // TIERCEL_PROTO_TYPES_H_
