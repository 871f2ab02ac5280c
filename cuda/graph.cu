/* graph.cu - decode steps as CUDA graphs: one launch in place of some thousand.
 *
 * A step's ops are the same launches with the same arguments as an earlier one's when both have the
 * same rows, logits rows and layers, since everything else is read from the arrays that begin()
 * sends up. What launches are sized by, the longest context, counts as the next power of two;
 * blocks behind a row's own end leave at once. The second step of a shape is recorded as it is
 * queued, run, and kept; later ones are one launch. Same kernels, same bits.
 */
#include "cuda/backend.cuh"

enum { KEPT = 128, LEAST_PAGES = 16 };

uint32_t cuda_graph_longest(uint32_t longest)
{
    uint32_t pages = LEAST_PAGES;
    while ((size_t)pages * KV_PAGE_TOKENS < longest)
        pages *= 2;
    return pages * KV_PAGE_TOKENS;
}

#ifdef __CUDACC__

struct shape {
    const void *whose;
    uint32_t variant, n_rows, n_out, longest, attended;
};

struct kept_graph {
    struct shape shape;
    cudaGraphExec_t graph; /* NULL: seen once */
    uint32_t n_sampled;    /* rows whose tokens it leaves: none where another rank samples */
    uint64_t used;         /* the cache's clock */
};

struct graph_cache {
    struct kept_graph kept[KEPT];
    uint64_t clock;
    struct kept_graph *recording;
};

static bool same(const struct shape *a, const struct shape *b)
{
    return a->whose == b->whose && a->variant == b->variant && a->n_rows == b->n_rows &&
           a->n_out == b->n_out && a->longest == b->longest && a->attended == b->attended;
}

static void forget(struct kept_graph *g)
{
    if (g->graph)
        (void)cudaGraphExecDestroy(g->graph);
    *g = {};
}

/* The shape's place, its own or the one that was not used for longest. */
static struct kept_graph *place_of(struct graph_cache *c, const struct shape *shape, bool *known)
{
    struct kept_graph *oldest = c->kept;
    *known = true;
    for (int i = 0; i < KEPT; i++) {
        struct kept_graph *g = &c->kept[i];
        if (g->used && same(&g->shape, shape))
            return g;
        if (g->used < oldest->used)
            oldest = g;
    }
    *known = false;
    return oldest;
}

static bool op_recall(struct ops *o, enum lane l, const void *whose, uint32_t variant)
{
    struct cuda_lane *lane = &cuda_of(o)->lane[l];
    struct graph_cache *c = lane->graphs;
    const struct step *s = lane->step;
    bool known;
    if (!c || lane->err.code || !cuda_sample_is_up(lane) || !cuda_peers_capture(cuda_of(o), l))
        return false;
    struct shape shape = {whose, variant, s->n_rows, s->n_out, lane->longest, lane->attended};
    struct kept_graph *g = place_of(c, &shape, &known);
    if (!known) {
        forget(g);
        g->shape = shape;
    }
    g->used = ++c->clock;
    if (g->graph) {
        cuda_lane_check(lane, cudaGraphLaunch(g->graph, lane->stream), "a step's graph");
        lane->n_sampled = g->n_sampled;
        return true;
    }
    if (known) {
        cudaError_t code = cudaStreamBeginCapture(lane->stream, cudaStreamCaptureModeThreadLocal);
        cuda_lane_check(lane, code, "recording a step");
        c->recording = code == cudaSuccess ? g : NULL;
    }
    return false;
}

void cuda_graph_finish(struct cuda_lane *lane)
{
    struct graph_cache *c = lane->graphs;
    cudaGraph_t graph = NULL;
    if (!c || !c->recording)
        return;
    struct kept_graph *g = c->recording;
    c->recording = NULL;
    g->n_sampled = lane->n_sampled;
    cuda_lane_check(lane, cudaStreamEndCapture(lane->stream, &graph), "recording a step");
    if (!lane->err.code)
        cuda_lane_check(lane, cudaGraphInstantiate(&g->graph, graph, 0), "a step's graph");
    if (!lane->err.code)
        cuda_lane_check(lane, cudaGraphLaunch(g->graph, lane->stream), "a step's graph");
    if (graph)
        (void)cudaGraphDestroy(graph);
    if (lane->err.code)
        forget(g);
}

void cuda_graph_close(struct cuda_backend *b)
{
    struct graph_cache *c = b->lane[LANE_DECODE].graphs;
    for (int i = 0; c && i < KEPT; i++)
        forget(&c->kept[i]);
}

enum err_code cuda_graph_init(struct cuda_backend *b, struct err *e)
{
    struct cuda_lane *lane = &b->lane[LANE_DECODE];
    lane->graphs = (struct graph_cache *)cuda_reserve_host(b, sizeof *lane->graphs);
    if (!lane->graphs)
        return err_set(e, ERR_NOMEM, "graphs of steps");
    b->ops.recall = op_recall;
    return ERR_OK;
}

#else /* the emulated device has no graphs */

void cuda_graph_finish(struct cuda_lane *)
{
}
void cuda_graph_close(struct cuda_backend *)
{
}
enum err_code cuda_graph_init(struct cuda_backend *, struct err *)
{
    return ERR_OK;
}

#endif
