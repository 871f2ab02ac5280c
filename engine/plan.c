/* plan.c - see plan.h. */
#include "plan.h"

#include "base/thread.h"
#include "comm/comm.h"
#include "cpu/cpu_ops.h"
#include "cuda/cuda_ops.h"
#include "exec/mover.h"
#include "model/forward.h"
#include "model/parallel.h"
#include "sched/scheduler.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma weak cuda_ops_plan
#pragma weak cuda_device_count
#pragma weak cuda_device_free_bytes
#pragma weak cuda_device_multiplies_fp8

enum {
    MIN_CONTEXT = KV_PAGE_TOKENS,
    OUT_ROWS = 64, /* rows of logits at once: prompt log-probabilities come in such pieces */
    KV_SHARE_PERCENT = 60, /* of the memory left, at most, when nobody says how much */
    /* Prompt tokens of a step, when nobody says how many. Of 512 tokens each of 256 experts gets
     * 16, if 8 are active: so few for its weights that a GPU waits for memory; of 2048 it gets 64.
     * On a CPU 512 take their time already, for which everybody else waits. */
    CPU_PREFILL_TOKENS = 512,
    GPU_PREFILL_TOKENS = 2048,
    /* The program and its libraries, stacks, buffers of connections and what the heap keeps: 9 MiB
     * were resident beside everything else that is counted here after hours of load. */
    PROGRAM_BYTES = 9 << 20
};

void engine_options_default(struct engine_options *o)
{
    *o = (struct engine_options){.precision = PRECISION_FAST,
                                 .latent = LATENT_BF16,
                                 .index = INDEX_FP8,
                                 .cuda_device = -1,
                                 .max_seqs = 16,
                                 .max_queued = 64,
                                 .prefix_cache = true};
}

static uint64_t read_number(const char *path)
{
    FILE *f = fopen(path, "r");
    uint64_t v = UINT64_MAX;
    if (f && fscanf(f, "%" SCNu64, &v) != 1)
        v = UINT64_MAX; /* "max" */
    if (f)
        fclose(f);
    return v;
}

uint64_t plan_available_bytes(void)
{
    uint64_t available = UINT64_MAX, kib;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            available = kib * 1024;
    }
    if (f)
        fclose(f);
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    if (limit != UINT64_MAX && used != UINT64_MAX) {
        uint64_t left = limit > used ? limit - used : 0;
        available = left < available ? left : available;
    }
    return available;
}

/* "model.layers.61.x" -> 61; names of no layer give 0, which every model has. */
static uint32_t layer_of(const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return 0;
    return (uint32_t)strtoul(name + sizeof prefix - 1, NULL, 10);
}

enum err_code plan_weight_bytes(size_t *out, const char *dir, const struct model_config *cfg,
                                struct err *e)
{
    struct safetensors *st = NULL;
    size_t sum = 0;
    if (safetensors_open_dir(&st, dir, e))
        return e->code;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct tensor *t = safetensors_at(st, i);
        if (layer_of(t->name) < cfg->n_layers)
            sum += t->bytes;
    }
    safetensors_close(st);
    *out = sum;
    return ERR_OK;
}

static bool on_gpu(const struct engine_options *o)
{
    return o->cuda_device >= 0 && cuda_ops_plan;
}

static struct ops_plan plan_of_ops(const struct engine_options *o, const struct model_config *cfg,
                                   const struct ops_limits *lim)
{
    struct ops_plan p = on_gpu(o) ? cuda_ops_plan(cfg, lim) : cpu_ops_plan(cfg, lim);
    p.workspace_bytes += forward_act_elements(cfg, lim) * sizeof(float);
    for (int l = 0; cfg->has_indexer && l < N_LANES; l++)
        p.workspace_bytes += (size_t)lim->max_rows[l] * cfg->index_topk * sizeof(int32_t);
    return p;
}

uint32_t plan_groups(const struct engine_options *o)
{
    return o->dp ? o->dp : 1;
}

/* The first rank of the model, whose parts are no smaller than another's, as its back end is told
 * of it when only sizes are asked for: communicators are there, and never called. */
struct first_rank {
    struct parallel parallel;
    struct rank_share share;
    struct model_config cfg;
    struct ops_peers peers;
    struct comm comm;
};

