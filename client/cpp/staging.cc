#include "client/cpp/staging.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/units.h"

namespace tiercel {

Result<std::unique_ptr<Staging>> Staging::Create(uint64_t bytes) {
  const uint64_t capacity = RoundUp(bytes == 0 ? kGranularity : bytes, kGranularity);
  try {
    return std::unique_ptr<Staging>(new Staging(IoMemory(capacity), capacity));
  } catch (const std::bad_alloc&) {
    return Fail(Code::kResourceExhausted,
                fmt::format("staging of {}: {}", FormatBytes(capacity), std::strerror(ENOMEM)));
  }
}

Staging::Staging(IoMemory memory, uint64_t capacity)
    : memory_(std::move(memory)), capacity_(capacity) {
  holes_.emplace(0, capacity);
}

MutableByteSpan Staging::Allocate(uint64_t bytes) {
  TIERCEL_CHECK(bytes > 0);
  const uint64_t need = RoundUp(bytes, kGranularity);
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->second < need) continue;
    const uint64_t offset = hole->first;
    const uint64_t left = hole->second - need;
    auto node = holes_.extract(hole);
    if (left > 0) {  // The node is kept: no allocation on this path.
      node.key() = offset + need;
      node.mapped() = left;
      holes_.insert(std::move(node));
    }
    used_ += need;
    return {memory_.data() + offset, bytes};
  }
  return {};
}

void Staging::Free(MutableByteSpan span) {
  const uint64_t offset = static_cast<uint64_t>(span.data() - memory_.data());
  uint64_t size = RoundUp(span.size(), kGranularity);
  TIERCEL_CHECK(offset % kGranularity == 0 && offset + size <= capacity_ && size <= used_);
  used_ -= size;
  const auto next = holes_.lower_bound(offset);
  TIERCEL_CHECK(next == holes_.end() || offset + size <= next->first);
  const bool joins_next = next != holes_.end() && offset + size == next->first;
  const bool joins_last =
      next != holes_.begin() && std::prev(next)->first + std::prev(next)->second == offset;
  if (next != holes_.begin()) {
    TIERCEL_CHECK(std::prev(next)->first + std::prev(next)->second <= offset);
  }
  if (joins_last) {
    auto last = std::prev(next);
    last->second += size;
    if (joins_next) {
      last->second += next->second;
      holes_.erase(next);
    }
  } else if (joins_next) {
    auto node = holes_.extract(next);
    node.key() = offset;
    node.mapped() += size;
    holes_.insert(std::move(node));
  } else {
    holes_.emplace(offset, size);
  }
}

}  // namespace tiercel
