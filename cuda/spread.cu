/* spread.cu - experts on other GPUs: rows go to them, each expert's values come back.
 *
 * The arithmetic and the messages are those of engine/cpu/spread.c. A block of rows:
 * - address: a warp for each part of the experts numbers the rows and pairs that go there;
 * - on a stream beside the lane's, sizes are exchanged and read by the host, rows packed and sent,
 *   while the shared expert runs on the lane's;
 * - unpack; the received pairs sorted by expert run as one rank's would;
 * - each pair's values go back, and combine sums them in the order of choice, then the shared
 *   expert.
 * A product's bits do not depend on what else is computed with it, so the sum is one rank's.
 */
#include "cuda/moe.cuh"

#include "tile/block.cuh"

enum { THREADS = 256, GROUP = 128, MOST_ROWS_IN = 1024, MOST_OWN = 256 };
enum { WARP = 32 };

struct pair {
    uint32_t row, expert; /* of the message's rows; of the receiver's experts */
};
struct message_size {
    uint32_t rows, pairs;
};
struct offsets {
    size_t at[PARALLEL_MAX_RANKS];
};

struct spread_scratch {
    cudaStream_t side;          /* where rows are sent */
    cudaEvent_t chosen, arrived; /* on the lane's stream: its turn; on `side`: rows are here */
    uint32_t max_rows; /* own rows of a block */
    size_t row_bytes;  /* of a row on its way */
    uint32_t *first, *place; /* struct placement's, on the device; shared by the lanes */
    struct moe_scratch *m;
    uint32_t *part, *slot_at, *slot_row, *slot_expert; /* [rows, n_active] */
    uint32_t *row_at; /* [parts, rows] a row's number in the part's message; ~0: none */
    struct message_size *to, *from; /* [ranks] on the device, one after the other */
    struct message_size *host;      /* [2 * ranks] */
    unsigned char *send, *recv;
    uint32_t *expert_in, *row_in, *sorted_row; /* [pairs] */
    float *value, *back, *in, *shared, *own, *whole;
};

struct address_args {
    const uint32_t *chosen, *first, *place;
    uint32_t n, n_active, n_held, n_width, turn;
    uint32_t *part, *slot_at, *slot_row, *slot_expert, *row_at;
    struct message_size *to;
    uint32_t max_rows;
};

/* Warp p numbers what goes to part p: rows in order, and within them their slots in order. Copies
 * of an expert take turns by rank and row. */
static __global__ void __launch_bounds__(WARP) address_kernel(struct address_args a)
{
    uint32_t part = blockIdx.x, lane = threadIdx.x, rows = 0, pairs = 0;
    for (uint32_t r0 = 0; r0 < a.n; r0 += WARP) {
        uint32_t row = r0 + lane, mine = 0;
        for (uint32_t s = 0; row < a.n && s < a.n_active; s++) {
            uint32_t e = a.chosen[row * a.n_active + s], n = a.first[e + 1] - a.first[e];
            mine += a.place[a.first[e] + (a.turn + row) % n] / a.n_held == part;
        }
        uint32_t met = __ballot_sync(WARP_ALL, mine != 0), upto = mine;
        uint32_t my_row = rows + __popc(met & ((1u << lane) - 1u));
        for (uint32_t d = 1; d < WARP; d *= 2) {
            uint32_t left = __shfl_up_sync(WARP_ALL, upto, d);
            upto += lane >= d ? left : 0;
        }
        uint32_t at = pairs + upto - mine;
        for (uint32_t s = 0; row < a.n && s < a.n_active; s++) {
            uint32_t k = row * a.n_active + s, e = a.chosen[k], n = a.first[e + 1] - a.first[e];
            uint32_t place = a.place[a.first[e] + (a.turn + row) % n];
            if (place / a.n_held != part)
                continue;
            a.part[k] = part;
            a.slot_at[k] = at++;
            a.slot_row[k] = my_row;
            a.slot_expert[k] = place % a.n_held;
        }
        if (row < a.n)
            a.row_at[(size_t)part * a.max_rows + row] = mine ? my_row : 0xFFFFFFFFu;
        rows += __popc(met);
        pairs += __shfl_sync(WARP_ALL, upto, WARP - 1);
    }
    for (uint32_t w = lane; w < a.n_width; w += WARP)
        a.to[part * a.n_width + w] = (struct message_size){rows, pairs};
}

