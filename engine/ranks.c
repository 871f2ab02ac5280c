/* ranks.c - see ranks.h. */
#include "ranks.h"

#include "base/fault.h"
#include "base/thread.h"
#include "comm/meeting.h"
#include "cpu/cpu_ops.h"
#include "cuda/cuda_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* There only in a build with the GPU back end. */
#pragma weak cuda_device_check
#pragma weak cuda_devices_reach
#pragma weak cuda_ops_open
#pragma weak cuda_weights_upload
#pragma weak cuda_weights_dummy
#pragma weak cuda_weights_close

enum { LOAD_MS = 3600000 };

struct start {
    const struct ranks_options *o;
    struct ranks *all;
    struct meeting *meeting;
    enum err_code (*part)(struct start *k, struct rank *r, struct err *e);
    struct opener {
        struct start *k;
        uint32_t rank;
        pthread_t thread;
        bool started;
        struct err err;
    } each[PARALLEL_MAX_RANKS];
};

static uint32_t device_of(const struct start *k, uint32_t rank)
{
    const struct ranks_options *o = k->o;
    return (uint32_t)o->device + (rank - k->all->first) / (o->ranks_per_gpu ? o->ranks_per_gpu : 1);
}

/* ---- weights ---- */

/* Ranks on the CPU that hold the whole model each have one copy of it. */
static bool shares_weights(const struct ranks *all, const struct ranks_options *o)
{
    return o->device < 0 && all->plan.tp == 1 && all->plan.ep == 1;
}

static enum err_code load(struct start *k, struct rank *r, struct err *e)
{
    const struct ranks_options *o = k->o;
    bool gpu = o->device >= 0, first = r->share.rank == k->all->first;
    const struct rank_share *share = k->all->plan.n_ranks > 1 ? &r->share : NULL;
    weights_progress *progress = first ? o->progress : NULL;
    uint32_t device = gpu ? device_of(k, r->share.rank) : 0;
    if (shares_weights(k->all, o) && !first)
        return ERR_OK;
    if (o->load_dummy ? weights_dummy_share(&r->weights, o->cfg, share, o->dummy_dtype, 1, gpu, e)
                      : weights_open_share(&r->weights, o->model_dir, o->cfg, share, gpu, progress,
                                           o->progress_arg, e))
        return e->code;
    if (!gpu)
        return ERR_OK;
    if (!cuda_ops_open)
        return err_set(e, ERR_INVALID, "cuda:%u: this build has no GPU back end (make cuda)",
                       device);
    if (cuda_device_check(device, e))
        return e->code;
    return (o->load_dummy ? cuda_weights_dummy : cuda_weights_upload)(
        &r->device_weights, r->weights, &r->cfg, device, progress, o->progress_arg, e);
}

/* ---- back ends ---- */

/* The largest call that a rank may make: see the ops for what each moves. */
static size_t largest_call(const struct rank *r, const struct model_config *whole,
                           const struct ops_limits *lim)
{
    enum { SPREAD_ROWS = 256 }; /* of a block; the ops have no larger ones */
    const struct parallel *p = r->share.plan;
    size_t most = 0, f32 = sizeof(float), hidden = whole->hidden_size;
    for (int l = 0; l < N_LANES; l++) {
        size_t sum = ((size_t)lim->max_rows[l] + p->tp) * hidden * f32; /* whole shares of rows */
        size_t own = (lim->max_rows[l] + p->tp - 1) / p->tp;
        own = own < SPREAD_ROWS ? own : (size_t)SPREAD_ROWS;
        size_t rows = own * p->n_ranks * (hidden * f32 + 8 * (size_t)whole->n_active);
        size_t values = own * p->n_ranks * whole->n_active * hidden * f32;
        size_t here = sum > rows ? sum : rows;
        here = here > values ? here : values;
        most = most > here ? most : here;
    }
    size_t logits = (size_t)lim->max_out_rows * whole->vocab_size * f32;
    return most > logits ? most : logits;
}

/* For ranks that are all here, or not. On GPUs "device" where it can be: it takes less time up to
 * some MB, and its calls can be recorded into graphs. */
