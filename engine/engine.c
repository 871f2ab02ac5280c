/* engine.c - see engine.h: opening in order, the scheduler's thread, and the two mailboxes around
 * it. */
#include "engine.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "cpu/limits.h"
#include "cuda/cuda_ops.h"
#include "exec/mover.h"
#include "exec/worker.h"
#include "model/forward.h"
#include "opening.h"
#include "sched/scheduler.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEARTBEAT_US = 500000,
    DECODE_BUDGET_US = 0,  /* the scheduler's own default */
    LAST_STEPS_US = 200000 /* when a rank is lost: for what is out to come back */
};

static_assert((int)ENGINE_MAX_GROUPS == (int)PARALLEL_MAX_RANKS, "options have one bound for both");

/* One per request inside. The loop thread hands slots out and takes them back; the scheduler's
 * thread only reads cancel_gen. */
struct request_slot {
    uint32_t gen;
    bool in_use;
    _Atomic uint32_t cancel_gen; /* the generation to cancel; 0: none (generations start at 1) */
};

struct engine {
    struct opening m; /* the model, its ranks, and the options */
    uint32_t n_groups;
    struct workers *workers;
    struct mover *mover;  /* NULL where no group hands sequences on */
    struct executor exec; /* of all groups */
    struct scheduler_config sched_cfg;
    struct scheduler *sched;

    struct mailbox inbox; /* gen_request, from the loop */
    struct mailbox done;  /* work, from the executor; a kick of inbox follows */
    struct mailbox out;   /* gen_event, to the loop */
    pthread_t thread;
    bool thread_started;
    _Atomic bool stopping, cancels, draining;
    _Atomic uint64_t refused_busy, refused_size;

    struct request_slot *slot; /* [max_requests] */
    uint32_t *free_slot;       /* the loop's stack of free slots */
    uint32_t n_free;

    pthread_mutex_t stats_lock;
    struct engine_stats stats; /* under stats_lock: the scheduler's thread writes, anyone copies */
    struct err lost;           /* under stats_lock; ERR_OK: every rank is there */
    _Atomic bool is_lost;      /* the scheduler's thread has seen it */
};

static void emit(void *arg, struct gen_event *ev)
{
    struct engine *en = arg;
    if (mailbox_put(&en->out, &ev->mail) && en->m.options.wake)
        en->m.options.wake(en->m.options.wake_arg);
}

static void batch_done(void *arg, struct batch *b)
{
    struct engine *en = arg;
    mailbox_put(&en->done, &b->work.mail);
    mailbox_kick(&en->inbox);
}

static void move_done(void *arg, struct page_move *m)
{
    struct engine *en = arg;
    mailbox_put(&en->done, &m->work.mail);
    mailbox_kick(&en->inbox);
}

/* Any thread; the first reason stays. */
static void rank_lost(void *arg, const struct err *why)
{
    struct engine *en = arg;
    mutex_lock(&en->stats_lock);
    if (!en->lost.code)
        en->lost = *why;
    mutex_unlock(&en->stats_lock);
    mailbox_kick(&en->inbox);
}

static void publish_stats(struct engine *en)
{
    struct engine_stats s = {0};
    uint32_t group;
    scheduler_get_stats(en->sched, &s);
    uint64_t oldest_us = scheduler_oldest_us(en->sched, &group);
    s.last_step_us = s.step_in_flight ? oldest_us : clock_us();
    mutex_lock(&en->stats_lock);
    en->stats = s;
    mutex_unlock(&en->stats_lock);
}

/* A step that does not end is a lost rank, too. */
static void watch_steps(struct engine *en, uint64_t now_us)
{
    uint32_t limit_s = opening_step_limit_s(&en->m.options), group = 0;
    uint64_t since_us = scheduler_oldest_us(en->sched, &group);
    if (!limit_s || since_us == UINT64_MAX || now_us < since_us + limit_s * UINT64_C(1000000))
        return;
    struct err e;
    err_set(&e, ERR_COMM, "a step or move of group %u has not ended for %u s", group, limit_s);
    rank_lost(en, &e);
}

/* The clients hear of a lost rank at once, and the server, which ends. */
static void handle_loss(struct engine *en, uint64_t now_us)
{
    struct err why;
    if (atomic_load(&en->is_lost) || !engine_lost(en, &why))
        return;
    atomic_store(&en->is_lost, true);
    log_error("engine", "lost=rank error=\"%s\"", why.msg);
    scheduler_lose(en->sched, &why, now_us);
    ranks_abort(en->m.ranks, why.msg);
    relays_shut(&en->m.relays);
    carriers_shut(&en->m.carriers);
    if (en->m.meeting)
        meeting_fail(en->m.meeting, why.msg);
    if (en->m.options.wake)
        en->m.options.wake(en->m.options.wake_arg);
}