struct pack_args {
    const float *x;
    const uint32_t *row_at, *part, *slot_at, *slot_row, *slot_expert;
    const struct message_size *to;
    unsigned char *send;
    struct offsets at;
    size_t row_bytes;
    uint32_t n, n_active, hidden, n_width, max_rows;
    bool fp8;
};

/* Block (row, rank): the row into the rank's message, if it goes there, and its pairs. */
static __global__ void __launch_bounds__(GROUP) pack_kernel(const struct pack_args a)
{
    uint32_t row = blockIdx.x, rank = blockIdx.y, part = rank / a.n_width;
    uint32_t at = a.row_at[(size_t)part * a.max_rows + row];
    if (at == 0xFFFFFFFFu)
        return;
    unsigned char *message = a.send + a.at.at[rank], *to = message + at * a.row_bytes;
    struct pair *pair = (struct pair *)(message + a.to[rank].rows * a.row_bytes);
    const float *x = a.x + (size_t)row * a.hidden;
    for (uint32_t s = threadIdx.x; s < a.n_active; s += GROUP) {
        uint32_t k = row * a.n_active + s;
        if (a.part[k] == part)
            pair[a.slot_at[k]] = (struct pair){a.slot_row[k], a.slot_expert[k]};
    }
    if (!a.fp8) {
        for (uint32_t i = threadIdx.x; i < a.hidden; i += GROUP)
            ((float *)to)[i] = x[i];
        return;
    }
    float *scales = (float *)(to + (a.hidden + 3) / 4 * 4);
    for (uint32_t g = 0; g < a.hidden; g += GROUP) {
        uint32_t i = g + threadIdx.x;
        float v = i < a.hidden ? x[i] : 0.0f, scale = ue8m0_scale(block_max(fabsf(v)));
        if (i < a.hidden)
            to[i] = e4m3_round(v * (1.0f / scale));
        if (threadIdx.x == 0)
            scales[g / GROUP] = scale;
    }
}

struct unpack_args {
    const unsigned char *recv;
    struct offsets at, row0, pair0; /* by rank: its message; its first row and pair among all */
    const struct message_size *from;
    size_t row_bytes;
    float *in;
    uint32_t *expert_in, *row_in;
    uint32_t hidden;
    bool fp8;
};

/* Block (i, rank): row i of the rank's message, and pairs i, i + gridDim.x, ... */
static __global__ void __launch_bounds__(GROUP) unpack_kernel(const struct unpack_args a)
{
    uint32_t rank = blockIdx.y;
    struct message_size m = a.from[rank];
    const unsigned char *message = a.recv + a.at.at[rank];
    const struct pair *pair = (const struct pair *)(message + m.rows * a.row_bytes);
    uint32_t row0 = (uint32_t)a.row0.at[rank], pair0 = (uint32_t)a.pair0.at[rank];
    for (uint32_t i = blockIdx.x * GROUP + threadIdx.x; i < m.pairs; i += gridDim.x * GROUP) {
        a.expert_in[pair0 + i] = pair[i].expert;
        a.row_in[pair0 + i] = row0 + pair[i].row;
    }
    if (blockIdx.x >= m.rows)
        return;
    const unsigned char *from = message + blockIdx.x * a.row_bytes;
    const float *scales = (const float *)(from + (a.hidden + 3) / 4 * 4);
    float *to = a.in + (size_t)(row0 + blockIdx.x) * a.hidden;
    for (uint32_t i = threadIdx.x; i < a.hidden; i += GROUP)
        to[i] = a.fp8 ? e4m3_value(from[i]) * scales[i / GROUP] : ((const float *)from)[i];
}

