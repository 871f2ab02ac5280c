/* topk.h - the k largest of n scores, exactly.
 *
 * Larger first; of equal scores the lower position. -0 and +0 are equal; -inf is a score like any
 * other; NaN is below -inf (and equal to NaN). So the answer is a function of the scores alone.
 *
 * How: the k-th largest of n_groups strided group maxima bounds the k-th largest score from below
 * (k groups hold a score at least that large). One pass keeps the scores that reach the bound, and
 * among those the k-th largest is found bit by bit, from the top, by counting: its 32-bit key is
 * exact, and no buffer is shorter than n. Worst case (all equal): 34 passes of vector compares over
 * n.
 *
 * Thread: any; scratch belongs to the caller.
 */
#ifndef GAZE_CPU_TOPK_H
#define GAZE_CPU_TOPK_H

#include "cpu/dsa_loops.h"

#include <stddef.h>
#include <stdint.h>

/* Bytes of scratch for n up to max_n (64-byte aligned). */
size_t topk_scratch_bytes(uint32_t max_n);

/* Positions of the k largest of score[0, n), ascending, into out[0, min(n, k)); gives that
 * count. */
uint32_t topk_select(const struct dsa_loops *loops, const float *score, uint32_t n, uint32_t k,
                     int32_t *out, void *scratch);

/* A score as an integer of the same order. */
static inline int32_t topk_key(float x)
{
    union {
        float f;
        int32_t i;
    } u = {x + 0.0f}; /* -0 becomes +0 */
    return x != x ? INT32_MIN : u.i ^ (u.i >> 31 & INT32_MAX);
}

#endif
