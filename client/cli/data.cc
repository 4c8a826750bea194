// ping, put, get, match, inspect, selftest: what goes through the client library.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "base/units.h"
#include "client/cli/common.h"
#include "kernels/record.h"

namespace tiercel::cli {
namespace {

constexpr uint64_t kMostBytes = 16 * kMiB;

std::string Explain(const BlockResult& block) {
  return fmt::format("miss ({})", Name(block.reason));
}

Result<RequestOptions> Options(const Common& common) {
  RequestOptions options;
  TIERCEL_ASSIGN(options.deadline, Timeout(common));
  return options;
}

Result<int> Ping(const Common& common, int count) {
  TIERCEL_ASSIGN(auto client, Connect(common));
  for (const Client::NodeStatus& node : client->Nodes()) {
    fmt::print("{} at {}: {}\n", node.node_id, node.endpoint,
               node.connected ? "connected" : "not connected: " + node.last_error);
    for (const std::string& way : node.transports) fmt::print("  {}\n", way);
  }
  TIERCEL_ASSIGN(const Chain chain, KeyChain(common, "tiercel ping"));
  TIERCEL_ASSIGN(RequestOptions options, Options(common));
  options.no_touch = true;
  std::vector<double> took;
  int lost = 0;
  for (int i = 0; i < count; ++i) {
    const Nanos before = Clock::Monotonic().Now();
    const Completion answer = client->Match(chain, options);
    const Nanos after = Clock::Monotonic().Now();
    const MissReason reason =
        answer.blocks.empty() ? MissReason::kUnknown : answer.blocks[0].reason;
    if (!answer.status || reason == MissReason::kBreaker || reason == MissReason::kDeadline) {
      ++lost;
      continue;
    }
    took.push_back(static_cast<double>(after - before) / 1000.0);
  }
  std::sort(took.begin(), took.end());
  if (took.empty()) return Fail(Code::kUnavailable, fmt::format("{} pings, no answer", count));
  fmt::print("{} pings, {} lost; round trip min {:.1f} us, median {:.1f} us, max {:.1f} us\n",
             count, lost, took.front(), took[took.size() / 2], took.back());
  return lost == 0 ? 0 : 1;
}

Result<int> PutFile(const Common& common, const std::string& key, const std::string& path,
                    bool durable) {
  TIERCEL_ASSIGN(const std::vector<std::byte> bytes, ReadWholeFile(path, kMostBytes));
  if (bytes.empty()) return Fail(Code::kInvalidArgument, path + " is empty");
  TIERCEL_ASSIGN(const Chain chain, KeyChain(common, key));
  TIERCEL_ASSIGN(RequestOptions options, Options(common));
  options.want_durable = durable;
  TIERCEL_ASSIGN(auto client, Connect(common));
  const PutSource source{PutSource::Kind::kBlock, bytes, nullptr, {}};
  const Completion done = client->Put(chain, 0, {&source, 1}, KvLayout::Opaque(), options);
  TIERCEL_TRY(done.status);
  const BlockResult& block = done.blocks[0];
  if (block.status != Code::kOk) {
    return Fail(block.status,
                fmt::format("not stored{}", block.reason == MissReason::kNone
                                                ? std::string()
                                                : fmt::format(" ({})", Name(block.reason))));
  }
  fmt::print("stored {} as key {}{}\n", FormatBytes(block.bytes), ToHex(chain.key(0).bytes),
             block.durable ? ", on SSD"
             : durable     ? ", not yet on SSD"
                           : "");
  return durable && !block.durable ? 1 : 0;
}

// Fetches the record of a key; empty: a miss, told.
Result<std::vector<std::byte>> Fetch(const Common& common, const std::string& key,
                                     BlockResult* told) {
  TIERCEL_ASSIGN(const Chain chain, KeyChain(common, key));
  TIERCEL_ASSIGN(const RequestOptions options, Options(common));
  TIERCEL_ASSIGN(auto client, Connect(common));
  std::vector<std::byte> record(kMaxPayloadBytes);
  GetSlot slot;
  slot.kind = GetSlot::Kind::kRecord;
  slot.dst = record;
  Completion done = client->Get(chain, 0, {&slot, 1}, KvLayout::Opaque(), options);
  if (!done.released) client->Wait(done.ticket);
  TIERCEL_TRY(done.status);
  *told = done.blocks[0];
  record.resize(told->status == Code::kOk ? told->record_bytes : 0);
  return record;
}

Result<int> GetFile(const Common& common, const std::string& key, const std::string& path) {
  BlockResult told;
  TIERCEL_ASSIGN(const std::vector<std::byte> record, Fetch(common, key, &told));
  if (record.empty()) {
    fmt::print(stderr, "{}\n", Explain(told));
    return 1;
  }
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(record));
  TIERCEL_ASSIGN(const uint64_t bytes, DecodedBytes(view));
  std::vector<std::byte> block(bytes);
  TIERCEL_TRY(DecodeRecord(view, view.layout, block));
  if (path.empty() || path == "-") {
    std::cout.write(reinterpret_cast<const char*>(block.data()),
                    static_cast<std::streamsize>(bytes));
    std::cout.flush();
    return 0;
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(block.data()), static_cast<std::streamsize>(bytes));
  out.close();
  if (!out) return Fail(Code::kUnavailable, path + ": cannot be written");
  fmt::print("{} from {} to {}\n", FormatBytes(bytes), Name(told.tier), path);
  return 0;
}

// pin: what is found is kept for so long as well, or not any longer.
Result<int> MatchKeys(const Common& common, const std::vector<std::string>& keys, std::optional<Nanos> pin = {}) {
  TIERCEL_ASSIGN(auto client, Connect(common));
  TIERCEL_ASSIGN(RequestOptions options, Options(common));
  options.pin = pin;
  options.no_touch = true;
  bool all = true;
  nlohmann::json rows = nlohmann::json::array();
  for (const std::string& key : keys) {
    TIERCEL_ASSIGN(const Chain chain, KeyChain(common, key));
    const Completion done = client->Match(chain, options);
    TIERCEL_TRY(done.status);
    const BlockResult& block = done.blocks[0];
    const bool here = block.status == Code::kOk;
    all = all && here;
    if (common.json) {
      rows.push_back({{"key", key},
                      {"here", here},
                      {"tier", Name(block.tier)},
                      {"reason", Name(block.reason)},
                      {"record_bytes", block.record_bytes}});
    } else {
      fmt::print("{}  {}\n", key,
                 here ? fmt::format("{}, {}, {}", Name(block.tier), Name(block.quality),
                                    FormatBytes(block.record_bytes))
                      : Explain(block));
    }
  }
  if (common.json) fmt::print("{}\n", rows.dump(2));
  return all ? 0 : 1;
}

Result<int> ShowRecord(ByteSpan record) {
  TIERCEL_ASSIGN(const RecordView view, ParseRecord(record));
  const KvLayout& layout = view.layout;
  fmt::print("record     KVB1, {} ({} head)\n", FormatBytes(view.record_bytes),
             FormatBytes(view.head_bytes));
  fmt::print("scope      {}\n", ToHex(view.scope.bytes));
  fmt::print("class      {}, asked codec {}\n", Name(view.quality), Name(view.codec));
  if (layout.opaque()) {
    fmt::print("layout     opaque\n");
  } else {
    fmt::print(
        "layout     {} layers ({} to {} here), {} kv heads, dim {}/{}, {} tokens, rank {} of {}\n",
        layout.layers, view.layer_begin, view.layer_end, layout.kv_heads, layout.head_dim_k,
        layout.head_dim_v, layout.tokens_per_block, layout.rank, layout.world);
    fmt::print("position   {}\n", view.pos0);
  }
  fmt::print("digest     {:016x}\n\n", view.decoded_digest);
  fmt::print("{:>5} {:<8} {:<6} {:>10} {:>12} {:>12}  {:<8}\n", "layer", "kind", "codec", "offset",
             "bytes", "raw", "crc32c");
  for (uint32_t i = 0; i < view.n_segments; ++i) {
    const SegmentInfo segment = view.segment(i);
    fmt::print("{:>5} {:<8} {:<6} {:>10} {:>12} {:>12}  {:08x}\n",
               segment.shape.layer == kOpaqueLayer ? std::string("-")
                                                   : std::to_string(segment.shape.layer),
               Name(segment.shape.kind), Name(segment.codec), segment.offset, segment.bytes,
               segment.shape.raw_bytes, segment.crc32c);
  }
  TIERCEL_TRY(VerifyRecord(view));
  fmt::print("\nchecksums  every segment is whole\n");
  return 0;
}

Result<int> Inspect(const Common& common, const std::string& what) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(what, ignored)) {
    TIERCEL_ASSIGN(const std::vector<std::byte> record, ReadWholeFile(what, kMaxPayloadBytes));
    return ShowRecord(record);
  }
  TIERCEL_ASSIGN(const Chain chain, KeyChain(common, what));
  fmt::print("key        {}\n", ToHex(chain.key(0).bytes));
  TIERCEL_ASSIGN(auto stubs, Dial(common));
  TIERCEL_ASSIGN(const Nanos timeout, Timeout(common));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::InspectRequest request;
  v1::InspectResponse reply;
  request.set_key(chain.key(0).bytes.data(), chain.key(0).bytes.size());
  if (stubs.admin->Inspect(&context, request, &reply).ok() && !reply.text().empty()) {
    fmt::print("{}\n", reply.text());
  }
  BlockResult told;
  TIERCEL_ASSIGN(const std::vector<std::byte> record, Fetch(common, what, &told));
  if (record.empty()) {
    fmt::print(stderr, "no file of that name, and as a key: {}\n", Explain(told));
    return 1;
  }
  fmt::print("tier       {}\n", Name(told.tier));
  return ShowRecord(record);
}

