/* mma.cuh - one tensor-core product: C[16, 8] += A[16, 16] B[16, 8], bf16 in, fp32 out (sm_80 on).
 *
 * Fragments of lane l, g = l / 4, t = l % 4, two bf16 a register, the lower column (row of B) low:
 *   a[0] A[g][2t..]  a[1] A[g + 8][2t..]  a[2] A[g][2t + 8..]  a[3] A[g + 8][2t + 8..]
 *   b[0] B[2t..][g]  b[1] B[2t + 8..][g]
 *   c[0] C[g][2t]    c[1] C[g][2t + 1]    c[2] C[g + 8][2t]    c[3] C[g + 8][2t + 1]
 */
#ifndef GAZE_CUDA_TILE_MMA_CUH
#define GAZE_CUDA_TILE_MMA_CUH

#include <stdint.h>

#ifdef __CUDACC__
static __device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4],
                                                const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
static inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    emulated_mma_bf16(c, a, b);
}
#endif

#endif
