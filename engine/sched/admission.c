/* admission.c - who may enter: worst case, promised as a whole, the head of the queue first. */
#include "sched/scheduler_impl.h"

#include "base/log.h"

enum { MAX_LOOK_BEHIND = 16 /* how far behind one that does not fit others are tried */ };

/* Pages that some group must have for it: where it prefills, where it decodes, or does both. */
static uint64_t needed_pages(const struct scheduler_config *c, const struct gen_request *r)
{
    uint64_t least = UINT64_MAX, home = worst_home_pages(r, false), target = worst_target_pages(r);
    for (uint32_t i = 0; i < scheduler_n_groups(c); i++) {
        uint64_t both = c->role[i] == GROUP_BOTH      ? worst_home_pages(r, true)
                        : c->role[i] == GROUP_PREFILL ? (home > target ? home : target)
                                                      : UINT64_MAX;
        least = both < least ? both : least;
    }
    return least;
}

enum err_code scheduler_can_ever_fit(const struct scheduler_config *cfg,
                                     const struct gen_request *r, struct err *e)
{
    if (r->n_prompt < 1)
        return err_set(e, ERR_INVALID, "the prompt has no token");
    if (r->n < 1 || r->n > REQUEST_MAX_N || r->n > cfg->max_seqs)
        return err_set(e, ERR_INVALID, "n is %u, at most %u sequences run at once", r->n,
                       cfg->max_seqs < REQUEST_MAX_N ? cfg->max_seqs : (unsigned)REQUEST_MAX_N);
    if (r->n_prompt >= cfg->max_context)
        return err_set(e, ERR_INVALID, "the prompt has %u tokens, the context holds %u",
                       r->n_prompt, cfg->max_context);
    if ((uint64_t)r->n_prompt + r->max_tokens > cfg->max_context)
        return err_set(e, ERR_INVALID,
                       "the prompt has %u tokens and max_tokens is %u, the context holds %u",
                       r->n_prompt, r->max_tokens, cfg->max_context);
    uint64_t n_pages = needed_pages(cfg, r);
    if (n_pages > cfg->n_pages)
        return err_set(e, ERR_INVALID,
                       "the request needs %llu KV pages in the worst case, the pool has %u",
                       (unsigned long long)n_pages, cfg->n_pages);
    return ERR_OK;
}

static uint32_t effective_top_k(const struct scheduler *s, const struct gen_request *r)
{
    if (!s->cfg.index_topk || r->top_k_dsa == TOP_K_DENSE)
        return TOP_K_DENSE;
    return r->top_k_dsa && r->top_k_dsa < s->cfg.index_topk ? r->top_k_dsa : s->cfg.index_topk;
}

/* Prompt log-probabilities need every row, so such a request meets no cached page: its chain is its
 * own, for its other choices. So is every chain when the cache is off. */
struct prefix_key admission_key(const struct scheduler *s, const struct request *r)
{
    bool open = s->cfg.prefix_cache && !r->ask->prompt_logprobs;
    return (struct prefix_key){.salt = r->ask->cache_salt,
                               .private_id = open ? 0 : r->arrival + 1,
                               .top_k = effective_top_k(s, r->ask)};
}

static void set_rules(struct scheduler *s, struct sequence *seq, struct request *r,
                      const struct seat_pair *at)
{
    seq->req = r;
    seq->run = ++s->n_runs ? s->n_runs : ++s->n_runs;
    seq->group = at->home->index;
    seq->target = at->target->index;
    seq->top_k = r->key.top_k;
    uint32_t expanded = s->cfg.expand_tokens < seq->top_k ? s->cfg.expand_tokens : seq->top_k;
    /* Rows of the output are absorbed; a prefill would expand those below `expanded`. */
    seq->canonical_tokens = seq->n_prompt >= expanded ? UINT32_MAX : seq->n_prompt;
    seq->publish = !r->key.private_id;
}

