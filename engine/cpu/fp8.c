/* fp8.c - see fp8.h. */
#include "cpu/fp8.h"

#include <math.h>

/* (8 + m) 2^(e - 10) for e > 0, m 2^-9 for e = 0. */
#define MAGNITUDE(c)                                                                               \
    ((c) == 0x7F ? NAN                                                                             \
     : (c) > 7   ? (float)((8 + ((c)&7)) << ((c) >> 3)) / 1024.0f                                  \
                 : (float)(c) / 512.0f)
#define CODES4(sign, c)                                                                            \
    sign MAGNITUDE(c), sign MAGNITUDE((c) + 1), sign MAGNITUDE((c) + 2), sign MAGNITUDE((c) + 3)
#define CODES16(sign, c)                                                                           \
    CODES4(sign, c), CODES4(sign, (c) + 4), CODES4(sign, (c) + 8), CODES4(sign, (c) + 12)
#define CODES128(sign)                                                                             \
    CODES16(sign, 0), CODES16(sign, 16), CODES16(sign, 32), CODES16(sign, 48), CODES16(sign, 64),  \
        CODES16(sign, 80), CODES16(sign, 96), CODES16(sign, 112)
const float e4m3_table[256] = {CODES128(+), CODES128(-)};

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
