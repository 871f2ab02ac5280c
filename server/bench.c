/* bench.c - gaze bench: a model's own speed, through the engine as the server uses it. */
#include "bench_shape.h"
#include "cli.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "version.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_STREAMS = 128, MAX_LIST = 16, MAX_REPEATS = 32 };
enum { LEAD_TOKENS = 448 }; /* what a stream may be ahead of the last one to start */

struct bench {
    struct engine *en;
    pthread_mutex_t lock;
    pthread_cond_t came;
    bool woken; /* under lock */
    uint32_t context[MAX_LIST], n_contexts, streams[MAX_LIST], n_streams;
    uint32_t repeats, decode_tokens;
    uint64_t salt;
    bool json;
    uint32_t whole_layers; /* of a shape that was cut; 0: all are there */
    struct engine_limits limits;
};

/* One round: several requests side by side. What is timed lies between the moment when all of them
 * have their first token and the moment when each has want_tokens more on average; the rest is
 * cancelled. So no prefill and no thinning batch is in it. */
struct round {
    uint32_t n, n_started, n_ended;
    struct req_id id[MAX_STREAMS];
    bool started[MAX_STREAMS];
    uint64_t begun_us, all_started_us, measured_us; /* measured_us: 0 until it has been */
    uint64_t want_tokens;                           /* of all streams together; 0: none */
    uint64_t lead_tokens, tokens;                   /* before all had started, and from then on */
    struct engine_stats from, to;                   /* at both ends of what is measured */
};

static void wake(void *arg)
{
    struct bench *b = arg;
    mutex_lock(&b->lock);
    b->woken = true;
    pthread_cond_signal(&b->came);
    mutex_unlock(&b->lock);
}

static enum err_code submit(struct bench *b, struct round *r, uint32_t n_prompt,
                            uint32_t max_tokens, uint32_t top_k, uint64_t salt, struct err *e)
{
    struct gen_request *g = gen_request_new();
    uint32_t *prompt = g ? arena_alloc(&g->arena, n_prompt * sizeof *prompt) : NULL;
    uint32_t n_ids = tokenizer_n_ids(engine_tokenizer(b->en));
    if (!prompt) {
        gen_request_free(g);
        return err_set(e, ERR_NOMEM, "request");
    }
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = (i * 31 + 7) % (n_ids < 1000 ? n_ids : 1000);
    g->prompt = prompt;
    g->n_prompt = n_prompt;
    g->max_tokens = max_tokens;
    g->ignore_eos = true;
    g->sample.temperature = 0;
    g->top_k_dsa = top_k;
    g->cache_salt = salt;
    snprintf(g->name, sizeof g->name, "bench");
    return engine_submit(b->en, g, &r->id[r->n++], e);
}

static void mark_started(struct bench *b, struct round *r, struct req_id id, uint64_t now_us)
{
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->started[i] && req_id_equal(r->id[i], id)) {
            r->started[i] = true;
            r->n_started++;
        }
    if (r->n_started == r->n && !r->all_started_us) {
        r->all_started_us = now_us;
        engine_get_stats(b->en, &r->from);
    }
}

static bool take(struct bench *b, struct round *r, const struct gen_event *ev, struct err *e)
{
    uint64_t now_us = clock_us();
    if (ev->kind == GEN_ERROR) {
        *e = ev->err;
        return false;
    }
    r->n_ended += ev->kind == GEN_DONE;
    if (ev->kind != GEN_TOKENS && ev->kind != GEN_CHOICE)
        return true;
    if (!r->all_started_us) {
        r->lead_tokens += ev->n_tokens;
        mark_started(b, r, ev->id, now_us);
    } else if (!r->measured_us) {
        r->tokens += ev->n_tokens;
        if (r->tokens >= r->want_tokens) {
            r->measured_us = now_us;
            engine_get_stats(b->en, &r->to);
            for (uint32_t i = 0; i < r->n; i++)
                engine_cancel(b->en, r->id[i]);
        } else if (ev->kind == GEN_CHOICE) {
            err_set(e, ERR_INVALID, "a stream ended before %u streams had %u tokens each", r->n,
                    b->decode_tokens);
            return false;
        }
    }
    return true;
}

