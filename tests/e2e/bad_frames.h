// Frames and records with one thing wrong, for the programs that send them over one transport each, and the
// witness that a node serves on after each.
#ifndef TIERCEL_TESTS_E2E_BAD_FRAMES_H_
#define TIERCEL_TESTS_E2E_BAD_FRAMES_H_

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/random.h"
#include "client/cpp/client.h"
#include "kernels/record.h"
#include "proto/frame.h"
#include "proto/tiercel.grpc.pb.h"

namespace tiercel {

constexpr size_t kBlockBytes = 8192;

inline std::vector<std::byte> Bytes(uint64_t seed, size_t size) {
  std::vector<std::byte> out(size);
  SplitMix64 random(seed);
  for (std::byte& b : out) b = static_cast<std::byte>(random.Next());
  return out;
}

inline Result<Chain> ChainOf(const std::string& model, uint64_t seed) {
  ScopeFields fields;
  fields.model = model;
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  TIERCEL_TRY(chain.Append(Bytes(seed * 1000, 32)));
  return chain;
}

inline ChainMeta MetaOf(const Chain& chain) {
  ChainMeta meta;
  meta.scope = chain.options().scope;
  meta.keys.assign(chain.keys().begin(), chain.keys().end());
  for (uint32_t i = 0; i < chain.size(); i += kBlocksPerRun) meta.anchors.push_back(chain.anchor(i));
  return meta;
}

inline Result<std::vector<std::byte>> RecordOf(const Chain& chain, uint64_t seed) {
  RecordSpec spec;
  spec.layout = KvLayout::Opaque();
  spec.scope = chain.options().scope;
  const auto block = Bytes(seed, kBlockBytes);
  std::vector<std::byte> record(MaxRecordBytes(spec, block.size()));
  TIERCEL_ASSIGN(const uint64_t size, EncodeRecord(spec, CodecId::kRaw, block, record));
  record.resize(size);
  return record;
}

// A request as it goes onto the wire, to be spoilt.
struct Raw {
  FrameHeader header;
  std::vector<std::byte> meta, payload;
  std::vector<std::pair<size_t, uint8_t>> pokes;  // Into the encoded header, whose checksum is right again.

  // A MATCH, GET or PUT of one block that is right in everything.
  static Result<Raw> Good(Op op, uint64_t seed) {
    Raw raw;
    raw.header.op = op;
    raw.header.req_id = 7;
    raw.header.count = 1;
    TIERCEL_ASSIGN(const Chain chain, ChainOf("bad-frames", seed));
    raw.meta = EncodeChainMeta(MetaOf(chain));
    if (op == Op::kPut) {
      TIERCEL_ASSIGN(raw.payload, RecordOf(chain, seed));
    }
    return raw;
  }

