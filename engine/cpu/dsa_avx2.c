/* dsa_avx2.c - dsa_loops.h for AVX2 and FMA; the Makefile gives this file the flags. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

typedef float fma_vec16 __attribute__((vector_size(64)));
union fma_halves {
    fma_vec16 whole;
    __m256 half[2];
};
#define FMA16(a, b, c)                                                                             \
    __extension__({                                                                                \
        union fma_halves fma_a = {(a)}, fma_b = {(b)}, fma_c = {(c)};                              \
        fma_c.half[0] = _mm256_fmadd_ps(fma_a.half[0], fma_b.half[0], fma_c.half[0]);              \
        fma_c.half[1] = _mm256_fmadd_ps(fma_a.half[1], fma_b.half[1], fma_c.half[1]);              \
        fma_c.whole;                                                                               \
    })
#include "cpu/dsa_body.h"

static const struct dsa_loops table = DSA_LOOPS_TABLE;

const struct dsa_loops *dsa_loops_avx2(void)
{
    return &table;
}
#else
#include "cpu/dsa_loops.h"

const struct dsa_loops *dsa_loops_avx2(void)
{
    return NULL;
}
#endif
