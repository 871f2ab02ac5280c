/* opening.c - see opening.h. */
#include "opening.h"

#include "base/hash.h"
#include "base/log.h"
#include "sched/kv_pool.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AGREE_MS = 600000 }; /* the configuration and tokenizer are read before */

uint32_t opening_step_limit_s(const struct engine_options *o)
{
    bool several = plan_groups(o) > 1 || o->tp > 1;
    return o->step_limit_s ? o->step_limit_s : several ? ENGINE_STEP_LIMIT_S : 0;
}

/* Hashes what decides the tokens. */
static void make_fingerprint(struct opening *m)
{
    const struct engine_options *o = &m->options;
    struct model_config cfg = m->cfg;
    uint32_t settings[] = {(uint32_t)o->precision,
                           (uint32_t)o->latent,
                           (uint32_t)o->index,
                           (uint32_t)o->load_dummy,
                           (uint32_t)o->expert,
                           cfg.n_layers,
                           (uint32_t)m->ranks->rank[0].weights->file_bytes};
    uint64_t h = hash_bytes(1, settings, sizeof settings);
    const struct matrix *sample[] = {&m->ranks->rank[0].weights->embed,
                                     &m->ranks->rank[0].weights->head,
                                     &m->ranks->rank[0].weights->layer[cfg.n_layers - 1].o};
    h = hash_bytes(h, cfg.model_type, sizeof cfg.model_type);
    for (size_t i = 0; i < sizeof sample / sizeof *sample; i++) {
        size_t bytes = (size_t)sample[i]->n_out * sample[i]->n_in * dtype_bytes(sample[i]->dtype);
        h = hash_bytes(h, sample[i]->data, bytes < 4096 ? bytes : 4096);
    }
    h = hash_bytes(h, m->ranks->rank[0].ops->name, strlen(m->ranks->rank[0].ops->name));
    if (m->ranks->plan.tp > 1) /* sums over ranks are other sums */
        h = hash_bytes(h, &m->ranks->plan.tp, sizeof m->ranks->plan.tp);
    h = hash_bytes(h, __VERSION__, sizeof __VERSION__ - 1); /* the compiler orders the arithmetic */
    snprintf(m->fingerprint, sizeof m->fingerprint, "fp_%016" PRIx64, h);
}

/* Configuration and tokenizer: what both a plan and an engine need. *tok_bytes: what it took. */
static enum err_code read_model(const struct engine_options *o, struct model_config *cfg,
                                struct tokenizer **tok, size_t *tok_bytes, struct err *e)
{
    if (!o->model_dir)
        return err_set(e, ERR_INVALID, "model: no directory was given");
    if (model_config_read(cfg, o->model_dir, e))
        return e->code;
    if (o->n_layers) {
        if (o->n_layers > cfg->n_layers)
            return err_set(e, ERR_INVALID, "layers: %u asked for, the model has %u", o->n_layers,
                           cfg->n_layers);
        model_config_cut(cfg, o->n_layers);
    }
    struct mallinfo2 before = mallinfo2();
    if (tokenizer_open(tok, o->model_dir, e))
        return e->code;
    struct mallinfo2 after = mallinfo2();
    size_t was = before.uordblks + before.hblkhd, is = after.uordblks + after.hblkhd;
    *tok_bytes = is > was ? is - was : 0;
    return ERR_OK;
}

static enum err_code check_options(const struct engine_options *o, struct err *e)
{
    if (o->max_seqs < 1 || o->max_seqs > 4096)
        return err_set(e, ERR_INVALID, "max_seqs: %u is outside 1..4096", o->max_seqs);
    if (o->max_queued < 1 || o->max_queued > 1000000)
        return err_set(e, ERR_INVALID, "max_queued: %u is outside 1..1000000", o->max_queued);
    if (o->dp > ENGINE_MAX_GROUPS)
        return err_set(e, ERR_INVALID, "dp: %u is outside 1..%d", o->dp, ENGINE_MAX_GROUPS);
    if (o->n_prefill_groups && o->n_prefill_groups >= o->dp)
        return err_set(e, ERR_INVALID, "split: %u of %u groups prefill, none would decode",
                       o->n_prefill_groups, o->dp);
    if (o->prefill_tokens > 65536)
        return err_set(e, ERR_INVALID, "prefill_tokens: %u is outside 0..65536", o->prefill_tokens);
    return ERR_OK;
}

static enum dtype dummy_dtype(const struct model_config *cfg)
{
    return cfg->fp8_blocks ? DT_F8_E4M3 : DT_BF16;
}

