// codec: which there are, what each would cost here and which would be picked, artifacts to and from the cache.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "base/units.h"
#include "client/cli/common.h"
#include "client/cpp/artifact_store.h"
#include "kernels/record.h"

namespace tiercel::cli {
namespace {

Result<std::shared_ptr<const Artifact>> ReadArtifact(const std::string& path) {
  TIERCEL_ASSIGN(const std::vector<std::byte> bytes, ReadWholeFile(path, kMaxArtifactBytes));
  Result<std::shared_ptr<const Artifact>> artifact = Artifact::Parse(bytes);
  if (!artifact) return Fail(artifact.error().code, fmt::format("{}: {}", path, artifact.error().message));
  return artifact;
}

Result<QualityClass> ParseClass(const std::string& name) {
  const auto quality = ParseQualityClass(name);
  if (quality) return *quality;
  return Fail(Code::kInvalidArgument, fmt::format("no class '{}': exact, near, high, balanced or small", name));
}

Result<int> List(const Common& common) {
  nlohmann::json rows = nlohmann::json::array();
  for (size_t id = 0; id < kCodecs; ++id) {
    const Codec* codec = FindCodec(static_cast<CodecId>(id));
    if (codec == nullptr) continue;
    const std::string best(Name(codec->quality()));
    if (common.json) {
      rows.push_back({{"codec", Name(codec->id())}, {"best_class", best}, {"one_class", codec->one_class()},
                      {"artifact", codec->needs_artifact()}});
    } else {
      fmt::print("{:<6} {}{}{}\n", Name(codec->id()), best, codec->one_class() ? "" : " or worse, as asked",
                 codec->needs_artifact() ? "; needs the model's artifact" : "");
    }
  }
  if (common.json) fmt::print("{}\n", rows.dump(2));
  return 0;
}

struct ExplainArguments {
  std::string quality = "exact", dtype = "bf16", artifact, data;
  uint32_t layers = 30, heads = 3, dim = 64, tokens = 256, blocks = 8;
};

// Values as KV has them: about normal, a scale a channel, outliers in a few.
std::vector<std::byte> MadeUpBlock(const KvLayout& layout, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<std::byte> block(layout.block_bytes());
  for (size_t i = 0; i + 2 <= block.size(); i += 2) {
    double sum = 0;
    for (int k = 0; k < 4; ++k) sum += random.Uniform() - 0.5;
    const auto channel = static_cast<uint32_t>(i / 2 % layout.head_dim_k);
    const auto value = static_cast<float>(sum * (channel % 32 == 13 ? 16.0 : 0.5 + channel % 7));
    uint16_t out = 0;
    if (layout.dtype == Dtype::kBf16) {
      out = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    } else {
      const auto half = static_cast<_Float16>(value);
      std::memcpy(&out, &half, 2);
    }
    StoreLe(block.data() + i, out);
  }
  return block;
}

Result<KvLayout> LayoutOf(const ExplainArguments& arguments) {
  KvLayout layout;
  layout.layers = static_cast<uint16_t>(arguments.layers);
  layout.kv_heads = static_cast<uint16_t>(arguments.heads);
  layout.head_dim_k = layout.head_dim_v = static_cast<uint16_t>(arguments.dim);
  layout.tokens_per_block = arguments.tokens;
  if (arguments.dtype != "bf16" && arguments.dtype != "fp16") {
    return Fail(Code::kInvalidArgument, fmt::format("dtype '{}' is neither bf16 nor fp16", arguments.dtype));
  }
  layout.dtype = arguments.dtype == "bf16" ? Dtype::kBf16 : Dtype::kFp16;
  if (layout.block_bytes() > 16 * kMiB) {
    return Fail(Code::kInvalidArgument, fmt::format("a block of that layout is {}; at most 16 MiB here: fewer layers tell the same",
                                                    FormatBytes(layout.block_bytes())));
  }
  return layout;
}

Result<int> Explain(const Common& common, const ExplainArguments& arguments) {
  TIERCEL_ASSIGN(const QualityClass worst, ParseClass(arguments.quality));
  TIERCEL_ASSIGN(const KvLayout layout, LayoutOf(arguments));
  TIERCEL_ASSIGN(Client::Options client_options, ClientOptions(common));
  client_options.controller.explore_every = 0;
  if (!arguments.artifact.empty()) {
    TIERCEL_ASSIGN(client_options.artifact, ReadArtifact(arguments.artifact));
    TIERCEL_TRY(UseArtifact(client_options.artifact));
  }
  std::vector<std::vector<std::byte>> data;
  if (arguments.data.empty()) {
    for (uint32_t i = 0; i < 2; ++i) data.push_back(MadeUpBlock(layout, i + 1));
  } else {
    TIERCEL_ASSIGN(std::vector<std::byte> bytes, ReadWholeFile(arguments.data, 16 * kMiB));
    if (bytes.size() != layout.block_bytes()) {
      return Fail(Code::kInvalidArgument, fmt::format("{} has {} bytes; a block of that layout has {}", arguments.data,
                                                      bytes.size(), layout.block_bytes()));
    }
    data.push_back(std::move(bytes));
  }
  TIERCEL_ASSIGN(auto client, Client::Connect(client_options));
  ScopeFields fields;
  fields.model = "tiercel codec explain";
  fields.salt = std::to_string(Clock::Monotonic().Now());
  fields.layout = layout;
  CodecController::Ask ask;
  TIERCEL_ASSIGN(ask.scope, MakeScope(fields));
  ask.dtype = layout.dtype;
  ask.worst = worst;
  ask.artifact = client_options.artifact != nullptr;
  ask.raw_bytes = layout.block_bytes();
  ask.blocks = arguments.blocks;
  std::string reached = "?";
  for (const Client::NodeStatus& node : client->Nodes()) {
    if (!node.transports.empty()) reached = node.transports.front();
  }
  for (const TransportKind kind : {TransportKind::kMemfd, TransportKind::kUcx, TransportKind::kGrpc}) {
    if (reached.find(std::string(Name(kind)) + " ") != std::string::npos) ask.link = kind;
  }
  Chain::Options chain_options;
  chain_options.name_space = common.name_space;
  chain_options.scope = ask.scope;
  RequestOptions request;
  TIERCEL_ASSIGN(request.deadline, Timeout(common));
  SplitMix64 random(static_cast<uint64_t>(Clock::Monotonic().Now()));
  std::vector<std::byte> got(layout.block_bytes());
  std::string trouble;
  for (const CodecController::Candidate& candidate : client->ExplainCodecs(ask)) {
    request.codec = candidate.codec;
    request.put_class = request.min_class = worst;
    for (uint32_t i = 0; i < arguments.blocks; ++i) {
      std::array<std::byte, 32> hash;
      for (size_t k = 0; k < 4; ++k) StoreLe(hash.data() + k * 8, random.Next());
      Chain chain(chain_options);
      TIERCEL_TRY(chain.Append(hash));
      const PutSource source{PutSource::Kind::kBlock, data[i % data.size()], nullptr, {}};
      const Completion put = client->Put(chain, 0, {&source, 1}, layout, request);
      GetSlot slot;
      slot.dst = got;
      const bool stored = put.status && put.blocks[0].status == Code::kOk;
      const Completion back = stored ? client->Get(chain, 0, {&slot, 1}, layout, request) : Completion();
      if (stored && back.prefix == 1) continue;
      trouble = fmt::format("{}: {}", Name(candidate.codec),
                            !put.status ? put.status.error().message : stored ? "not fetched again" : "not stored");
      break;
    }
  }
  const auto candidates = client->ExplainCodecs(ask);
  if (auto stubs = Dial(common)) {  // What was tried does not stay.
    grpc::ClientContext context;
    SetDeadline(context, request.deadline);
    v1::ClearRequest clear;
    v1::ClearResponse cleared;
    clear.set_name_space(common.name_space);
    clear.set_scope(ask.scope.bytes.data(), ask.scope.bytes.size());
    (void)stubs->admin->Clear(&context, clear, &cleared);
  }
  if (common.json) {
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& one : candidates) {
      rows.push_back({{"codec", Name(one.codec)}, {"class", Name(one.quality)}, {"record_bytes", one.record_bytes},
                      {"encode_us", one.encode / 1e3}, {"send_us", one.send / 1e3}, {"receive_us", one.receive / 1e3},
                      {"decode_us", one.decode / 1e3}, {"storage_us", one.storage / 1e3}, {"total_us", one.total / 1e3},
                      {"measured", one.measured}});
    }
    fmt::print("{}\n", nlohmann::json({{"picked", Name(candidates.front().codec)}, {"link", reached}, {"candidates", rows}}).dump(2));
    return trouble.empty() ? 0 : 1;
  }
  fmt::print("blocks of {} ({} layers, {} heads of {}, {} tokens, {}), {} at a time, class {} or better\nover {}\n\n",
             FormatBytes(ask.raw_bytes), layout.layers, layout.kv_heads, layout.head_dim_k, layout.tokens_per_block,
             arguments.dtype, ask.blocks, Name(worst), reached);
  fmt::print("{:<6} {:<9} {:>7} | {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8}   us a block\n", "codec", "class", "ratio", "encode",
             "send", "receive", "decode", "storage", "cost");
  for (const auto& one : candidates) {
    fmt::print("{:<6} {:<9} {:>6.2f}x | {:>8.0f} {:>8.0f} {:>8.0f} {:>8.0f} {:>8.0f} | {:>8.0f}{}\n", Name(one.codec),
               Name(one.quality), static_cast<double>(ask.raw_bytes) / one.record_bytes, one.encode / 1e3, one.send / 1e3,
               one.receive / 1e3, one.decode / 1e3, one.storage / 1e3, one.total / 1e3,
               one.measured == 0 ? "   (not measured: from the table)" : "");
  }
  fmt::print("\n{} is picked: encode and send overlap over {} blocks, so do receive and decode; storage is {} ns a byte.\n",
             Name(candidates.front().codec), ask.blocks, client_options.controller.stored_byte_nanos);
  if (trouble.empty()) return 0;
  fmt::print(stderr, "tiercel codec explain: {}\n", trouble);
  return 1;
}

Result<int> ShowArtifact(const std::string& path) {
  TIERCEL_ASSIGN(const auto artifact, ReadArtifact(path));
  fmt::print("artifact   {:016x}, {}\n", artifact->id(), FormatBytes(artifact->bytes().size()));
  fmt::print("about      {}\n", artifact->about());
  fmt::print("model      {} layers, {} kv heads, dim {}/{}; {} rotated dims\n", artifact->layers(), artifact->kv_heads(),
             artifact->head_dim(SegmentKind::kK), artifact->head_dim(SegmentKind::kV), artifact->rope_dims());
  fmt::print("levels     {}\n", artifact->has_levels() ? "of each token, foretold from its key" : "none: all tokens have one step");
  fmt::print("\n{:<6} {:<9} {:>12} {:>10} {:>10}\n", "codec", "class", "step", "mean KL", "bits");
  for (const QualityStep& step : artifact->steps()) {
    fmt::print("{:<6} {:<9} {:>12.4g} {:>10.2e} {:>10.3f}\n", Name(step.codec), Name(step.quality), step.step, step.mean_kl,
               step.bits);
  }
  return 0;
}

Result<int> Push(const Common& common, const std::string& path) {
  TIERCEL_ASSIGN(const auto artifact, ReadArtifact(path));
  TIERCEL_ASSIGN(auto client, Connect(common));
  RequestOptions options;
  TIERCEL_ASSIGN(options.deadline, Timeout(common));
  TIERCEL_TRY(StoreArtifact(*client, common.name_space, *artifact, options));
  fmt::print("{:016x}\n", artifact->id());
  return 0;
}

Result<int> Pull(const Common& common, const std::string& id_text, const std::string& path) {
  uint64_t id = 0;
  const auto [end, ec] = std::from_chars(id_text.data(), id_text.data() + id_text.size(), id, 16);
  if (ec != std::errc() || end != id_text.data() + id_text.size()) {
    return Fail(Code::kInvalidArgument, fmt::format("'{}' is not the id of an artifact: up to 16 hex digits", id_text));
  }
  TIERCEL_ASSIGN(auto client, Connect(common));
  RequestOptions options;
  TIERCEL_ASSIGN(options.deadline, Timeout(common));
  TIERCEL_ASSIGN(const auto artifact, FetchArtifact(*client, common.name_space, id, options));
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(artifact->bytes().data()), static_cast<std::streamsize>(artifact->bytes().size()));
  out.close();
  if (!out) return Fail(Code::kUnavailable, path + ": cannot be written");
  fmt::print("{} to {}\n", FormatBytes(artifact->bytes().size()), path);
  return 0;
}