Result<int> SelfTest(const Common& common) {
  KvLayout layout;
  layout.layers = 4;
  layout.kv_heads = 4;
  layout.head_dim_k = layout.head_dim_v = 64;
  layout.tokens_per_block = 128;
  layout.dtype = Dtype::kBf16;
  ScopeFields fields;
  fields.model = "tiercel selftest";
  fields.salt = std::to_string(Clock::Monotonic().Now());
  fields.layout = layout;
  Chain::Options options;
  options.name_space = common.name_space;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  constexpr uint32_t kBlocks = 40;
  SplitMix64 random(std::hash<std::string>()(fields.salt));
  std::vector<std::vector<std::byte>> blocks(kBlocks, std::vector<std::byte>(layout.block_bytes()));
  for (auto& block : blocks) {
    std::array<std::byte, 32> hash;
    for (size_t i = 0; i < 4; ++i) StoreLe(hash.data() + i * 8, random.Next());
    TIERCEL_TRY(chain.Append(hash));
    for (size_t i = 0; i + 2 <= block.size(); i += 2) {  // bf16 of about unit size, as real KV is.
      const auto value =
          static_cast<uint16_t>(0x3e80 + random.Below(0x180) + (random.Below(2) << 15));
      StoreLe(block.data() + i, value);
    }
  }
  TIERCEL_ASSIGN(auto client, Connect(common));
  TIERCEL_ASSIGN(const RequestOptions request, Options(common));
  int failed = 0;
  const auto step = [&](std::string_view name, bool good) {
    fmt::print("{}  {}\n", good ? "ok  " : "FAIL", name);
    failed += good ? 0 : 1;
  };
  step("nothing of a new scope is here", client->Match(chain, request).prefix == 0);
  std::vector<PutSource> sources;
  for (const auto& block : blocks) sources.push_back({PutSource::Kind::kBlock, block, nullptr, {}});
  step("40 blocks are stored", client->Put(chain, 0, sources, layout, request).prefix == kBlocks);
  step("the whole chain matches", client->Match(chain, request).prefix == kBlocks);
  std::vector<std::vector<std::byte>> got(kBlocks, std::vector<std::byte>(layout.block_bytes()));
  std::vector<GetSlot> slots(kBlocks);
  for (uint32_t i = 0; i < kBlocks; ++i) slots[i].dst = got[i];
  step("40 blocks are fetched", client->Get(chain, 0, slots, layout, request).prefix == kBlocks);
  step("every byte is as it was", got == blocks);
  const Client::Stats stats = client->stats();
  fmt::print("raw {}, stored {} ({:.3f}x)\n", FormatBytes(stats.raw_bytes_put),
             FormatBytes(stats.record_bytes_put),
             static_cast<double>(stats.raw_bytes_put) /
                 static_cast<double>(std::max<uint64_t>(stats.record_bytes_put, 1)));
  return failed == 0 ? 0 : 1;
}

}  // namespace

