/* ranks_rig.c - see tests/golden/ranks_rig.h. */
#include "tests/golden/ranks_rig.h"

#include <pthread.h>

enum { OUT_ROWS = 160, MAX_PAGES = 64, ROWS_AT_ONCE = 1024 };

void ranks_rig_open(struct ranks **out, struct model_config *cfg, const char *model,
                    const struct ranks_rig_options *o)
{
    struct err e = {0};
    char dir[256];
    snprintf(dir, sizeof dir, "%s", test_fixture(model));
    CHECK_OK(model_config_read(cfg, dir, &e), e);
    uint32_t n_pages = (o->context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    CHECK(n_pages < MAX_PAGES && o->max_rows <= ROWS_AT_ONCE);
    struct ranks_options r = {.model_dir = dir,
                              .cfg = cfg,
                              .tp = o->tp,
                              .dp = o->dp,
                              .ep = o->ep,
                              .placement = o->placement,
                              .limits = {.precision = o->precision,
                                         .latent = o->latent,
                                         .index = o->index,
                                         .expert = o->expert,
                                         .n_pages = n_pages + 3,
                                         .max_rows = {o->max_rows, o->max_rows},
                                         .max_context = o->context,
                                         .max_out_rows = OUT_ROWS,
                                         .n_threads = 2}};
    ranks_rig_place(&r);
    CHECK_OK(ranks_open(out, &r, &e), e);
}

struct chunk {
    const struct model_config *cfg;
    enum lane lane;
    const uint32_t *ids, *page;
    uint32_t pos0, n, from;
    float *logits; /* of pos0 + from on */
    bool idle;     /* helps alone */
    struct rank *rank;
    struct err err;
};

static void *run_chunk(void *arg)
{
    struct chunk *c = arg;
    const struct model_config *cfg = c->cfg;
    struct ops *o = c->rank->ops;
    const struct weights *w = c->rank->device_weights ? c->rank->device_weights : c->rank->weights;
    uint32_t out_row[ROWS_AT_ONCE];
    struct step_seq seq = {.n_rows = c->n,
                           .pos0 = c->pos0,
                           .page = c->page,
                           .top_k = cfg->has_indexer ? cfg->index_topk : (uint32_t)TOP_K_DENSE,
                           .expand_below = model_expand_tokens(cfg)};
    struct step s = {.n_rows = c->n,
                     .n_seqs = 1,
                     .most_rows = c->n,
                     .token = c->ids + c->pos0,
                     .seq = &seq,
                     .out_row = out_row};
    c->err.code = ERR_OK;
    if (c->idle) {
        s.n_rows = s.n_seqs = 0;
        if (!forward_step(c->rank->forward, c->lane, &s, &c->err))
            c->err.code = ERR_OK;
        return NULL;
    }
    for (uint32_t i = c->from; i < c->n; i++)
        out_row[s.n_out++] = i;
    o->begin(o, c->lane, &s);
    const act *x = forward_layers(c->rank->forward, c->lane, &s);
    /* One call: a rank that reads waits for its device, on which others may wait for its next. */
    CHECK(s.n_out <= OUT_ROWS);
    if (s.n_out) {
        const float *there = o->logits(o, c->lane, x, w->final_norm, &w->head, 0, s.n_out);
        if (c->rank->share.rank == 0)
            ranks_rig_read(c->logits, there, sizeof(float) * s.n_out * cfg->vocab_size);
    }
    if (!o->finish(o, c->lane, &c->err))
        c->err.code = ERR_OK;
    return NULL;
}

enum err_code ranks_rig_run(struct ranks *all, const struct model_config *cfg, enum lane l,
                            const uint32_t *ids, uint32_t n, uint32_t chunk, uint32_t from,
                            float *logits, struct err *e)
{
    static uint32_t page[MAX_PAGES];
    bool joined = parallel_joins_groups(&all->plan);
    uint32_t n_ranks = joined ? all->plan.n_ranks : all->plan.tp;
    for (uint32_t i = 0; i < MAX_PAGES; i++)
        page[i] = i ^ 1;
    e->code = ERR_OK;
    for (uint32_t done = 0; done < n && !e->code;) {
        struct chunk c[PARALLEL_MAX_RANKS];
        pthread_t thread[PARALLEL_MAX_RANKS];
        uint32_t k = n - done < chunk ? n - done : chunk;
        uint32_t skip = from > done ? from - done : 0;
        for (uint32_t r = 0; r < n_ranks; r++) {
            c[r] = (struct chunk){.cfg = cfg,
                                  .lane = l,
                                  .ids = ids,
                                  .page = page,
                                  .pos0 = done,
                                  .n = k,
                                  .from = skip < k ? skip : k,
                                  .logits = logits,
                                  .idle = all->rank[r].share.group % 2,
                                  .rank = &all->rank[r]};
            CHECK(pthread_create(&thread[r], NULL, run_chunk, &c[r]) == 0);
        }
        for (uint32_t r = 0; r < n_ranks; r++) {
            CHECK(pthread_join(thread[r], NULL) == 0);
            if (c[r].err.code && !e->code)
                *e = c[r].err;
        }
        if (done + k > from)
            logits += (size_t)(k - c[0].from) * cfg->vocab_size;
        done += k;
    }
    return e->code;
}
