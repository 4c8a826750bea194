// Any bytes at all as a record: parsed, verified, copied, decoded whole and in part. The first byte
// says whether to mend the head's checksum, so that the checks behind it are reached too.
#include <cstdint>
#include <vector>

#include "kernels/record.h"
#include "kernels/record_head.h"
#include "tests/fuzz/segment_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;  // NOLINT
  if (size == 0) return 0;
  (void)FuzzArtifact();  // Known to this process: records may name it.
  std::vector<std::byte> bytes(size - 1);
  if (size > 1) std::memcpy(bytes.data(), data + 1, size - 1);
  if ((data[0] & 1) != 0 && bytes.size() >= kRecordHeaderBytes) {
    const uint64_t head = record_head::Align(
        LoadLe<uint16_t>(bytes.data() + record_head::kHeaderSize) +
        uint64_t{LoadLe<uint16_t>(bytes.data() + record_head::kSegments)} * kRecordEntryBytes);
    if (head >= kRecordHeaderBytes && head <= bytes.size()) {
      StoreLe(bytes.data() + record_head::kCrc, record_head::HeadCrc(ByteSpan(bytes).first(head)));
    }
  }
  (void)PeekRecord(bytes);
  std::vector<std::byte> copy(bytes.size());
  const bool copied = CopyRecordVerified(bytes, copy).has_value();
  const auto record = ParseRecord(bytes);
  if (!record) {
    if (copied) __builtin_trap();  // A verified copy is a record.
    return 0;
  }
  (void)VerifyRecord(*record);
  std::vector<std::byte> out(record->raw_bytes);
  (void)DecodeRecord(*record, record->layout, out);
  const auto end = static_cast<uint16_t>(record->layer_begin + 1);
  if (const auto plan = PlanExtract(*record, record->layer_begin, end)) {
    std::vector<std::byte> part(plan->record_bytes());
    if (!ExtractLayers(*record, record->layer_begin, end, part)) __builtin_trap();
    if (!ParseRecord(part)) __builtin_trap();  // A part of a good record is a good record.
  }
  return 0;
}
