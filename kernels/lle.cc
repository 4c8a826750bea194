// LLE: exponents of a column of KV take about 2.5 bits of entropy, where the format gives them 8 or 5.
// They are entropy-coded with a class a column; signs and mantissas are noise and stay as they are.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/columns.h"
#include "kernels/digest.h"
#include "kernels/isa.h"
#include "kernels/lle_core.h"
#include "kernels/lle_rows.h"
#include "kernels/rans.h"
#include "kernels/scratch.h"

namespace tiercel {
namespace {

using namespace lle;  // NOLINT: the codec's own words.

constexpr size_t kHeader = 4;  // Version, dtype, log2 of the streams, 0.
constexpr uint64_t kSymbolsAStream = 12 << 10;

template <class F>
struct Loops;
template <class F>
  requires(sizeof(typename F::Value) != 2)
struct Loops<F> {
  static auto Split() { return SplitColumn<F>; }
  static auto Join() { return JoinColumn<F>; }
};
template <class F>
  requires(sizeof(typename F::Value) == 2)
struct Loops<F> {
  static ColumnFns Fns() {
    constexpr bool kFp16 = F::kBytePlanes == 1 && F::kBitPlanes == 3;
#if defined(__x86_64__)
    switch (ActiveKernelIsa()) {
      case KernelIsa::kAvx512:
        return kFp16 ? Avx512Fp16() : Avx512Bf16();
      case KernelIsa::kAvx2:
        return kFp16 ? Avx2Fp16() : Avx2Bf16();
      case KernelIsa::kScalar:
        break;
    }
#endif
    return {SplitColumn<F>, JoinColumn<F>};
  }
  static SplitFn Split() { return Fns().split; }
  static JoinFn Join() { return Fns().join; }
};

struct Geometry {
  uint32_t columns;
  uint32_t tokens;
  size_t stride;
  explicit Geometry(const SegmentShape& shape)
      : columns(ColumnCount(shape)), tokens(shape.tokens), stride(ColumnStride(shape.tokens)) {}
};

// What coder and decoder both use besides the entropy coder's own.
template <class T>
struct Arrays {
  T* tile;
  uint8_t* exponents;  // Of one column.
  int32_t* bases;
  int32_t* list;
  uint8_t* classes;
  std::byte* planes;  // Of one column.

