/* reuse_rig.h - what the tests of watched selections count for themselves: in place of an op
 * table's index_select() stands one that calls it, reads what was selected, and compares it
 * position by position with what the same sequence's row had selected in its step before.
 */
#ifndef GAZE_TEST_REUSE_RIG_H
#define GAZE_TEST_REUSE_RIG_H

#include "model/ops.h"
#include "test.h"

enum { RIG_RUNS = 512, RIG_POSITIONS = 1280, RIG_TOP_K = 128, RIG_LAYERS = 8 };

static struct reuse_rig {
    void (*select)(struct ops *o, enum lane l, uint32_t layer, act *q, const act *w, int32_t *sel);
    void (*read)(void *to, const void *from, size_t bytes); /* of the back end's memory */
    const struct step *step;                                /* the one that runs; no n_more */
    const uint32_t *ignored; /* of its rows' sequences: not counted (0 ends the list); or NULL */
    struct reuse_last {
        uint32_t pos1; /* position + 1; 0: none, or it did not select */
        bool had[RIG_POSITIONS];
    } last[RIG_LAYERS][RIG_RUNS];
    struct reuse_count want[RIG_LAYERS]; /* by layer, sampled or not */
} reuse_rig;

static bool reuse_ignored(uint32_t run)
{
    for (const uint32_t *i = reuse_rig.ignored; i && *i; i++)
        if (*i == run)
            return true;
    return false;
}

static void reuse_rig_select(struct ops *o, enum lane l, uint32_t layer, act *q, const act *w,
                             int32_t *sel)
{
    struct reuse_rig *r = &reuse_rig;
    int32_t row[RIG_TOP_K];
    uint32_t width = o->cfg->index_topk;
    r->select(o, l, layer, q, w, sel);
    if (l != LANE_DECODE)
        return;
    CHECK(width <= RIG_TOP_K && layer < RIG_LAYERS);
    for (uint32_t i = 0; i < r->step->n_seqs; i++) {
        const struct step_seq *s = &r->step->seq[i];
        struct reuse_last *last = &r->last[layer][s->run];
        uint32_t pos = s->pos0, n = 0, again = 0;
        bool has[RIG_POSITIONS] = {false};
        if (!s->run)
            continue;
        CHECK(pos < RIG_POSITIONS && s->run < RIG_RUNS);
        if (s->n_rows != 1 || pos + 1 <= s->top_k) {
            last->pos1 = 0;
            continue;
        }
        r->read(row, sel + (size_t)s->row0 * width, width * sizeof *row);
        for (uint32_t k = 0; k < width; k++) {
            if (row[k] < 0)
                continue;
            n++;
            has[row[k]] = true;
            again += last->had[row[k]];
        }
        if (last->pos1 == pos && pos % 64 == 63 && !reuse_ignored(s->run)) {
            r->want[layer].selected += n;
            r->want[layer].again += again;
        }
        last->pos1 = pos + 1;
        memcpy(last->had, has, sizeof has);
    }
}

static inline void reuse_rig_begin(struct ops *o,
                                   void (*read)(void *to, const void *from, size_t bytes))
{
    memset(&reuse_rig, 0, sizeof reuse_rig);
    reuse_rig.select = o->index_select;
    reuse_rig.read = read;
    o->index_select = reuse_rig_select;
}

/* The back end's counts are `times` ours; gives the positions compared in all sampled layers. */
static inline uint64_t reuse_rig_check(struct ops *o, uint64_t times)
{
    struct reuse_count have[REUSE_LAYERS];
    uint64_t all = 0;
    o->selection_reuse(o, have);
    for (uint32_t l = 0; l < o->cfg->n_layers; l++) {
        int i = reuse_layer(o->cfg, l);
        const struct reuse_count *want = &reuse_rig.want[l];
        if (i < 0)
            continue;
        CHECK_MSG(have[i].selected == times * want->selected &&
                      have[i].again == times * want->again,
                  "layer %u: %llu of %llu, want %llu times %llu of %llu", l,
                  (unsigned long long)have[i].again, (unsigned long long)have[i].selected,
                  (unsigned long long)times, (unsigned long long)want->again,
                  (unsigned long long)want->selected);
        all += have[i].selected;
    }
    return all;
}

#endif
