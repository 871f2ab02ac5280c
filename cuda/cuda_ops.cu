/* cuda_ops.cu - opens the back end: checks sizes, reserves planes and workspace, fills the op
 * table; begins and finishes steps.
 *
 * A step goes up in one copy: all its arrays lie in one pinned block with the device's layout.
 */
#include "cuda/backend.cuh"
#include "cuda/gemm.cuh"

#include "tile/wgmma.cuh"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- steps ---- */

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Places the arrays in a block from `at` on (NULL: only counts); pages come last. Gives the bytes
 * before the pages. */
static size_t place_arrays(struct step_arrays *a, unsigned char *at, size_t rows)
{
    size_t words = aligned(rows * 4), seqs = aligned(rows * sizeof(struct device_seq));
    if (at) {
        a->token = (uint32_t *)at;
        a->pos = (uint32_t *)(at + words);
        a->seq_of = (uint32_t *)(at + 2 * words);
        a->out_row = (uint32_t *)(at + 3 * words);
        a->run = (uint32_t *)(at + 4 * words);
        a->seq = (struct device_seq *)(at + 5 * words);
        a->page = (uint32_t *)(at + 5 * words + seqs);
    }
    return 5 * words + seqs;
}

static void op_begin(struct ops *o, enum lane l, const struct step *s)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    struct step_arrays *h = &lane->host;
    size_t n_pages = 0;
    uint64_t places = 0;
    assert(!lane->step && (s->n_rows || b->spreads) && s->n_rows <= o->limits.max_rows[l]);
    lane->step = s;
    lane->err.code = ERR_OK;
    lane->longest = lane->attended = 0;
    cuda_forget_split(lane);
    cuda_lane_check(lane, cudaSetDevice(b->device), "device");
    for (uint32_t i = 0; i < s->n_rows; i++)
        assert(s->token[i] < o->cfg->vocab_size);
    memcpy(h->token, s->token, s->n_rows * sizeof *h->token);
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        uint32_t end = q->pos0 + q->n_rows + s->n_more, pages = parts_of(end, KV_PAGE_TOKENS);
        assert(q->row0 + q->n_rows <= s->n_rows && end <= o->limits.max_context);
        assert(n_pages + pages <= lane->max_pages);
        h->seq[i] = (struct device_seq){(uint32_t)n_pages, q->top_k};
        memcpy(h->page + n_pages, q->page, pages * sizeof *h->page);
        n_pages += pages;
        uint32_t attended = end < q->top_k ? end : q->top_k;
        lane->longest = end > lane->longest ? end : lane->longest;
        lane->attended = attended > lane->attended ? attended : lane->attended;
        for (uint32_t r = 0; r < q->n_rows; r++) {
            h->seq_of[q->row0 + r] = i;
            h->pos[q->row0 + r] = q->pos0 + r;
            h->run[q->row0 + r] = 0;
        }
        if (q->n_rows == 1 && reuse_has_place(&places, q->run))
            h->run[q->row0] = q->run;
    }
    assert(s->n_out <= o->limits.max_rows[l]);
    if (s->n_out)
        memcpy(h->out_row, s->out_row, s->n_out * sizeof *h->out_row);
    cuda_lane_check(lane,
                    cudaMemcpyAsync(lane->dev.token, h->token,
                                    lane->step_bytes + n_pages * sizeof *h->page,
                                    cudaMemcpyHostToDevice, lane->stream),
                    "a step's arrays");
    lane->longest = cuda_graph_longest(lane->longest);
    lane->attended = cuda_graph_longest(lane->attended);
    cuda_sample_begin(lane, o->cfg->vocab_size);
    cuda_lane_check(lane, cudaEventRecord(lane->first, lane->stream), "a step's first event");
}

