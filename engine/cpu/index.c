/* index.c - index_select: which positions each row attends to. See index.h. */
#include "cpu/index.h"

#include "cpu/dsa_loops.h"
#include "cpu/fp8.h"
#include "cpu/kv.h"
#include "cpu/rope.h"
#include "cpu/topk.h"

#include <math.h>

/* A worker's own memory. */
struct index_worker {
    float *score; /* [INDEX_BLOCK_ROWS, padded context] */
    void *tile;   /* [index_dim, 64] values of 4 bytes */
    float *heads; /* [index_heads, 64], for the exact form */
    void *topk;
};

struct index_scratch {         /* a lane's */
    float *weight;             /* [max_rows, index_heads] */
    unsigned char *query;      /* [max_rows, index_heads, index_dim] as the loops want them (FP8) */
    float *score;              /* [INDEX_BLOCK_ROWS, padded context], of a block that is split */
    uint32_t *block, n_blocks; /* first row of each block of rows that select */
    uint32_t *block_rows;
    struct index_worker *worker; /* [n_workers], shared by the lanes */
};

struct select_job {
    struct cpu_backend *b;
    struct cpu_lane *lane;
    struct index_scratch *x;
    const struct dsa_loops *loops;
    uint32_t layer;
    float *q;
    const float *w;
    int32_t *sel;
    uint32_t row, n_rows; /* of a split job */
};

static uint32_t padded(const struct cpu_backend *b)
{
    return (b->ops.limits.max_context + TILE - 1) / TILE * TILE;
}

/* Rotates a row's queries and leaves them where the scores read them; scales its weights. */
static void prepare(const struct select_job *j, uint32_t row)
{
    const struct cpu_backend *b = j->b;
    const struct model_config *c = b->ops.cfg;
    uint32_t heads = c->index_heads, dim = c->index_dim, half = c->rope_dim / 2;
    size_t pos = j->lane->row_pos[row];
    float *q = j->q + (size_t)row * heads * dim, *weight = j->x->weight + (size_t)row * heads;
    float constant = (float)(1.0 / sqrt((double)heads) / sqrt((double)dim));
    for (uint32_t h = 0; h < heads; h++) {
        float *qh = q + (size_t)h * dim, scale = 1.0f;
        (c->index_rope_interleaved ? rope_interleaved : rope_half_split)(
            qh, c->rope_dim, b->rope_cos + pos * half, b->rope_sin + pos * half);
        if (b->ops.limits.index == INDEX_FP8) {
            uint8_t code[1024];
            scale = index_quantise(qh, dim, code);
            for (uint32_t d = 0; d < dim; d++)
                qh[d] = e4m3_value(code[d]);
        }
        weight[h] = j->w[(size_t)row * heads + h] * constant * scale;
    }
    if (b->ops.limits.index == INDEX_FP8)
        j->loops->index_query(q, heads, dim, j->x->query + (size_t)row * heads * dim * 4);
}

/* score[i * ld + p] of rows [row, row + n_rows) for the positions of pages [page0, page1) that any
 * of them sees. Slots beyond the last row's position are not read. */
static void score_pages(const struct select_job *j, struct index_worker *w, uint32_t row,
                        uint32_t n_rows, uint32_t page0, uint32_t page1, float *score, size_t ld)
{
    const struct cpu_backend *b = j->b;
    const struct model_config *c = b->ops.cfg;
    uint32_t heads = c->index_heads, dim = c->index_dim;
    uint32_t n_keys = j->lane->row_pos[row + n_rows - 1] + 1;
    const struct step_seq *s = &j->lane->step->seq[j->lane->row_seq[row]];
    for (uint32_t p = page0; p < page1; p++) {
        const unsigned char *page = b->index[j->layer] + (size_t)s->page[p] * b->index_page_bytes;
        uint32_t n = n_keys - p * TILE < TILE ? n_keys - p * TILE : TILE;
        float scale[TILE] = {0};
        if (b->ops.limits.index == INDEX_FP8) {
            memcpy(scale, page + (size_t)TILE * dim, 4 * (size_t)n);
            if (n_rows == 1) {
                j->loops->index_page(j->x->query + (size_t)row * heads * dim * 4,
                                     j->x->weight + (size_t)row * heads, heads, dim, page, n, scale,
                                     w->tile, score + (size_t)p * TILE);
                continue;
            }
            j->loops->index_tile(page, n, dim, w->tile);
        } else {
            j->loops->transpose((const float *)(const void *)page, dim, n, dim, w->tile);
        }
        for (uint32_t i = row; i < row + n_rows; i++) {
            float *out = score + (size_t)(i - row) * ld + (size_t)p * TILE;
            const float *weight = j->x->weight + (size_t)i * heads;
            if (b->ops.limits.index == INDEX_FP8)
                j->loops->index_scores(j->x->query + (size_t)i * heads * dim * 4, weight, heads,
                                       dim, w->tile, scale, out);
            else
                j->loops->index_scores_f32(j->q + (size_t)i * heads * dim, weight, heads, dim,
                                           w->tile, w->heads, out);
        }
    }
}

