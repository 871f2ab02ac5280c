/* moe.cu - feed-forward networks: the dense one, and the router with its experts.
 *
 * Rows go in blocks of at most BLOCK_ROWS. A block of the mixture:
 * - router logits in fp32 arithmetic; route: a warp per row picks groups and experts by the
 * config's rules, the lower index on ties;
 * - group: one block sorts the slots (row, choice) by expert, rows ascending, without atomics;
 * - gate and up, down as grouped products, an expert per grid.z; silu between;
 * - combine: y += slots in the order of choice, then the shared expert.
 * All values between products are fp32; a product rounds what its kernel wants rounded.
 */
#include "cuda/moe.cuh"

#include "tile/block.cuh"
#include "tile/gated.cuh"
#include "tile/rounding.cuh"
#include "tile/split.cuh"

#include <string.h>

enum { BLOCK_ROWS = MOE_BLOCK_ROWS, GROUP_WARPS = 16, SILU_THREADS = 256 };

struct route_args {
    const float *logits, *bias;
    uint32_t *chosen;
    float *weight;
    unsigned long long *rows; /* [n_experts] counts of the layer */
    uint32_t n_experts, n_active, n_group, n_kept;
    bool sigmoid, best_two, renormalise;
    float scale;
};

static __device__ __forceinline__ uint32_t largest_lane(uint32_t x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(WARP_ALL, x);
#else
    return warp_max(x);
#endif
}

/* The place of the largest key (order_key(); 0: none) of a warp's x, lane l having l, l + 32 ...;
 * the lowest of several, 0 if there is none. It is taken out. */
