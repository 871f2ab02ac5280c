/* likely.cuh - top-p, min-p and the draw among a few thousand of a row's largest weights, which lie
 * in shared memory in the order of their ids. Sums are in double and in one fixed order.
 *
 * Every thread of a block of LIKELY_THREADS takes part and gets the result.
 */
#ifndef GAZE_CUDA_TILE_LIKELY_CUH
#define GAZE_CUDA_TILE_LIKELY_CUH

#include "tile/block.cuh"
#include "tile/numbers.cuh"

enum { LIKELY = 4096, LIKELY_THREADS = 1024, OF_THREAD = LIKELY / LIKELY_THREADS };

struct likely {
    float weight[LIKELY];
    uint32_t id[LIKELY];
};

/* The weights from `least` on, at most LIKELY, with their ids, which ascend. A warp has a piece of
 * the row. */
static __device__ void gather_likely(const float *x, uint32_t n, float least, struct likely &to)
{
    __shared__ uint32_t part[LIKELY_THREADS / 32];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t each = (n + LIKELY_THREADS - 1) / LIKELY_THREADS * 32;
    uint32_t begin = warp * each, end = begin + each < n ? begin + each : n, count = 0, at = 0;
#pragma unroll 8
    for (uint32_t i = begin + lane; i < end; i += 32)
        count += x[i] >= least;
    count = warp_sum(count);
    if (lane == 0)
        part[warp] = count;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++)
        at += part[i];
#pragma unroll 4
    for (uint32_t i0 = begin; count && i0 < end; i0 += 32) {
        uint32_t i = i0 + lane;
        float v = i < end ? x[i] : -1.0f;
        uint32_t mask = __ballot_sync(WARP_ALL, v >= least);
        if (v >= least) {
            uint32_t slot = at + (uint32_t)__popc(mask & ((1u << lane) - 1u));
            to.weight[slot] = v;
            to.id[slot] = i;
        }
        at += (uint32_t)__popc(mask);
    }
    __syncthreads();
}

static __device__ double likely_above(const float (&mine)[OF_THREAD], uint32_t bound)
{
    double sum = 0.0;
    for (int k = 0; k < OF_THREAD; k++)
        sum += mine[k] > 0.0f && order_key(mine[k]) > bound ? (double)mine[k] : 0.0;
    return block_sum(sum);
}

/* top-p, min-p and the draw, from weights that reach the target: the fewest of the largest whose
 * sum does, of equal ones the first; of those, what is at least min_p (the largest is 1); and of
 * these the first id at which their sum passes its share `noise` of all. */
static __device__ uint32_t choose_likely(const struct likely &from, uint32_t n, float least,
                                         double target, float min_p, double noise)
{
    __shared__ double part[LIKELY_THREADS / 32];
    __shared__ uint32_t ties_of[LIKELY_THREADS / 32];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float mine[OF_THREAD];
    for (uint32_t k = 0; k < OF_THREAD; k++) {
        uint32_t i = OF_THREAD * threadIdx.x + k;
        mine[k] = i < n ? from.weight[i] : -1.0f;
    }
    uint32_t low = order_key(least), high = order_key(1.0f);
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        if (likely_above(mine, mid - 1) >= target)
            low = mid;
        else
            high = mid - 1;
    }
    double reached = likely_above(mine, low);
    float each = __uint_as_float(low ^ 0x80000000u);
    uint32_t ties = 0, tied = 0, seen;
    do {
        reached += (double)each;
        ties++;
    } while (reached < target && ties < n);
    for (int k = 0; k < OF_THREAD; k++)
        tied += mine[k] > 0.0f && order_key(mine[k]) == low;
    uint32_t before = warp_upto(tied) - tied;
    __syncthreads();
    if (lane == 31)
        ties_of[warp] = before + tied;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++)
        before += ties_of[i];
    double sum = 0.0;
    seen = before;
    uint32_t last = 0;
    for (uint32_t k = 0; k < OF_THREAD; k++) {
        uint32_t key = mine[k] > 0.0f ? order_key(mine[k]) : 0;
        bool stays = key > low || (key == low && seen < ties);
        seen += key == low;
        mine[k] = stays && mine[k] >= min_p ? mine[k] : -1.0f; /* the largest weight is 1 */
        sum += mine[k] > 0.0f ? (double)mine[k] : 0.0;
        last = mine[k] > 0.0f ? OF_THREAD * threadIdx.x + k + 1 : last;
    }
    double upto = warp_upto(sum);
    __syncthreads();
    if (lane == 31)
        part[warp] = upto;
    __syncthreads();
    double total = 0.0, so_far = upto - sum;
    for (uint32_t i = 0; i < LIKELY_THREADS / 32; i++) {
        so_far += i < warp ? part[i] : 0.0;
        total += part[i];
    }
    double wanted = noise * total;
    uint32_t found = LIKELY;
    for (uint32_t k = 0; k < OF_THREAD; k++) {
        so_far += mine[k] > 0.0f ? (double)mine[k] : 0.0;
        if (found == LIKELY && mine[k] > 0.0f && so_far > wanted)
            found = OF_THREAD * threadIdx.x + k;
    }
    last = block_max(last);
    found = LIKELY - block_max(LIKELY - found); /* the first of all */
    return from.id[found < LIKELY ? found : last ? last - 1 : 0];
}

#endif
