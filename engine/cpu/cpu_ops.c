/* cpu_ops.c - opens the back end: checks sizes, reserves planes and workspace, fills the op table.
 */
#include "cpu/cpu_ops.h"

#include "base/fault.h"
#include "base/thread.h"
#include "cpu/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- memory ---- */

enum { ALIGNMENT = 64, PAGE_BYTES = 4096, HUGE_BYTES = 2 << 20 };
#ifdef __SANITIZE_ADDRESS__
enum { HEAP_BYTES = HUGE_BYTES }; /* the sanitizer watches around what is on the heap */
#else
enum { HEAP_BYTES = 64 << 10 };
#endif

struct mem_block {
    struct mem_block *next;
    void *at;
    size_t mapped_bytes; /* 0: from the heap */
};

/* What a block takes. */
static size_t rounded(size_t bytes)
{
    size_t to = bytes < HEAP_BYTES ? ALIGNMENT : bytes < HUGE_BYTES ? PAGE_BYTES : HUGE_BYTES;
    return bytes ? (bytes + to - 1) / to * to : ALIGNMENT;
}

/* All but small blocks are mapped: zeroed as they are touched, so that what is only planned costs
 * addresses alone; large ones in huge pages where the machine has them. */
static void *map_zeroed(size_t bytes)
{
    size_t spare = bytes < HUGE_BYTES ? 0 : HUGE_BYTES; /* to begin at a huge page */
    char *at = mmap(NULL, bytes + spare, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    if (!spare)
        return at;
    size_t skip = (HUGE_BYTES - (uintptr_t)at % HUGE_BYTES) % HUGE_BYTES;
    if (skip)
        munmap(at, skip);
    munmap(at + skip + bytes, HUGE_BYTES - skip);
    madvise(at + skip, bytes, MADV_HUGEPAGE);
    return at + skip;
}

static void *heap_zeroed(size_t bytes)
{
    void *at = aligned_alloc(ALIGNMENT, bytes);
    return at ? memset(at, 0, bytes) : NULL;
}

void *cpu_reserve(struct cpu_backend *b, size_t bytes)
{
    struct mem_block *m = FAULT("cpu.reserve") ? NULL : calloc(1, sizeof *m);
    if (!m)
        return NULL;
    bytes = rounded(bytes);
    m->mapped_bytes = bytes < HEAP_BYTES ? 0 : bytes;
    m->at = m->mapped_bytes ? map_zeroed(bytes) : heap_zeroed(bytes);
    if (!m->at) {
        free(m);
        return NULL;
    }
    m->next = b->blocks;
    b->blocks = m;
    b->reserved_bytes += bytes;
    return m->at;
}

static void free_blocks(struct cpu_backend *b)
{
    for (struct mem_block *m = b->blocks, *next; m; m = next) {
        next = m->next;
        if (m->mapped_bytes)
            munmap(m->at, m->mapped_bytes);
        else
            free(m->at);
        free(m);
    }
}

/* ---- steps ---- */

static void op_begin(struct ops *o, enum lane l, const struct step *s)
{
    struct cpu_lane *lane = &cpu_of(o)->lane[l];
    assert(!lane->step && s->n_rows <= o->limits.max_rows[l]);
    lane->step = s;
    lane->err.code = ERR_OK;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        assert(q->row0 + q->n_rows <= s->n_rows && q->pos0 + q->n_rows <= o->limits.max_context);
        for (uint32_t r = 0; r < q->n_rows; r++) {
            lane->row_seq[q->row0 + r] = i;
            lane->row_pos[q->row0 + r] = q->pos0 + r;
        }
        n += q->n_rows;
    }
    assert(n == s->n_rows);
    pool_in_step(cpu_of(o)->pool, l, true);
}

static enum err_code op_finish(struct ops *o, enum lane l, struct err *e)
{
    struct cpu_lane *lane = &cpu_of(o)->lane[l];
    lane->step = NULL;
    pool_in_step(cpu_of(o)->pool, l, false);
    if (lane->err.code)
        *e = lane->err;
    return lane->err.code;
}

static act *op_alloc_act(struct ops *o, size_t elements)
{
    return cpu_reserve(cpu_of(o), elements * sizeof(float));
}

static void op_close(struct ops *o)
{
    struct cpu_backend *b = cpu_of(o);
    if (b->pool)
        pool_destroy(b->pool);
    free_blocks(b);
    free((char *)(uintptr_t)o->name);
    free(b);
}

