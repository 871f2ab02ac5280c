/* pages.c - how a sequence comes to its pages: promised, adopted from others, taken, published,
 * moved, given back. All that touches kv_pool, prefix_cache and n_promised at once is here. */
#include "sched/scheduler_impl.h"

static struct group *home_of(struct scheduler *s, const struct sequence *seq)
{
    return &s->group[seq->group];
}

uint32_t pages_found(const struct group *g, const struct prefix_key *key,
                     const struct gen_request *r, uint32_t *n_idle)
{
    uint32_t n = 0, max = sequence_shared_pages(r);
    const struct prefix_node *node = NULL;
    *n_idle = 0;
    for (; n < max; n++) {
        node = prefix_cache_find(g->cache, key, node, r->prompt + (size_t)n * KV_PAGE_TOKENS);
        if (!node)
            break;
        *n_idle += node->n_users == 0;
    }
    return n;
}

void pages_attach(struct scheduler *s, struct sequence *seq)
{
    struct group *g = home_of(s, seq);
    const struct prefix_key *key = &seq->req->key;
    uint32_t max = sequence_shared_pages(seq->ask), n_found = 0;
    struct prefix_node *node = NULL;
    for (uint32_t i = 0; i < max; i++) {
        const uint32_t *token = seq->token + (size_t)i * KV_PAGE_TOKENS;
        struct prefix_node *next = prefix_cache_find(g->cache, key, node, token);
        if (next) {
            prefix_cache_use(g->cache, next);
            n_found++;
        } else {
            next = prefix_cache_add(g->cache, key, node, token, seq->index);
        }
        seq->node[seq->n_nodes++] = node = next;
    }
    seq->n_promised = seq->table.max_pages - n_found;
    g->n_promised += seq->n_promised;
    if (seq->target == seq->group)
        return;
    seq->n_moved_promised = seq->moved.max_pages;
    s->group[seq->target].n_promised += seq->n_moved_promised;
}

/* n_tokens of bt have slots, taken out of *promised. */
static void take_pages(struct group *g, struct block_table *bt, uint32_t n_tokens,
                       uint32_t *promised)
{
    uint32_t n_free = kv_pool_n_free(g->pool), n = kv_pages_for(n_tokens) - bt->n_pages;
    assert(n <= *promised);
    if (n > n_free)
        prefix_cache_evict(g->cache, n - n_free);
    enum err_code rc = kv_pool_reserve(g->pool, bt, n_tokens);
    assert(rc == ERR_OK);
    (void)rc;
    *promised -= n;
    g->n_promised -= n;
}

void pages_reserve(struct scheduler *s, struct sequence *seq, uint32_t n_tokens, uint64_t now_us)
{
    if (kv_pages_for(n_tokens) <= seq->table.n_pages)
        return;
    sequence_count_pages(seq, now_us);
    take_pages(home_of(s, seq), &seq->table, n_tokens, &seq->n_promised);
}

void pages_reserve_target(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    if (kv_pages_for(seq->n_computed) <= seq->moved.n_pages)
        return; /* of a move that failed: they are overwritten */
    sequence_count_pages(seq, now_us);
    take_pages(&s->group[seq->target], &seq->moved, seq->n_computed, &seq->n_moved_promised);
}

uint32_t pages_adopt(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    uint32_t i = seq->n_computed / KV_PAGE_TOKENS, n_adopted = 0;
    while (i < seq->n_nodes && seq->node[i]->ready) {
        assert(seq->table.n_pages == i);
        assert(seq->n_computed == i * KV_PAGE_TOKENS);
        sequence_count_pages(seq, now_us);
        kv_pool_share(home_of(s, seq)->pool, &seq->table, seq->node[i]->page);
        seq->n_computed += KV_PAGE_TOKENS;
        n_adopted++;
        i++;
    }
    if (seq->choice == 0 && n_adopted && !seq->n_redos) {
        uint32_t n = n_adopted * KV_PAGE_TOKENS;
        seq->req->usage.cached_tokens += n;
        s->stats.cached_tokens += n;
        s->stats.prefix_hits += n;
    }
    /* Up to the next page that someone else computes, or has computed meanwhile. */
    uint32_t own = i;
    while (own < seq->n_nodes && !seq->node[own]->ready && seq->node[own]->owner == seq->index)
        own++;
    uint32_t end = own < seq->n_nodes ? own * KV_PAGE_TOKENS : seq->n_prompt;
    return end > seq->n_computed ? end - seq->n_computed : 0;
}

/* The whole page after the chain joins it. When the tree has one with the same tokens already, ours
 * is exchanged for that one: both have the same bits, and one is enough. False: it cannot join. */
