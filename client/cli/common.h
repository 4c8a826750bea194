// What the commands of `tiercel` share: where the node is, how to reach it, how errors are told.
// Exit codes: 0 it worked; 1 it did not (a miss, a node away, a bad record); 2 it was asked
// wrongly.
#ifndef TIERCEL_CLIENT_CLI_COMMON_H_
#define TIERCEL_CLIENT_CLI_COMMON_H_

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "client/cpp/client.h"
#include "proto/tiercel.grpc.pb.h"

namespace CLI {
class App;
}

namespace tiercel::cli {

struct Common {
  std::vector<std::string> endpoints;
  std::string view_file;
  std::string name_space = "default";
  std::string transport;  // One of memfd, ucx, grpc; empty: the client's choice.
  std::string ucx_devices;
  std::string ucx_tls = "tcp";
  std::string timeout = "5s";
  std::string ca, cert, key;
  bool json = false;

  const std::string& endpoint() const { return endpoints.front(); }
};

// A command fills in its options and leaves what is to be run.
using Run = std::function<Result<int>()>;
using Commands = std::vector<std::pair<CLI::App*, Run>>;
void AddDataCommands(CLI::App& app, Common& common, Commands& commands);
void AddAdminCommands(CLI::App& app, Common& common, Commands& commands);
void AddBenchCommand(CLI::App& app, Common& common, Commands& commands);
void AddCodecCommands(CLI::App& app, Common& common, Commands& commands);
void AddDoctorCommand(CLI::App& app, Common& common, Commands& commands);
void AddPolicyCommands(CLI::App& app, Common& common, Commands& commands);

Result<Client::Options> ClientOptions(const Common& common);
Result<std::unique_ptr<Client>> Connect(const Common& common);
Result<Nanos> Timeout(const Common& common);

struct Stubs {
  std::unique_ptr<v1::Tiercel::Stub> data;
  std::unique_ptr<v1::TiercelAdmin::Stub> admin;
};
Result<Stubs> Dial(const Common& common);
// ok, or an Error that says which node and what to do about it.
Status Check(const grpc::Status& status, const Common& common);
void SetDeadline(grpc::ClientContext& context, Nanos timeout);

// A chain of one block for a key as people write it: 32 to 64 hex digits are the engine's hash, any
// other text is hashed.
Result<Chain> KeyChain(const Common& common, const std::string& key);
Result<std::vector<std::byte>> ReadWholeFile(const std::string& path, uint64_t most);

}  // namespace tiercel::cli

#endif  // TIERCEL_CLIENT_CLI_COMMON_H_
