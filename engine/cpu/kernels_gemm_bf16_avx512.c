/* kernels_gemm_bf16_avx512.c - products of split rows on AVX-512 BF16: the fast precision.
 *
 * A row of x is the sum of two bf16 rows (kernels.h), so each step multiplies twice, hi first, into
 * the same sums. One bf16 alone (8 bits) would move the golden models' log-probabilities by 2e-2.
 * What vdpbf16ps flushes as denormal is below 2^-126: nothing beside a product's rounding.
 *
 * As in kernels_gemm.h a sum is one accumulator (16 lanes, each two products wide) that walks k
 * upwards, then the tree of lanes_sum, whatever the tile. Tiles: 4 rows of W by up to 6 of x; 8 by
 * 1 for a single row; 4 by up to 3 for FP8, whose sums have two accumulators each (of the block,
 * and scaled in all).
 *
 * FP8 weights become bf16 in registers where x has few rows. For many, four rows of W at a time are
 * widened once into a panel near the core, which the tiles then read like a bf16 matrix.
 */
#if defined(__x86_64__)
#include "cpu/fp8.h"
#include "cpu/kernels_avx512.h"
#include "cpu/kernels_sets.h"

#include <stdalign.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { STEP = 32, FP8_BLOCK = 128, BLOCK_STEPS = FP8_BLOCK / STEP };
enum { TILE_W = 4, TILE_X = 6, TILE_X_FP8 = 3 };
enum { X_BLOCK_BYTES = 256 << 10 }; /* rows of x kept in L2 while W passes */
enum { FETCH_BYTES = 8 << 10 };     /* W is fetched into L2 so far ahead of its use */
enum { PANEL_K = 8192 };            /* longest row that the FP8 panel holds */
enum { PANEL_MIN_ROWS = 4 };        /* of x, for the panel to be worth its stores */

struct gemm {
    const void *w;
    uint32_t j0, n_out, n_in;
    const float *scale;
    size_t scale_stride;
    const uint16_t *x;
    size_t ldx;
    uint32_t n;
    float *y;
    size_t ldy;
    bool add;
};

ALWAYS_INLINE __m512 dot_step(__m512 sum, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

ALWAYS_INLINE void put4(float *y, __m128 sum, bool add)
{
    _mm_storeu_ps(y, add ? _mm_add_ps(_mm_loadu_ps(y), sum) : sum);
}

/* Reduces and stores the nw x nx sums at y's row i, column j. */
ALWAYS_INLINE void put_tile(const struct gemm *g, uint32_t j, uint32_t i, int nw, int nx,
                            __m512 s[8][6])
{
    float *y = g->y + i * g->ldy + j;
    if (nw == 1) {
#pragma GCC unroll 6
        for (int b = 0; b < nx; b++) {
            float sum = lanes_sum(s[0][b]), *to = y + (size_t)b * g->ldy;
            *to = g->add ? *to + sum : sum;
        }
        return;
    }
    int b = 0;
    if (nw == 4 && nx >= 4) { /* sixteen at once: lane 4 q + r is W's row r, x's row q */
        __m512 t[4][4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                t[r][q] = s[r][q];
        __m512 sum = lanes_sum16(t);
        put4(y, _mm512_castps512_ps128(sum), g->add);
        put4(y + g->ldy, _mm512_extractf32x4_ps(sum, 1), g->add);
        put4(y + 2 * g->ldy, _mm512_extractf32x4_ps(sum, 2), g->add);
        put4(y + 3 * g->ldy, _mm512_extractf32x4_ps(sum, 3), g->add);
        b = 4;
    }
#pragma GCC unroll 6
    for (; b < nx; b++)
#pragma GCC unroll 2
        for (int a = 0; a + 4 <= nw; a += 4)
            put4(y + (size_t)b * g->ldy + a,
                 lanes_sum4(s[a][b], s[a + 1][b], s[a + 2][b], s[a + 3][b]), g->add);
}

ALWAYS_INLINE void clear_tile(int nw, int nx, __m512 s[8][6])
{
#pragma GCC unroll 8
    for (int a = 0; a < nw; a++)
#pragma GCC unroll 6
        for (int b = 0; b < nx; b++)
            s[a][b] = _mm512_setzero_ps();
}

/* s[a][b] += w[a] . x[b] over [k, end), bf16 rows. Fetches W `ahead` elements further on: rows of a
 * few hundred values are too short for the core to see where it should read next, and what it
 * reads ahead by itself ends with a page of 4 KiB. */
ALWAYS_INLINE void walk(int nw, int nx, const uint16_t *const w[8], const uint16_t *const x[6],
                        size_t k, size_t end, size_t lo_at, size_t ahead, __m512 s[8][6])
{
    for (; k + STEP <= end; k += STEP) {
        __m512i wk[8];
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++) {
            wk[a] = _mm512_loadu_si512(w[a] + k);
            if (ahead)
                _mm_prefetch(w[a] + k + ahead, _MM_HINT_T1);
        }
#pragma GCC unroll 6
        for (int b = 0; b < nx; b++) {
            __m512i hi = _mm512_loadu_si512(x[b] + k), lo = _mm512_loadu_si512(x[b] + lo_at + k);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
                s[a][b] = dot_step(s[a][b], wk[a], hi);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
                s[a][b] = dot_step(s[a][b], wk[a], lo);
        }
    }
    if (k < end) {
        __mmask32 part = part32(end - k);
        __m512i wk[8];
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++)
            wk[a] = _mm512_maskz_loadu_epi16(part, w[a] + k);
#pragma GCC unroll 6
        for (int b = 0; b < nx; b++) {
            __m512i hi = _mm512_maskz_loadu_epi16(part, x[b] + k);
            __m512i lo = _mm512_maskz_loadu_epi16(part, x[b] + lo_at + k);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
                s[a][b] = dot_step(dot_step(s[a][b], wk[a], hi), wk[a], lo);
        }
    }
}

