// The client against scripted nodes: real frames, real records, real threads; nodes that stop, lie
// and fall silent on command.
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "client/cpp/client_impl.h"
#include "client/cpp/pieces.h"
#include "tests/client/scripted_node.h"

namespace tiercel {
namespace {

#ifdef __SANITIZE_THREAD__
constexpr Nanos kSlow = 10;  // What its instrumentation may cost.
#else
constexpr Nanos kSlow = 1;
#endif

constexpr uint32_t kBytes = 200'000;  // Over what loopback carries in line.

std::vector<std::byte> Content(uint64_t seed, size_t bytes = kBytes) {
  std::vector<std::byte> out(bytes);
  SplitMix64 random(seed);
  for (size_t i = 0; i + 8 <= bytes; i += 8) StoreLe(out.data() + i, random.Next());
  return out;
}

class ClientTest : public testing::Test {
 protected:
  void AddNode(const std::string& id) {
    nodes_.emplace(id, std::make_unique<ScriptedNode>(network_, id));
  }
  ScriptedNode& node(const std::string& id) { return *nodes_.at(id); }

  View ViewOf(uint64_t epoch, const std::vector<std::string>& ids) {
    View view;
    view.epoch = epoch;
    for (const std::string& id : ids) view.nodes.push_back({id, "scripted:" + id, "", {100}});
    return view;
  }

  void Connect(Client::Options options = {}, std::vector<std::string> ids = {"a"}) {
    for (const std::string& id : ids) {
      if (!nodes_.contains(id)) AddNode(id);
    }
    ClientParts parts;
    parts.control = [this](const std::string& endpoint) {
      return nodes_.at(endpoint.substr(std::string("scripted:").size()))->MakeControl();
    };
    parts.ways.push_back({TransportKind::kLoopback, [this](FrameSink& sink, const Clock& clock) {
                            return Result<std::unique_ptr<Transport>>(
                                network_.MakeTransport(sink, clock));
                          }});
    const std::filesystem::path file = std::filesystem::temp_directory_path() /
                                       ("tiercel_client_test_" + std::to_string(getpid()));
    std::ofstream(file) << FormatView(ViewOf(1, ids));
    options.view_file = file.string();
    auto client = std::make_unique<ClientImpl>(options, std::move(parts));
    const Status opened = client->Open(3 * kSecond);
    ASSERT_TRUE(opened) << opened.error().ToString();
    client_ = std::move(client);
  }

  static Chain MakeChain(uint32_t blocks, uint64_t seed = 1, uint32_t pieces = 1) {
    Chain::Options options;
    options.pieces = pieces;
    Chain chain(options);
    SplitMix64 random(seed);
    for (uint32_t i = 0; i < blocks; ++i) {
      std::array<std::byte, 32> hash;
      for (size_t j = 0; j < 4; ++j) StoreLe(hash.data() + j * 8, random.Next());
      EXPECT_TRUE(chain.Append(hash));
    }
    return chain;
  }

  Completion PutAll(const Chain& chain, uint64_t seed = 100, RequestOptions options = {}) {
    std::vector<std::vector<std::byte>> blocks;
    std::vector<PutSource> sources;
    for (uint32_t i = 0; i < chain.size(); ++i) blocks.push_back(Content(seed + i));
    for (const auto& block : blocks)
      sources.push_back({PutSource::Kind::kBlock, block, nullptr, {}});
    return client_->Put(chain, 0, sources, KvLayout::Opaque(), options);
  }

  struct Got {
    Completion completion;
    std::vector<std::vector<std::byte>> bytes;
  };
  Got GetAll(const Chain& chain, RequestOptions options = {},
             GetSlot::Kind kind = GetSlot::Kind::kBlock, size_t room = kBytes) {
    Got got;
    got.bytes.assign(chain.size(), std::vector<std::byte>(room));
    std::vector<GetSlot> slots(chain.size());
    for (uint32_t i = 0; i < chain.size(); ++i) {
      slots[i].kind = kind;
      slots[i].dst = got.bytes[i];
    }
    got.completion = client_->Get(chain, 0, slots, KvLayout::Opaque(), options);
    return got;
  }

