/* moe.cu - feed-forward networks: the dense one, and the router with its experts.
 *
 * Rows go in blocks of at most BLOCK_ROWS. A block of the mixture:
 * - router logits in fp32 arithmetic; route: a warp per row picks groups and experts by the
 * config's rules, the lower index on ties;
 * - group: one block sorts the slots (row, choice) by expert, rows ascending, without atomics;
 * - gate, up, down as grouped products, an expert per grid.z; silu between;
 * - combine: y += slots in the order of choice, then the shared expert.
 * All values between products are fp32; a product rounds what its kernel wants rounded.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"

enum { BLOCK_ROWS = 1024, ROUTE_WARPS = 1, GROUP_THREADS = 1024 };
static_assert((int)GROUP_THREADS >= (int)CUDA_MAX_EXPERTS, "a thread per expert");

struct moe_scratch {
    uint32_t rows;    /* of a block */
    float *router;    /* [rows, n_experts] */
    uint32_t *chosen; /* [rows, n_active] best first */
    float *weight;    /* [rows, n_active] */
    uint32_t *pair;   /* [rows, n_active] where the slot stands in expert order */
    uint32_t *row;    /* [rows * n_active] the row of each pair */
    uint32_t *start;  /* [n_experts + 1] */
    float *gate, *up; /* [mid elements] */
    void *mid;        /* act [mid elements] */
    float *out;       /* [rows * n_active, hidden] */
    float *shared;    /* [rows, hidden] */
};

struct route_args {
    const float *logits, *bias;
    uint32_t *chosen;
    float *weight;
    uint32_t n_experts, n_active, n_group, n_kept;
    bool sigmoid, best_two, renormalise;
    float scale;
};

/* The largest of x[0, n) that is not out, by one warp; the lower index on ties; n: none. */
static __device__ uint32_t warp_best(const float *x, const uint8_t *out, uint32_t n)
{
    uint32_t best = n, lane = threadIdx.x % 32;
    float value = 0.0f;
    for (uint32_t i = lane; i < n; i += 32)
        if (!out[i] && (best == n || x[i] > value)) {
            best = i;
            value = x[i];
        }
    for (int d = 16; d > 0; d /= 2) {
        uint32_t i = __shfl_xor_sync(WARP_ALL, best, d);
        float v = __shfl_xor_sync(WARP_ALL, value, d);
        if (i < n && (best == n || v > value || (v == value && i < best))) {
            best = i;
            value = v;
        }
    }
    return best;
}

static __device__ float group_score(const float *x, uint32_t n, bool best_two)
{
    float first = x[0], second = -INFINITY;
    for (uint32_t i = 1; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return best_two && n > 1 ? first + second : first;
}

static __global__ void __launch_bounds__(32) route_kernel(struct route_args a)
{
    __shared__ float z[CUDA_MAX_EXPERTS], biased[CUDA_MAX_EXPERTS], group[CUDA_MAX_EXPERTS];
    __shared__ uint8_t out[CUDA_MAX_EXPERTS], kept[CUDA_MAX_EXPERTS];
    uint32_t lane = threadIdx.x, n = a.n_experts, size = n / a.n_group;
    const float *x = a.logits + (size_t)blockIdx.x * n;
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t e = lane; e < n; e += 32)
        max = x[e] > max ? x[e] : max;
    max = warp_max(max);
    for (uint32_t e = lane; e < n; e += 32) {
        z[e] = a.sigmoid ? 1.0f / (1.0f + expf(-x[e])) : expf(x[e] - max);
        sum += z[e];
    }
    sum = warp_sum(sum);
    for (uint32_t e = lane; e < n; e += 32) {
        if (!a.sigmoid)
            z[e] /= sum;
        biased[e] = a.bias ? z[e] + a.bias[e] : z[e];
        out[e] = 0;
    }
    __syncwarp();
    if (a.n_group > 1) {
        for (uint32_t g = lane; g < a.n_group; g += 32) {
            group[g] = group_score(biased + g * size, size, a.best_two);
            kept[g] = 0;
        }
        __syncwarp();
        for (uint32_t i = 0; i < a.n_kept; i++) {
            uint32_t g = warp_best(group, kept, a.n_group);
            __syncwarp();
            if (lane == 0 && g < a.n_group)
                kept[g] = 1;
            __syncwarp();
        }
        for (uint32_t e = lane; e < n; e += 32)
            out[e] = !kept[e / size];
        __syncwarp();
    }
    float total = 0.0f;
    uint32_t *chosen = a.chosen + (size_t)blockIdx.x * a.n_active;
    float *weight = a.weight + (size_t)blockIdx.x * a.n_active;
    for (uint32_t i = 0; i < a.n_active; i++) {
        uint32_t e = warp_best(biased, out, n);
        e = e < n ? e : 0; /* NaN everywhere: the logits will say so */
        __syncwarp();
        total += z[e];
        if (lane == 0) {
            out[e] = 1;
            chosen[i] = e;
            weight[i] = z[e];
        }
        __syncwarp();
    }
    for (uint32_t i = lane; i < a.n_active; i += 32)
        weight[i] = (a.renormalise ? weight[i] / (total + 1e-20f) : weight[i]) * a.scale;
}

