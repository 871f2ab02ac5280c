/* kernels_portable.c - the table in plain C, for any machine; also the easiest to read. */
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

#include <math.h>

enum { LANES = 8 }; /* sums kept apart, so that a compiler may use vectors without changing the order */

static void f32_to_bf16(const float *x, uint16_t *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = bf16_round(x[i]);
}

static void bf16_to_f32(const uint16_t *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = bf16_value(x[i]);
}

static void fp8_to_f32(const uint8_t *x, float scale, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = e4m3_table[x[i]] * scale;
}

static float lanes_sum(const float s[LANES])
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            s[l] += a[i + l] * b[i + l];
    for (size_t l = 0; i < n; i++, l++)
        s[l] += a[i] * b[i];
    return lanes_sum(s);
}

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            s[l] += bf16_value(a[i + l]) * b[i + l];
    for (size_t l = 0; i < n; i++, l++)
        s[l] += bf16_value(a[i]) * b[i];
    return lanes_sum(s);
}

static void axpy_f32(float a, const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void axpy_bf16(float a, const uint16_t *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * bf16_value(x[i]);
}

static float sum_squares(const float *x, size_t n)
{
    return dot_f32(x, x, n);
}

static void silu_mul(const float *gate, const float *up, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static float softmax_exp(float *x, float max, size_t n)
{
    float s[LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        s[i % LANES] += x[i];
    }
    return lanes_sum(s);
}

static float max_f32(const float *x, size_t n)
{
    float best = x[0];
    for (size_t i = 1; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static void index_scores_f32(const float *q, const float *w, uint32_t heads, uint32_t dim, const float *key,
                             uint32_t n_keys, float *score)
{
    for (uint32_t s = 0; s < n_keys; s++) {
        float total = 0.0f;
        for (uint32_t h = 0; h < heads; h++) {
            float d = dot_f32(q + (size_t)h * dim, key + (size_t)s * dim, dim);
            total += w[h] * (d > 0.0f ? d : 0.0f);
        }
        score[s] = total;
    }
}

static void index_scores_fp8(const uint16_t *q, const float *w, uint32_t heads, uint32_t dim,
                             const uint8_t *key, const float *key_scale, uint32_t n_keys, float *score)
{
    for (uint32_t s = 0; s < n_keys; s++) {
        const uint8_t *k = key + (size_t)s * dim;
        float total = 0.0f;
        for (uint32_t h = 0; h < heads; h++) {
            const uint16_t *qh = q + (size_t)h * dim;
            float lane[LANES] = {0}, d;
            for (uint32_t i = 0; i < dim; i++)
                lane[i % LANES] += bf16_value(qh[i]) * e4m3_table[k[i]];
            d = lanes_sum(lane);
            total += w[h] * (d > 0.0f ? d : 0.0f);
        }
        score[s] = total * key_scale[s];
    }
}

const struct kernels kernels_portable = {
    .name = "portable",
    GEMM_ENTRIES(portable),
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
