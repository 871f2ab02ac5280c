/* kernels_portable.c - the table in plain C, for any machine; also the easiest to read. */
#include "cpu/fp8.h"
#include "cpu/kernels_sets.h"

#include <math.h>

enum {
    LANES = 8
}; /* sums kept apart, so that a compiler may use vectors without changing the order */

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

static float sum_squares(const float *x, size_t n)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            s[l] += x[i + l] * x[i + l];
    for (size_t l = 0; i < n; i++, l++)
        s[l] += x[i] * x[i];
    return lanes_sum(s);
}

static void axpy_f32(float a, const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
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

const struct kernels kernels_portable = {
    .name = "portable",
    GEMM_ENTRIES(portable),
    .f32_to_bf16 = f32_to_bf16,
    .bf16_to_f32 = bf16_to_f32,
    .fp8_to_f32 = fp8_to_f32,
    .axpy_f32 = axpy_f32,
    .sum_squares = sum_squares,
    .silu_mul = silu_mul,
    .softmax_exp = softmax_exp,
    .max_f32 = max_f32,
};
