// What a node's index costs, and what an arena loses.
//
//   index_bench [--json FILE] [--quick]
//
// For 10 thousand to 10 million records on SSD, in chains of 64 blocks: bytes a record with its key, by what they
// are for; time to insert; 64 keys of one chain looked up as MATCH does, at random and where nothing is there; a
// snapshot of all of it and its reload. Sizes take turns, round by round. Then an arena of mixed encoded sizes
// under churn: free bytes that evicting allocations could not use.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/bench/bench_kit.h"
#include "tests/tiering/records.h"
#include "tiering/block_index.h"
#include "tiering/snapshot.h"
#include "tiering/tier_stack.h"

namespace tiercel::bench {
namespace {

constexpr uint64_t kChain = 64;
constexpr uint32_t kNameSpace = 7;

SsdEntry EntryAt(uint64_t n) {
  SsdEntry entry;
  entry.key = KeyOf(n);
  if (n % kChain > 0) entry.parent = KeyOf(n - 1);
  entry.anchor = KeyOf(n / kBlocksPerRun * kBlocksPerRun);
  entry.scope.bytes.fill(std::byte{1});
  entry.name_space = kNameSpace;
  entry.chain_index = static_cast<uint32_t>(n % kChain);
  entry.record_bytes = 500'000;
  entry.raw_bytes = 700'000;
  entry.generation = n + 1;
  entry.where = {static_cast<uint32_t>(1 + n / 100), static_cast<uint32_t>(n % 100)};
  return entry;
}

struct Times {
  std::vector<double> us;
  void Add(Nanos time) { us.push_back(static_cast<double>(time) * 1e-3); }
  double At(double share) {
    if (us.empty()) return 0;
    std::sort(us.begin(), us.end());
    return us[std::min(us.size() - 1, static_cast<size_t>(share * static_cast<double>(us.size())))];
  }
};

struct Sized {
  uint64_t records;
  std::unique_ptr<BlockIndex> index;
  Times insert, hit, miss;
  std::vector<double> hit_rounds;  // Medians.
  double snapshot_s = 0, reload_s = 0;
  uint64_t resident_bytes = 0;  // By which the process grew.
};

uint64_t ResidentBytes() {
  uint64_t all = 0;
  uint64_t resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * 4096;
}

void Build(Sized& sized) {
  sized.insert.us.resize(sized.records);  // Here already when memory is counted.
  sized.insert.us.clear();
  const uint64_t before_all = ResidentBytes();
  sized.index = std::make_unique<BlockIndex>(0);
  for (uint64_t n = 0; n < sized.records; ++n) {
    const SsdEntry entry = EntryAt(n);
    const Nanos before = Now();
    sized.index->InsertCold(entry);
    sized.insert.Add(Now() - before);
  }
  sized.resident_bytes = ResidentBytes() - before_all;
}

// As Shard::Match does it.
uint64_t LookUp(const BlockIndex& index, const std::vector<BlockKey>& keys) {
  uint64_t found = 0;
  index.Prefetch(keys);
  for (const BlockKey& key : keys) {
    found += index.Find(key, /*lossy=*/false) ? 1 : 0;
    found += index.Find(key, /*lossy=*/true) ? 1 : 0;
  }
  return found;
}

bool Round(Sized& sized, int lookups, SplitMix64& random) {
  std::vector<BlockKey> keys(kChain);
  Times mine;
  for (int i = 0; i < lookups; ++i) {
    for (const bool there : {true, false}) {
      const uint64_t chain = random.Below(sized.records / kChain) + (there ? 0 : uint64_t{1} << 40);
      for (uint64_t n = 0; n < kChain; ++n) keys[n] = KeyOf(chain * kChain + n);
      const Nanos before = Now();
      const uint64_t found = LookUp(*sized.index, keys);
      const Nanos time = Now() - before;
      (there ? sized.hit : sized.miss).Add(time);
      if (there) mine.Add(time);
      if (found != (there ? kChain : 0)) return false;
    }
  }
  sized.hit_rounds.push_back(mine.At(0.5));
  return true;
}

Status Snapshot(Sized& sized) {
  Nanos before = Now();
  const SnapshotHeader header{0, 1, 256 * kMiB, sized.records, sized.records + 1};
  std::vector<std::byte> bytes(SnapshotBytes(0, sized.records));
  SnapshotWriter writer(bytes, header, {});
  sized.index->ForEach([&](const BlockIndex::Found& found) {
    writer.Add({sized.index->Entry(found), {}, sized.index->Hits(found)});
  });
  writer.Finish();
  sized.snapshot_s = static_cast<double>(Now() - before) * 1e-9;
  before = Now();
  BlockIndex again(0);
  TIERCEL_ASSIGN(SnapshotReader reader, SnapshotReader::Open(bytes));
  while (!reader.done()) {
    TIERCEL_ASSIGN(const SnapshotRecord record, reader.Next());
    again.InsertCold(record.entry);
  }
  sized.reload_s = static_cast<double>(Now() - before) * 1e-9;
  if (again.size() != sized.records) return Fail(Code::kInternal, "records are missing after a reload");
  return OkStatus();
}

// Encoded sizes of several models' blocks, each record of its own length, in a stack without SSD.
Result<double> Fragmentation(uint64_t host, uint64_t puts) {
  TierStack::Options options;
  options.host.capacity_bytes = host;
  options.host.slab_bytes = 64 * kMiB;
  TIERCEL_ASSIGN(auto stack, TierStack::Create(options, Clock::Monotonic(), nullptr));
  SplitMix64 random(2);
  constexpr std::array<uint64_t, 5> kBases = {24'000, 96'000, 210'000, 400'000, 1'300'000};
  std::vector<BlockKey> chain;
  for (uint64_t n = 0; n < puts; ++n) {
    TierStack::PutInfo info;
    info.key = KeyOf(n);
    info.parent = n % 16 > 0 ? KeyOf(n - 1) : BlockKey{};
    info.anchor = KeyOf(n / 16 * 16);
    info.name_space = kNameSpace;
    info.chain_index = static_cast<uint32_t>(n % 16);
    const uint64_t base = kBases[(n / 16) % kBases.size()];  // A chain is of one model.
    TIERCEL_ASSIGN(Reservation room, stack->Reserve(info, base + random.Below(base / 2)));
    TIERCEL_TRY(stack->Publish(std::move(room), base * 2, nullptr));
    if (n % 16 == 15) {
      const uint64_t again = n / 16 - random.Below(std::min<uint64_t>(n / 16 + 1, 50));
      chain.clear();
      for (uint64_t i = 0; i < 16; ++i) chain.push_back(KeyOf(again * 16 + i));
      stack->Touch(kNameSpace, chain);
    }
  }
  const TierStack::Stats stats = stack->stats();
  fmt::print("arena of {}: {} puts of 24 kB to 1.9 MB, {} evicting allocations, {:.2f} % of it unusable to them, {:.1f} % in use\n",
             FormatBytes(host), puts, stats.evicting_allocations, 100 * stats.fragmentation,
             100 * static_cast<double>(stats.host_bytes) / static_cast<double>(stats.host_capacity));
  if (stats.evicting_allocations < puts / 40) return Fail(Code::kInternal, "the arena never was full");
  return stats.fragmentation;
}

int Run(int argc, char** argv) {
  std::string json;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else if (arg == "--quick") {
      quick = true;
    } else {
      fmt::print(stderr, "index_bench: unknown argument '{}'\n", arg);
      return 2;
    }
  }
  std::vector<Sized> sizes;
  for (const uint64_t records : {10'000ull, 100'000ull, 1'000'000ull, quick ? 2'000'000ull : 10'000'000ull}) {
    sizes.push_back({records / kChain * kChain, nullptr, {}, {}, {}, {}, 0, 0, 0});
    Build(sizes.back());
  }
  SplitMix64 random(5);
  for (int round = 0; round < (quick ? 5 : 15); ++round) {
    for (Sized& sized : sizes) {
      if (Round(sized, 400, random)) continue;
      fmt::print(stderr, "index_bench: a lookup told a wrong number\n");
      return 1;
    }
  }
  for (Sized& sized : sizes) {
    if (const Status done = Snapshot(sized); !done) {
      fmt::print(stderr, "index_bench: {}\n", done.error().message);
      return 1;
    }
  }
  fmt::print("{:>10} {:>8} {:>8} {:>6} {:>22} {:>24} {:>20} {:>10} {:>9}\n", "records", "B/record", "records", "runs",
             "insert ns p50/p99.99", "64 keys us p50/p99", "64 absent p50/p99", "snapshot s", "reload s");
  for (Sized& sized : sizes) {
    const BlockIndex::Memory memory = sized.index->memory();
    const auto each = [&](uint64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(sized.records); };
    std::sort(sized.hit_rounds.begin(), sized.hit_rounds.end());
    fmt::print("{:>10} {:>8.1f} {:>8.1f} {:>6.1f} {:>12.0f}/{:<9.0f} {:>12.2f}/{:<11.2f} {:>10.2f}/{:<9.2f} {:>10.3f} {:>9.3f}\n",
               sized.records, each(memory.all()), each(memory.records), each(memory.runs), sized.insert.At(0.5) * 1e3,
               sized.insert.At(0.9999) * 1e3, sized.hit.At(0.5), sized.hit.At(0.99), sized.miss.At(0.5), sized.miss.At(0.99),
               sized.snapshot_s, sized.reload_s);
  }
  fmt::print("the process grew by {:.1f} bytes a record for the largest; a record in RAM has a Block of {} bytes besides\n",
             static_cast<double>(sizes.back().resident_bytes) / static_cast<double>(sizes.back().records), sizeof(Block));
  fmt::print("medians of rounds, 64 keys, largest: {:.2f} us ({:.2f} to {:.2f})\n",
             sizes.back().hit_rounds[sizes.back().hit_rounds.size() / 2], sizes.back().hit_rounds.front(),
             sizes.back().hit_rounds.back());
  const Result<double> lost = Fragmentation(quick ? 256 * kMiB : kGiB, quick ? 6'000 : 40'000);
  if (!lost) {
    fmt::print(stderr, "index_bench: {}\n", lost.error().message);
    return 1;
  }
  Goals goals(stdout);
  Sized& largest = sizes.back();
  const uint64_t memory = std::max(largest.index->memory().all(), largest.resident_bytes);
  goals.AtMost("index_bytes_a_record", static_cast<double>(memory) / static_cast<double>(largest.records), "bytes", 96);
  goals.AtMost("index_lookup_64_keys_p99", largest.hit.At(0.99), "us", 100);
  // From tables that fit a cache to one of a gigabyte.
  goals.AtMost("index_lookup_64_keys_large_by_small", largest.hit.At(0.5) / sizes.front().hit.At(0.5), "ratio", 2);
  goals.AtMost("index_insert_p9999", largest.insert.At(0.9999), "us", 1000);
  goals.AtMost("index_snapshot_and_reload", largest.snapshot_s + largest.reload_s, "s", 30);
  goals.AtMost("host_arena_fragmentation", *lost, "share", 0.05);
  if (!json.empty()) {
    std::FILE* out = std::fopen(json.c_str(), "w");
    if (out == nullptr) return 1;
    goals.WriteJson(out);
    std::fclose(out);
  }
  return 0;
}

}  // namespace
}  // namespace tiercel::bench

int main(int argc, char** argv) { return tiercel::bench::Run(argc, argv); }
