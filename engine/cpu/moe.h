/* moe.h - the parts of a mixture of experts that moe.c and spread.c share.
 *
 * Private to engine/cpu. A block of rows becomes groups, each a network with the rows that it gets;
 * moe_run() computes them, and either sums each row's experts into y or leaves each pair's values
 * by themselves, for rows whose sum is made elsewhere.
 */
#ifndef GAZE_CPU_MOE_H
#define GAZE_CPU_MOE_H

#include "cpu/backend.h"

struct group {
    const struct ffn_weights *w;
    uint32_t first, n;        /* its rows among the block's pairs */
    size_t mid;               /* where its middle values start, in elements */
    uint32_t chunk0;          /* its first chunk of the gate fork-join */
    bool in_split, mid_split; /* what its kernels take */
    bool in_round, mid_round; /* to the weights' type; gate and up of two types: not */
};

struct moe_scratch {
    uint32_t max_rows; /* of a block */
    float *router;     /* [rows, n_experts] logits, then scores */
    uint32_t *chosen;  /* [rows, n_active] experts, best first */
    float *weight;     /* [rows, n_active] */
    uint32_t *pair;    /* [rows, n_active] where the slot stands among the pairs */
    uint32_t *row;     /* [pairs] the row of each; the shared expert's come last */
    uint32_t *start;   /* [n_experts + 1] */
    struct group *group;
    unsigned char *in, *mid; /* elements of 4 bytes, or 2 when rounded */
    float *rounded;          /* [rows, hidden] what the experts read, where that is rounded */
    float **out;             /* [workers] [pairs, columns] values before they are summed */
    size_t out_elements;     /* of each */
};

struct moe_job {
    struct cpu_backend *b;
    struct moe_scratch *s;
    const struct layer_weights *w; /* NULL: one plain network */
    const float *x;                /* [n, hidden] for the router and the shared expert */
    const float *expert_x;         /* likewise, what the routed experts read: x, or x rounded */
    float *y;
    bool add;          /* to y */
    float *pair_value; /* [pairs, hidden] not NULL: each pair's values go here, and y is left */
    uint32_t n, n_active, n_groups, n_pairs, hidden;
    uint32_t columns; /* of a down chunk */
    uint32_t shared;  /* the group of the shared expert; UINT32_MAX: none */
    double cost_ns;
};

/* Chooses experts for the job's rows: s->chosen, s->weight. */
void moe_route(struct moe_job *j, enum lane l);
/* Adds a group of rows s->row[first, first + n); groups are added in the order of their rows. */
void moe_add_group(struct moe_job *j, const struct ffn_weights *w, uint32_t first, uint32_t n);
/* Computes all groups; the sums of rows into y, unless pair_value is there. */
void moe_run(struct moe_job *j, enum lane l);
/* y[n, hidden] = or += w of x, in the lane's own scratch. */
void moe_network(struct cpu_backend *b, enum lane l, const struct ffn_weights *w, const float *x,
                 uint32_t n, float *y, bool add);
/* Adds a block's choices to the counts of the layer's experts. */
void moe_count(struct cpu_backend *b, uint32_t layer, const uint32_t *chosen, uint32_t n);

/* Scratch for n_pairs pairs with n_held experts, and no sums: max_rows is n_pairs. */
MUST_CHECK enum err_code moe_reserve(struct cpu_backend *b, struct moe_scratch **out,
                                     uint32_t n_held, size_t n_pairs, struct err *e);

/* spread.c: y[n, hidden] += the mixture, the experts being on all ranks; see there. */
MUST_CHECK enum err_code cpu_spread_init(struct cpu_backend *b, struct err *e);
void cpu_spread(struct cpu_backend *b, enum lane l, uint32_t layer, const struct layer_weights *w,
                const float *x, uint32_t n, float *y);

#endif
