/* sample.h - how the next token is chosen: one row of logits, one set of wishes, one answer.
 *
 * Order, as in the field: logit bias and bans, penalties, temperature, top-k, top-p, min-p, draw.
 * Greedy (temperature 0) takes the largest after bias and penalties, the lower id on ties. The
 * draw's noise is Philox(seed, position): neither the batch nor the worker matters.
 * Log-probabilities are those of the raw logits (before bias, penalties and temperature).
 * Thread: a row is read by the worker while its step runs; the scheduler owns it before and after.
 */
#ifndef GAZE_MODEL_SAMPLE_H
#define GAZE_MODEL_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

enum { SAMPLE_MAX_TOP = 20 }; /* top_logprobs at most */

struct sample_bias {
    uint32_t id;
    float bias;
};

struct sample_params { /* a request's, immutable; pointers borrowed from the request */
    float temperature; /* 0: greedy */
    float top_p, min_p;
    uint32_t top_k;                                                /* 0: off */
    float presence_penalty, frequency_penalty, repetition_penalty; /* 0, 0, 1: off */
    uint64_t seed;
    const struct sample_bias *bias;
    uint32_t n_bias;
    const uint32_t *allowed; /* bit set over the vocabulary; NULL: all */
    bool want_logprob;       /* else logprob is not computed */
    uint32_t n_top;          /* top log-probabilities wanted, <= SAMPLE_MAX_TOP */
};

struct sample_row {
    const struct sample_params *p;
    uint32_t position;       /* of the token to be chosen: the noise's counter */
    uint32_t stream;         /* index of the choice (n > 1): another stream of noise */
    const uint32_t *history; /* prompt, then output so far; for penalties */
    uint32_t n_prompt, n_history;
    const uint32_t *banned; /* ids that must not come now: bad words, end ids before min_tokens */
    uint32_t n_banned;
    bool given; /* prompt log-probabilities: the token is known, nothing is drawn */
    uint32_t given_token;
};

struct sample_top {
    uint32_t id;
    float logprob;
};

struct sample_out {
    uint32_t token;
    float logprob; /* when wanted */
    uint32_t rank; /* 1: the most likely; when wanted */
    uint32_t n_top;
    struct sample_top top[SAMPLE_MAX_TOP]; /* most likely first; the lower id on ties */
    bool bad_logits; /* a NaN, or nothing was allowed: token is the end id of the row's model */
};

#endif
