/* relay.h - the rounds of a team (worker.c) whose ranks are in several processes: process 0 tells
 * the others what to run, in the order in which it runs it, and hears what they chose.
 *
 * Between process 0 and each process that has ranks of a team is one line (comm/line.h) of that
 * team, so teams do not wait for each other; a team has one round out at a time. A process is told
 * of the groups that it has ranks of, and one that has a group's first rank chooses its tokens.
 *
 * Ranks are numbered through: process p has the ranks [p * n_here, (p + 1) * n_here).
 *
 * Thread: a relay is its team's leader's; relays_shut() from any.
 */
#ifndef GAZE_EXEC_RELAY_H
#define GAZE_EXEC_RELAY_H

#include "comm/meeting.h"
#include "exec/wire.h"

struct relay; /* opaque; of one team */

struct relays_config {
    struct meeting *meeting; /* borrowed for the opening */
    uint32_t process, n_processes;
    uint32_t n_groups, n_ranks; /* all groups; ranks of each */
    bool joined;                /* one team of all groups in each lane; else one of each group */
    uint32_t open_ms;
    struct wire_limits limits[N_LANES];
};
struct relays {
    uint32_t n;          /* teams * N_LANES, in the order of workers.c */
    struct relay **team; /* [n]; NULL: no other process has to do with that team */
};

/* All processes together. ERR_COMM: who did not come; ERR_IO, ERR_NOMEM. */
MUST_CHECK enum err_code relays_open(struct relays *out, const struct relays_config *c,
                                     struct err *e);
/* Ends all lines; whoever waits at one gets ERR_COMM. */
void relays_shut(struct relays *r);
/* Process 0, after relay_end() of each: waits for the others to hang up, for a while. */
void relays_close(struct relays *r);

/* Process 0. step[n_groups of the team]: told to all that have ranks of them. ERR_COMM, ERR_NOMEM
 */
MUST_CHECK enum err_code relay_tell(struct relay *r, const struct step *step, struct err *e);
/* Waits for all that were told: step[i].out where another process chose, and the first error of
 * others in each group where err[i] is ERR_OK. ERR_COMM: one is gone. */
MUST_CHECK enum err_code relay_hear(struct relay *r, const struct step *step, struct err *err,
                                    struct err *e);
void relay_end(struct relay *r); /* no round comes any more */

/* The others. Waits for the next round, whose steps point into the relay until the next call; those
 * of groups that are not here have no rows. *end: there is none. ERR_COMM: process 0 is gone. */
MUST_CHECK enum err_code relay_next(struct relay *r, struct step *step, bool *end, struct err *e);
MUST_CHECK enum err_code relay_answer(struct relay *r, const struct step *step,
                                      const struct err *err, struct err *e);

#endif
