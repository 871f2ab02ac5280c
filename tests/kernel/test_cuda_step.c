/* test_cuda_step.c - whole steps on the GPU: alone and together, queued and from a graph.
 *
 * Goal:   a row's token and log-probabilities have the same bits whoever shares its step, in either
 *         lane, the first time, when its shape is recorded, and when a graph replays it, also after
 *         the contexts have grown past those of the recording.
 * Method: a small model of every kind of layer with random weights, FP8 latents and keys; the
 *         prefill lane, which keeps no graphs, is the other side. A step writes its slots anew with
 *         the same values, so it may be repeated.
 */
#include "cuda/cuda_ops.h"
#include "device_memory.h"
#include "model/forward.h"
#include "reuse_rig.h"

#include <math.h>

enum { SEQS = 3, CONTEXT = 1152, CHUNK = 64, VOCAB = 1000, TOP = 5 };

struct model {
    struct model_config c;
    struct weights *host, *device;
    struct ops *ops;
    struct forward *forward;
    uint32_t page[SEQS][CONTEXT / KV_PAGE_TOKENS];
};

static void model_open(struct model *m)
{
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    m->c = (struct model_config){.family = MODEL_DEEPSEEK_V32,
                                 .vocab_size = VOCAB,
                                 .hidden_size = 256,
                                 .n_layers = 3,
                                 .n_dense_layers = 1,
                                 .dense_width = 320,
                                 .rms_eps = 1e-6f,
                                 .low_rank_eps = 1e-6f,
                                 .n_heads = 20,
                                 .q_lora_rank = 128,
                                 .kv_lora_rank = 128,
                                 .nope_dim = 32,
                                 .rope_dim = 32,
                                 .v_dim = 32,
                                 .softmax_scale = 0.125f,
                                 .n_experts = 8,
                                 .n_active = 2,
                                 .n_shared = 1,
                                 .expert_width = 128,
                                 .n_group = 2,
                                 .n_group_kept = 1,
                                 .sigmoid_router = true,
                                 .router_bias = true,
                                 .group_by_best_two = true,
                                 .norm_topk = true,
                                 .routed_scale = 2.5f,
                                 .has_indexer = true,
                                 .index_heads = 20,
                                 .index_dim = 64,
                                 .index_topk = 96,
                                 .max_position = CONTEXT,
                                 .rope_gain = 1.0f,
                                 .eos_id = {1},
                                 .n_eos = 1,
                                 .temperature = 1.0f,
                                 .top_p = 1.0f};
    for (uint32_t i = 0; i < m->c.n_layers; i++)
        m->c.index_full[i] = true;
    for (uint32_t i = 0; i < 16; i++)
        m->c.rope_freq[i] = 1.0f / (float)(1u << i);
    uint32_t pages = CONTEXT / KV_PAGE_TOKENS;
    struct ops_limits lim = {.precision = PRECISION_FAST,
                             .latent = LATENT_FP8,
                             .index = INDEX_FP8,
                             .n_pages = pages * SEQS,
                             .max_rows = {CHUNK, CHUNK},
                             .max_context = CONTEXT,
                             .max_out_rows = 2};
    CHECK_OK(weights_dummy(&m->host, &m->c, DT_F8_E4M3, 3, &e), e);
    CHECK_OK(cuda_weights_upload(&m->device, m->host, &m->c, 0, NULL, NULL, &e), e);
    CHECK_OK(cuda_ops_open(&m->ops, &m->c, &lim, 0, &e), e);
    CHECK_OK(forward_create(&m->forward, m->ops, m->device, &e), e);
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < pages; i++)
            m->page[s][i] = i * SEQS + (s + i) % SEQS;
}

static void model_close(struct model *m)
{
    forward_destroy(m->forward);
    m->ops->close(m->ops);
    cuda_weights_close(m->device);
    weights_close(m->host);
}

