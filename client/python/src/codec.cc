// Records without a node: encode a block, decode it, look at it. What the quality harness and whoever
// studies a codec calls; put and get do the same inside.
#include <fmt/format.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/core_client.h"
#include "kernels/artifact.h"
#include "kernels/codec.h"
#include "kernels/record.h"

namespace tiercel::python {
namespace {

HeldArtifact LoadArtifact(nb::handle bytes) {
  const HeldBuffer held(bytes, /*writable=*/false);
  auto parsed = Artifact::Parse(held.span());
  if (!parsed) Raise(parsed.error());
  if (const Status used = UseArtifact(*parsed); !used) Raise(used.error());
  return {*parsed};
}

nb::bytes Encode(const KvLayout& layout, const std::string& codec_name, nb::handle block, const std::string& quality,
                 const HeldArtifact* artifact, uint64_t pos0, uint32_t exact_tokens, float step) {
  const auto codec = ParseCodecId(codec_name);
  if (!codec) throw nb::value_error(fmt::format("no codec '{}'", codec_name).c_str());
  const auto asked = ParseQualityClass(quality);
  if (!asked) throw nb::value_error(fmt::format("no class '{}': exact, near, high, balanced or small", quality).c_str());
  const HeldBuffer held(block, /*writable=*/false);
  EncodeOptions options;
  options.quality = *asked;
  options.exact_tokens = exact_tokens;
  options.step = step;
  options.artifact = artifact != nullptr ? artifact->artifact.get() : nullptr;
  RecordSpec spec;
  spec.layout = layout;
  spec.pos0 = pos0;
  spec.options = &options;
  std::vector<std::byte> record(MaxRecordBytes(spec, held.span().size()));
  Result<uint64_t> size = uint64_t{0};
  {
    nb::gil_scoped_release unlocked;
    size = EncodeRecord(spec, *codec, held.span(), record);
  }
  if (!size) Raise(size.error());
  return nb::bytes(record.data(), *size);
}

nb::bytes Decode(nb::handle bytes, const KvLayout& layout) {
  const HeldBuffer held(bytes, /*writable=*/false);
  const auto record = ParseRecord(held.span());
  if (!record) Raise(record.error());
  const auto size = DecodedBytes(*record);
  if (!size) Raise(size.error());
  std::vector<std::byte> block(*size);
  Status decoded;
  {
    nb::gil_scoped_release unlocked;
    decoded = DecodeRecord(*record, layout, block);
  }
  if (!decoded) Raise(decoded.error());
  return nb::bytes(block.data(), block.size());
}

nb::dict Inspect(nb::handle bytes) {
  const HeldBuffer held(bytes, /*writable=*/false);
  const auto record = ParseRecord(held.span());
  if (!record) Raise(record.error());
  const auto text = [](std::string_view view) { return nb::str(view.data(), view.size()); };
  nb::dict out;
  out["codec"] = text(Name(record->codec));
  out["quality"] = text(Name(record->quality));
  out["bytes"] = record->record_bytes;
  out["head_bytes"] = record->head_bytes;
  out["artifact"] = record->artifact_id;
  out["pos0"] = record->pos0;
  nb::list segments;
  for (uint32_t i = 0; i < record->n_segments; ++i) {
    const SegmentInfo segment = record->segment(i);
    nb::dict one;
    one["layer"] = segment.shape.layer;
    one["kind"] = text(Name(segment.shape.kind));
    one["codec"] = text(Name(segment.codec));
    one["bytes"] = segment.bytes;
    one["raw_bytes"] = segment.shape.raw_bytes;
    segments.append(one);
  }
  out["segments"] = segments;
  return out;
}

}  // namespace

void BindCodec(nb::module_& m) {
  nb::class_<HeldArtifact>(m, "CodecArtifact")
      .def_prop_ro("id", [](const HeldArtifact& self) { return self.artifact->id(); })
      .def_prop_ro("about", [](const HeldArtifact& self) { return std::string(self.artifact->about()); });
  m.def("load_artifact", &LoadArtifact, nb::arg("data"), nb::sig("def load_artifact(data: object) -> CodecArtifact"));
  m.def("encode_record", &Encode, nb::arg("layout"), nb::arg("codec"), nb::arg("block"), nb::kw_only(),
        nb::arg("quality") = "balanced", nb::arg("artifact") = nb::none(), nb::arg("pos0") = 0, nb::arg("exact_tokens") = 0,
        nb::arg("step") = 0.0f,
        nb::sig("def encode_record(layout: KvLayout, codec: str, block: object, *, quality: str = 'balanced', "
                "artifact: CodecArtifact | None = None, pos0: int = 0, exact_tokens: int = 0, step: float = 0.0) -> bytes"));
  m.def("decode_record", &Decode, nb::arg("record"), nb::arg("layout"),
        nb::sig("def decode_record(record: object, layout: KvLayout) -> bytes"));
  m.def("inspect_record", &Inspect, nb::arg("record"), nb::sig("def inspect_record(record: object) -> dict[str, object]"));
}

}  // namespace tiercel::python
