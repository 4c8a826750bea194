// One structured log line a call: LogInfo("server.start", {{"node", id}, {"shards", n}}). Written as
// one JSON object (or text, for people) a line to stderr. Never called on a hot path.
//
// Threads: any. Errors: none; a line that cannot be written is dropped.
#ifndef TIERCEL_BASE_LOG_H_
#define TIERCEL_BASE_LOG_H_

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace tiercel {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarn, kError };
enum class LogFormat : uint8_t { kText, kJson };

struct LogField {
  template <class T>
    requires std::integral<T>
  LogField(std::string_view k, T v) : key(k), value(std::to_string(v)), quoted(false) {
    if constexpr (std::same_as<T, bool>) value = v ? "true" : "false";
  }
  LogField(std::string_view k, double v) : key(k), value(std::to_string(v)), quoted(false) {}
  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(v) {}

  std::string_view key;
  std::string value;
  bool quoted = true;
};

void ConfigureLog(LogLevel threshold, LogFormat format);
void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

inline void LogDebug(std::string_view e, std::initializer_list<LogField> f = {}) { Log(LogLevel::kDebug, e, f); }
inline void LogInfo(std::string_view e, std::initializer_list<LogField> f = {}) { Log(LogLevel::kInfo, e, f); }
inline void LogWarn(std::string_view e, std::initializer_list<LogField> f = {}) { Log(LogLevel::kWarn, e, f); }
inline void LogError(std::string_view e, std::initializer_list<LogField> f = {}) { Log(LogLevel::kError, e, f); }

}  // namespace tiercel

#endif  // TIERCEL_BASE_LOG_H_
