/* fp8.c - see fp8.h. */
#include "cpu/fp8.h"

#include <math.h>

float e4m3_quantise(const float *x, size_t n, uint8_t *y)
{
    float amax = 0.0f;
    for (size_t i = 0; i < n; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float scale = ue8m0_scale(amax), inverse = 1.0f / scale; /* both are exact powers of two */
    for (size_t i = 0; i < n; i++)
        y[i] = e4m3_round(x[i] * inverse);
    return scale;
}
