// Staging is the client's own registered memory: records are encoded into it before they are sent,
// and received into it before they are checked and decoded into the engine's pages. A late arrival
// lands here and never in a page that the engine has reused.
//
// One mapping, first fit from the lowest address, so that what is used is what is warm. Bounded: a
// full arena answers an empty span, and the caller waits or refuses.
//
// Threads: one owner.
#ifndef TIERCEL_CLIENT_CPP_STAGING_H_
#define TIERCEL_CLIENT_CPP_STAGING_H_

#include <cstdint>
#include <map>
#include <memory>

#include "base/bytes.h"
#include "base/io_memory.h"
#include "base/result.h"

namespace tiercel {

class Staging {
 public:
  static constexpr uint64_t kGranularity = 4096;

  // Errors: kResourceExhausted: the address space or memory limit does not allow it.
  static Result<std::unique_ptr<Staging>> Create(uint64_t bytes);
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Exactly bytes, page-aligned; empty when there is no hole that large. bytes > 0.
  MutableByteSpan Allocate(uint64_t bytes);
  // What Allocate gave, once.
  void Free(MutableByteSpan span);

  MutableByteSpan memory() const { return {memory_.data(), capacity_}; }
  uint64_t capacity() const { return capacity_; }
  uint64_t used() const { return used_; }

 private:
  Staging(IoMemory memory, uint64_t capacity);

  const IoMemory memory_;
  const uint64_t capacity_;
  uint64_t used_ = 0;
  std::map<uint64_t, uint64_t> holes_;  // Offset to size; neighbours are merged.
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_STAGING_H_
