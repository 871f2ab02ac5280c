/* mover.c - see mover.h. */
#include "exec/mover.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STAGED_PAGES = 4, STALL_US = 3000000 };

struct porter { /* of one source group */
    struct mover *all;
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
    struct porter *porter; /* [n_groups] */
};

/* n pages of rank `rank`, and their sums on both sides added to the move's. */
static enum err_code move_some(struct porter *p, const struct page_move *m, uint32_t rank,
                               uint32_t first, uint32_t n, struct err *e)
{
    const struct mover_config *c = &p->all->cfg;
    struct ops *from = c->ops[m->source * c->n_ranks + rank];
    struct ops *to = c->ops[m->target * c->n_ranks + rank];
    uint64_t sum[STAGED_PAGES];
    if (from->sum_pages(from, m->from + first, n, sum, e))
        return e->code;
    for (uint32_t i = 0; i < n; i++)
        m->sum_from[first + i] += sum[i];
    bool direct = to->copy_pages &&
                  to->copy_pages(to, m->to + first, from, m->from + first, n, e) != ERR_INVALID;
    if (direct && e->code)
        return e->code;
    if (!direct && (from->export_pages(from, m->from + first, n, p->stage, e) ||
                    to->import_pages(to, m->to + first, n, p->stage, e)))
        return e->code;
    if (to->sum_pages(to, m->to + first, n, sum, e))
        return e->code;
    for (uint32_t i = 0; i < n; i++)
        m->sum_to[first + i] += sum[i];
    return ERR_OK;
}

static void run_move(struct porter *p, struct page_move *m)
{
    const struct mover_config *c = &p->all->cfg;
    struct err e = {0};
    assert(m->source < c->n_groups && m->target < c->n_groups && m->source != m->target);
    m->start_us = clock_us();
    if (FAULT("mover.stall"))
        usleep(STALL_US);
    for (uint32_t i = 0; i < m->n_pages; i++)
        m->sum_from[i] = m->sum_to[i] = 0;
    for (uint32_t rank = 0; rank < c->n_ranks && !e.code; rank++)
        for (uint32_t i = 0; i < m->n_pages && !e.code; i += STAGED_PAGES) {
            uint32_t left = m->n_pages - i, n = left < STAGED_PAGES ? left : STAGED_PAGES;
            if (move_some(p, m, rank, i, n, &e) == ERR_OK)
                e.code = ERR_OK;
        }
    m->err = e;
    m->end_us = clock_us();
}

static void *porter_main(void *arg)
{
    struct porter *p = arg;
    for (;;) {
        mutex_lock(&p->lock);
        while (!p->move && !p->stop)
            cond_wait_us(&p->given, &p->lock, 0);
        struct page_move *m = p->move;
        p->move = NULL;
        mutex_unlock(&p->lock);
        if (!m)
            return NULL; /* stop, and nothing left to move */
        run_move(p, m);
        p->all->cfg.moved(p->all->cfg.arg, m);
    }
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
    if (!all)
        return err_set(e, ERR_NOMEM, "mover");
    size_t n_ops = (size_t)cfg->n_groups * cfg->n_ranks;
    all->cfg = *cfg;
    all->cfg.ops = calloc(n_ops, sizeof(struct ops *));
    all->porter = all->cfg.ops ? calloc(cfg->n_groups, sizeof *all->porter) : NULL;
    if (all->porter)
        memcpy(all->cfg.ops, cfg->ops, n_ops * sizeof(struct ops *));
    for (uint32_t i = 0; all->porter && i < cfg->n_groups; i++) {
        struct porter *p = &all->porter[i];
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
            continue; /* creation ended before it */
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
