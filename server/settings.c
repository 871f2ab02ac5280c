/* settings.c - see settings.h: the table, and four ways of reading into it. */
#include "settings.h"

#include "base/json.h"
#include "base/log.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { TEXT, NUMBER, BYTES, CHOICE };

struct option {
    const char *name;
    enum kind kind;
    size_t offset;
    uint64_t min, max;
    const char *fallback; /* the default, as one would write it */
    const char *choices;  /* CHOICE: "exact fast"; the value is the place in this list */
    const char *unit;     /* shown in the help */
    const char *help;
};

#define AT(member) offsetof(struct settings, member)
static const struct option table[] = {
    {"model", TEXT, AT(model), 0, 0, "", NULL, "DIR", "directory of the checkpoint to serve"},
    {"served-name", TEXT, AT(served_name), 0, 0, "", NULL, "NAME",
     "name of the model for clients (default: the directory's name)"},
    {"alias", TEXT, AT(alias), 0, 0, "", NULL, "NAMES",
     "further names that clients may use, with commas between"},
    {"host", TEXT, AT(host), 0, 0, "127.0.0.1", NULL, "ADDR",
     "address to listen on; 0.0.0.0: all of this machine"},
    {"port", NUMBER, AT(port), 0, 65535, "8000", NULL, "N", "port to listen on; 0: any free one"},
    {"device", TEXT, AT(device), 0, 0, "auto", NULL, "auto|cpu|cuda|cuda:N",
     "what computes; auto: a GPU where one can be used"},
    {"precision", CHOICE, AT(precision), 0, 0, "auto", "auto exact fast fp8", NULL,
     "fast: two bf16 into products; exact: fp32 throughout; fp8: as deployed, in the weights' own "
     "type (auto: fp8 for FP8 models on Hopper GPUs, else fast)"},
    {"kv", CHOICE, AT(kv), 0, 0, "auto", "auto f32 bf16 fp8", NULL,
     "form of the cached latents (auto: fp8 with precision fp8, f32 with exact, else bf16)"},
    {"index", CHOICE, AT(index), 0, 0, "auto", "auto exact fp8", NULL,
     "form of the indexer's keys (auto: fp8, with exact precision exact)"},
    {"threads", NUMBER, AT(threads), 0, 1024, "0", NULL, "N", "CPU threads; 0: all"},
    {"tp", NUMBER, AT(tp), 1, ENGINE_MAX_GROUPS, "1", NULL, "N",
     "ranks of each attention group: heads, dense layers and output head are cut over them"},
    {"ep", NUMBER, AT(ep), 1, ENGINE_MAX_GROUPS, "1", NULL, "N",
     "parts that the experts are spread over, at most tp x dp; 1: each group has all of them"},
    {"experts", CHOICE, AT(experts), 0, 0, "f32", "f32 fp8", NULL,
     "what the experts read; fp8: rounded as the deployed model does"},
    {"ranks-per-gpu", NUMBER, AT(ranks_per_gpu), 1, ENGINE_MAX_GROUPS, "1", NULL, "N",
     "ranks that share a GPU, for tests"},
    {"comm", CHOICE, AT(comm), 0, 0, "auto", "auto device nccl", NULL,
     "how ranks on GPUs reach each other (auto: device where they read each other's memory)"},
    {"placement", TEXT, AT(placement), 0, 0, "", NULL, "FILE",
     "which part holds which experts, as JSON (default: as many each, in order)"},
    {"dp", NUMBER, AT(dp), 1, ENGINE_MAX_GROUPS, "1", NULL, "N",
     "attention groups, each with KV pages and sequences of its own"},
    {"split", TEXT, AT(split), 0, 0, "", NULL, "P:D",
     "of the groups, P only prefill and D only decode (default: all do both)"},
    {"launcher", CHOICE, AT(launcher), 0, 0, "auto", "none auto", NULL,
     "serve: whether the ranks are shared among the processes that torchrun, Slurm or mpirun "
     "started"},
    {"health-port", NUMBER, AT(health_port), 0, 65535, "0", NULL, "N",
     "where a process that follows another one's answers /health and /metrics; 0: nowhere"},
    {"step-limit", NUMBER, AT(step_limit_s), 0, 86400, "0", NULL, "SECONDS",
     "a step that takes longer means a lost rank: end; 0: 8 with several ranks, else never"},
    {"max-context", NUMBER, AT(max_context), 0, 16777216, "0", NULL, "TOKENS",
     "longest prompt and answer together; 0: the model's, or what memory holds"},
    {"max-seqs", NUMBER, AT(max_seqs), 1, 4096, "16", NULL, "N",
     "sequences that run at once, in each group"},
    {"max-queued", NUMBER, AT(max_queued), 1, 1000000, "64", NULL, "N",
     "requests that wait; beyond that clients get 429"},
    {"prefill-tokens", NUMBER, AT(prefill_tokens), 0, 65536, "0", NULL, "N",
     "prompt tokens of one step; 0: 512 on a CPU, up to 2048 on a GPU, as memory allows"},
    {"kv-memory", BYTES, AT(kv_memory), 0, UINT64_C(1) << 50, "0", NULL, "BYTES",
     "memory of each group's KV pool, e.g. 2GiB; 0: by the model and this machine"},
    {"prefix-cache", CHOICE, AT(prefix_cache), 0, 0, "on", "off on", NULL,
     "reuse what an earlier prompt with the same beginning computed"},
    {"chat-format", TEXT, AT(chat_format), 0, 0, "", NULL, "NAME",
     "how conversations become prompts (default: by the model directory)"},
    {"load", CHOICE, AT(load), 0, 0, "auto", "auto dummy", NULL,
     "dummy: random weights of the model's shape"},
    {"layers", NUMBER, AT(layers), 0, MODEL_MAX_LAYERS, "0", NULL, "N",
     "only the first N layers, for timing; 0: all"},
    {"log-level", CHOICE, AT(log_level), 0, 0, "info", "debug info warn error off", NULL,
     "least level of what is logged"},
    {"log-format", CHOICE, AT(log_format), 0, 0, "text", "text json", NULL,
     "a line of key=value, or a JSON object"},
    {"log-prompts", CHOICE, AT(log_prompts), 0, 0, "off", "off on", NULL,
     "log the bodies of requests, prompts and all"},
    {"body-limit", BYTES, AT(body_limit), 1024, UINT64_C(1) << 32, "16MiB", NULL, "BYTES",
     "largest request body; larger ones get 413"},
    {"header-limit", BYTES, AT(header_limit), 8192, 1 << 20, "16KiB", NULL, "BYTES",
     "request line and headers; larger ones get 431"},
    {"max-connections", NUMBER, AT(max_connections), 1, 100000, "4096", NULL, "N",
     "connections at once; more wait to be accepted"},
    {"keep-alive", NUMBER, AT(keep_alive_s), 1, 86400, "75", NULL, "SECONDS",
     "an idle connection is closed after so long"},
    {"slow-client", NUMBER, AT(slow_client_s), 1, 86400, "30", NULL, "SECONDS",
     "a client that sends or reads nothing for so long is cut off"},
    {"stream-ping", NUMBER, AT(sse_ping_s), 1, 3600, "15", NULL, "SECONDS",
     "a stream that is silent for so long gets a comment line"},
    {"stream-buffer", BYTES, AT(stream_buffer), 4096, UINT64_C(1) << 32, "4MiB", NULL, "BYTES",
     "what one stream may hold for a slow reader before it is cut off"},
    {"resume", NUMBER, AT(resume_s), 0, 86400, "30", NULL, "SECONDS",
     "a resumable stream goes on for so long without a reader; 0: there are none"},
    {"stored-responses", NUMBER, AT(stored_responses), 0, 10000, "1000", NULL, "N",
     "answers of /v1/responses that are kept for previous_response_id; 0: none"},
    {"response-memory", BYTES, AT(response_memory), 0, UINT64_C(1) << 40, "64MiB", NULL, "BYTES",
     "what kept answers and their conversations may hold; those used longest ago go first"},
    {"drain", NUMBER, AT(drain_s), 1, 86400, "600", NULL, "SECONDS",
     "after SIGTERM running requests get so long to end"},
    {"cors", TEXT, AT(cors), 0, 0, "", NULL, "ORIGIN",
     "origin that browsers may call from, or *; none when not given"},
    {"api-key", TEXT, AT(api_key), 0, 0, "", NULL, "SECRET",
     "a key that clients must send; rather GAZE_API_KEY, which no process list shows"},
    {"key-file", TEXT, AT(key_file), 0, 0, "", NULL, "FILE",
     "keys with limits, as gaze key makes them; SIGHUP reads it again"},
    {"open-metrics", CHOICE, AT(open_metrics), 0, 0, "off", "off on", NULL,
     "/metrics asks for no key, as scrapers that have none need it"},
    {"insecure", CHOICE, AT(insecure), 0, 0, "off", "off on", NULL,
     "listen on a public address although no key is asked for"},
    {"tls-cert", TEXT, AT(tls_cert), 0, 0, "", NULL, "FILE",
     "certificate chain in PEM: serve HTTPS; SIGHUP reads it again"},
    {"tls-key", TEXT, AT(tls_key), 0, 0, "", NULL, "FILE", "its private key in PEM"},
    {"otlp-endpoint", TEXT, AT(otlp_endpoint), 0, 0, "", NULL, "URL",
     "collector of traces, http://HOST:PORT"},
};
enum { N_OPTIONS = sizeof table / sizeof *table };
static_assert((int)N_OPTIONS <= (int)SETTINGS_MAX, "each option may own one string");

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* How many letters must be put in, taken out or changed; long names are not compared. */
static uint32_t distance(const char *a, const char *b)
{
    enum { LONG = 40 };
    uint32_t row[LONG + 1];
    size_t n_a = strlen(a), n_b = strlen(b);
    if (n_a > LONG || n_b > LONG)
        return UINT32_MAX;
    for (uint32_t j = 0; j <= n_b; j++)
        row[j] = j;
    for (uint32_t i = 1; i <= n_a; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= n_b; j++) {
            uint32_t up = row[j];
            row[j] = least(least(row[j - 1], up) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = up;
        }
    }
    return row[n_b];
}

