/* rows.h - what GPU tests of ops do with rows: send them up, compare those of two back ends. */
#ifndef GAZE_TESTS_KERNEL_ROWS_H
#define GAZE_TESTS_KERNEL_ROWS_H

#include "tests/kernel/device_memory.h"

#include <math.h>
#include <stddef.h>

/* A device's copy of bytes; the caller frees it by cuda_test_free(). */
static inline void *up(const void *x, size_t bytes)
{
    void *at = cuda_test_alloc(bytes);
    cuda_test_write(at, x, bytes);
    return at;
}

/* The largest difference as a share of the largest value of a; NaN when there is one. */
static inline double distance(const float *a, const float *b, size_t n)
{
    double worst = 0.0, top = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = isnan(d) || d > worst ? d : worst; /* nothing is larger than a NaN: it stays */
        top = fabs((double)a[i]) > top ? fabs((double)a[i]) : top;
    }
    return worst / (top > 0.0 ? top : 1.0);
}

#endif
