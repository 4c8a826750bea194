// An artifact as the kernels read it (artifact_image.h). No CUDA here.
#include "kernels/cuda/artifact_image.h"

#include <cstring>

#include "kernels/cuda/batch.h"

namespace tiercel::gpu {
namespace {

class Image {
 public:
  // Room for so many bytes, at a multiple of 64; where they begin.
  uint64_t Take(uint64_t bytes) {
    const uint64_t at = bytes_.size();
    bytes_.resize(at + (bytes + 63) / 64 * 64);
    return at;
  }
  template <class T>
  uint64_t Put(std::span<const T> values) {
    const uint64_t at = Take(values.size_bytes());
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size_bytes());
    return at;
  }
  std::byte* at(uint64_t offset) { return bytes_.data() + offset; }
  std::vector<std::byte> Finish() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

ImageTransform Put(const KltTransform& transform, Image& image) {
  const uint64_t n = transform.n;
  ImageTransform out;
  out.n = transform.n;
  out.row_bytes = (transform.n + 3) / 4 * 4;
  out.mean_at = image.Put(transform.mean);
  out.scale_at = image.Put(transform.scale);
  out.synthesis_at = image.Take(n * out.row_bytes);
  for (uint64_t row = 0; row < n; ++row) {
    std::memcpy(image.at(out.synthesis_at + row * out.row_bytes), transform.synthesis.data() + row * n, n);
  }
  out.analysis_at = image.Put(transform.analysis);
  return out;
}

}  // namespace

std::vector<std::byte> ArtifactImage(const Artifact& artifact) {
  Image image;
  image.Take(sizeof(ImageHead));
  ImageHead head;
  head.id = artifact.id();
  head.layers = artifact.layers();
  head.kv_heads = artifact.kv_heads();
  head.dim_k = artifact.head_dim(SegmentKind::kK);
  head.dim_v = artifact.head_dim(SegmentKind::kV);
  head.rope_dims = artifact.rope_dims();
  head.rope_style = static_cast<uint32_t>(artifact.rope_style());
  head.frequencies_at = image.Take(FrequenciesAt(head, head.layers) - FrequenciesAt(head, 0));
  for (uint32_t layer = 0; layer < head.layers; ++layer) {
    const auto bytes = std::as_bytes(artifact.rope(static_cast<uint16_t>(layer)));
    if (!bytes.empty()) std::memcpy(image.at(FrequenciesAt(head, layer)), bytes.data(), bytes.size());
  }
  std::vector<ImageTransform> transforms(2 * uint64_t{head.layers} * (uint64_t{head.kv_heads} + 1));
  head.transforms_at = image.Take(transforms.size() * sizeof(ImageTransform));
  for (uint32_t layer = 0; layer < head.layers; ++layer) {
    for (const SegmentKind kind : {SegmentKind::kK, SegmentKind::kV}) {
      // Groups that a byte can name.
      for (uint32_t group = 0; group <= head.kv_heads; ++group) {
        if (group < head.kv_heads && group >= kWholeLayer) continue;
        const auto name = static_cast<uint8_t>(group == head.kv_heads ? kWholeLayer : group);
        const KltTransform* const transform = artifact.Find(static_cast<uint16_t>(layer), kind, name);
        if (transform == nullptr) continue;
        transforms[TransformIndex(head.kv_heads, layer, kind == SegmentKind::kV, group)] = Put(*transform, image);
      }
    }
  }
  std::memcpy(image.at(head.transforms_at), transforms.data(), transforms.size() * sizeof(ImageTransform));
  std::vector<ImageLevels> levels(2 * uint64_t{head.layers});
  head.levels_at = image.Take(levels.size() * sizeof(ImageLevels));
  for (size_t i = 0; i < levels.size(); ++i) {
    const LevelWeights* const weights = artifact.Levels(static_cast<uint16_t>(i / 2), i % 2 == 0 ? SegmentKind::kK : SegmentKind::kV);
    if (weights == nullptr) continue;
    levels[i].n = static_cast<uint32_t>(weights->weight.size());
    levels[i].position_weight = weights->position_weight;
    levels[i].position_mean = weights->position_mean;
    levels[i].mean_at = image.Put(weights->mean);
    levels[i].weight_at = image.Put(weights->weight);
  }
  std::memcpy(image.at(head.levels_at), levels.data(), levels.size() * sizeof(ImageLevels));
  head.bytes = image.Take(0);
  std::memcpy(image.at(0), &head, sizeof(head));
  return image.Finish();
}

}  // namespace tiercel::gpu