/* ---- opening ---- */

static enum err_code check_sizes(const struct model_config *c, const struct ops_limits *lim,
                                 struct err *e)
{
    if (c->n_layers < 1 || c->n_layers > MODEL_MAX_LAYERS)
        return err_set(e, ERR_INVALID, "layers: %u is not in [1, %d]", c->n_layers,
                       MODEL_MAX_LAYERS);
    if (c->n_experts > CPU_MAX_EXPERTS)
        return err_set(e, ERR_INVALID, "experts: %u is more than %d", c->n_experts,
                       CPU_MAX_EXPERTS);
    if (c->n_experts) {
        if (c->n_active < 1 || c->n_active > c->n_experts)
            return err_set(e, ERR_INVALID, "active experts: %u of %u", c->n_active, c->n_experts);
        if (c->n_group < 1 || c->n_experts % c->n_group || c->n_group_kept < 1 ||
            c->n_group_kept > c->n_group)
            return err_set(e, ERR_INVALID, "expert groups: %u of %u for %u experts",
                           c->n_group_kept, c->n_group, c->n_experts);
        if (c->n_group_kept * (c->n_experts / c->n_group) < c->n_active)
            return err_set(e, ERR_INVALID, "active experts: %u do not fit in %u groups of %u",
                           c->n_active, c->n_group_kept, c->n_experts / c->n_group);
    }
    if (c->rope_dim < 2 || c->rope_dim % 2 || c->rope_dim / 2 > 128)
        return err_set(e, ERR_INVALID, "rope dimension: %u is not even and in [2, 256]",
                       c->rope_dim);
    if (!lim->n_pages || !lim->max_context || !lim->max_out_rows || !lim->max_rows[LANE_PREFILL] ||
        !lim->max_rows[LANE_DECODE])
        return err_set(e, ERR_INVALID,
                       "limits: pages %u, context %u, logits rows %u, rows %u and %u", lim->n_pages,
                       lim->max_context, lim->max_out_rows, lim->max_rows[LANE_PREFILL],
                       lim->max_rows[LANE_DECODE]);
    return ERR_OK;
}

static enum err_code reserve_planes(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        b->latent[i] = cpu_reserve(b, b->latent_page_bytes * b->ops.limits.n_pages);
        if (!b->latent[i])
            return err_set(e, ERR_NOMEM, "latents of layer %u: %u pages of %zu bytes", i,
                           b->ops.limits.n_pages, b->latent_page_bytes);
        if (!c->has_indexer || !c->index_full[i])
            continue;
        b->index[i] = cpu_reserve(b, b->index_page_bytes * b->ops.limits.n_pages);
        if (!b->index[i])
            return err_set(e, ERR_NOMEM, "index keys of layer %u: %u pages of %zu bytes", i,
                           b->ops.limits.n_pages, b->index_page_bytes);
    }
    return ERR_OK;
}

static enum err_code reserve_workspace(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    const struct ops_limits *lim = &b->ops.limits;
    size_t angles = (size_t)lim->max_context * (c->rope_dim / 2);
    b->latent = cpu_reserve(b, c->n_layers * sizeof *b->latent);
    b->index = cpu_reserve(b, c->n_layers * sizeof *b->index);
    b->rope_cos = cpu_reserve(b, angles * sizeof(float));
    b->rope_sin = cpu_reserve(b, angles * sizeof(float));
    if (!b->latent || !b->index || !b->rope_cos || !b->rope_sin)
        return err_set(e, ERR_NOMEM, "rotation tables of %u positions", lim->max_context);
    for (int l = 0; l < N_LANES; l++) {
        struct cpu_lane *lane = &b->lane[l];
        lane->row_seq = cpu_reserve(b, lim->max_rows[l] * sizeof(uint32_t));
        lane->row_pos = cpu_reserve(b, lim->max_rows[l] * sizeof(uint32_t));
        if (!lane->row_seq || !lane->row_pos)
            return err_set(e, ERR_NOMEM, "a lane of %u rows", lim->max_rows[l]);
    }
    if (cpu_linear_init(b, e) || cpu_moe_init(b, e) || cpu_kv_init(b, e) || cpu_index_init(b, e) ||
        cpu_reuse_init(b, e) || cpu_attend_init(b, e) || cpu_sample_init(b, e) ||
        cpu_peers_init(b, e))
        return e->code;
    cpu_pages_init(b);
    return ERR_OK;
}