template <int PER> static __device__ __forceinline__ uint32_t take_best(uint32_t (&x)[PER])
{
    uint32_t value = 0, place = 0;
#pragma unroll
    for (uint32_t k = PER; k-- > 0;)
        if (x[k] >= value) {
            value = x[k];
            place = k;
        }
    uint32_t best = largest_lane(value);
    place = place * 32 + threadIdx.x % 32;
    uint32_t first = ~largest_lane(value == best ? ~place : 0);
#pragma unroll
    for (uint32_t k = 0; k < PER; k++)
        if (first == k * 32 + threadIdx.x % 32)
            x[k] = 0;
    return best ? first : 0;
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

/* A warp a row; a lane has PER experts. */
template <int PER> static __global__ void __launch_bounds__(32) route_kernel(struct route_args a)
{
    __shared__ float z[32 * PER], biased[32 * PER];
    __shared__ uint8_t kept[32 * PER];
    uint32_t lane = threadIdx.x, n = a.n_experts, size = n / a.n_group, best[PER];
    const float *x = a.logits + (size_t)blockIdx.x * n;
    float max = -INFINITY, sum = 0.0f, own[PER], bias[PER];
#pragma unroll
    for (uint32_t k = 0; k < PER; k++) {
        uint32_t e = k * 32 + lane;
        own[k] = e < n ? x[e] : -INFINITY;
        bias[k] = a.bias && e < n ? a.bias[e] : 0.0f;
        max = own[k] > max ? own[k] : max;
    }
    max = warp_max(max);
#pragma unroll
    for (uint32_t k = 0; k < PER; k++) {
        own[k] = a.sigmoid ? 1.0f / (1.0f + expf(-own[k])) : expf(own[k] - max);
        sum += k * 32 + lane < n ? own[k] : 0.0f;
    }
    sum = warp_sum(sum);
#pragma unroll
    for (uint32_t k = 0; k < PER; k++) {
        own[k] = a.sigmoid ? own[k] : own[k] / sum;
        bias[k] += own[k];
        z[k * 32 + lane] = own[k];
        biased[k * 32 + lane] = bias[k];
        best[k] = k * 32 + lane < n ? order_key(bias[k]) : 0;
    }
    __syncwarp();
    if (a.n_group > 1) {
        uint32_t group[PER];
#pragma unroll
        for (uint32_t k = 0; k < PER; k++) {
            uint32_t g = k * 32 + lane;
            group[k] = g < a.n_group
                           ? order_key(group_score(biased + g * size, size, a.best_two))
                           : 0;
            kept[g] = 0;
        }
        __syncwarp();
        for (uint32_t i = 0; i < a.n_kept; i++) {
            uint32_t g = take_best(group);
            if (lane == 0)
                kept[g] = 1;
        }
        __syncwarp();
#pragma unroll
        for (uint32_t k = 0; k < PER; k++)
            if (k * 32 + lane < n && !kept[(k * 32 + lane) / size])
                best[k] = 0;
    }
    float total = 0.0f;
    uint32_t *chosen = a.chosen + (size_t)blockIdx.x * a.n_active;
    float *weight = a.weight + (size_t)blockIdx.x * a.n_active;
    for (uint32_t i = 0; i < a.n_active; i++) {
        uint32_t e = take_best(best);
        total += z[e];
        if (lane == 0) {
            chosen[i] = e;
            weight[i] = z[e];
            atomicAdd(a.rows + e, 1ull); /* a sum has no order */
        }
    }
    __syncwarp();
    for (uint32_t i = lane; i < a.n_active; i += 32)
        weight[i] = (a.renormalise ? weight[i] / (total + 1e-20f) : weight[i]) * a.scale;
}

/* A stable sort by counting: each warp has a run of slots, counts its experts, and after the counts
 * of all warps have been added up places them. */
static __global__ void __launch_bounds__(GROUP_WARPS * 32)
    group_kernel(const uint32_t *chosen, uint32_t n_slots, uint32_t n_active, uint32_t n_experts,
                 uint32_t *start, uint32_t *pair, uint32_t *row)
{
    __shared__ uint16_t count[GROUP_WARPS][CUDA_MAX_EXPERTS];
    __shared__ uint32_t total[CUDA_MAX_EXPERTS];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, below = (1u << lane) - 1u;
    uint32_t run = parts_of(n_slots, 32 * GROUP_WARPS) * 32, begin = warp * run;
    uint32_t end = begin + run < n_slots ? begin + run : n_slots;
    for (uint32_t e = lane; e < n_experts; e += 32)
        count[warp][e] = 0;
    __syncwarp();
    for (uint32_t i0 = begin; i0 < end; i0 += 32) {
        uint32_t e = i0 + lane < end ? chosen[i0 + lane] : 0xFFFFFFFFu;
        uint32_t same = __match_any_sync(WARP_ALL, e);
        if (e < n_experts && !(same & below))
            count[warp][e] = (uint16_t)(count[warp][e] + __popc(same));
        __syncwarp();
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x) {
        uint32_t sum = 0;
        for (uint32_t w = 0; w < GROUP_WARPS; w++) {
            uint32_t here = count[w][e];
            count[w][e] = (uint16_t)sum;
            sum += here;
        }
        total[e] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        uint32_t before = 0;
        for (uint32_t e0 = 0; e0 < n_experts; e0 += 32) {
            uint32_t e = e0 + lane, mine = e < n_experts ? total[e] : 0, upto = mine;
            for (uint32_t d = 1; d < 32; d *= 2) {
                uint32_t left = __shfl_up_sync(WARP_ALL, upto, d);
                upto += lane >= d ? left : 0;
            }
            if (e < n_experts) {
                total[e] = before + upto - mine;
                start[e] = total[e];
            }
            before += __shfl_sync(WARP_ALL, upto, 31);
        }
        if (lane == 0)
            start[n_experts] = before;
    }
    __syncthreads();
    for (uint32_t i0 = begin; i0 < end; i0 += 32) {
        uint32_t i = i0 + lane, e = i < end ? chosen[i] : 0xFFFFFFFFu;
        uint32_t same = __match_any_sync(WARP_ALL, e);
        if (e < n_experts) {
            uint32_t at = total[e] + count[warp][e] + __popc(same & below);
            pair[i] = at;
            row[at] = i / n_active;
        }
        __syncwarp();
        if (e < n_experts && !(same & below))
            count[warp][e] = (uint16_t)(count[warp][e] + __popc(same));
        __syncwarp();
    }
}

/* The same in split form, a block a row. ROUND: of values rounded to the weights' type, which may
 * make the largest a power of two. */
template <bool F16, bool ROUND>
static __global__ void __launch_bounds__(SILU_THREADS)
    silu_split_kernel(const float *gate, const float *up, uint32_t width, uint4 *mid, float *factor)
{
    const float4 *g = (const float4 *)(gate + (size_t)blockIdx.x * width);
    const float4 *u = (const float4 *)(up + (size_t)blockIdx.x * width);
    uint4 *to = mid + (size_t)blockIdx.x * (width / 4);
    float f = 1.0f;
    for (int pass = F16 ? 0 : 1; pass < 2; pass++) {
        float most = 0.0f;
#pragma unroll 4
        for (uint32_t i0 = 0; i0 < width / 4; i0 += SILU_THREADS) { /* whole warps */
            uint32_t i = i0 + threadIdx.x;
            bool there = i < width / 4;
            float4 a = there ? g[i] : float4{}, b = there ? u[i] : float4{}, v;
            v.x = gated(a.x, b.x);
            v.y = gated(a.y, b.y);
            v.z = gated(a.z, b.z);
            v.w = gated(a.w, b.w);
            if (ROUND && pass)
                v = round_four<F16>(v);
            if (pass && there)
                to[i] = split_four<F16>(v, f);
            most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        if (pass)
            break;
        f = f16_row_scale(block_max(most));
        if (threadIdx.x == 0)
            factor[blockIdx.x] = 1.0f / f;
    }
}

template <typename T>
static __global__ void silu_kernel(const float *gate, const float *up, T *mid, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        put(mid + i, gated(gate[i], up[i]));
}

/* A block per row and 128 values: e4m3 under one power of two, and back. */
static __global__ void __launch_bounds__(128)
    round_kernel(const float *x, uint32_t dim, float *to)
{
    size_t at = (size_t)blockIdx.x * dim + blockIdx.y * 128 + threadIdx.x;
    bool in = blockIdx.y * 128 + threadIdx.x < dim;
    float v = in ? x[at] : 0.0f, scale = ue8m0_scale(block_max(fabsf(v)));
    if (in)
        to[at] = e4m3_value(e4m3_round(v * (1.0f / scale))) * scale;
}

template <typename T>
static __global__ void combine_kernel(const float *out, const float *shared, const uint32_t *pair,
                                      const float *weight, uint32_t n_active, uint32_t hidden, T *y,
                                      bool add)
{
    size_t row = blockIdx.x;
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= hidden)
        return;
    float sum = add ? get(y + row * hidden + i) : 0.0f;
#pragma unroll 8
    for (uint32_t s = 0; s < n_active; s++)
        sum = fmaf(weight[row * n_active + s], out[(size_t)pair[row * n_active + s] * hidden + i],
                   sum);
    if (shared)
        sum += shared[row * hidden + i];
    put(y + row * hidden + i, sum);
}

/* mid from gate and up, for products with matrices of type t. Gives the factors: NULL for plain
 * rows.
 */
static const float *silu(struct cuda_backend *b, struct cuda_lane *lane, struct moe_scratch *m,
                         enum dtype t, uint32_t n, uint32_t width)
{
    bool split = cuda_takes_split(b, t, width);
    size_t all = (size_t)n * width;
    bool round = cuda_rounds(b, t);
    uint4 *mid = (uint4 *)m->mid;
    if (!split)
        CUDA_LAUNCH((silu_kernel<float>), parts_of(all, 256), 256, 0, lane->stream, m->gate, m->up,
                    (float *)m->mid, all);
    else if (t == DT_F8_E4M3 && round)
        CUDA_LAUNCH((silu_split_kernel<true, true>), n, SILU_THREADS, 0, lane->stream, m->gate,
                    m->up, width, mid, m->factor);
    else if (t == DT_F8_E4M3)
        CUDA_LAUNCH((silu_split_kernel<true, false>), n, SILU_THREADS, 0, lane->stream, m->gate,
                    m->up, width, mid, m->factor);
    else if (round)
        CUDA_LAUNCH((silu_split_kernel<false, true>), n, SILU_THREADS, 0, lane->stream, m->gate,
                    m->up, width, mid, m->factor);
    else
        CUDA_LAUNCH((silu_split_kernel<false, false>), n, SILU_THREADS, 0, lane->stream, m->gate,
                    m->up, width, mid, m->factor);
    if (!split && round)
        cuda_round_rows(lane, t, (const float *)m->mid, n, width, (float *)m->mid);
    cuda_launched(lane, "silu");
    return split ? m->factor : NULL;
}

/* y = or += down(silu(gate x) up x). */
void moe_network(struct cuda_backend *b, struct cuda_lane *lane, const struct ffn_weights *w,
                 const void *x, uint32_t n, void *y, bool add)
{
    struct moe_scratch *m = lane->moe;
    struct product gate = {&w->gate, x, n, m->gate, false, false, NULL, false};
    struct product up = {&w->up, x, n, m->up, false, false, NULL, false};
    struct product down = {&w->down, m->mid, n, y, add, false, NULL, true};
    if (cuda_wide_network(b, lane, w, (const float *)x, n, (float *)y, add))
        return;
    cuda_product(b, lane, &gate);
    cuda_product(b, lane, &up);
    down.factor = silu(b, lane, m, w->down.dtype, n, w->gate.n_out);
    cuda_product(b, lane, &down);
}

static unsigned char *rows_at(const struct cuda_backend *b, const void *x, size_t row, size_t dim)
{
    return (unsigned char *)x + row * dim * sizeof(float);
}

static void op_ffn(struct ops *o, enum lane l, const struct ffn_weights *w, const act *x,
                   uint32_t n, act *y, bool add)
{
    struct cuda_backend *b = cuda_of(o);
    uint32_t rows = b->lane[l].moe->rows, hidden = o->cfg->hidden_size;
    for (uint32_t i = 0; i < n; i += rows)
        moe_network(b, &b->lane[l], w, rows_at(b, x, i, hidden), n - i < rows ? n - i : rows,
                rows_at(b, y, i, hidden), add);
    cuda_forget_split(&b->lane[l]);
}

void moe_route(struct cuda_backend *b, struct cuda_lane *lane, uint32_t layer,
               const struct layer_weights *w, const void *x, uint32_t n)
{
    const struct model_config *c = b->ops.cfg;
    struct moe_scratch *m = lane->moe;
    struct product p = {&w->router, x, n, m->router, false, true, NULL, false};
    struct route_args a = {m->router,         c->router_bias ? w->router_bias : NULL,
                           m->chosen,         m->weight,
                           b->expert_rows + (size_t)layer * c->n_experts,
                           c->n_experts,      c->n_active,
                           c->n_group,        c->n_group_kept,
                           c->sigmoid_router, c->group_by_best_two,
                           c->norm_topk,      c->routed_scale};
    cuda_product(b, lane, &p);
    if (c->n_experts <= 256)
        CUDA_LAUNCH(route_kernel<8>, n, 32, 0, lane->stream, a);
    else
        CUDA_LAUNCH(route_kernel<CUDA_MAX_EXPERTS / 32>, n, 32, 0, lane->stream, a);
    cuda_launched(lane, "route");
}

void moe_group(struct cuda_lane *lane, struct moe_scratch *m, const uint32_t *expert,
               uint32_t n_slots, uint32_t n_active, uint32_t n_experts)
{
    CUDA_LAUNCH(group_kernel, 1, GROUP_WARPS * 32, 0, lane->stream, expert, n_slots, n_active,
                n_experts, m->start, m->pair, m->row);
    cuda_launched(lane, "experts' groups");
}

void moe_experts(struct cuda_backend *b, struct cuda_lane *lane, struct moe_scratch *m,
                 const struct layer_weights *w, const void *x, uint32_t n, uint32_t n_pairs)
{
    uint32_t n_experts = model_held_experts(b->ops.cfg);
    const struct matrix *table = expert_table(w), *first = &w->expert[0].gate;
    struct grouped_product p = {};
    if (cuda_wide_experts(b, lane, m, w->expert, (const float *)x, n_pairs))
        return;
    p.w = table;
    p.w_step = 3;
    p.n_groups = n_experts;
    p.start = m->start;
    p.row = m->row;
    p.max_group = n;
    p.likely_group = 2 * parts_of(n_pairs, n_experts);
    p.n_out = first->n_out;
    p.n_in = first->n_in;
    p.dtype = first->dtype;
    p.x = x;
    if (!cuda_takes_split(b, p.dtype, p.n_in)) {
        p.x = cuda_plain_rows(b, lane, p.dtype, (const float *)x, n, p.n_in);
    } else {
        struct split_rows rows = cuda_split(b, lane, p.dtype, x, n, p.n_in);
        p.x = rows.x;
        p.factor = rows.factor;
    }
    p.y = m->gate;
    if (w->expert[0].up.dtype == p.dtype) {
        p.second = m->up;
        cuda_grouped_product(b, lane, &p);
    } else {
        struct grouped_product up = p;
        cuda_grouped_product(b, lane, &p);
        up.w = table + 1;
        up.dtype = w->expert[0].up.dtype;
        up.y = m->up;
        up.x = x;
        up.factor = NULL;
        if (!cuda_takes_split(b, up.dtype, up.n_in)) {
            up.x = cuda_plain_rows(b, lane, up.dtype, (const float *)x, n, up.n_in);
        } else {
            struct split_rows rows = cuda_split(b, lane, up.dtype, x, n, up.n_in);
            up.x = rows.x;
            up.factor = rows.factor;
        }
        cuda_grouped_product(b, lane, &up);
    }
    p.second = NULL;
    p.factor = silu(b, lane, m, w->expert[0].down.dtype, n_pairs, first->n_out);
    p.w = table + 2;
    p.dtype = w->expert[0].down.dtype;
    p.n_out = w->expert[0].down.n_out;
    p.n_in = w->expert[0].down.n_in;
    p.row = NULL;
    p.x = m->mid;
    p.y = m->out;
    cuda_grouped_product(b, lane, &p);
}

static void op_moe(struct ops *o, enum lane l, uint32_t layer, const struct layer_weights *w,
                   const act *x, uint32_t n_all, act *y, bool add)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    struct moe_scratch *m = lane->moe;
    const struct model_config *c = o->cfg;
    if (b->spreads) {
        assert(add);
        cuda_spread(b, l, layer, w, x, n_all, y);
        return;
    }
    for (uint32_t i = 0; i < n_all; i += m->rows) {
        uint32_t n = n_all - i < m->rows ? n_all - i : m->rows;
        void *from = rows_at(b, x, i, c->hidden_size), *to = rows_at(b, y, i, c->hidden_size);
        float *shared = c->n_shared ? m->shared : NULL;
        bool beside = shared && o->beside && cuda_takes_network(b, &w->shared);
        if (beside) { /* the router leaves most of the device to the shared expert */
            o->beside(o, l, 1, false);
            moe_network(b, lane, &w->shared, from, n, shared, false);
            o->beside(o, l, 0, false);
        }
        moe_route(b, lane, layer, w, from, n);
        moe_group(lane, m, m->chosen, n * c->n_active, c->n_active, c->n_experts);
        cuda_meet(lane); /* the experts want the same scratch */
        const void *read = from;
        if (m->rounded) {
            CUDA_LAUNCH(round_kernel, dim3(n, parts_of(c->hidden_size, 128)), 128, 0, lane->stream,
                        (const float *)from, c->hidden_size, m->rounded);
            cuda_launched(lane, "rounding");
            cuda_forget_split(lane);
            read = m->rounded;
        }
        moe_experts(b, lane, m, w, read, n, n * c->n_active);
        if (shared && !beside)
            moe_network(b, lane, &w->shared, from, n, shared, false);
        dim3 pieces(n, parts_of(c->hidden_size, 256));
        CUDA_LAUNCH((combine_kernel<float>), pieces, 256, 0, lane->stream, m->out, shared, m->pair,
                    m->weight, c->n_active, c->hidden_size, (float *)to, add);
        cuda_launched(lane, "combine");
    }
    cuda_forget_split(lane);
}

