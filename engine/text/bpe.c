/* bpe.c - see bpe.h. */
#include "text/bpe.h"

#include "base/fault.h"
#include "base/hash.h"
#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

enum { ID_BITS = 21, SHORT_BYTES = 48 };
enum { NO_RANK = 0xFFFFFFFF };
static_assert(VOCAB_MAX_IDS == 1 << ID_BITS, "two ids and a rank share a 64-bit word");
#define EMPTY UINT64_MAX

enum err_code bpe_init(struct bpe *b, uint32_t max_merges, struct err *e)
{
    uint32_t n_slots = 1024;
    assert(max_merges < VOCAB_MAX_IDS);
    while (n_slots < 2 * max_merges)
        n_slots *= 2;
    b->mask = n_slots - 1;
    b->n_merges = 0;
    b->slot = FAULT("bpe.init") ? NULL : malloc(n_slots * sizeof *b->slot);
    b->joined = malloc(((size_t)max_merges + 1) * sizeof *b->joined);
    if (!b->slot || !b->joined)
        return err_set(e, ERR_NOMEM, "%u merges", max_merges);
    memset(b->slot, 0xFF, n_slots * sizeof *b->slot);
    return ERR_OK;
}

void bpe_free(struct bpe *b)
{
    free(b->slot);
    free(b->joined);
    b->slot = NULL;
    b->joined = NULL;
}

static inline uint32_t first_slot(const struct bpe *b, uint64_t key)
{
    key *= 0x9E3779B97F4A7C15u;
    return (uint32_t)(key >> 40 ^ key >> 20) & b->mask;
}

void bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t joined)
{
    uint64_t key = (uint64_t)left << ID_BITS | right;
    uint32_t rank = b->n_merges++, i = first_slot(b, key);
    while (b->slot[i] != EMPTY && b->slot[i] >> ID_BITS != key)
        i = (i + 1) & b->mask;
    b->slot[i] = key << ID_BITS | rank;
    b->joined[rank] = joined;
}

static inline uint32_t rank_of(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t key = (uint64_t)left << ID_BITS | right;
    for (uint32_t i = first_slot(b, key);; i = (i + 1) & b->mask) {
        uint64_t s = b->slot[i];
        if (s == EMPTY)
            return NO_RANK;
        if (s >> ID_BITS == key)
            return (uint32_t)s & (VOCAB_MAX_IDS - 1);
    }
}

/* n <= SHORT_BYTES: quadratic, but over a few words that stay in the first cache. */
static size_t encode_short(const struct bpe *b, const char *piece, size_t n, uint32_t *out)
{
    uint32_t id[SHORT_BYTES], rank[SHORT_BYTES];
    for (size_t i = 0; i < n; i++)
        id[i] = b->byte_id[(unsigned char)piece[i]];
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = rank_of(b, id[i], id[i + 1]);
    while (n > 1) {
        size_t at = 0;
        for (size_t i = 1; i + 1 < n; i++)
            at = rank[i] < rank[at] ? i : at;
        if (rank[at] == NO_RANK)
            break;
        id[at] = b->joined[rank[at]];
        n--;
        for (size_t i = at + 1; i < n; i++)
            id[i] = id[i + 1];
        for (size_t i = at + 1; i + 1 < n; i++)
            rank[i] = rank[i + 1];
        if (at + 1 < n)
            rank[at] = rank_of(b, id[at], id[at + 1]);
        if (at > 0)
            rank[at - 1] = rank_of(b, id[at - 1], id[at]);
    }
    memcpy(out, id, n * sizeof *out);
    return n;
}

struct bpe_node {
    uint32_t id, prev, next; /* prev, next: positions; next == n ends the list */
    uint32_t rank;           /* of the pair that starts here; NO_RANK: none, or swallowed */
};

/* A binary heap of rank << 32 | position: the smallest rank first, then the leftmost. */
static void heap_push(struct bpe_scratch *s, uint64_t v)
{
    assert(s->n_heap < s->max_heap);
    size_t i = s->n_heap++;
    for (; i > 0 && s->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = v;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0], v = s->heap[--s->n_heap];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= v)
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = v;
    return top;
}

static void set_rank(const struct bpe *b, struct bpe_scratch *s, uint32_t at, uint32_t end)
{
    struct bpe_node *x = &s->node[at];
    x->rank = x->next < end ? rank_of(b, x->id, s->node[x->next].id) : (uint32_t)NO_RANK;
    if (x->rank != NO_RANK)
        heap_push(s, (uint64_t)x->rank << 32 | at);
}

static enum err_code scratch_room(struct bpe_scratch *s, size_t n, struct err *e)
{
    if (n <= s->max_nodes)
        return ERR_OK;
    bpe_scratch_free(s);
    /* n - 1 pairs at first, and at most two new ones for each of at most n - 1 merges. */
    s->node = FAULT("bpe.scratch") ? NULL : malloc(n * sizeof *s->node);
    s->heap = malloc(3 * n * sizeof *s->heap);
    if (!s->node || !s->heap) {
        bpe_scratch_free(s);
        return err_set(e, ERR_NOMEM, "merging a piece of %zu bytes", n);
    }
    s->max_nodes = n;
    s->max_heap = 3 * n;
    return ERR_OK;
}

static size_t encode_long(const struct bpe *b, struct bpe_scratch *s, const char *piece, uint32_t n,
                          uint32_t *out)
{
    s->n_heap = 0;
    for (uint32_t i = 0; i < n; i++)
        s->node[i] = (struct bpe_node){b->byte_id[(unsigned char)piece[i]], i - 1, i + 1, NO_RANK};
    for (uint32_t i = 0; i + 1 < n; i++)
        set_rank(b, s, i, n);
    while (s->n_heap) {
        uint64_t top = heap_pop(s);
        uint32_t at = (uint32_t)top, rank = (uint32_t)(top >> 32);
        struct bpe_node *x = &s->node[at];
        if (x->rank != rank)
            continue; /* that pair is gone: one of its halves was joined to something else */
        struct bpe_node *y = &s->node[x->next];
        x->id = b->joined[rank];
        x->next = y->next;
        y->rank = NO_RANK;
        if (x->next < n)
            s->node[x->next].prev = at;
        set_rank(b, s, at, n);
        if (at > 0)
            set_rank(b, s, x->prev, n);
    }
    size_t k = 0;
    for (uint32_t i = 0; i < n; i = s->node[i].next)
        out[k++] = s->node[i].id;
    return k;
}

enum err_code bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t n,
                         uint32_t *out, size_t *n_out, struct err *e)
{
    if (n <= SHORT_BYTES) {
        *n_out = encode_short(b, piece, n, out);
        return ERR_OK;
    }
    if (n >= UINT32_MAX)
        return err_set(e, ERR_INVALID, "a piece of %zu bytes is too long", n);
    if (scratch_room(s, n, e))
        return e->code;
    *n_out = encode_long(b, s, piece, (uint32_t)n, out);
    return ERR_OK;
}

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->node);
    free(s->heap);
    *s = (struct bpe_scratch){0};
}
