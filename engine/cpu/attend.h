/* attend.h - what the two forms of attention share: one call's job, a lane's and a worker's memory.
 *
 * Private to attend.c (the op, the expanded form) and attend_absorbed.c.
 */
#ifndef GAZE_CPU_ATTEND_H
#define GAZE_CPU_ATTEND_H

#include "cpu/dsa_loops.h"
#include "cpu/kv.h"

enum {
    EXPAND_BLOCK = 256,     /* positions whose keys and values are made at once */
    EXPAND_ROWS = 64,       /* rows of a chunk */
    EXPAND_BYTES = 8 << 20, /* of keys and values at once, at most: heads go in groups */
    ABSORB_ROWS = 16,       /* rows of a chunk, at most */
    ABSORB_HEADS = 32,      /* heads of a chunk, at most */
    ABSORB_HEADS_MIN = 4,   /* the same when rows are few: below it reading latents dominates */
    SPLIT = 1024            /* positions of a partial result; a row's bits depend on it */
};

struct attend_worker {
    float *kt;     /* [dim, 64] a tile's keys, transposed */
    float *s;      /* [rows, 64] scores, then probabilities; rows are (row, head) when absorbed */
    uint32_t *n;   /* [rows] positions of the tile that a row sees */
    float *shrink; /* [rows] */
    float *latent; /* [64, kv_lora + rope] a tile's latents */
    float *w_uk;   /* [nope, kv_lora] of one head, widened */
    float *q;      /* [rows, kv_lora + rope] queries in latent space */
    float *z, *z_part; /* [rows, kv_lora] */
    float *state;      /* [4, rows] maxima and sums, total and partial */
};

struct attend_scratch {           /* a lane's */
    struct attend_worker *worker; /* shared by the lanes */
    uint32_t expand_heads;        /* of a group */
    float *latent;                /* [EXPAND_BLOCK, kv_lora + rope] */
    float *expanded;              /* [EXPAND_BLOCK, expand_heads * (nope + v)] */
    float *max, *sum;             /* [max_rows, heads] */
    /* A long row whose splits run side by side (decode with several threads; else NULL): its
     * queries [heads, kv_lora + rope], and per split and head a sum [kv_lora], a maximum and a
     * total. */
    float *long_q, *long_z, *long_max, *long_sum;
};

struct attend_job {
    struct cpu_backend *b;
    const struct cpu_lane *lane;
    struct attend_scratch *x;
    const struct dsa_loops *loops;
    uint32_t layer;
    const struct matrix *kv_b;
    const float *q;
    const int32_t *sel;
    float *out;
    /* expanded: a block of positions, the rows that see it, a group of heads */
    const struct step_seq *seq;
    uint32_t pos0, n_pos, head0;
    /* both: rows [row0, row1), heads of a chunk; absorbed: rows of a chunk */
    uint32_t row0, row1, n_heads, n_rows;
};

/* Rows [row0, row1), none of them expanded. */
void attend_absorbed(struct attend_job *j, enum lane l, uint32_t row0, uint32_t row1);

#endif
