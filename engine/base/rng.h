/* rng.h - two sources of chance: Philox for sampling, a small stream for tests and ids.
 *
 * Philox4x32-10 is a function, not a stream: the noise of a token is philox(seed, position),
 * whatever shares its batch. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011. Thread: any; a struct rng belongs to its caller.
 */
#ifndef GAZE_BASE_RNG_H
#define GAZE_BASE_RNG_H

#include <stdint.h>

/* Four words from a 128-bit counter {position, stream, 0, 0} and a 64-bit key. */
void philox4x32(uint64_t key, uint32_t position, uint32_t stream, uint32_t out[4]);

/* Uniform in (0, 1): 23 bits and a half, which fp32 holds exactly; never 0 and never 1. */
static inline float rng_unit(uint32_t word)
{
    return ((float)(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

struct rng {
    uint64_t state; /* any value is a good seed (splitmix64) */
};
uint64_t rng_next(struct rng *r);
uint32_t rng_below(struct rng *r, uint32_t n); /* uniform in [0, n), n > 0 */
float rng_normal(struct rng *r);               /* mean 0, variance 1 */
uint64_t rng_entropy(void); /* from the operating system, for ids and default seeds */

#endif