static bool extend_chain(struct scheduler *s, struct sequence *seq)
{
    struct group *g = home_of(s, seq);
    uint32_t i = seq->n_nodes;
    struct prefix_node *tail = i ? seq->node[i - 1] : NULL;
    const uint32_t *token = seq->token + (size_t)i * KV_PAGE_TOKENS;
    struct prefix_node *node = prefix_cache_find(g->cache, &seq->req->key, tail, token);
    if (node && !node->ready)
        return false; /* its owner is writing its own page */
    if (!node) {
        node = prefix_cache_add(g->cache, &seq->req->key, tail, token, seq->index);
        prefix_cache_set_ready(g->cache, node, seq->table.page[i]);
    } else {
        prefix_cache_use(g->cache, node);
        kv_pool_hold(g->pool, node->page);
        kv_pool_drop(g->pool, seq->table.page[i]);
        seq->table.page[i] = node->page;
    }
    seq->node[seq->n_nodes++] = node;
    return true;
}

void pages_publish(struct scheduler *s, struct sequence *seq)
{
    uint32_t n_whole = seq->n_computed / KV_PAGE_TOKENS;
    assert(!seq->in_flight);
    for (uint32_t i = 0; i < seq->n_nodes && i < n_whole; i++) {
        struct prefix_node *node = seq->node[i];
        if (node->ready)
            continue;
        assert(node->owner == seq->index);
        prefix_cache_set_ready(home_of(s, seq)->cache, node, seq->table.page[i]);
    }
    uint32_t n_canonical =
        (seq->n_computed < seq->canonical_tokens ? seq->n_computed : seq->canonical_tokens) /
        KV_PAGE_TOKENS;
    while (seq->publish && seq->n_nodes < n_canonical)
        seq->publish = extend_chain(s, seq);
}

/* Someone else who waits for the node, best one whose request goes on. */
static struct sequence *find_heir(struct scheduler *s, const struct sequence *seq, uint32_t depth)
{
    struct sequence *heir = NULL;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct sequence *h = &s->sequence[i];
        if (h == seq || h->state == SEQ_FREE || h->n_nodes <= depth ||
            h->node[depth] != seq->node[depth])
            continue;
        heir = h;
        if (!request_is_over(h->req))
            break;
    }
    return heir;
}

void pages_release(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct group *g = home_of(s, seq);
    assert(!seq->in_flight);
    sequence_count_pages(seq, now_us);
    while (seq->n_nodes) {
        uint32_t depth = seq->n_nodes - 1;
        struct prefix_node *node = seq->node[depth];
        if (!node->ready && node->owner == seq->index && node->n_users > 1) {
            struct sequence *heir = find_heir(s, seq, depth);
            assert(heir);
            node->owner = heir->index;
            heir->n_promised++; /* what seq gives back below: taken or still promised */
            g->n_promised++;
        }
        prefix_cache_leave(g->cache, node);
        seq->n_nodes--;
    }
    kv_pool_release(g->pool, &seq->table);
    assert(g->n_promised >= seq->n_promised);
    g->n_promised -= seq->n_promised;
    seq->n_promised = 0;
    s->try_admission = true;
}

void pages_release_target(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct group *t = &s->group[seq->target];
    if (seq->target == seq->group)
        return;
    assert(!seq->in_flight);
    sequence_count_pages(seq, now_us);
    kv_pool_release(t->pool, &seq->moved);
    assert(t->n_promised >= seq->n_moved_promised);
    t->n_promised -= seq->n_moved_promised;
    seq->n_moved_promised = 0;
    s->try_admission = true;
}

void pages_arrive(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct group *g = home_of(s, seq);
    pages_release(s, seq, now_us);
    assert(g->n_seats > 0);
    g->n_seats--;
    seq->table = seq->moved;
    seq->moved = (struct block_table){0};
    seq->n_promised = seq->n_moved_promised;
    seq->n_moved_promised = 0;
    seq->group = seq->target;
    seq->publish = false;
}

void pages_discard(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct group *t = &s->group[seq->target];
    uint32_t n = seq->moved.n_pages;
    sequence_count_pages(seq, now_us);
    kv_pool_release(t->pool, &seq->moved);
    seq->n_moved_promised += n;
    t->n_promised += n;
}

bool pages_redo(struct scheduler *s, struct sequence *seq)
{
    struct group *g = home_of(s, seq);
    uint32_t n = kv_pages_for(seq->n_prompt);
    assert(seq->state == SEQ_REDO);
    assert(!seq->n_promised && !seq->n_nodes && !seq->table.n_pages);
    if (group_room(g) < (uint64_t)g->n_promised + n)
        return false;
    seq->n_promised = n;
    g->n_promised += n;
    return true;
}
