// stat, top, verify, clear, flush, drain, view: what a node's control plane answers.
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <thread>

#include "base/units.h"
#include "client/cli/common.h"
#include "proto/view.h"

namespace tiercel::cli {
namespace {

Result<v1::StatResponse> FetchStat(Stubs& stubs, const Common& common) {
  TIERCEL_ASSIGN(const Nanos timeout, Timeout(common));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::StatResponse reply;
  TIERCEL_TRY(Check(stubs.data->Stat(&context, v1::StatRequest(), &reply), common));
  return reply;
}

struct Totals {
  uint64_t index = 0, device = 0, device_capacity = 0;
  uint64_t blocks = 0, host = 0, host_capacity = 0, ssd = 0, ssd_capacity = 0, hits = 0, misses = 0,
           puts = 0, put_bytes = 0, get_bytes = 0, evicted = 0, corrupt = 0, pinned = 0,
           in_flight = 0, raw = 0, durable = 0, kept = 0, kept_bytes = 0, expired = 0;
  std::map<std::string, uint64_t> reasons;
};

Totals Sum(const v1::StatResponse& stat) {
  Totals totals;
  for (const v1::ShardStat& shard : stat.shards()) {
    totals.blocks += shard.blocks();
    totals.host += shard.host_bytes();
    totals.host_capacity += shard.host_capacity();
    totals.ssd += shard.ssd_bytes();
    totals.ssd_capacity += shard.ssd_capacity();
    totals.hits += shard.hits_host() + shard.hits_device() + shard.hits_ssd();
    totals.index += shard.index_bytes();
    totals.device += shard.device_bytes();
    totals.device_capacity += shard.device_capacity();
    totals.misses += shard.misses();
    totals.puts += shard.puts();
    totals.put_bytes += shard.put_bytes();
    totals.get_bytes += shard.get_bytes();
    totals.evicted += shard.evicted();
    totals.corrupt += shard.corrupt();
    totals.pinned += shard.pinned_blocks();
    totals.in_flight += shard.in_flight();
    totals.raw += shard.raw_bytes();
    totals.durable += shard.durable_blocks();
    totals.kept += shard.kept_blocks();
    totals.kept_bytes += shard.kept_bytes();
    totals.expired += shard.expired();
    for (const auto& [reason, count] : shard.miss_reasons()) totals.reasons[reason] += count;
  }
  return totals;
}

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

void Print(const v1::StatResponse& stat, const Totals& totals) {
  fmt::print("node       {} (version {}, up {:.0f} s{})\n", stat.node_id(), stat.version(),
             stat.uptime_s(), stat.draining() ? ", draining" : "");
  fmt::print("memory     {} resident, {} of it outside the arenas\n", FormatBytes(stat.rss_bytes()),
             FormatBytes(stat.rss_outside_arena_bytes()));
  fmt::print("host tier  {} of {} ({:.1f} %)\n", FormatBytes(totals.host),
             FormatBytes(totals.host_capacity), Share(totals.host, totals.host_capacity));
  if (!stat.device_state().empty()) {
    fmt::print("gpu tier   {} of {}, {}\n", FormatBytes(totals.device), FormatBytes(totals.device_capacity),
               stat.device_state());
  }
  fmt::print("ssd tier   {} of {} ({:.1f} %), {} blocks written so far{}\n", FormatBytes(totals.ssd),
             FormatBytes(totals.ssd_capacity), Share(totals.ssd, totals.ssd_capacity),
             totals.durable, stat.ssd_state().empty() ? "" : ", " + stat.ssd_state());
  fmt::print("blocks     {}, {} raw; {} pinned, {} evicted so far, {} corrupt\n", totals.blocks,
             FormatBytes(totals.raw), totals.pinned, totals.evicted, totals.corrupt);
  if (totals.kept > 0 || totals.expired > 0) {
    fmt::print("kept       {} blocks pinned by clients, {}; {} expired so far\n", totals.kept,
               FormatBytes(totals.kept_bytes), totals.expired);
  }
  fmt::print("index      {}, {} bytes a block\n", FormatBytes(totals.index),
             totals.blocks == 0 ? 0 : totals.index / totals.blocks);
  fmt::print("sessions   {}, {} requests in flight\n", stat.sessions(), totals.in_flight);
  fmt::print("served     {} hits, {} misses ({:.1f} % hit), {} puts; {} out, {} in\n", totals.hits,
             totals.misses, Share(totals.hits, totals.hits + totals.misses), totals.puts,
             FormatBytes(totals.get_bytes), FormatBytes(totals.put_bytes));
  for (const auto& [reason, count] : totals.reasons) {
    if (count > 0) fmt::print("  {:<14} {}\n", reason, count);
  }
}

Result<int> StatCommand(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  TIERCEL_ASSIGN(const v1::StatResponse stat, FetchStat(stubs, common));
  if (common.json) {
    std::string text;
    google::protobuf::util::JsonPrintOptions options;
    options.add_whitespace = true;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    if (!google::protobuf::util::MessageToJsonString(stat, &text, options).ok()) {
      return Fail(Code::kInternal, "the answer cannot be printed");
    }
    fmt::print("{}", text);
    return 0;
  }
  Print(stat, Sum(stat));
  return 0;
}

Result<int> Top(const Common& common, bool once, double interval) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  TIERCEL_ASSIGN(v1::StatResponse last, FetchStat(stubs, common));
  for (;;) {
    if (!once) std::this_thread::sleep_for(std::chrono::duration<double>(interval));
    TIERCEL_ASSIGN(v1::StatResponse stat, FetchStat(stubs, common));
    const Totals before = Sum(last);
    const Totals now = Sum(stat);
    if (!once) fmt::print("\x1b[H\x1b[2J");
    Print(stat, now);
    if (!once) {
      const auto rate = [&](uint64_t a, uint64_t b) {
        return a < b ? 0.0 : static_cast<double>(a - b) / interval;
      };
      fmt::print("\nnow        {:.0f} hits/s, {:.0f} misses/s, {:.0f} puts/s; out {}/s, in {}/s\n",
                 rate(now.hits, before.hits), rate(now.misses, before.misses),
                 rate(now.puts, before.puts),
                 FormatBytes(static_cast<uint64_t>(rate(now.get_bytes, before.get_bytes))),
                 FormatBytes(static_cast<uint64_t>(rate(now.put_bytes, before.put_bytes))));
      fmt::print("\n{:>5} {:>10} {:>12} {:>12} {:>10} {:>10} {:>9}\n", "shard", "blocks", "host",
                 "ssd", "hits", "misses", "in flight");
      for (const v1::ShardStat& shard : stat.shards()) {
        fmt::print("{:>5} {:>10} {:>12} {:>12} {:>10} {:>10} {:>9}\n", shard.shard(),
                   shard.blocks(), FormatBytes(shard.host_bytes()), FormatBytes(shard.ssd_bytes()),
                   shard.hits_host() + shard.hits_device() + shard.hits_ssd(), shard.misses(), shard.in_flight());
      }
    }
    std::fflush(stdout);
    if (once) return 0;
    last = std::move(stat);
  }
}

Result<int> Verify(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  grpc::ClientContext context;  // No deadline: it reads the whole SSD.
  v1::VerifyRequest request;
  request.set_all_shards(true);
  v1::VerifyResponse reply;
  TIERCEL_TRY(Check(stubs.admin->Verify(&context, request, &reply), common));
  for (const std::string& finding : reply.findings()) fmt::print("{}\n", finding);
  fmt::print("{} records, {}: {} bad\n", reply.records(), FormatBytes(reply.bytes()), reply.bad());
  return reply.bad() == 0 ? 0 : 1;
}

Result<int> Clear(const Common& common, const std::string& scope, bool yes) {
  if (!yes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("this forgets every block of name space {}{} for good; say --yes",
                            common.name_space, scope.empty() ? "" : ", scope " + scope));
  }
  v1::ClearRequest request;
  request.set_name_space(common.name_space);
  if (!scope.empty()) {
    std::array<std::byte, 16> bytes;
    if (!FromHex(scope, bytes))
      return Fail(Code::kInvalidArgument, "--scope must be 32 hex digits");
    request.set_scope(bytes.data(), bytes.size());
  }
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  TIERCEL_ASSIGN(const Nanos timeout, Timeout(common));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::ClearResponse reply;
  TIERCEL_TRY(Check(stubs.admin->Clear(&context, request, &reply), common));
  fmt::print("{} blocks forgotten\n", reply.blocks());
  return 0;
}