void AddDataCommands(CLI::App& app, Common& common, Commands& commands) {
  auto count = std::make_shared<int>(10);
  CLI::App* ping = app.add_subcommand("ping", "connect, and time a round trip on the data path");
  ping->add_option("-c,--count", *count, "how many")->check(CLI::Range(1, 1000000));
  commands.emplace_back(ping, [&common, count] { return Ping(common, *count); });

  struct Names {
    std::string key, file;
    std::vector<std::string> keys;
    std::string time = "1h";
    bool durable = false;
  };
  auto put_names = std::make_shared<Names>();
  CLI::App* put = app.add_subcommand("put", "store a file (at most 16 MiB) under a key");
  put->add_option("KEY", put_names->key)->required();
  put->add_option("FILE", put_names->file)->required();
  put->add_flag("--durable", put_names->durable, "wait until it is on SSD");
  commands.emplace_back(put, [&common, put_names] {
    return PutFile(common, put_names->key, put_names->file, put_names->durable);
  });

  auto get_names = std::make_shared<Names>();
  CLI::App* get = app.add_subcommand("get", "fetch what is stored under a key");
  get->add_option("KEY", get_names->key)->required();
  get->add_option("-o,--output", get_names->file, "where to; default: standard output");
  commands.emplace_back(
      get, [&common, get_names] { return GetFile(common, get_names->key, get_names->file); });

  auto match_names = std::make_shared<Names>();
  CLI::App* match = app.add_subcommand("match", "say which of these keys are here");
  match->add_option("KEY", match_names->keys)->required();
  commands.emplace_back(match,
                        [&common, match_names] { return MatchKeys(common, match_names->keys); });

  auto pin_names = std::make_shared<Names>();
  CLI::App* pin = app.add_subcommand("pin", "keep what is stored under these keys in RAM for a while");
  pin->add_option("KEY", pin_names->keys)->required();
  pin->add_option("--for", pin_names->time, "how long, at most the node's limits.pin: 90s, 10m, 1h")->capture_default_str();
  commands.emplace_back(pin, [&common, pin_names]() -> Result<int> {
    const Result<Nanos> time = ParseDuration(pin_names->time);
    if (!time) return Fail(Code::kInvalidArgument, "--for: " + time.error().message);
    return MatchKeys(common, pin_names->keys, *time);
  });
  auto unpin_names = std::make_shared<Names>();
  CLI::App* unpin = app.add_subcommand("unpin", "let it go as the rest does");
  unpin->add_option("KEY", unpin_names->keys)->required();
  commands.emplace_back(unpin, [&common, unpin_names] { return MatchKeys(common, unpin_names->keys, 0); });

  auto inspect_names = std::make_shared<Names>();
  CLI::App* inspect = app.add_subcommand("inspect", "show a record: of a file, or of a key");
  inspect->add_option("WHAT", inspect_names->key, "a record file, or a key")->required();
  commands.emplace_back(inspect,
                        [&common, inspect_names] { return Inspect(common, inspect_names->key); });

  CLI::App* selftest =
      app.add_subcommand("selftest", "store, match and fetch a made-up prefix, and compare");
  commands.emplace_back(selftest, [&common] { return SelfTest(common); });
}

}  // namespace tiercel::cli