static const struct option *nearest(const char *name)
{
    const struct option *best = NULL;
    uint32_t best_distance = 4; /* further away is not a slip of the hand */
    for (int i = 0; i < N_OPTIONS; i++) {
        uint32_t d = distance(name, table[i].name);
        if (d < best_distance) {
            best_distance = d;
            best = &table[i];
        }
    }
    return best;
}

/* underscores: the file's spelling */
static const struct option *find(const char *name, size_t n, bool underscores)
{
    for (int i = 0; i < N_OPTIONS; i++) {
        const char *t = table[i].name;
        size_t k = 0;
        while (k < n && t[k] && (name[k] == t[k] || (underscores && t[k] == '-' && name[k] == '_')))
            k++;
        if (k == n && !t[k])
            return &table[i];
    }
    return NULL;
}

bool settings_bytes(const char *s, uint64_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    double v = strtod(s, &end);
    while (*end == ' ')
        end++;
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit) {
        v *= (double)(UINT64_C(1) << (10 * (unit - units + 1)));
        end++;
        if (*end == 'i')
            end++;
    }
    if (*end == 'B')
        end++;
    if (end == s || *end || !(v >= 0) || v > 1e18 || !isdigit((unsigned char)*s))
        return false;
    *out = (uint64_t)v;
    return true;
}

