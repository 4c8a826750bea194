#if defined(__x86_64__)

#define TIERCEL_TILES __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq")))
#include "kernels/columns_wide.h"

namespace tiercel::columns {

void TransposeAvx512(const uint16_t* from, Rows from_rows, size_t rows, size_t cols, uint16_t* to, Rows to_rows,
                     bool room_in_from, bool room_in_to) {
  TransposeWide(from, from_rows, rows, cols, to, to_rows, room_in_from, room_in_to);
}

}  // namespace tiercel::columns

#endif  // __x86_64__
