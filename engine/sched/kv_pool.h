/* kv_pool.h - which sequence holds which page of the KV cache.
 *
 * The pages' bytes are reserved when the back end opens and belong to it; this module keeps the
 * bookkeeping: a free list and a holder count per page. One page id stands for KV_PAGE_TOKENS slots
 * in every layer, in both planes: the latent and the indexer key. Holders are the block tables of
 * sequences and the prefix cache; a page with more than one of them is never written again.
 *
 * Thread:    the scheduler's. There are no locks here.
 * Invariant: free pages + held pages == n_pages; a page is free iff it has no holder.
 */
#ifndef GAZE_SCHED_KV_POOL_H
#define GAZE_SCHED_KV_POOL_H

#include "base/err.h"
#include "model/ops.h"

struct kv_pool; /* opaque */

/* The pages of one sequence in token order. Storage is the sequence's, the pages the pool's. */
struct block_table {
    uint32_t *page;   /* page[i] holds tokens [i * KV_PAGE_TOKENS, (i + 1) * KV_PAGE_TOKENS) */
    uint32_t n_pages; /* held now */
    uint32_t max_pages;
};

static inline uint32_t kv_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

/* Gives a pool of n_pages free pages; ERR_NOMEM. End it with kv_pool_destroy(), which asserts that
 * every page is back. */
MUST_CHECK enum err_code kv_pool_create(struct kv_pool **out, uint32_t n_pages, struct err *e);
void kv_pool_destroy(struct kv_pool *pool);

/* Grows bt to cover n_tokens tokens (never shrinks it). All or nothing: on ERR_NO_PAGES bt and pool
 * are as they were. bt->max_pages must be enough. */
MUST_CHECK enum err_code kv_pool_reserve(struct kv_pool *pool, struct block_table *bt,
                                         uint32_t n_tokens);
/* Appends a page that others hold, too; bt becomes one more holder. */
void kv_pool_share(struct kv_pool *pool, struct block_table *bt, uint32_t page);
/* Lets go of all of bt's pages and empties it. Call once no step in flight reads them. */
void kv_pool_release(struct kv_pool *pool, struct block_table *bt);

/* One holder more or fewer of a held page; a page without a holder is free. */
void kv_pool_hold(struct kv_pool *pool, uint32_t page);
void kv_pool_drop(struct kv_pool *pool, uint32_t page);

uint32_t kv_pool_n_pages(const struct kv_pool *pool);
uint32_t kv_pool_n_free(const struct kv_pool *pool);
uint32_t kv_pool_holders(const struct kv_pool *pool, uint32_t page);
void kv_pool_check(const struct kv_pool *pool); /* asserts the invariant; O(n_pages), for tests */

#endif
