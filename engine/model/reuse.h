/* reuse.h - how alike a sequence's selections are from one decode step to the next: what is
 * sampled, for the back ends that count it.
 *
 * Looked at are steps of one row of a sequence in the decode lane, in at most REUSE_LAYERS layers,
 * evenly over those that select by themselves: a step at position 62, 126, 190 ... keeps what its
 * row selects, and the next one counts how much of its own selection is among that. A row that sees
 * no more than it may select does neither.
 *
 * A kept selection lies in the place run % REUSE_PLACES of its layer, with the sequence's number
 * and the position. Of the rows of a step that have one place the first is looked at, and a place
 * that another sequence has taken since is a sample that is left out: so nothing is counted that
 * was not compared with that very sequence's step before.
 *
 * Thread: any; there is no state here.
 */
#ifndef GAZE_MODEL_REUSE_H
#define GAZE_MODEL_REUSE_H

#include "model/config.h"

enum { REUSE_LAYERS = 4, REUSE_PLACES = 64, REUSE_EVERY = 64 };

/* Of a layer: positions that were selected in steps that were compared, and those of them that the
 * step before had selected, too. */
struct reuse_count {
    uint64_t selected, again;
};

/* Which of the sampled layers it is; -1: none of them. */
static inline int reuse_layer(const struct model_config *c, uint32_t layer)
{
    uint32_t n = 0, before = 0;
    if (!c->has_indexer || !c->index_full[layer])
        return -1;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        before += i < layer && c->index_full[i];
        n += c->index_full[i];
    }
    uint32_t taken = n < REUSE_LAYERS ? n : (uint32_t)REUSE_LAYERS;
    for (uint32_t i = 0; i < taken; i++)
        if (before == (2 * i + 1) * n / (2 * taken))
            return (int)i;
    return -1;
}

/* Whether a step's row of that sequence has its place; *taken: of the rows before, 0 at first. */
static inline bool reuse_has_place(uint64_t *taken, uint32_t run)
{
    uint64_t mine = UINT64_C(1) << run % REUSE_PLACES;
    bool free = run && !(*taken & mine);
    *taken |= run ? mine : 0;
    return free;
}

#endif
