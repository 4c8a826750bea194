#include "tests/bench/service_lanes.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/random.h"
#include "base/units.h"
#include "kernels/record.h"

namespace tiercel::bench {
namespace {

// New bytes that one slice of puts may store: well under the server's memory, so that the blocks that
// gets ask for stay.
constexpr uint64_t kPutBytesPerSlice = uint64_t{384} << 20;

Status Checked(const Completion& done, uint32_t blocks, const char* what) {
  if (!done.status) return tl::unexpected(done.status.error());
  if (done.blocks.size() != blocks) return Fail(Code::kInternal, fmt::format("{}: {} results for {} blocks", what, done.blocks.size(), blocks));
  for (size_t i = 0; i < done.blocks.size(); ++i) {
    if (done.blocks[i].status != Code::kOk) {
      return Fail(done.blocks[i].status, fmt::format("{}: block {} of {}: {}, reason {}", what, i, blocks,
                                                     CodeName(done.blocks[i].status), Name(done.blocks[i].reason)));
    }
  }
  return OkStatus();
}

class ServiceLane : public Lane {
 public:
  ServiceLane(Service& service, TransportKind kind) : service_(service), kind_(kind) {}
  pid_t server() const override { return service_.pid(); }

 protected:
  Status Open() {
    TIERCEL_ASSIGN(client_, service_.Through(kind_));
    return OkStatus();
  }
  Service& service_;
  TransportKind kind_;
  Client* client_ = nullptr;
};

class GetLane final : public ServiceLane {
 public:
  GetLane(Service& service, TransportKind kind, GetSlot::Kind slot, const Memory& source, const Memory& to,
          uint64_t block, uint32_t batch)
      : ServiceLane(service, kind), slot_(slot), source_(source), source_walk_(source, block), block_(block),
        batch_(batch), to_(to, slot == GetSlot::Kind::kRecord ? RecordRoom(block) : block), slots_(batch) {}

  Status Prepare() override {
    TIERCEL_TRY(Open());
    TIERCEL_ASSIGN(stored_, service_.Blocks(source_, block_));
    return Compare();
  }

  Result<Slice> Run(Nanos budget) override {
    auto slice = RunRequests(budget, block_ * batch_, [this]() -> Status { return Once(); });
    if (slice) {
      if (const Status same = Compare(); !same) return tl::unexpected(same.error());
    }
    return slice;
  }

 private:
  uint64_t room() const { return slot_ == GetSlot::Kind::kRecord ? RecordRoom(block_) : block_; }

  Status Once() {
    if (at_ + batch_ > stored_->blocks) at_ = 0;
    for (uint32_t i = 0; i < batch_; ++i) {
      slots_[i].kind = slot_;
      slots_[i].dst = {to_.Next(), room()};
    }
    const Completion done = client_->Get(*stored_->chain, at_, slots_, stored_->layout);
    TIERCEL_TRY(Checked(done, batch_, "get"));
    last_ = at_;
    at_ += batch_;
    return OkStatus();
  }

  // Outside the time taken: what came is what was put.
  Status Compare() {
    TIERCEL_TRY(Once());
    std::vector<std::byte> decoded(block_);
    for (uint32_t i = 0; i < batch_; ++i) {
      const std::byte* bytes = slots_[i].dst.data();
      if (slot_ == GetSlot::Kind::kRecord) {
        const auto head = PeekRecord({bytes, std::min<uint64_t>(4096, room())});
        if (!head) return tl::unexpected(head.error());
        TIERCEL_ASSIGN(const RecordView record, ParseRecord({bytes, head->record_bytes}));
        TIERCEL_TRY(DecodeRecord(record, stored_->layout, decoded));
        bytes = decoded.data();
      }
      if (std::memcmp(bytes, source_walk_.At(last_ + i), block_) != 0) {
        return Fail(Code::kDataLoss, fmt::format("get: block {} is not what was put", last_ + i));
      }
    }
    return OkStatus();
  }

