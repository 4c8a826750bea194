// Many readers of one node who hold the same engine hashes and differ in one thing each: a model, its
// revision, an adapter, the rope, a salt, or one field of the layout.
//
//   tiercel-e2e-isolation ENDPOINT WAY CHAINS
//       each variant asks for its blocks before it stores them (nothing may be there), stores them, and at the
//       end fetches them again (its own bytes must be there). WAY: memfd, ucx or grpc. One line a variant:
//       "variant NAME early N unnamed N own N wrong N", of CHAINS blocks
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "client/cpp/client.h"

namespace tiercel {
namespace {

struct Variant {
  std::string name;
  ScopeFields fields;
  uint32_t part = 0;
  QualityClass lineage = QualityClass::kExact;
};

std::vector<Variant> Variants() {
  Variant base;
  base.name = "base";
  base.fields.model = "model";
  KvLayout& layout = base.fields.layout;
  layout.layers = 4;
  layout.kv_heads = 2;
  layout.head_dim_k = layout.head_dim_v = 64;
  layout.tokens_per_block = 16;
  layout.dtype = Dtype::kBf16;
  std::vector<Variant> all = {base};
  const auto add = [&](const std::string& name, const std::function<void(Variant&)>& change) {
    Variant one = base;
    one.name = name;
    change(one);
    one.fields.layout.rank = one.part;
    all.push_back(std::move(one));
  };
  add("model", [](Variant& v) { v.fields.model = "model2"; });
  add("revision", [](Variant& v) { v.fields.revision = "a1b2c3"; });
  add("adapter", [](Variant& v) { v.fields.adapters = {"lora"}; });
  add("two-adapters", [](Variant& v) { v.fields.adapters = {"lo", "ra"}; });
  add("rope", [](Variant& v) { v.fields.rope = "theta=500000"; });
  add("salt", [](Variant& v) { v.fields.salt = "tenant"; });
  add("layers", [](Variant& v) { v.fields.layout.layers = 5; });
  add("kv-heads", [](Variant& v) { v.fields.layout.kv_heads = 4; });
  add("head-dim-k", [](Variant& v) { v.fields.layout.head_dim_k = 128; });
  add("head-dim-v", [](Variant& v) { v.fields.layout.head_dim_v = 128; });
  add("tokens-per-block", [](Variant& v) { v.fields.layout.tokens_per_block = 32; });
  add("dtype-of-equal-size", [](Variant& v) { v.fields.layout.dtype = Dtype::kFp16; });
  add("dtype", [](Variant& v) { v.fields.layout.dtype = Dtype::kFp8E4m3; });
  add("k-order", [](Variant& v) { v.fields.layout.k_order = AxisOrder::kHeadDimToken; });
  add("v-order", [](Variant& v) { v.fields.layout.v_order = AxisOrder::kHeadTokenDim; });
  add("packing", [](Variant& v) { v.fields.layout.packing = KvPacking::kInterleaved; });
  add("engine", [](Variant& v) { v.fields.layout.engine = "vllm-cpu"; });
  add("isa", [](Variant& v) { v.fields.layout.isa = "vec"; });
  add("world", [](Variant& v) { v.fields.layout.world = 2; });
  add("second-rank", [](Variant& v) { v.fields.layout.world = 2, v.part = 1; });
  add("lineage", [](Variant& v) { v.lineage = QualityClass::kBalanced; });
  return all;
}

std::vector<std::byte> BlockOf(const Variant& variant, uint64_t number) {
  std::vector<std::byte> out(variant.fields.layout.block_bytes());
  SplitMix64 random(std::hash<std::string>()(variant.name) + number);
  for (size_t i = 0; i + 8 <= out.size(); i += 8) StoreLe(out.data() + i, random.Next());
  return out;
}

Result<Chain> ChainOf(const Variant& variant, uint64_t number) {
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, MakeScope(variant.fields));
  options.part = variant.part;
  options.lineage = variant.lineage;
  Chain chain(options);
  std::array<std::byte, 32> hash;
  SplitMix64 random(number);
  for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
  TIERCEL_TRY(chain.Append(hash));
  return chain;
}

struct Seen {
  uint64_t served = 0, wrong = 0, unnamed = 0;
};

Result<Seen> Fetch(Client& client, const Variant& variant, uint64_t chains) {
  Seen seen;
  for (uint64_t i = 0; i < chains; ++i) {
    TIERCEL_ASSIGN(const Chain chain, ChainOf(variant, i));
    const auto expected = BlockOf(variant, i);
    std::vector<std::byte> got(expected.size());
    GetSlot slot;
    slot.dst = got;
    RequestOptions options;
    options.min_class = variant.lineage;
    const Completion done = client.Get(chain, 0, {&slot, 1}, variant.fields.layout, options);
    if (!done.released) client.Wait(done.ticket);
    if (done.blocks.size() != 1) return Fail(Code::kInternal, variant.name + ": no result");
    if (done.blocks[0].status == Code::kOk) {
      ++seen.served;
      seen.wrong += got == expected ? 0 : 1;
    } else {
      seen.unnamed += done.blocks[0].reason == MissReason::kNone ? 1 : 0;
    }
  }
  return seen;
}

Result<int> Run(const std::string& endpoint, const std::string& way, uint64_t chains) {
  Client::Options options;
  options.endpoints = {endpoint};
  options.transports = {way == "memfd" ? TransportKind::kMemfd
                        : way == "ucx" ? TransportKind::kUcx
                                       : TransportKind::kGrpc};
  if (way == "ucx") options.ucx_devices = "lo";
  TIERCEL_ASSIGN(auto client, Client::Connect(options));
  const std::vector<Variant> variants = Variants();
  std::vector<Seen> early;
  for (const Variant& variant : variants) {
    TIERCEL_ASSIGN(const Seen seen, Fetch(*client, variant, chains));
    early.push_back(seen);
    for (uint64_t i = 0; i < chains; ++i) {
      TIERCEL_ASSIGN(const Chain chain, ChainOf(variant, i));
      const auto block = BlockOf(variant, i);
      const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
      const Completion done = client->Put(chain, 0, {&source, 1}, variant.fields.layout, {});
      if (done.blocks.size() != 1 || done.blocks[0].status != Code::kOk) {
        return Fail(Code::kInternal, fmt::format("{}: put {} fails: {}", variant.name, i,
                                                 done.status ? CodeName(done.blocks.at(0).status) : done.status.error().message));
      }
    }
  }
  for (size_t i = 0; i < variants.size(); ++i) {
    TIERCEL_ASSIGN(const Seen own, Fetch(*client, variants[i], chains));
    fmt::print("variant {} early {} unnamed {} own {} wrong {}\n", variants[i].name, early[i].served, early[i].unnamed,
               own.served, own.wrong + early[i].wrong);
  }
  return 0;
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: tiercel-e2e-isolation ENDPOINT memfd|ucx|grpc CHAINS\n");
    return 2;
  }
  const auto done = tiercel::Run(argv[1], argv[2], std::strtoull(argv[3], nullptr, 10));
  if (!done) {
    std::fprintf(stderr, "tiercel-e2e-isolation: %s\n", done.error().message.c_str());
    return 2;
  }
  return *done;
}