/* The sorted pairs' rows: where pair_of_sorted says which pair stands there. */
static __global__ void __launch_bounds__(THREADS)
    rows_of_kernel(const uint32_t *pair, const uint32_t *row_in, uint32_t n, uint32_t *row)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        row[i] = row_in[pair[i]];
}

/* Values in the order of the pairs' coming. */
static __global__ void __launch_bounds__(THREADS)
    order_kernel(const float *out, const uint32_t *place, uint32_t hidden, float *value)
{
    uint32_t i = blockIdx.y * THREADS + threadIdx.x;
    if (i < hidden)
        value[(size_t)blockIdx.x * hidden + i] = out[(size_t)place[blockIdx.x] * hidden + i];
}

struct sum_args {
    const float *back, *weight, *shared;
    const uint32_t *part, *slot_at;
    struct offsets at; /* of each rank's values, in floats */
    uint32_t n_active, n_width, hidden;
    float *y;
    bool add;
};

static __global__ void __launch_bounds__(THREADS) sum_kernel(const struct sum_args a)
{
    uint32_t row = blockIdx.x, i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= a.hidden)
        return;
    float *y = a.y + (size_t)row * a.hidden + i, sum = a.add ? *y : 0.0f;
    for (uint32_t k = row * a.n_active; k < (row + 1) * a.n_active; k++) {
        uint32_t first = a.part[k] * a.n_width;
        size_t at = (size_t)a.slot_at[k] * a.hidden + i;
        float v = a.back[a.at.at[first] + at];
        for (uint32_t w = 1; w < a.n_width; w++)
            v += a.back[a.at.at[first + w] + at];
        sum = fmaf(a.weight[k], v, sum);
    }
    *y = sum + a.shared[(size_t)row * a.hidden + i];
}

/* ---- a block ---- */

struct spread {
    struct cuda_backend *b;
    struct cuda_lane *lane;
    struct spread_scratch *s;
    enum lane l;
    struct comm *comm;
    const struct rank_share *share;
    const struct layer_weights *w;
    uint32_t layer, n, n_active, hidden, n_ranks, n_width;
    const float *x;
    float *y;
    const float *shared;
    bool add, runs_shared; /* into s->shared */
    size_t at_to[PARALLEL_MAX_RANKS], bytes_to[PARALLEL_MAX_RANKS];
    size_t at_from[PARALLEL_MAX_RANKS], bytes_from[PARALLEL_MAX_RANKS];
};

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct offsets offsets_of(const size_t *at, uint32_t n, size_t unit)
{
    struct offsets o = {};
    for (uint32_t r = 0; r < n; r++)
        o.at[r] = at[r] / unit;
    return o;
}

static void address(struct spread *p)
{
    const struct parallel *plan = p->share->plan;
    struct spread_scratch *s = p->s;
    size_t map = plan->placement.n_maps > 1 ? p->layer : 0;
    struct address_args a = {};
    a.chosen = p->lane->moe->chosen;
    a.first = s->first + map * (plan->n_experts + 1);
    a.place = s->place + map * plan->ep * plan->n_held;
    a.n = p->n;
    a.n_active = p->n_active;
    a.n_held = plan->n_held;
    a.n_width = p->n_width;
    a.turn = p->share->rank;
    a.part = s->part;
    a.slot_at = s->slot_at;
    a.slot_row = s->slot_row;
    a.slot_expert = s->slot_expert;
    a.row_at = s->row_at;
    a.to = s->to;
    a.max_rows = s->max_rows;
    CUDA_LAUNCH(address_kernel, plan->ep, WARP, 0, p->lane->stream, a);
    cuda_launched(p->lane, "experts' addresses");
}

