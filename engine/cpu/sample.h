/* sample.h - a worker's memory for choosing tokens, and the choice itself, for tests of its own.
 *
 * Rules that sample.h of model/ leaves open:
 *
 * - penalties: repetition over prompt and output (a positive logit is divided, another multiplied),
 *   then frequency (times the count) and presence, both over the output alone
 * - top-k: exactly k remain; of equal logits the lower ids
 * - top-p: the shortest prefix, by probability and then by id, that reaches top_p, summed in that
 *   order in double; what top-k removed counts for nothing
 * - min-p: at least min_p times the largest probability
 * - draw: inverse CDF over what remains in order of ids, with 53 bits of Philox(seed, position,
 *   stream)
 * - rank: by logit and then by id, as the top log-probabilities are listed
 *
 * A NaN or +inf among the logits, or nothing left to choose, gives bad_logits.
 */
#ifndef GAZE_CPU_SAMPLE_H
#define GAZE_CPU_SAMPLE_H

#include "cpu/backend.h"

#include "cpu/dsa_loops.h"

struct sample_entry {
    float weight;
    uint32_t at;
};

struct sample_worker { /* vocab entries each, and some slack */
    float *logit;      /* after bias, bans and penalties; then of the log-probabilities */
    float *value;      /* of what may still be chosen, in order of ids */
    uint32_t *id;
    int32_t *pick;   /* positions in value */
    uint32_t *count; /* all zero between rows */
    struct sample_entry *sorted;
    void *topk;
};

/* Chooses from one row of raw logits. */
void sample_choose(const struct kernels *k, const struct dsa_loops *loops, struct sample_worker *w,
                   const float *raw, uint32_t vocab, uint32_t end_id, const struct sample_row *row,
                   struct sample_out *out);

#endif
