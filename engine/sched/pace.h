/* pace.h - what a prompt token costs, measured: so that a prefill step can be cut to a deadline.
 *
 * The cost of a token grows with its depth (the positions it sees), so there is an estimate for
 * each range of depths, in microseconds per token, corrected after each step by how far the
 * prediction was off. A step's fixed cost is folded into the estimate of its tokens.
 *
 * Thread: the scheduler's.
 */
#ifndef GAZE_SCHED_PACE_H
#define GAZE_SCHED_PACE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PACE_DEPTHS = 16,
    PACE_FIRST_DEPTH = 512, /* tokens; each range is twice as long as the one before */
    PACE_MIN_ROWS = 16      /* a step has so many rows at least, however slow they are */
};

struct pace {
    double us_per_token[PACE_DEPTHS]; /* 0: not measured yet */
    bool in_step[PACE_DEPTHS];        /* the planned step has rows there */
    double guess_us;                  /* while nothing is measured */
};

void pace_init(struct pace *p, uint64_t budget_us);
/* Of one token at position pos: by measurement there, or at the nearest depth that has one. */
double pace_token_us(const struct pace *p, uint32_t pos);
void pace_begin_step(struct pace *p);
void pace_add_rows(struct pace *p, uint32_t pos); /* the step has rows at this depth */
/* The step was predicted to take planned_us and took us. learn_rows: how many rows it had. */
void pace_learn(struct pace *p, double planned_us, double us, uint32_t n_rows, double budget_us);

#endif
