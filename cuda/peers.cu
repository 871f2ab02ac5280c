/* peers.cu - what the ranks of an attention group do together on GPUs: sums of their parts, logits
 * of a head that is cut over them; and how a lane waits when others take part in its step.
 */
#include "cuda/backend.cuh"

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
    CUDA_LAUNCH(add_kernel, parts_of(all, THREADS), THREADS, 0, lane->stream, (const float *)part,
                (float *)y, all);
    cuda_launched(lane, "sum of parts");
    cuda_forget_split(lane);
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
    size_t here = p->share->tp_rank == 0 ? rows * vocab : 1;
    for (int l = 0; p->share->plan->cut_head && l < N_LANES; l++) {
        b->lane[l].logit_parts = (float *)cuda_reserve(b, here * sizeof(float));
        b->lane[l].all_logits = (float *)cuda_reserve(b, here * sizeof(float));
        if (!b->lane[l].logit_parts || !b->lane[l].all_logits)
            return err_set(e, ERR_NOMEM, "logits of a group: %zu rows of %zu", rows, vocab);
    }
    return ERR_OK;
}