  GetSlot::Kind slot_;
  const Memory& source_;
  Walk source_walk_;
  uint64_t block_;
  uint32_t batch_;
  Walk to_;
  std::vector<GetSlot> slots_;
  const Service::Stored* stored_ = nullptr;
  uint32_t at_ = 0, last_ = 0;
};

class PutLane final : public ServiceLane {
 public:
  PutLane(Service& service, TransportKind kind, PutSource::Kind what, const Memory& source, uint64_t block,
          uint32_t batch)
      : ServiceLane(service, kind), what_(what), source_(source, block), block_(block), batch_(batch),
        layout_(LayoutOf(block)), sources_(batch) {}

  Status Prepare() override {
    TIERCEL_TRY(Open());
    if (what_ != PutSource::Kind::kRecord) return OkStatus();
    RecordSpec spec;
    spec.layout = layout_;
    TIERCEL_ASSIGN(const auto chain, service_.NewChain(layout_, 1));
    spec.scope = chain->options().scope;
    // A record does not name its key: the same ones serve every round.
    room_ = RecordRoom(block_);
    count_ = std::max<uint64_t>(batch_, (uint64_t{256} << 20) / room_);
    records_ = std::make_unique<Memory>(room_ * count_, 7);
    for (uint64_t i = 0; i < count_; ++i) {
      TIERCEL_ASSIGN(record_bytes_, EncodeRecord(spec, CodecId::kRaw, {source_.Next(), block_},
                                                 {records_->data() + i * room_, room_}));
    }
    return client_->RegisterMemory({records_->data(), records_->size()});
  }

  Result<Slice> Run(Nanos budget) override {
    const auto requests = std::max<uint64_t>(1, kPutBytesPerSlice / (block_ * batch_));
    TIERCEL_ASSIGN(const auto chain, service_.NewChain(layout_, static_cast<uint32_t>(requests * batch_)));
    uint64_t done_requests = 0;
    Slice all;
    const Nanos begin = Now();
    // A slice ends with its keys, too.
    auto slice = RunRequests(0, block_ * batch_, [&]() -> Status {
      return Once(*chain, static_cast<uint32_t>(done_requests++ * batch_));
    });
    if (!slice) return slice;
    all = std::move(*slice);
    const Nanos again = Now();
    while (done_requests < requests && Now() - begin < budget) {
      const Nanos start = Now();
      if (const Status stored = Once(*chain, static_cast<uint32_t>(done_requests++ * batch_)); !stored) {
        return tl::unexpected(stored.error());
      }
      all.latencies_ns.push_back(static_cast<uint32_t>(std::min<Nanos>(Now() - start, 4 * kSecond)));
      ++all.requests;
      all.bytes += block_ * batch_;
    }
    const Nanos rest = Now() - again;
    all.wall += rest;
    return all;
  }

 private:
  Status Once(const Chain& chain, uint32_t first) {
    for (uint32_t i = 0; i < batch_; ++i) {
      sources_[i].kind = what_;
      if (what_ == PutSource::Kind::kRecord) {
        sources_[i].src = {records_->data() + at_++ % count_ * room_, record_bytes_};
      } else {
        sources_[i].src = {source_.Next(), block_};
      }
    }
    return Checked(client_->Put(chain, first, sources_, layout_), batch_, "put");
  }

  PutSource::Kind what_;
  Walk source_;
  uint64_t block_;
  uint32_t batch_;
  KvLayout layout_;
  std::vector<PutSource> sources_;
  std::unique_ptr<Memory> records_;
  uint64_t room_ = 0, count_ = 0, record_bytes_ = 0, at_ = 0;
};

class LookupLane final : public ServiceLane {
 public:
  LookupLane(Service& service, const Memory& source, uint64_t block, bool verify)
      : ServiceLane(service, TransportKind::kMemfd), source_(source), block_(block), verify_(verify) {}

  Status Prepare() override {
    TIERCEL_TRY(Open());
    TIERCEL_ASSIGN(stored_, service_.Blocks(source_, block_));
    return OkStatus();
  }

