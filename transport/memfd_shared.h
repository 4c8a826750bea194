// The pieces of shared memory and socket that the same-host transport is made of: maps, descriptors
// passed by SCM_RIGHTS, what is said on the Unix socket, and an allocator of ranges. Internal to
// transport/.
//
// Ownership: a Mapping owns what it names. Threads: one owner each.
// Errors: kInvalidArgument names what a peer's descriptor lacks; kUnavailable for the system's own.
#ifndef TIERCEL_TRANSPORT_MEMFD_SHARED_H_
#define TIERCEL_TRANSPORT_MEMFD_SHARED_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/result.h"

namespace tiercel {

class Mapping {
 public:
  // Errors: kInvalidArgument: the memfd is smaller than bytes or not sealed against shrinking, so that
  // reading it could kill us.
  static Result<std::shared_ptr<Mapping>> Map(int fd, uint64_t bytes, bool writable);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  Mapping(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* const data_;
  const uint64_t bytes_;
};

// A new memfd of this size, sealed against ever changing it.
Result<FileDescriptor> MakeSealedMemfd(const char* name, uint64_t bytes);

// What is said on the socket, one message each; descriptors ride along.
struct SocketNote {
  enum class Kind : uint32_t { kWake = 1, kRegion = 2, kForget = 3, kConnect = 4 };
  uint32_t magic = kMagic;
  Kind kind = Kind::kWake;
  uint64_t session_id = 0;      // kConnect
  uint64_t ring_bytes = 0;      // kConnect
  uint64_t bounce_bytes = 0;    // kConnect
  uint64_t bytes = 0;           // kConnect: of the staging; kRegion: of the region
  uint32_t region = 0;          // kRegion, kForget
  uint32_t generation = 0;
  static constexpr uint32_t kMagic = 0x31464d54;  // "TMF1"
};
static_assert(sizeof(SocketNote) == 48);

// False when the socket would block or is gone.
bool SendNote(int socket, const SocketNote& note, const int* fds, size_t n_fds);
enum class NoteRead : uint8_t { kNote, kNothing, kHangUp, kGarbage };
NoteRead ReadNote(int socket, SocketNote* note, std::vector<FileDescriptor>* fds);

// First fit over one range; free neighbours join. Pages are the unit, so that no two share a line.
class RangeAllocator {
 public:
  explicit RangeAllocator(uint64_t bytes) : bytes_(bytes) {
    if (bytes > 0) free_.emplace(0, bytes);
  }
  std::optional<uint64_t> Allocate(uint64_t bytes);
  // An offset that Allocate gave; false when it is none.
  bool Free(uint64_t offset);
  uint64_t bytes() const { return bytes_; }

 private:
  const uint64_t bytes_;
  std::map<uint64_t, uint64_t> free_;  // Offset to size.
  std::map<uint64_t, uint64_t> used_;
};

}  // namespace tiercel

#endif  // TIERCEL_TRANSPORT_MEMFD_SHARED_H_
