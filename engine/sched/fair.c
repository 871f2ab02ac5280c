/* fair.c - see fair.h. */
#include "sched/fair.h"

/* Before anything is known of a tenant; and how much one answer changes what is usual. */
static const double FIRST_ANSWER = 128, ANSWER_SHARE = 0.125;

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static double share(const struct gen_request *r, double tokens)
{
    return tokens / (r->weight ? r->weight : 1);
}

void fair_init(struct fair *f)
{
    *f = (struct fair){0};
    for (uint32_t i = 0; i < REQUEST_TENANTS; i++)
        f->tenant[i].answer = FIRST_ANSWER;
}

double fair_arrived(struct fair *f, const struct gen_request *r, double *cost)
{
    assert(r->tenant < REQUEST_TENANTS);
    struct fair_tenant *t = &f->tenant[r->tenant];
    double answer = t->answer < r->max_tokens ? t->answer : r->max_tokens;
    double tag = larger(larger(f->now, t->paid_at), t->last_tag);
    *cost = share(r, r->n_prompt + r->n * answer);
    t->last_tag = tag;
    t->paid_at = larger(f->now, t->paid_at) + *cost;
    return tag;
}

void fair_admitted(struct fair *f, double tag)
{
    f->now = larger(f->now, tag);
}

void fair_ended(struct fair *f, const struct gen_request *r, double cost, uint32_t prompt_tokens,
                uint32_t answer_tokens)
{
    struct fair_tenant *t = &f->tenant[r->tenant];
    double each = (double)answer_tokens / r->n;
    t->paid_at += share(r, (double)prompt_tokens + answer_tokens) - cost;
    if (answer_tokens)
        t->answer += (each - t->answer) * ANSWER_SHARE;
}
