/* mma.cuh - one tensor-core product: C[16, 8] += A[16, 16] B[16, 8], bf16 or f16 in, fp32 out
 * (sm_80 on), and what brings its operands: fragments from shared memory, pairs from fp32 and e4m3.
 *
 * Fragments of lane l, g = l / 4, t = l % 4, two bf16 a register, the lower column (row of B) low:
 *   a[0] A[g][2t..]  a[1] A[g + 8][2t..]  a[2] A[g][2t + 8..]  a[3] A[g + 8][2t + 8..]
 *   b[0] B[2t..][g]  b[1] B[2t + 8..][g]
 *   c[0] C[g][2t]    c[1] C[g][2t + 1]    c[2] C[g + 8][2t]    c[3] C[g + 8][2t + 1]
 */
#ifndef GAZE_CUDA_TILE_MMA_CUH
#define GAZE_CUDA_TILE_MMA_CUH

#include <stdint.h>

#include "tile/numbers.cuh"
#include "tile/shared.cuh"

#ifdef __CUDACC__
static __device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4],
                                                const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
static inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    emulated_mma(c, a, b, false);
}
static inline void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    emulated_mma(c, a, b, true);
}
#endif

/* Four 8x8 matrices of 16-bit values: lane l names row l % 8 of matrix l / 8 (16 bytes, aligned)
 * and gets of matrix i, in r[i], the pair (row g, columns 2t and 2t + 1), or, transposed, (rows 2t
 * and 2t + 1, column g). */
#ifdef __CUDACC__
static __device__ __forceinline__ void ldmatrix(uint32_t r[4], const void *row)
{
    uint32_t at = shared_address(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_transposed(uint32_t r[4], const void *row)
{
    uint32_t at = shared_address(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
#else
static inline void ldmatrix(uint32_t r[4], const void *row)
{
    emulated_ldmatrix(r, row, false);
}
static inline void ldmatrix_transposed(uint32_t r[4], const void *row)
{
    emulated_ldmatrix(r, row, true);
}
#endif

/* Two values rounded to bf16, x in the low half. */
static __device__ __forceinline__ uint32_t bf16_two(float x, float y)
{
#ifdef __CUDACC__
    uint32_t two;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(y), "f"(x));
    return two;
#else
    return bf16_round(x) | (uint32_t)bf16_round(y) << 16;
#endif
}
/* x and y as sums of two bf16 each; infinite ones give NaN. */
struct bf16_twos {
    uint32_t hi, lo;
};
static __device__ __forceinline__ struct bf16_twos bf16_split_two(float x, float y)
{
    struct bf16_twos s;
    s.hi = bf16_two(x, y);
    s.lo = bf16_two(x - __uint_as_float(s.hi << 16), y - __uint_as_float(s.hi & 0xFFFF0000u));
    return s;
}

/* Products of two pairs, exact where the result is a bf16. */
static __device__ __forceinline__ uint32_t bf16_times(uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    uint32_t c;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(c) : "r"(a), "r"(b), "r"(0x80008000u));
    return c;
#else
    return bf16_two(bf16_value((uint16_t)a) * bf16_value((uint16_t)b),
                    bf16_value((uint16_t)(a >> 16)) * bf16_value((uint16_t)(b >> 16)));
#endif
}

/* Four e4m3 codes as bf16, exactly: two[0] has the first two. The exponent field is moved, not
 * rebiased: the product with 2^120 does that, for denormals too. The code of NaN counts as 480. */
static __device__ __forceinline__ void e4m3_four(uint32_t two[2], uint32_t codes)
{
    const uint32_t rebias = 0x7B807B80u;
    uint32_t first = (codes & 0xFFu) << 8 | (codes & 0xFF00u) << 16;
    uint32_t last = (codes >> 16 & 0xFFu) << 8 | (codes & 0xFF000000u);
#ifdef __CUDACC__
    first = __byte_perm(codes, 0, 0x1404);
    last = __byte_perm(codes, 0, 0x3424);
#endif
    two[0] = bf16_times((first & 0x80008000u) | (first >> 4 & 0x07F007F0u), rebias);
    two[1] = bf16_times((last & 0x80008000u) | (last >> 4 & 0x07F007F0u), rebias);
}

/* Two values rounded to f16, x in the low half. */
static __device__ __forceinline__ uint32_t f16_two(float x, float y)
{
#ifdef __CUDACC__
    uint32_t two;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(y), "f"(x));
    return two;
#else
    return emulated_f16(x) | (uint32_t)emulated_f16(y) << 16;
#endif
}
/* x and y as sums of two f16 each; their size must be under 65504. */
static __device__ __forceinline__ struct bf16_twos f16_split_two(float x, float y)
{
    struct bf16_twos s;
    s.hi = f16_two(x, y);
    s.lo = f16_two(x - f16_value((uint16_t)s.hi), y - f16_value((uint16_t)(s.hi >> 16)));
    return s;
}

/* Two values as codes, rounded, x in the low byte. */
static __device__ __forceinline__ uint32_t e4m3_two(float x, float y)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(y), "f"(x));
    return two;
#else
    return e4m3_round(x) | (uint32_t)e4m3_round(y) << 8;
#endif
}

/* Four e4m3 codes as f16, exactly, as e4m3_four(). */
static __device__ __forceinline__ void e4m3_four_f16(uint32_t two[2], uint32_t codes)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm("{\n\t.reg .b16 low, high;\n\t"
        "mov.b32 {low, high}, %2;\n\t"
        "cvt.rn.f16x2.e4m3x2 %0, low;\n\t"
        "cvt.rn.f16x2.e4m3x2 %1, high;\n\t}"
        : "=r"(two[0]), "=r"(two[1])
        : "r"(codes));
#elif defined(__CUDACC__)
    uint32_t first = __byte_perm(codes, 0, 0x1404), last = __byte_perm(codes, 0, 0x3424);
    first = (first & 0x80008000u) | (first >> 1 & 0x3F803F80u);
    last = (last & 0x80008000u) | (last >> 1 & 0x3F803F80u);
    asm("fma.rn.f16x2 %0, %1, %2, %3;" /* times 2^8 */
        : "=r"(two[0])
        : "r"(first), "r"(0x5C005C00u), "r"(0x80008000u));
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(two[1])
        : "r"(last), "r"(0x5C005C00u), "r"(0x80008000u));
#else
    for (int i = 0; i < 2; i++)
        two[i] = f16_two(e4m3_value((uint8_t)(codes >> 16 * i)),
                         e4m3_value((uint8_t)(codes >> (16 * i + 8))));
#endif
}

#endif