  template <class Each>
  static void Layout(const Geometry& g, Each&& each) {
    each.template operator()<T>(g.stride * kTileColumns);
    each.template operator()<uint8_t>(g.stride);
    each.template operator()<int32_t>(g.columns);
    each.template operator()<int32_t>(g.columns);
    each.template operator()<uint8_t>(g.columns);
    each.template operator()<std::byte>(4 * g.stride);
  }
  static uint64_t Bytes(const Geometry& g) {
    ScratchSizer sizer;
    Layout(g, [&]<class U>(uint64_t count) { sizer.Add<U>(count); });
    return sizer.bytes();
  }
  Arrays(const Geometry& g, ScratchCarver& carve) {
    void* at[6];
    size_t i = 0;
    Layout(g, [&]<class U>(uint64_t count) { at[i++] = carve.Take<U>(count); });
    tile = static_cast<T*>(at[0]);
    exponents = static_cast<uint8_t*>(at[1]);
    bases = static_cast<int32_t*>(at[2]);
    list = static_cast<int32_t*>(at[3]);
    classes = static_cast<uint8_t*>(at[4]);
    planes = static_cast<std::byte*>(at[5]);
  }
};

template <class F>
std::optional<uint64_t> EncodeAs(const SegmentShape& shape, ByteSpan raw, MutableByteSpan out,
                                 MutableByteSpan scratch) {
  using T = typename F::Value;
  const Geometry g(shape);
  const size_t a_column = PlaneBytes<F>(g.tokens);
  const uint64_t planes = a_column * g.columns;
  if (out.size() < kHeader + planes) return std::nullopt;
  ScratchCarver carve(scratch);
  const Arrays<T> arrays(g, carve);
  rans::Encoder encoder(rans::TableSet::kExponents, g.columns, g.tokens, carve.Rest());
  const auto split = Loops<F>::Split();
  for (uint32_t first = 0; first < g.columns; first += kTileColumns) {
    const uint32_t count = std::min(kTileColumns, g.columns - first);
    LoadColumns<T>(shape, raw, first, count, arrays.tile, g.stride);
    for (uint32_t c = 0; c < count; ++c) {
      const Exponents found = split(arrays.tile + c * g.stride, g.tokens, arrays.exponents,
                                    out.data() + kHeader + (first + c) * a_column);
      const int32_t base = BaseOf(found);
      arrays.bases[first + c] = base;
      encoder.AddBytes(arrays.exponents, base);
    }
  }
  // The planes' last bytes ride as cargo, and what follows takes their place.
  const uint32_t streams = rans::StreamsFor(uint64_t{g.columns} * g.tokens, kSymbolsAStream);
  std::byte cargo[rans::kMaxStreams * rans::kCargoBytes];
  const uint64_t riding = std::min<uint64_t>(streams * rans::kCargoBytes, planes);
  uint64_t at = kHeader + planes - riding;
  std::memcpy(cargo, out.data() + at, riding);
  BitWriter bits(out.subspan(at));
  PutIntegers(bits, {arrays.bases, g.columns});
  rans::PutClasses(bits, encoder.classes(), {arrays.list, g.columns});
  const uint64_t block_at = (at + bits.Finish() + 3) / 4 * 4;
  at += bits.Finish();
  if (block_at > out.size()) return std::nullopt;
  std::memset(out.data() + at, 0, block_at - at);
  const auto block = encoder.Finish(streams, {cargo, riding}, out.subspan(block_at));
  if (!block) return std::nullopt;
  out[0] = std::byte{1};
  out[1] = static_cast<std::byte>(shape.dtype);
  out[2] = static_cast<std::byte>(std::countr_zero(streams));
  out[3] = std::byte{0};
  return block_at + *block;
}

// Null, or what is wrong.
template <class F>
const char* DecodeAs(const SegmentShape& shape, ByteSpan encoded, MutableByteSpan out,
                     MutableByteSpan scratch) {
  using T = typename F::Value;
  const Geometry g(shape);
  const size_t a_column = PlaneBytes<F>(g.tokens);
  const uint64_t planes = a_column * g.columns;
  if (encoded.size() < kHeader || encoded[0] != std::byte{1}) return "not version 1";
  if (encoded[1] != static_cast<std::byte>(shape.dtype)) return "of another dtype";
  const auto log_streams = std::to_integer<uint32_t>(encoded[2]);
  if (log_streams > 3) return "too many streams";
  const uint64_t riding = std::min<uint64_t>((uint64_t{rans::kCargoBytes} << log_streams), planes);
  const uint64_t stored = planes - riding;
  if (encoded.size() - kHeader < stored) return "shorter than its planes";
  ScratchCarver carve(scratch);
  const Arrays<T> arrays(g, carve);
  BitReader bits(encoded.subspan(kHeader + stored));
  if (!GetIntegers(bits, kLeastBase, F::kMaxExponent, {arrays.bases, g.columns})) {
    return "not a list of exponents' bases";
  }
  if (!rans::GetClasses(bits, {arrays.classes, g.columns}, {arrays.list, g.columns})) {
    return "not a list of classes";
  }
  const uint64_t block_at = (kHeader + stored + bits.bytes_used() + 3) / 4 * 4;
  if (block_at > encoded.size()) return "shorter than its lists";
  rans::Decoder decoder(rans::TableSet::kExponents, g.columns, g.tokens, carve.Rest());
  if (const char* bad = decoder.Start({arrays.classes, g.columns}, encoded.subspan(block_at))) {
    return bad;
  }
  if (decoder.streams() != 1u << log_streams) return "two counts of streams";
  const std::byte* const from = encoded.data() + kHeader;
  const auto join = Loops<F>::Join();
  for (uint32_t first = 0; first < g.columns; first += kTileColumns) {
    const uint32_t count = std::min(kTileColumns, g.columns - first);
    for (uint32_t c = 0; c < count; ++c) {
      if (const char* bad = decoder.Bytes(arrays.bases[first + c], arrays.exponents)) return bad;
      const uint64_t at = (first + c) * a_column;
      const std::byte* column = from + at;
      if (at + a_column > stored) {  // Some or all of it rode.
        const uint64_t here = stored > at ? stored - at : 0;
        std::memcpy(arrays.planes, column, here);
        std::memcpy(arrays.planes + here, decoder.cargo().data() + (at + here - stored),
                    a_column - here);
        column = arrays.planes;
      }
      join(arrays.exponents, column, g.tokens, arrays.tile + c * g.stride);
    }
    StoreColumns<T>(shape, arrays.tile, g.stride, first, count, out);
  }
  return decoder.Finish();
}

// Calls f with the Format of a dtype; nothing where it has none.
template <class F>
void ForFormat(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kBf16:
      return f.template operator()<Bf16>();
    case Dtype::kFp16:
      return f.template operator()<Fp16>();
    case Dtype::kFp32:
      return f.template operator()<Fp32>();
    case Dtype::kFp8E4m3:
      return f.template operator()<E4m3>();
    case Dtype::kFp8E5m2:
      return f.template operator()<E5m2>();
    case Dtype::kOpaque:
    case Dtype::kInt8:
      return;
  }
}

class LleCodecImpl final : public Codec {
 public:
  CodecId id() const override { return CodecId::kLle; }
  QualityClass quality() const override { return QualityClass::kExact; }

