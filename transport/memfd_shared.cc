#include "transport/memfd_shared.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/units.h"

namespace tiercel {

Result<std::shared_ptr<Mapping>> Mapping::Map(int fd, uint64_t bytes, bool writable) {
  struct stat info{};
  if (fstat(fd, &info) != 0) return Fail(Code::kInvalidArgument, fmt::format("memfd: {}", strerror(errno)));
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Fail(Code::kInvalidArgument, "memfd: not sealed against shrinking");
  }
  if (bytes == 0 || static_cast<uint64_t>(info.st_size) < bytes) {
    return Fail(Code::kInvalidArgument,
                fmt::format("memfd: {} bytes, {} are claimed", info.st_size, bytes));
  }
  void* at = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    return Fail(Code::kUnavailable, fmt::format("memfd: map {} bytes: {}", bytes, strerror(errno)));
  }
  return std::shared_ptr<Mapping>(new Mapping(static_cast<std::byte*>(at), bytes));
}

Mapping::~Mapping() { munmap(data_, bytes_); }

Result<FileDescriptor> MakeSealedMemfd(const char* name, uint64_t bytes) {
  FileDescriptor fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Fail(Code::kUnavailable, fmt::format("memfd {} of {} bytes: {}", name, bytes, strerror(errno)));
  }
  return fd;
}

bool SendNote(int socket, const SocketNote& note, const int* fds, size_t n_fds) {
  iovec io{const_cast<SocketNote*>(&note), sizeof(note)};
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (n_fds > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    memcpy(CMSG_DATA(header), fds, n_fds * sizeof(int));
  }
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(note);
}

NoteRead ReadNote(int socket, SocketNote* note, std::vector<FileDescriptor>* fds) {
  iovec io{note, sizeof(*note)};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? NoteRead::kNothing : NoteRead::kHangUp;
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds->emplace_back(fd);
    }
  }
  if (got == 0) return NoteRead::kHangUp;
  if (got != sizeof(*note) || note->magic != SocketNote::kMagic ||
      (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return NoteRead::kGarbage;
  }
  return NoteRead::kNote;
}

std::optional<uint64_t> RangeAllocator::Allocate(uint64_t bytes) {
  const uint64_t need = RoundUp(bytes == 0 ? 1 : bytes, 4096);
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < need) continue;
    const auto [offset, size] = *it;
    free_.erase(it);
    if (size > need) free_.emplace(offset + need, size - need);
    used_.emplace(offset, need);
    return offset;
  }
  return std::nullopt;
}

bool RangeAllocator::Free(uint64_t offset) {
  const auto found = used_.find(offset);
  if (found == used_.end()) return false;
  uint64_t begin = offset;
  uint64_t size = found->second;
  used_.erase(found);
  auto after = free_.lower_bound(begin);
  if (after != free_.end() && after->first == begin + size) {
    size += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      size += before->second;
      free_.erase(before);
    }
  }
  free_.emplace(begin, size);
  return true;
}

}  // namespace tiercel
