/* test_plan.c - what the plan chooses where nobody says: precision, latents, prompt tokens a step.
 *
 * The GPU back end's part of a plan stands below: a device whose workspace grows by a MiB a row.
 */
#include "cuda/cuda_ops.h"
#include "plan.h"
#include "test.h"

enum { GIB = 1 << 30, WEIGHT_BYTES = 20 << 20 };
static uint32_t n_devices;
static bool hopper;

uint32_t cuda_device_count(void)
{
    return n_devices;
}

bool cuda_device_multiplies_fp8(uint32_t device)
{
    return device < n_devices && hopper;
}

size_t cuda_device_free_bytes(uint32_t device)
{
    return device < n_devices ? (size_t)64 * GIB : 0;
}

struct ops_plan cuda_ops_plan(const struct model_config *cfg, const struct ops_limits *lim)
{
    return (struct ops_plan){.kv_bytes = kv_page_bytes(cfg, lim->latent, lim->index) * lim->n_pages,
                             .workspace_bytes = (size_t)lim->max_rows[LANE_PREFILL] << 20};
}

static struct model_config model_of(const char *fixture)
{
    struct model_config cfg;
    struct err e = {0};
    CHECK_OK(model_config_read(&cfg, test_fixture(fixture), &e), e);
    return cfg;
}

/* Goal:   what nobody names is as the model is deployed where the precision is, and an option that
 *         was given stays as it is.
 * Method: every precision, here and on three kinds of GPU, with latents whose rank is made of whole
 *         groups and with others; "elsewhere" plans for a GPU that is not here. */
TEST(forms_follow_the_model_and_the_device)
{
    enum { CPU, OLD, HOPPER, ELSEWHERE };
    enum { AUTO = -1 };
    static const struct {
        int precision, device;
        const char *model;
        enum precision want;
        enum latent_form latent;
    } row[] = {{AUTO, CPU, "v32-true-heads-fp8", PRECISION_FAST, LATENT_BF16},
               {AUTO, OLD, "v32-true-heads-fp8", PRECISION_FAST, LATENT_BF16},
               {AUTO, HOPPER, "v32-true-heads-fp8", PRECISION_FP8, LATENT_FP8},
               {AUTO, ELSEWHERE, "v32-true-heads-fp8", PRECISION_FP8, LATENT_FP8},
               {AUTO, HOPPER, "v32-fp8", PRECISION_FP8, LATENT_BF16}, /* a rank of 64 */
               {AUTO, HOPPER, "v32-bf16", PRECISION_FAST, LATENT_BF16},
               {PRECISION_FP8, CPU, "v32-true-heads-fp8", PRECISION_FP8, LATENT_FP8},
               {PRECISION_FP8, OLD, "v32-true-heads-fp8", PRECISION_FP8, LATENT_FP8},
               {PRECISION_FP8, CPU, "v32-fp8", PRECISION_FP8, LATENT_BF16},
               {PRECISION_FAST, HOPPER, "v32-true-heads-fp8", PRECISION_FAST, LATENT_BF16},
               {PRECISION_EXACT, HOPPER, "v32-true-heads-fp8", PRECISION_EXACT, LATENT_F32},
               {PRECISION_EXACT, CPU, "v32-bf16", PRECISION_EXACT, LATENT_F32}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct model_config cfg = model_of(row[i].model);
        struct engine_options o;
        n_devices = row[i].device == OLD || row[i].device == HOPPER;
        hopper = row[i].device == HOPPER;
        engine_options_default(&o);
        o.cuda_device = row[i].device == CPU ? -1 : 0;
        o.plan_for = row[i].device == ELSEWHERE ? GIB : 0;
        o.precision_by_model = row[i].precision == AUTO;
        if (!o.precision_by_model)
            o.precision = (enum precision)row[i].precision;
        struct engine_options given = o;
        o.latent_by_precision = true;
        plan_choose_forms(&o, &cfg);
        CHECK_MSG(o.precision == row[i].want && o.latent == row[i].latent, "row %zu: %s, %s", i,
                  precision_name(o.precision), latent_name(o.latent));
        for (int f = LATENT_F32; f <= LATENT_FP8; f++) {
            given.latent = (enum latent_form)f;
            plan_choose_forms(&given, &cfg);
            CHECK_MSG(given.latent == (enum latent_form)f, "row %zu: %d given", i, f);
        }
    }
}

static struct engine_plan plan_with(const struct engine_options *o, const struct model_config *cfg)
{
    struct plan_detail d;
    struct err e = {0};
    CHECK_OK(plan_make(&d, o, cfg, WEIGHT_BYTES, 0, &e), e);
    CHECK(!e.code); /* nothing is left of what was tried */
    CHECK(d.limits.max_rows[LANE_PREFILL] == d.plan.prefill_tokens);
    CHECK(d.plan.precision == o->precision && d.plan.latent == o->latent);
    return d.plan;
}

/* Goal:   on a GPU 2048 prompt tokens a step, fewer where only they leave one whole context, never
 *         less than 512; on a CPU 512; a number that was given stays.
 * Method: the memory with which a number just leaves a context, told by a plan with that number,
 * and two pages' worth less. */
TEST(prompt_tokens_of_a_step_leave_a_whole_context)
{
    struct model_config cfg = model_of("v32-bf16");
    struct engine_options o, given;
    engine_options_default(&o);
    n_devices = 1;
    CHECK(plan_with(&o, &cfg).prefill_tokens == 512);
    o.cuda_device = 0;
    CHECK(plan_with(&o, &cfg).prefill_tokens == 2048);
    for (uint32_t asked = 0; asked <= 4096;
         asked += 4096) { /* the model's context, and one asked */
        o.max_context = asked;
        for (uint32_t n = 2048; n >= 512; n /= 2) {
            given = o;
            given.plan_for = (uint64_t)64 * GIB;
            given.prefill_tokens = n;
            struct engine_plan p = plan_with(&given, &cfg);
            CHECK(p.prefill_tokens == n && p.max_context == (asked ? asked : cfg.max_position));
            uint64_t pages = (p.max_context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * p.page_bytes;
            o.plan_for = p.weight_bytes + p.workspace_bytes + (pages + 59) / 60 * 100;
            p = plan_with(&o, &cfg);
            CHECK_MSG(p.prefill_tokens == n, "%u of %u", p.prefill_tokens, n);
            o.plan_for -= 2 * p.page_bytes;
            if (n > 512) {
                p = plan_with(&o, &cfg);
                CHECK_MSG(p.prefill_tokens == n / 2, "%u of %u", p.prefill_tokens, n / 2);
            }
        }
        if (!asked) { /* nothing leaves a whole one: the longest that there is */
            struct engine_plan p = plan_with(&o, &cfg);
            CHECK(p.prefill_tokens == 512 && p.max_context < cfg.max_position);
            given = o;
            given.prefill_tokens = 514;
            p = plan_with(&given, &cfg);
            CHECK(p.prefill_tokens == 514 && p.max_context < cfg.max_position);
        }
    }
    struct plan_detail d;
    struct err e = {0};
    o.plan_for = WEIGHT_BYTES; /* not even 512 fit */
    CHECK(plan_make(&d, &o, &cfg, WEIGHT_BYTES, 0, &e) == ERR_INVALID);
    CHECK_MSG(strstr(e.msg, "0 are there; --device cpu"), "%s", e.msg);
}
