/* test_ranks.c - every member of the family cut over ranks.
 *
 * Goal:   each layout agrees with the independent implementation as one rank does (test_models.c);
 *         where no sum is cut (tp 1) the logits are one rank's bit for bit, with experts whole
 *         they do not depend on ep or dp at any tp, and with cut sums neither on the rows that run
 *         together nor on the lane.
 * Method: the six fixtures, in chunks of odd sizes, in both lanes, other groups helping or idle.
 */
#include "tests/golden/ranks_rig.h"

#include "base/fault.h"

#include <math.h>
#include <pthread.h>

enum { MAX_VALUES = 160 * 384 };

/* Layouts of one tp stand together; the first of those with experts spread is their yardstick. */
static const uint32_t layouts[][3] = {{1, 2, 1}, {1, 2, 2}, {1, 4, 4}, {2, 1, 1}, {2, 1, 2},
                                      {2, 2, 4}, {2, 2, 2}, {4, 1, 1}, {4, 1, 4}};

static struct ranks_rig_options options(const uint32_t *layout, enum precision p)
{
    return (struct ranks_rig_options){.tp = layout[0],
                                      .dp = layout[1],
                                      .ep = layout[2],
                                      .precision = p,
                                      .latent = LATENT_F32,
                                      .index = INDEX_EXACT,
                                      .max_rows = 128,
                                      .context = 1024};
}

struct prompt {
    const uint32_t *ids;
    const float *want;
    uint32_t n, n_want, vocab;
};

static bool read_prompt(struct safetensors *st, uint32_t i, struct prompt *p)
{
    char name[64];
    snprintf(name, sizeof name, "prompt.%u.ids", i);
    const struct tensor *ids = safetensors_find(st, name);
    snprintf(name, sizeof name, "prompt.%u.logits", i);
    const struct tensor *logits = safetensors_find(st, name);
    if (!ids || !logits)
        return false;
    *p = (struct prompt){ids->data, logits->data, (uint32_t)ids->dim[0], (uint32_t)logits->dim[0],
                         (uint32_t)logits->dim[1]};
    return true;
}

static double log_sum_exp(const float *x, uint32_t n)
{
    double m = -INFINITY, s = 0;
    for (uint32_t i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    for (uint32_t i = 0; i < n; i++)
        s += exp(x[i] - m);
    return m + log(s);
}

/* The largest difference of log-probabilities; rows that the fast precision cannot decide (see
 * test_models.c, undecided()) do not count. */
static double worst_of(const struct prompt *p, const float *logits, uint32_t skip)
{
    double worst = 0;
    for (uint32_t r = 0; r < p->n_want; r++) {
        const float *want = p->want + (size_t)r * p->vocab, *got = logits + (size_t)r * p->vocab;
        double a = log_sum_exp(want, p->vocab), b = log_sum_exp(got, p->vocab);
        if (p->n - p->n_want + r == skip)
            continue;
        for (uint32_t i = 0; i < p->vocab; i++) {
            double d = fabs((want[i] - a) - (got[i] - b));
            if (isnan(d) || d > worst) /* a NaN stays */
                worst = d;
        }
    }
    return worst;
}

static float one[MAX_VALUES], spread[MAX_VALUES], got[MAX_VALUES], again[MAX_VALUES];

static void run(const char *model, const struct ranks_rig_options *o, const struct prompt *p,
                uint32_t chunk, enum lane l, float *logits)
{
    struct model_config cfg;
    struct ranks *r;
    struct err e = {0};
    CHECK((size_t)p->n_want * p->vocab <= MAX_VALUES);
    ranks_rig_open(&r, &cfg, model, o);
    CHECK_OK(ranks_rig_run(r, &cfg, l, p->ids, p->n, chunk, p->n - p->n_want, logits, &e), e);
    ranks_close(r);
}

static void check_model(const char *model, enum precision precision, double tolerance)
{
    static const uint32_t alone[] = {1, 1, 1}, undecided[] = {UINT32_MAX, 100, 198};
    struct safetensors *st;
    struct prompt p;
    struct err e = {0};
    char path[300];
    snprintf(path, sizeof path, "%s/expected.safetensors", test_fixture(model));
    CHECK_OK(safetensors_open_file(&st, path, &e), e);
    for (uint32_t i = 0; i < 2 && read_prompt(st, i, &p); i++) {
        bool hard = precision == PRECISION_FAST && !strcmp(model, "v32-bf16");
        size_t bytes = sizeof(float) * p.n_want * p.vocab;
        struct ranks_rig_options o = options(alone, precision);
        uint32_t yard_tp = 0;
        run(model, &o, &p, 128, LANE_PREFILL, one);
        for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
            const uint32_t *t = layouts[k];
            o = options(t, precision);
            run(model, &o, &p, k % 2 ? 128 : 37, k % 3 ? LANE_PREFILL : LANE_DECODE, got);
            double worst = worst_of(&p, got, hard ? undecided[i] : UINT32_MAX);
            printf("     %s prompt %u: tp %u dp %u ep %u: worst %.2e\n", model, i, t[0], t[1], t[2],
                   worst);
            CHECK_MSG(worst <= tolerance, "%s prompt %u, tp %u dp %u ep %u: %g (%g allowed)", model,
                      i, t[0], t[1], t[2], worst, tolerance);
            if (t[0] == 1)
                CHECK_MSG(!memcmp(got, one, bytes), "%s prompt %u, dp %u ep %u: other bits", model,
                          i, t[1], t[2]);
            if (t[0] > 1) {
                run(model, &o, &p, k % 2 ? 37 : 128, k % 3 ? LANE_DECODE : LANE_PREFILL, again);
                CHECK_MSG(!memcmp(got, again, bytes),
                          "%s prompt %u, tp %u dp %u ep %u: other bits in other chunks", model, i,
                          t[0], t[1], t[2]);
            }
            if (t[2] == 1 || t[0] * t[1] != t[2])
                continue;
            if (yard_tp == t[0])
                CHECK_MSG(!memcmp(got, spread, bytes),
                          "%s prompt %u, tp %u dp %u ep %u: other bits", model, i, t[0], t[1],
                          t[2]);
            memcpy(spread, got, bytes);
            yard_tp = t[0];
        }
    }
    safetensors_close(st);
}

