// Bits flipped in the host arena of a live node, by its admin call Corrupt (fault_injection: true).
//
//   tiercel-e2e-flips ENDPOINT SEED COUNT BYTES WAY
//       stores COUNT blocks one by one, fetches each, flips one random bit of its record, fetches
//       it again; WAY: memfd, memfd-in-place, ucx or grpc. Prints one line as tiercel-e2e-load
//       check does.
//
// Exits 0 when it could do its work; what it means is the caller's to judge.
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "client/cpp/client.h"
#include "kernels/record.h"
#include "proto/tiercel.grpc.pb.h"

namespace tiercel {
namespace {

Result<Client::Options> OptionsOf(const std::string& endpoint, const std::string& way) {
  Client::Options options;
  options.endpoints = {endpoint};
  if (way == "memfd" || way == "memfd-in-place") {
    options.transports = {TransportKind::kMemfd};
  } else if (way == "ucx") {
    options.transports = {TransportKind::kUcx};
    options.ucx_devices = "lo";
  } else if (way == "grpc") {
    options.transports = {TransportKind::kGrpc};
  } else {
    return Fail(Code::kInvalidArgument,
                fmt::format("'{}' is not memfd, memfd-in-place, ucx or grpc", way));
  }
  return options;
}

// True when the held record passes its checks and decodes to the bytes that were stored: the flip
// must not allow it.
bool Good(ByteSpan bytes, MutableByteSpan out) {
  const auto record = ParseRecord(bytes);
  if (!record) return false;
  return VerifyRecord(*record) && DecodeRecord(*record, KvLayout::Opaque(), out);
}

Result<int> Host(const std::string& endpoint, uint64_t seed, uint64_t count, size_t bytes,
                 const std::string& way) {
  TIERCEL_ASSIGN(const Client::Options options, OptionsOf(endpoint, way));
  TIERCEL_ASSIGN(auto client, Client::Connect(options));
  const auto admin =
      v1::TiercelAdmin::NewStub(grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials()));
  ScopeFields fields;
  fields.model = "flips-" + way;
  Chain::Options chain_options;
  TIERCEL_ASSIGN(chain_options.scope, MakeScope(fields));
  SplitMix64 random(seed);
  std::vector<std::byte> raw(bytes), got(bytes);
  std::map<std::string, uint64_t> why;
  uint64_t served = 0, wrong = 0, reasons = 0;
  for (uint64_t i = 0; i < count; ++i) {
    Chain chain(chain_options);
    std::array<std::byte, 32> hash;
    for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
    TIERCEL_TRY(chain.Append(hash));
    for (size_t j = 0; j + 8 <= bytes; j += 8) StoreLe(raw.data() + j, random.Next());
    const std::vector<PutSource> sources = {{PutSource::Kind::kBlock, raw, nullptr, {}}};
    Completion put = client->Put(chain, 0, sources, KvLayout::Opaque());
    TIERCEL_TRY(put.status);
    if (put.blocks[0].status != Code::kOk) return Fail(put.blocks[0].status, "the put was refused");
    if (!put.released) client->Wait(put.ticket);

    std::vector<GetSlot> slots(1);
    slots[0].dst = got;
    if (way == "memfd-in-place") slots[0].kind = GetSlot::Kind::kInPlace;
    const auto fetch = [&]() -> Result<Completion> {
      std::fill(got.begin(), got.end(), std::byte{0});
      Completion done = client->Get(chain, 0, slots, KvLayout::Opaque());
      TIERCEL_TRY(done.status);
      if (!done.released) client->Wait(done.ticket);
      return done;
    };
    {  // Whole before the flip: what comes after is the flip's doing.
      TIERCEL_ASSIGN(const Completion before, fetch());
      const bool in_place = way == "memfd-in-place";
      if (before.blocks[0].status != Code::kOk ||
          (in_place && !Good(before.held[0]->record(), got)) || got != raw) {
        return Fail(Code::kDataLoss, "a block was not served before its flip");
      }
    }

    v1::CorruptRequest request;
    request.set_key(chain.key(0).bytes.data(), 32);
    request.set_bit(random.Next() % (uint64_t{put.blocks[0].record_bytes} * 8));
    request.set_where("host");
    v1::CorruptResponse response;
    grpc::ClientContext context;
    const grpc::Status flipped = admin->Corrupt(&context, request, &response);
    if (!flipped.ok()) return Fail(Code::kUnavailable, "Corrupt: " + flipped.error_message());

    TIERCEL_ASSIGN(const Completion done, fetch());
    const BlockResult& block = done.blocks[0];
    if (block.status != Code::kOk) {
      if (block.reason != MissReason::kNone) ++reasons;
      ++why[std::string(Name(block.reason))];
    } else if (way == "memfd-in-place" && !Good(done.held[0]->record(), got)) {
      ++reasons;  // Held records are their reader's to check, and the check told.
      ++why["refused by the reader's check"];
    } else {
      ++served;
      if (std::memcmp(raw.data(), got.data(), bytes) != 0) ++wrong;
    }
  }
  for (const auto& [reason, n] : why) fmt::print("missed {} {}\n", reason, n);
  fmt::print("asked {} served {} missed {} wrong {} reasons {} late 0\n", count, served,
             count - served, wrong, reasons);
  return 0;
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "see the first lines of tests/e2e/flips_load.cc\n");
    return 2;
  }
  const auto number = [argv](int i) { return std::strtoull(argv[i], nullptr, 10); };
  const auto done = tiercel::Host(argv[1], number(2), number(3), number(4), argv[5]);
  if (!done) {
    std::fprintf(stderr, "tiercel-e2e-flips: %s\n", done.error().message.c_str());
    return 2;
  }
  return *done;
}
