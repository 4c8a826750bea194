// tiercel: the command line of a Tiercel cache. One verb a command; `tiercel --help` lists them.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "client/cli/common.h"

int main(int argc, char** argv) {
  using namespace tiercel;       // NOLINT
  using namespace tiercel::cli;  // NOLINT
  ConfigureLog(LogLevel::kError, LogFormat::kText);

  CLI::App app("Talks to a Tiercel KV-cache node.", "tiercel");
  app.set_version_flag("--version", TIERCEL_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  Common common;
  app.add_option("-e,--endpoint", common.endpoints, "host:port or unix:/path; may be repeated")
      ->envname("TIERCEL_ENDPOINT")
      ->delimiter(',');
  app.add_option("--view-file", common.view_file,
                 "place blocks by this view instead of the nodes' own");
  app.add_option("-n,--namespace", common.name_space, "name space of the session")
      ->capture_default_str();
  app.add_option("-t,--transport", common.transport, "only this: memfd, ucx or grpc");
  app.add_option("--ucx-devices", common.ucx_devices,
                 "offer UCX on these devices, e.g. lo or mlx5_0:1");
  app.add_option("--ucx-tls", common.ucx_tls, "UCX transports")->capture_default_str();
  app.add_option("--timeout", common.timeout, "deadline of a call")->capture_default_str();
  app.add_option("--tls-ca", common.ca, "certificate authority (PEM)");
  app.add_option("--tls-cert", common.cert, "our certificate (PEM)");
  app.add_option("--tls-key", common.key, "our key (PEM)");
  app.add_flag("--json", common.json, "print JSON");

  Commands commands;
  AddDataCommands(app, common, commands);
  AddBenchCommand(app, common, commands);
  AddCodecCommands(app, common, commands);
  AddDoctorCommand(app, common, commands);
  AddAdminCommands(app, common, commands);
  AddPolicyCommands(app, common, commands);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (common.endpoints.empty()) common.endpoints = {"127.0.0.1:7400"};
  for (auto& [command, run] : commands) {
    if (!command->parsed()) continue;
    const Result<int> code = run();
    if (code) return *code;
    fmt::print(stderr, "tiercel {}: {}\n", command->get_name(), code.error().ToString());
    return code.error().code == Code::kInvalidArgument ? 2 : 1;
  }
  return 2;
}
