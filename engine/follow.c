/* follow.c - engine_follow(): a process whose ranks work for process 0's engine. */
#include "engine.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "opening.h"

#include <stdlib.h>

struct engine_follower {
    struct opening m;
    struct workers *workers;
    struct mover *mover; /* NULL where no group hands sequences on */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t n_ended; /* teams that have heard of the end */
    struct err lost;  /* the first reason; ERR_OK: all are there */
};

/* A thread of the meeting's: everybody knows already. */
static void process_lost(void *arg, const struct err *why)
{
    struct engine_follower *f = arg;
    mutex_lock(&f->lock);
    if (!f->lost.code)
        f->lost = *why;
    pthread_cond_broadcast(&f->changed);
    mutex_unlock(&f->lock);
}

/* A worker's thread: the other processes learn it from here. */
static void rank_lost(void *arg, const struct err *why)
{
    struct engine_follower *f = arg;
    meeting_fail(f->m.meeting, why->msg);
    process_lost(f, why);
}

static void team_ended(void *arg)
{
    struct engine_follower *f = arg;
    mutex_lock(&f->lock);
    f->n_ended++;
    pthread_cond_broadcast(&f->changed);
    mutex_unlock(&f->lock);
}

/* Until the end that process 0 tells of, or a loss. */
static enum err_code wait_for_end(struct engine_follower *f, struct err *e)
{
    uint32_t n_teams = workers_n_teams(f->workers);
    mutex_lock(&f->lock);
    while (f->n_ended < n_teams && !f->lost.code)
        cond_wait_us(&f->changed, &f->lock, 0);
    *e = f->n_ended < n_teams ? f->lost : (struct err){0};
    mutex_unlock(&f->lock);
    return e->code;
}

static enum err_code start_workers(struct engine_follower *f, struct err *e)
{
    struct ops *ops[PARALLEL_MAX_RANKS];
    struct forward *forward[PARALLEL_MAX_RANKS];
    struct mover_config m = opening_mover(&f->m, ops);
    struct workers_config c = opening_workers(&f->m, forward);
    c.follows = true;
    c.lost = rank_lost;
    c.ended = team_ended;
    c.arg = f;
    m.follows = true;
    m.lost = rank_lost;
    m.arg = f;
    if (m.carriers && mover_create(&f->mover, &m, e))
        return e->code;
    return workers_create(&f->workers, &c, e);
}

enum err_code engine_launched(uint32_t *process, uint32_t *n_processes,
                              const struct engine_options *o, struct err *e)
{
    struct launch l;
    if (opening_launch(&l, o, e))
        return e->code;
    *process = l.process;
    *n_processes = l.n_processes;
    return ERR_OK;
}

enum err_code engine_follow(const struct engine_options *o, const struct engine_follow_calls *calls,
                            struct err *e)
{
    struct engine_follower *f = FAULT("engine.follow") ? NULL : calloc(1, sizeof *f);
    if (!f)
        return err_set(e, ERR_NOMEM, "engine");
    pthread_mutex_init(&f->lock, NULL);
    cond_init_monotonic(&f->changed);
    e->code = ERR_OK;
    if (opening_start(&f->m, o, process_lost, f, e) || start_workers(f, e)) {
        opening_fail(&f->m, e);
        carriers_shut(&f->m.carriers); /* porters that wait for word see the end */
        mover_destroy(f->mover);
        opening_end(&f->m);
        pthread_cond_destroy(&f->changed);
        pthread_mutex_destroy(&f->lock);
        free(f);
        return e->code;
    }
    calls->ready(calls->arg, f);
    if (wait_for_end(f, e)) {
        log_error("engine", "lost=rank error=\"%s\"", e->msg);
        ranks_abort(f->m.ranks, e->msg);
        relays_shut(&f->m.relays);
        carriers_shut(&f->m.carriers);
        return e->code; /* a thread that hangs still has its hands on all of this */
    }
    calls->ending(calls->arg);
    meeting_part(f->m.meeting);
    mover_destroy(f->mover);
    workers_destroy(f->workers);
    opening_end(&f->m);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f);
    return ERR_OK;
}

const struct model_config *engine_follower_model(const struct engine_follower *f)
{
    return &f->m.cfg;
}

const struct engine_plan *engine_follower_plan(const struct engine_follower *f)
{
    return &f->m.detail.plan;
}

void engine_follower_expert_rows(struct engine_follower *f, uint64_t *rows)
{
    opening_expert_rows(&f->m, rows);
}

void engine_follower_selection_reuse(struct engine_follower *f, struct reuse_count *count)
{
    opening_selection_reuse(&f->m, count);
}
