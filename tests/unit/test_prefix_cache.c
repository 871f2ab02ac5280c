/* test_prefix_cache.c - chains are found by their tokens, kept by their users, and go oldest first.
 */
#include "base/fault.h"
#include "sched/prefix_cache.h"
#include "test.h"

enum { N_PAGES = 64, CHAIN = 6 };

struct rig {
    struct kv_pool *pool;
    struct prefix_cache *cache;
};

static void rig_open(struct rig *r, uint32_t n_pages)
{
    struct err e;
    CHECK_OK(kv_pool_create(&r->pool, n_pages, &e), e);
    CHECK_OK(prefix_cache_create(&r->cache, r->pool, 2 * n_pages, &e), e);
}

static void rig_close(struct rig *r)
{
    prefix_cache_destroy(r->cache);
    kv_pool_destroy(r->pool);
}

static void rig_check(const struct rig *r)
{
    uint32_t held[N_PAGES] = {0};
    kv_pool_check(r->pool);
    prefix_cache_check(r->cache, held);
}

static const uint32_t *page_tokens(uint32_t what)
{
    static uint32_t token[8][KV_PAGE_TOKENS];
    static unsigned turn;
    uint32_t *t = token[turn++ % 8];
    for (uint32_t i = 0; i < KV_PAGE_TOKENS; i++)
        t[i] = what * 1000 + i;
    return t;
}

/* A ready node with a page of its own, held by nobody but the cache and its one user. */
static struct prefix_node *make_ready(struct rig *r, const struct prefix_key *key,
                                      struct prefix_node *parent, uint32_t what)
{
    uint32_t page;
    struct block_table bt = {&page, 0, 1};
    struct prefix_node *n = prefix_cache_add(r->cache, key, parent, page_tokens(what), 0);
    CHECK(kv_pool_reserve(r->pool, &bt, 1) == ERR_OK);
    prefix_cache_set_ready(r->cache, n, page);
    kv_pool_release(r->pool, &bt);
    CHECK(kv_pool_holders(r->pool, n->page) == 1);
    return n;
}

TEST(prefix_cache_finds_by_tokens_parent_and_key)
{
    struct rig r;
    struct prefix_key key = {.salt = 1, .top_k = 128}, other = key;
    rig_open(&r, N_PAGES);
    struct prefix_node *a = make_ready(&r, &key, NULL, 1), *b = make_ready(&r, &key, a, 2);
    CHECK(prefix_cache_find(r.cache, &key, NULL, page_tokens(1)) == a);
    CHECK(prefix_cache_find(r.cache, &key, a, page_tokens(2)) == b);
    CHECK(!prefix_cache_find(r.cache, &key, NULL, page_tokens(2)));
    CHECK(!prefix_cache_find(r.cache, &key, b, page_tokens(2)));
    other.salt = 2;
    CHECK(!prefix_cache_find(r.cache, &other, NULL, page_tokens(1)));
    other = key;
    other.top_k = 64;
    CHECK(!prefix_cache_find(r.cache, &other, NULL, page_tokens(1)));
    other = key;
    other.private_id = 9;
    CHECK(!prefix_cache_find(r.cache, &other, NULL, page_tokens(1)));
    rig_check(&r);
    prefix_cache_leave(r.cache, b);
    prefix_cache_leave(r.cache, a);
    CHECK(prefix_cache_n_idle(r.cache) == 2);
    rig_close(&r);
}

/* A hash alone proves nothing: with equal hashes the tokens still decide. */
TEST(prefix_cache_compares_tokens)
{
    struct rig r;
    struct prefix_key key = {.top_k = 1};
    rig_open(&r, N_PAGES);
    struct prefix_node *a = make_ready(&r, &key, NULL, 1);
    a->token[17]++; /* as if another text had the same hash */
    CHECK(!prefix_cache_find(r.cache, &key, NULL, page_tokens(1)));
    a->token[17]--;
    CHECK(prefix_cache_find(r.cache, &key, NULL, page_tokens(1)) == a);
    prefix_cache_leave(r.cache, a);
    rig_close(&r);
}

