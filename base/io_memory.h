// Memory that a disk or a network device reads into and is written from.
#ifndef TIERCEL_BASE_IO_MEMORY_H_
#define TIERCEL_BASE_IO_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tiercel {

// At least `bytes` bytes, fit for O_DIRECT, in huge pages where the system has some to give. A
// disk's request is a list of pieces of physical memory: over pages of 4 KiB one of 1 MiB has 256
// of them and may be split, over huge pages it has one (docs/adr/0015). Pages that are not touched
// cost nothing. std::bad_alloc where the address space or a limit leaves no room for it.
class IoMemory {
 public:
  IoMemory() = default;
  explicit IoMemory(uint64_t bytes);

  std::byte* data() const { return memory_.get(); }
  uint64_t size() const { return memory_ == nullptr ? 0 : memory_.get_deleter().bytes; }

 private:
  struct Unmap {
    uint64_t bytes;
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Unmap> memory_;
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_IO_MEMORY_H_
