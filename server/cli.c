/* cli.c - serve, plan, info and tokenize; see cli.h. */
#include "cli.h"

#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "follower_port.h"
#include "json_out.h"
#include "loop.h"
#include "version.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

int cli_fail_as(enum exit_code code, const struct err *e)
{
    fprintf(stderr, "gaze: %s.\n", e->msg);
    return code;
}

int cli_fail(const struct err *e)
{
    return cli_fail_as(EXIT_OTHER, e);
}

static const char *human(char *out, size_t n, double bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    while (bytes >= 1024 && i < 4) {
        bytes /= 1024;
        i++;
    }
    snprintf(out, n, "%.*f %s", i ? 2 : 0, bytes, unit[i]);
    return out;
}

void cli_print_plan(FILE *to, const struct engine_plan *p)
{
    char a[32];
    fprintf(to, "memory plan for %s\n", p->model_type);
    fprintf(to, "  weights     %12s\n", human(a, sizeof a, (double)p->weight_bytes));
    fprintf(to, "  KV pages    %12s", human(a, sizeof a, (double)p->kv_bytes));
    if (p->n_groups > 1)
        fprintf(to, "   %u groups of", p->n_groups);
    fprintf(to, "%s%u pages of %s, %llu tokens, %s latents\n", p->n_groups > 1 ? " " : "   ",
            p->n_pages, human(a, sizeof a, (double)p->page_bytes), (unsigned long long)p->kv_tokens,
            latent_name(p->latent));
    for (uint32_t i = 0; p->n_prefill_groups && i < p->n_groups; i++)
        fprintf(to, "    group %u %11s   %u pages, %llu tokens\n", i,
                engine_role_names[i < p->n_prefill_groups ? GROUP_PREFILL : GROUP_DECODE],
                p->n_pages, (unsigned long long)(p->kv_tokens / p->n_groups));
    fprintf(to, "  workspace   %12s", human(a, sizeof a, (double)p->workspace_bytes));
    fprintf(to, "   %u sequences at once, %u prompt tokens a step\n", p->max_seqs,
            p->prefill_tokens);
    fprintf(to, "  tokenizer   %12s\n", human(a, sizeof a, (double)p->tokenizer_bytes));
    fprintf(to, "  program     %12s   with the scheduler and %u requests of full length\n",
            human(a, sizeof a, (double)p->program_bytes), p->max_seqs);
    fprintf(to, "  total       %12s   context up to %u tokens\n",
            human(a, sizeof a, (double)p->total_bytes), p->max_context);
    if (p->device >= 0) {
        fprintf(to, "  of that on cuda:%d", p->device);
        fprintf(to, " %s of", human(a, sizeof a, (double)p->device_bytes));
        fprintf(to, " %s that are free\n", human(a, sizeof a, (double)p->device_free_bytes));
    }
}

static enum err_code load(struct settings *s, struct engine_options *o, int argc, char **argv,
                          settings_rest *rest, void *arg, struct err *e)
{
    if (settings_load(s, argv, argc, rest, arg, e) || settings_engine(s, o, e))
        return e->code;
    log_set_level((enum log_level)s->log_level);
    log_set_format((enum log_format)s->log_format);
    return ERR_OK;
}

static void raise_fd_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

static void say_ready(struct server *sv)
{
    const char *host = sv->settings->host, *scheme = sv->settings->tls_cert[0] ? "https" : "http";
    const char *key = auth_required(sv->auth) ? "-H \"Authorization: Bearer $KEY\" " : "";
    if (!strcmp(host, "0.0.0.0") || !strcmp(host, "::"))
        host = "127.0.0.1";
    cli_print_plan(stderr, sv->api->get_plan(sv->engine));
    fprintf(stderr, "gaze %s serves %s (%s) on %s://%s:%u. Try:\n", version_number, sv->name,
            sv->api->backend_name(sv->engine), scheme, host, sv->port);
    fprintf(stderr,
            "curl %s://%s:%u/v1/chat/completions %s-H 'Content-Type: application/json' -d "
            "'{\"messages\": [{\"role\": \"user\", "
            "\"content\": \"Hello!\"}], \"max_tokens\": 64}'\n",
            scheme, host, sv->port, key);
}