TEST_LIMIT(exact_dense, 400)
{
    check_model("v2-lite-bf16", PRECISION_EXACT, 2e-3);
    check_model("v3-bf16", PRECISION_EXACT, 2e-3);
}
TEST_LIMIT(exact_sparse, 400)
{
    check_model("v32-bf16", PRECISION_EXACT, 2e-3);
    check_model("glm-dsa-bf16", PRECISION_EXACT, 2e-3);
}
TEST_LIMIT(exact_fp8, 400)
{
    check_model("v32-fp8", PRECISION_EXACT, 2e-3);
    check_model("v32-true-heads-fp8", PRECISION_EXACT, 2e-3);
}
TEST_LIMIT(fast_precision, 500)
{
    static const char *const models[] = {"v32-bf16", "v32-true-heads-fp8", "glm-dsa-bf16"};
    for (int i = 0; i < 3; i++)
        check_model(models[i], PRECISION_FAST, 2e-2);
}

static void first_prompt(const char *model, struct safetensors **st, struct prompt *p)
{
    struct err e = {0};
    char path[300];
    snprintf(path, sizeof path, "%s/expected.safetensors", test_fixture(model));
    CHECK_OK(safetensors_open_file(st, path, &e), e);
    CHECK(read_prompt(*st, 1, p));
}

/* Goal: rows that travel as e4m3 carry exactly what one rank rounds; copies of hot experts and
 * other places change no bit either. */
TEST_LIMIT(rounded_rows_and_placements, 400)
{
    static const char hot[] = "{\"parts\": [[0,3,5,7,9,11,13,15,2], [1,2,4,6,8,10,12,14,3]]}";
    static const uint32_t alone[] = {1, 1, 1}, two[] = {1, 2, 2}, four[] = {1, 4, 4};
    struct safetensors *st;
    struct prompt p;
    char path[300];
    snprintf(path, sizeof path, "%s/map.json", test_tmpdir());
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(hot, f) >= 0 && fclose(f) == 0);
    first_prompt("v32-fp8", &st, &p);
    size_t bytes = sizeof(float) * p.n_want * p.vocab;
    for (int form = EXPERT_F32; form <= EXPERT_FP8; form++) {
        struct ranks_rig_options o = options(alone, PRECISION_FAST);
        o.expert = (enum expert_form)form;
        run("v32-fp8", &o, &p, 128, LANE_PREFILL, form ? spread : one);
        for (int k = 0; k < 3; k++) {
            o = options(k == 1 ? four : two, PRECISION_FAST);
            o.expert = (enum expert_form)form;
            o.placement = k == 2 ? path : NULL;
            run("v32-fp8", &o, &p, 50, LANE_PREFILL, got);
            CHECK_MSG(!memcmp(got, form ? spread : one, bytes), "form %d, layout %d", form, k);
        }
    }
    CHECK(memcmp(one, spread, bytes) != 0); /* the forms do differ */
    safetensors_close(st);
}

struct compared { /* one rank's step: two rows that select, behind one that does not */
    struct rank *rank;
    int32_t *sel;
    struct err err;
};

