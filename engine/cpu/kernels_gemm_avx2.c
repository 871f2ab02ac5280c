/* kernels_gemm_avx2.c - products on AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include "cpu/kernels_avx2.h"
#include "cpu/kernels_sets.h"

enum { V_LANES = 8 };
#define V_TILE_X 2
#define V_TILE_ONE 8
#define V __m256
#define v_zero _mm256_setzero_ps
#define v_fma _mm256_fmadd_ps
#define v_all _mm256_set1_ps

static inline void v_put1(float *y, __m256 a, bool add)
{
    float sum = lanes_sum(a);
    *y = add ? *y + sum : sum;
}
static inline void v_put4(float *y, __m256 a, __m256 b, __m256 c, __m256 d, bool add)
{
    __m128 sum = lanes_sum4(a, b, c, d);
    _mm_storeu_ps(y, add ? _mm_add_ps(_mm_loadu_ps(y), sum) : sum);
}

#include "cpu/kernels_gemm.h"

GEMM_PLAIN(gemm_f32_f32_avx2, FORM_F32, FORM_F32, float, float)
GEMM_PLAIN(gemm_bf16_f32_avx2, FORM_BF16, FORM_F32, uint16_t, float)
GEMM_PLAIN(gemm_f16_f32_avx2, FORM_F16, FORM_F32, uint16_t, float)
GEMM_SCALED(gemm_fp8_f32_avx2, FORM_F32, float)
#endif
