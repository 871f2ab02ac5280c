/* mover.c - see mover.h. */
#include "exec/mover.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STAGED_PAGES = 4, STALL_US = 3000000 };

struct porter { /* of one source group */
    struct mover *all;
    struct carrier *carrier; /* NULL: all ranks are here */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* guards move and stop */
    pthread_cond_t given;
    struct page_move *move;
    bool stop;
    unsigned char *stage; /* [STAGED_PAGES * page_bytes] */
};

struct mover {
    struct mover_config cfg;
    _Atomic bool given_up; /* its creation failed: a line that ends tells nothing */
    struct porter *porter; /* [n_groups] */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- pages of one rank ---- */

static enum err_code add_sums(struct ops *o, const uint32_t *page, uint32_t n, uint64_t *sums,
                              struct err *e)
{
    uint64_t sum[STAGED_PAGES];
    if (o->sum_pages(o, page, n, sum, e))
        return e->code;
    for (uint32_t i = 0; i < n; i++)
        sums[i] += sum[i];
    return ERR_OK;
}

/* Both ranks are here. */
static enum err_code copy_some(struct porter *p, const struct page_move *m, struct ops *from,
                               struct ops *to, uint32_t first, uint32_t n, struct err *e)
{
    if (add_sums(from, m->from + first, n, m->sum_from + first, e))
        return e->code;
    bool direct = to->copy_pages &&
                  to->copy_pages(to, m->to + first, from, m->from + first, n, e) != ERR_INVALID;
    if (direct && e->code)
        return e->code;
    if (!direct && (from->export_pages(from, m->from + first, n, p->stage, e) ||
                    to->import_pages(to, m->to + first, n, p->stage, e)))
        return e->code;
    return add_sums(to, m->to + first, n, m->sum_to + first, e);
}

/* The other one is in `process`. *why: what went wrong with pages so far, which the other side is
 * told. ERR_COMM: the line has ended. */
static enum err_code give_all(struct porter *p, const struct page_move *m, struct ops *from,
                              uint32_t process, uint32_t rank, struct err *why, struct err *e)
{
    size_t page_bytes = p->all->cfg.page_bytes;
    if (carrier_await(p->carrier, process, rank, e))
        return e->code;
    for (uint32_t i = 0; i < m->n_pages && !why->code; i += STAGED_PAGES) {
        uint32_t n = min_u32(m->n_pages - i, STAGED_PAGES);
        if (FAULT("mover.give"))
            usleep(STALL_US);
        if (add_sums(from, m->from + i, n, m->sum_from + i, why) ||
            from->export_pages(from, m->from + i, n, p->stage, why))
            break;
        why->code = ERR_OK;
        if (carrier_give(p->carrier, process, i, n, p->stage, page_bytes, NULL, e))
            return e->code;
    }
    return carrier_give(p->carrier, process, m->n_pages, 0, NULL, 0, why, e);
}

static enum err_code take_all(struct porter *p, const struct page_move *m, struct ops *to,
                              uint32_t process, uint32_t rank, struct err *why, struct err *e)
{
    size_t page_bytes = p->all->cfg.page_bytes;
    uint32_t first, n;
    struct err theirs;
    if (carrier_ready(p->carrier, process, rank, e))
        return e->code;
    for (;;) {
        if (carrier_take(p->carrier, process, &first, &n, p->stage, page_bytes, STAGED_PAGES,
                         &theirs, e))
            return e->code;
        if (first > m->n_pages || n > m->n_pages - first)
            return err_set(e, ERR_COMM, "process %u sent pages %u to %u of %u", process, first,
                           first + n, m->n_pages);
        if (FAULT("mover.take"))
            usleep(STALL_US);
        if (!n)
            break;
        if (!why->code && !to->import_pages(to, m->to + first, n, p->stage, why) &&
            !add_sums(to, m->to + first, n, m->sum_to + first, why))
            why->code = ERR_OK;
    }
    if (theirs.code && !why->code)
        *why = theirs;
    return ERR_OK;
}

/* ---- one move ---- */

/* What ranks of this process have to do with it, in the order of ranks, which is everybody's. What
 * goes wrong with pages is the move's error; ERR_COMM: no move will come to its end any more. */
static enum err_code run_part(struct porter *p, struct page_move *m, struct err *e)
{
    const struct mover_config *c = &p->all->cfg;
    struct err why = {0};
    assert(m->source < c->n_groups && m->target < c->n_groups && m->source != m->target);
    for (uint32_t i = 0; i < m->n_pages; i++)
        m->sum_from[i] = m->sum_to[i] = 0;
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        uint32_t source = m->source * c->n_ranks + r, target = m->target * c->n_ranks + r;
        struct ops *from = c->ops[source], *to = c->ops[target];
        enum err_code code = ERR_OK;
        for (uint32_t i = 0; from && to && i < m->n_pages && !why.code; i += STAGED_PAGES)
            if (!copy_some(p, m, from, to, i, min_u32(m->n_pages - i, STAGED_PAGES), &why))
                why.code = ERR_OK;
        if (from && !to)
            code = give_all(p, m, from, carrier_process(p->carrier, target), r, &why, e);
        if (to && !from)
            code = take_all(p, m, to, carrier_process(p->carrier, source), r, &why, e);
        if (code)
            return code;
    }
    m->err = why;
    return ERR_OK;
}

