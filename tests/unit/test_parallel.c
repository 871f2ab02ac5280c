/* test_parallel.c - the plan of ranks, and weights cut by it.
 *
 * Goal:   every layout gives each weight to somebody, whole parts put together are the matrix, and
 *         what does not divide is refused with both numbers.
 * Method: the fixtures, whose FP8 parts begin within blocks; each rank's matrices, dequantised, are
 *         held against the same rows and columns of the whole model's.
 */
#include "model/weights.h"
#include "test.h"

#include <math.h>

static struct model_config config_of(const char *name)
{
    struct model_config c;
    struct err e = {0};
    CHECK_OK(model_config_read(&c, test_fixture(name), &e), e);
    return c;
}

static float e4m3(uint8_t x)
{
    int exponent = x >> 3 & 15, mantissa = x & 7;
    float f = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return x & 0x80 ? -f : f;
}

static float value(const struct matrix *m, uint32_t row, uint32_t column)
{
    size_t at = (size_t)row * (m->stride ? m->stride : m->n_in) + column;
    CHECK(row < m->n_out && column < m->n_in);
    if (m->dtype == DT_F32)
        return ((const float *)m->data)[at];
    if (m->dtype == DT_BF16) {
        uint32_t bits = (uint32_t)((const uint16_t *)m->data)[at] << 16;
        float f;
        memcpy(&f, &bits, 4);
        return f;
    }
    CHECK(m->dtype == DT_F8_E4M3);
    return e4m3(((const uint8_t *)m->data)[at]) *
           m->scale[row / 128 * (((size_t)m->n_in + 127) / 128) + column / 128];
}

static uint64_t n_seen;

static void same_part(const struct matrix *part, const struct matrix *whole, uint32_t row0,
                      uint32_t column0)
{
    CHECK(row0 + part->n_out <= whole->n_out && column0 + part->n_in <= whole->n_in);
    for (uint32_t i = 0; i < part->n_out; i += 1 + i % 5)
        for (uint32_t k = 0; k < part->n_in; k++) {
            float a = value(part, i, k), b = value(whole, row0 + i, column0 + k);
            CHECK_MSG(!memcmp(&a, &b, 4), "row %u column %u: %g, the whole has %g", i, k, (double)a,
                      (double)b);
        }
    n_seen += part->n_in;
}

static void same_ffn(const struct ffn_weights *part, const struct ffn_weights *whole, uint32_t i)
{
    uint32_t n = part->gate.n_out;
    CHECK(part->up.n_out == n && part->down.n_in == n);
    same_part(&part->gate, &whole->gate, i * n, 0);
    same_part(&part->up, &whole->up, i * n, 0);
    same_part(&part->down, &whole->down, 0, i * n);
}

static void check_rank(const struct rank_share *s, const struct model_config *c, const char *dir,
                       const struct weights *whole, bool views)
{
    struct err e = {0};
    struct weights *w;
    struct model_config mine = parallel_config(s, c);
    uint32_t t = s->tp_rank;
    CHECK_OK(weights_open_share(&w, dir, c, s, views, NULL, NULL, &e), e);
    CHECK(mine.n_heads * s->plan->tp == c->n_heads);
    same_part(&w->embed, &whole->embed, 0, 0);
    same_part(&w->head, &whole->head, s->plan->cut_head ? t * w->head.n_out : 0, 0);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const struct layer_weights *p = &w->layer[l], *a = &whole->layer[l];
        if (c->q_lora_rank)
            same_part(&p->q_b, &a->q_b, t * p->q_b.n_out, 0);
        else
            same_part(&p->q, &a->q, t * p->q.n_out, 0);
        same_part(&p->kv_a, &a->kv_a, 0, 0);
        same_part(&p->kv_b, &a->kv_b, t * p->kv_b.n_out, 0);
        same_part(&p->o, &a->o, 0, t * p->o.n_in);
        CHECK(p->o.n_in == mine.n_heads * mine.v_dim);
        if (!model_is_moe(c, l)) {
            same_ffn(&p->dense, &a->dense, t);
            CHECK(p->dense.gate.n_out == mine.dense_width);
            continue;
        }
        same_part(&p->router, &a->router, 0, 0);
        same_ffn(&p->shared, &a->shared, t);
        CHECK(p->shared.gate.n_out == model_shared_width(&mine));
        for (uint32_t i = 0; i < model_held_experts(&mine); i++) {
            uint32_t id = parallel_held(s->plan, l, s->part, i);
            same_ffn(&p->expert[i], &a->expert[id], s->width_rank);
            CHECK(p->expert[i].gate.n_out == mine.expert_width);
        }
    }
    weights_close(w);
}

