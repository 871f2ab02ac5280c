/* dsa_avx512.c - dsa_loops.h for AVX-512 with VBMI and BF16; the Makefile gives this file the flags.
 *
 * The FP8 indexer here works on bf16 pairs, which vdpbf16ps multiplies two at a time: e4m3 values are
 * exact in bf16. A tile is [dim / 2][64] pairs. Widening looks both bytes of a bf16 up by the code's
 * low seven bits (vpermi2b holds 128 entries), and takes the sign from the code.
 */
#if defined(__AVX512F__) && defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#include <immintrin.h>

#define FMA16(a, b, c) (vec16) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define DSA_OWN_INDEX
#define DSA_OWN_KEEP
static void index_query(const float *q, unsigned heads, unsigned dim, void *out);
static void index_tile(const unsigned char *key, unsigned n, unsigned dim, void *kt);
static void index_scores(const void *q, const float *w, unsigned heads, unsigned dim,
                         const void *kt, const float *key_scale, float *score);
static unsigned keep(const float *x, unsigned n, float bound, float *value, unsigned *index);
#include "cpu/dsa_body.h"

/* Within each four dims the pairs are (0, 2) and (1, 3): what falls out of a dword by shifts. */
static inline uint32_t pair_dim(uint32_t i, uint32_t pair)
{
    return i * 4 + pair;
}

static void index_query(const float *q, uint32_t heads, uint32_t dim, void *out)
{
    uint16_t *p = out;
    for (uint32_t h = 0; h < heads; h++, q += dim)
        for (uint32_t i = 0; i < dim / 4; i++)
            for (uint32_t pair = 0; pair < 2; pair++) {
                *p++ = bf16_round(q[pair_dim(i, pair)]);
                *p++ = bf16_round(q[pair_dim(i, pair) + 2]);
            }
}

struct widen {
    __m512i low[2], high[2]; /* bytes of the bf16 of codes 0-63 and 64-127 */
};

static struct widen widen_tables(void)
{
    static const struct {
        _Alignas(64) uint8_t low[128], high[128];
    } t = {
#define E4M3_NORMAL(e)                                                                             \
    (((e) + 120) << 7 & 0xFF), (((e) + 120) << 7 & 0xFF) + 16, (((e) + 120) << 7 & 0xFF) + 32,     \
        (((e) + 120) << 7 & 0xFF) + 48, (((e) + 120) << 7 & 0xFF) + 64,                            \
        (((e) + 120) << 7 & 0xFF) + 80, (((e) + 120) << 7 & 0xFF) + 96,                            \
        (((e) + 120) << 7 & 0xFF) + 112
#define E4M3_HIGH(e)                                                                               \
    (((e) + 120) >> 1), (((e) + 120) >> 1), (((e) + 120) >> 1), (((e) + 120) >> 1),                \
        (((e) + 120) >> 1), (((e) + 120) >> 1), (((e) + 120) >> 1), (((e) + 120) >> 1)
        /* multiples of 2^-9: 0 1 2 3 4 5 6 7 are bf16 0 3B00 3B80 3BC0 3C00 3C20 3C40 3C60 */
        {0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60,
         E4M3_NORMAL(1), E4M3_NORMAL(2), E4M3_NORMAL(3), E4M3_NORMAL(4), E4M3_NORMAL(5),
         E4M3_NORMAL(6), E4M3_NORMAL(7), E4M3_NORMAL(8), E4M3_NORMAL(9), E4M3_NORMAL(10),
         E4M3_NORMAL(11), E4M3_NORMAL(12), E4M3_NORMAL(13), E4M3_NORMAL(14), 128, 144, 160, 176,
         192, 208, 224, 0xC0},
        {0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C,
         E4M3_HIGH(1), E4M3_HIGH(2), E4M3_HIGH(3), E4M3_HIGH(4), E4M3_HIGH(5), E4M3_HIGH(6),
         E4M3_HIGH(7), E4M3_HIGH(8), E4M3_HIGH(9), E4M3_HIGH(10), E4M3_HIGH(11), E4M3_HIGH(12),
         E4M3_HIGH(13), E4M3_HIGH(14), 67, 67, 67, 67, 67, 67, 67, 0x7F}};
    struct widen w;
    for (int i = 0; i < 2; i++) {
        w.low[i] = _mm512_load_si512(t.low + i * 64);
        w.high[i] = _mm512_load_si512(t.high + i * 64);
    }
    return w;
}

/* x[i] lane j = dword j of row i  ->  lane i of dword j: sixteen rows become sixteen columns. */
static inline void transpose_dwords(__m512i x[16])
{
    __m512i y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    /* Now x[4 g + c] holds column 4 b + c of rows 4 g .. 4 g + 3 in its 128-bit block b. */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
        __m512i b = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xDD);
        __m512i e = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
        __m512i f = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xDD);
        y[c] = _mm512_shuffle_i32x4(a, e, 0x88);
        y[8 + c] = _mm512_shuffle_i32x4(a, e, 0xDD);
        y[4 + c] = _mm512_shuffle_i32x4(b, f, 0x88);
        y[12 + c] = _mm512_shuffle_i32x4(b, f, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        x[i] = y[i];
}