static void op_expert_rows(struct ops *o, uint64_t *rows)
{
    struct cuda_backend *b = cuda_of(o);
    size_t n = (size_t)o->cfg->n_layers * o->cfg->n_experts;
    memset(rows, 0, n * sizeof *rows); /* a device that is lost has counted nothing */
    if (n && cudaSetDevice(b->device) == cudaSuccess)
        (void)cudaMemcpy(rows, b->expert_rows, n * sizeof *rows, cudaMemcpyDeviceToHost);
}

struct moe_scratch *moe_reserve(struct cuda_backend *b, size_t n_pairs)
{
    const struct model_config *c = b->ops.cfg;
    size_t mid = n_pairs * c->expert_width;
    struct moe_scratch *m = (struct moe_scratch *)cuda_reserve_host(b, sizeof *m);
    if (!m)
        return NULL;
    m->pair = (uint32_t *)cuda_reserve(b, n_pairs * 4);
    m->row = (uint32_t *)cuda_reserve(b, n_pairs * 4);
    m->start = (uint32_t *)cuda_reserve(b, ((size_t)model_held_experts(c) + 1) * 4);
    m->gate = (float *)cuda_reserve(b, mid * 4);
    m->up = (float *)cuda_reserve(b, mid * 4);
    m->mid = cuda_reserve(b, mid * sizeof(float));
    m->factor = (float *)cuda_reserve(b, n_pairs * sizeof(float));
    m->out = (float *)cuda_reserve(b, n_pairs * c->hidden_size * 4);
    bool whole = m->pair && m->row && m->start && m->gate && m->up && m->mid && m->factor && m->out;
    return whole ? m : NULL;
}

