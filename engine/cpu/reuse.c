/* reuse.c - watch_selections: how much of what a decode row selects its row before selected, too.
 * What is sampled, and how places are shared: model/reuse.h.
 */
#include "cpu/backend.h"

#include <string.h>

struct place {
    uint32_t run, pos, n; /* whose, at which position, how many; run 0: nobody's */
    int32_t *sel;         /* [index_topk] */
};

struct reuse_watch {
    struct place place[REUSE_LAYERS][REUSE_PLACES];
    _Atomic uint64_t selected[REUSE_LAYERS], again[REUSE_LAYERS];
};

/* Of two ascending lists. */
static uint32_t n_common(const int32_t *a, uint32_t n_a, const int32_t *b, uint32_t n_b)
{
    uint32_t n = 0;
    for (uint32_t i = 0, k = 0; i < n_a && k < n_b;) {
        int32_t x = a[i], y = b[k];
        n += x == y;
        i += x <= y;
        k += y <= x;
    }
    return n;
}

static void watch_row(struct reuse_watch *w, int at, const struct step_seq *q, const int32_t *sel,
                      uint32_t n)
{
    struct place *p = &w->place[at][q->run % REUSE_PLACES];
    uint32_t turn = (q->pos0 + 1) % REUSE_EVERY;
    if (turn == REUSE_EVERY - 1) {
        memcpy(p->sel, sel, n * sizeof *sel);
        p->run = q->run;
        p->pos = q->pos0;
        p->n = n;
    } else if (turn == 0 && p->run == q->run && p->pos + 1 == q->pos0) {
        atomic_fetch_add_explicit(&w->selected[at], n, memory_order_relaxed);
        atomic_fetch_add_explicit(&w->again[at], n_common(sel, n, p->sel, p->n),
                                  memory_order_relaxed);
    }
}

static void op_watch_selections(struct ops *o, uint32_t layer, const int32_t *sel)
{
    struct cpu_backend *b = cpu_of(o);
    const struct step *s = b->lane[LANE_DECODE].step;
    uint32_t width = o->cfg->index_topk;
    int at = reuse_layer(o->cfg, layer);
    uint64_t taken = 0;
    assert(at >= 0);
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        uint32_t n = q->top_k < width ? q->top_k : width;
        if (q->n_rows == 1 && reuse_has_place(&taken, q->run) && q->pos0 >= q->top_k)
            watch_row(b->reuse, at, q, sel + (size_t)q->row0 * width, n);
    }
}

static void op_selection_reuse(struct ops *o, struct reuse_count *count)
{
    struct reuse_watch *w = cpu_of(o)->reuse;
    for (int i = 0; i < REUSE_LAYERS; i++)
        count[i] = (struct reuse_count){
            .selected = atomic_load_explicit(&w->selected[i], memory_order_relaxed),
            .again = atomic_load_explicit(&w->again[i], memory_order_relaxed)};
}

enum err_code cpu_reuse_init(struct cpu_backend *b, struct err *e)
{
    uint32_t width = b->ops.cfg->index_topk;
    if (!b->ops.cfg->has_indexer)
        return ERR_OK;
    size_t n = (size_t)REUSE_LAYERS * REUSE_PLACES;
    b->reuse = cpu_reserve(b, sizeof *b->reuse);
    int32_t *sel = b->reuse ? cpu_reserve(b, n * width * sizeof *sel) : NULL;
    if (!sel)
        return err_set(e, ERR_NOMEM, "kept selections: %zu of %u positions", n, width);
    for (size_t i = 0; i < n; i++)
        b->reuse->place[i / REUSE_PLACES][i % REUSE_PLACES].sel = sel + i * width;
    b->ops.watch_selections = op_watch_selections;
    b->ops.selection_reuse = op_selection_reuse;
    return ERR_OK;
}
