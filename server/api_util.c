/* api_util.c - /tokenize, /detokenize, /version, /health, and what is not implemented. */
#include "api.h"
#include "base/clock.h"
#include "base/json.h"
#include "generation.h"
#include "http.h"
#include "loop.h"
#include "messages.h"
#include "schema.h"
#include "version.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STUCK_US = 4500000 /* a probe must know within 5 s */, LONG_TEXT = 16384 };

/* A call's work off the loop thread: body in, answer or error out. */
struct text_work {
    struct call *call;
    struct param_env env;
    struct buf answer;
    struct api_error ae;
    bool ok;
    bool (*run)(struct text_work *w, cJSON **root, struct arena *a);
};

static void run_work(struct text_work *w)
{
    cJSON *root;
    struct arena a;
    struct field_reader r = {NULL, "", &w->ae};
    const char *model = w->env.default_model;
    arena_init(&a, 4096);
    w->ok = params_parse_json(&root, w->call->body.s, w->call->body.n, &w->ae);
    w->ok = w->ok && schema_check(w->call->route->body, root, &w->ae);
    if (w->ok) {
        r.root = root;
        w->ok = field_text(&r, "model", &model);
        if (w->ok && !w->env.knows_model(w->env.knows_arg, model))
            w->ok = api_fail(&w->ae, 404, "model", "model_not_found",
                             "The model \"%.100s\" does not exist.", model);
        w->ok = w->ok && w->run(w, &root, &a);
    }
    cJSON_Delete(root);
    arena_free(&a);
}

static void give_answer(struct text_work *w)
{
    struct call *c = w->call;
    if (c->gone) {
        buf_free(&w->answer);
    } else if (w->ok) {
        c->answer = w->answer;
        http_json(c, 200);
    } else {
        buf_free(&w->answer);
        http_error(c, &w->ae);
    }
    free(w);
}

static void on_work(uv_work_t *u)
{
    run_work(u->data);
}

static void on_work_done(uv_work_t *u, int status)
{
    struct text_work *w = u->data;
    struct server *sv = w->call->sv;
    (void)status;
    if (http_work_done(w->call)) {
        give_answer(w);
    } else {
        buf_free(&w->answer);
        free(w);
    }
    server_turn(sv);
}

static void start_work(struct call *c, bool (*run)(struct text_work *, cJSON **, struct arena *))
{
    struct text_work *w = calloc(1, sizeof *w);
    if (!w) {
        http_fail(c, 503, NULL, "out_of_memory", "There is no memory for this request.");
        return;
    }
    w->call = c;
    w->run = run;
    w->env = server_env(c->sv);
    c->work.data = w;
    c->working = c->body.n > LONG_TEXT;
    if (c->working && !uv_queue_work(&c->sv->loop, &c->work, on_work, on_work_done))
        return;
    c->working = false;
    run_work(w);
    give_answer(w);
}

static bool tokenize(struct text_work *w, cJSON **body, struct arena *a)
{
    cJSON *root = *body;
    struct field_reader r = {root, "", &w->ae};
    bool add_special = true, strings = false;
    const char *prompt = NULL;
    struct params p = {.api = API_CHAT};
    struct params_prompt ids = {0};
    struct jo j = {.b = &w->answer};
    if (!field_bool(&r, "add_special_tokens", &add_special) ||
        !field_bool(&r, "return_token_strs", &strings) || !field_text(&r, "prompt", &prompt))
        return false;
    if (field_get(&r, "messages")) {
        arena_init(&p.arena, 4096);
        bool ok = prompt_from_chat(&p, root, &w->env, &w->ae);
        if (ok) {
            ids = p.prompt[0];
            uint32_t *copy = arena_alloc(a, ids.n * sizeof *copy + 1);
            ok = copy || api_fail(&w->ae, 503, NULL, "out_of_memory", "There is no memory.");
            if (ok)
                ids.id = memcpy(copy, ids.id, ids.n * sizeof *copy);
        }
        params_free(&p);
        if (!ok)
            return false;
    } else if (!prompt) {
        return field_fail(&r, "prompt", "either prompt or messages is required");
    } else {
        struct text_part part = {prompt, strlen(prompt), true};
        bool bos =
            add_special && tokenizer_add_bos(w->env.tok) && tokenizer_bos(w->env.tok) != UINT32_MAX;
        if (!prompt_encode(a, w->env.tok, &part, 1, bos, &ids, &w->ae))
            return false;
    }
    jo_obj(&j);
    jo_ku64(&j, "count", ids.n);
    jo_ku64(&j, "max_model_len", w->env.max_context);
    jo_key(&j, "tokens");
    jo_arr(&j);
    for (uint32_t i = 0; i < ids.n; i++)
        jo_u64(&j, ids.id[i]);
    jo_end(&j, ']');
    jo_key(&j, "token_strs");
    if (strings) {
        jo_arr(&j);
        for (uint32_t i = 0; i < ids.n; i++) {
            size_t n;
            const char *s = tokenizer_bytes(w->env.tok, ids.id[i], &n);
            jo_strn(&j, s, n);
        }
        jo_end(&j, ']');
    } else {
        jo_null(&j);
    }
    jo_end(&j, '}');
    return true;
}

