/* backend.cuh - what the files of cuda/ share: the back end's state and the parts of its op table.
 *
 * Private to cuda/. Each op family sits in one file and fills its entries of struct ops:
 *   linear.cu (linear)  norm.cu (embed, rms_norm, logits)  kv.cu (rope_q, kv_store, index_store)
 *   index.cu (index_select)  reuse.cu (watch_selections)  attend.cu (attend)  moe.cu (ffn, moe)
 *   sample.cu (sample)  peers.cu (reduce, compare_selections)
 *   pages.cu (export_pages, import_pages, sum_pages, copy_pages)
 */
#ifndef GAZE_CUDA_BACKEND_CUH
#define GAZE_CUDA_BACKEND_CUH

#include "tile/launch.cuh"

#include "tile/numbers.cuh"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/cuda_ops.h"

enum { CUDA_MAX_EXPERTS = 1024, CUDA_MAX_LATENT = 512, MOE_BLOCK_ROWS = 1024 };

/* A step's sequence, on the device. */
struct device_seq {
    uint32_t page0; /* where its block table starts among the step's pages */
    uint32_t top_k;
};

/* A step's arrays: one copy on the host (pinned), one on the device, same layout. */
struct step_arrays {
    uint32_t *token, *pos, *seq_of; /* [max_rows] */
    struct device_seq *seq;         /* [max_rows] */
    uint32_t *out_row;              /* [max_rows] */
    uint32_t *run;                  /* [max_rows] whose selections are watched; 0: nobody's */
    uint32_t *page;                 /* [max_pages] all block tables, one after the other */
};

struct cuda_lane {
    cudaStream_t stream; /* what comes is queued here: the branch that the step is in */
    cudaStream_t branch[OPS_BRANCHES];
    cudaEvent_t passed[OPS_BRANCHES];
    uint32_t at;             /* the branch; 0: the lane's own */
    bool open[OPS_BRANCHES]; /* branches that the lane's own stream has not met yet */
    bool in_order;           /* until all meet, nothing runs beside anything */
    const struct step *step; /* between begin and finish */
    struct err err;          /* first error of the step */
    struct step_arrays host, dev;
    size_t step_bytes, max_pages;
    float *logits;    /* [max_out_rows, vocab] */
    void *normed;     /* [max_out_rows, hidden] act */
    uint32_t longest;  /* tokens that a row of the step sees, at most */
    uint32_t attended; /* and attends to where it selects */
    struct linear_scratch *linear;
    struct wide_scratch *wide[OPS_BRANCHES]; /* NULL: not as deployed */
    struct moe_scratch *moe;
    struct index_scratch *index;
    struct attend_scratch *attend;
    struct sample_scratch *sample;
    struct spread_scratch *spread; /* where rows travel to their experts */
    float *logit_parts, *all_logits; /* of a head that is cut, on the group's first rank */
    unsigned long long *selection_sums; /* [PARALLEL_MAX_RANKS] of each rank of the group */
    uint32_t n_sampled; /* rows of step->out that finish() writes, of the last pass */
    uint32_t n_passes;  /* of the step before the one that is being queued */
    struct graph_cache *graphs;
    cudaEvent_t first, last; /* around a step's work */
    uint64_t device_us;      /* between them, of all steps; read and added to atomically */
};

struct cuda_backend {
    struct ops ops; /* first: struct ops * is struct cuda_backend * */
    int device;
    bool dry; /* counts bytes and reserves nothing: a plan */
    bool fast;     /* tensor cores; false: the exact precision */
    bool deployed; /* PRECISION_FP8: rows are rounded to their weights' type */
    bool wide;     /* and cuda/gemm.cuh runs here */
    bool spreads;  /* rows travel to experts on other ranks */
    bool hopper;   /* warpgroups' products run: the device, and this build's code for it */
    size_t shared_bytes; /* that a block may have */
    struct cuda_lane lane[N_LANES];
    unsigned char *latent[MODEL_MAX_LAYERS];
    unsigned char *index[MODEL_MAX_LAYERS];
    size_t latent_page_bytes, index_page_bytes;
    unsigned long long *expert_rows; /* [n_layers, n_experts] on the device */
    struct reuse_watch *reuse;       /* NULL: no indexer */
    float *rope_cos, *rope_sin; /* [max_context, rope_dim / 2], gain included */
    struct page_mover *mover;
    struct memory_block *blocks;
    size_t reserved_bytes;
};

