/* prefix_cache.c - see prefix_cache.h. */
#include "sched/prefix_cache.h"

#include "base/fault.h"
#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

struct prefix_cache {
    struct kv_pool *pool;
    struct prefix_node *node; /* [n_nodes] */
    struct prefix_node *free_node;
    struct prefix_node **bucket;         /* [n_buckets], a power of two */
    struct prefix_node *oldest, *newest; /* idle */
    uint32_t n_nodes, n_buckets, n_used, n_idle;
};

enum err_code prefix_cache_create(struct prefix_cache **out, struct kv_pool *pool, uint32_t n_nodes,
                                  struct err *e)
{
    struct prefix_cache *c = FAULT("prefix_cache.create") ? NULL : calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ERR_NOMEM, "prefix cache");
    c->pool = pool;
    c->n_nodes = n_nodes;
    c->n_buckets = 16;
    while (c->n_buckets < n_nodes && c->n_buckets < 1u << 30)
        c->n_buckets *= 2;
    c->node = calloc(n_nodes ? n_nodes : 1, sizeof *c->node);
    c->bucket = FAULT("prefix_cache.buckets") ? NULL : calloc(c->n_buckets, sizeof *c->bucket);
    if (!c->node || !c->bucket) {
        free(c->node);
        free(c->bucket);
        free(c);
        return err_set(e, ERR_NOMEM, "prefix cache: %u nodes", n_nodes);
    }
    for (uint32_t i = n_nodes; i-- > 0;) {
        c->node[i].hash_next = c->free_node;
        c->free_node = &c->node[i];
    }
    *out = c;
    return ERR_OK;
}

void prefix_cache_destroy(struct prefix_cache *c)
{
    if (!c)
        return;
    prefix_cache_evict(c, UINT32_MAX);
    assert(c->n_used == 0);
    free(c->node);
    free(c->bucket);
    free(c);
}

static bool same_key(const struct prefix_key *a, const struct prefix_key *b)
{
    return a->salt == b->salt && a->private_id == b->private_id && a->top_k == b->top_k;
}

static uint64_t node_hash(const struct prefix_key *key, const struct prefix_node *parent,
                          const uint32_t *token)
{
    uint64_t above = parent
                         ? parent->hash
                         : hash_mix(key->salt ^ hash_mix(key->private_id ^ hash_mix(key->top_k)));
    return hash_bytes(above, token, KV_PAGE_TOKENS * sizeof *token);
}

static struct prefix_node *lookup(const struct prefix_cache *c, const struct prefix_key *key,
                                  const struct prefix_node *parent, const uint32_t *token,
                                  uint64_t hash)
{
    for (struct prefix_node *n = c->bucket[hash & (c->n_buckets - 1)]; n; n = n->hash_next) {
        if (n->hash == hash && n->parent == parent && same_key(&n->key, key) &&
            memcmp(n->token, token, sizeof n->token) == 0)
            return n;
    }
    return NULL;
}

struct prefix_node *prefix_cache_find(const struct prefix_cache *c, const struct prefix_key *key,
                                      const struct prefix_node *parent, const uint32_t *token)
{
    return lookup(c, key, parent, token, node_hash(key, parent, token));
}

struct prefix_node *prefix_cache_add(struct prefix_cache *c, const struct prefix_key *key,
                                     struct prefix_node *parent, const uint32_t *token,
                                     uint32_t owner)
{
    struct prefix_node *n = c->free_node;
    uint64_t hash = node_hash(key, parent, token);
    debug_assert(!lookup(c, key, parent, token, hash));
    assert(n);
    assert(!parent || parent->n_users > 0);
    c->free_node = n->hash_next;
    c->n_used++;
    *n = (struct prefix_node){.key = *key,
                              .parent = parent,
                              .hash = hash,
                              .n_users = 1,
                              .page = UINT32_MAX,
                              .owner = owner,
                              .used = true};
    memcpy(n->token, token, sizeof n->token);
    if (parent)
        parent->n_children++;
    struct prefix_node **b = &c->bucket[hash & (c->n_buckets - 1)];
    n->hash_next = *b;
    *b = n;
    return n;
}