static void choose(const struct select_job *j, struct index_worker *w, uint32_t row,
                   const float *score)
{
    uint32_t width = j->b->ops.cfg->index_topk;
    uint32_t k = j->lane->step->seq[j->lane->row_seq[row]].top_k;
    int32_t *out = j->sel + (size_t)row * width;
    uint32_t n = topk_select(j->loops, score, j->lane->row_pos[row] + 1, k < width ? k : width, out,
                             w->topk);
    for (; n < width; n++)
        out[n] = -1;
}

static uint32_t pages_of(const struct cpu_lane *lane, uint32_t row)
{
    return lane->row_pos[row] / TILE + 1;
}

static void select_block(void *arg, uint32_t chunk, uint32_t worker)
{
    struct select_job *j = arg;
    struct index_worker *w = &j->x->worker[worker];
    uint32_t row = j->x->block[chunk], n = j->x->block_rows[chunk];
    size_t ld = padded(j->b);
    for (uint32_t i = row; i < row + n; i++)
        prepare(j, i);
    score_pages(j, w, row, n, 0, pages_of(j->lane, row + n - 1), w->score, ld);
    for (uint32_t i = row; i < row + n; i++)
        choose(j, w, i, w->score + (size_t)(i - row) * ld);
}

static void score_split(void *arg, uint32_t chunk, uint32_t worker)
{
    struct select_job *j = arg;
    uint32_t n_pages = pages_of(j->lane, j->row + j->n_rows - 1), page = chunk * INDEX_SPLIT_PAGES;
    uint32_t end = page + INDEX_SPLIT_PAGES < n_pages ? page + INDEX_SPLIT_PAGES : n_pages;
    score_pages(j, &j->x->worker[worker], j->row, j->n_rows, page, end, j->x->score, padded(j->b));
}

static void choose_split(void *arg, uint32_t chunk, uint32_t worker)
{
    struct select_job *j = arg;
    choose(j, &j->x->worker[worker], j->row + chunk, j->x->score + (size_t)chunk * padded(j->b));
}

static bool selects(const struct cpu_lane *lane, uint32_t row)
{
    return lane->row_pos[row] >= lane->step->seq[lane->row_seq[row]].top_k; /* t + 1 > top_k */
}

/* Blocks of rows that follow each other in one sequence. */
static void find_blocks(struct index_scratch *x, const struct cpu_lane *lane, uint32_t max_rows)
{
    x->n_blocks = 0;
    for (uint32_t row = 0; row < lane->step->n_rows;) {
        uint32_t n = 0, seq = lane->row_seq[row];
        while (n < max_rows && row + n < lane->step->n_rows && lane->row_seq[row + n] == seq &&
               selects(lane, row + n))
            n++;
        if (n) {
            x->block[x->n_blocks] = row;
            x->block_rows[x->n_blocks++] = n;
        }
        row += n ? n : 1;
    }
}

/* Whether each block has pages for every thread. */
static bool all_deep(const struct index_scratch *x, const struct cpu_lane *lane, uint32_t n_threads)
{
    for (uint32_t i = 0; i < x->n_blocks; i++)
        if (pages_of(lane, x->block[i]) < n_threads * INDEX_SPLIT_PAGES)
            return false;
    return true;
}

