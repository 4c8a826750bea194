// The whole service in lanes: a tiercel-server process on a core of its own, and clients that link
// client/cpp as an engine does, one for each transport. Every fetched byte has been checked by the
// client before a request counts as done.
//
//   Get kRecord   the encoded record, received into the caller's memory and checked there
//   Get kBlock    decoded into the caller's memory (same host: straight from where the server keeps it)
//   Lookup        same host: the record in place, held and released, its bytes not touched
//   Verify        the check of such a record, by itself
//   Put           new keys each time; kBlock encodes, kRecord sends what the caller has encoded
//   Match         n keys of a stored chain
//
// Blocks are bf16 KV of random bytes, codec RAW: nothing can be compressed, so a record is a block and
// its head.
//
// Ownership: a Service owns its server, its folder and its clients; lanes borrow it and the memories.
// Threads: one; clients have no progress thread.
#ifndef TIERCEL_TESTS_BENCH_SERVICE_LANES_H_
#define TIERCEL_TESTS_BENCH_SERVICE_LANES_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/client.h"
#include "tests/bench/bench_kit.h"

namespace tiercel::bench {

// A layout whose block has exactly this many bytes; a multiple of 64 KiB.
KvLayout LayoutOf(uint64_t block_bytes);
// What its record may take.
uint64_t RecordRoom(uint64_t block_bytes);

class Service {
 public:
  struct Options {
    std::string server;  // The binary's path.
    std::string folder;  // For its config and log.
    int core = 1;
    uint64_t host_bytes = uint64_t{3} << 30;
    uint64_t block = 1 << 20;  // What will be measured: memory is touched with blocks of this size.
    std::vector<std::string> wrapper;  // E.g. perf record ...; before the server's own words.
  };
  static Result<std::unique_ptr<Service>> Start(const Options& options);
  ~Service();

  // A client that has only this transport; kept.
  Result<Client*> Through(TransportKind kind);
  pid_t pid() const { return child_->pid(); }
  const std::string& endpoint() const { return endpoint_; }

  // The blocks of `source` as one stored chain, put on first use.
  struct Stored {
    std::unique_ptr<Chain> chain;
    KvLayout layout;
    uint32_t blocks = 0;
  };
  Result<const Stored*> Blocks(const Memory& source, uint64_t block);
  // Between rounds: touches all of that chain, so that puts of other keys do not evict it.
  Status Touch(uint64_t block);

  std::unique_ptr<Lane> Get(TransportKind kind, GetSlot::Kind slot, const Memory& source, const Memory& to,
                            uint64_t block, uint32_t batch);
  std::unique_ptr<Lane> Put(TransportKind kind, PutSource::Kind what, const Memory& source, uint64_t block,
                            uint32_t batch);
  std::unique_ptr<Lane> Lookup(const Memory& source, uint64_t block);
  std::unique_ptr<Lane> Verify(const Memory& source, uint64_t block);
  std::unique_ptr<Lane> Match(TransportKind kind, const Memory& source, uint64_t block, uint32_t keys);

  // A chain of fresh keys, never used before.
  Result<std::unique_ptr<Chain>> NewChain(const KvLayout& layout, uint32_t blocks);

 private:
  Service() = default;
  Status TouchMemory(uint64_t bytes, uint64_t block);
  std::unique_ptr<Child> child_;
  std::string endpoint_;
  std::map<TransportKind, std::unique_ptr<Client>> clients_;
  std::map<uint64_t, Stored> stored_;
  uint64_t serial_ = 0;
};

}  // namespace tiercel::bench

#endif  // TIERCEL_TESTS_BENCH_SERVICE_LANES_H_
