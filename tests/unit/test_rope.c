/* test_rope.c - the two rotations, and that rope_q turns the right values by the right angles. */
#include "cpu/rope.h"
#include "dsa_rig.h"

static bool near(float a, double b)
{
    return fabs((double)a - b) < 1e-6 * (1.0 + fabs(b));
}

TEST(rope_published_values)
{
    float half[64] = {1.0f}, inter[64] = {1.0f}, cs[32], sn[32];
    for (int i = 0; i < 32; i++) {
        cs[i] = cosf(powf(10000.0f, -(float)i / 32.0f));
        sn[i] = sinf(powf(10000.0f, -(float)i / 32.0f));
    }
    rope_half_split(half, 64, cs, sn);
    rope_interleaved(inter, 64, cs, sn);
    CHECK(near(half[0], 0.5403023) && near(half[32], 0.8414710) && half[1] == 0.0f);
    CHECK(near(inter[0], 0.5403023) && near(inter[1], 0.8414710) && inter[32] == 0.0f);
}

TEST(rope_against_complex_numbers)
{
    struct rng r = {3};
    for (uint32_t dim = 2; dim <= 64; dim += 2) {
        float x[64], y[64], z[64], cs[32], sn[32];
        for (uint32_t i = 0; i < dim; i++)
            x[i] = y[i] = z[i] = rng_normal(&r);
        for (uint32_t i = 0; i < dim / 2; i++) {
            float angle = 6.0f * rng_normal(&r);
            cs[i] = cosf(angle);
            sn[i] = sinf(angle);
        }
        rope_interleaved(y, dim, cs, sn);
        rope_half_split(z, dim, cs, sn);
        for (uint32_t i = 0; i < dim / 2; i++) {
            double c = (double)cs[i], s = (double)sn[i];
            double a = (double)x[2 * i], b = (double)x[2 * i + 1];
            CHECK(near(y[2 * i], a * c - b * s) && near(y[2 * i + 1], a * s + b * c));
            a = (double)x[i];
            b = (double)x[i + dim / 2];
            CHECK(near(z[i], a * c - b * s) && near(z[i + dim / 2], a * s + b * c));
        }
    }
}

TEST(rope_q_turns_the_tail_of_each_head)
{
    struct rng r = {4};
    struct model_config c = rig_config();
    struct ops_limits lim = rig_limits(LATENT_F32, INDEX_EXACT, 2);
    struct cpu_backend *b = rig_open(&c, &lim);
    enum { N = 37 };
    uint32_t page[8] = {3, 1, 4, 0, 5, 9, 2, 6}, token[N] = {0};
    struct step_seq seq[2] = {{.row0 = 0, .n_rows = 30, .pos0 = 100, .page = page},
                              {.row0 = 30, .n_rows = 7, .pos0 = 0, .page = page}};
    struct step st = {.n_rows = N, .n_seqs = 2, .token = token, .seq = seq};
    size_t qk = model_qk_dim(&c), n = N * c.n_heads * qk;
    float *q = rig_random(&r, n, 1.0f), *was = malloc(4 * n);
    CHECK(was);
    memcpy(was, q, 4 * n);
    struct err e;
    b->ops.begin(&b->ops, LANE_PREFILL, &st);
    b->ops.rope_q(&b->ops, LANE_PREFILL, q);
    CHECK_OK(b->ops.finish(&b->ops, LANE_PREFILL, &e), e);
    for (uint32_t row = 0; row < N; row++) {
        uint32_t pos = row < 30 ? 100 + row : row - 30;
        for (uint32_t h = 0; h < c.n_heads; h++) {
            const float *x = was + (row * c.n_heads + h) * qk, *y = q + (row * c.n_heads + h) * qk;
            CHECK(!memcmp(x, y, 4 * (size_t)c.nope_dim));
            for (uint32_t i = 0; i < c.rope_dim / 2; i++) {
                float angle = (float)pos * c.rope_freq[i]; /* fp32, as the reference has it */
                double cs = cos((double)angle), sn = sin((double)angle);
                double a = (double)x[c.nope_dim + 2 * i], d = (double)x[c.nope_dim + 2 * i + 1];
                CHECK(near(y[c.nope_dim + 2 * i], a * cs - d * sn));
                CHECK(near(y[c.nope_dim + 2 * i + 1], a * sn + d * cs));
            }
        }
    }
    free(q);
    free(was);
    b->ops.close(&b->ops);
}