static enum err_code describe_rank(struct first_rank *r, const struct engine_options *o,
                                   const struct model_config *cfg, struct err *e)
{
    *r = (struct first_rank){.cfg = *cfg};
    if (parallel_make(&r->parallel, cfg, o->tp ? o->tp : 1, plan_groups(o), o->ep ? o->ep : 1,
                      o->placement, e))
        return e->code;
    r->share = parallel_share(&r->parallel, 0);
    if (r->parallel.n_ranks == 1)
        return ERR_OK;
    r->cfg = parallel_config(&r->share, cfg);
    r->peers.share = &r->share;
    for (int l = 0; l < N_LANES; l++) {
        r->peers.group[l] = r->parallel.tp > 1 ? &r->comm : NULL;
        r->peers.all[l] = parallel_spreads(&r->parallel) ? &r->comm : NULL;
    }
    return ERR_OK;
}

static uint32_t ranks_here(const struct engine_options *o, const struct first_rank *r)
{
    return r->parallel.n_ranks / (o->n_processes ? o->n_processes : 1);
}

/* Fills limits for a context, and says what the workspace would take. */
static size_t workspace_for(struct ops_limits *lim, const struct engine_options *o,
                            const struct first_rank *r, uint32_t context)
{
    *lim = (struct ops_limits){.precision = o->precision,
                               .latent = o->latent,
                               .index = o->index,
                               .expert = o->expert,
                               .peers = r->parallel.n_ranks > 1 ? &r->peers : NULL,
                               .n_pages = 1,
                               .max_context = context,
                               .max_out_rows = o->max_seqs > OUT_ROWS ? o->max_seqs : OUT_ROWS,
                               .n_threads = o->n_threads};
    lim->max_rows[LANE_PREFILL] = o->prefill_tokens;
    lim->max_rows[LANE_DECODE] = o->max_seqs;
    if (r->parallel.n_ranks > 1) { /* they share the threads; a row's bits do not depend on them */
        uint32_t n = (o->n_threads ? o->n_threads : thread_n_cpus()) / ranks_here(o, r);
        lim->n_threads = n ? n : 1;
    }
    return plan_of_ops(o, &r->cfg, lim).workspace_bytes;
}

/* As many pages as limit holds when each plane is rounded up as the back end does it, at most
 * wanted; *kv_bytes is what they take. */
static uint64_t fit_pages(size_t *kv_bytes, struct ops_limits *lim, const struct engine_options *o,
                          const struct model_config *cfg, uint64_t wanted, size_t page_bytes,
                          uint64_t limit)
{
    uint64_t pages = wanted;
    for (;;) {
        lim->n_pages = (uint32_t)pages;
        *kv_bytes = plan_of_ops(o, cfg, lim).kv_bytes;
        uint64_t over = *kv_bytes > limit ? *kv_bytes - limit : 0;
        if (!over || pages <= 1)
            return pages;
        uint64_t fewer = (over + page_bytes - 1) / page_bytes;
        pages = fewer < pages ? pages - fewer : 1;
    }
}

