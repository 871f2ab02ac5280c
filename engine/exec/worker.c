/* worker.c - see worker.h. */
#include "exec/worker.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STALL_US = 9000000 };

struct part {                      /* a group's part of a round */
    struct batch *waiting, *batch; /* to be run; being run */
    struct step step;
    uint32_t *token;      /* [max_rows] the step's arrays, reserved once */
    struct step_seq *seq; /* [max_seqs] */
};

struct runner { /* a rank in a team; the first one leads it */
    struct team *team;
    uint32_t index; /* among those here */
    uint32_t rank;  /* of all */
    pthread_t thread;
    bool started;
    struct err err; /* of its step */
};

struct team {
    struct workers *all;
    enum lane lane;
    uint32_t first_group, n_groups;
    uint32_t n_runners;   /* ranks of it that are here; at least one, which leads */
    struct relay *relay;  /* NULL: all of its ranks are here */
    struct step *told;    /* [n_groups] a round's steps, as they go to other processes or come */
    struct err *err;      /* [n_groups] what went wrong with them */
    pthread_mutex_t lock; /* guards what follows, but for what a round's runners are lent */
    pthread_cond_t given, begun, ended;
    bool ready, stop,
        over; /* ready: lock and conditions are there; over: no round comes any more */
    uint64_t round;
    uint32_t n_running;
    struct part *part;     /* [n_groups] */
    struct runner *runner; /* [n_runners] */
};

struct workers {
    struct executor executor;
    struct workers_config cfg;
    struct team *team; /* [n_teams * N_LANES] */
    uint32_t n_teams;
};

static void hang(void)
{
    for (;;)
        pause();
}

/* ---- one round ---- */

static void make_step(const struct team *t, struct part *p)
{
    struct batch *b = p->batch;
    uint32_t rows = 0;
    p->step = (struct step){.token = p->token, .seq = p->seq};
    if (!b)
        return;
    assert(b->n_seqs >= 1 && b->n_seqs <= t->all->cfg.max_seqs);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        assert(q->row0 == rows && q->n_tokens >= 1);
        assert(q->n_tokens <= t->all->cfg.max_rows[t->lane] - rows);
        memcpy(p->token + rows, q->token, q->n_tokens * sizeof *q->token);
        p->seq[i] = (struct step_seq){.row0 = q->row0,
                                      .n_rows = q->n_tokens,
                                      .pos0 = q->pos0,
                                      .page = q->page,
                                      .top_k = q->top_k,
                                      .expand_below = q->expand_below,
                                      .run = q->run};
        rows += q->n_tokens;
    }
    assert(rows == b->n_rows);
    p->step.n_rows = rows;
    p->step.n_seqs = b->n_seqs;
    p->step.n_out = b->n_out;
    p->step.out_row = b->out_row;
    p->step.sample = b->sample;
    p->step.out = b->out;
    p->step.n_more = b->n_more;
}

static void run_rank(struct runner *r)
{
    struct team *t = r->team;
    const struct workers_config *c = &t->all->cfg;
    struct forward *fw = c->forward[r->rank];
    r->err.code = ERR_OK;
    if (!fw)
        return;                           /* a leader whose team is elsewhere */
    if (r->index && FAULT("worker.peer")) /* a rank that is not the first, and stops */
        hang();
    const struct step *step = &t->told[r->rank / c->n_ranks - t->first_group];
    if (!forward_step(fw, t->lane, step, &r->err))
        r->err.code = ERR_OK;
    if (r->err.code == ERR_COMM) /* at once: the others may never end theirs */
        t->all->executor.lost(t->all->executor.done_arg, &r->err);
}

/* What went wrong with each group's step on the ranks here, to t->err; of several errors of a group
 * the one that does not only say that others did not come. */
