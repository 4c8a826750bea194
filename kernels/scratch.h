// ScratchCarver cuts a codec's scratch into arrays, each at a multiple of 64. ScratchSizer adds up what
// the same cuts need. Internal to kernels/.
#ifndef TIERCEL_KERNELS_SCRATCH_H_
#define TIERCEL_KERNELS_SCRATCH_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "base/check.h"

namespace tiercel {

class ScratchSizer {
 public:
  template <class T>
  ScratchSizer& Add(uint64_t count) {
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
    return *this;
  }
  uint64_t bytes() const { return bytes_ + 63; }  // The scratch itself may lie anywhere.

 private:
  uint64_t bytes_ = 0;
};

class ScratchCarver {
 public:
  explicit ScratchCarver(MutableByteSpan scratch) : scratch_(scratch) {
    at_ = (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  }
  template <class T>
  T* Take(uint64_t count) {
    std::byte* at = scratch_.data() + at_;
    at_ += (count * sizeof(T) + 63) / 64 * 64;
    TIERCEL_CHECK(at_ <= scratch_.size());
    return reinterpret_cast<T*>(at);
  }
  MutableByteSpan Rest() const { return scratch_.subspan(at_); }

 private:
  MutableByteSpan scratch_;
  uint64_t at_ = 0;
};

}  // namespace tiercel

#endif  // TIERCEL_KERNELS_SCRATCH_H_