  std::vector<std::byte> Header(uint64_t session_id) const {
    FrameHeader full = header;
    if (full.session_id == 0) full.session_id = session_id;
    if (full.payload_bytes == 0) full.payload_bytes = payload.size();
    std::vector<std::byte> bytes(kFrameHeaderBytes);
    EncodeFrameHeader(full, bytes.data());
    for (const auto& [at, value] : pokes) bytes[at] = static_cast<std::byte>(value);
    const uint32_t crc = Crc32c(ByteSpan(bytes).first(52));
    StoreLe(bytes.data() + 52, Crc32c(ByteSpan(bytes).subspan(56, 8), crc));
    return bytes;
  }
};

using Spoil = std::function<void(Raw&)>;

// Everything that is wrong whatever carries it.
inline void EachBadFrame(const std::function<void(const std::string& name, Op op, const Spoil& spoil)>& each) {
  for (const Op op : {Op::kMatch, Op::kGet, Op::kPut}) {
    const std::string name = op == Op::kMatch ? "match" : op == Op::kGet ? "get" : "put";
    const auto poke = [](size_t at, uint8_t value) { return [=](Raw& raw) { raw.pokes.emplace_back(at, value); }; };
    const auto keys = [](uint16_t n) { return [=](Raw& raw) { StoreLe(raw.meta.data() + 20, n); }; };
    each(name + "-bad-magic", op, poke(0, 'X'));
    each(name + "-unknown-version", op, poke(4, 9));
    each(name + "-unknown-op", op, poke(5, 99));
    each(name + "-unknown-flag", op, poke(7, 0x80));
    each(name + "-unknown-class", op, poke(43, 9));
    each(name + "-payload-of-2-to-62", op, [](Raw& raw) { raw.header.payload_bytes = uint64_t{1} << 62; });
    each(name + "-payload-one-too-many", op, [](Raw& raw) { raw.header.payload_bytes = raw.payload.size() + 1; });
    each(name + "-meta-too-long", op, [](Raw& raw) { raw.meta.resize(kMaxMetaBytes + 1); });
    each(name + "-meta-cut", op, [](Raw& raw) { raw.meta.resize(raw.meta.size() - 1); });
    each(name + "-no-meta", op, [](Raw& raw) { raw.meta.clear(); });
    each(name + "-no-keys", op, keys(0));
    each(name + "-more-keys-than-are-there", op, keys(64));
    each(name + "-65535-keys", op, keys(65535));
    each(name + "-layers-upside-down", op, [](Raw& raw) {
      StoreLe(raw.meta.data() + 56, uint16_t{9});
      StoreLe(raw.meta.data() + 58, uint16_t{3});
    });
    each(name + "-of-another-session", op, [](Raw& raw) { raw.header.session_id = 12345; });
  }
  each("an-answer-sent-to-a-node", Op::kMatch, [](Raw& raw) { raw.header.op = Op::kData; });
  each("hello-twice", Op::kMatch, [](Raw& raw) { raw.header.op = Op::kHello, raw.meta.assign(16, std::byte{1}); });
  const auto record = [&](const std::string& name, const std::function<void(std::vector<std::byte>&)>& spoil) {
    each("put-record-" + name, Op::kPut, [&](Raw& raw) { spoil(raw.payload); });
  };
  record("none", [](auto& r) { r.clear(); });
  record("of-noise", [](auto& r) { r = Bytes(1, 5000); });
  record("cut", [](auto& r) { r.resize(r.size() - 64); });
  record("with-more-behind", [](auto& r) { r.resize(r.size() + 64); });
  record("head-alone", [](auto& r) { r.resize(64); });
  record("of-another-version", [](auto& r) { r[4] = std::byte{7}; });
  record("with-a-flipped-bit", [](auto& r) { r[r.size() - 3000] ^= std::byte{16}; });
  record("of-another-scope", [](auto& r) { r = RecordOf(*ChainOf("another-model", 1), 1).value(); });
  each("put-record-of-another-class", Op::kPut, [](Raw& raw) { raw.header.quality = QualityClass::kSmall; });
}

inline void Limit(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
}

inline v1::OpenSessionRequest Opening(v1::Transport transport) {
  v1::OpenSessionRequest request;
  request.set_proto_min(kWireVersion);
  request.set_proto_max(kWireVersion);
  request.set_client_name("bad-frames");
  request.set_name_space("default");
  request.add_transports(transport);
  return request;
}

// A client in order that puts and fetches a good block after each case, and tells the case.
class Witness {
 public:
  Status Start(const std::string& endpoint, TransportKind way) {
    Client::Options options;
    options.endpoints = {endpoint};
    options.transports = {way};
    TIERCEL_ASSIGN(client_, Client::Connect(options));
    return OkStatus();
  }

  // "case NAME CODE what the node said", or "case NAME FAILED why".
  void Tell(const std::string& name, bool good, const std::string& code, std::string said) {
    if (good) {
      if (const auto served = ServesOn(); !served) {
        good = false;
        said += "; after it: " + served.error().message;
      }
    }
    failures_ += good ? 0 : 1;
    fmt::print("case {} {} {}\n", name, good ? code : "FAILED", said);
  }

  Status Put(const Chain& chain, const std::vector<std::byte>& block) {
    const PutSource source{PutSource::Kind::kBlock, block, nullptr, {}};
    const Completion put = client_->Put(chain, 0, {&source, 1}, KvLayout::Opaque(), {});
    if (put.blocks.size() != 1 || put.blocks[0].status != Code::kOk) return Fail(Code::kInternal, "a good put fails");
    return OkStatus();
  }
  int failures() const { return failures_; }

 private:
  Status ServesOn() {
    TIERCEL_ASSIGN(const Chain chain, ChainOf("good", ++seed_));
    const auto block = Bytes(seed_, kBlockBytes);
    TIERCEL_TRY(Put(chain, block));
    std::vector<std::byte> back(block.size());
    GetSlot slot;
    slot.dst = back;
    const Completion got = client_->Get(chain, 0, {&slot, 1}, KvLayout::Opaque(), {});
    if (got.blocks.size() != 1 || got.blocks[0].status != Code::kOk || back != block) {
      return Fail(Code::kInternal, "a good get fails");
    }
    return OkStatus();
  }

  std::unique_ptr<Client> client_;
  uint64_t seed_ = 1000000;
  int failures_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_E2E_BAD_FRAMES_H_
