/* kernels_avx512.c - the AVX-512 table: conversions and small vector kernels. */
#if defined(__x86_64__)
#include "cpu/kernels_avx512.h"
#include "cpu/kernels_sets.h"

#include <math.h>

/* Nearest even, by integers: vcvtneps2bf16 would flush denormals. NaN stays NaN. */
static inline __m256i narrow_bf16(__m512 x)
{
    __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
    __m512i r = _mm512_srli_epi32(sum, 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
}

static void f32_to_bf16(const float *x, uint16_t *y, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(y + i), narrow_bf16(v_f32(x + i)));
    if (i < n)
        _mm256_mask_storeu_epi16(y + i, part16(n - i),
                                 narrow_bf16(v_f32_part(x + i, (uint32_t)(n - i))));
}

static inline void split_part(__m512 x, __m256i *hi, __m256i *lo)
{
    __m256i h = narrow_bf16(x);
    __m512 rest = _mm512_sub_ps(x, widen_bf16(h)); /* exact; infinite or NaN where hi is */
    __mmask16 finite =
        _mm512_cmp_ps_mask(_mm512_abs_ps(rest), _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
    *hi = h;
    *lo = narrow_bf16(_mm512_maskz_mov_ps(finite, rest));
}

static void split_bf16(const float *x, uint16_t *hi, uint16_t *lo, size_t n)
{
    __m256i h, l;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        split_part(v_f32(x + i), &h, &l);
        _mm256_storeu_si256((__m256i *)(void *)(hi + i), h);
        _mm256_storeu_si256((__m256i *)(void *)(lo + i), l);
    }
    if (i < n) {
        split_part(v_f32_part(x + i, (uint32_t)(n - i)), &h, &l);
        _mm256_mask_storeu_epi16(hi + i, part16(n - i), h);
        _mm256_mask_storeu_epi16(lo + i, part16(n - i), l);
    }
}

static void bf16_to_f32(const uint16_t *x, float *y, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, v_bf16(x + i));
    if (i < n)
        _mm512_mask_storeu_ps(y + i, part16(n - i), v_bf16_part(x + i, (uint32_t)(n - i)));
}

static void fp8_to_f32(const uint8_t *x, float scale, float *y, size_t n)
{
    __m512 s = _mm512_set1_ps(scale);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_mul_ps(v_fp8(x + i), s));
    if (i < n)
        _mm512_mask_storeu_ps(y + i, part16(n - i),
                              _mm512_mul_ps(v_fp8_part(x + i, (uint32_t)(n - i)), s));
}

/* Four accumulators: a sum alone has no neighbours to hide the adder's latency. */
static float sum_squares(const float *x, size_t n)
{
    __m512 s[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (size_t c = 0; c < 4; c++)
            s[c] = _mm512_fmadd_ps(v_f32(x + i + 16 * c), v_f32(x + i + 16 * c), s[c]);
    for (; i + 16 <= n; i += 16)
        s[0] = _mm512_fmadd_ps(v_f32(x + i), v_f32(x + i), s[0]);
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        s[0] = _mm512_fmadd_ps(v_f32_part(x + i, part), v_f32_part(x + i, part), s[0]);
    }
    return lanes_sum(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

static void axpy_f32(float a, const float *x, float *y, size_t n)
{
    __m512 va = _mm512_set1_ps(a);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_fmadd_ps(va, v_f32(x + i), v_f32(y + i)));
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        __m512 r = _mm512_fmadd_ps(va, v_f32_part(x + i, part), v_f32_part(y + i, part));
        _mm512_mask_storeu_ps(y + i, part16(part), r);
    }
}

static inline __m512 silu_mul16(__m512 g, __m512 u)
{
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 e = v_exp(_mm512_sub_ps(_mm512_setzero_ps(), g));
    return _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u);
}

static void silu_mul(const float *gate, const float *up, float *y, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, silu_mul16(v_f32(gate + i), v_f32(up + i)));
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        __m512 r = silu_mul16(v_f32_part(gate + i, part), v_f32_part(up + i, part));
        _mm512_mask_storeu_ps(y + i, part16(part), r);
    }
}

static float softmax_exp(float *x, float max, size_t n)
{
    __m512 m = _mm512_set1_ps(max), sum = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512 e = v_exp(_mm512_sub_ps(v_f32(x + i), m));
        _mm512_storeu_ps(x + i, e);
        sum = _mm512_add_ps(sum, e);
    }
    if (i < n) {
        __mmask16 part = part16(n - i);
        __m512 e = v_exp(_mm512_sub_ps(v_f32_part(x + i, (uint32_t)(n - i)), m));
        _mm512_mask_storeu_ps(x + i, part, e);
        sum = _mm512_mask_add_ps(sum, part, sum, e);
    }
    return lanes_sum(sum);
}

static float max_f32(const float *x, size_t n)
{
    __m512 m = _mm512_set1_ps(x[0]);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        m = _mm512_max_ps(m, v_f32(x + i));
    if (i < n)
        m = _mm512_mask_max_ps(m, part16(n - i), m, v_f32_part(x + i, (uint32_t)(n - i)));
    return _mm512_reduce_max_ps(m);
}

const struct kernels kernels_avx512 = {
    .name = "avx512",
    GEMM_ENTRIES(avx512),
    .gemm_bf16_split = gemm_bf16_split_avx512,
    .gemm_fp8_split = gemm_fp8_split_avx512,
    .f32_to_bf16 = f32_to_bf16,
    .split_bf16 = split_bf16,
    .bf16_to_f32 = bf16_to_f32,
    .fp8_to_f32 = fp8_to_f32,
    .axpy_f32 = axpy_f32,
    .sum_squares = sum_squares,
    .silu_mul = silu_mul,
    .softmax_exp = softmax_exp,
    .max_f32 = max_f32,
};
#endif
