/* rope.c - see rope.h. */
#include "cpu/rope.h"

void rope_interleaved(float *x, uint32_t dim, const float *cos, const float *sin)
{
    for (uint32_t i = 0; i < dim / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
}

void rope_half_split(float *x, uint32_t dim, const float *cos, const float *sin)
{
    uint32_t half = dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = a * sin[i] + b * cos[i];
    }
}
