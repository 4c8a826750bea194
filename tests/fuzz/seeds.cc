// Writes what the fuzz targets of kernels start from: the golden records, their segments, and freshly
// coded ones for what they do not have.
//
//   seeds FOLDER    FOLDER/<target>/<name>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/check.h"
#include "kernels/record.h"
#include "tests/fuzz/segment_input.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

struct Target {
  CodecId codec;
  const char* name;
};
constexpr Target kTargets[] = {{CodecId::kLlf, "llf_fuzz"},  {CodecId::kLle, "lle_fuzz"},  {CodecId::kF8, "f8_fuzz"},
                               {CodecId::kI8, "i8_fuzz"},    {CodecId::kI4h, "i4h_fuzz"},  {CodecId::kEcC, "ecc_fuzz"},
                               {CodecId::kEcK, "eck_fuzz"},  {CodecId::kEcX, "ecx_fuzz"},
                               {CodecId::kI8e, "i8e_fuzz"}};

void Write(const fs::path& folder, const char* target, const std::string& name, ByteSpan bytes) {
  fs::create_directories(folder / target);
  std::ofstream(folder / target / name, std::ios::binary) << AsText(bytes);
}

std::vector<std::byte> Prefixed(ByteSpan bytes) {  // The byte that mends checksums.
  std::vector<std::byte> out(1 + bytes.size(), std::byte{1});
  std::copy(bytes.begin(), bytes.end(), out.begin() + 1);
  return out;
}

void WriteGoldens(const fs::path& folder) {
  for (const auto& file : fs::directory_iterator(std::string(TIERCEL_SOURCE_DIR) + "/tests/kernels/golden")) {
    if (file.path().extension() != ".kvb1") continue;
    std::ifstream stream(file.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    const std::string name = file.path().stem();
    Write(folder, "record_fuzz", name, Prefixed(AsBytes(text)));
    const auto record = ParseRecord(AsBytes(text));
    TIERCEL_CHECK(record.has_value());
    for (uint32_t i = 0; i < record->n_segments; ++i) {
      const SegmentInfo segment = record->segment(i);
      for (const Target& target : kTargets) {
        if (target.codec != segment.codec) continue;
        Write(folder, target.name, fmt::format("{}-{}", name, i),
              WriteSegmentInput(segment.shape, segment.params, record->rope_dims != 0, record->segment_bytes(segment)));
      }
    }
  }
}

void WriteCoded(const fs::path& folder) {
  uint64_t seed = 0;
  for (const Target& target : kTargets) {
    const Codec& codec = *FindCodec(target.codec);
    for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp16, Dtype::kFp32, Dtype::kFp8E4m3, Dtype::kFp8E5m2}) {
      for (const auto& [tokens, leveled] : {std::pair{16u, false}, {37u, false}, {64u, false}, {37u, true}, {64u, true}, {128u, true}}) {
        if (leveled && (target.codec < CodecId::kEcC || target.codec > CodecId::kEcX)) continue;
        ++seed;
        const SegmentShape shape = MakeShape(dtype, static_cast<AxisOrder>(seed % 3), tokens, 2, 16,
                                       seed % 2 == 0 ? SegmentKind::kK : SegmentKind::kV);
        if (!codec.Supports(shape)) continue;
        CodecContext context;
        context.pos0 = FuzzRope::kPosition;
        context.quality = static_cast<QualityClass>(1 + seed % 4);
        context.exact_tokens = seed % 3;
        if (codec.needs_artifact()) context.artifact = &FuzzArtifact();
        const auto level_seed = static_cast<uint8_t>(leveled ? seed : 0);
        const auto levels = FuzzLevels(level_seed, tokens);
        context.levels = levels;
        const auto raw = PlaneLikeKv(shape, seed);
        const std::string name =
            fmt::format("coded-{}-{}-{}{}", Name(target.codec), static_cast<int>(dtype), tokens, leveled ? "-levels" : "");
        const auto plane = WriteSegmentInput(shape, static_cast<uint32_t>(&target - kTargets) | uint32_t{level_seed} << 24, false, raw);
        Write(folder, "encode_fuzz", name, plane);
        const auto coded = RunEncode(codec, shape, raw, context);
        if (coded) Write(folder, target.name, name, WriteSegmentInput(shape, coded->info.params, false, coded->bytes));
      }
    }
  }
}

void WriteArtifacts(const fs::path& folder) {
  KvLayout layout = SmallLayout(Dtype::kBf16, AxisOrder::kTokenHeadDim, KvPacking::kSplit, 2);
  layout.tokens_per_block = 40;
  const auto block = KvLikeBytes(Dtype::kBf16, layout.block_bytes(), 7);
  for (const CodecId id : {CodecId::kEcC, CodecId::kEcK, CodecId::kEcX}) {
    EncodeOptions options;
    options.artifact = &FuzzArtifact();
    options.exact_tokens = 4098;
    RecordSpec spec = SpecOf(layout);
    spec.options = &options;
    const auto record = Encoded(spec, id, block);
    TIERCEL_CHECK(record.has_value());
    Write(folder, "record_fuzz", fmt::format("coded-{}", Name(id)), Prefixed(*record));
  }
  for (const RopeStyle style : {RopeStyle::kHalves, RopeStyle::kNeighbours}) {
    ArtifactShape shape;
    shape.layers = 1;
    shape.dim_k = 8;
    shape.dim_v = 4;
    shape.rope_dims = 8;
    shape.style = style;
    Write(folder, "artifact_fuzz", fmt::format("made-{}", static_cast<int>(style)), Prefixed(ArtifactWriter(shape).Finish()));
    shape.levels = true;
    shape.own_ropes = 1;
    Write(folder, "artifact_fuzz", fmt::format("made-{}-levels", static_cast<int>(style)), Prefixed(ArtifactWriter(shape).Finish()));
    shape.layers = 2;
    shape.whole_layers = false;
    Write(folder, "artifact_fuzz", fmt::format("made-{}-two-ropes", static_cast<int>(style)), Prefixed(ArtifactWriter(shape).Finish()));
  }
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  tiercel::WriteGoldens(argv[1]);
  tiercel::WriteCoded(argv[1]);
  tiercel::WriteArtifacts(argv[1]);
  return 0;
}
