// tiercel-server: flags --> config --> Node --> run until told to stop.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <thread>

#include "base/log.h"
#include "cacheserver/config.h"
#include "cacheserver/node.h"

namespace {

std::atomic<tiercel::Node*> g_node{nullptr};
std::atomic<bool> g_stop{false};

void OnSignal(int /*signal*/) {
  g_stop.store(true);
  if (tiercel::Node* node = g_node.load(); node != nullptr) node->RequestStop();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Tiercel: keeps KV-cache blocks and hands them to any engine that meets the same prefix"};
  std::string config_file;
  std::vector<std::string> overrides;
  std::string data;
  bool insecure = false;
  bool check = false;
  bool print_config = false;
  bool print_schema = false;
  app.add_option("--config", config_file, "YAML file; without it the defaults hold");
  app.add_option("--set", overrides, "override one setting, e.g. --set memory.host=4GiB")->allow_extra_args(false);
  app.add_option("--data", data, "shorthand for --set ssd.path=...");
  app.add_flag("--insecure", insecure, "shorthand for --set insecure=true: plain text on loopback");
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
  signal(SIGPIPE, SIG_IGN);

  auto node = tiercel::Node::Start(*config);
  if (!node) {
    std::fprintf(stderr, "tiercel-server: %s\n", node.error().message.c_str());
    return 2;
  }
  g_node.store(node->get());
  while (!g_stop.load() && !(*node)->stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  (*node)->Drain();
  (*node)->Stop();
  g_node.store(nullptr);
  return 0;
}