static const char *fitting_comm(const struct start *k, bool here)
{
    const struct ranks_options *o = k->o;
    if (o->device < 0)
        return here ? "threads" : "tcp";
    if (o->ranks_per_gpu > 1)
        return "device";
    bool reach =
        here && cuda_devices_reach && cuda_devices_reach((uint32_t)o->device, k->all->n_here);
    return reach ? "device" : "nccl";
}

static enum err_code join(struct start *k, struct rank *r, const char *name, uint32_t rank,
                          uint32_t n_ranks, struct comm **out, struct err *e)
{
    const struct ranks_options *o = k->o;
    uint32_t begin = r->share.rank - rank, end = begin + n_ranks; /* the group's ranks of all */
    bool here = begin >= k->all->first && end <= k->all->first + k->all->n_here;
    struct comm_config c = {.kind = o->comm ? o->comm : fitting_comm(k, here),
                            .group = name,
                            .rank = rank,
                            .n_ranks = n_ranks,
                            .device = o->device < 0 ? 0 : device_of(k, r->share.rank),
                            .timeout_ms = o->comm_timeout_ms,
                            .max_bytes = largest_call(r, o->cfg, &o->limits),
                            .meeting = k->meeting};
    return comm_open(out, &c, e);
}

static enum err_code meet(struct start *k, struct rank *r, struct err *e)
{
    static const char *const lane[N_LANES] = {"prefill", "decode"};
    const struct parallel *p = &k->all->plan;
    char name[40];
    for (int l = 0; l < N_LANES; l++) {
        snprintf(name, sizeof name, "group %u %s", r->share.group, lane[l]);
        if (p->tp > 1 && join(k, r, name, r->share.tp_rank, p->tp, &r->peers.group[l], e))
            return e->code;
        snprintf(name, sizeof name, "experts %s", lane[l]);
        if (parallel_spreads(p) && join(k, r, name, r->share.rank, p->n_ranks, &r->peers.all[l], e))
            return e->code;
    }
    return ERR_OK;
}

static enum err_code open_rank(struct start *k, struct rank *r, struct err *e)
{
    const struct ranks_options *o = k->o;
    struct ops_limits limits = o->limits;
    uint32_t n_ranks = k->all->plan.n_ranks;
    if (n_ranks > 1) {
        if (meet(k, r, e))
            return e->code;
        uint32_t threads = limits.n_threads ? limits.n_threads : thread_n_cpus();
        limits.n_threads = threads / k->all->n_here ? threads / k->all->n_here : 1;
        limits.peers = &r->peers;
    }
    if (o->device >= 0 ? cuda_ops_open(&r->ops, &r->cfg, &limits, device_of(k, r->share.rank), e)
                       : cpu_ops_open(&r->ops, &r->cfg, &limits, e))
        return e->code;
    const struct weights *w = r->device_weights ? r->device_weights : r->weights;
    return forward_create(&r->forward, r->ops, w ? w : k->all->rank[k->all->first].weights, e);
}

/* ---- all of them ---- */

static void *opener_main(void *arg)
{
    struct opener *each = arg;
    struct start *k = each->k;
    each->err.code = ERR_OK;
    if (!k->part(k, &k->all->rank[each->rank], &each->err))
        each->err.code = ERR_OK;
    return NULL;
}

/* Runs a part of the opening on all ranks here at once; the first error by rank. */
static enum err_code on_all(struct start *k,
                            enum err_code (*part)(struct start *, struct rank *, struct err *),
                            struct err *e)
{
    uint32_t first = k->all->first, end = first + k->all->n_here;
    k->part = part;
    e->code = ERR_OK;
    if (k->all->plan.n_ranks == 1)
        return part(k, &k->all->rank[0], e) ? e->code : (e->code = ERR_OK);
    for (uint32_t r = first; r < end; r++) {
        struct opener *each = &k->each[r];
        char name[16];
        *each = (struct opener){.k = k, .rank = r};
        snprintf(name, sizeof name, "open%u", r);
        if (thread_start(&each->thread, name, opener_main, each, &each->err))
            break; /* those that have started time out where they wait for it */
        each->started = true;
    }
    for (uint32_t r = first; r < end; r++) {
        struct opener *each = &k->each[r];
        if (each->started)
            thread_join(each->thread);
    }
    /* A rank that was waited for in vain tells more than those that waited. */
    for (int pass = 0; pass < 2 && !e->code; pass++)
        for (uint32_t r = first; r < end && !e->code; r++) {
            if (!k->each[r].err.code || (pass == 0 && k->each[r].err.code == ERR_COMM))
                continue;
            *e = k->each[r].err;
            err_prefix(e, "rank %u", r);
        }
    return e->code;
}

