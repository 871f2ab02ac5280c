/* ops.h - what the layers are made of: one table of functions, filled by cpu/ or cuda/.
 *
 * The layers (forward.c) are calls through this table and nothing else, so a back end is complete
 * when it fills it, and each is tested against the CPU's. A back end owns its KV planes and its
 * workspace: all is reserved when it opens, from the configuration and the limits, and nothing is
 * allocated after.
 *
 * Activations are opaque (`act`): fp32 on the CPU, bf16 on a GPU; they are reserved by alloc_act()
 * in elements. Rows are contiguous unless a stride is given, in elements.
 *
 * Lanes:       each op runs in the prefill or the decode lane. Ops of one lane run in order; lanes
 * run side by side and share only the KV planes, where they touch different slots. Return:      an
 * op returns once queued (on the CPU: once done). Errors stick to the lane; finish() waits for the
 * lane and reports the first one. Equal bits:  a row's result depends on that row, its sequence's
 * slots and constants alone: never on the batch, the lane, the chunk or the number of threads.
 */
#ifndef GAZE_MODEL_OPS_H
#define GAZE_MODEL_OPS_H

#include "comm/comm.h"
#include "model/reuse.h"
#include "model/sample.h"
#include "model/weights.h"

enum {
    KV_PAGE_TOKENS = 64
}; /* tokens of a page; what DeepGEMM's and FlashMLA's layouts have, too */

enum lane { LANE_PREFILL, LANE_DECODE, N_LANES };

enum precision {
    PRECISION_EXACT, /* fp32 activations: for tests and goldens */
    PRECISION_FAST,  /* activations as sums of two bf16 into products, fp32 sums: for serving */
    /* As the model is deployed: activations in the weights' own type into products, that is e4m3
     * with a power-of-two scale for each 128 values of a row, or one bf16; fp32 sums. The router
     * stays fp32, the products inside attention as in the fast precision. */
    PRECISION_FP8
};
static inline const char *precision_name(enum precision p)
{
    return p == PRECISION_EXACT ? "exact" : p == PRECISION_FAST ? "fast" : "fp8";
}
/* A latent record: F32 and BF16 hold (kv_lora + rope) values, FP8 the 656-byte record of the
 * deployed model (kv_lora e4m3 | a power-of-two f32 scale per LATENT_GROUP | rope as bf16). */
enum latent_form { LATENT_F32, LATENT_BF16, LATENT_FP8 };
enum { LATENT_GROUP = 128 }; /* values of an FP8 latent under one scale */
static inline const char *latent_name(enum latent_form f)
{
    return f == LATENT_F32 ? "f32" : f == LATENT_BF16 ? "bf16" : "fp8";
}
/* An index key: EXACT is fp32, neither turned nor quantised; FP8 is the deployed form: Hadamard,
 * e4m3 with one power-of-two scale, planar in the page (64 keys, then 64 f32 scales). */
enum index_form { INDEX_EXACT, INDEX_FP8 };

/* What the routed experts read. F32: the activation as it is. FP8: rounded to e4m3 under one
 * power-of-two scale per 128 values, as the deployed model does; a quarter of the bytes where rows
 * travel to their experts. The form decides the numbers, whether or not a row travels. */
enum expert_form { EXPERT_F32, EXPERT_FP8 };

/* The other ranks of a model that is cut over several (parallel.h), as one rank's back end meets
 * them. Each communicator is one lane's. Borrowed until the back end is closed. */
struct ops_peers {
    const struct rank_share *share;
    struct comm *group[N_LANES]; /* this rank's attention group; NULL: it is alone in it */
    struct comm *all[N_LANES];   /* all ranks, in order; NULL: no row travels to experts */
};

struct ops_limits {
    enum precision precision;
    enum latent_form latent;
    enum index_form index;
    enum expert_form expert;
    const struct ops_peers *peers; /* NULL: one rank holds the whole model */
    uint32_t n_pages;              /* of the KV pool */
    uint32_t max_rows[N_LANES];    /* tokens of one step */
    uint32_t max_context;          /* tokens of one sequence */
    uint32_t max_out_rows;         /* rows of logits at once */
    uint32_t n_threads;            /* CPU; 0: as many as there are */
};

/* Bytes of one page in one layer. */
size_t kv_latent_page_bytes(const struct model_config *c, enum latent_form f);
size_t kv_index_page_bytes(const struct model_config *c, enum index_form f);
/* Bytes of one page in all layers and both planes. */
size_t kv_page_bytes(const struct model_config *c, enum latent_form lf, enum index_form xf);

enum { TOP_K_DENSE = UINT32_MAX };

/* One sequence's part of a step: rows [row0, row0 + n_rows) are its tokens at [pos0, pos0 +
 * n_rows). */
struct step_seq {
    uint32_t row0, n_rows, pos0;
    const uint32_t *page; /* block table; page[p / 64] holds position p; covers pos0 + n_rows */
    uint32_t top_k; /* rows that see more tokens select this many; TOP_K_DENSE: never select */
    /* Rows at positions below this one attend in expanded form (prompt rows); others are absorbed.
     */
    uint32_t expand_below;
    uint32_t run; /* the sequence's own number, for what is sampled over its steps; 0: nothing is */
};