TEST(prefix_cache_evicts_the_oldest_leaf_first)
{
    struct rig r;
    struct prefix_key key = {.top_k = 1};
    struct prefix_node *n[4], *m[2];
    rig_open(&r, N_PAGES);
    for (uint32_t i = 0; i < 4; i++)
        n[i] = make_ready(&r, &key, i ? n[i - 1] : NULL, i);
    for (uint32_t i = 0; i < 2; i++)
        m[i] = make_ready(&r, &key, i ? m[i - 1] : NULL, 10 + i);
    CHECK(prefix_cache_evict(r.cache, 10) == 0); /* all are in use */
    for (uint32_t i = 4; i-- > 0;)
        prefix_cache_leave(r.cache, n[i]);
    for (uint32_t i = 2; i-- > 0;)
        prefix_cache_leave(r.cache, m[i]);
    prefix_cache_use(r.cache, n[0]); /* read again: now the newest of all */
    prefix_cache_leave(r.cache, n[0]);
    CHECK(prefix_cache_evict(r.cache, 2) == 2);
    CHECK(!prefix_cache_find(r.cache, &key, n[2], page_tokens(3)));
    CHECK(!prefix_cache_find(r.cache, &key, n[1], page_tokens(2)));
    CHECK(prefix_cache_find(r.cache, &key, n[0], page_tokens(1)) == n[1]);
    CHECK(prefix_cache_evict(r.cache, 3) == 3);
    CHECK(!prefix_cache_find(r.cache, &key, NULL, page_tokens(10)));
    CHECK(prefix_cache_find(r.cache, &key, NULL, page_tokens(0)) == n[0]);
    rig_check(&r);
    CHECK(prefix_cache_evict(r.cache, 3) == 1);
    CHECK(kv_pool_n_free(r.pool) == N_PAGES && prefix_cache_n_nodes(r.cache) == 0);
    rig_close(&r);
}

TEST(prefix_cache_keeps_nothing_pending_or_private)
{
    struct rig r;
    struct prefix_key open = {.top_k = 1}, own = {.top_k = 1, .private_id = 3};
    rig_open(&r, N_PAGES);
    struct prefix_node *p = prefix_cache_add(r.cache, &open, NULL, page_tokens(1), 5);
    CHECK(!p->ready && p->owner == 5 && p->n_users == 1);
    prefix_cache_use(r.cache, p);
    prefix_cache_leave(r.cache, p);
    CHECK(prefix_cache_n_nodes(r.cache) == 1);
    prefix_cache_leave(r.cache, p);
    CHECK(prefix_cache_n_nodes(r.cache) == 0);
    struct prefix_node *q = make_ready(&r, &own, NULL, 1);
    prefix_cache_leave(r.cache, q);
    CHECK(prefix_cache_n_nodes(r.cache) == 0 && kv_pool_n_free(r.pool) == N_PAGES);
    rig_close(&r);
}

/* Goal:   whatever chains come and go, the tree, the list of idle nodes and the pool agree.
 * Method: sequences that walk random chains of few different pages and leave them again. */
TEST(prefix_cache_random_life)
{
    enum { N_SEQS = 8 };
    struct rng g = {test_seed()};
    struct rig r;
    struct prefix_key key = {.top_k = 1};
    struct prefix_node *chain[N_SEQS][CHAIN];
    uint32_t n[N_SEQS] = {0}, n_found = 0;
    rig_open(&r, N_PAGES);
    for (int step = 0; step < 20000; step++) {
        uint32_t s = rng_below(&g, N_SEQS);
        if (n[s]) {
            while (n[s])
                prefix_cache_leave(r.cache, chain[s][--n[s]]);
        } else {
            for (uint32_t depth = 1 + rng_below(&g, CHAIN); n[s] < depth; n[s]++) {
                struct prefix_node *above = n[s] ? chain[s][n[s] - 1] : NULL, *node;
                uint32_t what = rng_below(&g, 3);
                node = prefix_cache_find(r.cache, &key, above, page_tokens(what));
                if (node) {
                    prefix_cache_use(r.cache, node);
                    n_found++;
                } else {
                    if (!kv_pool_n_free(r.pool))
                        CHECK(prefix_cache_evict(r.cache, 1) == 1);
                    node = make_ready(&r, &key, above, what);
                }
                chain[s][n[s]] = node;
            }
        }
        rig_check(&r);
    }
    CHECK(n_found > 1000);
    for (uint32_t s = 0; s < N_SEQS; s++)
        while (n[s])
            prefix_cache_leave(r.cache, chain[s][--n[s]]);
    rig_close(&r);
}

TEST(prefix_cache_create_without_memory)
{
    static const char *const place[] = {"prefix_cache.create", "prefix_cache.buckets"};
    struct kv_pool *pool;
    struct err e;
    CHECK_OK(kv_pool_create(&pool, 4, &e), e);
    for (int i = 0; i < 2; i++) {
        struct prefix_cache *c = NULL;
        fault_arm(place[i]);
        CHECK(prefix_cache_create(&c, pool, 8, &e) == ERR_NOMEM && !c);
        fault_arm(NULL);
    }
    kv_pool_destroy(pool);
}
