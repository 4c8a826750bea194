// An artifact (kernels/artifact.h) as kernels read it: one piece of bytes that may lie anywhere, offsets from its
// start. Made once (ArtifactImage, batch.h), copied to the device once, at a multiple of 64. Internal to kernels/cuda.
//
//   ImageHead | frequencies, u64 [layer][pair] | ImageTransform [layer][K, V][group] | ImageLevels [layer][K, V] | what those point to
//
// Groups are the heads of the model, then all of them together. A transform's synthesis has rows (a dimension each)
// of row_bytes, a multiple of 4, zeros behind its n coefficients.
#ifndef TIERCEL_KERNELS_CUDA_ARTIFACT_IMAGE_H_
#define TIERCEL_KERNELS_CUDA_ARTIFACT_IMAGE_H_

#include <cstdint>

namespace tiercel::gpu {

struct ImageHead {
  uint64_t id = 0;
  uint64_t bytes = 0;  // Of all.
  uint32_t layers = 0, kv_heads = 0;
  uint32_t dim_k = 0, dim_v = 0;
  uint32_t rope_dims = 0, rope_style = 0;
  uint64_t frequencies_at = 0;
  uint64_t transforms_at = 0;
  uint64_t levels_at = 0;
};

struct ImageTransform {
  uint32_t n = 0;  // 0: there is none.
  uint32_t row_bytes = 0;
  uint64_t mean_at = 0, scale_at = 0;  // f32[n].
  uint64_t synthesis_at = 0;           // i8[n][row_bytes].
  uint64_t analysis_at = 0;            // f32[n][n], a row a coefficient.
};

// What foretells the levels of a layer's K or V from its K.
struct ImageLevels {
  uint32_t n = 0;  // The dims of all heads' K; 0: nothing is foretold.
  float position_weight = 0, position_mean = 0;
  uint32_t zero = 0;
  uint64_t mean_at = 0, weight_at = 0;  // f32[n].
};

constexpr uint64_t FrequenciesAt(const ImageHead& head, uint64_t layer) { return head.frequencies_at + layer * 4 * head.rope_dims; }

constexpr uint64_t TransformIndex(uint64_t kv_heads, uint64_t layer, bool v, uint64_t group) {
  return (2 * layer + (v ? 1 : 0)) * (kv_heads + 1) + group;
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_ARTIFACT_IMAGE_H_