struct serve_args { /* for reading the settings again */
    struct settings *settings;
    char **argv;
    int argc;
};

static bool reload_settings(struct server *sv, struct err *e)
{
    struct serve_args *a = sv->reload_arg;
    struct settings fresh;
    bool ok = !settings_load(&fresh, a->argv, a->argc, NULL, NULL, e);
    if (ok) {
        settings_take_live(a->settings, &fresh);
        log_set_level((enum log_level)a->settings->log_level);
        log_set_format((enum log_format)a->settings->log_format);
    }
    settings_free(&fresh);
    return ok;
}

/* The first one is for process 0, which ends us when it has drained. */
static void on_signal_following(int number)
{
    static volatile sig_atomic_t n_signals;
    (void)number;
    n_signals = n_signals + 1;
    if (n_signals > 1)
        _exit(EXIT_RANK);
}

/* A process whose ranks work for process 0. */
struct following {
    uint32_t process, n_processes;
    struct follower_port *port; /* NULL: nobody asks */
};

static void say_following(void *arg, struct engine_follower *f)
{
    const struct following *w = arg;
    struct sigaction on_signal = {.sa_handler = on_signal_following};
    sigaction(SIGTERM, &on_signal, NULL);
    sigaction(SIGINT, &on_signal, NULL);
    fprintf(stderr, "gaze %s follows process 0 as process %u of %u.\n", version_number, w->process,
            w->n_processes);
    if (w->port)
        follower_port_ready(w->port, f);
}

static void end_following(void *arg)
{
    const struct following *w = arg;
    if (w->port)
        follower_port_ending(w->port);
}

static int serve_ranks(const struct settings *s, const struct engine_options *o,
                       struct following *w)
{
    struct err e = {0};
    const struct engine_follow_calls calls = {say_following, end_following, w};
    signal(SIGHUP, SIG_IGN); /* there is nothing to read again */
    if (s->health_port && follower_port_open(&w->port, s, w->process, w->n_processes, &e))
        return cli_fail_as(e.code == ERR_INVALID ? EXIT_SETTINGS : EXIT_LISTEN, &e);
    enum err_code code = engine_follow(o, &calls, &e);
    if (code == ERR_COMM) { /* at once: a thread or a device that hangs must not keep us */
        cli_fail_as(EXIT_RANK, &e);
        fflush(NULL);
        if (w->port)
            follower_port_lose(w->port, &e);
        _exit(EXIT_RANK);
    }
    follower_port_close(w->port);
    return code ? cli_fail_as(EXIT_MODEL, &e) : EXIT_FINE;
}

int cli_serve(int argc, char **argv)
{
    struct settings s;
    struct engine_options o;
    struct server *sv;
    struct err e = {0};
    struct serve_args args = {&s, argv, argc};
    struct following w = {.n_processes = 1};
    bool known = !load(&s, &o, argc, argv, NULL, NULL, &e);
    o.by_launcher = known && s.launcher;
    known = known && !engine_launched(&w.process, &w.n_processes, &o, &e);
    if (known && w.process) {
        int code = serve_ranks(&s, &o, &w);
        settings_free(&s);
        return code;
    }
    if (!known || server_open(&sv, &s, &engine_api_real, &e)) {
        settings_free(&s);
        return cli_fail_as(known && e.code == ERR_IO ? EXIT_LISTEN : EXIT_SETTINGS, &e);
    }
    raise_fd_limit();
    sv->on_ready = say_ready;
    sv->on_reload = reload_settings;
    sv->reload_arg = &args;
    int code = server_run(sv, &e);
    server_close(sv);
    settings_free(&s);
    if (code == SERVER_LOST) { /* at once: a thread or a device that hangs must not keep us */
        cli_fail_as(EXIT_RANK, &e);
        fflush(NULL);
        _exit(EXIT_RANK);
    }
    if (code) /* a process that was lost while the model was loaded, or the model itself */
        return cli_fail_as(e.code == ERR_COMM ? EXIT_RANK : EXIT_MODEL, &e);
    return EXIT_FINE;
}

/* --name as a flag without a value. */
struct switches {
    const char *name;
    bool on;
};