/* Both sides' sizes, on the host. The shared expert runs while it waits. */
static enum err_code exchange_sizes(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    struct cuda_lane *lane = p->lane;
    cuda_lane_check(lane, cudaEventRecord(s->chosen, lane->stream), "experts' sizes");
    cuda_lane_check(lane, cudaStreamWaitEvent(s->side, s->chosen, 0), "experts' sizes");
    if (comm_all_to_all(p->comm, s->to, s->from, sizeof *s->to, s->side, e))
        return e->code;
    cuda_lane_check(lane,
                    cudaMemcpyAsync(s->host, s->to, 2 * p->n_ranks * sizeof *s->host,
                                    cudaMemcpyDeviceToHost, s->side),
                    "experts' sizes");
    if (p->runs_shared)
        moe_network(p->b, lane, &p->w->shared, p->x, p->n, s->shared, false);
    if (comm_wait(p->comm, s->side, e))
        return e->code;
    if (lane->err.code)
        *e = lane->err;
    return lane->err.code;
}

static enum err_code exchange_rows(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    const struct message_size *to = s->host, *from = s->host + p->n_ranks;
    size_t sent = 0, got = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->at_to[r] = sent;
        sent += p->bytes_to[r] = to[r].rows * s->row_bytes + to[r].pairs * sizeof(struct pair);
        p->at_from[r] = got;
        got += p->bytes_from[r] = from[r].rows * s->row_bytes + from[r].pairs * sizeof(struct pair);
    }
    if (p->n) {
        struct pack_args a = {};
        a.x = p->x;
        a.row_at = s->row_at;
        a.part = s->part;
        a.slot_at = s->slot_at;
        a.slot_row = s->slot_row;
        a.slot_expert = s->slot_expert;
        a.to = s->to;
        a.send = s->send;
        a.at = offsets_of(p->at_to, p->n_ranks, 1);
        a.row_bytes = s->row_bytes;
        a.n = p->n;
        a.n_active = p->n_active;
        a.hidden = p->hidden;
        a.n_width = p->n_width;
        a.max_rows = s->max_rows;
        a.fp8 = p->b->ops.limits.expert == EXPERT_FP8;
        CUDA_LAUNCH(pack_kernel, dim3(p->n, p->n_ranks), GROUP, 0, s->side, a);
        cuda_launched(p->lane, "experts' rows");
    }
    struct comm_parts out = {p->at_to, p->bytes_to}, in = {p->at_from, p->bytes_from};
    if (comm_all_to_allv(p->comm, s->send, out, s->recv, in, s->side, e))
        return e->code;
    cuda_lane_check(p->lane, cudaEventRecord(s->arrived, s->side), "experts' rows");
    cuda_lane_check(p->lane, cudaStreamWaitEvent(p->lane->stream, s->arrived, 0), "experts' rows");
    return ERR_OK;
}

/* What came, through the experts here; the values in the order of coming. */
static void compute(struct spread *p)
{
    struct spread_scratch *s = p->s;
    struct cuda_lane *lane = p->lane;
    const struct message_size *from = s->host + p->n_ranks;
    uint32_t rows = 0, pairs = 0, most = 1;
    struct unpack_args a = {};
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        a.row0.at[r] = rows;
        a.pair0.at[r] = pairs;
        rows += from[r].rows;
        pairs += from[r].pairs;
        most = from[r].rows > most ? from[r].rows : most;
    }
    assert(rows <= s->max_rows * p->n_ranks);
    if (!pairs)
        return;
    a.recv = s->recv;
    a.at = offsets_of(p->at_from, p->n_ranks, 1);
    a.from = s->from;
    a.row_bytes = s->row_bytes;
    a.in = s->in;
    a.expert_in = s->expert_in;
    a.row_in = s->row_in;
    a.hidden = p->hidden;
    a.fp8 = p->b->ops.limits.expert == EXPERT_FP8;
    CUDA_LAUNCH(unpack_kernel, dim3(most, p->n_ranks), GROUP, 0, lane->stream, a);
    cuda_launched(lane, "experts' rows");
    cuda_forget_split(lane);
    moe_group(lane, s->m, s->expert_in, pairs, 1, p->share->plan->n_held);
    CUDA_LAUNCH(rows_of_kernel, parts_of(pairs, THREADS), THREADS, 0, lane->stream, s->m->row,
                s->row_in, pairs, s->sorted_row);
    uint32_t *row = s->m->row;
    s->m->row = s->sorted_row;
    moe_experts(p->b, lane, s->m, p->w, s->in, rows, pairs);
    s->m->row = row;
    CUDA_LAUNCH(order_kernel, dim3(pairs, parts_of(p->hidden, THREADS)), THREADS, 0, lane->stream,
                s->m->out, s->m->pair, p->hidden, s->value);
    cuda_launched(lane, "experts' values");
}

