#include "tests/bench/ssd_slab.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "base/io_memory.h"
#include "tiering/ssd_manifest.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMagic = 0x3142414c53435254;  // "TRCSLAB1"
constexpr uint64_t kBufferBytes = 4 * kMiB;

uint64_t Pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Memory of a thread that O_DIRECT takes; it grows and stays.
std::byte* Space(uint64_t bytes) {
  static thread_local IoMemory held;
  if (held.size() < bytes) held = IoMemory(bytes);
  return held.data();
}

Status Failed(std::string_view what) {
  return Fail(Code::kUnavailable, fmt::format("slab: {}: {}", what, std::strerror(errno)));
}
Status WriteAt(int fd, const std::byte* bytes, uint64_t n, uint64_t at) {
  while (n > 0) {
    const ssize_t wrote = pwrite(fd, bytes, n, static_cast<off_t>(at));
    if (wrote <= 0) return Failed("write");
    bytes += wrote;
    at += static_cast<uint64_t>(wrote);
    n -= static_cast<uint64_t>(wrote);
  }
  return OkStatus();
}
Status ReadAt(int fd, std::byte* bytes, uint64_t n, uint64_t at) {
  while (n > 0) {
    const ssize_t got = pread(fd, bytes, n, static_cast<off_t>(at));
    if (got < 0) return Failed("read");
    if (got == 0) return Fail(Code::kDataLoss, "slab: the region ends early");
    bytes += got;
    at += static_cast<uint64_t>(got);
    n -= static_cast<uint64_t>(got);
  }
  return OkStatus();
}

// Gathers what lies one behind the other and writes it in large pieces.
class Stream {
 public:
  Stream(int fd, uint64_t at, Pacer& pacer)
      : fd_(fd), at_(at), pacer_(pacer), space_(Space(kBufferBytes)) {}
  Status Add(ByteSpan bytes) {
    while (!bytes.empty()) {
      const uint64_t n = std::min<uint64_t>(bytes.size(), kBufferBytes - filled_);
      std::memcpy(space_ + filled_, bytes.data(), n);
      bytes = bytes.subspan(n);
      filled_ += n;
      if (filled_ == kBufferBytes) TIERCEL_TRY(Drain());
    }
    const uint64_t end = Pages(filled_);
    std::memset(space_ + filled_, 0, end - filled_);
    filled_ = end;
    return filled_ == kBufferBytes ? Drain() : OkStatus();
  }
  Status Drain() {
    for (uint64_t done = 0; done < filled_;) {
      const uint64_t piece = std::min(filled_ - done, pacer_.piece_bytes());
      pacer_.Take(piece);
      TIERCEL_TRY(WriteAt(fd_, space_ + done, piece, at_));
      done += piece;
      at_ += piece;
    }
    filled_ = 0;
    return OkStatus();
  }
  uint64_t at() const { return at_ + filled_; }

 private:
  const int fd_;
  uint64_t at_;
  Pacer& pacer_;
  std::byte* const space_;
  uint64_t filled_ = 0;
};

struct Header {
  uint64_t magic = 0;
  uint32_t segment = 0;
  uint32_t manifest_bytes = 0;
  uint64_t manifest_at = 0;
};

Status WriteHeader(int fd, const Header& header) {
  std::byte* page = Space(kBufferBytes);
  std::memset(page, 0, kPage);
  std::memcpy(page, &header, sizeof(header));
  TIERCEL_TRY(WriteAt(fd, page, kPage, 0));
  return fdatasync(fd) == 0 ? OkStatus() : Failed("sync");
}

}  // namespace

SlabEngine::SlabEngine(std::string folder) : folder_(std::move(folder)) {
  fs::create_directories(folder_);
}

SlabEngine::~SlabEngine() {
  MutexLock lock(mutex_);
  for (const auto& region : all_) close(region->fd);
}

