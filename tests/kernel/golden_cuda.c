/* golden_cuda.c - tests/golden/golden.h over the GPU's ops, so that the golden tests run unchanged.
 *
 * Linked in front of the fakes' golden.c. Logits come back row by row through cuda_test_read().
 */
#include "tests/golden/golden.h"

#include "cuda/cuda_ops.h"
#include "tests/kernel/device_memory.h"

enum { OUT_ROWS = 32 };
static struct weights *on_device; /* one model at a time */

void golden_open(struct golden *g, const char *dir, const char *expected_path,
                 const struct golden_options *o)
{
    struct err e = {0};
    memset(g, 0, sizeof *g);
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    CHECK_OK(model_config_read(&g->cfg, dir, &e), e);
    CHECK_OK(weights_open(&g->weights, dir, &g->cfg, NULL, NULL, &e), e);
    CHECK_OK(cuda_weights_upload(&on_device, g->weights, &g->cfg, 0, NULL, NULL, &e), e);
    uint32_t n_pages = (o->context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    struct ops_limits lim = {.precision = o->precision,
                             .latent = o->latent,
                             .index = o->index,
                             .n_pages = n_pages + 3,
                             .max_rows = {o->max_rows, o->max_rows},
                             .max_context = o->context,
                             .max_out_rows = OUT_ROWS,
                             .n_threads = o->n_threads};
    CHECK_OK(cuda_ops_open(&g->ops, &g->cfg, &lim, 0, &e), e);
    CHECK_OK(forward_create(&g->forward, g->ops, on_device, &e), e);
    if (expected_path)
        CHECK_OK(safetensors_open_file(&g->expected, expected_path, &e), e);
    g->page = calloc(n_pages, sizeof *g->page);
    CHECK(g->page != NULL);
    for (uint32_t i = 0; i < n_pages; i++)
        g->page[i] = i + 3;
    struct rng r = {7};
    for (uint32_t i = n_pages; i > 1; i--) {
        uint32_t k = rng_below(&r, i), t = g->page[i - 1];
        g->page[i - 1] = g->page[k];
        g->page[k] = t;
    }
}

void golden_close(struct golden *g)
{
    forward_destroy(g->forward);
    g->ops->close(g->ops);
    cuda_weights_close(on_device);
    on_device = NULL;
    weights_close(g->weights);
    safetensors_close(g->expected);
    free(g->page);
}

uint32_t golden_top_k(const struct golden *g)
{
    return g->cfg.has_indexer ? g->cfg.index_topk : (uint32_t)TOP_K_DENSE;
}

uint32_t golden_expand(const struct golden *g)
{
    return model_expand_tokens(&g->cfg);
}

void golden_run(struct golden *g, enum lane l, const uint32_t *ids, uint32_t pos0, uint32_t n,
                uint32_t chunk, uint32_t expand_below, uint32_t top_k, uint32_t from,
                golden_row *row, void *arg)
{
    struct ops *o = g->ops;
    struct err e = {0};
    uint32_t vocab = g->cfg.vocab_size;
    uint32_t *out_row = malloc(sizeof *out_row * chunk);
    float *logits = malloc(sizeof *logits * vocab * OUT_ROWS);
    CHECK(out_row && logits);
    for (uint32_t done = 0; done < n;) {
        uint32_t k = n - done < chunk ? n - done : chunk, first = pos0 + done;
        uint32_t skip = from > first ? from - first : 0;
        struct step_seq seq = {.row0 = 0,
                               .n_rows = k,
                               .pos0 = first,
                               .page = g->page,
                               .top_k = top_k,
                               .expand_below = expand_below};
        struct step s = {
            .n_rows = k, .n_seqs = 1, .token = ids + done, .seq = &seq, .out_row = out_row};
        for (uint32_t i = skip; i < k; i++)
            out_row[s.n_out++] = i;
        o->begin(o, l, &s);
        const act *x = forward_layers(g->forward, l, &s);
        for (uint32_t i = 0; i < s.n_out; i += OUT_ROWS) {
            uint32_t m = s.n_out - i < OUT_ROWS ? s.n_out - i : (uint32_t)OUT_ROWS;
            const float *there = o->logits(o, l, x, on_device->final_norm, &on_device->head, i, m);
            cuda_test_read(logits, there, sizeof *logits * vocab * m);
            for (uint32_t j = 0; j < m; j++)
                row(arg, first + out_row[i + j], logits + (size_t)j * vocab);
        }
        CHECK_OK(o->finish(o, l, &e), e);
        done += k;
    }
    free(out_row);
    free(logits);
}

const struct tensor *golden_tensor(struct golden *g, uint32_t prompt, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "prompt.%u.%s", prompt, what);
    return safetensors_find(g->expected, name);
}