static uint32_t token_at(uint32_t s, uint32_t pos)
{
    return (s * 331 + pos * 97 + pos * pos % 61) % VOCAB;
}

static void prefill(struct model *m, uint32_t s, uint32_t n)
{
    uint32_t token[CHUNK];
    struct err e;
    for (uint32_t at = 0; at < n; at += CHUNK) {
        uint32_t k = n - at < CHUNK ? n - at : (uint32_t)CHUNK;
        struct step_seq q = {.n_rows = k, .pos0 = at, .page = m->page[s], .top_k = m->c.index_topk};
        struct step st = {.n_rows = k, .n_seqs = 1, .token = token, .seq = &q};
        for (uint32_t i = 0; i < k; i++)
            token[i] = token_at(s, at + i);
        CHECK_OK(forward_step(m->forward, LANE_PREFILL, &st, &e), e);
    }
}

/* One row of each of the sequences [s0, s0 + n) at pos[s], on given tokens or known ones (NULL);
 * and n_more passes behind. */
static void decode_on(struct model *m, enum lane l, uint32_t s0, uint32_t n, const uint32_t *pos,
                      const uint32_t *given, uint32_t n_more, struct sample_out *out)
{
    struct sample_params p = {.temperature = 0.7f,
                              .top_p = 0.9f,
                              .repetition_penalty = 1.0f,
                              .seed = 11,
                              .want_logprob = true,
                              .n_top = TOP};
    uint32_t token[SEQS], out_row[SEQS];
    struct step_seq q[SEQS];
    struct sample_row row[SEQS];
    struct err e;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = s0 + i;
        token[i] = given ? given[i] : token_at(s, pos[s]);
        out_row[i] = i;
        q[i] = (struct step_seq){.row0 = i,
                                 .n_rows = 1,
                                 .pos0 = pos[s],
                                 .page = m->page[s],
                                 .top_k = m->c.index_topk,
                                 .run = s + 1};
        row[i] = (struct sample_row){.p = &p, .position = pos[s] + 1};
    }
    struct step st = {.n_rows = n,
                      .n_seqs = n,
                      .token = token,
                      .seq = q,
                      .n_out = n,
                      .out_row = out_row,
                      .sample = row,
                      .out = out,
                      .n_more = n_more};
    memset(out, 0, (1 + n_more) * n * sizeof *out);
    reuse_rig.step = &st;
    CHECK_OK(forward_step(m->forward, l, &st, &e), e);
}

static void decode(struct model *m, enum lane l, uint32_t s0, uint32_t n, const uint32_t *pos,
                   struct sample_out *out)
{
    decode_on(m, l, s0, n, pos, NULL, 0, out);
}

static void check_same(const struct sample_out *a, const struct sample_out *b, uint32_t n,
                       const char *what, uint32_t number)
{
    for (uint32_t i = 0; i < n; i++) {
        bool same = a[i].token == b[i].token && a[i].rank == b[i].rank &&
                    !memcmp(&a[i].logprob, &b[i].logprob, sizeof a[i].logprob) &&
                    !a[i].bad_logits && !b[i].bad_logits && a[i].n_top == TOP && b[i].n_top == TOP;
        for (uint32_t t = 0; same && t < TOP; t++)
            same = a[i].top[t].id == b[i].top[t].id &&
                   !memcmp(&a[i].top[t].logprob, &b[i].top[t].logprob, sizeof a[i].logprob);
        CHECK_MSG(same, "%s %u: row %u: token %u at %a, other side %u at %a", what, number, i,
                  a[i].token, (double)a[i].logprob, b[i].token, (double)b[i].logprob);
    }
}

