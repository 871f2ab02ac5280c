/* kernels_gemm.h - products W x with fp32 sums, written once for any vector type.
 *
 * Private to the kernels_gemm_*.c files; each defines, before it includes this:
 *   V, V_LANES          a vector of fp32 values
 *   V_TILE_X            rows of x in a tile, 2..5: as many sums as the registers hold
 *   V_TILE_ONE          rows of W in a tile for a single row of x: 8, or 4
 *   v_zero() v_fma(a, b, c) v_all(float)
 *   v_f32(p) v_bf16(p) v_f16(p) v_fp8(p)        V_LANES values from memory, widened
 *   v_*_part(p, n)                              the first n < V_LANES of them, zeros after
 *   v_put1(y, a, add) v_put4(y, a, b, c, d, add)  y[...] = or += the sum of the lanes of each
 *
 * A sum has one accumulator of V_LANES lanes that walks k upwards, then a tree over the lanes.
 * Tiles are several such sums side by side and never share lanes, so a sum's order depends on n_in
 * alone. FP8 sums each 128-wide block apart and adds it, scaled, to a second accumulator.
 */
#ifndef GAZE_CPU_KERNELS_GEMM_H
#define GAZE_CPU_KERNELS_GEMM_H

#include "cpu/kernels.h"

#include <assert.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { V_TILE_W = 4, FP8_BLOCK = 128 };
/* Rows of x are taken in blocks of about this size, to be read from L2 for each few rows of W. */
enum { X_BLOCK_BYTES = 256 << 10 };

enum form { FORM_F32, FORM_BF16, FORM_F16, FORM_FP8 };

struct gemm {
    const void *w;
    uint32_t j0, n_out, n_in;
    const float *scale;
    size_t scale_stride;
    const void *x;
    size_t ldx;
    uint32_t n;
    float *y;
    size_t ldy;
    bool add;
};

ALWAYS_INLINE size_t form_bytes(enum form f)
{
    return f == FORM_F32 ? 4 : f == FORM_FP8 ? 1 : 2;
}

ALWAYS_INLINE V form_load(enum form f, const unsigned char *row, size_t k)
{
    switch (f) {
    case FORM_F32:
        return v_f32((const float *)(const void *)row + k);
    case FORM_BF16:
        return v_bf16((const uint16_t *)(const void *)row + k);
    case FORM_F16:
        return v_f16((const uint16_t *)(const void *)row + k);
    default:
        return v_fp8(row + k);
    }
}

ALWAYS_INLINE V form_load_part(enum form f, const unsigned char *row, size_t k, uint32_t n)
{
    switch (f) {
    case FORM_F32:
        return v_f32_part((const float *)(const void *)row + k, n);
    case FORM_BF16:
        return v_bf16_part((const uint16_t *)(const void *)row + k, n);
    case FORM_F16:
        return v_f16_part((const uint16_t *)(const void *)row + k, n);
    default:
        return v_fp8_part(row + k, n);
    }
}

struct tile_rows {
    const unsigned char *w[8], *x[6];
};

/* sum[a][b] += w[a] . x[b] over [k, end) */
ALWAYS_INLINE void tile_walk(enum form wf, enum form xf, int nw, int nx, const struct tile_rows *r,
                             size_t k, size_t end, V sum[8][6])
{
    for (; k + V_LANES <= end; k += V_LANES) {
        V w[8];
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++)
            w[a] = form_load(wf, r->w[a], k);
#pragma GCC unroll 8
        for (int b = 0; b < nx; b++) {
            V x = form_load(xf, r->x[b], k);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
                sum[a][b] = v_fma(w[a], x, sum[a][b]);
        }
    }
    if (k < end) {
        V w[8];
        uint32_t part = (uint32_t)(end - k);
#pragma GCC unroll 8
        for (int a = 0; a < nw; a++)
            w[a] = form_load_part(wf, r->w[a], k, part);
#pragma GCC unroll 8
        for (int b = 0; b < nx; b++) {
            V x = form_load_part(xf, r->x[b], k, part);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
                sum[a][b] = v_fma(w[a], x, sum[a][b]);
        }
    }
}

