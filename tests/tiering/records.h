// Keys and bytes that follow from a number, so that any reader can tell a wrong byte.
#ifndef TIERCEL_TESTS_TIERING_RECORDS_H_
#define TIERCEL_TESTS_TIERING_RECORDS_H_

#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/random.h"
#include "base/result.h"
#include "proto/block_key.h"

namespace tiercel {

inline BlockKey KeyOf(uint64_t n) {
  BlockKey key;
  SplitMix64 random(n * 2 + 1);
  for (size_t i = 0; i < 32; i += 8) StoreLe<uint64_t>(key.bytes.data() + i, random.Next());
  return key;
}

// The first four bytes are the checksum of the rest.
inline std::vector<std::byte> RecordOf(uint64_t n, size_t bytes) {
  std::vector<std::byte> record((bytes + 7) / 8 * 8);
  SplitMix64 random(n * 2);
  for (size_t i = 0; i < record.size(); i += 8) StoreLe<uint64_t>(record.data() + i, random.Next());
  StoreLe<uint32_t>(record.data(), Crc32c(ByteSpan(record).subspan(4)));
  return record;
}

inline Status VerifyTestRecord(ByteSpan record) {
  if (record.size() >= 4 && LoadLe<uint32_t>(record.data()) == Crc32c(record.subspan(4)))
    return OkStatus();
  return Fail(Code::kDataLoss, "checksum mismatch");
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_TIERING_RECORDS_H_