static bool parse_choice(const char *choices, const char *value, uint64_t *out)
{
    size_t n = strlen(value);
    uint64_t i = 0;
    for (const char *c = choices; *c; i++) {
        size_t len = strcspn(c, " ");
        if (len == n && !memcmp(c, value, n)) {
            *out = i;
            return true;
        }
        c += len + (c[len] == ' ');
    }
    return false;
}

static enum err_code set_text(struct settings *s, const struct option *o, const char *value,
                              struct err *e)
{
    char **slot = &s->owned[o - table];
    char *copy = strdup(value);
    if (!copy)
        return err_set(e, ERR_NOMEM, "settings");
    free(*slot);
    *slot = copy;
    memcpy((char *)s + o->offset, &copy, sizeof copy);
    return ERR_OK;
}

static enum err_code set(struct settings *s, const struct option *o, const char *value,
                         struct err *e)
{
    uint64_t v = 0;
    char *end;
    switch (o->kind) {
    case TEXT:
        return set_text(s, o, value, e);
    case CHOICE:
        if (!parse_choice(o->choices, value, &v))
            return err_set(e, ERR_INVALID, "%s: \"%.60s\" is none of: %s", o->name, value,
                           o->choices);
        break;
    case NUMBER:
        errno = 0;
        v = strtoull(value, &end, 10);
        if (!isdigit((unsigned char)*value) || *end || errno)
            return err_set(e, ERR_INVALID, "%s: \"%.60s\" is not a whole number", o->name, value);
        break;
    case BYTES:
        if (!settings_bytes(value, &v))
            return err_set(e, ERR_INVALID, "%s: \"%.60s\" is no size like 512MiB", o->name, value);
        break;
    }
    if (o->kind != CHOICE && (v < o->min || v > o->max))
        return err_set(e, ERR_INVALID, "%s: %llu is outside %llu..%llu", o->name,
                       (unsigned long long)v, (unsigned long long)o->min,
                       (unsigned long long)o->max);
    memcpy((char *)s + o->offset, &v, sizeof v);
    return ERR_OK;
}

