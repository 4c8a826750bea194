// KvLayout says what the bytes of a block are: which tensor, in which order, of which type. Two
// engines may share a block only where their layouts give the same scope and part; a changed layout
// is a different key and so a miss, never a misread tensor.
//
// A scope is the 16-byte fingerprint of everything that makes KV bytes of one engine fit another:
// model, revision, adapters, rope, and the rank-free layout. The rank is the part of the block key.
// Formula and golden vectors: docs/wire.md, "Scope".
#ifndef TIERCEL_PROTO_KV_LAYOUT_H_
#define TIERCEL_PROTO_KV_LAYOUT_H_

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace tiercel {

enum class Dtype : uint8_t { kOpaque = 0, kBf16 = 1, kFp16 = 2, kFp32 = 3, kFp8E4m3 = 4, kFp8E5m2 = 5, kInt8 = 6 };
uint32_t DtypeBytes(Dtype dtype);  // kOpaque counts as 1.

// The order of axes inside one layer's K or V of one block.
enum class AxisOrder : uint8_t {
  kTokenHeadDim = 0,  // [token][kv head][dim]
  kHeadTokenDim = 1,  // [kv head][token][dim]
  kHeadDimToken = 2,  // [kv head][dim][token]: vLLM's CPU pages hold K so
};

// How K and V of one layer lie to each other.
enum class KvPacking : uint8_t {
  kSplit = 0,        // All of K, then all of V.
  kInterleaved = 1,  // Per head: K, then V.
  kLatent = 2,       // One latent plane a layer (MLA); head_dim_v is 0.
};

struct KvLayout {
  uint32_t layers = 0;
  uint32_t kv_heads = 0;  // Of this rank.
  uint32_t head_dim_k = 0;
  uint32_t head_dim_v = 0;
  uint32_t tokens_per_block = 0;  // Of a Tiercel block: k engine blocks.
  Dtype dtype = Dtype::kOpaque;
  AxisOrder k_order = AxisOrder::kTokenHeadDim;
  AxisOrder v_order = AxisOrder::kTokenHeadDim;
  KvPacking packing = KvPacking::kSplit;
  uint32_t rank = 0;  // Not in the scope: it is the part of the key.
  uint32_t world = 1;
  std::string engine;  // Set only where the bytes depend on the engine, e.g. "vllm-cpu".
  std::string isa;     // Set only where the bytes depend on the ISA, e.g. "vec".

  // Bytes as the caller gives them, no tensor known; every size is allowed.
  static KvLayout Opaque() { return KvLayout{}; }
  bool opaque() const { return dtype == Dtype::kOpaque; }

  uint64_t k_plane_bytes() const;  // One layer's K of one block.
  uint64_t v_plane_bytes() const;
  uint64_t layer_bytes() const { return k_plane_bytes() + v_plane_bytes(); }
  uint64_t block_bytes() const { return layer_bytes() * layers; }

  bool operator==(const KvLayout&) const = default;
};

// Errors: kInvalidArgument names the field: zero or absurd dimensions, rank outside the world, a
// block over 1 GiB, an unknown enum value.
Status Validate(const KvLayout& layout);

struct Scope {
  std::array<std::byte, 16> bytes{};
  auto operator<=>(const Scope&) const = default;
};

struct ScopeFields {
  std::string model;      // E.g. a Hugging Face id, or a content hash of the weights.
  std::string revision;   // A commit, or empty.
  std::vector<std::string> adapters;  // LoRA ids, in the order they apply.
  std::string rope;       // Canonical rope parameters, or empty when they follow from the model.
  std::string salt;       // Whatever else must keep sharers apart.
  KvLayout layout;
};

// First 16 bytes of SHA-256 over "tiercel scope v1" and the length-prefixed fields.
// Errors: Validate's, for a layout that is not opaque.
Result<Scope> MakeScope(const ScopeFields& fields);

}  // namespace tiercel

#endif  // TIERCEL_PROTO_KV_LAYOUT_H_