  bool Supports(const SegmentShape& shape) const override {
    bool known = false;
    ForFormat(shape.dtype, [&]<class F>() {
      const uint64_t columns = uint64_t{shape.heads} * shape.dim;
      known = shape.tokens >= 1 && shape.tokens <= rans::kMaxTokens && columns >= 1 &&
              columns <= rans::kMaxColumns &&
              shape.raw_bytes == columns * shape.tokens * sizeof(typename F::Value);
    });
    return known;
  }

  uint64_t MaxEncodedBytes(const SegmentShape& shape) const override {
    return shape.raw_bytes - shape.raw_bytes / 32;  // Less gain than that is not worth decoding.
  }

  uint64_t scratch_bytes(const SegmentShape& shape) const override {
    const Geometry g(shape);
    return Arrays<uint32_t>::Bytes(g) + std::max(rans::EncodeScratchBytes(g.columns, g.tokens),
                                                 rans::DecodeScratchBytes(g.columns, g.tokens));
  }

  uint64_t step_bytes(const SegmentShape& shape) const override { return shape.raw_bytes; }

  std::optional<EncodedSegment> Encode(const SegmentShape& shape, ByteSpan raw,
                                       MutableByteSpan out,
                                       const CodecContext& context) const override {
    const uint64_t limit = MaxEncodedBytes(shape);
    if (!Supports(shape) || raw.size() != shape.raw_bytes || out.size() < limit) {
      return std::nullopt;
    }
    const uint64_t digest = DecodedDigest(raw);  // First: it reads in order, and leaves the plane in the caches.
    std::optional<uint64_t> size;
    ForFormat(shape.dtype, [&]<class F>() {
      size = EncodeAs<F>(shape, raw, out.first(limit), context.scratch);
    });
    if (!size) return std::nullopt;
    return EncodedSegment{*size, 0, digest};
  }

  Status Decode(const SegmentShape& shape, uint32_t params, ByteSpan encoded, uint64_t begin,
                MutableByteSpan out, const CodecContext& context) const override {
    if (!Supports(shape) || begin != 0 || out.size() != shape.raw_bytes) {
      return Fail(Code::kInvalidArgument, fmt::format("LLE segment: no step {}+{} of {}", begin,
                                                      out.size(), shape.raw_bytes));
    }
    const char* bad = params == 0 ? nullptr : "params is not 0";
    if (bad == nullptr) {
      ForFormat(shape.dtype,
                [&]<class F>() { bad = DecodeAs<F>(shape, encoded, out, context.scratch); });
    }
    if (bad == nullptr) return OkStatus();
    return Fail(Code::kDataLoss, fmt::format("LLE segment of {} bytes: {}", encoded.size(), bad));
  }
};

}  // namespace

const Codec& LleCodec() {
  static const LleCodecImpl codec;
  return codec;
}

}  // namespace tiercel
