/* kernels_avx2.h - loads, widening, sums over lanes and exp on AVX2. Private to kernels*_avx2.c. */
#ifndef GAZE_CPU_KERNELS_AVX2_H
#define GAZE_CPU_KERNELS_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* The first n < 8 elements; what lies behind them is not read. */
static inline __m256i part_mask(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m128i part_u16(const uint16_t *p, uint32_t n)
{
    uint16_t t[8] = {0};
    memcpy(t, p, n * sizeof *p);
    return _mm_loadu_si128((const __m128i *)(const void *)t);
}

static inline __m256 v_f32(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline __m256 v_f32_part(const float *p, uint32_t n)
{
    return _mm256_maskload_ps(p, part_mask(n));
}
static inline __m256 widen_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline __m256 v_bf16(const uint16_t *p)
{
    return widen_bf16(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline __m256 v_bf16_part(const uint16_t *p, uint32_t n)
{
    return widen_bf16(part_u16(p, n));
}
static inline __m256 v_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline __m256 v_f16_part(const uint16_t *p, uint32_t n)
{
    return _mm256_cvtph_ps(part_u16(p, n));
}
/* As e4m3_value(): moves the exponent field, then multiplies by 2^120, which is right for denormals
 * too. */
static inline __m256 widen_fp8(__m128i codes)
{
    __m256i c = _mm256_cvtepu8_epi32(codes);
    __m256i mag = _mm256_and_si256(c, _mm256_set1_epi32(0x7F));
    __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(c, mag), 24);
    __m256 v =
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(mag, 20)), _mm256_set1_ps(0x1p120f));
    __m256i nan = _mm256_cmpeq_epi32(mag, _mm256_set1_epi32(0x7F));
    nan = _mm256_and_si256(nan, _mm256_set1_epi32(0x7FC00000));
    return _mm256_or_ps(v, _mm256_castsi256_ps(_mm256_or_si256(sign, nan)));
}
static inline __m256 v_fp8(const uint8_t *p)
{
    return widen_fp8(_mm_loadl_epi64((const __m128i *)(const void *)p));
}
static inline __m256 v_fp8_part(const uint8_t *p, uint32_t n)
{
    uint8_t t[8] = {0};
    memcpy(t, p, n);
    return v_fp8(t);
}

/* Lanes i + (i ^ 4), then ^ 2, then ^ 1: one tree for one sum and for four at a time. */
static inline __m128 lanes_fold(__m256 a)
{
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
static inline float lanes_sum(__m256 a)
{
    __m128 s = lanes_fold(a);
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline __m128 lanes_sum4(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m128 sa = lanes_fold(a), sb = lanes_fold(b), sc = lanes_fold(c), sd = lanes_fold(d);
    __m128 ab = _mm_add_ps(_mm_movelh_ps(sa, sb), _mm_movehl_ps(sb, sa));
    __m128 cd = _mm_add_ps(_mm_movelh_ps(sc, sd), _mm_movehl_ps(sd, sc));
    return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD));
}

/* exp within about one unit in the last place; x above 88.7 gives infinity, NaN stays NaN. */
static inline __m256 v_exp(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
    x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(0x1.a01a02p-13f); /* 1/7!, 1/6!, ... */
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.6c16c2p-10f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.111112p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555556p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555556p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    /* 2^n in two factors, since n may lie outside a float's exponents */
    __m256i e = _mm256_cvtps_epi32(n), e1 = _mm256_srai_epi32(e, 1), e2 = _mm256_sub_epi32(e, e1);
    __m256i bias = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e1, bias), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e2, bias), 23)));
}

#endif