struct step {
    uint32_t n_rows, n_seqs;
    /* Rows of the largest step among those that all ranks run together; 0: n_rows. Only asked where
     * rows travel; n_rows is 0 on a rank that has none and takes part all the same. */
    uint32_t most_rows;
    const uint32_t *token; /* [n_rows] */
    const struct step_seq *seq;
    uint32_t n_out;
    const uint32_t *out_row;         /* [n_out] rows whose logits are wanted, ascending */
    const struct sample_row *sample; /* [n_out] */
    struct sample_out *out;          /* [(1 + n_more) * n_out], pass by pass */
    /* So often the rows run again, each one position further and on the token that it has just
     * chosen, without the host in between. Not 0 only where ops->advance is there, every row wants
     * a token (out_row[i] == i) whose choice hangs on no token of this step but the last (no
     * penalties, no bans), and page covers n_more more tokens. At most OPS_MAX_MORE. */
    uint32_t n_more;
};

enum { OPS_MAX_MORE = 7, OPS_BRANCHES = 3 };

typedef void act;

struct ops {
    const char *name; /* "cpu avx512 fast" ... */
    const struct model_config *cfg;
    struct ops_limits limits;
    void *self; /* the back end's */

    act *(*alloc_act)(struct ops *o, size_t elements); /* NULL: no memory; freed by close */
    void (*close)(struct ops *o);

    /* Opens a step in a lane: its arrays stay as they are until finish(). */
    void (*begin)(struct ops *o, enum lane l, const struct step *s);
    MUST_CHECK enum err_code (*finish)(struct ops *o, enum lane l, struct err *e);
    /* Steps of one shape are the same ops with the same arguments, and a back end may keep what it
     * queues for them. Asked after begin(); true: all of the step is queued, only finish() is left.
     * whose and variant: what besides the step decides the ops. NULL: nothing is kept. */
    bool (*recall)(struct ops *o, enum lane l, const void *whose, uint32_t variant);
    /* Between two passes of a step with n_more: rows take their tokens and go one position further.
     * NULL: steps have one pass. */
    void (*advance)(struct ops *o, enum lane l);
    /* Microseconds from the first to the last piece of work of each step so far, on the device's
     * own clock. Any thread. NULL: there is no other clock than the host's. */
    uint64_t (*device_us)(struct ops *o, enum lane l);

    /* x[n, hidden] = rows of w; ids beyond its rows are a bug of the caller. */
    void (*embed)(struct ops *o, enum lane l, const struct matrix *w, act *x);
    /* y[n, dim] = x / sqrt(mean(x^2) + eps) * gain */
    void (*rms_norm)(struct ops *o, enum lane l, const act *x, const float *gain, float eps,
                     uint32_t n, uint32_t dim, act *y);
    /* y[n, n_out] = W x, or y += W x */
    void (*linear)(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                   act *y, bool add);

    /* Of a step that may run several things at once: what comes is queued in this branch, behind
     * what branch 0 was given so far (after_all: and the other branches); 0 is what a step begins
     * in. attend() waits for all branches and is in branch 0. The host's order is one that is
     * right without branches; NULL: that is how they run. In a branch other than 0: linear (each
     * y its own), the stores, index_select and what looks at its selections. */
    void (*beside)(struct ops *o, enum lane l, uint32_t branch, bool after_all);

    /* Rotates the last rope_dim of each head of q[n, heads, nope + rope] in place (interleaved). */
    void (*rope_q)(struct ops *o, enum lane l, act *q);
    /* kv_raw[n, kv_lora + rope] of this step's rows: normalises the latent (gain), rotates the key,
     * rounds as the plane's form says and writes the slots of `layer`. */
    void (*kv_store)(struct ops *o, enum lane l, uint32_t layer, const act *kv_raw,
                     const float *gain);

    /* k_raw[n, index_dim]: LayerNorm, RoPE on the first rope_dim, (Hadamard, e4m3), into the slots.
     */
    void (*index_store)(struct ops *o, enum lane l, uint32_t layer, const act *k_raw,
                        const float *gain, const float *bias);
    /* q_raw[n, index_heads, index_dim], w_raw[n, index_heads] -> sel[n, index_topk] positions,
     * ascending, of the top_k largest scores of each row that sees more than its sequence's top_k
     * tokens: exact, the lower position on ties. Other rows of sel are left alone (they attend to
     * all they see). Steps: RoPE, (Hadamard, e4m3), weights times Hi^-1/2 Di^-1/2, scores,
     * selection. */
    void (*index_select)(struct ops *o, enum lane l, uint32_t layer, act *q_raw, const act *w_raw,
                         int32_t *sel);
    int32_t *(*alloc_sel)(struct ops *o, enum lane l); /* [max_rows, index_topk]; NULL: no memory */
    /* Of the decode lane, after index_select() of a sampled layer: keeps or compares what rows
     * selected, as reuse.h says. */
    void (*watch_selections)(struct ops *o, uint32_t layer, const int32_t *sel);
    /* Counts so far of the sampled layers: [REUSE_LAYERS]. Any thread. Both NULL without indexer.
     */
    void (*selection_reuse)(struct ops *o, struct reuse_count *count);