void settings_default(struct settings *s)
{
    struct err e = {0};
    *s = (struct settings){0};
    for (int i = 0; i < N_OPTIONS; i++) {
        if (table[i].kind == TEXT)
            memcpy((char *)s + table[i].offset, &table[i].fallback, sizeof table[i].fallback);
        else if (set(s, &table[i], table[i].fallback, &e))
            assert(!"a default is outside its own range");
    }
}

enum err_code settings_set(struct settings *s, const char *name, const char *value, struct err *e)
{
    const struct option *o = find(name, strlen(name), false);
    if (o)
        return set(s, o, value, e);
    o = nearest(name);
    return err_set(e, ERR_INVALID, "--%.60s is not an option%s%s%s", name,
                   o ? "; did you mean --" : "", o ? o->name : "", o ? "?" : "");
}

static enum err_code set_json(struct settings *s, const cJSON *v, struct err *e)
{
    const struct option *o = find(v->string, strlen(v->string), true);
    char text[48];
    if (!o) {
        o = nearest(v->string);
        return err_set(e, ERR_INVALID, "\"%.60s\" is not a setting%s%s%s", v->string,
                       o ? "; did you mean \"" : "", o ? o->name : "", o ? "\"?" : "");
    }
    if (cJSON_IsString(v))
        return set(s, o, v->valuestring, e);
    if (cJSON_IsNumber(v) && (o->kind == NUMBER || o->kind == BYTES) && v->valuedouble >= 0 &&
        v->valuedouble <= 1e15 && v->valuedouble == (double)(uint64_t)v->valuedouble) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)v->valuedouble);
        return set(s, o, text, e);
    }
    if (cJSON_IsBool(v) && o->choices && !strcmp(o->choices, "off on"))
        return set(s, o, cJSON_IsTrue(v) ? "on" : "off", e);
    if (cJSON_IsNull(v))
        return ERR_OK;
    return err_set(e, ERR_INVALID, "\"%s\" has a value of the wrong type", v->string);
}

enum err_code settings_read_file(struct settings *s, const char *path, struct err *e)
{
    cJSON *root;
    if (json_parse_file(&root, path, e))
        return e->code;
    e->code = ERR_OK;
    if (!cJSON_IsObject(root))
        err_set(e, ERR_INVALID, "the file must hold one object");
    for (const cJSON *v = root->child; v && !e->code; v = v->next)
        if (set_json(s, v, e))
            break;
    cJSON_Delete(root);
    return e->code ? err_prefix(e, "%s", path) : ERR_OK;
}

static enum err_code read_environment(struct settings *s, struct err *e)
{
    for (int i = 0; i < N_OPTIONS; i++) {
        char name[64] = "GAZE_";
        size_t n = 5;
        for (const char *c = table[i].name; *c; c++)
            name[n++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        const char *value = getenv(name);
        if (value && set(s, &table[i], value, e))
            return err_prefix(e, "%s", name);
    }
    return ERR_OK;
}

/* The file that is read when none is named. */
static const char *usual_file(char *out, size_t bytes)
{
    char self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = 0;
        char *slash = strrchr(self, '/');
        if (slash) {
            *slash = 0;
            snprintf(out, bytes, "%s/../share/gaze/gaze.json", self);
            if (access(out, R_OK) == 0)
                return out;
        }
    }
    snprintf(out, bytes, "config/gaze.json");
    return access(out, R_OK) == 0 ? out : NULL;
}

