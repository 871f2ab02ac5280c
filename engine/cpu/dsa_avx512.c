/* dsa_avx512.c - dsa_loops.h for AVX-512 with VBMI and BF16; the Makefile gives this file the
 * flags.
 *
 * The FP8 indexer here works on bf16 pairs, which vdpbf16ps multiplies two at a time: e4m3 values
 * are exact in bf16. A tile is [dim / 2][64] pairs. Widening looks both bytes of a bf16 up by the
 * code's low seven bits (vpermi2b holds 128 entries), and takes the sign from the code.
 */
#if defined(__AVX512F__) && defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#include <immintrin.h>

#define FMA16(a, b, c) (vec16) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define DSA_OWN_INDEX
#define DSA_OWN_KEEP
#define DSA_OWN_TRANSPOSE
static void transpose(const float *x, unsigned long ldx, unsigned n_pos, unsigned dim, float *kt);
static void index_query(const float *q, unsigned heads, unsigned dim, void *out);
static void index_tile(const unsigned char *key, unsigned n, unsigned dim, void *kt);
static void index_scores(const void *q, const float *w, unsigned heads, unsigned dim,
                         const void *kt, const float *key_scale, float *score);
static void index_page(const void *q, const float *w, unsigned heads, unsigned dim,
                       const unsigned char *key, unsigned n, const float *key_scale, void *kt,
                       float *score);
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
        /* clang-format off */
        /* multiples of 2^-9: 0 1 2 3 4 5 6 7 are bf16 0 3B00 3B80 3BC0 3C00 3C20 3C40 3C60 */
        {0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60,
         E4M3_NORMAL(1), E4M3_NORMAL(2), E4M3_NORMAL(3), E4M3_NORMAL(4), E4M3_NORMAL(5),
         E4M3_NORMAL(6), E4M3_NORMAL(7), E4M3_NORMAL(8), E4M3_NORMAL(9), E4M3_NORMAL(10),
         E4M3_NORMAL(11), E4M3_NORMAL(12), E4M3_NORMAL(13), E4M3_NORMAL(14),
         128, 144, 160, 176, 192, 208, 224, 0xC0}, /* the last code is NaN: 7FC0 */
        {0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C,
         E4M3_HIGH(1), E4M3_HIGH(2), E4M3_HIGH(3), E4M3_HIGH(4), E4M3_HIGH(5), E4M3_HIGH(6),
         E4M3_HIGH(7), E4M3_HIGH(8), E4M3_HIGH(9), E4M3_HIGH(10), E4M3_HIGH(11), E4M3_HIGH(12),
         E4M3_HIGH(13), E4M3_HIGH(14), 67, 67, 67, 67, 67, 67, 67, 0x7F}
        /* clang-format on */
    };
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

static void transpose(const float *x, size_t ldx, uint32_t n_pos, uint32_t dim, float *kt)
{
    for (uint32_t d = 0; d < dim; d += 16) {
        uint32_t n = dim - d < 16 ? dim - d : 16;
        __mmask16 have = (__mmask16)((1u << n) - 1);
        for (uint32_t g = 0; g < TILE; g += 16) {
            __m512i t[16];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                t[i] = _mm512_maskz_loadu_epi32((__mmask16)(g + i < n_pos ? have : 0),
                                                x + (g + i < n_pos ? g + i : 0) * ldx + d);
            transpose_dwords(t);
            float *row = kt + (size_t)d * TILE + g;
            if (n == 16) {
#pragma GCC unroll 16
                for (uint32_t i = 0; i < 16; i++)
                    _mm512_storeu_si512(row + (size_t)i * TILE, t[i]);
            } else {
                for (uint32_t i = 0; i < n; i++)
                    _mm512_storeu_si512(row + (size_t)i * TILE, t[i]);
            }
        }
    }
}