/* The nw x nx sums of rows [j, j + nw) of W and [i, i + nx) of x. */
ALWAYS_INLINE void tile(enum form wf, enum form xf, int nw, int nx, const struct gemm *g,
                        uint32_t j, uint32_t i)
{
    struct tile_rows r;
    V sum[8][6];
#pragma GCC unroll 8
    for (int a = 0; a < nw; a++)
        r.w[a] = (const unsigned char *)g->w + (j + (size_t)a) * g->n_in * form_bytes(wf);
#pragma GCC unroll 8
    for (int b = 0; b < nx; b++)
        r.x[b] = (const unsigned char *)g->x + (i + (size_t)b) * g->ldx * form_bytes(xf);
#pragma GCC unroll 8
    for (int a = 0; a < nw; a++)
#pragma GCC unroll 8
        for (int b = 0; b < nx; b++)
            sum[a][b] = v_zero();

    if (wf != FORM_FP8) {
        tile_walk(wf, xf, nw, nx, &r, 0, g->n_in, sum);
    } else {
        for (size_t k = 0; k < g->n_in; k += FP8_BLOCK) {
            V block[8][6];
            size_t end = k + FP8_BLOCK < g->n_in ? k + FP8_BLOCK : g->n_in;
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++)
#pragma GCC unroll 8
                for (int b = 0; b < nx; b++)
                    block[a][b] = v_zero();
            tile_walk(wf, xf, nw, nx, &r, k, end, block);
#pragma GCC unroll 8
            for (int a = 0; a < nw; a++) {
                size_t block_row = (g->j0 + j + (uint32_t)a) / FP8_BLOCK;
                V s = v_all(g->scale[block_row * g->scale_stride + k / FP8_BLOCK]);
#pragma GCC unroll 8
                for (int b = 0; b < nx; b++)
                    sum[a][b] = v_fma(block[a][b], s, sum[a][b]);
            }
        }
    }

#pragma GCC unroll 8
    for (int b = 0; b < nx; b++) {
        float *y = g->y + (i + (size_t)b) * g->ldy + j;
        if (nw == 1)
            v_put1(y, sum[0][b], g->add);
#pragma GCC unroll 2
        for (int a = 0; a + 4 <= nw; a += 4)
            v_put4(y + a, sum[a][b], sum[a + 1][b], sum[a + 2][b], sum[a + 3][b], g->add);
    }
}

ALWAYS_INLINE void tile_any_x(enum form wf, enum form xf, int nw, uint32_t nx, const struct gemm *g,
                              uint32_t j, uint32_t i)
{
    switch (nx) {
    case 1:
        tile(wf, xf, nw, 1, g, j, i);
        break;
#if V_TILE_X > 2
    case 2:
        tile(wf, xf, nw, 2, g, j, i);
        break;
#endif
#if V_TILE_X > 3
    case 3:
        tile(wf, xf, nw, 3, g, j, i);
        break;
#endif
#if V_TILE_X > 4
    case 4:
        tile(wf, xf, nw, 4, g, j, i);
        break;
#endif
    default:
        tile(wf, xf, nw, V_TILE_X, g, j, i);
    }
}

ALWAYS_INLINE void gemm_run(enum form wf, enum form xf, const struct gemm *g)
{
    if (g->n == 1) { /* more rows of W, to have enough sums under way */
        uint32_t j = 0;
        for (; j + V_TILE_ONE <= g->n_out; j += V_TILE_ONE)
            tile(wf, xf, V_TILE_ONE, 1, g, j, 0);
        for (; j + 4 <= g->n_out; j += 4)
            tile(wf, xf, 4, 1, g, j, 0);
        for (; j < g->n_out; j++)
            tile(wf, xf, 1, 1, g, j, 0);
        return;
    }
    size_t fit = X_BLOCK_BYTES / ((size_t)g->n_in * form_bytes(xf) + 1) / V_TILE_X * V_TILE_X;
    uint32_t block = fit < 4 * V_TILE_X ? 4 * V_TILE_X : fit < g->n ? (uint32_t)fit : g->n;
    for (uint32_t i0 = 0; i0 < g->n; i0 += block) {
        uint32_t i1 = g->n - i0 < block ? g->n : i0 + block, j = 0;
        for (; j + V_TILE_W <= g->n_out; j += V_TILE_W)
            for (uint32_t i = i0; i < i1; i += V_TILE_X)
                tile_any_x(wf, xf, V_TILE_W, i1 - i < V_TILE_X ? i1 - i : V_TILE_X, g, j, i);
        for (; j < g->n_out; j++)
            for (uint32_t i = i0; i < i1; i++)
                tile(wf, xf, 1, 1, g, j, i);
    }
}

/* The table's entries, under the names gemm_<w>_<x>_<set>. */
#define GEMM_PLAIN(name, wf, xf, wtype, xtype)                                                     \
    void name(const wtype *w, uint32_t n_out, uint32_t n_in, const xtype *x, size_t ldx,           \
              uint32_t n, float *y, size_t ldy, bool add)                                          \
    {                                                                                              \
        struct gemm g = {w, 0, n_out, n_in, NULL, 0, x, ldx, n, y, ldy, add};                      \
        gemm_run(wf, xf, &g);                                                                      \
    }
#define GEMM_SCALED(name, xf, xtype)                                                               \
    void name(const uint8_t *w, uint32_t j0, uint32_t n_out, uint32_t n_in, const float *scale,    \
              size_t scale_stride, const xtype *x, size_t ldx, uint32_t n, float *y, size_t ldy,   \
              bool add)                                                                            \
    {                                                                                              \
        struct gemm g = {w, j0, n_out, n_in, scale, scale_stride, x, ldx, n, y, ldy, add};         \
        gemm_run(FORM_FP8, xf, &g);                                                                \
    }

#endif
