/* kernels_sets.h - the functions behind the three tables, named <kernel>_<set>. Private to
 * kernels*.c. */
#ifndef GAZE_CPU_KERNELS_SETS_H
#define GAZE_CPU_KERNELS_SETS_H

#include "cpu/kernels.h"

#define DECLARE_GEMM(name, wtype, xtype)                                                           \
    void name(const wtype *w, uint32_t n_out, uint32_t n_in, const xtype *x, size_t ldx,           \
              uint32_t n, float *y, size_t ldy, bool add)
#define DECLARE_GEMM_FP8(name, xtype)                                                              \
    void name(const uint8_t *w, uint32_t j0, uint32_t n_out, uint32_t n_in, const float *scale,    \
              size_t scale_stride, const xtype *x, size_t ldx, uint32_t n, float *y, size_t ldy,   \
              bool add)
#define DECLARE_GEMMS(set)                                                                         \
    DECLARE_GEMM(gemm_f32_f32_##set, float, float);                                                \
    DECLARE_GEMM(gemm_bf16_f32_##set, uint16_t, float);                                            \
    DECLARE_GEMM(gemm_f16_f32_##set, uint16_t, float);                                             \
    DECLARE_GEMM_FP8(gemm_fp8_f32_##set, float)
#define GEMM_ENTRIES(set)                                                                          \
    .gemm_f32_f32 = gemm_f32_f32_##set, .gemm_bf16_f32 = gemm_bf16_f32_##set,                      \
    .gemm_f16_f32 = gemm_f16_f32_##set, .gemm_fp8_f32 = gemm_fp8_f32_##set

DECLARE_GEMMS(portable);
extern const struct kernels kernels_portable;
#if defined(__x86_64__)
DECLARE_GEMMS(avx2);
DECLARE_GEMMS(avx512);
DECLARE_GEMM(gemm_bf16_split_avx512, uint16_t, uint16_t);
DECLARE_GEMM_FP8(gemm_fp8_split_avx512, uint16_t);
extern const struct kernels kernels_avx2, kernels_avx512;
#endif

#endif
