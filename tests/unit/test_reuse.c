/* test_reuse.c - how alike selections of steps that follow each other are.
 *
 * Goal:   the CPU's counts are those that a comparison position by position gives, of the sampled
 *         steps and no others: whatever sequences share steps, come and go, and leave steps out.
 * Method: a small model with random weights, so that selections differ from step to step;
 *         reuse_rig.h compares.
 */
#include "cpu/cpu_ops.h"
#include "model/forward.h"
#include "reuse_rig.h"

enum { SEQS = 5, CONTEXT = 320, ROWS = 64, VOCAB = 96, PAGES = CONTEXT / KV_PAGE_TOKENS };

struct model {
    struct model_config c;
    struct weights *w;
    struct ops *ops;
    struct forward *forward;
    uint32_t page[SEQS][PAGES];
};

static void read_host(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static void model_open(struct model *m)
{
    struct err e;
    m->c = (struct model_config){.family = MODEL_DEEPSEEK_V32,
                                 .vocab_size = VOCAB,
                                 .hidden_size = 48,
                                 .n_layers = 7,
                                 .n_dense_layers = 7,
                                 .dense_width = 40,
                                 .rms_eps = 1e-6f,
                                 .low_rank_eps = 1e-6f,
                                 .n_heads = 2,
                                 .q_lora_rank = 32,
                                 .kv_lora_rank = 32,
                                 .nope_dim = 8,
                                 .rope_dim = 8,
                                 .v_dim = 8,
                                 .softmax_scale = 0.2f,
                                 .n_group = 1,
                                 .n_group_kept = 1,
                                 .has_indexer = true,
                                 .index_heads = 4,
                                 .index_dim = 16,
                                 .index_topk = 40,
                                 .max_position = CONTEXT,
                                 .rope_gain = 1.0f,
                                 .eos_id = {1},
                                 .n_eos = 1,
                                 .temperature = 1.0f,
                                 .top_p = 1.0f};
    for (uint32_t i = 0; i < m->c.n_layers; i++)
        m->c.index_full[i] = i != 3; /* that one takes over the selection before */
    for (uint32_t i = 0; i < 4; i++)
        m->c.rope_freq[i] = 1.0f / (float)(1u << i);
    struct ops_limits lim = {.precision = PRECISION_EXACT,
                             .latent = LATENT_BF16,
                             .index = INDEX_FP8,
                             .n_pages = SEQS * PAGES,
                             .max_rows = {ROWS, ROWS},
                             .max_context = CONTEXT,
                             .max_out_rows = 1,
                             .n_threads = 2};
    CHECK_OK(weights_dummy(&m->w, &m->c, DT_BF16, 5, &e), e);
    CHECK_OK(cpu_ops_open(&m->ops, &m->c, &lim, &e), e);
    CHECK_OK(forward_create(&m->forward, m->ops, m->w, &e), e);
    reuse_rig_begin(m->ops, read_host);
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < PAGES; i++)
            m->page[s][i] = i * SEQS + s;
}

static void model_close(struct model *m)
{
    forward_destroy(m->forward);
    m->ops->close(m->ops);
    weights_close(m->w);
}

/* One step of rows[i] rows of sequence i on page[i], from pos[i], as number run[i]; 0 rows: it is
 * not in the step. */
static void run_step(struct model *m, enum lane l, const uint32_t *rows, const uint32_t *pos,
                     const uint32_t *run, const uint32_t *top_k)
{
    uint32_t token[ROWS];
    struct step_seq q[SEQS];
    struct step st = {.token = token, .seq = q};
    struct err e;
    for (uint32_t s = 0; s < SEQS; s++) {
        if (!rows[s])
            continue;
        q[st.n_seqs++] = (struct step_seq){.row0 = st.n_rows,
                                           .n_rows = rows[s],
                                           .pos0 = pos[s],
                                           .page = m->page[s],
                                           .top_k = top_k[s],
                                           .run = run[s]};
        for (uint32_t i = 0; i < rows[s]; i++)
            token[st.n_rows++] = (pos[s] + i) * (7 + run[s]) % VOCAB;
    }
    reuse_rig.step = &st;
    CHECK_OK(forward_step(m->forward, l, &st, &e), e);
}

static void run_prompt(struct model *m, uint32_t s, uint32_t n, uint32_t run, uint32_t top_k)
{
    uint32_t rows[SEQS] = {0}, pos[SEQS] = {0}, runs[SEQS] = {0}, top_ks[SEQS] = {0};
    runs[s] = run;
    top_ks[s] = top_k;
    for (uint32_t at = 0; at < n; at += ROWS) {
        rows[s] = n - at < ROWS ? n - at : ROWS;
        pos[s] = at;
        run_step(m, LANE_PREFILL, rows, pos, runs, top_ks);
    }
}