static void run_move(struct porter *p, struct page_move *m)
{
    struct err e = {0};
    m->start_us = clock_us();
    if (FAULT("mover.stall"))
        usleep(STALL_US);
    if ((p->carrier && carrier_tell(p->carrier, m, &e)) || run_part(p, m, &e) ||
        (p->carrier && carrier_hear(p->carrier, m, &e))) {
        p->all->cfg.lost(p->all->cfg.arg, &e);
        m->err = e;
    }
    m->end_us = clock_us();
}

/* ---- threads ---- */

/* Of a process that is told which pages go where. */
static void follow(struct porter *p)
{
    struct page_move m;
    struct err e = {0};
    bool end = false;
    while (!carrier_next(p->carrier, &m, &end, &e) && !end && !run_part(p, &m, &e) &&
           !carrier_answer(p->carrier, &m, &e))
        continue;
    if (!end && !atomic_load(&p->all->given_up))
        p->all->cfg.lost(p->all->cfg.arg, &e);
}

static void *porter_main(void *arg)
{
    struct porter *p = arg;
    if (p->all->cfg.follows) {
        follow(p);
        return NULL;
    }
    for (;;) {
        mutex_lock(&p->lock);
        while (!p->move && !p->stop)
            cond_wait_us(&p->given, &p->lock, 0);
        struct page_move *m = p->move;
        p->move = NULL;
        mutex_unlock(&p->lock);
        if (!m)
            break; /* stop, and nothing left to move */
        run_move(p, m);
        p->all->cfg.moved(p->all->cfg.arg, m);
    }
    if (p->carrier)
        carrier_end(p->carrier);
    return NULL;
}

void mover_start(struct mover *all, struct page_move *move)
{
    struct porter *p = &all->porter[move->source];
    mutex_lock(&p->lock);
    assert(!p->move && !p->stop);
    p->move = move;
    pthread_cond_signal(&p->given);
    mutex_unlock(&p->lock);
}

size_t mover_bytes(size_t page_bytes)
{
    return STAGED_PAGES * page_bytes;
}

enum err_code mover_create(struct mover **out, const struct mover_config *cfg, struct err *e)
{
    struct mover *all = FAULT("mover.create") ? NULL : calloc(1, sizeof *all);
    const struct carriers *k = cfg->carriers;
    if (!all)
        return err_set(e, ERR_NOMEM, "mover");
    assert(!cfg->follows || k);
    size_t n_ops = (size_t)cfg->n_groups * cfg->n_ranks;
    all->cfg = *cfg;
    all->cfg.ops = calloc(n_ops, sizeof(struct ops *));
    all->porter = all->cfg.ops ? calloc(cfg->n_groups, sizeof *all->porter) : NULL;
    if (all->porter)
        memcpy(all->cfg.ops, cfg->ops, n_ops * sizeof(struct ops *));
    for (uint32_t i = 0; all->porter && i < cfg->n_groups; i++) {
        struct porter *p = &all->porter[i];
        if (i < cfg->n_prefill && k)
            p->carrier = k->of[i];
        if (i >= cfg->n_prefill || (k && !p->carrier))
            continue; /* it hands nothing on, or this process has no part in it */
        p->all = all;
        pthread_mutex_init(&p->lock, NULL);
        cond_init_monotonic(&p->given);
        p->stage = FAULT("mover.stage") ? NULL : malloc(mover_bytes(cfg->page_bytes));
        if (!p->stage) {
            err_set(e, ERR_NOMEM, "mover: %d pages of %zu bytes", STAGED_PAGES, cfg->page_bytes);
            goto destroy;
        }
        if (thread_start(&p->thread, "mover", porter_main, p, e))
            goto destroy;
        p->started = true;
    }
    if (!all->porter) {
        err_set(e, ERR_NOMEM, "mover: %u groups", cfg->n_groups);
        goto destroy;
    }
    *out = all;
    return ERR_OK;
destroy:
    if (cfg->follows) { /* porters that wait for word see the end */
        atomic_store(&all->given_up, true);
        carriers_shut(k);
    }
    mover_destroy(all);
    return e->code;
}

void mover_destroy(struct mover *all)
{
    if (!all)
        return;
    for (uint32_t i = 0; all->porter && i < all->cfg.n_groups; i++) {
        struct porter *p = &all->porter[i];
        if (!p->all)
            continue; /* creation ended before it, or it has nothing to do */
        if (p->started) {
            mutex_lock(&p->lock);
            assert(!p->move);
            p->stop = true;
            pthread_cond_signal(&p->given);
            mutex_unlock(&p->lock);
            thread_join(p->thread);
        }
        free(p->stage);
        pthread_cond_destroy(&p->given);
        pthread_mutex_destroy(&p->lock);
    }
    free(all->porter);
    free(all->cfg.ops);
    free(all);
}
