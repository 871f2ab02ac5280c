/* gated.cuh - what a gated network's two products become: silu(gate) * up. */
#ifndef GAZE_CUDA_TILE_GATED_CUH
#define GAZE_CUDA_TILE_GATED_CUH

#include <cuda_runtime.h>
#include <math.h>

static __device__ __forceinline__ float gated(float gate, float up)
{
    return gate / (1.0f + expf(-gate)) * up;
}

#endif