static __global__ void __launch_bounds__(GROUP_THREADS)
    group_kernel(const uint32_t *chosen, uint32_t n_slots, uint32_t n_active, uint32_t n_experts,
                 uint32_t *start, uint32_t *pair, uint32_t *row)
{
    __shared__ uint32_t slot[GROUP_THREADS], count[GROUP_THREADS + 1];
    uint32_t e = threadIdx.x, n = 0, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i0 = 0; i0 < n_slots; i0 += blockDim.x) {
            __syncthreads();
            slot[e] = i0 + e < n_slots ? chosen[i0 + e] : 0xFFFFFFFFu;
            __syncthreads();
            for (uint32_t i = 0; e < n_experts && i < blockDim.x; i++) {
                if (slot[i] != e)
                    continue;
                if (pass) {
                    pair[i0 + i] = at;
                    row[at++] = (i0 + i) / n_active;
                } else {
                    n++;
                }
            }
        }
        if (pass)
            break;
        count[e] = n;
        __syncthreads();
        if (e == 0) {
            uint32_t sum = 0;
            for (uint32_t i = 0; i < n_experts; i++) {
                start[i] = sum;
                uint32_t c = count[i];
                count[i] = sum;
                sum += c;
            }
            start[n_experts] = sum;
        }
        __syncthreads();
        at = count[e];
    }
}

template <typename T>
static __global__ void silu_kernel(const float *gate, const float *up, T *mid, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        put(mid + i, gate[i] / (1.0f + expf(-gate[i])) * up[i]);
}

template <typename T>
static __global__ void combine_kernel(const float *out, const float *shared, const uint32_t *pair,
                                      const float *weight, uint32_t n_active, uint32_t hidden, T *y)
{
    size_t row = blockIdx.x;
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) {
        float sum = get(y + row * hidden + i);
        for (uint32_t s = 0; s < n_active; s++)
            sum = fmaf(weight[row * n_active + s],
                       out[(size_t)pair[row * n_active + s] * hidden + i], sum);
        if (shared)
            sum += shared[row * hidden + i];
        put(y + row * hidden + i, sum);
    }
}

static void silu(struct cuda_backend *b, struct cuda_lane *lane, size_t n)
{
    struct moe_scratch *m = lane->moe;
    CUDA_LAUNCH((silu_kernel<float>), parts_of(n, 256), 256, 0, lane->stream, m->gate, m->up,
                (float *)m->mid, n);
    cuda_launched(lane, "silu");
}

/* y = or += down(silu(gate x) up x). */
static void network(struct cuda_backend *b, struct cuda_lane *lane, const struct ffn_weights *w,
                    const void *x, uint32_t n, void *y, bool add)
{
    struct moe_scratch *m = lane->moe;
    struct product gate = {&w->gate, x, n, m->gate, false, false};
    struct product up = {&w->up, x, n, m->up, false, false};
    struct product down = {&w->down, m->mid, n, y, add, false};
    cuda_product(b, lane, &gate);
    cuda_product(b, lane, &up);
    silu(b, lane, (size_t)n * w->gate.n_out);
    cuda_product(b, lane, &down);
}

static unsigned char *rows_at(const struct cuda_backend *b, const void *x, size_t row, size_t dim)
{
    return (unsigned char *)x + row * dim * sizeof(float);
}

static void op_ffn(struct ops *o, enum lane l, const struct ffn_weights *w, const act *x,
                   uint32_t n, act *y)
{
    struct cuda_backend *b = cuda_of(o);
    uint32_t rows = b->lane[l].moe->rows, hidden = o->cfg->hidden_size;
    for (uint32_t i = 0; i < n; i += rows)
        network(b, &b->lane[l], w, rows_at(b, x, i, hidden), n - i < rows ? n - i : rows,
                rows_at(b, y, i, hidden), true);
}

static void route(struct cuda_backend *b, struct cuda_lane *lane, const struct layer_weights *w,
                  const void *x, uint32_t n)
{
    const struct model_config *c = b->ops.cfg;
    struct moe_scratch *m = lane->moe;
    struct product p = {&w->router, x, n, m->router, false, true};
    struct route_args a = {m->router,         c->router_bias ? w->router_bias : NULL,
                           m->chosen,         m->weight,
                           c->n_experts,      c->n_active,
                           c->n_group,        c->n_group_kept,
                           c->sigmoid_router, c->group_by_best_two,
                           c->norm_topk,      c->routed_scale};
    cuda_product(b, lane, &p);
    CUDA_LAUNCH(route_kernel, n, 32 * ROUTE_WARPS, 0, lane->stream, a);
    CUDA_LAUNCH(group_kernel, 1, parts_of(c->n_experts, 32) * 32, 0, lane->stream, m->chosen,
                n * c->n_active, c->n_active, c->n_experts, m->start, m->pair, m->row);
    cuda_launched(lane, "route");
}

