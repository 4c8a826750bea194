// CRC-32C (Castagnoli, RFC 3720 appendix B.4): reflected polynomial 0x82f63b78, initial value and
// final xor 0xffffffff. The check value of "123456789" is 0xe3069283.
//
// Crc32c(a ++ b) == Crc32c(b, Crc32c(a)), so a long value can be checked in steps while it is warm.
// Picks the fastest path of this CPU at run time: VPCLMULQDQ folding, three SSE4.2 streams, or tables.
// Threads: any.
#ifndef TIERCEL_BASE_CRC32C_H_
#define TIERCEL_BASE_CRC32C_H_

#include <cstdint>

#include "base/bytes.h"

namespace tiercel {

uint32_t Crc32c(ByteSpan bytes, uint32_t crc = 0);

// Copies bytes to out and returns the Crc32c of what was written: each byte is read once, so the sum
// is true of the copy even while another process writes to the source. out must not overlap bytes.
// of: the size of the whole that these bytes are a part of; a large one is written past the caches.
uint32_t CopyCrc32c(std::byte* out, ByteSpan bytes, uint32_t crc = 0, size_t of = 0);

// The paths by name, for tests and benches.
enum class Crc32cPath : uint8_t { kTable, kSse42, kVpclmul };
bool Crc32cPathUsable(Crc32cPath path);
uint32_t Crc32cBy(Crc32cPath path, ByteSpan bytes, uint32_t crc = 0);
uint32_t CopyCrc32cBy(Crc32cPath path, std::byte* out, ByteSpan bytes, uint32_t crc = 0, size_t of = 0);

}  // namespace tiercel

#endif  // TIERCEL_BASE_CRC32C_H_
