// A manifest lists what a segment holds: the entries that the index needs, in slot order, under one
// checksum. Byte table: docs/ssd-format.md.
#ifndef TIERCEL_TIERING_SSD_MANIFEST_H_
#define TIERCEL_TIERING_SSD_MANIFEST_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tiering/ssd_store.h"

namespace tiercel {

inline constexpr uint32_t kManifestMagic = 0x314d4354;  // "TCM1"
inline constexpr uint32_t kManifestVersion = 1;
inline constexpr size_t kManifestHeaderBytes = 32;
inline constexpr size_t kManifestEntryBytes = 160;
inline constexpr uint32_t kManifestSlot = 0xffffffff;

std::string EncodeManifest(uint32_t segment, const std::vector<SsdEntry>& entries);
// Errors: kDataLoss names what does not fit; kUnimplemented: another version. expected_segment must
// agree.
Result<std::vector<SsdEntry>> DecodeManifest(std::string_view bytes, uint32_t expected_segment);

// be32 segment | be32 slot | 32-byte key; the manifest's key ends after the slot.
std::string DataKey(uint32_t segment, uint32_t slot, const BlockKey* key);
// A segment's first row: no value, and a block key of zeros. RocksDB reads the first row of each
// file that it takes in, which would be a whole record.
std::string FirstKey(uint32_t segment);
bool IsFirstKey(std::string_view key);
std::string IndexKey(uint32_t segment);
// False: not a data key of ours.
bool ParseSegment(std::string_view key, uint32_t* segment, uint32_t* slot);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_MANIFEST_H_