/* Processes load at their own pace; the ranks' time-outs begin when all have. */
static enum err_code wait_for_loads(const struct ranks_options *o, struct err *e)
{
    char name[MEETING_NAME_BYTES];
    uint32_t process;
    snprintf(name, sizeof name, "loaded/%u", o->process);
    if (meeting_pin(o->meeting, name, &o->process, sizeof o->process, e))
        return e->code;
    for (uint32_t p = 0; p < o->n_processes; p++) {
        snprintf(name, sizeof name, "loaded/%u", p);
        if (meeting_read(o->meeting, name, &process, sizeof process, LOAD_MS, e))
            return err_prefix(e, "process %u of %u", p, o->n_processes);
    }
    return ERR_OK;
}

enum err_code ranks_open(struct ranks **out, const struct ranks_options *o, struct err *e)
{
    struct ranks *all = FAULT("ranks.open") ? NULL : calloc(1, sizeof *all);
    struct start *k = calloc(1, sizeof *k);
    if (!all || !k) {
        err_set(e, ERR_NOMEM, "ranks");
        goto fail;
    }
    if (parallel_make(&all->plan, o->cfg, o->tp, o->dp, o->ep, o->placement, e))
        goto fail;
    uint32_t n_processes = o->meeting ? o->n_processes : 1;
    assert(all->plan.n_ranks % n_processes == 0);
    all->n_here = all->plan.n_ranks / n_processes;
    all->first = o->meeting ? o->process * all->n_here : 0;
    for (uint32_t r = 0; r < all->plan.n_ranks; r++) {
        struct rank *rank = &all->rank[r];
        rank->share = parallel_share(&all->plan, r);
        rank->cfg = all->plan.n_ranks > 1 ? parallel_config(&rank->share, o->cfg) : *o->cfg;
        rank->peers.share = &rank->share;
    }
    k->o = o;
    k->all = all;
    if (on_all(k, load, e))
        goto fail;
    if (o->meeting ? wait_for_loads(o, e) : all->plan.n_ranks > 1 && meeting_create(&k->meeting, e))
        goto fail;
    k->meeting = o->meeting ? o->meeting : k->meeting;
    enum err_code code = on_all(k, open_rank, e);
    if (!o->meeting)
        meeting_destroy(k->meeting);
    if (code)
        goto fail;
    free(k);
    *out = all;
    return ERR_OK;
fail:
    free(k);
    ranks_close(all);
    return e->code;
}

void ranks_close(struct ranks *all)
{
    if (!all)
        return;
    for (uint32_t i = 0; i < all->plan.n_ranks; i++) {
        struct rank *r = &all->rank[i];
        forward_destroy(r->forward);
        if (r->ops)
            r->ops->close(r->ops);
        for (int l = 0; l < N_LANES; l++) {
            comm_close(r->peers.group[l]);
            comm_close(r->peers.all[l]);
        }
        if (r->device_weights)
            cuda_weights_close(r->device_weights);
        weights_close(r->weights);
    }
    parallel_free(&all->plan);
    free(all);
}

void ranks_abort(struct ranks *all, const char *why)
{
    for (uint32_t i = 0; i < all->plan.n_ranks; i++)
        for (int l = 0; l < N_LANES; l++) {
            struct ops_peers *p = &all->rank[i].peers;
            if (p->group[l])
                comm_abort(p->group[l], why);
            if (p->all[l])
                comm_abort(p->all[l], why);
        }
}
