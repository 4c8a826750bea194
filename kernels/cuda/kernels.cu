// Every kernel, compiled for the GPUs that the project supports: who launches them links this.
#include "kernels/cuda/llf.cuh"

namespace tiercel::gpu {

template __global__ void LlfDecode<false>(const LlfDecodeJob*);
template __global__ void LlfDecode<true>(const LlfDecodeJob*);
template __global__ void LlfBase<false>(const LlfEncodeJob*);
template __global__ void LlfBase<true>(const LlfEncodeJob*);
template __global__ void LlfPlanes<false>(const LlfEncodeJob*);
template __global__ void LlfPlanes<true>(const LlfEncodeJob*);
template __global__ void LlfPlace<false>(const LlfEncodeJob*);
template __global__ void LlfPlace<true>(const LlfEncodeJob*);
template __global__ void LlfEscapes<false>(const LlfEncodeJob*);
template __global__ void LlfEscapes<true>(const LlfEncodeJob*);

}  // namespace tiercel::gpu
