/* bench_kernels.c - products, feed-forward networks and the pool, beside what the machine can do.
 *
 *   bench_kernels [part of a row's name]
 *
 * A row per case: what, shape, median and spread of the runs in us, GB/s of weights or GFLOP/s, and
 * the share of the limit measured first, in the same run and on as many threads: a loop of bf16 (or
 * fp32) multiply-adds on registers for many rows of x, a loop that reads memory for few. "cold"
 * walks over copies of the weights, 512 MB in all; "hot" takes the same ones again. */
#include "base/clock.h"
#include "base/thread.h"
#include "cpu/backend.h"
#include "cpu/cpu_ops.h"
#include "cpu/fp8.h"
#include "cpu/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 21, COLD_BYTES = 512 << 20, ROWS = 512 };
enum { RUN_US = 3000 }; /* a run repeats its case until this much time has passed */

static const char *filter = "";
struct result {
    double median_us, min_us, max_us;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Times fn(arg, i), i counting calls. The first run sets the number of repeats and warms up. */
static struct result time_it(void (*fn)(void *, uint32_t), void *arg)
{
    double us[RUNS];
    uint32_t repeats = 0, i = 0;
    for (uint64_t t = clock_us(); clock_us() - t < RUN_US; repeats++)
        fn(arg, i++);
    for (int run = 0; run < RUNS; run++) {
        uint64_t t = clock_us();
        for (uint32_t k = 0; k < repeats; k++)
            fn(arg, i++);
        us[run] = (double)(clock_us() - t) / repeats;
    }
    qsort(us, RUNS, sizeof *us, by_value);
    return (struct result){us[RUNS / 2], us[0], us[RUNS - 1]};
}

static void row(const char *what, const char *shape, struct result r, double amount,
                const char *unit, double limit)
{
    double rate = amount / r.median_us / 1e3; /* per ns: GB/s of bytes, GFLOP/s of operations */
    printf("%-24s %-22s %10.2f us %9.2f-%-9.2f", what, shape, r.median_us, r.min_us, r.max_us);
    if (amount > 0)
        printf(" %8.1f %-7s", rate, unit);
    if (limit > 0)
        printf(" %4.0f%%", 100 * rate / limit);
    putchar('\n');
}

/* ---- limits ---- */

/* Of this many threads together. */
struct machine {
    double bf16, f32, cold, hot; /* GFLOP/s, GFLOP/s, GB/s of 512 MB, GB/s of half a megabyte */
};

static struct machine measure(uint32_t threads)
{
    struct cpu_limits l;
    struct err e;
    if (cpu_limits_measure(&l, threads, &e))
        exit(1);
    struct machine m = {l.bf16_flops / 1e9, l.f32_flops / 1e9, l.cold_bytes / 1e9,
                        l.hot_bytes / 1e9};
    printf("limits, %u threads: %.0f GFLOP/s bf16, %.0f GFLOP/s f32, read %.1f GB/s of 512 MB, "
           "%.1f GB/s of 512 KB\n",
           threads, m.bf16, m.f32, m.cold, m.hot);
    return m;
}

/* ---- products ---- */

struct linear_case {
    struct ops *o;
    struct matrix w;
    const char *memory;
    uint32_t n, n_copies;
    float *x, *y;
};

static void linear_run(void *arg, uint32_t i)
{
    struct linear_case *c = arg;
    struct matrix w = c->w;
    size_t bytes = (size_t)w.n_out * w.n_in * dtype_bytes(w.dtype);
    w.data = c->memory + i % c->n_copies * bytes;
    c->o->linear(c->o, LANE_PREFILL, &w, c->x, c->n, c->y, false);
}

static void linear_row(struct linear_case *c, const struct machine *m, bool cold)
{
    size_t bytes = (size_t)c->w.n_out * c->w.n_in * dtype_bytes(c->w.dtype);
    bool bf16 = (c->w.dtype == DT_BF16 || c->w.dtype == DT_F8_E4M3) &&
                c->o->limits.precision == PRECISION_FAST,
         many = c->n > 16;
    c->n_copies = cold ? (uint32_t)(COLD_BYTES / bytes) : 1;
    char shape[64], what[64];
    snprintf(shape, sizeof shape, "%ux%u n=%u", c->w.n_out, c->w.n_in, c->n);
    snprintf(what, sizeof what, "%s %s %ut %s", dtype_name(c->w.dtype), bf16 ? "fast" : "exact",
             c->o->limits.n_threads, cold ? "cold" : "hot");
    if (!strstr(what, filter) && !strstr(shape, filter))
        return;
    double amount = many ? 2.0 * c->n * c->w.n_out * c->w.n_in : (double)bytes;
    double limit = many ? bf16 && m->bf16 > 0 ? m->bf16 / 2 : m->f32 : cold ? m->cold : m->hot;
    row(what, shape, time_it(linear_run, c), amount, many ? "GFLOP/s" : "GB/s", limit);
}

/* ---- the layers of a small model: 16 experts of 192, 4 chosen, hidden 384 ---- */

struct moe_case {
    struct ops *o;
    struct layer_weights *layer;
    uint32_t n, n_layers;
    float *x, *y;
};

static void moe_run(void *arg, uint32_t i)
{
    struct moe_case *c = arg;
    c->o->moe(c->o, LANE_PREFILL, 0, &c->layer[i % c->n_layers], c->x, c->n, c->y, true);
}
static void ffn_run(void *arg, uint32_t i)
{
    struct moe_case *c = arg;
    c->o->ffn(c->o, LANE_PREFILL, &c->layer[i % c->n_layers].dense, c->x, c->n, c->y, true);
}

static struct matrix part_of(const char **memory, enum dtype t, uint32_t n_out, uint32_t n_in)
{
    struct matrix m = {*memory, t, NULL, n_out, n_in, 0};
    *memory += (size_t)n_out * n_in * dtype_bytes(t);
    return m;
}

static void moe_rows(struct ops *o, const char *memory, float *x, float *y)
{
    enum { LAYERS = 6 };
    static struct layer_weights layer[LAYERS];
    static struct ffn_weights expert[LAYERS][16];
    static float bias[16];
    for (int i = 0; i < LAYERS; i++) {
        struct layer_weights *w = &layer[i];
        w->router = part_of(&memory, DT_BF16, 16, 384);
        w->router_bias = bias;
        w->expert = expert[i];
        for (int e = 0; e < 17; e++) {
            struct ffn_weights *f = e < 16 ? &expert[i][e] : &w->shared;
            f->gate = part_of(&memory, DT_BF16, 192, 384);
            f->up = part_of(&memory, DT_BF16, 192, 384);
            f->down = part_of(&memory, DT_BF16, 384, 192);
        }
        w->dense.gate = part_of(&memory, DT_BF16, 1152, 384);
        w->dense.up = part_of(&memory, DT_BF16, 1152, 384);
        w->dense.down = part_of(&memory, DT_BF16, 384, 1152);
    }
    static const uint32_t N[] = {1, 4, 16, ROWS};
    for (int i = 0; i < 8; i++) {
        struct moe_case c = {o, layer, N[i % 4], LAYERS, x, y};
        char shape[64];
        snprintf(shape, sizeof shape, "n=%u", c.n);
        bool dense = i >= 4;
        double width = dense ? 1152 : 5 * 192, ops = 2.0 * c.n * 3 * 384 * width;
        if (strstr(dense ? "ffn" : "moe", filter))
            row(dense ? "ffn 1152x384 6 layers" : "moe 16x192x384 6 layers", shape,
                time_it(dense ? ffn_run : moe_run, &c), ops, "GFLOP/s", 0);
    }
}

/* ---- the pool alone ---- */

static void nothing(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)arg, (void)chunk, (void)worker;
}
static void fork_run(void *arg, uint32_t i)
{
    (void)i;
    pool_run(arg, LANE_DECODE, 8, nothing, NULL);
}

