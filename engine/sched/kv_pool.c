/* kv_pool.c - see kv_pool.h. */
#include "sched/kv_pool.h"

#include "base/fault.h"

#include <stdlib.h>

struct kv_pool {
    uint32_t n_pages, n_free;
    uint32_t *free_page; /* a stack: the page that came back last is the warmest */
    uint32_t *holders;   /* [n_pages] */
};

enum err_code kv_pool_create(struct kv_pool **out, uint32_t n_pages, struct err *e)
{
    struct kv_pool *pool = FAULT("kv_pool.create") ? NULL : calloc(1, sizeof *pool);
    if (!pool)
        return err_set(e, ERR_NOMEM, "KV pool");
    pool->n_pages = pool->n_free = n_pages;
    pool->free_page = calloc(n_pages ? n_pages : 1, sizeof *pool->free_page);
    pool->holders =
        FAULT("kv_pool.holders") ? NULL : calloc(n_pages ? n_pages : 1, sizeof *pool->holders);
    if (!pool->free_page || !pool->holders) {
        free(pool->free_page);
        free(pool->holders);
        free(pool);
        return err_set(e, ERR_NOMEM, "KV pool: lists of %u pages", n_pages);
    }
    for (uint32_t i = 0; i < n_pages; i++)
        pool->free_page[i] = n_pages - 1 - i; /* page 0 goes out first */
    *out = pool;
    return ERR_OK;
}

void kv_pool_destroy(struct kv_pool *pool)
{
    if (!pool)
        return;
    assert(pool->n_free == pool->n_pages);
    free(pool->free_page);
    free(pool->holders);
    free(pool);
}

enum err_code kv_pool_reserve(struct kv_pool *pool, struct block_table *bt, uint32_t n_tokens)
{
    uint32_t want = kv_pages_for(n_tokens);
    if (want <= bt->n_pages)
        return ERR_OK;
    assert(want <= bt->max_pages);
    if (want - bt->n_pages > pool->n_free)
        return ERR_NO_PAGES;
    while (bt->n_pages < want) {
        uint32_t page = pool->free_page[--pool->n_free];
        assert(pool->holders[page] == 0);
        pool->holders[page] = 1;
        bt->page[bt->n_pages++] = page;
    }
    return ERR_OK;
}

void kv_pool_share(struct kv_pool *pool, struct block_table *bt, uint32_t page)
{
    assert(bt->n_pages < bt->max_pages);
    kv_pool_hold(pool, page);
    bt->page[bt->n_pages++] = page;
}

void kv_pool_release(struct kv_pool *pool, struct block_table *bt)
{
    while (bt->n_pages)
        kv_pool_drop(pool, bt->page[--bt->n_pages]);
}

void kv_pool_hold(struct kv_pool *pool, uint32_t page)
{
    assert(page < pool->n_pages);
    assert(pool->holders[page] > 0);
    pool->holders[page]++;
}

void kv_pool_drop(struct kv_pool *pool, uint32_t page)
{
    assert(page < pool->n_pages);
    assert(pool->holders[page] > 0);
    if (--pool->holders[page])
        return;
    assert(pool->n_free < pool->n_pages);
    pool->free_page[pool->n_free++] = page;
}

uint32_t kv_pool_n_pages(const struct kv_pool *pool)
{
    return pool->n_pages;
}

uint32_t kv_pool_n_free(const struct kv_pool *pool)
{
    return pool->n_free;
}

uint32_t kv_pool_holders(const struct kv_pool *pool, uint32_t page)
{
    assert(page < pool->n_pages);
    return pool->holders[page];
}

void kv_pool_check(const struct kv_pool *pool)
{
    uint32_t n_held = 0;
    for (uint32_t i = 0; i < pool->n_pages; i++)
        n_held += pool->holders[i] > 0;
    assert(pool->n_free + n_held == pool->n_pages);
    /* As many free pages as list entries, each without a holder: doubles would leave one out, which
     * the sum of distinct pages shows. */
    uint64_t sum_list = 0, sum_free = 0;
    for (uint32_t i = 0; i < pool->n_free; i++) {
        assert(pool->holders[pool->free_page[i]] == 0);
        sum_list += (uint64_t)pool->free_page[i] * pool->free_page[i] + 1;
    }
    for (uint32_t i = 0; i < pool->n_pages; i++)
        sum_free += pool->holders[i] ? 0 : (uint64_t)i * i + 1;
    assert(sum_list == sum_free);
}
