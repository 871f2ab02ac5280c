/* placement.c - which group a request enters: the rule of scheduler.h. */
#include "sched/scheduler_impl.h"

enum { SEAT_TOKENS = 64, EVICTED_TOKENS = 16 };

uint64_t worst_home_pages(const struct gen_request *r, bool decodes)
{
    uint64_t total = kv_pages_for(decodes ? sequence_kv_tokens(r) : r->n_prompt);
    uint64_t shared = sequence_shared_pages(r);
    return shared + r->n * (total - shared);
}

uint64_t worst_target_pages(const struct gen_request *r)
{
    return r->n * (uint64_t)kv_pages_for(sequence_kv_tokens(r));
}

static bool has_seats(const struct scheduler *s, const struct group *g, const struct request *r)
{
    return r->ask->n <= s->cfg.max_seqs - g->n_seats;
}

/* Tokens of the prompts that are there and not run yet. */
static uint64_t tokens_ahead(const struct group *g)
{
    uint64_t n = 0;
    for (const struct sequence *q = g->prefill.head; q; q = q->next)
        n += q->n_prompt - q->n_computed;
    return n;
}

/* Whether r's prompt can be run in g now, and how dear that is. */
static bool fits_home(const struct scheduler *s, const struct group *g, const struct request *r,
                      uint64_t *cost)
{
    uint32_t n_idle = 0;
    if (!group_prefills(g) || g->redo.head || !has_seats(s, g, r))
        return false;
    uint32_t n_found = pages_found(g, &r->key, r->ask, &n_idle);
    /* Idle pages that it finds stay, so they are no room any more. */
    uint64_t need = worst_home_pages(r->ask, group_decodes(g)) - n_found + n_idle + g->n_promised;
    if (group_room(g) < need)
        return false;
    if (s->n_groups == 1)
        return true; /* no other could be better */
    uint64_t n_free = kv_pool_n_free(g->pool), n_evicted = need > n_free ? need - n_free : 0;
    *cost = r->ask->n_prompt - (uint64_t)n_found * KV_PAGE_TOKENS + tokens_ahead(g) +
            (uint64_t)SEAT_TOKENS * g->n_seats + EVICTED_TOKENS * n_evicted;
    return true;
}

static uint64_t unpromised(const struct group *g)
{
    return group_room(g) - g->n_promised;
}

/* Where a sequence of r that was prefilled elsewhere can decode: the fewest sequences, then the
 * most room, then the lowest index. NULL: nowhere now. */
static struct group *find_target(const struct scheduler *s, const struct request *r,
                                 const struct group *kept)
{
    struct group *best = NULL;
    for (uint32_t i = 0; i < s->n_groups; i++) {
        struct group *g = &s->group[i];
        if (g == kept || !group_decodes(g) || !has_seats(s, g, r) ||
            unpromised(g) < worst_target_pages(r->ask))
            continue;
        if (!best || g->n_seats < best->n_seats ||
            (g->n_seats == best->n_seats && unpromised(g) > unpromised(best)))
            best = g;
    }
    return best;
}

bool place_request(const struct scheduler *s, const struct request *r, const struct request *head,
                   struct seat_pair *out)
{
    const struct seat_pair *kept = &head->hold;
    uint64_t best_cost = 0;
    struct group *target = NULL;
    bool looked = false;
    *out = (struct seat_pair){0};
    for (uint32_t i = 0; i < s->n_groups; i++) {
        struct group *g = &s->group[i];
        uint64_t cost = 0;
        if ((r != head && (g == kept->home || g == kept->target)) || !fits_home(s, g, r, &cost))
            continue;
        if (out->home &&
            (cost > best_cost || (cost == best_cost && unpromised(g) <= unpromised(out->home))))
            continue;
        if (!group_decodes(g) && !looked) {
            target = find_target(s, r, r == head ? NULL : kept->target);
            looked = true;
        }
        if (!group_decodes(g) && !target)
            continue;
        *out = (struct seat_pair){.home = g, .target = group_decodes(g) ? g : target};
        best_cost = cost;
    }
    return out->home;
}

struct seat_pair place_hold(const struct scheduler *s, const struct request *r)
{
    struct seat_pair p = {0};
    bool may_move = worst_target_pages(r->ask) <= s->cfg.n_pages;
    for (uint32_t i = 0; i < s->n_groups; i++) {
        struct group *g = &s->group[i];
        if (group_prefills(g) && (may_move || group_decodes(g)) &&
            (!p.home || unpromised(g) > unpromised(p.home)))
            p.home = g;
        if (group_decodes(g) && (!p.target || unpromised(g) > unpromised(p.target)))
            p.target = g;
    }
    assert(p.home);
    if (group_decodes(p.home))
        p.target = p.home;
    return p;
}
