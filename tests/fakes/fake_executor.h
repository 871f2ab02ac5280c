/* fake_executor.h - runs batches under a virtual clock, and is as easily offended as a real worker.
 *
 * It keeps a shadow of the KV cache: for each slot a value that stands for the bits a model would
 * write, a hash of all tokens up to there, their top-k and the form in which each row attended.
 * Tokens are "chosen" by hashing the last slot's value with seed, stream and position. So a token
 * that differs between two runs means that some slot it depends on was not what it should have
 * been.
 *
 * When a batch starts it checks (and asserts) that block tables cover their positions, that no page
 * is written while any other sequence of a batch in flight reads or writes it, that every slot read
 * was written, by the same tokens, that results are in order and belong to their sequence's rows.
 * A failing step writes garbage into its slots.
 */
#ifndef GAZE_TEST_FAKE_EXECUTOR_H
#define GAZE_TEST_FAKE_EXECUTOR_H

#include "base/rng.h"
#include "sched/batch.h"

struct fake_cost {
    double step_us, token_us; /* of a step; of each of its rows */
    double depth_us;          /* more, for each 1024 positions that a row sees */
};

struct fake_executor {
    struct executor exec; /* give it to the scheduler; done and done_arg are the owner's to set */
    struct fake_cost cost[N_LANES];
    bool serial; /* one device: a step waits for the other lane's */
    uint32_t vocab;
    uint32_t fail_per_1000, bad_per_1000; /* steps that fail, tokens with bad logits */
    uint32_t check_every; /* every n-th step of a lane checks all slots; others the newest page */
    struct rng rng;
    uint64_t now_us, busy_until_us, n_steps, n_rows;
    uint32_t n_pages;
    uint64_t *value;                 /* [n_pages * KV_PAGE_TOKENS] 0: never written */
    uint32_t *n_writers, *n_readers; /* [n_pages] by batches in flight */
    struct batch *out[N_LANES];
    uint64_t end_us[N_LANES];
};

/* Costs: a step of 1 ms and 10 us a row in both lanes; change the fields at will. */
void fake_executor_init(struct fake_executor *f, uint32_t n_pages, uint64_t seed);
void fake_executor_free(struct fake_executor *f);
/* When the next batch ends; UINT64_MAX: none is in flight. */
uint64_t fake_executor_next_us(const struct fake_executor *f);
/* Moves the clock and gives back the batches that have ended by then. */
void fake_executor_advance(struct fake_executor *f, uint64_t now_us);

#endif
