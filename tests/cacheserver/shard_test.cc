#include "cacheserver/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "base/random.h"
#include "kernels/record.h"
#include "transport/loopback.h"

namespace tiercel {
namespace {

constexpr uint32_t kSpace = 9;

class ManualClock final : public Clock {
 public:
  Nanos Now() const override { return now; }
  uint32_t UnixSeconds() const override { return 1'800'000'000 + static_cast<uint32_t>(now / kSecond); }
  Nanos now = kSecond;
};

BlockKey KeyOf(uint64_t n) {
  BlockKey key;
  SplitMix64 random(n);
  for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(key.bytes.data() + i, random.Next());
  return key;
}

std::vector<std::byte> RecordOf(uint64_t n, size_t bytes, const Scope& scope = {}) {
  std::vector<std::byte> raw(bytes);
  SplitMix64 random(n);
  for (std::byte& b : raw) b = static_cast<std::byte>(random.Next());
  RecordSpec spec;
  spec.layout = KvLayout::Opaque();
  spec.scope = scope;
  std::vector<std::byte> record(MaxRecordBytes(spec, bytes));
  record.resize(*EncodeRecord(spec, CodecId::kRaw, raw, record));
  return record;
}

std::vector<std::byte> Pattern(size_t bytes) { return std::vector<std::byte>(bytes, std::byte{0x5a}); }

// A client that keeps every frame.
class Peer final : public FrameSink {
 public:
  struct Got {
    FrameHeader header;
    std::vector<std::byte> meta;
    std::vector<std::byte> payload;
  };
  void OnAccept(std::unique_ptr<Endpoint>) override {}
  void OnFrame(Endpoint&, const FrameHeader& header, ByteSpan meta, Incoming& payload) override {
    auto& got = frames.emplace_back();
    got.header = header;
    got.meta.assign(meta.begin(), meta.end());
    got.payload.resize(payload.size());
    if (payload.size() > 0) payload.Receive(got.payload, [](const Status&) {});
  }
  void OnClosed(Endpoint&, const Error&) override { closed = true; }
  std::deque<Got> frames;
  bool closed = false;
};

class ShardTest : public ::testing::Test {
 protected:
  void SetUp() override { Make(Shard::Options()); }

  void Make(const Shard::Options& options) {
    endpoints_.clear();
    clients_.clear();
    shard_.reset();
    TierStack::Options tiers;
    tiers.host.capacity_bytes = 4 * kMiB;
    tiers.host.slab_bytes = 2 * kMiB;
    auto stack = TierStack::Create(tiers, clock_, nullptr);
    ASSERT_TRUE(stack);
    shard_ = std::make_unique<Shard>(options, clock_, std::move(*stack));
    auto transport = network_.MakeTransport(*shard_, clock_);
    server_ = transport.get();
    shard_->AddTransport(std::move(transport));
    shard_->ServeMemory();
  }

  // A bound session over a transport of its own.
  struct Client {
    std::unique_ptr<Peer> peer = std::make_unique<Peer>();
    std::unique_ptr<Transport> transport;
  };
  Endpoint* Open(uint64_t id, uint32_t name_space = kSpace, bool right_token = true) {
    auto client = std::make_unique<Client>();
    client->transport = network_.MakeTransport(*client->peer, clock_);
    Shard::Grant grant;
    grant.session_id = id;
    grant.name_space = name_space;
    grant.token.fill(std::byte{7});
    EXPECT_TRUE(server_->Admit(id, client->transport->LocalAddress(), name_space));
    EXPECT_TRUE(shard_->Expect(grant));
    auto endpoint = client->transport->Connect(id, server_->LocalAddress());
    EXPECT_TRUE(endpoint);
    endpoints_.push_back(std::move(*endpoint));
    clients_.push_back(std::move(client));
    Send(Op::kHello, right_token ? ByteSpan(grant.token) : ByteSpan(grant.token).first(15), {}, 0);
    Run();
    return endpoints_.back().get();
  }
  void Send(Op op, ByteSpan meta, ByteSpan payload, uint64_t req_id, uint16_t flags = 0,
            QualityClass min_class = QualityClass::kExact, uint32_t deadline_ms = 0) {
    FrameHeader header;
    header.op = op;
    header.req_id = req_id;
    header.flags = flags;
    header.min_class = min_class;
    header.deadline_ms = deadline_ms;
    EXPECT_TRUE(endpoints_.back()->Send(header, meta, payload, nullptr));
  }
  void Run() {
    for (int quiet = 0; quiet < 20;) {
      size_t happened = shard_->RunOnce();
      for (const auto& client : clients_) happened += client->transport->Poll();
      quiet = happened > 0 ? 0 : quiet + 1;
    }
  }
  Peer& peer() { return *clients_.back()->peer; }
  Peer::Got Next() {
    EXPECT_FALSE(peer().frames.empty());
    if (peer().frames.empty()) return {};
    Peer::Got got = std::move(peer().frames.front());
    peer().frames.pop_front();
    return got;
  }
  static std::vector<std::byte> Meta(uint64_t first, uint32_t n, const Scope& scope = {}) {
    ChainMeta meta;
    meta.scope = scope;
    meta.anchors.resize(RunsTouched(0, n));
    for (uint32_t i = 0; i < n; ++i) meta.keys.push_back(KeyOf(first + i));
    return EncodeChainMeta(meta);
  }
  Code Put(uint64_t n, size_t bytes = 10'000, const Scope& scope = {}) {
    const auto record = RecordOf(n, bytes, scope);
    Send(Op::kPut, Meta(n, 1, scope), record, 1000 + n);
    Run();
    const auto ack = Next();
    EXPECT_EQ(ack.header.op, Op::kAck);
    EXPECT_EQ(ack.header.req_id, 1000 + n);
    return ack.header.status;
  }

