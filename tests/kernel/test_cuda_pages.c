/* test_cuda_pages.c - whole KV pages on their way from one GPU back end to another, on one GPU and
 * on two, by the link and by the host; sums against the CPU's.
 */
#include "base/fault.h"
#include "comm/comm.h"
#include "cpu/cpu_ops.h"
#include "cuda/cuda_ops.h"
#include "test.h"

enum { N = 5, LAYERS = 3, PAGES = 96 };

static struct model_config config(void)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = 64,
                             .hidden_size = 32,
                             .n_layers = LAYERS,
                             .n_dense_layers = LAYERS,
                             .dense_width = 32,
                             .rms_eps = 1e-6f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = 2,
                             .q_lora_rank = 32,
                             .kv_lora_rank = 136,
                             .nope_dim = 16,
                             .rope_dim = 16,
                             .v_dim = 16,
                             .softmax_scale = 0.2f,
                             .n_group = 1,
                             .n_group_kept = 1,
                             .has_indexer = true,
                             .index_heads = 2,
                             .index_dim = 32,
                             .index_topk = 40,
                             .max_position = 448,
                             .rope_gain = 1.0f,
                             .n_eos = 1};
    c.index_full[0] = c.index_full[2] = true; /* layer 1 has no index plane of its own */
    return c;
}

static struct ops_limits limits(int form)
{
    return (struct ops_limits){.precision = PRECISION_EXACT,
                               .latent = (enum latent_form)(form % 3),
                               .index = (enum index_form)(form / 3),
                               .n_pages = PAGES,
                               .max_rows = {16, 16},
                               .max_context = 448,
                               .max_out_rows = 16,
                               .n_threads = 1};
}

static uint32_t all_pages[PAGES];

/* All pages of o become random; bytes[PAGES * page] says how. */
static void fill(struct ops *o, unsigned char *bytes, size_t page, uint64_t seed)
{
    struct rng r = {seed};
    struct err e;
    for (size_t i = 0; i < page * PAGES; i++)
        bytes[i] = (unsigned char)rng_next(&r);
    for (uint32_t i = 0; i < PAGES; i++)
        all_pages[i] = i;
    CHECK_OK(o->import_pages(o, all_pages, PAGES, bytes, &e), e);
}

static void move(struct ops *to, const uint32_t *there, struct ops *from, const uint32_t *page,
                 bool by_host, size_t page_bytes)
{
    struct err e;
    if (!by_host) {
        CHECK_OK(to->copy_pages(to, there, from, page, N, &e), e);
        return;
    }
    unsigned char *bytes = malloc(page_bytes * N);
    CHECK(bytes);
    CHECK_OK(from->export_pages(from, page, N, bytes, &e), e);
    CHECK_OK(to->import_pages(to, there, N, bytes, &e), e);
    free(bytes);
}

static void one_form(int form, uint32_t second, bool by_host)
{
    static const uint32_t from[N] = {7, 0, 95, 31, 32}, to[N] = {3, 94, 0, 50, 8};
    struct model_config c = config();
    struct ops_limits lim = limits(form);
    size_t page = kv_page_bytes(&c, lim.latent, lim.index);
    unsigned char *was_a = malloc(page * PAGES), *was_b = malloc(page * PAGES);
    unsigned char *is_b = malloc(page * PAGES);
    uint64_t sum[PAGES], there[N];
    struct ops *a, *b;
    struct err e;
    CHECK(was_a && was_b && is_b);
    CHECK_OK(cuda_ops_open(&a, &c, &lim, 0, &e), e);
    CHECK_OK(cuda_ops_open(&b, &c, &lim, second, &e), e);
    fill(a, was_a, page, 1);
    fill(b, was_b, page, 2);
    CHECK_OK(a->sum_pages(a, all_pages, PAGES, sum, &e), e);
    for (uint32_t i = 0; i < PAGES; i++)
        CHECK(sum[i] == kv_page_sum(was_a + page * i, page, 0));
    move(b, to, a, from, by_host, page);
    CHECK_OK(b->sum_pages(b, to, N, there, &e), e);
    CHECK_OK(b->export_pages(b, all_pages, PAGES, is_b, &e), e);
    for (int i = 0; i < N; i++) {
        CHECK(there[i] == sum[from[i]]);
        memcpy(was_b + page * to[i], was_a + page * from[i], page);
    }
    CHECK(!memcmp(is_b, was_b, page * PAGES)); /* and no other page was touched */
    a->close(a);
    b->close(b);
    free(was_a);
    free(was_b);
    free(is_b);
}

static void all_forms(uint32_t second, bool by_host)
{
    if (cuda_device_count() <= second)
        TEST_SKIP("there are not as many GPUs");
    for (int form = 0; form < 6; form++)
        one_form(form, second, by_host);
}

TEST_LIMIT(pages_between_pools_of_one_gpu, 120)
{
    all_forms(0, false);
}
TEST_LIMIT(pages_by_the_host, 120)
{
    all_forms(0, true);
}
TEST_LIMIT(pages_between_two_gpus, 120)
{
    all_forms(1, false);
}
TEST_LIMIT(pages_between_two_gpus_by_the_host, 120)
{
    all_forms(1, true);
}

/* Each place of fault is an error, a corrupted page has another sum, and other models' pages do not
 * come in. */
TEST_LIMIT(pages_that_fail, 120)
{
    static const uint32_t from[N] = {1, 2, 3, 4, 5};
    struct model_config c = config(), other = config();
    struct ops_limits lim = limits(5);
    size_t page = kv_page_bytes(&c, lim.latent, lim.index);
    unsigned char *bytes = malloc(page * PAGES);
    uint64_t sum[N], there[N];
    struct ops *a, *b, *cpu;
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("there is no GPU");
    CHECK(bytes);
    other.n_layers = 2;
    CHECK_OK(cuda_ops_open(&a, &c, &lim, 0, &e), e);
    CHECK_OK(cuda_ops_open(&b, &other, &lim, 0, &e), e);
    CHECK_OK(cpu_ops_open(&cpu, &c, &lim, &e), e);
    fill(a, bytes, page, 3);
    CHECK(b->copy_pages(b, from, a, from, N, &e) == ERR_INVALID);
    CHECK(a->copy_pages(a, from, cpu, from, N, &e) == ERR_INVALID);
    fault_arm("pages.export");
    CHECK(a->export_pages(a, from, N, bytes, &e) == ERR_IO);
    fault_arm("pages.import");
    CHECK(a->import_pages(a, from, N, bytes, &e) == ERR_IO);
    fault_arm("pages.import");
    CHECK(a->copy_pages(a, from, a, from, N, &e) == ERR_IO);
    fault_arm("pages.sum");
    CHECK(a->sum_pages(a, from, N, sum, &e) == ERR_IO);
    fault_arm("pages.corrupt");
    CHECK_OK(a->sum_pages(a, from, N, sum, &e), e);
    CHECK_OK(a->copy_pages(a, from, a, from, N, &e), e);
    fault_arm(NULL);
    CHECK_OK(a->sum_pages(a, from, N, there, &e), e);
    CHECK(there[0] != sum[0] && !memcmp(there + 1, sum + 1, sizeof sum - sizeof *sum));
    cpu->close(cpu);
    b->close(b);
    a->close(a);
    free(bytes);
}