static enum err_code find_config_flag(char **argv, int argc, const char **path, struct err *e)
{
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "--config=", 9))
            *path = argv[i] + 9;
        else if (!strcmp(argv[i], "--config")) {
            if (i + 1 == argc)
                return err_set(e, ERR_INVALID, "--config needs a value");
            *path = argv[++i];
        }
    }
    return ERR_OK;
}

/* Takes one flag; *used says how many arguments it was. */
static enum err_code take_flag(struct settings *s, char **argv, int n_left, int *used,
                               struct err *e)
{
    const char *name = argv[0] + 2, *equals = strchr(name, '=');
    char key[64];
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    snprintf(key, sizeof key, "%.*s", (int)(n < 63 ? n : 63), name);
    const struct option *o = find(key, strlen(key), false);
    *used = equals ? 1 : 2;
    if (!strcmp(key, "config"))
        return ERR_OK; /* read before all others */
    bool is_switch = o && o->choices && !strcmp(o->choices, "off on");
    if (is_switch && !equals &&
        (n_left < 2 || (strcmp(argv[1], "on") != 0 && strcmp(argv[1], "off") != 0))) {
        *used = 1; /* --insecure alone means on */
        return set(s, o, "on", e);
    }
    if (o && !equals && n_left < 2)
        return err_set(e, ERR_INVALID, "--%s needs a value", key);
    return settings_set(s, key, equals ? equals + 1 : n_left > 1 ? argv[1] : "", e);
}

enum err_code settings_load(struct settings *s, char **argv, int argc, settings_rest *rest,
                            void *rest_arg, struct err *e)
{
    char usual[512];
    const char *path = getenv("GAZE_CONFIG");
    settings_default(s);
    if (find_config_flag(argv, argc, &path, e))
        return e->code;
    if (!path)
        path = usual_file(usual, sizeof usual);
    if ((path && settings_read_file(s, path, e)) || read_environment(s, e))
        return e->code;
    for (int i = 0; i < argc;) {
        int used = rest ? rest(rest_arg, argv + i, argc - i) : 0;
        if (!used && strncmp(argv[i], "--", 2) != 0)
            return err_set(e, ERR_INVALID, "\"%.60s\" is not an option (they begin with --)",
                           argv[i]);
        if (!used && take_flag(s, argv + i, argc - i, &used, e))
            return e->code;
        i += used;
    }
    return ERR_OK;
}

void settings_take_live(struct settings *s, const struct settings *fresh)
{
    s->log_level = fresh->log_level;
    s->log_format = fresh->log_format;
    s->log_prompts = fresh->log_prompts;
    s->body_limit = fresh->body_limit;
    s->keep_alive_s = fresh->keep_alive_s;
    s->slow_client_s = fresh->slow_client_s;
    s->sse_ping_s = fresh->sse_ping_s;
    s->stream_buffer = fresh->stream_buffer;
    s->resume_s = fresh->resume_s;
    s->drain_s = fresh->drain_s;
}

void settings_free(struct settings *s)
{
    for (int i = 0; i < N_OPTIONS; i++)
        free(s->owned[i]);
    *s = (struct settings){0};
}

void settings_help(FILE *to)
{
    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *o = &table[i];
        char left[64];
        if (o->kind == CHOICE) {
            char choices[48];
            snprintf(choices, sizeof choices, "%s", o->choices);
            for (char *c = choices; *c; c++)
                *c = *c == ' ' ? '|' : *c;
            snprintf(left, sizeof left, "--%s %s", o->name, choices);
        } else {
            snprintf(left, sizeof left, "--%s %s", o->name, o->unit);
        }
        fprintf(to, "  %-33s %s", left, o->help);
        if (*o->fallback && strcmp(o->fallback, "0") != 0)
            fprintf(to, " [%s]", o->fallback);
        fputc('\n', to);
    }
    fprintf(to, "  %-33s %s\n", "--config FILE", "file of settings [config/gaze.json]");
}

/* Without --model: the model that comes with the program. */
static const char *bundled_model(char *out, size_t bytes)
{
    snprintf(out, bytes, "config/models/ember");
    if (access("config/models/ember/config.json", R_OK) == 0)
        return out;
    ssize_t n = readlink("/proc/self/exe", out, bytes - 1);
    if (n <= 0)
        return NULL;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash || bytes - (size_t)(slash - out) < 40)
        return NULL;
    strcpy(slash, "/../share/gaze/models/ember");
    return access(out, R_OK) == 0 ? out : NULL;
}

