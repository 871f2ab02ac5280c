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
 *
 * Each attention group has a shadow of its own. A move copies values from one to another and sums
 * them; it may fail half-way, or change a value and say nothing but by its sums. A group may die:
 * what it has out never comes back, and after a while the executor says that it is lost.
 */
#ifndef GAZE_TEST_FAKE_EXECUTOR_H
#define GAZE_TEST_FAKE_EXECUTOR_H

#include "base/rng.h"
#include "engine.h"
#include "sched/batch.h"

struct fake_cost {
    double step_us, token_us; /* of a step; of each of its rows */
    double depth_us;          /* more, for each 1024 positions that a row sees */
};

struct fake_group {
    uint64_t *value;                 /* [n_pages * KV_PAGE_TOKENS] 0: never written */
    uint32_t *n_writers, *n_readers; /* [n_pages] by batches and moves in flight */
    struct batch *out[N_LANES];
    struct page_move *move; /* that it is the source of */
    uint64_t end_us[N_LANES], move_end_us, busy_until_us;
    double left_us[N_LANES]; /* where lanes share the device: work that was left at since_us */
    uint64_t since_us;
    bool dead;
};

struct fake_executor {
    struct executor exec; /* give it to the scheduler; the callbacks are the owner's to set */
    struct fake_cost cost[N_LANES];
    double move_us, page_us; /* of a move; of each of its pages */
    bool serial;             /* one device a group: a step waits for the other lane's */
    bool shared;             /* two steps at once go at half their speed */
    uint32_t vocab;
    uint32_t fail_per_1000, bad_per_1000; /* steps that fail, tokens with bad logits */
    uint32_t move_fail_per_1000, move_corrupt_per_1000;
    uint64_t die_at_step;  /* 0: never; the group of that step dies with it */
    uint32_t die_after_us; /* so long until it shows */
    uint64_t dies_us;      /* UINT64_MAX: no group is dead, or it has been told */
    uint32_t check_every;  /* every n-th step of a lane checks all slots; others the newest page */
    struct rng rng;
    uint64_t now_us, n_steps, n_rows, n_moves, n_corrupted;
    uint32_t n_pages, n_groups;
    struct fake_group group[ENGINE_MAX_GROUPS];
};

/* Costs: a step of 1 ms and 10 us a row in both lanes, a move of 200 us and 20 us a page; change
 * the fields at will. */
void fake_executor_init(struct fake_executor *f, uint32_t n_groups, uint32_t n_pages,
                        uint64_t seed);
void fake_executor_free(struct fake_executor *f);
/* When the next batch ends; UINT64_MAX: none is in flight. */
uint64_t fake_executor_next_us(const struct fake_executor *f);
/* Moves the clock and gives back the batches that have ended by then. */
void fake_executor_advance(struct fake_executor *f, uint64_t now_us);
/* What dead groups have out comes back after all, with an error. */
void fake_executor_bury(struct fake_executor *f);

#endif