  void ExpectSums() {
    const Client::Stats stats = client_->stats();
    const uint64_t misses = std::accumulate(stats.misses.begin(), stats.misses.end(), uint64_t{0});
    EXPECT_EQ(stats.blocks_asked, stats.blocks_served + misses);
    EXPECT_EQ(stats.misses[0], 0u);
  }

  LoopbackNetwork network_;
  std::map<std::string, std::unique_ptr<ScriptedNode>> nodes_;
  std::unique_ptr<Client> client_;  // Dies before the nodes.
};

Nanos Now() { return Clock::Monotonic().Now(); }

TEST_F(ClientTest, WhatWasPutIsMatchedAndComesBackByteForByte) {
  Connect();
  const Chain chain = MakeChain(70);
  const Completion put = PutAll(chain);
  ASSERT_TRUE(put.status) << put.status.error().ToString();
  EXPECT_EQ(put.prefix, 70u);
  EXPECT_TRUE(put.released);
  const Completion match = client_->Match(chain);
  EXPECT_EQ(match.prefix, 70u);
  EXPECT_EQ(node("a").matches, 2u) << "64 keys and 6, across runs";
  const Got got = GetAll(chain);
  EXPECT_EQ(got.completion.prefix, 70u);
  for (uint32_t i = 0; i < 70; ++i) {
    ASSERT_EQ(got.completion.blocks[i].status, Code::kOk);
    ASSERT_EQ(got.completion.blocks[i].bytes, kBytes);
    ASSERT_EQ(got.bytes[i], Content(100 + i));
  }
  ExpectSums();
}

TEST_F(ClientTest, AMissHasItsReasonAndEndsThePrefix) {
  Connect();
  const Chain chain = MakeChain(8);
  std::vector<std::byte> block = Content(1);
  const std::vector<PutSource> source = {{PutSource::Kind::kBlock, block, nullptr, {}}};
  for (const uint32_t i : {0u, 1u, 3u}) {
    ASSERT_EQ(client_->Put(chain, i, source, KvLayout::Opaque()).prefix, 1u);
  }
  EXPECT_EQ(client_->Match(chain).prefix, 2u);
  const Got got = GetAll(chain);
  EXPECT_EQ(got.completion.prefix, 2u);
  EXPECT_EQ(got.completion.blocks[2].status, Code::kNotFound);
  EXPECT_EQ(got.completion.blocks[2].reason, MissReason::kNeverSeen);
  EXPECT_EQ(got.completion.blocks[3].status, Code::kOk);
  ExpectSums();
}

TEST_F(ClientTest, WhatIsAskedOfTheNodeTravelsInTheFlags) {
  Connect();
  const Chain chain = MakeChain(1);
  ASSERT_EQ(PutAll(chain).prefix, 1u);
  RequestOptions options;
  options.hold = true;
  options.no_touch = true;
  client_->Match(chain, options);
  EXPECT_EQ(node("a").last_flags.load(), kFlagHold | kFlagNoTouch);
  options = {};
  options.pin = 5 * kSecond;
  client_->Match(chain, options);
  EXPECT_EQ(node("a").last_flags.load(), kFlagPin);
  options = {};
  options.no_promote = true;
  options.prefer = Prefer::kSmall;
  GetAll(chain, options);
  EXPECT_EQ(node("a").last_flags.load(), kFlagNoPromote | kFlagPreferSmall);
}

TEST_F(ClientTest, ARecordIsReceivedIntoTheCallersMemoryAndVerified) {
  Connect();
  const Chain chain = MakeChain(3);
  ASSERT_EQ(PutAll(chain).prefix, 3u);
  const Got got = GetAll(chain, {}, GetSlot::Kind::kRecord, kBytes + 4096);
  EXPECT_EQ(got.completion.prefix, 3u);
  EXPECT_TRUE(got.completion.released);
  const auto view =
      ParseRecord(ByteSpan(got.bytes[0]).first(got.completion.blocks[0].record_bytes));
  ASSERT_TRUE(view) << view.error().ToString();
  std::vector<std::byte> block(kBytes);
  ASSERT_TRUE(DecodeRecord(*view, KvLayout::Opaque(), block));
  EXPECT_EQ(block, Content(100));
}

TEST_F(ClientTest, AFlippedBitIsAMissForCorruptAndNeverBytes) {
  Connect();
  const Chain chain = MakeChain(4);
  ASSERT_EQ(PutAll(chain).prefix, 4u);
  node("a").flip_a_bit = true;
  for (const auto kind : {GetSlot::Kind::kBlock, GetSlot::Kind::kRecord}) {
    const Got got = GetAll(chain, {}, kind, kBytes + 4096);
    for (const BlockResult& block : got.completion.blocks) {
      EXPECT_EQ(block.status, Code::kNotFound);
      EXPECT_EQ(block.reason, MissReason::kCorrupt);
    }
  }
  EXPECT_EQ(client_->stats().corrupt, 8u);
  ExpectSums();
}

TEST_F(ClientTest, ACallOnAFrozenNodeEndsWithinFiveMillisecondsOfItsDeadline) {
  Connect();
  const Chain chain = MakeChain(4);
  ASSERT_EQ(PutAll(chain).prefix, 4u);
  RequestOptions options;
  options.deadline = 60 * kMillisecond;
  // The best of a few: the scheduler of a loaded machine is not ours to judge. Between them the node acknowledges
  // the CANCEL; one that does not for kCancelGrace loses its endpoint, which would end a later call early.
  Nanos best = kSecond;
  Got got;
  for (int i = 0; i < 4; ++i) {
    node("a").frozen = true;
    const Nanos before = Now();
    got = GetAll(chain, options);
    const Nanos took = Now() - before;
    EXPECT_GE(took, 60 * kMillisecond);
    node("a").frozen = false;
    EXPECT_EQ(client_->Match(chain).prefix, 4u);
    best = std::min(best, took);
  }
  EXPECT_LT(best, 60 * kMillisecond + kSlow * 5 * kMillisecond);
  EXPECT_TRUE(got.completion.status);
  EXPECT_TRUE(got.completion.released) << "nothing was on its way into these slots";
  for (const BlockResult& block : got.completion.blocks)
    EXPECT_EQ(block.reason, MissReason::kDeadline);
  ExpectSums();
}

TEST_F(ClientTest, AfterADeadlineTheNodeIsToldToStopAndItsLateAnswersAreDropped) {
  Connect();
  const Chain chain = MakeChain(2);
  ASSERT_EQ(PutAll(chain).prefix, 2u);
  node("a").mute_gets = true;
  node("a").deaf_to_cancel = true;
  RequestOptions options;
  options.deadline = 20 * kMillisecond;
  Got got = GetAll(chain, options, GetSlot::Kind::kRecord, kBytes + 4096);
  for (const BlockResult& block : got.completion.blocks)
    EXPECT_EQ(block.reason, MissReason::kDeadline);
  node("a").AnswerMuted();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(node("a").cancels, 1u);
  for (const auto& bytes : got.bytes) {
    EXPECT_EQ(bytes, std::vector<std::byte>(kBytes + 4096)) << "a late write";
  }
}

TEST_F(ClientTest, ANodeThatIgnoresACancelLosesItsEndpointAndIsGreetedAnew) {
  Connect();
  const Chain chain = MakeChain(2);
  ASSERT_EQ(PutAll(chain).prefix, 2u);
  node("a").mute_gets = true;
  node("a").deaf_to_cancel = true;
  RequestOptions options;
  options.deadline = 20 * kMillisecond;
  GetAll(chain, options);
  node("a").mute_gets = false;
  const Nanos until = Now() + 3 * kSecond;
  while (node("a").hellos < 2 && Now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(node("a").hellos, 2u);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(GetAll(chain).completion.prefix, 2u);
}

TEST_F(ClientTest, WhileTheBreakerIsOpenACallIsAnsweredInUnderFiftyMicroseconds) {
  Connect();
  const Chain chain = MakeChain(4);
  ASSERT_EQ(PutAll(chain).prefix, 4u);
  node("a").frozen = true;
  node("a").hang_open = true;
  RequestOptions options;
  options.deadline = 5 * kMillisecond;
  for (int i = 0; i < 5; ++i) GetAll(chain, options);
  ASSERT_TRUE(client_->Nodes()[0].breaker_open);
  std::vector<Nanos> took;
  std::vector<std::byte> bytes(kBytes);
  std::vector<GetSlot> slots(1);
  slots[0].dst = bytes;
  for (int i = 0; i < 201; ++i) {
    const Nanos before = Now();
    const Completion got = client_->Get(chain, 0, slots, KvLayout::Opaque());
    took.push_back(Now() - before);
    ASSERT_EQ(got.blocks[0].reason, MissReason::kBreaker);
  }
  std::sort(took.begin(), took.end());
  EXPECT_LT(took[100], kSlow * 50 * kMicrosecond);
  node("a").frozen = false;
  node("a").hang_open = false;
  const Nanos until = Now() + 4 * kSecond;
  while (Now() < until && GetAll(chain).completion.prefix != 4) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(GetAll(chain).completion.prefix, 4u) << "a probe must find it well again";
  ExpectSums();
}

TEST_F(ClientTest, ADeadNodeCostsMissesAndTheOthersServe) {
  Connect({}, {"a", "b", "c"});
  std::vector<Chain> chains;
  for (uint64_t i = 0; i < 60; ++i) chains.push_back(MakeChain(1, 1000 + i));
  for (const Chain& chain : chains) ASSERT_EQ(PutAll(chain).prefix, 1u);
  const size_t lost = node("b").size();
  ASSERT_GT(lost, 0u);
  ASSERT_LT(lost, 60u);
  node("b").refuse_open = true;
  node("b").HangUpAll();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  size_t served = 0;
  size_t broken = 0;
  for (const Chain& chain : chains) {
    const Got got = GetAll(chain);
    served += got.completion.prefix;
    broken += got.completion.blocks[0].reason == MissReason::kBreaker ? 1 : 0;
  }
  EXPECT_EQ(served, 60 - lost);
  EXPECT_EQ(broken, lost);
  ExpectSums();
}

TEST_F(ClientTest, AChainOverManyRunsIsAskedOfAllItsNodesAtOnce) {
  Connect({}, {"a", "b", "c"});
  const Chain chain = MakeChain(32 * 12);
  std::vector<std::byte> block = Content(1, 64);
  std::vector<PutSource> sources(chain.size(), {PutSource::Kind::kBlock, block, nullptr, {}});
  ASSERT_EQ(client_->Put(chain, 0, sources, KvLayout::Opaque()).prefix, chain.size());
  EXPECT_GT(node("a").size(), 0u);
  EXPECT_GT(node("b").size(), 0u);
  EXPECT_GT(node("c").size(), 0u);
  EXPECT_EQ(node("a").size() + node("b").size() + node("c").size(), chain.size());
  EXPECT_EQ(client_->Match(chain).prefix, chain.size());
}

TEST_F(ClientTest, AfterAViewChangeBlocksAreFoundWhereTheySat) {
  AddNode("b");
  Connect({}, {"a"});
  const Chain chain = MakeChain(32 * 8);
  std::vector<std::byte> block = Content(1, 64);
  std::vector<PutSource> sources(chain.size(), {PutSource::Kind::kBlock, block, nullptr, {}});
  ASSERT_EQ(client_->Put(chain, 0, sources, KvLayout::Opaque()).prefix, chain.size());
  ASSERT_TRUE(client_->SetView(ViewOf(2, {"a", "b"})));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(client_->Match(chain).prefix, chain.size());
  EXPECT_GT(node("b").matches, 0u) << "the new owner is asked first";
  std::vector<std::vector<std::byte>> out(chain.size(), std::vector<std::byte>(64));
  std::vector<GetSlot> slots(chain.size());
  for (size_t i = 0; i < slots.size(); ++i) slots[i].dst = out[i];
  EXPECT_EQ(client_->Get(chain, 0, slots, KvLayout::Opaque()).prefix, chain.size());
  EXPECT_FALSE(client_->SetView(ViewOf(1, {"a"}))) << "an epoch only grows";
  const Chain fresh = MakeChain(32 * 8, 77);
  ASSERT_EQ(client_->Put(fresh, 0, sources, KvLayout::Opaque()).prefix, fresh.size());
  EXPECT_GT(node("b").size(), 0u);
  ExpectSums();
}

TEST_F(ClientTest, APutThatFindsNoRoomIsRefusedAtOnce) {
  Client::Options options;
  options.max_tickets = 8;
  options.max_bytes_in_flight = 1 << 20;
  Connect(options);
  node("a").frozen = true;
  const Chain chain = MakeChain(1);
  const std::vector<std::byte> block = Content(1);
  const std::vector<PutSource> source = {{PutSource::Kind::kBlock, block, nullptr, {}}};
  RequestOptions request;
  request.deadline = 100 * kMillisecond;
  int taken = 0;
  const Nanos before = Now();
  Code refused = Code::kOk;
  for (int i = 0; i < 20 && refused == Code::kOk; ++i) {
    const auto ticket = client_->SubmitPut(chain, 0, source, KvLayout::Opaque(), request);
    ticket ? static_cast<void>(++taken) : static_cast<void>(refused = ticket.error().code);
  }
  EXPECT_LT(Now() - before, 20 * kMillisecond) << "a put never blocks";
  EXPECT_EQ(refused, Code::kResourceExhausted);
  EXPECT_EQ(taken, 5) << "by bytes in flight";
  int ended = 0;
  while (ended < taken && Now() - before < 2 * kSecond) {
    for (const Completion& completion : client_->Poll()) {
      EXPECT_EQ(completion.blocks[0].status, Code::kDeadlineExceeded);
      ++ended;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(ended, taken);
  node("a").frozen = false;
}

TEST_F(ClientTest, ABusyNodeIsBusyAndNotBroken) {
  Connect();
  node("a").busy = true;
  const Chain chain = MakeChain(1);
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(PutAll(chain).blocks[0].status, Code::kResourceExhausted);
    EXPECT_EQ(GetAll(chain).completion.blocks[0].reason, MissReason::kBusy);
  }
  EXPECT_FALSE(client_->Nodes()[0].breaker_open);
}

TEST_F(ClientTest, ADurablePutEndsWhenItIsDurableOrAtItsDeadlineStored) {
  Connect();
  const Chain chain = MakeChain(2);
  RequestOptions options;
  options.want_durable = true;
  const Completion durable = PutAll(chain, 1, options);
  EXPECT_TRUE(durable.blocks[0].durable && durable.blocks[1].durable);
  node("a").never_durable = true;
  options.deadline = 30 * kMillisecond;
  const Completion stored = PutAll(MakeChain(1, 9), 1, options);
  EXPECT_EQ(stored.blocks[0].status, Code::kOk);
  EXPECT_FALSE(stored.blocks[0].durable);
}

TEST_F(ClientTest, CompletionsComeThroughTheDescriptorWithoutAThreadOfOurs) {
  Client::Options options;
  options.progress_thread = false;
  Connect(options);
  const Chain chain = MakeChain(4);
  ASSERT_EQ(PutAll(chain).prefix, 4u);
  std::vector<std::vector<std::byte>> out(4, std::vector<std::byte>(kBytes));
  std::vector<GetSlot> slots(4);
  for (size_t i = 0; i < 4; ++i) slots[i].dst = out[i];
  const auto ticket = client_->SubmitGet(chain, 0, slots, KvLayout::Opaque(), {});
  ASSERT_TRUE(ticket);
  std::vector<Completion> taken;
  for (int rounds = 0; taken.empty() && rounds < 1000; ++rounds) {
    pollfd descriptor{client_->event_fd(), POLLIN, 0};
    ASSERT_GT(poll(&descriptor, 1, 2000), 0);
    for (Completion& completion : client_->Poll()) taken.push_back(std::move(completion));
  }
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].ticket, *ticket);
  EXPECT_EQ(taken[0].prefix, 4u);
  EXPECT_EQ(out[3], Content(103));
}

TEST_F(ClientTest, ManyThreadsMayCallAtOnce) {
  Connect({}, {"a", "b"});
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 60; ++i) {
        const Chain chain = MakeChain(3, t * 1000 + i + 5);
        const uint64_t seed = t * 100000 + i * 100;
        if (PutAll(chain, seed).prefix != 3) ++wrong;
        const Got got = GetAll(chain);
        for (uint32_t b = 0; b < 3; ++b) {
          if (got.completion.blocks[b].status != Code::kOk || got.bytes[b] != Content(seed + b))
            ++wrong;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  ExpectSums();
}

TEST_F(ClientTest, ACancelledTicketEndsAtOnce) {
  Connect();
  node("a").mute_gets = true;
  const Chain chain = MakeChain(1);
  std::vector<std::byte> out(kBytes);
  std::vector<GetSlot> slots(1);
  slots[0].dst = out;
  const Nanos before = Now();
  const auto ticket = client_->SubmitGet(chain, 0, slots, KvLayout::Opaque(), {});
  ASSERT_TRUE(ticket);
  client_->Cancel(*ticket);
  const Completion completion = client_->Wait(*ticket);
  EXPECT_LT(Now() - before, 200 * kMillisecond);
  ASSERT_FALSE(completion.status);
  EXPECT_EQ(completion.status.error().code, Code::kCancelled);
}

TEST_F(ClientTest, MalformedRequestsAreNamed) {
  Connect();
  const Chain chain = MakeChain(2);
  std::vector<std::byte> out(10);
  std::vector<GetSlot> slots(3);
  for (GetSlot& slot : slots) slot.dst = out;
  EXPECT_EQ(client_->SubmitGet(chain, 0, slots, KvLayout::Opaque(), {}).error().code,
            Code::kInvalidArgument);
  slots.resize(1);
  slots[0].dst = {};
  EXPECT_EQ(client_->SubmitGet(chain, 0, slots, KvLayout::Opaque(), {}).error().code,
            Code::kInvalidArgument);
  slots[0].dst = out;
  KvLayout layout;
  layout.layers = 2;
  layout.kv_heads = 2;
  layout.head_dim_k = layout.head_dim_v = 8;
  layout.tokens_per_block = 16;
  layout.dtype = Dtype::kBf16;
  EXPECT_EQ(client_->SubmitGet(chain, 0, slots, layout, {}).error().code, Code::kInvalidArgument);
  EXPECT_EQ(client_->Wait(12345).status.error().code, Code::kInvalidArgument);
}

TEST_F(ClientTest, ALossyCodecsBlockGoesToThoseWhoAcceptItsClassAndToNobodyElse) {
  KvLayout layout;
  layout.layers = 2;
  layout.kv_heads = 2;
  layout.head_dim_k = layout.head_dim_v = 64;
  layout.tokens_per_block = 64;
  layout.dtype = Dtype::kBf16;
  std::vector<std::byte> block(layout.block_bytes());
  SplitMix64 random(3);
  for (size_t i = 0; i < block.size(); i += 2) {
    // Of magnitude 1 to 4, either sign.
    const auto bits = static_cast<uint16_t>(random.Next());
    StoreLe(block.data() + i, static_cast<uint16_t>(0x3f80 + (bits & 0x80ff)));
  }
  Client::Options connect;
  connect.codec = CodecId::kI8;
  Connect(connect);
  const Chain chain = MakeChain(1);
  const std::vector<PutSource> source = {{PutSource::Kind::kBlock, block, nullptr, {}}};
  const Completion refused = client_->Put(chain, 0, source, layout);
  EXPECT_EQ(refused.blocks[0].status, Code::kInvalidArgument) << "a put that says nothing is exact";
  RequestOptions as_near;
  as_near.put_class = QualityClass::kNear;
  const Completion put = client_->Put(chain, 0, source, layout, as_near);
  ASSERT_EQ(put.prefix, 1u) << static_cast<int>(put.blocks[0].status);
  EXPECT_EQ(put.blocks[0].quality, QualityClass::kNear);
  EXPECT_LT(put.blocks[0].record_bytes, block.size() * 9 / 16);

  std::vector<std::byte> out(block.size());
  std::vector<GetSlot> slots(1);
  slots[0].dst = out;
  const Completion exact = client_->Get(chain, 0, slots, layout);
  EXPECT_EQ(exact.prefix, 0u);
  EXPECT_EQ(exact.blocks[0].reason, MissReason::kOtherClass);

  RequestOptions near;
  near.min_class = QualityClass::kNear;
  const Completion got = client_->Get(chain, 0, slots, layout, near);
  ASSERT_EQ(got.prefix, 1u) << static_cast<int>(got.blocks[0].reason);
  EXPECT_EQ(got.blocks[0].quality, QualityClass::kNear);
  for (size_t i = 0; i < block.size(); i += 2) {
    const auto value = [i](const std::vector<std::byte>& from) {
      return std::bit_cast<float>(uint32_t{LoadLe<uint16_t>(from.data() + i)} << 16);
    };
    ASSERT_NEAR(value(out), value(block), 0.03) << i;  // A step is at most 8 / 255.
  }
  ExpectSums();
}

TEST_F(ClientTest, ALayerRangeComesAlone) {
  Connect();
  KvLayout layout;
  layout.layers = 4;
  layout.kv_heads = 2;
  layout.head_dim_k = layout.head_dim_v = 32;
  layout.tokens_per_block = 128;
  layout.dtype = Dtype::kBf16;
  const Chain chain = MakeChain(1);
  const std::vector<std::byte> block = Content(3, layout.block_bytes());
  const std::vector<PutSource> source = {{PutSource::Kind::kBlock, block, nullptr, {}}};
  ASSERT_EQ(client_->Put(chain, 0, source, layout).prefix, 1u);
  std::vector<std::byte> out(2 * layout.layer_bytes());
  std::vector<GetSlot> slots(1);
  slots[0].dst = out;
  slots[0].layer_begin = 1;
  slots[0].layer_end = 3;
  const Completion got = client_->Get(chain, 0, slots, layout);
  ASSERT_EQ(got.prefix, 1u) << static_cast<int>(got.blocks[0].reason);
  EXPECT_EQ(0, std::memcmp(out.data(), block.data() + layout.layer_bytes(), out.size()));
}

TEST_F(ClientTest, ABlockOverSixteenMebibytesTravelsInPiecesAndIsThereWholeOrNotAtAll) {
  Connect();
  KvLayout layout;
  layout.layers = 12;
  layout.kv_heads = 16;
  layout.head_dim_k = layout.head_dim_v = 128;
  layout.tokens_per_block = 256;
  layout.dtype = Dtype::kBf16;
  const Pieces pieces = PiecesOf(layout);
  ASSERT_EQ(pieces.count, 2u) << "of eight layers of 2 MiB and of four";
  const Chain chain = MakeChain(2, 1, pieces.count);
  const std::vector<std::byte> a = Content(3, layout.block_bytes());
  const std::vector<std::byte> b = Content(4, layout.block_bytes());
  const std::vector<PutSource> sources = {{PutSource::Kind::kBlock, a, nullptr, {}},
                                          {PutSource::Kind::kBlock, b, nullptr, {}}};
  RequestOptions options;
  options.deadline = 20 * kSecond;
  const Completion put = client_->Put(chain, 0, sources, layout, options);
  ASSERT_TRUE(put.status) << put.status.error().ToString();
  EXPECT_EQ(put.prefix, 2u);
  EXPECT_EQ(put.blocks[0].bytes, layout.block_bytes());
  EXPECT_EQ(client_->Match(chain, options).prefix, 2u);

  std::vector<std::byte> out(2 * layout.block_bytes());
  std::vector<GetSlot> slots(2);
  const auto get = [&](uint32_t from, uint32_t to) {
    const uint64_t bytes = (to - from) * layout.layer_bytes();
    std::fill(out.begin(), out.end(), std::byte{0xee});
    for (size_t i = 0; i < 2; ++i) {
      slots[i].dst = MutableByteSpan(out).subspan(i * bytes, bytes);
      slots[i].layer_begin = static_cast<uint16_t>(from);
      slots[i].layer_end = static_cast<uint16_t>(to);
    }
    const Completion got = client_->Get(chain, 0, slots, layout, options);
    if (got.prefix != 2 || got.blocks[1].bytes != bytes) return false;
    const auto at = static_cast<ptrdiff_t>(from * layout.layer_bytes());
    return std::equal(slots[0].dst.begin(), slots[0].dst.end(), a.begin() + at) &&
           std::equal(slots[1].dst.begin(), slots[1].dst.end(), b.begin() + at);
  };
  EXPECT_TRUE(get(0, 12));
  EXPECT_TRUE(get(6, 10)) << "of both pieces";
  EXPECT_TRUE(get(9, 11)) << "of the second alone";

  node("a").Forget(chain.key(1, 1));
  EXPECT_EQ(client_->Match(chain, options).prefix, 1u);
  slots[0].layer_begin = slots[1].layer_begin = slots[0].layer_end = slots[1].layer_end = 0;
  for (size_t i = 0; i < 2; ++i) {
    slots[i].dst = MutableByteSpan(out).subspan(i * a.size(), a.size());
  }
  const Completion got = client_->Get(chain, 0, slots, layout, options);
  EXPECT_EQ(got.prefix, 1u);
  EXPECT_EQ(got.blocks[1].status, Code::kNotFound);
  EXPECT_EQ(got.blocks[1].reason, MissReason::kNeverSeen);
  ExpectSums();

  const auto wrong = client_->SubmitPut(MakeChain(2), 0, sources, layout, options);
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.error().message.find("travels in 2 pieces"), std::string::npos);
}

TEST_F(ClientTest, PiecesOfTwoValuesNeverMakeOne) {
  Connect();
  const uint64_t size = 2 * kMaxPieceBytes + 12345;
  const Chain chain = MakeChain(1, 1, PiecesOf(KvLayout::Opaque(), size).count);
  ASSERT_EQ(chain.options().pieces, 3u);
  const std::vector<std::byte> a = Content(3, size);
  const std::vector<std::byte> b = Content(4, size);
  RequestOptions options;
  options.deadline = 20 * kSecond;
  const auto put = [&](const std::vector<std::byte>& value) {
    const std::vector<PutSource> source = {{PutSource::Kind::kBlock, value, nullptr, {}}};
    return client_->Put(chain, 0, source, KvLayout::Opaque(), options).prefix;
  };
  std::vector<std::byte> out(size);
  std::vector<GetSlot> slots(1);
  slots[0].dst = out;
  ASSERT_EQ(put(a), 1u);
  EXPECT_EQ(client_->Get(chain, 0, slots, KvLayout::Opaque(), options).prefix, 1u);
  EXPECT_TRUE(out == a);
  for (uint32_t piece = 0; piece < 3; ++piece) node("a").Forget(chain.key(0, piece));
  ASSERT_EQ(put(b), 1u);
  node("a").Forget(chain.key(0, 1));
  // What is there stays, so this stores only the piece that is missed.
  node("a").keep_first = true;
  ASSERT_EQ(put(a), 1u);
  const Completion got = client_->Get(chain, 0, slots, KvLayout::Opaque(), options);
  EXPECT_EQ(got.blocks[0].status, Code::kNotFound);
  EXPECT_EQ(got.blocks[0].reason, MissReason::kCorrupt);
}

TEST_F(ClientTest, ShuttingDownEndsWhatIsInFlight) {
  Connect();
  node("a").mute_gets = true;
  const Chain chain = MakeChain(1);
  std::vector<std::byte> out(kBytes);
  std::vector<GetSlot> slots(1);
  slots[0].dst = out;
  ASSERT_TRUE(client_->SubmitGet(chain, 0, slots, KvLayout::Opaque(), {}));
  const Nanos before = Now();
  client_.reset();
  EXPECT_LT(Now() - before, kSecond);
}

}  // namespace
}  // namespace tiercel
