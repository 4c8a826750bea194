// The transform of one group of a segment's columns, in an artifact's image (artifact_image.h).
#ifndef TIERCEL_KERNELS_CUDA_KLT_GROUP_CUH_
#define TIERCEL_KERNELS_CUDA_KLT_GROUP_CUH_

#include "kernels/cuda/artifact_image.h"
#include "kernels/cuda/segment.cuh"

namespace tiercel::gpu {

inline constexpr uint8_t kEcXCodec = 9;

struct KltGroup {
  const uint8_t* image;
  const ImageTransform* transform;
  uint32_t first;  // Of its columns.
  TIERCEL_DEVICE const float* floats(uint64_t at) const { return reinterpret_cast<const float*>(image + at); }
  TIERCEL_DEVICE const float* mean() const { return floats(transform->mean_at); }
  TIERCEL_DEVICE const float* scale() const { return floats(transform->scale_at); }
  TIERCEL_DEVICE const float* analysis() const { return floats(transform->analysis_at); }
  // Four coefficients of a row, from coefficient c on, a multiple of 4.
  TIERCEL_DEVICE uint32_t synthesis(uint32_t dim, uint32_t c) const {
    return *reinterpret_cast<const uint32_t*>(image + transform->synthesis_at + uint64_t{dim} * transform->row_bytes + c);
  }
};
TIERCEL_DEVICE uint32_t KltGroupSize(const Segment& s) { return s.codec == kEcXCodec ? s.columns() : s.dim; }
TIERCEL_DEVICE KltGroup KltGroupOf(const Segment& s, uint32_t column) {
  const uint32_t n = KltGroupSize(s);
  return {s.image, s.transforms + column / n, column / n * n};
}

}  // namespace tiercel::gpu

#endif  // TIERCEL_KERNELS_CUDA_KLT_GROUP_CUH_