Result<int> Flush(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  grpc::ClientContext context;
  SetDeadline(context, 300 * kSecond);
  v1::FlushResponse reply;
  TIERCEL_TRY(Check(stubs.admin->Flush(&context, v1::FlushRequest(), &reply), common));
  fmt::print("nothing waits to be written any more; {} blocks written so far\n", reply.durable_blocks());
  return 0;
}

Result<int> Drain(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  grpc::ClientContext context;
  SetDeadline(context, 300 * kSecond);
  v1::DrainResponse reply;
  TIERCEL_TRY(Check(stubs.admin->Drain(&context, v1::DrainRequest(), &reply), common));
  fmt::print("the node drains: it takes no new sessions and writes what it holds\n");
  return 0;
}

void PrintView(const View& view) {
  fmt::print("epoch {}, {} nodes\n", view.epoch, view.nodes.size());
  for (const NodeInfo& node : view.nodes) {
    fmt::print("  {:<20} {:<28} {:<8} {} shards, weights", node.id, node.endpoint,
               node.zone.empty() ? "-" : node.zone, node.shard_weights.size());
    for (const uint32_t weight : node.shard_weights) fmt::print(" {}", weight);
    fmt::print("\n");
  }
}

Result<int> ShowView(const Common& common) {
  TIERCEL_ASSIGN(Stubs stubs, Dial(common));
  TIERCEL_ASSIGN(const Nanos timeout, Timeout(common));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  auto stream = stubs.data->WatchView(&context, v1::WatchViewRequest());
  v1::WatchViewResponse reply;
  if (!stream->Read(&reply)) return Check(stream->Finish(), common).map([] { return 1; });
  context.TryCancel();
  stream->Finish().IgnoreError();
  if (common.json) {
    fmt::print("{}\n", reply.view_json());
    return 0;
  }
  TIERCEL_ASSIGN(const View view, ParseView(reply.view_json()));
  PrintView(view);
  return 0;
}