/* Where a tile of rows from j on fetches: `deep` elements further on in its own rows while k is
 * below `turn`, then `next` ahead, in the rows of the next tiles. Never beyond this product's last
 * row (next is 0 there): what lies there is another thread's, and fetched twice. */
struct fetch {
    size_t turn, deep, next;
};

ALWAYS_INLINE struct fetch fetch_of(const struct gemm *g, int nw, uint32_t j, size_t element)
{
    size_t n_in = g->n_in, tile = (size_t)nw * n_in;
    struct fetch f = {0, FETCH_BYTES / (element * (size_t)nw), 0};
    size_t tiles = (f.deep + n_in - 1) / n_in;
    f.next = tiles * tile;
    if (f.deep < n_in) {
        f.turn = (n_in - f.deep) / FP8_BLOCK * FP8_BLOCK;
        f.next = f.deep + tile - n_in;
    }
    if (j + (tiles + 1) * (size_t)nw > g->n_out)
        f.next = 0;
    return f;
}

ALWAYS_INLINE void tile_bf16(int nw, int nx, const struct gemm *g, uint32_t j, uint32_t i)
{
    const uint16_t *w[8], *x[6];
    __m512 s[8][6];
#pragma GCC unroll 8
    for (int a = 0; a < nw; a++)
        w[a] = (const uint16_t *)g->w + (j + (size_t)a) * g->n_in;
#pragma GCC unroll 6
    for (int b = 0; b < nx; b++)
        x[b] = g->x + (i + (size_t)b) * g->ldx;
    clear_tile(nw, nx, s);
    if (i > 0) { /* W is near: the first of the tiles that share these rows has fetched */
        walk(nw, nx, w, x, 0, g->n_in, g->n_in, 0, s);
    } else {
        struct fetch f = fetch_of(g, nw, j, sizeof(uint16_t));
        walk(nw, nx, w, x, 0, f.turn, g->n_in, f.deep, s);
        walk(nw, nx, w, x, f.turn, g->n_in, g->n_in, f.next, s);
    }
    put_tile(g, j, i, nw, nx, s);
}

