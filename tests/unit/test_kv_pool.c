/* test_kv_pool.c - pages are never lost and never handed out twice. */
#include "base/fault.h"
#include "sched/kv_pool.h"
#include "test.h"

enum { N_PAGES = 40, N_SEQS = 6, SEQ_PAGES = 16 };

/* Goal:   no order of reserve and release loses a page or hands one out twice.
 * Method: a random life over few pages, so that running out is common; the model is one counter. */
TEST(kv_pool_random_life)
{
    struct rng rng = {test_seed()};
    struct kv_pool *pool;
    struct err e;
    uint32_t storage[N_SEQS][SEQ_PAGES], held = 0;
    struct block_table bt[N_SEQS];
    CHECK_OK(kv_pool_create(&pool, N_PAGES, &e), e);
    for (int i = 0; i < N_SEQS; i++)
        bt[i] = (struct block_table){.page = storage[i], .max_pages = SEQ_PAGES};
    for (int step = 0; step < 100000; step++) {
        struct block_table *b = &bt[rng_below(&rng, N_SEQS)];
        uint32_t want = 1 + rng_below(&rng, SEQ_PAGES), before = b->n_pages;
        uint32_t tokens = (want - 1) * KV_PAGE_TOKENS + 1 + rng_below(&rng, KV_PAGE_TOKENS);
        if (rng_below(&rng, 4) == 0) {
            held -= before;
            kv_pool_release(pool, b);
        } else if (kv_pool_reserve(pool, b, tokens) == ERR_OK) {
            held += b->n_pages - before;
            CHECK(b->n_pages == (want > before ? want : before));
        } else {
            CHECK(b->n_pages == before && want - before > N_PAGES - held); /* it truly was full */
        }
        kv_pool_check(pool);
        CHECK(kv_pool_n_free(pool) == N_PAGES - held);
    }
    for (int i = 0; i < N_SEQS; i++)
        kv_pool_release(pool, &bt[i]);
    kv_pool_destroy(pool);
}

TEST(kv_pool_tables_never_share_a_page_unasked)
{
    struct kv_pool *pool;
    struct err e;
    uint32_t a_page[8], b_page[8];
    struct block_table a = {a_page, 0, 8}, b = {b_page, 0, 8};
    CHECK_OK(kv_pool_create(&pool, 10, &e), e);
    CHECK(kv_pool_reserve(pool, &a, 5 * KV_PAGE_TOKENS) == ERR_OK);
    CHECK(kv_pool_reserve(pool, &b, 5 * KV_PAGE_TOKENS) == ERR_OK);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 5; k++)
            CHECK(a_page[i] != b_page[k] && (i == k || a_page[i] != a_page[k]));
    CHECK(kv_pool_n_free(pool) == 0);
    CHECK(kv_pool_reserve(pool, &a, 5 * KV_PAGE_TOKENS + 1) == ERR_NO_PAGES);
    kv_pool_release(pool, &a);
    kv_pool_release(pool, &b);
    kv_pool_destroy(pool);
}

TEST(kv_pool_a_shared_page_outlives_its_first_holder)
{
    struct kv_pool *pool;
    struct err e;
    uint32_t a_page[2], b_page[2];
    struct block_table a = {a_page, 0, 2}, b = {b_page, 0, 2};
    CHECK_OK(kv_pool_create(&pool, 2, &e), e);
    CHECK(kv_pool_reserve(pool, &a, 1) == ERR_OK);
    kv_pool_share(pool, &b, a.page[0]);
    CHECK(kv_pool_holders(pool, a_page[0]) == 2);
    kv_pool_release(pool, &a);
    CHECK(kv_pool_n_free(pool) == 1);
    kv_pool_check(pool);
    kv_pool_hold(pool, b.page[0]);
    kv_pool_release(pool, &b);
    CHECK(kv_pool_n_free(pool) == 1);
    kv_pool_drop(pool, b_page[0]);
    CHECK(kv_pool_n_free(pool) == 2);
    kv_pool_destroy(pool);
}

TEST(kv_pool_create_without_memory)
{
    static const char *const place[] = {"kv_pool.create", "kv_pool.holders"};
    for (int i = 0; i < 2; i++) {
        struct kv_pool *pool = NULL;
        struct err e;
        fault_arm(place[i]);
        CHECK(kv_pool_create(&pool, 4, &e) == ERR_NOMEM && !pool);
        fault_arm(NULL);
    }
}