static enum err_code exchange_values(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    const struct message_size *to = s->host, *from = s->host + p->n_ranks;
    size_t of_pair = p->hidden * sizeof(float), sent = 0, got = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->at_to[r] = sent;
        sent += p->bytes_to[r] = from[r].pairs * of_pair;
        p->at_from[r] = got;
        got += p->bytes_from[r] = to[r].pairs * of_pair;
    }
    struct comm_parts out = {p->at_to, p->bytes_to}, in = {p->at_from, p->bytes_from};
    return comm_all_to_allv(p->comm, s->value, out, s->back, in, p->lane->stream, e);
}

static enum err_code run_block(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    if (p->n)
        moe_route(p->b, p->lane, p->layer, p->w, p->x, p->n);
    address(p);
    if (exchange_sizes(p, e) || exchange_rows(p, e))
        return e->code;
    compute(p);
    if (exchange_values(p, e))
        return e->code;
    if (!p->n)
        return ERR_OK;
    struct sum_args a = {};
    a.back = s->back;
    a.weight = p->lane->moe->weight;
    a.shared = p->shared;
    a.part = s->part;
    a.slot_at = s->slot_at;
    a.at = offsets_of(p->at_from, p->n_ranks, sizeof(float));
    a.n_active = p->n_active;
    a.n_width = p->n_width;
    a.hidden = p->hidden;
    a.y = p->y;
    a.add = p->add;
    CUDA_LAUNCH(sum_kernel, dim3(p->n, parts_of(p->hidden, THREADS)), THREADS, 0, p->lane->stream,
                a);
    cuda_launched(p->lane, "experts' sums");
    cuda_forget_split(p->lane);
    return ERR_OK;
}

/* ---- the op ---- */

/* The shared expert of all rows: each rank of the group has its part of the width, and gets the sum
 * for its own rows. */
static enum err_code run_shared(struct spread *p, const float *x, uint32_t n, uint32_t each,
                                struct err *e)
{
    uint32_t rows = moe_rows(p->lane);
    for (uint32_t i = 0; i < n; i += rows)
        moe_network(p->b, p->lane, &p->w->shared, x + (size_t)i * p->hidden, least(n - i, rows),
                    p->s->whole + (size_t)i * p->hidden, false);
    return comm_reduce_scatter(p->b->ops.limits.peers->group[p->l], p->s->whole, p->s->shared,
                               (size_t)each * p->hidden, COMM_F32, p->lane->stream, e);
}

static enum err_code gather_rows(struct spread *p, uint32_t n, uint32_t each, float *y,
                                 struct err *e)
{
    if (comm_all_gather(p->b->ops.limits.peers->group[p->l], p->s->own, p->s->whole,
                        (size_t)each * p->hidden * sizeof *y, p->lane->stream, e))
        return e->code;
    cuda_add_rows(p->lane, p->s->whole, y, (size_t)n * p->hidden);
    return ERR_OK;
}

