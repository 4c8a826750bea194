#include "cacheserver/version.h"

namespace tiercel {

const char kVersion[] = "0.1.0";

}  // namespace tiercel
