/* kernels_avx2.c - the AVX2 table: conversions and small vector kernels. */
#if defined(__x86_64__)
#include "cpu/kernels_avx2.h"
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

static void f32_to_bf16(const float *x, uint16_t *y, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = v_f32(x + i);
        __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16);
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i sum = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
        __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        __m256i r = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, nan);
        __m128i packed =
            _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
        _mm_storeu_si128((__m128i *)(void *)(y + i), packed);
    }
    for (; i < n; i++)
        y[i] = bf16_round(x[i]);
}

static void bf16_to_f32(const uint16_t *x, float *y, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, v_bf16(x + i));
    for (; i < n; i++)
        y[i] = bf16_value(x[i]);
}

static void fp8_to_f32(const uint8_t *x, float scale, float *y, size_t n)
{
    __m256 s = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v_fp8(x + i), s));
    for (; i < n; i++)
        y[i] = e4m3_table[x[i]] * scale;
}

/* Four accumulators: a sum alone has no neighbours to hide the adder's latency. */
static float sum_squares(const float *x, size_t n)
{
    __m256 s[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                   _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t c = 0; c < 4; c++)
            s[c] = _mm256_fmadd_ps(v_f32(x + i + 8 * c), v_f32(x + i + 8 * c), s[c]);
    for (; i + 8 <= n; i += 8)
        s[0] = _mm256_fmadd_ps(v_f32(x + i), v_f32(x + i), s[0]);
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        s[0] = _mm256_fmadd_ps(v_f32_part(x + i, part), v_f32_part(x + i, part), s[0]);
    }
    return lanes_sum(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
}

static void axpy_f32(float a, const float *x, float *y, size_t n)
{
    __m256 va = _mm256_set1_ps(a);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(va, v_f32(x + i), v_f32(y + i)));
    for (; i < n; i++)
        y[i] = __builtin_fmaf(a, x[i], y[i]);
}

static inline __m256 silu_mul8(__m256 g, __m256 u)
{
    __m256 e = v_exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), u);
}

static void silu_mul(const float *gate, const float *up, float *y, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, silu_mul8(v_f32(gate + i), v_f32(up + i)));
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        __m256 r = silu_mul8(v_f32_part(gate + i, part), v_f32_part(up + i, part));
        _mm256_maskstore_ps(y + i, part_mask(part), r);
    }
}

static float softmax_exp(float *x, float max, size_t n)
{
    __m256 m = _mm256_set1_ps(max), sum = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 e = v_exp(_mm256_sub_ps(v_f32(x + i), m));
        _mm256_storeu_ps(x + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    if (i < n) {
        __m256i part = part_mask((uint32_t)(n - i));
        __m256 e = v_exp(_mm256_sub_ps(_mm256_maskload_ps(x + i, part), m));
        _mm256_maskstore_ps(x + i, part, e);
        sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(part)));
    }
    return lanes_sum(sum);
}

static float max_f32(const float *x, size_t n)
{
    __m256 m = _mm256_set1_ps(x[0]);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        m = _mm256_max_ps(m, v_f32(x + i));
    float lane[8], best = x[0];
    _mm256_storeu_ps(lane, m);
    for (int l = 0; l < 8; l++)
        best = lane[l] > best ? lane[l] : best;
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

const struct kernels kernels_avx2 = {
    .name = "avx2",
    GEMM_ENTRIES(avx2),
    .f32_to_bf16 = f32_to_bf16,
    .bf16_to_f32 = bf16_to_f32,
    .fp8_to_f32 = fp8_to_f32,
    .axpy_f32 = axpy_f32,
    .sum_squares = sum_squares,
    .silu_mul = silu_mul,
    .softmax_exp = softmax_exp,
    .max_f32 = max_f32,
};
#endif