void cuda_spread(struct cuda_backend *b, enum lane l, uint32_t layer, const struct layer_weights *w,
                 const void *x, uint32_t n, void *y)
{
    struct cuda_lane *lane = &b->lane[l];
    struct spread_scratch *s = lane->spread;
    const struct rank_share *share = b->ops.limits.peers->share;
    uint32_t tp = share->plan->tp, hidden = b->ops.cfg->hidden_size, each = (n + tp - 1) / tp;
    uint32_t begin = least(n, share->tp_rank * each), end = least(n, begin + each);
    uint32_t most = lane->step->most_rows ? lane->step->most_rows : n;
    struct err e;
    struct spread p = {};
    p.b = b;
    p.lane = lane;
    p.s = s;
    p.l = l;
    p.comm = b->ops.limits.peers->all[l];
    p.share = share;
    p.w = w;
    p.layer = layer;
    p.n_active = b->ops.cfg->n_active;
    p.hidden = hidden;
    p.n_ranks = share->plan->n_ranks;
    p.n_width = share->plan->n_width;
    p.add = tp == 1;
    if (lane->err.code) {
        cuda_peers_fail(b, l, &lane->err);
        return;
    }
    if (tp > 1 && n && run_shared(&p, (const float *)x, n, each, &e)) {
        cuda_peers_fail(b, l, &e);
        return;
    }
    /* As many blocks as the rank with most rows has. */
    for (uint32_t i = 0; i < parts_of(most, tp); i += s->max_rows) {
        uint32_t row = least(begin + i, end);
        p.n = least(end - row, s->max_rows);
        p.x = (const float *)x + (size_t)row * hidden;
        p.y = tp > 1 ? s->own + (size_t)(row - begin) * hidden : (float *)y + (size_t)row * hidden;
        p.shared = tp > 1 ? s->shared + (size_t)(row - begin) * hidden : s->shared;
        p.runs_shared = tp == 1 && p.n;
        if (run_block(&p, &e)) {
            cuda_peers_fail(b, l, &e);
            return;
        }
    }
    if (tp > 1 && n && gather_rows(&p, n, each, (float *)y, &e))
        cuda_peers_fail(b, l, &e);
}

/* Rows of a block that a rank sends: what all ranks send to one must fit a product's rows. */
static uint32_t own_rows(const struct cuda_backend *b, int l)
{
    const struct parallel *plan = b->ops.limits.peers->share->plan;
    uint32_t most = parts_of(b->ops.limits.max_rows[l], plan->tp);
    uint32_t fit = MOST_ROWS_IN / plan->n_ranks;
    most = most < MOST_OWN ? most : (uint32_t)MOST_OWN;
    return most < fit ? most : fit;
}

uint32_t cuda_most_rows(const struct cuda_backend *b, int l)
{
    uint32_t own = b->ops.limits.max_rows[l];
    uint32_t in = b->spreads ? own_rows(b, l) * b->ops.limits.peers->share->plan->n_ranks : 0;
    return own > in ? own : in;
}

static uint32_t *send_up(struct cuda_backend *b, const uint32_t *from, size_t n)
{
    uint32_t *to = (uint32_t *)cuda_reserve(b, n * sizeof *to);
    if (to && !b->dry &&
        cudaMemcpy(to, from, n * sizeof *to, cudaMemcpyHostToDevice) != cudaSuccess)
        return NULL;
    return to;
}

static cudaError_t open_side(struct spread_scratch *s, int l)
{
    int lowest = 0, highest = 0;
    (void)cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    cudaError_t code = cudaStreamCreateWithPriority(&s->side, cudaStreamNonBlocking,
                                                    l == LANE_DECODE ? highest : lowest);
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&s->chosen, cudaEventDisableTiming);
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&s->arrived, cudaEventDisableTiming);
    return code;
}

void cuda_spread_close(struct cuda_backend *b)
{
    for (int l = 0; l < N_LANES; l++) {
        struct spread_scratch *s = b->lane[l].spread;
        if (s && s->side)
            (void)cudaStreamDestroy(s->side);
        if (s && s->chosen)
            (void)cudaEventDestroy(s->chosen);
        if (s && s->arrived)
            (void)cudaEventDestroy(s->arrived);
    }
}