static inline struct cuda_backend *cuda_of(struct ops *o)
{
    return (struct cuda_backend *)o;
}

/* What kernels need to find a row's slot. */
struct row_view {
    const uint32_t *pos, *seq_of, *page;
    const struct device_seq *seq;
};
static inline struct row_view view_of(const struct cuda_lane *l)
{
    return (struct row_view){l->dev.pos, l->dev.seq_of, l->dev.page, l->dev.seq};
}
static __device__ __forceinline__ uint32_t page_of(const struct row_view &v, uint32_t row,
                                                   uint32_t pos)
{
    return v.page[v.seq[v.seq_of[row]].page0 + pos / KV_PAGE_TOKENS];
}

/* Device memory (zeroed), pinned host memory, host memory: all of it freed by close. NULL: none. */
void *cuda_reserve(struct cuda_backend *b, size_t bytes);
void *cuda_reserve_pinned(struct cuda_backend *b, size_t bytes);
void *cuda_reserve_host(struct cuda_backend *b, size_t bytes);

/* Keeps the lane's first error. */
void cuda_lane_check(struct cuda_lane *lane, cudaError_t code, const char *what);
#define cuda_launched(lane, what) cuda_lane_check((lane), cudaGetLastError(), (what))

MUST_CHECK enum err_code cuda_linear_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_norm_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_kv_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_index_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_reuse_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_attend_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_moe_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_peers_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_sample_init(struct cuda_backend *b, struct err *e);
MUST_CHECK enum err_code cuda_pages_init(struct cuda_backend *b, struct err *e); /* after planes */
void cuda_pages_close(struct cuda_backend *b);
/* The first rank's logits, from each one's part of them; see peers.cu. */
float *cuda_gather_logits(struct cuda_backend *b, enum lane l, uint32_t n, uint32_t n_part);
/* to[n] += from[n] */
void cuda_add_rows(struct cuda_lane *lane, const float *from, float *to, size_t n);
/* Keeps the lane's first error, and lets the other ranks of the step know: they would wait. */
void cuda_peers_fail(struct cuda_backend *b, enum lane l, const struct err *e);
/* Waits for the lane's stream; with peers, not for longer than they may take. */
void cuda_lane_wait(struct cuda_backend *b, enum lane l);
/* Whether what the lane's peers do may be recorded. */
bool cuda_peers_capture(const struct cuda_backend *b, enum lane l);
/* Rows that one product of the lane may have. */
uint32_t cuda_most_rows(const struct cuda_backend *b, int l);
/* Sends up what the step's rows wish, if all of it fits; then op_sample() has only kernels left. */
void cuda_sample_begin(struct cuda_lane *lane, uint32_t vocab);
void cuda_sample_last(struct cuda_lane *lane); /* all passes are queued */
bool cuda_sample_is_up(const struct cuda_lane *lane);
void cuda_sample_finish(struct cuda_lane *lane);   /* after the stream was waited for */
/* Graphs of decode steps; see graph.cu. */
MUST_CHECK enum err_code cuda_graph_init(struct cuda_backend *b, struct err *e);
uint32_t cuda_graph_longest(uint32_t longest);  /* what a step's launches are sized for */
void cuda_graph_finish(struct cuda_lane *lane); /* runs what was recorded, if anything was */
void cuda_graph_close(struct cuda_backend *b);
void cuda_spread_close(struct cuda_backend *b);
void cuda_free_blocks(struct cuda_backend *b);

/* The experts of a layer as the grouped products read them: [3 * n_experts], gate, up, down of
 * each. Kept before the host table by cuda_weights_upload(). */
struct expert_header {
    struct matrix *device;
    void *padding;
};
static inline const struct matrix *expert_table(const struct layer_weights *w)
{
    return ((const struct expert_header *)(const void *)w->expert - 1)->device;
}

/* Rows in split form (tile/split.cuh), 16 bytes for each 4 values; a row is the sums of its parts
 * times its factor (for e4m3 matrices; for bf16 ones as it is). */
struct split_rows {
    const void *x;
    const float *factor;
};
/* Whether products with such matrices want it. */
bool cuda_takes_split(const struct cuda_backend *b, enum dtype t, uint32_t n_in);
/* n <= 1024 rows for products with matrices of type t, until the lane's next split. The same rows
 * are split once while nobody has written them: who writes activations calls cuda_forget_split().
 */
