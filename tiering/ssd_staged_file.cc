#include "tiering/ssd_staged_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <rocksdb/file_system.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/io_memory.h"
#include "base/units.h"
#include "tiering/ssd_disk_queue.h"

namespace tiercel {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kGathered = 2 * kMiB;
constexpr uint64_t kWorthTaking = 1 * kMiB;

rocksdb::IOStatus Failed(const char* what, const std::string& path) {
  const std::string text = fmt::format("{} {}: {}", what, path, std::strerror(errno));
  return errno == ENOSPC || errno == EDQUOT ? rocksdb::IOStatus::NoSpace(text)
                                            : rocksdb::IOStatus::IOError(text);
}

// What a thread that writes keeps from file to file: one space is filled while the disk takes the
// other.
struct Writer {
  const IoMemory spaces[2] = {IoMemory(kGathered), IoMemory(kGathered)};
  DiskQueue queue;

  static Writer& Mine() {
    static thread_local Writer writer;
    return writer;
  }
};

class File final : public rocksdb::FSWritableFile {
 public:
  File(int fd, std::string path, const Staging& how) : fd_(fd), path_(std::move(path)), how_(how) {}
  ~File() override {
    (void)Settle();
    if (fd_ >= 0) close(fd_);
  }

  using rocksdb::FSWritableFile::Append;
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions&,
                           rocksdb::IODebugContext*) override {
    for (size_t done = 0; done < data.size();) {
      // As much as is written at once: while paced little, so that the thread that copies and
      // hashes it does not keep a core from reads.
      const uint64_t most = std::max(Piece(), (gathered_ + kPage) / kPage * kPage);
      const size_t n = std::min<size_t>(data.size() - done, most - gathered_);
      std::memcpy(space() + gathered_, data.data() + done, n);
      done += n;
      gathered_ += n;
      if (gathered_ < most) continue;
      rocksdb::IOStatus status = Write(gathered_);
      if (!status.ok()) return status;
    }
    return rocksdb::IOStatus::OK();
  }
  rocksdb::IOStatus Flush(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();  // Written in whole pages, and the rest when it is closed.
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();  // By ingestion: see the header.
  }
  rocksdb::IOStatus Close(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    const uint64_t length = written_ + gathered_;
    const uint64_t padded = (gathered_ + kPage - 1) / kPage * kPage;
    std::memset(space() + gathered_, 0, padded - gathered_);
    rocksdb::IOStatus status = Write(padded);
    if (status.ok()) status = Settle();
    if (status.ok() && ftruncate(fd_, static_cast<off_t>(length)) != 0)
      status = Failed("cutting", path_);
    const int closed = close(std::exchange(fd_, -1));
    return status.ok() && closed != 0 ? Failed("closing", path_) : status;
  }
  rocksdb::IOStatus InvalidateCache(size_t, size_t) override {
    (void)posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
    return rocksdb::IOStatus::OK();
  }
  uint64_t GetFileSize(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return written_ + gathered_;
  }