static void collect_errors(struct team *t)
{
    for (uint32_t g = 0; g < t->n_groups; g++)
        t->err[g].code = ERR_OK;
    for (uint32_t i = 0; i < t->n_runners; i++) {
        const struct err *own = &t->runner[i].err;
        struct err *e = &t->err[t->runner[i].rank / t->all->cfg.n_ranks - t->first_group];
        if (own->code && (!e->code || (e->code == ERR_COMM && own->code != ERR_COMM)))
            *e = *own;
    }
}

/* A relay that fails: no step of the team will succeed any more. */
static void lose_round(struct team *t, const struct err *why)
{
    for (uint32_t g = 0; g < t->n_groups; g++)
        if (!t->err[g].code)
            t->err[g] = *why;
    t->all->executor.lost(t->all->executor.done_arg, why);
}

/* The leader, with the lock held; gives it back for the time of the step. */
static void run_together(struct team *t)
{
    t->n_running = t->n_runners - 1;
    t->round++;
    pthread_cond_broadcast(&t->begun);
    mutex_unlock(&t->lock);
    run_rank(&t->runner[0]);
    mutex_lock(&t->lock);
    while (t->n_running)
        cond_wait_us(&t->ended, &t->lock, 0);
}

/* The same without the lock held, with the ranks of other processes. */
static void run_everywhere(struct team *t)
{
    struct err e = {0};
    if (t->relay && relay_tell(t->relay, t->told, &e)) {
        lose_round(t, &e);
        return;
    }
    mutex_lock(&t->lock);
    run_together(t);
    mutex_unlock(&t->lock);
    collect_errors(t);
    if (t->relay && relay_hear(t->relay, t->told, t->err, &e))
        lose_round(t, &e);
}

/* A step that is made to fail fails on all ranks, and runs on none. */
static bool fails_by_fault(struct team *t)
{
    struct err e = {0};
    if (FAULT("worker.stall")) /* a device that hangs, and comes back */
        usleep(STALL_US);
    if (FAULT("worker.hang")) /* one that does not */
        hang();
    if (FAULT("worker.step"))
        err_set(&e, ERR_CUDA, "step: injected fault");
    else if (FAULT("worker.rank"))
        err_set(&e, ERR_COMM, "rank 0 is gone: injected fault");
    for (uint32_t g = 0; g < t->n_groups; g++)
        t->err[g] = e;
    if (e.code == ERR_COMM)
        t->all->executor.lost(t->all->executor.done_arg, &e);
    return e.code != ERR_OK;
}

/* Takes the batches that wait, runs them, and gives them back; the lock is held before and after.
 */
static void run_round(struct team *t)
{
    uint32_t most = 0;
    for (uint32_t g = 0; g < t->n_groups; g++) {
        struct part *p = &t->part[g];
        p->batch = p->waiting;
        p->waiting = NULL;
        make_step(t, p);
        most = p->step.n_rows > most ? p->step.n_rows : most;
    }
    for (uint32_t g = 0; g < t->n_groups; g++) {
        t->part[g].step.most_rows = most;
        t->told[g] = t->part[g].step;
    }
    uint64_t start_us = clock_us();
    mutex_unlock(&t->lock);
    if (!fails_by_fault(t))
        run_everywhere(t);
    uint64_t end_us = clock_us();
    struct executor *x = &t->all->executor;
    for (uint32_t g = 0; g < t->n_groups; g++) {
        struct batch *b = t->part[g].batch;
        if (!b)
            continue;
        t->part[g].batch = NULL;
        b->start_us = start_us;
        b->end_us = end_us;
        b->err = t->err[g];
        x->done(x->done_arg, b);
    }
    mutex_lock(&t->lock);
}

/* ---- threads ---- */

static bool has_work(const struct team *t)
{
    bool work = false;
    for (uint32_t g = 0; g < t->n_groups; g++)
        work = work || t->part[g].waiting;
    return work;
}

/* The lock is held. */
static void end_rounds(struct team *t)
{
    t->over = true;
    pthread_cond_broadcast(&t->begun);
}