static int take_switch(void *arg, char **argv, int n_left)
{
    struct switches *w = arg;
    (void)n_left;
    if (strcmp(argv[0], w->name) != 0)
        return 0;
    w->on = true;
    return 1;
}

struct plan_args {
    struct switches json;
    struct settings *s;
    const char *bad; /* what is no size behind --for */
};

/* --json; --for BYTES: of memory that is free, here or on each GPU, as the plan should take it. */
static int take_plan_args(void *arg, char **argv, int n_left)
{
    struct plan_args *p = arg;
    if (strcmp(argv[0], "--for") != 0)
        return take_switch(&p->json, argv, n_left);
    if (n_left < 2 || !settings_bytes(argv[1], &p->s->plan_for) || !p->s->plan_for)
        p->bad = n_left < 2 ? "" : argv[1];
    return n_left < 2 ? 1 : 2;
}

int cli_plan(int argc, char **argv)
{
    struct settings s;
    struct plan_args args = {{"--json", false}, &s, NULL};
    struct engine_options o;
    struct engine_plan p;
    struct err e = {0};
    bool told, known = !load(&s, &o, argc, argv, take_plan_args, &args, &e);
    if (known && args.bad) {
        err_set(&e, ERR_INVALID, "--for: \"%.40s\" is no size (such as 140GiB)", args.bad);
        known = false;
    }
    if (!known || engine_make_plan(&p, &o, &e)) {
        settings_free(&s);
        return cli_fail_as(known ? EXIT_MODEL : EXIT_SETTINGS, &e);
    }
    if (args.json.on) {
        struct buf b = {0};
        struct jo j = {.b = &b};
        jo_obj(&j);
        jo_kstr(&j, "model_type", p.model_type);
        jo_ku64(&j, "weight_bytes", p.weight_bytes);
        jo_ku64(&j, "kv_bytes", p.kv_bytes);
        jo_ku64(&j, "workspace_bytes", p.workspace_bytes);
        jo_ku64(&j, "tokenizer_bytes", p.tokenizer_bytes);
        jo_ku64(&j, "program_bytes", p.program_bytes);
        jo_ku64(&j, "total_bytes", p.total_bytes);
        if (p.device >= 0) {
            jo_ku64(&j, "device", (uint64_t)p.device);
            jo_ku64(&j, "device_bytes", p.device_bytes);
            jo_ku64(&j, "device_free_bytes", p.device_free_bytes);
        }
        jo_ku64(&j, "page_bytes", p.page_bytes);
        jo_ku64(&j, "n_groups", p.n_groups);
        jo_ku64(&j, "n_prefill_groups", p.n_prefill_groups);
        jo_ku64(&j, "n_pages", p.n_pages);
        jo_ku64(&j, "kv_tokens", p.kv_tokens);
        jo_ku64(&j, "max_context", p.max_context);
        jo_ku64(&j, "max_seqs", p.max_seqs);
        jo_ku64(&j, "prefill_tokens", p.prefill_tokens);
        jo_kstr(&j, "precision", precision_name(p.precision));
        jo_kstr(&j, "kv", latent_name(p.latent));
        jo_ku64(&j, "n_ranks", p.n_ranks);
        told = p.n_ranks == 1 || !cli_json_ranks(&j, &o, &p, &e);
        jo_end(&j, '}');
        if (told)
            puts(b.s ? b.s : "");
        buf_free(&b);
    } else {
        cli_print_plan(stdout, &p);
        told = p.n_ranks == 1 || !cli_print_ranks(stdout, &o, &p, &e);
    }
    settings_free(&s);
    return told ? 0 : cli_fail(&e);
}

/* For what computes nothing: no GPU is asked for, let alone set up. */
static enum err_code load_for_reading(struct settings *s, struct engine_options *o, int argc,
                                      char **argv, settings_rest *rest, void *arg, struct err *e)
{
    if (settings_load(s, argv, argc, rest, arg, e))
        return e->code;
    s->device = "cpu";
    log_set_level((enum log_level)s->log_level);
    log_set_format((enum log_format)s->log_format);
    return settings_engine(s, o, e);
}