struct split_rows cuda_split(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const void *x, uint32_t n, uint32_t n_in);
void cuda_forget_split(struct cuda_lane *lane);
/* Whether rows are rounded to the type of such matrices first, also before they are split. */
bool cuda_rounds(const struct cuda_backend *b, enum dtype t);
void cuda_round_rows(struct cuda_lane *lane, enum dtype t, const float *x, uint32_t n,
                     uint32_t n_in, float *y); /* y may be x */
/* fp32 rows for products that take no split form: x, or n <= 1024 rounded ones until the lane's
 * next split. */
const float *cuda_plain_rows(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const float *x, uint32_t n, uint32_t n_in);

/* y = or += x W^T on the lane's stream; see linear.cu. x and y are fp32. */
struct product {
    const struct matrix *w; /* on the host; its data on the device */
    const void *x;
    uint32_t n;
    void *y;
    bool add, exact;     /* exact: fp32 arithmetic in the fast precision as well */
    const float *factor; /* not NULL: x is in split form */
    bool rounded;        /* x is fp32 and has been rounded where that is done */
};
void cuda_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p);

/* The same for groups of rows, each with its own matrix: group g's matrix is w[g * w_step], its
 * rows [start[g], start[g + 1]) of y; row i of those reads row (row ? row[i] : i) of x. */
struct grouped_product {
    const struct matrix *w; /* on the device */
    uint32_t w_step, n_groups, n_out, n_in;
    enum dtype dtype;
    const uint32_t *start, *row;
    const void *x; /* act, or in split form where that is wanted */
    const float *factor;
    float *y;
    float *second; /* not NULL: the product with each group's next matrix, same type and size */
    uint32_t max_group;    /* rows of one group, at most */
    uint32_t likely_group; /* rows that most groups stay under */
};
void cuda_grouped_product(struct cuda_backend *b, struct cuda_lane *lane,
                          const struct grouped_product *p);

/* Parts of a matrix as groups: part z has n_out outputs from z * part_outs + part_first on, reads
 * rows i * n_parts + z of x and writes values [z * n_out, (z + 1) * n_out) of row i of y. */
struct part_product {
    const struct matrix *w; /* of a type that takes split form; FP8: parts begin with blocks */
    uint32_t n_parts, part_outs, part_first, n_out, n;
    const void *x; /* in split form */
    const float *factor;
    float *y;
};
void cuda_part_product(struct cuda_backend *b, struct cuda_lane *lane,
                       const struct part_product *p);

/* ---- beside.cu: branches of a step (ops->beside) ---- */

MUST_CHECK enum err_code cuda_beside_open(struct cuda_backend *b, struct cuda_lane *lane,
                                          int priority, struct err *e);
void cuda_beside_close(struct cuda_lane *lane);
/* The lane's own stream waits for all branches, and is what the lane goes on with. */
void cuda_meet(struct cuda_lane *lane);
/* The same from inside a branch that wants what all share; the step stays in order until
 * cuda_meet(). */
void cuda_meet_early(struct cuda_lane *lane);

/* ---- wide.cu: the products of gemm.cuh behind the same names ---- */

/* Whether a product with such a matrix goes there. */
bool cuda_takes_wide(const struct cuda_backend *b, const struct matrix *w);
void cuda_wide_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p);
/* Whether cuda_wide_network() takes such matrices. */
bool cuda_takes_network(const struct cuda_backend *b, const struct ffn_weights *w);
/* y = or += down(silu(gate x) up x) for at most 1024 rows; false: not with such matrices. */
bool cuda_wide_network(struct cuda_backend *b, struct cuda_lane *lane, const struct ffn_weights *w,
                       const float *x, uint32_t n, float *y, bool add);
/* m->out as moe_experts() leaves it; false: not with such matrices. */
struct moe_scratch;
bool cuda_wide_experts(struct cuda_backend *b, struct cuda_lane *lane, struct moe_scratch *m,
                       const struct ffn_weights *w, const float *x, uint32_t n_pairs);
void cuda_wide_forget(struct cuda_lane *lane);
void cuda_wide_written(struct cuda_lane *lane, const void *y, size_t values);
MUST_CHECK enum err_code cuda_wide_init(struct cuda_backend *b, struct err *e);

#endif