/* A team that is told what to run. */
static void follow(struct team *t)
{
    struct err e = {0};
    bool end = false;
    while (!relay_next(t->relay, t->told, &end, &e) && !end) {
        mutex_lock(&t->lock);
        run_together(t);
        mutex_unlock(&t->lock);
        collect_errors(t);
        if (relay_answer(t->relay, t->told, t->err, &e))
            break;
    }
    mutex_lock(&t->lock);
    end_rounds(t);
    mutex_unlock(&t->lock);
    if (end)
        t->all->cfg.ended(t->all->cfg.arg);
    else
        t->all->executor.lost(t->all->executor.done_arg, &e);
}

static void *leader_main(void *arg)
{
    struct team *t = ((struct runner *)arg)->team;
    if (t->all->cfg.follows) {
        follow(t);
        return NULL;
    }
    mutex_lock(&t->lock);
    for (;;) {
        while (!has_work(t) && !t->stop)
            cond_wait_us(&t->given, &t->lock, 0);
        if (!has_work(t))
            break; /* stop, and nothing left to run */
        run_round(t);
    }
    end_rounds(t);
    mutex_unlock(&t->lock);
    if (t->relay)
        relay_end(t->relay);
    return NULL;
}

static void *follower_main(void *arg)
{
    struct runner *r = arg;
    struct team *t = r->team;
    uint64_t round = 0;
    mutex_lock(&t->lock);
    for (;;) {
        while (t->round == round && !t->over)
            cond_wait_us(&t->begun, &t->lock, 0);
        if (t->round == round)
            break;
        round = t->round;
        mutex_unlock(&t->lock);
        run_rank(r);
        mutex_lock(&t->lock);
        if (--t->n_running == 0)
            pthread_cond_signal(&t->ended);
    }
    mutex_unlock(&t->lock);
    return NULL;
}

static struct team *team_of(struct workers *all, uint32_t group, enum lane lane)
{
    return &all->team[(all->cfg.joined ? 0 : group) * N_LANES + lane];
}

static void executor_start(void *self, struct batch *b)
{
    struct team *t = team_of(self, b->group, b->lane);
    struct part *p = &t->part[b->group - t->first_group];
    mutex_lock(&t->lock);
    assert(!p->waiting && !t->stop);
    p->waiting = b;
    pthread_cond_signal(&t->given);
    mutex_unlock(&t->lock);
}

/* ---- life ---- */

static enum err_code start_runner(struct team *t, uint32_t i, struct err *e)
{
    static const char *const names[N_LANES] = {"prefill", "decode"};
    struct runner *r = &t->runner[i];
    char name[16];
    r->team = t;
    r->index = i;
    if (t->all->cfg.n_groups * t->all->cfg.n_ranks == 1)
        snprintf(name, sizeof name, "%s", names[t->lane]);
    else
        snprintf(name, sizeof name, "%s%u", names[t->lane], r->rank % 1000);
    if (thread_start(&r->thread, name, i ? follower_main : leader_main, r, e))
        return e->code;
    r->started = true;
    return ERR_OK;
}

