/* numbers.cuh - the small number formats on the device: bf16, f16, e4m3, power-of-two scales.
 *
 * The same bits as the CPU back end's: widening is exact, narrowing rounds to nearest even, e4m3
 * saturates at 448. Activations are float or bf16; get() and put() hide which.
 */
#ifndef GAZE_CUDA_TILE_NUMBERS_CUH
#define GAZE_CUDA_TILE_NUMBERS_CUH

#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* How many parts n is cut in, the last one perhaps smaller. */
static __host__ __device__ inline uint32_t parts_of(size_t n, size_t part)
{
    return (uint32_t)((n + part - 1) / part);
}

struct bf16 {
    uint16_t bits;
};

static __device__ __forceinline__ float bf16_value(uint16_t h)
{
    return __uint_as_float((uint32_t)h << 16);
}
static __device__ __forceinline__ uint16_t bf16_round(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

/* x = hi + lo to 16 bits of mantissa; where hi rounds to infinity lo is 0. */
struct bf16_pair {
    uint16_t hi, lo;
};
static __device__ __forceinline__ struct bf16_pair bf16_split(float x)
{
    uint16_t hi = bf16_round(x);
    float rest = x - bf16_value(hi);
    return (struct bf16_pair){hi, (hi & 0x7FFFu) == 0x7F80u ? (uint16_t)0 : bf16_round(rest)};
}

static __device__ __forceinline__ float get(const float *p)
{
    return *p;
}
static __device__ __forceinline__ float get(const bf16 *p)
{
    return bf16_value(p->bits);
}
static __device__ __forceinline__ void put(float *p, float x)
{
    *p = x;
}
static __device__ __forceinline__ void put(bf16 *p, float x)
{
    p->bits = bf16_round(x);
}

static __device__ __forceinline__ float f16_value(uint16_t h)
{
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
#else
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7FFFu) << 13;
    if ((h & 0x7C00u) == 0x7C00u)
        return __uint_as_float(sign | 0x7F800000u | mag);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(mag) * 5.192296858534828e33f));
#endif
}

/* The exponent field is moved, not rebiased: the product with 2^120 does that for denormals too. */
static __device__ __forceinline__ float e4m3_value(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, mag = code & 0x7Fu;
    if (mag == 0x7Fu)
        return __uint_as_float(sign | 0x7FC00000u);
    return __uint_as_float(sign |
                           __float_as_uint(__uint_as_float(mag << 20) * 1.329227995784916e36f));
}
static __device__ __forceinline__ uint8_t e4m3_round(float x)
{
    uint32_t u = __float_as_uint(x), sign = u >> 24 & 0x80u, mag = u & 0x7FFFFFFFu, code;
    if (mag > 0x7F800000u)
        code = 0x7F;
    else if (mag >= 0x43E00000u) /* 448 */
        code = 0x7E;
    else if (mag >= 0x3C800000u) /* 2^-6, the smallest normal */
        code = ((mag + 0x7FFFFu + (mag >> 20 & 1u)) >> 20) - (120u << 3);
    else /* the sum's last bit is worth 2^-9, so that the adder rounds for us */
        code = __float_as_uint(__uint_as_float(mag) + 16384.0f) - __float_as_uint(16384.0f);
    return (uint8_t)(sign | code);
}

/* The smallest power of two s with amax / s <= 448; amax counts as 1e-4 at least. */
static __device__ __forceinline__ float ue8m0_scale(float amax)
{
    uint32_t u = __float_as_uint((amax > 1e-4f ? amax : 1e-4f) * (1.0f / 448.0f));
    return __uint_as_float(((u >> 23) + ((u & 0x7FFFFFu) != 0)) << 23);
}

/* A score as an unsigned integer of the same order; -0 and +0 are equal, NaN is the smallest. */
static __device__ __forceinline__ uint32_t order_key(float x)
{
    if (x != x)
        return 0;
    uint32_t u = __float_as_uint(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

#endif