enum { ANGLE_ROWS = 256 }; /* positions of a chunk */

/* The angle is formed in fp32, as the published model does; its cosine is then as exact as fp32
 * holds. */
static void fill_angles(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    struct cpu_backend *b = arg;
    const struct model_config *c = b->ops.cfg;
    uint32_t half = c->rope_dim / 2, max = b->ops.limits.max_context, p0 = chunk * ANGLE_ROWS;
    uint32_t p1 = max - p0 < ANGLE_ROWS ? max : p0 + ANGLE_ROWS;
    for (uint32_t p = p0; p < p1; p++) {
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)p * c->rope_freq[i];
            double s, co;
            sincos((double)angle, &s, &co);
            b->rope_cos[(size_t)p * half + i] = (float)(co * (double)c->rope_gain);
            b->rope_sin[(size_t)p * half + i] = (float)(s * (double)c->rope_gain);
        }
    }
}

/* Everything but planes and tables' contents: what a plan needs to know. */
static enum err_code open_workspace(struct cpu_backend **out, const struct model_config *cfg,
                                    const struct ops_limits *limits, struct err *e)
{
    if (check_sizes(cfg, limits, e))
        return e->code;
    struct cpu_backend *b = FAULT("cpu.open") ? NULL : calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ERR_NOMEM, "CPU back end");
    b->ops = (struct ops){.cfg = cfg,
                          .limits = *limits,
                          .self = b,
                          .alloc_act = op_alloc_act,
                          .close = op_close,
                          .begin = op_begin,
                          .finish = op_finish};
    if (!b->ops.limits.n_threads)
        b->ops.limits.n_threads = thread_n_cpus();
    b->latent_page_bytes = kv_latent_page_bytes(cfg, limits->latent);
    b->index_page_bytes = kv_index_page_bytes(cfg, limits->index);
    b->k = kernels_pick();
    if (!b->k) {
        err_set(e, ERR_INVALID, "GAZE_SIMD=%s: this CPU or build has no such kernels",
                getenv("GAZE_SIMD"));
        goto close;
    }
    if (pool_create(&b->pool, b->ops.limits.n_threads, e))
        goto close;
    char name[64];
    snprintf(name, sizeof name, "cpu %s %s", b->k->name, precision_name(limits->precision));
    b->ops.name = strdup(name);
    if (!b->ops.name) {
        err_set(e, ERR_NOMEM, "CPU back end");
        goto close;
    }
    if (reserve_workspace(b, e))
        goto close;
    *out = b;
    return ERR_OK;
close:
    op_close(&b->ops);
    return e->code;
}

enum err_code cpu_ops_open(struct ops **out, const struct model_config *cfg,
                           const struct ops_limits *limits, struct err *e)
{
    struct cpu_backend *b;
    if (open_workspace(&b, cfg, limits, e))
        return e->code;
    if (reserve_planes(b, e)) {
        op_close(&b->ops);
        return e->code;
    }
    pool_run(b->pool, LANE_PREFILL, (limits->max_context + ANGLE_ROWS - 1) / ANGLE_ROWS,
             fill_angles, b);
    *out = &b->ops;
    return ERR_OK;
}

struct ops_plan cpu_ops_plan(const struct model_config *cfg, const struct ops_limits *limits)
{
    struct ops_plan plan = {0, 0};
    size_t latent = kv_latent_page_bytes(cfg, limits->latent) * limits->n_pages;
    size_t index = kv_index_page_bytes(cfg, limits->index) * limits->n_pages;
    for (uint32_t i = 0; i < cfg->n_layers; i++) {
        plan.kv_bytes += rounded(latent);
        if (cfg->has_indexer && cfg->index_full[i])
            plan.kv_bytes += rounded(index);
    }
    /* Workspace that nobody touches costs addresses only, so the families' own code does the count.
     */
    struct cpu_backend *b;
    struct err e;
    if (open_workspace(&b, cfg, limits, &e)) {
        plan.workspace_bytes = SIZE_MAX / 2; /* more than any machine has; sums of it do not wrap */
        return plan;
    }
    plan.workspace_bytes = b->reserved_bytes;
    op_close(&b->ops);
    return plan;
}
