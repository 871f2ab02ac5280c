/* kernels_gemm_portable.c - products in plain C: eight lanes that any compiler can turn into vectors. */
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

enum { V_LANES = 8 };
#define V_TILE_X 2

typedef struct {
    float lane[V_LANES];
} V;

#define EACH_LANE for (int l = 0; l < V_LANES; l++)

static inline V v_all(float x)
{
    V v;
    EACH_LANE v.lane[l] = x;
    return v;
}
static inline V v_zero(void)
{
    return v_all(0.0f);
}
static inline V v_fma(V a, V b, V c)
{
    EACH_LANE c.lane[l] += a.lane[l] * b.lane[l];
    return c;
}
static inline V v_f32_part(const float *p, uint32_t n)
{
    V v = v_zero();
    for (uint32_t l = 0; l < n; l++)
        v.lane[l] = p[l];
    return v;
}
static inline V v_bf16_part(const uint16_t *p, uint32_t n)
{
    V v = v_zero();
    for (uint32_t l = 0; l < n; l++)
        v.lane[l] = bf16_value(p[l]);
    return v;
}
static inline V v_f16_part(const uint16_t *p, uint32_t n)
{
    V v = v_zero();
    for (uint32_t l = 0; l < n; l++)
        v.lane[l] = f16_value(p[l]);
    return v;
}
static inline V v_fp8_part(const uint8_t *p, uint32_t n)
{
    V v = v_zero();
    for (uint32_t l = 0; l < n; l++)
        v.lane[l] = e4m3_table[p[l]];
    return v;
}
static inline V v_f32(const float *p)
{
    return v_f32_part(p, V_LANES);
}
static inline V v_bf16(const uint16_t *p)
{
    return v_bf16_part(p, V_LANES);
}
static inline V v_f16(const uint16_t *p)
{
    return v_f16_part(p, V_LANES);
}
static inline V v_fp8(const uint8_t *p)
{
    return v_fp8_part(p, V_LANES);
}
static inline void v_put1(float *y, V a, bool add)
{
    const float *s = a.lane;
    float sum = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
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
GEMM_PLAIN(gemm_bf16_bf16_portable, FORM_BF16, FORM_BF16, uint16_t, uint16_t)
GEMM_SCALED(gemm_fp8_f32_portable, FORM_F32, float)
GEMM_SCALED(gemm_fp8_bf16_portable, FORM_BF16, uint16_t)