TEST_LIMIT(step_same_bits, 600)
{
    struct model m;
    struct sample_out want[SEQS], have[SEQS];
    model_open(&m);
    /* The largest grows past 1024 tokens, where a graph's launches get longer; the emulated device
     * is slow and has no graphs. */
    uint32_t pos[SEQS] = {40, 700, 1010}, steps = 30;
    if (!m.ops->recall) {
        memcpy(pos, (uint32_t[SEQS]){20, 130, 300}, sizeof pos);
        steps = 3;
    }
    for (uint32_t s = 0; s < SEQS; s++)
        prefill(&m, s, pos[s]);
    for (uint32_t k = 0; k < steps; k++) {
        decode(&m, LANE_PREFILL, 0, SEQS, pos, want);
        for (uint32_t again = 0; again < (k ? 1 : 4); again++) {
            decode(&m, LANE_DECODE, 0, SEQS, pos, have);
            check_same(want, have, SEQS, "together, time", k + again);
        }
        for (uint32_t s = 0; s < SEQS; s++) {
            decode(&m, LANE_DECODE, s, 1, pos, have);
            check_same(want + s, have, 1, "alone, sequence", s);
        }
        for (uint32_t s = 0; s < SEQS; s++)
            pos[s]++;
    }
    model_close(&m);
}

/* Passes that follow by themselves choose what steps one by one choose, also where rows begin to
 * select and launches get longer on the way. */
TEST_LIMIT(step_goes_on, 600)
{
    enum { PASSES = 1 + OPS_MAX_MORE };
    struct model m;
    struct sample_out want[PASSES * SEQS], have[PASSES * SEQS];
    model_open(&m);
    uint32_t pos[SEQS] = {92, 700, 1020}, rounds = 3;
    if (!m.ops->recall) {
        memcpy(pos, (uint32_t[SEQS]){20, 92, 130}, sizeof pos);
        rounds = 1;
    }
    for (uint32_t s = 0; s < SEQS; s++)
        prefill(&m, s, pos[s]);
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t token[SEQS], at[SEQS];
        for (uint32_t pass = 0; pass < PASSES; pass++) {
            for (uint32_t s = 0; s < SEQS; s++) {
                token[s] = pass ? want[(pass - 1) * SEQS + s].token : token_at(s, pos[s]);
                at[s] = pos[s] + pass;
            }
            decode_on(&m, LANE_DECODE, 0, SEQS, at, token, 0, want + pass * SEQS);
        }
        decode_on(&m, LANE_DECODE, 0, SEQS, pos, NULL, OPS_MAX_MORE, have);
        check_same(want, have, PASSES * SEQS, "passes of round", round);
        for (uint32_t s = 0; s < SEQS; s++)
            pos[s] += PASSES;
    }
    model_close(&m);
}

/* Watched selections are counted as a comparison of the positions themselves counts them; and the
 * same when the steps come from graphs, and when they go on by themselves. */
TEST_LIMIT(selections_are_watched, 600)
{
    enum { PASSES = 1 + OPS_MAX_MORE };
    /* The first one sees no more than it may select. */
    static const uint32_t from[SEQS] = {56, 120, 122};
    struct model m;
    struct sample_out first[PASSES * SEQS], out[PASSES * SEQS];
    uint32_t token[SEQS], pos[SEQS];
    model_open(&m);
    bool (*recall)(struct ops *, enum lane, const void *, uint32_t) = m.ops->recall;
    m.ops->recall = NULL; /* all steps go through the table */
    reuse_rig_begin(m.ops, cuda_test_read);
    for (uint32_t s = 0; s < SEQS; s++)
        prefill(&m, s, from[s]);
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        for (uint32_t s = 0; s < SEQS; s++) {
            token[s] = pass ? first[(pass - 1) * SEQS + s].token : token_at(s, from[s]);
            pos[s] = from[s] + pass;
        }
        decode_on(&m, LANE_DECODE, 0, SEQS, pos, token, 0, first + pass * SEQS);
    }
    uint64_t n = reuse_rig_check(m.ops, 1);
    CHECK(n == 2 * m.c.n_layers * m.c.index_topk); /* of two sequences, in all three layers */
    uint64_t again = reuse_rig.want[0].again + reuse_rig.want[1].again + reuse_rig.want[2].again;
    printf("     %llu of %llu positions again\n", (unsigned long long)again, (unsigned long long)n);
    CHECK(again > 0 && again < n);
    m.ops->index_select = reuse_rig.select;
    m.ops->recall = recall;
    for (uint32_t round = 2; round < 5; round++) {
        memcpy(pos, from, sizeof pos);
        decode_on(&m, LANE_DECODE, 0, SEQS, pos, NULL, OPS_MAX_MORE, out);
        check_same(first, out, PASSES * SEQS, "watched, round", round);
        reuse_rig_check(m.ops, round);
    }
    model_close(&m);
}

