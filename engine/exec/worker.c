/* worker.c - see worker.h. */
#include "exec/worker.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STALL_US = 9000000 };

struct worker {
    struct workers *all;
    enum lane lane;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* guards batch and stop */
    pthread_cond_t given;
    struct batch *batch; /* the one to run next; at most one is in flight */
    bool stop;
    uint32_t *token;      /* [max_rows] the step's arrays, reserved once */
    struct step_seq *seq; /* [max_seqs] */
};

struct workers {
    struct executor executor;
    struct forward *forward;
    uint32_t max_seqs, max_rows[N_LANES];
    struct worker worker[N_LANES];
};

static void run_batch(struct worker *w, struct batch *b)
{
    uint32_t rows = 0;
    assert(b->n_seqs >= 1 && b->n_seqs <= w->all->max_seqs);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        assert(q->row0 == rows && q->n_tokens >= 1);
        assert(q->n_tokens <= w->all->max_rows[w->lane] - rows);
        memcpy(w->token + rows, q->token, q->n_tokens * sizeof *q->token);
        w->seq[i] = (struct step_seq){.row0 = q->row0,
                                      .n_rows = q->n_tokens,
                                      .pos0 = q->pos0,
                                      .page = q->page,
                                      .top_k = q->top_k,
                                      .expand_below = q->expand_below};
        rows += q->n_tokens;
    }
    assert(rows == b->n_rows);
    struct step step = {.n_rows = rows,
                        .n_seqs = b->n_seqs,
                        .token = w->token,
                        .seq = w->seq,
                        .n_out = b->n_out,
                        .out_row = b->out_row,
                        .sample = b->sample,
                        .out = b->out};
    b->err.code = ERR_OK;
    b->start_us = clock_us();
    if (FAULT("worker.stall")) /* a device that hangs, and comes back */
        usleep(STALL_US);
    if (FAULT("worker.hang")) /* one that does not */
        for (;;)
            pause();
    if (FAULT("worker.step"))
        err_set(&b->err, ERR_CUDA, "step of %u rows: injected fault", rows);
    else if (FAULT("worker.rank"))
        err_set(&b->err, ERR_COMM, "rank 0 is gone: injected fault");
    else if (forward_step(w->all->forward, w->lane, &step, &b->err) == ERR_OK)
        b->err.code = ERR_OK;
    b->end_us = clock_us();
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    for (;;) {
        mutex_lock(&w->lock);
        while (!w->batch && !w->stop)
            cond_wait_us(&w->given, &w->lock, 0);
        struct batch *b = w->batch;
        w->batch = NULL;
        mutex_unlock(&w->lock);
        if (!b)
            return NULL; /* stop, and nothing left to run */
        run_batch(w, b);
        if (b->err.code == ERR_COMM)
            w->all->executor.lost(w->all->executor.done_arg, &b->err);
        w->all->executor.done(w->all->executor.done_arg, b);
    }
}

static void executor_start(void *self, struct batch *b)
{
    struct worker *w = &((struct workers *)self)->worker[b->lane];
    mutex_lock(&w->lock);
    assert(!w->batch && !w->stop);
    w->batch = b;
    pthread_cond_signal(&w->given);
    mutex_unlock(&w->lock);
}

enum err_code workers_create(struct workers **out, struct forward *fw,
                             const struct ops_limits *limits, uint32_t max_seqs, struct err *e)
{
    static const char *const names[N_LANES] = {"prefill", "decode"};
    struct workers *all = FAULT("workers.create") ? NULL : calloc(1, sizeof *all);
    if (!all)
        return err_set(e, ERR_NOMEM, "workers");
    all->executor = (struct executor){.self = all, .start = executor_start};
    all->forward = fw;
    all->max_seqs = max_seqs;
    for (enum lane l = 0; l < N_LANES; l++) {
        struct worker *w = &all->worker[l];
        w->all = all;
        w->lane = l;
        all->max_rows[l] = limits->max_rows[l];
        pthread_mutex_init(&w->lock, NULL);
        cond_init_monotonic(&w->given);
        w->token = calloc(limits->max_rows[l], sizeof *w->token);
        w->seq = calloc(max_seqs, sizeof *w->seq);
        if (!w->token || !w->seq) {
            err_set(e, ERR_NOMEM, "%s worker: %u rows", names[l], limits->max_rows[l]);
            workers_destroy(all);
            return e->code;
        }
        if (thread_start(&w->thread, names[l], worker_main, w, e)) {
            workers_destroy(all);
            return e->code;
        }
        w->started = true;
    }
    *out = all;
    return ERR_OK;
}

void workers_destroy(struct workers *all)
{
    if (!all)
        return;
    for (enum lane l = 0; l < N_LANES; l++) {
        struct worker *w = &all->worker[l];
        if (!w->all)
            continue; /* creation ended before it */
        if (w->started) {
            mutex_lock(&w->lock);
            assert(!w->batch);
            w->stop = true;
            pthread_cond_signal(&w->given);
            mutex_unlock(&w->lock);
            thread_join(w->thread);
        }
        free(w->token);
        free(w->seq);
        pthread_cond_destroy(&w->given);
        pthread_mutex_destroy(&w->lock);
    }
    free(all);
}

struct executor *workers_executor(struct workers *w)
{
    return &w->executor;
}