static enum err_code op_finish(struct ops *o, enum lane l, struct err *e)
{
    struct cuda_lane *lane = &cuda_of(o)->lane[l];
    cuda_graph_finish(lane);
    cuda_lane_check(lane, cudaEventRecord(lane->last, lane->stream), "a step's last event");
    cuda_sample_last(lane);
    cuda_lane_wait(cuda_of(o), l);
    if (lane->err.code) {
        *e = lane->err;
    } else {
        float ms = 0.0f;
        cuda_sample_finish(lane);
        if (cudaEventElapsedTime(&ms, lane->first, lane->last) == cudaSuccess)
            __atomic_fetch_add(&lane->device_us, (uint64_t)(ms * 1e3f), __ATOMIC_RELAXED);
    }
    lane->step = NULL;
    return lane->err.code;
}

static uint64_t op_device_us(struct ops *o, enum lane l)
{
    return __atomic_load_n(&cuda_of(o)->lane[l].device_us, __ATOMIC_RELAXED);
}

static act *op_alloc_act(struct ops *o, size_t elements)
{
    return cuda_reserve(cuda_of(o), elements * sizeof(float));
}

static void op_close(struct ops *o)
{
    struct cuda_backend *b = cuda_of(o);
    if (!b->dry) {
        (void)cudaSetDevice(b->device);
        cuda_graph_close(b);
        cuda_pages_close(b);
        cuda_spread_close(b);
        for (int l = 0; l < N_LANES; l++)
            if (b->lane[l].stream) {
                cuda_beside_close(&b->lane[l]);
                (void)cudaEventDestroy(b->lane[l].first);
                (void)cudaEventDestroy(b->lane[l].last);
            }
    }
    cuda_free_blocks(b);
    free((char *)o->name);
    free(b);
}

/* ---- opening ---- */

