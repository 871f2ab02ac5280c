/* fp8.h - the small number formats, one value at a time: bf16, f16, e4m3, and power-of-two scales.
 *
 * e4m3 is e4m3fn: bias 7, no infinities, NaN 0x7F and 0xFF, largest value 448, smallest 2^-9.
 * Widening is exact in all of them; narrowing rounds to nearest even. The vector kernels give the
 * same bits. Thread: any.
 */
#ifndef GAZE_CPU_FP8_H
#define GAZE_CPU_FP8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define E4M3_MAX 448.0f
#define E4M3_AMAX_FLOOR                                                                            \
    1e-4f /* groups of smaller values are scaled as if this were their largest */

static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float bf16_value(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}
/* NaN stays NaN (made quiet, or its payload could round to infinity). */
static inline uint16_t bf16_round(float x)
{
    uint32_t u = f32_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

/* The exponent field is moved, not rebiased: the product with 2^112 does that for denormals as
 * well. */
static inline float f16_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7FFFu) << 13;
    if ((h & 0x7C00u) == 0x7C00u)
        return f32_from_bits(sign | 0x7F800000u | mag);
    return f32_from_bits(sign | f32_bits(f32_from_bits(mag) * 0x1p112f));
}

static inline float e4m3_value(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, mag = code & 0x7Fu;
    if (mag == 0x7Fu)
        return f32_from_bits(sign | 0x7FC00000u);
    return f32_from_bits(sign | f32_bits(f32_from_bits(mag << 20) * 0x1p120f));
}
/* Beyond +-448 (infinities too) it saturates; NaN gives NaN. */
static inline uint8_t e4m3_round(float x)
{
    uint32_t u = f32_bits(x), sign = u >> 24 & 0x80u, mag = u & 0x7FFFFFFFu, code;
    if (mag > 0x7F800000u)
        code = 0x7F;
    else if (mag >= 0x43E00000u) /* 448 */
        code = 0x7E;
    else if (mag >= 0x3C800000u) /* 2^-6, the smallest normal */
        code = ((mag + 0x7FFFFu + (mag >> 20 & 1u)) >> 20) - (120u << 3);
    else /* the sum's last bit is worth 2^-9, so that the adder rounds for us */
        code = f32_bits(f32_from_bits(mag) + 16384.0f) - f32_bits(16384.0f);
    return (uint8_t)(sign | code);
}

extern const float e4m3_table[256]; /* e4m3_value() of each code */

/* The smallest power of two s with amax / s <= 448, amax being raised to E4M3_AMAX_FLOOR. */
static inline float ue8m0_scale(float amax)
{
    uint32_t u = f32_bits((amax > E4M3_AMAX_FLOOR ? amax : E4M3_AMAX_FLOOR) * (1.0f / 448.0f));
    return f32_from_bits(((u >> 23) + ((u & 0x7FFFFFu) != 0)) << 23);
}

/* One group with one power-of-two scale (returned): x[i] is about e4m3_value(y[i]) * scale. */
float e4m3_quantise(const float *x, size_t n, uint8_t *y);

#endif
