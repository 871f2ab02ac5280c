/* rng.c - see rng.h. */
#include "base/rng.h"

#include "base/clock.h"
#include "base/hash.h"

#include <math.h>
#include <sys/random.h>

void philox4x32(uint64_t key, uint32_t position, uint32_t stream, uint32_t out[4])
{
    uint32_t c0 = position, c1 = stream, c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint64_t rng_next(struct rng *r)
{
    return hash_mix(r->state += 0x9E3779B97F4A7C15u);
}

uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(((rng_next(r) >> 32) * n) >> 32);
}

float rng_normal(struct rng *r)
{
    float u = rng_unit((uint32_t)rng_next(r)), v = rng_unit((uint32_t)rng_next(r));
    return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

uint64_t rng_entropy(void)
{
    uint64_t x;
    if (getrandom(&x, sizeof x, 0) != (long)sizeof x)
        x = clock_us() * 0x9E3779B97F4A7C15u;
    return x;
}