Result<int> ValidateView(const std::string& path) {
  TIERCEL_ASSIGN(const std::vector<std::byte> text, ReadWholeFile(path, 64 * kMiB));
  Result<View> view = ParseView(AsText(text));
  if (!view) return Fail(Code::kFailedPrecondition, path + ": " + view.error().message);
  fmt::print("{}: good; ", path);
  PrintView(*view);
  return 0;
}

}  // namespace

void AddAdminCommands(CLI::App& app, Common& common, Commands& commands) {
  commands.emplace_back(app.add_subcommand("stat", "what the node holds and has served"),
                        [&common] { return StatCommand(common); });

  struct Arguments {
    std::string text;
    bool flag = false;
    double number = 1.0;
  };
  auto top_arguments = std::make_shared<Arguments>();
  CLI::App* top = app.add_subcommand("top", "stat, again and again");
  top->add_flag("--once", top_arguments->flag, "print once and end");
  top->add_option("-i,--interval", top_arguments->number, "seconds")
      ->check(CLI::Range(0.1, 3600.0));
  commands.emplace_back(top, [&common, top_arguments] {
    return Top(common, top_arguments->flag, top_arguments->number);
  });

  commands.emplace_back(app.add_subcommand("verify", "read every record on SSD and check it"),
                        [&common] { return Verify(common); });

  auto clear_arguments = std::make_shared<Arguments>();
  CLI::App* clear = app.add_subcommand("clear", "forget a name space, or one scope of it");
  clear->add_option("--scope", clear_arguments->text,
                    "32 hex digits; default: all of the name space");
  clear->add_flag("--yes", clear_arguments->flag, "really");
  commands.emplace_back(clear, [&common, clear_arguments] {
    return Clear(common, clear_arguments->text, clear_arguments->flag);
  });

  commands.emplace_back(app.add_subcommand("flush", "wait until what is acknowledged is on SSD"),
                        [&common] { return Flush(common); });
  commands.emplace_back(app.add_subcommand("drain", "take no new sessions; write what is held"),
                        [&common] { return Drain(common); });

  CLI::App* view = app.add_subcommand("view", "the table of nodes and shards");
  view->require_subcommand(1);
  commands.emplace_back(view->add_subcommand("show", "as the node serves it"),
                        [&common] { return ShowView(common); });
  auto path = std::make_shared<std::string>();
  CLI::App* validate = view->add_subcommand("validate", "check a view file");
  validate->add_option("FILE", *path)->required();
  commands.emplace_back(validate, [path] { return ValidateView(*path); });
}

}  // namespace tiercel::cli
