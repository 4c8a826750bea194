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

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "transport/transport.h"

namespace tiercel {

// With its headers two of loopback's largest TCP segments (65,483 bytes each): a little more, and each
// fragment would end in a segment of a few bytes, which costs a call on either side.
inline constexpr size_t kFragmentBytes = size_t{120} << 10;
inline constexpr size_t kMostFragmentBytes = 4 * kFragmentBytes;
inline constexpr size_t kFragmentHeaderBytes = 8;

// The length of the next fragment where this much of a payload is left to send. While much is left fragments
// are long, each being a call on either side; the last are short, since the receiver copies each when all of it
// is there, and after the last one that is all that is left to do.
constexpr size_t NextFragment(size_t left) {
  if (left <= kFragmentBytes) return left;
  const size_t parts = left > kMostFragmentBytes ? 2 : (left + kFragmentBytes - 1) / kFragmentBytes;
  return std::min(((left + parts - 1) / parts + 63) / 64 * 64, kMostFragmentBytes);
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
