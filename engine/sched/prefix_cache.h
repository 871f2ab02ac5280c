/* prefix_cache.h - whole pages of tokens that several sequences read, and those kept for the next
 * one.
 *
 * A tree: each node is one page of KV_PAGE_TOKENS tokens below the page before it; the first page
 * of a chain hangs below a key (salt, top-k, and a private id for chains that only one request may
 * see). Nodes are found by a hash of parent and tokens, and the tokens themselves are always
 * compared.
 *
 * A node is `pending` while its owner (one sequence) computes the page, and `ready` afterwards; who
 * finds a pending node waits for it instead of computing the page again. A node has users: the
 * sequences whose block table has, or will have, its page. A ready node without users is idle: only
 * the cache holds its page, and the page goes when memory is needed, the least recently used first.
 *
 * Thread:    the scheduler's.
 * Invariant: a user of a node is a user of its parent. So an idle node has only idle nodes below
 * it, and as a chain is let go from its end, the oldest idle node is always a leaf. A ready node's
 * page is held once by the cache and once by each user that has adopted it. Bound:     n_nodes,
 * reserved at creation. A ready node has a page of its own, a pending one stands for a page
 * promised to its owner, so twice the number of pages is enough.
 */
#ifndef GAZE_SCHED_PREFIX_CACHE_H
#define GAZE_SCHED_PREFIX_CACHE_H

#include "sched/kv_pool.h"

#include <stdbool.h>

struct prefix_cache; /* opaque */

struct prefix_key {
    uint64_t salt;
    uint64_t private_id; /* 0: anyone's; else only chains with the same id meet, and none is kept */
    uint32_t top_k;
};

struct prefix_node { /* read it, change it by the functions below */
    uint32_t token[KV_PAGE_TOKENS];
    struct prefix_key key;
    struct prefix_node *parent;        /* NULL: the first page of a chain */
    struct prefix_node *hash_next;     /* or the next free node */
    struct prefix_node *older, *newer; /* among the idle */
    uint64_t hash;
    uint32_t n_users, n_children;
    uint32_t page;  /* valid when ready */
    uint32_t owner; /* the sequence that computes it, while pending */
    bool ready, used;
};

/* ERR_NOMEM. pool outlives the cache. */
MUST_CHECK enum err_code prefix_cache_create(struct prefix_cache **out, struct kv_pool *pool,
                                             uint32_t n_nodes, struct err *e);
void prefix_cache_destroy(
    struct prefix_cache *c); /* lets idle pages go; asserts that all are idle */

/* The node below parent (NULL: below the key) with these KV_PAGE_TOKENS tokens, or NULL. */
struct prefix_node *prefix_cache_find(const struct prefix_cache *c, const struct prefix_key *key,
                                      const struct prefix_node *parent, const uint32_t *token);
/* A new pending node with one user, its owner. There must be none with these tokens yet. */
struct prefix_node *prefix_cache_add(struct prefix_cache *c, const struct prefix_key *key,
                                     struct prefix_node *parent, const uint32_t *token,
                                     uint32_t owner);
/* The owner has computed the page: the cache becomes a holder. */
void prefix_cache_set_ready(struct prefix_cache *c, struct prefix_node *node, uint32_t page);

void prefix_cache_use(struct prefix_cache *c, struct prefix_node *node); /* one more user */
/* One user fewer; a chain is let go from its end. The last one leaves a ready node idle; a pending
 * or private node goes. */
void prefix_cache_leave(struct prefix_cache *c, struct prefix_node *node);

/* Frees up to n idle pages, the oldest first; returns how many. */
uint32_t prefix_cache_evict(struct prefix_cache *c, uint32_t n);
uint32_t prefix_cache_n_idle(const struct prefix_cache *c);
uint32_t prefix_cache_n_nodes(const struct prefix_cache *c); /* pending, used and idle */
/* Asserts the invariants; adds the cache's own holds to held[page]. O(n_nodes), for tests. */
void prefix_cache_check(const struct prefix_cache *c, uint32_t *held);

#endif