static enum err_code weight_size(size_t *out, const struct engine_options *o,
                                 const struct model_config *cfg, struct err *e)
{
    if (!o->load_dummy)
        return plan_weight_bytes(out, o->model_dir, cfg, e);
    *out = weights_bytes(cfg, dummy_dtype(cfg));
    return ERR_OK;
}

enum err_code engine_make_plan(struct engine_plan *out, const struct engine_options *o,
                               struct err *e)
{
    struct model_config cfg;
    struct plan_detail detail;
    struct tokenizer *tok = NULL;
    size_t tok_bytes = 0, weight_bytes = 0;
    struct engine_options chosen = *o;
    if (check_options(o, e) || read_model(o, &cfg, &tok, &tok_bytes, e))
        return e->code;
    plan_choose_forms(&chosen, &cfg);
    if (!weight_size(&weight_bytes, o, &cfg, e) &&
        !plan_make(&detail, &chosen, &cfg, weight_bytes, tok_bytes, e)) {
        *out = detail.plan;
        e->code = ERR_OK;
    }
    tokenizer_close(tok);
    return e->code;
}

/* A vocabulary larger than the embedding would let a prompt read beyond it. */
static enum err_code check_vocabulary(const struct opening *m, struct err *e)
{
    if (tokenizer_n_ids(m->tok) > m->cfg.vocab_size)
        return err_set(e, ERR_INVALID, "tokenizer.json has ids up to %u, vocab_size is %u",
                       tokenizer_n_ids(m->tok) - 1, m->cfg.vocab_size);
    return ERR_OK;
}

static enum err_code open_ranks(struct opening *m, struct err *e)
{
    const struct engine_options *o = &m->options;
    const struct ranks_options r = {.model_dir = o->model_dir,
                                    .cfg = &m->cfg,
                                    .tp = o->tp ? o->tp : 1,
                                    .dp = plan_groups(o),
                                    .ep = o->ep ? o->ep : 1,
                                    .placement = o->placement,
                                    .load_dummy = o->load_dummy,
                                    .dummy_dtype = dummy_dtype(&m->cfg),
                                    .device = o->cuda_device,
                                    .ranks_per_gpu = o->ranks_per_gpu,
                                    .comm = o->cuda_device >= 0 ? o->comm : NULL,
                                    .comm_timeout_ms =
                                        opening_step_limit_s(o) * 875, /* tells who */
                                    .meeting = m->meeting,
                                    .process = m->launch.process,
                                    .n_processes = m->launch.n_processes,
                                    .limits = m->detail.limits,
                                    .progress = o->progress,
                                    .progress_arg = o->progress_arg};
    if (!ranks_open(&m->ranks, &r, e))
        return ERR_OK;
    bool offer = o->cuda_device >= 0 && e->code == ERR_NOMEM;
    return offer ? plan_offer_cpu(e, (uint32_t)o->cuda_device) : e->code;
}

/* What the processes of a launch must have in common, and what the smallest of them decides. */
struct terms {
    uint64_t same; /* a hash */
    uint32_t n_pages, max_context, prefill_tokens;
};

static uint64_t hash_terms(const struct opening *m)
{
    const struct engine_options *o = &m->options;
    const struct model_config *c = &m->cfg;
    const uint32_t same[] = {(uint32_t)o->precision,
                             (uint32_t)o->latent,
                             (uint32_t)o->index,
                             (uint32_t)o->expert,
                             (uint32_t)o->load_dummy,
                             o->cuda_device < 0,
                             o->tp,
                             o->dp,
                             o->ep,
                             o->n_prefill_groups,
                             o->max_seqs,
                             o->prefill_tokens,
                             opening_step_limit_s(o),
                             c->n_layers,
                             c->hidden_size,
                             c->vocab_size,
                             c->n_heads,
                             c->n_experts,
                             c->index_topk,
                             (uint32_t)m->detail.plan.page_bytes,
                             (uint32_t)sizeof(struct sample_params),
                             (uint32_t)sizeof(struct sample_out),
                             (uint32_t)sizeof(struct err)};
    uint64_t h = hash_bytes(3, same, sizeof same);
    h = hash_bytes(h, c->model_type, strlen(c->model_type));
    return hash_bytes(h, __VERSION__, sizeof __VERSION__ - 1);
}