/* The pages of one block, split over the pool. */
static void select_split(struct select_job *j, enum lane l, uint32_t block)
{
    j->row = j->x->block[block];
    j->n_rows = j->x->block_rows[block];
    for (uint32_t i = 0; i < j->n_rows; i++)
        prepare(j, j->row + i);
    uint32_t n_pages = pages_of(j->lane, j->row + j->n_rows - 1);
    pool_run(j->b->pool, l, (n_pages + INDEX_SPLIT_PAGES - 1) / INDEX_SPLIT_PAGES, score_split, j);
    pool_run(j->b->pool, l, j->n_rows, choose_split, j);
}

static void op_index_select(struct ops *o, enum lane l, uint32_t layer, act *q_raw,
                            const act *w_raw, int32_t *sel)
{
    struct cpu_backend *b = cpu_of(o);
    struct cpu_lane *lane = &b->lane[l];
    struct index_scratch *x = lane->index_scratch;
    struct select_job j = {.b = b,
                           .lane = lane,
                           .x = x,
                           .loops = dsa_loops_for(b->k->name),
                           .layer = layer,
                           .q = q_raw,
                           .w = w_raw,
                           .sel = sel};
    uint32_t n_threads = pool_n_threads(b->pool);
    assert(b->index[layer]);
    find_blocks(x, lane, INDEX_BLOCK_ROWS);
    if (x->n_blocks < n_threads && !all_deep(x, lane, n_threads))
        find_blocks(x, lane, 1); /* more, smaller blocks: every thread gets one */
    if (!x->n_blocks)
        return;
    if (x->n_blocks >= n_threads) {
        pool_run(b->pool, l, x->n_blocks, select_block, &j);
        return;
    }
    for (uint32_t i = 0; i < x->n_blocks; i++)
        select_split(&j, l, i);
}

static int32_t *op_alloc_sel(struct ops *o, enum lane l)
{
    return cpu_reserve(cpu_of(o), sizeof(int32_t) * o->limits.max_rows[l] * o->cfg->index_topk);
}

static enum err_code reserve_workers(struct cpu_backend *b, struct index_worker **out,
                                     struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = pool_n_workers(b->pool);
    struct index_worker *w = cpu_reserve(b, n * sizeof *w);
    for (uint32_t i = 0; w && i < n; i++) {
        w[i].score = cpu_reserve(b, sizeof(float) * INDEX_BLOCK_ROWS * padded(b));
        w[i].tile = cpu_reserve(b, (size_t)4 * c->index_dim * TILE);
        w[i].heads = cpu_reserve(b, sizeof(float) * c->index_heads * TILE);
        w[i].topk = cpu_reserve(b, topk_scratch_bytes(padded(b)));
        if (!w[i].score || !w[i].tile || !w[i].heads || !w[i].topk)
            w = NULL;
    }
    if (!w)
        return err_set(e, ERR_NOMEM, "index scratch of %u workers", n);
    *out = w;
    return ERR_OK;
}

enum err_code cpu_index_init(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    struct index_worker *workers = NULL;
    b->ops.alloc_sel = op_alloc_sel;
    if (!c->has_indexer)
        return ERR_OK;
    if (reserve_workers(b, &workers, e))
        return e->code;
    for (int l = 0; l < N_LANES; l++) {
        size_t rows = b->ops.limits.max_rows[l];
        struct index_scratch *x = cpu_reserve(b, sizeof *x);
        if (!x)
            return err_set(e, ERR_NOMEM, "index scratch of lane %d", l);
        x->worker = workers;
        x->weight = cpu_reserve(b, sizeof(float) * rows * c->index_heads);
        x->query = cpu_reserve(b, (size_t)4 * rows * c->index_heads * c->index_dim);
        x->score = cpu_reserve(b, sizeof(float) * INDEX_BLOCK_ROWS * padded(b));
        x->block = cpu_reserve(b, sizeof(uint32_t) * rows);
        x->block_rows = cpu_reserve(b, sizeof(uint32_t) * rows);
        if (!x->weight || !x->query || !x->score || !x->block || !x->block_rows)
            return err_set(e, ERR_NOMEM, "index scratch of %zu rows", rows);
        b->lane[l].index_scratch = x;
    }
    b->ops.index_select = op_index_select;
    return ERR_OK;
}
