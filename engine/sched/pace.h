/* pace.h - what a prefill step costs, measured: so that it can be cut to a deadline.
 *
 *   us = fixed + n * row + depth * (sum of the rows' positions)
 *
 * A step reads the weights whatever it carries; a row costs its products; and the indexer, or dense
 * attention, looks at each position before the row. The three are learned together, by a Kalman
 * filter: a small step tells of the fixed cost, one of many rows of the rows, a deep one of the
 * depth, and what several steps leave open between two parts the next one that tells them apart
 * decides.
 *
 * Thread: the scheduler's.
 */
#ifndef GAZE_SCHED_PACE_H
#define GAZE_SCHED_PACE_H

#include <stdint.h>

enum { PACE_FIXED, PACE_ROW, PACE_DEPTH, PACE_PARTS };

struct pace {
    double us[PACE_PARTS];   /* of a step; of a row; of a row for each position before it */
    double step[PACE_PARTS]; /* how much of each the planned step has */
    double unsure[PACE_PARTS][PACE_PARTS]; /* covariance of the parts' relative errors */
    uint64_t n_seen;                       /* steps that were measured */
};

/* Before anything is measured a step of FIRST_ROWS rows is guessed to take budget_us. */
void pace_init(struct pace *p, double budget_us);
/* Of one more row at position pos. */
double pace_row_us(const struct pace *p, uint32_t pos);
void pace_begin_step(struct pace *p);
void pace_add_rows(struct pace *p, uint32_t pos, uint32_t n); /* positions [pos, pos + n) */
double pace_planned_us(const struct pace *p);                 /* of the step so far */
void pace_learn(struct pace *p, double us);                   /* the planned step took that */

#endif
