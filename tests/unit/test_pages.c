/* test_pages.c - whole KV pages on their way from one back end to another. */
#include "dsa_rig.h"

enum { N = 5, LAYERS = 3 };

static struct model_config config(void)
{
    struct model_config c = rig_config();
    c.n_layers = LAYERS;
    c.n_dense_layers = LAYERS;
    c.index_full[1] = false; /* shares the selections of layer 0: no plane of its own */
    c.index_full[2] = true;
    return c;
}

static void fill(struct cpu_backend *b, uint64_t seed)
{
    struct rng r = {seed};
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (size_t i = 0; i < b->latent_page_bytes * RIG_PAGES; i++)
            b->latent[l][i] = (unsigned char)rng_next(&r);
        for (size_t i = 0; b->index[l] && i < b->index_page_bytes * RIG_PAGES; i++)
            b->index[l][i] = (unsigned char)rng_next(&r);
    }
}

static void check_same(const struct cpu_backend *a, uint32_t pa, const struct cpu_backend *b,
                       uint32_t pb, bool same)
{
    bool equal = true;
    for (uint32_t l = 0; l < LAYERS; l++) {
        size_t n = a->latent_page_bytes, m = a->index_page_bytes;
        equal = equal && !memcmp(a->latent[l] + pa * n, b->latent[l] + pb * n, n);
        if (a->index[l])
            equal = equal && !memcmp(a->index[l] + pa * m, b->index[l] + pb * m, m);
    }
    CHECK_MSG(equal == same, "page %u and page %u are %s", pa, pb, equal ? "equal" : "not equal");
}

/* Goal:   a page that moved has the same bytes in every layer and both planes, no other page is
 *         touched, and its sum is the same on both sides and that of the exported bytes.
 * Method: all forms of latents and index keys, a layer without an index plane, ids out of order. */
TEST(pages_move_whole)
{
    static const uint32_t from[N] = {7, 0, 95, 31, 32}, to[N] = {3, 94, 0, 50, 8};
    struct model_config c = config();
    for (int form = 0; form < 6; form++) {
        struct ops_limits lim =
            rig_limits((enum latent_form)(form % 3), (enum index_form)(form / 3), 1);
        struct cpu_backend *a = rig_open(&c, &lim), *b = rig_open(&c, &lim);
        size_t page = kv_page_bytes(&c, lim.latent, lim.index);
        unsigned char *bytes = malloc(page * N);
        uint64_t sum[N], there[N];
        struct err e;
        CHECK(bytes != NULL);
        fill(a, 1);
        fill(b, 2);
        CHECK_OK(a->ops.sum_pages(&a->ops, from, N, sum, &e), e);
        CHECK_OK(a->ops.export_pages(&a->ops, from, N, bytes, &e), e);
        CHECK_OK(b->ops.import_pages(&b->ops, to, N, bytes, &e), e);
        CHECK_OK(b->ops.sum_pages(&b->ops, to, N, there, &e), e);
        for (int i = 0; i < N; i++) {
            CHECK(sum[i] == there[i]);
            CHECK(sum[i] == kv_page_sum(bytes + page * (size_t)i, page, 0));
            check_same(a, from[i], b, to[i], true);
        }
        struct cpu_backend *untouched = rig_open(&c, &lim);
        fill(untouched, 2);
        for (uint32_t p = 0; p < RIG_PAGES; p++) {
            bool moved = p == 3 || p == 94 || p == 0 || p == 50 || p == 8;
            check_same(untouched, p, b, p, !moved);
        }
        free(bytes);
        untouched->ops.close(&untouched->ops);
        a->ops.close(&a->ops);
        b->ops.close(&b->ops);
    }
}

/* Goal: no single changed bit, and no two words that changed places, leave the sum as it was. */
TEST(page_sums_show_what_changed)
{
    enum { BYTES = 4096 };
    static unsigned char page[BYTES];
    struct rng r = {5};
    for (int i = 0; i < BYTES; i++)
        page[i] = (unsigned char)rng_next(&r);
    uint64_t was = kv_page_sum(page, BYTES, 0);
    for (uint32_t bit = 0; bit < 8 * BYTES; bit++) {
        page[bit / 8] ^= (unsigned char)(1u << bit % 8);
        CHECK(kv_page_sum(page, BYTES, 0) != was);
        page[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    for (uint32_t i = 0; i + 16 <= BYTES; i += 8) {
        unsigned char word[8];
        memcpy(word, page + i, 8);
        memcpy(page + i, page + i + 8, 8);
        memcpy(page + i + 8, word, 8);
        CHECK(kv_page_sum(page, BYTES, 0) != was);
        memcpy(page + i + 8, page + i, 8);
        memcpy(page + i, word, 8);
    }
    CHECK(kv_page_sum(page, BYTES, 0) == was);
    CHECK(kv_page_sum(page, 1024, 0) + kv_page_sum(page + 1024, BYTES - 1024, 128) == was);
}
