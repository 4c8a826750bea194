#if defined(__x86_64__)
#include "kernels/rans_rows.h"
namespace tiercel::rans {
RowFns Avx2Rows() { return ScalarRows(); }
}  // namespace tiercel::rans
#endif