    /* q[n, heads, nope + rope], rotated -> out[n, heads * v]. Expanded rows: keys and values are
     * W_UK c and W_UV c of all positions they see. Absorbed rows: q~ = W_UK^T q_nope against the
     * latents of the selected positions (sel; NULL: all), out = W_UV (sum p c). */
    void (*attend)(struct ops *o, enum lane l, uint32_t layer, const struct matrix *kv_b,
                   const act *q, const int32_t *sel, act *out);

    /* y[n, hidden] = or += down(silu(gate x) * up x) */
    void (*ffn)(struct ops *o, enum lane l, const struct ffn_weights *w, const act *x, uint32_t n,
                act *y, bool add);
    /* Router in fp32, selection by the config's rules (the lower expert on ties), the chosen
     * experts, and the shared one: y[n, hidden] = or += sum weight_e expert_e(x) + shared(x), in a
     * fixed order. Where rows travel, all ranks call it together, each for its n (0 too), with add:
     * a rank sends its share of its group's rows to their experts' ranks and gets each expert's
     * values back, so that the sum has the order of one rank's; y is the whole sum on all ranks of
     * a group. Where they do not, a rank of several makes its part of the sum, for reduce(). */
    void (*moe)(struct ops *o, enum lane l, uint32_t layer, const struct layer_weights *w,
                const act *x, uint32_t n, act *y, bool add);
    /* Rows that each expert has been given so far: [n_layers, n_experts], of this rank's rows. Any
     * thread. */
    void (*expert_rows)(struct ops *o, uint64_t *rows);
    /* y[n, dim] += the sum over the group's ranks of part[n, dim], in the ranks' order: the same on
     * all of them. NULL for a rank that is alone in its group. */
    void (*reduce)(struct ops *o, enum lane l, const act *part, uint32_t n, uint32_t dim, act *y);
    /* An error of the lane unless all ranks of the group selected the same; waits for them, so
     * debug builds alone call it, and record no graphs. NULL for a rank that is alone in its group.
     */
    void (*compare_selections)(struct ops *o, enum lane l, const int32_t *sel);

    /* For the step's out rows [i0, i0 + n), n <= max_out_rows: final norm of x's rows, logits in
     * fp32 into the lane's logits buffer (returned; fp32 [n, vocab] in the back end's memory). A
     * head that is cut over the group is put together on its first rank; the others' is undefined.
     */
    float *(*logits)(struct ops *o, enum lane l, const act *x, const float *gain,
                     const struct matrix *head, uint32_t i0, uint32_t n);
    /* Chooses tokens for out rows [i0, i0 + n) from that buffer into step->out (valid after
     * finish). */
    void (*sample)(struct ops *o, enum lane l, float *logits, uint32_t i0, uint32_t n);

    /* Whole pages leave and enter the KV planes: page after page, each kv_page_bytes() long: its
     * layers in order, of each the latent part and then, where the layer has an indexer of its own,
     * the index part. No lane: called from a third thread while steps run that do not touch these
     * pages. They return when done. ERR_CUDA, ERR_IO: a page that was being written is undefined.
     */
    MUST_CHECK enum err_code (*export_pages)(struct ops *o, const uint32_t *page, uint32_t n,
                                             void *bytes, struct err *e);
    MUST_CHECK enum err_code (*import_pages)(struct ops *o, const uint32_t *page, uint32_t n,
                                             const void *bytes, struct err *e);
    /* sum[i] = kv_page_sum() of what export_pages() would give of page[i], made where it lies. */
    MUST_CHECK enum err_code (*sum_pages)(struct ops *o, const uint32_t *page, uint32_t n,
                                          uint64_t *sum, struct err *e);
    /* Pages of `from` to pages of o without the host between; NULL, or ERR_INVALID for a pair that
     * cannot: then by export and import. */
    MUST_CHECK enum err_code (*copy_pages)(struct ops *o, const uint32_t *to, struct ops *from,
                                           const uint32_t *page, uint32_t n, struct err *e);
};

/* The sum of a page's bytes, as 64-bit words in order, the first with index `first` (a page in
 * pieces: the sum of its pieces' sums): sum over i of hash_mix(word[i] + 0x9E3779B97F4A7C15 *
 * (first + i + 1)), modulo 2^64. Order-free, so a device may add it up in any order; a word that
 * differs or has another place is missed once in 2^64. */
uint64_t kv_page_sum(const void *bytes, size_t n_bytes, uint64_t first);

/* Bytes that a back end would reserve beyond the KV planes. */
struct ops_plan {
    size_t kv_bytes, workspace_bytes;
};

#endif