static enum err_code reserve_lane(struct cuda_backend *b, int l, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    const struct parallel *plan = b->ops.limits.peers->share->plan;
    size_t each = own_rows(b, l), slots = each * c->n_active, hidden = c->hidden_size;
    size_t n_ranks = plan->n_ranks, tp = plan->tp;
    size_t most = c->n_active < plan->n_held ? c->n_active : plan->n_held;
    size_t rows_in = each * n_ranks, pairs_in = rows_in * most, back = slots * plan->n_width;
    size_t all_own = parts_of(b->ops.limits.max_rows[l], tp);
    struct spread_scratch *s = (struct spread_scratch *)cuda_reserve_host(b, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "experts' exchange");
    b->lane[l].spread = s;
    if (!b->dry && open_side(s, l)) {
        err_set(e, ERR_CUDA, "experts' exchange: %s", cudaGetErrorString(cudaGetLastError()));
        return e->code;
    }
    s->max_rows = (uint32_t)each;
    s->row_bytes = b->ops.limits.expert == EXPERT_F32
                       ? hidden * sizeof(float)
                       : (hidden + 3) / 4 * 4 + parts_of(hidden, GROUP) * sizeof(float);
    size_t message = s->row_bytes + most * sizeof(struct pair);
    if (l == 0) {
        size_t maps = plan->placement.n_maps;
        s->first = send_up(b, plan->placement.first, maps * (plan->n_experts + 1));
        s->place = send_up(b, plan->placement.place, maps * plan->ep * plan->n_held);
    } else {
        s->first = b->lane[0].spread->first;
        s->place = b->lane[0].spread->place;
    }
    s->m = moe_reserve(b, pairs_in);
    s->part = (uint32_t *)cuda_reserve(b, slots * 4);
    s->slot_at = (uint32_t *)cuda_reserve(b, slots * 4);
    s->slot_row = (uint32_t *)cuda_reserve(b, slots * 4);
    s->slot_expert = (uint32_t *)cuda_reserve(b, slots * 4);
    s->row_at = (uint32_t *)cuda_reserve(b, plan->ep * each * 4);
    s->to = (struct message_size *)cuda_reserve(b, 2 * n_ranks * sizeof *s->to);
    s->from = s->to + n_ranks;
    s->host = (struct message_size *)cuda_reserve_pinned(b, 2 * n_ranks * sizeof *s->host);
    s->send = (unsigned char *)cuda_reserve(b, rows_in * message);
    s->recv = (unsigned char *)cuda_reserve(b, rows_in * message);
    s->expert_in = (uint32_t *)cuda_reserve(b, pairs_in * 4);
    s->row_in = (uint32_t *)cuda_reserve(b, pairs_in * 4);
    s->sorted_row = (uint32_t *)cuda_reserve(b, pairs_in * 4);
    s->in = (float *)cuda_reserve(b, rows_in * hidden * 4);
    s->value = (float *)cuda_reserve(b, pairs_in * hidden * 4);
    s->back = (float *)cuda_reserve(b, back * hidden * 4);
    s->shared = (float *)cuda_reserve(b, (tp > 1 ? all_own : each) * hidden * 4);
    s->own = (float *)cuda_reserve(b, (tp > 1 ? all_own : 0) * hidden * 4);
    s->whole = (float *)cuda_reserve(b, (tp > 1 ? all_own * tp : 0) * hidden * 4);
    if (!s->first || !s->place || !s->m || !s->part || !s->slot_at || !s->slot_row ||
        !s->slot_expert || !s->row_at || !s->to || !s->host || !s->send || !s->recv ||
        !s->expert_in || !s->row_in || !s->sorted_row || !s->in || !s->value || !s->back ||
        !s->shared || !s->own || !s->whole)
        return err_set(e, ERR_NOMEM, "experts' exchange of %zu rows with %zu ranks", each, n_ranks);
    return ERR_OK;
}

enum err_code cuda_spread_init(struct cuda_backend *b, struct err *e)
{
    if (!b->ops.cfg->n_shared)
        return err_set(e, ERR_INVALID, "experts over ranks: a model without a shared expert");
    for (int l = 0; l < N_LANES; l++)
        if (reserve_lane(b, l, e))
            return e->code;
    return ERR_OK;
}