static const uint32_t layouts[][3] = {{1, 1, 1}, {2, 1, 1}, {4, 1, 1}, {1, 2, 1}, {1, 2, 2},
                                      {1, 4, 4}, {2, 2, 4}, {2, 1, 2}, {4, 1, 2}, {2, 4, 4}};

TEST_LIMIT(parts_are_the_matrices, 60)
{
    static const char *const models[] = {"v2-lite-bf16",       "v3-bf16",     "v32-bf16", "v32-fp8",
                                         "v32-true-heads-fp8", "glm-dsa-bf16"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct model_config c = config_of(models[m]);
        struct weights *whole;
        struct err e = {0};
        CHECK_OK(weights_open(&whole, test_fixture(models[m]), &c, NULL, NULL, &e), e);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
            struct parallel p;
            char dir[256];
            snprintf(dir, sizeof dir, "%s", test_fixture(models[m]));
            CHECK_OK(parallel_make(&p, &c, layouts[i][0], layouts[i][1], layouts[i][2], NULL, &e),
                     e);
            for (uint32_t r = 0; r < p.n_ranks; r++) {
                struct rank_share s = parallel_share(&p, r);
                CHECK(s.rank == s.group * p.tp + s.tp_rank);
                check_rank(&s, &c, dir, whole, i % 2);
            }
            parallel_free(&p);
        }
        weights_close(whole);
    }
    CHECK(n_seen > 100000);
}

/* The published model over 8 ranks: each expert once, and all bytes somewhere. */
TEST(published_layouts)
{
    struct model_config c = config_of("v32-fp8");
    struct err e = {0};
    c.n_layers = 61;
    c.n_dense_layers = 3;
    c.hidden_size = 7168;
    c.dense_width = 18432;
    c.n_heads = 128;
    c.q_lora_rank = 1536;
    c.kv_lora_rank = 512;
    c.nope_dim = c.v_dim = 128;
    c.rope_dim = 64;
    c.n_experts = 256;
    c.n_active = 8;
    c.expert_width = 2048;
    c.vocab_size = 129280;
    c.index_heads = 64;
    c.index_dim = 128;
    for (uint32_t i = 0; i < 61; i++)
        c.index_full[i] = true;
    static const uint32_t of[][3] = {{8, 1, 1}, {1, 8, 8}, {8, 1, 8}, {2, 4, 8}};
    double whole = (double)weights_bytes(&c, DT_F8_E4M3);
    for (int i = 0; i < 4; i++) {
        struct parallel p;
        CHECK_OK(parallel_make(&p, &c, of[i][0], of[i][1], of[i][2], NULL, &e), e);
        double sum = 0;
        for (uint32_t r = 0; r < 8; r++) {
            struct rank_share s = parallel_share(&p, r);
            sum += (double)weights_bytes_share(&c, &s, DT_F8_E4M3);
        }
        printf("     tp %u dp %u ep %u: %.1f GB each, %.1f GB in all, %.1f GB in one piece\n", p.tp,
               p.dp, p.ep, sum / 8e9, sum / 1e9, whole / 1e9);
        CHECK(sum >= whole && sum / 8 < 110e9);
        if (p.ep == 8)
            for (uint32_t x = 0; x < 256; x++) {
                uint32_t n, at = parallel_places(&p, 30, x, &n)[0];
                CHECK(n == 1 && at / p.n_held == x / 32 && at % p.n_held == x % 32);
            }
        parallel_free(&p);
    }
}

