// tiercel-server: flags --> config --> Node --> run until told to stop.
//
// SIGTERM, SIGINT: drain and end. SIGUSR2: start the program that lies at this one's path now, with the
// same arguments and --takeover; it asks for what is in RAM and this one ends (cacheserver/handover.h).
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/file_descriptor.h"
#include "base/log.h"
#include "cacheserver/config.h"
#include "cacheserver/node.h"

namespace {

std::atomic<tiercel::Node*> g_node{nullptr};
std::atomic<bool> g_stop{false};
std::atomic<bool> g_upgrade{false};

void OnSignal(int /*signal*/) {
  g_stop.store(true);
  if (tiercel::Node* node = g_node.load(); node != nullptr) node->RequestStop();
}

void OnUpgrade(int /*signal*/) { g_upgrade.store(true); }

// -1: it could not be started, which is logged.
pid_t StartSuccessor(const std::string& program, int argc, char** argv) {
  std::vector<std::string> arguments(argv, argv + argc);
  if (std::find(arguments.begin(), arguments.end(), "--takeover") == arguments.end()) {
    arguments.emplace_back("--takeover");
  }
  std::vector<char*> pointers;
  for (std::string& one : arguments) pointers.push_back(one.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  pid_t pid = -1;
  const int failed = posix_spawn(&pid, program.c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    tiercel::LogWarn("upgrade.failed", {{"program", program}, {"why", std::strerror(failed)}});
    return -1;
  }
  tiercel::LogInfo("upgrade.started", {{"program", program}, {"pid", pid}});
  return pid;
}

// What systemd's Type=notify waits for; nothing where no supervisor listens.
void TellSupervisor(const std::string& state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || *path == '\0' || std::strlen(path) >= sizeof(address.sun_path)) return;
  const size_t length = std::strlen(path);
  std::memcpy(address.sun_path, path, length);
  if (*path == '@') address.sun_path[0] = '\0';
  const tiercel::FileDescriptor socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  (void)sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
               static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Tiercel: keeps KV-cache blocks and hands them to any engine that meets the same prefix"};
  std::string config_file;
  std::vector<std::string> overrides;
  std::string data;
  bool insecure = false;
  bool take_over = false;
  bool check = false;
  bool print_config = false;
  bool print_schema = false;
  app.add_option("--config", config_file, "YAML file; without it the defaults hold");
  app.add_option("--set", overrides, "override one setting, e.g. --set memory.host=4GiB")->allow_extra_args(false);
  app.add_option("--data", data, "shorthand for --set ssd.path=...");
  app.add_flag("--insecure", insecure, "shorthand for --set insecure=true: plain text on loopback");
  app.add_flag("--takeover", take_over, "take what the running server has in RAM, and its place; without one, start cold");
  app.add_flag("--check", check, "check the config and exit");
  app.add_flag("--print-config", print_config, "print every setting with its value and exit");
  app.add_flag("--print-schema", print_schema, "print the JSON schema of the config and exit");
  app.set_version_flag("--version", std::string("tiercel-server ") + tiercel::kVersion);
  CLI11_PARSE(app, argc, argv);

  if (print_schema) {
    std::puts(tiercel::PrintSchema().c_str());
    return 0;
  }
  if (insecure) overrides.emplace_back("insecure=true");
  if (!data.empty()) overrides.push_back("ssd.path=" + data);
  const auto config = tiercel::LoadConfigFile(config_file, overrides);
  if (!config) {
    std::fprintf(stderr, "tiercel-server: %s\n", config.error().message.c_str());
    return 2;
  }
  if (print_config) std::fputs(tiercel::PrintConfig(*config).c_str(), stdout);
  if (check || print_config) return 0;

  tiercel::ConfigureLog(config->level(), config->format());
  struct sigaction action{};
  action.sa_handler = OnSignal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  action.sa_handler = OnUpgrade;
  sigaction(SIGUSR2, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // As it is called now: by the time of an upgrade another file may lie there.
  std::error_code ec;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", ec).string();

  auto node = tiercel::Node::Start(*config, take_over);
  if (!node) {
    std::fprintf(stderr, "tiercel-server: %s\n", node.error().message.c_str());
    return 2;
  }
  g_node.store(node->get());
  TellSupervisor("READY=1\nMAINPID=" + std::to_string(getpid()));
  pid_t successor = -1;
  while (!g_stop.load() && !(*node)->stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    int status = 0;
    if (successor > 0 && waitpid(successor, &status, WNOHANG) == successor) {
      tiercel::LogWarn("upgrade.failed", {{"pid", successor}, {"status", status}});
      successor = -1;
    }
    if (g_upgrade.exchange(false) && successor < 0) successor = StartSuccessor(program, argc, argv);
  }
  (*node)->Drain();
  (*node)->Stop();
  g_node.store(nullptr);
  return 0;
}
