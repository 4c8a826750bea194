// SHA-256 over a domain tag and length-prefixed fields: no two different field lists give the same
// input, whatever the bytes in them. The tag and every field are preceded by their length as u32.
#ifndef TIERCEL_PROTO_FIELD_HASH_H_
#define TIERCEL_PROTO_FIELD_HASH_H_

#include <array>
#include <memory>
#include <string_view>

#include "base/bytes.h"

namespace tiercel {

class FieldHash {
 public:
  explicit FieldHash(std::string_view domain_tag);
  ~FieldHash();
  FieldHash(const FieldHash&) = delete;
  FieldHash& operator=(const FieldHash&) = delete;

  FieldHash& Add(ByteSpan field);
  FieldHash& Add(std::string_view field) { return Add(AsBytes(field)); }
  FieldHash& AddU32(uint32_t value);  // As a field of four bytes, little-endian.
  std::array<std::byte, 32> Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tiercel

#endif  // TIERCEL_PROTO_FIELD_HASH_H_
