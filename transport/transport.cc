#include "transport/transport.h"

namespace tiercel {

std::string_view Name(TransportKind kind) {
  switch (kind) {
    case TransportKind::kLoopback:
      return "loopback";
    case TransportKind::kMemfd:
      return "memfd";
    case TransportKind::kUcx:
      return "ucx";
    case TransportKind::kGrpc:
      return "grpc";
  }
  return "invalid";
}

Result<MutableByteSpan> Transport::AllocateStaging(uint64_t) {
  return Fail(Code::kUnimplemented, "this transport has no staging");
}

}  // namespace tiercel
