/* kernels_gemm_portable.c - products in plain C: four lanes of the compiler's own
 * vector type, which every processor can do. */
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

enum { V_LANES = 4 };
#define V_TILE_X 2
#define V_TILE_ONE 4

typedef float V __attribute__((vector_size(16)));

static inline V v_all(float x)
{
    return (V){x, x, x, x};
}
static inline V v_zero(void)
{
    return v_all(0.0f);
}
static inline V v_fma(V a, V b, V c)
{
    return c + a * b;
}
static inline V v_f32(const float *p)
{
    return (V){p[0], p[1], p[2], p[3]};
}
static inline V v_bf16(const uint16_t *p)
{
    return (V){bf16_value(p[0]), bf16_value(p[1]), bf16_value(p[2]), bf16_value(p[3])};
}
static inline V v_f16(const uint16_t *p)
{
    return (V){f16_value(p[0]), f16_value(p[1]), f16_value(p[2]), f16_value(p[3])};
}
static inline V v_fp8(const uint8_t *p)
{
    return (V){e4m3_table[p[0]], e4m3_table[p[1]], e4m3_table[p[2]], e4m3_table[p[3]]};
}
static inline V v_f32_part(const float *p, uint32_t n)
{
    return (V){p[0], n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, 0.0f};
}
static inline V v_bf16_part(const uint16_t *p, uint32_t n)
{
    return (V){bf16_value(p[0]), n > 1 ? bf16_value(p[1]) : 0.0f, n > 2 ? bf16_value(p[2]) : 0.0f,
               0.0f};
}
static inline V v_f16_part(const uint16_t *p, uint32_t n)
{
    return (V){f16_value(p[0]), n > 1 ? f16_value(p[1]) : 0.0f, n > 2 ? f16_value(p[2]) : 0.0f,
               0.0f};
}
static inline V v_fp8_part(const uint8_t *p, uint32_t n)
{
    return (V){e4m3_table[p[0]], n > 1 ? e4m3_table[p[1]] : 0.0f, n > 2 ? e4m3_table[p[2]] : 0.0f,
               0.0f};
}
static inline void v_put1(float *y, V a, bool add)
{
    float sum = (a[0] + a[2]) + (a[1] + a[3]);
    *y = add ? *y + sum : sum;
}
static inline void v_put4(float *y, V a, V b, V c, V d, bool add)
{
    v_put1(y, a, add);
    v_put1(y + 1, b, add);
    v_put1(y + 2, c, add);
    v_put1(y + 3, d, add);
}

#include "cpu/kernels_gemm.h"

GEMM_PLAIN(gemm_f32_f32_portable, FORM_F32, FORM_F32, float, float)
GEMM_PLAIN(gemm_bf16_f32_portable, FORM_BF16, FORM_F32, uint16_t, float)
GEMM_PLAIN(gemm_f16_f32_portable, FORM_F16, FORM_F32, uint16_t, float)
GEMM_SCALED(gemm_fp8_f32_portable, FORM_F32, float)
