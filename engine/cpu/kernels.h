/* kernels.h - the inner loops of products and vectors, once per instruction set: portable, AVX2,
 * AVX-512.
 *
 * Each table is equal to itself bit for bit whatever the sizes around it (a dot product's order
 * depends on its own length alone, for any number of rows at a time); tables differ from each other
 * by rounding. kernels_avx512.c, kernels_avx2.c and kernels_portable.c fill one table each; the
 * products are in kernels_gemm_*.c. Any size and alignment will do; nothing beyond the named
 * elements is touched.
 */
#ifndef GAZE_CPU_KERNELS_H
#define GAZE_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernels {
    const char *name; /* "avx512" "avx2" "portable" */

    /* Weights [n_out, n_in] (row stride n_in elements) times rows of x. y[i * ldy + j] for x rows i
     * in [0, n) and W rows j in [0, n_out): = or +=. Each y is one dot product over k in a fixed
     * order. x is fp32, or split (fast): a row is the sum of two bf16 rows, hi at [0, n_in) and lo
     * at [n_in, 2 n_in), together 16 bits of mantissa; rows ldx elements apart. A table whose
     * machine multiplies no bf16 has NULL for the split products: fp32 is as fast there. FP8
     * weights come with the scale rows of their 128 x 128 blocks: scale[((j0 + j) / 128) *
     * scale_stride + k / 128], j0 the row of W's first. */
    void (*gemm_f32_f32)(const float *w, uint32_t n_out, uint32_t n_in, const float *x, size_t ldx,
                         uint32_t n, float *y, size_t ldy, bool add);
    void (*gemm_bf16_f32)(const uint16_t *w, uint32_t n_out, uint32_t n_in, const float *x,
                          size_t ldx, uint32_t n, float *y, size_t ldy, bool add);
    void (*gemm_f16_f32)(const uint16_t *w, uint32_t n_out, uint32_t n_in, const float *x,
                         size_t ldx, uint32_t n, float *y, size_t ldy, bool add);
    void (*gemm_fp8_f32)(const uint8_t *w, uint32_t j0, uint32_t n_out, uint32_t n_in,
                         const float *scale, size_t scale_stride, const float *x, size_t ldx,
                         uint32_t n, float *y, size_t ldy, bool add);
    void (*gemm_bf16_split)(const uint16_t *w, uint32_t n_out, uint32_t n_in, const uint16_t *x,
                            size_t ldx, uint32_t n, float *y, size_t ldy, bool add);
    void (*gemm_fp8_split)(const uint8_t *w, uint32_t j0, uint32_t n_out, uint32_t n_in,
                           const float *scale, size_t scale_stride, const uint16_t *x, size_t ldx,
                           uint32_t n, float *y, size_t ldy, bool add);

    void (*f32_to_bf16)(const float *x, uint16_t *y, size_t n); /* nearest even; NaN stays NaN */
    /* x = hi + lo up to 2^-16 of it: hi = bf16(x), lo = bf16(x - hi) (0 where hi is not finite) */
    void (*split_bf16)(const float *x, uint16_t *hi, uint16_t *lo, size_t n);
    void (*bf16_to_f32)(const uint16_t *x, float *y, size_t n);
    void (*fp8_to_f32)(const uint8_t *x, float scale, float *y, size_t n);

    void (*axpy_f32)(float a, const float *x, float *y, size_t n); /* y += a x */
    float (*sum_squares)(const float *x, size_t n);
    void (*silu_mul)(const float *gate, const float *up, float *y,
                     size_t n); /* y = silu(gate) up */
    /* x <- exp(x - max), returns the sum; max is the largest of x[0, n) */
    float (*softmax_exp)(float *x, float max, size_t n);
    float (*max_f32)(const float *x, size_t n); /* n > 0 */
};

/* The best table this CPU can run; GAZE_SIMD in the environment asks for another (NULL: it asked
 * for one that this CPU or build does not have). */
const struct kernels *kernels_pick(void);
/* By name, for tests; NULL when this CPU or build does not have it. */
const struct kernels *kernels_by_name(const char *name);

#endif