  ManualClock clock_;
  LoopbackNetwork network_;
  std::unique_ptr<Shard> shard_;
  Transport* server_ = nullptr;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;
};

TEST_F(ShardTest, BindsASessionByItsTokenOnce) {
  Open(1);
  EXPECT_EQ(Next().header.op, Op::kWelcome);
  EXPECT_EQ(shard_->stats().sessions, 1u);
}

TEST_F(ShardTest, AWrongTokenIsToldAndCutOff) {
  Open(1, kSpace, /*right_token=*/false);
  const auto reject = Next();
  EXPECT_EQ(reject.header.op, Op::kReject);
  EXPECT_EQ(reject.header.status, Code::kUnauthenticated);
  EXPECT_TRUE(peer().closed);
}

TEST_F(ShardTest, NothingButHelloComesFromTheUnbound) {
  auto client = std::make_unique<Client>();
  client->transport = network_.MakeTransport(*client->peer, clock_);
  ASSERT_TRUE(server_->Admit(5, "", kSpace));
  endpoints_.push_back(std::move(*client->transport->Connect(5, server_->LocalAddress())));
  clients_.push_back(std::move(client));
  Send(Op::kGet, Meta(1, 1), {}, 1);
  Run();
  EXPECT_TRUE(peer().frames.empty());
}

TEST_F(ShardTest, AnUnusedTokenExpires) {
  Shard::Grant grant;
  grant.session_id = 9;
  ASSERT_TRUE(shard_->Expect(grant));
  clock_.now += 31 * kSecond;
  shard_->RunOnce();
  EXPECT_EQ(shard_->stats().sessions, 0u);
}

TEST_F(ShardTest, ServesWhatWasPutAndExplainsWhatWasNot) {
  Open(1);
  Next();
  EXPECT_EQ(Put(1), Code::kOk);
  EXPECT_EQ(Put(2, 100'000), Code::kOk);
  EXPECT_EQ(Put(1), Code::kAlreadyExists);
  Send(Op::kGet, Meta(1, 3), {}, 77);
  Run();
  std::map<uint32_t, Peer::Got> by_index;
  bool last = false;
  for (int i = 0; i < 3; ++i) {
    auto got = Next();
    EXPECT_EQ(got.header.op, Op::kData);
    EXPECT_EQ(got.header.req_id, 77u);
    last |= got.header.has(kFlagLast);
    by_index[got.header.index] = std::move(got);
  }
  EXPECT_TRUE(last);
  EXPECT_EQ(by_index[0].payload, RecordOf(1, 10'000));
  EXPECT_EQ(by_index[1].payload, RecordOf(2, 100'000));
  EXPECT_EQ(by_index[1].header.tier, Tier::kHost);
  EXPECT_EQ(by_index[2].header.reason, MissReason::kNeverSeen);
  EXPECT_EQ(by_index[2].header.status, Code::kNotFound);
  const auto stats = shard_->stats();
  EXPECT_EQ(stats.tiers.pinned, 0u);
  EXPECT_EQ(stats.keys_in_flight, 0u);
  EXPECT_EQ(stats.bytes_in_flight, 0u);
}

TEST_F(ShardTest, MatchSaysWhatIsHereAndChangesNothing) {
  Open(1);
  Next();
  Put(1);
  Put(2);
  Send(Op::kMatch, Meta(1, 3), {}, 5);
  Run();
  const auto got = Next();
  ASSERT_EQ(got.header.op, Op::kMatched);
  ASSERT_EQ(got.meta.size(), 3 * kMatchEntryBytes);
  EXPECT_EQ(DecodeMatchEntry(got.meta)->tier, Tier::kHost);
  EXPECT_EQ(DecodeMatchEntry(ByteSpan(got.meta).subspan(16))->reason, MissReason::kNeverSeen);
  EXPECT_EQ(shard_->stats().tiers.misses, 0u);
}

TEST_F(ShardTest, ARecordThatDoesNotVerifyIsRefusedAndLeavesNothing) {
  Open(1);
  Next();
  auto record = RecordOf(1, 5000);
  record[record.size() - 100] ^= std::byte{1};
  Send(Op::kPut, Meta(1, 1), record, 1);
  Run();
  EXPECT_EQ(Next().header.status, Code::kDataLoss);
  Send(Op::kPut, Meta(2, 1), Pattern(777), 2);
  Run();
  EXPECT_NE(Next().header.status, Code::kOk);
  Scope other;
  other.bytes[0] = std::byte{1};
  const auto of_other_scope = RecordOf(3, 5000, other);
  Send(Op::kPut, Meta(3, 1), of_other_scope, 3);
  Run();
  EXPECT_EQ(Next().header.status, Code::kInvalidArgument);
  EXPECT_EQ(shard_->stats().tiers.blocks, 0u);
  EXPECT_EQ(shard_->stats().tiers.host_bytes, 0u);
  EXPECT_EQ(shard_->stats().puts_bad, 3u);
}

TEST_F(ShardTest, AnotherNameSpaceSeesNothing) {
  Open(1);
  Next();
  Put(1);
  Open(2, kSpace + 1);
  Next();
  Send(Op::kGet, Meta(1, 1), {}, 5);
  Run();
  EXPECT_EQ(Next().header.reason, MissReason::kNeverSeen);
  EXPECT_EQ(Put(1), Code::kPermissionDenied);
}

TEST_F(ShardTest, NonsenseIsAnsweredAndTheShardServesOn) {
  Open(1);
  Next();
  Send(Op::kGet, Pattern(50), {}, 5);
  Send(Op::kMatch, {}, {}, 6);
  Send(Op::kData, {}, {}, 7);
  Send(Op::kPut, Meta(1, 2), Pattern(64), 8);
  Send(Op::kPut, Meta(1, 1), {}, 9);
  Run();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Next().header.op, Op::kReject);
  EXPECT_EQ(Next().header.status, Code::kInvalidArgument);
  EXPECT_EQ(Next().header.status, Code::kInvalidArgument);
  EXPECT_EQ(Put(1), Code::kOk);
}

TEST_F(ShardTest, ALayerRangeIsARecordOfThoseLayers) {
  Open(1);
  Next();
  KvLayout layout;
  layout.layers = 4;
  layout.kv_heads = 2;
  layout.head_dim_k = layout.head_dim_v = 8;
  layout.tokens_per_block = 16;
  layout.dtype = Dtype::kBf16;
  RecordSpec spec;
  spec.layout = layout;
  std::vector<std::byte> raw(layout.block_bytes());
  SplitMix64 random(1);
  for (std::byte& b : raw) b = static_cast<std::byte>(random.Next());
  std::vector<std::byte> record(MaxRecordBytes(spec, 0));
  record.resize(*EncodeRecord(spec, CodecId::kRaw, raw, record));
  Send(Op::kPut, Meta(1, 1), record, 1);
  Run();
  EXPECT_EQ(Next().header.status, Code::kOk);
  ChainMeta meta;
  meta.keys = {KeyOf(1)};
  meta.anchors.resize(1);
  meta.layer_begin = 1;
  meta.layer_end = 3;
  Send(Op::kGet, EncodeChainMeta(meta), {}, 2);
  Run();
  const auto got = Next();
  const auto view = ParseRecord(got.payload);
  ASSERT_TRUE(view) << view.error().message;
  std::vector<std::byte> layers(layout.layer_bytes() * 2);
  ASSERT_TRUE(DecodeRecord(*view, layout, layers, 1, 3));
  EXPECT_TRUE(std::equal(layers.begin(), layers.end(), raw.begin() + static_cast<long>(layout.layer_bytes())));
  meta.layer_end = 9;
  Send(Op::kGet, EncodeChainMeta(meta), {}, 3);
  Run();
  EXPECT_EQ(Next().header.status, Code::kInvalidArgument);
}

TEST_F(ShardTest, TheEndOfASessionFreesAllItHeld) {
  Open(1);
  Next();
  for (uint64_t i = 0; i < 8; ++i) Put(i, 200'000);
  Send(Op::kMatch, Meta(0, 8), {}, 5, kFlagHold);
  Run();
  EXPECT_EQ(shard_->stats().holds, 8u);
  EXPECT_EQ(shard_->stats().tiers.pinned, 8u);
  Send(Op::kGet, Meta(0, 8), {}, 6);
  shard_->RunOnce();  // Sends begin; the client never takes them.
  shard_->EndSession(1);
  Run();
  EXPECT_EQ(shard_->stats().tiers.pinned, 0u);
  EXPECT_EQ(shard_->stats().sessions, 0u);
}

TEST_F(ShardTest, AHoldEndsAfterItsTime) {
  Open(1);
  Next();
  Put(1);
  Send(Op::kMatch, Meta(1, 1), {}, 5, kFlagHold);
  Run();
  EXPECT_EQ(shard_->stats().tiers.pinned, 1u);
  clock_.now += 3 * kSecond;
  Run();
  EXPECT_EQ(shard_->stats().tiers.pinned, 0u);
}

TEST_F(ShardTest, APinOutlivesItsSessionAndEndsAtItsTime) {
  Open(1);
  Next();
  Put(1);
  Send(Op::kMatch, Meta(1, 2), {}, 5, kFlagPin, QualityClass::kExact, /*deadline_ms=*/60'000);
  Run();
  const auto answer = Next();
  ASSERT_EQ(answer.header.op, Op::kMatched);
  EXPECT_EQ(DecodeMatchEntry(ByteSpan(answer.meta).first(kMatchEntryBytes))->tier, Tier::kHost);
  EXPECT_EQ(DecodeMatchEntry(ByteSpan(answer.meta).subspan(kMatchEntryBytes))->reason, MissReason::kNeverSeen);
  shard_->EndSession(1);
  Run();
  EXPECT_EQ(shard_->stats().tiers.kept, 1u);
  clock_.now += 61 * kSecond;
  Run();
  EXPECT_EQ(shard_->stats().tiers.kept, 0u);
}

TEST_F(ShardTest, APinLastsNoLongerThanTheNodeAllowsAndZeroEndsIt) {
  Shard::Options options;
  options.max_pin = 10 * kSecond;
  Make(options);
  Open(1);
  Next();
  Put(1);
  Send(Op::kMatch, Meta(1, 1), {}, 5, kFlagPin, QualityClass::kExact, 60'000);
  Run();
  EXPECT_EQ(shard_->stats().tiers.kept, 1u);
  clock_.now += 11 * kSecond;
  Run();
  EXPECT_EQ(shard_->stats().tiers.kept, 0u);
  Send(Op::kMatch, Meta(1, 1), {}, 6, kFlagPin, QualityClass::kExact, 5'000);
  Send(Op::kMatch, Meta(1, 1), {}, 7, kFlagPin, QualityClass::kExact, 0);
  Run();
  EXPECT_EQ(shard_->stats().tiers.kept, 0u);
}

TEST_F(ShardTest, TooManyKeysAtOnceAreAnsweredBusy) {
  Shard::Options options;
  options.max_keys_in_flight = 4;
  Make(options);
  Open(1);
  Next();
  Send(Op::kGet, Meta(1, 5), {}, 5);
  Run();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Next().header.reason, MissReason::kBusy);
  EXPECT_EQ(shard_->stats().keys_in_flight, 0u);
}

TEST_F(ShardTest, CancelledIsTheLastWordOfARequest) {
  Open(1);
  Next();
  for (uint64_t i = 0; i < 4; ++i) Put(i, 100'000);
  Send(Op::kGet, Meta(0, 4), {}, 5);
  Send(Op::kCancel, {}, {}, 5);
  Run();
  Op last = Op::kHello;
  while (!peer().frames.empty()) last = Next().header.op;
  EXPECT_EQ(last, Op::kCancelled);
  EXPECT_EQ(shard_->stats().tiers.pinned, 0u);
}

TEST_F(ShardTest, ADrainingNodeServesButTakesNothingNew) {
  Open(1);
  Next();
  Put(1);
  shard_->SetDraining();
  EXPECT_EQ(Put(2), Code::kUnavailable);
  Send(Op::kGet, Meta(1, 1), {}, 5);
  Run();
  EXPECT_EQ(Next().payload, RecordOf(1, 10'000));
}

}  // namespace
}  // namespace tiercel
