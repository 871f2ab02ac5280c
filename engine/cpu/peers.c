/* peers.c - what the ranks of an attention group do together: sums of their parts, logits of a head
 * that is cut over them, and in debug builds a comparison of their selections.
 */
#include "cpu/backend.h"

#include "base/hash.h"

#include <string.h>

struct peers_scratch {
    float *gathered; /* [tp][max_out_rows, part]: the parts as they come */
    float *logits;   /* [max_out_rows, vocab] */
};

static struct comm *group_of(const struct cpu_backend *b, enum lane l)
{
    return b->ops.limits.peers->group[l];
}

void cpu_lane_fail(struct cpu_backend *b, enum lane l, const struct err *e)
{
    const struct ops_peers *p = b->ops.limits.peers;
    struct comm *with[] = {p ? p->group[l] : NULL, p ? p->all[l] : NULL};
    if (!b->lane[l].err.code)
        b->lane[l].err = *e;
    for (size_t i = 0; i < sizeof with / sizeof *with; i++)
        if (with[i])
            comm_abort(with[i], e->msg);
}

struct add_job {
    const struct kernels *k;
    const float *from;
    float *to;
    size_t n;
};
enum { ADD_CHUNK = 16384 };

static void add_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct add_job *j = arg;
    size_t i = (size_t)chunk * ADD_CHUNK, n = j->n - i < ADD_CHUNK ? j->n - i : ADD_CHUNK;
    j->k->axpy_f32(1.0f, j->from + i, j->to + i, n);
}

/* The sum takes the place of the part, so that x keeps what it had until all have come. */
static void op_reduce(struct ops *o, enum lane l, const act *part, uint32_t n, uint32_t dim, act *y)
{
    struct cpu_backend *b = cpu_of(o);
    struct err e;
    struct add_job j = {b->k, part, y, (size_t)n * dim};
    float *sum = (float *)(uintptr_t)part;
    if (comm_all_reduce(group_of(b, l), part, sum, j.n, COMM_F32, NULL, &e)) {
        cpu_lane_fail(b, l, &e);
        return;
    }
    cpu_run(b, l, (uint32_t)((j.n + ADD_CHUNK - 1) / ADD_CHUNK), (double)j.n / 4.0, add_chunk, &j);
}

float *cpu_gather_logits(struct cpu_backend *b, enum lane l, const float *logits, uint32_t n,
                         uint32_t n_part)
{
    struct peers_scratch *s = b->lane[l].peers_scratch;
    const struct rank_share *share = b->ops.limits.peers->share;
    uint32_t vocab = b->ops.cfg->vocab_size, tp = share->plan->tp;
    size_t bytes = (size_t)n * n_part * sizeof *logits;
    size_t send_at[PARALLEL_MAX_RANKS] = {0}, send[PARALLEL_MAX_RANKS] = {bytes};
    size_t recv_at[PARALLEL_MAX_RANKS] = {0}, recv[PARALLEL_MAX_RANKS] = {0};
    struct err e;
    for (uint32_t r = 0; share->tp_rank == 0 && r < tp; r++) {
        recv[r] = bytes;
        recv_at[r] = r * bytes;
    }
    if (comm_all_to_allv(group_of(b, l), logits, (struct comm_parts){send_at, send}, s->gathered,
                         (struct comm_parts){recv_at, recv}, NULL, &e)) {
        cpu_lane_fail(b, l, &e);
        return s->logits;
    }
    for (uint32_t i = 0; share->tp_rank == 0 && i < n; i++)
        for (uint32_t r = 0; r < tp; r++)
            memcpy(s->logits + (size_t)i * vocab + (size_t)r * n_part,
                   s->gathered + ((size_t)r * n + i) * n_part, n_part * sizeof *logits);
    return s->logits;
}

static void op_compare_selections(struct ops *o, enum lane l, const int32_t *sel)
{
    struct cpu_backend *b = cpu_of(o);
    const struct step *s = b->lane[l].step;
    uint32_t top_k = o->cfg->index_topk, tp = o->limits.peers->share->plan->tp;
    uint64_t mine = 1, all[PARALLEL_MAX_RANKS];
    struct err e;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        for (uint32_t r = 0; r < q->n_rows; r++)
            if (q->top_k != TOP_K_DENSE && q->pos0 + r + 1 > q->top_k)
                mine =
                    hash_bytes(mine, sel + (size_t)(q->row0 + r) * top_k, q->top_k * sizeof *sel);
    }
    if (comm_all_gather(group_of(b, l), &mine, all, sizeof mine, NULL, &e)) {
        cpu_lane_fail(b, l, &e);
        return;
    }
    for (uint32_t r = 0; r < tp; r++)
        if (all[r] != mine) {
            err_set(&e, ERR_COMM, "rank %u selected other positions than rank %u of its group",
                    o->limits.peers->share->tp_rank, r);
            cpu_lane_fail(b, l, &e);
        }
}

enum err_code cpu_peers_init(struct cpu_backend *b, struct err *e)
{
    const struct ops_peers *p = b->ops.limits.peers;
    size_t vocab = b->ops.cfg->vocab_size, rows = b->ops.limits.max_out_rows;
    if (!p || !p->group[0])
        return ERR_OK;
    b->ops.reduce = op_reduce;
    b->ops.compare_selections = op_compare_selections;
    if (!p->share->plan->cut_head)
        return ERR_OK;
    for (int l = 0; l < N_LANES; l++) {
        struct peers_scratch *s = cpu_reserve(b, sizeof *s);
        b->lane[l].peers_scratch = s;
        if (!s)
            return err_set(e, ERR_NOMEM, "logits of a group");
        size_t here = p->share->tp_rank ? 1 : rows * vocab;
        s->gathered = cpu_reserve(b, here * sizeof *s->gathered);
        s->logits = cpu_reserve(b, here * sizeof *s->logits);
        if (!s->gathered || !s->logits)
            return err_set(e, ERR_NOMEM, "logits of a group: %zu rows of %zu", rows, vocab);
    }
    return ERR_OK;
}
