// Others that keep bytes for other processes, measured in turns with ours on loopback TCP.
//
//   Memcached   Debian's, one thread, 16 MiB items; its text protocol over a spinning socket
//   Mooncake    the wheel in a venv of its own: master, a provider process that holds the memory, and a
//               client process that measures; tests/bench/peers_mooncake.py, driven line by line
//
// Neither verifies what it returns. Both are told to listen on 127.0.0.1.
//
// Ownership: lanes borrow their peer and the memories. Threads: one.
#ifndef TIERCEL_TESTS_BENCH_PEERS_H_
#define TIERCEL_TESTS_BENCH_PEERS_H_

#include <memory>
#include <string>

#include "tests/bench/bench_kit.h"

namespace tiercel::bench {

class Memcached {
 public:
  static Result<std::unique_ptr<Memcached>> Start(int core, uint64_t memory_bytes);
  ~Memcached();
  // Blocks of `source` are stored by Prepare, then fetched into `to`.
  std::unique_ptr<Lane> Get(const Memory& source, const Memory& to, uint64_t block, uint32_t batch);
  std::unique_ptr<Lane> Put(const Memory& source, uint64_t block, uint32_t batch);

 private:
  Memcached() = default;
  std::unique_ptr<Child> child_;
  int fd_ = -1;
};

class Mooncake {
 public:
  // python: of the venv that has the wheel; script: tests/bench/peers_mooncake.py.
  static Result<std::unique_ptr<Mooncake>> Start(const std::string& python, const std::string& script,
                                                 int client_core, int server_core, const std::string& log_dir);
  ~Mooncake();
  std::unique_ptr<Lane> Get(uint64_t block, uint32_t batch);
  std::unique_ptr<Lane> Put(uint64_t block, uint32_t batch);

  // One line there, one line back.
  Result<std::string> Ask(const std::string& line);

 private:
  Mooncake() = default;
  std::unique_ptr<Child> child_;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
};

}  // namespace tiercel::bench

#endif  // TIERCEL_TESTS_BENCH_PEERS_H_