void SlabEngine::Place(Region* region, const std::vector<SsdEntry>& entries) {
  uint64_t at = kPage;
  region->slots.clear();
  for (const SsdEntry& entry : entries) {
    region->slots.push_back({entry.key, at, entry.record_bytes});
    at += Pages(entry.record_bytes);
  }
  region->bytes = at - kPage;
}

Result<SegmentEngine::Recovered> SlabEngine::Recover() {
  Recovered out;
  MutexLock lock(mutex_);
  std::ifstream clears(folder_ + "/clears", std::ios::binary);
  const std::string rows{std::istreambuf_iterator<char>(clears), std::istreambuf_iterator<char>()};
  for (size_t at = 0; at + 28 <= rows.size(); at += 28) {
    const std::byte* row = AsBytes(rows).data() + at;
    Scope scope;
    std::memcpy(scope.bytes.data(), row + 4, 16);
    uint64_t& mark = out.clears[{LoadLe<uint32_t>(row), scope}];
    mark = std::max(mark, LoadLe<uint64_t>(row + 20));
  }
  for (size_t i = 0;; ++i) {
    const int fd = open(fmt::format("{}/{}", folder_, i).c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0) break;
    auto region = std::make_shared<Region>();
    region->fd = fd;
    all_.push_back(region);
    std::byte* page = Space(kBufferBytes);
    Header header;
    const Status read = ReadAt(fd, page, kPage, 0);
    if (read) std::memcpy(&header, page, sizeof(header));
    struct stat file {};
    const bool told = fstat(fd, &file) == 0;
    if (!read || !told || header.magic != kMagic || header.manifest_at % kPage != 0 ||
        header.manifest_at + header.manifest_bytes > static_cast<uint64_t>(file.st_size)) {
      free_.push_back(region);
      continue;
    }
    std::byte* bytes = Space(Pages(header.manifest_bytes));
    TIERCEL_TRY(ReadAt(fd, bytes, Pages(header.manifest_bytes), header.manifest_at));
    auto entries = DecodeManifest({reinterpret_cast<const char*>(bytes), header.manifest_bytes},
                                  header.segment);
    if (!entries) {
      free_.push_back(region);
      continue;
    }
    Place(region.get(), *entries);
    used_bytes_ += region->bytes;
    regions_[header.segment] = region;
    out.segments[header.segment] = std::move(*entries);
  }
  return out;
}

