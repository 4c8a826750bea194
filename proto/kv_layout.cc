#include "proto/kv_layout.h"

#include <fmt/format.h>

#include <cstring>

#include "proto/field_hash.h"

namespace tiercel {

uint32_t DtypeBytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return 4;
    case Dtype::kBf16:
    case Dtype::kFp16:
      return 2;
    case Dtype::kOpaque:
    case Dtype::kFp8E4m3:
    case Dtype::kFp8E5m2:
    case Dtype::kInt8:
      return 1;
  }
  return 1;
}

uint64_t KvLayout::k_plane_bytes() const {
  return uint64_t{tokens_per_block} * kv_heads * head_dim_k * DtypeBytes(dtype);
}
uint64_t KvLayout::v_plane_bytes() const {
  return uint64_t{tokens_per_block} * kv_heads * head_dim_v * DtypeBytes(dtype);
}

Status Validate(const KvLayout& layout) {
  if (layout.opaque()) return OkStatus();
  const auto in_range = [](const char* name, uint64_t value, uint64_t low, uint64_t high) -> Status {
    if (value >= low && value <= high) return OkStatus();
    return Fail(Code::kInvalidArgument,
                fmt::format("layout: {} is {}, outside {}..{}", name, value, low, high));
  };
  TIERCEL_TRY(in_range("dtype", static_cast<uint64_t>(layout.dtype), 1, 6));
  TIERCEL_TRY(in_range("k_order", static_cast<uint64_t>(layout.k_order), 0, 2));
  TIERCEL_TRY(in_range("v_order", static_cast<uint64_t>(layout.v_order), 0, 2));
  TIERCEL_TRY(in_range("packing", static_cast<uint64_t>(layout.packing), 0, 2));
  TIERCEL_TRY(in_range("layers", layout.layers, 1, 4096));
  TIERCEL_TRY(in_range("kv_heads", layout.kv_heads, 1, 4096));
  TIERCEL_TRY(in_range("head_dim_k", layout.head_dim_k, 1, 4096));
  TIERCEL_TRY(in_range("head_dim_v", layout.head_dim_v,
                       layout.packing == KvPacking::kLatent ? 0 : 1, 4096));
  TIERCEL_TRY(in_range("tokens_per_block", layout.tokens_per_block, 1, 4096));
  TIERCEL_TRY(in_range("world", layout.world, 1, 65536));
  TIERCEL_TRY(in_range("rank", layout.rank, 0, layout.world - 1));
  TIERCEL_TRY(in_range("block bytes", layout.block_bytes(), 1, uint64_t{1} << 30));
  return OkStatus();
}

Result<Scope> MakeScope(const ScopeFields& fields) {
  const KvLayout& layout = fields.layout;
  TIERCEL_TRY(Validate(layout));
  FieldHash hash("tiercel scope v1");
  hash.Add(fields.model).Add(fields.revision).AddU32(static_cast<uint32_t>(fields.adapters.size()));
  for (const std::string& adapter : fields.adapters) hash.Add(adapter);
  hash.Add(fields.rope).Add(fields.salt);
  hash.AddU32(static_cast<uint32_t>(layout.dtype))
      .AddU32(layout.layers)
      .AddU32(layout.kv_heads)
      .AddU32(layout.head_dim_k)
      .AddU32(layout.head_dim_v)
      .AddU32(layout.tokens_per_block)
      .AddU32(static_cast<uint32_t>(layout.k_order))
      .AddU32(static_cast<uint32_t>(layout.v_order))
      .AddU32(static_cast<uint32_t>(layout.packing))
      .AddU32(layout.world)
      .Add(layout.engine)
      .Add(layout.isa);
  const auto digest = hash.Finish();
  Scope scope;
  std::memcpy(scope.bytes.data(), digest.data(), scope.bytes.size());
  return scope;
}

}  // namespace tiercel
