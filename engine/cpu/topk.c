/* topk.c - see topk.h. */
#include "cpu/topk.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { MIN_GROUPS = 256, MAX_GROUPS = 8192, SLACK = 64 };

size_t topk_scratch_bytes(uint32_t max_n)
{
    /* kept values (later their keys), their positions, the groups' maxima and keys */
    return 4 * (2 * ((size_t)max_n + SLACK) + 2 * (size_t)MAX_GROUPS);
}

/* The largest key that at least k of key[0, n) reach: the k-th largest. *n_above: how many exceed
 * it. */
static int32_t kth_largest(const struct dsa_loops *loops, const int32_t *key, uint32_t n,
                           uint32_t k, uint32_t *n_above)
{
    uint32_t best = 0; /* as unsigned: INT32_MIN is 0 */
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        uint32_t count = loops->count_at_least(key, n, (int32_t)((best | bit) ^ 0x80000000u));
        if (count >= k)
            best |= bit;
    }
    int32_t kth = (int32_t)(best ^ 0x80000000u);
    *n_above = kth == INT32_MAX ? 0 : loops->count_at_least(key, n, kth + 1);
    return kth;
}

static void make_keys(const float *x, uint32_t n, int32_t *key)
{
    for (uint32_t i = 0; i < n; i++)
        key[i] = topk_key(x[i]);
}

/* Enough groups that their k-th maximum is close to the k-th score; 0: n is too small to gain. */
static uint32_t groups_for(uint32_t n, uint32_t k)
{
    uint64_t want = MIN_GROUPS;
    while (want < 2 * (uint64_t)k)
        want *= 2;
    return want <= MAX_GROUPS && want * 2 <= n ? (uint32_t)want : 0;
}

uint32_t topk_select(const struct dsa_loops *loops, const float *score, uint32_t n, uint32_t k,
                     int32_t *out, void *scratch)
{
    assert(n <= (uint32_t)INT32_MAX);
    if (k >= n) {
        for (uint32_t i = 0; i < n; i++)
            out[i] = (int32_t)i;
        return n;
    }
    if (!k)
        return 0;
    float *best = scratch;
    int32_t *best_key = (int32_t *)(best + MAX_GROUPS);
    int32_t *kept_key = best_key + MAX_GROUPS;
    uint32_t *kept_at = (uint32_t *)(kept_key + ((size_t)n + SLACK)), n_kept = 0, n_above;
    uint32_t n_groups = groups_for(n, k);
    if (n_groups) {
        loops->group_max(score, n, n_groups, best);
        make_keys(best, n_groups, best_key);
        int32_t bound = kth_largest(loops, best_key, n_groups, k, &n_above);
        float b;
        int32_t bits = bound ^ (bound >> 31 & INT32_MAX);
        memcpy(&b, &bits, sizeof b);
        if (b >
            -INFINITY) { /* else NaN scores may be among the k largest, and compares miss them */
            n_kept = loops->keep(score, n, b, (float *)kept_key, kept_at);
            for (uint32_t i = 0; i < n_kept; i++) {
                float x;
                memcpy(&x, &kept_key[i], sizeof x);
                kept_key[i] = topk_key(x);
            }
        }
    }
    bool all = !n_kept;
    if (all) {
        make_keys(score, n, kept_key);
        n_kept = n;
    }
    int32_t kth = kth_largest(loops, kept_key, n_kept, k, &n_above);
    uint32_t n_equal = k - n_above, n_out = 0;
    for (uint32_t i = 0; i < n_kept && n_out < k; i++) {
        if (kept_key[i] < kth || (kept_key[i] == kth && !n_equal))
            continue;
        n_equal -= kept_key[i] == kth;
        out[n_out++] = (int32_t)(all ? i : kept_at[i]);
    }
    assert(n_out == k);
    return k;
}
