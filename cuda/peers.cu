/* peers.cu - what the ranks of an attention group do together on GPUs: sums of their parts, logits
 * of a head that is cut over them, in debug builds a comparison of their selections; and how a lane
 * waits when others take part in its step.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"
#include "tile/hash.cuh"

enum { THREADS = 256 };

static const struct ops_peers *peers_of(const struct cuda_backend *b)
{
    return b->ops.limits.peers;
}

void cuda_peers_fail(struct cuda_backend *b, enum lane l, const struct err *e)
{
    const struct ops_peers *p = peers_of(b);
    if (!b->lane[l].err.code)
        b->lane[l].err = *e;
    if (p && p->group[l])
        comm_abort(p->group[l], e->msg);
    if (p && p->all[l])
        comm_abort(p->all[l], e->msg);
}

void cuda_lane_wait(struct cuda_backend *b, enum lane l)
{
    struct cuda_lane *lane = &b->lane[l];
    const struct ops_peers *p = peers_of(b);
    struct comm *with[] = {p ? p->all[l] : NULL, p ? p->group[l] : NULL};
    struct err e;
    if (lane->err.code && p) /* others wait for this rank; a failed step is nobody's */
        cuda_peers_fail(b, l, &lane->err);
    for (int i = 0; i < 2; i++)
        if (with[i] && comm_wait(with[i], lane->stream, &e))
            cuda_peers_fail(b, l, &e);
    /* What peers may delay has ended, the rest is this GPU's own. With peers nothing is awaited of
     * a failed step: a call of theirs may never end. */
    if (!p || !lane->err.code)
        cuda_lane_check(lane, cudaStreamSynchronize(lane->stream), "step");
}

bool cuda_peers_capture(const struct cuda_backend *b, enum lane l)
{
    const struct ops_peers *p = peers_of(b);
    if (b->spreads) /* the host must know how many rows go where */
        return false;
    return !p || !p->group[l] || p->group[l]->capturable;
}

static __global__ void __launch_bounds__(THREADS) add_kernel(const float *from, float *to, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        to[i] += from[i];
}

void cuda_add_rows(struct cuda_lane *lane, const float *from, float *to, size_t n)
{
    CUDA_LAUNCH(add_kernel, parts_of(n, THREADS), THREADS, 0, lane->stream, from, to, n);
    cuda_launched(lane, "sum of parts");
    cuda_forget_split(lane);
}

static void op_reduce(struct ops *o, enum lane l, const act *part, uint32_t n, uint32_t dim, act *y)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    size_t all = (size_t)n * dim;
    struct err e;
    if (lane->err.code)
        return;
    struct comm *group = peers_of(b)->group[l];
    if (comm_all_reduce(group, part, (act *)part, all, COMM_F32, lane->stream, &e)) {
        cuda_peers_fail(b, l, &e);
        return;
    }
    cuda_add_rows(lane, (const float *)part, (float *)y, all);
}

/* Each selected position of each row that selects, mixed with its place, and added up: the same sum
 * means the same selections, but for one chance in 2^64. */
static __global__ void __launch_bounds__(THREADS)
    sum_selections_kernel(struct row_view v, const int32_t *sel, uint32_t width,
                          unsigned long long *sum)
{
    uint32_t row = blockIdx.x, top_k = v.seq[v.seq_of[row]].top_k;
    uint32_t n = top_k < width ? top_k : width;
    unsigned long long part = 0;
    if (v.pos[row] < top_k)
        return;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        unsigned long long h = (unsigned long long)(uint32_t)sel[(size_t)row * width + i] << 32;
        h += (unsigned long long)row * width + i + 1;
        part += device_hash_mix(h);
    }
    part = block_sum(part);
    if (threadIdx.x == 0)
        atomicAdd(sum, part);
}