static void submit_all(struct engine *en, struct mail *requests)
{
    for (struct mail *m = requests, *next; m; m = next) {
        next = m->next;
        scheduler_submit(en->sched, (struct gen_request *)m, clock_us());
    }
}

static void take_work(struct engine *en, struct work *w)
{
    if (w->kind == WORK_BATCH)
        scheduler_step_done(en->sched, (struct batch *)w, clock_us());
    else
        scheduler_move_done(en->sched, (struct page_move *)w, clock_us());
}

static void take_cancels(struct engine *en, uint64_t now_us)
{
    if (!atomic_exchange(&en->cancels, false))
        return;
    /* A cancel was sent after its request, so with the flag seen the request is here or in the box.
     */
    submit_all(en, mailbox_take(&en->inbox));
    for (uint32_t i = 0; i < en->m.detail.max_requests; i++) {
        uint32_t gen = atomic_exchange(&en->slot[i].cancel_gen, 0);
        if (gen)
            scheduler_cancel(en->sched, (struct req_id){.slot = i, .gen = gen}, now_us);
    }
}

/* Everything that has come in. */
static void handle_messages(struct engine *en, struct mail *requests)
{
    submit_all(en, requests);
    take_cancels(en, clock_us());
    for (struct mail *m = mailbox_take(&en->done), *next; m; m = next) {
        next = m->next;
        take_work(en, (struct work *)m);
    }
    watch_steps(en, clock_us());
    handle_loss(en, clock_us());
}

static void *scheduler_main(void *arg)
{
    struct engine *en = arg;
    while (!atomic_load(&en->stopping)) {
        uint64_t now = clock_us();
        uint64_t wake_us = scheduler_turn(en->sched, now);
        uint64_t wait = wake_us > now ? wake_us - now : 1;
        struct mail *requests = mailbox_wait(&en->inbox, wait < HEARTBEAT_US ? wait : HEARTBEAT_US);
        handle_messages(en, requests);
        publish_stats(en);
    }
    return NULL;
}

/* Waits for what is out, so that the executor's threads can end. False: a rank is lost, and it does
 * not come. */
static bool settle(struct engine *en)
{
    uint32_t group;
    uint64_t end_us = clock_us() + LAST_STEPS_US;
    handle_messages(en, mailbox_take(&en->inbox));
    while (scheduler_oldest_us(en->sched, &group) != UINT64_MAX) {
        if (atomic_load(&en->is_lost) && clock_us() > end_us)
            return false;
        struct mail *late = mailbox_wait(&en->inbox, 10000);
        handle_messages(en, late);
    }
    return true;
}

static void start_batch(void *self, struct batch *b)
{
    struct executor *x = workers_executor(((struct engine *)self)->workers);
    x->start(x->self, b);
}

static void start_move(void *self, struct page_move *m)
{
    mover_start(((struct engine *)self)->mover, m);
}

/* Workers for each group, and a mover where prompts go from one to another. */
static enum err_code start_executor(struct engine *en, struct err *e)
{
    struct ops *ops[PARALLEL_MAX_RANKS];
    struct forward *forward[PARALLEL_MAX_RANKS];
    const struct workers_config workers = opening_workers(&en->m, forward);
    struct mover_config mover = opening_mover(&en->m, ops);
    mover.moved = move_done;
    mover.lost = rank_lost;
    mover.arg = en;
    if (workers_create(&en->workers, &workers, e))
        return e->code;
    struct executor *x = workers_executor(en->workers);
    x->done = batch_done;
    x->lost = rank_lost;
    x->done_arg = en;
    en->exec = (struct executor){
        .self = en, .start = start_batch, .move = start_move, .max_more = x->max_more};
    return en->m.options.n_prefill_groups ? mover_create(&en->mover, &mover, e) : ERR_OK;
}

