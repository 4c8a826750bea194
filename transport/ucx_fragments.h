// How a payload crosses a lane that has no direct placement (TCP): cut into fragments, each an active
// message of its own that the receiver copies from UCX's buffer to its place while it is warm. There
// a rendezvous would only add a round trip and a pass over the bytes. Internal to transport/ucx*.
//
//   frame header, meta | fragment 0      id kAmId
//   offset (u64 LE)    | fragment 1..n   id kAmMoreId, in order
//
// Invariants: fragments are consecutive; at most one payload at a time is on its way on a link.
// Threads: the transport's owner alone.
#ifndef TIERCEL_TRANSPORT_UCX_FRAGMENTS_H_
#define TIERCEL_TRANSPORT_UCX_FRAGMENTS_H_

#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "transport/transport.h"

namespace tiercel {

// With its headers two of loopback's largest TCP segments (65,483 bytes each): a little more, and each
// fragment would end in a segment of a few bytes, which costs a call on either side.
inline constexpr size_t kFragmentBytes = size_t{120} << 10;
inline constexpr size_t kFragmentHeaderBytes = 8;

constexpr size_t FragmentsOf(size_t bytes, size_t fragment_bytes) {
  return bytes <= fragment_bytes ? 1 : (bytes + fragment_bytes - 1) / fragment_bytes;
}
// Each fragment's length: all as long as each other but the last, so that no message has a few bytes.
constexpr size_t FragmentStep(size_t bytes, size_t fragments) {
  return fragments == 1 ? bytes : ((bytes + fragments - 1) / fragments + 63) / 64 * 64;
}

// The payload that is arriving on one link, if any.
class ArrivingFragments {
 public:
  bool open() const { return received_ < total_; }
  bool wanted() const { return wanted_; }

  // The first fragment, smaller than the payload, is here; Want may follow before the next one.
  void Begin(uint64_t total, uint64_t first) {
    total_ = total;
    received_ = first;
  }
  void Want(FragmentFn each, Done done) {
    wanted_ = true;
    each_ = std::move(each);
    done_ = std::move(done);
  }
  // False where it is not the next one.
  bool Add(ByteSpan header, ByteSpan fragment) {
    if (!open() || header.size() != kFragmentHeaderBytes || fragment.empty() ||
        LoadLe<uint64_t>(header.data()) != received_ || fragment.size() > total_ - received_) {
      return false;
    }
    if (each_) each_(fragment);
    received_ += fragment.size();
    return true;
  }
  // Nothing is written after this. The done of a Want, for its one run.
  Done End() {
    total_ = received_ = 0;
    wanted_ = false;
    each_ = nullptr;
    return std::exchange(done_, nullptr);
  }

 private:
  uint64_t total_ = 0, received_ = 0;
  bool wanted_ = false;
  FragmentFn each_;
  Done done_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_UCX_FRAGMENTS_H_