static void op_compare_selections(struct ops *o, enum lane l, const int32_t *sel)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    const struct rank_share *share = peers_of(b)->share;
    struct comm *group = peers_of(b)->group[l];
    uint32_t tp = share->plan->tp, mine = share->tp_rank;
    unsigned long long *sum = lane->selection_sums, all[PARALLEL_MAX_RANKS];
    struct err e;
    if (lane->err.code)
        return;
    cuda_lane_check(lane, cudaMemsetAsync(sum, 0, tp * sizeof *sum, lane->stream), "sums");
    CUDA_LAUNCH(sum_selections_kernel, lane->step->n_rows, THREADS, 0, lane->stream, view_of(lane),
                sel, o->cfg->index_topk, sum + mine);
    cuda_launched(lane, "sums of selections");
    if (comm_all_gather(group, sum + mine, sum, sizeof *sum, lane->stream, &e) ||
        comm_wait(group, lane->stream, &e)) {
        cuda_peers_fail(b, l, &e);
        return;
    }
    cuda_lane_check(lane,
                    cudaMemcpyAsync(all, sum, tp * sizeof *sum, cudaMemcpyDeviceToHost,
                                    lane->stream),
                    "sums of selections");
    cuda_lane_check(lane, cudaStreamSynchronize(lane->stream), "sums of selections");
    for (uint32_t r = 0; r < tp && !lane->err.code; r++)
        if (all[r] != all[mine]) {
            err_set(&e, ERR_COMM, "rank %u selected other positions than rank %u of its group",
                    mine, r);
            cuda_peers_fail(b, l, &e);
        }
}

/* A block per row and rank's part of its 256 values. */
static __global__ void __launch_bounds__(THREADS)
    place_logits_kernel(const float *part, uint32_t n_part, uint32_t vocab, float *logits)
{
    uint32_t row = blockIdx.x, rank = blockIdx.y, i = blockIdx.z * THREADS + threadIdx.x;
    if (i < n_part)
        logits[(size_t)row * vocab + (size_t)rank * n_part + i] =
            part[((size_t)rank * gridDim.x + row) * n_part + i];
}

float *cuda_gather_logits(struct cuda_backend *b, enum lane l, uint32_t n, uint32_t n_part)
{
    struct cuda_lane *lane = &b->lane[l];
    const struct rank_share *share = peers_of(b)->share;
    uint32_t tp = share->plan->tp;
    size_t bytes = (size_t)n * n_part * sizeof(float);
    size_t send_at[PARALLEL_MAX_RANKS] = {0}, send[PARALLEL_MAX_RANKS] = {bytes};
    size_t recv_at[PARALLEL_MAX_RANKS] = {0}, recv[PARALLEL_MAX_RANKS] = {0};
    struct err e;
    for (uint32_t r = 0; share->tp_rank == 0 && r < tp; r++) {
        recv[r] = bytes;
        recv_at[r] = r * bytes;
    }
    struct comm_parts out = {send_at, send}, in = {recv_at, recv};
    if (lane->err.code)
        return lane->all_logits;
    if (comm_all_to_allv(peers_of(b)->group[l], lane->logits, out, lane->logit_parts, in,
                         lane->stream, &e)) {
        cuda_peers_fail(b, l, &e);
        return lane->all_logits;
    }
    if (share->tp_rank == 0)
        CUDA_LAUNCH(place_logits_kernel, dim3(n, tp, parts_of(n_part, THREADS)), THREADS, 0,
                    lane->stream, lane->logit_parts, n_part, b->ops.cfg->vocab_size,
                    lane->all_logits);
    cuda_launched(lane, "logits of a group");
    return lane->all_logits;
}

enum err_code cuda_peers_init(struct cuda_backend *b, struct err *e)
{
    const struct ops_peers *p = peers_of(b);
    size_t vocab = b->ops.cfg->vocab_size, rows = b->ops.limits.max_out_rows;
    if (!p || p->share->plan->tp == 1)
        return ERR_OK;
    b->ops.reduce = op_reduce;
    for (int l = 0; b->ops.cfg->has_indexer && l < N_LANES; l++) {
        struct cuda_lane *lane = &b->lane[l];
        size_t bytes = PARALLEL_MAX_RANKS * sizeof *lane->selection_sums;
        lane->selection_sums = (unsigned long long *)cuda_reserve(b, bytes);
        if (!lane->selection_sums)
            return err_set(e, ERR_NOMEM, "sums of selections");
        b->ops.compare_selections = op_compare_selections;
    }
    size_t here = p->share->tp_rank == 0 ? rows * vocab : 1;
    for (int l = 0; p->share->plan->cut_head && l < N_LANES; l++) {
        b->lane[l].logit_parts = (float *)cuda_reserve(b, here * sizeof(float));
        b->lane[l].all_logits = (float *)cuda_reserve(b, here * sizeof(float));
        if (!b->lane[l].logit_parts || !b->lane[l].all_logits)
            return err_set(e, ERR_NOMEM, "logits of a group: %zu rows of %zu", rows, vocab);
    }
    return ERR_OK;
}