static enum err_code start_scheduler(struct engine *en, struct err *e)
{
    const struct plan_detail *d = &en->m.detail;
    if (start_executor(en, e))
        return e->code;
    en->sched_cfg =
        (struct scheduler_config){.n_groups = en->n_groups,
                                  .n_pages = d->plan.n_pages,
                                  .max_requests = d->max_requests,
                                  .max_seqs = d->plan.max_seqs,
                                  .max_context = d->plan.max_context,
                                  .prefill_tokens = d->plan.prefill_tokens,
                                  .max_out = plan_max_out(&en->m.options),
                                  .prefix_cache = en->m.options.prefix_cache,
                                  .index_topk = en->m.cfg.has_indexer ? en->m.cfg.index_topk : 0,
                                  .expand_tokens = model_expand_tokens(&en->m.cfg),
                                  .page_bytes = d->plan.page_bytes,
                                  .eos_id = en->m.cfg.eos_id,
                                  .n_eos = en->m.cfg.n_eos,
                                  .tok = en->m.tok,
                                  .exec = &en->exec,
                                  .emit = emit,
                                  .emit_arg = en,
                                  .decode_budget_us = DECODE_BUDGET_US};
    for (uint32_t i = 0; en->m.options.n_prefill_groups && i < en->n_groups; i++)
        en->sched_cfg.role[i] = i < en->m.options.n_prefill_groups ? GROUP_PREFILL : GROUP_DECODE;
    if (scheduler_create(&en->sched, &en->sched_cfg, e))
        return e->code;
    publish_stats(en);
    if (thread_start(&en->thread, "sched", scheduler_main, en, e))
        return e->code;
    en->thread_started = true;
    return ERR_OK;
}

enum err_code engine_open(struct engine **out, const struct engine_options *o, struct err *e)
{
    struct engine *en = FAULT("engine.open") ? NULL : calloc(1, sizeof *en);
    if (!en)
        return err_set(e, ERR_NOMEM, "engine");
    en->n_groups = plan_groups(o);
    mailbox_init(&en->inbox);
    mailbox_init(&en->done);
    mailbox_init(&en->out);
    pthread_mutex_init(&en->stats_lock, NULL);
    if (opening_start(&en->m, o, rank_lost, en, e))
        goto close_engine;
    en->slot = calloc(en->m.detail.max_requests, sizeof *en->slot);
    en->free_slot = calloc(en->m.detail.max_requests, sizeof *en->free_slot);
    if (!en->slot || !en->free_slot) {
        err_set(e, ERR_NOMEM, "engine: %u request slots", en->m.detail.max_requests);
        goto close_engine;
    }
    for (uint32_t i = 0; i < en->m.detail.max_requests; i++)
        en->free_slot[en->n_free++] = en->m.detail.max_requests - 1 - i;
    if (start_scheduler(en, e))
        goto close_engine;
    *out = en;
    return ERR_OK;
close_engine:
    opening_fail(&en->m, e);
    engine_close(en);
    return e->code;
}

void engine_close(struct engine *en)
{
    if (!en)
        return;
    atomic_store(&en->stopping, true);
    if (en->thread_started) {
        mailbox_kick(&en->inbox);
        thread_join(en->thread);
        if (!settle(en))
            return; /* a thread that hangs still has its hands on all of this */
    }
    if (en->m.meeting && en->workers)
        meeting_part(en->m.meeting);
    mover_destroy(en->mover);
    workers_destroy(en->workers);
    for (struct mail *m = mailbox_take(&en->out), *next; m; m = next) {
        next = m->next;
        gen_event_free((struct gen_event *)m);
    }
    if (en->sched)
        scheduler_destroy(en->sched);
    opening_end(&en->m);
    mailbox_destroy(&en->inbox);
    mailbox_destroy(&en->done);
    mailbox_destroy(&en->out);
    pthread_mutex_destroy(&en->stats_lock);
    free(en->slot);
    free(en->free_slot);
    free(en);
}

enum err_code engine_submit(struct engine *en, struct gen_request *req, struct req_id *id,
                            struct err *e)
{
    e->code = ERR_OK;
    if (atomic_load(&en->draining)) {
        err_set(e, ERR_CLOSED, "the server is draining");
    } else if (engine_lost(en, e)) {
        /* e has the code and the reason of the rank that is gone */
    } else if (scheduler_can_ever_fit(&en->sched_cfg, req, e)) {
        atomic_fetch_add(&en->refused_size, 1);
    } else if (!en->n_free) {
        err_set(e, ERR_BUSY, "%u requests are inside, which is the bound",
                en->m.detail.max_requests);
        atomic_fetch_add(&en->refused_busy, 1);
    }
    if (e->code) {
        gen_request_free(req);
        return e->code;
    }
    struct request_slot *slot = &en->slot[en->free_slot[--en->n_free]];
    assert(!slot->in_use);
    slot->in_use = true;
    if (++slot->gen == 0)
        slot->gen = 1; /* 0 means "no cancel" */
    req->id = (struct req_id){.slot = (uint32_t)(slot - en->slot), .gen = slot->gen};
    req->submitted_us = clock_us();
    *id = req->id;
    mailbox_put(&en->inbox, &req->mail);
    return ERR_OK;
}

