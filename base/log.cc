#include "base/log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

namespace tiercel {
namespace {

std::atomic<LogLevel> g_threshold{LogLevel::kInfo};
std::atomic<LogFormat> g_format{LogFormat::kText};

void AppendJsonString(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (u < 0x20) {
      out += fmt::format("\\u{:04x}", u);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

}  // namespace

void ConfigureLog(LogLevel threshold, LogFormat format) {
  g_threshold.store(threshold);
  g_format.store(format);
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (level < g_threshold.load(std::memory_order_relaxed)) return;
  static constexpr std::string_view kNames[] = {"debug", "info", "warn", "error"};
  const std::string_view name = kNames[static_cast<size_t>(level)];
  const auto now = std::chrono::system_clock::now();
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  const std::string time = fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03d}Z",
                                       fmt::gmtime(std::chrono::system_clock::to_time_t(now)), millis);
  std::string line;
  if (g_format.load(std::memory_order_relaxed) == LogFormat::kJson) {
    line = fmt::format(R"({{"time":"{}","level":"{}","event":)", time, name);
    AppendJsonString(line, event);
    for (const LogField& field : fields) {
      line.push_back(',');
      AppendJsonString(line, field.key);
      line.push_back(':');
      if (field.quoted) {
        AppendJsonString(line, field.value);
      } else {
        line += field.value;
      }
    }
    line += "}\n";
  } else {
    line = fmt::format("{} {:<5} {}", time, name, event);
    for (const LogField& field : fields) line += fmt::format(" {}={}", field.key, field.value);
    line.push_back('\n');
  }
  // One write a line, so that lines of several threads do not mix.
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace tiercel
