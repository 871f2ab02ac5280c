/* fair.h - waiting requests of several tenants share the engine by weight.
 *
 * Start-time fair queueing: a request's tag is the virtual time at which its tenant's turn for it
 * comes, max(now, when what the tenant asked for before is paid off), and waiting requests are
 * served by tag. What a request costs, prompt and answer tokens divided by the tenant's weight, is
 * estimated when it comes (by the tenant's usual answer) and put right when it ends. Virtual time
 * is the latest tag that was admitted, so a tenant that was idle gets its share from now on and
 * nothing for the past, and a waiting request is passed by others only until their tags have grown
 * beyond its own: nobody starves. A single tenant is served in order of arrival.
 *
 * Thread:    the scheduler's.
 * Invariant: tags of one tenant do not fall.
 */
#ifndef GAZE_SCHED_FAIR_H
#define GAZE_SCHED_FAIR_H

#include "request.h"

struct fair_tenant {
    double paid_at;  /* virtual time when all that it asked for is paid off */
    double last_tag; /* given to its last request */
    double answer;   /* tokens of its usual answer */
};
struct fair {
    struct fair_tenant tenant[REQUEST_TENANTS];
    double now; /* virtual time */
};

void fair_init(struct fair *f);
/* Gives the request's tag; *cost is what to hand back to fair_ended(). */
double fair_arrived(struct fair *f, const struct gen_request *r, double *cost);
void fair_admitted(struct fair *f, double tag);
void fair_ended(struct fair *f, const struct gen_request *r, double cost, uint32_t prompt_tokens,
                uint32_t answer_tokens);

#endif