  Result<Slice> Run(Nanos budget) override {
    if (!verify_) {
      return RunRequests(budget, block_, [this]() -> Status { return Look(); });
    }
    // Only the check's time: lookups happen between.
    Slice slice;
    const Nanos until = Now() + budget;
    while (Now() < until) {
      TIERCEL_TRY(Look());
      const ByteSpan record = held_.held[0]->record();
      const Nanos begin = Now();
      const auto view = ParseRecord(record);
      if (!view) return tl::unexpected(view.error());
      TIERCEL_TRY(VerifyRecord(*view));
      const Nanos took = Now() - begin;
      slice.latencies_ns.push_back(static_cast<uint32_t>(took));
      slice.wall += took;
      slice.bytes += block_;
      ++slice.requests;
    }
    return slice;
  }

 private:
  Status Look() {
    held_.held.clear();
    if (at_ >= stored_->blocks) at_ = 0;
    GetSlot slot;
    slot.kind = GetSlot::Kind::kInPlace;
    held_ = client_->Get(*stored_->chain, at_++, {&slot, 1}, stored_->layout);
    TIERCEL_TRY(Checked(held_, 1, "lookup"));
    if (held_.held.empty() || held_.held[0] == nullptr) return Fail(Code::kInternal, "lookup: nothing is held");
    return OkStatus();
  }

  const Memory& source_;
  uint64_t block_;
  bool verify_;
  const Service::Stored* stored_ = nullptr;
  Completion held_;
  uint32_t at_ = 0;
};

class MatchLane final : public ServiceLane {
 public:
  MatchLane(Service& service, TransportKind kind, const Memory& source, uint64_t block, uint32_t keys)
      : ServiceLane(service, kind), source_(source), block_(block), keys_(keys) {}
  Status Prepare() override {
    TIERCEL_TRY(Open());
    TIERCEL_ASSIGN(const Service::Stored* stored, service_.Blocks(source_, block_));
    if (stored->blocks < keys_) return Fail(Code::kInvalidArgument, "match: the chain is too short");
    chain_ = std::make_unique<Chain>(stored->chain->options());
    return Take(*stored);
  }
  Result<Slice> Run(Nanos budget) override {
    return RunRequests(budget, 0, [this]() -> Status {
      const Completion done = client_->Match(*chain_);
      if (!done.status) return tl::unexpected(done.status.error());
      if (done.prefix != keys_) return Fail(Code::kNotFound, fmt::format("match: {} of {} keys", done.prefix, keys_));
      return OkStatus();
    });
  }

