/* backend.h - what the files of cpu/ share: the back end's state and the parts of its op table.
 *
 * Private to engine/cpu. Each op family sits in one file and fills its entries of struct ops:
 *   linear.c (embed, rms_norm, linear, logits)  moe.c, spread.c (ffn, moe)  peers.c (reduce)
 *   kv.c (rope_q, kv_store, index_store)  index.c (index_select)  reuse.c (watch_selections)
 *   attend.c (attend)  sample.c (sample)  pages.c (export_pages, import_pages, sum_pages)
 *
 * Activations are fp32. In the fast precision a product takes its input rows as sums of two bf16
 * (16 bits of mantissa) where the machine multiplies bf16; as deployed (PRECISION_FP8) it rounds
 * them to its weights' type and multiplies in fp32, where each term is exact; sums are always fp32.
 */
#ifndef GAZE_CPU_BACKEND_H
#define GAZE_CPU_BACKEND_H

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "model/ops.h"

#include <stdatomic.h>

enum { CPU_CHUNKS_PER_THREAD = 6 }; /* of long jobs, so that a thread put aside delays one */
enum { CPU_MAX_EXPERTS = 1024 }; /* what the router has room for on its stack */

struct cpu_lane {
    const struct step *step; /* between begin and finish */
    struct err err;          /* first error of the step */
    uint32_t *row_seq;       /* [max_rows] the sequence of each row of the step */
    uint32_t *row_pos;       /* [max_rows] its position */
    uint16_t *split;         /* split or rounded input rows: max_rows x 2 x widest input */
    size_t split_elements;
    float *logits; /* [max_out_rows, vocab] */
    /* each family's own */
    void *linear_scratch, *moe_scratch, *attend_scratch, *index_scratch, *sample_scratch;
    void *spread_scratch, *peers_scratch; /* NULL where the model is not cut */
};

struct cpu_backend {
    struct ops ops; /* first: struct ops * is struct cpu_backend * */
    struct pool *pool;
    const struct kernels *k;
    struct cpu_lane lane[N_LANES];
    unsigned char **latent; /* [n_layers] base of the plane: page id * latent_page_bytes */
    unsigned char **index; /* [n_layers] likewise; NULL in layers without an indexer of their own */
    size_t latent_page_bytes, index_page_bytes;
    float *rope_cos, *rope_sin;    /* [max_context, rope_dim / 2], gain included */
    _Atomic uint64_t *expert_rows; /* [n_layers, n_experts] */
    struct reuse_watch *reuse;     /* NULL: no indexer */
    struct mem_block *blocks;      /* all that was reserved; freed by close */
    size_t reserved_bytes;
};

static inline struct cpu_backend *cpu_of(struct ops *o)
{
    return (struct cpu_backend *)o;
}

/* Zeroed memory, aligned to 64 bytes, that close frees; NULL when there is none. */
void *cpu_reserve(struct cpu_backend *b, size_t bytes);

/* Each family reserves its scratch and fills its ops. ERR_NOMEM. */
MUST_CHECK enum err_code cpu_linear_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_moe_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_kv_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_index_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_reuse_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_attend_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_peers_init(struct cpu_backend *b, struct err *e);
MUST_CHECK enum err_code cpu_sample_init(struct cpu_backend *b, struct err *e);
void cpu_pages_init(struct cpu_backend *b); /* export_pages, import_pages, sum_pages */

/* y[n, w->n_out] (stride ldy) = or += x[n, w->n_in] (stride ldx) W^T, split over the pool in lane
 * l. Rows [out0, out0 + n_out) of W alone may be asked for: y's column 0 is row out0. */
struct product {
    const struct matrix *w;
    uint32_t out0, n_out;
    const float *x;
    size_t ldx;
    uint32_t n;
    float *y;
    size_t ldy;
    bool add;
    bool exact;     /* fp32 rows of x in all precisions */
    bool unrounded; /* rows of x as in the fast precision where others are rounded for w */
};
void cpu_product(struct cpu_backend *b, enum lane l, const struct product *p);

/* logits[n, part of the vocabulary] of each rank of the group, put together on the first; NULL on
 * others. */
float *cpu_gather_logits(struct cpu_backend *b, enum lane l, const float *logits, uint32_t n,
                         uint32_t n_part);
/* Keeps the lane's first error, and lets the other ranks of the step know: they would wait. */
void cpu_lane_fail(struct cpu_backend *b, enum lane l, const struct err *e);

/* Whether the fast precision rounds the rows of x that meet w: bf16 and fp8 weights have kernels
 * for that, fp32 and f16 weights do not. */
bool cpu_takes_split(const struct cpu_backend *b, const struct matrix *w);
/* Whether rows that meet w are rounded to its type first (PRECISION_FP8); cpu_round_row() does it:
 * y[w->n_in] from x, which it may be. */
bool cpu_rounds(const struct cpu_backend *b, const struct matrix *w);
void cpu_round_row(const struct matrix *w, const float *x, float *y);
/* The product of rows [out0, out0 + n_out) of w on the calling thread; x as `split` says. */
struct block_product {
    const struct matrix *w;
    uint32_t out0, n_out;
    const void *x;
    bool split;
    size_t ldx;
    uint32_t n;
    float *y;
    size_t ldy;
    bool add;
};
void cpu_block_product(const struct kernels *k, const struct block_product *p);

/* pool_run(), or a plain loop when the whole job is worth less than waking anybody. Costs are
 * guesses in nanoseconds of one thread; they decide where work runs, never what comes out. */
void cpu_run(struct cpu_backend *b, enum lane l, uint32_t n_chunks, double cost_ns, pool_fn *fn,
             void *arg);
double cpu_product_cost_ns(const struct matrix *w, uint32_t n_out, uint32_t n);

/* Where a position's slot is. */
static inline const unsigned char *cpu_page(const unsigned char *plane, size_t page_bytes,
                                            const struct step_seq *s, uint32_t pos)
{
    return plane + (size_t)s->page[pos / KV_PAGE_TOKENS] * page_bytes;
}

#endif
