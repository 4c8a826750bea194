// FileDescriptor closes what it holds.
//
// Ownership: the one it was made with. Threads: one owner. Errors: none; -1 is no descriptor.
#ifndef TIERCEL_BASE_FILE_DESCRIPTOR_H_
#define TIERCEL_BASE_FILE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace tiercel {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { Reset(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }  // From now on the caller's.
  bool valid() const { return fd_ >= 0; }
  void Reset() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_FILE_DESCRIPTOR_H_