/* Two tables: the prompt's pages here, all of them there. */
static enum err_code split_table(struct sequence *seq, struct gen_request *ask, struct err *e)
{
    uint32_t n = kv_pages_for(ask->n_prompt);
    seq->moved = seq->table;
    seq->table.max_pages = n;
    seq->table.page = arena_alloc(&ask->arena, n * sizeof *seq->table.page);
    return seq->table.page ? ERR_OK : err_set(e, ERR_NOMEM, "no memory for a table of %u pages", n);
}

/* All memory of a running request. On an error the sequences that were opened are closed again. */
static enum err_code open_all(struct scheduler *s, struct request *r, const struct seat_pair *at,
                              struct err *e)
{
    struct gen_request *ask = r->ask;
    uint32_t n = 0;
    if (ask->prompt_logprobs && ask->n_prompt > 1) {
        r->prompt_event = gen_event_new(GEN_PROMPT, r->id, ask->n_prompt - 1, 0);
        if (!r->prompt_event)
            return err_set(e, ERR_NOMEM, "no memory for %u log-probabilities", ask->n_prompt - 1);
        r->prompt_sample = ask->sample;
        r->prompt_sample.want_logprob = true;
        r->prompt_sample.n_top = ask->n_prompt_top;
    }
    for (; n < ask->n; n++) {
        struct sequence *seq = &s->sequence[s->free_seq[s->n_free_seqs - 1 - n]];
        assert(seq->state == SEQ_FREE);
        if (sequence_open(seq, ask, n, s->cfg.eos_id, s->cfg.n_eos, s->cfg.tok, e) ||
            (at->home != at->target && split_table(seq, ask, e)))
            break;
        set_rules(s, seq, r, at);
    }
    if (n == ask->n)
        return ERR_OK;
    for (uint32_t i = 0; i <= n; i++)
        sequence_close(&s->sequence[s->free_seq[s->n_free_seqs - 1 - i]]);
    return e->code;
}

/* It fits: from here on it runs to its end. */
static void admit(struct scheduler *s, struct request *r, const struct seat_pair *at,
                  uint64_t now_us)
{
    struct err e;
    list_remove(&s->queue, r);
    fair_admitted(&s->fair, r->tag);
    r->state = REQ_RUNNING;
    if (open_all(s, r, at, &e)) {
        log_warn("sched", "request=%s error=\"%s\"", r->ask->name, e.msg);
        request_fail(s, r, &e, now_us);
        return;
    }
    for (uint32_t i = 0; i < r->ask->n; i++) {
        struct sequence *seq = &s->sequence[s->free_seq[--s->n_free_seqs]];
        assert(seq->choice == i);
        seq->state = SEQ_PREFILL;
        seq->kv_since_us = now_us;
        r->n_live++;
        at->home->n_seats++;
        at->target->n_seats += at->target != at->home;
        pages_attach(s, seq);
        prefill_list_add(s, seq);
    }
    s->stats.prefix_queries += r->key.private_id ? 0 : r->ask->n_prompt;
    assert(group_room(at->home) >= at->home->n_promised);
    assert(group_room(at->target) >= at->target->n_promised);
    assert(at->home->n_seats <= s->cfg.max_seqs);
    assert(at->target->n_seats <= s->cfg.max_seqs);
}

void admit_requests(struct scheduler *s, uint64_t now_us)
{
    struct request *r = s->queue.head;
    uint32_t n_looked = 0;
    if (!s->try_admission)
        return;
    s->try_admission = false;
    while (r && n_looked < MAX_LOOK_BEHIND) {
        struct request *next = r->next, *head = s->queue.head;
        struct seat_pair at;
        if (head->n_passed >= MAX_PASSED && !head->hold.home)
            head->hold = place_hold(s, head);
        if (place_request(s, r, head, &at)) {
            if (r != head && head->n_passed < MAX_PASSED)
                head->n_passed++;
            admit(s, r, &at, now_us);
        } else {
            n_looked++;
        }
        r = next;
    }
}
