/* moe.cuh - the parts of a mixture of experts that moe.cu and spread.cu share. Private to cuda/. */
#ifndef GAZE_CUDA_MOE_CUH
#define GAZE_CUDA_MOE_CUH

#include "cuda/backend.cuh"

struct moe_scratch {
    uint32_t rows;    /* of a block */
    float *router;    /* [rows, n_experts] */
    uint32_t *chosen; /* [rows, n_active] best first */
    float *weight;    /* [rows, n_active] */
    uint32_t *pair;   /* [rows, n_active] where the slot stands in expert order */
    uint32_t *row;    /* [rows * n_active] the row of each pair */
    uint32_t *start;  /* [n_experts + 1] */
    float *rounded;   /* [rows, hidden] what the experts read, where that is rounded */
    float *gate, *up; /* [mid elements] */
    void *mid;        /* act [mid elements], in split form where products want that */
    float *factor;    /* [rows * n_active] of mid's rows */
    float *out;       /* [rows * n_active, hidden] */
    float *shared;    /* [rows, hidden] */
};

/* m->chosen and m->weight of n rows. */
void moe_route(struct cuda_backend *b, struct cuda_lane *lane, uint32_t layer,
               const struct layer_weights *w, const void *x, uint32_t n);
/* Sorts n_slots by expert: m->start, where each slot went (m->pair), and each pair's row (m->row),
 * which is slot / n_active. */
void moe_group(struct cuda_lane *lane, struct moe_scratch *m, const uint32_t *expert,
               uint32_t n_slots, uint32_t n_active, uint32_t n_experts);
/* m->out of n_pairs grouped pairs, whose rows are among x's n. */
void moe_experts(struct cuda_backend *b, struct cuda_lane *lane, struct moe_scratch *m,
                 const struct layer_weights *w, const void *x, uint32_t n, uint32_t n_pairs);
/* y = or += down(silu(gate x) up x), with the lane's own scratch. */
void moe_network(struct cuda_backend *b, struct cuda_lane *lane, const struct ffn_weights *w,
                 const void *x, uint32_t n, void *y, bool add);
/* Rows of the lane's scratch. */
static inline uint32_t moe_rows(const struct cuda_lane *lane)
{
    return lane->moe->rows;
}
/* Scratch for n_pairs pairs of rows that came from elsewhere. */
struct moe_scratch *moe_reserve(struct cuda_backend *b, size_t n_pairs);

/* The experts over all ranks: see spread.cu. */
void cuda_spread(struct cuda_backend *b, enum lane l, uint32_t layer, const struct layer_weights *w,
                 const void *x, uint32_t n, void *y);
MUST_CHECK enum err_code cuda_spread_init(struct cuda_backend *b, struct err *e);

#endif
