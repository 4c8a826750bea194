#include "tiering/ssd_segment_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/io_memory.h"
#include "tiering/ssd_disk_queue.h"
#include "tiering/ssd_manifest.h"

namespace tiercel {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPiece = 2 * kMiB;
constexpr uint64_t kWhole = 2560 * kKiB;  // Up to here one read is quicker than several.
constexpr uint64_t kBlockTail = 8 + 5;    // RocksDB's restarts, and its type and checksum.

size_t VarintBytes(uint32_t value) {
  size_t n = 1;
  for (; value >= 128; value >>= 7) ++n;
  return n;
}
// All that stands in a block before the record.
std::string BlockHead(const SsdEntry& entry) {
  const std::string key = DataKey(entry.where.segment, entry.where.slot, &entry.key);
  std::string head = {'\0', static_cast<char>(key.size() + 8)};
  uint32_t value = entry.record_bytes;
  for (; value >= 128; value >>= 7) head.push_back(static_cast<char>(value | 128));
  head.push_back(static_cast<char>(value));
  return head + key;
}
uint64_t HeadBytes(uint32_t record_bytes) { return 2 + VarintBytes(record_bytes) + 48; }
uint64_t RowBytes(uint32_t record_bytes) {
  return HeadBytes(record_bytes) + record_bytes + kBlockTail;
}

// What a thread that reads keeps: memory that O_DIRECT takes, and a queue of reads.
class Reader {
 public:
  static Reader& Mine() {
    static thread_local Reader reader;
    return reader;
  }

  // Bytes [at, at + head + dst.size()) of the file: the first ones to head, the others to dst.
  Status Read(int fd, uint64_t at, MutableByteSpan head, MutableByteSpan dst) {
    const uint64_t begin = at / kPage * kPage;
    const uint64_t end = (at + head.size() + dst.size() + kPage - 1) / kPage * kPage;
    if (end - begin > space_.size()) space_ = IoMemory(end - begin);
    begin_ = begin;
    at_ = at;
    head_ = head;
    dst_ = dst;
    if (end - begin <= kWhole || !queue_.Open()) return ReadWhole(fd, end - begin);
    return ReadInPieces(fd, end - begin);
  }

 private:
  static Status Failed(int64_t error) {
    return Fail(Code::kUnavailable,
                fmt::format("reading a block: {}", std::strerror(static_cast<int>(error))));
  }
  static Status EndsEarly() {
    return Fail(Code::kDataLoss, "reading a block: its file ends early");
  }

  // n bytes of the file have come to `offset` of the space: what is wanted of them goes where it
  // belongs.
  void Take(uint64_t offset, uint64_t n) {
    const uint64_t first = begin_ + offset;
    const auto copy = [&](uint64_t from, MutableByteSpan to) {
      const uint64_t low = std::max(from, first);
      const uint64_t high = std::min(from + to.size(), first + n);
      if (low < high)
        std::memcpy(to.data() + (low - from), space_.data() + (low - begin_), high - low);
    };
    copy(at_, head_);
    copy(at_ + head_.size(), dst_);
  }
  // The last piece of a file ends where the file does.
  bool Enough(uint64_t offset, uint64_t n, uint64_t asked) const {
    return n == asked || begin_ + offset + n >= at_ + head_.size() + dst_.size();
  }

  Status ReadWhole(int fd, uint64_t bytes) {
    uint64_t got = 0;
    while (got < bytes) {
      const ssize_t n =
          pread(fd, space_.data() + got, bytes - got, static_cast<off_t>(begin_ + got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Failed(errno);
      got += static_cast<uint64_t>(n);
      if (n == 0 || got % kPage != 0) break;
    }
    if (!Enough(0, got, bytes)) return EndsEarly();
    Take(0, got);
    return OkStatus();
  }

  Status ReadInPieces(int fd, uint64_t bytes) {
    Status status = OkStatus();
    uint64_t next = 0;
    const auto length = [bytes](uint64_t offset) { return std::min(kPiece, bytes - offset); };
    while (queue_.under_way() > 0 || (next < bytes && status)) {
      while (next < bytes && status) {
        const int error = queue_.Submit(DiskQueue::Op::kRead, fd, space_.data() + next,
                                        length(next), begin_ + next, next);
        if (error == EAGAIN && queue_.under_way() > 0) break;
        if (error == 0) {
          next += length(next);
        } else {
          status = Failed(error);
        }
      }
      DiskQueue::Dones dones;
      const size_t came = queue_.Wait(dones);
      for (size_t i = 0; i < came; ++i) {
        const auto [offset, result] = dones[i];
        if (result < 0) {
          status = Failed(-result);
        } else if (!Enough(offset, static_cast<uint64_t>(result), length(offset))) {
          status = EndsEarly();
        } else if (status) {
          Take(offset, static_cast<uint64_t>(result));
        }
      }
    }
    return status;
  }

  IoMemory space_;
  DiskQueue queue_;
  // Of the read under way.
  uint64_t begin_ = 0;
  uint64_t at_ = 0;
  MutableByteSpan head_;
  MutableByteSpan dst_;
};

}  // namespace

std::shared_ptr<const SegmentFile> SegmentFile::Open(const std::string& path, bool direct_io,
                                                     const std::vector<SsdEntry>& entries,
                                                     bool has_first_row) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | (direct_io ? O_DIRECT : 0));
  if (fd < 0) return nullptr;
  std::shared_ptr<SegmentFile> file(new SegmentFile(fd));
  file->blocks_.reserve(entries.size());
  uint64_t at = has_first_row ? RowBytes(0) : 0;
  for (const SsdEntry& entry : entries) {
    if (at > UINT32_MAX) return nullptr;
    file->blocks_.push_back(static_cast<uint32_t>(at));
    at += RowBytes(entry.record_bytes);
  }
  return file;
}

SegmentFile::~SegmentFile() { close(fd_); }

Status SegmentFile::Read(const SsdEntry& entry, MutableByteSpan dst) const {
  if (entry.where.slot >= blocks_.size()) return Fail(Code::kNotFound, "no such slot");
  std::array<std::byte, 2 + 5 + 48> found;
  const auto head = MutableByteSpan(found).first(HeadBytes(entry.record_bytes));
  TIERCEL_TRY(
      Reader::Mine().Read(fd_, blocks_[entry.where.slot], head, dst.first(entry.record_bytes)));
  const std::string expected = BlockHead(entry);
  if (std::memcmp(expected.data(), found.data(), expected.size()) != 0) {
    return Fail(Code::kNotFound, "another block lies there");
  }
  return OkStatus();
}

}  // namespace tiercel