static void refused(const struct model_config *c, uint32_t tp, uint32_t dp, uint32_t ep,
                    const char *map, const char *a, const char *b)
{
    struct parallel p;
    struct err e = {0};
    enum err_code code = parallel_make(&p, c, tp, dp, ep, map, &e);
    CHECK_MSG(code == ERR_INVALID && strstr(e.msg, a) && strstr(e.msg, b), "tp %u dp %u ep %u: %s",
              tp, dp, ep, e.msg);
}

TEST(what_does_not_divide_is_refused)
{
    struct model_config c = config_of("v32-bf16"), dense = c;
    refused(&c, 3, 1, 1, NULL, "3", "num_attention_heads: 4");
    refused(&c, 8, 1, 1, NULL, "8", "num_attention_heads: 4");
    refused(&c, 0, 1, 1, NULL, "tp 0", "at least 1");
    refused(&c, 1, 2, 4, NULL, "ep: 4", "tp * dp: 2");
    refused(&c, 1, 3, 3, NULL, "ep: 3", "n_routed_experts: 16");
    refused(&c, 4, 100, 1, NULL, "4", "100");
    dense.n_experts = 0;
    refused(&dense, 1, 2, 2, NULL, "ep: 2", "no experts");
    dense = c;
    dense.dense_width = 223;
    refused(&dense, 2, 1, 1, NULL, "2", "223");
    dense = c;
    dense.expert_width = 50;
    refused(&dense, 4, 1, 1, NULL, "4", "50");
}

static const char *map_file(const char *text)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/map.json", test_tmpdir());
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
    return path;
}

TEST(placements_are_read_and_checked)
{
    struct model_config c = config_of("v32-bf16");
    struct err e = {0};
    struct parallel p;
    const char *hot = "{\"parts\": [[0,1,2,3,4,5,6,7,15], [8,9,10,11,12,13,14,15,0]]}";
    CHECK_OK(parallel_make(&p, &c, 1, 2, 2, map_file(hot), &e), e);
    uint32_t n;
    const uint32_t *at = parallel_places(&p, 1, 0, &n);
    CHECK(p.n_held == 9 && n == 2 && at[0] == 0 && at[1] == 17);
    CHECK(parallel_held(&p, 1, 1, 7) == 15 && parallel_held(&p, 1, 0, 8) == 15);
    parallel_places(&p, 1, 9, &n);
    CHECK(n == 1);
    parallel_free(&p);
    const char *half = "[0,2,4,6,8,10,12,14],[1,3,5,7,9,11,13,15]";
    char layers[200];
    snprintf(layers, sizeof layers, "{\"layers\": {\"1\": [%s]}}", half);
    CHECK_OK(parallel_make(&p, &c, 1, 2, 2, map_file(layers), &e), e);
    CHECK(parallel_held(&p, 1, 1, 2) == 5);
    parallel_free(&p);
    refused(&c, 1, 2, 1, map_file(hot), "ep above 1", "1");
    refused(&c, 1, 4, 4, map_file(hot), "2 lists", "ep is 4");
    refused(&c, 1, 2, 2, map_file("{\"parts\": [[0,1], [2]]}"), "1 experts", "the first one 2");
    refused(&c, 1, 2, 2, map_file("{\"parts\": [[0,1], [2,3]]}"), "expert 4 of 16", "no place");
    refused(&c, 1, 2, 2, map_file("{\"parts\": [[0,0], [2,3]]}"), "expert 0", "twice");
    refused(&c, 1, 2, 2, map_file("{\"parts\": [[0,16], [2,3]]}"), "entry 1", "16");
    refused(&c, 1, 2, 2, map_file("{\"layers\": {\"0\": [[0],[1]]}}"), "layers: 1", "missing");
    refused(&c, 1, 2, 2, map_file("{}"), "parts", "layers");
}
