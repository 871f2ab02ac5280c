/* bpe.h - byte-pair merging: repeatedly join the adjacent pair whose merge comes first in the file.
 *
 * Ties are broken from the left, as in the reference. A short piece is merged in place by looking
 * for the smallest rank again and again; a long one with a heap, so n bytes cost O(n log n)
 * whatever they are.
 *
 * Thread: built by one, then read by any; a struct bpe_scratch belongs to one call.
 */
#ifndef GAZE_TEXT_BPE_H
#define GAZE_TEXT_BPE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct bpe {
    uint64_t *slot;   /* left << 42 | right << 21 | rank; all ones: empty */
    uint32_t mask;    /* slots - 1 */
    uint32_t *joined; /* by rank: the token that the merge makes */
    uint32_t n_merges;
    uint32_t byte_id[256];
};

struct bpe_scratch { /* zeroed is ready */
    struct bpe_node *node;
    uint64_t *heap;
    size_t max_nodes, n_heap, max_heap;
};

/* Room for max_merges; byte_id is the caller's to fill. ERR_NOMEM. End with bpe_free(). */
MUST_CHECK enum err_code bpe_init(struct bpe *b, uint32_t max_merges, struct err *e);
void bpe_free(struct bpe *b);
/* Adds the next merge; its rank is its place. Of the same pair twice, the later one counts, as it
 * does in the reference's table. */
void bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t joined);

/* Writes the ids of one piece to out, which has room for n, and gives how many. ERR_NOMEM. */
MUST_CHECK enum err_code bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece,
                                    size_t n, uint32_t *out, size_t *n_out, struct err *e);
void bpe_scratch_free(struct bpe_scratch *s);

#endif
