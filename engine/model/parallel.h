/* parallel.h - how one model is cut over ranks, as data.
 *
 * tp * dp ranks: dp attention groups of tp ranks each; rank = group * tp + its place in the group.
 * Within a group the heads of attention (q_b and kv_b by rows, o by columns), the dense network,
 * the shared expert and the output head are cut tp ways; norms, low-rank projections, the indexer,
 * the router and the embedding are whole on each rank, so that all ranks of a group hold the same
 * latents and index keys and choose the same positions and experts.
 *
 * Experts: with ep = 1 each group has all of them, their width cut tp ways. With ep > 1 they are
 * spread over all ranks in ep parts of whole experts (rank r holds part r / n_width); where ep is
 * less than the ranks the width of each is cut over the n_width ranks of its part. Rows then travel
 * to their experts and back (ops.h: moe).
 *
 * A rank's model is the whole model's configuration with its own counts (parallel_config()), so the
 * layers and the ops are the same code for one rank and for many.
 *
 * Thread: made once, then read by any.
 */
#ifndef GAZE_MODEL_PARALLEL_H
#define GAZE_MODEL_PARALLEL_H

#include "model/config.h"

enum { PARALLEL_MAX_RANKS = 64 };

/* Which experts each part holds. Several parts may hold one expert (a hot one): its rows take
 * turns, which changes no bit, since all copies are equal. */
struct placement {
    uint32_t n_maps; /* 1: all layers alike; else one for each layer */
    uint32_t *held;  /* [n_maps][ep][n_held] ids of experts */
    uint32_t *first; /* [n_maps][n_experts + 1] where an expert's places begin in `place` */
    uint32_t *place; /* [n_maps][ep * n_held] part * n_held + index, by expert */
};

struct parallel {
    uint32_t tp, dp, ep;
    uint32_t n_ranks; /* tp * dp */
    uint32_t n_width; /* ranks over which an expert's width is cut */
    uint32_t n_held;  /* experts of a rank in a layer */
    uint32_t n_experts;
    bool cut_head;              /* the output head is cut over tp (its rows divide) */
    struct placement placement; /* only with ep > 1 */
};

/* One rank's place in the plan. */
struct rank_share {
    const struct parallel *plan;
    uint32_t rank, group, tp_rank; /* tp_rank: in the group */
    uint32_t part, width_rank;     /* of the experts, and of their width */
};

/* Checks that everything divides. map: a file of placement for ep > 1, or NULL: part p holds the
 * experts [p * n / ep, (p + 1) * n / ep). {"parts": [[ids], ...]} is for all layers, {"layers":
 * {"3": [[ids], ...], ...}} for each layer with experts; all lists have one length, and each expert
 * is somewhere. ERR_INVALID names the two numbers that do not divide, or what is wrong in the file;
 * ERR_IO, ERR_NOMEM. */
MUST_CHECK enum err_code parallel_make(struct parallel *out, const struct model_config *cfg,
                                       uint32_t tp, uint32_t dp, uint32_t ep, const char *map,
                                       struct err *e);
void parallel_free(struct parallel *p);

struct rank_share parallel_share(const struct parallel *p, uint32_t rank);
/* What the rank's ops and forward are opened with. */
struct model_config parallel_config(const struct rank_share *s, const struct model_config *whole);

/* Whether rows travel between ranks for their experts. */
static inline bool parallel_spreads(const struct parallel *p)
{
    return p->ep > 1;
}
/* Whether groups must step together: rows of one group meet experts in another. */
static inline bool parallel_joins_groups(const struct parallel *p)
{
    return p->ep > 1 && p->dp > 1;
}
/* The global id of expert i of a part. */
static inline uint32_t parallel_held(const struct parallel *p, uint32_t layer, uint32_t part,
                                     uint32_t i)
{
    if (!parallel_spreads(p))
        return i;
    uint32_t map = p->placement.n_maps > 1 ? layer : 0;
    return p->placement.held[((size_t)map * p->ep + part) * p->n_held + i];
}
/* Where an expert is: n places, each part * n_held + index. */
static inline const uint32_t *parallel_places(const struct parallel *p, uint32_t layer,
                                              uint32_t expert, uint32_t *n)
{
    uint32_t map = p->placement.n_maps > 1 ? layer : 0;
    const uint32_t *first = p->placement.first + (size_t)map * (p->n_experts + 1) + expert;
    *n = first[1] - first[0];
    return p->placement.place + (size_t)map * p->ep * p->n_held + first[0];
}

/* A matrix's part: rows [row0, row0 + n_rows) and columns [column0, column0 + n_columns) of the
 * whole [n_out, n_in]. */
struct cut {
    uint32_t n_out, n_in;
    uint32_t row0, n_rows, column0, n_columns;
};
static inline struct cut cut_none(uint32_t n_out, uint32_t n_in)
{
    return (struct cut){n_out, n_in, 0, n_out, 0, n_in};
}
static inline struct cut cut_rows(uint32_t n_out, uint32_t n_in, uint32_t part, uint32_t n_parts)
{
    uint32_t n = n_out / n_parts;
    return (struct cut){n_out, n_in, part * n, n, 0, n_in};
}
static inline struct cut cut_columns(uint32_t n_out, uint32_t n_in, uint32_t part, uint32_t n_parts)
{
    uint32_t n = n_in / n_parts;
    return (struct cut){n_out, n_in, 0, n_out, part * n, n};
}

/* What a step of n_rows rows in each group moves, per rank: bytes that it sends. Expected ones for
 * the experts, whose choices are taken as even over the parts. */
struct parallel_traffic {
    uint32_t n_sums, n_exchanges; /* sums over a group; rounds of rows to experts and back */
    double sum_bytes;             /* what goes into them */
    double dispatch_bytes, combine_bytes, logits_bytes;
};
struct parallel_traffic parallel_step_traffic(const struct parallel *p,
                                              const struct model_config *whole, uint32_t n_rows,
                                              uint32_t n_out, double dispatch_value_bytes);

#endif
