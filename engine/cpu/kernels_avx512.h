/* kernels_avx512.h - loads, widening, sums over lanes and exp on AVX-512. Private to
 * kernels*_avx512.c. */
#ifndef GAZE_CPU_KERNELS_AVX512_H
#define GAZE_CPU_KERNELS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

/* The first n elements; masked loads do not touch what lies behind them. */
static inline __mmask16 part16(size_t n)
{
    return (__mmask16)((1u << n) - 1u);
}
static inline __mmask32 part32(size_t n)
{
    return (__mmask32)((1ull << n) - 1u);
}
static inline __mmask64 part64(size_t n)
{
    return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1u;
}

static inline __m512 v_f32(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline __m512 v_f32_part(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps(part16(n), p);
}
static inline __m512 widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline __m512 v_bf16(const uint16_t *p)
{
    return widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline __m512 v_bf16_part(const uint16_t *p, uint32_t n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(part16(n), p));
}
static inline __m512 v_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline __m512 v_f16_part(const uint16_t *p, uint32_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(part16(n), p));
}
/* As e4m3_value(): moves the exponent field, then multiplies by 2^120, which is right for denormals
 * too. */
static inline __m512 widen_fp8(__m128i codes)
{
    __m512i c = _mm512_cvtepu8_epi32(codes);
    __m512i mag = _mm512_and_si512(c, _mm512_set1_epi32(0x7F));
    __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(c, mag), 24);
    __m512 v =
        _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(mag, 20)), _mm512_set1_ps(0x1p120f));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(mag, _mm512_set1_epi32(0x7F));
    __m512i bits =
        _mm512_mask_mov_epi32(_mm512_castps_si512(v), nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
}
static inline __m512 v_fp8(const uint8_t *p)
{
    return widen_fp8(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline __m512 v_fp8_part(const uint8_t *p, uint32_t n)
{
    return widen_fp8(_mm_maskz_loadu_epi8(part16(n), p));
}

/* Sums over lanes: i + (i ^ 8), then ^ 4, ^ 2, ^ 1. One tree for one sum, for four and for sixteen.
 */

/* [a a b b] -> a in lanes 0-7, b in lanes 8-15 */
static inline __m512 fold8(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}
/* ab, cd of fold8 -> a, b, c, d in four lanes each */
static inline __m512 fold4(__m512 ab, __m512 cd)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
}
static inline float lanes_sum(__m512 a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline __m128 lanes_sum4(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 s = fold4(fold8(a, b), fold8(c, d));
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, 0x4E));
    s = _mm512_add_ps(s, _mm512_shuffle_ps(s, s, 0xB1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, s));
}
/* Lane 4 q + r of the result is the sum of s[r][q]: rows of four come out beside each other. */
static inline __m512 lanes_sum16(__m512 s[4][4])
{
    __m512 f[4];
    for (int r = 0; r < 4; r++)
        f[r] = fold4(fold8(s[r][0], s[r][1]), fold8(s[r][2], s[r][3]));
    __m512 f02 =
        _mm512_add_ps(_mm512_shuffle_ps(f[0], f[1], 0x44), _mm512_shuffle_ps(f[0], f[1], 0xEE));
    __m512 f13 =
        _mm512_add_ps(_mm512_shuffle_ps(f[2], f[3], 0x44), _mm512_shuffle_ps(f[2], f[3], 0xEE));
    return _mm512_add_ps(_mm512_shuffle_ps(f02, f13, 0x88), _mm512_shuffle_ps(f02, f13, 0xDD));
}

/* exp within about one unit in the last place; x above 88.7 gives infinity, NaN stays NaN. */
static inline __m512 v_exp(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(0x1.a01a02p-13f); /* 1/7!, 1/6!, ... */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.6c16c2p-10f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.111112p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* 64 codes -> bf16 in natural order. Widened is exact. Two 128-entry tables give the high and the
 * low byte of a magnitude (the permute ignores the sign bit, which the high byte then takes over).
 */
struct fp8_tables {
    __m512i high[2], low[2], order, sign;
};
extern const uint8_t fp8_high_bytes[128], fp8_low_bytes[128];
static inline struct fp8_tables fp8_tables_load(void)
{
    return (struct fp8_tables){
        {_mm512_loadu_si512(fp8_high_bytes), _mm512_loadu_si512(fp8_high_bytes + 64)},
        {_mm512_loadu_si512(fp8_low_bytes), _mm512_loadu_si512(fp8_low_bytes + 64)},
        _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3,
                          7), /* so that unpacking 128-bit lanes restores the order */
        _mm512_set1_epi8((char)0x80)};
}
static inline void fp8_to_bf16x64(const struct fp8_tables *t, __m512i codes, __m512i *first,
                                  __m512i *second)
{
    codes = _mm512_permutexvar_epi64(t->order, codes);
    __m512i low = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    __m512i high = _mm512_permutex2var_epi8(t->high[0], codes, t->high[1]);
    high = _mm512_ternarylogic_epi64(high, codes, t->sign, 0xF8); /* high | (codes & sign) */
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
}

#endif