enum err_code cuda_moe_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    b->ops.ffn = op_ffn;
    b->ops.moe = op_moe;
    b->ops.expert_rows = op_expert_rows;
    b->expert_rows = (unsigned long long *)cuda_reserve(b, (size_t)c->n_layers * c->n_experts * 8);
    if (!b->expert_rows)
        return err_set(e, ERR_NOMEM, "counts of experts' rows");
    for (int l = 0; l < N_LANES; l++) {
        struct moe_scratch *m = (struct moe_scratch *)cuda_reserve_host(b, sizeof *m);
        if (!m)
            return err_set(e, ERR_NOMEM, "feed-forward workspace");
        b->lane[l].moe = m;
        uint32_t max = b->ops.limits.max_rows[l];
        size_t rows = max < BLOCK_ROWS ? max : BLOCK_ROWS, slots = rows * c->n_active;
        size_t routed = (size_t)c->n_active * c->expert_width, mid = c->dense_width;
        size_t shared = model_shared_width(c);
        if (c->n_experts)
            mid = routed > mid ? routed : mid;
        mid = rows * (shared > mid ? shared : mid);
        m->rows = (uint32_t)rows;
        m->gate = (float *)cuda_reserve(b, mid * 4);
        m->up = (float *)cuda_reserve(b, mid * 4);
        m->mid = cuda_reserve(b, mid * sizeof(float));
        m->factor = (float *)cuda_reserve(b, (slots > rows ? slots : rows) * sizeof(float));
        bool whole = m->gate && m->up && m->mid && m->factor;
        if (c->n_experts) {
            m->router = (float *)cuda_reserve(b, rows * c->n_experts * 4);
            m->chosen = (uint32_t *)cuda_reserve(b, slots * 4);
            m->weight = (float *)cuda_reserve(b, slots * 4);
            m->pair = (uint32_t *)cuda_reserve(b, slots * 4);
            m->row = (uint32_t *)cuda_reserve(b, slots * 4);
            m->start = (uint32_t *)cuda_reserve(b, ((size_t)c->n_experts + 1) * 4);
            m->out = (float *)cuda_reserve(b, slots * c->hidden_size * 4);
            m->shared = (float *)cuda_reserve(b, rows * c->hidden_size * 4);
            bool rounds = b->ops.limits.expert != EXPERT_F32;
            m->rounded = rounds ? (float *)cuda_reserve(b, rows * c->hidden_size * 4) : NULL;
            whole = whole && (m->rounded || !rounds);
            whole = whole && m->router && m->chosen && m->weight && m->pair && m->row && m->start &&
                    m->out && m->shared;
        }
        if (!whole)
            return err_set(e, ERR_NOMEM, "feed-forward workspace of %zu rows", rows);
    }
    return b->spreads ? cuda_spread_init(b, e) : ERR_OK;
}
