// bench: get, put and match through the whole service, by size, batch and transport.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/random.h"
#include "base/units.h"
#include "client/cli/common.h"

namespace tiercel::cli {
namespace {

struct Plan {
  std::string sizes = "64KiB,256KiB,1MiB,4MiB";
  std::string batches = "1,32";
  double seconds = 1.0;
  uint64_t working_set_mib = 128;
  bool records = false;
};

struct Row {
  std::string op;
  uint64_t size = 0;
  uint32_t batch = 1;
  uint64_t calls = 0;
  double gb_s = 0, p50_us = 0, p99_us = 0;
};

Result<std::vector<uint64_t>> List(const std::string& text, uint64_t most) {
  std::vector<uint64_t> values;
  std::stringstream stream(text);
  for (std::string item; std::getline(stream, item, ',');) {
    TIERCEL_ASSIGN(const uint64_t value, ParseBytes(item));
    if (value == 0 || value > most) {
      return Fail(Code::kInvalidArgument, fmt::format("{}: must be 1 to {}", item, most));
    }
    values.push_back(value);
  }
  if (values.empty()) return Fail(Code::kInvalidArgument, "an empty list");
  return values;
}

Result<Chain> RandomChain(const Common& common, uint64_t seed, uint64_t blocks) {
  Chain::Options options;
  options.name_space = common.name_space;
  ScopeFields fields;
  fields.model = "tiercel bench";
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  SplitMix64 random(seed);
  for (uint64_t i = 0; i < blocks; ++i) {
    std::array<std::byte, 32> hash;
    for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
    TIERCEL_TRY(chain.Append(hash));
  }
  return chain;
}

template <class Call>
Result<Row> Measure(const Plan& plan, std::string op, uint64_t size, uint32_t batch, Call&& call) {
  Row row{std::move(op), size, batch};
  std::vector<double> took;
  const Nanos begin = Clock::Monotonic().Now();
  const Nanos until = begin + static_cast<Nanos>(plan.seconds * 1e9);
  Nanos now = begin;
  for (uint64_t i = 0; now < until || i < 8; ++i) {
    TIERCEL_TRY(call(i));
    const Nanos after = Clock::Monotonic().Now();
    took.push_back(static_cast<double>(after - now) / 1000.0);
    now = after;
  }
  std::sort(took.begin(), took.end());
  row.calls = took.size();
  row.p50_us = took[took.size() / 2];
  row.p99_us = took[took.size() * 99 / 100];
  row.gb_s = static_cast<double>(size * batch * row.calls) / static_cast<double>(now - begin);
  return row;
}

Result<int> Bench(const Common& common, const Plan& plan) {
  TIERCEL_ASSIGN(const auto sizes, List(plan.sizes, 16 * kMiB));
  TIERCEL_ASSIGN(const auto batches, List(plan.batches, 4096));
  TIERCEL_ASSIGN(auto client, Connect(common));
  RequestOptions options;
  TIERCEL_ASSIGN(options.deadline, Timeout(common));
  if (!common.json) {
    for (const Client::NodeStatus& node : client->Nodes()) {
      for (const std::string& way : node.transports) fmt::print("{}: {}\n", node.node_id, way);
    }
    fmt::print("\n{:<6} {:>9} {:>6} {:>8} {:>9} {:>10} {:>10}\n", "op", "size", "batch", "calls",
               "GB/s", "p50 us", "p99 us");
  }
  nlohmann::json rows = nlohmann::json::array();
  const auto show = [&](const Row& row) {
    if (common.json) {
      rows.push_back({{"op", row.op},
                      {"bytes", row.size},
                      {"batch", row.batch},
                      {"calls", row.calls},
                      {"gb_s", row.gb_s},
                      {"p50_us", row.p50_us},
                      {"p99_us", row.p99_us}});
      return;
    }
    fmt::print("{:<6} {:>9} {:>6} {:>8} {:>9.3f} {:>10.1f} {:>10.1f}\n", row.op,
               FormatBytes(row.size), row.batch, row.calls, row.gb_s, row.p50_us, row.p99_us);
    std::fflush(stdout);
  };
  uint64_t seed = static_cast<uint64_t>(Clock::Monotonic().Now());
  for (const uint64_t size : sizes) {
    std::vector<std::byte> block(size);
    SplitMix64 random(size);
    for (size_t i = 0; i + 8 <= size; i += 8) StoreLe(block.data() + i, random.Next());
    for (const uint64_t batch64 : batches) {
      const auto batch = static_cast<uint32_t>(batch64);
      // Room for the library's copies: a batch beyond it would only wait.
      if (size * batch > 256 * kMiB) continue;
      const uint64_t sets = std::max<uint64_t>(1, plan.working_set_mib * kMiB / (size * batch));
      std::vector<Chain> chains;
      const std::vector<PutSource> sources(batch, {PutSource::Kind::kBlock, block, nullptr, {}});
      const auto put = [&](uint64_t i) -> Status {
        if (i >= chains.size()) {
          TIERCEL_ASSIGN(Chain chain, RandomChain(common, seed++, batch));
          chains.push_back(std::move(chain));
        }
        const Completion done = client->Put(chains[i], 0, sources, KvLayout::Opaque(), options);
        TIERCEL_TRY(done.status);
        for (const BlockResult& result : done.blocks) {
          if (result.status != Code::kOk && result.status != Code::kResourceExhausted) {
            return Fail(result.status, fmt::format("put of {} failed ({})", FormatBytes(size),
                                                   Name(result.reason)));
          }
        }
        return OkStatus();
      };
      TIERCEL_ASSIGN(const Row put_row, Measure(plan, "put", size, batch, put));
      show(put_row);
      // Get what was put last: it is surely still here.
      const size_t first = chains.size() > sets ? chains.size() - sets : 0;
      std::vector<std::vector<std::byte>> out(
          batch, std::vector<std::byte>(size + (plan.records ? 64 * kKiB : 0)));
      std::vector<GetSlot> slots(batch);
      for (uint32_t i = 0; i < batch; ++i) {
        slots[i].kind = plan.records ? GetSlot::Kind::kRecord : GetSlot::Kind::kBlock;
        slots[i].dst = out[i];
      }
      uint64_t misses = 0;
      const auto get = [&](uint64_t i) -> Status {
        const Chain& chain = chains[first + i % (chains.size() - first)];
        const Completion done = client->Get(chain, 0, slots, KvLayout::Opaque(), options);
        if (!done.released) client->Wait(done.ticket);
        TIERCEL_TRY(done.status);
        for (const BlockResult& result : done.blocks) misses += result.status == Code::kOk ? 0 : 1;
        return OkStatus();
      };
      TIERCEL_ASSIGN(const Row get_row, Measure(plan, "get", size, batch, get));
      show(get_row);
      if (misses > 0) fmt::print(stderr, "  ({} of these blocks were misses)\n", misses);
    }
  }
  for (const uint32_t keys : {1u, 64u}) {
    TIERCEL_ASSIGN(const Chain chain, RandomChain(common, seed++, keys));
    TIERCEL_ASSIGN(Row row, Measure(plan, "match", 0, keys, [&](uint64_t) -> Status {
                     return client->Match(chain, options).status;
                   }));
    show(row);
  }
  if (common.json) fmt::print("{}\n", rows.dump(2));
  return 0;
}

}  // namespace

void AddBenchCommand(CLI::App& app, Common& common, Commands& commands) {
  auto plan = std::make_shared<Plan>();
  CLI::App* bench =
      app.add_subcommand("bench", "time put, get and match through the whole service");
  bench->add_option("--sizes", plan->sizes, "block sizes")->capture_default_str();
  bench->add_option("--batch", plan->batches, "blocks a call, all outstanding at once")
      ->capture_default_str();
  bench->add_option("--seconds", plan->seconds, "of each measurement")
      ->check(CLI::Range(0.01, 600.0));
  bench->add_option("--working-set", plan->working_set_mib, "MiB of blocks that gets walk over");
  bench->add_flag("--records", plan->records, "fetch records as they are instead of decoding");
  commands.emplace_back(bench, [&common, plan] { return Bench(common, *plan); });
}

}  // namespace tiercel::cli
