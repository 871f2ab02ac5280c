/* dsa_loops.h - the inner loops of attention, indexer and selection, once per instruction set.
 *
 * Private to engine/cpu. Work is cut in tiles of 64 positions, the length of a page. A tile's keys
 * lie transposed, kt[d][64], so that vector lanes are positions: a score is then one sum over d in
 * rising order whatever rows share the call, and no lane is ever added to another. Values lie as
 * they are, v[position][dim], lanes are dims, and a sum runs over positions in rising order. Both
 * orders depend on the row alone, which is what makes a row's bits independent of its batch.
 *
 * dsa_avx512.c, dsa_avx2.c and dsa_portable.c compile the same body (dsa_body.h); AVX-512 adds its
 * own FP8 indexer. Tables differ from each other by rounding only.
 */
#ifndef GAZE_CPU_DSA_LOOPS_H
#define GAZE_CPU_DSA_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TILE = 64 }; /* positions */

struct dsa_loops {
    /* kt[d][64] = x[position][d]; positions in [n_pos, 64) become zero. */
    void (*transpose)(const float *x, size_t ldx, uint32_t n_pos, uint32_t dim, float *kt);
    /* s[row][64] = q[row] . kt over dim. */
    void (*scores)(const float *q, size_t ldq, uint32_t n_rows, uint32_t dim, const float *kt,
                   float *s);
    /* One row of a streamed softmax: s[0, n) (n >= 1) times scale become exp(s - max) with the
     * running maximum *max (-inf at first) and sum *sum; *shrink is what older sums must be
     * multiplied by. */
    void (*softmax)(float *s, uint32_t n, float scale, float *max, float *sum, float *shrink);
    /* o[row][dim] = o[row] * shrink[row] + sum over s < n[row] of p[row][s] v[s]. n does not rise.
     */
    void (*values)(const float *p, size_t ldp, const uint32_t *n, uint32_t n_rows, const float *v,
                   size_t ldv, uint32_t dim, const float *shrink, float *o, size_t ldo);

    /* FP8 indexer. A query's `heads` vectors of e4m3 values become what index_scores reads (at most
     * 4 bytes a value), a page's first n keys become a tile (256 * dim bytes), and score[j] =
     * key_scale[j] * sum_h w[h] max(0, q[h] . key[j]) for all 64 (zero keys score zero). */
    void (*index_query)(const float *q, uint32_t heads, uint32_t dim, void *out);
    void (*index_tile)(const uint8_t *key, uint32_t n, uint32_t dim, void *kt);
    void (*index_scores)(const void *q, const float *w, uint32_t heads, uint32_t dim,
                         const void *kt, const float *key_scale, float *score);
    /* Both at once, for one query: the same bits, and kt (256 * dim bytes) may be left unused. */
    void (*index_page)(const void *q, const float *w, uint32_t heads, uint32_t dim,
                       const uint8_t *key, uint32_t n, const float *key_scale, void *kt,
                       float *score);
    /* The same from fp32 queries and a transposed tile; scratch holds heads * 64 values. */
    void (*index_scores_f32)(const float *q, const float *w, uint32_t heads, uint32_t dim,
                             const float *kt, float *scratch, float *score);

    /* best[g] = largest of x[g], x[g + n_groups], ... for n_groups (a multiple of 64) groups; NaN
     * is passed over, so a group of NaNs has -inf. n >= n_groups. */
    void (*group_max)(const float *x, uint32_t n, uint32_t n_groups, float *best);
    /* Keeps x[i] >= bound: value and index, in order of index. Returns how many. Room for 16
     * beyond. */
    uint32_t (*keep)(const float *x, uint32_t n, float bound, float *value, uint32_t *index);
    uint32_t (*count_at_least)(const int32_t *key, uint32_t n, int32_t bound);
};

/* For the kernel table of that name. */
const struct dsa_loops *dsa_loops_for(const char *kernels_name);

extern const struct dsa_loops dsa_loops_portable;
const struct dsa_loops *dsa_loops_avx2(void);   /* NULL: not in this build */
const struct dsa_loops *dsa_loops_avx512(void); /* likewise */

#endif