void gemm_bf16_split_avx512(const uint16_t *w, uint32_t n_out, uint32_t n_in, const uint16_t *x,
                            size_t ldx, uint32_t n, float *y, size_t ldy, bool add)
{
    const struct gemm job = {w, 0, n_out, n_in, NULL, 0, x, ldx, n, y, ldy, add}, *g = &job;
    if (n == 1) { /* eight rows of W, to have enough sums under way */
        uint32_t j = 0;
        for (; j + 8 <= n_out; j += 8)
            tile_bf16(8, 1, g, j, 0);
        for (; j + 4 <= n_out; j += 4)
            tile_bf16(4, 1, g, j, 0);
        for (; j < n_out; j++)
            tile_bf16(1, 1, g, j, 0);
        return;
    }
    size_t fit = X_BLOCK_BYTES / (4 * (size_t)n_in + 1) / TILE_X * TILE_X;
    uint32_t block = fit < 4 * TILE_X ? 4 * TILE_X : fit < n ? (uint32_t)fit : n;
    for (uint32_t i0 = 0; i0 < n; i0 += block) {
        uint32_t i1 = n - i0 < block ? n : i0 + block, j = 0;
        for (; j + TILE_W <= n_out; j += TILE_W) {
            uint32_t i = i0;
            for (; i + TILE_X <= i1; i += TILE_X)
                tile_bf16(TILE_W, TILE_X, g, j, i);
            switch (i1 - i) {
            case 1:
                tile_bf16(TILE_W, 1, g, j, i);
                break;
            case 2:
                tile_bf16(TILE_W, 2, g, j, i);
                break;
            case 3:
                tile_bf16(TILE_W, 3, g, j, i);
                break;
            case 4:
                tile_bf16(TILE_W, 4, g, j, i);
                break;
            case 5:
                tile_bf16(TILE_W, 5, g, j, i);
                break;
            default:
                break;
            }
        }
        for (; j < n_out; j++)
            for (uint32_t i = i0; i < i1; i++)
                tile_bf16(1, 1, g, j, i);
    }
}

/* One block of at most 128 codes as four steps of bf16; zeros behind its end. */
ALWAYS_INLINE void widen_block(const struct fp8_tables *t, const uint8_t *w, size_t len,
                               __m512i out[BLOCK_STEPS])
{
    __m512i a, b;
    if (len == FP8_BLOCK) {
        a = _mm512_loadu_si512(w);
        b = _mm512_loadu_si512(w + 64);
    } else {
        a = _mm512_maskz_loadu_epi8(part64(len), w);
        b = len > 64 ? _mm512_maskz_loadu_epi8(part64(len - 64), w + 64) : _mm512_setzero_si512();
    }
    fp8_to_bf16x64(t, a, &out[0], &out[1]);
    fp8_to_bf16x64(t, b, &out[2], &out[3]);
}

ALWAYS_INLINE float block_scale(const struct gemm *g, uint32_t row, size_t k)
{
    return g->scale[(g->j0 + row) / FP8_BLOCK * g->scale_stride + k / FP8_BLOCK];
}

/* Adds a block's sums, times the block's scale, to the whole. */
ALWAYS_INLINE void add_block(const struct gemm *g, uint32_t j, size_t k, int nw, int nx,
                             __m512 block[8][6], __m512 s[8][6])
{
#pragma GCC unroll 8
    for (int a = 0; a < nw; a++) {
        __m512 scale = _mm512_set1_ps(block_scale(g, j + (uint32_t)a, k));
#pragma GCC unroll 6
        for (int b = 0; b < nx; b++)
            s[a][b] = _mm512_fmadd_ps(block[a][b], scale, s[a][b]);
    }
}

/* Both lines of a block of codes. */
ALWAYS_INLINE void fetch_block(const uint8_t *w, size_t ahead)
{
    if (ahead) {
        _mm_prefetch(w + ahead, _MM_HINT_T1);
        _mm_prefetch(w + ahead + 64, _MM_HINT_T1);
    }
}