/* want_tokens of each stream are timed; 0: the prefill alone. */
static enum err_code run_round(struct bench *b, struct round *r, uint32_t streams,
                               uint32_t n_prompt, uint32_t want_tokens, uint32_t top_k,
                               uint64_t salt, struct err *e)
{
    uint32_t max_tokens = want_tokens ? want_tokens + LEAD_TOKENS : 1;
    bool ok = true;
    *r = (struct round){.begun_us = clock_us(), .want_tokens = (uint64_t)want_tokens * streams};
    while (r->n < streams)
        if (submit(b, r, n_prompt, max_tokens, top_k, salt, e))
            return e->code;
    while (r->n_ended < r->n && ok) {
        mutex_lock(&b->lock);
        while (!b->woken)
            cond_wait_us(&b->came, &b->lock, 0);
        b->woken = false;
        mutex_unlock(&b->lock);
        struct gen_event *ev = engine_take_events(b->en), *next;
        for (; ev; ev = next) {
            next = (struct gen_event *)ev->mail.next;
            ok = ok && take(b, r, ev, e);
            gen_event_free(ev);
        }
    }
    return ok ? ERR_OK : e->code;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The least time that this machine could take, ms: whichever of arithmetic and reading is longer.
 */
static double floor_ms(const struct bench *b, struct step_shape shape)
{
    struct step_cost c = engine_step_cost(b->en, shape);
    double compute = c.flops / b->limits.flops, read = c.bytes / b->limits.bytes;
    return (compute > read ? compute : read) * 1e3;
}

/* attention_ms: of a step, indexer and attention; NULL: not told. device: the share of the time in
 * which a GPU had work of decode steps; negative: not known. */
static void row(const struct bench *b, const char *what, uint32_t streams, uint32_t context,
                bool dense, double *ms, double *rate, double *attention_ms, double least_ms,
                double device)
{
    uint32_t n = b->repeats;
    qsort(ms, n, sizeof *ms, by_value);
    qsort(rate, n, sizeof *rate, by_value);
    double mid = ms[n / 2], spread = mid > 0 ? (ms[n - 1] - ms[0]) / mid * 100 : 0;
    const char *path = dense ? "dense" : "sparse";
    double scale = b->whole_layers ? (double)b->whole_layers / engine_model(b->en)->n_layers : 1;
    if (attention_ms)
        qsort(attention_ms, n, sizeof *attention_ms, by_value);
    if (b->json) {
        printf("{\"case\": \"%s\", \"streams\": %u, \"context\": %u, \"path\": \"%s\", "
               "\"median_ms\": %.3f, \"spread_pct\": %.1f, \"tokens_per_s\": %.1f, "
               "\"limit_ms\": %.3f, \"scaled_ms\": %.3f",
               what, streams, context, path, mid, spread, rate[n / 2], least_ms, mid * scale);
        if (attention_ms)
            printf(", \"attention_ms\": %.3f", attention_ms[n / 2]);
        if (device >= 0)
            printf(", \"device_pct\": %.1f", 100 * device);
        printf("}\n");
    } else {
        printf("%-8s %7u %8u %7s %12.2f %8.1f %12.0f %8.0f", what, streams, context, path, mid,
               spread, rate[n / 2], 100 * least_ms / mid);
        if (attention_ms)
            printf(" %8.3f", attention_ms[n / 2]);
        if (b->whole_layers)
            printf(" %10.2f", mid * scale);
        if (device >= 0)
            printf(" %8.1f", 100 * device);
        printf("\n");
    }
    fflush(stdout);
}

/* What the indexer and attention take of a decode step, in the measured part of a round. */
static double attention_ms(const struct round *r)
{
    const uint64_t *from = r->from.phase_us[LANE_DECODE], *to = r->to.phase_us[LANE_DECODE];
    uint64_t us = to[PHASE_INDEX] + to[PHASE_ATTEND] - from[PHASE_INDEX] - from[PHASE_ATTEND];
    uint64_t steps = r->to.decode_steps - r->from.decode_steps;
    return steps ? (double)us * 1e-3 / (double)steps : 0;
}

/* A prompt's pages are one set for all streams only where the prefix cache keeps them, which
 * prompts of one chunk may not reach (scheduler.h: canonical form). */
static bool room_for(const struct bench *b, uint32_t streams, uint32_t context)
{
    const struct engine_plan *p = engine_get_plan(b->en);
    uint32_t own = b->decode_tokens + LEAD_TOKENS + 2 * KV_PAGE_TOKENS;
    bool shared = context > p->prefill_tokens && streams > 1;
    uint64_t tokens =
        shared ? context + (uint64_t)streams * own : (uint64_t)streams * (context + own);
    return streams <= p->max_seqs && tokens <= p->kv_tokens && context + own <= p->max_context;
}

static enum err_code bench_case(struct bench *b, uint32_t context, bool dense, struct err *e)
{
    double ms[MAX_REPEATS], rate[MAX_REPEATS], attention[MAX_REPEATS];
    uint32_t top_k = dense ? TOP_K_DENSE : 0;
    struct round r;
    for (uint32_t i = 0; i < b->repeats; i++) { /* another salt each time: nothing is cached */
        if (run_round(b, &r, 1, context, 1, top_k, ++b->salt, e))
            return e->code;
        ms[i] = (double)(r.all_started_us - r.begun_us) * 1e-3;
        rate[i] = context / ms[i] * 1e3;
    }
    struct step_shape whole = {
        .n_seqs = 1, .rows = context, .n_out = 1, .dense = dense, .prompt = true};
    row(b, "prefill", 1, context, dense, ms, rate, NULL, floor_ms(b, whole), -1);
    for (uint32_t k = 0; k < b->n_streams; k++) {
        uint32_t streams = b->streams[k];
        uint64_t lead = 0, device_us = 0, timed_us = 0;
        if (!room_for(b, streams, context)) {
            printf("%s%-8s %7u %8u %7s does not fit: %llu tokens of KV memory, %u sequences\n",
                   b->json ? "# " : "", "decode", streams, context, dense ? "dense" : "sparse",
                   (unsigned long long)engine_get_plan(b->en)->kv_tokens,
                   engine_get_plan(b->en)->max_seqs);
            continue;
        }
        for (uint32_t i = 0; i < b->repeats; i++) { /* the prompt is shared: only decode is timed */
            if (run_round(b, &r, streams, context, b->decode_tokens, top_k, b->salt, e))
                return e->code;
            uint64_t us = r.measured_us - r.all_started_us;
            rate[i] = (double)r.tokens * 1e6 / (double)us;
            ms[i] = (double)us * 1e-3 * streams / (double)r.tokens;
            attention[i] = attention_ms(&r);
            lead += r.lead_tokens;
            device_us += r.to.device_us[LANE_DECODE] - r.from.device_us[LANE_DECODE];
            timed_us += us;
        }
        struct step_shape step = {.n_seqs = streams,
                                  .rows = 1,
                                  .context = context + b->decode_tokens / 2 +
                                             (uint32_t)(lead / b->repeats / streams),
                                  .n_out = streams,
                                  .dense = dense};
        row(b, "decode", streams, context, dense, ms, rate, attention, floor_ms(b, step),
            device_us ? (double)device_us / (double)timed_us : -1);
    }
    return ERR_OK;
}

static bool parse_list(const char *text, uint32_t max, uint32_t *out, uint32_t *n)
{
    *n = 0;
    for (char *end; *text; text = end + (*end == ',')) {
        unsigned long v = strtoul(text, &end, 10);
        if (end == text || (*end && *end != ',') || v < 1 || v > max || *n == MAX_LIST)
            return false;
        out[(*n)++] = (uint32_t)v;
    }
    return *n > 0;
}

struct bench_flags {
    const char *contexts, *streams, *repeats, *modes, *shape, *share;
    bool json;
};

static int take_flag(void *arg, char **argv, int n_left)
{
    struct bench_flags *f = arg;
    if (!strcmp(argv[0], "--quick")) {
        f->contexts = "1024";
        f->streams = "1,4";
        f->repeats = "2";
        return 1;
    }
    if (!strcmp(argv[0], "--json")) {
        f->json = true;
        return 1;
    }
    const char **slot = !strcmp(argv[0], "--contexts")      ? &f->contexts
                        : !strcmp(argv[0], "--streams")     ? &f->streams
                        : !strcmp(argv[0], "--repeats")     ? &f->repeats
                        : !strcmp(argv[0], "--modes")       ? &f->modes
                        : !strcmp(argv[0], "--model-shape") ? &f->shape
                        : !strcmp(argv[0], "--rank-share")  ? &f->share
                                                            : NULL;
    if (!slot || n_left < 2)
        return 0;
    *slot = argv[1];
    return 2;
}

static unsigned long resident_mib(void)
{
    unsigned long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lu %lu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (unsigned long)sysconf(_SC_PAGESIZE) >> 20;
}

static enum err_code run_all(struct bench *b, const struct bench_flags *f, struct err *e)
{
    const struct engine_plan *p = engine_get_plan(b->en);
    bool has_indexer = engine_model(b->en)->has_indexer;
    if (engine_measure_limits(b->en, &b->limits, e))
        return e->code;
    const char *mark = b->json ? "# " : "";
    printf(
        "%slimits measured now: %.0f GFLOP/s in products, %.1f GB/s; limit_%%: the time that a\n"
        "%sstep must take by them (whichever is longer), as a share of the time it took; attn_ms:\n"
        "%sindexer and attention in a step, on a CPU; device_%%: the share of the time in which a\n"
        "%sGPU had work of decode steps\n",
        mark, b->limits.flops * 1e-9, b->limits.bytes * 1e-9, mark, mark, mark);
    if (b->whole_layers)
        printf("%s%u of %u layers; scaled_ms is the median times %u / %u, head and sampling, too\n",
               mark, engine_model(b->en)->n_layers, b->whole_layers, b->whole_layers,
               engine_model(b->en)->n_layers);
    if (!b->json)
        printf("%-8s %7s %8s %7s %12s %8s %12s %8s %8s%s%s\n", "case", "streams", "context", "path",
               "median_ms", "spread_%", "tokens/s", "limit_%", "attn_ms",
               b->whole_layers ? "  scaled_ms" : "",
               strncmp(engine_backend_name(b->en), "cuda", 4) ? "" : " device_%");
    for (uint32_t i = 0; i < b->n_contexts; i++) {
        if ((uint64_t)b->context[i] + b->decode_tokens + LEAD_TOKENS > p->max_context)
            continue;
        for (int dense = !has_indexer; dense < 2; dense++) {
            if (!strstr(f->modes, dense ? "dense" : "sparse"))
                continue;
            if (bench_case(b, b->context[i], dense, e))
                return e->code;
        }
    }
    printf("%sresident %lu MiB, planned %zu MiB\n", mark, resident_mib(), p->total_bytes >> 20);
    return ERR_OK;
}

/* The most layers of a shape with which the memory holds its weights and the longest context. */
static enum err_code fit_layers(const struct bench *b, struct engine_options *o, uint32_t n_layers,
                                struct err *e)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < b->n_contexts; i++)
        longest = b->context[i] > longest ? b->context[i] : longest;
    uint32_t asked = o->n_layers;
    for (o->n_layers = asked ? asked : n_layers; o->n_layers; o->n_layers--) {
        struct engine_plan p;
        if (engine_make_plan(&p, o, e) == ERR_OK &&
            (asked || p.max_context >= longest + b->decode_tokens + LEAD_TOKENS))
            return ERR_OK;
        if (asked)
            return e->code;
    }
    return err_set(e, ERR_NOMEM, "not even one layer fits with a context of %u tokens", longest);
}