static struct ops *open_ops(const struct model_config *c, enum precision p, uint32_t threads)
{
    struct ops_limits lim = {.precision = p,
                             .latent = LATENT_BF16,
                             .index = INDEX_FP8,
                             .n_pages = 1,
                             .max_rows = {ROWS, 16},
                             .max_context = 64,
                             .max_out_rows = 1,
                             .n_threads = threads};
    struct ops *o;
    struct err e;
    if (cpu_ops_open(&o, c, &lim, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    return o;
}

int main(int argc, char **argv)
{
    filter = argc > 1 ? argv[1] : "";
    struct model_config cfg = {.family = MODEL_DEEPSEEK_V3,
                               .vocab_size = 1536,
                               .hidden_size = 384,
                               .n_layers = 6,
                               .dense_width = 7168,
                               .n_heads = 8,
                               .q_lora_rank = 192,
                               .kv_lora_rank = 64,
                               .nope_dim = 32,
                               .rope_dim = 32,
                               .v_dim = 32,
                               .n_experts = 16,
                               .n_active = 4,
                               .n_shared = 1,
                               .expert_width = 192,
                               .n_group = 1,
                               .n_group_kept = 1,
                               .sigmoid_router = true,
                               .router_bias = true,
                               .norm_topk = true,
                               .routed_scale = 1.0f,
                               .rope_gain = 1.0f,
                               .max_position = 64};
    size_t wide = (size_t)ROWS * 18432;
    char *memory = aligned_alloc(64, COLD_BYTES + 64);
    float *x = malloc(wide * sizeof *x), *y = malloc(wide * sizeof *y),
          *scale = malloc(65536 * sizeof *scale);
    if (!memory || !x || !y || !scale)
        return 1;
    for (size_t i = 0; i < COLD_BYTES / 2; i++) /* small numbers as bf16, fp8 and fp32 alike */
        ((uint16_t *)(void *)memory)[i] = (uint16_t)(0x3C3C + i * 2654435761u % 3 * 0x0101);
    for (size_t i = 0; i < wide; i++)
        x[i] = (float)((int)(i * 2654435761u % 201) - 100) * 0.01f;
    for (size_t i = 0; i < 65536; i++)
        scale[i] = 0.01f;

    static const uint32_t SHAPES[][2] = {
        {384, 384}, {1152, 384}, {384, 192}, {1536, 384}, {2048, 7168}};
    static const enum dtype DTYPES[] = {DT_BF16, DT_F8_E4M3, DT_F32, DT_F16};
    uint32_t most = thread_n_cpus();
    for (uint32_t threads = 1; threads <= most; threads += most > 1 ? most - 1 : 1) {
        struct machine m = measure(threads);
        struct ops *fast = open_ops(&cfg, PRECISION_FAST, threads);
        row("fork-join, 8 chunks", "", time_it(fork_run, cpu_of(fast)->pool), 0, "", 0);
        static const uint32_t N[] = {1, 4, 16, ROWS};
        for (size_t d = 0; d < 4; d++)
            for (size_t s = 0; s < 5; s++)
                for (size_t i = 0; i < 4; i++)
                    for (int cold = 1; cold >= (N[i] > 16 ? 1 : 0); cold--) {
                        if (d >= 2 && (s == 0 || s == 3))
                            continue;
                        struct linear_case c = {
                            fast,   {NULL, DTYPES[d], scale, SHAPES[s][0], SHAPES[s][1], 0},
                            memory, N[i],
                            1,      x,
                            y};
                        linear_row(&c, &m, cold);
                    }
        moe_rows(fast, memory, x, y);
        fast->close(fast);
    }
    free(memory);
    free(x);
    free(y);
    free(scale);
    return 0;
}