/* Each process says what it has room for; all take what the smallest one has. */
static enum err_code agree(struct opening *m, struct err *e)
{
    struct engine_plan *p = &m->detail.plan;
    struct terms mine = {hash_terms(m), p->n_pages, p->max_context, p->prefill_tokens};
    struct terms theirs, least = mine;
    char name[MEETING_NAME_BYTES];
    snprintf(name, sizeof name, "terms/%u", m->launch.process);
    if (meeting_pin(m->meeting, name, &mine, sizeof mine, e))
        return e->code;
    for (uint32_t i = 0; i < m->launch.n_processes; i++) {
        snprintf(name, sizeof name, "terms/%u", i);
        if (meeting_read(m->meeting, name, &theirs, sizeof theirs, AGREE_MS, e))
            return err_prefix(e, "process %u of %u", i, m->launch.n_processes);
        if (theirs.same != mine.same)
            return err_set(e, ERR_INVALID,
                           "process %u of %u was started with other settings, another model or "
                           "another build than process %u",
                           i, m->launch.n_processes, m->launch.process);
        least.n_pages = theirs.n_pages < least.n_pages ? theirs.n_pages : least.n_pages;
        least.max_context =
            theirs.max_context < least.max_context ? theirs.max_context : least.max_context;
        least.prefill_tokens = theirs.prefill_tokens < least.prefill_tokens ? theirs.prefill_tokens
                                                                            : least.prefill_tokens;
    }
    m->options.prefill_tokens = least.prefill_tokens;
    m->options.max_context = least.max_context;
    m->options.kv_bytes = (uint64_t)least.n_pages * p->page_bytes;
    return ERR_OK;
}

enum err_code opening_launch(struct launch *out, const struct engine_options *o, struct err *e)
{
    uint32_t n_ranks = plan_groups(o) * (o->tp ? o->tp : 1);
    *out = (struct launch){.by = "nobody", .n_processes = 1};
    if (!o->by_launcher || n_ranks == 1)
        return ERR_OK;
    if (launch_read(out, e))
        return e->code;
    uint32_t n = out->n_processes;
    if (n_ranks % n)
        return err_set(e, ERR_INVALID,
                       "%s started %u processes, among which %u ranks (tp x dp) "
                       "cannot be shared evenly",
                       out->by, n, n_ranks);
    if (n > 1 && o->cuda_device >= 0 && o->ranks_per_gpu > 1)
        return err_set(e, ERR_INVALID,
                       "ranks_per_gpu: %u, but %s started %u processes: a rank "
                       "has a GPU of its own then",
                       o->ranks_per_gpu, out->by, n);
    return ERR_OK;
}

/* Processes of one node have the GPUs behind each other. */
static enum err_code join(struct opening *m, const struct meeting_watch *watch, struct err *e)
{
    struct engine_options *o = &m->options;
    uint32_t n_here = plan_groups(o) * (o->tp ? o->tp : 1) / m->launch.n_processes;
    o->n_processes = m->launch.n_processes;
    if (o->cuda_device >= 0)
        o->cuda_device += (int32_t)(m->launch.local * n_here);
    log_info("engine", "process=%u of=%u by=\"%s\" meets_at=%s:%u ranks=%u", m->launch.process,
             m->launch.n_processes, m->launch.by, m->launch.host, m->launch.port, n_here);
    return meeting_join(&m->meeting, &m->launch, watch, e);
}

static enum err_code open_relays(struct opening *m, struct err *e)
{
    const struct parallel *p = &m->ranks->plan;
    const struct ops_limits *lim = &m->detail.limits;
    struct relays_config c = {.meeting = m->meeting,
                              .process = m->launch.process,
                              .n_processes = m->launch.n_processes,
                              .n_groups = p->dp,
                              .n_ranks = p->tp,
                              .joined = parallel_joins_groups(p),
                              .open_ms = COMM_OPEN_MS};
    if (!m->meeting)
        return ERR_OK;
    for (int l = 0; l < N_LANES; l++)
        c.limits[l] = (struct wire_limits){.max_rows = lim->max_rows[l],
                                           .max_seqs = plan_max_out(&m->options),
                                           .max_out = plan_max_out(&m->options),
                                           .max_context = lim->max_context,
                                           .n_pages = lim->n_pages,
                                           .vocab = m->cfg.vocab_size};
    return relays_open(&m->relays, &c, e);
}

static enum err_code open_carriers(struct opening *m, struct err *e)
{
    const struct parallel *p = &m->ranks->plan;
    const struct carriers_config c = {.meeting = m->meeting,
                                      .process = m->launch.process,
                                      .n_processes = m->launch.n_processes,
                                      .n_groups = p->dp,
                                      .n_prefill = m->options.n_prefill_groups,
                                      .n_ranks = p->tp,
                                      .n_pages = m->detail.plan.n_pages,
                                      .max_pages = kv_pages_for(m->detail.limits.max_context),
                                      .open_ms = COMM_OPEN_MS};
    return m->meeting && c.n_prefill ? carriers_open(&m->carriers, &c, e) : ERR_OK;
}

