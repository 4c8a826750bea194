#include "client/cli/common.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>

#include "base/units.h"
#include "client/cpp/channel.h"
#include "proto/field_hash.h"

namespace tiercel::cli {

Result<Nanos> Timeout(const Common& common) {
  TIERCEL_ASSIGN(const Nanos timeout, ParseDuration(common.timeout));
  if (timeout <= 0) return Fail(Code::kInvalidArgument, "--timeout must be more than nothing");
  return timeout;
}

Result<Client::Options> ClientOptions(const Common& common) {
  Client::Options options;
  if (common.view_file.empty()) {
    options.endpoints = common.endpoints;
  } else {
    options.view_file = common.view_file;
  }
  options.name_space = common.name_space;
  options.ucx_devices = common.ucx_devices;
  options.ucx_tls = common.ucx_tls;
  options.tls_ca_file = common.ca;
  options.tls_cert_file = common.cert;
  options.tls_key_file = common.key;
  if (common.transport == "memfd") {
    options.transports = {TransportKind::kMemfd};
  } else if (common.transport == "ucx") {
    options.transports = {TransportKind::kUcx};
    if (options.ucx_devices.empty()) {
      return Fail(Code::kInvalidArgument,
                  "--transport ucx needs --ucx-devices, e.g. lo or mlx5_0:1");
    }
  } else if (common.transport == "grpc") {
    options.transports = {TransportKind::kGrpc};
  } else if (!common.transport.empty()) {
    return Fail(Code::kInvalidArgument,
                fmt::format("--transport {}: must be memfd, ucx or grpc", common.transport));
  }
  return options;
}

Result<std::unique_ptr<Client>> Connect(const Common& common) {
  TIERCEL_ASSIGN(const Client::Options options, ClientOptions(common));
  return Client::Connect(options);
}

Result<Stubs> Dial(const Common& common) {
  TIERCEL_ASSIGN(auto channel,
                 MakeChannel(common.endpoint(), TlsFiles{common.ca, common.cert, common.key}));
  return Stubs{v1::Tiercel::NewStub(channel), v1::TiercelAdmin::NewStub(channel)};
}

Status Check(const grpc::Status& status, const Common& common) {
  if (status.ok()) return OkStatus();
  const int code = static_cast<int>(status.error_code());
  std::string hint;
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    hint = "; is tiercel-server running there? `tiercel doctor` looks closer";
  }
  return Fail(code > 0 && code <= 16 ? static_cast<Code>(code) : Code::kUnknown,
              fmt::format("{}: {}{}", common.endpoint(), status.error_message(), hint));
}

void SetDeadline(grpc::ClientContext& context, Nanos timeout) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(timeout));
}

Result<Chain> KeyChain(const Common& common, const std::string& key) {
  if (key.empty()) return Fail(Code::kInvalidArgument, "the key is empty");
  ScopeFields fields;
  fields.model = "tiercel cli";
  Chain::Options options;
  options.name_space = common.name_space;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  std::array<std::byte, 32> hash;
  size_t bytes = key.size() / 2;
  if (key.size() % 2 != 0 || bytes < kMinEngineHashBytes || bytes > kMaxEngineHashBytes ||
      !FromHex(key, MutableByteSpan(hash).first(bytes))) {
    hash = FieldHash("tiercel cli key v1").Add(key).Finish();
    bytes = hash.size();
  }
  TIERCEL_TRY(chain.Append(ByteSpan(hash).first(bytes)));
  return chain;
}

Result<std::vector<std::byte>> ReadWholeFile(const std::string& path, uint64_t most) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return Fail(Code::kNotFound, fmt::format("{}: {}", path, std::strerror(errno)));
  const auto size = static_cast<uint64_t>(in.tellg());
  if (size > most) {
    return Fail(Code::kInvalidArgument, fmt::format("{} has {}; one record holds at most {}", path,
                                                    FormatBytes(size), FormatBytes(most)));
  }
  std::vector<std::byte> bytes(size);
  in.seekg(0);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (!in) return Fail(Code::kUnavailable, fmt::format("{}: cannot be read", path));
  return bytes;
}

}  // namespace tiercel::cli
