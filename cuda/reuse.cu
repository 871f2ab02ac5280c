/* reuse.cu - watch_selections: how much of what a decode row selects its row before selected, too.
 *
 * A block for each row; all but those at the two positions in 64 that model/reuse.h names leave at
 * once. What they need (whose row, where it is) lies in the step's arrays, so the launches are the
 * same in each step, also in one that a graph replays. A compared row looks each of its positions
 * up in the kept ones, which are ascending, too.
 *
 * Cost: a launch in each of REUSE_LAYERS layers of a step; 2 x 4 B x top-k of traffic for a row in
 *       32. No copy to the host: counts are read with those of the experts, once a second.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"

enum { THREADS = 256 };

struct place {
    uint32_t run, pos, n; /* whose, at which position, how many; run 0: nobody's */
};

struct reuse_watch {
    struct place *place;       /* [REUSE_LAYERS, REUSE_PLACES] */
    int32_t *sel;              /* [REUSE_LAYERS, REUSE_PLACES, index_topk] */
    unsigned long long *count; /* [REUSE_LAYERS, 2], as struct reuse_count */
};
static_assert(sizeof(struct reuse_count) == 2 * sizeof(unsigned long long), "counts as they lie");

static __device__ __forceinline__ bool is_among(int32_t x, const int32_t *list, uint32_t n)
{
    uint32_t at = 0;
    while (n > 1) { /* list[at] <= x for all x that can be there */
        uint32_t half = n / 2;
        at += list[at + half] <= x ? half : 0;
        n -= half;
    }
    return list[at] == x;
}

static __global__ void __launch_bounds__(THREADS)
    watch_kernel(struct row_view v, const uint32_t *run_of, const int32_t *sel, uint32_t width,
                 struct place *place, int32_t *kept, unsigned long long *count)
{
    uint32_t row = blockIdx.x, run = run_of[row], pos = v.pos[row];
    uint32_t turn = (pos + 1) % REUSE_EVERY, top_k = v.seq[v.seq_of[row]].top_k;
    uint32_t n = top_k < width ? top_k : width, at = run % REUSE_PLACES;
    bool keeps = turn == REUSE_EVERY - 1;
    if (!run || (!keeps && turn) || pos < top_k)
        return;
    struct place *p = place + at;
    sel += (size_t)row * width;
    kept += (size_t)at * width;
    if (keeps) {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            kept[i] = sel[i];
        if (threadIdx.x == 0)
            *p = {run, pos, n};
        return;
    }
    if (p->run != run || p->pos + 1 != pos)
        return;
    uint32_t again = 0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        again += is_among(sel[i], kept, p->n);
    again = block_sum(again);
    if (threadIdx.x == 0) {
        atomicAdd(&count[0], (unsigned long long)n);
        atomicAdd(&count[1], (unsigned long long)again);
    }
}

static void op_watch_selections(struct ops *o, uint32_t layer, const int32_t *sel)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[LANE_DECODE];
    const struct reuse_watch *w = b->reuse;
    int i = reuse_layer(o->cfg, layer);
    assert(i >= 0);
    if (lane->err.code)
        return;
    uint32_t width = o->cfg->index_topk;
    size_t first = (size_t)i * REUSE_PLACES;
    CUDA_LAUNCH(watch_kernel, lane->step->n_rows, THREADS, 0, lane->stream, view_of(lane),
                (const uint32_t *)lane->dev.run, sel, width, w->place + first,
                w->sel + first * width, w->count + 2 * i);
    cuda_launched(lane, "watched selections");
}

static void op_selection_reuse(struct ops *o, struct reuse_count *count)
{
    struct cuda_backend *b = cuda_of(o);
    memset(count, 0, REUSE_LAYERS * sizeof *count); /* a lost device has counted nothing */
    if (cudaSetDevice(b->device) == cudaSuccess)
        (void)cudaMemcpy(count, b->reuse->count, REUSE_LAYERS * sizeof *count,
                         cudaMemcpyDeviceToHost);
}

enum err_code cuda_reuse_init(struct cuda_backend *b, struct err *e)
{
    uint32_t width = b->ops.cfg->index_topk;
    if (!b->ops.cfg->has_indexer)
        return ERR_OK;
    size_t n = (size_t)REUSE_LAYERS * REUSE_PLACES;
    struct reuse_watch *w = (struct reuse_watch *)cuda_reserve_host(b, sizeof *w);
    if (!w)
        return err_set(e, ERR_NOMEM, "kept selections");
    w->place = (struct place *)cuda_reserve(b, n * sizeof *w->place);
    w->sel = (int32_t *)cuda_reserve(b, n * width * sizeof *w->sel);
    w->count = (unsigned long long *)cuda_reserve(b, REUSE_LAYERS * sizeof(struct reuse_count));
    if (!w->place || !w->sel || !w->count)
        return err_set(e, ERR_NOMEM, "kept selections: %zu of %u positions", n, width);
    b->reuse = w;
    b->ops.watch_selections = op_watch_selections;
    b->ops.selection_reuse = op_selection_reuse;
    return ERR_OK;
}