static void *compare(void *arg)
{
    static const uint32_t token[3] = {1, 2, 3}, page[64];
    struct compared *c = arg;
    struct ops *o = c->rank->ops;
    uint32_t top_k = o->cfg->index_topk;
    struct step_seq seq[] = {
        {.n_rows = 1, .page = page, .top_k = top_k},
        {.row0 = 1, .n_rows = 2, .pos0 = top_k, .page = page, .top_k = top_k}};
    struct step s = {.n_rows = 3, .n_seqs = 2, .token = token, .seq = seq};
    o->begin(o, LANE_DECODE, &s);
    o->compare_selections(o, LANE_DECODE, c->sel);
    if (!o->finish(o, LANE_DECODE, &c->err))
        c->err.code = ERR_OK;
    return NULL;
}

/* Goal: ranks of a group that selected other positions are an error of all of them, whichever one
 * and position it is; rows that do not select are not compared. (Debug builds compare each.) */
TEST_LIMIT(selections_that_differ, 100)
{
    static const uint32_t layout[] = {4, 1, 1};
    for (int who = -1; who < 4; who++) {
        struct ranks_rig_options o = options(layout, PRECISION_EXACT);
        struct model_config cfg;
        struct ranks *r;
        struct compared c[4];
        pthread_t thread[4];
        ranks_rig_open(&r, &cfg, "v32-bf16", &o);
        size_t n = 3 * cfg.index_topk;
        int32_t *sel = malloc(n * sizeof *sel);
        CHECK(sel);
        for (int i = 0; i < 4; i++) {
            for (size_t k = 0; k < n; k++)
                sel[k] = (int32_t)(k % cfg.index_topk);
            sel[0] = i; /* a row that does not select */
            if (i == who)
                sel[who % 2 ? n - 1 : cfg.index_topk]++;
            c[i] = (struct compared){.rank = &r->rank[i],
                                     .sel = r->rank[i].ops->alloc_sel(r->rank[i].ops, LANE_DECODE)};
            CHECK(c[i].sel);
            ranks_rig_write(c[i].sel, sel, n * sizeof *sel);
        }
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&thread[i], NULL, compare, &c[i]) == 0);
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_join(thread[i], NULL) == 0);
            CHECK_MSG(c[i].err.code == (who < 0 ? ERR_OK : ERR_COMM), "rank %d of %d: %s", i, who,
                      c[i].err.msg);
            CHECK_MSG(who < 0 || strstr(c[i].err.msg, "selected other positions"), "%s",
                      c[i].err.msg);
        }
        free(sel);
        ranks_close(r);
    }
}

/* The calls of one run, each failed once in steps of `stride`; gives how many there were. */
static uint32_t fail_each(const uint32_t *layout, const char *call, uint32_t stride,
                          const struct prompt *p)
{
    uint32_t failed = 0;
    for (uint32_t at = 1;; at += stride, failed++) {
        struct ranks_rig_options o = options(layout, PRECISION_EXACT);
        struct model_config cfg;
        struct ranks *r;
        struct err e = {0};
        char spec[40];
        ranks_rig_open(&r, &cfg, "v32-bf16", &o);
        snprintf(spec, sizeof spec, "%s:%u", call, at);
        fault_arm(spec);
        enum err_code code =
            ranks_rig_run(r, &cfg, LANE_PREFILL, p->ids, p->n, 128, p->n - p->n_want, got, &e);
        bool passed = fault_passages() < at;
        fault_arm(NULL);
        CHECK_MSG(passed == !code && (!code || code == ERR_COMM), "%s %u: %s", call, at, e.msg);
        ranks_close(r);
        if (passed)
            return failed;
    }
}

/* Goal: a communication call that fails ends the step on all ranks, soon, with its message. */
TEST_LIMIT(every_call_may_fail, 400)
{
    static const uint32_t two[] = {2, 1, 1}, experts[] = {1, 2, 2}, both[] = {2, 2, 4};
    struct safetensors *st;
    struct prompt p;
    first_prompt("v32-bf16", &st, &p);
    CHECK(fail_each(two, "comm.all_reduce", 1, &p) >= 8);
    CHECK(fail_each(two, "comm.all_to_allv", 1, &p) >= 4); /* logits */
    CHECK(fail_each(experts, "comm.all_to_all", 1, &p) >= 4);
    CHECK(fail_each(experts, "comm.all_to_allv", 1, &p) >= 8);
    CHECK(fail_each(both, "comm.all_reduce", 3, &p) >= 4);
    CHECK(fail_each(both, "comm.all_to_allv", 5, &p) >= 4);
    safetensors_close(st);
}