/* 16 keys, 64 dims: x[i] = dims 4 i .. 4 i + 3 of 16 keys. */
static inline void load_keys(const uint8_t *key, uint32_t g, uint32_t n, uint32_t dim, uint32_t c,
                             __m512i x[16])
{
    __mmask64 have = dim - c < 64 ? (1ull << (dim - c)) - 1 : ~0ull;
    if (g + 16 <= n && dim - c >= 64) {
#pragma GCC unroll 16
        for (uint32_t i = 0; i < 16; i++)
            x[i] = _mm512_loadu_si512(key + (size_t)(g + i) * dim + c);
    } else {
#pragma GCC unroll 16
        for (uint32_t i = 0; i < 16; i++)
            x[i] = _mm512_maskz_loadu_epi8(g + i < n ? have : 0,
                                           key + (size_t)(g + i < n ? g + i : 0) * dim + c);
    }
    transpose_dwords(x);
}

/* Codes of dims 0 to 3 become the bf16 pairs (0, 2) and (1, 3). */
static inline void widen_codes(const struct widen *w, __m512i x, __m512i *even, __m512i *odd)
{
    __m512i low = _mm512_permutex2var_epi8(w->low[0], x, w->low[1]);
    __m512i high = _mm512_permutex2var_epi8(w->high[0], x, w->high[1]);
    /* high | code & 0x80 */
    high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8((char)0x80), 0xF8);
    /* the low byte's own half of each word, the high byte for the rest */
    *even =
        _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), low, _mm512_set1_epi16(0xFF), 0xF8);
    *odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high,
                                     _mm512_set1_epi16((short)0xFF00), 0xF8);
}

static void index_tile(const uint8_t *key, uint32_t n, uint32_t dim, void *kt)
{
    const struct widen w = widen_tables();
    uint32_t *t = kt;
    for (uint32_t c = 0; c < dim; c += 64) {
        uint32_t n_dwords = dim - c < 64 ? (dim - c) / 4 : 16;
        for (uint32_t g = 0; g < TILE; g += 16) {
            __m512i x[16];
            load_keys(key, g, n, dim, c, x);
            for (uint32_t i = 0; i < n_dwords; i++) {
                __m512i even, odd;
                uint32_t *row = t + (size_t)(c / 4 + i) * 2 * TILE + g;
                widen_codes(&w, x[i], &even, &odd);
                _mm512_storeu_si512(row, even);
                _mm512_storeu_si512(row + TILE, odd);
            }
        }
    }
}

static inline __m512 dp(__m512 acc, __m512i keys, uint32_t pair)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)keys, (__m512bh)_mm512_set1_epi32((int)pair));
}

/* Adds n_heads heads' share of 32 keys' scores to sum[2]. Even and odd pairs are summed apart: two
 * chains hide the latency where one query reads its keys straight from registers (below), and a
 * row's bits must not depend on which of the two ways it went. */
