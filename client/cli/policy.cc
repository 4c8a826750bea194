// policy: what eviction would do. The engine of `policy simulate` is tiercel-policy, beside the
// server: policies are of the tiers, which a client never sees.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "client/cli/common.h"

namespace tiercel::cli {
namespace {

constexpr const char* kEngine = "tiercel-policy";

// Becomes the engine: the one beside this program, else one in PATH.
Result<int> RunEngine(const std::vector<std::string>& arguments) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string beside = error ? "" : (self.parent_path() / kEngine).string();
  std::vector<std::string> words = {kEngine, "simulate"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  if (!beside.empty()) execv(beside.c_str(), argv.data());
  execvp(kEngine, argv.data());
  return Fail(Code::kNotFound,
              fmt::format("{} is neither at {} nor in PATH ({}); it comes with tiercel-server",
                          kEngine, beside, std::strerror(errno)));
}

}  // namespace

void AddPolicyCommands(CLI::App& app, Common& /*common*/, Commands& commands) {
  CLI::App* policy = app.add_subcommand("policy", "what eviction makes of traffic");
  policy->require_subcommand(1);
  // Every argument is the engine's, --help as well.
  CLI::App* simulate = policy->add_subcommand(
      "simulate", "replay a trace through the policies: hit ratio by size, as text and picture");
  simulate->set_help_flag();
  simulate->fallthrough(false);
  simulate->prefix_command();
  commands.emplace_back(simulate, [simulate] { return RunEngine(simulate->remaining()); });
}

}  // namespace tiercel::cli