/* The plan says what the device will give, within 2 %, and nearly all of its memory can be planned:
 * with pages for all that is free, steps of the most rows at the longest context run. */
TEST_LIMIT(plan_holds_at_the_limit, 600)
{
    enum { ROWS = 64 };
    struct model m;
    struct err e;
    model_open(&m); /* the context and the kernels have their memory from here on */
    bool device = m.ops->recall != NULL;
    struct ops_limits lim = m.ops->limits;
    m.ops->close(m.ops);
    forward_destroy(m.forward);
    if (!device) {
        cuda_weights_close(m.device);
        weights_close(m.host);
        TEST_SKIP("the emulated device has no memory of its own");
    }
    size_t before = cuda_device_free_bytes(0), page = kv_page_bytes(&m.c, lim.latent, lim.index);
    lim.n_pages = (uint32_t)((before - before / 50) / page);
    struct ops_plan plan = cuda_ops_plan(&m.c, &lim);
    size_t acts = forward_act_elements(&m.c, &lim) * sizeof(float);
    lim.n_pages -= (uint32_t)((plan.workspace_bytes + acts) / page);
    plan = cuda_ops_plan(&m.c, &lim);
    CHECK_OK(cuda_ops_open(&m.ops, &m.c, &lim, 0, &e), e);
    CHECK_OK(forward_create(&m.forward, m.ops, m.device, &e), e);
    size_t planned = plan.kv_bytes + plan.workspace_bytes + acts;
    size_t used = before - cuda_device_free_bytes(0);
    double off = 100.0 * ((double)used - (double)planned) / (double)planned;
    printf("     planned %zu MiB, used %zu MiB: %+.2f %%\n", planned >> 20, used >> 20, off);
    CHECK_MSG(fabs(off) <= 2.0, "planned %zu, used %zu bytes", planned, used);
    uint32_t last = lim.n_pages - SEQS * (CONTEXT / KV_PAGE_TOKENS); /* pages at the very end */
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < CONTEXT / KV_PAGE_TOKENS; i++)
            m.page[s][i] += last;
        prefill(&m, s, CONTEXT - 1 - OPS_MAX_MORE);
    }
    uint32_t token[ROWS], out_row[ROWS];
    struct step_seq q[ROWS];
    struct sample_row row[ROWS];
    struct sample_out out[ROWS];
    struct sample_params greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f};
    for (uint32_t i = 0; i < ROWS;
         i++) { /* a slot is written by several rows: bits do not matter */
        token[i] = i;
        out_row[i] = i;
        q[i] = (struct step_seq){.row0 = i,
                                 .n_rows = 1,
                                 .pos0 = CONTEXT - 1,
                                 .page = m.page[i % SEQS],
                                 .top_k = m.c.index_topk};
        row[i] = (struct sample_row){.p = &greedy, .position = CONTEXT};
    }
    struct step st = {.n_rows = ROWS,
                      .n_seqs = ROWS,
                      .token = token,
                      .seq = q,
                      .n_out = ROWS,
                      .out_row = out_row,
                      .sample = row,
                      .out = out};
    for (int again = 0; again < 3; again++)
        CHECK_OK(forward_step(m.forward, LANE_DECODE, &st, &e), e);
    CHECK(before - cuda_device_free_bytes(0) <= used + used / 100);
    model_close(&m);
}
