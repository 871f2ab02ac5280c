/* sum.c - see sum.h. */
#include "comm/sum.h"

#include <string.h>

static float bf16_load(const unsigned char *at)
{
    uint16_t h;
    uint32_t bits;
    float x;
    memcpy(&h, at, 2);
    bits = (uint32_t)h << 16;
    memcpy(&x, &bits, 4);
    return x;
}

/* To the nearest, ties to even; a NaN stays one. */
static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void comm_sum_add(float *sum, const unsigned char *in, size_t n, enum comm_dtype t, bool first)
{
    for (size_t i = 0; i < n; i++) {
        float x;
        if (t == COMM_F32)
            memcpy(&x, in + 4 * i, 4);
        else
            x = bf16_load(in + 2 * i);
        sum[i] = first ? x : sum[i] + x;
    }
}

void comm_sum_store(unsigned char *out, const float *sum, size_t n, enum comm_dtype t)
{
    if (t == COMM_F32) {
        memcpy(out, sum, 4 * n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h = bf16_of(sum[i]);
        memcpy(out + 2 * i, &h, 2);
    }
}