int cli_bench(int argc, char **argv)
{
    struct bench_flags f = {"1024,8192,16384", "1,4,16", "3", "sparse,dense", NULL, NULL, false};
    struct bench b = {.decode_tokens = 64};
    struct settings s;
    struct engine_options o;
    struct err e = {0};
    uint64_t begun_us = clock_us();
    uint32_t n, repeats[MAX_LIST];
    if (settings_load(&s, argv, argc, take_flag, &f, &e) || settings_engine(&s, &o, &e)) {
        settings_free(&s);
        return cli_fail(&e);
    }
    log_set_level(s.log_level > LOG_WARN ? (enum log_level)s.log_level : LOG_WARN);
    if (!parse_list(f.contexts, 1u << 24, b.context, &b.n_contexts) ||
        !parse_list(f.streams, MAX_STREAMS, b.streams, &b.n_streams) ||
        !parse_list(f.repeats, MAX_REPEATS, repeats, &n) || n != 1) {
        err_set(&e, ERR_INVALID, "--contexts, --streams and --repeats take numbers like 1,4,16");
        settings_free(&s);
        return cli_fail(&e);
    }
    b.repeats = repeats[0];
    b.json = f.json;
    pthread_mutex_init(&b.lock, NULL);
    cond_init_monotonic(&b.came);
    o.wake = wake;
    o.wake_arg = &b;
    struct bench_shape shape = {.n_layers = 0};
    if (f.shape) {
        if (bench_shape_make(&shape, f.shape, f.share, o.model_dir, &e)) {
            settings_free(&s);
            return cli_fail(&e);
        }
        o.model_dir = shape.dir;
        o.load_dummy = true;
        b.whole_layers = shape.n_layers;
    }
    if ((!f.shape || !fit_layers(&b, &o, shape.n_layers, &e)) && !engine_open(&b.en, &o, &e)) {
        const char *mark = b.json ? "# " : "";
        printf("%sgaze %s commit %s, %s, %s\n", mark, version_number, version_commit, o.model_dir,
               engine_backend_name(b.en));
        printf("%sstart %.1f ms; %s latents, %u prompt tokens a step\n", mark,
               (double)(clock_us() - begun_us) * 1e-3, latent_name(engine_get_plan(b.en)->latent),
               engine_get_plan(b.en)->prefill_tokens);
        run_all(&b, &f, &e);
        engine_close(b.en);
    }
    if (f.shape)
        bench_shape_remove(&shape);
    settings_free(&s);
    return e.code ? cli_fail(&e) : 0;
}