static void experts(struct cuda_backend *b, struct cuda_lane *lane, const struct layer_weights *w,
                    const void *x, uint32_t n)
{
    const struct model_config *c = b->ops.cfg;
    struct moe_scratch *m = lane->moe;
    const struct matrix *table = expert_table(w), *first = &w->expert[0].gate;
    struct grouped_product p = {};
    p.w = table;
    p.w_step = 3;
    p.n_groups = c->n_experts;
    p.start = m->start;
    p.row = m->row;
    p.max_group = n;
    p.likely_group = 2 * parts_of((size_t)n * c->n_active, c->n_experts);
    p.n_out = first->n_out;
    p.n_in = first->n_in;
    p.dtype = first->dtype;
    p.x = x;
    p.y = m->gate;
    cuda_grouped_product(b, lane, &p);
    p.w = table + 1;
    p.dtype = w->expert[0].up.dtype;
    p.y = m->up;
    cuda_grouped_product(b, lane, &p);
    silu(b, lane, (size_t)n * c->n_active * first->n_out);
    p.w = table + 2;
    p.dtype = w->expert[0].down.dtype;
    p.n_out = w->expert[0].down.n_out;
    p.n_in = w->expert[0].down.n_in;
    p.row = NULL;
    p.x = m->mid;
    p.y = m->out;
    cuda_grouped_product(b, lane, &p);
}

static void op_moe(struct ops *o, enum lane l, const struct layer_weights *w, const act *x,
                   uint32_t n_all, act *y)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    struct moe_scratch *m = lane->moe;
    const struct model_config *c = o->cfg;
    for (uint32_t i = 0; i < n_all; i += m->rows) {
        uint32_t n = n_all - i < m->rows ? n_all - i : m->rows;
        void *from = rows_at(b, x, i, c->hidden_size), *to = rows_at(b, y, i, c->hidden_size);
        float *shared = c->n_shared ? m->shared : NULL;
        route(b, lane, w, from, n);
        experts(b, lane, w, from, n);
        if (shared)
            network(b, lane, &w->shared, from, n, shared, false);
        CUDA_LAUNCH((combine_kernel<float>), n, 256, 0, lane->stream, m->out, shared, m->pair,
                    m->weight, c->n_active, c->hidden_size, (float *)to);
        cuda_launched(lane, "combine");
    }
}

enum err_code cuda_moe_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    b->ops.ffn = op_ffn;
    b->ops.moe = op_moe;
    for (int l = 0; l < N_LANES; l++) {
        struct moe_scratch *m = (struct moe_scratch *)cuda_reserve_host(b, sizeof *m);
        if (!m)
            return err_set(e, ERR_NOMEM, "feed-forward workspace");
        b->lane[l].moe = m;
        uint32_t max = b->ops.limits.max_rows[l];
        size_t rows = max < BLOCK_ROWS ? max : BLOCK_ROWS, slots = rows * c->n_active;
        size_t routed = (size_t)c->n_active * c->expert_width, mid = c->dense_width;
        size_t shared = (size_t)c->n_shared * c->expert_width;
        if (c->n_experts)
            mid = routed > mid ? routed : mid;
        mid = rows * (shared > mid ? shared : mid);
        m->rows = (uint32_t)rows;
        m->gate = (float *)cuda_reserve(b, mid * 4);
        m->up = (float *)cuda_reserve(b, mid * 4);
        m->mid = cuda_reserve(b, mid * sizeof(float));
        bool whole = m->gate && m->up && m->mid;
        if (c->n_experts) {
            m->router = (float *)cuda_reserve(b, rows * c->n_experts * 4);
            m->chosen = (uint32_t *)cuda_reserve(b, slots * 4);
            m->weight = (float *)cuda_reserve(b, slots * 4);
            m->pair = (uint32_t *)cuda_reserve(b, slots * 4);
            m->row = (uint32_t *)cuda_reserve(b, slots * 4);
            m->start = (uint32_t *)cuda_reserve(b, ((size_t)c->n_experts + 1) * 4);
            m->out = (float *)cuda_reserve(b, slots * c->hidden_size * 4);
            m->shared = (float *)cuda_reserve(b, rows * c->hidden_size * 4);
            whole = whole && m->router && m->chosen && m->weight && m->pair && m->row && m->start &&
                    m->out && m->shared;
        }
        if (!whole)
            return err_set(e, ERR_NOMEM, "feed-forward workspace of %zu rows", rows);
    }
    return ERR_OK;
}
