/* pace.c - see pace.h. */
#include "sched/pace.h"

#include <assert.h>
#include <string.h>

enum {
    FIRST_ROWS = 64
}; /* of the first step beside decoding sequences: small enough for any machine */

static uint32_t depth_of(uint32_t pos)
{
    uint32_t d = 0;
    for (uint32_t p = pos / PACE_FIRST_DEPTH; p && d < PACE_DEPTHS - 1; p >>= 1)
        d++;
    return d;
}

void pace_init(struct pace *p, uint64_t budget_us)
{
    *p = (struct pace){.guess_us = (double)budget_us / FIRST_ROWS};
}

double pace_token_us(const struct pace *p, uint32_t pos)
{
    uint32_t d = depth_of(pos);
    for (uint32_t i = 0; i < PACE_DEPTHS; i++) {
        if (d >= i && p->us_per_token[d - i] > 0)
            return p->us_per_token[d - i];
        if (d + i < PACE_DEPTHS && p->us_per_token[d + i] > 0)
            return p->us_per_token[d + i];
    }
    return p->guess_us;
}

void pace_begin_step(struct pace *p)
{
    memset(p->in_step, 0, sizeof p->in_step);
}

void pace_add_rows(struct pace *p, uint32_t pos)
{
    p->in_step[depth_of(pos)] = true;
}

void pace_learn(struct pace *p, double planned_us, double us, uint32_t n_rows, double budget_us)
{
    assert(planned_us > 0);
    double off = (us > 1 ? us : 1) / planned_us;
    /* A small step is mostly fixed cost and says little of its tokens, unless it broke the budget
     * while it could have been smaller. */
    if (planned_us < budget_us / 2 && (us <= budget_us || n_rows <= PACE_MIN_ROWS))
        return;
    /* Too long is corrected at once, too short carefully: one quick step proves nothing. */
    double weight = off > 1 ? 0.7 : 0.3;
    off = off > 8 ? 8 : off < 0.25 ? 0.25 : off;
    for (uint32_t d = 0; d < PACE_DEPTHS; d++) {
        if (!p->in_step[d])
            continue;
        uint32_t pos = d ? (uint32_t)PACE_FIRST_DEPTH << (d - 1) : 0;
        bool known = p->us_per_token[d] > 0;
        double was = pace_token_us(p, pos);
        p->us_per_token[d] = was * (known ? 1 + weight * (off - 1) : off);
    }
}