static enum err_code open_team(struct workers *all, uint32_t index, struct err *e)
{
    const struct workers_config *c = &all->cfg;
    struct team *t = &all->team[index];
    t->all = all;
    t->lane = (enum lane)(index % N_LANES);
    t->n_groups = c->joined ? c->n_groups : 1;
    t->first_group = c->joined ? 0 : index / N_LANES;
    uint32_t first = t->first_group * c->n_ranks, n = t->n_groups * c->n_ranks, n_here = 0;
    for (uint32_t i = 0; i < n; i++)
        n_here += c->forward[first + i] != NULL;
    if (c->follows && !n_here)
        return ERR_OK; /* nothing of it is here */
    t->n_runners = n_here ? n_here : 1;
    t->relay = c->relays.n ? c->relays.team[index] : NULL;
    pthread_mutex_init(&t->lock, NULL);
    cond_init_monotonic(&t->given);
    cond_init_monotonic(&t->begun);
    cond_init_monotonic(&t->ended);
    t->ready = true;
    t->part = calloc(t->n_groups, sizeof *t->part);
    t->runner = calloc(t->n_runners, sizeof *t->runner);
    t->told = calloc(t->n_groups, sizeof *t->told);
    t->err = calloc(t->n_groups, sizeof *t->err);
    if (!t->part || !t->runner || !t->told || !t->err)
        return err_set(e, ERR_NOMEM, "a team of %u ranks", t->n_runners);
    for (uint32_t i = 0, k = 0; i < n && k < t->n_runners; i++)
        if (c->forward[first + i] || !n_here)
            t->runner[k++].rank = first + i;
    for (uint32_t g = 0; g < t->n_groups && !c->follows; g++) {
        struct part *p = &t->part[g];
        p->token = calloc(c->max_rows[t->lane], sizeof *p->token);
        p->seq = FAULT("workers.arrays") ? NULL : calloc(c->max_seqs, sizeof *p->seq);
        if (!p->token || !p->seq)
            return err_set(e, ERR_NOMEM, "steps of %u rows", c->max_rows[t->lane]);
    }
    for (uint32_t i = 0; i < t->n_runners; i++)
        if (start_runner(t, i, e))
            return e->code;
    return ERR_OK;
}

enum err_code workers_create(struct workers **out, const struct workers_config *cfg, struct err *e)
{
    struct workers *all = FAULT("workers.create") ? NULL : calloc(1, sizeof *all);
    size_t n = (size_t)cfg->n_groups * cfg->n_ranks;
    if (!all)
        return err_set(e, ERR_NOMEM, "workers");
    all->executor = (struct executor){
        .self = all, .start = executor_start, .lost = cfg->lost, .done_arg = cfg->arg};
    if (n == 1)
        all->executor.max_more = forward_max_more(cfg->forward[0]);
    all->cfg = *cfg;
    all->cfg.forward = calloc(n, sizeof(struct forward *));
    all->n_teams = cfg->joined ? 1 : cfg->n_groups;
    all->team = calloc((size_t)all->n_teams * N_LANES, sizeof *all->team);
    if (!all->cfg.forward || !all->team) {
        err_set(e, ERR_NOMEM, "workers of %zu ranks", n);
        goto destroy;
    }
    memcpy(all->cfg.forward, cfg->forward, n * sizeof(struct forward *));
    for (uint32_t i = 0; i < all->n_teams * N_LANES; i++)
        if (open_team(all, i, e))
            goto destroy;
    *out = all;
    return ERR_OK;
destroy:
    workers_destroy(all);
    return e->code;
}

static void close_team(struct team *t)
{
    mutex_lock(&t->lock);
    t->stop = true;
    t->over = t->over || !t->runner || !t->runner[0].started;
    pthread_cond_signal(&t->given);
    pthread_cond_broadcast(&t->begun);
    mutex_unlock(&t->lock);
    for (uint32_t i = 0; t->runner && i < t->n_runners; i++)
        if (t->runner[i].started)
            thread_join(t->runner[i].thread);
    for (uint32_t g = 0; t->part && g < t->n_groups; g++) {
        assert(!t->part[g].waiting);
        free(t->part[g].token);
        free(t->part[g].seq);
    }
    free(t->part);
    free(t->runner);
    free(t->told);
    free(t->err);
    pthread_cond_destroy(&t->given);
    pthread_cond_destroy(&t->begun);
    pthread_cond_destroy(&t->ended);
    pthread_mutex_destroy(&t->lock);
}

uint32_t workers_n_teams(const struct workers *all)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < all->n_teams * N_LANES; i++)
        n += all->team[i].ready;
    return n;
}

void workers_destroy(struct workers *all)
{
    if (!all)
        return;
    for (uint32_t i = 0; all->team && i < all->n_teams * N_LANES; i++)
        if (all->team[i].ready)
            close_team(&all->team[i]);
    free(all->team);
    free(all->cfg.forward);
    free(all);
}

struct executor *workers_executor(struct workers *w)
{
    return &w->executor;
}