static inline void score_heads(const uint32_t *q, const float *w, uint32_t n_pairs,
                               const uint32_t *kt, int n_heads, __m512 sum[2])
{
    __m512 acc[4][2][2]; /* head, keys, parity */
#pragma GCC unroll 4
    for (int h = 0; h < n_heads; h++)
        acc[h][0][0] = acc[h][0][1] = acc[h][1][0] = acc[h][1][1] = _mm512_setzero_ps();
    for (uint32_t p = 0; p < n_pairs; p += 2, kt += 2 * TILE) {
        __m512i e0 = _mm512_loadu_si512(kt), e1 = _mm512_loadu_si512(kt + 16);
        __m512i o0 = _mm512_loadu_si512(kt + TILE), o1 = _mm512_loadu_si512(kt + TILE + 16);
#pragma GCC unroll 4
        for (int h = 0; h < n_heads; h++) {
            uint32_t even = q[(size_t)h * n_pairs + p], odd = q[(size_t)h * n_pairs + p + 1];
            acc[h][0][0] = dp(acc[h][0][0], e0, even);
            acc[h][1][0] = dp(acc[h][1][0], e1, even);
            acc[h][0][1] = dp(acc[h][0][1], o0, odd);
            acc[h][1][1] = dp(acc[h][1][1], o1, odd);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < n_heads; h++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
            sum[j] = _mm512_fmadd_ps(
                _mm512_set1_ps(w[h]),
                _mm512_max_ps(_mm512_setzero_ps(), _mm512_add_ps(acc[h][j][0], acc[h][j][1])),
                sum[j]);
}

static void index_scores(const void *q, const float *w, uint32_t heads, uint32_t dim,
                         const void *kt, const float *key_scale, float *score)
{
    const uint32_t *query = q, *tile = kt;
    uint32_t n_pairs = dim / 2;
    for (uint32_t g = 0; g < TILE; g += 32) {
        uint32_t h = 0;
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (; h + 4 <= heads; h += 4)
            score_heads(query + (size_t)h * n_pairs, w + h, n_pairs, tile + g, 4, sum);
        for (; h < heads; h++)
            score_heads(query + (size_t)h * n_pairs, w + h, n_pairs, tile + g, 1, sum);
        for (uint32_t j = 0; j < 2; j++)
            _mm512_storeu_ps(score + g + j * 16,
                             _mm512_mul_ps(sum[j], _mm512_loadu_ps(key_scale + g + j * 16)));
    }
}

/* Four heads, whole pages: from the page to the sums without a tile in memory. dim is a constant
 * where this is inlined, so that addresses are constants, too. */
static inline __attribute__((always_inline)) void page_of_4_heads(const uint32_t *q, const float *w,
                                                                  uint32_t dim, const uint8_t *key,
                                                                  const float *key_scale,
                                                                  float *score)
{
    const struct widen t = widen_tables();
    const uint32_t n_pairs = dim / 2;
    for (uint32_t g = 0; g < TILE; g += 16, key += (size_t)16 * dim) {
        __m512 acc[4][2], sum = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int h = 0; h < 4; h++)
            acc[h][0] = acc[h][1] = _mm512_setzero_ps();
#pragma GCC unroll 2
        for (uint32_t c = 0; c < dim; c += 64) {
            __m512i x[16];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                x[i] = _mm512_loadu_si512(key + (size_t)i * dim + c);
            transpose_dwords(x);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++) {
                __m512i even, odd;
                widen_codes(&t, x[i], &even, &odd);
#pragma GCC unroll 4
                for (uint32_t h = 0; h < 4; h++) {
                    const uint32_t *pair = q + h * n_pairs + c / 2 + 2 * i;
                    acc[h][0] = dp(acc[h][0], even, pair[0]);
                    acc[h][1] = dp(acc[h][1], odd, pair[1]);
                }
            }
        }
#pragma GCC unroll 4
        for (int h = 0; h < 4; h++)
            sum = _mm512_fmadd_ps(
                _mm512_set1_ps(w[h]),
                _mm512_max_ps(_mm512_setzero_ps(), _mm512_add_ps(acc[h][0], acc[h][1])), sum);
        _mm512_storeu_ps(score + g, _mm512_mul_ps(sum, _mm512_loadu_ps(key_scale + g)));
    }
}

static void index_page(const void *q, const float *w, uint32_t heads, uint32_t dim,
                       const uint8_t *key, uint32_t n, const float *key_scale, void *kt,
                       float *score)
{
    if (heads == 4 && n == TILE && dim == 64) {
        page_of_4_heads(q, w, 64, key, key_scale, score);
    } else if (heads == 4 && n == TILE && dim == 128) {
        page_of_4_heads(q, w, 128, key, key_scale, score);
    } else {
        index_tile(key, n, dim, kt);
        index_scores(q, w, heads, dim, kt, key_scale, score);
    }
}

/* Most vectors hold nothing to keep. Compressing into a register first: to memory it is
 * microcode. */
static uint32_t keep(const float *x, uint32_t n, float bound, float *value, uint32_t *index)
{
    const __m512 b = _mm512_set1_ps(bound);
    const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 have = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xFFFFu);
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
