// What gpu_vectors writes where the tree is built, and gpu_check reads beside a GPU: batches with all that
// must come of them. The latter needs CUDA and a C++ library, nothing else.
//
// A file is magic, size of BatchShape, then entries to its end, each a Kind and the fields of `Visit`; a
// vector is its length in bytes and its bytes. It is read by the build that wrote it.
#ifndef TIERCEL_TESTS_GPU_VECTORS_H_
#define TIERCEL_TESTS_GPU_VECTORS_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/batch_shape.h"

namespace tiercel::gpu_vectors {

inline constexpr uint64_t kMagic = 0x3256475443524954;  // "TIRCTGV2"

enum class Kind : uint32_t {
  kExact = 0,      // cache -> records -> decoded.
  kMalformed = 1,  // One record -> its code, and decoded where that is kOk.
  kBench = 2,      // A block whose pages are 0, 1, ..; `records` has its record. cache may be the entry's before it.
};

struct Entry {
  Kind kind = Kind::kExact;
  std::string name;
  gpu::BatchShape shape;
  uint32_t blocks = 0;
  uint32_t codecs = 0;
  uint32_t code = 0;  // BlockCode, and its segment.
  uint32_t segment = 0;
  uint64_t max_record_bytes = 0;
  uint64_t encode_scratch = 0;
  uint64_t decode_scratch = 0;
  uint64_t raw_bytes = 0;  // Of a block.
  std::vector<gpu::Plane> planes;  // base counts from the cache's start.
  std::vector<uint32_t> pages;
  std::vector<uint64_t> pos0;
  std::vector<uint64_t> record_bytes;
  std::vector<uint8_t> tables;    // The plan's.
  std::vector<uint8_t> artifact;  // Its image; empty: none.
  std::vector<uint8_t> cache;
  std::vector<uint8_t> records;  // One behind the other.
  std::vector<uint8_t> decoded;  // A cache of kUntouched, decoded into.

  template <class F>
  void Visit(F&& f) {
    f(kind), f(name), f(shape), f(blocks), f(codecs), f(code), f(segment), f(max_record_bytes), f(encode_scratch), f(decode_scratch);
    f(raw_bytes), f(planes), f(pages), f(pos0), f(record_bytes), f(tables), f(artifact), f(cache), f(records), f(decoded);
  }
};
inline constexpr uint8_t kUntouched = 0x77;

class Writer {
 public:
  explicit Writer(std::vector<uint8_t>& out) : out_(out) {}
  template <class T>
  void operator()(const T& value) {
    Put(&value, sizeof(T));
  }
  void operator()(const std::string& text) { Sized(text.data(), text.size()); }
  template <class T>
  void operator()(const std::vector<T>& values) {
    Sized(values.data(), values.size() * sizeof(T));
  }

 private:
  void Sized(const void* from, size_t bytes) {
    (*this)(static_cast<uint64_t>(bytes));
    Put(from, bytes);
  }
  void Put(const void* from, size_t bytes) {
    const auto* at = static_cast<const uint8_t*>(from);
    out_.insert(out_.end(), at, at + bytes);
  }
  std::vector<uint8_t>& out_;
};

class Reader {
 public:
  explicit Reader(const std::vector<uint8_t>& in) : in_(in) {}
  bool AtEnd() const { return at_ == in_.size() || !good_; }
  bool good() const { return good_; }
  template <class T>
  void operator()(T& value) {
    Take(&value, sizeof(T));
  }
  void operator()(std::string& text) {
    text.resize(Size(1));
    Take(text.data(), text.size());
  }
  template <class T>
  void operator()(std::vector<T>& values) {
    values.resize(Size(sizeof(T)));
    Take(values.data(), values.size() * sizeof(T));
  }

 private:
  size_t Size(size_t each) {
    uint64_t bytes = 0;
    (*this)(bytes);
    good_ = good_ && bytes <= in_.size() - at_;
    return good_ ? bytes / each : 0;
  }
  void Take(void* to, size_t bytes) {
    good_ = good_ && bytes <= in_.size() - at_;
    if (!good_ || bytes == 0) return;
    std::memcpy(to, in_.data() + at_, bytes);
    at_ += bytes;
  }
  const std::vector<uint8_t>& in_;
  size_t at_ = 0;
  bool good_ = true;
};

}  // namespace tiercel::gpu_vectors

#endif  // TIERCEL_TESTS_GPU_VECTORS_H_