/* "P:D", which also says how many groups there are. */
static enum err_code read_split(const struct settings *s, struct engine_options *o, struct err *e)
{
    char *end = NULL;
    if (!s->split[0])
        return ERR_OK;
    unsigned long p = strtoul(s->split, &end, 10), d = 0;
    bool ok = isdigit((unsigned char)s->split[0]) && *end == ':' && isdigit((unsigned char)end[1]);
    if (ok)
        d = strtoul(end + 1, &end, 10);
    if (!ok || *end || p < 1 || d < 1 || p > ENGINE_MAX_GROUPS || d > ENGINE_MAX_GROUPS - p)
        return err_set(e, ERR_INVALID, "split: \"%.40s\" is no P:D of 2 to %d groups, like 1:1",
                       s->split, ENGINE_MAX_GROUPS);
    if (s->dp != 1 && s->dp != p + d)
        return err_set(e, ERR_INVALID, "split: %lu + %lu groups, but dp is %llu", p, d,
                       (unsigned long long)s->dp);
    o->dp = (uint32_t)(p + d);
    o->n_prefill_groups = (uint32_t)p;
    return ERR_OK;
}

enum err_code settings_engine(const struct settings *s, struct engine_options *o, struct err *e)
{
    static char bundled[512];
    engine_options_default(o);
    if (s->tp * s->dp > 1)
        engine_prepare_ranks();
    if ((s->plan_for ? engine_planned_device : engine_device)(&o->cuda_device, s->device, e))
        return e->code;
    o->plan_for = s->plan_for;
    o->model_dir = s->model[0] ? s->model : bundled_model(bundled, sizeof bundled);
    if (!o->model_dir)
        return err_set(e, ERR_INVALID, "model: no directory was given (--model DIR)");
    o->chat_format = s->chat_format[0] ? s->chat_format : NULL;
    static const enum precision precision[] = {PRECISION_FAST, PRECISION_EXACT, PRECISION_FAST,
                                               PRECISION_FP8};
    bool exact = s->precision == 1;
    o->precision = precision[s->precision];
    o->precision_by_model = s->precision == 0;
    static const enum latent_form latent[] = {LATENT_F32, LATENT_BF16, LATENT_FP8};
    o->latent_by_precision = s->kv == 0;
    if (s->kv)
        o->latent = latent[s->kv - 1];
    o->index =
        s->index ? (s->index == 1 ? INDEX_EXACT : INDEX_FP8) : (exact ? INDEX_EXACT : o->index);
    o->load_dummy = s->load == 1;
    o->expert = s->experts ? EXPERT_FP8 : EXPERT_F32;
    o->ranks_per_gpu = (uint32_t)s->ranks_per_gpu;
    o->n_layers = (uint32_t)s->layers;
    o->n_threads = (uint32_t)s->threads;
    o->tp = (uint32_t)s->tp;
    o->dp = (uint32_t)s->dp;
    o->ep = (uint32_t)s->ep;
    static const char *const comm[] = {NULL, "device", "nccl"};
    o->comm = comm[s->comm];
    o->placement = s->placement[0] ? s->placement : NULL;
    o->step_limit_s = (uint32_t)s->step_limit_s;
    if (read_split(s, o, e))
        return e->code;
    o->max_context = (uint32_t)s->max_context;
    o->max_seqs = (uint32_t)s->max_seqs;
    o->max_queued = (uint32_t)s->max_queued;
    o->prefill_tokens = (uint32_t)s->prefill_tokens;
    o->kv_bytes = s->kv_memory;
    o->prefix_cache = s->prefix_cache != 0;
    return ERR_OK;
}

void settings_model_name(const struct settings *s, char *out, size_t bytes)
{
    if (s->served_name[0]) {
        snprintf(out, bytes, "%s", s->served_name);
        return;
    }
    const char *dir = s->model[0] ? s->model : "ember";
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    size_t from = n;
    while (from && dir[from - 1] != '/')
        from--;
    snprintf(out, bytes, "%.*s", (int)(n - from), dir + from);
}
