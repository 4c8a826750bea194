// Load for the end-to-end tests. Every block's bytes follow from (seed, chain, block), so a reader knows
// what must come back without having been told by the writer.
//
//   tiercel-e2e-load put   ENDPOINT SEED FIRST COUNT BYTES JOURNAL [model]
//       stores chains FIRST..FIRST+COUNT-1 of eight blocks and appends a chain's number to JOURNAL
//       once all eight were acknowledged as on SSD; ends early when the node is gone
//   tiercel-e2e-load fill  ENDPOINT SEED FIRST COUNT BYTES JOURNAL [model]
//       the same, acknowledged as stored, wherever
//   tiercel-e2e-load check ENDPOINT SEED BYTES JOURNAL [model]
//       fetches every chain of JOURNAL and prints one line "asked N served N missed N wrong N reasons N late N":
//       reasons are the misses that name one, late the calls past their deadline plus 5 ms
//   tiercel-e2e-load sit   ENDPOINT
//       connects, prints "connected" and does nothing until its input ends
//
// TIERCEL_E2E_TRANSPORT=memfd, ucx or grpc allows that transport alone.
// Exits 0 when it could do its work; what it means is the caller's to judge.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "base/units.h"
#include "client/cpp/client.h"

namespace tiercel {
namespace {

constexpr uint32_t kBlocks = 8;
constexpr size_t kWindow = 64;

void Fill(uint64_t seed, uint64_t chain, uint32_t block, MutableByteSpan out) {
  SplitMix64 random(seed ^ (chain * 0x9e3779b97f4a7c15ull) ^ (uint64_t{block} << 56));
  for (size_t i = 0; i + 8 <= out.size(); i += 8) StoreLe(out.data() + i, random.Next());
}

Result<Chain> ChainOf(uint64_t seed, uint64_t number, const std::string& model) {
  ScopeFields fields;
  fields.model = model;
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  SplitMix64 random(seed + number * 7919);
  for (uint32_t i = 0; i < kBlocks; ++i) {
    std::array<std::byte, 32> hash;
    for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
    TIERCEL_TRY(chain.Append(hash));
  }
  return chain;
}

Result<std::unique_ptr<Client>> Open(const std::string& endpoint) {
  Client::Options options;
  options.endpoints = {endpoint};
  const char* const asked = std::getenv("TIERCEL_E2E_TRANSPORT");
  const std::string way = asked == nullptr ? "" : asked;
  if (way == "grpc") options.transports = {TransportKind::kGrpc};
  if (way == "memfd") options.transports = {TransportKind::kMemfd};
  if (way == "ucx") {
    options.transports = {TransportKind::kUcx};
    options.ucx_devices = "lo";
  }
  return Client::Connect(options);
}

Result<int> Put(const std::string& endpoint, uint64_t seed, uint64_t first, uint64_t count, size_t bytes,
                const std::string& journal, const std::string& model, bool durable_only) {
  TIERCEL_ASSIGN(auto client, Open(endpoint));
  std::ofstream out(journal, std::ios::app);
  struct Flight {
    uint64_t number;
    std::vector<std::byte> bytes;
  };
  std::map<Ticket, Flight> flights;
  uint64_t next = first;
  uint64_t durable = 0;
  uint64_t refused = 0;
  while ((next < first + count || !flights.empty()) && refused < 200) {
    if (next < first + count && flights.size() < kWindow) {
      Flight flight{next, std::vector<std::byte>(kBlocks * bytes)};
      std::vector<PutSource> sources;
      for (uint32_t i = 0; i < kBlocks; ++i) {
        const MutableByteSpan block = MutableByteSpan(flight.bytes).subspan(i * bytes, bytes);
        Fill(seed, next, i, block);
        sources.push_back({PutSource::Kind::kBlock, block, nullptr, {}});
      }
      RequestOptions options;
      options.want_durable = durable_only;
      options.deadline = 20 * kSecond;
      TIERCEL_ASSIGN(const Chain chain, ChainOf(seed, next, model));
      const Result<Ticket> ticket = client->SubmitPut(chain, 0, sources, KvLayout::Opaque(), options);
      if (ticket) {
        flights.emplace(*ticket, std::move(flight));
        ++next;
      } else if (ticket.error().code != Code::kResourceExhausted) {
        break;
      }
    }
    for (Completion& done : client->Poll()) {
      const auto flight = flights.find(done.ticket);
      if (flight == flights.end()) continue;
      bool all = done.status.has_value() && done.blocks.size() == kBlocks;
      for (const BlockResult& block : done.blocks) {
        all = all && block.status == Code::kOk && (block.durable || !durable_only);
      }
      if (all) {
        out << flight->second.number << std::endl;
        durable += kBlocks;
      } else {
        ++refused;
      }
      if (done.released) flights.erase(flight);
    }
    if (flights.size() >= kWindow || next >= first + count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  fmt::print("{} {} refused {}\n", durable_only ? "durable" : "stored", durable, refused * kBlocks);
  std::fflush(stdout);
  _exit(0);  // Destroying the client would wait for a node that may be gone.
}

Result<int> Check(const std::string& endpoint, uint64_t seed, size_t bytes, const std::string& journal,
                  const std::string& model) {
  TIERCEL_ASSIGN(auto client, Open(endpoint));
  std::ifstream in(journal);
  uint64_t asked = 0, served = 0, wrong = 0, reasons = 0, late = 0;
  std::map<std::string, uint64_t> why;
  std::vector<std::byte> expected(bytes);
  for (uint64_t number = 0; in >> number;) {
    TIERCEL_ASSIGN(const Chain chain, ChainOf(seed, number, model));
    std::vector<std::byte> got(kBlocks * bytes);
    std::vector<GetSlot> slots(kBlocks);
    for (uint32_t i = 0; i < kBlocks; ++i) slots[i].dst = MutableByteSpan(got).subspan(i * bytes, bytes);
    RequestOptions options;
    const Nanos before = Clock::Monotonic().Now();
    const Completion done = client->Get(chain, 0, slots, KvLayout::Opaque(), options);
    if (Clock::Monotonic().Now() - before > options.deadline + 5 * kMillisecond) ++late;
    if (!done.released) client->Wait(done.ticket);
    asked += kBlocks;
    for (uint32_t i = 0; i < kBlocks && i < done.blocks.size(); ++i) {
      if (done.blocks[i].status != Code::kOk) {
        if (done.blocks[i].reason != MissReason::kNone) ++reasons;
        ++why[std::string(Name(done.blocks[i].reason))];
        continue;
      }
      ++served;
      Fill(seed, number, i, expected);
      if (std::memcmp(expected.data(), slots[i].dst.data(), bytes) != 0) ++wrong;
    }
  }
  for (const auto& [reason, count] : why) fmt::print("missed {} {}\n", reason, count);
  fmt::print("asked {} served {} missed {} wrong {} reasons {} late {}\n", asked, served, asked - served, wrong,
             reasons, late);
  return 0;
}

Result<int> Run(const std::vector<std::string>& args) {
  const std::string usage = "see the first lines of tests/e2e/e2e_load.cc";
  const auto number = [&args](size_t i) { return std::strtoull(args[i].c_str(), nullptr, 10); };
  if (args.size() >= 7 && (args[0] == "put" || args[0] == "fill")) {
    return Put(args[1], number(2), number(3), number(4), number(5), args[6], args.size() > 7 ? args[7] : "e2e",
               args[0] == "put");
  }
  if (args.size() >= 5 && args[0] == "check") {
    return Check(args[1], number(2), number(3), args[4], args.size() > 5 ? args[5] : "e2e");
  }
  if (args.size() == 2 && args[0] == "sit") {
    TIERCEL_ASSIGN(const auto client, Open(args[1]));
    fmt::print("connected\n");
    std::fflush(stdout);
    while (std::getchar() != EOF) {
    }
    return 0;
  }
  return Fail(Code::kInvalidArgument, usage);
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  const auto done = tiercel::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!done) {
    std::fprintf(stderr, "tiercel-e2e-load: %s\n", done.error().message.c_str());
    return 2;
  }
  return *done;
}
