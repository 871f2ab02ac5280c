/* dsa_body.h - dsa_loops.h in terms of 16 lanes of fp32; included once per instruction set.
 *
 * vec16 is a compiler vector: one register with AVX-512, two with AVX2, four with SSE2. The
 * includer may define FMA16(a, b, c) as the fused instruction; else it is a multiplication and an
 * addition.
 */
#include "cpu/dsa_loops.h"
#include "cpu/fp8.h"

#include <math.h>
#include <string.h>

/* All that gives a vec16 is inlined, so how one would be passed does not matter; none takes one by
 * value, of which the compiler would speak regardless. */
#pragma GCC diagnostic ignored "-Wpsabi"

typedef float vec16 __attribute__((vector_size(64)));
typedef float vec16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t int16x __attribute__((vector_size(64)));
typedef int32_t int8x __attribute__((vector_size(32)));

#ifndef FMA16
#define FMA16(a, b, c) ((a) * (b) + (c))
#endif

static inline vec16 load16(const float *p)
{
    return *(const vec16u *)p;
}
#define store16(p, v) ((void)(*(vec16u *)(p) = (v)))
static inline vec16 splat16(float x)
{
    return (vec16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
/* The larger; b where either is NaN. */
#define max16(a, b)                                                                                \
    __extension__({                                                                                \
        vec16 max_a = (a), max_b = (b);                                                            \
        int16x max_m = max_a > max_b;                                                              \
        (vec16)(((int16x)max_a & max_m) | ((int16x)max_b & ~max_m));                               \
    })

#ifndef DSA_OWN_TRANSPOSE
static void transpose(const float *x, size_t ldx, uint32_t n_pos, uint32_t dim, float *kt)
{
    for (uint32_t d = 0; d < dim; d++) {
        float *row = kt + (size_t)d * TILE;
        for (uint32_t s = 0; s < n_pos; s++)
            row[s] = x[s * ldx + d];
        for (uint32_t s = n_pos; s < TILE; s++)
            row[s] = 0.0f;
    }
}
#endif

/* Four rows at a time hold 16 accumulators; one row alone takes the same sums in the same order. */
static void scores(const float *q, size_t ldq, uint32_t n_rows, uint32_t dim, const float *kt,
                   float *s)
{
    uint32_t r = 0;
    for (; r + 4 <= n_rows; r += 4, q += 4 * ldq, s += (size_t)4 * TILE) {
        vec16 acc[4][4] = {{{0}}};
        for (uint32_t d = 0; d < dim; d++) {
            const float *row = kt + (size_t)d * TILE;
            vec16 k0 = load16(row), k1 = load16(row + 16), k2 = load16(row + 32),
                  k3 = load16(row + 48);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                vec16 b = splat16(q[(size_t)i * ldq + d]);
                acc[i][0] = FMA16(b, k0, acc[i][0]);
                acc[i][1] = FMA16(b, k1, acc[i][1]);
                acc[i][2] = FMA16(b, k2, acc[i][2]);
                acc[i][3] = FMA16(b, k3, acc[i][3]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                store16(s + i * TILE + j * 16, acc[i][j]);
    }
    for (; r < n_rows; r++, q += ldq, s += TILE) {
        vec16 acc[4] = {{0}};
        for (uint32_t d = 0; d < dim; d++) {
            const float *row = kt + (size_t)d * TILE;
            vec16 b = splat16(q[d]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                acc[j] = FMA16(b, load16(row + j * 16), acc[j]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            store16(s + j * 16, acc[j]);
    }
}

/* e^x for x <= 0, to about 2 ulp: 2^n times a polynomial on |r| <= ln 2 / 2. Below -87 it is 0; NaN
 * stays. */
static inline vec16 exp16(const vec16 *of)
{
    vec16 x = *of;
    const vec16 magic = splat16(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    int16x dead = x < splat16(-87.0f);
    x = max16(splat16(-87.0f), x); /* a NaN in x stays: max16 gives its second operand */
    vec16 n = x * splat16(1.44269504f) + magic;
    int16x exponent = (int16x)n << 23; /* the integer sits in the low bits of n */
    n = n - magic;
    vec16 r = FMA16(n, splat16(-0.693145752f), x);
    r = FMA16(n, splat16(-1.42860677e-6f), r);
    vec16 p = splat16(1.0f / 720.0f);
    p = FMA16(p, r, splat16(1.0f / 120.0f));
    p = FMA16(p, r, splat16(1.0f / 24.0f));
    p = FMA16(p, r, splat16(1.0f / 6.0f));
    p = FMA16(p, r, splat16(0.5f));
    p = FMA16(p, r, splat16(1.0f));
    p = FMA16(p, r, splat16(1.0f));
    int16x scaled = (int16x)p + exponent;
    int16x nan = x != x;
    return (vec16)((scaled & ~dead & ~nan) | ((int16x)x & nan));
}

/* Lanes are folded in halves, so the order is fixed. */
static inline float add_lanes(const vec16 *v)
{
    vec8 a = (vec8)__builtin_shufflevector(*v, *v, 0, 1, 2, 3, 4, 5, 6, 7) +
             (vec8)__builtin_shufflevector(*v, *v, 8, 9, 10, 11, 12, 13, 14, 15);
    vec4 b = (vec4)__builtin_shufflevector(a, a, 0, 1, 2, 3) +
             (vec4)__builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

static inline float max_lanes(const vec16 *v, float m)
{
    vec8 a = (vec8)__builtin_shufflevector(*v, *v, 0, 1, 2, 3, 4, 5, 6, 7);
    vec8 c = (vec8)__builtin_shufflevector(*v, *v, 8, 9, 10, 11, 12, 13, 14, 15);
    int8x k = a > c;
    a = (vec8)(((int8x)a & k) | ((int8x)c & ~k)); /* no NaN here: the caller's maxima drop them */
    for (int i = 0; i < 4; i++) {
        float x = a[i] > a[i + 4] ? a[i] : a[i + 4];
        m = x > m ? x : m;
    }
    return m;
}

static void softmax(float *s, uint32_t n, float scale, float *max, float *sum, float *shrink)
{
    for (uint32_t i = n; i < ((n + 15) & ~15u); i++)
        s[i] = -INFINITY;
    vec16 top = splat16(-INFINITY), k = splat16(scale);
    for (uint32_t i = 0; i < n; i += 16) {
        vec16 x = load16(s + i) * k;
        store16(s + i, x);
        top = max16(x, top);
    }
    float m = max_lanes(&top, *max);
    /* All -inf so far can only come from broken weights; the sums must become NaN, not 0 / 0 later.
     */
    float fade = *max == m ? 1.0f : expf(*max - m);
    vec16 acc = {0}, shift = splat16(m);
    for (uint32_t i = 0; i < n; i += 16) {
        vec16 x = load16(s + i) - shift;
        x = exp16(&x);
        store16(s + i, x);
        acc += x;
    }
    *sum = *sum * fade + add_lanes(&acc);
    *max = m;
    *shrink = fade;
}

/* One row over positions [s0, s1) and dims [d0, d1). o is in memory before and after: fp32 survives
 * that unchanged, so a sum may be taken in two calls. */
static void values_row(const float *p, uint32_t s0, uint32_t s1, const float *v, size_t ldv,
                       uint32_t d0, uint32_t d1, float shrink, float *o)
{
    vec16 f = splat16(shrink);
    uint32_t d = d0;
    for (; d + 64 <= d1; d += 64) {
        vec16 a[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            a[j] = load16(o + d + j * 16) * f;
        for (uint32_t s = s0; s < s1; s++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                a[j] = FMA16(splat16(p[s]), load16(v + s * ldv + d + (uint32_t)j * 16), a[j]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            store16(o + d + j * 16, a[j]);
    }
    for (; d + 16 <= d1; d += 16) {
        vec16 a = load16(o + d) * f;
        for (uint32_t s = s0; s < s1; s++)
            a = FMA16(splat16(p[s]), load16(v + s * ldv + d), a);
        store16(o + d, a);
    }
    for (; d < d1; d++) {
        float a = o[d] * shrink;
        for (uint32_t s = s0; s < s1; s++)
            a += p[s] * v[s * ldv + d];
        o[d] = a;
    }
}

static inline void values_4x2(const float *p, size_t ldp, uint32_t n, const float *v, size_t ldv,
                              uint32_t d, const float *shrink, float *o, size_t ldo)
{
    vec16 a[4][2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vec16 f = splat16(shrink[i]);
        a[i][0] = load16(o + (size_t)i * ldo + d) * f;
        a[i][1] = load16(o + (size_t)i * ldo + d + 16) * f;
    }
    for (uint32_t s = 0; s < n; s++) {
        vec16 v0 = load16(v + s * ldv + d), v1 = load16(v + s * ldv + d + 16);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vec16 b = splat16(p[(size_t)i * ldp + s]);
            a[i][0] = FMA16(b, v0, a[i][0]);
            a[i][1] = FMA16(b, v1, a[i][1]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        store16(o + (size_t)i * ldo + d, a[i][0]);
        store16(o + (size_t)i * ldo + d + 16, a[i][1]);
    }
}

/* Rows are taken four at a time as far as the shortest of them goes, the rest of each alone. */
static void values(const float *p, size_t ldp, const uint32_t *n, uint32_t n_rows, const float *v,
                   size_t ldv, uint32_t dim, const float *shrink, float *o, size_t ldo)
{
    uint32_t body = dim & ~31u, r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        uint32_t joint = n[r];
        for (uint32_t i = 1; i < 4; i++)
            joint = n[r + i] < joint ? n[r + i] : joint;
        for (uint32_t d = 0; d < body; d += 32)
            values_4x2(p + r * ldp, ldp, joint, v, ldv, d, shrink + r, o + r * ldo, ldo);
        for (uint32_t i = r; i < r + 4; i++) {
            if (joint < n[i])
                values_row(p + i * ldp, joint, n[i], v, ldv, 0, body, 1.0f, o + i * ldo);
            values_row(p + i * ldp, 0, n[i], v, ldv, body, dim, shrink[i], o + i * ldo);
        }
    }
    for (; r < n_rows; r++)
        values_row(p + r * ldp, 0, n[r], v, ldv, 0, dim, shrink[r], o + r * ldo);
}

/* score[j] = sum_h w[h] max(0, s[h][j]), heads in rising order. */
static void relu_sum(const float *s, const float *w, uint32_t heads, float *score)
{
    vec16 acc[4] = {{0}}, zero = {0};
    for (uint32_t h = 0; h < heads; h++) {
        vec16 wh = splat16(w[h]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            acc[j] = FMA16(wh, max16(zero, load16(s + (size_t)h * TILE + j * 16)), acc[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        store16(score + j * 16, acc[j]);
}

static void index_scores_f32(const float *q, const float *w, uint32_t heads, uint32_t dim,
                             const float *kt, float *scratch, float *score)
{
    scores(q, dim, heads, dim, kt, scratch);
    relu_sum(scratch, w, heads, score);
}

#ifndef DSA_OWN_INDEX
static void index_query(const float *q, uint32_t heads, uint32_t dim, void *out)
{
    memcpy(out, q, sizeof(float) * heads * dim);
}

static void index_tile(const uint8_t *key, uint32_t n, uint32_t dim, void *kt)
{
    float value[256], *t = kt;
    for (uint32_t i = 0; i < 256; i++)
        value[i] = e4m3_value((uint8_t)i);
    for (uint32_t d = 0; d < dim; d++) {
        for (uint32_t s = 0; s < n; s++)
            t[d * TILE + s] = value[key[s * dim + d]];
        for (uint32_t s = n; s < TILE; s++)
            t[d * TILE + s] = 0.0f;
    }
}

static void index_scores(const void *q, const float *w, uint32_t heads, uint32_t dim,
                         const void *kt, const float *key_scale, float *score)
{
    const float *query = q;
    vec16 acc[4] = {{0}}, zero = {0};
    for (uint32_t h = 0; h < heads; h += 4) {
        float s[4 * TILE];
        uint32_t n = heads - h < 4 ? heads - h : 4;
        scores(query + (size_t)h * dim, dim, n, dim, kt, s);
        for (uint32_t i = 0; i < n; i++)
            for (int j = 0; j < 4; j++)
                acc[j] =
                    FMA16(splat16(w[h + i]), max16(zero, load16(s + i * TILE + j * 16)), acc[j]);
    }
    for (int j = 0; j < 4; j++)
        store16(score + j * 16, acc[j] * load16(key_scale + j * 16));
}

static void index_page(const void *q, const float *w, uint32_t heads, uint32_t dim,
                       const uint8_t *key, uint32_t n, const float *key_scale, void *kt,
                       float *score)
{
    index_tile(key, n, dim, kt);
    index_scores(q, w, heads, dim, kt, key_scale, score);
}
#endif

static void group_max(const float *x, uint32_t n, uint32_t n_groups, float *best)
{
    for (uint32_t g = 0; g < n_groups; g += 64) {
        vec16 m[4];
        for (int j = 0; j < 4; j++)
            m[j] = splat16(-INFINITY);
        uint32_t i = g;
        for (; i + 64 <= n; i += n_groups)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                m[j] = max16(load16(x + i + j * 16), m[j]);
        for (int j = 0; j < 4; j++)
            store16(best + g + j * 16, m[j]);
        for (uint32_t j = 0; i < n && j < n - i && j < 64; j++)
            best[g + j] = x[i + j] > best[g + j] ? x[i + j] : best[g + j];
    }
}

#ifndef DSA_OWN_KEEP
static uint32_t keep(const float *x, uint32_t n, float bound, float *value, uint32_t *index)
{
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        value[m] = x[i];
        index[m] = i;
        m += x[i] >= bound;
    }
    return m;
}
#endif

static uint32_t count_at_least(const int32_t *key, uint32_t n, int32_t bound)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += key[i] >= bound;
    return count;
}

#define DSA_LOOPS_TABLE                                                                            \
    {                                                                                              \
        .transpose = transpose, .scores = scores, .softmax = softmax, .values = values,            \
        .index_query = index_query, .index_tile = index_tile, .index_scores = index_scores,        \
        .index_page = index_page, .index_scores_f32 = index_scores_f32, .group_max = group_max,    \
        .keep = keep, .count_at_least = count_at_least                                             \
    }