TEST(layers_are_sampled_evenly)
{
    struct model_config c = {.n_layers = 61, .has_indexer = true};
    uint32_t n = 0, at[REUSE_LAYERS] = {0};
    for (uint32_t i = 0; i < 61; i++)
        c.index_full[i] = true;
    for (uint32_t i = 0; i < 61; i++)
        if (reuse_layer(&c, i) >= 0) {
            CHECK(reuse_layer(&c, i) == (int)n);
            at[n++] = i;
        }
    CHECK(n == 4 && at[0] == 7 && at[1] == 22 && at[2] == 38 && at[3] == 53);
    c.n_layers = 2;
    CHECK(reuse_layer(&c, 0) == 0 && reuse_layer(&c, 1) == 1);
    c.index_full[1] = false;
    CHECK(reuse_layer(&c, 0) == 0 && reuse_layer(&c, 1) == -1);
    c.has_indexer = false;
    CHECK(reuse_layer(&c, 0) == -1);
}

/* Sequences of several lengths and top-k share steps; now and then one is left out, or brings
 * several rows, and one that ends gives its pages to another at once. */
TEST_LIMIT(what_is_counted_is_what_was_compared, 120)
{
    struct model m;
    struct rng r = {test_seed()};
    uint32_t rows[SEQS], pos[SEQS] = {50, 100, 120, 41, 180}, run[SEQS] = {1, 2, 3, 4, 5};
    uint32_t top_k[SEQS] = {40, 40, 8, TOP_K_DENSE, 100}, n_runs = SEQS;
    model_open(&m);
    for (uint32_t s = 0; s < SEQS; s++)
        run_prompt(&m, s, pos[s], run[s], top_k[s]);
    for (uint32_t k = 0; k < 300; k++) {
        for (uint32_t s = 0; s < SEQS; s++) {
            if (pos[s] > CONTEXT - 4 || (pos[s] % 64 == 63 && rng_below(&r, 4) == 0)) {
                run[s] = ++n_runs; /* as where the one before ended between two steps */
                pos[s] = 62 + 64 * rng_below(&r, 2) + rng_below(&r, 2);
                run_prompt(&m, s, pos[s], run[s], top_k[s]);
            }
            uint32_t dice = rng_below(&r, 20);
            rows[s] = dice == 0 ? 0 : dice == 1 ? 3 : 1;
        }
        run_step(&m, LANE_DECODE, rows, pos, run, top_k);
        for (uint32_t s = 0; s < SEQS; s++)
            pos[s] += rows[s];
    }
    uint64_t n = reuse_rig_check(m.ops, 1);
    struct reuse_count total = {0}, through[REUSE_LAYERS] = {{0}};
    forward_add_counts(m.forward, NULL, through);
    for (int i = 0; i < REUSE_LAYERS; i++) {
        total.selected += through[i].selected;
        total.again += through[i].again;
    }
    printf("     %llu of %llu positions again\n", (unsigned long long)total.again,
           (unsigned long long)total.selected);
    CHECK(total.selected == n && n >= 1000 && total.again > 0 && total.again < n);
    model_close(&m);
}

/* Two sequences of one place: in a step the first one has it; and what one keeps is not compared
 * with the other's. */
TEST(sequences_of_one_place)
{
    struct model m;
    uint32_t rows[SEQS] = {1, 1}, pos[SEQS] = {62, 62}, run[SEQS] = {1, 1 + REUSE_PLACES};
    uint32_t top_k[SEQS] = {40, 40};
    static const uint32_t second[] = {1 + REUSE_PLACES, 0}, both[] = {1, 1 + REUSE_PLACES, 0};
    model_open(&m);
    for (uint32_t s = 0; s < 2; s++)
        run_prompt(&m, s, pos[s], run[s], top_k[s]);
    reuse_rig.ignored = second;
    for (uint32_t k = 0; k < 2; k++, pos[0]++, pos[1]++)
        run_step(&m, LANE_DECODE, rows, pos, run, top_k);
    uint64_t n = reuse_rig_check(m.ops, 1);
    CHECK(n == REUSE_LAYERS * 40);
    /* the second one's step takes the place between the first one's two */
    reuse_rig.ignored = both;
    pos[0] = pos[1] = 62;
    for (uint32_t k = 0; k < 3; k++) {
        rows[0] = k != 1;
        rows[1] = k == 1;
        run_step(&m, LANE_DECODE, rows, pos, run, top_k);
        pos[0] += rows[0];
    }
    CHECK(pos[0] == 64 && reuse_rig_check(m.ops, 1) == n);
    model_close(&m);
}