// The measuring is Python's, where models live.
Result<int> Calibrate(const std::vector<std::string>& arguments) {
  const char* python = std::getenv("TIERCEL_PYTHON");
  if (python == nullptr) python = "python3";
  std::vector<std::string> words = {python, "-m", "tiercel.calibrate"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  return Fail(Code::kUnavailable, fmt::format("{}: {}; install Tiercel's Python package with [calibrate], or name the "
                                              "interpreter in TIERCEL_PYTHON", python, std::strerror(errno)));
}

}  // namespace

void AddCodecCommands(CLI::App& app, Common& common, Commands& commands) {
  CLI::App* codec = app.add_subcommand("codec", "codecs, what they cost here, and models' artifacts");
  codec->require_subcommand(1);
  commands.emplace_back(codec->add_subcommand("list", "the codecs of this build"), [&common] { return List(common); });

  auto arguments = std::make_shared<ExplainArguments>();
  CLI::App* explain = codec->add_subcommand("explain", "measure every codec through this node; say which is picked, and why");
  explain->add_option("--class", arguments->quality, "the worst class accepted")->capture_default_str();
  explain->add_option("--layers", arguments->layers)->check(CLI::Range(1, 1024))->capture_default_str();
  explain->add_option("--heads", arguments->heads, "KV heads")->check(CLI::Range(1, 256))->capture_default_str();
  explain->add_option("--dim", arguments->dim, "of a head")->check(CLI::Range(8, 1024))->capture_default_str();
  explain->add_option("--tokens", arguments->tokens, "a block")->check(CLI::Range(1, 4096))->capture_default_str();
  explain->add_option("--dtype", arguments->dtype, "bf16 or fp16")->capture_default_str();
  explain->add_option("--blocks", arguments->blocks, "that go together")->check(CLI::Range(1, 256))->capture_default_str();
  explain->add_option("--artifact", arguments->artifact, "KVA1 file of the model");
  explain->add_option("--data", arguments->data, "a real block's bytes, in the layout's order; default: made up");
  commands.emplace_back(explain, [&common, arguments] { return Explain(common, *arguments); });

  auto path = std::make_shared<std::string>();
  CLI::App* show = codec->add_subcommand("show", "what an artifact holds");
  show->add_option("FILE", *path)->required();
  commands.emplace_back(show, [path] { return ShowArtifact(*path); });

  auto pushed = std::make_shared<std::string>();
  CLI::App* push = codec->add_subcommand("push", "store an artifact in the cache; prints its id");
  push->add_option("FILE", *pushed)->required();
  commands.emplace_back(push, [&common, pushed] { return Push(common, *pushed); });

  auto pulled = std::make_shared<std::pair<std::string, std::string>>();
  CLI::App* pull = codec->add_subcommand("pull", "fetch an artifact from the cache");
  pull->add_option("ID", pulled->first, "16 hex digits")->required();
  pull->add_option("-o,--output", pulled->second, "where to")->required();
  commands.emplace_back(pull, [&common, pulled] { return Pull(common, pulled->first, pulled->second); });

  CLI::App* calibrate = codec->add_subcommand("calibrate", "measure a model: writes its artifact (options: those of "
                                              "python -m tiercel.calibrate)");
  calibrate->prefix_command();
  commands.emplace_back(calibrate, [calibrate] { return Calibrate(calibrate->remaining()); });
}

}  // namespace tiercel::cli