 private:
  // The first keys of the stored chain: hashes are made of a number, so they can be made again.
  Status Take(const Service::Stored& stored);
  const Memory& source_;
  uint64_t block_;
  uint32_t keys_;
  std::unique_ptr<Chain> chain_;
};

// The engine's hash of block i of chain `serial`.
std::array<std::byte, 32> HashOf(uint64_t serial, uint64_t i) {
  std::array<std::byte, 32> hash;
  SplitMix64 random(serial * 0x9e3779b97f4a7c15ULL + i);
  for (size_t at = 0; at < hash.size(); at += 8) StoreLe(hash.data() + at, random.Next());
  return hash;
}

Result<Scope> ScopeOf(const KvLayout& layout) {
  ScopeFields fields;
  fields.model = "bench";
  fields.layout = layout;
  return MakeScope(fields);
}

Result<std::unique_ptr<Chain>> MakeChain(const KvLayout& layout, uint64_t serial, uint32_t blocks) {
  Chain::Options options;
  TIERCEL_ASSIGN(options.scope, ScopeOf(layout));
  auto chain = std::make_unique<Chain>(options);
  for (uint32_t i = 0; i < blocks; ++i) TIERCEL_TRY(chain->Append(HashOf(serial, i)));
  return chain;
}

// Chains that gets and matches ask for have the block size as their number; new ones count from here.
constexpr uint64_t kFirstNewSerial = uint64_t{1} << 40;

Status MatchLane::Take(const Service::Stored& stored) {
  TIERCEL_ASSIGN(chain_, MakeChain(stored.layout, block_, keys_));
  return OkStatus();
}

}  // namespace

KvLayout LayoutOf(uint64_t block_bytes) {
  KvLayout layout;
  layout.kv_heads = 8;
  layout.head_dim_k = layout.head_dim_v = 128;
  layout.dtype = Dtype::kBf16;
  layout.tokens_per_block = block_bytes >= 256 * kKiB ? 64 : 16;
  layout.layers = 1;
  layout.layers = static_cast<uint32_t>(block_bytes / layout.layer_bytes());
  return layout;
}

uint64_t RecordRoom(uint64_t block_bytes) {
  RecordSpec spec;
  spec.layout = LayoutOf(block_bytes);
  return RoundUp(MaxRecordBytes(spec, block_bytes), 4096);
}

Result<std::unique_ptr<Service>> Service::Start(const Options& options) {
  std::unique_ptr<Service> service(new Service());
  const int port = FreePort();
  service->endpoint_ = fmt::format("127.0.0.1:{}", port);
  const std::string config = options.folder + "/tiercel.yaml";
  std::ofstream(config) << fmt::format(
      "node: {{id: bench}}\n"
      "insecure: true\n"
      "shards: 1\n"
      "listen: {{grpc: \"{}\", http: \"\"}}\n"
      "ucx: {{tls: tcp, devices: lo}}\n"
      "memfd: {{enabled: true}}\n"
      "memory: {{host: {}B}}\n"
      "limits: {{bytes_in_flight: 1GiB, hold_bytes: 1GiB}}\n"
      "log: {{level: info}}\n",
      service->endpoint_, options.host_bytes);
  Child::Options child;
  child.argv = options.wrapper;
  child.argv.insert(child.argv.end(), {options.server, "--config", config});
  child.core = options.core;
  child.output_file = options.folder + "/server.log";
  TIERCEL_ASSIGN(service->child_, Child::Start(child));
  for (const Nanos until = Now() + 30 * kSecond;;) {
    if (!service->child_->Alive()) {
      std::ifstream log(child.output_file);
      const std::string text((std::istreambuf_iterator<char>(log)), std::istreambuf_iterator<char>());
      return Fail(Code::kUnavailable, "tiercel-server ended at its start: " + text.substr(0, 2000));
    }
    auto client = service->Through(TransportKind::kMemfd);
    if (client) break;
    if (Now() > until) return tl::unexpected(client.error());
    usleep(50000);
  }
  TIERCEL_TRY(service->TouchMemory(options.host_bytes, options.block));
  return service;
}

// Fresh memory is slow the first time, on some machines very: all of it is written before anything is
// timed.
Status Service::TouchMemory(uint64_t bytes, uint64_t block) {
  const auto batch = static_cast<uint32_t>(std::max<uint64_t>(8, 16 * kMiB / block));
  const Memory source(batch * block, 9);
  const KvLayout layout = LayoutOf(block);
  TIERCEL_ASSIGN(Client* const client, Through(TransportKind::kMemfd));
  for (uint64_t done = 0; done < bytes; done += source.size()) {
    TIERCEL_ASSIGN(const auto chain, NewChain(layout, batch));
    std::vector<PutSource> sources(batch);
    for (size_t i = 0; i < sources.size(); ++i) sources[i].src = {source.data() + i * block, block};
    RequestOptions patient;
    patient.deadline = 30 * kSecond;
    TIERCEL_TRY(Checked(client->Put(*chain, 0, sources, layout, patient), batch, "touch"));
  }
  return OkStatus();
}

Service::~Service() { clients_.clear(); }

Result<Client*> Service::Through(TransportKind kind) {
  auto& client = clients_[kind];
  if (client == nullptr) {
    Client::Options options;
    options.endpoints = {endpoint_};
    options.client_name = "bench";
    options.transports = {kind};
    if (kind == TransportKind::kUcx) options.ucx_devices = "lo";
    options.progress_thread = false;
    options.codec = CodecId::kRaw;
    options.max_bytes_in_flight = uint64_t{1} << 30;
    options.staging_bytes = uint64_t{640} << 20;
    auto made = Client::Connect(options);
    if (!made) {
      clients_.erase(kind);
      return tl::unexpected(made.error());
    }
    client = std::move(*made);
  }
  return client.get();
}

Result<std::unique_ptr<Chain>> Service::NewChain(const KvLayout& layout, uint32_t blocks) {
  return MakeChain(layout, kFirstNewSerial + serial_++, blocks);
}

Result<const Service::Stored*> Service::Blocks(const Memory& source, uint64_t block) {
  auto found = stored_.find(block);
  if (found == stored_.end()) {
    // One size at a time: what was stored before may be evicted now.
    stored_.clear();
    Stored stored;
    stored.layout = LayoutOf(block);
    const Walk walk(source, block);
    stored.blocks = static_cast<uint32_t>(walk.blocks());
    TIERCEL_ASSIGN(stored.chain, MakeChain(stored.layout, block, stored.blocks));
    TIERCEL_ASSIGN(Client* const client, Through(TransportKind::kMemfd));
    const auto batch = static_cast<uint32_t>(std::max<uint64_t>(1, 64 * kMiB / block));
    for (uint32_t first = 0; first < stored.blocks; first += batch) {
      const uint32_t count = std::min(batch, stored.blocks - first);
      std::vector<PutSource> sources(count);
      for (uint32_t i = 0; i < count; ++i) sources[i].src = {walk.At(first + i), block};
      RequestOptions patient;
      patient.deadline = 30 * kSecond;
      TIERCEL_TRY(Checked(client->Put(*stored.chain, first, sources, stored.layout, patient), count, "fill"));
    }
    found = stored_.emplace(block, std::move(stored)).first;
  }
  return &found->second;
}

Status Service::Touch(uint64_t block) {
  const auto found = stored_.find(block);
  if (found == stored_.end()) return OkStatus();
  const Stored& stored = found->second;
  TIERCEL_ASSIGN(Client* const client, Through(TransportKind::kMemfd));
  const auto batch = static_cast<uint32_t>(std::min<uint64_t>(64, 256 * kMiB / block));
  for (uint32_t first = 0; first < stored.blocks; first += batch) {
    std::vector<GetSlot> slots(std::min(batch, stored.blocks - first));
    for (GetSlot& slot : slots) slot.kind = GetSlot::Kind::kInPlace;
    const Completion done = client->Get(*stored.chain, first, slots, stored.layout);
    TIERCEL_TRY(Checked(done, static_cast<uint32_t>(slots.size()), "touch"));
  }
  return OkStatus();
}

std::unique_ptr<Lane> Service::Get(TransportKind kind, GetSlot::Kind slot, const Memory& source, const Memory& to,
                                   uint64_t block, uint32_t batch) {
  return std::make_unique<GetLane>(*this, kind, slot, source, to, block, batch);
}
std::unique_ptr<Lane> Service::Put(TransportKind kind, PutSource::Kind what, const Memory& source, uint64_t block,
                                   uint32_t batch) {
  return std::make_unique<PutLane>(*this, kind, what, source, block, batch);
}
std::unique_ptr<Lane> Service::Lookup(const Memory& source, uint64_t block) {
  return std::make_unique<LookupLane>(*this, source, block, false);
}
std::unique_ptr<Lane> Service::Verify(const Memory& source, uint64_t block) {
  return std::make_unique<LookupLane>(*this, source, block, true);
}
std::unique_ptr<Lane> Service::Match(TransportKind kind, const Memory& source, uint64_t block, uint32_t keys) {
  return std::make_unique<MatchLane>(*this, kind, source, block, keys);
}

}  // namespace tiercel::bench