/* Rows of W straight from their codes. */
ALWAYS_INLINE void tile_fp8(const struct fp8_tables *t, int nw, int nx, const struct gemm *g,
                            uint32_t j, uint32_t i)
{
    const uint8_t *w = (const uint8_t *)g->w + (size_t)j * g->n_in;
    const uint16_t *x = g->x + i * g->ldx;
    __m512 s[8][6], block[8][6];
    clear_tile(nw, nx, s);
    size_t k = 0;
    struct fetch f = {0};
    if (i == 0)
        f = fetch_of(g, nw, j, sizeof *w);
    for (; k + FP8_BLOCK <= g->n_in; k += FP8_BLOCK) {
        size_t ahead = k < f.turn ? f.deep : f.next;
        clear_tile(nw, nx, block);
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++) {
            const uint8_t *row = w + (size_t)a * g->n_in + k;
            __m512i wide[BLOCK_STEPS];
            widen_block(t, row, FP8_BLOCK, wide);
            fetch_block(row, ahead);
#pragma GCC unroll 6
            for (int b = 0; b < nx; b++)
#pragma GCC unroll 4
                for (int c = 0; c < BLOCK_STEPS; c++) {
                    const uint16_t *hi = x + (size_t)b * g->ldx + k + c * STEP;
                    block[a][b] = dot_step(block[a][b], wide[c], _mm512_loadu_si512(hi));
                    block[a][b] = dot_step(block[a][b], wide[c], _mm512_loadu_si512(hi + g->n_in));
                }
        }
        add_block(g, j, k, nw, nx, block, s);
    }
    if (k < g->n_in) {
        size_t len = g->n_in - k;
        clear_tile(nw, nx, block);
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++) {
            __m512i wide[BLOCK_STEPS];
            widen_block(t, w + (size_t)a * g->n_in + k, len, wide);
#pragma GCC unroll 6
            for (int b = 0; b < nx; b++) {
                const uint16_t *xk = x + (size_t)b * g->ldx + k;
#pragma GCC unroll 4
                for (int c = 0; c < BLOCK_STEPS; c++) {
                    size_t done = (size_t)c * STEP;
                    if (done < len) {
                        __mmask32 part = len - done >= STEP ? ~(__mmask32)0 : part32(len - done);
                        const uint16_t *hi = xk + done;
                        block[a][b] =
                            dot_step(block[a][b], wide[c], _mm512_maskz_loadu_epi16(part, hi));
                        block[a][b] = dot_step(block[a][b], wide[c],
                                               _mm512_maskz_loadu_epi16(part, hi + g->n_in));
                    }
                }
            }
        }
        add_block(g, j, k, nw, nx, block, s);
    }
    put_tile(g, j, i, nw, nx, s);
}

/* Four rows of W that lie widened in a panel. */
ALWAYS_INLINE void tile_panel(const uint16_t *panel, size_t stride, int nx, const struct gemm *g,
                              uint32_t j, uint32_t i)
{
    const uint16_t *w[8], *x[6];
    __m512 s[8][6], block[8][6];
#pragma GCC unroll 4
    for (int a = 0; a < TILE_W; a++)
        w[a] = panel + (size_t)a * stride;
#pragma GCC unroll 6
    for (int b = 0; b < nx; b++)
        x[b] = g->x + (i + (size_t)b) * g->ldx;
    clear_tile(TILE_W, nx, s);
    for (size_t k = 0; k < g->n_in; k += FP8_BLOCK) {
        size_t end = k + FP8_BLOCK < g->n_in ? k + FP8_BLOCK : g->n_in;
        clear_tile(TILE_W, nx, block);
        walk(TILE_W, nx, w, x, k, end, g->n_in, 0, block);
        add_block(g, j, k, TILE_W, nx, block, s);
    }
    put_tile(g, j, i, TILE_W, nx, s);
}