static enum err_code read_and_plan(struct opening *m, struct err *e)
{
    const struct engine_options *o = &m->options;
    size_t tok_bytes = 0, weight_bytes = 0;
    const char *why = "asked for";
    if (check_options(o, e) || read_model(o, &m->cfg, &m->tok, &tok_bytes, e) ||
        check_vocabulary(m, e))
        return e->code;
    plan_choose_forms(&m->options, &m->cfg);
    if (o->chat_format) {
        m->format = chat_format_by_name(o->chat_format);
        if (!m->format)
            return err_set(e, ERR_INVALID, "chat_format: %s is not known", o->chat_format);
    } else {
        m->format = chat_format_detect(m->tok, m->cfg.model_type, &why);
    }
    log_info("engine", "chat_format=%s because=\"%s\"", chat_format_name(m->format), why);
    if (weight_size(&weight_bytes, o, &m->cfg, e) ||
        plan_make(&m->detail, o, &m->cfg, weight_bytes, tok_bytes, e))
        return e->code;
    if (m->meeting &&
        (agree(m, e) || plan_make(&m->detail, o, &m->cfg, weight_bytes, tok_bytes, e)))
        return e->code;
    m->options.prefill_tokens = m->detail.plan.prefill_tokens;
    return ERR_OK;
}

enum err_code opening_start(struct opening *m, const struct engine_options *o,
                            void (*lost)(void *arg, const struct err *why), void *arg,
                            struct err *e)
{
    const struct meeting_watch watch = {.lost = lost, .arg = arg};
    m->options = *o;
    if (opening_launch(&m->launch, o, e))
        return e->code;
    if (m->launch.n_processes > 1 && join(m, &watch, e))
        return e->code;
    if (read_and_plan(m, e) || open_ranks(m, e) || open_relays(m, e) || open_carriers(m, e))
        return e->code;
    if (!m->launch.process)
        make_fingerprint(m);
    return ERR_OK;
}

void opening_fail(const struct opening *m, const struct err *why)
{
    struct err lost, said = *why;
    if (!m->meeting || meeting_lost(m->meeting, &lost))
        return;
    err_prefix(&said, "process %u of %u", m->launch.process, m->launch.n_processes);
    meeting_fail(m->meeting, said.msg);
}

void opening_end(struct opening *m)
{
    relays_close(&m->relays);
    carriers_close(&m->carriers);
    ranks_close(m->ranks);
    if (m->tok)
        tokenizer_close(m->tok);
    meeting_destroy(m->meeting);
}

struct workers_config opening_workers(const struct opening *m, struct forward **forward)
{
    const struct parallel *p = &m->ranks->plan;
    const struct ops_limits *lim = &m->detail.limits;
    for (uint32_t i = 0; i < p->n_ranks; i++)
        forward[i] = m->ranks->rank[i].forward;
    return (struct workers_config){
        .forward = forward,
        .n_groups = p->dp,
        .n_ranks = p->tp,
        .joined = parallel_joins_groups(p),
        .max_rows = {lim->max_rows[LANE_PREFILL], lim->max_rows[LANE_DECODE]},
        .max_seqs = plan_max_out(&m->options),
        .relays = m->relays};
}

struct mover_config opening_mover(const struct opening *m, struct ops **ops)
{
    const struct parallel *p = &m->ranks->plan;
    for (uint32_t i = 0; i < p->n_ranks; i++)
        ops[i] = m->ranks->rank[i].ops;
    return (struct mover_config){.ops = ops,
                                 .n_groups = p->dp,
                                 .n_prefill = m->options.n_prefill_groups,
                                 .n_ranks = p->tp,
                                 .page_bytes = m->detail.plan.page_bytes,
                                 .carriers = m->carriers.n ? &m->carriers : NULL};
}

void opening_expert_rows(const struct opening *m, uint64_t *rows)
{
    const struct ranks *all = m->ranks;
    memset(rows, 0, (size_t)m->cfg.n_layers * m->cfg.n_experts * sizeof *rows);
    /* where rows travel, each rank of a group sends its share of them; else all see all */
    bool travel = parallel_spreads(&all->plan);
    for (uint32_t i = all->first; i < all->first + all->n_here; i++)
        if (travel || all->rank[i].share.tp_rank == 0)
            forward_add_counts(all->rank[i].forward, rows, NULL);
}

void opening_selection_reuse(const struct opening *m, struct reuse_count *count)
{
    const struct ranks *all = m->ranks;
    memset(count, 0, REUSE_LAYERS * sizeof *count);
    for (uint32_t i = all->first; i < all->first + all->n_here; i++)
        forward_add_counts(all->rank[i].forward, NULL, count);
}
