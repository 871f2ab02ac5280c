/* cli_check.c - gaze check: everything that serve would stumble over, without serving. */
#include "cli.h"

#include "auth.h"
#include "base/clock.h"
#include "engine_api.h"
#include "http.h"
#include "otlp.h"
#include "tls.h"

#include <string.h>
#include <time.h>

static enum err_code check_keys(const struct settings *s, struct auth **auth, struct err *e)
{
    uint32_t n, n_valid = 0;
    if (auth_open(auth, s->key_file, s->api_key, e))
        return e->code;
    const struct auth_key *k = auth_keys(*auth, &n);
    for (uint32_t i = 0; i < n; i++)
        n_valid += k[i].valid;
    if (auth_required(*auth))
        printf("ok   keys: %u\n", n_valid);
    else
        printf("ok   keys: none are asked for\n");
    return ERR_OK;
}

static enum err_code check_certificate(const struct settings *s, struct err *e)
{
    char until[40];
    struct tm tm;
    if (!s->tls_cert[0] != !s->tls_key[0])
        return err_set(e, ERR_INVALID, "tls-cert and tls-key belong together");
    if (!s->tls_cert[0])
        return ERR_OK;
    if (tls_load(s->tls_cert, s->tls_key, 0, e))
        return e->code;
    time_t expires_s = (time_t)tls_expires_s();
    tls_unload();
    gmtime_r(&expires_s, &tm);
    strftime(until, sizeof until, "%Y-%m-%d %H:%M UTC", &tm);
    if (expires_s < (time_t)clock_unix_s())
        return err_set(e, ERR_INVALID, "tls-cert has expired: it was good until %s", until);
    printf("ok   certificate: until %s\n", until);
    return ERR_OK;
}

static enum err_code check_collector(const struct settings *s, struct err *e)
{
    uv_loop_t loop;
    struct otlp *o;
    if (!s->otlp_endpoint[0])
        return ERR_OK;
    if (uv_loop_init(&loop))
        return err_set(e, ERR_IO, "no event loop");
    if (!otlp_open(&o, &loop, s->otlp_endpoint, "check", e)) {
        otlp_close(o, 0);
        e->code = ERR_OK;
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    if (!e->code)
        printf("ok   traces: to %s\n", s->otlp_endpoint);
    return e->code;
}

static enum err_code check_model(const struct engine_options *o, bool load, struct err *e)
{
    struct engine_plan plan;
    struct engine *en;
    double begun_s = (double)clock_us() * 1e-6;
    if (engine_make_plan(&plan, o, e))
        return e->code;
    printf("ok   plan: %s, %.1f MiB of memory, %llu tokens of KV (%s latents), context up to %u, "
           "%u prompt tokens a step\n",
           plan.model_type, (double)plan.total_bytes / 1048576, (unsigned long long)plan.kv_tokens,
           latent_name(plan.latent), plan.max_context, plan.prefill_tokens);
    if (!load)
        return ERR_OK;
    if (engine_open(&en, o, e))
        return e->code;
    printf("ok   model: %s loads in %.1f s (%s, chat format %s)\n", o->model_dir,
           (double)clock_us() * 1e-6 - begun_s, engine_backend_name(en),
           chat_format_name(engine_chat_format(en)));
    engine_close(en);
    return ERR_OK;
}

static enum err_code check_server(const struct settings *s, struct err *e)
{
    struct auth *auth = NULL;
    if (check_keys(s, &auth, e))
        return e->code;
    enum err_code code = http_check_address(s, auth, e);
    auth_close(auth);
    if (code)
        return code;
    printf("ok   address: %s port %u\n", s->host, (unsigned)s->port);
    return check_certificate(s, e) || check_collector(s, e) ? e->code : ERR_OK;
}

static int take_quick(void *arg, char **argv, int n_left)
{
    bool *quick = arg;
    (void)n_left;
    *quick |= !strcmp(argv[0], "--quick");
    return !strcmp(argv[0], "--quick");
}

int cli_check(int argc, char **argv)
{
    struct settings s;
    struct engine_options o;
    struct err e = {0};
    bool quick = false;
    int code = EXIT_SETTINGS;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (settings_load(&s, argv, argc, take_quick, &quick, &e) || settings_engine(&s, &o, &e))
        goto end;
    printf("ok   settings\n");
    if (check_server(&s, &e)) {
        code = e.code == ERR_IO ? EXIT_LISTEN : EXIT_SETTINGS;
        goto end;
    }
    code = check_model(&o, !quick, &e) ? EXIT_MODEL : EXIT_FINE;
end:
    settings_free(&s);
    return code == EXIT_FINE ? code : cli_fail_as(code, &e);
}