Result<std::shared_ptr<SlabEngine::Region>> SlabEngine::NewRegion() {
  MutexLock lock(mutex_);
  if (!free_.empty()) {
    auto region = std::move(free_.back());
    free_.pop_back();
    return region;
  }
  const std::string path = fmt::format("{}/{}", folder_, all_.size());
  auto region = std::make_shared<Region>();
  region->fd = open(path.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  if (region->fd < 0) return tl::unexpected<Error>(Failed("open").error());
  all_.push_back(region);
  return region;
}

std::shared_ptr<SlabEngine::Region> SlabEngine::Find(uint32_t segment) const {
  MutexLock lock(mutex_);
  const auto found = regions_.find(segment);
  return found == regions_.end() ? nullptr : found->second;
}

Status SlabEngine::Write(OpenSegment& segment, const Recode& recode) {
  TIERCEL_ASSIGN(const std::shared_ptr<Region> region, NewRegion());
  const auto write = [&]() -> Status {
    // Space first, so that the writes themselves allocate nothing.
    const uint64_t most = kPage + segment.bytes() +
                          segment.appends().size() * (kPage + kManifestEntryBytes) + 2 * kPage;
    struct stat file {};
    if (fstat(region->fd, &file) != 0) return Failed("stat");
    if (static_cast<uint64_t>(file.st_size) < most &&
        fallocate(region->fd, 0, 0, static_cast<off_t>(most)) != 0) {
      return Failed("allocate");
    }
    Stream stream(region->fd, kPage, pacer_);
    std::vector<SsdEntry> entries;
    for (OpenSegment::Append& append : segment.appends()) {
      ByteSpan bytes;
      if (recode) bytes = recode(&append.entry, append.record);
      if (bytes.empty()) bytes = append.record;
      TIERCEL_TRY(stream.Add(bytes));
      entries.push_back(append.entry);
    }
    Place(region.get(), entries);
    const std::string manifest = EncodeManifest(segment.number(), entries);
    const Header header = {kMagic, segment.number(), static_cast<uint32_t>(manifest.size()),
                           stream.at()};
    TIERCEL_TRY(stream.Add(AsBytes(manifest)));
    TIERCEL_TRY(stream.Drain());
    if (fdatasync(region->fd) != 0) return Failed("sync");
    return WriteHeader(region->fd, header);
  };
  const Status written = write();
  MutexLock lock(mutex_);
  if (!written) {
    free_.push_back(region);
    return written;
  }
  used_bytes_ += region->bytes;
  regions_[segment.number()] = region;
  return OkStatus();
}

Status SlabEngine::Read(const SsdEntry& entry, MutableByteSpan dst) {
  const auto region = Find(entry.where.segment);
  if (region == nullptr || entry.where.slot >= region->slots.size())
    return Fail(Code::kNotFound, "slab: no such slot");
  const Slot& slot = region->slots[entry.where.slot];
  if (slot.key != entry.key) return Fail(Code::kNotFound, "slab: another key");
  if (slot.bytes != entry.record_bytes) return Fail(Code::kDataLoss, "slab: another length");
  const uint64_t whole = Pages(slot.bytes);
  // Straight into the caller's pages where they can take it.
  if (reinterpret_cast<uintptr_t>(dst.data()) % kPage == 0 && dst.size() == whole) {
    return ReadAt(region->fd, dst.data(), whole, slot.at);
  }
  std::byte* space = Space(whole);
  TIERCEL_TRY(ReadAt(region->fd, space, whole, slot.at));
  std::memcpy(dst.data(), space, slot.bytes);
  return OkStatus();
}

Status SlabEngine::Drop(uint32_t segment, bool) {
  std::shared_ptr<Region> region;
  {
    MutexLock lock(mutex_);
    const auto found = regions_.find(segment);
    if (found == regions_.end()) return OkStatus();
    region = found->second;
    regions_.erase(found);
  }
  TIERCEL_TRY(WriteHeader(region->fd, {}));
  used_bytes_ -= region->bytes;
  MutexLock lock(mutex_);
  free_.push_back(region);
  return OkStatus();
}

std::vector<uint32_t> SlabEngine::Present() const {
  MutexLock lock(mutex_);
  std::vector<uint32_t> numbers;
  for (const auto& [number, region] : regions_) numbers.push_back(number);
  return numbers;
}

Status SlabEngine::Clear(uint32_t name_space, const Scope& scope, uint64_t generation) {
  std::byte row[28];
  StoreLe(row, name_space);
  std::memcpy(row + 4, scope.bytes.data(), 16);
  StoreLe(row + 20, generation);
  const int fd =
      open((folder_ + "/clears").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return Failed("clear");
  const bool good = write(fd, row, sizeof(row)) == sizeof(row) && fdatasync(fd) == 0;
  close(fd);
  return good ? OkStatus() : Failed("clear");
}

Status SlabEngine::Corrupt(const SsdEntry& entry, uint64_t bit) {
  const auto region = Find(entry.where.segment);
  if (region == nullptr || entry.where.slot >= region->slots.size())
    return Fail(Code::kNotFound, "slab: no such slot");
  const uint64_t byte = region->slots[entry.where.slot].at + bit / 8 % entry.record_bytes;
  std::byte* page = Space(kPage);
  TIERCEL_TRY(ReadAt(region->fd, page, kPage, byte / kPage * kPage));
  page[byte % kPage] ^= static_cast<std::byte>(1u << bit % 8);
  return WriteAt(region->fd, page, kPage, byte / kPage * kPage);
}

}  // namespace tiercel
