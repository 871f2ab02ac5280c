/* kernels_avx512.c - the AVX-512 table: conversions, small vector kernels, lightning indexer scores. */
#if defined(__x86_64__)
#include "cpu/kernels_avx512.h"
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

#include <assert.h>
#include <stdalign.h>

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
        _mm256_mask_storeu_epi16(y + i, part16(n - i), narrow_bf16(v_f32_part(x + i, (uint32_t)(n - i))));
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

/* Four accumulators: a dot product alone has no neighbours to hide the adder's latency. */
static float dot_f32(const float *a, const float *b, size_t n)
{
    __m512 s[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (size_t c = 0; c < 4; c++)
            s[c] = _mm512_fmadd_ps(v_f32(a + i + 16 * c), v_f32(b + i + 16 * c), s[c]);
    for (; i + 16 <= n; i += 16)
        s[0] = _mm512_fmadd_ps(v_f32(a + i), v_f32(b + i), s[0]);
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        s[0] = _mm512_fmadd_ps(v_f32_part(a + i, part), v_f32_part(b + i, part), s[0]);
    }
    return lanes_sum(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n)
{
    __m512 s[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (size_t c = 0; c < 4; c++)
            s[c] = _mm512_fmadd_ps(v_bf16(a + i + 16 * c), v_f32(b + i + 16 * c), s[c]);
    for (; i + 16 <= n; i += 16)
        s[0] = _mm512_fmadd_ps(v_bf16(a + i), v_f32(b + i), s[0]);
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        s[0] = _mm512_fmadd_ps(v_bf16_part(a + i, part), v_f32_part(b + i, part), s[0]);
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

static void axpy_bf16(float a, const uint16_t *x, float *y, size_t n)
{
    __m512 va = _mm512_set1_ps(a);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_fmadd_ps(va, v_bf16(x + i), v_f32(y + i)));
    if (i < n) {
        uint32_t part = (uint32_t)(n - i);
        __m512 r = _mm512_fmadd_ps(va, v_bf16_part(x + i, part), v_f32_part(y + i, part));
        _mm512_mask_storeu_ps(y + i, part16(part), r);
    }
}

static float sum_squares(const float *x, size_t n)
{
    return dot_f32(x, x, n);
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

/* Indexer scores: tiles of 4 heads by 4 keys, whose 16 dot products leave lanes_sum16() as 4 heads
 * beside each other per key; each such lane then gathers its heads h, h + 4, ... A tile's missing heads
 * repeat the last one with weight 0, its missing keys repeat the last key and are not stored. */

static inline __m512 weights4(const float *w, uint32_t heads, uint32_t h)
{
    return _mm512_broadcast_f32x4(_mm_maskz_loadu_ps((__mmask8)(heads - h < 4 ? (1u << (heads - h)) - 1u : 15u),
                                                     w + h));
}

static inline __m512 add_heads(__m512 score, __m512 dots, __m512 w)
{
    return _mm512_fmadd_ps(_mm512_max_ps(dots, _mm512_setzero_ps()), w, score);
}

static inline __m128 scores_of4(__m512 score)
{
    score = _mm512_add_ps(score, _mm512_shuffle_ps(score, score, 0x4E));
    score = _mm512_add_ps(score, _mm512_shuffle_ps(score, score, 0xB1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, score));
}

static inline uint32_t at_most(uint32_t i, uint32_t last)
{
    return i < last ? i : last;
}

static void index_scores_f32(const float *q, const float *w, uint32_t heads, uint32_t dim, const float *key,
                             uint32_t n_keys, float *score)
{
    for (uint32_t s = 0; s < n_keys; s += 4) {
        const float *k[4];
        for (uint32_t c = 0; c < 4; c++)
            k[c] = key + (size_t)at_most(s + c, n_keys - 1) * dim;
        __m512 total = _mm512_setzero_ps();
        for (uint32_t h = 0; h < heads; h += 4) {
            __m512 dot[4][4];
            const float *head[4];
            for (uint32_t r = 0; r < 4; r++) {
                head[r] = q + (size_t)at_most(h + r, heads - 1) * dim;
                for (uint32_t c = 0; c < 4; c++)
                    dot[r][c] = _mm512_setzero_ps();
            }
            for (uint32_t d = 0; d < dim; d += 16) {
                __mmask16 part = dim - d < 16 ? part16(dim - d) : (__mmask16)0xFFFF;
                __m512 kd[4];
                for (uint32_t c = 0; c < 4; c++)
                    kd[c] = _mm512_maskz_loadu_ps(part, k[c] + d);
                for (uint32_t r = 0; r < 4; r++) {
                    __m512 qd = _mm512_maskz_loadu_ps(part, head[r] + d);
                    for (uint32_t c = 0; c < 4; c++)
                        dot[r][c] = _mm512_fmadd_ps(qd, kd[c], dot[r][c]);
                }
            }
            total = add_heads(total, lanes_sum16(dot), weights4(w, heads, h));
        }
        _mm_mask_storeu_ps(score + s, (__mmask8)(n_keys - s < 4 ? (1u << (n_keys - s)) - 1u : 15u),
                           scores_of4(total));
    }
}

static void index_scores_fp8(const uint16_t *q, const float *w, uint32_t heads, uint32_t dim,
                             const uint8_t *key, const float *key_scale, uint32_t n_keys, float *score)
{
    alignas(64) uint16_t wide[4][KERNELS_MAX_INDEX_DIM];
    assert(dim <= KERNELS_MAX_INDEX_DIM);
    const struct fp8_tables t = fp8_tables_load();
    for (uint32_t s = 0; s < n_keys; s += 4) {
        for (uint32_t c = 0; c < 4; c++) {
            const uint8_t *k = key + (size_t)at_most(s + c, n_keys - 1) * dim;
            for (uint32_t d = 0; d < dim; d += 64) {
                __m512i a, b;
                fp8_to_bf16x64(&t, _mm512_maskz_loadu_epi8(part64(dim - d), k + d), &a, &b);
                _mm512_store_si512(wide[c] + d, a);
                _mm512_store_si512(wide[c] + d + 32, b);
            }
        }
        __m512 total = _mm512_setzero_ps();
        for (uint32_t h = 0; h < heads; h += 4) {
            __m512 dot[4][4];
            const uint16_t *head[4];
            for (uint32_t r = 0; r < 4; r++) {
                head[r] = q + (size_t)at_most(h + r, heads - 1) * dim;
                for (uint32_t c = 0; c < 4; c++)
                    dot[r][c] = _mm512_setzero_ps();
            }
            for (uint32_t d = 0; d < dim; d += 32) {
                __mmask32 part = dim - d < 32 ? part32(dim - d) : ~(__mmask32)0;
                for (uint32_t r = 0; r < 4; r++) {
                    __m512bh qd = (__m512bh)_mm512_maskz_loadu_epi16(part, head[r] + d);
                    for (uint32_t c = 0; c < 4; c++)
                        dot[r][c] = _mm512_dpbf16_ps(dot[r][c], qd,
                                                     (__m512bh)_mm512_load_si512(wide[c] + d));
                }
            }
            total = add_heads(total, lanes_sum16(dot), weights4(w, heads, h));
        }
        __mmask8 part = (__mmask8)(n_keys - s < 4 ? (1u << (n_keys - s)) - 1u : 15u);
        __m128 scale = _mm_maskz_loadu_ps(part, key_scale + s);
        _mm_mask_storeu_ps(score + s, part, _mm_mul_ps(scores_of4(total), scale));
    }
}

const struct kernels kernels_avx512 = {
    .name = "avx512",
    GEMM_ENTRIES(avx512),
    .f32_to_bf16 = f32_to_bf16,
    .bf16_to_f32 = bf16_to_f32,
    .fp8_to_f32 = fp8_to_f32,
    .dot_f32 = dot_f32,
    .dot_bf16_f32 = dot_bf16_f32,
    .axpy_f32 = axpy_f32,
    .axpy_bf16 = axpy_bf16,
    .sum_squares = sum_squares,
    .silu_mul = silu_mul,
    .softmax_exp = softmax_exp,
    .max_f32 = max_f32,
    .index_scores_f32 = index_scores_f32,
    .index_scores_fp8 = index_scores_fp8,
};
#endif