static void index_tile(const uint8_t *key, uint32_t n, uint32_t dim, void *kt)
{
    const struct widen w = widen_tables();
    uint32_t *t = kt;
    for (uint32_t c = 0; c < dim; c += 64) {
        uint32_t bytes = dim - c < 64 ? dim - c : 64;
        __mmask64 have = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
        for (uint32_t g = 0; g < TILE; g += 16) {
            __m512i x[16];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                x[i] = _mm512_maskz_loadu_epi8(g + i < n ? have : 0,
                                               key + (size_t)(g + i < n ? g + i : 0) * dim + c);
            transpose_dwords(x);
            for (uint32_t i = 0; i < bytes / 4; i++) {
                __m512i low = _mm512_permutex2var_epi8(w.low[0], x[i], w.low[1]);
                __m512i high = _mm512_permutex2var_epi8(w.high[0], x[i], w.high[1]);
                /* high | code & 0x80 */
                high = _mm512_ternarylogic_epi32(high, x[i], _mm512_set1_epi8((char)0x80), 0xF8);
                /* 0x00FF of each word from the low byte, the rest from the high one */
                __m512i even = _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), low,
                                                         _mm512_set1_epi16(0xFF), 0xF8);
                __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high,
                                                        _mm512_set1_epi16((short)0xFF00), 0xF8);
                uint32_t *row = t + (size_t)(c / 4 + i) * 2 * TILE + g;
                _mm512_storeu_si512(row, even);
                _mm512_storeu_si512(row + TILE, odd);
            }
        }
    }
}

static inline void dp_heads(const uint32_t *q, uint32_t n_pairs, const uint32_t *kt, __m512 acc[4][4],
                            int n_heads)
{
    for (uint32_t p = 0; p < n_pairs; p++) {
        const uint32_t *row = kt + (size_t)p * TILE;
        __m512i k[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            k[j] = _mm512_loadu_si512(row + j * 16);
#pragma GCC unroll 4
        for (int h = 0; h < n_heads; h++) {
            __m512i b = _mm512_set1_epi32((int)q[(size_t)h * n_pairs + p]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                acc[h][j] = _mm512_dpbf16_ps(acc[h][j], (__m512bh)k[j], (__m512bh)b);
        }
    }
}

static void index_scores(const void *q, const float *w, uint32_t heads, uint32_t dim, const void *kt,
                         const float *key_scale, float *score)
{
    const uint32_t *query = q;
    uint32_t n_pairs = dim / 2, h = 0;
    __m512 sum[4], zero = _mm512_setzero_ps();
    for (int j = 0; j < 4; j++)
        sum[j] = zero;
    for (; h + 4 <= heads; h += 4) {
        __m512 acc[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                acc[i][j] = zero;
        dp_heads(query + (size_t)h * n_pairs, n_pairs, kt, acc, 4);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[j] = _mm512_fmadd_ps(_mm512_set1_ps(w[h + (uint32_t)i]),
                                         _mm512_max_ps(zero, acc[i][j]), sum[j]);
    }
    for (; h < heads; h++) {
        __m512 acc[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            acc[0][j] = zero;
        dp_heads(query + (size_t)h * n_pairs, n_pairs, kt, acc, 1);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sum[j] = _mm512_fmadd_ps(_mm512_set1_ps(w[h]), _mm512_max_ps(zero, acc[0][j]), sum[j]);
    }
    for (int j = 0; j < 4; j++)
        _mm512_storeu_ps(score + j * 16, _mm512_mul_ps(sum[j], _mm512_loadu_ps(key_scale + j * 16)));
}

/* Most vectors hold nothing to keep. Compressing into a register first: to memory it is microcode. */
static uint32_t keep(const float *x, uint32_t n, float bound, float *value, uint32_t *index)
{
    const __m512 b = _mm512_set1_ps(bound);
    const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 have = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xFFFF;
        __m512 v = _mm512_maskz_loadu_ps(have, x + i);
        __mmask16 hit = _mm512_mask_cmp_ps_mask(have, v, b, _CMP_GE_OQ);
        if (hit) {
            __m512i at = _mm512_add_epi32(_mm512_set1_epi32((int)i), step);
            _mm512_storeu_ps(value + m, _mm512_maskz_compress_ps(hit, v));
            _mm512_storeu_si512(index + m, _mm512_maskz_compress_epi32(hit, at));
            m += (uint32_t)__builtin_popcount(hit);
        }
    }
    return m;
}

static const struct dsa_loops table = DSA_LOOPS_TABLE;

const struct dsa_loops *dsa_loops_avx512(void)
{
    return &table;
}
#else
#include "cpu/dsa_loops.h"

const struct dsa_loops *dsa_loops_avx512(void)
{
    return NULL;
}
#endif