static uint32_t pages_for(uint32_t tokens)
{
    return (tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

/* The context asked for, or the longest one that the model has and kv_limit bytes hold. */
static enum err_code choose_context(uint32_t *out, const struct engine_options *o,
                                    const struct model_config *cfg, size_t page_bytes,
                                    uint64_t kv_limit, struct err *e)
{
    uint64_t fits = kv_limit / page_bytes * KV_PAGE_TOKENS;
    if (o->max_context > cfg->max_position)
        return err_set(e, ERR_INVALID, "max_context %u is above the model's %u tokens",
                       o->max_context, cfg->max_position);
    uint32_t want = o->max_context ? o->max_context : cfg->max_position;
    if (fits < MIN_CONTEXT || (o->max_context && fits < o->max_context))
        return err_set(
            e, ERR_INVALID,
            "a context of %u tokens needs %" PRIu64 " bytes of KV pages, %" PRIu64 " are there",
            o->max_context ? o->max_context : (unsigned)MIN_CONTEXT,
            (uint64_t)pages_for(o->max_context ? o->max_context : MIN_CONTEXT) * page_bytes,
            kv_limit);
    *out = fits < want ? (uint32_t)fits : want;
    return ERR_OK;
}

uint32_t plan_max_out(const struct engine_options *o)
{
    return o->prefill_tokens > o->max_seqs ? o->prefill_tokens : o->max_seqs;
}

static bool multiplies_fp8(const struct engine_options *o)
{
    if (!on_gpu(o))
        return false;
    bool elsewhere = o->plan_for && (uint32_t)o->cuda_device >= cuda_device_count();
    return elsewhere || cuda_device_multiplies_fp8((uint32_t)o->cuda_device);
}

void plan_choose_forms(struct engine_options *o, const struct model_config *cfg)
{
    if (o->precision_by_model && cfg->fp8_blocks && multiplies_fp8(o))
        o->precision = PRECISION_FP8;
    if (!o->latent_by_precision)
        return;
    if (o->precision == PRECISION_EXACT)
        o->latent = LATENT_F32;
    else if (o->precision == PRECISION_FP8 && cfg->kv_lora_rank % LATENT_GROUP == 0)
        o->latent = LATENT_FP8;
    else
        o->latent = LATENT_BF16;
}

enum err_code plan_offer_cpu(struct err *e, uint32_t device)
{
    struct err was = *e;
    return err_set(e, was.code, "cuda:%u: %.110s; --device cpu runs without a GPU", device,
                   was.msg);
}

/* Of the GPU that has the least, of those that the ranks are on. */
static uint64_t device_free_bytes(const struct engine_options *o, uint32_t n_ranks)
{
    uint64_t least = UINT64_MAX;
    uint32_t sharing = o->ranks_per_gpu ? o->ranks_per_gpu : 1;
    for (uint32_t i = 0; i < n_ranks; i += sharing) {
        uint64_t n = cuda_device_free_bytes((uint32_t)o->cuda_device + i / sharing) / sharing;
        least = n < least ? n : least;
    }
    return least;
}

/* Decides everything but prefill_tokens for a model whose first rank is r. */
static enum err_code make(struct plan_detail *out, const struct engine_options *o,
                          const struct model_config *cfg, const struct first_rank *r,
                          size_t all_weight_bytes, size_t tokenizer_bytes, struct err *e)
{
    struct plan_detail d = {0};
    size_t page_bytes = kv_page_bytes(cfg, o->latent, o->index);
    uint32_t longest = o->max_context ? o->max_context : cfg->max_position, context = 0;
    size_t workspace = workspace_for(&d.limits, o, r, longest);
    bool device = on_gpu(o);
    /* Ranks on GPUs have one each, with their part of the weights; on the CPU they share memory and
     * the files' pages. The numbers up to the pages are those of one rank. */
    uint32_t n_groups = plan_groups(o), n_ranks = r->parallel.n_ranks, n_here = ranks_here(o, r);
    uint32_t n_sharing = device ? 1 : n_here;
    double part =
        (double)weights_bytes_share(cfg, &r->share, DT_BF16) / (double)weights_bytes(cfg, DT_BF16);
    size_t weight_bytes =
        device && n_ranks > 1 ? (size_t)((double)all_weight_bytes * part) : all_weight_bytes;
    uint64_t available = o->plan_for ? o->plan_for
                         : device    ? device_free_bytes(o, n_here)
                                     : plan_available_bytes();
    uint64_t fixed =
        (uint64_t)weight_bytes + (uint64_t)n_sharing * workspace + (device ? 0 : PROGRAM_BYTES);
    uint64_t left = available > fixed ? (available - fixed) / n_sharing : 0;
    uint64_t limit = o->kv_bytes ? o->kv_bytes : left / 100 * KV_SHARE_PERCENT;
    if (o->kv_bytes > left)
        err_set(e, ERR_INVALID,
                "KV memory of %" PRIu64 " bytes: only %" PRIu64
                " are left after weights and workspace",
                o->kv_bytes, left);
    else
        (void)choose_context(&context, o, cfg, page_bytes, limit, e);
    if (!context)
        return device ? plan_offer_cpu(e, (uint32_t)o->cuda_device) : e->code;
    workspace = workspace_for(&d.limits, o, r, context);
    /* Unasked: room for one full context and for every other sequence a quarter of one. */
    uint64_t pages = pages_for(context) + (uint64_t)(o->max_seqs - 1) * pages_for(context / 4);
    if (o->kv_bytes || pages * page_bytes > limit)
        pages = limit / page_bytes;
    if (pages > UINT32_MAX / KV_PAGE_TOKENS)
        pages = UINT32_MAX / KV_PAGE_TOKENS;
    size_t kv_bytes;
    pages = fit_pages(&kv_bytes, &d.limits, o, &r->cfg, pages, page_bytes, limit);
    if (pages < pages_for(context)) /* the rounding took the last pages: the context gives way */
        context = (uint32_t)pages * KV_PAGE_TOKENS;
    d.limits.max_context = context;
    d.limits.peers = NULL;
    d.limits.n_threads *= n_here; /* of all of them */
    d.max_requests = n_groups * o->max_seqs + o->max_queued;
    /* A running request's arena: its prompt, and the tokens of each sequence. */
    size_t requests = (size_t)n_groups * o->max_seqs * context * 2 * sizeof(uint32_t);
    size_t movers = o->n_prefill_groups;
    struct scheduler_config sched = {.n_groups = n_groups,
                                     .n_pages = (uint32_t)pages,
                                     .max_requests = d.max_requests,
                                     .max_seqs = o->max_seqs,
                                     .max_context = context,
                                     .max_out = plan_max_out(o)};
    d.plan =
        (struct engine_plan){.weight_bytes = device ? n_here * weight_bytes : weight_bytes,
                             .kv_bytes = n_here * kv_bytes,
                             .workspace_bytes = n_here * workspace,
                             .tokenizer_bytes = tokenizer_bytes,
                             .program_bytes = PROGRAM_BYTES + requests + scheduler_bytes(&sched) +
                                              movers * mover_bytes(page_bytes),
                             .page_bytes = page_bytes,
                             .n_ranks = n_ranks,
                             .n_groups = n_groups,
                             .n_prefill_groups = o->n_prefill_groups,
                             .n_pages = (uint32_t)pages,
                             .max_context = context,
                             .max_seqs = o->max_seqs,
                             .prefill_tokens = o->prefill_tokens,
                             .precision = o->precision,
                             .latent = o->latent,
                             .kv_tokens = n_groups * pages * KV_PAGE_TOKENS};
    d.plan.total_bytes = d.plan.weight_bytes + d.plan.kv_bytes + d.plan.workspace_bytes +
                         tokenizer_bytes + d.plan.program_bytes;
    d.plan.device = device ? o->cuda_device : -1;
    if (device) {
        d.plan.device_bytes = weight_bytes + kv_bytes + workspace;
        d.plan.device_free_bytes = available;
    }
    memcpy(d.plan.model_type, cfg->model_type, sizeof d.plan.model_type);
    *out = d;
    return ERR_OK;
}

/* Where the options do not say how many prompt tokens a step takes: the most with which one
 * sequence may be as long as was asked for, or as the model takes it; the least where none lets it.
 */
static enum err_code choose_prefill(struct plan_detail *out, const struct engine_options *o,
                                    const struct model_config *cfg, const struct first_rank *r,
                                    size_t weight_bytes, size_t tokenizer_bytes, struct err *e)
{
    struct engine_options tried = *o;
    uint32_t longest = o->max_context ? o->max_context : cfg->max_position;
    if (o->prefill_tokens || !on_gpu(o)) {
        tried.prefill_tokens = o->prefill_tokens ? o->prefill_tokens : CPU_PREFILL_TOKENS;
        return make(out, &tried, cfg, r, weight_bytes, tokenizer_bytes, e);
    }
    for (tried.prefill_tokens = GPU_PREFILL_TOKENS;; tried.prefill_tokens /= 2) {
        struct err why = {0}; /* of what does not fit, only the last and smallest is told */
        enum err_code code = make(out, &tried, cfg, r, weight_bytes, tokenizer_bytes, &why);
        if (!code && out->plan.max_context == longest)
            return ERR_OK;
        if (tried.prefill_tokens / 2 >= CPU_PREFILL_TOKENS)
            continue;
        if (code)
            *e = why;
        return code;
    }
}

enum err_code plan_make(struct plan_detail *out, const struct engine_options *o,
                        const struct model_config *cfg, size_t weight_bytes, size_t tokenizer_bytes,
                        struct err *e)
{
    struct first_rank *r = malloc(sizeof *r);
    if (!r)
        return err_set(e, ERR_NOMEM, "plan");
    enum err_code code = describe_rank(r, o, cfg, e);
    if (!code) {
        code = choose_prefill(out, o, cfg, r, weight_bytes, tokenizer_bytes, e);
        parallel_free(&r->parallel);
    }
    free(r);
    return code;
}