void engine_cancel(struct engine *en, struct req_id id)
{
    if (id.slot >= en->m.detail.max_requests)
        return;
    struct request_slot *slot = &en->slot[id.slot];
    if (!slot->in_use || slot->gen != id.gen)
        return;
    atomic_store(&slot->cancel_gen, id.gen);
    atomic_store(&en->cancels, true);
    mailbox_kick(&en->inbox);
}

struct gen_event *engine_take_events(struct engine *en)
{
    struct mail *all = mailbox_take(&en->out);
    for (struct mail *m = all; m; m = m->next) {
        const struct gen_event *ev = (const struct gen_event *)m;
        if (ev->kind != GEN_DONE && ev->kind != GEN_ERROR)
            continue;
        struct request_slot *slot = &en->slot[ev->id.slot];
        assert(slot->in_use && slot->gen == ev->id.gen);
        slot->in_use = false;
        en->free_slot[en->n_free++] = ev->id.slot;
    }
    return (struct gen_event *)all;
}

bool engine_lost(struct engine *en, struct err *why)
{
    mutex_lock(&en->stats_lock);
    bool lost = en->lost.code != ERR_OK;
    if (lost)
        *why = en->lost;
    mutex_unlock(&en->stats_lock);
    return lost;
}

void engine_drain(struct engine *en)
{
    atomic_store(&en->draining, true);
}

void engine_get_stats(struct engine *en, struct engine_stats *out)
{
    mutex_lock(&en->stats_lock);
    *out = en->stats;
    mutex_unlock(&en->stats_lock);
    out->refused_busy = atomic_load(&en->refused_busy);
    out->refused_size = atomic_load(&en->refused_size);
    out->draining = atomic_load(&en->draining);
    const struct ranks *all = en->m.ranks;
    for (uint32_t i = 0; i < all->n_here; i += all->plan.tp) {
        uint64_t us[N_LANES][N_PHASES]; /* of each group's first rank: the others keep its time */
        forward_get_times(all->rank[i].forward, us);
        for (int l = 0; l < N_LANES; l++) {
            out->device_us[l] += forward_device_us(all->rank[i].forward, (enum lane)l);
            for (int p = 0; p < N_PHASES; p++)
                out->phase_us[l][p] += us[l][p];
        }
    }
}

void engine_get_expert_rows(struct engine *en, uint64_t *rows)
{
    opening_expert_rows(&en->m, rows);
}

void engine_get_selection_reuse(struct engine *en, struct reuse_count *count)
{
    opening_selection_reuse(&en->m, count);
}

/* There only in a build with the GPU back end. */
#pragma weak cuda_limits_measure

/* In the fast precision an activation is two bf16, so a product is two bf16 multiply-adds. */
enum err_code engine_measure_limits(const struct engine *en, struct engine_limits *out,
                                    struct err *e)
{
    struct cpu_limits l;
    if (en->m.options.cuda_device >= 0 && cuda_limits_measure)
        return cuda_limits_measure((uint32_t)en->m.options.cuda_device, &out->bytes, &out->flops,
                                   e);
    uint32_t n = en->m.options.n_threads ? en->m.options.n_threads : thread_n_cpus();
    if (cpu_limits_measure(&l, n, e))
        return e->code;
    bool split = en->m.options.precision == PRECISION_FAST && l.bf16_flops > 0;
    *out = (struct engine_limits){.flops = split ? l.bf16_flops / 2 : l.f32_flops,
                                  .bytes = l.cold_bytes};
    return ERR_OK;
}

struct step_cost engine_step_cost(const struct engine *en, struct step_shape shape)
{
    double as_bf16 = (double)weights_bytes(&en->m.cfg, DT_BF16);
    uint32_t copies = en->m.detail.plan.device >= 0 ? en->n_groups : 1;
    shape.weight_bytes = 2.0 * (double)en->m.detail.plan.weight_bytes / copies / as_bf16;
    shape.latent = en->m.options.latent;
    shape.index = en->m.options.index;
    return model_step_cost(&en->m.cfg, &shape);
}

const struct model_config *engine_model(const struct engine *en)
{
    return &en->m.cfg;
}

const struct tokenizer *engine_tokenizer(const struct engine *en)
{
    return en->m.tok;
}

const struct chat_format *engine_chat_format(const struct engine *en)
{
    return en->m.format;
}

const struct engine_plan *engine_get_plan(const struct engine *en)
{
    return &en->m.detail.plan;
}

const char *engine_backend_name(const struct engine *en)
{
    return en->m.ranks->rank[0].ops->name;
}

const char *engine_fingerprint(const struct engine *en)
{
    return en->m.fingerprint;
}