static bool count_tokens(struct text_work *w, cJSON **root, struct arena *a)
{
    struct params p = {.api = API_CHAT};
    struct jo j = {.b = &w->answer};
    (void)a;
    if (!messages_to_chat(root, &w->ae))
        return false;
    arena_init(&p.arena, 4096);
    bool ok = prompt_from_chat(&p, *root, &w->env, &w->ae);
    if (ok) {
        jo_obj(&j);
        jo_ku64(&j, "input_tokens", p.prompt[0].n);
        jo_end(&j, '}');
    }
    params_free(&p);
    return ok;
}

static bool detokenize(struct text_work *w, cJSON **root, struct arena *a)
{
    struct field_reader r = {*root, "", &w->ae};
    const cJSON *tokens = field_get(&r, "tokens");
    uint32_t n = 0, n_ids = tokenizer_n_ids(w->env.tok), *id;
    struct jo j = {.b = &w->answer};
    struct err e = {0};
    char *text;
    size_t bytes;
    if (!cJSON_IsArray(tokens))
        return field_fail(&r, "tokens", "expected an array of token ids");
    id = arena_alloc(a, (size_t)cJSON_GetArraySize(tokens) * sizeof *id);
    if (!id)
        return api_fail(&w->ae, 503, NULL, "out_of_memory", "There is no memory.");
    for (const cJSON *v = tokens->child; v; v = v->next) {
        double x = cJSON_IsNumber(v) ? v->valuedouble : -1;
        if (!(x >= 0) || x >= n_ids || x != floor(x))
            return field_fail(&r, "tokens", "token %u is not an id in 0..%u", n, n_ids - 1);
        id[n++] = (uint32_t)x;
    }
    if (tokenizer_decode(w->env.tok, id, n, false, &text, &bytes, &e)) {
        api_fail_err(&w->ae, &e);
        return false;
    }
    jo_obj(&j);
    jo_key(&j, "prompt");
    jo_strn(&j, text, bytes);
    jo_end(&j, '}');
    free(text);
    return true;
}

void api_tokenize(struct call *c)
{
    start_work(c, tokenize);
}

void api_count_tokens(struct call *c)
{
    start_work(c, count_tokens);
}

void api_detokenize(struct call *c)
{
    start_work(c, detokenize);
}

void api_version(struct call *c)
{
    struct server *sv = c->sv;
    struct jo j = {.b = &c->answer};
    jo_obj(&j);
    jo_kstr(&j, "version", version_number);
    jo_kstr(&j, "commit", version_commit);
    jo_key(&j, "backends");
    jo_arr(&j);
    jo_str(&j, "cpu");
    if (strcmp(engine_backends(), "cpu") != 0)
        jo_str(&j, "cuda");
    jo_end(&j, ']');
    jo_kstr(&j, "backend", sv->engine ? sv->api->backend_name(sv->engine) : NULL);
    jo_kstr(&j, "model", sv->name);
    jo_kstr(&j, "model_type", sv->engine ? sv->api->model(sv->engine)->model_type : NULL);
    jo_kstr(&j, "system_fingerprint", sv->engine ? sv->api->fingerprint(sv->engine) : NULL);
    jo_end(&j, '}');
    http_json(c, 200);
}

const char *health_problem(struct server *sv)
{
    struct engine_stats s = {0};
    if (sv->lost)
        return sv->lost_err.msg;
    if (sv->draining)
        return "draining";
    if (!sv->engine)
        return "loading";
    sv->api->get_stats(sv->engine, &s);
    uint64_t now_us = clock_us();
    if (now_us > s.last_step_us + STUCK_US) /* the idle engine has a heartbeat, too */
        return s.step_in_flight ? "a step does not end" : "the engine does not answer";
    return NULL;
}

void api_health(struct call *c)
{
    const char *problem = health_problem(c->sv);
    struct jo j = {.b = &c->answer};
    if (problem) {
        const char *code = c->sv->lost       ? "engine_lost"
                           : c->sv->draining ? "draining"
                           : !c->sv->engine  ? "loading"
                                             : "stuck";
        http_fail(c, 503, NULL, code, "Not ready: %s.", problem);
        return;
    }
    jo_obj(&j);
    jo_kstr(&j, "status", "ok");
    jo_end(&j, '}');
    http_json(c, 200);
}

void api_not_implemented(struct call *c)
{
    http_fail(c, 501, NULL, "not_implemented",
              "%s (%.100s) is not supported: this server generates text.", c->route->handler,
              c->path);
}