 private:
  std::byte* space() const { return writer_.spaces[space_].data(); }
  uint64_t Piece() const {
    return std::min({kGathered, how_.shard->piece_bytes(), how_.disk->piece_bytes()});
  }
  // The space's first bytes go to the disk. The last piece of them is still under way afterwards,
  // and what comes next is gathered in the other space.
  rocksdb::IOStatus Write(uint64_t bytes) {
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t piece = std::min(bytes - done, Piece());
      how_.shard->Take(piece);
      how_.disk->Take(piece);
      rocksdb::IOStatus status = Settle();
      if (status.ok()) status = Begin({space() + done, piece, written_});
      if (!status.ok()) return status;
      done += piece;
      written_ += piece;
    }
    gathered_ = 0;
    space_ ^= 1;
    return rocksdb::IOStatus::OK();
  }

  struct Extent {
    std::byte* data;
    uint64_t bytes;
    uint64_t at;
  };
  rocksdb::IOStatus Begin(const Extent& piece) {
    DiskQueue& queue = writer_.queue;
    if (!queue.Open() ||
        queue.Submit(DiskQueue::Op::kWrite, fd_, piece.data, piece.bytes, piece.at, 0) != 0) {
      return WriteNow(piece);  // And that tells what is wrong.
    }
    under_way_ = piece;
    return rocksdb::IOStatus::OK();
  }
  // Waits for what is under way.
  rocksdb::IOStatus Settle() {
    DiskQueue::Dones dones;
    if (writer_.queue.Wait(dones) == 0) return rocksdb::IOStatus::OK();
    const int64_t result = dones[0].result;
    if (result < 0) {
      errno = static_cast<int>(-result);
      return Failed("writing", path_);
    }
    const auto n = static_cast<uint64_t>(result);
    return WriteNow({under_way_.data + n, under_way_.bytes - n, under_way_.at + n});
  }
  rocksdb::IOStatus WriteNow(Extent piece) {
    while (piece.bytes > 0) {
      const ssize_t n = pwrite(fd_, piece.data, piece.bytes, static_cast<off_t>(piece.at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return Failed("writing", path_);
      const auto wrote = static_cast<uint64_t>(n);
      piece = {piece.data + wrote, piece.bytes - wrote, piece.at + wrote};
    }
    return rocksdb::IOStatus::OK();
  }

  int fd_;
  const std::string path_;
  const Staging how_;
  Writer& writer_ = Writer::Mine();
  size_t space_ = 0;       // The one that is filled.
  uint64_t gathered_ = 0;  // Bytes in it, and those of the file before them.
  uint64_t written_ = 0;
  Extent under_way_{};
};

class Files final : public rocksdb::FileSystemWrapper {
 public:
  explicit Files(const Staging& how)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), how_(how) {}
  const char* Name() const override { return "tiercel.StagedFiles"; }

  rocksdb::IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions&,
                                    std::unique_ptr<rocksdb::FSWritableFile>* out,
                                    rocksdb::IODebugContext*) override {
    const int direct = how_.direct_io ? O_DIRECT : 0;
    (void)how_.spares->Take(path);  // Else it is a new file.
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | direct, 0644);
    if (fd < 0) return Failed("opening", path);
    auto file = std::make_unique<File>(fd, path, how_);
    struct stat found {};
    if (fstat(fd, &found) != 0) return Failed("looking at", path);
    // What a file system cannot take ahead, it takes as the file is written; and the few blocks
    // that a spare file may lack are not worth being taken, cut off and discarded again.
    if (static_cast<uint64_t>(found.st_size) + kWorthTaking < how_.expected_bytes &&
        fallocate(fd, 0, 0, static_cast<off_t>(how_.expected_bytes)) != 0 && errno == ENOSPC) {
      return Failed("taking space for", path);
    }
    *out = std::move(file);
    return rocksdb::IOStatus::OK();
  }

 private:
  const Staging how_;
};

}  // namespace

void SpareFiles::Clear() {
  MutexLock lock(mutex_);
  for (const std::string& path : kept_) unlink(path.c_str());
  kept_.clear();
}

std::string SpareFiles::Hold(int fd) {
  MutexLock lock(mutex_);
  if (kept_.size() >= ++awaited_) return "";
  std::string name = fmt::format("{}/spare-{}", folder_, number_++);
  if (linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd).c_str(), AT_FDCWD, name.c_str(),
             AT_SYMLINK_FOLLOW) != 0) {
    return "";
  }
  return name;
}

void SpareFiles::Keep(const std::string& held) {
  if (held.empty()) return;
  MutexLock lock(mutex_);
  kept_.push_back(held);
}

bool SpareFiles::Take(const std::string& path) {
  MutexLock lock(mutex_);
  if (awaited_ > 0) --awaited_;
  // Whoever reads the database while a file is deleted has it deleted a little later.
  const auto alone = std::find_if(kept_.begin(), kept_.end(), [](const std::string& name) {
    struct stat file {};
    return stat(name.c_str(), &file) == 0 && file.st_nlink == 1;
  });
  const bool found = alone != kept_.end();
  std::string name;
  if (found) {
    name = std::move(*alone);
    kept_.erase(alone);
  }
  // Of what writes at the same time could not take yet one is left over, and no more space lost.
  while (kept_.size() > awaited_ + 1) {
    unlink(kept_.back().c_str());
    kept_.pop_back();
  }
  return found && std::rename(name.c_str(), path.c_str()) == 0;
}

std::unique_ptr<rocksdb::Env> StagedFiles(const Staging& how) {
  return rocksdb::NewCompositeEnv(std::make_shared<Files>(how));
}

}  // namespace tiercel
