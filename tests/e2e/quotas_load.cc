// One name space at its usual work, and another that stores what nobody asks for.
//
//   tiercel-e2e-quotas ENDPOINT STEPS FLOOD
//       each step: "calm" asks for one of its blocks, some far oftener than others, and stores it where it
//       is missing; then "flood" stores FLOOD blocks that were never stored before.
//       One line: "calm asked N served N wrong N flooded N", of the second half of the steps
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/random.h"
#include "client/cpp/client.h"

namespace tiercel {
namespace {

constexpr uint64_t kBlocks = 480;
constexpr double kSkew = 0.8;

KvLayout Layout() {
  KvLayout layout;
  layout.layers = 8;
  layout.kv_heads = 4;
  layout.head_dim_k = layout.head_dim_v = 64;
  layout.tokens_per_block = 16;
  layout.dtype = Dtype::kBf16;
  return layout;
}

std::vector<std::byte> BlockOf(uint64_t number) {
  std::vector<std::byte> out(Layout().block_bytes());
  SplitMix64 random(number);
  for (size_t i = 0; i + 8 <= out.size(); i += 8) StoreLe(out.data() + i, random.Next());
  return out;
}

Result<Chain> ChainOf(uint64_t number) {
  ScopeFields fields;
  fields.model = "model";
  fields.layout = Layout();
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  std::array<std::byte, 32> hash;
  SplitMix64 random(number);
  for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
  TIERCEL_TRY(chain.Append(hash));
  return chain;
}

Status Put(Client& client, uint64_t number) {
  TIERCEL_ASSIGN(const Chain chain, ChainOf(number));
  const auto block = BlockOf(number);
  const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
  const Completion done = client.Put(chain, 0, {&source, 1}, Layout(), {});
  if (done.blocks.size() == 1 && done.blocks[0].status == Code::kOk) return OkStatus();
  return Fail(Code::kInternal, fmt::format("put {} fails: {}", number,
                                           done.status ? CodeName(done.blocks.at(0).status) : done.status.error().message));
}

Result<std::unique_ptr<Client>> Connect(const std::string& endpoint, const std::string& name_space) {
  Client::Options options;
  options.endpoints = {endpoint};
  options.name_space = name_space;
  return Client::Connect(options);
}

Result<int> Run(const std::string& endpoint, uint64_t steps, uint64_t flood_each) {
  TIERCEL_ASSIGN(auto calm, Connect(endpoint, "calm"));
  TIERCEL_ASSIGN(auto flood, Connect(endpoint, "flood"));
  std::vector<double> upto;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    upto.push_back((upto.empty() ? 0 : upto.back()) + std::pow(static_cast<double>(i + 1), -kSkew));
  }
  SplitMix64 random(1);
  uint64_t asked = 0, served = 0, wrong = 0, flooded = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const double lot = static_cast<double>(random.Below(1u << 30)) / (1u << 30) * upto.back();
    const auto number = static_cast<uint64_t>(std::lower_bound(upto.begin(), upto.end(), lot) - upto.begin());
    TIERCEL_ASSIGN(const Chain chain, ChainOf(number));
    std::vector<std::byte> got(Layout().block_bytes());
    GetSlot slot;
    slot.dst = got;
    const Completion done = calm->Get(chain, 0, {&slot, 1}, Layout(), {});
    if (!done.released) calm->Wait(done.ticket);
    const bool here = done.blocks.size() == 1 && done.blocks[0].status == Code::kOk;
    if (step >= steps / 2) {
      ++asked;
      served += here ? 1 : 0;
    }
    if (here) wrong += got == BlockOf(number) ? 0 : 1;
    if (!here) TIERCEL_TRY(Put(*calm, number));
    for (uint64_t i = 0; i < flood_each; ++i) TIERCEL_TRY(Put(*flood, 1'000'000 + flooded++));
  }
  fmt::print("calm asked {} served {} wrong {} flooded {}\n", asked, served, wrong, flooded);
  return 0;
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: tiercel-e2e-quotas ENDPOINT STEPS FLOOD\n");
    return 2;
  }
  const auto done = tiercel::Run(argv[1], std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10));
  if (!done) {
    std::fprintf(stderr, "tiercel-e2e-quotas: %s\n", done.error().message.c_str());
    return 2;
  }
  return *done;
}