/* Rows [i0, i1) of x against all of W, four rows of W at a time through the panel. */
static void run_panel(const struct fp8_tables *t, const struct gemm *g, uint32_t i0, uint32_t i1)
{
    /* a few steps beyond a row keep the four rows off the same sets of the cache */
    alignas(64) uint16_t panel[TILE_W * (PANEL_K + 3 * STEP)];
    size_t stride = ((size_t)g->n_in + FP8_BLOCK - 1) / FP8_BLOCK * FP8_BLOCK;
    stride += stride + 3 * STEP <= PANEL_K + 3 * STEP ? 3 * STEP : 0;
    uint32_t j = 0;
    for (; j + TILE_W <= g->n_out; j += TILE_W) {
        size_t tile = (size_t)TILE_W * g->n_in, ahead = j + 2 * TILE_W <= g->n_out ? tile : 0;
        for (uint32_t a = 0; a < TILE_W; a++) {
            const uint8_t *row = (const uint8_t *)g->w + (size_t)(j + a) * g->n_in;
            for (size_t k = 0; k < g->n_in; k += FP8_BLOCK) {
                __m512i wide[BLOCK_STEPS];
                size_t len = g->n_in - k < FP8_BLOCK ? g->n_in - k : FP8_BLOCK;
                widen_block(t, row + k, len, wide);
                fetch_block(row + k, i0 ? 0 : ahead);
                for (int c = 0; c < BLOCK_STEPS; c++)
                    _mm512_storeu_si512(panel + a * stride + k + (size_t)c * STEP, wide[c]);
            }
        }
        uint32_t i = i0;
        for (; i + TILE_X_FP8 <= i1; i += TILE_X_FP8)
            tile_panel(panel, stride, TILE_X_FP8, g, j, i);
        for (; i < i1; i++)
            tile_panel(panel, stride, 1, g, j, i);
    }
    for (; j < g->n_out; j++)
        for (uint32_t i = i0; i < i1; i++)
            tile_fp8(t, 1, 1, g, j, i);
}

void gemm_fp8_split_avx512(const uint8_t *w, uint32_t j0, uint32_t n_out, uint32_t n_in,
                           const float *scale, size_t scale_stride, const uint16_t *x, size_t ldx,
                           uint32_t n, float *y, size_t ldy, bool add)
{
    const struct gemm job = {w, j0, n_out, n_in, scale, scale_stride, x, ldx, n, y, ldy, add},
                      *g = &job;
    const struct fp8_tables t = fp8_tables_load();
    if (n >= PANEL_MIN_ROWS && n_in <= PANEL_K) {
        size_t fit = X_BLOCK_BYTES / (4 * (size_t)n_in + 1) / TILE_X_FP8 * TILE_X_FP8;
        uint32_t block = fit < 8 * TILE_X_FP8 ? 8 * TILE_X_FP8 : fit < n ? (uint32_t)fit : n;
        for (uint32_t i0 = 0; i0 < n; i0 += block)
            run_panel(&t, g, i0, n - i0 < block ? n : i0 + block);
        return;
    }
    uint32_t j = 0;
    for (; j + TILE_W <= n_out; j += TILE_W) {
        uint32_t i = 0;
        for (; i + TILE_X_FP8 <= n; i += TILE_X_FP8)
            tile_fp8(&t, TILE_W, TILE_X_FP8, g, j, i);
        if (n - i == 2)
            tile_fp8(&t, TILE_W, 2, g, j, i);
        else if (n - i == 1)
            tile_fp8(&t, TILE_W, 1, g, j, i);
    }
    for (; j < n_out; j++)
        for (uint32_t i = 0; i < n; i++)
            tile_fp8(&t, 1, 1, g, j, i);
}

/* bf16 of magnitudes 0..127: exponent e - 7 + 127 for normals, powers of two times m for denormals.
 */
#define BF16_OF(c)                                                                                 \
    ((c) == 0x7F ? 0x7FC0                                                                          \
     : (c) > 7   ? ((c) << 4) + (120 << 7)                                                         \
     : (c) >= 4  ? (120 << 7) + (((c)-4) << 5)                                                     \
     : (c) >= 2  ? (119 << 7) + (((c)-2) << 6)                                                     \
     : (c) == 1  ? 118 << 7                                                                        \
                 : 0)
#define LOW(c) BF16_OF(c) & 0xFF
#define HIGH(c) BF16_OF(c) >> 8
#define FOUR(f, c) f(c), f((c) + 1), f((c) + 2), f((c) + 3)
#define SIXTEEN(f, c) FOUR(f, c), FOUR(f, (c) + 4), FOUR(f, (c) + 8), FOUR(f, (c) + 12)
#define ALL(f)                                                                                     \
    SIXTEEN(f, 0), SIXTEEN(f, 16), SIXTEEN(f, 32), SIXTEEN(f, 48), SIXTEEN(f, 64), SIXTEEN(f, 80), \
        SIXTEEN(f, 96), SIXTEEN(f, 112)
const uint8_t fp8_high_bytes[128] = {ALL(HIGH)};
const uint8_t fp8_low_bytes[128] = {ALL(LOW)};
#endif