int cli_info(int argc, char **argv)
{
    struct settings s;
    struct engine_options o;
    struct model_config m;
    struct err e = {0};
    bool known = !load_for_reading(&s, &o, argc, argv, NULL, NULL, &e);
    if (!known || model_config_read(&m, o.model_dir, &e)) {
        settings_free(&s);
        return cli_fail_as(known ? EXIT_MODEL : EXIT_SETTINGS, &e);
    }
    printf("gaze %s, commit %s, back ends: %s\n", version_number, version_commit,
           engine_backends());
    printf("model       %s (%s)\n", o.model_dir, m.model_type);
    printf("layers      %u (%u dense first), hidden %u, vocabulary %u\n", m.n_layers,
           m.n_dense_layers, m.hidden_size, m.vocab_size);
    printf("attention   %u heads, latent %u + rope %u, q_lora %u, per head %u + %u, v %u\n",
           m.n_heads, m.kv_lora_rank, m.rope_dim, m.q_lora_rank, m.nope_dim, m.rope_dim, m.v_dim);
    if (m.n_experts)
        printf("experts     %u, %u active, %u shared, width %u; groups %u of %u\n", m.n_experts,
               m.n_active, m.n_shared, m.expert_width, m.n_group_kept, m.n_group);
    if (m.has_indexer)
        printf("indexer     %u heads of %u, top-k %u\n", m.index_heads, m.index_dim, m.index_topk);
    else
        printf("indexer     none: dense attention\n");
    printf("context     %u tokens\n", m.max_position);
    printf("weights     %s\n", m.fp8_blocks ? "fp8, 128x128 blocks" : "as in the files");
    printf("sampling    temperature %g, top_p %g, top_k %u\n", (double)m.temperature,
           (double)m.top_p, m.top_k);
    settings_free(&s);
    return 0;
}

static bool print_ids(const struct tokenizer *tok, const char *text, size_t bytes, struct err *e)
{
    struct token_vec v = {0};
    struct text_part part = {text, bytes, true};
    bool ok = !tokenizer_encode(tok, &part, 1, &v, e);
    if (ok) {
        putchar('[');
        for (size_t i = 0; i < v.n; i++)
            printf("%s%u", i ? "," : "", v.id[i]);
        puts("]");
    }
    token_vec_free(&v);
    return ok;
}

/* A JSON string a line in, an array of ids a line out. */
static bool tokenize_lines(const struct tokenizer *tok, struct err *e)
{
    char *line = NULL;
    size_t max = 0;
    ssize_t n;
    uint64_t number = 0;
    bool ok = true;
    while (ok && (n = getline(&line, &max, stdin)) >= 0) {
        cJSON *v = NULL;
        number++;
        ok = !json_parse(&v, line, (size_t)n, 4, e);
        if (ok && !cJSON_IsString(v))
            ok = err_set(e, ERR_INVALID, "expected a JSON string") == ERR_OK;
        ok = ok && print_ids(tok, v->valuestring, strlen(v->valuestring), e);
        cJSON_Delete(v);
    }
    if (!ok)
        err_prefix(e, "line %llu", (unsigned long long)number);
    free(line);
    return ok;
}

static bool tokenize_all(const struct tokenizer *tok, struct err *e)
{
    struct buf b = {0};
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0)
        buf_add(&b, piece, n);
    bool ok =
        b.failed ? err_set(e, ERR_NOMEM, "text") == ERR_OK : print_ids(tok, b.s ? b.s : "", b.n, e);
    buf_free(&b);
    return ok;
}

int cli_tokenize(int argc, char **argv)
{
    struct switches jsonl = {"--jsonl", false};
    struct settings s;
    struct engine_options o;
    struct tokenizer *tok;
    struct err e = {0};
    bool known = !load_for_reading(&s, &o, argc, argv, take_switch, &jsonl, &e);
    if (!known || tokenizer_open(&tok, o.model_dir, &e)) {
        settings_free(&s);
        return cli_fail_as(known ? EXIT_MODEL : EXIT_SETTINGS, &e);
    }
    bool ok = jsonl.on ? tokenize_lines(tok, &e) : tokenize_all(tok, &e);
    tokenizer_close(tok);
    settings_free(&s);
    return ok ? 0 : cli_fail(&e);
}