static enum err_code check_sizes(const struct model_config *c, const struct ops_limits *lim,
                                 struct err *e)
{
    if (c->n_layers < 1 || c->n_layers > MODEL_MAX_LAYERS)
        return err_set(e, ERR_INVALID, "layers: %u is not in [1, %d]", c->n_layers,
                       MODEL_MAX_LAYERS);
    if (c->n_experts > CUDA_MAX_EXPERTS)
        return err_set(e, ERR_INVALID, "experts: %u is more than %d", c->n_experts,
                       CUDA_MAX_EXPERTS);
    if (c->n_experts) {
        if (c->n_active < 1 || c->n_active > c->n_experts)
            return err_set(e, ERR_INVALID, "active experts: %u of %u", c->n_active, c->n_experts);
        if (c->n_group < 1 || c->n_experts % c->n_group || c->n_group_kept < 1 ||
            c->n_group_kept > c->n_group ||
            c->n_group_kept * (c->n_experts / c->n_group) < c->n_active)
            return err_set(e, ERR_INVALID, "expert groups: %u of %u for %u experts, %u active",
                           c->n_group_kept, c->n_group, c->n_experts, c->n_active);
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

static enum err_code reserve_planes(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        b->latent[i] =
            (unsigned char *)cuda_reserve(b, b->latent_page_bytes * b->ops.limits.n_pages);
        if (!b->latent[i])
            return err_set(e, ERR_NOMEM, "latents of layer %u: %u pages of %zu bytes", i,
                           b->ops.limits.n_pages, b->latent_page_bytes);
        if (!c->has_indexer || !c->index_full[i])
            continue;
        b->index[i] = (unsigned char *)cuda_reserve(b, b->index_page_bytes * b->ops.limits.n_pages);
        if (!b->index[i])
            return err_set(e, ERR_NOMEM, "index keys of layer %u: %u pages of %zu bytes", i,
                           b->ops.limits.n_pages, b->index_page_bytes);
    }
    return ERR_OK;
}

static enum err_code reserve_lane(struct cuda_backend *b, int l, struct err *e)
{
    struct cuda_lane *lane = &b->lane[l];
    size_t rows = b->ops.limits.max_rows[l];
    lane->max_pages = rows * parts_of(b->ops.limits.max_context, KV_PAGE_TOKENS);
    lane->step_bytes = place_arrays(NULL, NULL, rows);
    size_t bytes = lane->step_bytes + lane->max_pages * sizeof(uint32_t);
    unsigned char *host = (unsigned char *)cuda_reserve_pinned(b, bytes);
    unsigned char *dev = (unsigned char *)cuda_reserve(b, bytes);
    if (!host || !dev)
        return err_set(e, ERR_NOMEM, "a lane of %zu rows", rows);
    place_arrays(&lane->host, host, rows);
    place_arrays(&lane->dev, dev, rows);
    return ERR_OK;
}

/* Angles as the published model forms them: in fp32, then cosine and sine as exact as fp32 holds.
 */
static enum err_code fill_angles(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    size_t half = c->rope_dim / 2, n = b->ops.limits.max_context * half;
    b->rope_cos = (float *)cuda_reserve(b, n * sizeof(float));
    b->rope_sin = (float *)cuda_reserve(b, n * sizeof(float));
    if (!b->rope_cos || !b->rope_sin)
        return err_set(e, ERR_NOMEM, "rotation tables of %u positions", b->ops.limits.max_context);
    if (b->dry)
        return ERR_OK;
    float *table = (float *)malloc(2 * n * sizeof(float));
    if (!table)
        return err_set(e, ERR_NOMEM, "rotation tables of %u positions", b->ops.limits.max_context);
    for (size_t i = 0; i < n; i++) {
        float angle = (float)(i / half) * c->rope_freq[i % half];
        table[i] = (float)(cos((double)angle) * (double)c->rope_gain);
        table[n + i] = (float)(sin((double)angle) * (double)c->rope_gain);
    }
    cudaError_t code = cudaMemcpy(b->rope_cos, table, n * 4, cudaMemcpyHostToDevice);
    if (code == cudaSuccess)
        code = cudaMemcpy(b->rope_sin, table + n, n * 4, cudaMemcpyHostToDevice);
    free(table);
    return code == cudaSuccess
               ? ERR_OK
               : err_set(e, ERR_CUDA, "rotation tables: %s", cudaGetErrorString(code));
}

/* A build for sm_90 alone has no code for warpgroups' products, and its kernels of that kind do
 * nothing. */
static __global__ void hopper_kernel(uint32_t *has)
{
    *has = WGMMA_HERE;
}
static bool has_hopper_code(void)
{
    uint32_t has = 0;
    void *at = NULL;
    if (cudaMalloc(&at, sizeof has) == cudaSuccess) {
        CUDA_LAUNCH(hopper_kernel, 1, 1, 0, (cudaStream_t)NULL, (uint32_t *)at);
        if (cudaMemcpy(&has, at, sizeof has, cudaMemcpyDeviceToHost) != cudaSuccess)
            has = 0;
        (void)cudaFree(at);
    }
    (void)cudaGetLastError();
    return has == 1;
}

static enum err_code open_device(struct cuda_backend *b, uint32_t device, struct err *e)
{
    struct cudaDeviceProp prop;
    int lowest = 0, highest = 0;
    if (cuda_device_check(device, e))
        return e->code;
    b->device = (int)device;
    if (cudaSetDevice(b->device) != cudaSuccess ||
        cudaGetDeviceProperties(&prop, b->device) != cudaSuccess)
        return err_set(e, ERR_CUDA, "cuda:%u: %s", device, cudaGetErrorString(cudaGetLastError()));
    b->shared_bytes = prop.sharedMemPerBlockOptin;
    b->hopper = prop.major == 9 && prop.minor == 0 && has_hopper_code();
    (void)cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    b->wide = b->deployed && gemm_runs_here();
    for (int l = 0; l < N_LANES; l++) {
        struct cuda_lane *lane = &b->lane[l];
        if (cuda_beside_open(b, lane, l == LANE_DECODE ? highest : lowest, e))
            return e->code;
        if (cudaEventCreate(&lane->first) != cudaSuccess ||
            cudaEventCreate(&lane->last) != cudaSuccess)
            return err_set(e, ERR_CUDA, "cuda:%u: events: %s", device,
                           cudaGetErrorString(cudaGetLastError()));
    }
    char name[96];
    if (b->wide && gemm_init() != cudaSuccess)
        return err_set(e, ERR_CUDA, "cuda:%u: products: %s", device,
                       cudaGetErrorString(cudaGetLastError()));
    snprintf(name, sizeof name, "cuda:%u %.48s %s", device, prop.name,
             precision_name(b->ops.limits.precision));
    b->ops.name = strdup(name);
    return b->ops.name ? ERR_OK : err_set(e, ERR_NOMEM, "GPU back end");
}

static enum err_code open_backend(struct cuda_backend **out, const struct model_config *cfg,
                                  const struct ops_limits *limits, uint32_t device, bool dry,
                                  struct err *e)
{
    if (check_sizes(cfg, limits, e))
        return e->code;
    struct cuda_backend *b = (struct cuda_backend *)calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ERR_NOMEM, "GPU back end");
    b->dry = dry;
    b->spreads = limits->peers && parallel_spreads(limits->peers->share->plan);
    b->fast = limits->precision != PRECISION_EXACT;
    b->deployed = limits->precision == PRECISION_FP8;
    b->ops.cfg = cfg;
    b->ops.limits = *limits;
    b->ops.self = b;
    b->ops.alloc_act = op_alloc_act;
    b->ops.close = op_close;
    b->ops.begin = op_begin;
    b->ops.finish = op_finish;
    b->ops.device_us = op_device_us;
    b->latent_page_bytes = kv_latent_page_bytes(cfg, limits->latent);
    b->index_page_bytes = kv_index_page_bytes(cfg, limits->index);
    if ((!dry && open_device(b, device, e)) || fill_angles(b, e) ||
        reserve_lane(b, LANE_PREFILL, e) || reserve_lane(b, LANE_DECODE, e) ||
        cuda_linear_init(b, e) || cuda_wide_init(b, e) || cuda_norm_init(b, e) ||
        cuda_kv_init(b, e) ||
        cuda_index_init(b, e) || cuda_reuse_init(b, e) || cuda_attend_init(b, e) ||
        cuda_moe_init(b, e) || cuda_sample_init(b, e) || cuda_peers_init(b, e) ||
        cuda_graph_init(b, e) || (!dry && reserve_planes(b, e)) ||
        cuda_pages_init(b, e)) {
        op_close(&b->ops);
        return e->code;
    }
    *out = b;
    return ERR_OK;
}

enum err_code cuda_ops_open(struct ops **out, const struct model_config *cfg,
                            const struct ops_limits *limits, uint32_t device, struct err *e)
{
    struct cuda_backend *b;
    if (open_backend(&b, cfg, limits, device, false, e))
        return e->code;
    cudaError_t code = cudaDeviceSynchronize(); /* tables have arrived, for all streams */
    if (code != cudaSuccess) {
        op_close(&b->ops);
        return err_set(e, ERR_CUDA, "cuda:%u: %s", device, cudaGetErrorString(code));
    }
    *out = &b->ops;
    return ERR_OK;
}

struct ops_plan cuda_ops_plan(const struct model_config *cfg, const struct ops_limits *limits)
{
    struct ops_plan plan = {0, SIZE_MAX / 2}; /* more than any device has; sums do not wrap */
    struct cuda_backend *b;
    struct err e;
    if (open_backend(&b, cfg, limits, 0, true, &e))
        return plan;
    plan.workspace_bytes = b->reserved_bytes;
    b->reserved_bytes = 0;
    if (reserve_planes(b, &e) == ERR_OK)
        plan.kv_bytes = b->reserved_bytes;
    op_close(&b->ops);
    return plan;
}