void prefix_cache_set_ready(struct prefix_cache *c, struct prefix_node *node, uint32_t page)
{
    assert(node->used);
    assert(!node->ready);
    assert(!node->parent || node->parent->ready);
    kv_pool_hold(c->pool, page);
    node->page = page;
    node->ready = true;
}

static void unlink_idle(struct prefix_cache *c, struct prefix_node *n)
{
    *(n->older ? &n->older->newer : &c->oldest) = n->newer;
    *(n->newer ? &n->newer->older : &c->newest) = n->older;
    n->older = n->newer = NULL;
    assert(c->n_idle > 0);
    c->n_idle--;
}

static void link_newest(struct prefix_cache *c, struct prefix_node *n)
{
    n->older = c->newest;
    n->newer = NULL;
    *(c->newest ? &c->newest->newer : &c->oldest) = n;
    c->newest = n;
    c->n_idle++;
}

static void remove_node(struct prefix_cache *c, struct prefix_node *n)
{
    struct prefix_node **at = &c->bucket[n->hash & (c->n_buckets - 1)];
    assert(n->n_users == 0);
    assert(n->n_children == 0);
    while (*at != n)
        at = &(*at)->hash_next;
    *at = n->hash_next;
    if (n->parent)
        n->parent->n_children--;
    if (n->ready)
        kv_pool_drop(c->pool, n->page);
    n->used = n->ready = false;
    n->parent = NULL;
    n->hash_next = c->free_node;
    c->free_node = n;
    assert(c->n_used > 0);
    c->n_used--;
}

void prefix_cache_use(struct prefix_cache *c, struct prefix_node *node)
{
    assert(node->used);
    assert(!node->parent || node->parent->n_users > 0);
    if (node->n_users++ == 0) {
        assert(node->ready);
        unlink_idle(c, node);
    }
}

void prefix_cache_leave(struct prefix_cache *c, struct prefix_node *node)
{
    assert(node->used);
    assert(node->n_users > 0);
    if (--node->n_users)
        return;
    if (node->ready && !node->key.private_id)
        link_newest(c, node);
    else
        remove_node(c, node);
}

uint32_t prefix_cache_evict(struct prefix_cache *c, uint32_t n)
{
    uint32_t freed = 0;
    while (freed < n && c->oldest) {
        struct prefix_node *victim = c->oldest;
        unlink_idle(c, victim);
        remove_node(c, victim); /* asserts that it is a leaf */
        freed++;
    }
    return freed;
}

uint32_t prefix_cache_n_idle(const struct prefix_cache *c)
{
    return c->n_idle;
}

uint32_t prefix_cache_n_nodes(const struct prefix_cache *c)
{
    return c->n_used;
}

void prefix_cache_check(const struct prefix_cache *c, uint32_t *held)
{
    uint32_t n_used = 0, n_idle = 0, n_children = 0, n_below = 0, n_listed = 0;
    for (uint32_t i = 0; i < c->n_nodes; i++) {
        const struct prefix_node *n = &c->node[i];
        if (!n->used)
            continue;
        n_used++;
        n_children += n->n_children;
        if (n->ready)
            held[n->page]++;
        if (n->parent) {
            n_below++;
            assert(n->parent->used);
            assert(n->parent->n_users >= n->n_users);
            assert(n->parent->ready || !n->ready);
        }
        if (n->n_users == 0) {
            n_idle++;
            assert(n->ready);
            assert(kv_pool_holders(c->pool, n->page) == 1);
        }
        assert(prefix_cache_find(c, &n->key, n->parent, n->token) == n);
    }
    for (const struct prefix_node *n = c->oldest; n; n = n->newer) {
        n_listed++;
        assert(n->n_users == 0);
    }
    assert(n_used == c->n_used);
    assert(n_idle == c->n_idle);
    assert(n_listed == n_idle);
    assert(n_children == n_below);
}
