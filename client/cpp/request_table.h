// RequestTable gives each request on the wire a number and finds it again when an answer names it.
// A number carries its slot and the slot's age, so a stray or late answer finds nothing.
//
// Bounded: a full table gives null. Slots are reused last in, first out, and keep their storage.
// Threads: one owner.
#ifndef TIERCEL_CLIENT_CPP_REQUEST_TABLE_H_
#define TIERCEL_CLIENT_CPP_REQUEST_TABLE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/check.h"

namespace tiercel {

// T is default-constructible and has a uint64_t id; 0 means that its slot is free.
template <class T>
class RequestTable {
 public:
  explicit RequestTable(uint32_t capacity) : capacity_(capacity) {}

  // Null when capacity requests are alive. What the slot held last is still in it, save its id.
  T* Add() {
    uint32_t slot = 0;
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else {
      if (slots_.size() >= capacity_) return nullptr;
      slot = static_cast<uint32_t>(slots_.size());
      slots_.push_back(std::make_unique<T>());
      ages_.push_back(0);
    }
    ++live_;
    T* item = slots_[slot].get();
    item->id = (++ages_[slot] << kSlotBits) | slot;
    return item;
  }

  T* Find(uint64_t id) const {
    const uint64_t slot = id & ((uint64_t{1} << kSlotBits) - 1);
    if (id == 0 || slot >= slots_.size() || slots_[slot]->id != id) return nullptr;
    return slots_[slot].get();
  }

  void Remove(T* item) {
    TIERCEL_CHECK(Find(item->id) == item);
    free_.push_back(static_cast<uint32_t>(item->id & ((uint64_t{1} << kSlotBits) - 1)));
    item->id = 0;
    --live_;
  }

  // fn may remove what it is given, and add; what it adds may or may not be visited.
  template <class Fn>
  void ForEach(Fn&& fn) {
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i]->id != 0) fn(*slots_[i]);
    }
  }

  uint32_t live() const { return live_; }

 private:
  static constexpr int kSlotBits = 20;
  const uint32_t capacity_;
  uint32_t live_ = 0;
  std::vector<std::unique_ptr<T>> slots_;
  std::vector<uint64_t> ages_;
  std::vector<uint32_t> free_;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_REQUEST_TABLE_H_
